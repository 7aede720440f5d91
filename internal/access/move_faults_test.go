package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// The taker's node dies at each step of a hand-over, before it has heard of it or after it has done it: before the
// control store names it the old owner goes on; after, it is an owner that died. Nobody's history breaks.
func TestTheTakerDiesAtEachStep(t *testing.T) {
	t.Parallel()
	for _, sites := range []int{1, 2} {
		for _, step := range []wire.HandStep{wire.HandPrepare, wire.HandReady, wire.HandTake} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d sites/step %d/after %v", sites, step, after), func(t *testing.T) {
					rec := &blockHistory{}
					synctest.Test(t, func(t *testing.T) { takerDies(t, sites, step, after, rec) })
					if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
						t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
					}
				})
			}
		}
	}
}

func takerDies(t *testing.T, sites int, step wire.HandStep, after bool, rec *blockHistory) {
	n := newNodes(t, sites, 3, time.Second)
	n.limit.SegmentBytes = 128 << 10
	v := n.volume(1<<20, sites, control.Replicated)
	x := n.served(t, v)
	y := n.other(x, ident.SiteID(sites))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(uint64(step), uint64(i))), rec: rec, seen: map[int]blockState{}}
		wg.Go(func() { c.run(t, 3, stop) })
	}
	time.Sleep(500 * time.Millisecond)
	dies := func() {
		// Cut off is dead to everybody else, and it may find out last.
		y.cut.Store(true)
	}
	seen := 0
	n.onHandOver = func(to *node, m *wire.HandOver, done bool) {
		if to != y || m.Step != step || done != after {
			return
		}
		if seen++; seen == 1 {
			dies()
		}
	}
	_, err := x.moveTo(v, y.name, 0)
	named := step == wire.HandTake
	if err == nil {
		t.Error("the hand-over to a node that died is said to be done")
	}
	if now := n.owner(v.ID, y); !named && now != x {
		t.Errorf("before the control store has it, the old owner goes on: %v", err)
	}
	if named && sites == 1 {
		eventually(t, "another owner", func() bool { return n.owner(v.ID, y) != nil })
	} else if named {
		// Without the leave, the rest of its site owns the volume only if it has everything; else it is passed on (R10).
		eventually(t, "another owner", func() bool {
			o := n.owner(v.ID, y)
			return o != nil && (!after || o.home.site == 2)
		})
	}
	time.Sleep(time.Second)
	y.cut.Store(false)
	time.Sleep(time.Second)
	close(stop)
	wg.Wait()
	answers := 0
	rec.mu.Lock()
	for _, op := range rec.ops {
		if !op.Output.(blockOutput).unknown {
			answers++
		}
	}
	rec.mu.Unlock()
	if answers < 200 {
		t.Errorf("only %d answers", answers)
	}
	n.stopAll()
}

// The old owner's node is cut off just when it has written the change: it believes that it serves for as long as its
// grants last, and neither commits nor answers once the next owner does. When it is back it knows.
func TestTheOldOwnerWakesAfterItHasHandedOver(t *testing.T) {
	for _, sites := range []int{1, 2} {
		rec := &blockHistory{}
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, sites, 3, time.Second)
			v := n.volume(1<<20, sites, control.Replicated)
			x := n.served(t, v)
			y := n.other(x, ident.SiteID(sites))
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range 4 {
				c := &linearClient{n: n, id: i, v: v.ID, rng: rand.New(rand.NewPCG(7, uint64(i))), rec: rec, seen: map[int]blockState{}}
				wg.Go(func() { c.run(t, 3, stop) })
			}
			time.Sleep(500 * time.Millisecond)
			n.onHandOver = func(to *node, m *wire.HandOver, done bool) {
				if m.Step == wire.HandTake && !done {
					x.cut.Store(true) // its leases are not given back, and the taker never hears it
				}
			}
			if _, err := x.moveTo(v, y.name, 0); err == nil {
				t.Error("done without a word of the taker")
			}
			if x.srv.Load().mu.volumes[v.ID].Owner() != nil {
				t.Error("the old owner goes on after the control store names another")
			}
			eventually(t, "the taker serves", func() bool { return n.owner(v.ID, x) == y })
			time.Sleep(500 * time.Millisecond)
			x.cut.Store(false)
			time.Sleep(500 * time.Millisecond)
			// Cut off, it may have thought that the taker is gone, and have begun a takeover of its own.
			eventually(t, "an owner", func() bool { return n.owner(v.ID, nil) != nil })
			close(stop)
			wg.Wait()
			n.stopAll()
		})
		if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
			t.Errorf("%d sites: the history of %d commands is not linearizable: %v", sites, len(rec.ops), res)
		}
	}
}

