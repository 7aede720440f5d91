package access

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// slowGranter answers after a while, as one over a distance or on a busy machine does, and grants most at the most.
type slowGranter struct {
	takes time.Duration
	most  time.Duration

	mu    sync.Mutex
	asked time.Duration // for how long, the last time
}

func (g *slowGranter) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	g.mu.Lock()
	takes := g.takes
	g.asked = m.Duration
	g.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return wire.LeaseReply{}, wire.Errorf(wire.CodeUnreached, "%v", ctx.Err())
	}
	return wire.LeaseReply{Sent: m.Sent, Duration: min(m.Duration, g.most), Instance: 1}, nil
}

func (g *slowGranter) set(takes time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.takes = takes
}

func (g *slowGranter) last() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked
}

// TestLeasesAreLongerWhereAnswersAreSlow: leases that are shorter than their renewal takes would never be there. Where answers
// come at once they are as short as is configured, since a takeover waits for them.
func TestLeasesAreLongerWhereAnswersAreSlow(t *testing.T) {
	const lease, most = 500 * time.Millisecond, 2 * time.Second
	for _, x := range []struct {
		takes, least, most time.Duration
		alive              bool // always, once it is granted
	}{
		{0, lease, lease, true},
		{20 * time.Millisecond, lease, lease, true},
		{120 * time.Millisecond, lease, lease, true},
		{200 * time.Millisecond, 800 * time.Millisecond, time.Second, true},
		{450 * time.Millisecond, 1800 * time.Millisecond, most, true},
		{900 * time.Millisecond, most, most, true},
		{5 * time.Second, most, most, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &slowGranter{takes: x.takes, most: most}
			began := time.Now()
			clock := func() int64 { return int64(time.Since(began)) + 1 }
			k := NewLeaseKeeper("n1", 7, lease, clock, nil, func(ident.StoreID) (ident.NodeName, LeaseNode, bool) { return "n2", g, true })
			defer k.Close()
			grant := k.Enroll(ident.JournalID{1}, ident.Epoch{Number: 1}, []ident.StoreID{{1}}, func(ident.Epoch) {})[0]
			time.Sleep(10 * time.Second)
			holds := func() (missed bool) {
				for range 1000 {
					missed = missed || grant.until.Load() <= clock()
					time.Sleep(5 * time.Millisecond)
				}
				return !missed
			}
			if alive := holds(); alive != x.alive {
				t.Errorf("answers after %v: the grant is always there: %v", x.takes, alive)
			}
			if asked := g.last(); asked < x.least || asked > x.most {
				t.Errorf("answers after %v: asks for %v, want %v to %v", x.takes, asked, x.least, x.most)
			}
			g.set(0) // quick again: soon short again
			time.Sleep(20 * time.Second)
			if asked := g.last(); asked != lease {
				t.Errorf("answers that were slow, %v: asks for %v long after", x.takes, asked)
			}
		})
	}
}
