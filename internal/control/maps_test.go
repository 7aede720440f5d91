package control

import (
	"context"
	"errors"
	"testing"

	"dozo/internal/ident"
)

// TestMaps: no LUN of a host is two volumes, and a host that has a volume stays.
func TestMaps(t *testing.T) {
	ctx := context.Background()
	c, err := NewMem().Open(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.InitCluster(ctx, Cluster{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	site, err := c.CreateSite(ctx, Site{Name: "site-1"})
	if err != nil {
		t.Fatal(err)
	}
	var ids []ident.JournalID
	for _, name := range []string{"a", "b", "c"} {
		v, err := c.CreateVolume(ctx, VolumeSpec{Name: name, SizeBytes: 1 << 20}, []ident.SiteID{site.ID})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.ID)
	}
	for _, name := range []string{"esx1", "esx2"} {
		if _, err := c.CreateHost(ctx, Host{Name: name, InitiatorNames: []string{"iqn.2026-11.test:" + name}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		what string
		id   ident.JournalID
		host string
		lun  int
		want uint16
		err  error
	}{
		{"the lowest", ids[0], "esx1", -1, 0, nil},
		{"the same host again", ids[0], "esx1", 7, 0, ErrExists},
		{"a LUN that is taken", ids[1], "esx1", 0, 0, ErrExists},
		{"the same LUN of another host", ids[1], "esx2", 0, 0, nil},
		{"a LUN that is free", ids[1], "esx1", 2, 2, nil},
		{"the lowest that is free", ids[2], "esx1", -1, 1, nil},
		{"a host that is not there", ids[2], "esx3", -1, 0, ErrNotFound},
		{"a LUN that can not be", ids[2], "esx2", LUNMax + 1, 0, ErrInvalid},
	} {
		m, err := c.MapVolume(ctx, x.id, x.host, x.lun, false)
		if !errors.Is(err, x.err) || err == nil && (m.LUN != x.want || m.Host != x.host) {
			t.Errorf("%s: %+v, %v; want LUN %d, %v", x.what, m, err, x.want, x.err)
		}
	}
	if err := c.DeleteHost(ctx, "", "esx2"); !errors.Is(err, ErrInUse) {
		t.Errorf("a host with a volume was deleted: %v", err)
	}
	if m, err := c.UnmapVolume(ctx, ids[1], "esx2"); err != nil || m.LUN != 0 {
		t.Errorf("unmap: %+v, %v", m, err)
	}
	if _, err := c.UnmapVolume(ctx, ids[1], "esx2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unmapped twice: %v", err)
	}
	if err := c.DeleteHost(ctx, "", "esx2"); err != nil {
		t.Errorf("delete host: %v", err)
	}
	// The LUN of a volume that is deleted is free.
	if _, err := c.DeleteVolume(ctx, ids[0]); err != nil {
		t.Fatal(err)
	}
	if m, err := c.UnmapVolume(ctx, ids[2], "esx1"); err != nil || m.LUN != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := c.MapVolume(ctx, ids[2], "esx1", -1, true); err != nil || m.LUN != 0 || !m.ReadOnly {
		t.Errorf("%+v, %v", m, err)
	}
}
