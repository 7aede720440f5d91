package access

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Server is the access role of a node: its owners, and its view of volumes that others own.
type Server struct {
	env   Env
	peers func(ident.NodeName) (Peer, bool)
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots *turns // takeovers that recover a journal
	claim *turns // takeovers that have changed, or are about to change, the journal's key

	stopping atomic.Bool // HandOverAll was called

	holding bool // the lease of the control store is asked for; only reconcile's

	away     map[ident.NodeName]time.Time // since when nodes of the site are out of reach; Run's own
	followed time.Time                    // when follow looked last; Run's own

	look     chan struct{} // has Run look at the volumes now
	observer atomic.Pointer[UnitObserver]

	mu struct {
		sync.Mutex
		volumes map[ident.JournalID]*Volume
		alarms  falseAlarms
		seen    map[ident.NodeName]bool // nodes that were in reach since this one started
		owned   int                     // volumes that are owned here, or about to be, at the last look
		closed  bool
	}
}

const (
	takeoversMax    = 16  // at a time: 10,000 volumes after a power cut are no storm
	claimsMax       = 100 // so many keys may share a transaction (R3)
	takeoverRetry   = time.Second
	ownerAwayAfter  = 1500 * time.Millisecond // without a connection to the owner's node before its site takes over
	ownerGoneAfter  = 300 * time.Millisecond  // likewise, where nothing was heard for seconds
	ownerEndedAfter = 50 * time.Millisecond   // likewise, where nobody listens there any more; its leases run out meanwhile
	ownerComesAfter = 5 * time.Second         // likewise, for what nobody uses, where it was not seen since this node started: both are starting
	lookEvery       = 100 * time.Millisecond  // at the nodes of the site
	lookShare       = 8                       // a look takes one part of so many of the time, while there are changes
	lookPause       = 500 * time.Millisecond  // and comes after this at the latest
	lookClosely     = 5 * time.Second         // at volumes too, after a node of the site has gone away
	forwardPatience = 25 * time.Second        // below initiators' command timeouts of 30 s
	tickEvery       = 300 * time.Millisecond
)

// NewServer makes the access role. Run does its work.
func NewServer(env Env, peers func(ident.NodeName) (Peer, bool)) *Server {
	env.Limits = env.Limits.withDefaults()
	if env.Health == nil {
		env.Health = NewHealth(env.Clock, nil)
	}
	s := &Server{env: env, peers: peers, slots: newTurns(takeoversMax), claim: newTurns(claimsMax), look: make(chan struct{}, 1)}
	if s.env.Copies == nil {
		s.env.Copies = NewCopies(env.Clock, 0)
	}
	if s.env.Chores == nil {
		s.env.Chores = NewChores(env.Clock)
	}
	if s.env.Hold == nil {
		s.env.Hold = &controlHold{}
	}
	if s.env.Announce == nil {
		s.env.Announce = s.announce
	}
	s.mu.volumes = map[ident.JournalID]*Volume{}
	s.mu.seen = map[ident.NodeName]bool{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Run keeps owners in line with the control store until ctx ends, then closes them all.
func (s *Server) Run(ctx context.Context) {
	changed, cancel := s.env.Control.Subscribe()
	defer cancel()
	s.wg.Go(s.tickLoop)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for n := 0; ctx.Err() == nil; {
		began := time.Now()
		s.reconcile()
		s.drain()
		s.follow()
		took := time.Since(began)
		for due := false; !due && ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-changed:
				// Many changes come together, the more the longer a look at all volumes takes.
				select {
				case <-time.After(max(20*time.Millisecond, min(lookShare*took, lookPause))):
				case <-ctx.Done():
				}
				due = true
			case <-s.look:
				s.nodeAway()
				due = true
			case <-t.C:
				n++
				due = s.nodeAway() || n%5 == 0
			}
		}
	}
	s.Close()
}

