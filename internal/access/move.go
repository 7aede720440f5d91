package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A hand-over is a takeover with leases given back and a warm map (R10): one protocol, TakeOver. What is before it:
//
//	the owner                                          the taker
//	checkpoint ── prepare ──────────────────────────> loads the map that the checkpoint describes
//	to another site: its copy catches up; if it
//	  does not, writers are slowed, or it is called off
//	── ready? ──────────────────────────────────────> its tick
//	to another site: control store, as below; it serves on
//	freeze, drain; to another site: the last records ─> stable
//	control store: the taker, epoch+1, its ensemble
//	stop, leases back ── take ──────────────────────> to another site: until the last records are stable
//	                                                  fence .. epoch-start .. serve (TakeOver)
//	commands that were held go to the new owner
//
// Until the leave, the last message, is sent the owner goes on if anything fails; from then on a taker that dies is an
// owner that died. Who takes over for one that has not begun passes the journal on: see homeward.go.

const (
	movePatience   = 5 * time.Minute // for everything before the pause
	settlePatience = 10 * time.Second
	drainPatience  = 3 * time.Second  // commands wait for no longer than that before it is called off
	takePatience   = 20 * time.Second // for the taker's word that it serves; it goes on without that too
	thirdPatience  = 150 * time.Millisecond
	slowMost       = 60 * time.Second // R10
	handPause      = 60 * time.Millisecond
	handLagSmall   = 256 << 10 // bytes; what is shipped at once over any link
	lagLook        = 50 * time.Millisecond
	lagPatience    = time.Second      // for the copy to catch up by itself, before writers are slowed
	tailPatience   = 2 * time.Second  // for what was sent before the leave; then the old owner takes the volume back
	handExpected   = 5 * time.Second  // a taker that is prepared leaves the key's change to the owner's word for so long
	preparedAtMost = 10 * time.Minute // then it forgets
	drainingAtOnce = 2
	fenceForTaker  = 150 * time.Millisecond // a fence that the old owner asks for in the taker's name

	fenceForTakerMax = 4096 // replicas in its answers
	checkpointsMost  = 3    // in a row, until one is quick
)

// move is a hand-over under way, or the last one. Guarded by mu.
type move struct {
	cancel context.CancelFunc
	mu     sync.Mutex
	r      wire.HandOverReply
}

func (m *move) phase(format string, args ...any) {
	m.mu.Lock()
	m.r.Phase = fmt.Sprintf(format, args...)
	m.mu.Unlock()
}

func (m *move) lag(n uint64) {
	m.mu.Lock()
	m.r.LagBytes = n
	m.mu.Unlock()
}

func (m *move) status() wire.HandOverReply {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.r
}

// prepared is what a taker has ready for a journal that is to come.
type prepared struct {
	from  ident.NodeName
	epoch ident.Epoch // of the owner that hands over
	since time.Time
	moved bool
	hand  handed
	named time.Time // since when the control store names this node

	refused bool // the leave has come, and nothing was begun: it may come again
}

// HandOver does a step of a hand-over that another node, or an operator by this one, asks for.
func (s *Server) HandOver(ctx context.Context, from ident.NodeName, m *wire.HandOver) (wire.HandOverReply, error) {
	v, ok := s.Volume(m.Journal)
	if !ok {
		return wire.HandOverReply{}, wire.Errorf(wire.CodeAbsent, "no volume %s", m.Journal)
	}
	switch m.Step {
	case wire.HandBegin:
		mv, err := s.beginMove(v, m.Node, m.Site)
		if err != nil {
			return wire.HandOverReply{}, err
		}
		return mv.status(), nil
	case wire.HandStatus:
		s.mu.Lock()
		mv := v.moving
		s.mu.Unlock()
		if mv == nil {
			return wire.HandOverReply{}, wire.Errorf(wire.CodeAbsent, "volume %s is not handed over by node %s", m.Journal, s.env.Node)
		}
		return mv.status(), nil
	case wire.HandPrepare:
		return s.prepare(ctx, v, from, m)
	case wire.HandReady:
		return wire.HandOverReply{Tick: s.tick()}, s.couldBegin(v)
	case wire.HandTake:
		return s.take(ctx, v, from, m)
	case wire.HandCancel:
		s.mu.Lock()
		mv := v.moving
		if p := v.prepared; p != nil && p.from == from {
			v.prepared = nil
		}
		s.mu.Unlock()
		if mv != nil {
			mv.cancel()
		}
		return wire.HandOverReply{}, nil
	}
	return wire.HandOverReply{}, wire.Errorf(wire.CodeBadRequest, "step %d of a hand-over", m.Step)
}

func (s *Server) tick() uint64 { return uint64(s.env.Clock() / int64(time.Millisecond)) }

