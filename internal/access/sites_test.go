package access

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// inStep waits until the other sites hold everything that is committed.
func (c *cluster) inStep(t *testing.T, o *Owner) {
	t.Helper()
	eventually(t, "the other sites have everything", func() bool {
		o.ask(o.publish)
		for _, s := range o.View().Sites {
			if s.Watermark != o.View().Commit {
				return false
			}
		}
		return len(o.View().Sites) > 0
	})
}

// cutSite takes the power of all stores of a site at the same moment: an owner that sees one of them die would make
// the other one's part stable.
func (c *cluster) cutSite(site ident.SiteID) {
	for _, s := range c.seats {
		if s.site == site {
			s.mem.PowerOff()
		}
	}
	var clones []*vfs.Mem
	for _, s := range c.seats {
		if s.site == site {
			clones = append(clones, s.mem.CrashClone(vfs.Crash{}))
		}
	}
	for _, s := range c.seats {
		if s.site == site {
			c.powerCut(s)
			s.mem, clones = clones[0], clones[1:]
		}
	}
}

func (c *cluster) startSite(site ident.SiteID) {
	for _, s := range c.seats {
		if s.site == site {
			c.start(s)
		}
	}
}

func (c *cluster) killSite(site ident.SiteID) {
	for _, s := range c.seats {
		if s.site == site {
			c.kill(s)
		}
	}
}

// events gives the notes of the events of one kind.
func (c *cluster) events(action string) (notes []string) {
	list, err := c.ctl.Events(context.Background(), 0)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range list {
		if e.Action == action {
			notes = append(notes, e.Note)
		}
	}
	return notes
}

// A and B both lose unsynced writes with all traces of them; everybody answers; nothing is reported (R4): but the
// other site has them, and they are all there again.
func TestBothHoldersLoseTheirPowerAndTheOtherSiteHasAll(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{2, 3} { // with two, the third member of the ensemble is at the other site
		t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) {
			c := newCluster(t, 2, nodes)
			c.limit.UncertainWait = 500 * time.Millisecond
			v := c.volume(1<<20, 2, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			for round := range 4 {
				for range 150 {
					if err := n.write(o); err != nil {
						t.Fatal(err)
					}
				}
				c.inStep(t, o)
				c.cutSite(1)
				o.Close()
				c.startSite(1)
				acked := n.acked
				o = c.own(v)
				if o.proven {
					t.Errorf("round %d: proven", round)
				}
				n.check(t, o, acked, fmt.Sprint("round ", round))
				if o.loss.records != 0 {
					t.Errorf("round %d: %d records are said to be lost", round, o.loss.records)
				}
				// And they are on two servers of the home site again, whatever becomes of the other one.
				c.killSite(2)
				c.kill(c.seats[0])
				if nodes == 2 {
					c.start(c.seats[0])
				}
				old := o
				o = c.own(v)
				old.Close()
				n.check(t, o, acked, fmt.Sprint("round ", round, ", without the other site"))
				if nodes != 2 {
					c.start(c.seats[0])
				}
				c.startSite(2)
				eventually(t, "a flush", func() bool { return n.flush(o) == nil })
				c.inStep(t, o)
				if got := counter(o.env.Metrics.ShipMismatch); got != 0 {
					t.Errorf("round %d: %v mismatches of the other site's copy", round, got)
				}
			}
			if forks := c.events("volume.fork"); len(forks) > 0 {
				t.Errorf("forks: %v", forks)
			}
			if notes := c.events("volume.unproven"); len(notes) < 4 {
				t.Errorf("events: %v", notes)
			}
			o.Close()
		})
	}
}

// The same, and it is the other site that takes over: what it has itself counts as what any other site has.
func TestBothHoldersLoseTheirPowerAndTheTakersSiteHasAll(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	c.limit.UncertainWait = 500 * time.Millisecond
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 150)
	c.inStep(t, o)
	c.cutSite(1)
	o.Close()
	c.startSite(1)
	c.at(2)
	o = c.own(v)
	if o.proven {
		t.Error("proven")
	}
	n.check(t, o, 150, "at the other site")
	if o.loss.records != 0 {
		t.Errorf("%d records are said to be lost", o.loss.records)
	}
	o.Close()
}

