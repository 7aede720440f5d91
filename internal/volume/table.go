package volume

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"unsafe"

	"dozo/internal/ident"
)

// chunkSlots is how many slots of the segment table make one part of a checkpoint.
const chunkSlots = 256

// Segment is what the segment table says of a segment. Before, Last and End are only ever moved to records
// that are committed.
type Segment struct {
	ID      ident.SegmentID
	Before  ident.Position // before its first record
	Last    ident.Position // after its last record, as far as Extend or Seal have said
	End     uint32         // offset behind that record
	Sealed  bool
	Retired bool // a retire record has named it: nothing maps to it, nothing may again

	// Of a checkpoint segment: parts that the last finished or the running checkpoint needs, and bytes of
	// all parts. Of a segment of the history: blocks mapped to it.
	Live      uint32
	LiveBytes uint64
	PartBytes uint64
}

// chunk is a piece of the segment table: chunkSlots segments, or fewer as long as there are no more. A running
// checkpoint shares the chunks; what changes one clones it first.
type chunk []Segment

// chunkFirst is how long a chunk is at first. Most volumes never have more segments, and there are thousands of volumes.
const chunkFirst = 16

// partCount counts the parts in a checkpoint segment.
type partCount struct {
	live      uint32
	liveBytes uint64
	bytes     uint64
}

// table is the segment table: segments by slot. The live counts of the history's segments are in the tally
// beside it, since they change with every write.
type table struct {
	chunks []chunk
	shared []bool // by chunk: a running checkpoint has it too
	used   []bool // by slot
	free   []Slot // in reverse order of use
	limbo  []Slot // free once the running checkpoint is over
	slots  map[ident.SegmentID]Slot
	parts  map[Slot]partCount // of checkpoint segments
	dead   map[Slot]ident.Position
	ended  map[Slot]ident.Position // see Ended
	bare   []Slot                  // to which the loaded checkpoint maps nothing, and of which it doesn't know the end
	locs   []location              // by chunk, in the last finished checkpoint
	dying  []uint64                // by chunk: what DyingBytes counted when it looked last; the tally knows where to look again
	dies   uint64                  // the sum of dying
}

func newTable() table {
	return table{slots: map[ident.SegmentID]Slot{}, parts: map[Slot]partCount{},
		dead: map[Slot]ident.Position{}, ended: map[Slot]ident.Position{}}
}

func (t *table) memory() int64 {
	const perSlot = 1 + 4 + 4 + 8 + 64 // used, live, free, location's share, the map from IDs (about)
	n := 0
	for _, c := range t.chunks {
		n += len(c)
	}
	return int64(n)*int64(unsafe.Sizeof(Segment{})) + int64(len(t.used))*perSlot
}

// at gives the segment for reading.
func (t *table) at(s Slot) *Segment { return &t.chunks[s/chunkSlots][s%chunkSlots] }

// has reports that the slot is in use.
func (t *table) has(s Slot) bool { return s != 0 && int(s) < len(t.used) && t.used[s] }

// grow makes room for slots up to s.
func (m *Map) grow(s Slot) {
	t := &m.table
	for len(t.chunks) <= int(s/chunkSlots) {
		t.chunks = append(t.chunks, nil)
		t.shared = append(t.shared, false)
		t.locs = append(t.locs, location{})
		m.tally.dirty = append(m.tally.dirty, false)
		m.tally.turned = append(m.tally.turned, false)
		t.dying = append(t.dying, 0)
		t.used = append(t.used, make([]bool, chunkSlots)...)
		m.tally.live = append(m.tally.live, make([]uint32, chunkSlots)...)
	}
	c, i := s/chunkSlots, int(s%chunkSlots)
	if n := len(t.chunks[c]); i >= n {
		for n = max(n, chunkFirst); n <= i; n *= 2 {
		}
		longer := make(chunk, n)
		copy(longer, t.chunks[c])
		t.chunks[c], t.shared[c] = longer, false
	}
}

// edit gives the segment for changing.
func (m *Map) edit(s Slot) *Segment {
	t := &m.table
	c := s / chunkSlots
	if t.shared[c] {
		t.chunks[c], t.shared[c] = slices.Clone(t.chunks[c]), false
	}
	m.tally.dirty[c] = true
	m.tally.turned[c] = true
	return &t.chunks[c][s%chunkSlots]
}