// taker finds who is to take a volume over: the node that was asked for, or the one of the site that the journal's
// order puts first.
func (s *Server) taker(v *Volume, node ident.NodeName, site ident.SiteID) (control.Node, error) {
	if node != "" {
		x, ok := s.env.Control.Node(node)
		switch {
		case !ok:
			return x, wire.Errorf(wire.CodeAbsent, "node %s is not known", node)
		case !x.Has(control.RoleAccess):
			return x, wire.Errorf(wire.CodeBadRequest, "node %s is no access server: it can not own volumes", node)
		case x.Draining && node != s.env.Node:
			return x, wire.Errorf(wire.CodeBadRequest, "node %s is draining", node)
		case node != s.env.Node && !s.reachable(node):
			return x, wire.Errorf(wire.CodeUnreached, "node %s can not be reached", node)
		}
		return x, nil
	}
	var list []control.Node
	for _, x := range s.env.Control.Nodes() {
		if x.Site == site && x.Has(control.RoleAccess) && !x.Draining && x.Name != s.env.Node && s.env.Control.Alive(x.Name) && s.reachable(x.Name) {
			list = append(list, x)
		}
	}
	if len(list) == 0 {
		return control.Node{}, wire.Errorf(wire.CodeUnreached, "no other access server of site %d can take volume %s over", site, v.Spec().Name)
	}
	return list[int(spread(v.id)%uint64(len(list)))], nil
}

// beginMove starts a hand-over of a volume that is owned here, as somebody has asked.
func (s *Server) beginMove(v *Volume, node ident.NodeName, site ident.SiteID) (*move, error) {
	return s.beginMoveFor(v, node, site, false)
}

// beginMoveFor is beginMove; follows says that nobody has asked, but the I/O has moved.
func (s *Server) beginMoveFor(v *Volume, node ident.NodeName, site ident.SiteID, follows bool) (*move, error) {
	o := v.owner.Load()
	if o == nil || !isClosed(o.Serving()) || isClosed(o.Stopped()) {
		return nil, wire.Errorf(wire.CodeNotOwner, "volume %s is not served by node %s", v.Spec().Name, s.env.Node)
	}
	if node == "" && site == s.env.Site && s.refusal() == nil {
		node = s.env.Node // it is where it is asked to be
	}
	to, err := s.taker(v, node, site)
	if err != nil {
		return nil, err
	}
	copies := to.Site != s.env.Site && len(s.env.Stores.Core(to.Site)) > 0
	if copies && !slices.Contains(o.state.Sites, to.Site) {
		return nil, wire.Errorf(wire.CodeBadRequest, "site %d has no copy of volume %s", to.Site, v.Spec().Name)
	}
	mv := &move{}
	mv.r = wire.HandOverReply{Taker: to.Name, Phase: "preparing"}
	if to.Name == s.env.Node {
		mv.cancel = func() {}
		mv.r.Done, mv.r.Phase, mv.r.Epoch = true, "served there", o.epoch
		s.mu.Lock()
		if v.moving == nil || v.moving.status().Done {
			v.moving = mv
		}
		s.mu.Unlock()
		return mv, nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, movePatience)
	mv.cancel = cancel
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.moving != nil && !v.moving.status().Done {
		cancel()
		return nil, wire.Errorf(wire.CodeBusy, "volume %s is being handed over to %s", v.Spec().Name, v.moving.status().Taker)
	}
	if s.mu.closed {
		cancel()
		return nil, wire.Errorf(wire.CodeShutdown, "the node is closing")
	}
	v.moving = mv
	s.wg.Go(func() {
		defer cancel()
		s.runMove(ctx, v, o, to, copies, follows, mv)
		if isClosed(o.Stopped()) {
			_ = o.Close() // what it had under way ends
		}
	})
	return mv, nil
}

func (s *Server) runMove(ctx context.Context, v *Volume, o *Owner, to control.Node, copies, follows bool, mv *move) {
	h := &handing{s: s, v: v, o: o, to: to, copies: copies, mv: mv, log: o.log.With("taker", to.Name)}
	err := h.run(ctx)
	s.moveEnded(v, h, follows, err)
	mv.mu.Lock()
	defer mv.mu.Unlock()
	mv.r.Done = true
	if err == nil {
		mv.r.Phase, mv.r.LagBytes, mv.r.Epoch, mv.r.Pause = "done", 0, h.epoch, h.pause
		s.env.Metrics.HandedOver.Inc()
		s.env.Metrics.HandSeconds.Observe(h.pause.Seconds())
		h.log.Info("handed over", append([]any{"pause", h.pause.Round(time.Microsecond), "next", h.epoch.String()}, h.parts.attrs()...)...)
		return
	}
	s.env.Metrics.HandFailed.Inc()
	mv.r.Phase, mv.r.Failed, mv.r.Detail = "failed", wire.CodeBusy, cutText(err.Error(), ownerStateMax)
	var e *wire.Error
	if errors.As(err, &e) {
		mv.r.Failed = e.Code
	}
	h.log.Warn("not handed over", "err", err)
}

