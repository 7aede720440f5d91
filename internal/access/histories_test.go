package access

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// past reads a history of a fork as `dozo fork` does, and holds it to be the state after the given write.
func (n *numbered) past(t *testing.T, o *Owner, kind PastKind, write int, what string) (writes uint64) {
	t.Helper()
	o.ask(o.publish)
	cuts := o.View().Cuts
	if len(cuts) == 0 {
		t.Fatalf("%s: nothing was left behind", what)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := (&Server{env: o.env}).Past(ctx, o.journalID, cuts, cuts[0], kind)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer p.Close()
	writes, _, _, _, err = p.Sum()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	var pieces []volume.Piece
	if pieces, err = p.Pieces(0, uint32(n.blocks), pieces); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for i := range pieces {
		x := &pieces[i]
		got := make([]byte, x.Count*journal.BlockSize)
		if !x.Hole() {
			if err := p.Read(ctx, x, got); err != nil {
				t.Fatalf("%s: read: %v", what, err)
			}
		}
		for b := range uint64(x.Count) {
			block := int(x.Block + b)
			want := make([]byte, 4)
			if last := write - ((write-block)%n.blocks+n.blocks)%n.blocks; last > 0 {
				want = []byte{byte(last), byte(last >> 8), byte(last >> 16), 1}
			}
			if data := got[b*journal.BlockSize:][:journal.BlockSize]; !bytes.Equal(data, bytes.Repeat(want, journal.BlockSize/4)) {
				t.Fatalf("%s: block %d begins with %v, written was %v", what, block, data[:4], want)
			}
		}
	}
	return writes
}

// untold is a store that hears no more how far the history is committed, nor at another site that a segment has ended, and to which sealers
// give no word on what it does not know.
type untold struct {
	journal.Store
	far   bool
	since *atomic.Pointer[ident.Position]
	mute  *atomic.Bool
}

func (u *untold) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if at := u.since.Load(); at != nil {
		m.Commit, m.Stable = *at, *at
	}
	u.Store.Append(m, done)
}

func (u *untold) Notice(m *wire.Notice) {
	if u.since.Load() == nil {
		u.Store.Notice(m)
	}
}

func (u *untold) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	if u.far && u.since.Load() != nil {
		return wire.SealReply{}, wire.Errorf(wire.CodeUnreached, "the line is bad")
	}
	if u.mute.Load() {
		c := *m
		c.Proven = false
		m = &c
	}
	return u.Store.Seal(ctx, m)
}

// copiedEnd is two sites, of which the second was given the volume by force. The first, which is away, has a segment that ends with the last
// record that the second has of it, or begins in front of that: then both have as many records more, and what the first has beyond is behind these.
// The taker has not heard that so much is committed, and has put the end of it into segments of its own.
type copiedEnd struct {
	*cluster
	v           control.VolumeSpec
	n           *numbered
	o           *Owner
	mute        atomic.Bool
	had, beyond int       // the newest write that both have, and that the first has
	from        ident.Seq // where the taker's own segments begin
}

func newCopiedEnd(t *testing.T, copied, more, beyond int) *copiedEnd {
	t.Helper()
	c := newCluster(t, 2, 3) // all of the ensemble is at home
	c.limit.SegmentBytes = 1 << 20
	f := &copiedEnd{cluster: c}
	var since atomic.Pointer[ident.Position]
	c.wrap = func(s journal.Store) journal.Store { return &untold{s, c.Site(s.ID()) == 2, &since, &f.mute} }
	f.v = c.volume(1<<20, 2, control.Replicated)
	f.n = &numbered{blocks: 64, done: map[int]bool{}}
	n, o := f.n, c.own(f.v)
	n.writes(t, o, 100)
	c.inStep(t, o)
	at := o.View().Commit
	since.Store(&at)
	n.writes(t, o, copied)
	c.inStep(t, o)
	if more > 0 {
		o.ask(func() { o.w.CloseIdle() })
		n.writes(t, o, more)
		c.inStep(t, o)
	}
	f.had = n.acked
	c.killSite(2)
	if more == 0 {
		o.ask(func() { o.w.CloseIdle() })
	}
	n.writes(t, o, beyond)
	f.beyond = n.acked
	eventually(t, "the segment is sealed at both of its stores", func() bool {
		sealed := 0
		for _, s := range c.seats[:3] {
			for _, r := range c.replicas(s, f.v.ID) {
				if r.State == wire.ReplicaSealed && !r.Segment.IsCheckpoint() {
					sealed++
				}
			}
		}
		return sealed == 2
	})
	c.killSite(1)
	o.Close()
	since.Store(nil)
	c.limit.SegmentBytes = 64 << 10
	c.startSite(2)
	c.at(2)
	c.force(t, f.v, 1)
	o = c.own(f.v)
	n.check(t, o, f.had, "after the failover")
	if n.acked != f.had {
		t.Fatalf("the newest write is %d, the site had %d", n.acked, f.had)
	}
	var base ident.Seq
	own := 0
	o.ask(func() {
		base = o.w.Start().Before.Seq
		for _, s := range o.order {
			if s.id.Epoch == o.epoch && s.before.Seq < base {
				if own++; own == 1 {
					f.from = s.before.Seq
				}
			}
		}
	})
	if own == 0 || copied > 30 && own < 2 {
		t.Fatalf("the taker has put what is above its commit point, to %d, into %d segments of its own", base, own)
	}
	f.o = o
	return f
}

