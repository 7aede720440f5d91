package control

import (
	"fmt"
	"slices"
	"testing"

	"dozo/internal/ident"
)

func testTombstones(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, _, stores := setup(t, c)
	v := must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t)
	_, err := c.ConfirmDeleted(ctx, v.ID, stores[0])
	wantErr(t, "confirmation for a volume that lives", err, ErrInvalid)
	wantErr(t, "forgetting a volume that lives", c.ForgetVolume(ctx, v.ID), ErrInUse)
	_, rev, _ := c.Journal(v.ID)
	j, rev, err := c.TakeJournal(ctx, v.ID, rev, "n0")
	if err != nil {
		t.Fatal(err)
	}
	res := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: v.ID, Rev: rev, Ensembles: []Ensemble{{Epoch: j.Epoch, Number: 1, Stores: stores[:3]}}}})
	if res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	dead := must(c.DeleteVolume(ctx, v.ID))(t)
	if dead.Deleted == nil {
		t.Fatal("no tombstone")
	}
	must(c.DeleteVolume(ctx, v.ID))(t)
	if _, ok := c.VolumeByName("", "v"); ok || len(c.Volumes()) != 0 || len(c.Tombstones()) != 1 {
		t.Errorf("after deletion: %v, %v", c.Volumes(), c.Tombstones())
	}
	if _, _, ok := c.Journal(v.ID); !ok {
		t.Error("the journal's key must stay while stores may hold replicas")
	}
	_, err = c.RenameVolume(ctx, v.ID, "w")
	wantErr(t, "renaming a tombstone", err, ErrNotFound)
	must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t) // the name is free
	must(c.ConfirmDeleted(ctx, v.ID, stores[1], stores[0]))(t)
	got := must(c.ConfirmDeleted(ctx, v.ID, stores[0]))(t)
	if len(got.Confirmed) != 2 {
		t.Errorf("confirmed: %v", got.Confirmed)
	}
	wantErr(t, "forgetting before all confirmed", c.ForgetVolume(ctx, v.ID), ErrInUse)
	if err := c.RemoveNode(ctx, "n2"); err != nil { // declared lost
		t.Fatal(err)
	}
	if err := c.ForgetVolume(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Volume(v.ID); ok || len(c.Tombstones()) != 0 {
		t.Error("the tombstone is still there")
	}
	_, _, err = c.JournalNow(ctx, v.ID)
	wantErr(t, "a forgotten journal", err, ErrNotFound)
}

func testTake(t *testing.T, open opener) {
	ctx := t.Context()
	c, other := open(t, Options{}), open(t, Options{})
	a, _, stores := setup(t, c)
	cl := must(c.Cluster())(t)
	v := must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t)
	_, rev0, _ := c.Journal(v.ID)
	s, rev1, err := c.TakeJournal(ctx, v.ID, rev0, "n0")
	if err != nil {
		t.Fatal(err)
	}
	if want := (ident.Epoch{Number: 1, Lineage: cl.Lineage}); s.Owner != "n0" || s.Epoch != want || rev1 <= rev0 || len(s.Ensembles) != 0 {
		t.Errorf("taken: %+v at %d, want epoch %s", s, rev1, want)
	}
	if got, rev, _ := c.Journal(v.ID); got.Owner != "n0" || rev != rev1 {
		t.Errorf("the cache has %+v at %d", got, rev)
	}
	list := []Ensemble{{Epoch: s.Epoch, Number: 1, Stores: stores[:3]}}
	r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: v.ID, Rev: rev1, Ensembles: list}})[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	// The other takes over, and gets the list.
	eventually(t, other, "the other client sees the ensembles", func() bool { _, rev, _ := other.Journal(v.ID); return rev == r.Rev })
	s2, rev2, err := other.TakeJournal(ctx, v.ID, r.Rev, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if s2.Owner != "n1" || s2.Epoch.Number != 2 || len(s2.Ensembles) != 1 || !slices.Equal(s2.Ensembles[0].Stores, stores[:3]) {
		t.Errorf("taken over: %+v", s2)
	}
	// The deposed owner can neither change the list nor take on what it knew.
	lost := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: v.ID, Rev: r.Rev, Ensembles: append(slices.Clone(list), Ensemble{Epoch: s.Epoch, Number: 2, Stores: stores[1:]})}})[0]
	wantErr(t, "a change by the deposed", lost.Err, ErrConflict)
	if lost.State.Epoch.Number != 2 || lost.Rev != rev2 {
		t.Errorf("a conflict must show what is there: %+v at %d", lost.State, lost.Rev)
	}
	s3, rev3, err := c.TakeJournal(ctx, v.ID, r.Rev, "n0")
	wantErr(t, "a take of what has moved on", err, ErrConflict)
	if s3.Epoch.Number != 2 || rev3 != rev2 {
		t.Errorf("a conflict must show what is there: %+v at %d", s3, rev3)
	}
	_, _, err = c.TakeJournal(ctx, ident.NewJournalID(), 7, "n0")
	wantErr(t, "a journal that is not there", err, ErrNotFound)
	_, _, err = c.TakeJournal(ctx, v.ID, rev2, "")
	wantErr(t, "a taker without a name", err, ErrInvalid)

	// Handed over with an ensemble of the next owner's, and taken back from it: only that one leaves the list, and not when
	// somebody else has changed the key.
	s4, rev4, err := c.HandJournal(ctx, v.ID, rev2, "n0", stores[1:3], true)
	if err != nil || !s4.Handed || s4.Owner != "n0" || s4.Epoch.Number != 3 || len(s4.Ensembles) != 2 || s4.Ensembles[1].Epoch != s4.Epoch {
		t.Fatalf("handed over: %+v, %v", s4, err)
	}
	_, _, err = c.TakeBackJournal(ctx, v.ID, rev2, "n1")
	wantErr(t, "taken back at another revision", err, ErrConflict)
	s5, rev5, err := c.TakeBackJournal(ctx, v.ID, rev4, "n1")
	if err != nil || s5.Handed || s5.Owner != "n1" || s5.Epoch.Number != 4 || len(s5.Ensembles) != 1 || !slices.Equal(s5.Ensembles[0].Stores, stores[:3]) {
		t.Fatalf("taken back: %+v, %v", s5, err)
	}
	if s6, _, err := c.TakeBackJournal(ctx, v.ID, rev5, "n0"); err != nil || len(s6.Ensembles) != 1 {
		t.Errorf("what nobody was listed for: %+v, %v", s6, err)
	}
}

