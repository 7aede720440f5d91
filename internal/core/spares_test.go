package core

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func spareOptions(fsys vfs.FS, boot ident.BootID) Options {
	o := testOptions(fsys, boot)
	o.SpareLeast = 1
	return o
}

// after is the owner of the next segment of a's journal.
func (o *owner) after() *owner {
	next := newOwner(o.t, segment(o.seg.Journal, o.seg.Epoch.Number, o.seg.Number+1))
	next.at = o.at
	return next
}

func (o *owner) drop(s journal.Store) {
	o.t.Helper()
	if _, err := s.Drop(bg, &wire.Drop{Epoch: o.epoch, Segment: o.seg}); err != nil {
		o.t.Fatalf("drop: %v", err)
	}
}

// filled opens a segment, writes records and seals it.
func (o *owner) filled(s journal.Store, records int) *owner {
	o.t.Helper()
	o.open(s)
	for i := range records {
		o.write(s, 4, byte(i))
	}
	o.seal(s)
	return o
}

func (s *Store) spareList() (of []ident.SegmentID) {
	s.spares.mu.Lock()
	defer s.spares.mu.Unlock()
	for _, sp := range s.spares.mu.list {
		of = append(of, sp.of)
	}
	return of
}

func wantFiles(t *testing.T, fsys vfs.FS, n int) {
	t.Helper()
	names, err := fsys.List("/store/segments/0a")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if len(names) != n {
		t.Fatalf("files %v, want %d", names, n)
	}
}

func inspected(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	var b bytes.Buffer
	if err := Inspect(&b, fsys, name, InspectOptions{}); err != nil {
		t.Fatalf("inspect: %s%v", &b, err)
	}
	return b.String()
}

func TestDroppedFileIsWrittenAgain(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 40)
	a.drop(s)
	if got := s.spareList(); len(got) != 1 || got[0] != a.seg {
		t.Fatalf("spares %v", got)
	}
	b := a.after()
	b.open(s)
	wantFiles(t, m, 1)
	if s.spares.bytes() != 0 {
		t.Fatal("the spare is still there")
	}
	if out := inspected(t, m, s.Path(b.seg)); !strings.Contains(out, "stale, up to "+a.at.String()) || !strings.Contains(out, "empty") {
		t.Fatal(out)
	}

	// Nothing was written: a killed process finds it empty, and what comes then is written over the old bytes.
	s = openStore(t, spareOptions(killed(m, s), boot1))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaOpen || r.End != 0 || r.Last != (ident.Position{}) {
		t.Fatalf("empty after a kill: %+v", r)
	}
	if size, _ := m.Size(s.Path(b.seg)); size != testCapacity {
		t.Fatalf("%d bytes", size)
	}
	b.write(s, 1, 7)
	b.write(s, 2, 8)
	if out := inspected(t, m, s.Path(b.seg)); !strings.Contains(out, "stale: a record of seq") || !strings.Contains(out, "2 records") || strings.Contains(out, "BAD") {
		t.Fatal(out)
	}

	// Stale records behind the end are neither taken nor taken for the rest of something damaged.
	s = openStore(t, spareOptions(killed(m, s), boot1))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaOpen || r.End != b.off || r.Last != b.at {
		t.Fatalf("after a kill: %+v, want an end of %d", r, b.off)
	}
	b.sync(s)
	s = openStore(t, spareOptions(powerCut(m, 0, 1), boot2))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaShort || r.End != b.off || r.Last != b.at {
		t.Fatalf("after a power cut: %+v, want an end of %d", r, b.off)
	}
	for range 10 {
		b.write(s, 3, 9)
	}
	b.seal(s)
	b.wantRecords(s, len(b.ends))
	if rep, err := s.Scrub(bg, 0); err != nil || rep.Replicas != 1 || len(rep.Bad) != 0 {
		t.Fatalf("scrub %+v, %v", rep, err)
	}
	if out := inspected(t, m2(s), s.Path(b.seg)); strings.Contains(out, "stale") {
		t.Fatal(out)
	}
}

