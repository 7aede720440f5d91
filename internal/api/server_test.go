package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/goleak"

	"dozo/internal/api"
	"dozo/internal/api/apitest"
	"dozo/internal/api/dozov1"
	"dozo/internal/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server with its CA.
type world struct {
	t      *testing.T
	ca     *pki.CA
	b      *apitest.Backend
	srv    *api.Server
	url    string
	socket string
	log    *lockedBuffer
	revoke sync.Map // serial -> true
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, b: apitest.New(), log: &lockedBuffer{}}
	var err error
	if w.ca, err = pki.NewCA(pki.NewClusterID(), "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	id := w.identity("s1n1", pki.RoleNode)
	revoked := func(serial string) bool { _, ok := w.revoke.Load(serial); return ok }
	reg := prometheus.NewRegistry()
	w.srv = api.NewServer(api.Options{
		Node: "s1n1", Backend: w.b, Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Peer:       func(cs tls.ConnectionState) (pki.Peer, error) { return id.Check(cs, revoked) },
		Registerer: reg, Metrics: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}),
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.url = "https://" + ln.Addr().String()
	w.socket = filepath.Join(t.TempDir(), "api.sock")
	sock, err := api.ListenSocket(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.srv.Serve(ln, id.APIServer(revoked)); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := w.srv.ServeSocket(sock); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		_ = w.srv.Close()
		wg.Wait()
	})
	return w
}

