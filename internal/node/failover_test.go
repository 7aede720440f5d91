package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// A site that is lost takes the volumes along that it owns, those that nobody has owned yet, and those whose owner elsewhere is
// kept from beginning by what only the site has: it was lost while it handed them over (simulator, seed 129,501,019).
func TestWhatALostSiteTakesAlong(t *testing.T) {
	const lost, other = 1, 2
	for _, c := range []struct {
		what              string
		owner             ident.NodeName
		at, home          ident.SiteID
		known, recovering bool
		owned, waits      bool
	}{
		{"owned there", "s1n1", lost, other, true, false, true, false},
		{"owned there, and its owner recovers", "s1n1", lost, lost, true, true, true, false},
		{"owned and served elsewhere", "s2n1", other, lost, true, false, false, false},
		{"owned elsewhere, not served", "s2n1", other, lost, true, true, false, true},
		{"never owned, at home there", "", 0, lost, false, false, true, false},
		{"never owned, at home elsewhere", "", 0, other, false, false, false, false},
		{"its owner is no node any more", "s3n1", 0, lost, false, false, false, false},
	} {
		if owned, waits := goesWith(lost, c.owner, c.at, c.home, c.known, c.recovering); owned != c.owned || waits != c.waits {
			t.Errorf("%s: owned %v, waits %v", c.what, owned, waits)
		}
	}
}

// What the failback of a site waits for does not come where a volume is at home already, by somebody else's command or because it has
// followed its writes, where it was deleted meanwhile, or where the site has no copy. None of these may hold up the volumes behind it.
func TestAFailbackWaitsForNothingThatNeverComes(t *testing.T) {
	b := newBench(t)
	a, _ := b.ctl.SiteByName("a")
	bare, err := b.ctl.CreateSite(b.ctx, control.Site{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ctl.RegisterNode(b.ctx, control.Node{Name: "n3", Site: bare.ID, HostID: "hn3", Roles: []control.Role{control.RoleCore, control.RoleAccess},
		Stores: []control.StoreSpec{{ID: ident.NewStoreID(), CapacityBytes: 1 << 30}}}); err != nil {
		t.Fatal(err)
	}
	made := func(name string, home control.Site) control.VolumeSpec {
		t.Helper()
		v, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: name, SizeBytes: 1 << 20, Sites: 1, AtSite: home.ID}, []ident.SiteID{a.ID})
		if err != nil {
			t.Fatal(err)
		}
		_, rev, _ := b.ctl.Journal(v.ID)
		if _, _, err := b.ctl.TakeJournal(b.ctx, v.ID, rev, "n2"); err != nil {
			t.Fatal(err)
		}
		return v
	}
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	goHome := func(v control.VolumeSpec, site control.Site) (*dozov1.VolumeFailback, error) {
		m := &dozov1.VolumeFailback{Volume: v.Name, State: "planned"}
		return m, b.goHome(ctx, v, site, m, func() error { return nil })
	}
	if m, err := goHome(made("home", a), a); err != nil || m.State != "home" || m.Owner != "n2" || m.OwnerSite != "a" {
		t.Errorf("a volume that is at home: %v, %v", m, err)
	}
	// Its home got core servers only after the volume was made.
	if m, err := goHome(made("bare", bare), bare); !errors.Is(err, api.ErrRefused) {
		t.Errorf("a volume of which its home has no copy: %v, %v", m, err)
	}
	gone := made("gone", bare)
	if _, err := b.ctl.DeleteVolume(b.ctx, gone.ID); err != nil {
		t.Fatal(err)
	}
	if m, err := goHome(gone, bare); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("a volume that was deleted: %v, %v", m, err)
	}
}

// A volume that is deleted while somebody waits for its copies has none: the wait does not end as if all sites had everything.
func TestNobodyWaitsForADeletedVolume(t *testing.T) {
	b := newBench(t)
	a, _ := b.ctl.SiteByName("a")
	v, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, Sites: 1, AtSite: a.ID}, []ident.SiteID{a.ID})
	if err != nil {
		t.Fatal(err)
	}
	state, rev, _ := b.ctl.Journal(v.ID)
	if state, _, err = b.ctl.TakeJournal(b.ctx, v.ID, rev, "n2"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	ended := make(chan error)
	go func() {
		ended <- b.WaitVolume(ctx, &dozov1.WaitVolumeRequest{Volume: "v"}, func(*dozov1.WaitVolumeResponse) error { return nil })
	}()
	time.Sleep(waitEvery / 2) // it has looked once
	if _, err := b.ctl.DeleteVolume(b.ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.ctl.ForgetVolume(b.ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, control.ErrNotFound) {
		t.Errorf("the wait ends with %v, at epoch %s", err, state.Epoch)
	}
}

// A fork is deleted for ever, so a number that stands for two of them names neither.
func TestAForkIsNamedByItsNumberOnlyWhereThatIsOne(t *testing.T) {
	list := []*dozov1.Fork{{Id: "7.0000aaaa"}, {Id: "7.0000bbbb"}, {Id: "9.0000bbbb"}}
	for _, c := range []struct {
		id, want string
		is       error
	}{{"9", "9.0000bbbb", nil}, {"7.0000bbbb", "7.0000bbbb", nil}, {"7", "", control.ErrInvalid}, {"8", "", control.ErrNotFound}} {
		if f, err := pickFork("v", list, c.id); f.GetId() != c.want || !errors.Is(err, c.is) {
			t.Errorf("%s: %v, %v", c.id, f, err)
		}
	}
	if f, err := pickFork("v", list[2:], ""); err != nil || f.GetId() != "9.0000bbbb" {
		t.Errorf("the only one: %v, %v", f, err)
	}
	if f, err := pickFork("v", nil, ""); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("none: %v, %v", f, err)
	}
}

