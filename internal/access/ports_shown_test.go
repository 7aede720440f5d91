package access

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// gate is a store of another site: what is shipped to it waits while the gate is shut.
type gate struct {
	journal.Store
	shut *atomic.Bool
	came *atomic.Int32 // appends that have found it shut
}

func (g *gate) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if !g.shut.Load() {
		g.Store.Append(m, done)
		return
	}
	g.came.Add(1)
	go func() {
		for g.shut.Load() {
			time.Sleep(time.Millisecond)
		}
		g.Store.Append(m, done)
	}()
}

// A login is answered once the sites in step have the attachment: so a takeover by force of whom they are all that is left
// knows the port, and it gets R11's error though it logs in again.
func TestALoginWaitsForTheSitesInStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // a login waits for shownPatience and no longer
		c := newCluster(t, 2, 2)
		var shut atomic.Bool
		var came atomic.Int32
		c.wrap = func(s journal.Store) journal.Store {
			if c.Site(s.ID()) == 1 {
				return s
			}
			return &gate{s, &shut, &came}
		}
		v := c.volume(1<<20, 2, control.Replicated)
		n := &numbered{blocks: 16, done: map[int]bool{}}
		o := c.own(v)
		n.writes(t, o, 5)
		c.inStep(t, o)
		for i := range byte(8) {
			came.Store(0)
			shut.Store(true)
			go func() {
				for came.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				shut.Store(false)
			}()
			p := newPort(fmt.Sprint("iqn.2026-11.test:", i), i, 1, uint64(i))
			p.bar(t, o, wire.BarLogin)
			if shut.Load() {
				t.Fatalf("login %d was answered before the other site had heard of it", i)
			}
		}
		// The last one's site burns at this moment.
		p := newPort("iqn.2026-11.test:last", 9, 1, 9)
		p.bar(t, o, wire.BarLogin)
		shut.Store(true)
		p.wants(t, o, false, "before")
		c.killSite(1)
		go func() {
			<-o.Stopped()
			shut.Store(false) // its end waits for what it has under way
		}()
		o.Close()
		c.at(2)
		c.force(t, v, 1)
		o = c.own(v)
		p.session++
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, true, "after the takeover")
		o.Close()
	})
}

// A site that can not be reached, or lags, holds up no login. A port that attaches then is not known where the volume is taken over
// by force; once what was left behind is found, it is said which ports have gone on without an error.
func TestAPortThatAttachedWhileItsSiteWasCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 16, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 5)
	known := newPort("iqn.2026-11.test:known", 1, 1, 1)
	known.bar(t, o, wire.BarLogin)
	c.inStep(t, o)
	c.killSite(2)
	late := newPort("iqn.2026-11.test:late", 2, 1, 2)
	late.bar(t, o, wire.BarLogin)
	late.wants(t, o, false, "while the site is cut off")
	n.writes(t, o, 5)
	c.killSite(1)
	o.Close()
	c.startSite(2)
	c.at(2)
	c.force(t, v, 1)
	o = c.own(v)
	fresh := newPort("iqn.2026-11.test:fresh", 3, 2, 3)
	for _, p := range []*port{known, late, fresh} {
		p.session += 10
		p.bar(t, o, wire.BarLogin)
		p.wants(t, o, p == known, "after the takeover")
	}
	c.startSite(1)
	var said []string
	eventually(t, "the port that went on is told of", func() bool { said = c.events("volume.port-went-on"); return len(said) > 0 })
	if text := strings.Join(said, "\n"); !strings.Contains(text, late.nexus.Initiator) || strings.Contains(text, known.nexus.Initiator) || strings.Contains(text, fresh.nexus.Initiator) {
		t.Errorf("said: %q", text)
	}
	o.Close()
}
