package pki

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const testCluster = "00112233445566778899aabbccddeeff"

func newTestCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(testCluster, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, name string, role Role) *Identity {
	t.Helper()
	return issueAt(t, ca, name, role, time.Now(), NodeLifetime)
}

func issueAt(t *testing.T, ca *CA, name string, role Role, now time.Time, life time.Duration) *Identity {
	t.Helper()
	own, err := ca.IssueLocal(Grant{Name: name, Role: role, IPs: []netip.Addr{netip.MustParseAddr("127.0.1.1")}, Lifetime: life}, now)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(ca.CertPEM(), own)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// handshake connects the two in memory and returns what each end said, and the server's view.
func handshake(server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	sc, cc := net.Pipe()
	s, c := tls.Server(sc, server), tls.Client(cc, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if serverErr = s.Handshake(); serverErr == nil {
			_, serverErr = s.Write([]byte("x"))
		}
		state = s.ConnectionState()
		_ = sc.Close()
	}()
	if clientErr = c.Handshake(); clientErr == nil {
		// In TLS 1.3 a server's refusal of the client's certificate arrives with the first read.
		_, clientErr = c.Read(make([]byte, 1))
	}
	_ = cc.Close()
	<-done
	return state, serverErr, clientErr
}

func TestNodesTalkToEachOther(t *testing.T) {
	ca := newTestCA(t)
	a, b := issue(t, ca, "n1-1", RoleNode), issue(t, ca, "w", RoleWitness)
	st, serr, cerr := handshake(a.NodeServer(nil, "dozo/1"), b.NodeClient("n1-1", nil, "dozo/1"))
	if serr != nil || cerr != nil {
		t.Fatalf("handshake: server %v, client %v", serr, cerr)
	}
	if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != "dozo/1" {
		t.Errorf("version %x, protocol %q", st.Version, st.NegotiatedProtocol)
	}
	if p, err := a.Check(st, nil, RoleWitness); err != nil || p.Name != "w" || p.Role != RoleWitness {
		t.Errorf("Check = %+v, %v; want w, a witness", p, err)
	}
	if _, err := a.Check(st, nil, RoleAdmin); !errors.Is(err, ErrRole) {
		t.Errorf("Check for an admin = %v, want ErrRole", err)
	}
}

func TestRefusals(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	elsewhere, err := NewCA(NewClusterID(), "elsewhere", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	node, peer := issue(t, ca, "n1-1", RoleNode), issue(t, ca, "n2-1", RoleNode)
	user := issue(t, ca, "bob", RoleAdmin)
	foreign := issue(t, other, "n2-1", RoleNode)
	expired := issueAt(t, ca, "n3-1", RoleNode, time.Now().Add(-3*time.Hour), time.Hour)
	revoke := func(id *Identity) Revoked {
		serial := id.Self().Serial
		return func(s string) bool { return s == serial }
	}
	noCert := node.NodeClient("", nil)
	noCert.GetClientCertificate = nil
	old := peer.NodeClient("", nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	oldAPI := old.Clone()

	for _, c := range []struct {
		name           string
		server, client *tls.Config
		server1        error // what the server must say; nil: anything, but an error
		client1        error
	}{
		{"client without a certificate", node.NodeServer(nil), noCert, nil, nil},
		{"client of another CA of the same ID", node.NodeServer(nil), foreign.NodeClient("", nil), nil, nil},
		{"client of another cluster", node.NodeServer(nil), issue(t, elsewhere, "n2-1", RoleNode).NodeClient("", nil), nil, nil},
		{"server of another CA of the same ID", foreign.NodeServer(nil), node.NodeClient("", nil), nil, nil},
		{"a user where nodes talk", node.NodeServer(nil), user.APIClient(), ErrRole, nil},
		{"a user as a server", user.NodeServer(nil), node.NodeClient("", nil), nil, nil},
		{"revoked client", node.NodeServer(revoke(peer)), peer.NodeClient("", nil), ErrRevoked, nil},
		{"revoked server", node.NodeServer(nil), peer.NodeClient("", revoke(node)), nil, ErrRevoked},
		{"revoked user at the API", node.APIServer(revoke(user)), user.APIClient(), ErrRevoked, nil},
		{"expired client", node.NodeServer(nil), expired.NodeClient("", nil), nil, nil},
		{"expired server", expired.NodeServer(nil), node.NodeClient("", nil), nil, nil},
		{"another node than was dialled", node.NodeServer(nil), peer.NodeClient("n9-9", nil), nil, ErrName},
		{"TLS 1.2 between nodes", node.NodeServer(nil), old, nil, nil},
		{"TLS 1.2 at the API", node.APIServer(nil), oldAPI, nil, nil},
	} {
		_, serr, cerr := handshake(c.server, c.client)
		if serr == nil && c.client1 == nil {
			t.Errorf("%s: the server took it", c.name)
		}
		if cerr == nil {
			t.Errorf("%s: the client took it", c.name)
		}
		if c.server1 != nil && !errors.Is(serr, c.server1) {
			t.Errorf("%s: server said %v, want %v", c.name, serr, c.server1)
		}
		if c.client1 != nil && !errors.Is(cerr, c.client1) {
			t.Errorf("%s: client said %v, want %v", c.name, cerr, c.client1)
		}
	}
}

func TestAPITakesCertificateOrNone(t *testing.T) {
	ca := newTestCA(t)
	node, user := issue(t, ca, "n1-1", RoleNode), issue(t, ca, "bob", RoleViewer)
	st, serr, cerr := handshake(node.APIServer(nil), user.APIClient())
	if serr != nil || cerr != nil {
		t.Fatalf("with a certificate: %v, %v", serr, cerr)
	}
	if p, err := node.Check(st, nil); err != nil || p.Role != RoleViewer || p.Name != "bob" {
		t.Errorf("Check = %+v, %v", p, err)
	}
	bare, err := APIClientWithoutCert(ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	st, serr, cerr = handshake(node.APIServer(nil), bare)
	if serr != nil || cerr != nil {
		t.Fatalf("without: %v, %v", serr, cerr)
	}
	if _, err := node.Check(st, nil); !errors.Is(err, ErrNoPeerCert) {
		t.Errorf("Check without a certificate = %v, want ErrNoPeerCert", err)
	}
}

func TestRenewedCertificateIsUsedWithoutRestart(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	grant := Grant{Name: "n1-1", Role: RoleNode, Lifetime: time.Hour}
	own, err := ca.IssueLocal(grant, time.Now().Add(-3*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, NodeFile)
	if err := WriteFileAtomic(file, own); err != nil {
		t.Fatal(err)
	}
	node, err := Load(filepath.Join(dir, CAFile), file)
	if err != nil {
		t.Fatalf("an expired certificate must load, to be renewed: %v", err)
	}
	peer := issue(t, ca, "n2-1", RoleNode)
	server, client := node.NodeServer(nil), peer.NodeClient("n1-1", nil) // made before the renewal
	if _, _, cerr := handshake(server, client); cerr == nil {
		t.Fatal("an expired certificate was taken")
	}
	if !node.RenewAt().Before(time.Now()) {
		t.Errorf("RenewAt = %v, want the past", node.RenewAt())
	}
	fresh, err := ca.IssueLocal(grant, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Install(fresh); err != nil {
		t.Fatal(err)
	}
	if _, serr, cerr := handshake(server, client); serr != nil || cerr != nil {
		t.Fatalf("after Install: %v, %v", serr, cerr)
	}
	// The same by the file, as an operator would do it.
	again, err := ca.IssueLocal(grant, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFileAtomic(file, again); err != nil {
		t.Fatal(err)
	}
	was := node.Self().Serial
	if err := node.Reload(); err != nil {
		t.Fatal(err)
	}
	if node.Self().Serial == was {
		t.Error("Reload kept the old certificate")
	}
	// What is no certificate for this node is refused and changes nothing.
	wrong, _ := ca.IssueLocal(Grant{Name: "n5", Role: RoleNode, Lifetime: time.Hour}, time.Now())
	foreign, _ := newTestCA(t).IssueLocal(grant, time.Now())
	was = node.Self().Serial
	for name, text := range map[string][]byte{"another name": wrong, "another CA": foreign, "garbage": []byte("x")} {
		if err := node.Install(text); err == nil {
			t.Errorf("Install took a certificate of %s", name)
		}
	}
	if node.Self().Serial != was {
		t.Error("a refused Install changed the certificate")
	}
	onDisk, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(onDisk, again) {
		t.Errorf("a refused Install changed the file (%v)", err)
	}
}

func TestJoinClientVerifiesTheClusterByFingerprint(t *testing.T) {
	ca := newTestCA(t)
	node, user := issue(t, ca, "n1-1", RoleNode), issue(t, ca, "bob", RoleAdmin)
	var got []byte
	if _, serr, cerr := handshake(node.APIServer(nil), JoinClient(ca.Fingerprint(), func(b []byte) { got = b })); serr != nil || cerr != nil {
		t.Fatalf("join: %v, %v", serr, cerr)
	}
	if !bytes.Equal(got, ca.CertPEM()) {
		t.Error("JoinClient did not give the CA's certificate")
	}
	impostor := issue(t, newTestCA(t), "n1-1", RoleNode)
	if _, _, cerr := handshake(impostor.APIServer(nil), JoinClient(ca.Fingerprint(), nil)); !errors.Is(cerr, ErrFingerprint) {
		t.Errorf("impostor: %v, want ErrFingerprint", cerr)
	}
	// A chain that carries the true CA's certificate under a leaf that it never signed.
	mixed := *impostor.current.Load()
	mixed.Certificate = [][]byte{mixed.Certificate[0], ca.cert.Raw}
	impostor.current.Store(&mixed)
	if _, _, cerr := handshake(impostor.APIServer(nil), JoinClient(ca.Fingerprint(), nil)); !errors.Is(cerr, ErrForeign) {
		t.Errorf("impostor with the true CA attached: %v, want ErrForeign", cerr)
	}
	if _, _, cerr := handshake(user.APIServer(nil), JoinClient(ca.Fingerprint(), nil)); cerr == nil {
		t.Error("a user's certificate passed for a node's")
	}
}