// nodeAway reports that an access server of this site went out of reach lately: its volumes may have to be taken over
// soon. It is cheap, unlike a look at all volumes.
func (s *Server) nodeAway() bool {
	if s.away == nil {
		s.away = map[ident.NodeName]time.Time{}
	}
	lately := false
	for _, n := range s.env.Control.SharedNodes() {
		if n.Site != s.env.Site || n.Name == s.env.Node || !n.Has(control.RoleAccess) {
			continue
		}
		if s.reachable(n.Name) {
			since, was := s.away[n.Name]
			s.mu.Lock()
			if was && s.mu.seen[n.Name] && time.Since(since) > ownerGoneAfter {
				s.mu.alarms.note(n.Name, time.Now())
			}
			s.mu.seen[n.Name] = true
			s.mu.Unlock()
			delete(s.away, n.Name)
			continue
		}
		since, known := s.away[n.Name]
		if !known {
			since = time.Now()
			s.away[n.Name] = since
		}
		lately = lately || time.Since(since) < lookClosely
	}
	return lately
}

// Close gives all leases back and stops all owners. A second call does nothing.
func (s *Server) Close() {
	s.stop()
	s.mu.Lock()
	s.mu.closed = true
	var owners []*Owner
	for _, v := range s.mu.volumes {
		if o := v.owner.Swap(nil); o != nil {
			owners = append(owners, o)
		}
		v.wake()
	}
	s.mu.Unlock()
	for _, o := range owners {
		o.Close()
	}
	s.wg.Wait()
}

// Log is where the server's part of the node writes.
func (s *Server) Log() *slog.Logger { return s.env.Log }

// Volume finds a volume; false if there is none.
func (s *Server) Volume(id ident.JournalID) (*Volume, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	spec, ok := s.env.Control.Volume(id) // with the lock: a specification never follows a newer one
	if !ok || spec.Deleted != nil {
		return nil, false
	}
	return s.volumeLocked(&spec), true
}

func (s *Server) volumeLocked(spec *control.VolumeSpec) *Volume {
	v := s.mu.volumes[spec.ID]
	if v == nil {
		v = &Volume{srv: s, id: spec.ID}
		v.gate.changed = make(chan struct{})
		s.mu.volumes[spec.ID] = v
	}
	v.spec.Store(spec)
	return v
}

// Owners lists the owners of this node.
func (s *Server) Owners() (list []*Owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.mu.volumes {
		if o := v.owner.Load(); o != nil {
			list = append(list, o)
		}
	}
	return list
}

