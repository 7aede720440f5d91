package export

import (
	"cmp"
	"context"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// Where an initiator is served is its own choice, by the portal that it logs in at; that is how multipathing works. It is
// sent elsewhere (RFC 7143 11.13.5) where the volume's policy says so, and where this access server drains or stops.
// Of several of equal rank the one with the fewest sessions gets it (load.go), then a hash of its port decides.
//
// Views differ between nodes for moments, so two could send an initiator to and fro. Each sends one away for a while only
// once: whoever comes back is served.

const (
	redirectMemory = 30 * time.Second
	redirectsMax   = 4096 // remembered; beyond that the oldest half is forgotten
	drainLogout    = 15 * time.Second
	// A host with several paths looks at their states every second or two. Only when its commands have gone over to the new
	// owner's path is it asked to give up this one: what is under way when it logs out is lost, and waits for its timeouts.
	drainSettle       = 3 * time.Second
	drainPatience     = 10 * time.Second // for volumes that nobody takes
	stopLogout        = 2 * time.Second
	stopPatience      = stopLogout + 200*time.Millisecond // no less than what initiators were told that they have (RFC 7143 11.9.1)
	stopLook          = 10 * time.Millisecond
	drainingLookEvery = time.Second
)

// port is an initiator port at a target.
type port struct {
	initiator, target string
	isid              [6]byte
}

// redirect says where a login is to be made instead, nil for here. spec is nil for the hosts' target.
func (e *Exports) redirect(ctx context.Context, p iscsi.Peer, target string, isid [6]byte, spec *control.VolumeSpec, owner ident.NodeName) *iscsi.RedirectError {
	self, _ := e.ctl.Node(e.node)
	leaving := self.Draining || e.leaving.Load()
	policy := control.RedirectOff
	if spec != nil {
		policy = spec.Redirect
	}
	if !leaving && (policy == control.RedirectOff || policy == "") {
		return nil
	}
	site := e.siteOf(p)
	to, ok := control.Node{}, false
	permanent := false
	switch {
	case leaving:
		to, ok = e.elsewhere(ctx, p, isid, site, owner, func(control.Node) bool { return true })
	case policy == control.RedirectSite && self.Site != site:
		permanent = true
		to, ok = e.elsewhere(ctx, p, isid, site, owner, func(n control.Node) bool { return n.Site == site })
	case policy == control.RedirectOwner && owner != e.node:
		to, ok = e.elsewhere(ctx, p, isid, site, owner, func(n control.Node) bool { return n.Name == owner })
	}
	if !ok || !e.sendAway(port{p.Initiator, target, isid}) {
		return nil
	}
	e.wasSent(to.Name)
	at := portalFor(e.ctl.Sites(), to, p.Remote.Addr().Unmap(), isid)
	e.srv.Log().Info("initiator is sent to another access server", "initiator", p.Initiator, "target", target, "peer", to.Name, "portal", at, "permanent", permanent)
	return &iscsi.RedirectError{Address: at.String(), Permanent: permanent}
}

// others lists the access servers that an initiator can be sent to.
func (e *Exports) others() []control.Node {
	return slices.DeleteFunc(e.ctl.Nodes(), func(n control.Node) bool {
		return n.Name == e.node || !n.Has(control.RoleAccess) || n.Draining || len(n.Addrs.Portals) == 0 || !e.ctl.Alive(n.Name)
	})
}

// elsewhere finds the best other access server for an initiator: of its site before others, the owner before the rest.
func (e *Exports) elsewhere(ctx context.Context, p iscsi.Peer, isid [6]byte, site ident.SiteID, owner ident.NodeName, may func(control.Node) bool) (control.Node, bool) {
	list := slices.DeleteFunc(e.others(), func(n control.Node) bool { return !may(n) })
	if len(list) == 0 {
		return control.Node{}, false
	}
	rank := func(n control.Node) int {
		r := 0
		if n.Site != site {
			r += 2
		}
		if n.Name != owner {
			r++
		}
		return r
	}
	best := rank(slices.MinFunc(list, func(a, b control.Node) int { return rank(a) - rank(b) }))
	list = e.leastLoaded(ctx, slices.DeleteFunc(list, func(n control.Node) bool { return rank(n) != best }))
	weight := func(n control.Node) uint64 { // the highest wins, so that a node that comes or goes moves only its share
		h := fnv.New64a()
		h.Write([]byte(p.Initiator))
		h.Write(isid[:])
		h.Write([]byte(n.Name))
		x := h.Sum64()
		x ^= x >> 32 // names that differ in the last byte only differ in low bits
		return x * 0x9e3779b97f4a7c15
	}
	return slices.MinFunc(list, func(a, b control.Node) int { return cmp.Compare(weight(b), weight(a)) }), true
}

// portalFor chooses a portal of a node: of the address family that the initiator came by, in a subnet of a site that it
// is in too before others, and another one for another of the initiator's ports.
func portalFor(sites []control.Site, n control.Node, from netip.Addr, isid [6]byte) netip.AddrPort {
	rank := func(p control.Portal) int {
		a := p.Addr.Addr().Unmap()
		r := 0
		if a.Is4() != from.Is4() {
			r += 2
		}
		for _, s := range sites {
			if slices.ContainsFunc(s.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) && c.Contains(from) }) {
				return r
			}
		}
		return r + 1
	}
	best := slices.MinFunc(n.Addrs.Portals, func(a, b control.Portal) int { return rank(a) - rank(b) })
	list := slices.DeleteFunc(slices.Clone(n.Addrs.Portals), func(p control.Portal) bool { return rank(p) != rank(best) })
	return list[int(isid[5])%len(list)].Addr
}

