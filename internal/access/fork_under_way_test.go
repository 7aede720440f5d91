package access

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// slowFork is a store whose word that it has set something aside is long on its way, or gets lost.
type slowFork struct {
	journal.Store
	made *atomic.Int32
	held chan struct{}
	mute bool
}

func (s *slowFork) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	r, err := s.Store.Seal(ctx, m)
	if errors.Is(err, wire.ErrFork) {
		s.made.Add(1)
		<-s.held
		if s.mute {
			return r, wire.Errorf(wire.CodeUnreached, "the answer of store %s got lost", s.ID())
		}
	}
	return r, err
}

// A store sets a fork aside, and that is not known yet when all stores have been looked at. The cut that has left the fork behind stays open:
// closed, it would say that somebody has given the fork up.
func TestACutIsNotClosedWhileAForkIsBeingSetAside(t *testing.T) {
	t.Parallel()
	for _, mute := range []bool{false, true} {
		t.Run(fmt.Sprint("its word gets lost: ", mute), func(t *testing.T) {
			t.Parallel()
			cutStaysOpen(t, mute)
		})
	}
}

func cutStaysOpen(t *testing.T, mute bool) {
	c := newCluster(t, 2, 2)
	var made atomic.Int32
	held := make(chan struct{})
	var slow atomic.Bool
	c.wrap = func(s journal.Store) journal.Store {
		if slow.Load() {
			return &slowFork{s, &made, held, mute}
		}
		return s
	}
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 20)
	c.inStep(t, o)
	c.killSite(2)
	n.writes(t, o, 5) // of these site 2 knows nothing
	c.killSite(1)
	o.Close()
	c.startSite(2)
	c.at(2)
	c.force(t, v, 1)
	o = c.own(v)
	o.Close()
	// The next owner hears the site that is back in its takeover.
	slow.Store(true)
	c.startSite(1)
	o = c.own(v)
	eventually(t, "a fork is set aside", func() bool { return made.Load() > 0 })
	o.ask(func() {
		for _, id := range o.everywhere(nil) { // another look at the stores has found nothing that was left to be done
			o.forks.looked[id] = true
			o.forks.at[id] = forkAt{}
		}
		o.releaseCuts()
		if o.forks.closing {
			t.Error("the cut is closed, and what it has left behind may go")
		}
	})
	close(held)
	eventually(t, "the fork is known", func() (known bool) {
		o.ask(func() {
			if o.releaseCuts(); o.forks.closing {
				t.Error("the cut is closed before it is known what the store has")
			}
			for _, f := range o.forks.at {
				known = known || f.segments > 0
			}
		})
		return known
	})
	o.ask(func() {
		o.releaseCuts()
		if o.forks.closing || len(o.forks.open()) == 0 {
			t.Error("the cut is closed, with a fork that nobody has given up")
		}
	})
	o.Close()
}
