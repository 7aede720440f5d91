package scsi

import "testing"

// otherUnit is only a name.
type otherUnit struct{ Disk }

// The stamps of calls to another unit, about which the initiator proves nothing, are of no later moment than what it has proved of the
// copy manager's own: those that follow from a path which nothing comes by any more get too old (R9).
func TestStampsOfAnotherUnitAreNoNewerThanWhatIsProved(t *testing.T) {
	proved := uint64(0)
	at := func(tick uint64) Stamp { return Stamp{Tick: tick} }
	o := &copyOp{request: Request{Initiator: &Initiator{Proved: func() Stamp { return at(proved) }}}}
	d := otherUnit{}
	// The other unit's clock is a thousand ahead.
	call := func(now uint64) uint64 { return o.freshLocked(d, at(1000+now), at(now), at(proved)).Tick }
	for _, x := range []struct{ now, proved, want uint64 }{
		{10, 8, 1010}, // the first one
		{11, 8, 1010}, {20, 8, 1010}, {30, 9, 1010},
		{31, 20, 1020}, {40, 29, 1020}, {41, 30, 1030}, {50, 49, 1041}, {51, 51, 1051}, {60, 51, 1051},
	} {
		if proved = x.proved; call(x.now) != x.want {
			t.Fatalf("at %d, with %d proved: not %d", x.now, x.proved, x.want)
		}
	}
	for now := uint64(100); now < 5000; now++ {
		if got := call(now); got != 1051 {
			t.Fatalf("at %d, with nothing more proved: %d", now, got)
		}
	}
	if n := len(o.mu.others[d]); n > otherStampsMost {
		t.Errorf("%d are kept", n)
	}
	if proved = 4999; call(5000) != 5999 {
		t.Error("what is proved again does not count")
	}
}