// A paused owner: an owner object that goes on by itself though its node's server has handed its volume over can
// neither commit nor answer reads.
func TestAnOwnerThatWasHandedAwayIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		old := n.list[0].own(v)
		granted(t, old)
		if err := writeAt(old, 0, bytes.Repeat([]byte{1}, 4096), false); err != nil {
			t.Fatal(err)
		}
		// It is paused after the control store has the change: it has not given its leases back, and not stopped.
		if _, err := old.freeze(context.Background()); err != nil {
			t.Fatal(err)
		}
		_, rev, err := n.ctl.JournalNow(context.Background(), v.ID)
		if err != nil {
			t.Fatal(err)
		}
		state, rev, err := n.ctl.HandJournal(context.Background(), v.ID, rev, n.list[1].name, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		n.list[0].dark.Store(true)
		next, err := takeAt(context.Background(), n.list[1].env(), v, &handed{state: state, rev: rev})
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		<-next.Serving()
		granted(t, next)
		if err := writeAt(next, 0, bytes.Repeat([]byte{2}, 4096), false); err != nil {
			t.Fatal(err)
		}
		if _, err := readAt(old, 0, 4096); err == nil {
			t.Error("the old owner answers a read")
		}
		old.resume()
		if err := writeAt(old, 0, bytes.Repeat([]byte{3}, 4096), false); err == nil {
			t.Error("the old owner commits a write")
		}
		old.Close()
		got, err := readAt(next, 0, 4096)
		if err != nil || got[0] != 2 {
			t.Errorf("%v, %v", got[:1], err)
		}
	})
}

// To another site and back; each time the ensemble of the site that was left goes from the list in seconds, and then
// the site is lost: nothing that was acknowledged is missing.
func TestToAnotherSiteAndBackAndASiteIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 3, time.Second)
		n.limit.SegmentBytes = 128 << 10
		n.limit.CheckpointInterval = time.Minute
		v := n.volume(1<<20, 2, control.Replicated)
		x := n.served(t, v)
		rng := rand.New(rand.NewPCG(5, 5))
		want := make([]byte, v.SizeBytes)
		write := func(by *node, count int) {
			t.Helper()
			for range count {
				off := rng.Int64N(v.SizeBytes/4096) * 4096
				data := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, 4096)
				if _, err := through(by, v, wire.OpWrite, off, data, 0); err != nil {
					t.Fatal(err)
				}
				copy(want[off:], data)
			}
		}
		check := func(by *node) {
			t.Helper()
			for off := int64(0); off < v.SizeBytes; off += 64 << 10 {
				got, err := through(by, v, wire.OpRead, off, nil, 64<<10)
				if err != nil || !bytes.Equal(got, want[off:off+64<<10]) {
					t.Fatalf("at %d: %v", off, err)
				}
			}
		}
		for i := range 3 {
			write(x, 150)
			site := 3 - x.home.site
			if _, err := x.moveTo(v, "", site); err != nil {
				t.Fatalf("move %d: %v", i, err)
			}
			y := n.owner(v.ID, nil)
			if y.home.site != site {
				t.Fatalf("owned at site %d", y.home.site)
			}
			write(y, 30)
			eventually(t, "the list names the new site's ensemble only", func() bool {
				state, _, _ := n.ctl.Journal(v.ID)
				if len(state.Ensembles) != 1 {
					return false
				}
				for _, s := range state.Ensembles[0].Stores[:2] {
					if n.Site(s) != site {
						t.Fatalf("ensemble %+v", state.Ensembles)
					}
				}
				return true
			})
			check(y)
			x = y
		}
		// The other site burns.
		for _, o := range n.list {
			if o.home.site != x.home.site {
				o.stop()
				n.kill(o.home)
			}
		}
		write(x, 20)
		check(x)
		// And the owner dies too: the rest of its site has everything.
		x.stop()
		eventually(t, "another owner", func() bool { return n.owner(v.ID, nil) != nil })
		check(n.owner(v.ID, nil))
		n.stopAll()
	})
}

