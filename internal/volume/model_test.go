package volume

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// disk keeps checkpoint segments in memory, as encoded records.
type disk struct {
	segments map[ident.SegmentID][]byte
	reads    int
}

func newDisk() *disk { return &disk{segments: map[ident.SegmentID][]byte{}} }

func (d *disk) ReadPart(id ident.SegmentID, offset uint32, _ uint64) (*journal.Record, []byte, error) {
	d.reads++
	data, ok := d.segments[id]
	if !ok || int(offset) >= len(data) {
		return nil, nil, errors.New("not on disk")
	}
	var r journal.Record
	if err := r.Decode(data[offset:]); err != nil {
		return nil, nil, err
	}
	rec := data[offset:][:journal.RecordSize(r.StoredLen)]
	if err := r.VerifyBody(rec); err != nil {
		return nil, nil, err
	}
	return &r, rec[journal.BodyOffset(r.StoredLen):][:r.StoredLen], nil
}

// cpWriter appends parts to checkpoint segments of at most max bytes.
type cpWriter struct {
	d      *disk
	max    int
	number uint32
	id     ident.SegmentID
	slot   Slot
	at     ident.Position
	opened bool
}

func (w *cpWriter) write(m *Map, cp *Checkpoint, parts []Part) error {
	for _, p := range parts {
		if w.opened && len(w.d.segments[w.id]) > w.max {
			if err := w.seal(m); err != nil {
				return err
			}
		}
		if !w.opened {
			w.number++
			w.id = ident.SegmentID{Journal: m.Journal(), Epoch: ident.Epoch{Number: 1}, Number: w.number | ident.CheckpointBit}
			slot, err := m.AddSegment(Segment{ID: w.id})
			if err != nil {
				return err
			}
			w.slot, w.at, w.opened = slot, ident.Position{}, true
			w.d.segments[w.id] = make([]byte, journal.SegmentHeaderSize)
		}
		offset := uint32(len(w.d.segments[w.id]))
		data, r := p.Append(w.d.segments[w.id], m.Journal(), w.id.Epoch, w.at)
		w.d.segments[w.id], w.at = data, r.Position()
		if err := cp.Placed(p.Number, w.slot, offset, r.BodyDigest); err != nil {
			return err
		}
	}
	return nil
}

func (w *cpWriter) seal(m *Map) error {
	if !w.opened {
		return nil
	}
	w.opened = false
	return m.Seal(w.slot, w.at, uint32(len(w.d.segments[w.id])))
}

// finish drives a checkpoint to its end.
func (w *cpWriter) finish(m *Map, cp *Checkpoint, maxBytes int) (journal.CheckpointPoint, error) {
	for {
		s, err := cp.Next(maxBytes)
		if err != nil {
			return journal.CheckpointPoint{}, err
		}
		if err := w.write(m, cp, s.Parts); err != nil {
			return journal.CheckpointPoint{}, err
		}
		if s.Need != NoLeaf {
			if err := m.LoadLeaf(s.Need, w.d); err != nil {
				return journal.CheckpointPoint{}, err
			}
		}
		if s.Done {
			return m.FinishCheckpoint(cp)
		}
	}
}

// where is a block's place in the model.
type where struct {
	id     ident.SegmentID
	record uint32
	first  uint16
}

// logged is one record of the model's history.
type logged struct {
	entry  journal.IndexEntry
	id     ident.SegmentID
	moves  []loggedMove
	retire ident.SegmentID
	copied bool
	source uint64
}

type loggedMove struct {
	block    uint64
	count    uint32
	from, to where
}

// The model's blocks lie where leaves, pages and directories meet.
var modelBases = []uint64{0, pageSize*leafBlocks - leafBlocks, dirSize*pageSize*leafBlocks - leafBlocks}

const modelSpan = 2 * leafBlocks

type model struct {
	t       *rapid.T
	m       *Map
	d       *disk
	w       *cpWriter
	cp      *Checkpoint
	parts   []Part // given out, not placed
	point   journal.CheckpointPoint
	blocks  map[uint64]where
	history []logged
	seg     ident.SegmentID
	segs    int
	offset  uint32
	asked   map[uint64]ident.Seq // requests open
	atCp    map[uint64]ident.Seq
	asked2  map[uint64]ident.Seq // as of the running checkpoint
	state   []byte
	stateCp []byte
	state2  []byte
	number  uint64
}

