package access

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// dropWatch tells what a store is asked to drop.
type dropWatch struct {
	journal.Store
	tell func(*wire.Drop)
}

func (d dropWatch) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	d.tell(m)
	return d.Store.Drop(ctx, m)
}

// A store that was away at the takeover has the only good replica of a segment. It is asked as soon as it can be, and not minutes
// later; until then the bad one, which a former owner permitted to be made again, stays where it is.
func TestTheOnlyGoodReplicaIsAtAStoreThatWasAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	var again, blind atomic.Int32
	var seg SegmentView
	var im *image
	c.wrap = func(s journal.Store) journal.Store {
		return dropWatch{s, func(m *wire.Drop) {
			if m.Replace && m.Segment == seg.ID {
				im.o.ask(func() {
					again.Add(1)
					if len(im.o.segs[seg.ID].good()) == 0 {
						blind.Add(1)
					}
				})
			}
		}}
	}
	im = &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 14))}
	for range 10 {
		im.change(t)
	}
	im.o.ask(im.o.w.CloseIdle)
	eventually(t, "it is sealed", func() bool {
		seg = im.o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	away, bad := seg.Holders[0].Store, seg.Holders[1].Store
	im.o.ask(func() {
		o := im.o
		s := o.segs[seg.ID]
		s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.store == away })
		h := s.holder(bad)
		h.bad, h.going = true, true
		delete(o.strays.heard, away)
		o.permits[permitKey{seg.ID, bad}] = pendingPermit{journal.Permit{Segment: seg.ID, Store: bad, Made: h.made, Replace: true, Remain: []ident.StoreID{away}}, 1}
		o.sendDrops()
		if s.holder(bad) == nil || len(s.good()) != 0 {
			t.Error("the set-up is not what it should be")
		}
	})
	eventually(t, "both are good", func() bool {
		n := 0
		im.o.ask(func() { n = len(im.o.segs[seg.ID].good()) })
		return n == 2
	})
	if again.Load() == 0 {
		t.Error("the bad one was not made again")
	}
	if n := blind.Load(); n != 0 {
		t.Errorf("%d times it was to go while nobody was known to have a good one", n)
	}
	im.check(t)
	im.o.Close()
}
