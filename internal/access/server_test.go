package access

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
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

// A node that hears nothing from the control store learns from the new owner itself who that is: what waited there for the
// one that died goes on.
func TestTheOwnersOwnWordIsHeard(t *testing.T) {
	for range 20 { // who takes over follows from the journal's ID, which is random
		if ownersWordIsHeard(t) {
			return
		}
	}
	t.Fatal("the node that was to be deaf took the volume over each time")
}

// ownersWordIsHeard is one try: false if the node that was to be deaf is the new owner.
func ownersWordIsHeard(t *testing.T) (tried bool) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		first := n.served(t, v)
		vols := map[*node]*Volume{}
		for _, x := range n.list {
			vols[x] = x.volumeAt(v)
			vols[x].Open()
			defer vols[x].Close()
			eventually(t, "a stamp", func() bool { return vols[x].Stamp().Tick != 0 })
		}
		var third *node
		for _, x := range n.list {
			if x != first && !x.srv.Load().chosen(v.ID, first.name) {
				third = x
			}
		}
		if third == nil {
			// Who takes it over is known once the first is out of reach.
			third = n.other(first, 1)
		}
		third.deaf.Store(true)
		first.cut.Store(true)
		eventually(t, "another owner", func() bool {
			for _, x := range n.list {
				if x != first && vols[x].Owner() != nil {
					return true
				}
			}
			return false
		})
		if vols[third].Owner() != nil {
			n.stopAll()
			return
		}
		tried = true
		began := time.Now()
		if _, err := through(third, v, wire.OpWrite, 0, make([]byte, 4096), 0); err != nil && !errors.Is(err, wire.ErrStale) {
			t.Errorf("a write by way of the node that heard nothing: %v", err)
		}
		if waited := time.Since(began); waited > 5*time.Second {
			t.Errorf("it took %v", waited)
		}
		state, _, _ := third.srv.Load().env.Control.Journal(v.ID)
		if state.Owner != first.name || vols[third].OwnerNode() == first.name {
			t.Errorf("by the control store %s owns it, by its word %s", state.Owner, vols[third].OwnerNode())
		}
		n.stopAll()
	})
	return tried
}

// An owner hears of its volume's new specification although a command for the volume came between the change and the node's
// look at it: the owner of a volume in use went on by the former size and policies for ever.
func TestOwnerHearsOfItsSpecification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 2, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		srv := n.served(t, v).srv.Load()
		o := srv.Owners()[0]
		for i := range int64(50) {
			want := (2 + i) << 20
			if _, err := n.ctl.UpdateVolume(t.Context(), v.ID, func(v *control.VolumeSpec) error { v.SizeBytes = want; return nil }); err != nil {
				t.Fatal(err)
			}
			for now := v; now.SizeBytes != want; now, _ = srv.env.Control.Volume(v.ID) {
				runtime.Gosched()
			}
			srv.Volume(v.ID) // as every command of a client does
			eventually(t, "the owner goes by the new size", func() bool { return o.spec.Load().SizeBytes == want })
		}
		n.stopAll()
	})
}
