package access

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// filled is a volume with some sealed and covered segments.
func (c *cluster) filled(sites, changes int) *image {
	c.t.Helper()
	v := c.volume(1<<20, sites, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range changes {
		im.change(c.t.(*testing.T))
	}
	return im
}

// again takes over at the next epoch, as the node of an owner does that ended itself or died.
func (im *image) again(c *cluster) {
	old := im.o
	c.health = old.env.Health
	im.o = c.own(*old.spec.Load())
	old.Close()
}

// keepUp has the owner look until ok, and takes over when it wants another ensemble.
func (im *image) keepUp(t *testing.T, c *cluster, what string, ok func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		select {
		case <-im.o.Stopped():
			im.again(c)
		default:
		}
		im.o.look()
		return ok()
	})
}

func (c *cluster) holds(s *seat, id ident.JournalID) int { return len(c.replicas(s, id)) }

// A budget: what has the fewest copies left goes before what has more, whatever journal it is of; what only moves, last.
func TestCopiesGoInOrderOfDanger(t *testing.T) {
	now := int64(time.Hour)
	c := NewCopies(func() int64 { return now }, 1<<20)
	a, b := ident.NewJournalID(), ident.NewJournalID()
	c.announce(a, 1)
	c.announce(b, 2)
	if c.begin(2) || c.begin(dangerMove) {
		t.Error("a copy begins before one that is more urgent")
	}
	for range copiesMax {
		if !c.begin(1) {
			t.Fatal("an urgent copy doesn't begin")
		}
	}
	if c.begin(1) {
		t.Error("more copies than may run")
	}
	for range copiesMax {
		c.end()
	}
	c.announce(a, dangerNone)
	c.announce(b, dangerEmpty)
	if c.begin(dangerMove) || !c.begin(dangerEmpty) {
		t.Error("emptying goes before moving")
	}
	c.end()
	c.announce(b, dangerNone)
	if !c.begin(dangerMove) || c.begin(dangerMove) {
		t.Error("one copy at a time may only move something")
	}
	// The rate: the first bytes at once, those after them when their turn has come.
	if err := c.pace(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.pace(ctx, 1); err == nil {
		t.Error("more than the rate allows at once")
	}
	now += int64(2 * time.Second)
	if err := c.pace(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if rate, total := c.Rate(); rate < 500<<10 || rate > 1<<20 || total != 2<<20 {
		t.Errorf("rate %d, total %d", rate, total)
	}
	// None at all is no limit.
	var none *Copies
	none.announce(a, 1)
	if !none.begin(dangerMove) || none.pace(t.Context(), 1) != nil {
		t.Error("without a budget everything may run")
	}
	none.end()
}

// What has one copy left is made again before what has two.
func TestTheSegmentInDangerIsCopiedFirst(t *testing.T) {
	c := newCluster(t, 1, 4)
	c.limit.SegmentBytes = 64 << 10
	im := c.filled(1, 80)
	defer func() { im.o.Close() }()
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	im.keepUp(t, c, "all is sealed", func() bool { return im.o.View().Blocks.Degraded == 0 })
	im.o.ask(func() {
		v := &sight{o: im.o, now: im.o.servedAt, stores: map[ident.StoreID]*storeView{}, places: map[ident.SiteID][]*storeView{}, hosts: map[ident.SiteID]int{},
			heard: map[ident.SiteID]bool{1: true}, worst: dangerNone}
		im.o.repair.init()
		n := 0
		for _, s := range im.o.order {
			if !s.sealed || len(s.good()) < 2 {
				continue
			}
			if n++; n == 2 {
				s.holders[0].bad = true // one copy left
			}
			v.home(s, nil)
		}
		if len(v.tasks) != 1 || v.tasks[0].danger != 1 || v.worst != 1 || im.o.repair.counting.Single != 1 || im.o.repair.counting.Missing == 0 {
			t.Errorf("%d tasks, the worst %d, %+v", len(v.tasks), v.worst, im.o.repair.counting)
		}
	})
}

// A store that an operator declares lost counts for nothing at once: no grace, nobody waits for it, and what it held is
// made again.
func TestALostStoreIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 4)
	c.limit.SegmentBytes, c.limit.RepairGrace = 64<<10, time.Hour
	im := c.filled(1, 60)
	victim := c.seat(im.o.members[1].Store)
	c.kill(victim)
	for range 10 {
		im.change(t)
	}
	im.keepUp(t, c, "what it held counts as degraded", func() bool { return im.o.View().Blocks.Degraded > 0 })
	if b := im.o.View().Blocks; b.Missing != 0 {
		t.Errorf("within the grace period: %+v", b)
	}
	c.tellOf(victim.id, StoreInfo{Lost: true})
	im.keepUp(t, c, "everything has two copies, and nothing knows of the lost store", func() bool {
		for _, s := range im.o.Segments() {
			if slices.ContainsFunc(s.Holders, func(h HolderView) bool { return h.Store == victim.id }) {
				return false
			}
		}
		return im.o.View().Blocks.Degraded == 0 && im.o.View().Blocks.Missing == 0 &&
			!slices.ContainsFunc(im.o.View().Members, func(m journal.Member) bool { return m.Store == victim.id })
	})
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	im.keepUp(t, c, "no ensemble lists it", func() bool {
		state, _, _ := c.ctl.Journal(im.o.journalID)
		return len(state.Ensembles) == 1 && !slices.Contains(state.Ensembles[0].Stores, victim.id)
	})
	im.check(t)
	// It comes back all the same: nothing of it counts.
	c.start(victim)
	im.again(c)
	im.o.look()
	for _, s := range im.o.Segments() {
		if slices.ContainsFunc(s.Holders, func(h HolderView) bool { return h.Store == victim.id }) {
			t.Errorf("segment %s counts on a store that was declared lost", s.ID)
		}
	}
	im.check(t)
	im.o.Close()
}

