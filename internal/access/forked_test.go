package access

import (
	"context"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// picky is a store that answers only some of what it is asked.
type picky struct {
	journal.Store
	silent *atomic.Bool // says nothing of what it has
	quiet  *atomic.Bool // hears no notices
	seal   func(ident.StoreID) error
	noted  func() ident.Position // the commit point that it had noted before its power failed
}

func (p *picky) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	if p.silent.Load() {
		return wire.FenceReply{}, wire.Errorf(wire.CodeUnreached, "no answer")
	}
	r, err := p.Store.Fence(ctx, m)
	if p.noted != nil {
		if at := p.noted(); r.Commit.Epoch.Less(at.Epoch) {
			r.Commit = at
		}
	}
	return r, err
}

func (p *picky) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	if p.silent.Load() {
		return wire.InventoryReply{}, wire.Errorf(wire.CodeUnreached, "no answer")
	}
	return p.Store.Inventory(ctx, m)
}

func (p *picky) Notice(m *wire.Notice) {
	if !p.quiet.Load() {
		p.Store.Notice(m)
	}
}

func (p *picky) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	if p.seal != nil {
		if err := p.seal(p.ID()); err != nil {
			return wire.SealReply{}, err
		}
	}
	return p.Store.Seal(ctx, m)
}

// forkedSite is a site of two stores after a takeover that could not hear the second one: the first has lost unsynced
// records, which the second has sealed, so that they are certain to be committed. What the second has there is a fork.
// The owner that took over is there, and nothing has been settled yet.
type forkedSite struct {
	*cluster
	v      control.VolumeSpec
	n      *numbered
	o      *Owner
	seg    ident.SegmentID
	sealed wire.Replica // the second store's, as it was
	silent atomic.Bool  // the second store
	quiet  atomic.Bool
	held   atomic.Bool // the first store seals nothing, so that nothing is settled
	noted  ident.Position
}

