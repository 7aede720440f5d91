package export

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"dozo/internal/access/iscsi"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// TestAllowed: who may use a volume, by name and by address, and is told of it by SendTargets with the portals of both
// address families.
func TestAllowed(t *testing.T) {
	ctx := t.Context()
	ctl, err := control.NewMem().Open(ctx, control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	if _, err := ctl.InitCluster(ctx, control.Cluster{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	site, err := ctl.CreateSite(ctx, control.Site{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	node := control.Node{Name: "n1", Site: site.ID, HostID: "h", Roles: []control.Role{control.RoleCore, control.RoleAccess}}
	for _, p := range []string{"10.1.0.1:3260", "[fd00:1::1]:3260"} {
		node.Addrs.Portals = append(node.Addrs.Portals, control.Portal{Addr: netip.MustParseAddrPort(p)})
	}
	if node, err = ctl.RegisterNode(ctx, node); err != nil {
		t.Fatal(err)
	}
	for _, h := range []control.Host{
		{Name: "named", InitiatorNames: []string{"iqn.2026-11.test:named"}},
		{Name: "both", InitiatorNames: []string{"iqn.2026-11.test:both"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:2::/64")}},
		{Name: "subnet", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}},
	} {
		if _, err := ctl.CreateHost(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	volumes := map[string]ident.JournalID{}
	for name, hosts := range map[string][]string{"all": nil, "some": {"named", "both"}, "net": {"subnet"}} {
		v, err := ctl.CreateVolume(ctx, control.VolumeSpec{Name: name, SizeBytes: 1 << 20, BlockSize: 512, Sites: 1, AtSite: site.ID, Hosts: hosts},
			[]ident.SiteID{site.ID})
		if err != nil {
			t.Fatal(err)
		}
		volumes[name] = v.ID
	}
	e := &Exports{ctl: ctl, node: "n1"}
	for _, x := range []struct {
		initiator, from string
		want            []string
	}{
		{"iqn.2026-11.test:stranger", "10.9.0.1", []string{"all"}},
		{"iqn.2026-11.test:stranger", "10.3.7.7", []string{"all", "net"}},
		{"iqn.2026-11.test:named", "10.9.0.1", []string{"all", "some"}},
		{"iqn.2026-11.test:named", "10.3.7.7", []string{"all", "some"}}, // a host by its name is no other one by its address
		{"iqn.2026-11.test:both", "10.2.0.1", []string{"all", "some"}},
		{"iqn.2026-11.test:both", "::ffff:10.2.0.1", []string{"all", "some"}},
		{"iqn.2026-11.test:both", "fd00:2::9", []string{"all", "some"}},
		{"iqn.2026-11.test:both", "10.9.0.1", nil}, // from elsewhere it is nobody
	} {
		p := iscsi.Peer{Initiator: x.initiator, Remote: netip.AddrPortFrom(netip.MustParseAddr(x.from), 4000)}
		var got []string
		for _, name := range []string{"all", "net", "some"} {
			v, _ := ctl.Volume(volumes[name])
			if e.allowed(p, v) {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s from %s: %v, want %v", x.initiator, x.from, got, x.want)
		}
		list, err := e.Targets(ctx, p)
		if err != nil || len(list) != len(x.want) {
			t.Errorf("%s from %s is told of %v, %v; want %v", x.initiator, x.from, list, err, x.want)
		}
		for _, target := range list {
			if want := []iscsi.Portal{{Address: "10.1.0.1:3260", Group: node.TPGT}, {Address: "[fd00:1::1]:3260", Group: node.TPGT}}; !slices.Equal(target.Portals, want) {
				t.Errorf("portals %v, want %v", target.Portals, want)
			}
		}
	}
	// A clone that is not complete is nobody's, at either target.
	part, err := ctl.CreateVolume(ctx, control.VolumeSpec{Name: "part", SizeBytes: 1 << 20, BlockSize: 512, Sites: 1, AtSite: site.ID, Cloning: &control.CloneOf{Volume: volumes["all"], Fork: "7"}},
		[]ident.SiteID{site.ID})
	if err != nil {
		t.Fatal(err)
	}
	named := iscsi.Peer{Initiator: "iqn.2026-11.test:named", Remote: netip.MustParseAddrPort("10.9.0.1:4000")}
	told := func() bool {
		list, err := e.Targets(ctx, named)
		return err == nil && slices.ContainsFunc(list, func(x iscsi.TargetInfo) bool { return x.Name == IQN(part.ID) })
	}
	if _, err := e.Login(ctx, named, IQN(part.ID), [6]byte{}); !errors.Is(err, iscsi.ErrNotAuthorized) || told() {
		t.Errorf("login at a clone that is not complete: %v, told of it: %v", err, told())
	}
	if _, err := ctl.MapVolume(ctx, part.ID, "named", -1, false); !errors.Is(err, control.ErrInUse) {
		t.Errorf("a clone that is not complete is mapped: %v", err)
	}
	if _, err := ctl.UpdateVolume(ctx, part.ID, func(v *control.VolumeSpec) error { v.SizeBytes *= 2; return nil }); !errors.Is(err, control.ErrInUse) {
		t.Errorf("a clone that is not complete is resized: %v", err)
	}
	if _, err := ctl.FinishClone(ctx, part.ID); err != nil || !told() {
		t.Errorf("complete: %v, told of it: %v", err, told())
	}
	// At the hosts' target a session is one host's, from wherever that may come.
	both, _ := ctl.Host(control.DefaultTenant, "both")
	hosts := &hostsTarget{session: &session{exp: e}, host: both}
	for _, x := range []struct {
		initiator, from string
		want            error
	}{
		{"iqn.2026-11.test:both", "10.2.0.1", nil},
		{"iqn.2026-11.test:both", "10.9.0.1", iscsi.ErrNotAuthorized},
		{"iqn.2026-11.test:named", "10.2.0.1", iscsi.ErrNotAuthorized},
	} {
		p := iscsi.Peer{Initiator: x.initiator, Remote: netip.AddrPortFrom(netip.MustParseAddr(x.from), 4000)}
		if err := hosts.Admits(p); !errors.Is(err, x.want) {
			t.Errorf("another connection of %s from %s: %v, want %v", x.initiator, x.from, err, x.want)
		}
	}
}
