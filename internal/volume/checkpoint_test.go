package volume

import (
	"bytes"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// rig is a map with a disk for its checkpoints.
type rig struct {
	t *testing.T
	m *Map
	s Slot
	w *cpWriter
}

func newRig(t *testing.T) *rig {
	m, s := newTestMap(t, 1<<30)
	return &rig{t, m, s, &cpWriter{d: newDisk(), max: 8 << 20}}
}

func (r *rig) at() ident.Position { return ident.Position{Seq: r.m.Applied()} }

func (r *rig) begin() *Checkpoint {
	r.t.Helper()
	cp, err := r.m.BeginCheckpoint(r.at())
	if err != nil {
		r.t.Fatal(err)
	}
	return cp
}

func (r *rig) finish(cp *Checkpoint) journal.CheckpointPoint {
	r.t.Helper()
	point, err := r.w.finish(r.m, cp, 100<<10)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := Complete(testJournal, point, r.w.d); err != nil {
		r.t.Fatal(err)
	}
	return point
}

// step lets the checkpoint write its first parts and places them.
func (r *rig) step(cp *Checkpoint) []Part {
	r.t.Helper()
	s, err := cp.Next(1)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.w.write(r.m, cp, s.Parts); err != nil {
		r.t.Fatal(err)
	}
	return s.Parts
}

func (r *rig) record(block uint64) uint32 {
	r.t.Helper()
	for {
		p, need := r.m.Lookup(block, 1, nil)
		if need == NoLeaf {
			return p[0].Record
		}
		if err := r.m.LoadLeaf(need, r.w.d); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) load(point journal.CheckpointPoint) *Map {
	r.t.Helper()
	m, err := Load(testJournal, point, r.w.d)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// A leaf that the running checkpoint has written doesn't leave memory before the checkpoint is finished: its
// old part says something else.
func TestWrittenLeafStaysUntilTheCheckpointIsFinished(t *testing.T) {
	r := newRig(t)
	apply(t, r.m, write(7, 1, 4096), r.s)
	r.finish(r.begin())
	apply(t, r.m, write(7, 1, 8192), r.s)
	cp := r.begin()
	if parts := r.step(cp); len(parts) != 1 || parts[0].Type != PartLeaf {
		t.Fatalf("parts %+v", parts)
	}
	r.m.Evict(0)
	r.m.Evict(0)
	if got := r.record(7); got != 8192 {
		t.Errorf("block 7 is in the record at %d, want 8192", got)
	}
	r.m.AbandonCheckpoint(cp)
	r.m.Evict(0)
	r.m.Evict(0)
	if got := r.record(7); got != 8192 {
		t.Errorf("after the checkpoint was given up: block 7 is in the record at %d, want 8192", got)
	}
	r.finish(r.begin())
	r.m.Evict(0)
	r.m.Evict(0)
	if r.m.Leaves() != 0 {
		t.Errorf("%d leaves in memory after eviction", r.m.Leaves())
	}
	if got := r.record(7); got != 8192 {
		t.Errorf("loaded again: block 7 is in the record at %d, want 8192", got)
	}
}

// What happens to the segment table while a checkpoint runs is not in the checkpoint, nor what the table knew
// beyond its position.
func TestCheckpointHasTheTableOfItsBeginning(t *testing.T) {
	r := newRig(t)
	apply(t, r.m, write(7, 1, 4096), r.s)
	if err := r.m.Extend(r.s, ident.Position{Seq: 50}, 1<<20); err != nil {
		t.Fatal(err)
	}
	old, err := r.m.AddSegment(Segment{ID: historyID(2)})
	if err != nil {
		t.Fatal(err)
	}
	cp := r.begin()
	if err := r.m.Remove(old); err != nil {
		t.Fatal(err)
	}
	if s, err := r.m.AddSegment(Segment{ID: historyID(3)}); err != nil || s == old {
		t.Fatalf("slot %d, %v: the checkpoint still knows slot %d", s, err, old)
	}
	if err := r.m.Seal(r.s, ident.Position{Seq: 60}, 2<<20); err != nil {
		t.Fatal(err)
	}
	m := r.load(r.finish(cp))
	seg, _ := m.Segment(r.s)
	if seg.Sealed || seg.Last != cp.At() || seg.End != 0 || seg.Live != 1 {
		t.Errorf("segment 1 in the checkpoint: %+v", seg)
	}
	if _, ok := m.Slot(historyID(2)); !ok {
		t.Error("the segment that was removed later is not in the checkpoint")
	}
	if _, ok := m.Slot(historyID(3)); ok {
		t.Error("the segment that was added later is in the checkpoint")
	}
	if s, err := r.m.AddSegment(Segment{ID: historyID(4)}); err != nil || s != old {
		t.Errorf("slot %d, %v; want %d, free again", s, err, old)
	}
	if m := r.load(r.finish(r.begin())); m.table.slots[historyID(3)] != r.m.table.slots[historyID(3)] {
		t.Error("the next checkpoint doesn't have the new segment")
	}
}

// A chunk of the table that nothing touched before the checkpoint began is written anew when a pending leaf,
// completed for the checkpoint, takes live blocks from it.
func TestPendingLeafChangesAnotherChunk(t *testing.T) {
	r := newRig(t)
	var last Slot
	for i := 2; i <= chunkSlots+10; i++ {
		s, err := r.m.AddSegment(Segment{ID: historyID(i)})
		if err != nil {
			t.Fatal(err)
		}
		last = s
	}
	apply(t, r.m, write(0, 100, 4096), r.s)
	r.finish(r.begin())
	r.finish(r.begin())
	r.m.Evict(0)
	r.m.Evict(0)
	apply(t, r.m, write(10, 5, 4096), last)
	if r.m.PendingLen() != 1 || r.m.Pending(0) != 0 || r.m.Pending(1) != NoLeaf {
		t.Fatalf("%d leaves pending, first %d", r.m.PendingLen(), r.m.Pending(0))
	}
	for range 2 { // once with the table's change abandoned
		cp := r.begin()
		if r.m.tally.dirty[0] {
			t.Fatal("the first chunk of the table is dirty")
		}
		s, err := cp.Next(1)
		if err != nil || s.Need != 0 && r.m.PendingLen() > 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		if err := r.w.write(r.m, cp, s.Parts); err != nil {
			t.Fatal(err)
		}
		if r.m.PendingLen() > 0 {
			if err := r.m.LoadLeaf(0, r.w.d); err != nil {
				t.Fatal(err)
			}
			r.m.AbandonCheckpoint(cp)
			continue
		}
		if seg, _ := r.load(r.finish(cp)).Segment(r.s); seg.Live != 95 {
			t.Errorf("%d live blocks in the checkpoint, want 95", seg.Live)
		}
	}
}

// A segment is dead only once a finished checkpoint neither maps to it nor has it to replay.
func TestDeadSegments(t *testing.T) {
	r := newRig(t)
	apply(t, r.m, write(0, 10, 4096), r.s)
	if err := r.m.Seal(r.s, r.at(), 1<<20); err != nil {
		t.Fatal(err)
	}
	second, _ := r.m.AddSegment(Segment{ID: historyID(2), Before: r.at()})
	cp := r.begin()
	apply(t, r.m, trim(0, 10), second)
	apply(t, r.m, write(0, 1, 4096), second)
	apply(t, r.m, trim(0, 10), second)
	r.finish(cp)
	if dead := r.m.DeadSegments(); len(dead) != 0 {
		t.Fatalf("%+v is dead, but the checkpoint needs it", dead)
	}
	if n := r.m.DyingBytes(); n != 1<<20 {
		t.Fatalf("%d bytes go with the next checkpoint, want those of the first segment", n)
	}
	cp = r.begin()
	third, _ := r.m.AddSegment(Segment{ID: historyID(3), Before: r.at()})
	apply(t, r.m, trim(0, 10), third)
	if err := r.m.Seal(third, r.at(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Seal(second, cp.At(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := r.w.seal(r.m); err != nil {
		t.Fatal(err)
	}
	point := r.finish(cp)
	if n := r.m.DyingBytes(); n != 1<<20 {
		t.Fatalf("%d bytes go with the next checkpoint, want those of the third segment", n)
	}
	dead := r.m.DeadSegments()
	// The first checkpoint's parts are all superseded; the third segment is still to be replayed.
	if len(dead) != 3 || dead[0].Slot != r.s || dead[1].Slot != second || !dead[2].Segment.IsCheckpoint() || dead[0].At != point.At {
		t.Fatalf("dead: %+v", dead)
	}
	// What was sealed after the checkpoint began is still open in it: found dead later, never too early.
	if again := r.load(point).DeadSegments(); len(again) != 1 || again[0].Slot != r.s {
		t.Errorf("loaded again, dead: %+v", again)
	}
}

// Checkpoints that rewrite the same leaves pile up garbage until one writes everything anew.
func TestGarbageLeadsToAFullCheckpoint(t *testing.T) {
	r := newRig(t)
	r.w.max = 1 << 20
	apply(t, r.m, write(1<<20, 1, 4096), r.s) // one part that stays alive in the first segment
	fill(t, r.m, r.s, 64)
	full := false
	var most uint64
	for i := range 400 {
		for leaf := range uint64(64) {
			apply(t, r.m, write(leaf*leafBlocks, 1, 4096+uint32(i)*8), r.s)
		}
		// An older part stays alive in nearly every segment.
		apply(t, r.m, write(1<<21+uint64(i)*leafBlocks, 1, 4096), r.s)
		cp := r.begin()
		full = cp.Full()
		r.finish(cp)
		live, garbage := r.m.Garbage()
		most = max(most, garbage)
		if garbage > 2*live+garbageSlack+4<<20 {
			t.Fatalf("%d bytes of garbage with %d alive", garbage, live)
		}
		for _, d := range r.m.DeadSegments() {
			if d.Segment.IsCheckpoint() {
				delete(r.w.d.segments, d.Segment)
				if err := r.m.Remove(d.Slot); err != nil {
					t.Fatal(err)
				}
			}
		}
		if full {
			break
		}
	}
	if !full || most < garbageSlack {
		t.Errorf("no full checkpoint with %d bytes of garbage", most)
	}
}

// A checkpoint that writes everything anew takes one absent leaf after the other into memory; they need not stay there. Blocks are
// written meanwhile, in a leaf that was written out and has left memory and in one whose turn is still to come.
func TestAFullCheckpointKeepsToTheBudget(t *testing.T) {
	for _, abandon := range []bool{false, true} {
		r := newRig(t)
		const leaves = 32
		fill(t, r.m, r.s, leaves)
		was := r.record(3)
		first := r.finish(r.begin())
		r.m.Evict(0)
		r.m.Evict(0)
		cp, err := r.m.BeginFullCheckpoint(r.at())
		if err != nil {
			t.Fatal(err)
		}
		most := 0
		for n := 0; ; n++ {
			s, err := cp.Next(1)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.w.write(r.m, cp, s.Parts); err != nil {
				t.Fatal(err)
			}
			if s.Need != NoLeaf {
				if err := r.m.LoadLeaf(s.Need, r.w.d); err != nil {
					t.Fatal(err)
				}
			}
			most = max(most, r.m.Leaves())
			r.m.Evict(0)
			r.m.Evict(0)
			if n == leaves {
				for _, block := range []uint64{3, (leaves - 1) * leafBlocks} {
					apply(t, r.m, write(block, 1, 40<<20), r.s)
				}
			}
			if s.Done || abandon && cp.stage == stagePages {
				break
			}
		}
		if most > 4 {
			t.Errorf("%d leaves of %d were in memory at a time", most, leaves)
		}
		if abandon {
			r.m.AbandonCheckpoint(cp)
		} else {
			point, err := r.m.FinishCheckpoint(cp)
			if err != nil {
				t.Fatal(err)
			}
			if err := Complete(testJournal, point, r.w.d); err != nil {
				t.Fatal(err)
			}
			m := r.m
			if r.m = r.load(point); r.record(3) != was {
				t.Error("the checkpoint has what was written after it began")
			}
			r.m = m
		}
		if err := Complete(testJournal, first, r.w.d); err != nil {
			t.Fatal(err)
		}
		r.m.Evict(0)
		r.m.Evict(0)
		for range 2 {
			if a, b, c := r.record(3), r.record((leaves-1)*leafBlocks), r.record(4); a != 40<<20 || b != 40<<20 || c == 40<<20 {
				t.Errorf("blocks lie in the records at %d, %d and %d", a, b, c)
			}
			if mapped := r.m.Mapped(); mapped != leaves*leafBlocks {
				t.Errorf("%d blocks mapped, want %d", mapped, leaves*leafBlocks)
			}
			r.finish(r.begin())
			r.m.Evict(0)
			r.m.Evict(0)
		}
	}
}

func TestStepsAreBounded(t *testing.T) {
	r := newRig(t)
	fill(t, r.m, r.s, 64)
	cp := r.begin()
	for {
		s, err := cp.Next(50 << 10)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, p := range s.Parts {
			sum += len(p.Body)
		}
		if sum > 50<<10+9000 {
			t.Errorf("a step of %d bytes", sum)
		}
		if err := r.w.write(r.m, cp, s.Parts); err != nil {
			t.Fatal(err)
		}
		if s.Done {
			break
		}
	}
}

func TestMisuseOfACheckpoint(t *testing.T) {
	r := newRig(t)
	apply(t, r.m, write(0, 10, 4096), r.s)
	if _, err := r.m.BeginCheckpoint(ident.Position{Seq: 7}); err == nil {
		t.Error("began at a position that the map isn't at")
	}
	cp := r.begin()
	if _, err := r.m.BeginCheckpoint(r.at()); err == nil {
		t.Error("two at a time")
	}
	if _, err := r.m.FinishCheckpoint(cp); err == nil {
		t.Error("finished before it was complete")
	}
	s, err := cp.Next(1)
	if err != nil {
		t.Fatal(err)
	}
	if waiting, err := cp.Next(1); err != nil || len(waiting.Parts) != 0 || waiting.Done || waiting.Need != NoLeaf {
		t.Errorf("with a leaf that has no place yet: %+v, %v", waiting, err)
	}
	slot, _ := r.m.AddSegment(Segment{ID: ident.SegmentID{Journal: testJournal, Number: ident.CheckpointBit}})
	for name, err := range map[string]error{
		"history":   cp.Placed(s.Parts[0].Number, r.s, 4096, 1),
		"unaligned": cp.Placed(s.Parts[0].Number, slot, 4097, 1),
		"unknown":   cp.Placed(99, slot, 4096, 1),
		"free slot": cp.Placed(s.Parts[0].Number, 99, 4096, 1),
	} {
		if err == nil {
			t.Errorf("%s: placed", name)
		}
	}
	r.m.AbandonCheckpoint(cp)
	if _, err := cp.Next(1); err == nil {
		t.Error("given up, it goes on")
	}
	if err := cp.Placed(s.Parts[0].Number, slot, 4096, 1); err == nil {
		t.Error("given up, a part was placed")
	}
	if err := r.m.SetState(1, make([]byte, journal.RecordBodyGoal+1)); err == nil {
		t.Error("a state beyond the bound")
	}
}

// A part that is missing, changed or another one is noticed, whichever it is.
func TestCompleteNoticesEveryBadPart(t *testing.T) {
	r := newRig(t)
	for i := range uint64(5) {
		apply(t, r.m, write(i*leafBlocks, 10, 4096), r.s)
	}
	_ = r.m.Requests().Add(journal.RequestID{Forwarder: 1, Number: 2}, 3, 4)
	_ = r.m.SetState(9, []byte("state"))
	first := r.finish(r.begin())
	for i := range uint64(5) {
		apply(t, r.m, write(i*leafBlocks, 10, 8192), r.s)
	}
	if err := r.w.seal(r.m); err != nil {
		t.Fatal(err)
	}
	point := r.finish(r.begin())
	wrong := first
	wrong.At = point.At
	if err := Complete(testJournal, wrong, r.w.d); err == nil {
		t.Error("the root of an older checkpoint was taken")
	}
	if err := Complete(ident.JournalID{9}, point, r.w.d); err == nil {
		t.Error("the checkpoint of another journal was taken")
	}
	for id, data := range r.w.d.segments {
		good := bytes.Clone(data)
		for at := journal.SegmentHeaderSize; at < len(data); {
			var rec journal.Record
			if err := rec.Decode(good[at:]); err != nil {
				t.Fatal(err)
			}
			size := journal.RecordSize(rec.StoredLen)
			needed := id == point.Segment || PartType(rec.Block>>partIDBits) == PartRequests || PartType(rec.Block>>partIDBits) == PartState
			data[at+size-1-int(-rec.StoredLen&7)] ^= 1
			if err := Complete(testJournal, point, r.w.d); (err != nil) != needed {
				t.Errorf("%s changed: %v", PartType(rec.Block>>partIDBits), err)
			}
			copy(data, good)
			// Another valid record in its place: the same part with another body.
			other := Part{Type: PartType(rec.Block >> partIDBits), ID: rec.Block & (1<<partIDBits - 1), Body: make([]byte, rec.StoredLen)}
			swapped, _ := other.Append(nil, testJournal, ident.Epoch{}, ident.Position{})
			copy(data[at:], swapped)
			if err := Complete(testJournal, point, r.w.d); (err != nil) != needed {
				t.Errorf("%s replaced: %v", PartType(rec.Block>>partIDBits), err)
			}
			copy(data, good)
			at += size
		}
	}
	if err := Complete(testJournal, point, r.w.d); err != nil {
		t.Errorf("put right again: %v", err)
	}
}

// Replay after a load needs no leaf from disk, even for blocks that were mapped before.
func TestReplayReadsNoLeaves(t *testing.T) {
	r := newRig(t)
	fill(t, r.m, r.s, 16)
	point := r.finish(r.begin())
	m := r.load(point)
	reads := r.w.d.reads
	for i := range uint64(16) {
		apply(t, m, write(i*leafBlocks+5, 10, 8192), r.s)
	}
	if r.w.d.reads != reads {
		t.Error("Apply read parts")
	}
	if p, need := m.Lookup(7, 1, nil); need != NoLeaf || p[0].Record != 8192 {
		t.Errorf("what was replayed isn't there: %+v, need %d", p, need)
	}
	if _, need := m.Lookup(4, 2, nil); need != 0 {
		t.Errorf("need leaf %d, want 0", need)
	}
	if mapped, run, need := m.Provisioned(5, 100); !mapped || run != 10 || need != NoLeaf {
		t.Errorf("Provisioned: %t, %d, need %d", mapped, run, need)
	}
	if _, _, need := m.Provisioned(4, 100); need != 0 {
		t.Errorf("Provisioned needs leaf %d, want 0", need)
	}
}

func BenchmarkCheckpoint(b *testing.B) {
	m, s := newTestMap(b, 1<<30)
	fill(b, m, s, 256)
	w := &cpWriter{d: newDisk(), max: 32 << 20}
	b.SetBytes(256 * leafBlocks * 8)
	for b.Loop() {
		for leaf := range uint64(256) {
			apply(b, m, write(leaf*leafBlocks, 1, 8192), s)
		}
		cp, err := m.BeginCheckpoint(ident.Position{Seq: m.Applied()})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.finish(m, cp, 256<<10); err != nil {
			b.Fatal(err)
		}
		clear(w.d.segments[w.id][:journal.SegmentHeaderSize])
		for id := range w.d.segments {
			if id != w.id {
				delete(w.d.segments, id)
			}
		}
	}
}

// A chunk of the table that becomes longer while a checkpoint is under way stays as it was for that one.
func TestTheTableGrowsUnderACheckpoint(t *testing.T) {
	r := newRig(t)
	add := func(from, to int) {
		for i := from; i < to; i++ {
			if _, err := r.m.AddSegment(Segment{ID: historyID(i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(2, 10)
	if n := len(r.m.table.chunks[0]); n != chunkFirst {
		t.Errorf("a table of few segments has room for %d", n)
	}
	cp := r.begin()
	was := len(cp.segments(0))
	slot := r.m.table.slots[historyID(3)]
	r.m.edit(slot).End = 4096
	add(10, chunkFirst+20)
	r.m.edit(slot).End = 8192
	if n := len(cp.segments(0)); n != was {
		t.Errorf("the checkpoint has %d segments, not %d", n, was)
	}
	if end := cp.chunks[0][slot].End; end != 0 {
		t.Errorf("in the checkpoint a segment ends at %d", end)
	}
	r.finish(cp)
	m := r.load(r.finish(r.begin()))
	for i := 2; i < chunkFirst+20; i++ {
		if s, ok := m.Slot(historyID(i)); !ok || m.table.at(s).ID != historyID(i) {
			t.Errorf("segment %d is not in the next one", i)
		}
	}
	if end := m.table.at(m.table.slots[historyID(3)]).End; end != 8192 {
		t.Errorf("the segment ends at %d", end)
	}
}
