package control

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

var updateBackup = flag.Bool("update-backup", false, "write testdata/backup.v1 anew")

// fullSnapshot has one of everything.
func fullSnapshot(t testing.TB) *Snapshot {
	t.Helper()
	var pairs []pair
	for i, g := range golden() {
		if g.key == keyCluster {
			continue
		}
		pairs = append(pairs, pair{key: g.key, value: encode(g.spec, "c"), mod: Rev(i + 5)})
	}
	cl := Cluster{ID: "00112233445566778899aabbccddeeff", Name: "test", Lineage: 7, Format: FormatVersion, Created: time.Unix(1_700_000_000, 0).UTC()}
	pairs = append(pairs, pair{key: keyCluster, value: encode(cl, ""), mod: 2}, pair{key: keyAlive("n1"), value: []byte("{}"), mod: 9})
	s, err := newSnapshot(pairs, 1234, time.Unix(1_800_000_000, 5))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func written(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBackupRoundTrip(t *testing.T) {
	s := fullSnapshot(t)
	if slices.ContainsFunc(s.pairs, func(p pair) bool { return p.key == keyAlive("n1") }) {
		t.Error("a leased key is in the backup")
	}
	text := written(t, s)
	got, err := ReadSnapshot(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Same(s) || got.Rev != 1234 || !got.Time.Equal(s.Time) || got.Cluster != s.Cluster {
		t.Errorf("read %+v, written %+v", got, s)
	}
	// What was written by the first version must stay readable.
	golden := filepath.Join("testdata", "backup.v1")
	if *updateBackup {
		if err := os.WriteFile(golden, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := ReadSnapshot(bytes.NewReader(old)); err != nil || kept.Rev != 1234 {
		t.Errorf("backup of version 1: %v", err)
	}
	// Every byte counts: one that changed is found, and so is one that is missing or too many.
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 0x40
		if _, err := ReadSnapshot(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d changed, and the backup was taken", i)
		}
	}
	for _, n := range []int{0, 1, backupHeaderSize - 1, backupHeaderSize, len(text) - 1} {
		if _, err := ReadSnapshot(bytes.NewReader(text[:n])); !errors.Is(err, ErrBackup) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
	if _, err := ReadSnapshot(bytes.NewReader(append(bytes.Clone(text), 0))); !errors.Is(err, ErrBackup) {
		t.Errorf("a byte too many: %v", err)
	}
}

func FuzzReadSnapshot(f *testing.F) {
	text := written(f, fullSnapshot(f))
	f.Add(text)
	f.Add(text[:backupHeaderSize])
	f.Add(text[:len(text)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSnapshot(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again := written(t, s); !bytes.Equal(again, b) {
			t.Errorf("%d bytes were taken, and written again as %d others", len(b), len(again))
		}
		_, _ = s.content()
	})
}

// history is a small cluster: owner n0 of volume a over stores 0 and 1; volume b is never written.
type history struct {
	c      *Client
	stores []ident.StoreID
	site   Site
	a, b   VolumeSpec
	state  JournalState
}

func newHistory(t *testing.T, c *Client) *history {
	t.Helper()
	ctx := t.Context()
	site, _, stores := setup(t, c)
	h := &history{c: c, stores: stores, site: site}
	h.a = must(c.CreateVolume(ctx, testVolume("a"), []ident.SiteID{site.ID}))(t)
	h.b = must(c.CreateVolume(ctx, testVolume("b"), []ident.SiteID{site.ID}))(t)
	_, rev, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, rev, err := c.TakeJournal(ctx, h.a.ID, rev, "n0")
	if err != nil {
		t.Fatal(err)
	}
	r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: h.a.ID, Rev: rev, Ensembles: []Ensemble{{Epoch: state.Epoch, Number: 0, Stores: stores[:2]}}}})[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	h.state = r.State
	return h
}

// renewed makes the control store anew from a backup, and returns once the client has read it.
func renewed(t *testing.T, m *Mem, c *Client, backup *Snapshot) *Snapshot {
	t.Helper()
	anew := must(backup.Anew(NewLineage(), time.Now()))(t)
	m.Renew(anew)
	eventually(t, c, "the new control store is read", func() bool {
		cl, err := c.Cluster()
		return err == nil && cl.Lineage == anew.Cluster.Lineage
	})
	return anew
}

// TestRestoreInPlace: a client that runs sees that another control store answers, reads it, and no change that was
// decided upon the former one takes effect. The list does not count until all stores have answered.
func TestRestoreInPlace(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c)
	backup := must(c.Backup(ctx))(t)
	// Since the backup: the journal has moved to other stores, and volumes came and went.
	_, rev, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, _, err := c.TakeJournal(ctx, h.a.ID, rev, "n2")
	if err != nil {
		t.Fatal(err)
	}
	late := must(c.CreateVolume(ctx, testVolume("late"), []ident.SiteID{h.site.ID}))(t)
	_, lateRev, _ := c.Journal(late.ID)

	anew := renewed(t, m, c, backup)
	if _, ok := c.Volume(late.ID); !ok {
		t.Error("a volume that the backup does not know is forgotten before its owner could write it back")
	}
	if _, _, err := c.TakeJournal(ctx, late.ID, lateRev, "n1"); err == nil {
		t.Error("a journal that only the former store knows was taken")
	}
	_, rev, err = c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.TakeJournal(ctx, h.a.ID, rev, "n1"); !errors.Is(err, ErrUnheard) {
		t.Errorf("taken over before anybody was heard: %v", err)
	}
	waiting, err := c.Reconcile(ctx)
	if err != nil || len(waiting) != 4 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	// Stores 2 and 3 are the ensemble now; store 1 is lost.
	answer := func(i int, epoch ident.Epoch) {
		t.Helper()
		held := []HeldJournal{}
		if epoch != (ident.Epoch{}) {
			held = append(held, HeldJournal{ID: h.a.ID, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID})
		}
		if err := c.PutAnswer(ctx, h.stores[i], held); err != nil {
			t.Fatal(err)
		}
	}
	top := state.Epoch
	top.Number += 3 // it was taken more often than this control store ever knew
	answer(0, h.state.Epoch)
	answer(2, top)
	answer(3, top)
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 1 || waiting[0] != h.stores[1] {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	if _, err := c.DeclareLost(ctx, []ident.StoreID{h.stores[0]}); !errors.Is(err, ErrInUse) {
		t.Errorf("a store that has answered is declared lost: %v", err)
	}
	must(c.DeclareLost(ctx, h.stores[1:2]))(t)
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	eventually(t, c, "it is settled", func() bool { r, ok := c.Restoration(); return ok && !r.Pending() })
	got, rev, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Clone(h.stores)
	slices.SortFunc(all, ident.StoreID.Compare)
	if got.Unheard || got.Epoch != top || len(got.Ensembles) != 1 || !got.Ensembles[0].Wide || got.Ensembles[0].Unproven || !slices.Equal(got.Ensembles[0].Stores, all) {
		t.Errorf("settled as %+v", got)
	}
	taken, _, err := c.TakeJournal(ctx, h.a.ID, rev, "n1")
	if err != nil || taken.Epoch.Number != top.Number+1 || taken.Epoch.Lineage != anew.Cluster.Lineage {
		t.Errorf("taken at %v, %v", taken.Epoch, err)
	}
	if b, _, err := c.JournalNow(ctx, h.b.ID); err != nil || b.Unheard || len(b.Ensembles) != 0 {
		t.Errorf("volume that was never written: %+v, %v", b, err)
	}
	eventually(t, c, "what nobody wrote back is forgotten", func() bool { _, ok := c.Volume(late.ID); return !ok })
	if left, err := c.Answers(ctx); err != nil || len(left) != 0 {
		t.Errorf("answers are left: %v, %v", left, err)
	}
	if s, err := c.CreateSite(ctx, Site{Name: "new"}); err != nil || int(s.ID) <= counterGap {
		t.Errorf("a new site gets number %d, %v", s.ID, err)
	}
}

// TestRestoreAsksWhoMayHaveJoined: an ensemble was recorded since the backup with a store that had not heard of the journal when it answered. It
// may have joined since, and its owner go on with it, unable to write its key back: so it is asked like all others. Stores of sites that
// the journal has nothing to do with are not.
func TestRestoreAsksWhoMayHaveJoined(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c)
	other := must(c.CreateSite(ctx, Site{Name: "other"}))(t)
	away := ident.StoreID{0xee}
	must(c.RegisterNode(ctx, Node{Name: "away", Site: other.ID, Roles: []Role{RoleCore}, HostID: "away", Stores: []StoreSpec{{ID: away}}}))(t)
	backup := must(c.Backup(ctx))(t)
	_, rev, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, rev, err := c.TakeJournal(ctx, h.a.ID, rev, "n2")
	if err != nil {
		t.Fatal(err)
	}
	list := append(state.Ensembles, Ensemble{Epoch: state.Epoch, Number: 1, Stores: []ident.StoreID{h.stores[0], h.stores[1], h.stores[3]}})
	if r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: h.a.ID, Rev: rev, Ensembles: list}})[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
	m.Renew(must(backup.Anew(NewLineage(), time.Now()))(t))
	eventually(t, c, "the new control store is read", func() bool { r, ok := c.Restoration(); return ok && r.Pending() })
	for i, id := range append(slices.Clone(h.stores), away) {
		held := []HeldJournal{}
		if i < 2 {
			held = append(held, HeldJournal{ID: h.a.ID, Fence: state.Epoch, Highest: h.state.Epoch, Records: true, Site: h.site.ID})
		}
		if err := c.PutAnswer(ctx, id, held); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	got, _, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := got.Newest(); !ok || !e.Wide || !slices.Contains(e.Stores, h.stores[3]) || slices.Contains(e.Stores, away) {
		t.Errorf("settled as %+v; the member that had not heard of it is %s", got, h.stores[3])
	}
}

// TestWriteBack: an owner that runs knows better than the backup, and a deposed one is refused.
func TestWriteBack(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c)
	backup := must(c.Backup(ctx))(t)
	_, rev, err := c.JournalNow(ctx, h.a.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, rev, err := c.TakeJournal(ctx, h.a.ID, rev, "n2")
	if err != nil {
		t.Fatal(err)
	}
	r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: h.a.ID, Rev: rev, Ensembles: append(state.Ensembles, Ensemble{Epoch: state.Epoch, Number: 1, Stores: h.stores[2:]})}})[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	late := must(c.CreateVolume(ctx, testVolume("late"), []ident.SiteID{h.site.ID}))(t)
	lateState, _, _ := c.Journal(late.ID)
	if _, _, err := c.WriteBack(ctx, h.a, r.State); !errors.Is(err, ErrInvalid) {
		t.Errorf("written back where nothing was restored: %v", err)
	}
	m.Renew(must(backup.Anew(NewLineage(), time.Now()))(t))
	eventually(t, c, "restored", func() bool { _, ok := c.Restoration(); return ok })

	// A change under way of the former store has no effect in this one, whatever the revisions are.
	if x := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: h.a.ID, Rev: r.Rev, Ensembles: r.State.Ensembles}})[0]; !errors.Is(x.Err, ErrConflict) {
		t.Errorf("changed on a revision of the former control store: %v", x.Err)
	}
	got, _, err := c.WriteBack(ctx, h.a, r.State)
	if err != nil || got.Unheard || got.Owner != "n2" || got.Epoch != r.State.Epoch || len(got.Ensembles) != 2 {
		t.Fatalf("written back: %+v, %v", got, err)
	}
	if _, _, err := c.WriteBack(ctx, h.a, r.State); err != nil {
		t.Errorf("written back twice: %v", err)
	}
	if got, _, err := c.WriteBack(ctx, h.a, h.state); !errors.Is(err, ErrConflict) || got.Owner != "n2" {
		t.Errorf("a deposed owner writes back: %+v, %v", got, err)
	}
	lateState.Owner, lateState.Epoch = "n1", ident.Epoch{Number: 1, Lineage: state.Epoch.Lineage}
	if _, _, err := c.WriteBack(ctx, late, lateState); err != nil {
		t.Errorf("a volume that the backup does not know: %v", err)
	}
	if v, ok := c.VolumeByName("", "late"); !ok || v.ID != late.ID {
		t.Error("it has no name")
	}
	for _, s := range h.stores {
		if err := c.PutAnswer(ctx, s, nil); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) > 0 {
		t.Fatalf("%v, %v", waiting, err)
	}
	if got, _, err := c.JournalNow(ctx, h.a.ID); err != nil || got.Owner != "n2" || len(got.Ensembles) != 2 {
		t.Errorf("what an owner wrote back was changed: %+v, %v", got, err)
	}
}

