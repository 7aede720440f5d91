package access

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// replicas lists what a store has of a journal.
func (c *cluster) replicas(s *seat, id ident.JournalID) map[ident.SegmentID]wire.Replica {
	c.t.Helper()
	r, err := s.Inventory(context.Background(), &wire.Inventory{Journal: id})
	if err != nil {
		c.t.Fatal(err)
	}
	m := map[ident.SegmentID]wire.Replica{}
	for _, x := range r.Replicas {
		m[x.Segment] = x
	}
	return m
}

func (c *cluster) aside(s *seat) uint64 {
	r, err := s.Status(context.Background(), &wire.StoreStatus{})
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Aside
}

// look has the owner ask for strays and act upon what it hears.
func (o *Owner) look() {
	o.ask(func() { o.strays.due = 0; o.everySecond() })
}

// allSealed waits for that, the last segment left out. Of what is sealed only while a checkpoint is being made the checkpoint does not say that it has
// ended, so it does not go by that one.
func allSealed(t *testing.T, o *Owner) {
	t.Helper()
	eventually(t, "all segments but the last are sealed", func() bool {
		list := slices.DeleteFunc(o.Segments(), func(s SegmentView) bool { return s.ID.IsCheckpoint() })
		return !slices.ContainsFunc(list[:len(list)-1], func(s SegmentView) bool { return !s.Sealed })
	})
}

