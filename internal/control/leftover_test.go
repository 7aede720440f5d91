package control

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// A node holds its lease of the control store while a backup is made, and burns with the voters. What is restored knows nothing of the
// lease, or it would stand for ever: nobody would take over what the node owned. That goes for backups of former versions, too.
func TestARestoredStoreHoldsNoLeases(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	setup(t, c)
	if err := c.Hold("n0", func() int64 { return 0 }, func(int64, bool) {}); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "the node holds", func() bool { return c.Held("n0") })
	leased := func(p pair) bool { return strings.HasPrefix(p.key, "holds/") || strings.HasPrefix(p.key, "alive/") }
	backup := must(c.Backup(ctx))(t)
	if slices.ContainsFunc(backup.pairs, leased) {
		t.Error("what is leased is in the backup")
	}
	older := *backup
	older.pairs = slices.DeleteFunc(slices.Clone(backup.pairs), leased)
	older.pairs = append(older.pairs, pair{key: keyHold("n0"), value: encode(time.Now().UTC(), ""), mod: 9})
	slices.SortFunc(older.pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	older = *must(ReadSnapshot(bytes.NewReader(written(t, &older))))(t)
	if anew := must(older.Anew(NewLineage(), time.Now()))(t); slices.ContainsFunc(anew.pairs, leased) {
		t.Error("a restored control store begins with what was leased in the former one")
	}
}

// A node runs while the control store is restored from a backup, and remembers a volume that the backup lacks. The history that its watch
// goes on from is compacted before all stores have answered: it still remembers.
func TestWhatIsRememberedOutlivesACompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		m := NewMem()
		c := must(m.Open(ctx, Options{}))(t)
		defer c.Close()
		h := newHistory(t, c)
		backup := must(c.Backup(ctx))(t)
		late := must(c.CreateVolume(ctx, testVolume("late"), []ident.SiteID{h.site.ID}))(t)
		m.Renew(must(backup.Anew(NewLineage(), time.Now()))(t))
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ok := c.VolumeByName("", "late"); !ok {
			t.Fatal("the volume is forgotten already")
		}
		m.mu.Lock() // nothing is seen meanwhile
		m.mu.pairs[keyHost("default", "h")] = pair{keyHost("default", "h"), encode(Host{Tenant: "default", Name: "h"}, ""), m.mu.rev + 1}
		delete(m.mu.pairs, keyNode("n0"))
		m.mu.rev += 2
		m.mu.Unlock()
		m.Compact()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, ok := c.Host("", "h"); !ok {
			t.Error("what was added is missing")
		}
		if _, ok := c.Node("n0"); ok {
			t.Error("what the restored control store had, and was deleted, is remembered")
		}
		if v, ok := c.VolumeByName("", "late"); !ok || v.ID != late.ID {
			t.Error("what the restored control store lacks is forgotten before it is settled")
		}
		if s, _, ok := c.Journal(late.ID); !ok || !s.Unheard {
			t.Errorf("its journal: %+v, %v", s, ok)
		}
	})
}

// A volume was deleted after the backup, and another one made by its name. What is settled has the new one by that name.
func TestANameThatWasGivenAgainSinceTheBackup(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c)
	backup := must(c.Backup(ctx))(t)
	if _, err := c.DeleteVolume(ctx, h.b.ID); err != nil {
		t.Fatal(err)
	}
	again := must(c.CreateVolume(ctx, testVolume("b"), []ident.SiteID{h.site.ID}))(t)
	renewed(t, m, c, backup)
	if err := c.OfferRemembered(ctx); err != nil {
		t.Fatal(err)
	}
	epoch := ident.Epoch{Number: 4, Lineage: 3}
	for _, id := range h.stores {
		if err := c.PutAnswer(ctx, id, []HeldJournal{{ID: h.b.ID, Fence: ident.Epoch{Number: deletedFence}},
			{ID: again.ID, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID, WrittenBytes: 1 << 20}}); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	if v, ok := c.Volume(again.ID); !ok || v.Name != "b" {
		t.Errorf("the volume that was made by the name of a deleted one is called %q, %v", v.Name, ok)
	}
	if v, ok := c.Volume(h.b.ID); !ok || v.Deleted == nil {
		t.Errorf("the deleted one: %+v, %v", v, ok)
	}
}

// Who follows the events and can not go on is told so: an end without an error says that everything was shown.
func TestEventsThatCanNotBeFollowedAreAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		c := must(m.Open(t.Context(), Options{}))(t)
		defer c.Close()
		m.SetDown(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := c.WatchEvents(ctx, 0, func(Event) error { return nil }); !errors.Is(err, ErrAway) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("following ends with %v", err)
		}
	})
}

