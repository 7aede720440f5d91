package core

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

var testStore = ident.StoreID{7}

func testImage() *noteImage {
	m := newNoteImage()
	m.store = storeNote{Boot: boot1, Starts: 3, LeaseMax: time.Second}
	pos := ident.Position{Epoch: epoch(3), Seq: 9, Hash: ident.Hash{1, 2}}
	for i := range byte(3) {
		j := ident.JournalID{i + 1}
		m.journals[j] = &journalNote{Journal: j, Fence: epoch(4), Commit: pos, Stable: pos}
		id := segment(j, 3, uint32(i))
		m.replicas[id] = &replicaNote{Segment: id, State: wire.ReplicaState(i + 1), Boot: boot2, Capacity: 1 << 20, Length: 5000, End: 4096, StableEnd: 4096,
			Before: pos, Last: pos, Start: wire.EpochStart{At: pos, Before: pos, Proven: i == 1}}
	}
	return m
}

func encodeImage(m *noteImage) (b []byte) {
	b = m.store.append(b)
	for _, n := range m.journals {
		b = n.append(b)
	}
	for _, n := range m.replicas {
		b = n.append(b)
	}
	return b
}

// notesFile frames payloads as a file of generation 5 whose snapshot is the first.
func notesFile(payloads ...[]byte) []byte {
	var body []byte
	var snapshot int
	for i, p := range payloads {
		body = appendBatch(body, testStore, 5, uint64(i+1), p)
		if i == 0 {
			snapshot = len(body)
		}
	}
	h := notesHeader{Store: testStore, Generation: 5, Snapshot: uint64(notesHeaderSize + snapshot)}
	return append(h.encode(), body...)
}

func TestNotesRoundTrip(t *testing.T) {
	m := testImage()
	b := append(notesFile(encodeImage(m)), make([]byte, 1000)...)
	h, got, err := decodeNotes(b)
	if err != nil || h.Store != testStore || h.Generation != 5 || !reflect.DeepEqual(got, m) {
		t.Fatalf("%+v, %+v, %v", h, got, err)
	}
	if size := m.size(); size < int64(notesHeaderSize+len(encodeImage(m))) {
		t.Fatalf("size says %d", size)
	}
}

func TestNotesTornAndDamaged(t *testing.T) {
	first := encodeImage(testImage())
	j := &journalNote{Journal: jA, Fence: epoch(50)}
	k := &journalNote{Journal: jB, Fence: epoch(60)}
	whole := notesFile(first, j.append(nil), k.append(nil))
	two := len(notesFile(first, j.append(nil)))
	one := len(notesFile(first))
	pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, 64)...) }
	// The last batch cut off anywhere is as if it had never been begun.
	for n := two; n < len(whole); n++ {
		_, m, err := decodeNotes(append(bytes.Clone(whole[:n]), bytes.Repeat([]byte{0xee}, 64)...))
		if err != nil || m.journals[jA] == nil || m.journals[jB] != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	// A bad one in front of a good one is damage, and so is a bad snapshot.
	for i := notesHeaderSize; i < two; i++ {
		bad := pad(whole)
		bad[i] ^= 0x10
		if _, _, err := decodeNotes(bad); !errors.Is(err, errNotes) {
			t.Fatalf("byte %d of %d (%d): %v", i, two, one, err)
		}
	}
	for i := range notesHeaderSize {
		bad := pad(whole)
		bad[i] ^= 0x10
		if _, _, err := decodeNotes(bad); err == nil {
			t.Fatalf("header byte %d changed and not noticed", i)
		}
	}
	// Of another generation, another store, or out of order: not taken.
	stale := appendBatch(bytes.Clone(whole[:two]), testStore, 4, 3, k.append(nil))
	stale = appendBatch(stale, ident.StoreID{8}, 5, 3, k.append(nil))
	if _, m, err := decodeNotes(pad(stale)); err != nil || m.journals[jB] != nil {
		t.Fatalf("stale batches: %v", err)
	}
}