// ends holds that no replica of the former owner goes on to where the histories part, but what is set aside.
func (f *copiedEnd) ends(t *testing.T) {
	t.Helper()
	eventually(t, "no replica of the former epoch goes on to where the histories part", func() bool {
		f.o.look()
		for _, s := range f.seats {
			for id, r := range f.replicas(s, f.v.ID) {
				if id.Epoch.Number == 1 && r.State != wire.ReplicaFork && !id.IsCheckpoint() && r.Last.Seq > f.from {
					return false
				}
			}
		}
		return true
	})
}

// What the site had beyond, and where the two part, can be read once the site is back and its replica ends in front of that.
func TestAForkThatGoesOnFromWhatTheTakerHasCopied(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ copied, more int }{{1, 0}, {40, 0}, {1, 1}, {40, 3}} { // of 40 the taker makes more than one segment
		t.Run(fmt.Sprint(x.copied, " records, and ", x.more), func(t *testing.T) {
			t.Parallel()
			f := newCopiedEnd(t, x.copied, x.more, 40)
			f.n.writes(t, f.o, 40)
			f.startSite(1)
			f.inStep(t, f.o)
			f.ends(t)
			if writes := f.n.past(t, f.o, PastFork, f.beyond, "the fork"); writes != uint64(f.beyond-f.had) {
				t.Errorf("the fork has %d writes, the site had %d beyond", writes, f.beyond-f.had)
			}
			f.n.past(t, f.o, PastBase, f.had, "where they part")
			f.n.past(t, f.o, PastHead, f.n.acked, "the volume")
			f.o.Close()
		})
	}
}

// The site is back in the next epoch, whose owner knows that nothing of its replica was left behind; a store that gets no segment of the
// taker's does not. Nothing is made a fork
// of that, and what stores have set aside all the same, by the word of an owner of a version before, goes; and the cut is closed then.
func TestWhatTheTakerHasCopiedIsNoFork(t *testing.T) {
	t.Parallel()
	for _, mute := range []bool{false, true} {
		t.Run(fmt.Sprint("set aside ", mute), func(t *testing.T) {
			t.Parallel()
			f := newCopiedEnd(t, 1, 0, 0)
			f.mute.Store(mute)
			old := f.o
			f.o = f.own(f.v)
			old.Close()
			if !f.o.proven {
				t.Fatal("the next epoch is not proven")
			}
			f.startSite(1)
			f.inStep(t, f.o)
			f.ends(t)
			eventually(t, "the replicas end where the segment does", func() bool {
				f.o.look()
				sealed := 0
				for _, s := range f.seats[:3] {
					for id, r := range f.replicas(s, f.v.ID) {
						if id.Epoch.Number == 1 && !id.IsFork() && r.State == wire.ReplicaSealed && r.Last.Seq == f.from {
							sealed++
						}
					}
				}
				return sealed > 0
			})
			eventually(t, "nothing is set aside, and no cut is open", func() bool {
				f.o.look()
				forks, open := 0, -1
				f.o.ask(func() { f.o.dropSome(); f.o.releaseCuts(); open = len(f.o.forks.open()) })
				for _, s := range f.seats {
					for _, r := range f.replicas(s, f.v.ID) {
						if r.State == wire.ReplicaFork {
							forks++
						}
					}
				}
				return forks == 0 && open == 0
			})
			if forks := f.events("volume.fork"); len(forks) > 0 != mute {
				t.Errorf("events: %q", forks)
			}
			f.n.check(t, f.o, f.n.acked, "at the end")
			f.o.Close()
		})
	}
}