func (x *model) check(err error) {
	if err != nil {
		x.t.Helper()
		x.t.Fatal(err)
	}
}

func (x *model) slot(id ident.SegmentID) Slot {
	s, err := x.m.AddSegment(Segment{ID: id, Before: ident.Position{Seq: x.m.Applied()}})
	x.check(err)
	return s
}

func (x *model) drawRange() (block uint64, count uint32) {
	base := rapid.SampledFrom(modelBases).Draw(x.t, "base")
	a := rapid.IntRange(0, modelSpan-1).Draw(x.t, "block")
	most := modelSpan - a
	n := rapid.IntRange(1, min(8, most)).Draw(x.t, "count")
	if rapid.IntRange(0, 3).Draw(x.t, "long") == 0 {
		n = rapid.IntRange(1, min(512, most)).Draw(x.t, "longCount")
	}
	return base + uint64(a), uint32(n)
}

func (x *model) record(l logged) {
	x.history = append(x.history, l)
	x.play(l)
}

// play applies a record to the map only.
func (x *model) play(l logged) {
	m := x.m
	switch {
	case l.retire != ident.SegmentID{}:
		if s, ok := m.Slot(l.retire); ok {
			x.check(m.Retire(s))
		}
		x.check(m.Apply(&journal.IndexEntry{Kind: journal.KindRetire}, m.Applied()+1, 0))
	case l.moves != nil:
		var moves []Move
		for _, v := range l.moves {
			from, _ := m.Slot(v.from.id)
			moves = append(moves, Move{v.block, v.count, Place{from, v.from.record, v.from.first}, Place{x.slot(v.to.id), v.to.record, v.to.first}})
		}
		for {
			_, need, err := m.Relocate(m.Applied()+1, moves)
			x.check(err)
			if need == NoLeaf {
				return
			}
			x.check(m.LoadLeaf(need, x.d))
		}
	case l.copied:
		for {
			need, err := m.Copy(m.Applied()+1, l.entry.Block, l.source, l.entry.Count)
			x.check(err)
			if need == NoLeaf {
				return
			}
			x.check(m.LoadLeaf(need, x.d))
		}
	default:
		x.check(m.Apply(&l.entry, m.Applied()+1, x.slot(l.id)))
	}
}

func (x *model) newSegment(*rapid.T) {
	if x.segs > 0 {
		x.check(x.m.Seal(x.slot(x.seg), ident.Position{Seq: x.m.Applied()}, x.offset))
	}
	x.segs++
	x.seg, x.offset = historyID(x.segs), journal.SegmentHeaderSize
	x.slot(x.seg)
}

func (x *model) write(*rapid.T) {
	block, count := x.drawRange()
	x.record(logged{entry: *write(block, count, x.offset), id: x.seg})
	for i := range count {
		x.blocks[block+uint64(i)] = where{x.seg, x.offset, uint16(i)}
	}
	x.offset += uint32(journal.RecordSize(count * blockSize))
	x.number++
	id := journal.RequestID{Forwarder: 1 + x.number%2, Number: x.number}
	x.check(x.m.Requests().Add(id, 0, x.m.Applied()))
	x.asked[x.number] = x.m.Applied()
	if x.offset > 30<<20 {
		x.newSegment(nil)
	}
}

// fragment writes a leaf block by block, so that it goes flat.
func (x *model) fragment(t *rapid.T) {
	base := rapid.SampledFrom(modelBases).Draw(t, "base")
	for i := range leafBlocks {
		block := base + uint64(i)
		x.record(logged{entry: *write(block, 1, x.offset), id: x.seg})
		x.blocks[block] = where{x.seg, x.offset, 0}
		x.offset += uint32(journal.RecordSize(blockSize))
	}
	x.newSegment(nil)
}

func (x *model) trim(t *rapid.T) {
	block, count := x.drawRange()
	if rapid.IntRange(0, 5).Draw(t, "wide") == 0 {
		block, count = rapid.SampledFrom(modelBases).Draw(t, "from"), modelSpan
	}
	x.record(logged{entry: *trim(block, count), id: x.seg})
	for i := range count {
		delete(x.blocks, block+uint64(i))
	}
}

