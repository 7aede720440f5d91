package core

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Scripted scenarios of the rules (docs/internals/rules.md) that one store can show. Each fails in a program that leaves its
// clause out (internal/mutant).

// A and B both lose what was not synced with all traces of it, and nobody reports anything: so a store knows, whatever
// happens, that it had opened a replica (R4).
func TestAPowerCutLeavesATraceOfWhatWasOpen(t *testing.T) {
	for _, written := range []bool{false, true} {
		m := vfs.NewMem(0)
		s := openStore(t, testOptions(m, boot1))
		a := newOwner(t, segment(jA, 1, 1))
		a.open(s)
		if written {
			a.write(s, 1, 1)
		}
		s2 := openStore(t, testOptions(powerCut(m, 0, 1), boot2))
		r := fence(t, s2, jA, 2)
		if len(r.Replicas) != 1 || r.Replicas[0].Segment != a.seg || r.Replicas[0].State != wire.ReplicaShort || r.Replicas[0].End != 0 {
			t.Errorf("written %v: the store says it has %+v", written, r.Replicas)
		}
	}
}

// A fence that was answered holds after a power cut: a deposed owner appends nothing (R6).
func TestAFenceOutlivesThePower(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.sync(s)
	fence(t, s, jA, 2)
	s2 := openStore(t, testOptions(powerCut(m, 0, 1), boot2))
	at := a.off
	_, err := appendAt(s2, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{a.make(1, 2)}})
	wantCode(t, err, wire.CodeFenced)
}

// The owner's clock may run slower than the server's by less than a tenth: the answer to a fence waits that much longer (R6).
func TestAFenceWaitsLongerThanTheOwnerCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		clock := func() time.Duration { return time.Since(began) }
		leases := NewLeases(clock, time.Second, boot1)
		opts := testOptions(vfs.NewMem(0), boot1)
		opts.Clock, opts.Leases, opts.LeaseMax = clock, leases, time.Second
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		leases.Add(s)
		if _, err := leases.Handle(context.Background(), &wire.Lease{Owner: "o", Instance: 1, Duration: time.Second,
			Enroll: []wire.JournalEpoch{{Store: s.ID(), Journal: jA, Epoch: epoch(1)}}}); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		fence(t, s, jA, 2)
		if waited := time.Since(at); waited < 1100*time.Millisecond {
			t.Errorf("answered after %v, the owner may count for %v of this clock", waited, 1100*time.Millisecond)
		}
	})
}

// The owner says that B may drop S; B pauses; the next epoch counts B's copy and lets C's go; B wakes up (R13). The permit had
// passed the first look at the fence.
func TestADeposedOwnersPermitDropsNothing(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.seal(s)
	m := &wire.Drop{Epoch: epoch(1), Segment: a.seg, Permit: 1, Made: inventory(t, s, jA)[a.seg].Made}
	r := s.replica(a.seg)
	if err := s.admit(context.Background(), r.j, m.Epoch); err != nil {
		t.Fatal(err)
	}
	if f := fence(t, s, jA, 2); len(f.Replicas) != 1 {
		t.Fatalf("%+v", f)
	}
	r.sealing.Lock()
	err := s.dropped(r, m)
	r.sealing.Unlock()
	wantCode(t, err, wire.CodeFenced)
	if inv := inventory(t, s, jA); inv[a.seg].State != wire.ReplicaSealed {
		t.Errorf("the replica that the next owner counts on is gone: %+v", inv)
	}
}

// A deposed owner gives up what it never got committed, and the store pauses between the look at the fence and the cut. What the next owner has
// read meanwhile it counts on (R1, R14).
func TestADeposedOwnersSealCutsNothing(t *testing.T) {
	for _, records := range []int{0, 1} {
		s := openStore(t, testOptions(vfs.NewMem(0), boot1))
		a := newOwner(t, segment(jA, 1, 1))
		a.open(s)
		for range 3 {
			a.write(s, 1, 1)
		}
		m := a.sealMessage(records)
		r := s.replica(a.seg)
		r.sealing.Lock()
		keep, _, err := s.admitSeal(r, m)
		if err != nil {
			t.Fatal(err)
		}
		if f := fence(t, s, jA, 2); len(f.Replicas) != 1 || f.Replicas[0].Last != a.at {
			t.Fatalf("%+v", f)
		}
		_, err = s.sealAt(r, m, keep)
		r.sealing.Unlock()
		wantCode(t, err, wire.CodeFenced)
		if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaOpen || r.Last != a.at {
			t.Errorf("what the next owner counts on is cut: %+v, it was read up to %s", r, a.at)
		}
		a.epoch = epoch(2)
		a.write(s, 1, 2) // and it may go on
		a.seal(s)
		a.wantRecords(s, 4)
	}
}
