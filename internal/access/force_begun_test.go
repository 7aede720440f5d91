package access

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// shut is a store that can't be reached for some of what it is asked.
type shut struct {
	journal.Store
	opens, pushes *atomic.Bool
}

func (s *shut) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	if s.opens.Load() {
		return wire.OpenReply{}, wire.Errorf(wire.CodeUnreached, "no answer")
	}
	return s.Store.OpenSegment(ctx, m)
}

func (s *shut) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	if s.pushes.Load() {
		return wire.AppendReply{}, wire.Errorf(wire.CodeBusy, "later")
	}
	return s.Store.Push(ctx, m)
}

// endsAt is the seat of a site that has the newest record.
func (c *cluster) endsAt(v control.VolumeSpec, site ident.SiteID) (at *seat) {
	var last ident.Seq
	for _, s := range c.seats {
		if s.site != site {
			continue
		}
		for id, r := range c.replicas(s, v.ID) {
			if !id.IsCheckpoint() && r.Last.Seq > last {
				at, last = s, r.Last.Seq
			}
		}
	}
	return at
}

// A taker by force dies as soon as it has begun, and with it the store that has the end of what it found. The next one does not
// go on from less: it waits for that store, or for another word of the operator.
func TestAfterATakerByForceNobodyBeginsWithLess(t *testing.T) {
	for _, again := range []bool{false, true} {
		name := "the store comes back"
		if again {
			name = "it is forced again"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, 3)
			c.limit.SegmentBytes = 64 << 10
			c.limit.UncertainWait = 100 * time.Millisecond
			var opens, pushes atomic.Bool
			c.wrap = func(s journal.Store) journal.Store { return &shut{s, &opens, &pushes} }
			v := c.volume(1<<20, 2, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			n.writes(t, o, 100)
			c.inStep(t, o)
			c.killSite(1)
			o.Close()

			c.at(2)
			c.force(t, v, 1)
			opens.Store(true) // its start gets nowhere
			o = c.take(v)
			if !o.forced {
				t.Fatal("not forced")
			}
			o.Close()
			opens.Store(false)
			gone := c.endsAt(v, 2)
			c.kill(gone)
			for _, s := range c.seats[3:] {
				if s != gone {
					c.local = s.id
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			next, err := TakeOver(ctx, c.env(), v)
			cancel()
			if err == nil {
				next.Close()
				t.Fatalf("the next one begins after less: %s", next.recovered.Describe())
			}
			if again {
				c.force(t, v, 1)
				o = c.own(v)
				if s := c.listed(v); !o.forced || s.Forced == nil || s.Forced.Begun == nil || s.Forced.Begun.Seq >= ident.Seq(n.acked) {
					t.Errorf("forced %v, key %+v", o.forced, s.Forced)
				}
			} else {
				c.start(gone)
				o = c.own(v)
				n.check(t, o, n.acked, "with the store back")
			}
			o.Close()
		})
	}
}

// A site that had everything takes over by force. What was stable at two stores of the site that was given up is at one store
// here: a flush is answered once it is at two.
func TestAfterForceAFlushCountsOnNobodyWhoWasGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	c.limit.SegmentBytes = 64 << 10
	c.limit.RepairGrace = time.Hour // nobody else makes the copies
	var opens, pushes atomic.Bool
	c.wrap = func(s journal.Store) journal.Store { return &shut{s, &opens, &pushes} }
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 100)
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	c.inStep(t, o)
	c.killSite(1)
	o.Close()

	c.at(2)
	c.force(t, v, 1)
	pushes.Store(true)
	o = c.own(v)
	defer o.Close()
	n.check(t, o, 100, "after the failover")
	var stable ident.Seq
	o.ask(func() { stable = o.w.Stable().Seq })
	if first := o.order[0]; stable >= first.last.Seq {
		t.Errorf("everything to %d is said to be stable, and segment %s is at one store", stable, first.id)
	}
	pushes.Store(false)
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	at := map[ident.SegmentID]int{}
	for _, s := range c.seats[3:] {
		for id, r := range c.replicas(s, v.ID) {
			if r.State == wire.ReplicaSealed {
				at[id]++
			}
		}
	}
	o.ask(func() {
		for _, s := range o.order {
			if s.id.Epoch.Less(o.epoch) && at[s.id] < 2 {
				t.Errorf("a flush is answered, and segment %s is at %d stores", s.id, at[s.id])
			}
		}
	})
}

// What a store said before it set something aside knows nothing of that. The owner goes on counting the fork, and keeps the cut
// open which says that nobody has given it up.
func TestAnOlderAnswerIsNoWordAboutAFork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	c.inStep(t, o)
	c.killSite(2)
	n.writes(t, o, 5) // of these site 2 knows nothing
	c.killSite(1)
	o.Close()
	c.startSite(2)
	c.at(2)
	c.force(t, v, 1)
	o = c.own(v)
	defer o.Close()
	var asked uint64
	o.ask(func() { asked = o.strays.asks() })
	c.startSite(1)
	eventually(t, "the site that is back has been looked at", func() (all bool) {
		o.ask(func() {
			all = true
			for _, s := range c.seats {
				all = all && o.forks.looked[s.id]
			}
		})
		return all
	})
	o.ask(func() {
		for _, s := range c.seats {
			o.reported(s.id, nil, asked) // an answer that was long on its way
		}
		o.releaseCuts()
		if o.forks.closing || len(o.forks.open()) != 1 {
			t.Error("the cut is closed, and what it has left behind may go")
		}
		o.strays.asked()
	})
}
