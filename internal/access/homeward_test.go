package access

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A volume whose history ends at a site where nobody is there to take it: the attempt ends at once, and leaves its turn to others.
func TestAVolumeThatNobodyCanTakeHoldsNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 1, 2, time.Second)
		v := n.volume(1<<20, 1, control.Replicated)
		x := n.served(t, v)
		s := x.srv.Load()
		s.mu.Lock()
		at := s.mu.volumes[v.ID]
		s.mu.Unlock()
		began := time.Now()
		retry, err := s.passOn(at, &handed{}, &endsElsewhere{sites: []ident.SiteID{7}})
		if !errors.Is(err, wire.ErrUnreached) || retry != passRetry {
			t.Errorf("%v, again after %v", err, retry)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("its turn was held for %v", took)
		}
		n.stopAll()
	})
}
