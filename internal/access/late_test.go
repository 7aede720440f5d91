package access

import (
	"testing"

	"dozo/internal/wire"
)

// A command that was reassigned to another connection before it began has a stamp of that moment beside its own (R9): its
// age is that of the request to reassign it, but a reset since it was sent ends it, and so does a new login of its nexus.
func TestLateReassignedCommand(t *testing.T) {
	nexus := &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{1}}
	op := func(tick, since uint64) *Op {
		return &Op{Kind: wire.OpWrite, Nexus: nexus, Session: 1, Stamp: wire.Stamp{Tick: tick}, Since: since, first: 5, count: 1}
	}
	epoch := op(0, 0).Stamp.Epoch
	l := newLate()
	if err := l.check(op(1000, 0), epoch, 6000); err == nil {
		t.Error("its own stamp is five seconds old, and it was let in")
	}
	if err := l.check(op(5900, 1000), epoch, 6000); err != nil {
		t.Errorf("reassigned just now: %v", err)
	}
	if err := l.check(op(5900, 1000), epoch, 9000); err == nil {
		t.Error("the request to reassign it is late itself, and it was let in")
	}
	for kind, m := range map[string]*wire.Bar{
		"LUN RESET": {Kind: wire.BarLUNReset, Nexus: *nexus},
		"login":     {Kind: wire.BarLogin, Nexus: *nexus, Session: 2},
	} {
		l = newLate()
		l.bar(m, 3000)
		if err := l.check(op(5900, 1000), epoch, 6000); err == nil {
			t.Errorf("a %s while it waited, and it was let in", kind)
		}
		if err := l.check(op(5900, 3001), epoch, 6000); err != nil {
			t.Errorf("sent after the %s: %v", kind, err)
		}
	}
	// The client says with the reassignment that it has not done it by another path: what another session has written since
	// the command was sent does not end it, what it has written since the reassignment does.
	l = newLate()
	other := &Op{Kind: wire.OpWrite, Nexus: nexus, Session: 2, Stamp: wire.Stamp{Tick: 3000}, first: 5, count: 1}
	if err := l.check(other, epoch, 3000); err != nil {
		t.Fatal(err)
	}
	l.acknowledged(other, 3010)
	if err := l.check(op(5900, 1000), epoch, 5950); err != nil {
		t.Errorf("a write by another session before the reassignment: %v", err)
	}
	l.acknowledged(other, 5960)
	if err := l.check(op(5900, 1000), epoch, 5970); err == nil {
		t.Error("a write by another session after the reassignment, and it was let in")
	}
}
