package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func TestAppendReadSealRestart(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"memory": vfs.NewMem(0), "disk": vfs.Default} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(fsys, boot1)
			if name == "disk" {
				opts.Dir = t.TempDir() + "/store"
				opts.FailMarkDir = t.TempDir()
			}
			s := openStore(t, opts)
			a, b := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jB, 1, 1))
			a.open(s)
			a.open(s) // again is no error
			b.open(s)
			for i := range 5 {
				a.write(s, i+1, byte(i))
				b.write(s, 1, 0xb0+byte(i))
			}
			offset := a.ends[2]
			check := func(s *Store) {
				t.Helper()
				a.wantRecords(s, 5)
				data, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: offset, First: 1, Blocks: 2}, wire.ReadPiece{Segment: a.seg, Record: journal.SegmentHeaderSize, Blocks: 1})
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				if want := append(bytes.Repeat([]byte{3}, 2*4096), make([]byte, 4096)...); !bytes.Equal(data, want) {
					t.Fatalf("read %d wrong bytes", len(data))
				}
				index, err := s.ReadIndex(context.Background(), &wire.ReadIndex{Segment: a.seg})
				if err != nil {
					t.Fatalf("index: %v", err)
				}
				x, err := journal.DecodeIndex(index.Data)
				if err != nil || len(x.Entries) != 5 || x.End != a.off || x.Last != a.at || x.Entries[3].Offset != offset {
					t.Fatalf("index %+v, %v", x, err)
				}
			}
			check(s)
			a.sync(s)
			a.seal(s)
			a.seal(s)
			check(s)
			b.write(s, 2, 9)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, opts)
			check(s)
			inv := inventory(t, s, ident.JournalID{})
			if len(inv) != 2 || inv[a.seg].State != wire.ReplicaSealed || inv[b.seg].State != wire.ReplicaOpen || inv[b.seg].Last != b.at || inv[b.seg].End != b.off {
				t.Fatalf("inventory %+v", inv)
			}
			b.write(s, 1, 10)
			b.seal(s)
			b.wantRecords(s, 7)
			if _, err := s.Drop(context.Background(), &wire.Drop{Epoch: b.epoch, Segment: b.seg, Permit: 1}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Drop(context.Background(), &wire.Drop{Epoch: b.epoch, Segment: b.seg, Permit: 1}); err != nil {
				t.Fatalf("drop again: %v", err)
			}
			_, err := read(s, jB, wire.ReadPiece{Segment: b.seg, Record: 4096, Blocks: 1})
			wantCode(t, err, wire.CodeAbsent)
			s.Close()
			s = openStore(t, opts)
			if inv := inventory(t, s, jB); len(inv) != 0 {
				t.Fatalf("dropped and there: %+v", inv)
			}
			st, err := s.Status(context.Background(), &wire.StoreStatus{})
			if err != nil || st.Replicas != 1 || st.Used == 0 || st.Failed != "" {
				t.Fatalf("status %+v, %v", st, err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	m := vfs.NewMem(0)
	opts := testOptions(m, boot1)
	opts.Create = false
	if _, err := Open(opts); !errors.Is(err, ErrNoStore) {
		t.Fatalf("no store: %v", err)
	}
	opts.Create = true
	s := openStore(t, opts)
	if _, err := Open(opts); !errors.Is(err, vfs.ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
	s.Close()
	other := opts
	other.Cluster = "another"
	if _, err := Open(other); err == nil || !strings.Contains(err.Error(), "belongs to cluster") {
		t.Fatalf("other cluster: %v", err)
	}
	rewrite := func(from, to string) {
		t.Helper()
		b, err := readWhole(m, "/store/"+superName, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.OpenReadWrite("/store/" + superName)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte(from), []byte(to), 1)
		f.WriteAt(b, 0)
		f.Close()
	}
	rewrite(`"cluster": "c"`, `"cluster": "d"`)
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("changed superblock: %v", err)
	}
	rewrite(`"cluster": "d"`, `"cluster": "c"`)
	rewrite(`"format": 1`, `"format": 2`)
	var v *journal.VersionError
	if _, err := Open(opts); !errors.As(err, &v) {
		t.Fatalf("newer format: %v", err)
	}
}

// A start reads the notes and the names of files; it opens no sealed replica.
func TestStartOpensNoSealedReplica(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	opts := testOptions(faults, boot1)
	s := openStore(t, opts)
	var owners []*owner
	for i := range uint32(300) { // more than the first notes file has room for
		o := newOwner(t, segment(ident.JournalID{byte(i%7) + 1}, 1, i))
		if _, err := s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: o.epoch, Segment: o.seg, Capacity: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		o.write(s, 1, byte(i))
		o.seal(s)
		owners = append(owners, o)
	}
	s.Close()
	opts.Boot = boot2
	faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpOpen && strings.Contains(c.Path, segmentsName) {
			t.Errorf("opened %s", c.Path)
		}
		return nil
	})
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	inv := inventory(t, s, ident.JournalID{})
	for _, o := range owners {
		if r := inv[o.seg]; r.State != wire.ReplicaSealed || r.Last != o.at || r.End != o.off || r.StableEnd != o.off {
			t.Fatalf("%+v", r)
		}
	}
}

