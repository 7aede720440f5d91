package access

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A port attaches for the first time while its site is cut off, the volume is taken over by force at the other one, and the port logs in again at
// the access server where it had: that one remembers, and the port gets R11's error. It has not gone on, and who has logged out, or was not
// there, is a new one.
func TestALoginThatWasLeftBehindIsRememberedWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(1<<20, 2, control.Replicated)
		was := n.served(t, v)
		site := was.home.site
		by, to := n.other(was, site), n.other(was, 3-site)
		o := was.srv.Load().Owners()[0]
		if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
			t.Fatal(err)
		}
		n.inStep(t, o)
		n.cutSiteOff(site, true)
		was.deaf.Store(true)
		by.deaf.Store(true)
		bar := func(p *port, kind wire.BarKind) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := by.volumeAt(v).Bar(ctx, &wire.Bar{Kind: kind, Nexus: p.nexus, Session: p.session}); err != nil {
				t.Fatal(err)
			}
		}
		stays, leaves, comes := newPort("iqn.stays", 1, 1, 11), newPort("iqn.leaves", 1, 1, 21), newPort("iqn.comes", 1, 1, 31)
		bar(stays, wire.BarLogin)
		bar(leaves, wire.BarLogin)
		bar(leaves, wire.BarLogout)
		var lost []ident.StoreID
		for _, s := range n.seats {
			if s.site == site {
				lost = append(lost, s.id)
			}
		}
		_, rev, err := n.ctl.JournalNow(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.ctl.ForceJournal(t.Context(), v.ID, rev, to.name, lost, "", 0, false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other site serves", func() bool {
			o = to.volumeAt(v).Owner()
			return o != nil && isClosed(o.Serving())
		})
		n.cutSiteOff(site, false)
		was.deaf.Store(false)
		by.deaf.Store(false)
		for _, p := range []*port{stays, leaves, comes} {
			p.session++
			bar(p, wire.BarLogin)
		}
		stays.wants(t, o, true, "logged in again where it had before")
		leaves.wants(t, o, false, "logged out in between")
		comes.wants(t, o, false, "new")
		stays.session++
		bar(stays, wire.BarLogin)
		stays.wants(t, o, true, "once more")
		bar(stays, wire.BarLogout)
		stays.session++
		bar(stays, wire.BarLogin)
		stays.wants(t, o, false, "logged out and in again")
		n.stopAll()
	})
}