// AddSegment enters a segment in the table and returns its slot. One that is there already keeps its slot
// and is not changed.
func (m *Map) AddSegment(seg Segment) (Slot, error) {
	t := &m.table
	if s, ok := t.slots[seg.ID]; ok {
		return s, nil
	}
	var s Slot
	if n := len(t.free); n > 0 {
		s, t.free = t.free[n-1], t.free[:n-1]
	} else {
		s = m.fresh
		if s >= slotMax {
			return 0, fmt.Errorf("segment table of journal %s is full: %d segments", m.journal, slotMax-1)
		}
		m.fresh++
	}
	m.place(s, seg)
	return s, nil
}

// place puts a segment into a slot that is known to be free.
func (m *Map) place(s Slot, seg Segment) {
	m.grow(s)
	t := &m.table
	seg.Live, seg.LiveBytes, seg.PartBytes = 0, 0, 0
	*m.edit(s) = seg
	t.used[s] = true
	t.slots[seg.ID] = s
	if seg.ID.IsCheckpoint() {
		t.parts[s] = partCount{}
	}
}

// Slot finds a segment.
func (m *Map) Slot(id ident.SegmentID) (Slot, bool) {
	s, ok := m.table.slots[id]
	return s, ok
}

// Segment gives what the table says of a slot, live counts included; false if the slot is free.
func (m *Map) Segment(s Slot) (Segment, bool) {
	if !m.table.has(s) {
		return Segment{}, false
	}
	seg := *m.table.at(s)
	if n, ok := m.table.parts[s]; ok {
		seg.Live, seg.LiveBytes, seg.PartBytes = n.live, n.liveBytes, n.bytes
	} else {
		seg.Live = m.tally.live[s]
		seg.LiveBytes = uint64(seg.Live) * blockSize
	}
	return seg, true
}

// Extend says how far a segment that is still open reaches.
func (m *Map) Extend(s Slot, last ident.Position, end uint32) error {
	return m.close(s, last, end, false)
}

// Seal says where a segment ends for good.
func (m *Map) Seal(s Slot, last ident.Position, end uint32) error {
	return m.close(s, last, end, true)
}

func (m *Map) close(s Slot, last ident.Position, end uint32, sealed bool) error {
	if !m.table.has(s) {
		return fmt.Errorf("slot %d of the segment table is free", s)
	}
	was := m.table.at(s)
	if was.Sealed && (!sealed || was.Last != last || was.End != end) {
		return fmt.Errorf("segment %s is sealed at %s, offset %d; not %s, offset %d", was.ID, was.Last, was.End, last, end)
	}
	if was.Last == last && was.End == end && was.Sealed == sealed {
		return nil
	}
	seg := m.edit(s)
	seg.Last, seg.End, seg.Sealed = last, end, sealed
	return nil
}

// Ended says that a former owner's segment of the history ends at last, where nobody is known who has it and could say at which offset: the
// next segment begins there. From then on it may be one of DeadSegments, as if it were sealed.
func (m *Map) Ended(s Slot, last ident.Position) {
	if !m.table.has(s) || m.table.at(s).Sealed {
		return
	}
	m.table.ended[s] = last
	if last.Seq <= m.point.At.Seq && slices.Contains(m.table.bare, s) && !m.table.at(s).Retired {
		m.table.dead[s] = m.point.At
		m.turn(s)
	}
}

// Retire notes that a retire record has named the segment (R13). A segment that something maps to can't be
// retired: the record is wrong, and the map says so rather than lose blocks.
func (m *Map) Retire(s Slot) error {
	seg, ok := m.Segment(s)
	switch {
	case !ok:
		return fmt.Errorf("slot %d of the segment table is free", s)
	case seg.Retired:
		return nil
	case seg.Live != 0 && !m.pendingMayFree(s):
		return fmt.Errorf("segment %s is retired but %d live blocks or parts are in it", seg.ID, seg.Live)
	}
	m.edit(s).Retired = true
	delete(m.table.dead, s)
	return nil
}

// pendingMayFree reports that what the count says of a slot may be too much: leaves that are pending still
// count what newer records have replaced. A new owner that replays a retire record meets this.
func (m *Map) pendingMayFree(s Slot) bool {
	return m.pending > 0 && !m.table.at(s).ID.IsCheckpoint()
}

// Remove takes a segment out of the table once no replica of it is left. Its slot may be used again; while a
// checkpoint is running that still knows the segment, only after it.
func (m *Map) Remove(s Slot) error {
	seg, ok := m.Segment(s)
	if !ok {
		return fmt.Errorf("slot %d of the segment table is free", s)
	}
	if seg.Live != 0 {
		return fmt.Errorf("segment %s can't be removed: %d live blocks or parts are in it", seg.ID, seg.Live)
	}
	t := &m.table
	*m.edit(s) = Segment{}
	t.used[s] = false
	delete(t.slots, seg.ID)
	delete(t.parts, s)
	delete(t.dead, s)
	delete(t.ended, s)
	if m.cp != nil {
		t.limbo = append(t.limbo, s)
	} else {
		t.free = append(t.free, s)
	}
	return nil
}