func newForkedSite(t *testing.T) *forkedSite {
	f := &forkedSite{cluster: newFaultyCluster(t, 1, 2)}
	c := f.cluster
	c.limit.UncertainWait = 100 * time.Millisecond
	second := c.seats[1]
	c.wrap = func(s journal.Store) journal.Store {
		p := &picky{Store: s, silent: new(atomic.Bool), quiet: &f.quiet, seal: func(id ident.StoreID) error {
			if id == c.seats[0].id && f.held.Load() {
				return wire.Errorf(wire.CodeUnreached, "no answer")
			}
			return nil
		}}
		if s.ID() == second.id {
			p.silent = &f.silent
		} else {
			p.noted = func() ident.Position { return f.noted }
		}
		return p
	}
	f.v = c.volume(1<<20, 1, control.Replicated)
	f.n = &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(f.v)
	for range 10 {
		if err := f.n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	// So much is stable at the first store, though nobody has been told.
	for id := range c.replicas(c.seats[0], f.v.ID) {
		if _, err := c.seats[0].Sync(context.Background(), &wire.Sync{Epoch: o.epoch, Journal: f.v.ID, Segments: []ident.SegmentID{id}}); err != nil {
			t.Fatal(err)
		}
	}
	o.ask(func() { f.noted = o.w.Commit() })
	for range 4 {
		if err := f.n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	for id, r := range c.replicas(second, f.v.ID) {
		if r.End > 0 {
			f.seg = id
		}
	}
	r := c.replicas(second, f.v.ID)[f.seg]
	c.faultyPowerCut(c.seats[0])
	if _, err := second.Seal(context.Background(), &wire.Seal{Epoch: o.epoch, Segment: f.seg, End: r.End, Last: r.Last}); err != nil {
		t.Fatal(err)
	}
	f.sealed = c.replicas(second, f.v.ID)[f.seg]
	o.Close()
	c.start(c.seats[0])
	f.silent.Store(true)
	f.held.Store(true)
	f.o = c.own(f.v)
	f.unsettled(t)
	if f.o.proven {
		t.Fatal("a takeover that does not know the end of the history says that it is proven")
	}
	return f
}

// unsettled holds that flushes wait for the segment.
func (f *forkedSite) unsettled(t *testing.T) {
	t.Helper()
	var yes bool
	if f.o.ask(func() { yes = f.o.unsettled[f.seg] != nil }); !yes {
		t.Fatal("nothing is to be settled")
	}
}

// faultyPowerCut is powerCut for a seat whose disk can be made to fail.
func (c *cluster) faultyPowerCut(s *seat) {
	c.powerCut(s)
	s.faults = vfs.NewFaults(s.mem)
}

// flushes holds that a flush returns, and that the segment is on both stores then; the fork is kept, whole.
func (f *forkedSite) flushes(t *testing.T) {
	t.Helper()
	f.n.check(t, f.o, 10, "after the takeover")
	for range 3 {
		if err := f.n.write(f.o); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.n.flush(f.o); err != nil {
		var what string
		f.o.ask(func() { what = f.o.whatFlushesWaitFor(f.o.w.At().Seq) })
		t.Fatalf("flush: %v: %s", err, what)
	}
	var end uint32
	f.o.ask(func() { end = f.o.segs[f.seg].end })
	for _, s := range f.seats {
		if r := f.replicas(s, f.v.ID)[f.seg]; r.State != wire.ReplicaSealed || r.End != end {
			t.Errorf("store %s has %+v of a segment that ends at %d", s.id, r, end)
		}
	}
	fork := f.replicas(f.seats[1], f.v.ID)[f.seg.Fork()]
	if fork.State != wire.ReplicaFork || fork.Last != f.sealed.Last || fork.End != f.sealed.End {
		t.Errorf("the fork is %+v, it was %+v", fork, f.sealed)
	}
	eventually(t, "the fork is reported", func() bool { return len(f.events("volume.fork")) > 0 })
	// And it all holds through a power cut of both.
	for _, s := range f.seats {
		f.faultyPowerCut(s)
	}
	f.o.Close()
	for _, s := range f.seats {
		f.start(s)
	}
	f.o = f.own(f.v)
	f.n.check(t, f.o, f.n.flushed, "after a power cut")
	if fork := f.replicas(f.seats[1], f.v.ID)[f.seg.Fork()]; fork.State != wire.ReplicaFork || fork.Last != f.sealed.Last {
		t.Errorf("after a power cut the fork is %+v", fork)
	}
	f.o.Close()
}

// A site of two stores gets its second copy of a segment of which one of them has a fork, and keeps the fork.
func TestAForkAtOneOfTwoStores(t *testing.T) {
	t.Parallel()
	f := newForkedSite(t)
	f.silent.Store(false)
	f.held.Store(false)
	f.flushes(t)
}

// There is no room to set the fork aside as a copy. It keeps the segment's name then; but there is no other store for the
// segment, and flushes would wait for ever.
func TestAForkThatCanNotBeCopied(t *testing.T) {
	t.Parallel()
	f := newForkedSite(t)
	f.seats[1].faults.Add(func(c vfs.Call) error {
		if c.Op == vfs.OpCreate && strings.HasSuffix(c.Path, f.seg.Fork().String()) {
			return syscall.ENOSPC
		}
		return nil
	})
	f.silent.Store(false)
	f.held.Store(false)
	f.flushes(t)
}

// The next owner has a store set the fork aside, and only then compares what the store had said before with what it has:
// an old answer takes back nothing that was learned since.
func TestAnAnswerThatIsOlderThanTheRepair(t *testing.T) {
	t.Parallel()
	f := newForkedSite(t)
	f.o.Close()
	f.silent.Store(false)
	f.o = f.own(f.v)
	f.unsettled(t)
	eventually(t, "the second store has set the fork aside", func() (ok bool) {
		f.o.ask(func() { h := f.o.segs[f.seg].holder(f.seats[1].id); ok = h != nil && h.stable && !h.bad })
		return ok
	})
	for range 10 {
		f.o.ask(func() { f.o.reported(f.seats[1].id, []wire.Replica{f.sealed}, f.o.strays.tookOver) })
		time.Sleep(10 * time.Millisecond)
	}
	f.held.Store(false)
	f.flushes(t)
}

// A store that had dropped a replica by a permit has it no more, whatever it had said before: another replica of the
// segment may not go because of it (R13).
func TestAnAnswerThatIsOlderThanADrop(t *testing.T) {
	c := newCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	for range 40 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var s *segment
	eventually(t, "a segment that a checkpoint covers", func() bool {
		o.ask(func() {
			for _, x := range o.order {
				if o.covered(x) && len(x.good()) == 2 {
					s = x
				}
			}
		})
		return s != nil
	})
	var h holder
	var asked uint64
	o.ask(func() {
		h = s.holders[0]
		asked = o.strays.asks() // the store has answered, and the answer is under way
	})
	old := c.replicas(c.seat(h.store), v.ID)[s.id]
	o.ask(func() {
		o.permit([]journal.Permit{{Segment: s.id, Store: h.store, Made: h.made, Remain: []ident.StoreID{s.holders[1].store}}})
	})
	eventually(t, "it is dropped", func() (gone bool) {
		o.ask(func() { o.sendDrops(); gone = s.holder(h.store) == nil })
		if !gone {
			_ = n.flush(o)
		}
		return gone
	})
	o.ask(func() {
		o.reported(h.store, []wire.Replica{old}, asked)
		o.strays.asked()
		if x := s.holder(h.store); x != nil && x.made == old.Made {
			t.Errorf("a replica that is gone counts again: %+v", *x)
		}
	})
	o.Close()
}

// A permit that waits until it is stable does not keep the segment from its second copy, for which it would wait itself.
func TestAPermitOfAnUnsettledSegment(t *testing.T) {
	t.Parallel()
	f := newForkedSite(t)
	f.o.Close()
	f.silent.Store(false)
	f.o = f.own(f.v)
	f.unsettled(t)
	eventually(t, "the second store has set the fork aside", func() (ok bool) {
		f.o.ask(func() {
			h := f.o.segs[f.seg].holder(f.seats[1].id)
			if ok = h != nil && h.stable && !h.bad; ok {
				p := journal.Permit{Segment: f.seg, Store: h.store, Made: h.made}
				h.going = true
				f.o.permits[permitKey{f.seg, h.store}] = pendingPermit{Permit: p, seq: f.o.w.At().Seq}
			}
		})
		return ok
	})
	f.held.Store(false)
	f.flushes(t)
}
