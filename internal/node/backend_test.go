package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access/iscsi"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
	"dozo/internal/trouble"
	"dozo/internal/wire"
)

// bench is a node that has a control store in memory and a CA, and no parts beside.
type bench struct {
	*backend
	ctl *control.Client
	ca  *pki.CA
	ctx context.Context
	mem *control.Mem
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(control.WithActor(context.Background(), "tester"), 30*time.Second)
	t.Cleanup(cancel)
	ca, err := pki.NewCA(pki.NewClusterID(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ca.IssueLocal(pki.Grant{Name: "n1", Role: pki.RoleNode, IPs: []netip.Addr{testNet(21)}, Lifetime: pki.NodeLifetime}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Node, cfg.StateDir, cfg.Control.External = "n1", dir, true
	cfg.Control.Endpoints = []config.Endpoint{{Addr: testNet(29), Port: 2379}}
	cfg.TLS.CAFile, cfg.TLS.CAKeyFile = filepath.Join(dir, pki.CAFile), filepath.Join(dir, pki.CAKeyFile)
	n := &Node{cfg: cfg, log: slog.New(slog.DiscardHandler), started: time.Now(), book: trouble.NewBook()}
	if n.id, err = pki.NewIdentity(ca.CertPEM(), own); err != nil {
		t.Fatal(err)
	}
	mem := control.NewMem()
	ctl, err := mem.Open(ctx, control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.wg.Wait()
		if err := ctl.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{&backend{n}, ctl, ca, ctx, mem}
	if _, err := b.ListHosts(ctx, &dozov1.ListHostsRequest{}); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("before the control store is reached: %v", err)
	}
	n.ctl.Store(ctl)
	n.setState("ready")
	if _, err := ctl.InitCluster(ctx, control.Cluster{ID: ca.ClusterID(), Name: "test"}); err != nil {
		t.Fatal(err)
	}
	site, err := ctl.CreateSite(ctx, control.Site{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []ident.NodeName{"n1", "n2"} {
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(testNet(byte(21+i)), port) }
		x, err := ctl.RegisterNode(ctx, control.Node{Name: name, Site: site.ID, HostID: "h" + string(name), Roles: []control.Role{control.RoleCore, control.RoleAccess},
			Addrs:  control.Addrs{Cluster: at(7071), Wan: at(7071), Management: at(7070), Portals: []control.Portal{{Addr: at(3260)}}},
			Stores: []control.StoreSpec{{ID: ident.NewStoreID(), Label: "disk0", CapacityBytes: 1 << 30}}})
		if err != nil {
			t.Fatal(err)
		}
		if name == "n1" {
			n.self.Store(&x)
		}
	}
	return b
}

func TestHosts(t *testing.T) {
	b := newBench(t)
	h, err := b.AddHost(b.ctx, &dozov1.AddHostRequest{Tenant: "default", Name: "h", InitiatorNames: []string{"iqn.2026-01.x:a"}, Cidrs: []string{"10.0.0.0/8"},
		Chap: &dozov1.ChapCredentials{InUser: "u", InSecret: "0123456789ab", OutUser: "o", OutSecret: "ba9876543210"}})
	if err != nil || h.Auth != "mutual" || h.Cidrs[0] != "10.0.0.0/8" || strings.Contains(h.String(), "0123456789ab") {
		t.Fatalf("%v, %v", h, err)
	}
	if _, err := b.AddHost(b.ctx, &dozov1.AddHostRequest{Tenant: "default", Name: "h", InitiatorNames: []string{"iqn.2026-01.x:b"}}); !errors.Is(err, control.ErrExists) {
		t.Errorf("again: %v", err)
	}
	stored, _ := b.ctl.Host("default", "h")
	if stored.CHAP.InSecret.Reveal() != "0123456789ab" || stored.CHAP.OutSecret.Reveal() != "ba9876543210" {
		t.Error("the secrets did not arrive")
	}
	if h, err = b.SetHostChap(b.ctx, &dozov1.SetChapRequest{Tenant: "default", Host: "h", Chap: &dozov1.ChapCredentials{InUser: "u", InSecret: "0123456789ab"}}); err != nil || h.Auth != "chap" {
		t.Errorf("%v, %v", h, err)
	}
	if h, err = b.SetHostChap(b.ctx, &dozov1.SetChapRequest{Tenant: "default", Host: "h"}); err != nil || h.Auth != "none" {
		t.Errorf("%v, %v", h, err)
	}
	if d, err := b.Discovery(b.ctx); err != nil || d.Auth != "none" {
		t.Errorf("%v, %v", d, err)
	}
	if d, err := b.SetDiscovery(b.ctx, &dozov1.SetDiscoveryRequest{Chap: &dozov1.ChapCredentials{InUser: "u", InSecret: "0123456789ab"}}); err != nil || d.Auth != "chap" || d.ChapInUser != "u" {
		t.Errorf("%v, %v", d, err)
	}
	if got := b.ctl.Discovery(); got.InSecret.Reveal() != "0123456789ab" {
		t.Error("the secret of discovery did not arrive")
	}
	if d, err := b.SetDiscovery(b.ctx, &dozov1.SetDiscoveryRequest{}); err != nil || d.Auth != "none" {
		t.Errorf("%v, %v", d, err)
	}
	if l, err := b.ListHosts(b.ctx, &dozov1.ListHostsRequest{Tenant: "other"}); err != nil || len(l) != 0 {
		t.Errorf("%v, %v", l, err)
	}
	if err := b.DeleteHost(b.ctx, &dozov1.DeleteHostRequest{Tenant: "default", Host: "h"}); err != nil {
		t.Error(err)
	}
	if err := b.DeleteHost(b.ctx, &dozov1.DeleteHostRequest{Tenant: "default", Host: "h"}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("deleting what is gone: %v", err)
	}
}

func TestNodesAndSites(t *testing.T) {
	b := newBench(t)
	if _, err := b.CreateSite(b.ctx, &dozov1.CreateSiteRequest{Name: "b", Cidrs: []string{"10.2.0.0/16"}}); err != nil {
		t.Fatal(err)
	}
	// n2 does not run: nobody listens at its address.
	list, err := b.ListNodes(b.ctx, &dozov1.ListNodesRequest{Site: "a"})
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if list[0].State != nodeUp || list[0].Pid == 0 || list[1].State != nodeDown || list[1].Pid != 0 || list[1].Stores[0].State != storeUnknown {
		t.Errorf("%v", list)
	}
	if _, err := b.ListNodes(b.ctx, &dozov1.ListNodesRequest{Site: "nowhere"}); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("nodes of no site: %v", err)
	}
	if own, err := b.ListNodes(b.ctx, &dozov1.ListNodesRequest{Local: true}); err != nil || len(own) != 1 || own[0].Name != "n1" {
		t.Errorf("%v, %v", own, err)
	}
	sites, err := b.ListSites(b.ctx, &dozov1.ListSitesRequest{})
	if err != nil || len(sites) != 2 || sites[0].Name != "a" || sites[0].Nodes != 2 || sites[0].NodesUp != 1 || sites[1].Cidrs[0] != "10.2.0.0/16" {
		t.Errorf("%v, %v", sites, err)
	}
	st, err := b.Status(b.ctx, &dozov1.StatusRequest{})
	if err != nil || st.Health != healthDegraded || len(st.Problems) != 1 || st.Problems[0].Reason != problemNodeDown || st.Problems[0].Object != "node/n2" || st.NodesUp != 1 {
		t.Errorf("%v, %v", st, err)
	}
	sessions, unheard, err := b.ListSessions(b.ctx, &dozov1.ListSessionsRequest{})
	if err != nil || len(sessions) != 0 || !slices.Equal(unheard, []string{"n2"}) {
		t.Errorf("sessions %v, unheard %v, %v", sessions, unheard, err)
	}
	for _, id := range []string{"", "x", "n1-1-abc", "n9-1-abc"} {
		if _, err := b.KillSession(b.ctx, &dozov1.KillSessionRequest{Id: id}); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("killing session %q: %v", id, err)
		}
	}
}

func TestRemoveNode(t *testing.T) {
	b := newBench(t)
	remove := func(name string, force bool) error {
		return b.RemoveNode(b.ctx, &dozov1.RemoveNodeRequest{Node: name, Force: force})
	}
	if err := remove("n1", true); !errors.Is(err, api.ErrRefused) {
		t.Errorf("removing the node that is asked: %v", err)
	}
	site, _ := b.ctl.SiteByName("a")
	v, err := b.ctl.CreateVolume(b.ctx, control.VolumeSpec{Name: "v", SizeBytes: 1 << 20, Sites: 1, AtSite: site.ID}, []ident.SiteID{site.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := remove("n2", false); !errors.Is(err, control.ErrInUse) || !strings.Contains(err.Error(), "default/v") {
		t.Errorf("removing a node whose replicas are needed: %v", err)
	}
	if _, err := b.ctl.DeleteVolume(b.ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if err := recordIssue(b.ctx, b.ctl, "n2", issuedCert{"0abc", time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := remove("n2", false); err != nil {
		t.Fatal(err)
	}
	if !b.ctl.Revoked("0abc") {
		t.Error("the removed node's certificate counts still")
	}
	if err := remove("n2", false); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestJoinAndRenew(t *testing.T) {
	b := newBench(t)
	token := func(node, role string, ttl time.Duration) string {
		t.Helper()
		r, err := b.CreateJoinToken(b.ctx, &dozov1.CreateJoinTokenRequest{Node: node, Role: role, Ttl: durationpb.New(ttl)})
		if err != nil {
			t.Fatal(err)
		}
		return r.Token
	}
	csr, key, err := pki.NewRequest("n3")
	if err != nil {
		t.Fatal(err)
	}
	join := func(token, node string) (*dozov1.JoinResponse, error) {
		return b.Join(b.ctx, &dozov1.JoinRequest{Token: token, Node: node, Csr: csr, Addresses: []string{"10.0.0.3"}, VoterPeer: "10.0.0.3:7073"})
	}
	tok := token("n3", "witness", time.Hour)
	r, err := join(tok, "n3")
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(r.Ca, append(slices.Clone(r.Certificate), key...))
	if err != nil || id.Self().Name != "n3" || id.Self().Role != pki.RoleWitness || r.ClusterName != "test" || len(r.ControlEndpoints) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := join(tok, "n3"); !errors.Is(err, pki.ErrBadToken) {
		t.Errorf("token used twice: %v", err)
	}
	tok = token("n4", "node", time.Hour)
	if _, err := join(tok, "n3"); !errors.Is(err, pki.ErrBadToken) {
		t.Errorf("token of another node: %v", err)
	}
	if _, err := b.Join(b.ctx, &dozov1.JoinRequest{Token: tok, Node: "n4", Csr: csr, Addresses: []string{"nowhere"}}); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("a bad address: %v", err)
	}
	if _, err := join(tok, "n4"); err != nil {
		t.Errorf("a token that was only used in vain: %v", err)
	}
	if _, err := join(token("", "node", time.Nanosecond), "n5"); !errors.Is(err, pki.ErrBadToken) {
		t.Errorf("expired token: %v", err)
	}
	if _, err := join(token("", "node", time.Hour), "n2"); !errors.Is(err, control.ErrExists) {
		t.Errorf("name of another node: %v", err)
	}
	if _, err := join(token("n2", "node", time.Hour), "n2"); err != nil {
		t.Errorf("joining again under the own name: %v", err)
	}
	if certs, err := issuedTo(b.ctx, b.ctl, "n3"); err != nil || len(certs) != 1 || certs[0].Serial != id.Self().Serial {
		t.Errorf("certificates in the audit log: %v, %v", certs, err)
	}

	// Users renew nothing; the node's own certificate is renewed by the key that is here.
	if _, err := b.Renew(b.ctx, &dozov1.RenewRequest{Csr: csr}); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("renewal for nobody: %v", err)
	}
	chain, err := b.n.signOwn(b.ctx, csr)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := leafOf(chain); err != nil || time.Until(cert.Expires) < 300*24*time.Hour {
		t.Errorf("%v, %v", cert, err)
	}
	b.n.noteCertificate(b.ctx)
	b.n.noteCertificate(b.ctx)
	if certs, err := issuedTo(b.ctx, b.ctl, "n1"); err != nil || len(certs) != 1 {
		t.Errorf("own certificate in the audit log: %v, %v", certs, err)
	}

	// Without the key, and with nobody who has it.
	b.n.cfg.TLS.CAKeyFile = ""
	if _, err := b.n.signOwn(b.ctx, csr); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("signing without the CA's key: %v", err)
	}
	if _, err := join(token("", "node", time.Hour), "n6"); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("joining without the CA's key: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	b := newBench(t)
	revoke := func(node, serial string) (*dozov1.RevokeResponse, error) {
		return b.Revoke(b.ctx, &dozov1.RevokeRequest{Node: node, Serial: serial, Reason: "test"})
	}
	if r, err := revoke("", "AB:CD"); err != nil || !b.ctl.Revoked(strings.Repeat("0", 28)+"abcd") || len(r.Serials) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := revoke("", "xyz"); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("no serial number: %v", err)
	}
	if _, err := revoke("n2", ""); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("a node of which no certificate is known: %v", err)
	}
	for _, c := range []issuedCert{{"01", time.Now().Add(time.Hour)}, {"02", time.Now().Add(-time.Hour)}, {"03", time.Now().Add(time.Hour)}} {
		if err := recordIssue(b.ctx, b.ctl, "n2", c); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := revoke("n2", ""); err != nil || !slices.Equal(r.Serials, []string{"01", "03"}) || !b.ctl.Revoked("01") || b.ctl.Revoked("02") {
		t.Errorf("%v, %v", r, err)
	}
	i := slices.IndexFunc(b.ctl.Revocations(), func(r pki.Revocation) bool { return r.Serial == "01" })
	if r := b.ctl.Revocations()[i]; r.By != "tester" || r.Reason != "test" || r.Subject != "n2" {
		t.Errorf("%+v", r)
	}
}

func TestEvents(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		if err := b.ctl.AppendEvent(b.ctx, control.Event{Action: "test", Object: fmt.Sprint(i), Time: time.Now().Add(time.Duration(i) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(req *dozov1.EventsRequest) (out []*dozov1.Event) {
		t.Helper()
		if err := b.Events(b.ctx, req, func(e *dozov1.Event) error { out = append(out, e); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := list(&dozov1.EventsRequest{})
	if n := len(all); n < 8 || all[n-1].Object != "4" || all[n-1].Actor != "tester" {
		t.Fatalf("%v", all)
	}
	if l := list(&dozov1.EventsRequest{Limit: 2}); len(l) != 2 || l[0].Object != "3" {
		t.Errorf("the newest two: %v", l)
	}
	if l := list(&dozov1.EventsRequest{AfterRevision: all[len(all)-2].Revision}); len(l) != 1 || l[0].Object != "4" {
		t.Errorf("after the last but one: %v", l)
	}
	if l := list(&dozov1.EventsRequest{Since: timestamppb.New(time.Now().Add(90 * time.Minute))}); len(l) != 3 {
		t.Errorf("since: %v", l)
	}
	// Follow gives what is there, then what comes, and none twice.
	enough := errors.New("enough")
	var got []string
	err := b.Events(b.ctx, &dozov1.EventsRequest{Follow: true, Limit: 1}, func(e *dozov1.Event) error {
		if got = append(got, e.Object); len(got) == 1 {
			return b.ctl.AppendEvent(b.ctx, control.Event{Action: "test", Object: "new"})
		}
		return enough
	})
	if !errors.Is(err, enough) || !slices.Equal(got, []string{"4", "new"}) {
		t.Errorf("followed %v, %v", got, err)
	}
}

func TestTokens(t *testing.T) {
	b := newBench(t)
	_, rec, err := pki.NewAPIToken("x", pki.RoleViewer, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CreateAPIToken(b.ctx, rec); err != nil {
		t.Fatal(err)
	}
	if err := b.CreateAPIToken(b.ctx, rec); !errors.Is(err, control.ErrExists) {
		t.Errorf("again: %v", err)
	}
	if got, ok, err := b.APIToken(rec.Hash); err != nil || !ok || got.Name != "x" {
		t.Errorf("%v, %v", got, ok)
	}
	if l, err := b.ListAPITokens(b.ctx); err != nil || len(l) != 1 {
		t.Errorf("%v, %v", l, err)
	}
	if err := b.DeleteAPIToken(b.ctx, "x"); err != nil {
		t.Error(err)
	}
	if _, ok, err := b.APIToken(rec.Hash); err != nil || ok {
		t.Error("a deleted token is known still")
	}
	// Before the control store was reached nobody knows, and nobody is told that a token does not count.
	b.n.ctl.Store(nil)
	if _, ok, err := b.APIToken(rec.Hash); ok || !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("without the control store: %v, %v", ok, err)
	}
}

func TestProblems(t *testing.T) {
	// A node that runs for a while, and one that has just started.
	old, young := &backend{&Node{started: time.Now().Add(-time.Hour)}}, &backend{&Node{started: time.Now()}}
	up := func(since time.Duration) []*dozov1.Node {
		return []*dozov1.Node{{Name: "n1", State: nodeUp, Started: timestamppb.New(time.Now().Add(-since))}}
	}
	owned := control.JournalState{Owner: "n1"}
	v := control.VolumeSpec{Tenant: "t", Name: "v", Created: time.Now().Add(-time.Hour)}
	fresh := v
	fresh.Created = time.Now()
	for _, c := range []struct {
		what    string
		got     []problem
		reasons []string
		health  string
	}{
		{"nothing", nil, nil, healthOK},
		{"a new volume", old.silentOwner(fresh, control.JournalState{}, nil, nil), nil, healthOK},
		{"no owner", old.silentOwner(v, control.JournalState{Epoch: ident.Epoch{Number: 1}}, nil, nil), []string{problemVolumeWaiting}, healthCritical},
		{"never used", old.silentOwner(v, control.JournalState{}, nil, nil), nil, healthOK},
		{"owner away", old.silentOwner(v, owned, nil, []string{"n1"}), []string{problemVolumeFailed}, healthCritical},
		{"owner without the journal", old.silentOwner(v, owned, up(time.Hour), nil), []string{problemVolumeWaiting}, healthCritical},
		{"owner that has just started", old.silentOwner(v, owned, up(time.Second), nil), []string{problemVolumeStarting}, healthDegraded},
		{"owner that is starting", old.silentOwner(v, owned, []*dozov1.Node{{Name: "n1", State: nodeStarting}}, []string{"n1"}), []string{problemVolumeStarting}, healthDegraded},
		{"this node has just started", young.silentOwner(v, owned, nil, []string{"n1"}), []string{problemVolumeStarting}, healthDegraded},
		{"recovering", volumeProblems(&dozov1.VolumeStatus{State: "recovering"}, &wire.JournalStatus{Recovering: uint64(2 * time.Second)}), []string{problemVolumeStarting}, healthDegraded},
		{"recovering for long", volumeProblems(&dozov1.VolumeStatus{State: "recovering"}, &wire.JournalStatus{Recovering: uint64(time.Minute), State: "recovering: why"}),
			[]string{problemVolumeWaiting}, healthCritical},
		{"waiting", volumeProblems(&dozov1.VolumeStatus{State: "waiting"}, &wire.JournalStatus{}), []string{problemVolumeWaiting}, healthCritical},
		{"degraded", volumeProblems(&dozov1.VolumeStatus{State: "serving", Protection: "degraded"}, &wire.JournalStatus{}), []string{problemVolumeDegraded}, healthDegraded},
		{"lag of a burst", volumeProblems(&dozov1.VolumeStatus{State: "serving", Copies: []*dozov1.SiteCopy{{State: "behind", LagSeconds: 2}}}, &wire.JournalStatus{}), nil, healthOK},
		{"lag", volumeProblems(&dozov1.VolumeStatus{State: "serving", Copies: []*dozov1.SiteCopy{{State: "behind", LagSeconds: 60}}}, &wire.JournalStatus{}), []string{problemVolumeBehind}, healthDegraded},
		{"loss", volumeProblems(&dozov1.VolumeStatus{State: "serving", LostRecords: 3}, &wire.JournalStatus{}), []string{problemUnproven}, healthDegraded},
		{"ports refused", volumeProblems(&dozov1.VolumeStatus{State: "serving", PortsRefused: 2}, &wire.JournalStatus{}), []string{problemUnproven}, healthCritical},
		{"fork", volumeProblems(&dozov1.VolumeStatus{State: "serving", ForkSegments: 1, ForkBytes: 9}, &wire.JournalStatus{}), []string{problemVolumeDiverged}, healthDegraded},
		{"site away", volumeProblems(&dozov1.VolumeStatus{State: "serving", Copies: []*dozov1.SiteCopy{{State: "away"}}}, &wire.JournalStatus{}), []string{problemVolumeBehind}, healthDegraded},
	} {
		var reasons []string
		var got []*dozov1.Problem
		for _, p := range c.got {
			reasons, got = append(reasons, p.Reason), append(got, p.Problem)
		}
		if !slices.Equal(reasons, c.reasons) || healthOf(got) != c.health {
			t.Errorf("%s: %v, %s", c.what, got, healthOf(got))
		}
	}
	out := &dozov1.StatusResponse{Control: &dozov1.ControlStatus{}}
	found := addNodes(out, []*dozov1.Node{{Name: "a1", Site: "a", State: nodeUp, Voter: true, Stores: []*dozov1.NodeStore{{State: storeFailed, CapacityBytes: 5, UsedBytes: 1}, {State: storeFull, CapacityBytes: 5, UsedBytes: 5}}},
		{Name: "b1", Site: "b", State: nodeDown}, {Name: "b2", Site: "b", State: nodeUnknown}, {Name: "w", State: nodeStarting}}, newSpaces(nil))
	var reasons []string
	for _, p := range found {
		reasons = append(reasons, p.Reason)
	}
	if want := []string{problemStoreFailed, problemStoreFull, problemNodeDown, problemNodeDown, problemNodeDown, problemSiteAway}; !slices.Equal(reasons, want) {
		t.Errorf("%v, want %v", reasons, want)
	}
	if out.CapacityBytes != 10 || out.UsedBytes != 6 || out.NodesUp != 1 || !slices.Equal(out.Control.Voters, []string{"a1"}) {
		t.Errorf("%v", out)
	}
}

func TestSessionIDs(t *testing.T) {
	at := time.Unix(1700000000, 5)
	id := sessionID("a-b-1", iscsi.SessionInfo{TSIH: 7, Opened: at})
	if n, ok := sessionNode(id); !ok || n != "a-b-1" {
		t.Errorf("%s: %s, %v", id, n, ok)
	}
	if other := sessionID("a-b-1", iscsi.SessionInfo{TSIH: 7, Opened: at.Add(time.Nanosecond)}); other == id {
		t.Error("two sessions of one ID")
	}
}

func TestExternal(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.NewCA(pki.NewClusterID(), "etcd", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	c := config.Control{Endpoints: []config.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Port: 2379}, {Addr: netip.MustParseAddr("fd00::1"), Port: 2379}}}
	if conf, err := externalTLS(c); conf != nil || err != nil {
		t.Errorf("%v, %v", conf, err)
	}
	if got := externalURLs(c, false); !slices.Equal(got, []string{"http://10.0.0.1:2379", "http://[fd00::1]:2379"}) {
		t.Errorf("%v", got)
	}
	c.CAFile = filepath.Join(dir, pki.CAFile)
	if conf, err := externalTLS(c); err != nil || conf.RootCAs == nil {
		t.Errorf("%v, %v", conf, err)
	}
	if got := externalURLs(c, true)[0]; got != "https://10.0.0.1:2379" {
		t.Error(got)
	}
	c.CAFile = filepath.Join(dir, pki.CAKeyFile)
	if _, err := externalTLS(c); err == nil {
		t.Error("a key was taken for a CA certificate")
	}
	c.CAFile, c.CertFile, c.KeyFile = "", filepath.Join(dir, "none"), filepath.Join(dir, "none")
	if _, err := externalTLS(c); err == nil {
		t.Error("certificate files that are not there were taken")
	}
}

// Stores that share a file system have its space once; those with a limit of their own, no more than that.
func TestSharedSpaceCountsOnce(t *testing.T) {
	facts := map[ident.StoreID]storeFacts{}
	store := func(boot byte, fs, total uint64) string {
		id := ident.NewStoreID()
		facts[id] = storeFacts{StoreBlocks: wire.StoreBlocks{FileSystem: fs, FileSystemBytes: total}, boot: ident.BootID{boot}}
		return id.String()
	}
	for _, c := range []struct {
		what string
		adds [][2]any // store, capacity
		want uint64
	}{
		{"one file system", [][2]any{{store(1, 7, 100), 100}, {store(1, 7, 100), 100}, {store(1, 7, 100), 100}}, 100},
		{"two of one host", [][2]any{{store(1, 7, 100), 100}, {store(1, 8, 50), 50}}, 150},
		{"the same number at two hosts", [][2]any{{store(1, 7, 100), 100}, {store(2, 7, 100), 100}}, 200},
		{"limits of their own", [][2]any{{store(1, 7, 100), 30}, {store(1, 7, 100), 30}}, 60},
		{"limits that are more than there is", [][2]any{{store(1, 7, 100), 80}, {store(1, 7, 100), 80}}, 100},
		{"nothing is known", [][2]any{{ident.NewStoreID().String(), 10}, {ident.NewStoreID().String(), 10}}, 20},
	} {
		s, sum := newSpaces(facts), uint64(0)
		for _, a := range c.adds {
			sum += s.add(a[0].(string), uint64(a[1].(int)))
		}
		if sum != c.want {
			t.Errorf("%s: %d, want %d", c.what, sum, c.want)
		}
	}
}

// TestNoAccessServer: a node without an access server says whom to ask for what one does.
func TestNoAccessServer(t *testing.T) {
	b := newBench(t) // whose node has no parts yet, and registers some with access servers
	if _, err := b.accessServer(); !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), "such as n") || !strings.Contains(err.Error(), "--endpoint https://") {
		t.Errorf("%v", err)
	}
}
