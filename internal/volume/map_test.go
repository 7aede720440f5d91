package volume

import (
	"testing"
	"unsafe"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

var testJournal = ident.JournalID{1, 2, 3}

func historyID(n int) ident.SegmentID {
	return ident.SegmentID{Journal: testJournal, Epoch: ident.Epoch{Number: 1}, Number: uint32(n), Site: 1}
}

func newTestMap(t testing.TB, sizeBlocks uint64) (*Map, Slot) {
	m, err := New(testJournal, sizeBlocks)
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.AddSegment(Segment{ID: historyID(1)})
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

func write(block uint64, count, offset uint32) *journal.IndexEntry {
	return &journal.IndexEntry{Kind: journal.KindWrite, Block: block, Count: count, Offset: offset}
}

func trim(block uint64, count uint32) *journal.IndexEntry {
	return &journal.IndexEntry{Kind: journal.KindTrim, Block: block, Count: count}
}

func apply(t testing.TB, m *Map, e *journal.IndexEntry, s Slot) {
	t.Helper()
	if err := m.Apply(e, m.Applied()+1, s); err != nil {
		t.Fatal(err)
	}
}

func TestLookupMergesAcrossLeaves(t *testing.T) {
	m, s := newTestMap(t, 1<<20)
	apply(t, m, write(1000, 200, 4096), s)
	apply(t, m, write(1010, 1, 1<<20), s)
	apply(t, m, trim(1100, 10), s)
	got, need := m.Lookup(990, 300, nil)
	id := historyID(1)
	want := []Piece{
		{Block: 990, Count: 10},
		{Block: 1000, Count: 10, Slot: s, Segment: id, Record: 4096},
		{Block: 1010, Count: 1, Slot: s, Segment: id, Record: 1 << 20},
		{Block: 1011, Count: 89, Slot: s, Segment: id, Record: 4096, First: 11},
		{Block: 1100, Count: 10},
		{Block: 1110, Count: 90, Slot: s, Segment: id, Record: 4096, First: 110},
		{Block: 1200, Count: 90},
	}
	if need != NoLeaf || len(got) != len(want) {
		t.Fatalf("got %+v, need %d; want %+v", got, need, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("piece %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	if seg, _ := m.Segment(s); seg.Live != 190 || m.Mapped() != 190 {
		t.Errorf("%d live, %d mapped; want 190", seg.Live, m.Mapped())
	}
}

func TestApplyIsInOrderAndOnce(t *testing.T) {
	m, s := newTestMap(t, 1<<20)
	apply(t, m, write(0, 4, 4096), s)
	if err := m.Apply(trim(0, 4), 1, s); err != nil {
		t.Fatal(err)
	}
	if m.Mapped() != 4 {
		t.Error("a record that was applied before was applied again")
	}
	if err := m.Apply(trim(0, 4), 3, s); err == nil {
		t.Error("a gap was not noticed")
	}
	for name, e := range map[string]*journal.IndexEntry{
		"offset": write(0, 1, journal.SegmentCapacityMax), "unaligned": write(0, 1, 4), "too long": write(0, 513, 0),
		"beyond": write(BlocksMax-1, 2, 0), "trim beyond": trim(BlocksMax-1, 2)} {
		if err := m.Apply(e, 2, s); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
	if err := m.Apply(write(0, 1, 0), 2, s+1); err == nil {
		t.Error("applied to a slot that is free")
	}
}

func TestProvisioned(t *testing.T) {
	m, s := newTestMap(t, 3<<30/blockSize)
	apply(t, m, write(1000, 100, 4096), s)
	apply(t, m, write(1100, 100, 1<<20), s)
	for _, c := range []struct {
		block, most uint64
		mapped      bool
		run         uint64
	}{{0, 1 << 40, false, 1000}, {1000, 1 << 40, true, 200}, {1150, 20, true, 20}, {1200, 1 << 40, false, 3<<30/blockSize - 1200}} {
		mapped, run, need := m.Provisioned(c.block, c.most)
		if mapped != c.mapped || run != c.run || need != NoLeaf {
			t.Errorf("Provisioned(%d, %d) = %t, %d, %d; want %t, %d", c.block, c.most, mapped, run, need, c.mapped, c.run)
		}
	}
}

func TestRelocateOnlyWhereTheSourceStillIs(t *testing.T) {
	m, s := newTestMap(t, 1<<20)
	to, err := m.AddSegment(Segment{ID: historyID(2)})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, m, write(1020, 8, 4096), s)
	apply(t, m, write(1022, 1, 1<<20), s)
	moved, need, err := m.Relocate(m.Applied()+1, []Move{{1020, 8, Place{s, 4096, 0}, Place{to, 8192, 100}}})
	if moved != 7 || need != NoLeaf || err != nil {
		t.Fatalf("%d moved, need %d, %v", moved, need, err)
	}
	a, _ := m.Segment(s)
	b, _ := m.Segment(to)
	if a.Live != 1 || b.Live != 7 {
		t.Errorf("%d and %d live, want 1 and 7", a.Live, b.Live)
	}
	if p, _ := m.Lookup(1023, 1, nil); p[0].Slot != to || p[0].Record != 8192 || p[0].First != 103 {
		t.Errorf("block 1023 at %+v", p[0])
	}
}

func TestResizeDropsWhatIsBeyond(t *testing.T) {
	m, s := newTestMap(t, 1<<20)
	apply(t, m, write(5000, 100, 4096), s)
	if err := m.Resize(5050); err != nil {
		t.Fatal(err)
	}
	if m.Mapped() != 50 || m.Size() != 5050 {
		t.Errorf("%d mapped of %d", m.Mapped(), m.Size())
	}
	if err := m.Resize(BlocksMax + 1); err == nil {
		t.Error("resized beyond the bound")
	}
}

func TestSlots(t *testing.T) {
	m, s := newTestMap(t, 1<<20)
	apply(t, m, write(0, 1, 4096), s)
	if err := m.Remove(s); err == nil {
		t.Error("removed a segment in use")
	}
	if err := m.Retire(s); err == nil {
		t.Error("retired a segment in use")
	}
	apply(t, m, trim(0, 1), 0)
	if err := m.Seal(s, ident.Position{Seq: 2}, 8192); err != nil {
		t.Fatal(err)
	}
	if err := m.Extend(s, ident.Position{Seq: 3}, 9000); err == nil {
		t.Error("a sealed segment grew")
	}
	if err := m.Retire(s); err != nil {
		t.Error(err)
	}
	if err := m.Apply(write(0, 1, 4096), 3, s); err == nil {
		t.Error("a retired segment was written to")
	}
	if err := m.Remove(s); err != nil {
		t.Error(err)
	}
	other, err := m.AddSegment(Segment{ID: historyID(9), Before: ident.Position{Seq: 7}})
	if err != nil || other != s {
		t.Errorf("slot %d, %v; want %d again", other, err, s)
	}
	if _, err := m.AddSegment(Segment{ID: historyID(3), Before: ident.Position{Seq: 5}}); err != nil {
		t.Error(err)
	}
	var order []uint32
	for _, seg := range m.Segments() {
		order = append(order, seg.ID.Number)
	}
	if len(order) != 2 || order[0] != 3 || order[1] != 9 {
		t.Errorf("segments %v, want 3 before 9", order)
	}
}

// fill writes every block of n leaves at random, one block a record.
func fill(t testing.TB, m *Map, s Slot, leaves int) {
	perm := uint64(1)
	blocks := uint64(leaves * leafBlocks)
	for i := range blocks {
		perm = (perm*2862933555777941757 + 3037000493) % blocks // visits every block: the factor is 1 mod 4
		apply(t, m, write(perm, 1, 4096+uint32(i%8000)*4096), s)
	}
}

// 1 TiB written wholly at random may take 2.1 GiB: 8.4 bytes a block. 16 GiB show the leaves'
// share; pages, directories and the segment table are added as a TiB has them.
func TestMemoryOfARandomFill(t *testing.T) {
	const leaves = 4096
	m, s := newTestMap(t, leaves*leafBlocks)
	base := m.Memory()
	fill(t, m, s, leaves)
	if m.Mapped() < leaves*leafBlocks*99/100 {
		t.Fatalf("%d blocks mapped of %d: not a full fill", m.Mapped(), leaves*leafBlocks)
	}
	perLeaf := float64(m.Memory()-base-dirMemory-leaves/pageSize*pageMemory) / leaves
	const leavesPerTiB = 1 << 18
	table := int64(1<<40/journal.SegmentCapacityGoal) * (int64(unsafe.Sizeof(Segment{})) + 81)
	total := perLeaf*leavesPerTiB + float64(leavesPerTiB/pageSize*pageMemory+dirMemory+table)
	t.Logf("%.1f bytes a leaf, %.3f GiB per TiB", perLeaf, total/(1<<30))
	if total > 2.1*(1<<30) {
		t.Errorf("%.3f GiB per TiB, want at most 2.1", total/(1<<30))
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	m, s := newTestMap(t, 64*leafBlocks)
	fill(t, m, s, 16)
	for i := range uint64(8) { // leaves that stay extents
		apply(t, m, write((20+i)*leafBlocks, 256, 4096), s)
	}
	var n uint64
	e := write(0, 1, 8192)
	if got := testing.AllocsPerRun(1000, func() {
		n += 7919
		e.Block = n % (24 * leafBlocks)
		if e.Block < 20*leafBlocks {
			e.Block %= 16 * leafBlocks
		} else {
			e.Block = e.Block &^ (leafBlocks - 1)
		}
		if err := m.Apply(e, m.Applied()+1, s); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("Apply allocates %v times", got)
	}
	pieces := make([]Piece, 0, 300)
	if got := testing.AllocsPerRun(1000, func() {
		n += 7919
		pieces, _ = m.Lookup(n%(60*leafBlocks), 256, pieces[:0])
	}); got != 0 {
		t.Errorf("Lookup allocates %v times", got)
	}
}

func BenchmarkApply4K(b *testing.B) {
	const leaves = 1024
	m, s := newTestMap(b, leaves*leafBlocks)
	fill(b, m, s, leaves)
	e := write(0, 1, 8192)
	n := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		n = n*6364136223846793005 + 1442695040888963407
		e.Block = n >> 33 % (leaves * leafBlocks)
		if err := m.Apply(e, m.Applied()+1, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup4K(b *testing.B) {
	const leaves = 1024
	m, s := newTestMap(b, leaves*leafBlocks)
	fill(b, m, s, leaves)
	n := uint64(1)
	var pieces []Piece
	b.ReportAllocs()
	for b.Loop() {
		n = n*6364136223846793005 + 1442695040888963407
		pieces, _ = m.Lookup(n>>33%(leaves*leafBlocks), 1, pieces[:0])
	}
}
