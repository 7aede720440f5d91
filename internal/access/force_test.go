package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// force gives a journal to n1 without the stores of a site.
func (c *cluster) force(t *testing.T, v control.VolumeSpec, lost ident.SiteID) control.JournalState {
	t.Helper()
	return c.forceTo(t, v, lost, "n1")
}

func (c *cluster) forceTo(t *testing.T, v control.VolumeSpec, lost ident.SiteID, to ident.NodeName) control.JournalState {
	t.Helper()
	state, rev, err := c.ctl.JournalNow(context.Background(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	var gone []ident.StoreID
	for _, e := range state.Ensembles {
		for _, s := range e.Stores {
			if c.Site(s) == lost {
				gone = append(gone, s)
			}
		}
	}
	state, _, err = c.ctl.ForceJournal(context.Background(), v.ID, rev, to, gone, "", 0, false)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// at has the next owners be at a site.
func (c *cluster) at(site ident.SiteID) {
	c.site = site
	for _, s := range c.seats {
		if s.site == site {
			c.local = s.id
			break
		}
	}
}

func (n *numbered) writes(t *testing.T, o *Owner, count int) {
	t.Helper()
	for range count {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) listed(v control.VolumeSpec) control.JournalState {
	state, _, err := c.ctl.JournalNow(context.Background(), v.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	return state
}

// A site burns with what it had not shipped; another one goes on from the longest prefix, says what is lost, and once the
// site is back what it had beyond is a fork, the rest of its replicas is used as it is, and the site is whole again.
func TestSiteFailover(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		for _, sealed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d nodes, sealed %v", nodes, sealed), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 3, nodes)
				c.limit.SegmentBytes = 64 << 10
				v := c.volume(1<<20, 3, control.Replicated)
				n := &numbered{blocks: 64, done: map[int]bool{}}
				o := c.own(v)
				n.writes(t, o, 100)
				c.inStep(t, o)
				if err := o.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				n.writes(t, o, 30)
				c.inStep(t, o)
				had := n.acked
				o.ask(o.tellSites)
				// The links break before the site burns.
				c.killSite(2)
				c.killSite(3)
				beyond := 7
				if sealed {
					beyond = 40
				}
				n.writes(t, o, beyond)
				if sealed {
					o.ask(func() { o.w.CloseIdle() })
					time.Sleep(50 * time.Millisecond)
				}
				c.killSite(1)
				o.Close()
				c.startSite(2)
				c.startSite(3)

				c.at(2)
				state := c.force(t, v, 1)
				if state.Forced == nil {
					t.Fatal("not forced")
				}
				o = c.own(v)
				if o.proven || !o.forced {
					t.Errorf("proven %v, forced %v", o.proven, o.forced)
				}
				n.check(t, o, had, "after the failover")
				if n.acked != had {
					t.Errorf("the newest write is %d, site 2 had %d", n.acked, had)
				}
				n.writes(t, o, 60)
				// Another owner at once, while the lost stores are still listed, knows as much.
				old := o
				o = c.own(v)
				old.Close()
				if o.forced {
					t.Error("the next owner is forced too")
				}
				n.check(t, o, n.acked, "after another takeover")
				n.writes(t, o, 60)
				if err := o.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the lost ensemble leaves the list", func() bool {
					o.ask(func() { o.repairSome(time.Duration(o.env.Clock())) })
					o.ask(o.dropEnsembles)
					s := c.listed(v)
					return len(s.Ensembles) == 1 && s.Forced == nil
				})
				// The site returns.
				before := counter(o.env.Metrics.ShippedBytes)
				c.startSite(1)
				c.inStep(t, o)
				shipped := counter(o.env.Metrics.ShippedBytes) - before
				if most := float64(3*64<<10 + 200*(4096+256)); shipped > most {
					t.Errorf("%v bytes were shipped to the site that is back, of a history of %v", shipped, most)
				}
				forks := c.events("volume.fork")
				if len(forks) == 0 {
					eventually(t, "the fork is reported", func() bool { forks = c.events("volume.fork"); return len(forks) > 0 })
				}
				if want := fmt.Sprintf("site 1 keeps %d writes", beyond); !strings.Contains(strings.Join(forks, "\n"), want) {
					t.Errorf("events: %q, want %q", forks, want)
				}
				n.check(t, o, n.acked, "with the site back")
				// Home again: a takeover there, the other sites' stores all known.
				c.inStep(t, o)
				if cuts := len(o.forks.open()); cuts != 1 {
					t.Errorf("%d cuts are open", cuts)
				}
				err := make(chan error, 1)
				o.call(func() { o.forget(o.forks.cuts[0].At.Epoch, func(e error) { err <- e }) })
				if e := <-err; e != nil {
					t.Fatal(e)
				}
				eventually(t, "the fork is gone", func() bool {
					o.ask(o.dropSome)
					for _, s := range c.seats {
						inv, err := s.Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
						if err != nil {
							t.Fatal(err)
						}
						for _, r := range inv.Replicas {
							if r.State == wire.ReplicaFork {
								return false
							}
						}
					}
					return true
				})
				old = o
				o = c.own(v)
				old.Close()
				if len(o.forks.open()) != 0 {
					t.Error("the next owner has the cut open")
				}
				n.check(t, o, n.acked, "at last")
				o.Close()
			})
		}
	}
}

