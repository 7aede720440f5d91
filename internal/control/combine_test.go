package control

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
)

// farWay takes a while, as a majority of voters does.
type farWay struct{}

func (farWay) Pass(context.Context) error {
	time.Sleep(2 * time.Millisecond) // fake time
	return nil
}

// TestTakesShareTransactions: thousands of journals that one death leaves without an owner are a few dozen transactions,
// and one that was taken by somebody else hinders no other.
func TestTakesShareTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		c := must(m.OpenBy(t.Context(), Options{}, farWay{}))(t)
		defer c.Close()
		site, _, _ := setup(t, c)
		const n = 1000
		ids := make([]ident.JournalID, n)
		revs := make([]Rev, n)
		for i := range ids {
			v := testVolume("v" + ident.NewJournalID().String()[:12])
			ids[i] = must(c.CreateVolume(t.Context(), v, []ident.SiteID{site.ID}))(t).ID
			_, revs[i], _ = c.Journal(ids[i])
		}
		synctest.Wait()
		if _, _, err := c.TakeJournal(t.Context(), ids[7], revs[7], "n3"); err != nil {
			t.Fatal(err)
		}
		var txns atomic.Int32
		m.SetFault(func() Fault { txns.Add(1); return FaultNone })
		var wg sync.WaitGroup
		for i, id := range ids {
			wg.Go(func() {
				s, _, err := c.TakeJournal(t.Context(), id, revs[i], "n1")
				if want := ident.NodeName("n1"); i == 7 {
					if !errors.Is(err, ErrConflict) || s.Owner != "n3" {
						t.Errorf("one that was taken already: %+v, %v", s, err)
					}
				} else if err != nil || s.Owner != want || s.Epoch.Number != 1 {
					t.Errorf("%+v, %v", s, err)
				}
			})
		}
		wg.Wait()
		if got := txns.Load(); got > n/changesPerTxn+5 {
			t.Errorf("%d takes were %d transactions", n, got)
		}
	})
}
