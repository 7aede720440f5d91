package export

import (
	"testing"

	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/wire"
)

// An ABORT TASK is about all parts of its command, and about no other command.
func TestAnAbortNamesAllPartsOfItsCommand(t *testing.T) {
	s := &session{}
	for seq := uint64(1); seq < 70; seq++ {
		m := s.abortOf(scsi.RequestID{Conn: 3, Seq: seq, Part: 5})
		barred := func(seq, part uint64) bool {
			id := requestID(scsi.RequestID{Conn: 3, Seq: seq, Part: uint32(part)})
			return id.Forwarder == m.Forwarder && m.First <= id.Number && id.Number <= m.Last
		}
		for _, part := range []uint64{0, 1, 1<<partBits - 1} {
			if !barred(seq, part) {
				t.Errorf("command %d: part %d is not barred: %x to %x", seq, part, m.First, m.Last)
			}
			if barred(seq-1, part) || barred(seq+1, part) {
				t.Errorf("command %d: another one is barred: %x to %x", seq, m.First, m.Last)
			}
		}
	}
}

// A LUN that is not ready has had no command of the session, so there is nothing to abort; but others use the volume, and a reset or
// CLEAR TASK SET that its owner has not heard of is not done.
func TestAResetOfALUNThatIsNotReadyIsTold(t *testing.T) {
	lun := func(n uint16, is bool) *hostLUN {
		l := &hostLUN{m: control.Map{LUN: n}, disk: &disk{barred: new(ready)}}
		if is {
			l.disk.barred.set()
		}
		return l
	}
	h := &hostsTarget{luns: []*hostLUN{lun(1, true), lun(2, false)}}
	for _, x := range []struct {
		lun  uint16
		kind wire.BarKind
		want int
	}{
		{1, wire.BarLUNReset, 1}, {1, wire.BarClearTaskSet, 1}, {1, wire.BarPreemptAbort, 1},
		{2, wire.BarLUNReset, 1}, {2, wire.BarClearTaskSet, 1}, {2, wire.BarPreemptAbort, 0},
		{3, wire.BarLUNReset, 0},
	} {
		if got := h.concerned(x.lun, x.kind); len(got) != x.want || len(got) > 0 && got[0].m.LUN != x.lun {
			t.Errorf("LUN %d, refusal %d: %d owners are told, want %d", x.lun, x.kind, len(got), x.want)
		}
	}
}

// A LUN that leaves the hosts' target twice within a session ends there twice: an owner that gets the same request again answers it, and
// does nothing.
func TestALUNThatGoesTwiceEndsTwice(t *testing.T) {
	s := &session{id: 7, exp: &Exports{copier: 3}}
	first, second := s.last(scsi.Stamp{}), s.last(scsi.Stamp{})
	if requestID(first.ID) == requestID(second.ID) {
		t.Errorf("both are request %s", first.ID)
	}
	if first.SessionID() != 7 || second.SessionID() != 7 {
		t.Errorf("of sessions %d and %d", first.SessionID(), second.SessionID())
	}
}
