package core

import (
	"strings"
	"syscall"
	"testing"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// replaceMessage lets the replica go to be made again.
func (o *owner) replaceMessage(s *Store) *wire.Drop {
	o.t.Helper()
	return &wire.Drop{Epoch: o.epoch, Segment: o.seg, Permit: 1, Made: inventory(o.t, s, o.seg.Journal)[o.seg].Made, Replace: true}
}

// again appends everything to a replica that was let go, seals it, and looks for it after a restart.
func (o *owner) again(m *vfs.Mem, s *Store, opts Options) *Store {
	o.t.Helper()
	o.open(s)
	if _, err := appendAt(s, &wire.Append{Epoch: o.epoch, Segment: o.seg, Data: [][]byte{o.bytes}}); err != nil {
		o.t.Fatal(err)
	}
	o.seal(s)
	s = openStore(o.t, opts)
	if r := inventory(o.t, s, o.seg.Journal)[o.seg]; r.State != wire.ReplicaSealed || r.End != o.off {
		o.t.Fatalf("the new replica: %+v", r)
	}
	o.wantRecords(s, len(o.ends))
	return s
}

// The directory has no room for the longer name of a file that is to be set aside: it is tried again, be it by the owner's second Drop or
// when the new replica is made, and until then the file stays where it is.
func TestARottenFileThatCanNotBeSetAsideYet(t *testing.T) {
	for _, second := range []bool{false, true} {
		m := vfs.NewMem(0)
		faults := vfs.NewFaults(m)
		s := openStore(t, testOptions(faults, boot1))
		a := newOwner(t, segment(jA, 1, 1))
		a.open(s)
		a.write(s, 2, 1)
		a.seal(s)
		drop := a.replaceMessage(s)
		mend := faults.Add(vfs.FailOn(vfs.OpRename, "*"+asideMark+"*", syscall.ENOSPC))
		for range 2 {
			_, err := s.Drop(bg, drop)
			wantCode(t, err, wire.CodeNoSpace)
		}
		_, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: a.epoch, Segment: a.seg, Capacity: testCapacity})
		wantCode(t, err, wire.CodeNoSpace)
		mend()
		if second {
			if _, err := s.Drop(bg, drop); err != nil {
				t.Fatal(err)
			}
			if s.Aside() != 1 {
				t.Fatalf("%d files are set aside, though the owner was told so", s.Aside())
			}
		}
		s = a.again(m, s, testOptions(killed(m, s), boot1))
		if s.Aside() != 1 {
			t.Errorf("%d files are set aside: the rotten one was deleted", s.Aside())
		}
	}
}

// The disk is slow to set the file aside, the owner is deposed meanwhile, and the next one, that was told of no replica, has one made.
func TestAReplicaIsMadeAgainWhileTheOldOneGoes(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 2, 1)
	a.seal(s)
	drop := a.replaceMessage(s)
	begun, release := make(chan struct{}), make(chan struct{})
	faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpRename && strings.Contains(c.Path, asideMark) {
			close(begun)
			<-release
		}
		return nil
	})
	dropped := make(chan error)
	go func() {
		_, err := s.Drop(bg, drop)
		dropped <- err
	}()
	<-begun
	if f := fence(t, s, jA, 2); len(f.Replicas) != 0 {
		t.Fatalf("%+v", f)
	}
	a.epoch = epoch(2)
	_, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: a.epoch, Segment: a.seg, Capacity: testCapacity})
	close(release)
	wantCode(t, err, wire.CodeBusy)
	if err := <-dropped; err != nil {
		t.Error(err)
	}
	a.again(m, s, testOptions(killed(m, s), boot1))
}

// A taker whose first answer was lost asks again, and is told as little of what is being made again as the first time; the owner that it
// becomes is told, and so is a taker of an older version that asks again.
func TestATakerAsksAgainWhileAReplicaIsMadeAgain(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 2, 1)
	a.seal(s)
	if _, err := s.Drop(bg, a.replaceMessage(s)); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ taking, told bool }{{true, false}, {true, false}, {false, true}, {true, false}} {
		r, err := s.Fence(bg, &wire.Fence{Journal: jA, Epoch: epoch(2), Taker: "taker", Taking: c.taking})
		if named := len(r.Again) == 1 && r.Again[0] == a.seg; named != c.taking {
			t.Errorf("answer %d names %v", i, r.Again)
		}
		if err != nil || (len(r.Replicas) == 1 && r.Replicas[0].State == wire.ReplicaDamaged) != c.told || len(r.Replicas) > 1 {
			t.Errorf("answer %d: %+v, %v", i, r.Replicas, err)
		}
	}
}
