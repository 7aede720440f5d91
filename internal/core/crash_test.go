package core

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func TestPowerCutKeepsWhatWasPromised(t *testing.T) {
	for seed := range uint64(60) {
		for _, percent := range []int{0, 50} {
			runPowerCut(t, seed, percent)
		}
	}
}

// runPowerCut does random work, remembers what was promised at each step, cuts the power and looks.
func runPowerCut(t *testing.T, seed uint64, percent int) {
	rng := rand.New(rand.NewPCG(seed, uint64(percent)))
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	var owners []*owner
	synced := map[ident.SegmentID]int{}
	sealed := map[ident.SegmentID]bool{}
	fences := map[ident.JournalID]uint64{}
	for range rng.IntN(60) {
		switch k := rng.IntN(10); {
		case k == 0 || len(owners) == 0:
			j := ident.JournalID{byte(rng.IntN(3)) + 1}
			e := max(1, fences[j])
			o := newOwner(t, segment(j, e, uint32(len(owners))))
			o.open(s)
			fences[j] = e
			owners = append(owners, o)
		case k == 1:
			j := owners[rng.IntN(len(owners))].seg.Journal
			fences[j]++
			fence(t, s, j, fences[j])
		default:
			o := owners[rng.IntN(len(owners))]
			if sealed[o.seg] {
				continue
			}
			o.epoch = epoch(fences[o.seg.Journal]) // whoever owns it now goes on with it
			switch {
			case k < 7:
				o.write(s, rng.IntN(5)+1, byte(rng.Uint32()))
			case k < 9 && len(o.ends) > 0:
				o.sync(s)
				synced[o.seg] = len(o.ends)
			case len(o.ends) > 0:
				o.seal(s)
				sealed[o.seg] = true
			}
		}
	}
	after := powerCut(m, percent, seed)
	s.Close()
	s = openStore(t, testOptions(after, boot2))
	defer s.Close()
	inv := inventory(t, s, ident.JournalID{})
	for _, o := range owners {
		r, ok := inv[o.seg]
		n := synced[o.seg]
		switch {
		case !ok:
			t.Fatalf("seed %d: replica %s is gone", seed, o.seg)
		case sealed[o.seg]:
			if r.State != wire.ReplicaSealed || r.Last != o.at || r.End != o.off || r.StableEnd != o.off {
				t.Fatalf("seed %d: sealed replica is %+v", seed, r)
			}
		case r.State != wire.ReplicaShort:
			t.Fatalf("seed %d: open replica is %+v, want short", seed, r)
		case n > 0 && (r.End < o.ends[n-1] || r.StableEnd < o.ends[n-1]):
			t.Fatalf("seed %d: %d records were synced to %d, there is %+v", seed, n, o.ends[n-1], r)
		}
		// Whatever is claimed is there, and is a prefix.
		if r.End > 0 {
			reply, err := s.ReadRaw(context.Background(), &wire.ReadRaw{Segment: o.seg, Len: r.End})
			if err != nil || !bytes.Equal(reply.Data, o.bytes[:r.End]) {
				t.Fatalf("seed %d: %s up to %d: %v", seed, o.seg, r.End, err)
			}
			reply.Release()
		}
	}
	for j, e := range fences {
		if e == 0 {
			continue
		}
		_, err := s.Fence(context.Background(), &wire.Fence{Journal: j, Epoch: epoch(e - 1)})
		wantCode(t, err, wire.CodeFenced)
	}
}

func TestKillKeepsEverythingAnswered(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	a, b := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jA, 1, 2))
	a.open(s)
	b.open(s)
	for i := range 20 {
		a.write(s, i%4+1, byte(i))
	}
	a.sync(s)
	a.write(s, 200, 7)
	s2 := openStore(t, testOptions(killed(m, s), boot1))
	inv := inventory(t, s2, jA)
	if r := inv[a.seg]; r.State != wire.ReplicaOpen || r.Last != a.at || r.End != a.off {
		t.Fatalf("after kill -9: %+v", r)
	}
	if r := inv[b.seg]; r.State != wire.ReplicaOpen || r.End != 0 || r.Last != (ident.Position{}) {
		t.Fatalf("empty one after kill -9: %+v", r)
	}
	a.write(s2, 1, 8)
	a.seal(s2)
	a.wantRecords(s2, len(a.ends))
}

