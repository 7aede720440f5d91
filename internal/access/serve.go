package access

import (
	"context"
	"errors"
	"slices"

	"dozo/internal/wire"
)

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
