package access

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// An access server's view of a unit's shared state. The owner announces every change and waits for the answer,
// so what is attached here has its unit attentions before the initiator that caused them has its status. Who
// was away learns from the owner's ticks that it has missed something and asks.

// volumeUnit is what a Volume knows of its unit.
type volumeUnit struct {
	now atomic.Pointer[reserve.Snapshot]
	mu  struct {
		sync.Mutex // held while observers are told: they learn of events in order
		epoch      ident.Epoch
		asking     bool
	}
}

// UnitObserver learns of the events that happened to a volume's unit. all is false where some are not known any
// more; snapshot is how the unit is now. It returns once everything attached here has been told, and what was
// to be aborted has been.
type UnitObserver func(v *Volume, snapshot *reserve.Snapshot, events []reserve.Event, all bool)

// ObserveUnits sets who learns of events.
func (s *Server) ObserveUnits(f UnitObserver) { s.observer.Store(&f) }

// Unit is the state as last heard of; it is for what needs no decision by the owner. It is never nil and
// never modified.
func (v *Volume) Unit() *reserve.Snapshot {
	s := v.unit.now.Load()
	if s == nil {
		return &reserve.Snapshot{State: &reserve.State{}}
	}
	if s.State.Sanitize.UnderWay() { // it is announced at its beginning and at its end only
		if o := v.owner.Load(); o != nil {
			now := *s
			now.Progress = uint16(o.unit.progress.Load())
			return &now
		}
	}
	return s
}

// HasUnit reports that the state has been heard of.
func (v *Volume) HasUnit() bool { return v.unit.now.Load() != nil }

// takeUnit takes the owner's word of an epoch.
func (v *Volume) takeUnit(epoch ident.Epoch, snap *reserve.Snapshot) {
	u := &v.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.now.Load()
	if old != nil && (epoch.Less(u.mu.epoch) || epoch == u.mu.epoch && snap.State.Version < old.State.Version) {
		return
	}
	u.mu.epoch = epoch
	u.now.Store(snap)
	tell := v.srv.observer.Load()
	if old == nil || tell == nil {
		return // who logs in later begins with a unit attention of its own
	}
	if events, all := snap.Missed(old.State.Events); len(events) > 0 || !all {
		(*tell)(v, snap, events, all)
	}
}

// unitSeen compares what the owner of an epoch has with what is known here. After a takeover that is not proven
// the version may be lower.
func (v *Volume) unitSeen(epoch ident.Epoch, version uint64) {
	u := &v.unit
	u.mu.Lock()
	s := u.now.Load()
	ask := !u.mu.asking && (s == nil || s.State.Version != version || u.mu.epoch != epoch || s.State.Sanitize.UnderWay()) // how far it is
	u.mu.asking = u.mu.asking || ask
	u.mu.Unlock()
	if !ask || !v.srv.goWork(func() {
		ctx, cancel := context.WithTimeout(v.srv.ctx, forwardPatience)
		defer cancel()
		_, _ = v.AskUnit(ctx) // the next tick tells whether it has to be asked again
		u.mu.Lock()
		u.mu.asking = false
		u.mu.Unlock()
	}) {
		return
	}
}

// Go runs fn on a goroutine that Close waits for, with a context that ends with the server. It reports false if the
// server is closed.
func (s *Server) Go(fn func(context.Context)) bool { return s.goWork(func() { fn(s.ctx) }) }

// goWork runs fn on a goroutine of the server's, unless it is closed.
func (s *Server) goWork(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return false
	}
	s.wg.Go(fn)
	return true
}