// A bad record in front of good ones of the segment itself is damage in a recycled file too.
func TestDamageInARecycledFileIsSeen(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 40)
	a.drop(s)
	b := a.after()
	b.open(s)
	for i := range 6 {
		b.write(s, 2, byte(i))
	}
	overwrite(t, m, s, b.seg, int64(b.ends[2])+200, []byte{0xff})
	s = openStore(t, spareOptions(killed(m, s), boot1))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaDamaged || r.Last != b.pos[2] {
		t.Fatalf("%+v, want damaged", r)
	}

	// So is a lost header: the disk gives back what stood there before.
	m = vfs.NewMem(0)
	s = openStore(t, spareOptions(m, boot1))
	a = newOwner(t, segment(jA, 1, 1)).filled(s, 40)
	a.drop(s)
	b = a.after()
	b.open(s)
	head := make([]byte, journal.SegmentHeaderSize)
	f, _ := m.Open(s.Path(b.seg))
	f.ReadAt(head, 0)
	f.Close()
	b.write(s, 2, 1)
	overwrite(t, m, s, b.seg, 0, head)
	s = openStore(t, spareOptions(killed(m, s), boot1))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaDamaged {
		t.Fatalf("without its header: %+v, want damaged", r)
	}
}

// Blocks of clients may look like records. In a stale part they must not make damage.
func TestForgedRecordsInStaleBlocks(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	forged := journal.Record{Kind: journal.KindTrim, Journal: jA, Epoch: epoch(1), Seq: 1 << 40, Count: 1}
	block := forged.AppendRecord(nil, ident.Hash{}, nil)
	body := bytes.Repeat(append(block, make([]byte, 4096-len(block))...), 8)
	for range 20 {
		at := a.off
		var data []byte
		if at == 0 {
			data = journal.AppendSegmentHeader(nil, journal.SegmentHeader{Segment: a.seg, Kind: journal.JournalVolume})
		}
		r := journal.Record{Kind: journal.KindWrite, Journal: jA, Epoch: a.epoch, Seq: a.at.Seq + 1, Count: 8}
		data = a.took(r.AppendRecord(data, a.at.Hash, body), r.Position())
		if _, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}}); err != nil {
			t.Fatal(err)
		}
	}
	a.seal(s)
	a.drop(s)
	b := a.after()
	b.open(s)
	b.write(s, 1, 1)
	s = openStore(t, spareOptions(killed(m, s), boot1))
	if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaOpen || r.Last != b.at {
		t.Fatalf("%+v, want it open", r)
	}
}

// A recycled file whose stale records are not older than what comes is emptied.
func TestNewerStaleRecordsAreWiped(t *testing.T) {
	for _, restart := range []bool{false, true} {
		m := vfs.NewMem(0)
		s := openStore(t, spareOptions(m, boot1))
		a := newOwner(t, segment(jA, 1, 1)).filled(s, 40)
		a.drop(s)
		b := a.after()
		b.at = a.pos[3]
		b.open(s)
		wantFiles(t, m, 1)
		if restart {
			s = openStore(t, spareOptions(killed(m, s), boot1))
		}
		b.write(s, 1, 9)
		for _, seed := range []uint64{1, 2, 3, 4, 5} { // torn in any way, nothing stale follows
			s := openStore(t, spareOptions(powerCut(m, 50, seed), boot2))
			if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaShort || r.End > b.off {
				t.Fatalf("after a power cut: %+v", r)
			}
		}
		if size, _ := m.Size(s.Path(b.seg)); size != testCapacity {
			t.Fatalf("%d bytes, want the capacity", size)
		}
		f, _ := m.Open(s.Path(b.seg))
		rest := make([]byte, testCapacity-int(b.off))
		if _, err := f.ReadAt(rest, int64(b.off)); err != nil || !allZero(rest) {
			t.Fatalf("stale bytes behind the end, %v", err)
		}
		f.Close()
		s = openStore(t, spareOptions(killed(m, s), boot1))
		if r := inventory(t, s, jA)[b.seg]; r.State != wire.ReplicaOpen || r.Last != b.at {
			t.Fatalf("%+v", r)
		}
	}
}

