package access

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// spoilt is a site of two stores or more. The second one finds bad bytes amid the segment that the owner appends to when it starts again:
// it keeps that as damaged, and refuses to have it made again by the owner whose records they
// are. So that owner can make its records stable only where there is a third store.
type spoilt struct {
	*cluster
	im    *image
	v     control.VolumeSpec
	skew  atomic.Int64 // of the owner's clock
	flush chan error   // of a flush that waits
}

func newSpoilt(t *testing.T, stores int) *spoilt {
	f := &spoilt{cluster: newCluster(t, 1, stores), flush: make(chan error, 1)}
	c := f.cluster
	f.v = c.volume(1<<20, 1, control.Replicated)
	env := c.env()
	clock := env.Clock
	env.Clock = func() int64 { return clock() + f.skew.Load() }
	o, err := TakeOver(context.Background(), env, f.v)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-o.Serving():
	case <-time.After(time.Minute):
		t.Fatal("it does not serve")
	}
	f.im = &image{o: o, want: make([]byte, f.v.SizeBytes), rng: rand.New(rand.NewPCG(7, 7))}
	if err := simple(o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		data := make([]byte, 4096)
		off := f.im.rng.Int64N(f.v.SizeBytes/4096) * 4096
		data[0] = 1
		if err := writeAt(o, off, data, false); err != nil {
			t.Fatal(err)
		}
		copy(f.im.want[off:], data)
	}
	var second *seat
	for _, s := range c.seats[1:] {
		for id, r := range c.replicas(s, f.v.ID) {
			if second == nil && r.State == wire.ReplicaOpen && r.End > 20<<10 {
				second = s
				c.flip(t, s, SegmentView{ID: id}, 10<<10) // a bad record before good ones
			}
		}
	}
	if second == nil {
		t.Fatal("no other store has what was written")
	}
	c.kill(second)
	c.start(second)
	flush := NewOp()
	flush.Kind = wire.OpFlush
	flush.Done = func(_ *Op, err error) { f.flush <- err }
	o.Submit(flush)
	return f
}

// refused waits until the store has refused so many copies.
func (f *spoilt) refused(t *testing.T, n int) {
	t.Helper()
	eventually(t, "the store refuses copies of the owner's own segment", func() (is bool) {
		f.im.o.ask(func() { is = f.im.o.refusedCopies >= n })
		return is
	})
}

// An owner whose own records a store will never take ends, and the next epoch makes them stable.
func TestAnOwnerWhoseSegmentIsSpoiltEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // how long the flush has waited is what matters
		f := newSpoilt(t, 2)
		o := f.im.o
		f.refused(t, copiesRefused)
		// That alone is no reason: nothing has waited for long.
		o.ask(o.everySecond)
		if err := o.Err(); err != nil {
			t.Fatalf("it ended at once: %v", err)
		}
		f.skew.Store(int64(flushSlow))
		o.ask(o.everySecond)
		select {
		case <-o.Stopped():
		case <-time.After(time.Minute):
			t.Fatal("it goes on")
		}
		if err := o.Err(); !errors.Is(err, errSpoilt) {
			t.Errorf("it ended by %v", err)
		}
		if err := <-f.flush; err == nil {
			t.Error("the flush was answered")
		}
		f.im.o = f.own(f.v)
		if err := simple(f.im.o, wire.OpFlush, 0, 0); err != nil {
			t.Fatalf("flush at the next epoch: %v", err)
		}
		f.im.check(t)
		// The other store alone has it all now.
		f.im.o.Close()
		f.kill(f.seats[0])
		f.start(f.seats[0])
		f.im.o = f.own(f.v)
		f.im.check(t)
		f.im.o.Close()
	})
}

// With a third store it goes on: what is damaged is copied there. The store says that it has less than it had acknowledged only
// in its answer to the flush, and nothing is written that would show it otherwise.
func TestADamagedOpenReplicaIsCopiedElsewhere(t *testing.T) {
	f := newSpoilt(t, 3)
	select {
	case err := <-f.flush:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the flush waits for ever")
	}
	f.im.check(t)
	f.im.o.Close()
	for _, s := range f.seats {
		f.powerCut(s)
		f.start(s)
	}
	f.im.o = f.own(f.v)
	f.im.check(t)
	f.im.o.Close()
}