// Whoever makes a clone may die. What is left says so, and the same command puts a new one in its place; nothing else does, least of all what
// is or may be complete.
func TestACloneThatWasInterruptedIsMadeAgain(t *testing.T) {
	b := newBench(t)
	a, _ := b.ctl.SiteByName("a")
	v, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, Sites: 1, AtSite: a.ID, Ownership: control.OwnershipPin,
		ALUARemote: control.RemoteStandby, Redirect: control.RedirectSite}, []ident.SiteID{a.ID})
	if err != nil {
		t.Fatal(err)
	}
	fork := &dozov1.Fork{Id: "7.0000aaaa"}
	first, err := b.beginClone(b.ctx, v, fork, "w")
	if err != nil {
		t.Fatal(err)
	}
	if first.Ownership != v.Ownership || first.ALUARemote != v.ALUARemote || first.Redirect != v.Redirect {
		t.Errorf("the clone's policies: %+v", first)
	}
	if x := b.describe(first, nil); x.State != "cloning" || !strings.Contains(x.StateReason, "volume v as its fork 7.0000aaaa") {
		t.Errorf("shown as %s: %s", x.State, x.StateReason)
	}
	if _, err := b.beginClone(b.ctx, v, &dozov1.Fork{Id: "9.0000bbbb"}, "w"); !errors.Is(err, control.ErrExists) {
		t.Errorf("a clone of another fork in its place: %v", err)
	}
	second, err := b.beginClone(b.ctx, v, fork, "w")
	if err != nil || second.ID == first.ID {
		t.Fatalf("again: %v, %v", second.ID, err)
	}
	// Who made the first one is alive, and gives up.
	if err := b.dropClone(b.ctx, first); err != nil {
		t.Error(err)
	}
	if now, ok := b.ctl.VolumeByName("default", "w"); !ok || now.ID != second.ID {
		t.Errorf("in its place: %v", now.ID)
	}
	if _, err := b.SetVolume(b.ctx, &dozov1.SetVolumeRequest{Volume: "w", Cloned: true}); err != nil {
		t.Error(err)
	}
	if now, _ := b.ctl.Volume(second.ID); b.describe(now, nil).State != "new" {
		t.Errorf("complete, and shown as %s", b.describe(now, nil).State)
	}
	if _, err := b.beginClone(b.ctx, v, fork, "w"); !errors.Is(err, control.ErrExists) {
		t.Errorf("a complete one is in the way: %v", err)
	}
	if err := b.dropClone(b.ctx, second); !errors.Is(err, control.ErrExists) {
		t.Errorf("a complete one is given up: %v", err)
	}
}

// A list of forks without those of a volume that is not served would say that it has none.
func TestForksThatNobodyCanTell(t *testing.T) {
	b := newBench(t)
	a, _ := b.ctl.SiteByName("a")
	for _, name := range []string{"new", "owned"} {
		if _, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: name, SizeBytes: 1 << 20, Sites: 1, AtSite: a.ID}, []ident.SiteID{a.ID}); err != nil {
			t.Fatal(err)
		}
	}
	v, _ := b.ctl.VolumeByName("default", "owned")
	_, rev, _ := b.ctl.Journal(v.ID)
	if _, _, err := b.ctl.TakeJournal(b.ctx, v.ID, rev, "n2"); err != nil { // which does not run
		t.Fatal(err)
	}
	list, unheard, err := b.ListForks(b.ctx, &dozov1.ListForksRequest{})
	if err != nil || len(list) != 0 || !slices.Equal(unheard, []string{"default/owned"}) {
		t.Errorf("%v, not told of %v, %v", list, unheard, err)
	}
	if _, _, err := b.ListForks(b.ctx, &dozov1.ListForksRequest{Volume: "owned"}); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("of that one: %v", err)
	}
}
