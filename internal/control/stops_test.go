package control

import (
	"errors"
	"testing"
	"testing/synctest"

	"dozo/internal/ident"
)

// An owner's word that it stops when it is cut off is of its epoch: who takes the journal over gives it anew, and only if it
// knows that the volume wants it.
func TestStopsIsTheWordOfAnEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		c := must(NewMem().Open(ctx, Options{}))(t)
		defer c.Close()
		site, _, _ := setup(t, c)
		spec := testVolume("v")
		spec.Partition = PartitionStop
		v := must(c.CreateVolume(ctx, spec, []ident.SiteID{site.ID}))(t)
		_, rev, _ := c.Journal(v.ID)
		state, rev, err := c.TakeJournal(ctx, v.ID, rev, "a")
		if err != nil || !state.Stops {
			t.Fatalf("taken: %+v, %v", state, err)
		}
		state, rev, err = c.HandJournal(ctx, v.ID, rev, "b", nil, false)
		if err != nil || state.Stops {
			t.Errorf("handed over: %+v, %v", state, err)
		}
		if err := c.SetStops(ctx, v.ID, ident.Epoch{Number: 1}, true); !errors.Is(err, ErrConflict) {
			t.Errorf("the word of a former epoch: %v", err)
		}
		// An attempt that is under way still must not take effect after one that was answered: each changes the revision.
		for range 2 {
			if err := c.SetStops(ctx, v.ID, state.Epoch, false); err != nil {
				t.Fatal(err)
			}
			now, next, err := c.JournalNow(ctx, v.ID)
			if err != nil || now.Stops || next == rev {
				t.Errorf("%+v at revision %d, was %d, %v", now, next, rev, err)
			}
			rev = next
		}
		if err := c.SetStops(ctx, v.ID, state.Epoch, true); err != nil {
			t.Fatal(err)
		}
		must(c.UpdateVolume(ctx, v.ID, func(v *VolumeSpec) error { v.Partition = PartitionContinue; return nil }))(t)
		synctest.Wait()
		state, rev, err = c.JournalNow(ctx, v.ID)
		if err != nil || !state.Stops {
			t.Errorf("the policy is another, and the owner has not said so: %+v, %v", state, err)
		}
		if state, _, err = c.TakeJournal(ctx, v.ID, rev, "a"); err != nil || state.Stops {
			t.Errorf("taken, with another policy: %+v, %v", state, err)
		}
	})
}
