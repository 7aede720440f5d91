package access

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Peer is another access server.
type Peer interface {
	Forward(m *wire.Forward, done func(wire.ForwardReply, error))
	Bar(ctx context.Context, m *wire.Bar) (wire.BarReply, error)
	Tick(ctx context.Context, m *wire.Tick) (wire.TickReply, error)
	OwnerStatus(ctx context.Context, m *wire.OwnerStatus) (wire.OwnerStatusReply, error)
}

// Server is the access role of a node: its owners, and its view of volumes that others own.
type Server struct {
	env   Env
	peers func(ident.NodeName) (Peer, bool)
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{} // takeovers under way

	mu struct {
		sync.Mutex
		volumes map[ident.JournalID]*Volume
		closed  bool
	}
}

const (
	takeoversMax    = 8 // at a time: 10,000 volumes after a power cut are no storm
	takeoverRetry   = time.Second
	ownerGoneAfter  = 1500 * time.Millisecond // without a connection to the owner's node before its site takes over
	forwardPatience = 25 * time.Second        // below initiators' command timeouts of 30 s
	tickEvery       = 300 * time.Millisecond
)

// NewServer makes the access role. Run does its work.
func NewServer(env Env, peers func(ident.NodeName) (Peer, bool)) *Server {
	env.Limits = env.Limits.withDefaults()
	s := &Server{env: env, peers: peers, slots: make(chan struct{}, takeoversMax)}
	s.mu.volumes = map[ident.JournalID]*Volume{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Volume is one volume as this access server sees it: served here, or by the owner elsewhere.
type Volume struct {
	srv  *Server
	id   ident.JournalID
	spec atomic.Pointer[control.VolumeSpec]

	owner  atomic.Pointer[Owner] // here; nil if elsewhere
	stamp  atomic.Pointer[wire.Stamp]
	users  atomic.Int32 // sessions: their stamps are kept fresh
	wanted time.Time    // Server.mu: since when the owner's node is away
	taking bool         // Server.mu
	gate   struct {
		sync.Mutex
		changed chan struct{} // closed when the owner may have changed
	}
}

// Run keeps owners in line with the control store until ctx ends, then closes them all.
func (s *Server) Run(ctx context.Context) {
	changed, cancel := s.env.Control.Subscribe()
	defer cancel()
	s.wg.Go(s.tickLoop)
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for ctx.Err() == nil {
		s.reconcile()
		select {
		case <-ctx.Done():
		case <-changed:
			// Many changes come together.
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		case <-t.C:
		}
	}
	s.Close()
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

// Volume finds a volume; false if there is none.
func (s *Server) Volume(id ident.JournalID) (*Volume, bool) {
	spec, ok := s.env.Control.Volume(id)
	if !ok || spec.Deleted != nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumeLocked(spec), true
}

func (s *Server) volumeLocked(spec control.VolumeSpec) *Volume {
	v := s.mu.volumes[spec.ID]
	if v == nil {
		v = &Volume{srv: s, id: spec.ID}
		v.gate.changed = make(chan struct{})
		s.mu.volumes[spec.ID] = v
	}
	v.spec.Store(&spec)
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
	for _, spec := range s.env.Control.Volumes() {
		state, _, ok := s.env.Control.Journal(spec.ID)
		if !ok {
			continue
		}
		s.mu.Lock()
		if s.mu.closed {
			s.mu.Unlock()
			return
		}
		old := s.mu.volumes[spec.ID]
		resized := old != nil && old.spec.Load().SizeBytes != spec.SizeBytes || old != nil && old.spec.Load().Durability != spec.Durability
		v := s.volumeLocked(spec)
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
		if o != nil && resized {
			o.SetSpec(spec)
		}
		take := o == nil && !v.taking && s.shouldTake(v, state)
		if take {
			v.taking = true
			s.wg.Go(func() { s.takeOver(v) })
		}
		s.mu.Unlock()
	}
	for _, spec := range s.env.Control.Tombstones() {
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
// site whose owner is gone. Being wrong costs a pause, never data (architecture §4).
func (s *Server) shouldTake(v *Volume, state control.JournalState) bool {
	spec := v.spec.Load()
	switch {
	case state.Owner == s.env.Node:
		return true
	case state.Owner == "":
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
	return time.Since(v.wanted) > ownerGoneAfter && s.chosen(v.id, state.Owner)
}

// firstSite is where a new journal's owner is: at the site asked for, or where that has no access servers, at
// the first of the others that has some, those with copies before the rest.
func (s *Server) firstSite(at ident.SiteID, copies []ident.SiteID) ident.SiteID {
	has := map[ident.SiteID]bool{}
	var rest []ident.SiteID
	for _, n := range s.env.Control.Nodes() {
		if n.Has(control.RoleAccess) {
			has[n.Site] = true
			rest = append(rest, n.Site)
		}
	}
	slices.Sort(rest)
	for _, site := range slices.Concat([]ident.SiteID{at}, copies, rest) {
		if has[site] {
			return site
		}
	}
	return at
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
	var names []ident.NodeName
	for _, n := range s.env.Control.Nodes() {
		if n.Site == s.env.Site && n.Has(control.RoleAccess) && n.Name != but && (n.Name == s.env.Node || s.env.Control.Alive(n.Name) && s.reachable(n.Name)) {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return false
	}
	slices.Sort(names)
	h := uint64(14695981039346656037)
	for _, c := range id {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return names[h>>17%uint64(len(names))] == s.env.Node
}

func (s *Server) takeOver(v *Volume) {
	defer func() {
		s.mu.Lock()
		v.taking = false
		s.mu.Unlock()
	}()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return
	}
	o, err := TakeOver(s.ctx, s.env, *v.spec.Load())
	if err != nil {
		if s.ctx.Err() == nil {
			s.env.Log.Warn("takeover", "volume", v.spec.Load().Name, "err", err)
			select {
			case <-time.After(takeoverRetry):
			case <-s.ctx.Done():
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
	select {
	case <-o.Serving():
	case <-o.Stopped():
		v.owner.CompareAndSwap(o, nil)
	case <-s.ctx.Done():
	}
	v.wake()
}

// wake tells waiting commands that the owner may have changed.
func (v *Volume) wake() {
	v.gate.Lock()
	close(v.gate.changed)
	v.gate.changed = make(chan struct{})
	v.gate.Unlock()
}

func (v *Volume) wakeLater() { go v.wake() }

func (v *Volume) changed() <-chan struct{} {
	v.gate.Lock()
	defer v.gate.Unlock()
	return v.gate.changed
}

// ID of the volume's journal.
func (v *Volume) ID() ident.JournalID { return v.id }

// Spec is the volume's specification as last seen.
func (v *Volume) Spec() *control.VolumeSpec { return v.spec.Load() }

// Owner is the owner if it is here, else nil.
func (v *Volume) Owner() *Owner { return v.owner.Load() }

// Open counts a user: while there is one, stamps are kept fresh. Close ends it.
func (v *Volume) Open() {
	if v.users.Add(1) == 1 {
		v.srv.wg.Go(func() { v.srv.askTick([]*Volume{v}) })
	}
}

// Close ends what Open began.
func (v *Volume) Close() { v.users.Add(-1) }

// Stamp is the newest moment of the owner's life that this node knows (R9).
func (v *Volume) Stamp() wire.Stamp {
	if o := v.owner.Load(); o != nil {
		return o.Stamp()
	}
	if s := v.stamp.Load(); s != nil {
		return *s
	}
	return wire.Stamp{}
}

func (v *Volume) note(epoch ident.Epoch, tick uint64) {
	for {
		old := v.stamp.Load()
		if old != nil && (epoch.Less(old.Epoch) || epoch == old.Epoch && tick <= old.Tick) {
			return
		}
		if v.stamp.CompareAndSwap(old, &wire.Stamp{Epoch: epoch, Tick: tick}) {
			return
		}
	}
}

// OwnerNode is the node that owns the journal, as far as is known.
func (v *Volume) OwnerNode() ident.NodeName {
	if v.owner.Load() != nil {
		return v.srv.env.Node
	}
	state, _, _ := v.srv.env.Control.Journal(v.id)
	return state.Owner
}

// Submit does a command wherever the owner is. While there is none, or it is changing, the command waits.
func (v *Volume) Submit(op *Op) {
	if o := v.owner.Load(); o != nil {
		done := op.Done
		op.Done = func(op *Op, err error) {
			if err != nil && errors.Is(err, wire.ErrNotOwner) {
				// Whether a write of this node's own client is in the history is not known here: its buffer is gone
				// and it has no request ID. The client asks again by itself.
				err = wire.Errorf(wire.CodeBusy, "the owner is changing")
			}
			done(op, err)
		}
		o.Submit(op)
		return
	}
	v.forward(op, time.Now().Add(forwardPatience))
}

// forward passes a command to the owner's node; it keeps the request's ID through all attempts (R9).
func (v *Volume) forward(op *Op, until time.Time) {
	name := v.OwnerNode()
	p, ok := v.srv.peers(name)
	if name == "" || name == v.srv.env.Node || !ok {
		v.later(op, until, wire.Errorf(wire.CodeBusy, "volume has no owner yet"))
		return
	}
	v.srv.env.Metrics.Forwarded.Inc()
	m := &wire.Forward{Journal: v.id, Request: op.Request, Session: op.Session, Stamp: op.Stamp, Op: op.Kind, FUA: op.FUA,
		Offset: uint64(op.Offset), Length: uint64(op.Length)}
	if op.Nexus != nil {
		m.Nexus = *op.Nexus
	}
	switch op.Kind {
	case wire.OpWrite:
		m.Data = [][]byte{op.Buf.Bytes()}
	case wire.OpCompareAndWrite:
		m.Data = [][]byte{op.Compare, op.Buf.Bytes()}
	}
	p.Forward(m, func(r wire.ForwardReply, err error) {
		if err != nil {
			if errors.Is(err, wire.ErrUnreached) || errors.Is(err, wire.ErrNotOwner) || errors.Is(err, wire.ErrAbsent) {
				v.later(op, until, err)
				return
			}
			v.answer(op, err)
			return
		}
		v.note(r.Epoch, r.Tick)
		op.Epoch, op.Tick = r.Epoch, r.Tick
		op.Mapped, op.Extent, op.Miscompare = r.Mapped, int64(r.Extent), int64(r.Miscompare)
		if r.Status != 0 {
			if r.Release != nil {
				r.Release()
			}
			v.answer(op, &wire.Error{Code: r.Status, Epoch: r.Epoch})
			return
		}
		if op.Kind == wire.OpRead {
			op.replies = append(op.replies, wire.ReadReply{Data: r.Data, Release: r.Release})
			op.Data = append(op.Data[:0], r.Data)
		} else if r.Release != nil {
			r.Release()
		}
		v.answer(op, nil)
	})
}

func (v *Volume) answer(op *Op, err error) {
	if op.Buf != nil {
		op.Buf.entry.Shared = true // a connection that broke may still hold it
		op.Buf = nil
	}
	op.Done(op, err)
}

// later tries again once the owner may have changed.
func (v *Volume) later(op *Op, until time.Time, err error) {
	changed := v.changed()
	v.srv.mu.Lock()
	closed := v.srv.mu.closed
	if !closed {
		v.srv.wg.Add(1)
	}
	v.srv.mu.Unlock()
	if closed {
		v.answer(op, wire.Errorf(wire.CodeShutdown, "the node is closing"))
		return
	}
	go func() {
		defer v.srv.wg.Done()
		if time.Now().After(until) {
			v.answer(op, wire.Errorf(wire.CodeBusy, "no owner answers: %v", err))
			return
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		case <-v.srv.ctx.Done():
			v.answer(op, wire.Errorf(wire.CodeShutdown, "the node is closing"))
			return
		}
		if o := v.owner.Load(); o != nil {
			op.Forward = true // it may be in the history already, by its ID
			o.Submit(op)
			return
		}
		v.forward(op, until)
	}()
}

// Bar has the owner record a refusal (R9), wherever it is, and waits for it.
func (v *Volume) Bar(ctx context.Context, m *wire.Bar) error {
	m.Journal = v.id
	for {
		changed := v.changed()
		var r wire.BarReply
		err := error(wire.Errorf(wire.CodeNotOwner, "no owner"))
		if o := v.owner.Load(); o != nil {
			select {
			case <-o.Serving():
				r, err = o.Bar(m)
			default:
			}
		} else if p, ok := v.srv.peers(v.OwnerNode()); ok {
			r, err = p.Bar(ctx, m)
		}
		if err == nil {
			v.note(r.Epoch, r.Tick)
			return nil
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// tickLoop keeps the stamps of used volumes fresh, one question per pair of nodes.
func (s *Server) tickLoop() {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		var used []*Volume
		s.mu.Lock()
		for _, v := range s.mu.volumes {
			if v.users.Load() > 0 && v.owner.Load() == nil {
				used = append(used, v)
			}
		}
		s.mu.Unlock()
		if len(used) > 0 {
			s.askTick(used)
		}
	}
}

func (s *Server) askTick(list []*Volume) {
	byNode := map[ident.NodeName][]*Volume{}
	for _, v := range list {
		if n := v.OwnerNode(); n != "" && n != s.env.Node {
			byNode[n] = append(byNode[n], v)
		}
	}
	var wg sync.WaitGroup
	for n, vs := range byNode {
		p, ok := s.peers(n)
		if !ok {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			defer cancel()
			m := &wire.Tick{}
			for _, v := range vs {
				m.Journals = append(m.Journals, v.id)
			}
			r, err := p.Tick(ctx, m)
			if err != nil {
				return
			}
			for i, t := range r.Ticks {
				if i < len(vs) && t.Tick != 0 {
					vs[i].note(t.Epoch, t.Tick)
				}
			}
		})
	}
	wg.Wait()
}

// Forward serves a command that another access server has passed on.
func (s *Server) Forward(m *wire.Forward, done func(wire.ForwardReply, error)) {
	v, ok := s.Volume(m.Journal)
	if !ok {
		done(wire.ForwardReply{}, wire.Errorf(wire.CodeAbsent, "no volume %s", m.Journal))
		return
	}
	o := v.owner.Load()
	if o == nil {
		done(wire.ForwardReply{}, wire.Errorf(wire.CodeNotOwner, "volume %s is not owned here", m.Journal))
		return
	}
	op := NewOp()
	op.Kind, op.FUA, op.Offset, op.Length = m.Op, m.FUA, int64(m.Offset), int64(m.Length)
	nexus := m.Nexus
	op.Nexus, op.Session, op.Request, op.Stamp, op.Forward = &nexus, m.Session, m.Request, m.Stamp, true
	if op.Offset < 0 || op.Length < 0 || op.Kind == wire.OpRead && op.Length > wireReadMax {
		done(wire.ForwardReply{}, wire.Errorf(wire.CodeBadRequest, "%d bytes at %d", m.Length, m.Offset))
		return
	}
	if op.Kind == wire.OpWrite || op.Kind == wire.OpCompareAndWrite {
		data := m.Data
		if op.Kind == wire.OpCompareAndWrite {
			all := slices.Concat(data...)
			half := len(all) / 2
			op.Compare = all[:half]
			data = [][]byte{all[half:]}
		}
		n := 0
		for _, d := range data {
			n += len(d)
		}
		if n == 0 || n > wireReadMax || int64(n) != op.Length {
			done(wire.ForwardReply{}, wire.Errorf(wire.CodeBadRequest, "write of %d bytes with %d of data", op.Length, n))
			return
		}
		op.Buf = NewWriteBuf(op.Offset, n)
		at := 0
		for _, d := range data {
			at += copy(op.Buf.Bytes()[at:], d)
		}
	}
	op.Done = func(op *Op, err error) {
		r := wire.ForwardReply{Epoch: op.Epoch, Tick: op.Tick, Mapped: op.Mapped, Extent: uint64(max(0, op.Extent)), Miscompare: uint64(op.Miscompare)}
		var e *wire.Error
		if errors.As(err, &e) && (e.Code == wire.CodeMiscompare || e.Code == wire.CodeDenied || e.Code == wire.CodeUnproven) {
			r.Status, err = e.Code, nil
		}
		if err != nil || len(op.Data) == 0 {
			if err != nil && e == nil {
				err = wire.Errorf(wire.CodeIO, "%v", err)
			} else if err != nil {
				err = e
			}
			op.Release()
			done(r, err)
			return
		}
		if len(op.Data) == 1 {
			r.Data, r.Release = op.Data[0], op.Release
			done(r, nil)
			return
		}
		r.Data = slices.Concat(op.Data...)
		op.Release()
		done(r, nil)
	}
	o.Submit(op)
}

// wireReadMax bounds what one forwarded command carries.
const wireReadMax = 1 << 20

// Bar serves a refusal that another access server asks for.
func (s *Server) Bar(_ context.Context, m *wire.Bar) (wire.BarReply, error) {
	v, ok := s.Volume(m.Journal)
	if !ok {
		return wire.BarReply{}, wire.Errorf(wire.CodeAbsent, "no volume %s", m.Journal)
	}
	o := v.owner.Load()
	if o == nil || !isClosed(o.Serving()) {
		return wire.BarReply{}, wire.Errorf(wire.CodeNotOwner, "volume %s is not owned here", m.Journal)
	}
	return o.Bar(m)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Tick serves the question for ticks.
func (s *Server) Tick(_ context.Context, m *wire.Tick) (r wire.TickReply, err error) {
	for _, id := range m.Journals {
		t := wire.JournalTick{Journal: id}
		if v, ok := s.Volume(id); ok {
			t.Owner = v.OwnerNode()
			if o := v.owner.Load(); o != nil && isClosed(o.Serving()) && !isClosed(o.Stopped()) {
				st := o.Stamp()
				t.Epoch, t.Tick = st.Epoch, st.Tick
			}
		}
		r.Ticks = append(r.Ticks, t)
	}
	return r, nil
}

// OwnerStatus serves the question how journals are.
func (s *Server) OwnerStatus(_ context.Context, m *wire.OwnerStatus) (r wire.OwnerStatusReply, err error) {
	for _, o := range s.Owners() {
		if len(m.Journals) > 0 && !slices.Contains(m.Journals, o.journalID) {
			continue
		}
		if v := o.View(); v != nil {
			r.Journals = append(r.Journals, v.JournalStatus)
		}
	}
	return r, nil
}