// A replica that is found damaged when its store starts is made again, where there is no other store in its own
// place; its file is kept; and the store counts again.
func TestADamagedReplicaIsReplaced(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{2, 3} {
		c := newCluster(t, 1, nodes)
		c.limit.SegmentBytes = 64 << 10
		v := c.volume(1<<20, 1, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
		for range 60 {
			im.change(t)
		}
		var victim *seat
		var seg SegmentView
		eventually(t, "a sealed segment", func() bool {
			for _, s := range im.o.Segments() {
				if s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable {
					seg, victim = s, c.seat(s.Holders[1].Store)
					return true
				}
			}
			return false
		})
		old := im.o
		c.kill(victim)
		if err := victim.mem.Remove("/store/segments/" + c.name(seg.ID)); err != nil {
			t.Fatal(err)
		}
		c.start(victim)
		if r := c.replicas(victim, v.ID)[seg.ID]; r.State != wire.ReplicaDamaged {
			t.Fatalf("the replica is in state %d", r.State)
		}
		im.o = c.own(v)
		old.Close()
		eventually(t, "two good replicas and none damaged", func() bool {
			im.o.look()
			for _, s := range c.seats {
				for _, r := range c.replicas(s, v.ID) {
					if r.State == wire.ReplicaDamaged {
						return false
					}
				}
			}
			good := 0
			for _, s := range c.seats {
				if r := c.replicas(s, v.ID)[seg.ID]; r.State == wire.ReplicaSealed {
					good++
				}
			}
			return good == 2
		})
		im.check(t)
		// The store counts: with it alone, of two, there is a takeover.
		im.o.Close()
		if nodes == 2 {
			c.kill(c.seats[0])
			c.kill(c.seats[1])
			c.start(victim)
			r, err := victim.Fence(context.Background(), &wire.Fence{Journal: v.ID, Epoch: ident.Epoch{Number: im.o.epoch.Number + 1, Lineage: im.o.epoch.Lineage}, Taker: "x"})
			rec := journal.Recover([][]ident.StoreID{{c.seats[0].id, c.seats[1].id}}, map[ident.StoreID]*wire.FenceReply{victim.id: &r})
			if err != nil || !rec.Enough {
				t.Errorf("the store doesn't count: %+v, %v", rec, err)
			}
		}
	}
}

func (c *cluster) name(id ident.SegmentID) string {
	const hex = "0123456789abcdef"
	return string([]byte{hex[id.Journal[0]>>4], hex[id.Journal[0]&15]}) + "/" + id.String()
}

// Bad bytes found while reading are replaced too, and the file that has them is kept.
func TestACorruptFileIsSetAside(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range 40 {
		im.change(t)
	}
	var seg SegmentView
	eventually(t, "a sealed segment on both", func() bool {
		seg = im.o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	im.o.ask(func() { im.o.markBad(seg.ID, c.seats[1].id, wire.ErrCorrupt) })
	eventually(t, "it is made again", func() bool {
		im.o.look()
		return counter(im.o.env.Metrics.Repaired) >= 1
	})
	if n := c.aside(c.seats[1]); n != 1 {
		t.Errorf("%d files were set aside", n)
	}
	im.check(t)
	c.kill(c.seats[1])
	c.start(c.seats[1])
	if n := c.aside(c.seats[1]); n != 1 {
		t.Errorf("%d files are aside after a restart", n)
	}
	im.check(t)
	im.o.Close()
}

// A takeover between the loss of a replica and its repair doesn't take the store for one that has everything.
func TestAStoreThatLacksAReplicaCountsForNothing(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
		t.Fatal(err)
	}
	o.ask(o.w.CloseIdle)
	var seg SegmentView
	eventually(t, "it is sealed", func() bool {
		seg = o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	s := c.seats[1]
	if _, err := s.Drop(context.Background(), &wire.Drop{Epoch: o.epoch, Segment: seg.ID, Replace: true}); err != nil {
		t.Fatal(err)
	}
	absent := func(when string) {
		t.Helper()
		r, err := s.Fence(context.Background(), &wire.Fence{Journal: v.ID, Epoch: o.epoch, Taker: "x"})
		rec := journal.Recover([][]ident.StoreID{{c.seats[0].id, s.id}}, map[ident.StoreID]*wire.FenceReply{s.id: &r})
		if err != nil || rec.Enough {
			t.Errorf("%s: the store counts (%v)", when, err)
		}
	}
	absent("lost")
	c.kill(s)
	c.start(s)
	absent("lost, restarted")
	if _, err := s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: o.epoch, Segment: seg.ID, Capacity: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	absent("opened again")
	c.powerCut(s)
	c.start(s)
	absent("opened again, after a power cut")
	if _, err := o.copySegment(o.stores[0], s, seg.ID, seg.Bytes, 1, o.segs[seg.ID].last, o.w.Start(), nil); err != nil {
		t.Fatal(err)
	}
	if r := c.replicas(s, v.ID)[seg.ID]; r.State != wire.ReplicaSealed {
		t.Errorf("made again it is in state %d", r.State)
	}
	o.Close()
}

// lostAnswer is a store whose answer to the first fence is lost.
type lostAnswer struct {
	journal.Store
	lost *atomic.Bool
}

func (l lostAnswer) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	r, err := l.Store.Fence(ctx, m)
	if err == nil && l.lost.CompareAndSwap(true, false) {
		return wire.FenceReply{}, wire.ErrUnreached
	}
	return r, err
}

// A replica is being made again when its owner dies, and another store is away: the takeover counts the store that lacks the replica, also
// where its first answer is lost.
func TestAnAnswerIsLostWhileAReplicaIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 8))}
	for range 10 {
		im.change(t)
	}
	im.o.ask(im.o.w.CloseIdle)
	var seg SegmentView
	eventually(t, "it is sealed", func() bool {
		seg = im.o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	victim := c.seat(seg.Holders[1].Store)
	im.o.Close()
	if _, err := victim.Drop(context.Background(), &wire.Drop{Epoch: im.o.epoch, Segment: seg.ID, Replace: true}); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.seats {
		if s.id != seg.Holders[0].Store && s != victim {
			c.kill(s)
		}
	}
	var lost atomic.Bool
	lost.Store(true)
	c.wrap = func(s journal.Store) journal.Store {
		if s.ID() == victim.id {
			return lostAnswer{s, &lost}
		}
		return s
	}
	im.o = c.own(v)
	if lost.Load() {
		t.Error("no answer was lost")
	}
	im.check(t)
	im.o.Close()
}

// A permit that is read again by a later owner doesn't take what a repair has made at the same store since.
func TestAPermitMeansOneReplica(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range 60 {
		im.change(t)
	}
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var seg SegmentView
	var gone *seat
	eventually(t, "a local replica has been dropped", func() bool {
		im.o.look()
		list := im.o.Segments()
		slices.Reverse(list)
		for _, s := range list {
			n, held := 0, map[ident.StoreID]bool{}
			for _, h := range s.Holders {
				held[h.Store] = true
				if c.Site(h.Store) == 1 {
					n++
				}
			}
			dead := false
			im.o.ask(func() { x := im.o.segs[s.ID]; dead = x == nil || im.o.retiring(x) })
			if s.Sealed && !s.ID.IsCheckpoint() && !dead && n == 1 && s.Last <= im.o.cpSeq() {
				seg = s
				for _, x := range c.seats[:2] {
					if !held[x.id] {
						gone = x
					}
				}
				return true
			}
		}
		return false
	})
	// It is made again there, as a repair does it.
	im.o.ask(func() {
		im.o.env.Limits.KeepBothLocal = true // nobody has a reason to drop it anew
		s := im.o.segs[seg.ID]
		from := im.o.readFrom(s)
		to, _ := im.o.env.Stores.Store(gone.id)
		im.o.copyTo(s, from, to, dangerNone)
	})
	eventually(t, "it is there again", func() bool { return c.replicas(gone, v.ID)[seg.ID].State == wire.ReplicaSealed })
	made := c.replicas(gone, v.ID)[seg.ID].Made
	im.o.Close()
	c.limit.KeepBothLocal = true
	im.o = c.own(v)
	for range 4 {
		im.o.look()
		time.Sleep(20 * time.Millisecond)
	}
	if r := c.replicas(gone, v.ID)[seg.ID]; r.Made != made {
		t.Errorf("a permit of the past has taken replica %x: there is %+v", made, r)
	}
	im.check(t)
	im.o.Close()
}

// What abandoned epochs, abandoned checkpoints and stores that were away have left is found and goes.
func TestStraysGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range 60 {
		im.change(t)
	}
	// An abandoned checkpoint's first segment, sealed, and its second, open on one store only.
	w := &partWriter{o: im.o}
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	first := w.seg.id
	w.abandon()
	// A segment of a dead epoch that only one store has ever heard of.
	im.o.Close()
	dead := ident.SegmentID{Site: 1, Journal: v.ID, Epoch: im.o.epoch, Number: 1 << 20}
	if _, err := c.seats[1].OpenSegment(context.Background(), &wire.OpenSegment{Epoch: im.o.epoch, Segment: dead, Capacity: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	im.o = c.own(v)
	eventually(t, "the strays are gone", func() bool {
		im.o.look()
		for _, s := range c.seats[:2] {
			have := c.replicas(s, v.ID)
			if _, there := have[first]; there {
				return false
			}
			if _, there := have[dead]; there {
				return false
			}
		}
		return true
	})
	// A second copy at the other site.
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	inStep := func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		return len(view.Sites) == 1 && view.Sites[0].StableWatermark == view.Commit.Seq
	}
	eventually(t, "site 2 has caught up", inStep)
	var twice ident.SegmentID
	im.o.ask(func() {
		s := im.o.order[0]
		twice = s.id
		from := im.o.readFrom(s)
		for _, x := range c.seats[2:] {
			if s.holder(x.id) == nil {
				im.o.copyTo(s, from, x, dangerNone)
			}
		}
	})
	both := func() bool {
		_, a := c.replicas(c.seats[2], v.ID)[twice]
		_, b := c.replicas(c.seats[3], v.ID)[twice]
		return a && b
	}
	eventually(t, "both stores of site 2 have it", both)
	im.o.Close()
	im.o = c.own(v)
	eventually(t, "one of them has not", func() bool { im.o.look(); return !both() })
	im.check(t)
	im.o.Close()
}

// TestProvenSinceIsKnownAtOnce: what a takeover has heard of the epochs before is enough to say which tails may go, before any store has
// been looked at again. One epoch that is not proven makes forks of all before it.
func TestProvenSinceIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 16, done: map[int]bool{}}
	o := c.own(v)
	first := o.epoch
	proven := func(since ident.Epoch) (yes bool) {
		o.ask(func() {
			known := o.strays.starts
			o.strays.starts = nil
			yes = o.provenSince(since)
			o.strays.starts = known
		})
		return yes
	}
	next := func() {
		if err := n.write(o); err != nil {
			t.Fatal(err)
		}
		// What the epoch before left without a known end gets one.
		eventually(t, "no replica of the history is shortened", func() bool {
			for _, s := range c.seats {
				for _, r := range c.replicas(s, v.ID) {
					known := false
					o.ask(func() { known = o.segs[r.Segment] != nil })
					if known && r.State == wire.ReplicaShort {
						return false
					}
				}
			}
			return true
		})
		old := o
		o = c.own(v)
		old.Close()
		if !o.proven {
			t.Fatalf("epoch %s is not proven", o.epoch)
		}
	}
	next()
	next()
	next()
	if !proven(first) {
		t.Fatalf("epochs after %s are proven, and known: %v", first, o.recovered.Starts)
	}
	o = c.unproven(t, o, v)
	since := o.epoch
	next()
	next()
	if proven(first) || !proven(since) {
		t.Fatalf("an epoch that is not proven: %v, after it: %v", proven(first), proven(since))
	}
	// What the power cut left of a segment whose records were copied to another one goes once a checkpoint covers them.
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left over", func() bool {
		o.look()
		for _, s := range c.seats {
			for _, r := range c.replicas(s, v.ID) {
				if r.State == wire.ReplicaShort {
					return false
				}
			}
		}
		return true
	})
}