func testTakeRace(t *testing.T, open opener) {
	ctx := t.Context()
	clients := []*Client{open(t, Options{}), open(t, Options{})}
	a, _, _ := setup(t, clients[0])
	v := must(clients[0].CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t)
	_, rev, err := clients[1].JournalNow(ctx, v.ID)
	if err != nil {
		t.Fatal(err)
	}
	const takers = 6
	type result struct {
		s   JournalState
		err error
	}
	results := make(chan result, takers)
	for i := range takers {
		go func() {
			s, _, err := clients[i%2].TakeJournal(ctx, v.ID, rev, ident.NodeName(fmt.Sprint("n", i)))
			results <- result{s, err}
		}()
	}
	var winner ident.NodeName
	for range takers {
		r := <-results
		switch {
		case r.err == nil && winner == "":
			winner = r.s.Owner
		case r.err == nil:
			t.Errorf("both %s and %s took epoch 1", winner, r.s.Owner)
		default:
			wantErr(t, "a loser", r.err, ErrConflict)
		}
	}
	if s, _, _ := clients[0].JournalNow(ctx, v.ID); s.Owner != winner || s.Epoch.Number != 1 {
		t.Errorf("the key says %+v, the winner is %s", s, winner)
	}
}

func testEnsembles(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, _, stores := setup(t, c)
	const n = changesPerTxn + 7 // more than one transaction
	changes := make([]EnsembleChange, n)
	for i := range n {
		v := must(c.CreateVolume(ctx, testVolume(fmt.Sprintf("v%03d", i)), []ident.SiteID{a.ID}))(t)
		_, rev, _ := c.Journal(v.ID)
		s, rev, err := c.TakeJournal(ctx, v.ID, rev, "n0")
		if err != nil {
			t.Fatal(err)
		}
		changes[i] = EnsembleChange{Journal: v.ID, Rev: rev, Ensembles: []Ensemble{{Epoch: s.Epoch, Number: 1, Stores: stores[:2]}}}
	}
	changes[3].Rev--                                  // moved on since
	changes[5].Ensembles = changes[5].Ensembles[:0:0] // empty stays allowed: nothing was ever listed
	changes[9].Ensembles = []Ensemble{{Number: 1, Stores: stores[:1]}}
	changes = append(changes, changes[11])
	for i, r := range c.ChangeEnsembles(ctx, changes) {
		switch i {
		case 3:
			wantErr(t, "change 3", r.Err, ErrConflict)
			if r.State.Owner != "n0" {
				t.Errorf("change 3 shows %+v", r.State)
			}
		case 9, n:
			wantErr(t, fmt.Sprint("change ", i), r.Err, ErrInvalid)
		default:
			if r.Err != nil {
				t.Fatalf("change %d: %v", i, r.Err)
			}
			if s, rev, _ := c.Journal(changes[i].Journal); rev != r.Rev || len(s.Ensembles) != len(changes[i].Ensembles) {
				t.Fatalf("change %d: cache has %+v at %d, result is of %d", i, s, rev, r.Rev)
			}
		}
	}
	id, e := changes[0].Journal, changes[0].Ensembles[0]
	_, rev, _ := c.Journal(id)
	two := Ensemble{Epoch: e.Epoch, Number: 2, Stores: stores[1:]}
	changed := e
	changed.Stores = stores[2:]
	for name, list := range map[string][]Ensemble{
		"emptied":                nil,
		"changed in place":       {changed},
		"out of order":           {two, e},
		"five stores":            {e, {Epoch: e.Epoch, Number: 2, Stores: append(slices.Clone(stores), ident.NewStoreID())}},
		"a store twice":          {e, {Epoch: e.Epoch, Number: 2, Stores: []ident.StoreID{stores[0], stores[0]}}},
		"of an epoch to come":    {e, {Epoch: ident.Epoch{Number: 9}, Number: 2, Stores: stores}},
		"number not above":       {{Epoch: e.Epoch, Number: 0, Stores: stores}, e},
		"added under no lineage": {e, {Epoch: ident.Epoch{Number: 1}, Number: 2, Stores: stores}},
	} {
		r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: id, Rev: rev, Ensembles: list}})[0]
		wantErr(t, name, r.Err, ErrInvalid)
	}
	r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: id, Rev: rev, Ensembles: []Ensemble{e, two}}})[0]
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	r = c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: id, Rev: r.Rev, Ensembles: []Ensemble{two}, Sites: []ident.SiteID{a.ID, 2}}})[0]
	if r.Err != nil || len(r.State.Ensembles) != 1 || len(r.State.Sites) != 2 {
		t.Errorf("removal of the old: %+v, %v", r.State, r.Err)
	}
	if newest, ok := r.State.Newest(); !ok || newest.Number != 2 {
		t.Errorf("newest: %+v", newest)
	}
}