// AskUnit asks the owner how the unit is, with all that is committed.
func (v *Volume) AskUnit(ctx context.Context) (*reserve.Snapshot, error) {
	type answer struct {
		snap *reserve.Snapshot
		err  error
	}
	got := make(chan answer, 1)
	v.ShowUnit(func(s *reserve.Snapshot, err error) { got <- answer{s, err} })
	select {
	case a := <-got:
		return a.snap, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ShowUnit is AskUnit without waiting.
func (v *Volume) ShowUnit(done func(*reserve.Snapshot, error)) {
	op := NewOp()
	op.Kind = wire.OpUnitState
	op.Done = func(op *Op, err error) {
		var snap *reserve.Snapshot
		if err == nil {
			if len(op.Data) != 1 {
				err = wire.Errorf(wire.CodeBadRequest, "no snapshot in the answer")
			} else {
				snap, err = reserve.DecodeSnapshot(op.Data[0])
			}
		}
		epoch := op.Epoch
		op.Release()
		if err == nil {
			v.takeUnit(epoch, snap)
		}
		done(snap, err)
	}
	v.Submit(op)
}

// ChangeUnit has the owner decide upon a change. op says for whom (Nexus, Session, Request, Stamp).
func (v *Volume) ChangeUnit(op *Op, cmd *reserve.Command, done func(reserve.Outcome, error)) {
	op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
	op.Done = func(op *Op, err error) {
		outcome := reserve.Good
		if err == nil {
			if len(op.Data) == 1 && len(op.Data[0]) == 1 {
				outcome = reserve.Outcome(op.Data[0][0])
			} else {
				err = wire.Errorf(wire.CodeBadRequest, "no outcome in the answer")
			}
		}
		op.Release()
		done(outcome, err)
	}
	v.Submit(op)
}

// Evict ends what an initiator has registered and reserved at the unit, or everybody if it is empty. Only the owner's node can;
// elsewhere it is wire.ErrNotOwner. It returns once the change is stable and all access servers that can be reached have told
// whom it concerns.
func (v *Volume) Evict(ctx context.Context, initiator string) error {
	o := v.owner.Load()
	if o == nil {
		return wire.Errorf(wire.CodeNotOwner, "volume %s is not owned here", v.id)
	}
	select {
	case <-o.Serving():
	case <-ctx.Done():
		return fmt.Errorf("the owner does not serve yet: %w", ctx.Err())
	}
	return o.evict(ctx, initiator)
}

// Unit serves the announcement of a change.
func (s *Server) Unit(_ context.Context, m *wire.Unit) (wire.UnitReply, error) {
	v, ok := s.Volume(m.Journal)
	if !ok {
		return wire.UnitReply{}, wire.Errorf(wire.CodeAbsent, "no volume %s", m.Journal)
	}
	snap, err := reserve.DecodeSnapshot(m.Data)
	if err != nil {
		return wire.UnitReply{}, wire.Errorf(wire.CodeBadRequest, "%v", err)
	}
	v.takeUnit(m.Epoch, snap)
	if m.Tick != 0 {
		v.note(m.Epoch, m.Tick) // after the events: a stamp of after a reset is proof that it was heard of
	}
	return wire.UnitReply{}, nil
}

// announcePatience bounds how long a change waits for an access server that doesn't answer. One that comes
// back later finds out by the next tick.
const announcePatience = 2 * time.Second

// announce tells all access servers at once, this one too.
func (s *Server) announce(ctx context.Context, m *wire.Unit) {
	ctx, cancel := context.WithTimeout(ctx, announcePatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range s.env.Control.Nodes() {
		if n.Name == s.env.Node || !n.Has(control.RoleAccess) || !s.reachable(n.Name) {
			continue
		}
		p, ok := s.peers(n.Name)
		if !ok {
			continue
		}
		wg.Go(func() {
			if _, err := p.Unit(ctx, m); err != nil && s.ctx.Err() == nil {
				s.env.Log.Warn("access server not told of a change of the unit", "journal", m.Journal.String(), "peer", n.Name, "err", err)
			}
		})
	}
	if _, err := s.Unit(ctx, m); err != nil {
		s.env.Log.Warn("change of the unit", "journal", m.Journal.String(), "err", err)
	}
	wg.Wait()
}