// reconcile starts takeovers that are this node's business and ends owners that are over.
func (s *Server) reconcile() {
	volumes, tombstones := s.env.Control.SharedVolumes()
	owned := 0
	for _, spec := range volumes {
		state, _, ok := s.env.Control.Journal(spec.ID)
		if !ok {
			continue
		}
		s.mu.Lock()
		if s.mu.closed {
			s.mu.Unlock()
			return
		}
		v := s.volumeLocked(spec)
		s.keepHold(spec)
		o := v.owner.Load()
		if o != nil {
			select {
			case <-o.Stopped():
				v.owner.CompareAndSwap(o, nil)
				o = nil
				v.wakeLater()
			default:
			}
		}
		forced := state.Forced != nil && o != nil && o.epoch.Less(state.Forced.Epoch) // maybe in the name of this very node
		if o != nil && (state.Owner != s.env.Node || forced) && o.epoch.Less(state.Epoch) && (v.moving == nil || v.moving.status().Done) {
			// R3: a key with a higher epoch deposes, though no store may have heard of it.
			deposed := o
			v.owner.CompareAndSwap(o, nil)
			s.wg.Go(func() { _ = deposed.depose(state.Epoch) })
			o = nil
			v.wakeLater()
		}
		if o != nil && !o.goesBy(spec) {
			o.SetSpec(*spec)
		}
		if v.named != state.Owner {
			v.named = state.Owner
			v.wakeLater()
		}
		s.writeBack(v, o, state)
		pausing := time.Now().Before(v.again)
		if o == nil && !v.taking && !pausing {
			s.lookForLost(v, state)
		}
		take := o == nil && !v.taking && !s.expected(v, state) && !pausing && s.shouldTake(v, state)
		if take {
			v.taking = true
			s.mu.owned++
			if v.since.IsZero() {
				v.since = time.Now()
			}
			s.wg.Go(func() { s.takeOver(v, nil, s.stillWanted) })
		} else if o == nil && !v.taking && !pausing {
			v.since, v.why = time.Time{}, nil // it is another node's business
		}
		if o != nil || v.taking || pausing {
			owned++
			s.mu.owned = max(s.mu.owned, owned)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.mu.owned = owned
	s.mu.Unlock()
	for _, spec := range tombstones {
		s.mu.Lock()
		v := s.mu.volumes[spec.ID]
		delete(s.mu.volumes, spec.ID)
		s.mu.Unlock()
		if v != nil {
			if o := v.owner.Swap(nil); o != nil {
				o.Close()
			}
			v.wake()
		}
	}
}

// shouldTake says whether this node takes a journal: its own after a restart, a new one of its site, one of its
// site whose owner is gone. Being wrong costs a pause, never data (architecture §4). Server.mu is held.
func (s *Server) shouldTake(v *Volume, state control.JournalState) bool {
	spec := v.spec.Load()
	switch {
	case state.Unheard && !mutant.On(mutant.R3Unheard): // the control store was restored, and does not know yet whom to ask (R3)
		return false
	case state.Owner == s.env.Node:
		return true
	case neverOwned(&state) && s.leavesNew(v):
		return false
	case neverOwned(&state):
		return s.shouldTakeNew(v, s.firstSite(spec.AtSite, state.Sites))
	case state.Owner == "": // the control store was rebuilt
		return s.firstSite(spec.AtSite, state.Sites) == s.env.Site && s.chosen(v.id, "")
	}
	owner, ok := s.env.Control.Node(state.Owner)
	if ok && owner.Site != s.env.Site {
		return false
	}
	if s.reachable(state.Owner) {
		v.wanted = time.Time{}
		return false
	}
	if v.wanted.IsZero() {
		v.wanted = time.Now()
	}
	patience := ownerAwayAfter
	more := s.mu.alarms.more(state.Owner, time.Now())
	switch {
	case !s.mu.seen[state.Owner] && v.urgency() == 0:
		patience = ownerComesAfter
	case s.gone(state.Owner):
		patience = ownerEndedAfter
	case more > 0 && v.urgency() == 0:
		patience <<= more
	case s.silent(state.Owner):
		patience = ownerGoneAfter
	}
	return time.Since(v.wanted) > patience && s.chosen(v.id, state.Owner)
}

// stillWanted asks again whether this node takes a journal: where thousands are taken over, minutes may have passed since it
// was decided, and the former owner may have come back.
func (s *Server) stillWanted(v *Volume) bool {
	state, _, ok := s.env.Control.Journal(v.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return ok && s.shouldTake(v, state)
}

// gone reports that a node's process has ended, as far as its host says.
func (s *Server) gone(n ident.NodeName) bool {
	p, ok := s.peers(n)
	if !ok {
		return false
	}
	g, ok := p.(interface{ Gone() bool })
	return ok && g.Gone()
}

// silent reports that a node has been waited for already: nothing was heard of it for longer than a hiccup takes.
func (s *Server) silent(n ident.NodeName) bool {
	p, ok := s.peers(n)
	if !ok {
		return false
	}
	x, ok := p.(interface{ Silent() bool })
	return ok && x.Silent()
}

// firstSite is where a new journal's owner is: at the site asked for, or where that has no access servers, at
// the first of the others that has some, those with copies before the rest.
func (s *Server) firstSite(at ident.SiteID, copies []ident.SiteID) ident.SiteID {
	nodes := s.env.Control.SharedNodes()
	has := func(site ident.SiteID) bool {
		return slices.ContainsFunc(nodes, func(n control.Node) bool { return n.Site == site && n.Has(control.RoleAccess) })
	}
	if has(at) {
		return at
	}
	for _, site := range copies {
		if has(site) {
			return site
		}
	}
	first, any := at, false
	for _, n := range nodes {
		if n.Has(control.RoleAccess) && (!any || n.Site < first) {
			first, any = n.Site, true
		}
	}
	return first
}

func (s *Server) reachable(n ident.NodeName) bool {
	p, ok := s.peers(n)
	if !ok {
		return false
	}
	if u, ok := p.(interface{ Up() bool }); ok {
		return u.Up()
	}
	return true
}

// chosen reports whether this node is the first of its site's living access servers in the journal's order.
func (s *Server) chosen(id ident.JournalID, but ident.NodeName) bool {
	var names, draining []ident.NodeName
	for _, n := range s.env.Control.SharedNodes() {
		if n.Site == s.env.Site && n.Has(control.RoleAccess) && n.Name != but && (n.Name == s.env.Node || s.env.Control.Alive(n.Name) && s.reachable(n.Name)) {
			if n.Draining || n.Name == s.env.Node && s.stopping.Load() {
				draining = append(draining, n.Name)
			} else {
				names = append(names, n.Name)
			}
		}
	}
	if len(names) == 0 {
		names = draining // rather there than nowhere
	}
	if len(names) == 0 {
		return false
	}
	slices.Sort(names)
	return names[spread(id)%uint64(len(names))] == s.env.Node
}

// spread is a number by which journals are spread over nodes, the same everywhere.
func spread(id ident.JournalID) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range id {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h >> 17
}

// takeOver makes this node the owner; hand is what a former owner has said that hands it over, else nil. still, if not nil,
// is asked again when the takeover's turn has come.
func (s *Server) takeOver(v *Volume, hand *handed, still func(*Volume) bool) {
	taking := true
	defer func() {
		s.mu.Lock()
		v.taking = v.taking && !taking
		s.mu.Unlock()
	}()
	env := s.env
	env.Waits = func(err error) {
		s.mu.Lock()
		v.why = err
		s.mu.Unlock()
	}
	var o *Owner
	var err error
	retry := takeoverRetry
	var held []*turns // whose turn it has
	giveTurns := func() {
		for _, t := range held {
			t.give()
		}
		held = nil
	}
	defer giveTurns()
	if hand != nil { // clients wait for nothing else: it waits for no other takeover
		o, err = takeAt(s.ctx, env, *v.spec.Load(), hand)
	} else {
		if !s.claim.take(s.ctx, v.urgency) {
			return
		}
		held = append(held, s.claim)
		if still != nil && !still(v) { // its turn was long in coming
			return
		}
		hand, err = claimJournal(s.ctx, env, v.id, false)
		if err == nil {
			if !s.slots.take(s.ctx, v.urgency) {
				return
			}
			held = append(held, s.slots)
			env.Patience = func() func() {
				s.slots.give()
				s.claim.give()
				return func() { // whoever resumes gives them back
					s.claim.take(context.Background(), v.urgency)
					s.slots.take(context.Background(), v.urgency)
				}
			}
			o, err = takeAt(s.ctx, env, *v.spec.Load(), hand)
			if away, ok := errors.AsType[*endsElsewhere](err); ok {
				if retry, err = s.passOn(v, hand, away); err == nil {
					return
				}
			}
		}
		hand = nil
	}
	if err != nil {
		if s.ctx.Err() == nil {
			s.env.Log.Warn("takeover", "volume", v.spec.Load().Name, "err", err)
			s.mu.Lock()
			v.why = err
			if hand == nil {
				// The pause holds up this node's next attempt and nothing else: another one may own the volume by now, and hand it over.
				v.again, v.taking, taking = time.Now().Add(retry), false, false
			}
			s.mu.Unlock()
			if hand != nil {
				return // who asked wants to know; the next attempt is a takeover like any other
			}
		}
		return
	}
	s.mu.Lock()
	closed := s.mu.closed
	if !closed {
		v.owner.Store(o)
		v.wanted = time.Time{}
	}
	s.mu.Unlock()
	if closed {
		o.Close()
		return
	}
	// That may be long in coming, as where a site has one of its two core servers and the volume no others: no other takeover waits for it (R4).
	select {
	case <-o.Serving():
	case <-o.Stopped():
	case <-s.ctx.Done():
	case <-time.After(storesPatience):
		giveTurns()
	}
	select {
	case <-o.Serving():
		s.mu.Lock()
		v.since, v.why = time.Time{}, nil
		s.mu.Unlock()
	case <-o.Stopped():
		v.owner.CompareAndSwap(o, nil)
	case <-s.ctx.Done():
	}
	v.wake()
}

// Blocks is what the owners of this node have to copy.
func (s *Server) Blocks() (list []wire.JournalBlocks) {
	for _, o := range s.Owners() {
		if v := o.View(); v != nil {
			list = append(list, v.Blocks)
		}
	}
	return list
}

// Strays is how many replicas are known of that belong to no segment of the journals owned here, and their bytes.
func (s *Server) Strays() (n int, bytes uint64) {
	for _, o := range s.Owners() {
		if v := o.View(); v != nil {
			n += v.Strays
			bytes += v.StrayLen
		}
	}
	return n, bytes
}

// Copies is the node's budget of copies.
func (s *Server) Copies() *Copies { return s.env.Copies }
