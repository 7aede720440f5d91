package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dozo/internal/ident"
)

// testManyVolumes: the volumes of one transaction are made, and deleted, all or none.
func testManyVolumes(t *testing.T, open opener) {
	c := open(t, Options{})
	ctx := t.Context()
	must(c.InitCluster(ctx, Cluster{Name: "test"}))(t)
	site := must(c.CreateSite(ctx, Site{Name: "site-1"}))(t)
	sites := []ident.SiteID{site.ID}
	specs := func(first, n int) (list []VolumeSpec) {
		for i := range n {
			list = append(list, VolumeSpec{Name: fmt.Sprintf("v-%04d", first+i), SizeBytes: 1 << 30})
		}
		return list
	}
	made := must(c.CreateVolumes(ctx, specs(1, VolumesPerTxn), sites))(t)
	if len(made) != VolumesPerTxn || len(c.Volumes()) != VolumesPerTxn {
		t.Fatalf("%d made, %d are there", len(made), len(c.Volumes()))
	}
	one := must(c.CreateVolume(ctx, VolumeSpec{Name: "one", SizeBytes: 1 << 30}, sites))(t)
	for _, v := range made {
		got, ok := c.VolumeByName("", v.Name)
		if !ok || got.ID != v.ID || got.Validate() != nil {
			t.Errorf("%+v", got)
		}
		got.ID, got.Name, got.Created = one.ID, one.Name, one.Created
		if fmt.Sprint(got) != fmt.Sprint(one) {
			t.Errorf("%+v, made alone: %+v", got, one)
		}
		if st, _, ok := c.Journal(v.ID); !ok || st.Owner != "" || !slices.Equal(st.Sites, sites) {
			t.Errorf("%s: journal %+v", v.Name, st)
		}
	}
	// Again, as after an attempt whose outcome was not known.
	if again := must(c.CreateVolumes(ctx, made, sites))(t); len(again) != len(made) || len(c.Volumes()) != VolumesPerTxn+1 {
		t.Errorf("%d made again, %d are there", len(again), len(c.Volumes()))
	}
	// One name that is taken: none is made, also where the other client's cache does not tell.
	_, err := c.CreateVolumes(ctx, specs(VolumesPerTxn, 4), sites)
	if wantErr(t, "a name that is taken", err, ErrExists); !strings.Contains(err.Error(), made[VolumesPerTxn-1].Name) {
		t.Errorf("which one is there: %v", err)
	}
	for what, list := range map[string][]VolumeSpec{"one twice": append(specs(500, 2), specs(500, 1)...), "too many": specs(600, VolumesPerTxn+1),
		"two tenants": {{Name: "a", Tenant: "x", SizeBytes: 1 << 30}, {Name: "b", SizeBytes: 1 << 30}}, "one without a size": {{Name: "c", SizeBytes: 1 << 30}, {Name: "d"}}} {
		_, err := c.CreateVolumes(ctx, list, sites)
		wantErr(t, what, err, ErrInvalid)
	}
	_, err = c.CreateVolumes(ctx, specs(700, 3), []ident.SiteID{99})
	wantErr(t, "a site that is not there", err, ErrNotFound)
	_, err = c.CreateVolumes(ctx, []VolumeSpec{{Name: "e", SizeBytes: 1 << 30}, {Name: "f", SizeBytes: 1 << 30, Hosts: []string{"nobody"}}}, sites)
	wantErr(t, "a host that is not there", err, ErrNotFound)
	if n := len(c.Volumes()); n != VolumesPerTxn+1 {
		t.Errorf("%d volumes after changes that were refused", n)
	}

	ids := []ident.JournalID{made[0].ID, made[1].ID, made[0].ID}
	_, err = c.DeleteVolumes(ctx, append(slices.Clone(ids), ident.NewJournalID()), nil)
	wantErr(t, "one that is not there among them", err, ErrNotFound)
	if len(c.Tombstones()) != 0 {
		t.Error("deleted though one was not there")
	}
	for range 2 { // once more changes nothing
		gone := must(c.DeleteVolumes(ctx, ids, nil))(t)
		if len(gone) != 2 || gone[0].Deleted == nil || gone[1].Deleted == nil || len(c.Tombstones()) != 2 {
			t.Errorf("%+v, %d tombstones", gone, len(c.Tombstones()))
		}
	}
	if _, ok := c.VolumeByName("", made[0].Name); ok {
		t.Error("the name of a deleted volume is taken")
	}
	must(c.CreateVolumes(ctx, specs(1, 2), sites))(t)
	events := must(c.Events(ctx, 100))(t)
	create, remove := 0, 0
	for _, e := range events {
		switch e.Action {
		case "volume.create":
			create++
		case "volume.delete":
			remove++
		}
	}
	if create != 3 || remove != 1 {
		t.Errorf("%d and %d events of 3 and 1 changes", create, remove)
	}

	// A volume of which the cache is old is looked at again as it is now, and nothing is deleted where that is refused.
	host := must(c.CreateHost(ctx, Host{Name: "h", Tenant: one.Tenant, InitiatorNames: []string{"iqn.2026-01.x:h"}}))(t)
	c.cache.mu.RLock()
	old := c.cache.mu.volumes[one.ID]
	c.cache.mu.RUnlock()
	must(c.MapVolume(ctx, one.ID, host.Name, 0, false))(t)
	ageCache := func() {
		c.cache.mu.Lock()
		c.cache.mu.volumes[one.ID] = old
		c.cache.mu.Unlock()
	}
	ageCache()
	var seen []int
	unmapped := func(v VolumeSpec) error {
		if v.ID == one.ID {
			seen = append(seen, len(v.Maps))
		}
		if len(v.Maps) > 0 {
			return ErrInUse
		}
		return nil
	}
	_, err = c.DeleteVolumes(ctx, []ident.JournalID{made[5].ID, one.ID}, unmapped)
	wantErr(t, "one that was mapped meanwhile", err, ErrInUse)
	if seen[0] != 0 || seen[len(seen)-1] != 1 || len(c.Tombstones()) != 2 {
		t.Errorf("it was looked at with %v mappings; %d tombstones", seen, len(c.Tombstones()))
	}
	ageCache()
	if gone := must(c.DeleteVolumes(ctx, []ident.JournalID{one.ID}, nil))(t); len(gone) != 1 || len(gone[0].Maps) != 1 {
		t.Errorf("deleted as it was before: %+v", gone)
	}
}
