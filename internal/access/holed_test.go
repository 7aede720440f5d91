package access

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// notTold is a store that has not heard of a stable point beyond one: the notices got lost.
type notTold struct {
	journal.Store
	stable *atomic.Pointer[ident.Position]
}

func (s notTold) known(p *ident.Position) {
	if at := s.stable.Load(); at != nil && p.Seq > at.Seq {
		*p = *at
	}
}

func (s notTold) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	r, err := s.Store.Fence(ctx, m)
	s.known(&r.Stable)
	return r, err
}

func (s notTold) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	r, err := s.Store.Inventory(ctx, m)
	s.known(&r.Stable)
	return r, err
}

// One holder of a segment is lost for good, the other one has lost its power and what it had of it, and an operator has given
// up the first. All but one of the ensemble answer, so nobody is missing, and a takeover does not go on with less than there was
// by itself. The operator's next word says that it has to: it is served in front of the hole.
func TestAnOperatorGoesOnInFrontOfAHole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 5)
	c.limit.SegmentBytes = 64 << 10
	c.limit.UncertainWait = 100 * time.Millisecond
	var stable atomic.Pointer[ident.Position]
	c.wrap = func(s journal.Store) journal.Store { return notTold{s, &stable} }
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	if err := n.flush(o); err != nil {
		t.Fatal(err)
	}
	var at ident.Position
	o.ask(func() { at = o.w.Stable() })
	stable.Store(&at)
	before := map[*seat]*vfs.Mem{}
	for _, s := range c.seats {
		before[s] = s.mem.CrashClone(vfs.Crash{})
	}
	n.writes(t, o, 80)
	o.Close()

	holders := map[ident.SegmentID][]*seat{}
	starts := map[ident.SegmentID]ident.Seq{}
	for _, s := range c.seats {
		for id, r := range c.replicas(s, v.ID) {
			if r.Before.Seq > at.Seq && !id.IsCheckpoint() {
				holders[id], starts[id] = append(holders[id], s), r.Before.Seq
			}
		}
	}
	var hole ident.SegmentID
	for id, from := range starts {
		if len(holders[id]) == 2 && (hole == ident.SegmentID{} || from < starts[hole]) {
			hole = id
		}
	}
	gone, dark := holders[hole][0], holders[hole][1]
	c.kill(gone)
	c.powerCut(dark)
	dark.mem = before[dark]
	c.start(dark)
	for _, s := range c.seats {
		if s != gone && s != dark {
			c.local = s.id
		}
	}
	force := func(lost []ident.StoreID, loss bool) {
		t.Helper()
		_, rev, err := c.ctl.JournalNow(t.Context(), v.ID)
		if err == nil {
			_, _, err = c.ctl.ForceJournal(t.Context(), v.ID, rev, "n1", lost, "", 0, loss)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	force([]ident.StoreID{gone.id}, false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if o, err := TakeOver(ctx, c.env(), v); err == nil {
		o.Close()
		t.Fatal("it is served with less than there was, and nobody has agreed to that")
	}
	said := c.survey(t, v)
	if !said.Enough || !said.Holed || said.Stable || said.Last > starts[hole] {
		t.Errorf("the survey: %+v", said)
	}
	force(said.Missing, said.ShortOfRecords())
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o, err := TakeOver(ctx, c.env(), v)
	if err != nil {
		t.Fatal("the operator has agreed, and it is not served: ", err)
	}
	if o.proven {
		t.Error("it is proven")
	}
	said.is(t, o)
	n.check(t, o, n.flushed, "in front of the hole")
	o.Close()
}
