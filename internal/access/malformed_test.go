package access

import (
	"bytes"
	"errors"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// cutReads is a store that answers reads with other numbers of bytes than were asked for.
type cutReads struct {
	journal.Store
	by int
}

func (s cutReads) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	s.Store.Read(m, func(r wire.ReadReply, err error) {
		if err == nil {
			r.Data = append(bytes.Clone(r.Data), make([]byte, 4096)...)[:len(r.Data)+s.by]
		}
		done(r, err)
	})
}

// What a store answers a read with that has another length is no answer: another store is read, and nobody else is harmed.
func TestReadsOfAnotherLengthAreNoAnswer(t *testing.T) {
	for _, by := range []int{-1, -4096, 1, 4096} {
		c := newCluster(t, 1, 2)
		c.wrap = func(s journal.Store) journal.Store {
			if s.ID() == c.local {
				return cutReads{s, by}
			}
			return s
		}
		o := c.own(c.volume(1<<20, 1, control.Replicated))
		want := bytes.Repeat([]byte{7}, 8192)
		if err := writeAt(o, 0, want, false); err != nil {
			t.Fatal(err)
		}
		if got, err := readAt(o, 0, 8192); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes more: %d bytes, %v", by, len(got), err)
		}
		o.Close()
	}
}

// shortPeer is an owner's node that answers reads with less than was asked for.
type shortPeer struct{ Peer }

func (shortPeer) Forward(m *wire.Forward, done func(wire.ForwardReply, error)) {
	done(wire.ForwardReply{Data: make([]byte, m.Length-1)}, nil)
}

// Neither is what an owner's node answers a read with.
func TestForwardedReadsOfAnotherLengthAreNoAnswer(t *testing.T) {
	c := newCluster(t, 1, 2)
	spec := c.volume(1<<20, 1, control.Replicated)
	s := NewServer(c.env(), func(ident.NodeName) (Peer, bool) { return shortPeer{}, true })
	defer s.Close()
	v, _ := s.Volume(spec.ID)
	v.hear("n2", ident.Epoch{Number: 5})
	op := NewOp()
	op.Kind, op.Length = wire.OpRead, 4096
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	v.Submit(op)
	if err := <-done; !errors.Is(err, wire.ErrIO) {
		t.Errorf("%v", err)
	}
}

// A forwarded command that no forwarder sends is refused, and ends nothing.
func TestForwardedNonsenseIsRefused(t *testing.T) {
	c := newCluster(t, 1, 2)
	spec := c.volume(1<<20, 1, control.Replicated)
	s := NewServer(c.env(), func(n ident.NodeName) (Peer, bool) { return nil, false })
	defer s.Close()
	o := c.own(spec)
	v, _ := s.Volume(spec.ID)
	v.owner.Store(o)
	const far = 1<<63 - 1
	for _, m := range []*wire.Forward{
		{Op: wire.OpWrite, Offset: far, Length: 4096, Data: [][]byte{make([]byte, 4096)}},
		{Op: wire.OpWrite, Offset: far - 4096, Length: 4096, Data: [][]byte{make([]byte, 4096)}},
		{Op: wire.OpRead, Offset: far, Length: 4096},
		{Op: wire.OpTrim, Offset: far, Length: far},
		{Op: wire.OpCompareAndWrite, Length: 513, Data: [][]byte{make([]byte, 1025)}},
		{Op: wire.OpWrite, Length: 0},
		{Op: wire.OpCopy, Length: 4096, Data: [][]byte{{1}}},
		{Op: wire.OpToken, Data: [][]byte{{1}}},
		{Op: wire.OpUnit, Data: [][]byte{{1}}},
	} {
		m.Journal, m.Stamp = spec.ID, o.Stamp()
		m.Stamp.Tick += 1000
		done := make(chan error, 1)
		s.Forward("n2", m, func(_ wire.ForwardReply, err error) { done <- err })
		if err := <-done; !errors.Is(err, wire.ErrBadRequest) {
			t.Errorf("%s of %d bytes at %d with %d pieces: %v", m.Op, m.Length, m.Offset, len(m.Data), err)
		}
	}
}
