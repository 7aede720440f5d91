package access

import (
	"context"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// longerSite is two sites after a takeover that had not heard how far the former owner had committed: a store of the named site
// has sealed a segment with a record that the history has in a segment of the new epoch.
type longerSite struct {
	*cluster
	v      control.VolumeSpec
	n      *numbered
	o      *Owner
	seg    ident.SegmentID
	sealed wire.Replica
	at     atomic.Pointer[seat]
}

func newLongerSite(t *testing.T, site ident.SiteID) *longerSite {
	c := newCluster(t, 2, 3) // all of the ensemble is at home
	c.limit.KeepBothLocal = true
	f := &longerSite{cluster: c}
	silent, quiet := new(atomic.Bool), new(atomic.Bool)
	quiet.Store(true) // so that only appends say how far it is committed
	c.wrap = func(s journal.Store) journal.Store {
		p := &picky{Store: s, silent: new(atomic.Bool), quiet: quiet}
		if at := f.at.Load(); at != nil && s.ID() == at.id && site == 1 {
			p.silent = silent
		}
		return p
	}
	f.v = c.volume(1<<20, 2, control.Replicated)
	f.n = &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(f.v)
	for range 10 {
		if err := f.n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.inStep(t, o)
	commit := o.View().Commit
	for _, s := range c.seats {
		for id, r := range c.replicas(s, f.v.ID) {
			if s.site == site && r.Last == commit {
				f.at.Store(s)
				f.seg, f.sealed = id, r
			}
		}
	}
	// It is told that all of this is committed, and seals it; the others are not told.
	if _, err := f.at.Load().Seal(context.Background(), &wire.Seal{Epoch: o.epoch, Segment: f.seg, End: f.sealed.End, Last: f.sealed.Last}); err != nil {
		t.Fatal(err)
	}
	f.sealed = c.replicas(f.at.Load(), f.v.ID)[f.seg]
	o.Close()
	silent.Store(true)
	f.o = c.own(f.v)
	silent.Store(false)
	var last ident.Seq
	f.o.ask(func() {
		if s := f.o.segs[f.seg]; s != nil {
			last = s.last.Seq
		}
	})
	if last == 0 || last >= f.sealed.Last.Seq {
		t.Fatalf("the segment ends at %d in the history, sealed was %d", last, f.sealed.Last.Seq)
	}
	return f
}

// ends holds that the store's replica comes to end where the segment does, that nothing was made of it that is not ours, and that
// no record was without its copies meanwhile.
func (f *longerSite) ends(t *testing.T) {
	t.Helper()
	f.n.check(t, f.o, f.n.acked, "after the takeover")
	for range 10 {
		if err := f.n.write(f.o); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.n.flush(f.o); err != nil {
		t.Fatal(err)
	}
	f.inStep(t, f.o)
	eventually(t, "the replica ends where the segment does", func() bool {
		f.o.look()
		r := f.replicas(f.at.Load(), f.v.ID)[f.seg]
		var end uint32
		var h *holder
		f.o.ask(func() {
			end = f.o.segs[f.seg].end
			if x := f.o.segs[f.seg].holder(f.at.Load().id); x != nil {
				c := *x
				h = &c
			}
		})
		if r.State == wire.ReplicaSealed && r.Made != f.sealed.Made {
			t.Fatalf("it was made again: %+v", r)
		}
		return r.State == wire.ReplicaSealed && r.End == end && h != nil && h.stable && !h.bad && h.over.Seq == 0
	})
	if _, forked := f.replicas(f.at.Load(), f.v.ID)[f.seg.Fork()]; forked {
		t.Error("records of the history are kept as a fork")
	}
	if got := counter(f.o.env.Metrics.ShipMismatch); got != 0 {
		t.Errorf("%v mismatches of the other site's copy", got)
	}
	f.n.check(t, f.o, f.n.acked, "at the end")
	f.o.Close()
}

// A site was shipped, and has sealed, more of a segment than the next owner heard was committed. It goes on from there.
func TestASiteThatHasSealedMoreThanTheTakerHeardOf(t *testing.T) {
	newLongerSite(t, 2).ends(t)
}

// The same at home: the segment is on two stores at once.
func TestAStoreThatHasSealedMoreThanTheTakerHeardOf(t *testing.T) {
	t.Parallel()
	newLongerSite(t, 1).ends(t)
}

// As long as the site lacks the other segment that has the rest, its replica is not cut: with the home site it would be gone.
func TestAReplicaIsNotCutBeforeItsSiteHasTheRest(t *testing.T) {
	t.Parallel()
	f := newLongerSite(t, 2)
	f.o.Close()
	var shipped atomic.Bool
	wrap := f.wrap
	f.wrap = func(s journal.Store) journal.Store {
		if f.seat(s.ID()).site == 2 {
			return &deafTo{Store: wrap(s), epoch: func() ident.Epoch { return f.seg.Epoch }, until: &shipped}
		}
		return wrap(s)
	}
	f.o = f.own(f.v)
	eventually(t, "the store counts as having the segment", func() (ok bool) {
		f.o.look()
		f.o.ask(func() {
			h := f.o.segs[f.seg].holder(f.at.Load().id)
			ok = h != nil && h.stable && h.over == f.sealed.Last
		})
		return ok
	})
	for range 3 {
		f.o.look()
		f.o.ask(func() {})
	}
	if r := f.replicas(f.at.Load(), f.v.ID)[f.seg]; r.Last != f.sealed.Last || r.Made != f.sealed.Made {
		t.Fatalf("it was cut, or made again: %+v", r)
	}
	shipped.Store(true)
	f.ends(t)
}

// deafTo is a store that takes no segments of epochs after one.
type deafTo struct {
	journal.Store
	epoch func() ident.Epoch
	until *atomic.Bool
}

func (d *deafTo) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	if d.epoch().Less(m.Segment.Epoch) && !m.Segment.IsCheckpoint() && !d.until.Load() {
		return wire.OpenReply{}, wire.Errorf(wire.CodeUnreached, "no answer")
	}
	return d.Store.OpenSegment(ctx, m)
}

// What a site has sealed and this history does not have is a fork, which the site keeps; and it catches up.
func TestASiteThatHasSealedAFork(t *testing.T) {
	c := newCluster(t, 2, 3)
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	for range 10 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.inStep(t, o)
	var at *seat
	var seg ident.SegmentID
	var sealed wire.Replica
	for _, s := range c.seats {
		for id, r := range c.replicas(s, v.ID) {
			if s.site == 2 && r.Last == o.View().Commit {
				at, seg, sealed = s, id, r
			}
		}
	}
	old := o.epoch
	o.Close()
	// One record more, which nobody at home has heard of, and no rule explains.
	e := ownEntry(journal.KindPermit, journal.AppendPermits(nil, nil))
	e.Journal, e.Epoch, e.Seq, e.Time = v.ID, old, sealed.Last.Seq+1, 1
	e.Encode(e.Bytes, sealed.Last.Hash)
	answer := make(chan error, 1)
	at.Append(&wire.Append{Epoch: old, Segment: seg, Offset: sealed.End, Data: [][]byte{e.Bytes}}, func(_ wire.AppendReply, err error) { answer <- err })
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if _, err := at.Seal(context.Background(), &wire.Seal{Epoch: old, Segment: seg, End: sealed.End + uint32(len(e.Bytes)), Last: e.Position()}); err != nil {
		t.Fatal(err)
	}
	o = c.own(v)
	if !o.proven {
		t.Fatal("not proven")
	}
	for range 10 {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
	}
	c.inStep(t, o)
	if fork := c.replicas(at, v.ID)[seg.Fork()]; fork.State != wire.ReplicaFork || fork.Last != e.Position() {
		t.Errorf("the fork is %+v", fork)
	}
	if counter(o.env.Metrics.ShipMismatch) == 0 {
		t.Error("nobody was told")
	}
	eventually(t, "the fork is reported", func() bool { return len(c.events("volume.fork")) > 0 })
	n.check(t, o, n.acked, "at the end")
	o.Close()
}