// A third member of another site has a part of a segment because it was shipped there, not because it is of the
// pair: it does not know the end. If it were believed, acknowledged writes would vanish and be called proven.
func TestAShippedPartIsNoWordOnTheEnd(t *testing.T) {
	c := newCluster(t, 2, 2)
	c.limit.UncertainWait = 300 * time.Millisecond
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	for range 40 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.inStep(t, o)
	// The ships are cut off, the writes go on.
	c.killSite(2)
	for range 40 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.cutSite(1)
	o.Close()
	c.startSite(1)
	c.startSite(2)
	o = c.own(v)
	if o.proven {
		t.Error("an owner that may have lost writes calls its history proven")
	}
	n.check(t, o, 40, "what the site had")
	o.Close()
}

// A site that could not be asked comes back with what the others have given up: it is kept as a fork, shown, not
// overwritten and not dropped, and the site holds this history beside it.
func TestWhatASiteHasBeyondIsKeptAsAFork(t *testing.T) {
	t.Parallel()
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprint("sealed ", sealed), func(t *testing.T) {
			c := newCluster(t, 2, 3)
			c.limit.UncertainWait = 300 * time.Millisecond
			c.limit.SegmentBytes = 64 << 10
			v := c.volume(1<<20, 2, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			for range 50 {
				if err := n.write(o); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.flush(o); err != nil {
				t.Fatal(err)
			}
			for range 30 {
				if err := n.write(o); err != nil {
					t.Fatal(err)
				}
			}
			if sealed {
				o.ask(func() { o.w.CloseIdle() })
			}
			c.inStep(t, o)
			was := n.acked
			count := func() (records int) {
				for _, s := range c.seats {
					if s.site != 2 {
						continue
					}
					inv, err := s.Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range inv.Replicas {
						if !r.Segment.IsCheckpoint() && r.Segment.Epoch.Number == 1 {
							records += int(r.Last.Seq - r.Before.Seq)
						}
					}
				}
				return records
			}
			before := count()
			c.killSite(2)
			c.cutSite(1)
			o.Close()
			// The stores' own background fdatasync may have made all of it stable: the test is about when not.
			c.startSite(1)
			o = c.own(v)
			n.check(t, o, 50, "after the cut")
			lost := was - n.acked
			if o.proven && (lost > 0 || !sealed) { // all sealed, nothing is uncertain
				t.Errorf("proven, and %d writes are gone", lost)
			}
			for range 60 {
				if err := n.write(o); err != nil {
					t.Fatal(err)
				}
			}
			c.startSite(2)
			c.inStep(t, o)
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			c.inStep(t, o)
			for range 5 {
				o.ask(o.dropSome)
				o.ask(o.publish)
			}
			n.check(t, o, n.acked, "with the site back")
			if lost > 0 {
				if after := count(); after < before {
					t.Errorf("site 2 had %d records of the first epoch, it has %d", before, after)
				}
				forks := c.events("volume.fork")
				if len(forks) == 0 {
					eventually(t, "the fork is reported", func() bool { forks = c.events("volume.fork"); return len(forks) > 0 })
				}
				if !strings.Contains(forks[0], "site 2") {
					t.Errorf("event: %s", forks[0])
				}
			}
			t.Logf("%d writes left behind", lost)
			// Another epoch knows of it from the checkpoint alone, and from the stores.
			old := o
			o = c.own(v)
			old.Close()
			c.inStep(t, o)
			n.check(t, o, n.acked, "in the next epoch")
			if lost > 0 {
				var at map[ident.StoreID]forkAt
				eventually(t, "the fork is shown", func() bool {
					o.ask(func() { at = o.forks.at })
					segments := 0
					o.ask(func() {
						for _, f := range at {
							segments += f.segments
						}
					})
					return segments > 0
				})
			}
			o.Close()
		})
	}
}

// An owner that ends at once, as one whose node is drained does, still says what its takeover has found.
func TestAnOwnerThatEndsSaysWhatItFound(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	o.ask(func() {
		o.cancel()
		o.report("volume.unproven", "the end of the history was not known")
	})
	o.Close()
	if notes := c.events("volume.unproven"); len(notes) != 1 {
		t.Errorf("events: %v", notes)
	}
}
