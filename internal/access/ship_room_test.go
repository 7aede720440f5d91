package access

import (
	"math/rand/v2"
	"slices"
	"testing"

	"dozo/internal/control"
	"dozo/internal/wire"
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

// A segment of nothing but trims has an index of three sixteenths of its records. Copies of one that is larger than segments are made now have room for it.
func TestASegmentOfTrimsIsCopied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 2 << 20
	v := c.volume(1<<20, 2, control.Replicated)
	c.kill(c.seats[2])
	c.kill(c.seats[3])
	o := c.own(v)
	large := func() bool {
		return slices.ContainsFunc(o.Segments(), func(s SegmentView) bool { return s.Sealed && s.Bytes > 1500<<10 })
	}
	for !large() {
		for i := range int64(500) {
			if err := simple(o, wire.OpTrim, i%200<<12, 4096); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.Close()
	c.limit.SegmentBytes = 64 << 10
	c.start(c.seats[2])
	c.start(c.seats[3])
	o = c.own(v)
	c.inStep(t, o)
	o.Close()
}
