package volume

import (
	"fmt"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
)

const blockSize = journal.BlockSize

// Map says where each block of a volume lies. See the package comment for who may call what.
type Map struct {
	journal ident.JournalID
	size    uint64    // of the volume, in blocks
	applied ident.Seq // the last record applied

	dirs    []*dir
	clock   uint64 // page at which Evict goes on
	leaves  int
	mem     int64
	pending int // leaves written to while they were absent

	tally
	table table
	fresh Slot // the lowest slot never used

	requests Requests
	states   states

	pieces []Piece // scratch of Copy

	cp    *Checkpoint // the running one
	point journal.CheckpointPoint
	root  location // of the last finished checkpoint
	extra extraLocs
}

// New makes the map of an empty volume.
func New(id ident.JournalID, sizeBlocks uint64) (*Map, error) {
	if sizeBlocks > BlocksMax {
		return nil, fmt.Errorf("volume of %d blocks: at most %d", sizeBlocks, uint64(BlocksMax))
	}
	return &Map{journal: id, size: sizeBlocks, table: newTable(), fresh: 1,
		requests: newRequests(), states: states{bodies: map[uint16][]byte{}, dirty: map[uint16]bool{}}}, nil
}

// Journal is the volume's ID.
func (m *Map) Journal() ident.JournalID { return m.journal }

// Size is the volume's size in blocks.
func (m *Map) Size() uint64 { return m.size }

// Applied is the last record that the map has.
func (m *Map) Applied() ident.Seq { return m.applied }

// Mapped is the number of blocks that take space. It may be too high while leaves are pending.
func (m *Map) Mapped() uint64 { return m.mapped }

// Requests are the client requests in the history whose answers are not confirmed yet (R9). They are written
// with each checkpoint.
func (m *Map) Requests() *Requests { return &m.requests }

// Apply takes one committed record of the segment in that slot. Records come in order of seq without gaps;
// those that the map has already are passed over, so a replay may start at the head of a segment. Kinds that
// map nothing only move Applied; a relocation is applied by Relocate instead, a copy by Copy. It never needs a leaf from
// disk: what is written to an absent leaf waits in memory for the rest of it (Pending).
//
// Blocks beyond the volume's size are mapped too: the record was admitted under another size, and what a
// later growth brings back must be what was written.
func (m *Map) Apply(e *journal.IndexEntry, seq ident.Seq, slot Slot) error {
	if seq <= m.applied {
		return nil
	}
	if seq != m.applied+1 {
		return fmt.Errorf("record %d applied after %d", seq, m.applied)
	}
	switch e.Kind {
	case journal.KindWrite:
		if err := m.checkTarget(e.Block, uint64(e.Count), slot, e.Offset, 0); err != nil {
			return fmt.Errorf("record %d: %w", seq, err)
		}
		m.store(e.Block, uint64(e.Count), makeEntry(slot, e.Offset, 0))
	case journal.KindCopy, journal.KindRelocate:
		return fmt.Errorf("record %d: a %s is not applied by its header alone", seq, e.Kind)
	case journal.KindTrim:
		if e.Block > BlocksMax || uint64(e.Count) > BlocksMax-e.Block {
			return fmt.Errorf("record %d: trim of blocks %d+%d beyond any volume", seq, e.Block, e.Count)
		}
		m.store(e.Block, uint64(e.Count), hole)
	}
	m.applied = seq
	return nil
}

// checkTarget holds what an entry can say of count blocks from block on.
func (m *Map) checkTarget(block, count uint64, slot Slot, record uint32, first uint16) error {
	switch {
	case !m.table.has(slot) || m.table.at(slot).Retired || m.table.at(slot).ID.IsCheckpoint():
		return fmt.Errorf("slot %d is no segment of the history", slot)
	case record%journal.Alignment != 0 || record >= journal.SegmentCapacityMax:
		return fmt.Errorf("offset %d can't be a record's", record)
	case uint64(first)+count > 1<<firstBits:
		return fmt.Errorf("%d blocks from %d on are more than a record has", count, first)
	case block > BlocksMax || count > BlocksMax-block:
		return fmt.Errorf("blocks %d+%d beyond any volume", block, count)
	}
	return nil
}

// store maps count blocks to e and what follows it, or to nothing.
func (m *Map) store(block, count uint64, e entry) {
	for count > 0 {
		id := LeafID(block >> leafShift)
		a := int(block & (leafBlocks - 1))
		n := int(min(count, uint64(leafBlocks-a)))
		p := m.page(uint64(id) >> pageShift)
		if p == nil && e == hole {
			// Nothing is mapped in the whole page: on to the next one.
			skip := min(count, pageSize*leafBlocks-block&(pageSize*leafBlocks-1))
			block, count = block+skip, count-skip
			continue
		}
		if p == nil {
			p = m.makePage(uint64(id) >> pageShift)
		}
		i := int(id) & (pageSize - 1)
		if l := m.touch(p, i, e == hole); l != nil {
			was := l.memory()
			l.set(a, n, e, &m.tally)
			m.mem += l.memory() - was
		}
		block, count, e = block+uint64(n), count-uint64(n), e.plus(n)
	}
}