func TestPowerCutBeforeSyncIsShort(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.sync(s)
	a.write(s, 1, 2)
	s2 := openStore(t, testOptions(powerCut(m, 0, 1), boot2))
	if r := inventory(t, s2, jA)[a.seg]; r.State != wire.ReplicaShort || r.End != a.ends[0] || r.StableEnd != a.ends[0] || r.Last != a.pos[0] {
		t.Fatalf("after the power cut: %+v", r)
	}
	// A process that starts once more in that boot finds it short still.
	s3 := openStore(t, testOptions(killed(m2(s2), s2), boot2))
	if r := inventory(t, s3, jA)[a.seg]; r.State != wire.ReplicaShort {
		t.Fatalf("after another start: %+v", r)
	}
	// Its owner copies what was lost and seals it: the end is known again.
	if _, err := appendAt(s3, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: a.ends[0], Data: [][]byte{a.bytes[a.ends[0]:]}}); err != nil {
		t.Fatal(err)
	}
	a.seal(s3)
	if r := inventory(t, s3, jA)[a.seg]; r.State != wire.ReplicaSealed || r.Last != a.at {
		t.Fatalf("sealed: %+v", r)
	}
}

func m2(s *Store) *vfs.Mem { return s.fs.(*vfs.Mem) }

// overwrite puts bytes into a file behind the store's back.
func overwrite(t *testing.T, m *vfs.Mem, s *Store, id ident.SegmentID, off int64, b []byte) {
	t.Helper()
	f, err := m.OpenReadWrite(s.replicaPath(id))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestBadRecordBeforeGoodOnesIsDamage(t *testing.T) {
	for _, c := range []struct {
		name string
		boot ident.BootID
		sync bool
		want wire.ReplicaState
	}{
		{"same boot", boot1, false, wire.ReplicaDamaged},
		{"same boot, synced", boot1, true, wire.ReplicaDamaged},
		{"power cut, behind what was stable", boot2, false, wire.ReplicaShort},
		{"power cut, in front of what was noted stable", boot2, true, wire.ReplicaDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := vfs.NewMem(0)
			s := openStore(t, testOptions(m, boot1))
			a := newOwner(t, segment(jA, 1, 1))
			a.open(s)
			for i := range 6 {
				a.write(s, 2, byte(i))
			}
			if c.sync {
				a.sync(s)
				s.noteTold()
				s.notes.putStore(storeNote{}).wait(context.Background())
			}
			overwrite(t, m, s, a.seg, int64(a.ends[2])+200, []byte{0xff})
			s2 := openStore(t, testOptions(killed(m, s), c.boot))
			r := inventory(t, s2, jA)[a.seg]
			if r.State != c.want || r.Last != a.pos[2] {
				t.Fatalf("%+v, want state %d", r, c.want)
			}
			if c.want == wire.ReplicaDamaged {
				_, err := appendAt(s2, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: r.End, Data: [][]byte{a.bytes[r.End:]}})
				wantCode(t, err, wire.CodeCorrupt)
				_, err = s2.Seal(context.Background(), a.sealMessage(6))
				wantCode(t, err, wire.CodeCorrupt)
				s2.Close()
				s2 = openStore(t, testOptions(m, c.boot))
				if r := inventory(t, s2, jA)[a.seg]; r.State != wire.ReplicaDamaged {
					t.Fatalf("damage forgotten: %+v", r)
				}
			}
		})
	}
}

func TestReadFindsCorruption(t *testing.T) {
	m := vfs.NewMem(0)
	opts := testOptions(m, boot1)
	var found []uint32
	opts.OnCorrupt = func(_ ident.SegmentID, offset uint32, _ error) { found = append(found, offset) }
	s := openStore(t, opts)
	a, b := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jB, 1, 1))
	a.open(s)
	b.open(s)
	for i := range 4 {
		a.write(s, 4, byte(i))
		b.write(s, 4, byte(i))
	}
	bodyAt := int64(a.ends[0]) + int64(journal.BodyOffset(4*4096))
	overwrite(t, m, s, a.seg, bodyAt+2*4096+5, []byte{0x55})
	if _, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: a.ends[0], Blocks: 2}); err != nil {
		t.Fatalf("blocks beside the bad one: %v", err)
	}
	_, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: a.ends[0], Blocks: 4})
	wantCode(t, err, wire.CodeCorrupt)
	// The disk put another journal's bytes here: valid in themselves.
	overwrite(t, m, s, a.seg, int64(a.ends[1]), b.bytes[a.ends[1]:a.ends[2]])
	_, err = read(s, jA, wire.ReadPiece{Segment: a.seg, Record: a.ends[1], Blocks: 1})
	wantCode(t, err, wire.CodeCorrupt)
	if len(found) != 2 || found[0] != a.ends[0] || found[1] != a.ends[1] {
		t.Fatalf("reported %v", found)
	}
	if st, _ := s.Status(context.Background(), &wire.StoreStatus{}); st.Corrupt != 2 {
		t.Fatalf("status counts %d", st.Corrupt)
	}
	// Asked wrongly is not corrupt.
	_, err = read(s, jB, wire.ReadPiece{Segment: a.seg, Record: 4096, Blocks: 1})
	wantCode(t, err, wire.CodeBadRequest)
	_, err = read(s, jA, wire.ReadPiece{Segment: a.seg, Record: 4096, First: 3, Blocks: 2})
	wantCode(t, err, wire.CodeBadRequest)
	_, err = read(s, jA, wire.ReadPiece{Segment: a.seg, Record: a.off, Blocks: 1})
	wantCode(t, err, wire.CodeAbsent)
}

