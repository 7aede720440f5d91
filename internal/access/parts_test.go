package access

import (
	"bytes"
	"errors"
	"testing"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// tailReads is a store at which reads of one block wait, from the second on.
type tailReads struct {
	journal.Store
	g *readGate
}

type readGate struct {
	reads int // the owner's loop asks
	held  chan func()
}

func (h tailReads) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	if h.g.reads++; h.g.reads != 2 {
		h.Store.Read(m, done)
		return
	}
	own := *m
	h.g.held <- func() { h.Store.Read(&own, done) }
}

// TestPartsOfACommandAreRefusedToo: rule R9. A command that zeroes parts of blocks becomes several records. Who has been told that it is
// aborted does not find a block changed by it afterwards, because the owner was still reading what is around the last part.
func TestPartsOfACommandAreRefusedToo(t *testing.T) {
	nexus := wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{1}}
	for _, x := range []struct {
		what string
		bar  wire.Bar
	}{
		{"ABORT TASK", wire.Bar{Kind: wire.BarAbortTask, Forwarder: 9, First: 1 << 12, Last: 1<<12 + 4095}},
		{"LOGICAL UNIT RESET", wire.Bar{Kind: wire.BarLUNReset, Nexus: nexus}},
		{"ABORT TASK SET", wire.Bar{Kind: wire.BarPreemptAbort, Nexus: nexus}},
		{"a newer login", wire.Bar{Kind: wire.BarLogin, Nexus: nexus, Session: 2}},
	} {
		t.Run(x.what, func(t *testing.T) {
			c := newCluster(t, 1, 2)
			gate := &readGate{held: make(chan func(), 1)}
			c.wrap = func(s journal.Store) journal.Store { return tailReads{s, gate} }
			o := c.own(c.volume(1<<20, 1, control.Replicated))
			defer o.Close()
			old := bytes.Repeat([]byte{7}, 3*4096)
			if err := writeAt(o, 0, old, false); err != nil {
				t.Fatal(err)
			}
			op := NewOp()
			op.Kind, op.Offset, op.Length = wire.OpZero, 512, 2*4096
			op.Nexus, op.Session, op.Stamp, op.Request = &nexus, 1, o.Stamp(), wire.RequestID{Forwarder: 9, Number: 1 << 12}
			done := make(chan error, 1)
			op.Done = func(_ *Op, err error) { done <- err }
			o.Submit(op)
			answer := <-gate.held
			if _, err := o.Bar(&x.bar); err != nil {
				t.Fatal(err)
			}
			before, err := readAt(o, 0, 3*4096)
			if err != nil {
				t.Fatal(err)
			}
			answer()
			if err := <-done; !errors.Is(err, wire.ErrStale) {
				t.Errorf("the command: %v", err)
			}
			if after, err := readAt(o, 0, 3*4096); err != nil || !bytes.Equal(before, after) {
				t.Errorf("changed after the answer, %v", err)
			}
		})
	}
}
