package journal

import "testing"

// Found by reading: a sealed segment near the largest size could not be copied, since more room was asked for than a store
// opens a segment with.
func TestCapacityOfCopy(t *testing.T) {
	for _, c := range []struct{ end, goal, want uint32 }{
		{4096, SegmentCapacityGoal, SegmentCapacityGoal},
		{SegmentCapacityGoal, 1 << 20, SegmentCapacityGoal + SegmentCapacityGoal/8 + 1<<16},
		{63 << 20, SegmentCapacityMax, SegmentCapacityMax},
		{SegmentCapacityMax - 4096, SegmentCapacityGoal, SegmentCapacityMax},
	} {
		if got := CapacityOfCopy(c.end, c.goal); got != c.want {
			t.Errorf("a segment up to %d where most have %d: room for %d, want %d", c.end, c.goal, got, c.want)
		}
	}
}
