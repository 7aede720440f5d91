package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// opener gives a further client of one control store that is empty when the test starts.
type opener func(t *testing.T, o Options) *Client

// contract is what every implementation of kv must do, seen through Client. Each part gets an empty store.
var contract = []struct {
	name string
	run  func(t *testing.T, open opener)
}{
	{"cluster", testCluster},
	{"sites", testSites},
	{"nodes", testNodes},
	{"hosts", testHosts},
	{"volumes", testVolumes},
	{"volume names in a race", testNameRace},
	{"many volumes", testManyVolumes},
	{"tombstones", testTombstones},
	{"burials", testBurials},
	{"take a journal", testTake},
	{"take in a race", testTakeRace},
	{"change ensembles", testEnsembles},
	{"cache of another client", testCacheFollows},
	{"announcements", testAlive},
	{"tokens and revocations", testAuth},
	{"events", testEvents},
	{"newer formats", testNewerFormats},
}

func TestMem(t *testing.T) {
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			m := NewMem()
			c.run(t, func(t *testing.T, o Options) *Client {
				t.Helper()
				cl, err := m.Open(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = cl.Close() })
				return cl
			})
		})
	}
}

// must fails the test on an error, and gives the value.
func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// eventually waits until f holds, looking again at each change of the cache.
func eventually(t *testing.T, c *Client, what string, f func() bool) {
	t.Helper()
	changed, cancel := c.Subscribe()
	defer cancel()
	deadline := time.After(time.Minute)
	for !f() {
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// setup makes a cluster with two sites and a node with stores at each.
func setup(t *testing.T, c *Client) (a, b Site, stores []ident.StoreID) {
	t.Helper()
	ctx := t.Context()
	must(c.InitCluster(ctx, Cluster{Name: "test"}))(t)
	a = must(c.CreateSite(ctx, Site{Name: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}}))(t)
	b = must(c.CreateSite(ctx, Site{Name: "b"}))(t)
	for i := range 4 {
		stores = append(stores, ident.NewStoreID())
		must(c.RegisterNode(ctx, testNode(fmt.Sprintf("n%d", i), a.ID, stores[i])))(t)
	}
	return a, b, stores
}

func testNode(name string, site ident.SiteID, stores ...ident.StoreID) Node {
	n := Node{Name: ident.NodeName(name), Site: site, HostID: "host-" + name, Roles: []Role{RoleCore, RoleAccess}, Version: "test"}
	for _, id := range stores {
		n.Stores = append(n.Stores, StoreSpec{ID: id, CapacityBytes: 1 << 30})
	}
	n.Addrs.Portals = []Portal{{Addr: netip.MustParseAddrPort("127.0.1.1:3260")}, {Addr: netip.MustParseAddrPort("[::1]:3260")}}
	return n
}

func testVolume(name string) VolumeSpec { return VolumeSpec{Name: name, SizeBytes: 1 << 30} }

func testCluster(t *testing.T, open opener) {
	ctx := t.Context()
	a, b := open(t, Options{}), open(t, Options{})
	if _, err := a.Cluster(); !errors.Is(err, ErrNoCluster) {
		t.Errorf("Cluster before InitCluster: %v", err)
	}
	_, _, err := a.TakeJournal(ctx, ident.NewJournalID(), 1, "n1")
	wantErr(t, "TakeJournal without a cluster", err, ErrNoCluster)
	made := must(a.InitCluster(ctx, Cluster{Name: "test"}))(t)
	if made.Lineage == 0 || len(made.ID) != 32 || made.Format != FormatVersion {
		t.Errorf("made %+v", made)
	}
	again := must(b.InitCluster(ctx, Cluster{Name: "test"}))(t)
	if again.ID != made.ID || again.Lineage != made.Lineage {
		t.Errorf("a second InitCluster gave %+v, want %+v", again, made)
	}
	_, err = b.InitCluster(ctx, Cluster{Name: "other"})
	wantErr(t, "InitCluster of another name", err, ErrExists)
	if got, err := b.Cluster(); err != nil || got.ID != made.ID {
		t.Errorf("Cluster = %+v, %v", got, err)
	}
}

func testSites(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, b, _ := setup(t, c)
	if a.ID != 1 || b.ID != 2 {
		t.Errorf("IDs %d, %d; want 1, 2", a.ID, b.ID)
	}
	_, err := c.CreateSite(ctx, Site{Name: "a"})
	wantErr(t, "a second site of the name", err, ErrExists)
	_, err = c.CreateSite(ctx, Site{Name: "a b"})
	wantErr(t, "a bad name", err, ErrInvalid)
	_, err = c.CreateSite(ctx, Site{Name: "c", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}})
	wantErr(t, "a subnet with host bits", err, ErrInvalid)
	_, err = c.UpdateSite(ctx, b.ID, func(s *Site) error { s.Name = "a"; return nil })
	wantErr(t, "renamed to a name that is taken", err, ErrExists)
	must(c.UpdateSite(ctx, b.ID, func(s *Site) error { s.Name = "bee"; return nil }))(t)
	if s, ok := c.SiteByName("bee"); !ok || s.ID != b.ID {
		t.Errorf("SiteByName(bee) = %+v, %v", s, ok)
	}
	wantErr(t, "removal of a site with nodes", c.RemoveSite(ctx, a.ID), ErrInUse)
	if err := c.RemoveSite(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "removed again", c.RemoveSite(ctx, b.ID), ErrNotFound)
	next := must(c.CreateSite(ctx, Site{Name: "b"}))(t)
	if next.ID != 3 {
		t.Errorf("the next site got ID %d: an ID is never given out again", next.ID)
	}
	v := testVolume("v")
	must(c.CreateVolume(ctx, v, []ident.SiteID{a.ID, next.ID}))(t)
	wantErr(t, "removal of a site with copies", c.RemoveSite(ctx, next.ID), ErrInUse)
}

