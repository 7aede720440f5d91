package access

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
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

// A takeover waits for stores that will not come back. An operator gives them up, and the node that is to take over is the one that
// waits: it goes on without them.
func TestATakeoverThatWaitsHearsOfAnotherWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 4, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		was := n.served(t, v)
		if err := writeAt(was.srv.Load().Owners()[0], 0, make([]byte, 4096), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		var lost []ident.StoreID
		stop := func(x *node) {
			lost = append(lost, x.home.id)
			x.stop()
			n.kill(x.home)
		}
		stop(was)
		for _, id := range n.listed(v).Ensembles[0].Stores {
			for _, x := range n.list {
				if x.home.id == id && x != was && len(lost) < 2 {
					stop(x)
				}
			}
		}
		waiting := func() *node {
			state := n.listed(v)
			for _, x := range n.list {
				if x.name == state.Owner && x != was && x.srv.Load() != nil {
					return x
				}
			}
			return nil
		}
		eventually(t, "somebody has begun to take over", func() bool { return waiting() != nil })
		time.Sleep(5 * time.Second)
		x := waiting()
		if o := x.volumeAt(v).Owner(); o != nil && isClosed(o.Serving()) {
			t.Fatal("it has not waited for two of its stores")
		}
		_, rev, err := n.ctl.JournalNow(t.Context(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.ctl.ForceJournal(t.Context(), v.ID, rev, x.name, lost, "", 0, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if o := x.volumeAt(v).Owner(); o == nil || !isClosed(o.Serving()) || !o.forced {
			t.Error("the node goes on waiting for stores that were given up")
		}
		n.stopAll()
	})
}

// A site that was given up comes back one store after the other: the one that comes when the site is in step again is looked at, too.
func TestAForkIsFoundAtAStoreThatComesBackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
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
		n.writes(t, o, 5)
		old := o
		o = c.own(v) // this one asks the new ensemble only
		old.Close()
		c.start(c.seats[0])
		time.Sleep(time.Minute)
		c.inStep(t, o)
		c.start(c.seats[1])
		time.Sleep(time.Minute)
		for _, s := range c.seats[:2] {
			aside := 0
			for _, r := range c.replicas(s, v.ID) {
				if r.State == wire.ReplicaFork {
					aside++
				}
			}
			if aside == 0 {
				t.Errorf("store %s has what the history has not, and nothing of it is set aside", s.host)
			}
		}
		o.Close()
	})
}

// A taker by force that served nothing, or served and was given up with its site, has left its own behind as well: an owner that never
// heard of its epoch has not begun after anything of it. And what it had left behind itself is a fork by itself.
func TestWhatAnEpochHasThatNobodyHeardOfIsAFork(t *testing.T) {
	at := func(epoch, seq int) ident.Position {
		return ident.Position{Epoch: ident.Epoch{Number: uint64(epoch)}, Seq: ident.Seq(seq)}
	}
	m, err := volume.New(ident.JournalID{1}, 64)
	if err != nil {
		t.Fatal(err)
	}
	o := &Owner{m: m, epoch: at(5, 0).Epoch, log: slog.New(slog.DiscardHandler)}
	o.forks.cuts = []wire.EpochStart{{At: at(4, 87), Before: at(1, 86)}}
	for _, x := range []struct {
		epoch, seq int
		gaveUp     bool
	}{{1, 86, false}, {1, 87, true}, {2, 40, true}, {3, 86, true}, {3, 90, true}, {4, 200, false}} {
		if got := o.gaveUp(at(x.epoch, 0).Epoch, ident.Seq(x.seq)); got != x.gaveUp {
			t.Errorf("records of epoch %d up to %d: given up %v", x.epoch, x.seq, got)
		}
	}
	old, late := ident.SegmentID{Epoch: at(1, 0).Epoch}, ident.SegmentID{Epoch: at(3, 0).Epoch}
	site := wire.Replica{Segment: old.Fork(), State: wire.ReplicaFork, Last: at(1, 126), End: 4096}
	taker := wire.Replica{Segment: late.Fork(), State: wire.ReplicaFork, Last: at(3, 87), End: 4096, Start: wire.EpochStart{At: at(3, 87), Before: at(1, 86)}}
	o.learnCuts([]wire.Replica{site, taker})
	o.learnCuts([]wire.Replica{site, taker})
	var cuts []wire.Cut
	for _, c := range o.forks.cuts {
		cuts = append(cuts, wire.Cut{At: c.At, Before: c.Before})
	}
	if len(cuts) != 2 || leftBy(cuts, &site) != at(3, 0).Epoch || leftBy(cuts, &taker) != at(4, 0).Epoch {
		t.Errorf("%v: the fork of epoch 1 is left by %s, that of epoch 3 by %s", cuts, leftBy(cuts, &site), leftBy(cuts, &taker))
	}
}
