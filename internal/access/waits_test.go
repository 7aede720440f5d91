package access

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Takeovers that wait for stores don't keep others waiting, and say what they need.
func TestTakeoversThatWaitForStoresHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 6, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		was := n.served(t, v)
		if err := writeAt(was.srv.Load().Owners()[0], 0, make([]byte, 4096), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		list := n.listed(v).Ensembles[0].Stores
		for _, x := range n.list {
			if x == was || !slices.Contains(list, x.home.id) {
				continue
			}
			if live := slices.DeleteFunc(slices.Clone(list), func(id ident.StoreID) bool { return n.seat(id).live.Load() == nil }); len(live) == 2 {
				break
			}
			n.kill(x.home)
		}
		was.stop()
		n.kill(was.home)
		var waiting *node
		eventually(t, "somebody takes over, and says what it waits for", func() bool {
			for _, x := range n.list {
				if s := x.srv.Load(); s != nil && x != was {
					if r, err := s.OwnerStatus(t.Context(), &wire.OwnerStatus{Journals: []ident.JournalID{v.ID}}); err == nil && len(r.Journals) == 1 && r.Journals[0].Recovering > 0 {
						waiting = x
						return len(r.Journals[0].State) > len("recovering")
					}
				}
			}
			return false
		})
		s := waiting.srv.Load()
		r, err := s.OwnerStatus(t.Context(), &wire.OwnerStatus{Journals: []ident.JournalID{v.ID}})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(r.Journals[0].State)
		s.slots.mu.Lock()
		slots := s.slots.free
		s.slots.mu.Unlock()
		s.claim.mu.Lock()
		claims := s.claim.free
		s.claim.mu.Unlock()
		if slots != takeoversMax || claims != claimsMax {
			t.Errorf("while it waits there are %d turns of %d, and %d of %d", slots, takeoversMax, claims, claimsMax)
		}
		n.stopAll()
	})
}
