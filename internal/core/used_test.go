package core

import (
	"syscall"
	"testing"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func wantUsed(t *testing.T, s *Store, what string, want int64) {
	t.Helper()
	if st, err := s.Status(bg, &wire.StoreStatus{}); err != nil || st.Used != uint64(want) {
		t.Errorf("%s: %d bytes are used, want %d (%v)", what, st.Used, want, err)
	}
}

// What lies on the disk is counted for as long as it does: a file that could not be noted, one that no note knows, one that
// could not be removed.
func TestWhatIsThereIsCounted(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.sync(s)
	wantUsed(t, s, "an open replica", testCapacity)

	// A file of which the note is lost is kept, and counted until it goes.
	stray := segment(jA, 1, 2)
	f, err := m.Create(s.replicaPath(stray))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(a.bytes, 0); err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size()
	_ = f.Close()
	s.Close()
	s = openStore(t, testOptions(faults, boot1))
	wantUsed(t, s, "with a file that no note knows", testCapacity+size)
	if _, err := s.Drop(bg, &wire.Drop{Epoch: epoch(1), Segment: stray, Made: inventory(t, s, jA)[stray].Made}); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, s, "without it", testCapacity)

	// One that can not be removed is there still, and is gone once it can.
	remove := faults.Add(vfs.FailOn(vfs.OpRemove, a.seg.String(), syscall.EIO))
	drop := &wire.Drop{Epoch: epoch(1), Segment: a.seg}
	if _, err := s.Drop(bg, drop); err == nil {
		t.Fatal("a replica was dropped whose file can't be removed")
	}
	wantUsed(t, s, "with a file that can't be removed", testCapacity)
	remove()
	if _, err := s.Drop(bg, drop); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, s, "with nothing", 0)

	// One whose note fails stays: the note may be on the disk all the same.
	faults.Add(vfs.FailOn(vfs.OpSyncData, "notes.*", syscall.EIO))
	b := segment(jA, 1, 3)
	_, err = s.OpenSegment(bg, &wire.OpenSegment{Epoch: epoch(1), Segment: b, Capacity: testCapacity})
	wantCode(t, err, wire.CodeIO)
	if _, err := m.Size(s.replicaPath(b)); err != nil {
		t.Fatal("its file is gone")
	}
	wantUsed(t, s, "with a replica that could not be noted", testCapacity)
}
