package volume

import "dozo/internal/ident"

// Piece is a run of blocks of the volume and where it lies: in one record, or nowhere.
type Piece struct {
	Block   uint64
	Count   uint32
	Slot    Slot // 0: a hole, which reads as zeroes; the rest is zero then
	Segment ident.SegmentID
	Record  uint32 // offset of the record's header in the segment
	First   uint16 // first block within the record's body
}

// Hole reports that nothing is mapped.
func (p *Piece) Hole() bool { return p.Slot == 0 }

// Lookup appends to dst where count blocks from block on lie, as few pieces as there can be. If it needs a
// leaf that isn't in memory, it returns dst as it was and the leaf's number, else NoLeaf: load it (Locate,
// Loaded) and ask again.
func (m *Map) Lookup(block uint64, count uint32, dst []Piece) (pieces []Piece, need LeafID) {
	start := len(dst)
	for end := block + uint64(count); block < end; {
		id := LeafID(block >> leafShift)
		a := int(block & (leafBlocks - 1))
		b := int(min(leafBlocks, uint64(a)+end-block))
		var l *leaf
		if p := m.page(uint64(id) >> pageShift); p != nil {
			r := &p.refs[int(id)&(pageSize-1)]
			if l = r.leaf; l == nil && !r.loc.none() {
				return dst[:start], id
			}
		}
		if l == nil {
			dst = m.piece(dst, start, block, hole, b-a)
			block += uint64(b - a)
			continue
		}
		l.used = true
		for a < b {
			e, n := l.run(a, b)
			if e == unknown {
				return dst[:start], id
			}
			dst = m.piece(dst, start, block, e, n)
			a, block = a+n, block+uint64(n)
		}
	}
	return dst, NoLeaf
}

// piece appends a run, or lengthens the last piece by it where that goes on in the same record or hole.
func (m *Map) piece(dst []Piece, start int, block uint64, e entry, n int) []Piece {
	if len(dst) > start {
		last := &dst[len(dst)-1]
		if last.Slot == 0 && e == hole || last.Slot != 0 && e != hole &&
			follows(makeEntry(last.Slot, last.Record, uint32(last.First)), int(last.Count), e) {
			last.Count += uint32(n)
			return dst
		}
	}
	if e == hole {
		return append(dst, Piece{Block: block, Count: uint32(n)})
	}
	s := e.slot()
	return append(dst, Piece{Block: block, Count: uint32(n), Slot: s, Segment: m.table.at(s).ID, Record: e.record(), First: e.first()})
}

// Provisioned reports whether block is mapped and for how many blocks from there on, at most most and not
// beyond the volume's end, that stays so. The run may be cut short before a leaf that isn't in memory; if
// block itself is in such a leaf, its number is returned.
func (m *Map) Provisioned(block, most uint64) (mapped bool, run uint64, need LeafID) {
	if block >= m.size {
		return false, 0, NoLeaf
	}
	end := block + min(most, m.size-block)
	for at := block; at < end; {
		id := LeafID(at >> leafShift)
		a := int(at & (leafBlocks - 1))
		b := int(min(leafBlocks, uint64(a)+end-at))
		p := m.page(uint64(id) >> pageShift)
		var l *leaf
		n := uint64(b - a)
		if p == nil {
			// The rest of the page is holes.
			n = min(end-at, pageSize*leafBlocks-at&(pageSize*leafBlocks-1))
		} else {
			r := &p.refs[int(id)&(pageSize-1)]
			if l = r.leaf; l == nil && !r.loc.none() {
				if run == 0 {
					return false, 0, id
				}
				return mapped, run, NoLeaf
			}
		}
		if l == nil {
			if run > 0 && mapped {
				return mapped, run, NoLeaf
			}
			at, run = at+n, run+n
			continue
		}
		for a < b {
			e, n := l.run(a, b)
			if e == unknown {
				if run == 0 {
					return false, 0, id
				}
				return mapped, run, NoLeaf
			}
			if run > 0 && mapped != (e != hole) {
				return mapped, run, NoLeaf
			}
			mapped = e != hole
			a, at, run = a+n, at+uint64(n), run+uint64(n)
		}
	}
	return mapped, run, NoLeaf
}