// What a survivor was told makes the loss known in records, bytes and seconds, though the site is gone.
func TestLossIsKnownFromWhatSurvivorsWereTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	c.inStep(t, o)
	// The site is told how far the owner is, and then gets nothing more: the ship is held up.
	var at ident.Seq
	o.ask(func() { at = o.w.Commit().Seq })
	ship := o.ship(2)
	ship.mu.Lock()
	mark := ship.mu.mark
	ship.mu.Unlock()
	time.Sleep(30 * time.Millisecond)
	told := wire.Told{Commit: ident.Position{Epoch: o.epoch, Seq: at + 5}, Mark: mark.Seq, Behind: 5 * 4264, Time: uint64(time.Now().UnixNano())}
	for _, s := range c.seats[3:] {
		s.Notice(&wire.Notice{Epoch: o.epoch, Journal: v.ID, Commit: mark, Told: told})
	}
	c.killSite(1)
	o.Close()
	c.at(2)
	c.force(t, v, 1)
	o = c.own(v)
	defer o.Close()
	if o.loss.records != 5 || o.loss.bytes != 5*4264 || o.loss.span <= 0 || o.loss.span > time.Minute {
		t.Errorf("loss: %+v", o.loss)
	}
	o.ask(o.publish)
	if st := o.View(); st.Lost != 5 || st.LostBytes != 5*4264 || st.LostNanos == 0 || !st.Unproven {
		t.Errorf("status: %+v", st.JournalStatus)
	}
	if notes := c.events("volume.unproven"); len(notes) != 1 || !strings.Contains(notes[0], "5 acknowledged records, 21320 bytes") {
		eventually(t, "the event", func() bool { notes = c.events("volume.unproven"); return len(notes) > 0 })
		if !strings.Contains(notes[0], "5 acknowledged records, 21320 bytes") {
			t.Errorf("events: %q", notes)
		}
	}
}

// The taker dies at each step: whoever comes next finds the same.
func TestAForcedTakerDiesOnTheWay(t *testing.T) {
	for step := range 4 {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3, 3)
			c.limit.SegmentBytes = 64 << 10
			v := c.volume(1<<20, 3, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			n.writes(t, o, 100)
			c.inStep(t, o)
			c.killSite(1)
			o.Close()
			c.at(2)
			c.force(t, v, 1)
			switch step {
			case 0: // the key alone
			case 1: // and the next epoch, twice, without a start
				for range 2 {
					_, rev, _ := c.ctl.JournalNow(context.Background(), v.ID)
					if _, _, err := c.ctl.TakeJournal(context.Background(), v.ID, rev, "n1"); err != nil {
						t.Fatal(err)
					}
				}
			case 2: // it serves, and its own store is gone with it
				o = c.own(v)
				n.writes(t, o, 20)
				c.kill(c.seats[3])
				o.Close()
			case 3: // failover runs twice
				o = c.own(v)
				n.writes(t, o, 20)
				c.force(t, v, 1)
				if err := n.write(o); err == nil {
					// It is deposed by the next one's fence, not by the key alone.
					n.check(t, o, n.acked, "before the next")
				}
				defer o.Close()
			}
			acked := n.acked
			o = c.own(v)
			n.check(t, o, acked, "after")
			n.writes(t, o, 20)
			if step == 2 {
				c.start(c.seats[3])
			}
			c.startSite(1)
			c.inStep(t, o)
			n.check(t, o, n.acked, "with all back")
			eventually(t, "nothing is a fork, and all cuts are closed", func() bool {
				o.ask(o.releaseCuts)
				open := 0
				o.ask(func() { open = len(o.forks.open()) })
				return open == 0
			})
			o.Close()
		})
	}
}

