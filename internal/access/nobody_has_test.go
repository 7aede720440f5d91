package access

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A segment was retired, and all sites had obeyed; then the record of that was left behind by a takeover by force, which finds the checkpoint that
// does not need it. Nobody has it, and the other sites are not to wait for it. Nor where it was sealed only while that checkpoint was made, which
// then doesn't say where it ends.
func TestWhatNobodyHasAndNothingNeedsIsNotWaitedFor(t *testing.T) {
	for name, late := range map[string]bool{"sealed before the checkpoint": false, "sealed during the checkpoint": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whatNobodyHas(t, late)
		})
	}
}

func whatNobodyHas(t *testing.T, late bool) {
	c := newCluster(t, 2, 2)
	var held atomic.Bool
	let := make(chan struct{})
	c.wrap = func(s journal.Store) journal.Store {
		return sealedLate{s, &held, let}
	}
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(128<<10, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(6, 1))}
	o := im.o
	c.killSite(2)
	held.Store(late)
	for i := range 2 {
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			data := bytes.Repeat([]byte{byte(i + 1)}, 32<<10)
			if err := writeAt(o, off, data, false); err != nil {
				t.Fatal(err)
			}
			copy(im.want[off:], data)
		}
	}
	first := o.Segments()[0].ID
	if late {
		if err := o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		held.Store(false)
		close(let)
		eventually(t, "the first segment is sealed", func() (yes bool) {
			o.ask(func() { yes = o.segs[first].sealed && o.goodAt(o.segs[first], 1) == 2 })
			return yes
		})
	} else {
		var dead bool
		eventually(t, "nothing needs the first segment", func() bool {
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			o.ask(func() { _, dead = o.m.DeadAt(o.segs[first].slot) })
			return dead
		})
	}
	o.Close()
	for _, s := range c.seats[:2] {
		if _, err := s.Drop(t.Context(), &wire.Drop{Epoch: first.Epoch, Segment: first, Permit: 1}); err != nil {
			t.Fatal(err)
		}
	}
	im.o = c.own(v)
	eventually(t, "nothing is waited for", func() bool {
		var n int
		im.o.ask(func() { im.o.awaited(); n = im.o.repair.awaited })
		return n == 0
	})
	c.startSite(2)
	c.inStep(t, im.o)
	im.check(t)
	im.o.Close()
	c.killSite(1)
	c.force(t, v, 1)
	c.at(2)
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// sealedLate is a store that seals no segment of the history while seals are held.
type sealedLate struct {
	journal.Store
	held *atomic.Bool
	let  chan struct{}
}

func (s sealedLate) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	if s.held.Load() && !m.Segment.IsCheckpoint() {
		select {
		case <-s.let:
		case <-ctx.Done():
			return wire.SealReply{}, ctx.Err()
		}
	}
	return s.Store.Seal(ctx, m)
}