// copy has blocks refer to what others refer to, with or without an overlap, from one leaf to another or within one.
func (x *model) copy(t *rapid.T) {
	source, count := x.drawRange()
	block, most := x.drawRange()
	if rapid.Bool().Draw(t, "near") {
		block = source + uint64(rapid.IntRange(0, 20).Draw(t, "shift"))
	}
	if rapid.Bool().Draw(t, "back") {
		source, block = block, source
	}
	count = min(count, most)
	x.record(logged{entry: journal.IndexEntry{Kind: journal.KindCopy, Block: block, Count: count}, copied: true, source: source})
	was := maps.Clone(x.blocks)
	for i := range uint64(count) {
		if w, ok := was[source+i]; ok {
			x.blocks[block+i] = w
		} else {
			delete(x.blocks, block+i)
		}
	}
}

func (x *model) relocate(t *rapid.T) {
	if len(x.blocks) == 0 {
		return
	}
	keys := slices.Sorted(maps.Keys(x.blocks))
	block := rapid.SampledFrom(keys).Draw(t, "move")
	from := x.blocks[block]
	count := uint32(rapid.IntRange(1, min(20, 512-int(from.first))).Draw(t, "moved"))
	to := where{x.seg, x.offset, uint16(rapid.IntRange(0, 512-int(count)).Draw(t, "to"))}
	x.offset += uint32(journal.RecordSize(journal.RecordBodyMax))
	x.record(logged{moves: []loggedMove{{block, count, from, to}}})
	for i := range count {
		if x.blocks[block+uint64(i)] == (where{from.id, from.record, from.first + uint16(i)}) {
			x.blocks[block+uint64(i)] = where{to.id, to.record, to.first + uint16(i)}
		}
	}
	if x.offset > 30<<20 {
		x.newSegment(nil)
	}
}

func (x *model) confirm(t *rapid.T) {
	f := uint64(rapid.IntRange(1, 2).Draw(t, "forwarder"))
	upTo := rapid.Uint64Range(0, x.number).Draw(t, "upTo")
	x.m.Requests().Confirm(f, upTo, []uint64{x.number})
	for n := range x.asked {
		if 1+n%2 == f && (n <= upTo || n == x.number) {
			delete(x.asked, n)
		}
	}
}

func (x *model) setState(t *rapid.T) {
	x.state = rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "state")
	if len(x.state) == 0 {
		x.state = nil
	}
	x.check(x.m.SetState(3, x.state))
}

func (x *model) begin(t *rapid.T) {
	if x.cp != nil {
		return
	}
	at := ident.Position{Epoch: ident.Epoch{Number: 1}, Seq: x.m.Applied()}
	var err error
	if rapid.IntRange(0, 3).Draw(t, "full") == 0 {
		x.cp, err = x.m.BeginFullCheckpoint(at)
	} else {
		x.cp, err = x.m.BeginCheckpoint(at)
	}
	x.check(err)
	x.asked2, x.state2 = maps.Clone(x.asked), x.state
}

func (x *model) step(t *rapid.T) {
	if x.cp == nil {
		return
	}
	s, err := x.cp.Next(rapid.IntRange(1, 5000).Draw(t, "bytes"))
	x.check(err)
	x.parts = append(x.parts, s.Parts...)
	if s.Need != NoLeaf {
		x.check(x.m.LoadLeaf(s.Need, x.d))
	} else if len(s.Parts) == 0 || rapid.Bool().Draw(t, "place") {
		x.check(x.w.write(x.m, x.cp, x.parts))
		x.parts = nil
	}
	if s.Done {
		x.finished()
	}
}

func (x *model) finished() {
	var err error
	x.point, err = x.m.FinishCheckpoint(x.cp)
	x.check(err)
	x.cp, x.parts = nil, nil
	x.atCp, x.stateCp = x.asked2, x.state2
	x.check(Complete(testJournal, x.point, x.d))
	x.equalParts()
}

// equalParts holds what the map counts in checkpoint segments against what the checkpoint just finished says to
// somebody who loads it: a part too many would keep its segment for ever, one too few would free it too early.
func (x *model) equalParts() {
	x.t.Helper()
	loaded, err := Load(testJournal, x.point, x.d)
	x.check(err)
	count := func(m *Map) map[ident.SegmentID][2]uint64 {
		parts := map[ident.SegmentID][2]uint64{}
		for s, n := range m.table.parts {
			// A segment that nothing is alive in may have come or gone since the checkpoint began.
			if n.live != 0 || n.liveBytes != 0 {
				parts[m.table.at(s).ID] = [2]uint64{uint64(n.live), n.liveBytes}
			}
		}
		return parts
	}
	if got, want := count(x.m), count(loaded); !maps.Equal(got, want) {
		x.t.Fatalf("live parts and bytes by checkpoint segment are %v, loaded afresh %v", got, want)
	}
}

