package access

import (
	"bytes"
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

// noPlace is a store whose replica of a segment is found bad when it is to be sealed, and that has no place for a new one yet.
type noPlace struct {
	journal.Store
	segment *atomic.Pointer[ident.SegmentID]
}

func (r noPlace) is(id ident.SegmentID) bool {
	s := r.segment.Load()
	return s != nil && *s == id
}

func (r noPlace) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	if r.is(m.Segment) {
		return wire.SealReply{}, wire.ErrCorrupt
	}
	return r.Store.Seal(ctx, m)
}

func (r noPlace) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	if r.is(m.Segment) {
		return wire.OpenReply{}, wire.ErrBusy
	}
	return r.Store.OpenSegment(ctx, m)
}

// Of two stores one has a replica that no flush has been promised of and that rots; it lets go of it, to make it again from the other one's, which
// dies with the owner. What was written is on that one's disk: a takeover does not go on without it, unless an operator says so.
func TestNobodyGoesOnWithoutWhatIsBeingMadeAgain(t *testing.T) {
	t.Parallel()
	for _, force := range []bool{false, true} {
		goesOnWithout(t, force)
	}
}

func goesOnWithout(t *testing.T, force bool) {
	t.Helper()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	var bad atomic.Pointer[ident.SegmentID]
	victim := c.seats[1]
	c.wrap = func(s journal.Store) journal.Store {
		if s.ID() == victim.id {
			return noPlace{s, &bad}
		}
		return s
	}
	o := c.own(v)
	if err := writeAt(o, 4096, make([]byte, 4096), true); err != nil {
		t.Fatal(err)
	}
	o.ask(o.w.CloseIdle)
	eventually(t, "the first segment is sealed", func() bool {
		s := o.Segments()[0]
		return s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable
	})
	want := bytes.Repeat([]byte{7}, 4096)
	if err := writeAt(o, 0, want, false); err != nil {
		t.Fatal(err)
	}
	list := o.Segments()
	seg := list[len(list)-1].ID
	eventually(t, "both stores know that it is committed", func() bool {
		for _, s := range c.seats {
			r, err := s.Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
			if err != nil || r.Commit.Seq < list[len(list)-1].Last {
				return false
			}
		}
		return true
	})
	o.Close()
	bad.Store(&seg)
	o = c.own(v)
	eventually(t, "the bad replica is let go", func() bool {
		r := c.replicas(victim, v.ID)[seg]
		return r.State == wire.ReplicaDamaged
	})
	o.Close()
	bad.Store(nil)
	c.kill(c.seats[0])
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	o, err := TakeOver(ctx, c.env(), v)
	if err == nil {
		got, err := readAt(o, 0, 4096)
		t.Errorf("the volume is served without the store that has what was written: %v, %v, as it was: %v", o.recovered.Describe(), err, bytes.Equal(got, want))
		o.Close()
	} else if !errors.Is(err, wire.ErrBusy) {
		t.Error(err)
	}
	if force {
		said := c.survey(t, v)
		_, rev, err := c.ctl.JournalNow(t.Context(), v.ID)
		if err == nil {
			_, _, err = c.ctl.ForceJournal(t.Context(), v.ID, rev, "n1", said.Missing, "", 0, said.ShortOfRecords())
		}
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		o, err := TakeOver(ctx, c.env(), v)
		if err != nil {
			t.Fatal("an operator has agreed to go on without: ", err)
		}
		said.is(t, o)
		o.Close()
		return
	}
	c.start(c.seats[0])
	o = c.own(v)
	if got, err := readAt(o, 0, 4096); err != nil || !bytes.Equal(got, want) {
		t.Errorf("with both stores: %v, as it was: %v", err, bytes.Equal(got, want))
	}
	o.Close()
}

// A site that is making a replica again is not heard whole: what the other sites count on may be in that one (R11, --ack=site:K).
func TestASiteThatMakesAReplicaAgainIsNotWhole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	if err := writeAt(o, 0, make([]byte, 4096), true); err != nil {
		t.Fatal(err)
	}
	o.ask(o.w.CloseIdle)
	var seg ident.SegmentID
	eventually(t, "it is sealed", func() bool {
		s := o.Segments()[0]
		seg = s.ID
		return s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable
	})
	o.Close()
	epoch := o.epoch
	fence := func() bool {
		answers := fenceAnswers{}
		epoch.Number++
		for _, s := range c.seats {
			r, err := s.Fence(context.Background(), &wire.Fence{Journal: v.ID, Epoch: epoch, Taker: "x", Taking: true})
			if err != nil {
				t.Fatal(err)
			}
			answers[s.id] = &r
		}
		return len(o.wholeSites(answers)) == 1
	}
	if !fence() {
		t.Error("the site is not heard whole")
	}
	if _, err := c.seats[1].Drop(context.Background(), &wire.Drop{Epoch: epoch, Segment: seg, Replace: true}); err != nil {
		t.Fatal(err)
	}
	if fence() {
		t.Error("the site is heard whole, and a replica is not there")
	}
}