func TestNotesLogGenerations(t *testing.T) {
	m := vfs.NewMem(0)
	if err := m.MkdirAll("/n"); err != nil {
		t.Fatal(err)
	}
	m.SyncDir("/")
	if err := createNotes(m, "/n", testStore, 64<<10); err != nil {
		t.Fatal(err)
	}
	open := func(m *vfs.Mem) (*notesLog, error) {
		l, err := openNotes(m, "/n", testStore)
		if err != nil {
			return nil, err
		}
		return l, l.start()
	}
	l, err := open(m)
	if err != nil {
		t.Fatal(err)
	}
	put := func(e uint64) {
		t.Helper()
		n := &journalNote{Journal: jA, Fence: epoch(e)}
		if err := l.putJournal(n).wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for e := range uint64(1000) {
		put(e)
		if e%37 == 0 { // a power cut at any generation and fill
			after, err := open(powerCut(m, int(e%3)*40, e))
			if err != nil {
				t.Fatalf("after %d: %v", e, err)
			}
			if got := after.mu.image.journals[jA].Fence; got != epoch(e) {
				t.Fatalf("fence %v after %d", got, e)
			}
			after.close()
		}
	}
	if l.generation < 3 {
		t.Fatalf("only generation %d was reached", l.generation)
	}
	l.close()
	// The newer file is lost: the older one must not be believed.
	f, _ := m.OpenReadWrite(notesName("/n", int(l.generation%2)))
	f.WriteAt(make([]byte, notesHeaderSize), 0)
	if _, err := open(m); !errors.Is(err, errNotes) {
		t.Fatalf("an old generation is believed: %v", err)
	}
}

// A power cut in the middle of any write or sync of the notes leaves the last answered state or a later one.
func TestNotesPowerCutWithinCompaction(t *testing.T) {
	m := vfs.NewMem(0)
	m.MkdirAll("/n")
	m.SyncDir("/")
	if err := createNotes(m, "/n", testStore, 64<<10); err != nil {
		t.Fatal(err)
	}
	faults := vfs.NewFaults(m)
	l, err := openNotes(faults, "/n", testStore)
	if err == nil {
		err = l.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	answered := uint64(0)
	step := uint64(0)
	faults.Add(func(c vfs.Call) error {
		if c.Op != vfs.OpWrite && c.Op != vfs.OpSyncData {
			return nil
		}
		if step++; answered < 200 && step%11 != 0 { // always around compactions, which come at about 300
			return nil
		}
		for _, percent := range []int{0, 50, 100} {
			after, err := openNotes(powerCut(m, percent, step), "/n", testStore)
			if err != nil {
				t.Errorf("%s %s with %d answered: %v", c.Op, c.Path, answered, err)
				continue
			}
			if n := after.mu.image.journals[jA]; answered > 0 && (n == nil || n.Fence.Number < answered || n.Fence.Number > answered+1) {
				t.Errorf("%s %s: %+v after %d", c.Op, c.Path, n, answered)
			}
			after.closeFiles()
		}
		return nil
	})
	for e := uint64(1); e < 700; e++ {
		if err := l.putJournal(&journalNote{Journal: jA, Fence: epoch(e)}).wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		answered = e
	}
}

// The cursor, the sizes and the encoders agree for any values.
func TestNotesEntriesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := segment(ident.JournalID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "journal")), rapid.Uint64().Draw(t, "epoch"), rapid.Uint32().Draw(t, "number"))
		n := &replicaNote{Segment: id, State: wire.ReplicaState(rapid.IntRange(1, 5).Draw(t, "state")), Capacity: rapid.Uint32().Draw(t, "capacity"),
			Length: rapid.Uint32().Draw(t, "length"), End: rapid.Uint32().Draw(t, "end"), StableEnd: rapid.Uint32().Draw(t, "stable")}
		n.Last.Seq = ident.Seq(rapid.Uint64().Draw(t, "seq"))
		n.Start.Before.Epoch = epoch(rapid.Uint64().Draw(t, "start"))
		m := newNoteImage()
		if err := m.apply(n.append(nil)); err != nil || *m.replicas[id] != *n {
			t.Fatalf("%+v, %v; want %+v", m.replicas[id], err, n)
		}
		if err := m.apply(appendGone(nil, id)); err != nil || len(m.replicas) != 0 {
			t.Fatalf("gone: %v", err)
		}
		if err := m.apply(appendSuperseded(nil, 12)); err != nil || m.superseded != 12 {
			t.Fatalf("superseded: %v", err)
		}
	})
}