func TestWhatIsNotRecycled(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	none := func(why string) {
		t.Helper()
		if got := s.spareList(); len(got) != 0 {
			t.Fatalf("%s: spares %v", why, got)
		}
	}
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 4, 1)
	a.drop(s)
	none("not sealed")
	c := newOwner(t, segment(jA, 1, ident.CheckpointBit|1)).filled(s, 3)
	c.drop(s)
	none("parts of a checkpoint")
	f := newOwner(t, segment(jA, 1, 2)).filled(s, 3)
	f.epoch = epoch(2)
	_, err := s.Seal(bg, &wire.Seal{Epoch: f.epoch, Segment: f.seg, End: f.ends[1], Last: f.pos[1]})
	wantCode(t, err, wire.CodeFork)
	f.seg = f.seg.Fork()
	f.drop(s)
	none("a fork")
	d := newOwner(t, segment(jA, 2, 3)).filled(s, 3)
	r := s.replica(d.seg)
	r.mu.Lock()
	s.damaged(r, "test")
	r.mu.Unlock()
	d.drop(s)
	none("damaged")
	l := newOwner(t, segment(jA, 2, 4)).filled(s, 3)
	if _, err := s.Drop(bg, &wire.Drop{Epoch: l.epoch, Segment: l.seg, Replace: true}); err != nil {
		t.Fatal(err)
	}
	none("to be made again")

	// A spare is for later segments of its journal only.
	x := newOwner(t, segment(jA, 2, 10)).filled(s, 3)
	x.drop(s)
	for _, id := range []ident.SegmentID{segment(jB, 3, 11), segment(jA, 1, 11), segment(jA, 2, 9), segment(jA, 2, ident.CheckpointBit|11)} {
		o := newOwner(t, id)
		o.epoch = epoch(3)
		o.open(s)
		if got := s.spareList(); len(got) != 1 {
			t.Fatalf("%s took the file of %s", id, x.seg)
		}
	}
	o := newOwner(t, segment(jA, 3, 1)) // of a later epoch
	o.open(s)
	none("taken")

	opts := spareOptions(vfs.NewMem(0), boot1)
	opts.SpareBytes = -1
	s = openStore(t, opts)
	newOwner(t, segment(jA, 1, 1)).filled(s, 3).drop(s)
	none("switched off")
	opts = testOptions(vfs.NewMem(0), boot1)
	s = openStore(t, opts)
	newOwner(t, segment(jA, 1, 1)).filled(s, 3).drop(s)
	none("too small")
}

// A reader that has opened the file before it became another segment's never gives that one's bytes.
func TestLateReaderOfADroppedReplica(t *testing.T) {
	m := vfs.NewMem(0)
	hook := &openHook{FS: m}
	opts := spareOptions(hook, boot1)
	opts.OnCorrupt = func(id ident.SegmentID, _ uint32, err error) { t.Errorf("%s reported as corrupt: %v", id, err) }
	s := openStore(t, opts)
	last := newOwner(t, segment(jA, 1, 0))
	opts.Peers = nil
	for name, late := range map[string]func(a *owner) error{
		"read": func(a *owner) error {
			_, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: 4096, Blocks: 1})
			return err
		},
		"raw": func(a *owner) error {
			_, err := s.ReadRaw(bg, &wire.ReadRaw{Segment: a.seg, Len: a.off})
			return err
		},
		"index": func(a *owner) error {
			_, err := s.ReadIndex(bg, &wire.ReadIndex{Segment: a.seg})
			return err
		},
		"scrub": func(a *owner) error {
			rep, err := s.Scrub(bg, 0)
			if len(rep.Bad) != 0 {
				t.Errorf("scrub: %+v", rep)
			}
			return errors.Join(err, absent(a.seg))
		},
		"sync": func(a *owner) error {
			if err := s.syncFile(s.replica(a.seg)); err != errGone {
				t.Errorf("sync: %v", err)
			}
			return absent(a.seg)
		},
	} {
		a := last.after().filled(s, 30)
		s.handles.mu.Lock() // as if others had pushed it out
		r := s.replica(a.seg)
		if f := r.file; f != nil && f.refs == 0 {
			s.handles.evictLocked(f)
		}
		s.handles.mu.Unlock()
		b := a.after()
		after := func(n string) {
			hook.after.Store(nil)
			a.drop(s)
			if len(s.spareList()) != 1 {
				t.Errorf("%s: not a spare", name)
			}
			b.open(s)
			for i := range 20 {
				b.write(s, 4, byte(100+i))
			}
		}
		hook.after.Store(&after)
		err := late(a)
		if hook.after.Load() != nil {
			t.Fatalf("%s: nothing was opened", name)
		}
		wantCode(t, err, wire.CodeAbsent)
		if s.Failed() != "" {
			t.Fatalf("%s: %s", name, s.Failed())
		}
		b.seal(s)
		b.wantRecords(s, len(b.ends))
		b.drop(s)
		for s.spares.bytes() > 0 {
			s.giveUp(s.spares.oldest(anyAge))
		}
		last = b
	}
}