// A store that is to go is emptied: no new segments, other ensembles, copies elsewhere, then permits, at home and at
// another site, though owners die at any moment of it.
func TestALeavingStoreIsEmptied(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		c := newCluster(t, 2, 4)
		c.limit.SegmentBytes = 64 << 10
		rng := rand.New(rand.NewPCG(seed, 5))
		im := c.filled(2, 60)
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		leaving := []*seat{c.seat(im.o.members[rng.IntN(2)].Store)}
		far := c.seats[4+rng.IntN(4)]
		leaving = append(leaving, far)
		for _, s := range leaving {
			c.tellOf(s.id, StoreInfo{Leaving: true})
		}
		deaths := 0
		im.keepUp(t, c, "the stores are empty, and no ensemble lists them", func() bool {
			if deaths < 4 && rng.IntN(3) == 0 {
				deaths++
				im.again(c) // the owner dies, wherever it is
			}
			// It does not end itself while it is written to: the model has no retries.
			var ended bool
			var since time.Duration
			im.o.ask(func() { ended, since, im.o.servedAt = im.o.stopErr != nil, im.o.servedAt, im.o.servedAt+time.Hour })
			if ended {
				return false
			}
			for range 3 {
				im.change(t)
			}
			im.o.ask(func() { im.o.cp.last, im.o.servedAt = 0, since })
			state, _, _ := c.ctl.Journal(im.o.journalID)
			for _, s := range leaving {
				if c.holds(s, im.o.journalID) > 0 {
					return false
				}
				for _, e := range state.Ensembles {
					if slices.Contains(e.Stores, s.id) {
						return false
					}
				}
			}
			return true
		})
		im.check(t)
		for _, s := range leaving {
			c.kill(s)
		}
		im.again(c)
		im.check(t)
		if !im.o.proven {
			t.Error("the takeover is not proven though the stores that went held nothing")
		}
		im.o.Close()
	}
}

// A checkpoint does not name what an older one has and nothing has changed since: an old checkpoint's segment stays for as
// long as that is so. At another site it goes elsewhere all the same when its store is emptied, and without waiting for the
// next checkpoint that time or bytes would bring.
func TestAnOldCheckpointLeavesAStoreOfAnotherSite(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(8<<20, 2, control.Replicated) // two leaves
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes)}
	defer func() { im.o.Close() }()
	write := func(off int64) {
		t.Helper()
		data := bytes.Repeat([]byte{byte(off>>20) + 1}, 8<<10)
		if err := writeAt(im.o, off, data, false); err != nil {
			t.Fatal(err)
		}
		copy(im.want[off:], data)
	}
	write(0)
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var leaving *seat
	var old ident.SegmentID
	eventually(t, "the other site has the checkpoint", func() bool {
		for _, s := range c.seats[3:] {
			for id, r := range c.replicas(s, v.ID) {
				if id.IsCheckpoint() && r.State == wire.ReplicaSealed {
					leaving, old = s, id
				}
			}
		}
		return leaving != nil
	})
	for i := range int64(20) {
		write(5<<20 + i<<13)
	}
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	c.tellOf(leaving.id, StoreInfo{Leaving: true})
	i := int64(0)
	im.keepUp(t, c, "the store is empty", func() bool {
		write(5<<20 + i%64<<13)
		i++
		im.o.ask(func() { im.o.cp.last -= deadPause })
		return c.holds(leaving, v.ID) == 0
	})
	eventually(t, "the first checkpoint is at sites 1, 1 and 2", func() bool {
		im.o.ask(im.o.publish)
		var holders []ident.SiteID
		for _, s := range im.o.Segments() {
			if s.ID == old {
				for _, h := range s.Holders {
					holders = append(holders, c.seat(h.Store).site)
				}
			}
		}
		slices.Sort(holders)
		return slices.Equal(holders, []ident.SiteID{1, 1, 2})
	})
	im.check(t)
}