func testCacheFollows(t *testing.T, open opener) {
	ctx := t.Context()
	w, r := open(t, Options{}), open(t, Options{})
	a, _, _ := setup(t, w)
	for i := range 20 {
		must(w.CreateVolume(ctx, testVolume(fmt.Sprint("v", i)), []ident.SiteID{a.ID}))(t)
	}
	v, _ := w.VolumeByName("", "v3")
	must(w.DeleteVolume(ctx, v.ID))(t)
	eventually(t, r, "all volumes but one", func() bool { return len(r.Volumes()) == 19 && len(r.Tombstones()) == 1 })
	if len(r.Nodes()) != 4 || len(r.Sites()) != 2 || len(r.Journals()) != 20 {
		t.Errorf("%d nodes, %d sites, %d journals", len(r.Nodes()), len(r.Sites()), len(r.Journals()))
	}
	if up, since := r.Connected(); !up || since.IsZero() {
		t.Errorf("Connected = %v since %v", up, since)
	}
	// Who opens later has everything at once.
	late := open(t, Options{})
	if len(late.Volumes()) != 19 {
		t.Errorf("a client that opened later has %d volumes", len(late.Volumes()))
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	wantErr(t, "Announce after Close", r.Announce("n1"), ErrClosed)
	if len(r.Volumes()) != 19 {
		t.Error("cached reads must go on after Close")
	}
}

func testAlive(t *testing.T, open opener) {
	watcher, node := open(t, Options{}), open(t, Options{})
	if err := node.Announce("n1"); err != nil {
		t.Fatal(err)
	}
	if err := node.Announce("n1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, watcher, "n1 is alive", func() bool { return watcher.Alive("n1") })
	if watcher.Alive("n2") {
		t.Error("n2 was never announced")
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, watcher, "n1 is gone", func() bool { return !watcher.Alive("n1") && len(watcher.AliveNodes()) == 0 })
}

// testBurials: thousands of tombstones are confirmed and forgotten in few transactions, by the same rules as one.
func testBurials(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, _, stores := setup(t, c)
	const n = BurialsPerTxn
	var ids []ident.JournalID
	for at := 0; at < n; {
		var list []VolumeSpec
		for range min(VolumesPerTxn, n-at) {
			v := testVolume(fmt.Sprintf("v%03d", at))
			list = append(list, v)
			at++
		}
		for _, v := range must(c.CreateVolumes(ctx, list, []ident.SiteID{a.ID}))(t) {
			ids = append(ids, v.ID)
		}
	}
	burials := func(list []ident.JournalID, s ...ident.StoreID) (out []Burial) {
		for _, id := range list {
			out = append(out, Burial{id, s})
		}
		return out
	}
	_, err := c.ConfirmBurials(ctx, burials(ids[:3], stores[0]))
	wantErr(t, "confirmation for volumes that live", err, ErrInvalid)
	wantErr(t, "forgetting volumes that live", c.ForgetVolumes(ctx, ids[:3]), ErrInUse)
	// The first has replicas at the stores of its ensemble.
	_, rev, _ := c.Journal(ids[0])
	j, rev, err := c.TakeJournal(ctx, ids[0], rev, "n0")
	if err != nil {
		t.Fatal(err)
	}
	if r := c.ChangeEnsembles(ctx, []EnsembleChange{{Journal: ids[0], Rev: rev, Ensembles: []Ensemble{{Epoch: j.Epoch, Number: 1, Stores: stores[:2]}}}}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	for at := 0; at < n; at += DeletionsPerTxn {
		must(c.DeleteVolumes(ctx, ids[at:min(at+DeletionsPerTxn, n)], nil))(t)
	}
	_, err = c.ConfirmBurials(ctx, burials(append(slices.Clone(ids), ident.NewJournalID()), stores[0]))
	wantErr(t, "one too many", err, ErrInvalid)
	_, err = c.ConfirmBurials(ctx, burials([]ident.JournalID{ids[1], ids[1]}, stores[0]))
	wantErr(t, "one twice", err, ErrInvalid)

	before := len(must(c.Events(ctx, 0))(t))
	got := must(c.ConfirmBurials(ctx, burials(ids, stores[0])))(t)
	if len(got) != n || slices.ContainsFunc(got, func(v VolumeSpec) bool { return !slices.Equal(v.Confirmed, stores[:1]) }) {
		t.Errorf("%d confirmed: %v", len(got), got)
	}
	must(c.ConfirmBurials(ctx, burials(ids, stores[0])))(t) // again, as after an answer that was lost
	if now := len(must(c.Events(ctx, 0))(t)); now != before+1 {
		t.Errorf("%d events for one transaction", now-before)
	}
	// Another node has changed some meanwhile, of which this cache has not heard: nothing of it is lost.
	other := open(t, Options{})
	must(other.ConfirmBurials(ctx, burials(ids[10:20], stores[1])))(t)
	for _, v := range must(c.ConfirmBurials(ctx, burials(ids[5:15], stores[2])))(t) {
		now, _, err := read[VolumeSpec](ctx, c, keyVolume(v.ID))
		want := 2
		if slices.Contains(ids[10:], v.ID) {
			want = 3
		}
		if err != nil || len(now.Confirmed) != want {
			t.Errorf("confirmed: %v, %v; want %d", now.Confirmed, err, want)
		}
	}
	// R13: one that a store of its ensemble has not confirmed keeps the whole transaction from taking effect.
	wantErr(t, "forgetting before all confirmed", c.ForgetVolumes(ctx, ids[:n/2]), ErrInUse)
	if len(c.Tombstones()) != n {
		t.Errorf("%d tombstones are left of %d", len(c.Tombstones()), n)
	}
	wantErr(t, "one too many", c.ForgetVolumes(ctx, ids[:n/2+1]), ErrInvalid)
	must(c.ConfirmBurials(ctx, burials(ids[:1], stores[1])))(t)
	for range 2 { // the second time nothing is there any more
		if err := c.ForgetVolumes(ctx, ids[:n/2]); err != nil {
			t.Fatal(err)
		}
	}
	if left := must(c.ConfirmBurials(ctx, burials(ids, stores[1])))(t); len(left) != n-n/2 {
		t.Errorf("%d are left of %d", len(left), n)
	}
	if err := c.ForgetVolumes(ctx, ids[n/2:]); err != nil {
		t.Fatal(err)
	}
	_, _, err = c.JournalNow(ctx, ids[n-1])
	wantErr(t, "a forgotten journal", err, ErrNotFound)
	if len(c.Tombstones()) != 0 {
		t.Errorf("%d tombstones are left", len(c.Tombstones()))
	}
}
