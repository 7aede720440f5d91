package control

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
)

// faults gives one fault after the other, and then none.
func faults(list ...Fault) func() Fault {
	return func() Fault {
		if len(list) == 0 {
			return FaultNone
		}
		f := list[0]
		list = list[1:]
		return f
	}
}

// memSetup is a store with one client and one journal, in a bubble of fake time.
func memSetup(t *testing.T, f func(t *testing.T, m *Mem, c *Client, v VolumeSpec, stores []ident.StoreID)) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		c := must(m.Open(t.Context(), Options{}))(t)
		defer c.Close()
		a, _, stores := setup(t, c)
		f(t, m, c, must(c.CreateVolume(t.Context(), testVolume("v"), []ident.SiteID{a.ID}))(t), stores)
	})
}

func TestLostAnswersAreFoundAgain(t *testing.T) {
	memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, stores []ident.StoreID) {
		ctx := t.Context()
		_, rev, _ := c.Journal(v.ID)
		for i, f := range [][]Fault{{FaultAnswerLost}, {FaultRequestLost}, {FaultRequestLost, FaultAnswerLost, FaultAnswerLost}} {
			m.SetFault(faults(f...))
			s, next, err := c.TakeJournal(ctx, v.ID, rev, "n0")
			if err != nil || s.Epoch.Number != uint64(i+1) {
				t.Fatalf("take with faults %v: %+v, %v", f, s, err)
			}
			if now, nowRev, _ := c.JournalNow(ctx, v.ID); nowRev != next || now.Epoch != s.Epoch {
				t.Fatalf("the key has %+v at %d, told %d", now, nowRev, next)
			}
			rev = next
		}
		// The same for specifications: done once, told as done.
		m.SetFault(faults(FaultAnswerLost))
		must(c.RenameVolume(ctx, v.ID, "w"))(t)
		m.SetFault(faults(FaultAnswerLost))
		if err := c.AppendEvent(ctx, Event{Action: "once"}); err != nil {
			t.Fatal(err)
		}
		var once, renamed int
		for _, e := range must(c.Events(ctx, 0))(t) {
			switch e.Action {
			case "once":
				once++
			case "volume.rename":
				renamed++
			}
		}
		if once != 1 || renamed != 1 {
			t.Errorf("%d and %d events, want 1 and 1", once, renamed)
		}
	})
}

// An answer that stays away is neither success nor failure; Settle says later which it was.
func TestUncertainTakeIsSettled(t *testing.T) {
	for _, lost := range []Fault{FaultRequestLost, FaultAnswerLost} {
		memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, stores []ident.StoreID) {
			_, rev, _ := c.Journal(v.ID)
			down := false
			m.SetFault(func() Fault {
				if down {
					return FaultRequestLost
				}
				down = true
				return lost
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, _, err := c.TakeJournal(ctx, v.ID, rev, "n0")
			u, ok := errors.AsType[*UncertainError](err)
			if !ok || !errors.Is(err, ErrUncertain) || errors.Is(err, ErrConflict) || u.ChangeID == "" {
				t.Fatalf("TakeJournal: %v, want an UncertainError", err)
			}
			m.SetFault(nil)
			for range 2 { // asking again gives the same
				s, _, err := c.Settle(t.Context(), u)
				if err != nil || s.Owner != "n0" || s.Epoch.Number != 1 {
					t.Fatalf("Settle: %+v, %v", s, err)
				}
			}
		})
	}
}

// R3: a change whose outcome is unknown may not be taken for done because the key looks like it, and is
// surely not in force once somebody else has moved the key on.
func TestUncertainChangeThatLost(t *testing.T) {
	memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, stores []ident.StoreID) {
		other := must(m.Open(t.Context(), Options{}))(t)
		defer other.Close()
		_, rev, _ := c.Journal(v.ID)
		m.SetFault(func() Fault { return FaultRequestLost })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := c.TakeJournal(ctx, v.ID, rev, "n0")
		u, _ := errors.AsType[*UncertainError](err)
		if u == nil {
			t.Fatal(err)
		}
		m.SetFault(nil)
		// The other makes the very same change, under its own ID.
		if _, _, err := other.TakeJournal(t.Context(), v.ID, rev, "n0"); err != nil {
			t.Fatal(err)
		}
		s, _, err := c.Settle(t.Context(), u)
		wantErr(t, "Settle after another's change", err, ErrConflict)
		if s.Epoch.Number != 1 || s.Owner != "n0" {
			t.Errorf("what is there: %+v", s)
		}
	})
}