// Nobody else can take what the last stores of a site hold: they keep it, and say so.
func TestTheLastStoresAreNotEmptied(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.limit.SegmentBytes = 64 << 10
	im := c.filled(1, 40)
	defer func() { im.o.Close() }()
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	c.tellOf(c.seats[1].id, StoreInfo{Leaving: true})
	before := c.holds(c.seats[1], im.o.journalID)
	for range 5 {
		im.o.look()
		time.Sleep(5 * time.Millisecond)
	}
	if n := c.holds(c.seats[1], im.o.journalID); n < before {
		t.Errorf("%d replicas of %d are left at the only other store", n, before)
	}
	im.check(t)
}

// The replica that stays after a drop is the one with room around it; where both have much the same, the owner's own.
func TestTheReplicaWithRoomStays(t *testing.T) {
	c := newCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	im := c.filled(1, 40)
	defer func() { im.o.Close() }()
	own := c.local
	im.o.ask(func() {
		s := &segment{holders: []holder{{store: own, stable: true, made: 1}, {store: c.seats[1].id, stable: true, made: 1}}}
		goes := func(free1, free2 uint64) ident.StoreID {
			c.tellOf(own, StoreInfo{Known: true, Capacity: 100, Free: free1})
			c.tellOf(c.seats[1].id, StoreInfo{Known: true, Capacity: 100, Free: free2})
			p, ok := im.o.leastWanted(s, 1, 1)
			if !ok || len(p.Remain) != 1 || p.Remain[0] == p.Store {
				t.Fatalf("%+v", p)
			}
			return p.Store
		}
		if goes(50, 50) == own || goes(50, 59) == own || goes(60, 50) == own {
			t.Error("the owner's own replica goes for nothing")
		}
		if goes(30, 60) != own {
			t.Error("the crowded store keeps the replica")
		}
		c.tellOf(c.seats[1].id, StoreInfo{Leaving: true, Known: true, Capacity: 100, Free: 99})
		if p, _ := im.o.leastWanted(s, 1, 1); p.Store != c.seats[1].id {
			t.Error("the store that is to go keeps the replica")
		}
	})
}

// Replicas move from crowded stores to one with room until the difference is tolerable, by copies and permits; new
// segments go where there is room at once.
func TestReplicasMoveToWhereThereIsRoom(t *testing.T) {
	t.Parallel()
	for _, sweep := range []int{0, 3} { // looked at whole, and in parts, each of which has one moved
		t.Run(fmt.Sprint(sweep, " at a time"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1, 5)
			c.limit.SegmentBytes, c.limit.SweepSegments = 64<<10, sweep
			movesToRoom(t, c)
		})
	}
}

func movesToRoom(t *testing.T, c *cluster) {
	im := c.filled(1, 80)
	defer func() { im.o.Close() }()
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	id := im.o.journalID
	var empty *seat
	for _, s := range c.seats {
		if c.holds(s, id) == 0 {
			empty = s
		}
	}
	if empty == nil {
		t.Fatal("every store has something")
	}
	// As if a store had room for 30 replicas.
	weigh := func() (least, most int) {
		least = 100
		for _, s := range c.seats {
			n := min(100, 100*c.holds(s, id)/30)
			c.tellOf(s.id, StoreInfo{Known: true, Capacity: 100, Free: uint64(100 - n)})
			least, most = min(least, n), max(most, n)
		}
		return least, most
	}
	least, most := weigh()
	if most-least <= roomTolerance {
		t.Fatalf("%d to %d: nothing to move", least, most)
	}
	im.keepUp(t, c, "the stores are even", func() bool {
		least, most = weigh()
		return most-least <= 2*roomTolerance && im.o.View().Blocks.Moving == 0
	})
	if c.holds(empty, id) == 0 {
		t.Error("nothing has moved")
	}
	im.check(t)
	for _, s := range im.o.Segments() {
		if n := len(slices.DeleteFunc(slices.Clone(s.Holders), func(h HolderView) bool { return h.Going || h.Bad })); s.Sealed && n < 2 {
			t.Errorf("segment %s has %d replicas", s.ID, n)
		}
	}
	im.again(c)
	im.check(t)
}

