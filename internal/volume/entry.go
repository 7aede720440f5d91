package volume

import "dozo/internal/journal"

// Slot numbers a segment in the segment table of one Map. Slot 0 is no segment.
type Slot uint32

// slotMax bounds the segment table: 16 Mi segments of 32 MiB are 512 TiB of history, and the list of the
// table's parts still fits the root of a checkpoint.
const slotMax = 1 << 24

// entry says where a block lies, in 64 bits: slot 32 | record offset/8 23 | block within the record 9.
type entry uint64

const (
	hole    entry = 0 // not mapped: reads as zeroes
	unknown entry = 1 // what the leaf's part says, which isn't in memory; only in pending leaves

	firstBits = 9 // journal.RecordBodyMax is 512 blocks
	firstMask = 1<<firstBits - 1
)

func makeEntry(s Slot, record uint32, first uint32) entry {
	return entry(s)<<32 | entry(record/journal.Alignment)<<firstBits | entry(first)
}

func (e entry) slot() Slot     { return Slot(e >> 32) }
func (e entry) record() uint32 { return uint32(e) >> firstBits * journal.Alignment }
func (e entry) first() uint16  { return uint16(e & firstMask) }

// plus is the entry of the block that is n blocks further on in the same record.
func (e entry) plus(n int) entry {
	if e.slot() == 0 {
		return e
	}
	return e + entry(n)
}

// follows reports that b is n blocks behind a in the same record, or that both are unknown.
func follows(a entry, n int, b entry) bool {
	return a.plus(n) == b && a>>firstBits == b>>firstBits
}

// tally counts live blocks. dirty marks the chunks of the segment table whose counts have changed since a
// checkpoint took them.
type tally struct {
	live   []uint32 // by slot: blocks mapped to the segment
	dirty  []bool   // by slot/chunkSlots
	turned []bool   // likewise: a count has become 0, or is no longer; see Map.DyingBytes. A checkpoint's tally has none
	mapped uint64   // the sum of live
}

func (t *tally) turn(s Slot) {
	if c := s / chunkSlots; int(c) < len(t.turned) {
		t.turned[c] = true
	}
}

func (t *tally) drop(e entry, n int) {
	s := e.slot()
	if s == 0 {
		return
	}
	if t.live[s] -= uint32(n); t.live[s] == 0 {
		t.turn(s)
	}
	t.dirty[s/chunkSlots] = true
	t.mapped -= uint64(n)
}

func (t *tally) add(e entry, n int) {
	s := e.slot()
	if s == 0 {
		return
	}
	if t.live[s] == 0 {
		t.turn(s)
	}
	t.live[s] += uint32(n)
	t.dirty[s/chunkSlots] = true
	t.mapped += uint64(n)
}
