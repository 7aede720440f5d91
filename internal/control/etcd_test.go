package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/version"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// voterKit makes voters on loopback with certificates of one CA.
type voterKit struct {
	ca    *pki.CA
	admin *pki.Identity // of a node that is no voter
	dir   string
}

func newVoterKit(t *testing.T) *voterKit {
	t.Helper()
	ca := must(pki.NewCA(pki.NewClusterID(), "test", time.Now()))(t)
	k := &voterKit{ca: ca, dir: t.TempDir()}
	if err := ca.Save(k.dir); err != nil {
		t.Fatal(err)
	}
	k.admin = k.identity(t, "client", pki.RoleNode)
	return k
}

func (k *voterKit) identity(t *testing.T, name string, role pki.Role) *pki.Identity {
	t.Helper()
	own := must(k.ca.IssueLocal(pki.Grant{Name: name, Role: role, Lifetime: time.Hour}, time.Now()))(t)
	file := filepath.Join(k.dir, name+".pem")
	if err := pki.WriteFileAtomic(file, own); err != nil {
		t.Fatal(err)
	}
	return must(pki.Load(filepath.Join(k.dir, pki.CAFile), file))(t)
}

// freePort finds one that nobody listens on. etcd wants to know its port before it listens, so that another
// process could take it in between; that is rare enough on loopback.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// config is of a voter; its certificate file is made if it is not there.
func (k *voterKit) config(t *testing.T, name string) EmbeddedConfig {
	t.Helper()
	id := k.identity(t, name, pki.RoleNode)
	files := must(id.Etcd(filepath.Join(k.dir, pki.CAFile), filepath.Join(k.dir, name+".crl")))(t)
	return EmbeddedConfig{
		Name: ident.NodeName(name), Dir: filepath.Join(k.dir, "control-"+name), ListenPeer: freePort(t), ListenClient: freePort(t),
		ClusterID: k.ca.ClusterID(), TLS: files, Log: testLog(),
	}
}

// testLog shows etcd's own messages where DOZO_TEST_LOG is set.
func testLog() *slog.Logger {
	if os.Getenv("DOZO_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (k *voterKit) etcd(id *pki.Identity, configs ...EmbeddedConfig) EtcdConfig {
	e := EtcdConfig{TLS: id.NodeClient("", nil)}
	for _, c := range configs {
		e.Endpoints = append(e.Endpoints, ClientURL(c.ListenClient))
	}
	return e
}

func start(t *testing.T, c EmbeddedConfig) *Embedded {
	t.Helper()
	e := must(StartEmbedded(t.Context(), c))(t)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func single(c EmbeddedConfig) EmbeddedConfig {
	c.Initial = []VoterAddr{{c.Name, c.ListenPeer}}
	return c
}

func TestEtcd(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	cfg := single(k.config(t, "v1"))
	start(t, cfg)
	for i, c := range contract {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, func(t *testing.T, o Options) *Client {
				t.Helper()
				e := k.etcd(k.admin, cfg)
				e.Prefix = fmt.Sprintf("/test%d/", i) // a store of its own
				o.Log = testLog()
				if o.Timeout == 0 {
					o.Timeout = time.Minute // the machine may be slow; none of this is about that
				}
				cl := must(OpenEtcd(t.Context(), e, o))(t)
				t.Cleanup(func() { _ = cl.Close() })
				return cl
			})
		})
	}

	t.Run("watches survive compaction", func(t *testing.T) {
		e := k.etcd(k.admin, cfg)
		e.Prefix = "/compaction/"
		c := must(OpenEtcd(t.Context(), e, Options{Timeout: time.Minute}))(t)
		defer c.Close()
		must(c.InitCluster(t.Context(), Cluster{Name: "test"}))(t)
		kv, _ := c.etcd()
		_, rev := must2(kv.get(t.Context(), keyCluster))(t)
		must(kv.cli.Compact(t.Context(), int64(rev)))(t)
		err := kv.watch(t.Context(), "", rev-3, func([]change, Rev) error { return nil })
		wantErr(t, "a watch from before the compaction", err, errCompacted)
	})

	t.Run("users and strangers are kept out", func(t *testing.T) {
		other := newVoterKit(t)
		for name, id := range map[string]*pki.Identity{
			"an admin's certificate": k.identity(t, "bob", pki.RoleAdmin), "a node of another cluster": other.admin,
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			c, err := OpenEtcd(ctx, k.etcd(id, cfg), Options{})
			cancel()
			if err == nil {
				t.Errorf("%s was let in", name)
				_ = c.Close()
			}
		}
		// A revoked node is refused as soon as the list says so.
		gone := k.identity(t, "gone", pki.RoleNode)
		open := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := OpenEtcd(ctx, k.etcd(gone, cfg), Options{})
			if err == nil {
				err = c.Close()
			}
			return err
		}
		if err := open(); err != nil {
			t.Fatal(err)
		}
		if err := pki.WriteCRL(cfg.TLS.CRLFile, []pki.Revocation{{Serial: gone.Self().Serial, At: time.Now()}}, time.Now()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if c, err := OpenEtcd(ctx, k.etcd(gone, cfg), Options{}); err == nil {
			t.Error("a revoked node was let in")
			_ = c.Close()
		}
	})
}