// A replica of a segment that was retired long ago is there again (the power cut took its removal back), its owner permits
// it to go, and dies before it went. The next owner hears of it; it must not become a segment of the history again, without a
// replica once it has gone: other sites would wait for it for ever, and nothing would be retired any more.
func TestALeftoverOfARetiredSegmentIsNoSegmentAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(256<<10, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(9, 1))}
	overwrite := func() {
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			data := make([]byte, 32<<10)
			data[5] = byte(im.rng.Uint32())
			if err := writeAt(im.o, off, data, false); err != nil {
				t.Fatal(err)
			}
			copy(im.want[off:], data)
		}
	}
	overwrite()
	c.inStep(t, im.o)
	away := c.seats[1]
	left := c.replicas(away, v.ID)
	c.kill(away)
	var gone []journal.Permit
	eventually(t, "segments that the store has are retired", func() bool {
		overwrite()
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		im.o.ask(func() {
			im.o.dropSome()
			for id, s := range im.o.segs { // it has confirmed that they are gone
				if seg, ok := im.o.m.Segment(s.slot); ok && seg.Retired && !id.IsCheckpoint() {
					s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.store == away.id })
				}
			}
		})
		gone = gone[:0]
		for id, r := range left {
			if !id.IsCheckpoint() && !slices.ContainsFunc(im.o.Segments(), func(s SegmentView) bool { return s.ID == id }) {
				gone = append(gone, journal.Permit{Segment: id, Store: away.id, Made: r.Made})
			}
		}
		return len(gone) > 1
	})
	if err := im.o.Checkpoint(); err != nil { // which has them no more
		t.Fatal(err)
	}
	im.o.ask(func() { im.o.permit(gone) })
	if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	c.inStep(t, im.o)
	im.o.Close()
	c.start(away)
	im.o = c.own(v)
	for _, s := range im.o.Segments() {
		if slices.ContainsFunc(gone, func(p journal.Permit) bool { return p.Segment == s.ID }) {
			t.Errorf("segment %s is back", s.ID)
		}
	}
	eventually(t, "what was left has gone", func() bool {
		im.o.look()
		have := c.replicas(away, v.ID)
		return !slices.ContainsFunc(gone, func(p journal.Permit) bool { _, there := have[p.Segment]; return there })
	})
	im.change(t)
	c.inStep(t, im.o)
	im.check(t)
	im.o.Close()
}

