package access

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// TestOwnerStatusOfARecovery: while a node tries to serve a volume it says so, for how long, and why it could not.
func TestOwnerStatusOfARecovery(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	s := NewServer(Env{Node: "n1", Site: 1, Stores: c, Leases: freeLeases{}, Control: c.ctl, Clock: func() int64 { return 0 }, Log: c.log,
		Metrics: NewMetrics(prometheus.NewRegistry())}, func(ident.NodeName) (Peer, bool) { return nil, false })
	defer s.Close()
	ask := func() []wire.JournalStatus {
		t.Helper()
		r, err := s.OwnerStatus(context.Background(), &wire.OwnerStatus{Journals: []ident.JournalID{v.ID}})
		if err != nil {
			t.Fatal(err)
		}
		return r.Journals
	}
	x, ok := s.Volume(v.ID)
	if !ok || len(ask()) != 0 {
		t.Fatalf("%v; a volume that is nobody's business here: %v", ok, ask())
	}
	s.mu.Lock()
	x.since, x.taking = time.Now().Add(-time.Minute), true
	s.mu.Unlock()
	if got := ask(); len(got) != 1 || got[0].Owner != "n1" || got[0].State != "recovering" || got[0].Recovering < uint64(time.Minute) || len(got[0].Sites) != 0 {
		t.Errorf("%+v", got)
	}
	s.mu.Lock()
	x.why = errors.New(strings.Repeat("stores are away; ", 100))
	s.mu.Unlock()
	if got := ask(); len(got) != 1 || !strings.HasPrefix(got[0].State, "recovering: stores are away") || len(got[0].State) > ownerStateMax {
		t.Errorf("%+v", got)
	}
}
