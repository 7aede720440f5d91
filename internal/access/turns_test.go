package access

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// TestTurns: the most urgent goes first, and of equals the first that came; who gives up leaves no hole.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTurns(1)
		if !q.take(t.Context(), func() int { return 0 }) {
			t.Fatal("no turn though none is taken")
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		urgent := map[string]int{"a": 0, "b": 1, "c": 0, "d": 2, "e": 1}
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			wg.Go(func() {
				if !q.take(t.Context(), func() int { mu.Lock(); defer mu.Unlock(); return urgent[name] }) {
					t.Error("given up")
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				q.give()
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if q.take(ctx, func() int { return 9 }) {
				t.Error("a turn for who has gone")
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		mu.Lock()
		urgent["c"] = 3 // commands have come for it since
		mu.Unlock()
		q.give()
		wg.Wait()
		if want := []string{"c", "d", "b", "e", "a"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		if !q.take(t.Context(), func() int { return 0 }) {
			t.Error("the turn is lost")
		}
	})
}

// A node whose clients wait asks the others of its site who serves the volume: for the one that is to take it over it is as urgent as
// if they waited there. It was one of a thousand that nobody used, and served when its turn came.
func TestWhatAnotherNodeAsksForIsUrgent(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	var now atomic.Int64
	now.Store(int64(time.Hour))
	s := NewServer(Env{Node: "n1", Site: 1, Stores: c, Leases: freeLeases{}, Control: c.ctl, Clock: now.Load, Log: c.log,
		Metrics: NewMetrics(prometheus.NewRegistry())}, func(ident.NodeName) (Peer, bool) { return nil, false })
	defer s.Close()
	x, _ := s.Volume(v.ID)
	ask := func() {
		t.Helper()
		if _, err := s.Tick(t.Context(), &wire.Tick{Journals: []ident.JournalID{v.ID}}); err != nil {
			t.Fatal(err)
		}
	}
	if ask(); x.urgency() != 0 {
		t.Error("a new volume is taken by other rules")
	}
	_, rev, _ := c.ctl.Journal(v.ID)
	if _, _, err := c.ctl.TakeJournal(t.Context(), v.ID, rev, "n9"); err != nil {
		t.Fatal(err)
	}
	if x.urgency() != 0 {
		t.Error("nobody has asked")
	}
	if ask(); x.urgency() != 1 {
		t.Error("somebody has asked")
	}
	now.Add(int64(soughtFor))
	if x.urgency() != 0 {
		t.Error("nobody asks any more")
	}
}