// Replicas of no segment at another site are asked about while the session of shipping lasts, not only when it begins, and no
// more often than they must.
func TestStraysOfAnotherSiteAreAskedAbout(t *testing.T) {
	c := newCluster(t, 2, 2)
	var questions atomic.Int32
	c.wrap = func(s journal.Store) journal.Store { return &asked{s, &questions} }
	v := c.volume(1<<20, 2, control.Replicated)
	o := c.own(v)
	defer o.Close()
	if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
		t.Fatal(err)
	}
	c.inStep(t, o)
	far := c.seats[2]
	stray := ident.SegmentID{Site: 1, Journal: v.ID, Epoch: o.epoch, Number: 99}
	if _, err := far.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: o.epoch, Segment: stray, Capacity: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	there := func() bool { _, ok := c.replicas(far, v.ID)[stray]; return ok }
	o.look()
	if !there() {
		t.Fatal("it went though nobody has asked about it")
	}
	var due time.Duration
	o.ask(func() {
		due = o.strays.farDue - time.Duration(o.env.Clock())
		o.strays.farDue = 1
		o.everySecond()
	})
	if due <= 0 || due > strayEveryFar {
		t.Errorf("the first look was to be in %v", due)
	}
	eventually(t, "it is asked about, and goes", func() bool {
		o.ask(o.everySecond)
		return !there()
	})
	o.ask(func() { due = o.strays.farDue - time.Duration(o.env.Clock()) })
	if due < strayEveryFar/2 || due > strayEveryFar {
		t.Errorf("the next look is in %v", due)
	}
	was := questions.Load()
	for range 5 {
		o.ask(o.everySecond)
	}
	if n := questions.Load() - was; n != 0 {
		t.Errorf("%d questions more within five seconds", n)
	}
	eventually(t, "the metric says that none is left", func() bool {
		o.ask(o.everySecond)
		return gaugeOf(o.env.Metrics.Strays) == 0
	})
}

// asked counts the questions what a store has.
type asked struct {
	journal.Store
	n *atomic.Int32
}

func (a *asked) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	a.n.Add(1)
	return a.Store.Fence(ctx, m)
}

func gaugeOf(g interface{ Write(*dto.Metric) error }) float64 {
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		return -1
	}
	return m.GetGauge().GetValue()
}
