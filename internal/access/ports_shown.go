package access

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// R11 wants an error for every port that was attached, also from the owner of another site that takes over by force and has only what
// was shipped to it. So the login of a port that is not known yet is answered once the sites that are in step have its attachment,
// too. It is one round trip to the farthest of them, once a port and path, and not in the path of any write. Sites that can not be
// reached, or that lag, are not waited for: a volume whose owner is cut off must still be attachable. A port that attaches there
// for the first time is what a takeover by force elsewhere can not know of. Such a port is like a new one if it logs in again, and it
// is told of loudly as soon as what was left behind is found.

// shownPatience bounds how long a login waits for other sites. It is longer than any distance that we mean to bridge, and
// shorter than what initiators wait for a login (RFC 7143 names no time; open-iscsi 15 s).
const shownPatience = time.Second

// portShow is a login that waits for other sites to have its attachment.
type portShow struct {
	seq   ident.Seq
	until uint64 // Owner.tick
	then  func(error)
}

// awaitShown calls then, in the loop, once the sites in step have what is up to seq. It runs in the loop.
func (o *Owner) awaitShown(seq ident.Seq, then func(error)) {
	o.ports.shows = append(o.ports.shows, portShow{seq, o.tick() + uint64(shownPatience/time.Millisecond), then})
	o.showing.Store(true)
	o.countShown()
}

// countShown answers the logins that need not wait any more. It runs in the loop.
func (o *Owner) countShown() {
	p := &o.ports
	if len(p.shows) == 0 {
		return
	}
	least := o.leastInStep()
	now := o.tick()
	p.shows = slices.DeleteFunc(p.shows, func(s portShow) bool {
		done := s.seq <= least || now > s.until
		if done {
			s.then(nil)
		}
		return done
	})
	o.showing.Store(len(p.shows) > 0)
}

// leastInStep is the record up to which all sites have everything that can be reached and lack little.
func (o *Owner) leastInStep() ident.Seq {
	least := o.w.Commit().Seq
	for _, s := range o.ships {
		s.mu.Lock()
		mark := s.mu.reach.mark
		s.mu.Unlock()
		if mark > 0 && mark < least && o.lagOf(s) <= ackLag && slices.ContainsFunc(o.env.Stores.Core(s.site), o.env.Stores.Up) {
			least = mark
		}
	}
	return least
}

// wentOn says which ports are attached to what was left behind and had been taken for new ones here: they have had no error.
// It runs in the loop.
func (o *Owner) wentOn(site ident.SiteID, attached []journal.Port) {
	var names []string
	for _, port := range attached {
		if a := o.ports.list[port]; a != nil && o.ports.fresh[port] && !a.Barred {
			delete(o.ports.fresh, port) // told
			names = append(names, fmt.Sprintf("%s (ISID %x)", port.Name, port.ISID))
		}
	}
	if len(names) == 0 {
		return
	}
	o.log.Error("ports that were attached to what was left behind have gone on without an error", "site", site, "ports", names)
	o.report("volume.port-went-on", fmt.Sprintf("attached to what site %d has left behind, and not known here when they logged in again, so that they got no error: %s; "+
		"what their hosts believe to be on the volume may not be there: restart the guests, or check their file systems; dozo fork shows what was left behind", site, strings.Join(names, ", ")))
}