func (w *world) identity(name string, role pki.Role) *pki.Identity {
	w.t.Helper()
	g := pki.Grant{Name: name, Role: role, Lifetime: time.Hour}
	if role.IsNode() {
		g.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	text, err := w.ca.IssueLocal(g, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := pki.NewIdentity(w.ca.CertPEM(), text)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) dial(o api.ClientOptions) *api.Client {
	w.t.Helper()
	if o.Endpoints == nil {
		o.Endpoints = []string{w.url}
	}
	if o.TLS == nil {
		conf, err := pki.APIClientWithoutCert(w.ca.CertPEM())
		if err != nil {
			w.t.Fatal(err)
		}
		o.TLS = conf
	}
	c, err := api.Dial(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) token(name string, role pki.Role) *api.Client {
	return w.dial(api.ClientOptions{Token: w.b.AddToken(name, role, 0, time.Now())})
}

func code(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

func TestRolesDecideWhatMayBeCalled(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	calls := []struct {
		name string
		need pki.Role
		call func(*api.Client) error
	}{
		{"list volumes", pki.RoleViewer, func(c *api.Client) error {
			_, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{})
			return err
		}},
		{"kill session", pki.RoleOperator, func(c *api.Client) error {
			_, err := c.Sessions.Kill(ctx, &dozov1.KillSessionRequest{Id: "none"})
			return err
		}},
		{"list tokens", pki.RoleAdmin, func(c *api.Client) error {
			_, err := c.Cluster.ListTokens(ctx, &dozov1.ListTokensRequest{})
			return err
		}},
		{"follow events", pki.RoleViewer, func(c *api.Client) error {
			s, err := c.Cluster.Events(ctx, &dozov1.EventsRequest{})
			if err != nil {
				return err
			}
			for s.Receive() {
				continue
			}
			return errors.Join(s.Err(), s.Close())
		}},
	}
	clients := map[pki.Role]*api.Client{}
	for _, r := range []pki.Role{pki.RoleViewer, pki.RoleOperator, pki.RoleAdmin} {
		clients[r] = w.token(string(r), r)
	}
	anonymous := w.dial(api.ClientOptions{})
	node := w.dial(api.ClientOptions{TLS: w.identity("s2n1", pki.RoleNode).APIClient()})
	socket := w.dial(api.ClientOptions{Endpoints: []string{"unix://" + w.socket}})
	for _, c := range calls {
		for r, client := range clients {
			err := c.call(client)
			if refused := code(err) == connect.CodePermissionDenied; refused == r.Allows(c.need) {
				t.Errorf("%s as %s: %v", c.name, r, err)
			}
		}
		if err := c.call(anonymous); code(err) != connect.CodeUnauthenticated || api.Reason(err) != "UNAUTHENTICATED" {
			t.Errorf("%s as nobody: %v, reason %s", c.name, err, api.Reason(err))
		}
		for who, client := range map[string]*api.Client{"node": node, "socket": socket} {
			if got := code(c.call(client)); got != 0 && got != connect.CodeNotFound {
				t.Errorf("%s by %s: %v", c.name, who, got)
			}
		}
	}
	// What only nodes may.
	csr, _, err := pki.NewRequest("s2n1")
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := node.Nodes.Renew(ctx, &dozov1.RenewRequest{Csr: csr}); err != nil || string(resp.GetCertificate()) != "s2n1" {
		t.Errorf("renew by a node: %v", err)
	}
	if _, err := clients[pki.RoleAdmin].Nodes.Renew(ctx, &dozov1.RenewRequest{Csr: csr}); code(err) != connect.CodePermissionDenied {
		t.Errorf("renew by an admin: %v", err)
	}
	// What needs no more than what is in the request.
	tok, _, err := pki.NewJoinToken(w.ca.Fingerprint(), pki.RoleNode, "", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	join := &dozov1.JoinRequest{Token: tok.String(), Node: "s9n1", Csr: csr, Addresses: []string{"127.0.9.1"}}
	if _, err := anonymous.Nodes.Join(ctx, join); code(err) != connect.CodeUnauthenticated || api.Reason(err) != "BAD_TOKEN" {
		t.Errorf("join with an unknown token: %v, reason %s", err, api.Reason(err))
	}
}

func TestCredentialsThatDoNotCount(t *testing.T) {
	w := newWorld(t)
	call := func(c *api.Client) error {
		_, err := c.Cluster.Version(t.Context(), &dozov1.VersionRequest{})
		return err
	}
	expired := w.dial(api.ClientOptions{Token: w.b.AddToken("old", pki.RoleAdmin, time.Hour, time.Now().Add(-2*time.Hour))})
	if err := call(expired); code(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	if err := call(w.dial(api.ClientOptions{Token: "nonsense"})); code(err) != connect.CodeUnauthenticated || api.Reason(err) != "BAD_TOKEN" {
		t.Errorf("nonsense: %v", err)
	}
	// A wrong token beside a good certificate is an error: the caller meant it.
	id := w.identity("root", pki.RoleAdmin)
	if err := call(w.dial(api.ClientOptions{TLS: id.APIClient(), Token: "nonsense"})); code(err) != connect.CodeUnauthenticated {
		t.Errorf("wrong token, good certificate: %v", err)
	}
	c := w.dial(api.ClientOptions{TLS: id.APIClient()})
	if err := call(c); err != nil {
		t.Errorf("certificate: %v", err)
	}
	// Revoked while the connection is open.
	w.revoke.Store(id.Self().Serial, true)
	if err := call(c); code(err) != connect.CodeUnauthenticated {
		t.Errorf("revoked on an open connection: %v", err)
	}
	if err := call(w.dial(api.ClientOptions{TLS: id.APIClient()})); err == nil {
		t.Error("revoked on a new connection: called all the same")
	}
	// A CA of its own.
	other, err := pki.NewCA(pki.NewClusterID(), "other", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	conf, err := pki.APIClientWithoutCert(other.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	if err := call(w.dial(api.ClientOptions{TLS: conf})); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("a server of another cluster: %v", err)
	}
}

func TestRevokedTokenEndsAStream(t *testing.T) {
	w := newWorld(t)
	admin, viewer := w.token("root", pki.RoleAdmin), w.token("watcher", pki.RoleViewer)
	s, err := viewer.Cluster.Events(t.Context(), &dozov1.EventsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := admin.Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "a", SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || s.Msg().GetAction() != "volume.create" || s.Msg().GetActor() != "root" {
		t.Fatalf("%v, %v", s.Msg(), s.Err())
	}
	if _, err := admin.Cluster.RevokeToken(t.Context(), &dozov1.RevokeTokenRequest{Name: "watcher"}); err != nil {
		t.Fatal(err)
	}
	if s.Receive() || code(s.Err()) != connect.CodeUnauthenticated {
		t.Errorf("after the token was revoked: %v, %v", s.Msg(), s.Err())
	}
}

func TestAuditAndLogKnowWhoAndNoSecrets(t *testing.T) {
	w := newWorld(t)
	op, viewer := w.token("alice", pki.RoleOperator), w.token("bob", pki.RoleViewer)
	ctx := t.Context()
	const secret = "correct-horse-battery"
	if _, err := op.Hosts.Add(ctx, &dozov1.AddHostRequest{Name: "hv1", InitiatorNames: []string{"iqn.2026-01.x:a"}, Chap: &dozov1.ChapCredentials{InUser: "hv1", InSecret: secret}}); err != nil {
		t.Fatal(err)
	}
	if _, err := viewer.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "web1"}); code(err) != connect.CodePermissionDenied {
		t.Fatal(err)
	}
	if _, err := op.Hosts.List(ctx, &dozov1.ListHostsRequest{}); err != nil {
		t.Fatal(err)
	}
	// A stranger leaves nothing in the audit log.
	if _, err := w.dial(api.ClientOptions{}).Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "web1"}); code(err) != connect.CodeUnauthenticated {
		t.Fatal(err)
	}
	log := w.b.AuditLog()
	if len(log) != 2 {
		t.Fatalf("%d records: %+v", len(log), log)
	}
	if r := log[0]; r.Caller.Actor() != "alice" || r.Action != "host.add" || r.Object != "host/default/hv1" || r.Err != nil {
		t.Errorf("%+v", r)
	}
	if r := log[1]; r.Caller.Actor() != "bob" || r.Action != "volume.delete" || r.Object != "volume/default/web1" || !errors.Is(r.Err, api.ErrForbidden) {
		t.Errorf("%+v", r)
	}
	resp, err := w.token("root", pki.RoleAdmin).Cluster.CreateToken(ctx, &dozov1.CreateTokenRequest{Name: "new", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{secret, resp.GetSecret(), "dozo-api-"} {
		if strings.Contains(w.log.String(), s) {
			t.Errorf("the log has %q:\n%s", s, w.log)
		}
	}
	if !strings.Contains(w.log.String(), "caller=alice") {
		t.Errorf("the log does not say who:\n%s", w.log)
	}
	// A node that passes a call on names the user; from anybody else the name is not believed.
	for _, c := range []struct {
		role pki.Role
		want string
	}{{pki.RoleNode, "carol"}, {pki.RoleAdmin, "x"}} {
		id := w.identity("x", c.role)
		client := w.dial(api.ClientOptions{TLS: id.APIClient()})
		hctx, info := connect.NewClientContext(ctx)
		info.RequestHeader().Set(api.OnBehalfHeader, "carol")
		_, _ = client.Sessions.Kill(hctx, &dozov1.KillSessionRequest{Id: "1"})
		log = w.b.AuditLog()
		if got := log[len(log)-1].Caller.Actor(); got != c.want {
			t.Errorf("%s on behalf of carol: actor %s", c.role, got)
		}
	}
}

// Calls whose answer is a stream are in the audit log like all others: who was refused what, what failed, and that somebody has taken the
// secrets of the control store along.
func TestStreamsAreAudited(t *testing.T) {
	w := newWorld(t)
	w.b.Backup = []byte("backup")
	viewer, op, admin := w.token("bob", pki.RoleViewer), w.token("alice", pki.RoleOperator), w.token("root", pki.RoleAdmin)
	ctx := t.Context()
	end := func(stream interface {
		Receive() bool
		Err() error
		Close() error
	}, err error) connect.Code {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for stream.Receive() {
		}
		return code(stream.Err())
	}
	failover := &dozov1.FailoverSiteRequest{Site: "nowhere", Force: true}
	for _, c := range []struct {
		who  *api.Client
		want connect.Code
	}{{viewer, connect.CodePermissionDenied}, {op, connect.CodeNotFound}, {w.dial(api.ClientOptions{}), connect.CodeUnauthenticated}} {
		stream, err := c.who.Sites.Failover(ctx, failover)
		if got := end(stream, err); got != c.want {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
	backup, err := admin.Control.Backup(ctx, &dozov1.ControlBackupRequest{})
	if got := end(backup, err); got != 0 {
		t.Error(got)
	}
	wait, err := viewer.Volumes.Wait(ctx, &dozov1.WaitVolumeRequest{Volume: "nothing"}) // changes nothing
	if got := end(wait, err); got != connect.CodeNotFound {
		t.Error(got)
	}
	log := w.b.AuditLog()
	if len(log) != 3 { // a stranger leaves nothing
		t.Fatalf("%d records: %+v", len(log), log)
	}
	if r := log[0]; r.Caller.Actor() != "bob" || r.Action != "site.failover" || r.Object != "site/nowhere" || !errors.Is(r.Err, api.ErrForbidden) {
		t.Errorf("%+v", r)
	}
	if r := log[1]; r.Caller.Actor() != "alice" || r.Action != "site.failover" || r.Object != "site/nowhere" || r.Err == nil {
		t.Errorf("%+v", r)
	}
	if r := log[2]; r.Caller.Actor() != "root" || r.Action != "control.backup" || r.Object != "control" || r.Err != nil {
		t.Errorf("%+v", r)
	}
}

// curl is an HTTPS client that knows nothing of connect.
func (w *world) curl() *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.CertPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (w *world) do(c *http.Client, method, path, token, body string) (int, string, http.Header) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func TestJSONByCurl(t *testing.T) {
	w := newWorld(t)
	c := w.curl()
	token := w.b.AddToken("root", pki.RoleAdmin, 0, time.Now())
	status, text, h := w.do(c, "POST", "/dozo.v1.VolumeService/Create", token, `{"name": "web1", "size_bytes": 1073741824}`)
	if status != 200 || !strings.Contains(strings.ReplaceAll(text, " ", ""), `"size_bytes":"1073741824"`) || !strings.Contains(text, `"hosts":[]`) {
		t.Errorf("%d %s", status, text)
	}
	if h.Get("Content-Encoding") != "" {
		t.Error("compressed, though nobody asked for it")
	}
	status, text, _ = w.do(c, "POST", "/dozo.v1.VolumeService/Create", token, `{"name": "web2", "size_bytes": 1073741824, "durabilty": "sync"}`)
	if status != 400 || !strings.Contains(text, "durabilty") {
		t.Errorf("a misspelt field: %d %s", status, text)
	}
	status, text, _ = w.do(c, "POST", "/dozo.v1.VolumeService/Get", token, `{"volume": "nothing"}`)
	if status != 404 || !strings.Contains(text, `"NOT_FOUND"`) || !strings.Contains(text, "dozo.v1.ErrorInfo") {
		t.Errorf("not found: %d %s", status, text)
	}
	if status, text, _ = w.do(c, "POST", "/dozo.v1.VolumeService/List", "", "{}"); status != 401 {
		t.Errorf("nobody: %d %s", status, text)
	}
	if status, text, _ = w.do(c, "POST", "/dozo.v1.VolumeService/Create", token, `{"name": "`+strings.Repeat("x", 2<<20)+`"}`); status == 200 {
		t.Errorf("a request of 2 MiB: %d %s", status, text[:min(len(text), 200)])
	}
}

func TestHealthAndMetrics(t *testing.T) {
	w := newWorld(t)
	c := w.curl()
	if status, text, _ := w.do(c, "GET", "/healthz", "", ""); status != 200 || !strings.Contains(text, `"ready":true`) {
		t.Errorf("%d %s", status, text)
	}
	w.b.SetHealth(api.Health{State: "starting", Node: "s1n1", Problems: []string{"control store: no leader"}})
	if status, text, _ := w.do(c, "GET", "/healthz", "", ""); status != 503 || !strings.Contains(text, "no leader") {
		t.Errorf("%d %s", status, text)
	}
	if status, _, _ := w.do(c, "GET", "/metrics", "", ""); status != 401 {
		t.Errorf("metrics for nobody: %d", status)
	}
	token := w.b.AddToken("prom", pki.RoleViewer, 0, time.Now())
	w.do(c, "POST", "/dozo.v1.SiteService/List", token, "{}")
	status, text, _ := w.do(c, "GET", "/metrics", token, "")
	if status != 200 || !strings.Contains(text, `dozo_api_calls_total{code="ok",method="/dozo.v1.SiteService/List"} 1`) {
		t.Errorf("%d %s", status, text)
	}
	if status, _, _ := w.do(c, "GET", "/metrics", "nonsense", ""); status != 401 {
		t.Errorf("metrics with nonsense: %d", status)
	}
}

func TestProfilesAreForAdmins(t *testing.T) {
	w := newWorld(t)
	c := w.curl()
	for _, x := range []struct {
		token string
		want  int
	}{{"", 401}, {w.b.AddToken("v", pki.RoleViewer, 0, time.Now()), 403}, {w.b.AddToken("a", pki.RoleAdmin, 0, time.Now()), 200}} {
		if status, _, _ := w.do(c, "GET", "/debug/pprof/goroutine?debug=1", x.token, ""); status != x.want {
			t.Errorf("%d, want %d", status, x.want)
		}
	}
}

func TestClientGoesOnToTheNextEndpoint(t *testing.T) {
	w := newWorld(t)
	second := newWorld(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadURL := "https://" + dead.Addr().String()
	_ = dead.Close()

	// Nothing listens at the first: whatever is called goes to the second, once.
	token := w.b.AddToken("root", pki.RoleAdmin, 0, time.Now())
	c := w.dial(api.ClientOptions{Endpoints: []string{deadURL, w.url}, Token: token})
	if _, err := c.Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "a", SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	if n := len(w.b.AuditLog()); n != 1 {
		t.Errorf("%d calls arrived", n)
	}
	if c := w.dial(api.ClientOptions{Endpoints: []string{deadURL, deadURL}, Token: token}); true {
		_, err := c.Cluster.Version(t.Context(), &dozov1.VersionRequest{})
		if !errors.Is(err, api.ErrUnreachable) || strings.Count(err.Error(), deadURL) != 2 {
			t.Errorf("%v", err)
		}
	}

	// The first has done nothing yet: changing goes on to the other too.
	w.b.Hook = func(string) error { return fmt.Errorf("this node: %w", api.ErrNotReady) }
	third := newWorld(t)
	if _, err := w.dial(api.ClientOptions{Endpoints: []string{"unix://" + w.socket, "unix://" + third.socket}}).Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "b", SizeBytes: 4096}); err != nil || len(third.b.AuditLog()) != 1 {
		t.Errorf("create past a node that is not ready: %v, %d calls", err, len(third.b.AuditLog()))
	}

	// The first says that it can not: reading goes on to the other, changing does not.
	w.b.Hook = func(string) error { return api.ErrUnavailable }
	both := w.dial(api.ClientOptions{Endpoints: []string{"unix://" + w.socket, "unix://" + second.socket}})
	if _, err := both.Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "b", SizeBytes: 4096}); code(err) != connect.CodeUnavailable {
		t.Errorf("create: %v", err)
	}
	if len(second.b.AuditLog()) != 0 {
		t.Error("a call that may have been carried out was repeated")
	}
	if _, err := both.Volumes.List(t.Context(), &dozov1.ListVolumesRequest{}); err != nil {
		t.Errorf("list: %v", err)
	}
	// It stays with the one that answers.
	if _, err := both.Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "b", SizeBytes: 4096}); err != nil {
		t.Errorf("create at the other: %v", err)
	}
}

func TestCloseEndsStreams(t *testing.T) {
	w := newWorld(t)
	c := w.token("v", pki.RoleViewer)
	s, err := c.Cluster.Events(t.Context(), &dozov1.EventsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := w.srv.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if s.Receive() || s.Err() == nil {
		t.Errorf("the stream goes on: %v", s.Msg())
	}
	if err := w.srv.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestPanicIsAnErrorOfOneCall(t *testing.T) {
	w := newWorld(t)
	c := w.token("v", pki.RoleViewer)
	w.b.Hook = func(string) error { panic("oops") }
	if _, err := c.Volumes.List(t.Context(), &dozov1.ListVolumesRequest{}); code(err) != connect.CodeInternal {
		t.Errorf("%v", err)
	}
	w.b.Hook = nil
	if _, err := c.Volumes.List(t.Context(), &dozov1.ListVolumesRequest{}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestSocketIsItsOwnersOnly(t *testing.T) {
	w := newWorld(t)
	info, err := os.Stat(w.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := api.ListenSocket(w.socket); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second listener: %v", err)
	}
	// One that a dead process left is replaced.
	stale := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	again, err := api.ListenSocket(stale)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	if _, err := api.ListenSocket(filepath.Join(t.TempDir(), strings.Repeat("x", 120))); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("long path: %v", err)
	}
}

func TestDeadlineReachesTheBackend(t *testing.T) {
	w := newWorld(t)
	w.b.SetLag(-1)
	c := w.token("v", pki.RoleOperator)
	if _, err := c.Volumes.Create(t.Context(), &dozov1.CreateVolumeRequest{Name: "a", SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Volumes.Wait(ctx, &dozov1.WaitVolumeRequest{Volume: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || s.Msg().GetDone() {
		t.Fatalf("%v %v", s.Msg(), s.Err())
	}
	cancel()
	if s.Receive() || code(s.Err()) != connect.CodeCanceled {
		t.Errorf("%v", s.Err())
	}
	_ = s.Close()
	if s, err := c.Volumes.Wait(t.Context(), &dozov1.WaitVolumeRequest{Volume: "a", Condition: "paid"}); err == nil {
		if s.Receive() || code(s.Err()) != connect.CodeInvalidArgument {
			t.Errorf("%v", s.Err())
		}
		_ = s.Close()
	}
}

// TestTokenBeforeTheStoreIsReached: a node that has just started, and knows no token yet, is one to try another instead
// of, not one that says that a good token does not count.
func TestTokenBeforeTheStoreIsReached(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	token := w.b.AddToken("alice", pki.RoleViewer, 0, time.Now())
	c := w.dial(api.ClientOptions{Token: token})
	w.b.SetNoTokens(fmt.Errorf("not reached: %w", api.ErrUnavailable))
	if _, err := c.Volumes.List(ctx, &dozov1.ListVolumesRequest{}); code(err) != connect.CodeUnavailable {
		t.Errorf("a call: %v", err)
	}
	if status, text, _ := w.do(w.curl(), "GET", "/metrics", token, ""); status != 503 || strings.Contains(text, "revoked") {
		t.Errorf("metrics: %d %s", status, text)
	}
}
