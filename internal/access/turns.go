package access

import (
	"context"
	"slices"
	"sync"
)

// turns bounds how much is under way of something, and gives the next turn to who needs it most.
type turns struct {
	mu      sync.Mutex
	free    int
	waiting []*turn // in order of arrival
}

type turn struct {
	urgency func() int // asked when a turn becomes free
	given   chan struct{}
}

func newTurns(n int) *turns { return &turns{free: n} }

// take waits for a turn; false if ctx ended before.
func (t *turns) take(ctx context.Context, urgency func() int) bool {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return true
	}
	w := &turn{urgency, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.mu.Unlock()
	select {
	case <-w.given:
		return true
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting, w)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it was given at the same moment
		t.give()
	}
	return false
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.free++
		return
	}
	best, most := 0, t.waiting[0].urgency()
	for i, w := range t.waiting[1:] {
		if u := w.urgency(); u > most {
			best, most = i+1, u
		}
	}
	close(t.waiting[best].given)
	t.waiting = slices.Delete(t.waiting, best, best+1)
}