// rot flips a bit in the file of a replica.
func (c *cluster) rot(s *seat, id ident.SegmentID) { c.rotAt(s, id, 9000) }

func (c *cluster) rotAt(s *seat, id ident.SegmentID, off int64) {
	c.t.Helper()
	f, err := s.mem.OpenReadWrite("/store/segments/" + c.name(id))
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		c.t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		c.t.Fatal(err)
	}
}

// live reports that a segment has something that is needed.
func (o *Owner) live(id ident.SegmentID) (yes bool) {
	o.ask(func() {
		if s := o.segs[id]; s != nil {
			seg, ok := o.m.Segment(s.slot)
			yes = ok && !seg.Retired && seg.Live > 0
		}
	})
	return yes
}

// What rots on a replica that nobody reads is found by the scrubber and made again from a good one, at home and at another
// site; what was rotten is counted, and its file kept.
func TestRotIsHealedWithoutARead(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{2, 3} {
		c := newCluster(t, 2, nodes)
		c.limit.SegmentBytes = 64 << 10
		im := c.filled(2, 40)
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		for _, site := range []ident.SiteID{1, 2} {
			var victim *seat
			var seg ident.SegmentID
			im.keepUp(t, c, "a replica that is alone at its site", func() bool {
				for _, s := range im.o.Segments() {
					here := slices.DeleteFunc(slices.Clone(s.Holders), func(h HolderView) bool { return h.Going || !h.Stable || c.Site(h.Store) != site })
					if s.Sealed && len(here) == 1 && !s.ID.IsCheckpoint() && s.Bytes > 12000 && len(s.Holders) == 2 && im.o.live(s.ID) {
						seg, victim = s.ID, c.seat(here[0].Store)
						return true
					}
				}
				return false
			})
			c.rot(victim, seg)
			st, err := victim.get()
			if err != nil {
				t.Fatal(err)
			}
			rep, err := st.Scrub(t.Context(), 0)
			if err != nil || !slices.Equal(rep.Bad, []ident.SegmentID{seg}) {
				t.Fatalf("%+v, %v", rep, err)
			}
			made := c.replicas(victim, im.o.journalID)[seg].Made
			im.keepUp(t, c, "it is good again", func() bool {
				b, err := st.Blocks(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				c.tellOf(victim.id, StoreInfo{Damaged: b.Damaged})
				good := 0
				for _, s := range c.seats {
					if r := c.replicas(s, im.o.journalID)[seg]; r.State == wire.ReplicaSealed && c.Site(s.id) == site && (s != victim || r.Made != made) {
						good++
					}
				}
				return good == 1 && b.ScrubFound == 1 && b.ScrubHealed == 1 && len(b.Damaged) == 0
			})
			eventually(t, "the bad file is kept", func() bool { return c.aside(victim) == 1 })
			for _, s := range c.seats {
				st, err := s.get()
				if err != nil {
					t.Fatal(err)
				}
				if rep, err := st.Scrub(t.Context(), 0); err != nil || len(rep.Bad) > 0 {
					t.Errorf("%+v, %v", rep, err)
				}
			}
		}
		im.check(t)
		im.o.Close()
	}
}

// All stores that a site had of a journal are declared lost: what other sites hold is served, not proven. As long as one of
// them is only away, it is waited for.
func TestLostStoresDoNotHinderATakeover(t *testing.T) {
	c := newCluster(t, 2, 3)
	c.limit.SegmentBytes, c.limit.UncertainWait = 64<<10, 300*time.Millisecond
	im := c.filled(2, 40)
	im.keepUp(t, c, "the other site has everything", func() bool {
		v := im.o.View()
		return len(v.Sites) == 1 && v.Sites[0].Watermark.Seq == v.Commit.Seq
	})
	members := slices.Clone(im.o.members)
	v := *im.o.spec.Load()
	im.o.Close()
	for _, m := range members[:2] {
		c.kill(c.seat(m.Store))
		c.tellOf(m.Store, StoreInfo{Lost: true})
	}
	c.kill(c.seat(members[2].Store))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	env := im.o.env
	env.Stores = c
	if _, err := TakeOver(ctx, env, v); err == nil {
		t.Fatal("a store that is only away was not waited for")
	}
	c.start(c.seat(members[2].Store))
	im.o = c.own(v)
	if im.o.proven {
		t.Error("a takeover by an operator's word is proven")
	}
	im.check(t)
	im.o.Close()
	// Not even that one is left.
	for _, s := range c.seats[:3] {
		c.kill(s)
		c.tellOf(s.id, StoreInfo{Lost: true})
	}
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// Large reads go to the replica whose store has less to do, small ones stay at this node.
func TestLargeReadsAreSpread(t *testing.T) {
	c := newCluster(t, 1, 3)
	im := c.filled(1, 10)
	defer func() { im.o.Close() }()
	own, other := c.local, c.seats[1].id
	im.o.ask(func() {
		s := &segment{holders: []holder{{store: own, stable: true}, {store: other, stable: true}}}
		at := func(last *seat) ident.StoreID {
			if last != nil {
				return im.o.readSpread(s, last).ID()
			}
			return im.o.readSpread(s, nil).ID()
		}
		if at(nil) != own {
			t.Error("idle stores: this node's own is nearer")
		}
		h := im.o.env.Health
		h.reading(own).bytes.Add(1 << 20)
		if h.reading(own).pace.Store(int64(time.Millisecond)); at(nil) != own {
			t.Error("the own store reads as fast as memory: nobody else need do it")
		}
		h.reading(own).pace.Store(int64(20 * time.Millisecond))
		if at(nil) != other || im.o.readFrom(s).ID() != own {
			t.Error("the own store is busy: the other one reads what is large")
		}
		if at(c.seat(own)) != own {
			t.Error("one request became two")
		}
		h.reading(other).bytes.Add(1 << 20)
		if at(nil) != own {
			t.Error("both are as busy: this node's own is nearer")
		}
		h.reading(own).bytes.Add(-1 << 20)
		h.reading(other).bytes.Add(-1 << 20)
	})
	im.check(t)
	im.o.ask(func() {
		for _, s := range c.seats {
			if n := im.o.env.Health.reading(s.id).bytes.Load(); n != 0 {
				t.Errorf("%d bytes are still counted", n)
			}
		}
	})
}

// One read that had to wait makes no slow store; one after the other does.
func TestPaceOfAStore(t *testing.T) {
	var l readLoad
	l.note(256<<10, time.Millisecond/4)
	if p := l.pace.Load(); p != int64(time.Millisecond) {
		t.Errorf("pace %d after 256 KiB in 250 us", p)
	}
	l.note(1<<20, 20*time.Millisecond)
	if l.pace.Load() >= int64(spreadPace) {
		t.Error("slow after one read")
	}
	for range 8 {
		l.note(1<<20, 20*time.Millisecond)
	}
	if l.pace.Load() < int64(spreadPace) {
		t.Error("fast after nine slow reads")
	}
	for range 16 {
		l.note(1<<20, time.Millisecond)
	}
	if l.pace.Load() >= int64(spreadPace) {
		t.Error("slow after sixteen fast reads")
	}
}

// A store that was away when its journal was taken over, and is back, is asked what it has once a copy fails: the only replica
// that the owner knows of is rotten, and that store's is good.
func TestACopyThatFailsAsksWhoWasAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	c.limit.SegmentBytes = 64 << 10
	im := c.filled(1, 60)
	var seg SegmentView
	var away, rotten *seat
	for _, s := range im.o.Segments() {
		if s.Sealed && !s.ID.IsCheckpoint() && len(s.Holders) == 2 && im.o.live(s.ID) {
			seg = s
		}
	}
	if seg.Holders == nil {
		t.Fatal("no sealed segment")
	}
	rotten, away = c.seat(seg.Holders[0].Store), c.seat(seg.Holders[1].Store)
	if away.id == c.local {
		rotten, away = away, rotten
	}
	c.kill(away)
	im.again(c)
	c.rot(rotten, seg.ID)
	im.o.ask(func() { im.o.strays.due, im.o.strays.farDue = math.MaxInt64, math.MaxInt64 }) // the clock has just had all asked that were there
	c.start(away)
	known := func() (yes bool) {
		im.o.ask(func() { s := im.o.segs[seg.ID]; yes = s != nil && s.holder(away.id) != nil && s.holder(away.id).stable })
		return yes
	}
	if known() {
		t.Fatal("it is known already")
	}
	im.o.ask(func() { // as a repair does it
		im.o.repair.init()
		from, _ := im.o.env.Stores.Store(rotten.id)
		for _, to := range c.seats {
			if dest, _ := im.o.env.Stores.Store(to.id); to != rotten && to != away {
				im.o.copyTo(im.o.segs[seg.ID], from, dest, dangerNone)
			}
		}
	})
	eventually(t, "the replica is known", known)
	im.check(t)
	im.o.Close()
}
