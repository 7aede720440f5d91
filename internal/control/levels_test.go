package control

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"dozo/internal/ident"
)

// TestOlderNodes: while a node of an older version is registered nothing is written that it could not read, and a change
// that needs more is refused; once it is upgraded, nothing is left out.
func TestOlderNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		m := NewMem()
		c := must(m.Open(ctx, Options{}))(t)
		defer c.Close()
		site, _, _ := setup(t, c)
		raw := func(key string) string {
			p, _, err := c.kv.get(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			return string(p.value)
		}
		if l, older := c.OldestLevel(); l != Level || older != nil {
			t.Fatalf("level %d, %v", l, older)
		}
		// An older program registers: it knows nothing of levels, so what the key says is of the version before.
		old := must(c.RegisterNode(ctx, testNode("old", site.ID)))(t)
		old.Version = "0.9"
		if _, err := c.kv.(levelled).kv.commit(ctx, txn{ops: []op{{key: keyNode("old"), value: encode(old, "")}}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if l, older := c.OldestLevel(); l != 1 || len(older) != 1 || older[0] != "old" {
			t.Fatalf("level %d, %v", l, older)
		}
		v := must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{site.ID}))(t)
		if text := raw(keyVolume(v.ID)); strings.Contains(text, "ownership") || !strings.Contains(text, `"size_bytes":1073741824`) {
			t.Errorf("stored as %s", text)
		}
		pinned := testVolume("pinned")
		pinned.Ownership = OwnershipPin
		if _, err := c.CreateVolume(ctx, pinned, []ident.SiteID{site.ID}); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("a volume that the older node could not read: %v", err)
		}
		chap := CHAP{InUser: "d", InSecret: NewSecret("discover-me-not")}
		if err := c.SetDiscovery(ctx, chap); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("credentials that the older node would not ask for: %v", err)
		}
		if _, err := c.LoseStore(ctx, ident.StoreID{9}); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("a store is declared lost: %v", err)
		}
		stop := testVolume("stop")
		stop.Partition = PartitionStop
		s := must(c.CreateVolume(ctx, stop, []ident.SiteID{site.ID}))(t)
		_, rev, _ := c.Journal(s.ID)
		state, _, err := c.TakeJournal(ctx, s.ID, rev, "old")
		if err != nil || state.Stops {
			t.Errorf("taken over: %+v, %v", state, err)
		}
		if err := c.SetStops(ctx, s.ID, state.Epoch, true); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("an owner's word that it stops: %v", err)
		}
		if _, rev, err = c.JournalNow(ctx, s.ID); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ForceJournal(ctx, s.ID, rev, "old", nil, "", 0, true); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("an operator's word about a loss: %v", err)
		}
		clone := testVolume("clone")
		clone.Cloning = &CloneOf{Volume: v.ID, Fork: "7"}
		if _, err := c.CreateVolume(ctx, clone, []ident.SiteID{site.ID}); !errors.Is(err, ErrOlderNodes) {
			t.Errorf("a clone that the older node would let initiators use: %v", err)
		}
		// It is upgraded.
		old.Version = "test"
		must(c.RegisterNode(ctx, old))(t)
		synctest.Wait()
		must(c.CreateVolume(ctx, pinned, []ident.SiteID{site.ID}))(t)
		if err := c.SetDiscovery(ctx, chap); err != nil {
			t.Error(err)
		}
		w := must(c.RenameVolume(ctx, v.ID, "w"))(t)
		if w.Name != "w" {
			t.Errorf("%+v", w)
		}
	})
}

// TestLower: numbers stay exact, labels are the user's, and unknown depths are searched.
func TestLower(t *testing.T) {
	in := `{"v":1,"change":"c","spec":{"size_bytes":9007199254740993,"ownership":"follow","labels":{"ownership":"mine"}}}`
	out, err := lower(dirVolumes+"x", []byte(in), 1)
	if err != nil || !strings.Contains(string(out), "9007199254740993") || strings.Contains(string(out), "follow") || !strings.Contains(string(out), `"ownership":"mine"`) {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := lower(dirVolumes+"x", []byte(in), 2); err != nil || string(out) != in {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := lower(dirNodes+"n", []byte(`{"v":1,"spec":{"stores":[{"leaving":true}]}}`), 1); !errors.Is(err, ErrOlderNodes) {
		t.Errorf("a store that is leaving: %v", err)
	}
	if _, err := lower(dirJournals+"j", []byte(`{"v":1,"spec":{"owner":"n","forced":{"epoch":{"number":3}}}}`), 1); !errors.Is(err, ErrOlderNodes) {
		t.Errorf("a takeover by force: %v", err)
	}
}

// TestEveryFieldIsKnown: what the types have beyond the first release's has a line in laterFields.
func TestEveryFieldIsKnown(t *testing.T) {
	first := map[string][]string{
		dirVolumes: {"id", "tenant", "name", "size_bytes", "block_size", "sites", "at_site", "durability", "partition", "labels", "hosts", "created", "deleted", "confirmed"},
		dirNodes: {"name", "site", "host_id", "roles", "addrs", "stores", "version", "tpgt", "voter", "draining", "portals", "cluster", "wan", "management", "control_url",
			"addr", "id", "label", "capacity_bytes"},
		dirJournals: {"owner", "epoch", "ensembles", "sites", "number", "lineage", "stores"},
		dirSites:    {"id", "name", "cidrs"},
		dirHosts:    {"tenant", "name", "initiator_names", "cidrs", "chap", "created", "in_user", "in_secret", "out_user", "out_secret"},
	}
	for dir, types := range map[string][]any{
		dirVolumes: {VolumeSpec{}}, dirNodes: {Node{}, Addrs{}, Portal{}, StoreSpec{}}, dirJournals: {JournalState{}, Ensemble{}}, dirSites: {Site{}}, dirHosts: {Host{}, CHAP{}},
	} {
		for _, x := range types {
			for f := range reflect.TypeOf(x).Fields() {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if _, later := laterFields[dir][name]; name == "" || name == "-" || !later && !slices.Contains(first[dir], name) {
					t.Errorf("%s of %T is stored as %q, which nodes of the first release refuse: it needs a line in laterFields", f.Name, x, name)
				}
			}
		}
	}
}

// TestLaterFields: a volume with nothing but defaults is stored as the first release knew it. A field that is added to
// the stored types needs a line in laterFields.
func TestLaterFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		c := must(m.Open(t.Context(), Options{}))(t)
		defer c.Close()
		site, _, _ := setup(t, c)
		v := must(c.CreateVolume(t.Context(), testVolume("v"), []ident.SiteID{site.ID}))(t)
		for _, spec := range []struct {
			key   string
			value any
		}{{keyVolume(v.ID), v}, {keyNode("n0"), c.Nodes()[0]}} {
			text, err := lower(spec.key, encode(spec.value, ""), 1)
			if err != nil {
				t.Fatal(err)
			}
			var e struct{ Spec map[string]any }
			if err := json.Unmarshal(text, &e); err != nil {
				t.Fatal(err)
			}
			for name := range e.Spec {
				if !slices.Contains([]string{"id", "tenant", "name", "size_bytes", "block_size", "sites", "at_site", "durability", "partition", "labels", "hosts", "created",
					"site", "host_id", "roles", "addrs", "stores", "version", "tpgt", "voter", "draining"}, name) {
					t.Errorf("%s is stored with %q, which nodes of the first release refuse", spec.key, name)
				}
			}
		}
	})
}