// prepare is the taker's first step.
func (s *Server) prepare(ctx context.Context, v *Volume, from ident.NodeName, m *wire.HandOver) (r wire.HandOverReply, err error) {
	if err := s.refusal(); err != nil {
		return r, err
	}
	state, _, ok := s.env.Control.Journal(v.id)
	if !ok {
		return r, wire.Errorf(wire.CodeAbsent, "journal %s is not known here yet", v.id)
	}
	if err := s.couldBegin(v); err != nil {
		return r, err
	}
	p := &prepared{from: from, epoch: m.Epoch, since: time.Now()}
	if x, ok := s.env.Control.Node(from); ok {
		p.moved = x.Site != s.env.Site
	}
	if newest, ok := state.Newest(); !ok || !(&Owner{env: s.env, journalID: v.id, state: state}).usable(newest.Stores) {
		stores, _ := s.env.chooseEnsemble(v.id, state.Sites)
		if len(stores) < control.EnsembleMin {
			return r, wire.Errorf(wire.CodeBusy, "fewer than two core servers can be reached from node %s", s.env.Node)
		}
		r.Stores = stores
	}
	if len(m.Point) > 0 {
		if p.hand.point, err = journal.DecodeCheckpoint(m.Point); err != nil {
			return r, wire.Errorf(wire.CodeBadRequest, "checkpoint: %v", err)
		}
		near := s.nearStores(state)
		if p.hand.warm, err = warmUp(ctx, &s.env, v.Spec(), p.hand.point, near); err != nil {
			s.env.Log.Warn("map not loaded ahead of a hand-over", "volume", v.Spec().Name, "err", err) // it is loaded then
			err = nil
		}
	}
	s.mu.Lock()
	v.prepared = p
	s.mu.Unlock()
	r.Tick = s.tick()
	return r, nil
}

// couldBegin says why a takeover by this node would wait: R2 asks for stores that the old owner can do without, and that don't answer. A
// volume that is served is not to stop being served because somebody would rather have it elsewhere.
func (s *Server) couldBegin(v *Volume) error {
	state, _, ok := s.env.Control.Journal(v.id)
	if !ok {
		return nil
	}
	if list := (&Owner{env: s.env, journalID: v.id, state: state}).wouldWaitFor(); len(list) > 0 {
		return wire.Errorf(wire.CodeBusy, "volume %s: an owner can begin once stores answer again that can not be reached from node %s, or what they have has been copied: %v", v.Spec().Name, s.env.Node, list)
	}
	return nil
}