// The header page is put in front of the input: a short input fuzzes better.
func FuzzNotes(f *testing.F) {
	one := (&journalNote{Journal: jA, Fence: epoch(3)}).append(nil)
	f.Add(appendBatch(nil, testStore, 5, 1, one))
	f.Add(appendBatch(appendBatch(nil, testStore, 5, 1, appendGone(nil, segment(jA, 1, 2))), testStore, 5, 2, appendSuperseded(nil, 6)))
	f.Add((&replicaNote{Segment: segment(jA, 1, 1), State: wire.ReplicaOpen}).append(nil))
	head := notesFile(nil)[:notesHeaderSize]
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = decodeNotes(b)
		if _, m, err := decodeNotes(append(bytes.Clone(head), b...)); err == nil && m.size() > int64(notesHeaderSize+2*len(b)+batchPayloadMax) {
			t.Errorf("%d bytes gave an image of %d", len(b), m.size())
		}
		m := newNoteImage()
		if m.apply(b) == nil {
			again := newNoteImage()
			if err := again.apply(encodeImage(m)); err != nil {
				t.Errorf("what was decoded can't be decoded again: %v", err)
			}
		}
	})
}

// A compaction that a power cut has interrupted is made again at the next start, and may be much shorter then: what had been put and was not
// answered is not there. What the longer one has left behind is taken neither for damage nor for notes.
func TestNotesCompactionIsMadeAgainAndShorter(t *testing.T) {
	const many = 8000 // journals in one batch: several of a snapshot
	first := vfs.NewMem(0)
	first.MkdirAll("/n")
	first.SyncDir("/")
	if err := createNotes(first, "/n", testStore, 64<<10); err != nil {
		t.Fatal(err)
	}
	// running calls at before each write and sync of what do has noted, and at its end.
	running := func(m *vfs.Mem, do func(*notesLog), at func(step uint64)) {
		t.Helper()
		faults := vfs.NewFaults(m)
		step := uint64(0)
		faults.Add(func(c vfs.Call) error {
			if c.Op == vfs.OpWrite || c.Op == vfs.OpSyncData {
				step++
				at(step)
			}
			return nil
		})
		l, err := openNotes(faults, "/n", testStore)
		if err == nil {
			err = l.start()
		}
		if err != nil {
			t.Error(err)
			return
		}
		do(l)
		l.close()
		at(step + 1)
	}
	note := func(l *notesLog, e uint64) {
		if err := l.putJournal(&journalNote{Journal: jA, Fence: epoch(e)}).wait(context.Background()); err != nil {
			t.Error(err)
		}
	}
	id := func(i int) ident.JournalID { return ident.JournalID{0xff, byte(i >> 8), byte(i)} }
	answered, long, repeated := uint64(0), false, 0
	running(first, func(l *notesLog) {
		note(l, 1)
		answered, long = 1, true
		err := l.put(func(b []byte) []byte {
			for i := range many {
				b = (&journalNote{Journal: id(i), Fence: epoch(1)}).append(b)
			}
			return b
		}, func(m *noteImage) {
			for i := range many {
				m.journals[id(i)] = &journalNote{Journal: id(i), Fence: epoch(1)}
			}
		}).wait(context.Background())
		if err != nil {
			t.Error(err)
		}
		long = false
	}, func(step uint64) {
		if !long {
			return
		}
		for _, percent := range []int{0, 50, 100} {
			m := powerCut(first, percent, step)
			noted, all := answered, true
			running(m, func(l *notesLog) {
				l.mu.Lock()
				all = len(l.mu.image.journals) > many
				l.mu.Unlock()
				if !all {
					repeated++
				}
				for e := uint64(2); e < 6; e++ {
					note(l, e)
					noted = e
				}
			}, func(again uint64) {
				for _, percent := range []int{0, 50, 100} {
					after, err := openNotes(powerCut(m, percent, again), "/n", testStore)
					if err != nil {
						t.Errorf("cut at step %d, and at %d of the next start: %v", step, again, err)
						continue
					}
					n := after.mu.image.journals[jA]
					if n == nil || n.Fence.Number < noted || n.Fence.Number > noted+1 || !all && len(after.mu.image.journals) != 1 {
						t.Errorf("cut at step %d, and at %d of the next start: %+v and %d journals with %d answered", step, again, n, len(after.mu.image.journals), noted)
					}
					after.closeFiles()
				}
			})
		}
	})
	if repeated < 3 {
		t.Errorf("only %d of the compactions were made again", repeated)
	}
}
