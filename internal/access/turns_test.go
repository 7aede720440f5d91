package access

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
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