// A segment was written over the file of an older one of its journal, and the disk lost a write: at its place is a record of the older segment,
// whole and of the same journal and epoch. Or the disk put a write there that belongs to a later segment.
func TestReadFindsALostWrite(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	older := newOwner(t, segment(jA, 1, 1)).filled(s, 4)
	o := older.after()
	o.open(s)
	for i := range 4 {
		o.write(s, 4, byte(i))
	}
	later := o.after()
	for range 4 {
		later.make(4, 7)
	}
	found := func(put *owner) {
		t.Helper()
		piece := wire.ReadPiece{Segment: o.seg, Record: o.ends[0], Blocks: 1}
		if _, err := read(s, jA, piece); err != nil {
			t.Fatalf("what was written: %v", err)
		}
		overwrite(t, m, s, o.seg, int64(o.ends[0]), put.bytes[put.ends[0]:put.ends[1]])
		_, err := read(s, jA, piece)
		wantCode(t, err, wire.CodeCorrupt)
		overwrite(t, m, s, o.seg, int64(o.ends[0]), o.bytes[o.ends[0]:o.ends[1]])
	}
	found(older)
	o.seal(s)
	found(later)
}

func TestFullDiskStillFencesAndSeals(t *testing.T) {
	m := vfs.NewMem(0)
	opts := testOptions(m, boot1)
	opts.ReserveBytes = 2 << 20
	s := openStore(t, opts)
	u, _ := m.Usage("/")
	m.SetCapacity(int64(u.Total-u.Free) + 5<<20)
	s.journal(jA).appended.Store(spaceWholeFrom) // else they take space as they grow
	var open []*owner
	var err error
	for i := range uint32(10) {
		o := newOwner(t, segment(jA, 1, i))
		if _, err = s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: o.epoch, Segment: o.seg, Capacity: testCapacity}); err != nil {
			break
		}
		open = append(open, o)
	}
	wantCode(t, err, wire.CodeNoSpace)
	if len(open) != 3 {
		t.Fatalf("%d segments of 1 MiB opened in 5 MiB with 2 in reserve", len(open))
	}
	if names, _ := m.List("/store/segments/0a"); len(names) != 3 {
		t.Fatalf("left behind: %v", names)
	}
	// Now really full: what is open can be written to its end and sealed, and every fence rises.
	u, _ = m.Usage("/")
	m.SetCapacity(int64(u.Total - u.Free))
	for _, o := range open {
		for range 30 {
			o.write(s, 8, 1)
		}
		o.seal(s)
	}
	m.SetCapacity(1)
	for e := uint64(2); e < 300; e++ { // more notes than a file takes
		for j := range byte(4) {
			fence(t, s, ident.JournalID{j + 1}, e)
		}
	}
	s2 := openStore(t, testOptions(powerCut(m, 0, 1), boot2))
	for j := range byte(4) {
		_, err := s2.Fence(context.Background(), &wire.Fence{Journal: ident.JournalID{j + 1}, Epoch: epoch(298)})
		wantCode(t, err, wire.CodeFenced)
	}
	for _, o := range open {
		o.wantRecords(s2, len(o.ends))
	}
}