func (x *model) complete(*rapid.T) {
	if x.cp == nil {
		return
	}
	x.check(x.w.write(x.m, x.cp, x.parts))
	x.parts = nil
	for {
		s, err := x.cp.Next(10000)
		x.check(err)
		x.check(x.w.write(x.m, x.cp, s.Parts))
		if s.Need != NoLeaf {
			x.check(x.m.LoadLeaf(s.Need, x.d))
		}
		if s.Done {
			x.finished()
			return
		}
	}
}

func (x *model) abandon(*rapid.T) {
	if x.cp != nil {
		x.m.AbandonCheckpoint(x.cp)
		x.cp, x.parts = nil, nil
	}
}

func (x *model) evict(*rapid.T) { x.m.Evict(0); x.m.Evict(0) }

func (x *model) sealCp(*rapid.T) { x.check(x.w.seal(x.m)) }

// collect retires and removes what is dead, for good.
func (x *model) collect(*rapid.T) {
	for _, d := range x.m.DeadSegments() {
		if d.Segment.IsCheckpoint() {
			delete(x.d.segments, d.Segment)
		} else {
			x.record(logged{retire: d.Segment})
		}
		x.check(x.m.Remove(d.Slot))
	}
}

// crash loads the last finished checkpoint and replays the rest.
func (x *model) crash(*rapid.T) {
	if x.point.Segment == (ident.SegmentID{}) {
		return
	}
	size := x.m.Size()
	m, err := Load(testJournal, x.point, x.d)
	x.check(err)
	x.m, x.cp, x.parts, x.w.opened = m, nil, nil, false
	for i, l := range x.history {
		if ident.Seq(i+1) > x.point.At.Seq {
			x.play(l)
		}
	}
	x.check(m.Resize(size))
	for s, seg := range m.Segments() {
		if !seg.Sealed && seg.ID != x.seg {
			last, end := seg.Last, seg.End
			if !seg.ID.IsCheckpoint() {
				last.Seq = m.Applied()
			}
			x.check(m.Seal(s, last, end))
		}
	}
	if got := m.Requests().Len(); got != len(x.atCp) {
		x.t.Fatalf("%d requests in the checkpoint, want %d", got, len(x.atCp))
	}
	for n, seq := range x.atCp {
		if got, ok, _ := m.Requests().Find(journal.RequestID{Forwarder: 1 + n%2, Number: n}, 0); !ok || got != seq {
			x.t.Fatalf("request %d is record %d, %t; want %d", n, got, ok, seq)
		}
	}
	x.asked = maps.Clone(x.atCp)
	x.state = x.stateCp
	if string(m.State(3)) != string(x.state) {
		x.t.Fatalf("state %q, want %q", m.State(3), x.state)
	}
}

func (x *model) lookup(*rapid.T) {
	block, count := x.drawRange()
	x.compare(block, count)
}

func (x *model) compare(block uint64, count uint32) {
	x.t.Helper()
	pieces, need := x.m.Lookup(block, count, nil)
	for need != NoLeaf {
		x.check(x.m.LoadLeaf(need, x.d))
		pieces, need = x.m.Lookup(block, count, nil)
	}
	at := block
	for i, p := range pieces {
		if p.Block != at || p.Count == 0 {
			x.t.Fatalf("piece %+v where block %d should be", p, at)
		}
		if i > 0 && !p.Hole() && !pieces[i-1].Hole() && p.Segment == pieces[i-1].Segment && p.Record == pieces[i-1].Record && uint32(p.First) == uint32(pieces[i-1].First)+pieces[i-1].Count {
			x.t.Fatalf("pieces %+v and %+v are not merged", pieces[i-1], p)
		}
		for k := range p.Count {
			want, mapped := x.blocks[at]
			if mapped == p.Hole() || mapped && want != (where{p.Segment, p.Record, p.First + uint16(k)}) {
				x.t.Fatalf("block %d is at %+v (%d), want %+v", at, p, k, want)
			}
			at++
		}
	}
	if at != block+uint64(count) {
		x.t.Fatalf("pieces of blocks %d to %d, want %d", block, at, block+uint64(count))
	}
}

