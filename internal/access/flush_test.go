package access

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// With two servers and no third, what one lost with its power is put there again, and flushes wait for it.
func TestFlushAfterAPowerCutOfOneOfTwo(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	for range 50 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.powerCut(c.seats[1])
	c.start(c.seats[1])
	eventually(t, "a write", func() bool { return n.write(o) == nil })
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		c.powerCut(s)
	}
	o.Close()
	for _, s := range c.seats {
		c.start(s)
	}
	o = c.own(v)
	n.check(t, o, n.flushed, "after the cut of both")
	o.Close()
}

// What a former owner left in the page caches is flushed by the first flush of the next one.
func TestFlushAfterATakeoverCoversThePast(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	for round := range 10 {
		n := &numbered{blocks: 64, done: map[int]bool{}}
		o := c.own(v)
		n.check(t, o, 0, "before")
		for range 20 {
			if err := n.write(o); err != nil {
				t.Fatal(err)
			}
		}
		next := c.own(v)
		if err := n.flush(next); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.seats {
			c.powerCut(s)
		}
		o.Close()
		next.Close()
		for _, s := range c.seats {
			c.start(s)
		}
		o = c.own(v)
		n.check(t, o, n.flushed, fmt.Sprint("round ", round))
		o.Close()
	}
}

// The messages that copy a sealed segment tell its new holder how far the journal is stable, not how far it is committed: a taker that hears so
// would not make the rest stable before it answers a flush.
func TestFlushAfterATakeoverThatHearsOfACopy(t *testing.T) {
	c := newCluster(t, 1, 3)
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	if err := n.write(o); err != nil {
		t.Fatal(err)
	}
	o.ask(o.w.CloseIdle)
	var seg SegmentView
	eventually(t, "it is sealed", func() bool {
		seg = o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	var last ident.Position
	o.ask(func() { last = o.segs[seg.ID].last })
	for range 20 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	o.ask(o.publish)
	var third *seat
	for _, s := range c.seats {
		if !slices.ContainsFunc(seg.Holders, func(h HolderView) bool { return h.Store == s.id }) {
			third = s
		}
	}
	if _, err := o.copySegment(c.seat(seg.Holders[0].Store), third, seg.ID, seg.Bytes, 1, last, o.w.Start(), nil); err != nil {
		t.Fatal(err)
	}
	told, err := third.Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
	if err != nil {
		t.Fatal(err)
	}
	var stable ident.Seq
	o.ask(func() { stable = o.w.Stable().Seq })
	if told.Stable.Seq > stable {
		t.Errorf("the store that was copied to was told that everything is stable up to %d, and it is up to %d", told.Stable.Seq, stable)
	}
	next := c.own(v)
	if err := n.flush(next); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		c.powerCut(s)
	}
	o.Close()
	next.Close()
	for _, s := range c.seats {
		c.start(s)
	}
	o = c.own(v)
	n.check(t, o, n.flushed, "after the cut")
	o.Close()
}
