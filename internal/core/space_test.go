package core

import (
	"sync/atomic"
	"testing"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Segments of a journal of which little was appended take space as they grow: what is opened and hardly written to costs little.
func TestSegmentsOfIdleJournalsTakeSpaceAsTheyGrow(t *testing.T) {
	m := vfs.NewMem(1 << 30)
	s := openStore(t, testOptions(m, boot1))
	used := func() int64 {
		u, err := m.Usage("/")
		if err != nil {
			t.Fatal(err)
		}
		return int64(u.Total - u.Free)
	}
	for number, most := range []int64{spaceFirst, spaceFirst, testCapacity} {
		if most == testCapacity {
			s.journal(jA).appended.Store(spaceWholeFrom)
		}
		before := used()
		o := newOwner(t, segment(jA, 1, uint32(number)))
		o.open(s)
		o.write(s, 1, 1)
		if took := used() - before; took < most || took > most+spaceFirst { // the notes may grow
			t.Errorf("segment %d takes %d bytes with one block in it; want %d", number, took, most)
		}
	}
	o := newOwner(t, segment(jB, 1, 0))
	o.open(s)
	before := used()
	for range 60 {
		o.write(s, 1, 2)
	}
	if took, want := used()-before, int64(o.off); took < want-spaceFirst || took > 4*want {
		t.Errorf("%d bytes were appended, and %d taken", want, took)
	}
	o.seal(s)
	o.wantRecords(s, len(o.ends))
}

// Where there is no space to grow into, the append says so and changes nothing; the store goes on, and what is open can be
// sealed as it is, or go on once there is space.
func TestASegmentThatCanNotGrow(t *testing.T) {
	m := vfs.NewMem(0)
	opts := testOptions(m, boot1)
	s := openStore(t, opts)
	a, b := newOwner(t, segment(jA, 1, 0)), newOwner(t, segment(jB, 1, 0))
	for _, o := range []*owner{a, b} {
		o.open(s)
		for range 5 {
			o.write(s, 1, 1)
		}
	}
	u, _ := m.Usage("/")
	m.SetCapacity(int64(u.Total - u.Free))
	grow := func(o *owner) (n int, err error) {
		for n = range 100 {
			was := *o
			data := o.make(1, 3)
			if _, err = appendAt(s, &wire.Append{Epoch: o.epoch, Segment: o.seg, Offset: was.off, Data: [][]byte{data}}); err != nil {
				*o = was
				return n, err
			}
		}
		return n, nil
	}
	for _, o := range []*owner{a, b} {
		n, err := grow(o)
		wantCode(t, err, wire.CodeNoSpace)
		if n == 0 {
			t.Error("nothing could be appended to what was taken already")
		}
		if _, err := grow(o); err == nil {
			t.Error("appended again where there is no space")
		}
	}
	if why := s.Failed(); why != "" {
		t.Fatalf("the store failed: %s", why)
	}
	a.seal(s)
	a.wantRecords(s, len(a.ends))
	m.SetCapacity(1 << 30)
	if _, err := grow(b); err != nil {
		t.Fatal(err)
	}
	b.seal(s)
	s2 := openStore(t, testOptions(powerCut(m, 0, 1), boot2))
	a.wantRecords(s2, len(a.ends))
	b.wantRecords(s2, len(b.ends))
}

// Space that a file has is not asked for again: neither at the end of its segment, nor when it becomes another's.
func TestSpaceIsAskedForOnce(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, spareOptions(faults, boot1))
	s.journal(jA).appended.Store(spaceWholeFrom)
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 30)
	size, err := m.Size(SegmentPath(s.dir, a.seg))
	if err != nil {
		t.Fatal(err)
	}
	a.drop(s)
	var asked atomic.Int64
	remove := faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpPreallocate {
			asked.Add(int64(c.Len))
			if c.Off < size {
				t.Errorf("space from %d on is asked for; the file has it up to %d", c.Off, size)
			}
		}
		return nil
	})
	defer remove()
	b := a.after()
	b.open(s)
	b.write(s, 3, 1)
	b.seal(s)
	if want := testCapacity - size; asked.Load() != want {
		t.Errorf("space for %d bytes is asked for; want %d", asked.Load(), want)
	}
	b.wantRecords(s, 1)
}