// What R10 prevents: the site that was moved to lacks what was acknowledged before. The site that is left is lost at
// once after the hand-over, before anything else happens.
func TestTheSiteThatWasLeftIsLostAtOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			n := newNodes(t, 2, 3, time.Second)
			n.limit.SegmentBytes = 128 << 10
			v := n.volume(1<<20, 2, control.Replicated)
			x := n.served(t, v)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			last := make([]byte, 8) // acknowledged values by block
			for b := range last {
				wg.Go(func() {
					for i := byte(1); i < 250; i++ {
						select {
						case <-stop:
							return
						case <-time.After(time.Duration(1+b) * time.Millisecond):
						}
						if s := x.srv.Load(); s == nil {
							return
						}
						if _, err := through(x, v, wire.OpWrite, int64(b)*4096, bytes.Repeat([]byte{i}, 4096), 0); err == nil {
							last[b] = i
						}
					}
				})
			}
			time.Sleep(time.Duration(50+10*seed) * time.Millisecond)
			r, err := x.moveTo(v, "", 2)
			if err != nil {
				t.Fatal(err)
			}
			close(stop)
			for _, o := range n.list {
				if o.home.site == 1 {
					o.cut.Store(true)
				}
			}
			wg.Wait()
			y := n.owner(v.ID, x)
			if y == nil || y.name != r.Taker {
				t.Fatalf("%s was to own it", r.Taker)
			}
			for b, want := range last {
				got, err := through(y, v, wire.OpRead, int64(b)*4096, nil, 4096)
				if err != nil || got[0] != want && got[0] != want+1 { // the last one may have had no answer
					t.Errorf("block %d is %v, acknowledged was %d: %v", b, got[:min(1, len(got))], want, err)
				}
			}
			for _, o := range n.list {
				o.cut.Store(false)
			}
			n.stopAll()
		})
	}
}

// A site that doesn't catch up: it is called off, and writes go on.
func TestAHandOverToASiteThatLagsIsCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 3, time.Second)
		v := n.volume(1<<20, 2, control.Replicated)
		x := n.served(t, v)
		for _, s := range n.seats {
			if s.site == 2 {
				n.kill(s)
			}
		}
		for i := range 8 {
			if _, err := through(x, v, wire.OpWrite, int64(i)<<16, bytes.Repeat([]byte{1}, 64<<10), 0); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		_, err := x.moveTo(v, "", 2)
		if took := time.Since(began); err == nil || took > 2*slowMost {
			t.Errorf("after %v: %v", took, err)
		}
		if n.owner(v.ID, nil) != x {
			t.Error("the owner is another")
		}
		if _, err := through(x, v, wire.OpWrite, 0, bytes.Repeat([]byte{2}, 4096), 0); err != nil {
			t.Error(err)
		}
		n.stopAll()
	})
}

// A node that is drained hands everything over and takes nothing, until that is ended.
func TestADrainedNodeOwnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		var list []control.VolumeSpec
		for i := range 6 {
			v, err := n.ctl.CreateVolume(context.Background(), control.VolumeSpec{Name: fmt.Sprint("v", i), SizeBytes: 1 << 20, BlockSize: 512, Sites: 1, AtSite: 1,
				Durability: control.Replicated}, []ident.SiteID{1})
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, v)
		}
		for _, x := range n.list {
			x.serve()
		}
		all := func() bool {
			for _, v := range list {
				if n.owner(v.ID, nil) == nil {
					return false
				}
			}
			return true
		}
		eventually(t, "owners", all)
		x := n.owner(list[0].ID, nil)
		if _, err := n.ctl.SetDraining(context.Background(), x.name, true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it owns nothing", func() bool { return len(x.srv.Load().Owners()) == 0 && all() })
		// The others die one after the other: what is left goes to the one that doesn't drain.
		y := n.other(x, 1)
		y.stop()
		eventually(t, "owners", all)
		if len(x.srv.Load().Owners()) != 0 {
			t.Error("a node that drains took something")
		}
		for _, v := range list {
			vol := x.volumeAt(v)
			vol.Open()
			defer vol.Close()
		}
		time.Sleep(2 * tickEvery) // it hears of the new owners' clocks
		for _, v := range list {
			if _, err := through(x, v, wire.OpWrite, 0, bytes.Repeat([]byte{9}, 4096), 0); err != nil {
				t.Errorf("through the node that drains: %v", err)
			}
		}
		if _, err := n.ctl.SetDraining(context.Background(), x.name, false); err != nil {
			t.Fatal(err)
		}
		z := n.owner(list[0].ID, nil)
		if _, err := z.moveTo(list[0], x.name, 0); err != nil {
			t.Errorf("back to it: %v", err)
		}
		n.stopAll()
	})
}