// sendAway notes that an initiator port is sent away; false if it was lately.
func (e *Exports) sendAway(p port) bool {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.sent[p]; ok && now.Sub(t) < redirectMemory {
		return false
	}
	if len(e.sent) >= redirectsMax {
		for k, t := range e.sent {
			if now.Sub(t) >= redirectMemory {
				delete(e.sent, k)
			}
		}
		for k := range e.sent {
			if len(e.sent) < redirectsMax/2 {
				break
			}
			delete(e.sent, k)
		}
	}
	e.sent[p] = now
	return true
}

// Run has sessions follow the maps of the hosts' target, and asks initiators to log out while this node drains, until
// ctx ends.
func (e *Exports) Run(ctx context.Context) {
	changed, cancel := e.ctl.Subscribe()
	defer cancel()
	tick := time.NewTicker(drainingLookEvery)
	defer tick.Stop()
	var since time.Time
	asked := map[*iscsi.Session]bool{}
	idle := map[*iscsi.Session]time.Time{}
	for {
		e.remap()
		if self, _ := e.ctl.Node(e.node); !self.Draining {
			since = time.Time{}
			clear(asked)
			clear(idle)
		} else {
			if since.IsZero() {
				since = time.Now()
			}
			e.askToLeave(since, asked, idle)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-e.opened:
		case <-tick.C:
		}
	}
}

// askToLeave asks the sessions that were there when the node began to drain, and that have somewhere to go, a while after
// their volumes have got another owner. idle has since when they have.
func (e *Exports) askToLeave(since time.Time, asked map[*iscsi.Session]bool, idle map[*iscsi.Session]time.Time) {
	for _, x := range e.Sessions() {
		i := x.Info()
		if i.Discovery || asked[x] || i.Opened.After(since) {
			continue
		}
		if len(e.others()) == 0 {
			continue
		}
		now := time.Now()
		if e.ownsOf(x) {
			delete(idle, x)
			if now.Sub(since) < drainPatience {
				continue
			}
		} else if t, ok := idle[x]; !ok || now.Sub(t) < drainSettle {
			if !ok {
				idle[x] = now
			}
			continue
		}
		asked[x] = true
		e.srv.Log().Info("initiator is asked to log out: the node drains", "initiator", i.Initiator, "target", i.Target, "within", drainLogout)
		x.Logout(drainLogout)
	}
}

// ownsOf reports whether this node owns a volume of the session.
func (e *Exports) ownsOf(x *iscsi.Session) bool {
	return len(x.Nexus().Find(func(d scsi.Disk) bool {
		own, ok := d.(*disk)
		return ok && own.v.OwnerNode() == e.node
	})) > 0
}

// Leave prepares for a planned stop: initiators are asked to log out, and those that log in again are sent elsewhere. It
// returns once they have gone, or after a little while.
func (e *Exports) Leave() {
	e.leaving.Store(true)
	if len(e.others()) == 0 {
		return // nowhere to go to
	}
	normal := func() (n int) {
		for _, x := range e.Sessions() {
			if !x.Info().Discovery {
				n++
			}
		}
		return n
	}
	askAndWait(func(within time.Duration) {
		for _, x := range e.Sessions() {
			x.Logout(within)
		}
	}, normal)
}

// askAndWait asks sessions to log out, and waits until none is left, or the time that they were told is over.
func askAndWait(ask func(within time.Duration), left func() int) {
	ask(stopLogout)
	for until := time.Now().Add(stopPatience); left() > 0 && time.Now().Before(until); {
		time.Sleep(stopLook)
	}
}