func TestMissingAndUnknownFiles(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	a, b, c := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jA, 1, 2)), newOwner(t, segment(jA, 1, 3))
	for _, o := range []*owner{a, b} {
		o.open(s)
		o.write(s, 1, 1)
	}
	a.seal(s)
	path := s.replicaPath(a.seg)
	empty, full := s.replicaPath(c.seg), s.replicaPath(segment(jA, 1, 4))
	s.Close()
	m.Remove(path)
	for name, bytes := range map[string][]byte{empty: make([]byte, 8192), full: b.bytes} {
		f, err := m.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt(bytes, 0)
		f.Close()
	}
	s = openStore(t, testOptions(m, boot1))
	inv := inventory(t, s, jA)
	if len(inv) != 3 || inv[a.seg].State != wire.ReplicaDamaged || inv[b.seg].State != wire.ReplicaOpen || inv[segment(jA, 1, 4)].State != wire.ReplicaDamaged {
		t.Fatalf("%+v", inv)
	}
	if _, err := m.Size(empty); err == nil {
		t.Fatal("an empty file that no note knows is kept")
	}
	if _, err := s.Drop(context.Background(), &wire.Drop{Epoch: epoch(1), Segment: a.seg}); err != nil {
		t.Fatalf("drop of a replica without a file: %v", err)
	}
}

// TestStartReadsWhatIsThere: a segment of which little is written is mostly a hole, which a start does not read. 100 of them
// kept a start busy for seconds.
func TestStartReadsWhatIsThere(t *testing.T) {
	mem := vfs.NewMem(0)
	s := openStore(t, testOptions(mem, boot1))
	const volumes = 20
	var owners []*owner
	for i := range byte(volumes) {
		o := newOwner(t, segment(ident.JournalID{i + 1}, 1, 1))
		o.open(s)
		o.write(s, 1, i)
		owners = append(owners, o)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	faults := vfs.NewFaults(mem)
	var read atomic.Int64
	faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpRead && strings.Contains(c.Path, segmentsName) {
			read.Add(int64(c.Len))
		}
		return nil
	})
	s = openStore(t, testOptions(faults, boot1))
	for _, o := range owners {
		if r := s.describe(s.replica(o.seg)); r.State != wire.ReplicaOpen || r.Last != o.at || r.End != o.off {
			t.Errorf("%+v", r)
		}
	}
	if most := int64(volumes * 2 * scanFirst); read.Load() > most {
		t.Errorf("%d bytes read for %d segments of which %d bytes are written", read.Load(), volumes, owners[0].off)
	}
}

// TestScanFindsWhatIsBehindHoles: a good record is found wherever it is behind a bad place.
func TestScanFindsWhatIsBehindHoles(t *testing.T) {
	mem := vfs.NewMem(0)
	for _, gap := range []int64{8, 4096, scanFirst - 8, scanFirst, scanFirst + 8, 3 * scanFirst, scanWindow - 8, scanWindow, 3*scanWindow + 24} {
		name := fmt.Sprintf("/f%d", gap)
		f, err := mem.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		o := newOwner(t, segment(jA, 1, 1))
		o.make(1, 1)
		at := o.off
		if _, err := f.WriteAt(o.bytes, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(o.make(1, 2), int64(at)+gap); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(32 << 20); err != nil {
			t.Fatal(err)
		}
		sc, err := scan(f, o.seg, 32<<20, 0, nil)
		if err != nil || sc.end != at || sc.bad == nil || int64(sc.follows) != int64(at)+gap {
			t.Errorf("gap of %d: ends at %d, %v, a good record at %d, %v; want %d and %d", gap, sc.end, sc.bad, sc.follows, err, at, int64(at)+gap)
		}
		_ = f.Close()
	}
}

// While all replicas are being put in order, one goes and another one comes.
func TestTheListOfReplicasIsNotOld(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	a, b := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jB, 1, 1))
	a.open(s)
	list, changes := s.ids(ident.JournalID{}), s.mu.changes
	a.drop(s)
	b.open(s)
	s.keepSorted(list, changes)
	if inv := inventory(t, s, ident.JournalID{}); len(inv) != 1 || inv[b.seg].State != wire.ReplicaOpen {
		t.Errorf("%v", inv)
	}
}
