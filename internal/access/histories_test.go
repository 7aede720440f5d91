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

// untold is a store that hears no more how far the history is committed.
type untold struct {
	journal.Store
	since *atomic.Pointer[ident.Position]
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

// A site that is given up has a segment which ends with the last record that the other one has of it. The taker has not heard that so much
// is committed, and puts the end of it into a segment of its own: once the site is back its replica ends in front of that. What the
// site had beyond, and where the two part, can be read all the same.
func TestAForkThatGoesOnFromWhatTheTakerHasCopied(t *testing.T) {
	t.Parallel()
	for _, copied := range []int{1, 40} { // of which the taker makes one segment, and more than one
		t.Run(fmt.Sprint(copied, " records"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, 3) // all of the ensemble is at home
			c.limit.SegmentBytes = 1 << 20
			var since atomic.Pointer[ident.Position]
			c.wrap = func(s journal.Store) journal.Store { return &untold{s, &since} }
			v := c.volume(1<<20, 2, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			n.writes(t, o, 100)
			c.inStep(t, o)
			at := o.View().Commit
			since.Store(&at)
			n.writes(t, o, copied)
			c.inStep(t, o)
			had := n.acked
			c.killSite(2)
			o.ask(func() { o.w.CloseIdle() })
			n.writes(t, o, 40)
			eventually(t, "the segment is sealed at both of its stores", func() bool {
				sealed := 0
				for _, s := range c.seats[:3] {
					for _, r := range c.replicas(s, v.ID) {
						if r.State == wire.ReplicaSealed && !r.Segment.IsCheckpoint() {
							sealed++
						}
					}
				}
				return sealed == 2
			})
			beyond := n.acked
			c.killSite(1)
			o.Close()
			since.Store(nil)
			c.limit.SegmentBytes = 64 << 10
			c.startSite(2)
			c.at(2)
			c.force(t, v, 1)
			o = c.own(v)
			defer func() { o.Close() }()
			n.check(t, o, had, "after the failover")
			if n.acked != had {
				t.Fatalf("the newest write is %d, the site had %d", n.acked, had)
			}
			var base ident.Seq
			var in []*segment
			o.ask(func() {
				base = o.w.Start().Before.Seq
				for _, s := range o.order {
					if s.id.Epoch == o.epoch && s.before.Seq < base {
						in = append(in, s)
					}
				}
			})
			if len(in) == 0 || copied > 30 && len(in) < 2 {
				t.Fatalf("the taker has put what is above its commit point, to %d, into %d segments of its own", base, len(in))
			}
			n.writes(t, o, 40)
			c.startSite(1)
			c.inStep(t, o)
			eventually(t, "no replica of the former epoch goes on to where the histories part", func() bool {
				o.look()
				for _, s := range c.seats {
					for id, r := range c.replicas(s, v.ID) {
						if id.Epoch.Less(o.epoch) && r.State != wire.ReplicaFork && !id.IsCheckpoint() && r.Last.Seq > in[0].before.Seq {
							return false
						}
					}
				}
				return true
			})
			if writes := n.past(t, o, PastFork, beyond, "the fork"); writes != uint64(beyond-had) {
				t.Errorf("the fork has %d writes, the site had %d beyond", writes, beyond-had)
			}
			n.past(t, o, PastBase, had, "where they part")
			n.past(t, o, PastHead, n.acked, "the volume")
		})
	}
}