func TestBatchWithLostAnswerAndConflict(t *testing.T) {
	memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, stores []ident.StoreID) {
		ctx := t.Context()
		site := c.Sites()[0].ID
		var changes []EnsembleChange
		for i := range 5 {
			v := must(c.CreateVolume(ctx, testVolume(fmt.Sprint("b", i)), []ident.SiteID{site}))(t)
			_, rev, _ := c.Journal(v.ID)
			s, rev, err := c.TakeJournal(ctx, v.ID, rev, "n0")
			if err != nil {
				t.Fatal(err)
			}
			changes = append(changes, EnsembleChange{Journal: v.ID, Rev: rev, Ensembles: []Ensemble{{Epoch: s.Epoch, Number: 1, Stores: stores[:2]}}})
		}
		other := must(m.Open(ctx, Options{}))(t)
		defer other.Close()
		if _, _, err := other.TakeJournal(ctx, changes[2].Journal, changes[2].Rev, "n1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the cache has seen it; ask for the old revision all the same
		m.SetFault(faults(FaultAnswerLost, FaultAnswerLost, FaultRequestLost))
		for i, r := range c.ChangeEnsembles(ctx, changes) {
			if i == 2 {
				wantErr(t, "the one that was taken", r.Err, ErrConflict)
			} else if r.Err != nil || len(r.State.Ensembles) != 1 {
				t.Errorf("change %d: %+v, %v", i, r.State, r.Err)
			}
		}
		// A control store that was started anew takes nothing that was decided before.
		if _, err := c.kv.commit(ctx, txn{ops: []op{{key: keyCluster, value: encode(Cluster{Name: "test", Lineage: 77}, "")}}}); err != nil {
			t.Fatal(err)
		}
		r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: v.ID, Rev: 1}})[0]
		wantErr(t, "a change from an old revision", r.Err, ErrConflict)
		synctest.Wait()
		_, rev, _ := c.Journal(v.ID)
		if s, _, err := c.TakeJournal(ctx, v.ID, rev, "n0"); err != nil || s.Epoch.Lineage != 77 {
			t.Errorf("an epoch of the new lineage: %+v, %v", s.Epoch, err)
		}
		stale := journalChange{journal: v.ID, expect: rev + 1, changeID: "x", state: JournalState{}, cluster: []byte("{}")}
		_, now, _ := c.JournalNow(ctx, v.ID)
		stale.expect = now
		wantErr(t, "a change under the old lineage", c.commitJournals(ctx, []journalChange{stale})[0].Err, ErrConflict)
	})
}

func TestReadsGoOnWhileTheStoreIsAway(t *testing.T) {
	memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, _ []ident.StoreID) {
		other := must(m.Open(t.Context(), Options{}))(t)
		defer other.Close()
		m.SetDown(true)
		time.Sleep(3 * probeEvery) // fake time
		if up, _ := c.Connected(); up {
			t.Error("Connected while the store is away")
		}
		if _, ok := c.VolumeByName("", "v"); !ok {
			t.Error("a cached volume is gone")
		}
		if _, _, ok := c.Journal(v.ID); !ok {
			t.Error("a cached owner is gone")
		}
		began := time.Now()
		_, err := c.RenameVolume(t.Context(), v.ID, "w")
		if err == nil || time.Since(began) > c.o.Timeout {
			t.Errorf("a change took %v: %v", time.Since(began), err)
		}
		if _, _, err := c.JournalNow(t.Context(), v.ID); err == nil {
			t.Error("JournalNow answered")
		}
		m.SetDown(false)
		time.Sleep(3 * probeEvery)
		if up, _ := c.Connected(); !up {
			t.Error("not Connected after the store came back")
		}
		must(c.RenameVolume(t.Context(), v.ID, "w"))(t)
		synctest.Wait()
		if _, ok := other.VolumeByName("", "w"); !ok {
			t.Error("the watch did not go on")
		}
	})
}

// A watch that fell behind a compaction sees by listing what it missed, deletions too.
func TestCacheAfterCompaction(t *testing.T) {
	memSetup(t, func(t *testing.T, m *Mem, c *Client, v VolumeSpec, _ []ident.StoreID) {
		behind := must(m.Open(t.Context(), Options{}))(t)
		defer behind.Close()
		synctest.Wait()
		m.mu.Lock() // nothing is seen meanwhile
		m.mu.pairs[keyHost("default", "h")] = pair{keyHost("default", "h"), encode(Host{Tenant: "default", Name: "h"}, ""), m.mu.rev + 1}
		delete(m.mu.pairs, keyVolume(v.ID))
		m.mu.pairs[keyVolume(v.ID)] = pair{keyVolume(v.ID), []byte(`{"v":9}`), m.mu.rev + 2}
		delete(m.mu.pairs, keyNode("n0"))
		m.mu.rev += 3
		m.mu.Unlock()
		m.Compact()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ok := behind.Host("", "h"); !ok {
			t.Error("what was added is missing")
		}
		if _, ok := behind.Node("n0"); ok {
			t.Error("what was deleted is still there")
		}
		if _, ok := behind.VolumeByName("", "v"); !ok {
			t.Error("what can't be read any more must stay as it was known")
		}
	})
}