func testNodes(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, b, stores := setup(t, c)
	n, ok := c.Node("n0")
	if !ok || n.TPGT != 1 || n.Addrs.Portals[1].TPGT != 1 {
		t.Fatalf("n0 = %+v, %v", n, ok)
	}
	if other, _ := c.Node("n1"); other.TPGT != 2 {
		t.Errorf("TPGT of n1 = %d, want 2", other.TPGT)
	}
	if got, ok := c.NodeOfStore(stores[0]); !ok || got.Name != "n0" {
		t.Errorf("NodeOfStore = %s, %v", got.Name, ok)
	}
	events := len(must(c.Events(ctx, 0))(t))
	if again := must(c.RegisterNode(ctx, testNode("n0", a.ID, stores[0])))(t); again.TPGT != 1 {
		t.Errorf("TPGT after a restart = %d, want 1", again.TPGT)
	}
	if now := len(must(c.Events(ctx, 0))(t)); now != events {
		t.Error("a node that came back unchanged wrote something")
	}
	_, err := c.RegisterNode(ctx, testNode("n9", a.ID, stores[0]))
	wantErr(t, "a copied store", err, ErrInUse)
	_, err = c.RegisterNode(ctx, testNode("n0", b.ID, stores[0]))
	wantErr(t, "a node at another site with its stores", err, ErrInUse)
	_, err = c.RegisterNode(ctx, testNode("n9", 77))
	wantErr(t, "a node of no site", err, ErrNotFound)
	bad := testNode("w", 0)
	bad.Roles = []Role{RoleWitness, RoleCore}
	_, err = c.RegisterNode(ctx, bad)
	wantErr(t, "a witness with another role", err, ErrInvalid)
	bad.Roles = []Role{RoleWitness}
	must(c.RegisterNode(ctx, bad))(t)

	// A disk that moves: first away, then there.
	must(c.RegisterNode(ctx, testNode("n0", a.ID)))(t)
	must(c.RegisterNode(ctx, testNode("n1", a.ID, stores[1], stores[0])))(t)
	if got, _ := c.NodeOfStore(stores[0]); got.Name != "n1" {
		t.Errorf("the moved store is at %s", got.Name)
	}
	if err := c.RemoveNode(ctx, "n1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "removed again", c.RemoveNode(ctx, "n1"), ErrNotFound)
	if _, ok := c.NodeOfStore(stores[1]); ok {
		t.Error("a removed node's store is still listed")
	}
	must(c.RegisterNode(ctx, testNode("n5", b.ID, stores[1])))(t)
}

func testHosts(t *testing.T, open opener) {
	ctx := t.Context()
	c, other := open(t, Options{}), open(t, Options{})
	a, _, _ := setup(t, c)
	h := Host{Name: "esx1", InitiatorNames: []string{"iqn.1998-01.com.VMware:Esx1"},
		CHAP: CHAP{InUser: "u", InSecret: NewSecret("abcdefghijkl"), OutUser: "t", OutSecret: NewSecret("mnopqrstuvwx")}}
	must(c.CreateHost(ctx, h))(t)
	_, err := c.CreateHost(ctx, h)
	wantErr(t, "a second host of the name", err, ErrExists)
	_, err = c.CreateHost(ctx, Host{Name: "esx2", InitiatorNames: h.InitiatorNames})
	wantErr(t, "an initiator name that is taken", err, ErrExists)
	eventually(t, other, "the other client sees the host", func() bool { _, ok := other.Host("", "esx1"); return ok })
	got, ok := other.HostByInitiator("iqn.1998-01.com.vmware:esx1")
	if !ok || got.CHAP.InSecret.Reveal() != "abcdefghijkl" || got.CHAP.OutSecret.Reveal() != "mnopqrstuvwx" {
		t.Errorf("HostByInitiator = %+v, %v: the secrets must arrive", got, ok)
	}
	must(c.UpdateHost(ctx, "default", "esx1", func(h *Host) error {
		h.InitiatorNames = []string{"eui.0123456789abcdef"}
		h.CHAP.InSecret = NewSecret("a new secret")
		return nil
	}))(t)
	if _, ok := c.HostByInitiator("iqn.1998-01.com.vmware:esx1"); ok {
		t.Error("the old initiator name is still the host's")
	}
	must(c.CreateHost(ctx, Host{Name: "esx2", InitiatorNames: h.InitiatorNames}))(t)
	for _, e := range must(c.Events(ctx, 0))(t) {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, "abcdefghijkl") || strings.Contains(text, "a new secret") {
			t.Errorf("a secret is in the audit log: %s", text)
		}
	}
	if d := c.Discovery(); d != (CHAP{}) {
		t.Errorf("Discovery = %+v before any was set", d)
	}
	discovery := CHAP{InUser: "d", InSecret: NewSecret("discover-me-not"), OutUser: "t", OutSecret: NewSecret("mnopqrstuvwx")}
	if err := c.SetDiscovery(ctx, discovery); err != nil {
		t.Fatal(err)
	}
	eventually(t, other, "the other client sees what discovery needs", func() bool { return other.Discovery() == discovery })
	wantErr(t, "a secret without a user", c.SetDiscovery(ctx, CHAP{InSecret: NewSecret("discover-me-not")}), ErrInvalid)
	if snap := must(c.Copy())(t); !slices.ContainsFunc(snap.pairs, func(p pair) bool { return p.key == keyDiscover }) {
		t.Error("a node does not note what discovery needs")
	}
	for _, e := range must(c.Events(ctx, 0))(t) {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, "discover-me-not") {
			t.Errorf("a secret is in the audit log: %s", text)
		}
	}
	if err := c.SetDiscovery(ctx, CHAP{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, other, "the other client sees that discovery needs nothing", func() bool { return other.Discovery() == CHAP{} })
	v := testVolume("v")
	v.Hosts = []string{"nobody"}
	_, err = c.CreateVolume(ctx, v, []ident.SiteID{a.ID})
	wantErr(t, "a volume for a host that is not there", err, ErrNotFound)
	v.Hosts = []string{"esx1"}
	made := must(c.CreateVolume(ctx, v, []ident.SiteID{a.ID}))(t)
	wantErr(t, "deletion of a host that a volume names", c.DeleteHost(ctx, "", "esx1"), ErrInUse)
	must(c.UpdateVolume(ctx, made.ID, func(v *VolumeSpec) error { v.Hosts = []string{"esx2"}; return nil }))(t)
	if err := c.DeleteHost(ctx, "", "esx1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "deleted again", c.DeleteHost(ctx, "", "esx1"), ErrNotFound)
	if _, ok := c.HostByInitiator("eui.0123456789abcdef"); ok {
		t.Error("a deleted host is still found by its initiator name")
	}
	for name, bad := range map[string]CHAP{
		"short secret":   {InUser: "u", InSecret: NewSecret("short")},
		"no user":        {InSecret: NewSecret("abcdefghijkl")},
		"only outward":   {OutUser: "u", OutSecret: NewSecret("abcdefghijkl")},
		"the same twice": {InUser: "u", InSecret: NewSecret("abcdefghijkl"), OutUser: "u", OutSecret: NewSecret("abcdefghijkl")},
	} {
		_, err := c.CreateHost(ctx, Host{Name: "bad", CHAP: bad})
		wantErr(t, name, err, ErrInvalid)
	}
}

func testVolumes(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, b, _ := setup(t, c)
	v := must(c.CreateVolume(WithActor(ctx, "bob"), testVolume("vol1"), []ident.SiteID{b.ID, a.ID}))(t)
	if v.Tenant != "default" || v.BlockSize != 512 || v.Sites != 2 || v.AtSite != b.ID || v.Durability != Replicated || v.Partition != PartitionContinue || v.ID.IsZero() {
		t.Errorf("defaults: %+v", v)
	}
	j, rev, ok := c.Journal(v.ID)
	if !ok || rev == 0 || j.Owner != "" || j.Epoch != (ident.Epoch{}) || len(j.Ensembles) != 0 || !slices.Equal(j.Sites, []ident.SiteID{b.ID, a.ID}) {
		t.Errorf("a new volume's journal: %+v at %d", j, rev)
	}
	if e := must(c.Events(ctx, 1))(t)[0]; e.Actor != "bob" || e.Action != "volume.create" || e.Object != "volume/default/vol1" || !strings.Contains(e.After, "vol1") {
		t.Errorf("event %+v", e)
	}
	_, err := c.CreateVolume(ctx, testVolume("vol1"), []ident.SiteID{a.ID})
	wantErr(t, "a second volume of the name", err, ErrExists)
	same := testVolume("other")
	same.ID = v.ID
	_, err = c.CreateVolume(ctx, same, []ident.SiteID{a.ID})
	wantErr(t, "a second volume of the ID", err, ErrExists)
	elsewhere := testVolume("vol1")
	elsewhere.Tenant = "tenant2"
	must(c.CreateVolume(ctx, elsewhere, []ident.SiteID{a.ID}))(t)
	for name, bad := range map[string]VolumeSpec{
		"upper case":    {Name: "Vol", SizeBytes: 512},
		"slash":         {Name: "a/b", SizeBytes: 512},
		"no size":       {Name: "x"},
		"odd size":      {Name: "x", SizeBytes: 513},
		"block size":    {Name: "x", SizeBytes: 4096, BlockSize: 1024},
		"durability":    {Name: "x", SizeBytes: 512, Durability: "maybe"},
		"too few sites": {Name: "x", SizeBytes: 512, Sites: 2},
	} {
		_, err := c.CreateVolume(ctx, bad, []ident.SiteID{a.ID})
		wantErr(t, name, err, ErrInvalid)
	}
	second := testVolume("x")
	second.AtSite = b.ID
	_, err = c.CreateVolume(ctx, second, []ident.SiteID{a.ID, b.ID})
	wantErr(t, "home is not first", err, ErrInvalid)
	second.Name = "away" // a home without core servers holds no copy
	away := must(c.CreateVolume(ctx, second, []ident.SiteID{a.ID}))(t)
	must(c.DeleteVolume(ctx, away.ID))(t)
	must(c.ConfirmDeleted(ctx, away.ID))(t)
	if err := c.ForgetVolume(ctx, away.ID); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateVolume(ctx, testVolume("x"), []ident.SiteID{99})
	wantErr(t, "a site that is not there", err, ErrNotFound)

	grown := must(c.UpdateVolume(ctx, v.ID, func(v *VolumeSpec) error { v.SizeBytes *= 2; return nil }))(t)
	if e := must(c.Events(ctx, 1))(t)[0]; e.Action != "volume.resize" {
		t.Errorf("event of another size: %+v", e)
	}
	unchanged := must(c.UpdateVolume(ctx, v.ID, func(v *VolumeSpec) error { v.SizeBytes = grown.SizeBytes; return nil }))(t)
	if e := must(c.Events(ctx, 1))(t)[0]; e.Action != "volume.resize" || unchanged.SizeBytes != grown.SizeBytes {
		t.Errorf("a change that changes nothing is in the audit log: %+v", e)
	}
	if got, _ := c.Volume(v.ID); got.SizeBytes != 2<<30 || grown.SizeBytes != 2<<30 {
		t.Errorf("resized to %d", got.SizeBytes)
	}
	for name, f := range map[string]func(*VolumeSpec) error{
		"name":       func(v *VolumeSpec) error { v.Name = "x"; return nil },
		"block size": func(v *VolumeSpec) error { v.BlockSize = 4096; return nil },
		"tombstone":  func(v *VolumeSpec) error { v.Deleted = new(time.Time); return nil },
	} {
		_, err := c.UpdateVolume(ctx, v.ID, f)
		wantErr(t, "update of "+name, err, ErrInvalid)
	}
	no := errors.New("no")
	_, err = c.UpdateVolume(ctx, v.ID, func(*VolumeSpec) error { return no })
	wantErr(t, "an update that declines", err, no)

	must(c.CreateVolume(ctx, testVolume("vol2"), []ident.SiteID{a.ID}))(t)
	_, err = c.RenameVolume(ctx, v.ID, "vol2")
	wantErr(t, "renamed to a name that is taken", err, ErrExists)
	must(c.RenameVolume(ctx, v.ID, "vol3"))(t)
	must(c.RenameVolume(ctx, v.ID, "vol3"))(t)
	if _, ok := c.VolumeByName("", "vol1"); ok {
		t.Error("the old name still finds it")
	}
	if got, ok := c.VolumeByName("", "vol3"); !ok || got.ID != v.ID {
		t.Errorf("the new name finds %+v, %v", got, ok)
	}
	must(c.CreateVolume(ctx, testVolume("vol1"), []ident.SiteID{a.ID}))(t)
	var names []string
	for _, v := range c.Volumes() {
		names = append(names, v.Tenant+"/"+v.Name)
	}
	if want := []string{"default/vol1", "default/vol2", "default/vol3", "tenant2/vol1"}; !slices.Equal(names, want) {
		t.Errorf("Volumes: %v, want %v", names, want)
	}
}

func testNameRace(t *testing.T, open opener) {
	ctx := t.Context()
	clients := []*Client{open(t, Options{}), open(t, Options{})}
	a, _, _ := setup(t, clients[0])
	const each = 4
	var wg sync.WaitGroup
	errs := make(chan error, each*len(clients))
	for _, c := range clients {
		for range each {
			wg.Go(func() {
				_, err := c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID})
				errs <- err
			})
		}
	}
	wg.Wait()
	close(errs)
	var won int
	for err := range errs {
		if err == nil {
			won++
		} else {
			wantErr(t, "a loser", err, ErrExists)
		}
	}
	if won != 1 {
		t.Errorf("%d of the creations of one name succeeded", won)
	}
	// Sites made at once get different IDs.
	sites := make(chan ident.SiteID, 4)
	for i := range cap(sites) {
		wg.Go(func() {
			s, err := clients[i%2].CreateSite(ctx, Site{Name: fmt.Sprint("s", i)})
			if err != nil {
				t.Error(err)
			}
			sites <- s.ID
		})
	}
	wg.Wait()
	close(sites)
	seen := make(map[ident.SiteID]bool)
	for id := range sites {
		if seen[id] || id == 0 {
			t.Errorf("site ID %d was given out twice", id)
		}
		seen[id] = true
	}
}

