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
