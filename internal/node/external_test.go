package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/initiator"
	"dozo/internal/pki"
)

// externalEtcd runs an etcd that is not the cluster's: with a CA of its own, which gives dozo a client certificate.
// It changes a node's configuration so that the node uses it.
func externalEtcd(t *testing.T, addr netip.Addr) (etcd *control.Embedded, use func(*config.Config)) {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.NewCA(pki.NewClusterID(), "etcd", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"ca.crt": ca.CertPEM()}
	for name, ips := range map[string][]netip.Addr{"etcd": {addr}, "client": nil} {
		if files[name+".pem"], err = ca.IssueLocal(pki.Grant{Name: name, Role: pki.RoleNode, IPs: ips, Lifetime: time.Hour}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id, err := pki.Load(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "etcd.pem"))
	if err != nil {
		t.Fatal(err)
	}
	tls, err := id.Etcd(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "crl.pem"))
	if err != nil {
		t.Fatal(err)
	}
	peer := netip.AddrPortFrom(addr, 2380)
	etcd, err = control.StartEmbedded(t.Context(), control.EmbeddedConfig{Name: "etcd", Dir: filepath.Join(dir, "data"), ListenPeer: peer,
		ListenClient: netip.AddrPortFrom(addr, 2379), Initial: []control.VoterAddr{{Name: "etcd", Peer: peer}}, ClusterID: id.ClusterID(), TLS: tls})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	return etcd, func(c *config.Config) {
		c.Control = config.Control{External: true, Endpoints: []config.Endpoint{{Addr: addr, Port: 2379}}, Prefix: "/shared/dozo/",
			CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.pem")}
	}
}

// TestExternalControlStore runs a cluster whose control store is somebody else's etcd, takes that away, and goes on.
func TestExternalControlStore(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a cluster")
	}
	tc := newTestCluster(t)
	ipv6 := freeIPv6()
	etcd, use := externalEtcd(t, testNet(21))
	ca, err := pki.NewCA(pki.NewClusterID(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"n1", "n2"} {
		addr := testNet(byte(22 + i))
		x := tc.configure(name, addr, func(c *config.Config) {
			use(c)
			if name == "n2" && ipv6.IsValid() {
				c.Portals = []config.Endpoint{{Addr: addr, Port: config.PortISCSI}, {Addr: ipv6.Addr(), Port: ipv6.Port()}}
			}
		})
		own, err := ca.IssueLocal(pki.Grant{Name: name, Role: pki.RoleNode, IPs: []netip.Addr{addr}, Lifetime: pki.NodeLifetime}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string][]byte{x.cfg.TLS.NodeFile: own, x.cfg.TLS.CAFile: ca.CertPEM()} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		tc.start(x, Serve)
	}
	n1, n2 := tc.nodes["n1"], tc.nodes["n2"]
	c1, c2 := tc.ready(n1), tc.ready(n2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := c1.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "web1", SizeBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume is not served", func() error {
		s, err := c2.Cluster.Status(ctx, &dozov1.StatusRequest{})
		if err == nil && (s.Health != healthOK || len(s.Volumes) != 1 || s.Volumes[0].State != "serving" || !s.Control.External || !s.Control.Connected || len(s.Control.Voters) != 0) {
			err = fmt.Errorf("%v", s)
		}
		return err
	})
	// Of two portals the last is used: an IPv6 one, where the machine has that.
	portal := n2.cfg.Portals[len(n2.cfg.Portals)-1].String()
	// n1 may hear later than n2 that their connection stands, and calls n2's portals down until then.
	eventually(t, "no URL of portal "+portal, func() error {
		targets, err := c1.Volumes.Targets(ctx, &dozov1.VolumeTargetsRequest{Volume: "web1"})
		if err == nil && !slices.ContainsFunc(targets.Targets, func(x *dozov1.Target) bool { return x.Url == "iscsi://"+portal+"/"+v.Volume.Iqn+"/0" && x.Up }) {
			err = fmt.Errorf("%v", targets)
		}
		return err
	})
	found, err := initiator.Discover(ctx, initiator.Config{Portal: portal})
	if err != nil || len(found) != 1 || !slices.ContainsFunc(found[0].Addresses, func(a initiator.PortalAddress) bool { return a.Addr == portal }) {
		t.Errorf("discovered at %s: %+v, %v", portal, found, err)
	}
	s, err := initiator.Dial(ctx, initiator.Config{Portal: portal, Target: v.Volume.Iqn, RetryLimit: 1000}) // BUSY is asked again (R9)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	disk, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(0))
	if err != nil {
		t.Fatal(err)
	}
	write := func(b byte) {
		t.Helper()
		if err := disk.WriteAt(ctx, bytes.Repeat([]byte{b}, 4096), 4096, true); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	for _, x := range []*testNode{n1, n2} {
		for _, name := range []string{controlDir, votersFile} {
			if _, err := os.Stat(filepath.Join(x.cfg.StateDir, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of %s, which has no voter: %v", name, x.cfg.Node, err)
			}
		}
	}

	_ = etcd.Close()
	eventually(t, "that the control store is away is not said", func() error {
		s, err := c1.Cluster.Status(ctx, &dozov1.StatusRequest{})
		if err == nil && (s.Control.Connected || len(s.Problems) == 0 || s.Problems[0].Reason != problemControlAway || s.Health != healthDegraded) {
			err = fmt.Errorf("%v", s)
		}
		return err
	})
	write(2)
	got := make([]byte, 4096)
	if err := disk.ReadAt(ctx, got, 4096); err != nil || got[0] != 2 {
		t.Errorf("read without the control store: %d, %v", got[0], err)
	}
}

// freeIPv6 is a port of ::1 that nobody uses, invalid where the machine has no IPv6.
func freeIPv6() netip.AddrPort {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return netip.AddrPort{}
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}
