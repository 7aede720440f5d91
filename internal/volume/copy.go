package volume

import (
	"fmt"
	"math"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// Copy applies a copy record: count blocks from block on become what those from source on are right before the
// record, also where the two overlap. Nothing is moved: both then lie at the same place of the history, which stays
// alive until neither maps to it. Where that is, is this map's own: a record that a takeover put elsewhere is found
// where it is now. If a leaf of the source is needed that isn't in memory, nothing has happened: load that and call
// again.
func (m *Map) Copy(seq ident.Seq, block, source uint64, count uint32) (need LeafID, err error) {
	if seq <= m.applied {
		return NoLeaf, nil
	}
	switch {
	case seq != m.applied+1:
		return NoLeaf, fmt.Errorf("copy %d applied after %d", seq, m.applied)
	case count > journal.CopyBlocksMax || max(block, source) > BlocksMax || uint64(count) > BlocksMax-max(block, source):
		return NoLeaf, fmt.Errorf("copy %d: blocks %d+%d to %d, which are beyond any volume", seq, source, count, block)
	}
	pieces, need := m.Lookup(source, count, m.pieces[:0])
	if need != NoLeaf {
		return need, nil
	}
	m.pieces = pieces[:0]
	for i := range pieces {
		if p := &pieces[i]; !p.Hole() && uint64(m.live[p.Slot])+uint64(count) > math.MaxUint32 {
			return NoLeaf, fmt.Errorf("copy %d: segment %s has %d live blocks already", seq, p.Segment, m.live[p.Slot])
		}
	}
	for i := range pieces {
		p, e := &pieces[i], hole
		if !p.Hole() {
			e = makeEntry(p.Slot, p.Record, uint32(p.First))
		}
		m.store(block+p.Block-source, uint64(p.Count), e)
	}
	m.applied = seq
	return NoLeaf, nil
}

// sharedMax bounds how often the blocks of one segment may be referred to: far from where a count of live blocks ends,
// with room for all copies that are under way when it is reached.
const sharedMax = 1 << 31

// MayCopy reports whether the blocks may be copied by Copy as they are now: what they refer to isn't referred to too
// often. If a leaf is needed that isn't in memory, its number is returned. Until Evict, Copy needs no leaf then.
func (m *Map) MayCopy(source uint64, count uint32) (yes bool, need LeafID) {
	pieces, need := m.Lookup(source, count, m.pieces[:0])
	if need != NoLeaf {
		return false, need
	}
	m.pieces = pieces[:0]
	for i := range pieces {
		if p := &pieces[i]; !p.Hole() && m.live[p.Slot] > sharedMax {
			return false, NoLeaf
		}
	}
	return true, NoLeaf
}