// Writers that are slowed get in at the rate, in order, and all of them in the end.
func TestSlowedWritersGetIn(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	o.ask(func() { o.setRate(100 << 10) })
	var wg sync.WaitGroup
	errs := make(chan error, 32)
	for i := range 8 {
		wg.Go(func() { errs <- writeAt(o, int64(i)*4096, bytes.Repeat([]byte{byte(i)}, 4096), false) })
	}
	wg.Wait()
	o.ask(func() {
		o.setRate(1)
		o.move.budget = 0 // what may have been saved up
	})
	for i := range 4 {
		wg.Go(func() { errs <- writeAt(o, int64(i)*4096, bytes.Repeat([]byte{7}, 4096), false) })
	}
	eventually(t, "writers wait", func() (yes bool) { o.ask(func() { yes = len(o.move.slowed) >= 3 }); return yes })
	o.resume()
	wg.Wait()
	for range 12 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Stamps of the epoch before are judged as there, and by their age here.
func TestStampsOfTheEpochBefore(t *testing.T) {
	first, second := ident.Epoch{Number: 1, Lineage: 1}, ident.Epoch{Number: 2, Lineage: 1}
	nexus := &wire.Nexus{Initiator: "i", Digest: [16]byte{1}}
	old := newLate()
	old.bar(&wire.Bar{Kind: wire.BarLogin, Nexus: *nexus, Session: 2}, 5000)
	old.bar(&wire.Bar{Kind: wire.BarAbortTask, Forwarder: 9, First: 4, Last: 4}, 5000)
	op := func(session uint64, tick uint64, kind wire.ForwardOp) *Op {
		return &Op{Kind: kind, Nexus: nexus, Session: session, Stamp: wire.Stamp{Epoch: first, Tick: tick}, Request: wire.RequestID{Forwarder: 9, Number: 5}, count: 1}
	}
	if err := old.check(op(2, 5900, wire.OpWrite), first, 5950); err != nil {
		t.Fatal(err)
	}
	old.arrived(op(2, 5900, wire.OpWrite), 5960)
	m := &wire.HandOver{Epoch: first, Stopped: 6000, Prior: 90_000}
	old.give(m)
	next := newLate()
	next.before = newLateBefore(m)
	for name, x := range map[string]struct {
		op  *Op
		now uint64
		ok  bool
	}{
		"fresh":                                {op(2, 5990, wire.OpWrite), 90_100, true},
		"from before a newer login":            {op(1, 4999, wire.OpRead), 90_100, false},
		"older than another session's write":   {op(3, 5950, wire.OpWrite), 90_100, false},
		"a read older than that":               {op(3, 5950, wire.OpRead), 90_100, true},
		"the session's own order":              {op(2, 5950, wire.OpWrite), 90_100, true},
		"too old by now":                       {op(2, 5990, wire.OpRead), 93_100, false},
		"older than the clock here goes back":  {op(2, 1, wire.OpRead), 90_100, false},
		"of an epoch that was not handed over": {&Op{Kind: wire.OpRead, Nexus: nexus, Stamp: wire.Stamp{Epoch: ident.Epoch{Number: 1, Lineage: 2}, Tick: 5990}}, 90_100, false},
	} {
		if err := next.check(x.op, second, x.now); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		} else if err != nil && !errors.Is(err, wire.ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
	aborted := op(2, 5990, wire.OpWrite)
	aborted.Request.Number = 4
	if next.check(aborted, second, 90_100) == nil {
		t.Error("an aborted command runs")
	}
	// A refusal here concerns stamps of there.
	next.bar(&wire.Bar{Kind: wire.BarLUNReset}, 90_050)
	if next.check(op(2, 6000, wire.OpRead), second, 90_100) == nil {
		t.Error("older than a reset, and it runs")
	}
}