// TestRebuild: nothing is known but what stores say; sites and nodes come again, and one node has noted a name.
func TestRebuild(t *testing.T) {
	ctx := t.Context()
	was := must(NewMem().Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = was.Close() })
	h := newHistory(t, was)
	noted := must(ReadSnapshot(bytes.NewReader(written(t, must(was.Copy())(t)))))(t)
	cl := must(was.Cluster())(t)

	m := NewMem()
	m.Renew(EmptyAnew(Cluster{ID: cl.ID, Name: cl.Name, Lineage: NewLineage()}, time.Now()))
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.InitCluster(ctx, Cluster{ID: cl.ID, Name: cl.Name}); err != nil {
		t.Fatal(err)
	}
	if err := c.Remember(noted); err != nil {
		t.Fatal(err)
	}
	if err := c.OfferRemembered(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.KeepSite(ctx, h.site); !errors.Is(err, ErrExists) { // the offer had it
		t.Fatal(err)
	}
	unknown := ident.NewJournalID()
	deleted := ident.NewJournalID()
	epoch := ident.Epoch{Number: 9, Lineage: 3}
	for i, id := range h.stores {
		n := testNode("n"+string(rune('0'+i)), h.site.ID, id)
		n.TPGT = uint16(10 + i) // it runs with it
		if got, err := c.RegisterNode(ctx, n); err != nil || got.TPGT != n.TPGT {
			t.Fatalf("%+v, %v", got, err)
		}
		if err := c.PutAnswer(ctx, id, []HeldJournal{
			{ID: h.a.ID, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID, SizeBytes: 5 << 20},
			{ID: unknown, Fence: epoch, Highest: epoch, Records: true, Site: h.site.ID, WrittenBytes: 3<<20 + 1},
			{ID: deleted, Fence: ident.Epoch{Number: deletedFence}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("%v, %v", waiting, err)
	}
	if r, _ := c.Restoration(); !r.Pending() {
		t.Fatal("settled before an operator has said that all stores are known")
	}
	must(c.DeclareComplete(ctx))(t)
	if _, err := c.Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "it is settled", func() bool { r, ok := c.Restoration(); return ok && !r.Pending() })
	if v, ok := c.VolumeByName("", "a"); !ok || v.ID != h.a.ID || v.SizeBytes != h.a.SizeBytes || v.Labels[RecoveredLabel] == "" {
		t.Errorf("the volume whose specification was noted: %+v", v)
	}
	v, ok := c.Volume(unknown)
	if !ok || v.SizeBytes != 4<<20 || v.Labels[RecoveredLabel] == "" {
		t.Errorf("the volume of which nothing was noted: %+v", v)
	}
	if _, ok := c.Volume(deleted); ok {
		t.Error("a deleted volume is there again")
	}
	state, rev, err := c.JournalNow(ctx, unknown)
	if err != nil || state.Epoch != epoch || len(state.Ensembles) != 1 || !state.Ensembles[0].Wide {
		t.Fatalf("%+v, %v", state, err)
	}
	if taken, _, err := c.TakeJournal(ctx, unknown, rev, "n1"); err != nil || taken.Epoch.Number != 10 {
		t.Errorf("%+v, %v", taken, err)
	}
	if s, err := c.CreateSite(ctx, Site{Name: "later"}); err != nil || s.ID <= h.site.ID {
		t.Errorf("a new site gets number %d, %v", s.ID, err)
	}
}

// TestTwoStoresLost: what is found then proves nothing, and says so.
func TestTwoStoresLost(t *testing.T) {
	s := settling{r: Restoration{}, holders: map[ident.JournalID]map[ident.StoreID]HeldJournal{}}
	a, b, x, y := ident.NewStoreID(), ident.NewStoreID(), ident.NewStoreID(), ident.NewStoreID()
	for _, tc := range []struct {
		lost, stores, want []ident.StoreID
		unproven           bool
	}{
		{nil, []ident.StoreID{a, b}, []ident.StoreID{a, b}, false},
		{[]ident.StoreID{x}, []ident.StoreID{a, b}, []ident.StoreID{a, b, x}, false},    // it may have been a member
		{[]ident.StoreID{x}, []ident.StoreID{a, b, x}, []ident.StoreID{a, b, x}, false}, // it was
		{[]ident.StoreID{x, y}, []ident.StoreID{a, b, x}, []ident.StoreID{a, b}, true},
		{[]ident.StoreID{x, y}, []ident.StoreID{x, y}, nil, true},
		{[]ident.StoreID{x}, []ident.StoreID{x}, nil, true},
	} {
		s.r.Lost = tc.lost
		got, unproven := s.wide(tc.stores)
		slices.SortFunc(tc.want, ident.StoreID.Compare)
		slices.SortFunc(got, ident.StoreID.Compare)
		if !slices.Equal(got, tc.want) || unproven != tc.unproven {
			t.Errorf("lost %d of %d: %d are asked, unproven %v", len(tc.lost), len(tc.stores), len(got), unproven)
		}
	}
}

// TestLostBeforeTheBackup: a store that was declared lost is not waited for, also if a node has noted that it was there. It
// counts as lost for those journals only that listed it still.
func TestLostBeforeTheBackup(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	h := newHistory(t, c) // h.a lists stores 0 and 1
	must(c.LoseStore(ctx, h.stores[1]))(t)
	must(c.LoseStore(ctx, h.stores[3]))(t)
	backup := must(c.Backup(ctx))(t)
	renewed(t, m, c, backup)
	if err := c.ExpectStores(ctx, h.stores); err != nil { // as of a note from before
		t.Fatal(err)
	}
	if _, err := c.LoseStore(ctx, h.stores[2]); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "dozo control lost") {
		t.Errorf("declared lost while it is not settled: %v", err)
	}
	if waiting, err := c.Reconcile(ctx); err != nil || !slices.Equal(waiting, []ident.StoreID{h.stores[0], h.stores[2]}) && !slices.Equal(waiting, []ident.StoreID{h.stores[2], h.stores[0]}) {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	for i, held := range [][]HeldJournal{0: {{ID: h.a.ID, Fence: h.state.Epoch, Highest: h.state.Epoch, Records: true, Site: h.site.ID}}, 2: {}} {
		if held == nil {
			continue
		}
		if err := c.PutAnswer(ctx, h.stores[i], held); err != nil {
			t.Fatal(err)
		}
	}
	if waiting, err := c.Reconcile(ctx); err != nil || len(waiting) != 0 {
		t.Fatalf("waits for %v, %v", waiting, err)
	}
	got, _, err := c.JournalNow(ctx, h.a.ID)
	want := slices.Clone(h.stores[:3]) // store 2 has not heard of it, and may have joined since the backup
	slices.SortFunc(want, ident.StoreID.Compare)
	// Store 3 was never a member: with that counted as well, nothing would be proven.
	if err != nil || len(got.Ensembles) != 1 || got.Ensembles[0].Unproven || !slices.Equal(got.Ensembles[0].Stores, want) {
		t.Errorf("settled as %+v, %v; want the list %v", got, err, want)
	}
	eventually(t, c, "it is settled", func() bool { r, ok := c.Restoration(); return ok && !r.Pending() })
	must(c.LoseStore(ctx, h.stores[2]))(t)
}

// TestSeedVoter restores into a real etcd: a client of the former voter, at the same address, notices; another voter
// joins.
func TestSeedVoter(t *testing.T) {
	t.Parallel()
	k := newVoterKit(t)
	cfg := single(k.config(t, "v1"))
	e := start(t, cfg)
	c := must(OpenEtcd(t.Context(), k.etcd(k.admin, cfg), Options{Timeout: time.Minute}))(t)
	t.Cleanup(func() { _ = c.Close() })
	ctx := t.Context()
	must(c.InitCluster(ctx, Cluster{Name: "test", ID: k.ca.ClusterID()}))(t)
	site := must(c.CreateSite(ctx, Site{Name: "a"}))(t)
	for i := range 150 { // more than a transaction takes
		must(c.CreateVolume(ctx, testVolume("v"+string(rune('a'+i%26))+string(rune('a'+i/26))), []ident.SiteID{site.ID}))(t)
	}
	backup := must(c.Backup(ctx))(t)
	late := must(c.CreateVolume(ctx, testVolume("late"), []ident.SiteID{site.ID}))(t)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	seed := cfg
	seed.Dir = cfg.Dir + ".new"
	lineage := NewLineage()
	if err := SeedVoter(ctx, seed, k.admin.NodeClient("", nil), must(backup.Anew(lineage, time.Now()))(t)); err != nil {
		t.Fatal(err)
	}
	if err := SeedVoter(ctx, seed, k.admin.NodeClient("", nil), backup); !errors.Is(err, ErrExists) {
		t.Errorf("over another: %v", err)
	}
	cfg.Dir = seed.Dir
	start(t, cfg)
	eventually(t, c, "the client reads the restored one", func() bool {
		cl, err := c.Cluster()
		return err == nil && cl.Lineage == lineage
	})
	if _, ok := c.Volume(late.ID); !ok {
		t.Error("what the backup does not know is forgotten before it was settled")
	}
	if got := must(c.Backup(ctx))(t); len(got.pairs) != len(backup.pairs)+1 {
		t.Errorf("%d keys, the backup has %d: want one more", len(got.pairs), len(backup.pairs))
	}
	// Another voter joins what was restored.
	other := k.config(t, "v2")
	admin := must(OpenAdmin(k.etcd(k.admin, cfg), nil))(t)
	defer admin.Close()
	other.Initial, other.Join = must(admin.AddVoter(ctx, VoterAddr{other.Name, other.ListenPeer}))(t), true
	start(t, other)
	pctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := admin.PromoteVoter(pctx, other.Name); err != nil {
		t.Fatal(err)
	}
	for { // a machine that stalls answers the next question
		voters, err := admin.Status(pctx)
		if err == nil && len(voters) == 2 && voters[0].Up && voters[1].Up && voters[0].Leader != voters[1].Leader {
			break
		}
		if pctx.Err() != nil {
			t.Fatalf("%+v, %v", voters, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A token to join is used once: one that was made before a backup does not count after its restore, whether or not it was used since. API tokens
// do, unless they are left out.
func TestTokensOfABackup(t *testing.T) {
	ctx := t.Context()
	m := NewMem()
	c := must(m.Open(ctx, Options{}))(t)
	t.Cleanup(func() { _ = c.Close() })
	newHistory(t, c)
	now := time.Now()
	if err := c.PutJoinToken(ctx, pki.JoinTokenRecord{Hash: "cafe", Role: pki.RoleNode, Created: now, Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]time.Time{"ann": {}, "bob": now.Add(time.Hour), "old": now.Add(-time.Hour)} {
		if err := c.CreateAPIToken(ctx, pki.APITokenRecord{Name: name, Hash: "hash-" + name, Role: pki.RoleAdmin, Created: now, Expires: end}); err != nil {
			t.Fatal(err)
		}
	}
	backup := must(c.Backup(ctx))(t)
	if len(c.JoinTokens()) != 1 {
		t.Fatal("there is no token to join")
	}
	if _, err := c.UseJoinToken(ctx, "cafe", now); err != nil {
		t.Fatal(err)
	}
	if got := must(backup.APITokens(now))(t); !slices.Equal(got, []string{"ann", "bob"}) {
		t.Errorf("API tokens that count: %v", got)
	}
	renewed(t, m, c, backup)
	if _, err := c.UseJoinToken(ctx, "cafe", now); !errors.Is(err, ErrNotFound) || len(c.JoinTokens()) != 0 {
		t.Errorf("a token to join that was used counts again: %v", err)
	}
	if len(c.APITokens()) != 3 {
		t.Errorf("API tokens: %v", c.APITokens())
	}
	without := backup.WithoutAPITokens()
	renewed(t, m, c, without)
	if got := must(without.APITokens(now))(t); len(got) != 0 || len(c.APITokens()) != 0 || len(c.Volumes()) != 2 {
		t.Errorf("without: %v, %v", got, c.APITokens())
	}
}
