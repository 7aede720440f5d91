package access

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
)

// lateTaker has something happen once its ensemble is recorded, before it speaks to a store.
type lateTaker struct {
	control.Store
	recorded func()
}

func (l lateTaker) ChangeEnsembles(ctx context.Context, changes []control.EnsembleChange) []control.EnsembleResult {
	r := l.Store.ChangeEnsembles(ctx, changes)
	l.recorded()
	return r
}

// A volume is owned for the first time, and before its owner has spoken to a store the control store is lost, made anew from a
// backup of before, and settled by stores that have not heard of the volume. Whoever owns it next asks nobody: so the first
// one does not begin.
func TestAFirstOwnerOfBeforeARestoreDoesNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 4)
		v := c.volume(1<<20, 1, control.Replicated)
		backup, err := c.ctl.Backup(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		env := c.env()
		env.Control = lateTaker{c.ctl, func() {
			anew, err := backup.Anew(control.NewLineage(), time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			c.mem.Renew(anew)
			for { // the client sees it
				if r, ok := c.ctl.Restoration(); ok && r.Pending() {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			for _, s := range c.seats {
				if err := c.ctl.PutAnswer(t.Context(), s.id, nil); err != nil {
					t.Error(err)
				}
			}
			if waiting, err := c.ctl.Reconcile(t.Context()); err != nil || len(waiting) > 0 {
				t.Errorf("waits for %v, %v", waiting, err)
			}
		}}
		if o, err := TakeOver(t.Context(), env, v); err == nil {
			o.Close()
			t.Error("the first owner begins, though its key is lost and the next one asks nobody")
		}
		if s := c.listed(v); s.Unheard || len(s.Ensembles) > 0 {
			t.Fatalf("the key is not as a volume's that was never owned, and the test means nothing: %+v", s)
		}
		next, err := TakeOver(t.Context(), c.env(), v)
		if err != nil { // both epochs have the same number
			next = c.own(v)
		}
		if err := writeAt(next, 0, make([]byte, 4096), true); err != nil {
			t.Error(err)
		}
		next.Close()
	})
}
