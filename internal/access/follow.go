package access

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Ownership follows the writes. All commands come by the owner, so it is the owner that sees where they are from, and
// that hands its journal over (move.go) when they come from elsewhere only:
//
//	write ──counted by node──> twice a second: follower.look ──a node──> may it? (armed, stay, policy) ──> beginMove
//
// A journal that is written from two sites within the time that counts stays where it is. Nothing here decides what is
// right: wherever a journal is owned, it is served correctly everywhere. So what is remembered of former hand-overs is in memory
// only, and a node that has just started may be a little hasty.

const (
	followSlot = 500 * time.Millisecond
	// A site's writes are sustained once they have come in so many slots since anybody else wrote. A guest that is idle and
	// writes every few seconds is followed as well, only later.
	followSlots = 4
	// Within a site only a short way is saved: it takes longer.
	followNear = 5
	// A journal that has come by a hand-over goes away again only once its new site has written, or after this: an
	// operator may move a volume ahead of the machine that uses it.
	followUnarmed = 10 * time.Minute
	// How long it stays at least after a takeover, and after a hand-over, where it doubles with each that is known of the last followMemory.
	followStay     = 5 * time.Second
	followStayMost = 10 * time.Minute
	followMemory   = time.Hour
	// After one that failed: doubles too.
	followRetry     = 10 * time.Second
	followRetryMost = 5 * time.Minute
)

// ioCount counts the writes of a volume by the node that they come from, since it was last read. Counting is for any
// goroutine.
type ioCount struct {
	own  atomic.Uint64
	some atomic.Bool
	from atomic.Pointer[[]*nodeIO] // grows, rarely: under mu
	mu   sync.Mutex
}

type nodeIO struct {
	node ident.NodeName
	n    atomic.Uint64
}

// note counts a write that came by a node; "" is this one.
func (c *ioCount) note(node ident.NodeName) {
	if node == "" {
		c.own.Add(1)
	} else {
		c.of(node).Add(1)
	}
	if !c.some.Load() {
		c.some.Store(true)
	}
}

