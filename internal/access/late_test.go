package access

import (
	"bytes"
	"errors"
	"testing"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// A command that was reassigned to another connection before it began has a stamp of that moment beside its own (R9): its
// age is that of the request to reassign it, but a reset since it was sent ends it, and so does a new login of its nexus.
func TestLateReassignedCommand(t *testing.T) {
	nexus := &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{1}}
	op := func(tick, since uint64) *Op {
		return &Op{Kind: wire.OpWrite, Nexus: nexus, Session: 1, Stamp: wire.Stamp{Tick: tick}, Since: since, Offset: 5 * 4096, Length: 4096}
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
	other := &Op{Kind: wire.OpWrite, Nexus: nexus, Session: 2, Stamp: wire.Stamp{Tick: 3000}, Offset: 5 * 4096, Length: 4096}
	if err := l.check(other, epoch, 3000); err != nil {
		t.Fatal(err)
	}
	l.arrived(other, 3010)
	if err := l.check(op(5900, 1000), epoch, 5950); err != nil {
		t.Errorf("a write by another session before the reassignment: %v", err)
	}
	l.arrived(other, 5960)
	if err := l.check(op(5900, 1000), epoch, 5970); err == nil {
		t.Error("a write by another session after the reassignment, and it was let in")
	}
}

// A write that was answered with an error is over for its client, as one that was done is: another attempt of it that comes late by
// another session is refused, though what it was refused for is no more.
func TestAWriteThatWasRefusedIsOver(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	do := func(initiator string, session uint64, stamp wire.Stamp, kind wire.ForwardOp, old, data byte) error {
		op := NewOp()
		op.Kind, op.Length, op.Nexus, op.Session, op.Stamp = kind, 512, &wire.Nexus{Initiator: initiator, Digest: [16]byte{byte(session)}}, session, stamp
		switch kind {
		case wire.OpCopy:
			op.Unit = (&CopyCall{From: 512}).Append(nil)
		case wire.OpCompareAndWrite:
			op.Compare = bytes.Repeat([]byte{old}, 512)
			fallthrough
		default:
			op.Buf = NewWriteBuf(0, 512)
			copy(op.Buf.Bytes(), bytes.Repeat([]byte{data}, 512))
		}
		done := make(chan error, 1)
		op.Done = func(_ *Op, err error) { done <- err }
		o.Submit(op)
		return <-done
	}
	// fresh does a command with a stamp of now, which nothing before can be as new as.
	fresh := func(initiator string, session uint64, kind wire.ForwardOp, old, data byte) error {
		before := o.Stamp()
		eventually(t, "another tick", func() bool { return o.Stamp().Tick > before.Tick })
		return do(initiator, session, o.Stamp(), kind, old, data)
	}
	protect := func(on bool) {
		o.ask(func() {
			s := *o.unit.state
			s.Current.WriteProtect = on
			o.unit.state, o.unit.open = &s, false
		})
	}
	for _, x := range []struct {
		name         string
		want         error
		kind         wire.ForwardOp
		before, then func()
	}{
		{"MISCOMPARE", wire.ErrMiscompare, wire.OpCompareAndWrite,
			func() {
				if err := fresh("iqn.b", 9, wire.OpWrite, 0, 7); err != nil {
					t.Fatal(err)
				}
			},
			func() {
				if err := fresh("iqn.b", 9, wire.OpWrite, 0, 0); err != nil {
					t.Fatal(err)
				}
			}},
		{"write protection", wire.ErrProtected, wire.OpWrite, func() { protect(true) }, func() { protect(false) }},
		{"no copy", wire.ErrVersion, wire.OpCopy, func() {}, func() {}},
	} {
		initiator := "iqn." + x.name
		x.before()
		stamp := o.Stamp()
		if err := fresh(initiator, 2, x.kind, 0, 3); !errors.Is(err, x.want) {
			t.Fatalf("%s: %v", x.name, err)
		}
		x.then()
		if err := do(initiator, 1, stamp, x.kind, 0, 3); !errors.Is(err, wire.ErrStale) {
			t.Errorf("%s: the late attempt: %v", x.name, err)
		}
		if got, err := readAt(o, 0, 512); err != nil || got[0] != 0 {
			t.Errorf("%s: byte %d, %v", x.name, got[0], err)
		}
		if err := fresh(initiator, 1, x.kind, 0, 0); errors.Is(err, wire.ErrStale) {
			t.Errorf("%s: a fresh one: %v", x.name, err)
		}
	}
}

// A write that has been let in and is not committed is done before another attempt of it is refused, not after that: once
// the answer to the second one is there, its client counts on both being over.
func TestARefusalWaitsForTheAttemptBefore(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	var order []uint64
	done := make(chan error, 2)
	send := func(session uint64) {
		op := NewOp()
		op.Kind, op.Length, op.Buf, op.count = wire.OpWrite, 4096, NewWriteBuf(0, 4096), 1
		op.Nexus, op.Session, op.Stamp = &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{byte(session)}}, session, o.Stamp()
		op.Stamp.Tick += 1000 // newer than anything
		op.Buf.sum()
		op.Done = func(op *Op, err error) {
			order = append(order, op.Session)
			done <- err
		}
		o.admit(op)
	}
	o.ask(func() { // in one turn of the loop: nothing is committed in between
		send(1)
		s := *o.unit.state
		s.Current.WriteProtect = true
		o.unit.state, o.unit.open = &s, false
		send(2)
	})
	first, second := <-done, <-done
	if first != nil || !errors.Is(second, wire.ErrProtected) || order[0] != 1 {
		t.Errorf("%v, then %v; the first was of session %d", first, second, order[0])
	}
}

