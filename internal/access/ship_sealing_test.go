package access

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// heldSeals is a store that, once held, seals nothing before it is let.
type heldSeals struct {
	journal.Store
	held  *atomic.Bool
	asked chan ident.SegmentID
	let   chan struct{}
}

func (s heldSeals) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	if !s.held.Load() {
		return s.Store.Seal(ctx, m)
	}
	select {
	case s.asked <- m.Segment:
	default:
	}
	select {
	case <-s.let:
		return s.Store.Seal(ctx, m)
	case <-ctx.Done():
		return wire.SealReply{}, ctx.Err()
	}
}

// A segment that was idle is stable at another site before it is sealed at home. While its seal is on the way there the site
// has no replica by the owner's table, which took that for one that was lost, and copied the whole segment to another store of the site.
func TestASegmentThatIsBeingSealedElsewhereIsNotCopied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	var held atomic.Bool
	asked, let := make(chan ident.SegmentID, 1), make(chan struct{})
	c.wrap = func(s journal.Store) journal.Store {
		if c.Site(s.ID()) == 2 {
			return heldSeals{s, &held, asked, let}
		}
		return s
	}
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 9))}
	o := im.o
	for range 20 {
		im.change(t)
	}
	eventually(t, "the other site has everything stably", func() bool {
		o.ask(o.publish)
		x := o.View()
		return len(x.Sites) == 1 && x.Sites[0].Watermark == x.Commit && x.Sites[0].StableWatermark == x.Commit.Seq
	})
	held.Store(true)
	o.ask(o.w.CloseIdle)
	id := <-asked
	eventually(t, "it is sealed at home", func() (yes bool) {
		o.ask(func() {
			o.repairSome(o.servedAt + 2*heardPatience)
			s := o.segs[id]
			yes = s.sealed && s.slot != 0 && o.goodAt(s, 1) == 2
			o.w.Pending(func(ws *journal.Segment, _ []int) { yes = yes && ws.ID != id })
		})
		return yes
	})
	o.ask(func() {
		o.repairSome(o.servedAt + 2*heardPatience)
		if o.repair.busy[id] || o.goodAt(o.segs[id], 2) > 0 {
			t.Error("it is copied to the site to which it was shipped")
		}
	})
	close(let)
	eventually(t, "it is sealed at the other site", func() (yes bool) {
		o.ask(func() { yes = o.goodAt(o.segs[id], 2) > 0 })
		return yes
	})
	if n := counter(o.env.Metrics.Repaired); n > 0 {
		t.Errorf("%v replicas were made again", n)
	}
	im.check(t)
	o.Close()
}

// A session asks another site's stores what they have, and compares segments with the answers for as long as it lasts. A replica that
// was permitted to go meanwhile counts for nothing, and one that has gone is not there: taken for the site's copy it would let the
// others go.
func TestWhatHasGoneSinceASiteWasAskedIsNotItsCopy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 9))}
	o := im.o
	for range 20 {
		im.change(t)
	}
	o.ask(o.w.CloseIdle)
	var seg *segment
	var h holder
	eventually(t, "a segment is sealed at the other site", func() bool {
		o.ask(func() {
			for _, s := range o.segs {
				for _, x := range s.holders {
					if !s.id.IsCheckpoint() && s.sealed && x.stable && c.Site(x.store) == 2 {
						seg, h = s, x
					}
				}
			}
		})
		return seg != nil
	})
	st, _ := c.Store(h.store)
	answer := []have{{store: st, state: wire.ReplicaSealed, end: seg.end, last: seg.last, made: h.made}}
	if _, whole := o.wholeAt(seg, answer); !whole {
		t.Fatal("the site has the segment, and the test means nothing")
	}
	k := permitKey{seg.id, h.store}
	o.ask(func() {
		o.permits[k] = pendingPermit{Permit: journal.Permit{Segment: seg.id, Store: h.store, Made: h.made}}
	})
	if _, whole := o.wholeAt(seg, answer); whole {
		t.Error("what is permitted to go is the site's copy")
	}
	o.ask(func() {
		p := o.permits[k]
		p.seq = o.w.Stable().Seq
		o.permits[k] = p
		o.sendDrops()
	})
	there := func() (yes bool) {
		o.ask(func() { x := seg.holder(h.store); yes = x != nil && x.made == h.made })
		return yes
	}
	eventually(t, "it has gone", func() bool { return !there() })
	if _, whole := o.wholeAt(seg, answer); whole || there() {
		t.Error("what has gone is the site's copy")
	}
	o.Close()
}
