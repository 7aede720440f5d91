package access

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Forward serves a command that another access server has passed on.
func (s *Server) Forward(from ident.NodeName, m *wire.Forward, done func(wire.ForwardReply, error)) {
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
	v.countWrite(m.Op, from)
	op := NewOp()
	op.Kind, op.FUA, op.Offset, op.Length = m.Op, m.FUA, int64(m.Offset), int64(m.Length)
	nexus := m.Nexus
	op.Nexus, op.Session, op.Request, op.Stamp, op.Since, op.Forward = &nexus, m.Session, m.Request, m.Stamp, m.Since, true
	op.Copier = m.Copier
	const most = journal.BlocksMax * journal.BlockSize // of a volume
	if op.Offset < 0 || op.Offset > most || op.Length < 0 || op.Length > most || op.Kind == wire.OpRead && op.Length > wireReadMax {
		done(wire.ForwardReply{}, wire.Errorf(wire.CodeBadRequest, "%d bytes at %d", m.Length, m.Offset))
		return
	}
	if op.Kind == wire.OpUnit || op.Kind == wire.OpToken || op.Kind == wire.OpCopy {
		op.Unit = slices.Concat(m.Data...)
	}
	if op.Kind == wire.OpWrite || op.Kind == wire.OpCompareAndWrite || op.Kind == wire.OpOrWrite {
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
		if op.Kind == wire.OpCompareAndWrite && len(op.Compare) != n {
			done(wire.ForwardReply{}, wire.Errorf(wire.CodeBadRequest, "%d bytes to compare with, %d to write", len(op.Compare), n))
			return
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
		if errors.As(err, &e) && (e.Code == wire.CodeMiscompare || e.Code == wire.CodeDenied || e.Code == wire.CodeUnproven ||
			e.Code == wire.CodeProtected || e.Code == wire.CodeSanitizing) {
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
				t.Epoch, t.Tick, t.Unit = st.Epoch, st.Tick, o.unit.version.Load()
			} else if t.Owner == "" {
				s.askedForNew(v)
			} else {
				v.sought.Store(s.env.Clock()) // if it is taken over here, it is before what nobody uses
			}
		}
		r.Ticks = append(r.Ticks, t)
	}
	return r, nil
}

// OwnerStatus serves the question how journals are: those that are owned here, and those that are being taken over.
func (s *Server) OwnerStatus(_ context.Context, m *wire.OwnerStatus) (r wire.OwnerStatusReply, err error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, v := range s.mu.volumes {
		if len(m.Journals) > 0 && !slices.Contains(m.Journals, id) {
			continue
		}
		if o := v.owner.Load(); o != nil && isClosed(o.Serving()) {
			if view := o.View(); view != nil {
				r.Journals = append(r.Journals, view.JournalStatus)
				continue
			}
		}
		if v.since.IsZero() {
			continue
		}
		st := wire.JournalStatus{Journal: id, Owner: s.env.Node, Recovering: uint64(max(now.Sub(v.since), 1)), State: "recovering"}
		if state, _, ok := s.env.Control.Journal(id); ok && state.Owner == s.env.Node {
			st.Epoch = state.Epoch
		}
		if v.why != nil {
			st.State = cutText("recovering: "+v.why.Error(), ownerStateMax)
		}
		r.Journals = append(r.Journals, st)
	}
	return r, nil
}

// EachStatus calls f with how each journal is that is owned here, or is being taken over, and since when. f must not keep or
// change what it is given.
func (s *Server) EachStatus(f func(st *wire.JournalStatus, began time.Time)) {
	type trying struct {
		id    ident.JournalID
		since time.Time
	}
	var owners []*Owner
	var taken []trying
	s.mu.Lock()
	for id, v := range s.mu.volumes {
		if o := v.owner.Load(); o != nil && isClosed(o.Serving()) {
			owners = append(owners, o)
		} else if !v.since.IsZero() {
			taken = append(taken, trying{id, v.since})
		}
	}
	s.mu.Unlock()
	for _, o := range owners {
		if view := o.View(); view != nil {
			f(&view.JournalStatus, o.started)
		}
	}
	now := time.Now()
	for _, t := range taken {
		f(&wire.JournalStatus{Journal: t.id, Owner: s.env.Node, State: "recovering", Recovering: uint64(max(now.Sub(t.since), 1))}, t.since)
	}
}

// ownerStateMax is what fits in JournalStatus.State.
const ownerStateMax = 255

// cutText shortens a text to n bytes of whole characters.
func cutText(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "")
}