// A volume that the backup lacks, and running nodes remember, can not be changed before the restored control store is settled: it is not
// there. A tombstone for it would be in the way of its owner's word and of what the stores say, and nothing would ever be settled.
func TestWhatIsOnlyRememberedIsNotChanged(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{Timeout: time.Second}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c)
	backup := must(c.Backup(ctx))(t)
	late := must(c.CreateVolume(ctx, testVolume("late"), []ident.SiteID{h.site.ID}))(t)
	renewed(t, m, c, backup)
	if _, err := c.DeleteVolumes(ctx, []ident.JournalID{late.ID}, nil); !errors.Is(err, ErrUnheard) {
		t.Errorf("deleting it: %v", err)
	}
	if _, err := c.DeleteVolume(ctx, late.ID); !errors.Is(err, ErrUnheard) {
		t.Errorf("deleting it alone: %v", err)
	}
	if _, err := c.UpdateVolume(ctx, late.ID, func(v *VolumeSpec) error { v.SizeBytes *= 2; return nil }); !errors.Is(err, ErrUnheard) {
		t.Errorf("changing its size: %v", err)
	}
	if _, err := c.DeleteVolume(ctx, ident.NewJournalID()); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleting what nobody knows: %v", err)
	}
	if err := c.OfferRemembered(ctx); err != nil {
		t.Fatal(err)
	}
	epoch := ident.Epoch{Number: 4, Lineage: 3}
	for _, id := range h.stores {
		if err := c.PutAnswer(ctx, id, []HeldJournal{{ID: late.ID, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID, WrittenBytes: 1 << 20}}); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	if v, ok := c.VolumeByName("", "late"); !ok || v.ID != late.ID {
		t.Errorf("settled as %+v", v)
	}
}

// A certificate that was revoked since the backup, such as that of a node that was removed, does not count again because the control store
// was restored, or rebuilt: nodes remember that, and say so.
func TestARevocationOutlivesTheControlStore(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	newHistory(t, c)
	backup := must(c.Backup(ctx))(t)
	if err := c.Revoke(ctx, pki.Revocation{Serial: "0abc", Subject: "n9", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	noted := must(ReadSnapshot(bytes.NewReader(written(t, must(c.Copy())(t)))))(t)
	anew := renewed(t, m, c, backup)
	if !c.Revoked("0abc") {
		t.Error("a node that runs has forgotten what was revoked")
	}
	fresh := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = fresh.Close() })
	if fresh.Revoked("0abc") {
		t.Fatal("the restored control store knows it already")
	}
	if err := c.OfferRemembered(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, fresh, "the restored control store is told", func() bool { return fresh.Revoked("0abc") })

	m.Renew(EmptyAnew(Cluster{ID: anew.Cluster.ID, Name: anew.Cluster.Name, Lineage: NewLineage()}, time.Now()))
	started := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = started.Close() })
	if err := started.Remember(noted); err != nil {
		t.Fatal(err)
	}
	if !started.Revoked("0abc") {
		t.Error("what a node had noted of the former control store lacks what was revoked")
	}
}

// A node burned with the voters, and nobody has a backup: other nodes remember it. That it says nothing of what it can read does not keep
// the control store, which is rebuilt, from being settled, whatever its version was.
func TestARememberedNodeHindersNoRebuild(t *testing.T) {
	ctx := t.Context()
	before := NewMem()
	was := must(before.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = was.Close() })
	h := newHistory(t, was)
	must(was.UpdateVolume(ctx, h.a.ID, func(v *VolumeSpec) error { v.Ownership = OwnershipPin; return nil }))(t)
	cl := must(was.Cluster())(t)
	for _, older := range []bool{false, true} {
		if older {
			before.Downgrade("n3")
			eventually(t, was, "one is older", func() bool { return was.Level() == 1 })
		}
		noted := must(ReadSnapshot(bytes.NewReader(written(t, must(was.Copy())(t)))))(t)
		m := NewMem()
		m.Renew(EmptyAnew(Cluster{ID: cl.ID, Name: cl.Name, Lineage: NewLineage()}, time.Now()))
		c := must(m.Open(ctx, Options{}))(t)
		t.Cleanup(func() { _ = c.Close() })
		if err := c.Remember(noted); err != nil {
			t.Fatal(err)
		}
		if err := c.OfferRemembered(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.ExpectStores(ctx, h.stores); err != nil {
			t.Fatal(err)
		}
		epoch := ident.Epoch{Number: 9, Lineage: 3}
		for i, id := range h.stores[:3] {
			must(c.RegisterNode(ctx, testNode("n"+string(rune('0'+i)), h.site.ID, id)))(t)
			if err := c.PutAnswer(ctx, id, []HeldJournal{{ID: h.a.ID, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID, SizeBytes: 5 << 20}}); err != nil {
				t.Fatal(err)
			}
		}
		must(c.DeclareLost(ctx, h.stores[3:]))(t)
		must(c.DeclareComplete(ctx))(t)
		if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
			t.Fatalf("waits for %v, %v", waiting, err)
		}
		eventually(t, c, "it is settled", func() bool { r, ok := c.Restoration(); return ok && !r.Pending() })
		if v, ok := c.VolumeByName("", "a"); !ok || v.Ownership != OwnershipPin {
			t.Errorf("settled as %+v", v)
		}
		if c.Level() != Level {
			t.Errorf("level %d once it is settled", c.Level())
		}
	}
}