// What comes by another session while a write is under way, and was sent before it, is refused as well.
func TestALateAttemptMeetsTheNextOneUnderWay(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	done := make(chan error, 2)
	stamp := o.Stamp()
	o.ask(func() {
		for _, session := range []uint64{2, 1} {
			op := NewOp()
			op.Kind, op.Length, op.Buf, op.count = wire.OpWrite, 512, NewWriteBuf(0, 512), 1
			op.Nexus, op.Session, op.Stamp = &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{byte(session)}}, session, stamp
			op.Done = func(op *Op, err error) {
				if op.Session == 1 && !errors.Is(err, wire.ErrStale) || op.Session == 2 && err != nil {
					t.Errorf("session %d: %v", op.Session, err)
				}
				done <- err
			}
			o.admit(op)
		}
	})
	<-done
	<-done
}

// What two sessions of an initiator write side by side in one block at the same moment is no conflict; what one of them has written is, for
// the other, whatever part of it.
func TestNeighboursInABlockAreNoLateAttempts(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	send := func(session uint64, off, n int64, data byte) <-chan error {
		op := NewOp()
		op.Kind, op.Offset, op.Length, op.Buf = wire.OpWrite, off, n, NewWriteBuf(off, int(n))
		copy(op.Buf.Bytes(), bytes.Repeat([]byte{data}, int(n)))
		op.first, op.count = 0, 1
		op.Nexus, op.Session, op.Stamp = &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{byte(session)}}, session, o.Stamp()
		done := make(chan error, 1)
		op.Done = func(_ *Op, err error) { done <- err }
		o.admit(op)
		return done
	}
	for _, x := range []struct {
		off, n int64
		want   error
	}{{512, 512, nil}, {0, 512, nil}, {1536, 2560, nil}, {1024, 512, wire.ErrStale}, {512, 1024, wire.ErrStale}, {0, 4096, wire.ErrStale}} {
		var first, second <-chan error
		before := o.Stamp()
		eventually(t, "another tick", func() bool { return o.Stamp().Tick > before.Tick })
		o.ask(func() {
			s := o.late.sessions["iqn.a"]
			if s == nil {
				s = &initiatorState{sessions: map[uint64]uint64{}}
				o.late.sessions["iqn.a"] = s
			}
			s.sessions[1], s.sessions[2] = o.tick(), o.tick() // both were seen before
			first = send(2, 1024, 512, 2)
			second = send(1, x.off, x.n, 1)
		})
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		if err := <-second; !errors.Is(err, x.want) {
			t.Errorf("%d bytes at %d: %v, want %v", x.n, x.off, err, x.want)
		}
	}
}