// touch gives leaf i of a page for changing, with the running checkpoint's version put aside. For a trim of
// what maps nothing it gives nil.
func (m *Map) touch(p *page, i int, trim bool) *leaf {
	r := &p.refs[i]
	if r.leaf == nil {
		if r.loc.none() && trim {
			return nil
		}
		l := &leaf{}
		if !r.loc.none() {
			// The rest is in its part. A running checkpoint that has the leaf to write takes it from there.
			l = newPending()
		}
		m.setLeaf(p, i, l)
		p.dirty.set(i)
	}
	if !p.dirty.has(i) {
		p.dirty.set(i)
		if p.todo.has(i) {
			m.cp.keep(p.id(i), r.leaf)
			m.setLeaf(p, i, r.leaf.clone())
		}
	}
	r.leaf.used = true
	return r.leaf
}

// Move is one run of a relocation: Count blocks from Block on, which lay at From, now lie at To (R15).
type Move struct {
	Block    uint64
	Count    uint32
	From, To Place
}

// Place is a block within a record of the segment in Slot.
type Place struct {
	Slot   Slot
	Record uint32
	First  uint16
}

func (p Place) entry() entry { return makeEntry(p.Slot, p.Record, uint32(p.First)) }

// Relocate applies a relocation record: each block goes to its new place only if it is still mapped to the
// old one. It returns how many did. If a leaf is needed that isn't in memory, nothing has happened: load
// that and call again. A source slot of 0 stands for a segment that the table doesn't know any more.
func (m *Map) Relocate(seq ident.Seq, moves []Move) (moved uint64, need LeafID, err error) {
	if seq <= m.applied {
		return 0, NoLeaf, nil
	}
	if seq != m.applied+1 {
		return 0, NoLeaf, fmt.Errorf("relocation %d applied after %d", seq, m.applied)
	}
	for _, v := range moves {
		if err := m.checkTarget(v.Block, uint64(v.Count), v.To.Slot, v.To.Record, v.To.First); err != nil {
			return 0, NoLeaf, fmt.Errorf("relocation %d: %w", seq, err)
		}
		if uint64(v.From.First)+uint64(v.Count) > 1<<firstBits {
			return 0, NoLeaf, fmt.Errorf("relocation %d: %d blocks from %d on are more than a record has", seq, v.Count, v.From.First)
		}
		for block := v.Block; block < v.Block+uint64(v.Count); block = (block>>leafShift + 1) << leafShift {
			id := LeafID(block >> leafShift)
			if p := m.page(uint64(id) >> pageShift); p != nil {
				r := &p.refs[int(id)&(pageSize-1)]
				a := int(block & (leafBlocks - 1))
				end := int(min(uint64(leafBlocks), uint64(a)+v.Block+uint64(v.Count)-block))
				if r.leaf == nil && !r.loc.none() || r.leaf != nil && r.leaf.anyUnknown(a, end) {
					return 0, id, nil
				}
			}
		}
	}
	for _, v := range moves {
		if v.From.Slot != 0 {
			moved += m.move(v)
		}
	}
	m.applied = seq
	return moved, NoLeaf, nil
}

// move applies one Move; all its leaves are there.
func (m *Map) move(v Move) (moved uint64) {
	from, to := v.From.entry(), v.To.entry()
	for k := 0; k < int(v.Count); {
		block := v.Block + uint64(k)
		id := LeafID(block >> leafShift)
		a := int(block & (leafBlocks - 1))
		end := min(leafBlocks, a+int(v.Count)-k)
		var l *leaf
		p := m.page(uint64(id) >> pageShift)
		if p != nil {
			l = p.refs[int(id)&(pageSize-1)].leaf
		}
		if l == nil {
			k += end - a
			continue
		}
		e, n := l.run(a, end)
		if e == from.plus(k) || mutant.On(mutant.R15Source) {
			l = m.touch(p, int(id)&(pageSize-1), false)
			was := l.memory()
			l.set(a, n, to.plus(k), &m.tally)
			m.mem += l.memory() - was
			moved += uint64(n)
		}
		k += n
	}
	return moved
}

// Resize sets the volume's size. Blocks beyond a smaller size are dropped. A replay knows nothing of sizes:
// so that a later growth brings back zeroes there too, a shrink goes into the history as a trim first.
func (m *Map) Resize(sizeBlocks uint64) error {
	if sizeBlocks > BlocksMax {
		return fmt.Errorf("volume of %d blocks: at most %d", sizeBlocks, uint64(BlocksMax))
	}
	if top := uint64(len(m.dirs)) << (dirShift + pageShift + leafShift); sizeBlocks < m.size && sizeBlocks < top {
		m.store(sizeBlocks, top-sizeBlocks, hole)
	}
	m.size = sizeBlocks
	return nil
}
