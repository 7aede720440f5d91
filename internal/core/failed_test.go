package core

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// A store whose fdatasync has failed is opened by the next process although its disk takes nothing any more: what
// was stable can be read, and nothing is promised. After a boot it is as any other (R8).
func TestAFailedStoreIsOpenedForReading(t *testing.T) {
	mem := vfs.NewMem(0)
	f := vfs.NewFaults(mem)
	s := openStore(t, testOptions(f, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.sync(s)
	a.write(s, 1, 2)
	remove := f.Add(vfs.FailOn(vfs.OpSyncData, "*", syscall.EIO))
	if _, err := s.Sync(context.Background(), &wire.Sync{Epoch: epoch(1), Journal: jA, Segments: a.segs()}); !errors.Is(err, wire.ErrIO) {
		t.Fatalf("sync: %v", err)
	}
	s.Close()
	s = openStore(t, testOptions(f, boot1))
	if s.Failed() == "" {
		t.Fatal("the next process doesn't know that the store has failed")
	}
	a.wantRecords(s, 2)
	if _, err := appendAt(s, &wire.Append{Epoch: epoch(1), Segment: a.seg, Offset: a.off}); !errors.Is(err, wire.ErrIO) {
		t.Errorf("append: %v", err)
	}
	if _, err := s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: epoch(2), Taker: "n"}); err == nil {
		t.Error("a fence was promised that can't be kept")
	}
	s.Close()
	remove()
	s = openStore(t, testOptions(f, boot1))
	if s.Failed() == "" {
		t.Error("forgotten within the same boot")
	}
	s.Close()
	s = openStore(t, testOptions(mem, boot2))
	if s.Failed() != "" {
		t.Errorf("after a boot: %s", s.Failed())
	}
	a.write(s, 1, 3)
	s.Close()
}

func (o *owner) segs() []ident.SegmentID { return []ident.SegmentID{o.seg} }

// What a short write leaves behind the end doesn't count, and a restart doesn't take it for damage.
func TestShortWrites(t *testing.T) {
	for _, why := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, n := range []int{1, 100, 4300, 9000} { // within a header, a body, behind a whole record
			f := vfs.NewFaults(vfs.NewMem(0))
			s := openStore(t, testOptions(f, boot1))
			a := newOwner(t, segment(jA, 1, 1))
			a.open(s)
			a.write(s, 1, 1)
			at := a.off
			data := append(a.make(1, 2), a.make(1, 3)...)
			remove := f.Add(vfs.FailOn(vfs.OpWrite, a.seg.String(), &vfs.PartialWrite{Bytes: n, Err: why}))
			_, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}})
			if err == nil || errors.Is(err, wire.ErrNoSpace) != (why == syscall.ENOSPC) {
				t.Errorf("%d bytes, %v: %v", n, why, err)
			}
			remove()
			s.Close()
			s = openStore(t, testOptions(f, boot1))
			a.wantRecords(s, 1)
			_, err = appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}})
			if (err == nil) != (why == syscall.ENOSPC) {
				t.Errorf("%d bytes, %v: appended again: %v", n, why, err)
			}
			s.Close()
		}
	}
}

// The note that a replica is open can't be made durable, and is on the disk all the same when the host is back: the file has to be there, or
// the store counts for nothing in takeovers of a journal that it never had a record of.
func TestANoteThatFailedMayBeThere(t *testing.T) {
	for _, recycled := range []bool{false, true} {
		m := vfs.NewMem(0)
		faults := vfs.NewFaults(m)
		opts := spareOptions(faults, boot1)
		s := openStore(t, opts)
		a := newOwner(t, segment(jA, 1, 1)).filled(s, 20)
		if recycled {
			a.drop(s)
		}
		b := a.after()
		faults.Add(vfs.FailOn(vfs.OpSyncData, "notes.*", syscall.EIO))
		_, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: b.epoch, Segment: b.seg, Capacity: testCapacity})
		wantCode(t, err, wire.CodeIO)
		opts.FS, opts.Boot = powerCut(m, 100, 1), boot2
		s = openStore(t, opts)
		if r, ok := inventory(t, s, jA)[b.seg]; !ok || r.State != wire.ReplicaShort || r.End != 0 {
			t.Errorf("recycled %v: %v, %+v", recycled, ok, r)
		}
	}
}
