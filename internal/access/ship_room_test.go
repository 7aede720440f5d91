package access

import (
	"math/rand/v2"
	"testing"

	"dozo/internal/control"
)

// Found by reading: segments of an owner with a larger limits.segment_size were never shipped by a successor with a smaller
// one, which opened replicas that they did not fit in.
func TestSegmentsLargerThanOnesOwnAreShipped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 512 << 10
	v := c.volume(4<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 6))}
	c.killSite(2)
	for range 200 {
		im.change(t)
	}
	c.limit.SegmentBytes = 64 << 10
	im.o.Close()
	im.o = c.own(v)
	large := 0
	for _, s := range im.o.Segments() {
		if s.Sealed && !s.ID.IsCheckpoint() && s.Bytes > 128<<10 {
			large++
		}
	}
	if large == 0 {
		t.Fatal("no large segment: the test shows nothing")
	}
	c.startSite(2)
	c.inStep(t, im.o)
	im.check(t)
}