// A file that somebody reads is not recycled.
func TestFileInUseIsNotRecycled(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, spareOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1)).filled(s, 30)
	f, err := s.handles.acquire(s.replica(a.seg))
	if err != nil {
		t.Fatal(err)
	}
	a.drop(s)
	if got := s.spareList(); len(got) != 0 {
		t.Fatalf("spares %v", got)
	}
	b := a.after().filled(s, 20)
	there := make([]byte, a.off)
	if _, err := f.ReadAt(there, 0); err != nil || !bytes.Equal(there, a.bytes) {
		t.Fatalf("the reader sees other bytes, %v", err)
	}
	s.handles.release(f)
	b.wantRecords(s, 20)
}

func TestSparesGiveWayToSpace(t *testing.T) {
	m := vfs.NewMem(0)
	var clock atomic.Int64
	opts := spareOptions(m, boot1)
	opts.Clock = func() time.Duration { return time.Duration(clock.Load()) }
	opts.ReserveBytes = 1 << 20
	s := openStore(t, opts)
	used := func() int64 { u, _ := m.Usage("/"); return int64(u.Total - u.Free) }
	m.SetCapacity(used() + 16<<20)
	three := func(j ident.JournalID, number uint32) {
		t.Helper()
		var all []*owner
		for i := range uint32(3) {
			all = append(all, newOwner(t, segment(j, 1, number+i)).filled(s, 50))
		}
		for _, o := range all {
			o.drop(s)
		}
	}
	three(jA, 1)
	if n := len(s.spareList()); n != 1 { // a sixteenth of 16 MiB is one of them
		t.Fatalf("%d spares", n)
	}
	status, err := s.Status(bg, &wire.StoreStatus{})
	if u, _ := m.Usage("/"); err != nil || status.Free != u.Free+uint64(s.spares.bytes()) || status.Used != 0 {
		t.Fatalf("status %+v, %v", status, err)
	}

	// Another journal wants all of the space.
	s.journal(jB).appended.Store(spaceWholeFrom)
	m.SetCapacity(used() + 1<<20 + 1<<19)
	o := newOwner(t, segment(jB, 1, 2))
	if _, err := s.OpenSegment(bg, &wire.OpenSegment{Epoch: o.epoch, Segment: o.seg, Capacity: testCapacity}); err != nil {
		t.Fatalf("with a spare to give up: %v", err)
	}
	if n := len(s.spareList()); n != 0 {
		t.Fatalf("%d spares", n)
	}
	wantFiles(t, m, 0)
	_, err = s.OpenSegment(bg, &wire.OpenSegment{Epoch: o.epoch, Segment: segment(jB, 1, 3), Capacity: testCapacity})
	wantCode(t, err, wire.CodeNoSpace)

	// Its own journal needs no more than the rest of the file, even where nothing is free.
	m.SetCapacity(1 << 40)
	a := newOwner(t, segment(jA, 1, 10)).filled(s, 58)
	a.drop(s)
	m.SetCapacity(used() + 1<<20 + 128<<10)
	b := a.after()
	b.open(s)
	b.write(s, 1, 1)
	b.seal(s)

	// Somebody else fills the disk: spares go, one at a time.
	m.SetCapacity(1 << 40)
	three(jA, 20)
	if n := len(s.spareList()); n != 3 {
		t.Fatalf("%d spares", n)
	}
	left := func() int { s.trimOne(); return len(s.spareList()) }
	if n := left(); n > 3 {
		t.Fatalf("%d spares", n)
	}
	for n := len(s.spareList()); n > 0; n-- {
		m.SetCapacity(used() + 1<<19)
		if got := left(); got > n-1 {
			t.Fatalf("%d spares, want %d", got, n-1)
		}
	}

	// Unused ones go by themselves.
	m.SetCapacity(1 << 40)
	three(jA, 30)
	clock.Add(int64(spareAge - 1))
	if n := left(); n != 3 {
		t.Fatalf("%d spares", n)
	}
	clock.Add(1)
	for n := 2; n >= 0; n-- {
		if got := left(); got > n {
			t.Fatalf("%d spares, want %d", got, n)
		}
	}
	three(jA, 40)
	s.Close()
	wantFiles(t, m, 1) // b
}