// Check holds the accounts against a recount, after every action.
func (x *model) Check(t *rapid.T) {
	x.t = t
	var mem int64
	pending, leaves := 0, 0
	x.m.eachPage(func(p *page) {
		mem += pageMemory
		for i := range p.refs {
			if l := p.refs[i].leaf; l != nil {
				mem += l.memory()
				leaves++
				if l.pending {
					pending++
				}
				checkLeaf(t, l)
			}
		}
	})
	var dying uint64
	for slot, seg := range x.m.Segments() {
		if _, dead := x.m.DeadAt(slot); seg.Live == 0 && seg.Sealed && !seg.Retired && !dead && !seg.ID.IsCheckpoint() {
			dying += uint64(seg.End)
		}
	}
	if got := x.m.DyingBytes(); got != dying {
		t.Fatalf("%d bytes would die with a checkpoint, want %d", got, dying)
	}
	for _, d := range x.m.dirs {
		if d != nil {
			mem += dirMemory
		}
	}
	if x.cp != nil {
		mem += x.cp.keptMem
	}
	if mem != x.m.mem || pending != x.m.PendingLen() || leaves != x.m.Leaves() {
		t.Fatalf("accounts: %d bytes, %d pending, %d leaves; recounted %d, %d, %d", x.m.mem, x.m.PendingLen(), x.m.Leaves(), mem, pending, leaves)
	}
	x.recount(pending > 0)
}

func checkLeaf(t *rapid.T, l *leaf) {
	if l.flat != nil {
		runs := 0
		l.each(func(extent) { runs++ })
		if runs != int(l.runs) {
			t.Fatalf("flat leaf of %d runs says %d", runs, l.runs)
		}
		return
	}
	for i, e := range l.ext {
		if e.count == 0 || i > 0 && (l.ext[i-1].end() > int(e.first) || l.ext[i-1].follows(e)) || e.entry() == unknown && !l.pending {
			t.Fatalf("extents %+v and %+v", l.ext[max(0, i-1)], e)
		}
	}
}

func (x *model) recount(atLeast bool) {
	want := map[ident.SegmentID]uint32{}
	for _, w := range x.blocks {
		want[w.id]++
	}
	for _, seg := range x.m.Segments() {
		if seg.ID.IsCheckpoint() {
			continue
		}
		if seg.Live != want[seg.ID] && (!atLeast || seg.Live < want[seg.ID]) {
			x.t.Fatalf("segment %s has %d live blocks, want %d", seg.ID, seg.Live, want[seg.ID])
		}
	}
	if !atLeast && x.m.Mapped() != uint64(len(x.blocks)) {
		x.t.Fatalf("%d blocks mapped, want %d", x.m.Mapped(), len(x.blocks))
	}
}

func (x *model) settle() {
	for id := x.m.Pending(0); id != NoLeaf; id = x.m.Pending(id + 1) {
		x.check(x.m.LoadLeaf(id, x.d))
	}
	if n := x.m.PendingLen(); n != 0 {
		x.t.Fatalf("%d leaves are still pending", n)
	}
	x.recount(false)
	for _, base := range modelBases {
		x.compare(base, modelSpan)
	}
}

// Any mix of writes, trims, relocations, checkpoints begun, stepped, finished and given up, evictions and
// crashes leaves the map equal to a naive one.
func TestMapEqualsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := New(testJournal, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		d := newDisk()
		x := &model{t: t, m: m, d: d, w: &cpWriter{d: d, max: 20000}, blocks: map[uint64]where{}, asked: map[uint64]ident.Seq{}}
		x.newSegment(nil)
		t.Repeat(map[string]func(*rapid.T){
			"":           x.Check,
			"write":      x.write,
			"writeAgain": x.write,
			"fragment":   x.fragment,
			"trim":       x.trim,
			"relocate":   x.relocate,
			"copy":       x.copy,
			"copyAgain":  x.copy,
			"newSegment": x.newSegment,
			"confirm":    x.confirm,
			"state":      x.setState,
			"begin":      x.begin,
			"step":       x.step,
			"complete":   x.complete,
			"abandon":    x.abandon,
			"evict":      x.evict,
			"sealCp":     x.sealCp,
			"collect":    x.collect,
			"crash":      x.crash,
			"lookup":     x.lookup,
		})
		x.t = t
		x.settle()
		x.crash(t)
		x.settle()
	})
}
