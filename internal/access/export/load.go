package export

import (
	"context"
	"slices"
	"sync"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// Which of several access servers that are equally near an initiator is sent to: the one with the fewest sessions. They are
// asked when somebody is to be sent, and not again for a moment; who is sent meanwhile is counted.

const (
	loadsFresh   = 5 * time.Second        // how long an answer holds
	loadsPatient = 500 * time.Millisecond // how long a login waits for it
)

// loads is what the other access servers have said.
type loads struct {
	asking sync.Mutex // held around a question, so that logins that come together ask once
	mu     struct {
		sync.Mutex
		asked    map[ident.NodeName]time.Time
		sessions map[ident.NodeName]int // of those that have answered, with those who were sent there since
	}
}

// leastLoaded gives those of a list that have the fewest sessions. Who doesn't say is passed over, unless nobody does.
func (e *Exports) leastLoaded(ctx context.Context, list []control.Node) []control.Node {
	if e.Loads == nil || len(list) < 2 {
		return list
	}
	l := &e.loads
	now := time.Now()
	stale := func(n control.Node) bool {
		t, ok := l.mu.asked[n.Name]
		return !ok || now.Sub(t) > loadsFresh
	}
	l.asking.Lock()
	l.mu.Lock()
	ask := slices.DeleteFunc(slices.Clone(list), func(n control.Node) bool { return !stale(n) })
	l.mu.Unlock()
	if len(ask) > 0 {
		ctx, cancel := context.WithTimeout(ctx, loadsPatient)
		said := e.Loads(ctx, ask)
		cancel()
		l.mu.Lock()
		if l.mu.asked == nil {
			l.mu.asked, l.mu.sessions = map[ident.NodeName]time.Time{}, map[ident.NodeName]int{}
		}
		for _, n := range ask {
			l.mu.asked[n.Name] = now
			delete(l.mu.sessions, n.Name)
			if sessions, ok := said[n.Name]; ok {
				l.mu.sessions[n.Name] = sessions
			}
		}
		l.mu.Unlock()
	}
	l.asking.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	best, least := []control.Node(nil), 0
	for _, n := range list {
		sessions, ok := l.mu.sessions[n.Name]
		switch {
		case !ok || len(best) > 0 && sessions > least:
			continue
		case len(best) == 0 || sessions < least:
			best, least = nil, sessions
		}
		best = append(best, n)
	}
	if len(best) == 0 {
		return list
	}
	return best
}

// wasSent counts an initiator that was sent to a node.
func (e *Exports) wasSent(to ident.NodeName) {
	e.loads.mu.Lock()
	defer e.loads.mu.Unlock()
	if n, ok := e.loads.mu.sessions[to]; ok {
		e.loads.mu.sessions[to] = n + 1
	}
}