// release makes the slots free that waited for the end of a checkpoint.
func (t *table) release() {
	t.free = append(t.free, t.limbo...)
	t.limbo = t.limbo[:0]
}

// Segments lists the table's segments: those of the history in order of seq, then those of checkpoints in
// order of their IDs.
func (m *Map) Segments() iter.Seq2[Slot, Segment] {
	return func(yield func(Slot, Segment) bool) {
		order := make([]Slot, 0, len(m.table.slots))
		for s, used := range m.table.used {
			if used {
				order = append(order, Slot(s))
			}
		}
		slices.SortFunc(order, func(a, b Slot) int {
			x, y := m.table.at(a), m.table.at(b)
			if c := compareBool(x.ID.IsCheckpoint(), y.ID.IsCheckpoint()); c != 0 {
				return c
			}
			if !x.ID.IsCheckpoint() {
				if c := cmp.Compare(x.Before.Seq, y.Before.Seq); c != 0 {
					return c
				}
			}
			return x.ID.Compare(y.ID)
		})
		for _, s := range order {
			seg, ok := m.Segment(s)
			if ok && !yield(s, seg) {
				return
			}
		}
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Dead is a segment that no checkpoint from At on needs.
type Dead struct {
	Slot    Slot
	Segment ident.SegmentID
	At      ident.Position // what the first finished checkpoint without it covers
}

// DeadSegments lists segments that are sealed or have Ended, in order of slots, to which nothing maps since the last finished
// checkpoint or an earlier one: neither that checkpoint nor the replay from it needs them. They may be
// retired once every site that could still start from an older checkpoint has a prefix beyond At and that
// checkpoint (R12), and no pin needs them (R13).
func (m *Map) DeadSegments() []Dead {
	dead := make([]Dead, 0, len(m.table.dead))
	for s, at := range m.table.dead {
		dead = append(dead, Dead{s, m.table.at(s).ID, at})
	}
	slices.SortFunc(dead, func(a, b Dead) int { return cmp.Compare(a.Slot, b.Slot) })
	return dead
}

// DeadAt says since which finished checkpoint a segment is one of DeadSegments, and false if it is none.
func (m *Map) DeadAt(s Slot) (at ident.Position, dead bool) {
	at, dead = m.table.dead[s]
	return at, dead
}

// DyingBytes is how much the segments of the history take that only the last finished checkpoint or the replay from it
// needs: DeadSegments will list them once there is another one. It is asked for many times a second, and counts only where
// something has changed.
func (m *Map) DyingBytes() uint64 {
	t := &m.table
	for c, turned := range m.tally.turned {
		if !turned {
			continue
		}
		m.tally.turned[c] = false
		t.dies -= t.dying[c]
		t.dying[c] = m.dyingIn(c)
		t.dies += t.dying[c]
	}
	return t.dies
}

// dyingIn counts one chunk of the table.
func (m *Map) dyingIn(c int) (sum uint64) {
	first := c * chunkSlots
	for s, used := range m.table.used[first:min(first+chunkSlots, len(m.table.used))] {
		slot := Slot(first + s)
		if !used || m.live[slot] != 0 {
			continue
		}
		seg := m.table.at(slot)
		if !seg.Sealed || seg.Retired || seg.ID.IsCheckpoint() {
			continue
		}
		if _, ok := m.table.dead[slot]; !ok {
			sum += uint64(seg.End)
		}
	}
	return sum
}

// hold counts a part at its new place, drop at one that is no longer needed.
func (m *Map) hold(l location) {
	n := m.table.parts[l.slot]
	n.live++
	n.liveBytes += uint64(partSize(l.size))
	n.bytes += uint64(partSize(l.size))
	m.table.parts[l.slot] = n
}

func (m *Map) drop(l location) {
	if l.none() {
		return
	}
	n := m.table.parts[l.slot]
	n.live--
	n.liveBytes -= uint64(partSize(l.size))
	m.table.parts[l.slot] = n
}

// Garbage gives the bytes of parts in checkpoint segments that can't be freed as a whole: the parts that are
// needed, and the others.
func (m *Map) Garbage() (live, garbage uint64) {
	for _, n := range m.table.parts {
		if n.live > 0 {
			live += n.liveBytes
			garbage += n.bytes - n.liveBytes
		}
	}
	return live, garbage
}
