package journal

import "testing"

// Found by reading: a sealed segment near the largest size could not be copied, since more room was asked for than a store
// opens a segment with. Nor could one of trims, of which the index is a larger part than was asked for.
func TestCapacityOfCopy(t *testing.T) {
	const trims = 20 << 20 / RecordHeaderSize
	for _, c := range []struct {
		end     uint32
		records uint64
		goal    uint32
		want    uint32
	}{
		{4096, 0, SegmentCapacityGoal, SegmentCapacityGoal},
		{SegmentCapacityGoal, 1000, 1 << 20, SegmentCapacityGoal + uint32(IndexSize(1000))},
		{SegmentHeaderSize + 20<<20, trims, 1 << 20, SegmentHeaderSize + 20<<20 + uint32(IndexSize(trims))},
		{63 << 20, 100, SegmentCapacityMax, SegmentCapacityMax},
		{SegmentCapacityMax - 2048, 100, SegmentCapacityGoal, SegmentCapacityMax},
		{SegmentCapacityGoal, 1 << 63, SegmentCapacityGoal, SegmentCapacityGoal + uint32(IndexSize(SegmentCapacityMax/RecordHeaderSize))}, // a number that nobody knows
	} {
		if got := CapacityOfCopy(c.end, c.records, c.goal); got != c.want {
			t.Errorf("a segment of %d records up to %d where most have %d: room for %d, want %d", c.records, c.end, c.goal, got, c.want)
		}
	}
}