func (c *ioCount) of(node ident.NodeName) *atomic.Uint64 {
	find := func() *nodeIO {
		if l := c.from.Load(); l != nil {
			for _, x := range *l {
				if x.node == node {
					return x
				}
			}
		}
		return nil
	}
	if x := find(); x != nil {
		return &x.n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := find(); x != nil {
		return &x.n
	}
	var list []*nodeIO
	if l := c.from.Load(); l != nil {
		list = slices.Clone(*l)
	}
	x := &nodeIO{node: node}
	list = append(list, x)
	c.from.Store(&list)
	return &x.n
}

// take gives what was counted and begins anew.
func (c *ioCount) take(self ident.NodeName, site func(ident.NodeName) ident.SiteID) (list []origin) {
	if !c.some.Swap(false) {
		return nil
	}
	if n := c.own.Swap(0); n > 0 {
		list = append(list, origin{self, site(self), n})
	}
	if l := c.from.Load(); l != nil {
		for _, x := range *l {
			if n := x.n.Swap(0); n > 0 {
				list = append(list, origin{x.node, site(x.node), n})
			}
		}
	}
	return list
}

// origin is where writes came from.
type origin struct {
	node ident.NodeName
	site ident.SiteID
	n    uint64
}

// follower is the rule, for one journal at one owner. It does no I/O; time comes in as an argument.
type follower struct {
	self  ident.NodeName
	site  ident.SiteID
	after time.Duration // writes have to come from elsewhere only for so long
	armed bool          // the owner's site has written, or the journal did not come from another by a hand-over
	near  bool          // likewise, of the owner's node
	since time.Duration // since when it is owned here

	sites run[ident.SiteID]
	nodes run[ident.NodeName]
	by    []origin // writes since sites.since, of sites.of
}

// run is since when only one has written: from the first slot in which it did, after the last in which another did too.
type run[T comparable] struct {
	of    T
	since time.Duration
	slots int
}

// add takes a slot's writers; it reports that another run has begun.
func (r *run[T]) add(now time.Duration, of []T) bool {
	var none T
	switch {
	case len(of) == 0:
		return false
	case slices.ContainsFunc(of, func(x T) bool { return x != of[0] }):
		*r = run[T]{of: none}
		return true
	case r.slots == 0 || r.of != of[0]:
		*r = run[T]{of[0], now, 1}
		return true
	}
	r.slots++
	return false
}

// look takes the writes of the slot that ends now and says which node should own the journal; "" is this one.
func (f *follower) look(now time.Duration, writes []origin) ident.NodeName {
	sites, nodes := make([]ident.SiteID, 0, 4), make([]ident.NodeName, 0, 4)
	for _, w := range writes {
		sites, nodes = append(sites, w.site), append(nodes, w.node)
		f.armed = f.armed || w.site == f.site
		f.near = f.near || w.node == f.self
	}
	if f.sites.add(now, sites) {
		f.by = f.by[:0]
	}
	f.nodes.add(now, nodes)
	for _, w := range writes {
		if i := slices.IndexFunc(f.by, func(x origin) bool { return x.node == w.node }); i >= 0 {
			f.by[i].n += w.n
		} else {
			f.by = append(f.by, w)
		}
	}
	if now-f.since >= followUnarmed {
		f.armed, f.near = true, true
	}
	if !f.armed {
		return ""
	}
	slots := func(of time.Duration) int { return max(followSlots, int(of/followSlot)/2) }
	switch {
	case f.sites.slots == 0:
	case f.sites.of != f.site:
		if f.sites.slots >= slots(f.after) && now-f.sites.since >= f.after-followSlot {
			return f.busiest()
		}
	case f.near && f.nodes.slots > 0 && f.nodes.of != f.self:
		if near := followNear * f.after; f.nodes.slots >= slots(near) && now-f.nodes.since >= near-followSlot {
			return f.nodes.of
		}
	}
	return ""
}

func (f *follower) busiest() ident.NodeName {
	best := f.by[0]
	for _, x := range f.by[1:] {
		if x.n > best.n || x.n == best.n && x.node < best.node {
			best = x
		}
	}
	return best.node
}

// followState is what a node keeps of a volume for the rule. Guarded by Server.mu.
type followState struct {
	rule  *follower
	of    *Owner         // that rule is about
	hands []time.Time    // hand-overs of the volume that this node had a part in
	tried time.Time      // when the last one was begun here,
	wait  time.Duration  // and how long after that none is; 0 once one has succeeded
	held  ident.NodeName // for whom it is being held back
}

// handed notes a hand-over that this node had a part in.
func (f *followState) handed(now time.Time) {
	f.hands = append(f.hands, now)
	if n := len(f.hands); n > 32 {
		f.hands = append(f.hands[:0], f.hands[n-32:]...)
	}
	f.wait = 0
}

// rest says how long the journal has to stay still: after the last hand-over, the longer the more there were, and after
// one that failed.
func (f *followState) rest(now time.Time) time.Duration {
	f.hands = slices.DeleteFunc(f.hands, func(t time.Time) bool { return now.Sub(t) > followMemory })
	var left time.Duration
	if n := len(f.hands); n > 0 {
		stay := min(followStay<<min(n-1, 20), followStayMost)
		left = stay - now.Sub(f.hands[n-1])
	}
	if f.wait > 0 {
		left = max(left, f.wait-now.Sub(f.tried))
	}
	return max(left, 0)
}

// follow looks at all journals that are owned here. Only Run calls it.
func (s *Server) follow() {
	now := time.Now()
	if s.env.Limits.FollowAfter < 0 || now.Sub(s.followed) < followSlot-lookEvery/2 {
		return
	}
	s.followed = now
	s.mu.Lock()
	list := make([]*Volume, 0, len(s.mu.volumes))
	for _, v := range s.mu.volumes {
		if v.owner.Load() != nil {
			list = append(list, v)
		} else {
			v.follow.rule, v.follow.of = nil, nil
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *Volume) int { return slices.Compare(a.id[:], b.id[:]) })
	for _, v := range list {
		s.followOne(v, now)
	}
}

func (s *Server) followOne(v *Volume, now time.Time) {
	o := v.owner.Load()
	if o == nil || !isClosed(o.Serving()) || isClosed(o.Stopped()) {
		return
	}
	clock := time.Duration(s.env.Clock())
	s.mu.Lock()
	f := &v.follow
	if f.of != o {
		f.of, f.rule = o, &follower{self: s.env.Node, site: s.env.Site, after: s.env.Limits.FollowAfter, armed: !o.hand.moved, near: !o.hand.told, since: clock}
	}
	to := f.rule.look(clock, v.writes.take(s.env.Node, s.siteOf))
	spec := v.spec.Load()
	moving := v.moving != nil && !v.moving.status().Done
	if to == "" || moving || s.mu.closed {
		f.held = ""
		s.mu.Unlock()
		return
	}
	rest := f.rest(now)
	if o.epoch.Number > 1 && !o.hand.told { // a takeover: hosts use what path they find until they have looked at the states again
		rest = max(rest, followStay-(clock-f.rule.since))
	}
	if rest > 0 || spec.Ownership == control.OwnershipPin {
		if f.held != to {
			f.held = to
			s.env.Metrics.FollowHeld.Inc()
			if spec.Ownership != control.OwnershipPin {
				s.env.Log.Info("all writes come from another node, but the volume has moved lately", "volume", spec.Name, "peer", to, "rest", rest.Round(time.Second))
			}
		}
		s.mu.Unlock()
		return
	}
	f.held = ""
	node, site, can := s.followTo(o, to)
	if !can {
		s.mu.Unlock()
		return
	}
	f.tried = now
	f.wait = min(max(2*f.wait, followRetry), followRetryMost) // until one succeeds
	s.mu.Unlock()
	if _, err := s.beginMoveFor(v, node, site, true); err != nil {
		s.moveEnded(v, &handing{to: control.Node{Name: to}}, true, err)
	}
}

// followTo says how the journal is asked to go where a node is: to it, or where that one may own nothing, to its site.
func (s *Server) followTo(o *Owner, to ident.NodeName) (node ident.NodeName, site ident.SiteID, can bool) {
	x, ok := s.env.Control.Node(to)
	if !ok || !x.Has(control.RoleAccess) || x.Site != s.env.Site && len(s.env.Stores.Core(x.Site)) > 0 && !slices.Contains(o.state.Sites, x.Site) {
		return "", 0, false // nobody can own it there
	}
	if x.Draining || !s.reachable(to) {
		return "", x.Site, x.Site != s.env.Site
	}
	return to, 0, true
}

// moveEnded notes how a hand-over from here has ended.
func (s *Server) moveEnded(v *Volume, h *handing, follows bool, err error) {
	if err == nil || h.epoch.Number != 0 {
		s.mu.Lock()
		v.follow.handed(time.Now())
		s.mu.Unlock()
	}
	if !follows {
		return
	}
	spec := v.spec.Load()
	if err == nil {
		s.env.Metrics.Follows.Inc()
		s.env.Log.Info("the volume has followed its writes", "volume", spec.Name, "peer", h.to.Name)
	} else {
		s.env.Metrics.FollowFailed.Inc()
		s.env.Log.Warn("all writes come from another node, but the volume can not be handed over to it", "volume", spec.Name, "peer", h.to.Name, "err", err)
	}
	if s.env.Followed != nil {
		s.env.Followed(*spec, h.to.Name, h.pause, err)
	}
}

func (s *Server) siteOf(n ident.NodeName) ident.SiteID {
	if n == s.env.Node {
		return s.env.Site
	}
	x, _ := s.env.Control.Node(n)
	return x.Site
}

// countWrite counts a command for the rule, where it is a write.
func (v *Volume) countWrite(kind wire.ForwardOp, from ident.NodeName) {
	if writes(kind) {
		v.writes.note(from)
	}
}