// nearStores lists the stores that may have a journal's segments, near ones first.
func (s *Server) nearStores(state control.JournalState) (list []ident.StoreID) {
	for _, site := range slices.Concat([]ident.SiteID{s.env.Site}, state.Sites) {
		for _, id := range s.env.Stores.Core(site) {
			if !slices.Contains(list, id) {
				list = append(list, id)
			}
		}
	}
	rank := func(id ident.StoreID) int {
		switch {
		case s.env.Stores.Local(id):
			return 0
		case s.env.Stores.Site(id) == s.env.Site:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(list, func(a, b ident.StoreID) int { return rank(a) - rank(b) })
	return list
}

// take is the taker's last step: it answers once this node serves.
func (s *Server) take(ctx context.Context, v *Volume, from ident.NodeName, m *wire.HandOver) (r wire.HandOverReply, err error) {
	hand := &handed{rev: control.Rev(m.Rev), told: true, late: newLateBefore(m), requests: m.Requests, fences: m.Fences, hot: m.Hot}
	hand.state = control.JournalState{Owner: s.env.Node, Epoch: m.Next, Sites: m.Sites, Ack: int(m.Ack), AckSince: m.AckSince}
	for _, e := range m.Ensembles {
		hand.state.Ensembles = append(hand.state.Ensembles, control.Ensemble{Epoch: e.Epoch, Number: e.Number, Stores: e.Stores})
	}
	// The message does not say what a takeover by force has given up; the key does.
	if state, _, ok := s.env.Control.Journal(v.id); ok && slices.ContainsFunc(hand.state.Ensembles, state.GivenUp) {
		hand.state.Forced = state.Clone().Forced
	}
	if len(m.Point) > 0 {
		if hand.point, err = journal.DecodeCheckpoint(m.Point); err != nil {
			return r, wire.Errorf(wire.CodeBadRequest, "checkpoint: %v", err)
		}
	}
	if x, ok := s.env.Control.Node(from); ok {
		hand.moved = x.Site != s.env.Site
	}
	s.mu.Lock()
	p := v.prepared
	if p == nil || p.from != from || p.epoch != m.Epoch || p.refused || v.taking || v.owner.Load() != nil || s.mu.closed {
		s.mu.Unlock()
		return r, wire.Errorf(wire.CodeConflict, "volume %s: not prepared for a hand-over by node %s at epoch %s", v.Spec().Name, from, m.Epoch)
	}
	if p.hand.point == hand.point {
		hand.warm = p.hand.warm
	}
	v.prepared, v.taking = nil, true
	if v.since.IsZero() {
		v.since = time.Now()
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	if err := s.awaitTail(ctx, m); err != nil {
		s.env.Log.Warn("a hand-over is not begun", "volume", v.Spec().Name, "err", err)
		s.mu.Lock()
		v.taking = false
		if v.prepared == nil {
			p.named, p.refused = time.Now(), true // the old owner takes it back; else it is for this node to see to
			v.prepared = p
		}
		s.mu.Unlock()
		return wire.HandOverReply{Failed: wire.CodeBusy, Detail: cutText(err.Error(), ownerStateMax)}, nil
	}
	s.takeOver(v, hand, nil)
	o := v.owner.Load()
	if o == nil || o.epoch != m.Next || !isClosed(o.Serving()) {
		return r, wire.Errorf(wire.CodeBusy, "volume %s: the takeover did not succeed", v.Spec().Name)
	}
	s.mu.Lock()
	v.follow.handed(time.Now())
	s.mu.Unlock()
	return wire.HandOverReply{Tick: s.tick(), Epoch: o.epoch, Done: true}, nil
}

// awaitTail waits until this site has everything stable that the old owner has sent it last (R10): before that nothing is
// begun, so that nothing is acknowledged here which follows what is only at the other site.
func (s *Server) awaitTail(ctx context.Context, m *wire.HandOver) error {
	ctx, cancel := context.WithTimeout(ctx, tailPatience)
	defer cancel()
	for _, t := range m.Tail {
		last := error(wire.Errorf(wire.CodeAbsent, "store %s is not registered", t.Store))
		for wait := time.Millisecond; ; wait = min(wait*2, 20*time.Millisecond) {
			if st, ok := s.env.Stores.Store(t.Store); ok {
				var r wire.SyncReply
				r, last = st.Sync(ctx, &wire.Sync{Epoch: m.Epoch, Journal: m.Journal, Segments: []ident.SegmentID{t.Segment}})
				if slices.ContainsFunc(r.Synced, func(x wire.SegmentSynced) bool { return x.Segment == t.Segment && x.Stable == t.Last }) {
					break
				}
			}
			if errors.Is(last, wire.ErrFenced) || ctx.Err() != nil {
				return fmt.Errorf("the end of segment %s, to seq %d, is not stable at store %s: %w", t.Segment, t.Last.Seq, t.Store, errors.Join(last, ctx.Err()))
			}
			pauseFor(ctx, wait)
		}
	}
	return nil
}

// expected reports that a journal which the control store gives to this node is about to come by a hand-over: the old
// owner's word makes the takeover a warm one. Server.mu is held.
func (s *Server) expected(v *Volume, state control.JournalState) bool {
	p := v.prepared
	if p == nil {
		return false
	}
	if state.Owner != s.env.Node {
		// The owner that prepares it may be newer than what this node has heard of the key.
		if time.Since(p.since) > preparedAtMost || state.Epoch != p.epoch && !state.Epoch.Less(p.epoch) {
			v.prepared = nil
		}
		return false
	}
	if p.named.IsZero() {
		p.named = time.Now()
	}
	if time.Since(p.named) > handExpected || !s.reachable(p.from) && time.Since(p.named) > time.Second {
		v.prepared = nil
		return false
	}
	return true
}

// draining reports that this node is to own nothing.
func (s *Server) draining() bool {
	x, ok := s.env.Control.Node(s.env.Node)
	return ok && x.Draining
}

// drain hands volumes over while the node is draining, a few at a time.
func (s *Server) drain() {
	if !s.draining() {
		return
	}
	s.mu.Lock()
	var list []*Volume
	under := 0
	for _, v := range s.mu.volumes {
		switch {
		case v.moving != nil && !v.moving.status().Done:
			under++
		case v.owner.Load() != nil && time.Since(v.moveTried) > takeoverRetry:
			list = append(list, v)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *Volume) int { return slices.Compare(a.id[:], b.id[:]) })
	for _, v := range list {
		if under >= drainingAtOnce {
			return
		}
		v.moveTried = time.Now()
		if _, err := s.beginMove(v, "", s.env.Site); err != nil {
			s.env.Log.Warn("draining", "volume", v.Spec().Name, "err", err)
			continue
		}
		under++
	}
}