func TestFailedSyncEndsTheStoreUntilReboot(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	opts := testOptions(faults, boot1)
	s := openStore(t, opts)
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	a.sync(s)
	a.write(s, 1, 2)
	remove := faults.Add(vfs.FailOn(vfs.OpSyncData, a.seg.String(), syscall.EIO))
	req := &wire.Sync{Epoch: a.epoch, Journal: jA, Segments: []ident.SegmentID{a.seg}}
	_, err := s.Sync(context.Background(), req)
	wantCode(t, err, wire.CodeIO)
	remove()
	_, err = s.Sync(context.Background(), req) // never retried
	wantCode(t, err, wire.CodeIO)
	check := func(s *Store, why string) {
		t.Helper()
		data := a.bytes[a.ends[0]:]
		_, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: a.off, Data: [][]byte{data}})
		wantCode(t, err, wire.CodeIO)
		_, err = s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: a.epoch, Segment: segment(jA, 1, 2), Capacity: testCapacity})
		wantCode(t, err, wire.CodeIO)
		_, err = s.Seal(context.Background(), a.sealMessage(2))
		wantCode(t, err, wire.CodeIO)
		if data, err := read(s, jA, wire.ReadPiece{Segment: a.seg, Record: 4096, Blocks: 1}); err != nil || data[0] != 1 {
			t.Fatalf("%s: read: %v", why, err)
		}
		if st, _ := s.Status(context.Background(), &wire.StoreStatus{}); st.Failed == "" {
			t.Fatalf("%s: the status hides it", why)
		}
		if r := fence(t, s, jA, 1).Replicas[0]; r.State != wire.ReplicaShort || r.StableEnd != a.ends[0] {
			t.Fatalf("%s: %+v, want short: what was not stable may be gone", why, r)
		}
	}
	check(s, "at once")
	s.Close()
	s = openStore(t, opts)
	check(s, "restarted")
	s.Close()
	opts.Boot = boot2
	s = openStore(t, opts)
	if s.Failed() != "" {
		t.Fatalf("failed after a reboot: %s", s.Failed())
	}
	if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaShort {
		t.Fatalf("after the reboot %+v", r)
	}
}

func TestWriteErrors(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	a.write(s, 1, 1)
	at := a.off
	data := a.make(2, 2)
	remove := faults.Add(vfs.FailOn(vfs.OpWrite, a.seg.String(), syscall.ENOSPC))
	_, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}})
	wantCode(t, err, wire.CodeNoSpace)
	remove()
	if s.Failed() != "" {
		t.Fatalf("a full disk is not a failed one: %s", s.Failed())
	}
	if _, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}}); err != nil {
		t.Fatalf("after there is space: %v", err)
	}
	remove = faults.Add(vfs.FailOn(vfs.OpWrite, a.seg.String(), syscall.EIO))
	at = a.off
	data = a.make(2, 3)
	_, err = appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}})
	wantCode(t, err, wire.CodeIO)
	remove()
	_, err = appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Offset: at, Data: [][]byte{data}})
	wantCode(t, err, wire.CodeIO)
	a.wantRecords(s, 2)
}

func TestHangingSyncHoldsUpOnlyItself(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	a, b := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jB, 1, 1))
	a.open(s)
	b.open(s)
	a.write(s, 1, 1)
	b.write(s, 1, 1)
	release := make(chan struct{})
	faults.Add(vfs.HangOn(vfs.OpSyncData, a.seg.String(), release))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := s.Sync(ctx, &wire.Sync{Epoch: a.epoch, Journal: jA, Segments: []ident.SegmentID{a.seg}})
	wantCode(t, err, wire.CodeUnreached)
	b.write(s, 1, 2)
	b.sync(s)
	a.write(s, 1, 2) // appends go on too
	close(release)
	a.sync(s)
	b.seal(s)
}

func TestNotesFailureStopsFencing(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	fence(t, s, jA, 1)
	faults.Add(vfs.FailOn(vfs.OpSyncData, "notes.*", errors.New("device is gone")))
	_, err := s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: epoch(2)})
	wantCode(t, err, wire.CodeIO)
	_, err = s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: epoch(2)})
	wantCode(t, err, wire.CodeIO)
	_, err = s.Fence(context.Background(), &wire.Fence{Journal: jA, Epoch: epoch(1)})
	wantCode(t, err, wire.CodeFenced) // obeyed all the same
}

