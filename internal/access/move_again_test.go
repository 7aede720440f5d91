package access

import (
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// A node has just lost the race for a volume to another one, and does not try again for a while. Within that, what it is handed over
// it takes. It used to refuse the leave as if it were taking the volume over itself: by then the key named it, the old owner had
// left, and for seconds nobody served the volume.
func TestAHandOverToANodeThatWaitsToTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 3, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		y := n.other(x, 1)
		lost := false
		n.onTake = func(by *node) error {
			if by == y && !lost {
				lost = true
				return control.ErrConflict
			}
			return nil
		}
		s := y.srv.Load()
		w, _ := s.Volume(v.ID)
		s.mu.Lock()
		w.taking = true
		s.mu.Unlock()
		s.wg.Go(func() { s.takeOver(w, nil, nil) })
		synctest.Wait()
		if !lost {
			t.Fatal("it has not tried")
		}
		r, err := x.moveTo(v, y.name, 0)
		if err != nil || r.Pause > takeoverRetry/2 {
			t.Errorf("handed over with a pause of %v: %v", r.Pause, err)
		}
		if now := n.owner(v.ID, nil); now != y {
			t.Error("it is not the owner")
		}
		time.Sleep(2 * takeoverRetry) // the end of the attempt that failed takes nothing back
		if now := n.owner(v.ID, nil); now != y {
			t.Error("it is not the owner any more")
		}
		n.stopAll()
	})
}

// What a node has heard of a key may be older than the owner that has it prepare for a hand-over.
func TestAPreparationIsNotForgottenForAnOlderKey(t *testing.T) {
	n := newNodes(t, 1, 2, time.Second)
	v := n.volume(1<<20, 1, control.Replicated)
	x, y := n.list[0], n.list[1]
	y.serve()
	s := y.srv.Load()
	w, _ := s.Volume(v.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range []struct {
		heard uint64
		kept  bool
	}{{1, true}, {2, true}, {3, false}} {
		w.prepared = &prepared{from: x.name, epoch: ident.Epoch{Number: 2}, since: time.Now()}
		state := control.JournalState{Owner: x.name, Epoch: ident.Epoch{Number: c.heard}}
		if s.expected(w, state) {
			t.Errorf("expected, though the key of epoch %d names another node", c.heard)
		}
		if kept := w.prepared != nil; kept != c.kept {
			t.Errorf("a preparation by the owner of epoch 2, and a key of epoch %d: kept %v", c.heard, kept)
		}
	}
}
