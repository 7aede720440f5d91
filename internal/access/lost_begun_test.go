package access

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// declaredLost is two sites, of which the first is gone for good: an operator has declared each of its stores lost. Nobody has said that
// a takeover is by force.
type declaredLost struct {
	*cluster
	v             control.VolumeSpec
	n             *numbered
	opens, pushes atomic.Bool
}

func newDeclaredLost(t *testing.T) *declaredLost {
	c := newCluster(t, 2, 3)
	f := &declaredLost{cluster: c}
	c.limit.SegmentBytes = 64 << 10
	c.limit.UncertainWait = 100 * time.Millisecond
	c.wrap = func(s journal.Store) journal.Store { return &shut{s, &f.opens, &f.pushes} }
	f.v = c.volume(1<<20, 2, control.Replicated)
	f.n = &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(f.v)
	f.n.writes(t, o, 100)
	c.inStep(t, o)
	c.killSite(1)
	o.Close()
	for _, s := range c.seats[:3] {
		c.tellOf(s.id, StoreInfo{Lost: true})
	}
	c.at(2)
	return f
}

// without ends a store, and has the next owner be at another node of the site.
func (f *declaredLost) without(gone *seat) {
	f.kill(gone)
	for _, s := range f.seats[3:] {
		if s != gone {
			f.local = s.id
		}
	}
}

// tries is a takeover that has to wait.
func (f *declaredLost) tries(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	next, err := TakeOver(ctx, f.env(), f.v)
	if err == nil {
		next.Close()
		t.Fatalf("it does not wait: %s", next.recovered.Describe())
	}
	if !errors.Is(err, wire.ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ends by %v", err)
	}
}

// The next owner hears all that the first one after the loss had begun with: it is proven, and nobody gets an error again.
func TestTheOwnerAfterStoresWereDeclaredLostIsProvenAgain(t *testing.T) {
	t.Parallel()
	f := newDeclaredLost(t)
	o := f.own(f.v)
	if o.proven {
		t.Fatal("proven without a store of its ensemble")
	}
	f.n.check(t, o, 100, "without the site")
	f.n.writes(t, o, 20)
	o.Close()
	o = f.own(f.v)
	if len(f.listed(f.v).Ensembles) < 2 {
		t.Fatal("the lost ensemble has left the list, and the test means nothing")
	}
	if !o.proven {
		t.Error("the next one is not proven either")
	}
	f.n.check(t, o, f.n.acked, "at the next owner")
	o.Close()
}

// The first taker dies as soon as it has begun, and with it the store that has the end of what it found. The next one begins with no less.
func TestAfterStoresWereDeclaredLostNobodyBeginsWithLess(t *testing.T) {
	t.Parallel()
	f := newDeclaredLost(t)
	f.opens.Store(true) // its start gets nowhere
	o := f.take(f.v)
	if o.proven {
		t.Fatal("proven without a store of its ensemble")
	}
	o.Close()
	f.opens.Store(false)
	gone := f.endsAt(f.v, 2)
	f.without(gone)
	f.tries(t)
	f.start(gone)
	o = f.own(f.v)
	f.n.check(t, o, f.n.acked, "with the store back")
	o.Close()
}

// A part of the history is at one store of the other site only, which is away: it is not cut there.
func TestAfterStoresWereDeclaredLostNothingIsCut(t *testing.T) {
	t.Parallel()
	f := newDeclaredLost(t)
	f.limit.RepairGrace = time.Hour // nobody makes the copies
	f.pushes.Store(true)
	o := f.own(f.v)
	f.n.writes(t, o, 20)
	o.Close()
	only := map[*seat]int{}
	at := map[ident.SegmentID][]*seat{}
	for _, s := range f.seats[3:] {
		for id := range f.replicas(s, f.v.ID) {
			if id.Epoch.Less(o.epoch) && !id.IsCheckpoint() {
				at[id] = append(at[id], s)
			}
		}
	}
	var gone *seat
	for _, seats := range at {
		if only[seats[0]]++; len(seats) == 1 && (gone == nil || only[seats[0]] > only[gone]) {
			gone = seats[0]
		}
	}
	if gone == nil {
		t.Fatal("no segment is at one store only")
	}
	f.without(gone)
	f.tries(t)
	f.start(gone)
	f.pushes.Store(false)
	o = f.own(f.v)
	f.n.check(t, o, f.n.acked, "with the store back")
	o.Close()
}