// The site returns after it was given up and before the new owner has begun: its stores are heard like all others, nothing is
// lost, and the takeover is proven.
func TestTheSiteReturnsInTheMiddleOfAFailover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	v := c.volume(1<<20, 3, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 50)
	c.inStep(t, o)
	c.killSite(2)
	c.killSite(3)
	n.writes(t, o, 9)
	c.killSite(1)
	o.Close()
	c.startSite(2)
	c.startSite(3)
	c.at(2)
	c.force(t, v, 1)
	c.startSite(1)
	o = c.own(v)
	if !o.proven || o.forced || o.loss.records != 0 {
		t.Errorf("proven %v, forced %v, lost %+v", o.proven, o.forced, o.loss)
	}
	n.check(t, o, 59, "with the site back")
	n.writes(t, o, 20)
	c.inStep(t, o)
	if forks := c.events("volume.fork"); len(forks) > 0 {
		t.Errorf("forks: %v", forks)
	}
	o.Close()
}

// While parts of the history are only at stores that can not be reached, a takeover after the forced one waits for them; it
// cuts nothing.
func TestAfterAForcedTakeoverNothingIsCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 3)
	c.limit.SegmentBytes = 64 << 10
	c.limit.UncertainWait = 200 * time.Millisecond
	v := c.volume(1<<20, 3, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 100)
	c.inStep(t, o)
	c.killSite(1)
	o.Close()
	c.at(2)
	c.force(t, v, 1)
	o = c.own(v)
	n.check(t, o, n.acked, "forced")
	o.Close()
	// Everything but what the new ensemble has of its own goes: two of the site's stores, and the third site.
	c.killSite(3)
	c.kill(c.seats[3])
	env := o.env
	if next, err := TakeOver(context.Background(), env, v); err == nil {
		n.check(t, next, n.acked, "with little left") // the copies may have been made already
		next.Close()
	} else if !errors.Is(err, wire.ErrBusy) && !errors.Is(err, wire.ErrAbsent) {
		t.Errorf("%v", err)
	}
	c.startSite(3)
	c.start(c.seats[3])
	o = c.own(v)
	n.check(t, o, n.acked, "with the stores back")
	o.Close()
}

// The site that takes over is divided at that moment: the node that takes over can't reach the one that has the newest records
// of those that are left, and the control store hears of both. It waits for that node, and nothing is lost that need not be.
func TestSiteFailoverAtADividedSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(1<<20, 2, control.Replicated)
		o := n.served(t, v).srv.Load().Owners()[0]
		const blocks = 20
		for i := range int64(blocks) {
			if err := writeAt(o, i*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096), false); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		n.inStep(t, o)
		var has, takes *node
		var end ident.Seq
		for i, x := range n.list[2:] {
			r, err := x.home.Inventory(t.Context(), &wire.Inventory{Journal: v.ID})
			if err != nil {
				t.Fatal(err)
			}
			for _, replica := range r.Replicas {
				if !replica.Segment.IsCheckpoint() && replica.Last.Seq > end {
					end, has, takes = replica.Last.Seq, x, n.list[3-i]
				}
			}
		}
		if has == nil {
			t.Fatal("site 2 has nothing")
		}
		n.list[0].stop()
		n.list[1].stop()
		n.kill(n.list[0].home)
		n.kill(n.list[1].home)
		has.cut.Store(true)
		n.forceTo(t, v, 1, takes.name)
		time.Sleep(8 * time.Second)
		has.cut.Store(false)
		var now *Owner
		eventually(t, "an owner at site 2", func() bool {
			for _, x := range n.list[2:] {
				if y := x.volumeAt(v).Owner(); y != nil && isClosed(y.Serving()) && !isClosed(y.Stopped()) {
					now = y
				}
			}
			return now != nil
		})
		for i := range int64(blocks) {
			got, err := readAt(now, i*4096, 4096)
			if err != nil || got[0] != byte(i+1) {
				t.Fatalf("block %d: %v, %v", i, got[:min(1, len(got))], err)
			}
		}
		n.stopAll()
	})
}