func testAuth(t *testing.T, open opener) {
	ctx := t.Context()
	c, other := open(t, Options{}), open(t, Options{})
	now := time.Now()
	if err := c.Revoke(ctx, pki.Revocation{Serial: "0a", Subject: "n1", Expires: now.Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(ctx, pki.Revocation{Serial: "0b", Subject: "n2", Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(ctx, pki.Revocation{Serial: "0b"}); err != nil {
		t.Errorf("revoked again: %v", err)
	}
	eventually(t, other, "the revocation arrives", func() bool { return other.Revoked("0b") && !other.Revoked("0a") && len(other.Revocations()) == 1 })

	_, rec, err := pki.NewJoinToken(pki.Fingerprint{1}, pki.RoleNode, "n5", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutJoinToken(ctx, rec); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	used := make(chan error, 2)
	for _, cl := range []*Client{c, other} {
		wg.Go(func() {
			_, err := cl.UseJoinToken(ctx, rec.Hash, now)
			used <- err
		})
	}
	wg.Wait()
	if a, b := <-used, <-used; (a == nil) == (b == nil) || !errors.Is(errors.Join(a, b), ErrNotFound) {
		t.Errorf("a token used twice at once: %v, %v; want one success", a, b)
	}
	if err := c.PutJoinToken(ctx, rec); err != nil {
		t.Fatal(err)
	}
	_, err = c.UseJoinToken(ctx, rec.Hash, now.Add(2*time.Hour))
	wantErr(t, "an expired token", err, ErrNotFound)
	if len(c.JoinTokens()) != 0 {
		t.Error("an expired token stays")
	}
	tok, api, err := pki.NewAPIToken("bob", pki.RoleViewer, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateAPIToken(ctx, api); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a second token of the name", c.CreateAPIToken(ctx, api), ErrExists)
	hash, _ := pki.HashAPIToken(tok)
	eventually(t, other, "the token arrives", func() bool { r, ok := other.APIToken(hash); return ok && r.Name == "bob" })
	if err := c.DeleteAPIToken(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	eventually(t, other, "the token is gone", func() bool { _, ok := other.APIToken(hash); return !ok && len(other.APITokens()) == 0 })
	for _, e := range must(c.Events(ctx, 0))(t) {
		if strings.Contains(e.Before+e.After, hash) || strings.Contains(e.Before+e.After, rec.Hash) {
			t.Errorf("a token's hash is in the audit log: %+v", e)
		}
	}
}

func testEvents(t *testing.T, open opener) {
	ctx := t.Context()
	c, other := open(t, Options{EventsMax: 50}), open(t, Options{})
	for i := range 3 {
		if err := c.AppendEvent(WithActor(ctx, "me"), Event{Action: "test", Object: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	got := must(other.Events(ctx, 2))(t)
	if len(got) != 2 || got[0].Object != "1" || got[1].Object != "2" || got[0].Actor != "me" || got[1].Rev <= got[0].Rev || got[0].Time.IsZero() {
		t.Errorf("Events: %+v", got)
	}
	// From a revision on: what is there, then what comes.
	done := errors.New("done")
	seen := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- other.WatchEvents(ctx, got[0].Rev, func(e Event) error {
			seen <- e.Object
			if e.Object == "last" {
				return done
			}
			return nil
		})
	}()
	if o := <-seen; o != "2" {
		t.Errorf("first watched: %s, want 2", o)
	}
	if err := c.AppendEvent(ctx, Event{Action: "test", Object: "last"}); err != nil {
		t.Fatal(err)
	}
	if o := <-seen; o != "last" {
		t.Errorf("next watched: %s", o)
	}
	wantErr(t, "WatchEvents", <-ended, done)

	for i := range 60 {
		if err := c.AppendEvent(ctx, Event{Action: "test", Object: fmt.Sprint("more", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.trim(ctx); err != nil {
		t.Fatal(err)
	}
	all := must(c.Events(ctx, 0))(t)
	if len(all) != 50 || all[49].Object != "more59" || all[0].Object != "more10" {
		t.Errorf("after trimming: %d events", len(all))
	}
	wantErr(t, "an event without an action", c.AppendEvent(ctx, Event{}), ErrInvalid)
	ended2 := make(chan error, 1)
	go func() { ended2 <- other.WatchEvents(context.Background(), 1<<40, func(Event) error { return nil }) }()
	_ = other.Close()
	wantErr(t, "WatchEvents of a closed client", <-ended2, ErrClosed)
}

func testNewerFormats(t *testing.T, open opener) {
	ctx := t.Context()
	c := open(t, Options{})
	a, _, _ := setup(t, c)
	v := must(c.CreateVolume(ctx, testVolume("v"), []ident.SiteID{a.ID}))(t)
	newer := []byte(`{"v":2,"spec":{"colour":"blue"}}`)
	if _, err := c.kv.commit(ctx, txn{ops: []op{{key: keyVolume(v.ID), value: newer}}}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RenameVolume(ctx, v.ID, "w")
	wantErr(t, "a change to what a newer node wrote", err, ErrNewerFormat)
	if got, ok := c.Volume(v.ID); !ok || got.Name != "v" {
		t.Errorf("what was known is kept: %+v, %v", got, ok)
	}
	if k, ok := c.kv.(levelled).kv.(memKV); ok { // a new client refuses to start, whatever the implementation
		_, err := k.m.Open(ctx, Options{})
		wantErr(t, "opening", err, ErrNewerFormat)
		if err != nil && !strings.Contains(err.Error(), "upgrade this node") {
			t.Errorf("the message says nothing to do: %v", err)
		}
	}
}