func must2[A, B any](a A, b B, err error) func(t *testing.T) (A, B) {
	return func(t *testing.T) (A, B) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
}

// Three voters come up at once, one dies, then all, and all restart.
func TestThreeVoters(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	var cfgs []EmbeddedConfig
	var initial []VoterAddr
	for _, name := range []string{"v1", "v2", "v3"} {
		c := k.config(t, name)
		cfgs = append(cfgs, c)
		initial = append(initial, VoterAddr{c.Name, c.ListenPeer})
	}
	startAll := func() []*Embedded {
		began := time.Now()
		type result struct {
			i   int
			e   *Embedded
			err error
		}
		results := make(chan result)
		for i := range cfgs {
			cfgs[i].Initial = initial
			go func() {
				e, err := StartEmbedded(t.Context(), cfgs[i])
				results <- result{i, e, err}
			}()
		}
		out := make([]*Embedded, len(cfgs))
		for range cfgs {
			r := <-results
			if r.err != nil {
				t.Fatal(r.err)
			}
			out[r.i] = r.e
			t.Cleanup(func() { _ = r.e.Close() })
		}
		t.Logf("three voters are up after %v", time.Since(began).Round(time.Millisecond))
		return out
	}
	voters := startAll()
	ctx := t.Context()
	c := must(OpenEtcd(ctx, k.etcd(k.admin, cfgs...), Options{Log: testLog(), Timeout: time.Minute}))(t)
	a, _, _ := setup(t, c)
	v := must(c.CreateVolume(ctx, testVolume("v1"), []ident.SiteID{a.ID}))(t)

	// One voter dies, the leader if it is the first: changes go on, cached reads never stopped.
	lead := max(slices.IndexFunc(voters, (*Embedded).Leads), 0)
	began := time.Now()
	_ = voters[lead].Close()
	t.Logf("closing the leader took %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	must(c.CreateVolume(ctx, testVolume("v2"), []ident.SiteID{a.ID}))(t)
	t.Logf("a change after the leader's death took %v", time.Since(began).Round(time.Millisecond))

	// All die: no majority, no changes, but everything that was known.
	began = time.Now()
	for _, e := range voters {
		_ = e.Close()
	}
	t.Logf("closing the others took %v", time.Since(began).Round(time.Millisecond))
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	_, err := c.CreateVolume(short, testVolume("v3"), []ident.SiteID{a.ID})
	cancel()
	if !errors.Is(err, ErrAway) {
		t.Errorf("a change without a control store: %v", err)
	}
	if _, ok := c.VolumeByName("", "v2"); !ok {
		t.Error("cached reads ended with the control store")
	}
	if _, _, ok := c.Journal(v.ID); !ok {
		t.Error("the owner is not known any more")
	}
	startAll()
	must(c.CreateVolume(ctx, testVolume("v4"), []ident.SiteID{a.ID}))(t)

	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A second voter joins a control store that runs, gets its vote, and takes the place of the first.
func TestVoterJoinsAndLeaves(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	first := single(k.config(t, "v1"))
	old := start(t, first)
	ctx := t.Context()
	c := must(OpenEtcd(ctx, k.etcd(k.admin, first), Options{Log: testLog(), Timeout: time.Minute}))(t)
	a, _, _ := setup(t, c)
	admin := must(OpenAdmin(k.etcd(k.admin, first), testLog()))(t)
	defer admin.Close()
	j := k.config(t, "v4")
	j.Join = true
	j.Initial = must(admin.AddVoter(ctx, VoterAddr{j.Name, j.ListenPeer}))(t)
	if again := must(admin.AddVoter(ctx, VoterAddr{j.Name, j.ListenPeer}))(t); !slices.Equal(again, j.Initial) || len(again) != 2 {
		t.Errorf("AddVoter again: %v, first %v", again, j.Initial)
	}
	joined := start(t, j)
	oldURL, newURL := ClientURL(first.ListenClient), ClientURL(j.ListenClient)
	if urls := must(c.SyncVoters(ctx))(t); !slices.Equal(urls, []string{oldURL}) {
		t.Errorf("voters while one has no vote yet: %v", urls)
	}
	if err := admin.PromoteVoter(ctx, "v4"); err != nil {
		t.Fatal(err)
	}
	both := slices.Sorted(slices.Values([]string{oldURL, newURL}))
	if urls := must(c.SyncVoters(ctx))(t); !slices.Equal(urls, both) || !slices.Equal(slices.Sorted(slices.Values(c.Endpoints())), both) {
		t.Errorf("voters %v, and the client uses %v; want %v", urls, c.Endpoints(), both)
	}
	if err := admin.PromoteVoter(ctx, "v4"); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	_, err := admin.AddVoter(ctx, VoterAddr{"v4", freePort(t)})
	wantErr(t, "the same name at another address", err, ErrExists)
	// Who asks the voter that goes may hear that it has stopped; the other one knows that it is out.
	remover := must(OpenAdmin(k.etcd(k.admin, first, j), testLog()))(t)
	defer remover.Close()
	if err := remover.RemoveVoter(ctx, "v1"); err != nil {
		t.Fatal(err)
	}
	if err := <-old.Failed(); !strings.Contains(err.Error(), "removed") {
		t.Errorf("the removed voter failed with %v", err)
	}
	_ = old.Close()
	// The client has learnt of the one that is left while both were there.
	if urls := must(c.SyncVoters(ctx))(t); !slices.Equal(urls, []string{newURL}) {
		t.Errorf("voters when one has left: %v", urls)
	}
	admin = must(OpenAdmin(k.etcd(k.admin, j), testLog()))(t)
	defer admin.Close()
	wantErr(t, "removed again", admin.RemoveVoter(ctx, "v1"), ErrNotFound)
	have := must(admin.Voters(ctx))(t)
	if len(have) != 1 || slices.ContainsFunc(have, func(v Voter) bool { return v.Name == "v1" || v.Learner || !v.Started }) {
		t.Errorf("voters: %+v", have)
	}
	// It goes on by itself after a restart, without being told whom it belongs to.
	_ = joined.Close()
	j.Initial, j.Join = nil, false
	start(t, j)
	must(c.CreateVolume(ctx, testVolume("v5"), []ident.SiteID{a.ID}))(t)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestEmbeddedRefuses(t *testing.T) {
	k := newVoterKit(t)
	cfg := single(k.config(t, "v1"))
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := StartEmbedded(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "VERSION") {
		t.Errorf("data without a VERSION file: %v", err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "VERSION"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StartEmbedded(t.Context(), cfg)
	wantErr(t, "a newer directory", err, ErrNewerFormat)
	if err := os.WriteFile(filepath.Join(cfg.Dir, "VERSION"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartEmbedded(t.Context(), cfg); err == nil {
		t.Error("a VERSION file without a number was taken")
	}

	cfg = k.config(t, "v2")
	cfg.Initial = []VoterAddr{{"v1", cfg.ListenPeer}}
	_, err = StartEmbedded(t.Context(), cfg)
	wantErr(t, "a voter that is not in the list", err, ErrInvalid)
	cfg = single(cfg)
	cfg.TLS = pki.EtcdFiles{}
	_, err = StartEmbedded(t.Context(), cfg)
	wantErr(t, "a voter without certificates", err, ErrInvalid)

	// A port in use.
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	cfg = single(k.config(t, "v3"))
	cfg.ListenClient = netip.MustParseAddrPort(l.Addr().String())
	if _, err := StartEmbedded(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port in use: %v", err)
	}

	// Without the others there is no majority.
	cfg = k.config(t, "v4")
	cfg.Initial = []VoterAddr{{cfg.Name, cfg.ListenPeer}, {"v5", freePort(t)}}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := StartEmbedded(ctx, cfg); err == nil || !strings.Contains(err.Error(), "no majority") {
		t.Errorf("a voter without the others: %v", err)
	}
}

// A client that is connected when its certificate is revoked can do nothing any more, and hears nothing any more; others
// go on.
func TestRevokedClientIsCutOff(t *testing.T) {
	t.Parallel()
	k := newVoterKit(t)
	cfg := single(k.config(t, "v1"))
	stolen := k.identity(t, "stolen", pki.RoleNode)
	var revoked atomic.Pointer[string]
	cfg.Revoked = func(serial string) bool { r := revoked.Load(); return r != nil && *r == serial }
	start(t, cfg)
	ctx := t.Context()
	good := must(OpenEtcd(ctx, k.etcd(k.admin, cfg), Options{Log: testLog(), Timeout: time.Minute}))(t)
	defer good.Close()
	bad := must(OpenEtcd(ctx, k.etcd(stolen, cfg), Options{Log: testLog()}))(t)
	defer bad.Close()
	a, _, _ := setup(t, good)
	must(bad.CreateVolume(ctx, testVolume("v1"), []ident.SiteID{a.ID}))(t)
	serial := stolen.Self().Serial
	revoked.Store(&serial)
	if _, err := bad.CreateVolume(ctx, testVolume("v2"), []ident.SiteID{a.ID}); err == nil || !strings.Contains(err.Error(), "was revoked") {
		t.Errorf("a change with a revoked certificate: %v", err)
	}
	must(good.CreateVolume(ctx, testVolume("v3"), []ident.SiteID{a.ID}))(t)
	must(good.CreateVolume(ctx, testVolume("v4"), []ident.SiteID{a.ID}))(t)
	if _, ok := bad.VolumeByName("", "v4"); ok {
		t.Error("a client with a revoked certificate still hears of changes")
	}
}

// TestVotersSucceedALeaderThatIsGone: where the host of the leader says that its process has ended, the others elect one at once,
// long before they would miss it.
func TestVotersSucceedALeaderThatIsGone(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newVoterKit(t)
	var cfgs []EmbeddedConfig
	var initial []VoterAddr
	for _, name := range []string{"v1", "v2", "v3"} {
		c := k.config(t, name)
		c.Heartbeat, c.Election = 500*time.Millisecond, 10*time.Second // that the leader would be missed after, or up to twice that
		cfgs, initial = append(cfgs, c), append(initial, VoterAddr{c.Name, c.ListenPeer})
	}
	voters := make([]*Embedded, len(cfgs))
	var wg sync.WaitGroup
	for i, c := range cfgs {
		c.Initial = initial
		wg.Go(func() { voters[i], _ = StartEmbedded(t.Context(), c) })
	}
	wg.Wait()
	for _, e := range voters {
		if e == nil {
			t.Fatal("a voter has not started")
		}
		t.Cleanup(func() { _ = e.Close() })
	}
	lead := slices.IndexFunc(voters, (*Embedded).Leads)
	if lead < 0 {
		t.Fatal("nobody leads")
	}
	for _, e := range voters {
		e.NodeGone(cfgs[(lead+1)%3].Name, nil) // it does not lead: nothing comes of it
	}
	// A leader writes the cluster's version when it has heard all of the members, in its own time. A voter that does not have
	// the last record yet is not elected, and the one that has it is deaf.
	same := func(e *Embedded) bool {
		srv, first := e.etcd.Server, voters[0].etcd.Server
		v := srv.ClusterVersion()
		return v != nil && v.String() != version.MinClusterVersion && srv.AppliedIndex() == first.AppliedIndex()
	}
	for !same(voters[0]) || !same(voters[1]) || !same(voters[2]) {
		time.Sleep(10 * time.Millisecond)
	}
	// As by kill -9: it asks nobody to take its place.
	died := time.Now()
	voters[lead].etcd.Server.HardStop()
	// One of the others is deaf, as a witness is: the last one does not wait for it.
	hears, deaf := (lead+1)%3, cfgs[(lead+2)%3].Name
	voters[hears].NodeGone(cfgs[lead].Name, []ident.NodeName{deaf})
	next := func() int {
		return slices.IndexFunc(voters, func(e *Embedded) bool { return e != voters[lead] && e.Leads() })
	}
	for next() < 0 {
		if time.Since(died) > 45*time.Second {
			t.Fatal("nobody leads, though all know that the leader is gone")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := voters[next()].stood.Load(); n != 1 || next() != hears {
		t.Errorf("%s leads, and stood for election %d times; %s was told", cfgs[next()].Name, n, cfgs[hears].Name)
	}
	if voters[lead].stood.Load() != 0 {
		t.Error("the old leader stood for election")
	}
	t.Logf("a new leader after %v", time.Since(died).Round(time.Millisecond))
}