// A seal cuts a tail off that was noted as stable, and the process is killed between any two of its steps. The
// replica is then what is left, sealed or still open, and not damaged: nobody else may have its records.
func TestKilledWhileAStableTailIsCut(t *testing.T) {
	for _, at := range []vfs.Op{vfs.OpTruncate, vfs.OpPreallocate, vfs.OpWrite, vfs.OpSyncData} {
		m := vfs.NewMem(0)
		faults := vfs.NewFaults(m)
		s := openStore(t, testOptions(faults, boot1))
		a := newOwner(t, segment(jA, 1, 1))
		a.open(s)
		for i := range byte(3) {
			a.write(s, 1, i+1)
		}
		a.sync(s)
		s.noteTold()
		fence(t, s, jB, 1) // its note comes behind, and is waited for
		release := make(chan struct{})
		hung := make(chan struct{}, 1)
		faults.Add(func(c vfs.Call) error {
			if c.Op == at && strings.Contains(c.Path, a.seg.String()) {
				select {
				case hung <- struct{}{}:
				default:
				}
				<-release
			}
			return nil
		})
		sealed := make(chan error, 1)
		go func() {
			_, err := s.Seal(context.Background(), a.sealMessage(2))
			sealed <- err
		}()
		<-hung
		s2 := openStore(t, testOptions(killed(m, s), boot1))
		r := inventory(t, s2, jA)[a.seg]
		if r.State != wire.ReplicaOpen || r.End != a.ends[1] && r.End != a.ends[2] {
			t.Errorf("killed at %v: %+v", at, r)
		}
		if _, err := s2.Seal(context.Background(), a.sealMessage(2)); err != nil {
			t.Errorf("killed at %v: seal: %v", at, err)
		}
		a.wantRecords(s2, 2)
		s2.Close()
		close(release)
		<-sealed
	}
}

// TestCopyIsNotStableByAProcessThatStarts: a copy from before the boot has been shipped more, and the process, not the host, starts anew. What
// came last is in memory only.
func TestCopyIsNotStableByAProcessThatStarts(t *testing.T) {
	m := vfs.NewMem(0)
	s := openStore(t, testOptions(m, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	if _, err := s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: a.epoch, Segment: a.seg, Capacity: testCapacity, Copy: true}); err != nil {
		t.Fatal(err)
	}
	a.write(s, 1, 1)
	a.sync(s)
	m = powerCut(m, 0, 1)
	s = openStore(t, testOptions(m, boot2))
	if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaCopy || r.StableEnd != a.off {
		t.Fatalf("after the boot: %+v", r)
	}
	a.write(s, 1, 2)
	s = openStore(t, testOptions(killed(m, s), boot2))
	if r := inventory(t, s, jA)[a.seg]; r.State != wire.ReplicaCopy || r.End != a.off || r.StableEnd > a.ends[0] {
		t.Fatalf("after the process: %+v, of which %d are stable", r, a.ends[0])
	}
	a.sync(s)
	s = openStore(t, testOptions(powerCut(m, 0, 2), ident.BootID{3}))
	if r := inventory(t, s, jA)[a.seg]; r.End != a.off || r.StableEnd != a.off {
		t.Fatalf("what was synced is lost: %+v, want %d", r, a.off)
	}
}

// A seal cuts what lies behind a record, has no room for the index and gives up; other records come to the same place. An fdatasync that was under
// way from before says nothing of those.
func TestSyncFromBeforeACutThatCameToNothing(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	s := openStore(t, testOptions(faults, boot1))
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	for i := range 3 {
		a.write(s, 1, byte(i))
	}
	begun, release := make(chan struct{}), make(chan struct{})
	remove := faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpSyncData && strings.Contains(c.Path, segmentsName) {
			close(begun)
			<-release
		}
		return nil
	})
	synced := make(chan wire.SyncReply)
	go func() {
		r, _ := s.Sync(bg, &wire.Sync{Epoch: a.epoch, Journal: jA, Segments: a.segs()})
		synced <- r
	}()
	<-begun
	full := faults.Add(vfs.FailOn(vfs.OpWrite, "*-00000001", syscall.ENOSPC))
	_, err := s.Seal(bg, a.sealMessage(1))
	full()
	a.off, a.at, a.ends, a.pos, a.bytes = a.ends[0], a.pos[0], a.ends[:1], a.pos[:1], a.bytes[:a.ends[0]]
	for i := range 3 {
		a.write(s, 1, byte(10+i))
	}
	remove()
	close(release)
	wantCode(t, err, wire.CodeNoSpace)
	if r := <-synced; len(r.Synced) != 1 || r.Synced[0].StableEnd > a.ends[0] {
		t.Errorf("said to be stable: %+v, of which nothing behind %d was synced", r.Synced, a.ends[0])
	}
	a.sync(s)
	s = openStore(t, testOptions(powerCut(m, 0, 1), boot2))
	a.wantRecords(s, 4)
}
