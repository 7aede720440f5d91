package access

import (
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A site loses its power just after the replicas of segments have gone that a checkpoint has made superfluous. What is in front of them is
// there, and the segment behind them, which announces the checkpoint; but no store knows any more that so much was committed. The history
// does not end in front of the hole.
func TestWhatWasRetiredIsNoHole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	var since atomic.Pointer[ident.Position]
	var mute atomic.Bool
	c.wrap = func(s journal.Store) journal.Store { return &untold{s, false, &since, &mute} }
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20) // some blocks stay as they are
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	var at ident.Position
	o.ask(func() { at = o.w.Commit() })
	since.Store(&at)
	again := make([]byte, 4096)
	for i := range 60 { // and one is written again and again
		again[0] = byte(i)
		if err := writeAt(o, 63*4096, again, false); err != nil {
			t.Fatal(err)
		}
	}
	allSealed(t, o)
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all that is between the first segments and the last one has gone", func() bool {
		_ = simple(o, wire.OpFlush, 0, 0)
		o.look()
		o.ask(func() { o.retireSome(); o.dropSome(); o.sendDrops() })
		var end ident.Seq // of what was written first
		var open, between int
		o.ask(func() {
			for _, s := range o.order {
				if !s.sealed {
					open++
				}
			}
		})
		for _, s := range c.seats {
			for id, r := range c.replicas(s, v.ID) {
				if r.State == wire.ReplicaSealed && !id.IsCheckpoint() {
					if r.Before.Seq > at.Seq {
						between++
					} else {
						end = max(end, r.Last.Seq)
					}
				}
			}
		}
		return open == 1 && between == 0 && end >= 20
	})
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	c.cutSite(1)
	o.Close()
	since.Store(nil)
	c.startSite(1)
	said := c.survey(t, v)
	o = c.own(v)
	said.is(t, o)
	got, err := readAt(o, 63*4096, 4096)
	if err != nil || got[0] != 59 {
		t.Fatalf("the block that was flushed last begins with %d, %v", got[0], err)
	}
	o.Close()
}
