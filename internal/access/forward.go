package access

import (
	"context"
	"errors"
	"sync"
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
	Unit(ctx context.Context, m *wire.Unit) (wire.UnitReply, error)
	HandOver(ctx context.Context, m *wire.HandOver) (wire.HandOverReply, error)
}

// Submit does a command wherever the owner is. While there is none, or it is changing, the command waits.
func (v *Volume) Submit(op *Op) {
	if op.Kind == wire.OpUnit {
		op.Forward = true // its ID is in the record: it may be sent again to the next owner
	}
	v.submit(op, time.Now().Add(forwardPatience))
}

func (v *Volume) submit(op *Op, until time.Time) {
	if o := v.owner.Load(); o != nil {
		v.countWrite(op.Kind, "")
		op.via, op.until, op.then, op.Done = v, until, op.Done, ownerDone
		o.Submit(op)
		return
	}
	v.forward(op, until)
}

// ownerDone is Done of what the owner of this node was given. It is no closure: one a command would be an allocation.
func ownerDone(op *Op, err error) {
	v, until, then := op.via, op.until, op.then
	op.via, op.then = nil, nil
	if err != nil && errors.Is(err, wire.ErrNotOwner) {
		if op.again() {
			op.Done = then
			v.later(op, until, err)
			return
		}
		// Whether a write of this node's own client is in the history is not known here: its buffer is gone
		// and it has no request ID. The client asks again by itself.
		err = wire.Errorf(wire.CodeBusy, "the owner is changing")
	}
	then(op, err)
}

// again makes an Op that an owner has given back ready for the next one, if that may be: nothing was done about it,
// or doing it twice is no harm.
func (op *Op) again() bool {
	switch op.Kind {
	case wire.OpUnit, wire.OpUnitState, wire.OpFlush, wire.OpProvisioned:
	case wire.OpRead:
		if op.lent {
			return false
		}
	default:
		if !op.fresh {
			return false
		}
	}
	op.over, op.barred, op.fresh, op.farTries, op.slowTries = false, false, false, 0, 0
	for i := range op.replies {
		release(op.replies[i])
	}
	op.replies = op.replies[:0]
	return true
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
	m := &wire.Forward{Journal: v.id, Request: op.Request, Session: op.Session, Stamp: op.Stamp, Since: op.Since, Op: op.Kind, FUA: op.FUA, Copier: op.Copier,
		Offset: uint64(op.Offset), Length: uint64(op.Length)}
	if op.Nexus != nil {
		m.Nexus = *op.Nexus
	}
	switch op.Kind {
	case wire.OpWrite, wire.OpOrWrite:
		m.Data = [][]byte{op.Buf.Bytes()}
	case wire.OpUnit, wire.OpToken, wire.OpCopy:
		m.Data = [][]byte{op.Unit}
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
		if op.Kind == wire.OpRead && int64(len(r.Data)) != op.Length {
			if r.Release != nil {
				r.Release()
			}
			v.answer(op, wire.Errorf(wire.CodeIO, "node %s answers a read of %d bytes with %d", name, op.Length, len(r.Data)))
			return
		}
		if op.Kind == wire.OpRead || op.Kind == wire.OpUnit || op.Kind == wire.OpUnitState || op.Kind == wire.OpToken {
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
	v.held.Add(1)
	go func() {
		defer v.srv.wg.Done()
		defer v.held.Add(-1)
		if time.Now().After(until) {
			v.answer(op, wire.Errorf(wire.CodeBusy, "no owner answers: %v", err))
			return
		}
		// A hand-over takes little; longer ones are asked less often.
		waited := forwardPatience - time.Until(until)
		select {
		case <-changed:
		case <-time.After(min(max(waited/4, 10*time.Millisecond), 100*time.Millisecond)):
		case <-v.srv.ctx.Done():
			v.answer(op, wire.Errorf(wire.CodeShutdown, "the node is closing"))
			return
		}
		op.Forward = true // it may be in the history already, by its ID
		v.submit(op, until)
	}()
}

// Bar has the owner record a refusal (R9), wherever it is, and waits for it.
func (v *Volume) Bar(ctx context.Context, m *wire.Bar) error {
	m.Journal = v.id
	v.logins.tell(m)
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
			v.logins.answered(m, r.Epoch)
			return nil
		}
		if m.Kind == wire.BarAccept && errors.Is(err, wire.ErrConflict) {
			return err // whoever said so has to look again
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

// others lists the access servers of this site that can be reached.
func (s *Server) others() (list []ident.NodeName) {
	for _, n := range s.env.Control.Nodes() {
		if n.Site == s.env.Site && n.Name != s.env.Node && n.Has(control.RoleAccess) && s.reachable(n.Name) {
			list = append(list, n.Name)
		}
	}
	return list
}

// askTick asks the owners of volumes, as far as they are known, how late it is there.
func (s *Server) askTick(list []*Volume) {
	byNode := map[ident.NodeName][]*Volume{}
	var others []ident.NodeName
	for _, v := range list {
		switch n := v.OwnerNode(); {
		case n == "":
			if n, ok := s.placeOf(v); !ok || n == s.env.Node {
				s.LookSoon()
			} else {
				byNode[n] = append(byNode[n], v)
			}
		case n == s.env.Node:
		case s.reachable(n):
			byNode[n] = append(byNode[n], v)
		default:
			// Another one may serve it by now, which this node has not heard of: the control store's word can come late by
			// way of a voter that died with the owner.
			if others == nil {
				others = s.others()
			}
			for _, x := range others {
				byNode[x] = append(byNode[x], v)
			}
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
					vs[i].hear(n, t.Epoch)
					vs[i].note(t.Epoch, t.Tick)
					vs[i].unitSeen(t.Epoch, t.Unit)
				}
			}
		})
	}
	wg.Wait()
}
