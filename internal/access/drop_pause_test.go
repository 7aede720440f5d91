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

// keeper is a store that can not note that it lets something go.
type keeper struct {
	journal.Store
	n *atomic.Int32
}

func (k keeper) Drop(context.Context, *wire.Drop) (wire.DropReply, error) {
	k.n.Add(1)
	return wire.DropReply{}, wire.ErrIO
}

// A store whose disk is broken is asked after a pause whether it lets go of what it was permitted to, and not at each look for each replica.
func TestAStoreThatCanLetNothingGoIsAskedAfterAPause(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 3)
	var asked atomic.Int32
	c.wrap = func(s journal.Store) journal.Store { return keeper{s, &asked} }
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
		t.Fatal(err)
	}
	o.ask(o.w.CloseIdle)
	eventually(t, "it is sealed", func() bool {
		s := o.Segments()[0]
		return s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable
	})
	o.ask(func() {
		s := o.order[0]
		h := s.holders[1]
		o.permits[permitKey{s.id, h.store}] = pendingPermit{Permit: journal.Permit{Segment: s.id, Store: h.store, Made: h.made, Remain: []ident.StoreID{s.holders[0].store}}, seq: o.w.Stable().Seq}
		o.sendDrops()
	})
	eventually(t, "it has answered", func() bool { return asked.Load() > 0 && len(o.env.Health.Avoided()) > 0 })
	const looks = 50
	was := asked.Load()
	for range looks {
		o.ask(o.sendDrops)
	}
	o.Close() // what it has asked for is done
	if n := asked.Load() - was; n >= looks {
		t.Errorf("it was asked %d times more at %d looks", n, looks)
	}
}
