package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/initiator"
	"dozo/internal/pki"
	"dozo/internal/version"
)

// testNet is an address range of this test process: 127.77.x.0/24, above what dozo up takes, and another one for
// every process that runs at the same time.
func testNet(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 77, byte(100 + os.Getpid()%150), host})
}

// testCluster runs nodes in this process.
type testCluster struct {
	t     *testing.T
	dir   string
	nodes map[string]*testNode
}

type testNode struct {
	cfg  *config.Config
	path string
	stop context.CancelFunc
	done chan struct{}
	err  error
	log  *lockedBuffer
}

// lockedBuffer takes logs of several goroutines.
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

func newTestCluster(t *testing.T) *testCluster {
	// A unix socket's path is short; t.TempDir's may not be.
	dir, err := os.MkdirTemp("", "dozo-node-")
	if err != nil {
		t.Fatal(err)
	}
	tc := &testCluster{t: t, dir: dir, nodes: map[string]*testNode{}}
	t.Cleanup(func() {
		for name, x := range tc.nodes {
			if x.stop == nil {
				continue
			}
			x.stop()
			<-x.done
			if x.err != nil {
				t.Errorf("%s ended with %v", name, x.err)
			}
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, x.log)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return tc
}

// configure writes a node's configuration, with everything at one address.
func (tc *testCluster) configure(name string, addr netip.Addr, change func(*config.Config)) *testNode {
	tc.t.Helper()
	state := filepath.Join(tc.dir, name)
	if err := os.MkdirAll(state, 0o700); err != nil {
		tc.t.Fatal(err)
	}
	c := config.Default()
	c.Cluster.Name, c.Node, c.HostID = "test", ident.NodeName(name), "host-"+name
	c.Site = config.Site{Name: "a"}
	c.StateDir, c.Address = state, config.IP{Addr: addr}
	c.Stores = []config.Store{{Path: filepath.Join(state, "store"), Reserve: 1 << 20}}
	c.TLS.CAKeyFile = ""
	c.Limits.MapMemory, c.Limits.SegmentSize = 64<<20, 4<<20
	c.Timeouts.Lease = config.Duration(300 * time.Millisecond)
	change(c)
	text, err := c.Marshal()
	if err != nil {
		tc.t.Fatal(err)
	}
	x := &testNode{path: filepath.Join(state, "dozo.yaml"), log: &lockedBuffer{}}
	if err := os.WriteFile(x.path, text, 0o600); err != nil {
		tc.t.Fatal(err)
	}
	if x.cfg, err = config.Load(x.path); err != nil {
		tc.t.Fatal(err)
	}
	tc.nodes[name] = x
	return x
}

// start runs a node. It becomes ready by itself.
func (tc *testCluster) start(x *testNode, run func(context.Context, string, io.Writer) error) {
	ctx, stop := context.WithCancel(context.Background())
	x.stop, x.done = stop, make(chan struct{})
	go func() {
		defer close(x.done)
		x.err = run(ctx, x.path, x.log)
	}()
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// client speaks to a node over its unix socket, as the administrator of the host.
func (tc *testCluster) client(x *testNode) *api.Client {
	tc.t.Helper()
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + x.cfg.Socket}})
	if err != nil {
		tc.t.Fatal(err)
	}
	tc.t.Cleanup(c.Close)
	return c
}

func (tc *testCluster) ready(x *testNode) *api.Client {
	tc.t.Helper()
	c := tc.client(x)
	eventually(tc.t, "node "+string(x.cfg.Node)+" is not ready", func() error {
		select {
		case <-x.done:
			return fmt.Errorf("it ended: %w", x.err)
		default:
		}
		r, err := c.Health(context.Background())
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(r.Body)
			return fmt.Errorf("%s: %s", r.Status, text)
		}
		return nil
	})
	return c
}

// segmentFiles counts the files of segments below the cluster's stores.
func (tc *testCluster) segmentFiles() (n int) {
	for _, x := range tc.nodes {
		for _, s := range x.cfg.Stores {
			_ = filepath.WalkDir(filepath.Join(s.Path, "segments"), func(_ string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					n++
				}
				return nil
			})
		}
	}
	return n
}

// TestCluster runs two nodes and a witness, as a small site has them, and uses them as an operator and an
// initiator do.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a cluster")
	}
	tc := newTestCluster(t)
	ca, err := pki.NewCA(pki.NewClusterID(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[string]netip.Addr{"n1": testNet(1), "n2": testNet(2), "w": testNet(3)}
	for name, addr := range addrs {
		x := tc.configure(name, addr, func(c *config.Config) {
			c.Control = config.Control{Embedded: true}
			for voter, at := range addrs {
				c.Control.InitialCluster = append(c.Control.InitialCluster, config.Voter{Node: ident.NodeName(voter), Peer: config.Endpoint{Addr: at, Port: config.PortControlPeer}})
				c.Control.Endpoints = append(c.Control.Endpoints, config.Endpoint{Addr: at, Port: config.PortControlClient})
			}
			if name == "n1" {
				c.Portals = []config.Endpoint{{Addr: addr, Port: config.PortISCSI}, {Addr: addr, Port: config.PortISCSI + 1}}
			}
			if name == "w" {
				c.Roles, c.Site, c.Stores = []config.Role{config.RoleWitness}, config.Site{}, nil
			}
		})
		role := pki.RoleNode
		if name == "w" {
			role = pki.RoleWitness
		}
		own, err := ca.IssueLocal(pki.Grant{Name: name, Role: role, IPs: []netip.Addr{addr}, Lifetime: pki.NodeLifetime}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string][]byte{x.cfg.TLS.NodeFile: own, x.cfg.TLS.CAFile: ca.CertPEM()} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	n1, n2, w := tc.nodes["n1"], tc.nodes["n2"], tc.nodes["w"]
	tc.start(n1, Serve)
	tc.start(n2, Serve)
	tc.start(w, Witness)
	c1, c2, cw := tc.ready(n1), tc.ready(n2), tc.ready(w)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	nodes, err := cw.Nodes.List(ctx, &dozov1.ListNodesRequest{})
	if err != nil || len(nodes.Nodes) != 3 {
		t.Fatalf("nodes as the witness sees them: %v, %v", nodes, err)
	}
	for _, x := range nodes.Nodes {
		if x.State != nodeUp || x.Pid != int64(os.Getpid()) || x.Address != addrs[x.Name].String() || !x.Voter || x.Started == nil || x.Version != version.Get().Version || len(x.Roles) == 0 {
			t.Errorf("node %v", x)
		}
		if x.Name != "w" && (x.Site != "a" || len(x.Stores) != 1 || x.Stores[0].State != storeOK || x.Stores[0].Path == "" || x.Stores[0].CapacityBytes == 0) {
			t.Errorf("node %v", x)
		}
	}

	if _, err := c1.Hosts.Add(ctx, &dozov1.AddHostRequest{Name: "hv1", InitiatorNames: []string{initiator.DefaultInitiatorName}}); err != nil {
		t.Fatal(err)
	}
	v, err := c1.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "web1", SizeBytes: 64 << 20, Hosts: []string{"hv1"}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume is not served", func() error {
		s, err := cw.Cluster.Status(ctx, &dozov1.StatusRequest{}) // the witness has to ask another node
		if err != nil {
			return err
		}
		if len(s.Volumes) != 1 || s.Volumes[0].State != "serving" || s.NodesUp != 3 || s.Health != healthOK || len(s.Control.Voters) != 3 || !s.Control.Connected {
			return fmt.Errorf("%v", s)
		}
		if s.Node == "w" || s.Volumes[0].CommitSeq == 0 || len(s.Volumes[0].Copies) != 1 || s.CapacityBytes == 0 {
			return fmt.Errorf("%v", s)
		}
		return nil
	})

	// An initiator at the other node writes; n1 knows of the session, and ends it there.
	s, err := initiator.Dial(ctx, initiator.Config{Portal: n2.cfg.Portals[0].String(), Target: v.Volume.Iqn})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	disk, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.WriteAt(ctx, bytes.Repeat([]byte{7}, 64<<10), 4096, true); err != nil {
		t.Fatal(err)
	}
	checkPlacement(t, ctx, c1)
	// With n2's store gone there would be one copy of everything, and a takeover could be sure of it; the witness can not tell.
	var id string
	for _, x := range nodes.Nodes {
		if x.Name == "n2" {
			id = x.Stores[0].Id
		}
	}
	for _, name := range []string{"n2", "n2/disk0", id} {
		if r, err := c1.Stores.Loss(ctx, &dozov1.StoreLossRequest{Stores: []string{name}}); err != nil || len(r.Stores) != 1 || r.Stores[0].Node != "n2" || r.Volumes != 1 || len(r.Hit) != 1 ||
			r.Hit[0].Volume != "web1" || r.Hit[0].SingleSegments == 0 || r.Hit[0].LostSegments != 0 || r.Hit[0].LostRecords != 0 || r.Hit[0].Unproven || len(r.Unheard) != 0 || len(r.Notes) != 1 {
			t.Errorf("what the loss of %s means: %v, %v", name, r, err)
		}
	}
	if r, err := c2.Stores.Loss(ctx, &dozov1.StoreLossRequest{Stores: []string{"n1", "n2"}}); err != nil || len(r.Hit) != 1 || r.Hit[0].LostSegments == 0 || r.Hit[0].SingleSegments != 0 || !r.Hit[0].Unproven {
		t.Errorf("what the loss of everything means: %v, %v", r, err)
	}
	if _, err := c1.Stores.Loss(ctx, &dozov1.StoreLossRequest{Stores: []string{"n9"}}); api.Reason(err) != "NOT_FOUND" {
		t.Errorf("the loss of a store that is not there: %v", err)
	}
	if _, err := c1.Sessions.List(ctx, &dozov1.ListSessionsRequest{Host: "nobody"}); api.Reason(err) != "NOT_FOUND" {
		t.Errorf("sessions of a host that is not there: %v", err)
	}
	list, err := c1.Sessions.List(ctx, &dozov1.ListSessionsRequest{Volume: "web1"})
	if err != nil || len(list.Sessions) != 1 || len(list.Unheard) != 0 {
		t.Fatalf("sessions: %v, %v", list, err)
	}
	if x := list.Sessions[0]; x.Node != "n2" || x.Volume != "web1" || x.Host != "hv1" || x.WrittenBytes != 64<<10 || x.InitiatorName != initiator.DefaultInitiatorName {
		t.Errorf("session %v", x)
	}
	if other, err := c1.Sessions.List(ctx, &dozov1.ListSessionsRequest{Node: "n1"}); err != nil || len(other.Sessions) != 0 {
		t.Errorf("sessions of n1: %v, %v", other, err)
	}
	if x := list.Sessions[0]; x.Auth != "none" || x.AuthDigest != "" {
		t.Errorf("authentication of a session without any: %q %q", x.Auth, x.AuthDigest)
	}
	if _, err := c2.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "web1"}); api.Reason(err) != "IN_USE" || !strings.Contains(err.Error(), list.Sessions[0].Id) ||
		!strings.Contains(err.Error(), initiator.DefaultInitiatorName) {
		t.Errorf("deleting a volume in use: %v", err)
	}
	// Nobody is refused; n1 asks the owner, wherever that is, and the log has it.
	if r, err := c1.Sessions.Accept(ctx, &dozov1.AcceptSessionsRequest{Volume: "web1"}); err != nil || len(r.Ports) != 0 {
		t.Errorf("accept: %v, %v", r, err)
	}
	if _, err := c1.Sessions.Accept(ctx, &dozov1.AcceptSessionsRequest{Volume: "web1", Epoch: "another"}); api.Reason(err) != "CONFLICT" {
		t.Errorf("accept of ports of another epoch: %v", err)
	}
	if _, err := c1.Sessions.Accept(ctx, &dozov1.AcceptSessionsRequest{Volume: "web1", Isid: "12"}); api.Reason(err) != "INVALID" {
		t.Errorf("accept of half an ISID: %v", err)
	}
	sharedUnit(t, ctx, []*api.Client{c1, c2}, n1, n2)
	offloadedTransfer(t, ctx, c1, n1, n2)
	groupsOfPorts(t, ctx, c1, n1, n2)
	mapsOfHosts(t, ctx, c1, n1, n2)
	portBinding(t, ctx, c1, n1)
	discoveryProved(t, ctx, c1, n1, n2)
	deleteWithForce(t, ctx, c1, n1, n2)
	hostsOfVolume(t, ctx, c1, n1, n2)
	if _, err := c1.Sessions.Kill(ctx, &dozov1.KillSessionRequest{Id: list.Sessions[0].Id}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-ctx.Done():
		t.Fatal("the session that was killed goes on")
	}
	if _, err := c1.Sessions.Kill(ctx, &dozov1.KillSessionRequest{Id: list.Sessions[0].Id}); api.Reason(err) != "NOT_FOUND" {
		t.Errorf("killing it again: %v", err)
	}
	if _, err := c1.Nodes.Remove(ctx, &dozov1.RemoveNodeRequest{Node: "n2"}); api.Reason(err) != "REFUSED" {
		t.Errorf("removing a node that runs: %v", err)
	}
	sentElsewhere(t, ctx, c1, n1, n2)

	if n := tc.segmentFiles(); n < 2 {
		t.Errorf("%d segment files before the deletion", n)
	}
	eventually(t, "the volume is not deleted", func() error {
		_, err := c1.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "web1"})
		return err
	})
	eventually(t, "the deleted volume is still there", func() error {
		l, err := c1.Volumes.List(ctx, &dozov1.ListVolumesRequest{Deleted: true})
		if err != nil {
			return err
		}
		if n := tc.segmentFiles(); n != 0 || len(l.Volumes) != 0 {
			return fmt.Errorf("%d segment files, volumes %v", n, l.Volumes)
		}
		return nil
	})
	checkEvents(t, ctx, c1, list.Sessions[0].Id)
}

// checkPlacement asks one node where the segments are: it names the files of both nodes.
func checkPlacement(t *testing.T, ctx context.Context, c *api.Client) {
	t.Helper()
	r, err := c.Volumes.Get(ctx, &dozov1.GetVolumeRequest{Volume: "web1", Segments: true})
	if err != nil || len(r.Placement.Segments) == 0 || r.Placement.DegradedBytes != 0 || r.Placement.Copies[0].Confirmed != nil {
		t.Fatalf("%v, %v", r, err)
	}
	for _, s := range r.Placement.Segments {
		if len(s.Replicas) != 2 {
			t.Errorf("segment %v", s)
		}
		for _, x := range s.Replicas {
			if f, err := os.Stat(x.Path); err != nil || uint64(f.Size()) < x.SizeBytes {
				t.Errorf("replica at %s: %v, %v", x.Store.Node, f, err)
			}
		}
	}
}

// deleteWithForce deletes a volume that is in use at both nodes: the sessions end, and nobody can log in again.
func deleteWithForce(t *testing.T, ctx context.Context, c *api.Client, nodes ...*testNode) {
	t.Helper()
	v, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "doomed", SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var sessions []*initiator.Session
	dial := func(x *testNode) (*initiator.Session, error) {
		return initiator.Dial(ctx, initiator.Config{Portal: x.cfg.Portals[0].String(), Target: v.Volume.Iqn})
	}
	for _, x := range nodes {
		s, err := dial(x)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Kill()
		sessions = append(sessions, s)
	}
	if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "doomed"}); api.Reason(err) != "IN_USE" || !strings.Contains(err.Error(), "open sessions (2)") {
		t.Errorf("deleting a volume with two sessions: %v", err)
	}
	if _, err := c.Volumes.Delete(ctx, &dozov1.DeleteVolumeRequest{Volume: "doomed", Force: true}); err != nil {
		t.Fatal(err)
	}
	l, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Sessions {
		if s.VolumeId == v.Volume.Id {
			t.Errorf("a session of the deleted volume is open: %v", s)
		}
	}
	for i, s := range sessions {
		select {
		case <-s.Done():
		case <-ctx.Done():
			t.Fatal("a session of the deleted volume goes on")
		}
		if again, err := dial(nodes[i]); err == nil {
			again.Kill()
			t.Errorf("login to the deleted volume at %s", nodes[i].cfg.Node)
		}
	}
}

// checkEvents looks for what the test has done in the audit log.
func checkEvents(t *testing.T, ctx context.Context, c *api.Client, session string) {
	t.Helper()
	stream, err := c.Cluster.Events(ctx, &dozov1.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	seen := map[string]int{}
	for stream.Receive() {
		if stream.Msg().Note != "" {
			continue // refused
		}
		seen[stream.Msg().Action+" "+stream.Msg().Object]++
		var many struct{ Volumes []string } // of one transaction: the event is the first one's
		if json.Unmarshal([]byte(stream.Msg().Before), &many) == nil && len(many.Volumes) > 1 {
			for _, name := range many.Volumes[1:] {
				seen[stream.Msg().Action+" volume/default/"+name]++
			}
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"host.add host/default/hv1", "volume.create volume/default/web1", "volume.delete volume/default/web1",
		"volume.forget volume/default/web1", "certificate.issue node/n1", "certificate.issue node/w", "session.kill session/" + session,
		"session.accept volume/default/web1"} {
		if seen[want] != 1 {
			t.Errorf("%d events %q in %v", seen[want], want, seen)
		}
	}
}

// TestJoin makes a cluster as one does on real hosts: an initial node, and a second one that joins by a token and
// becomes a voter.
func TestJoin(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a cluster")
	}
	tc := newTestCluster(t)
	first := tc.configure("first", testNet(11), func(c *config.Config) {
		c.Control, c.TLS.CAKeyFile = config.Control{Embedded: true}, pki.CAKeyFile
	})
	second := tc.configure("second", testNet(12), func(c *config.Config) {
		c.Control = config.Control{Embedded: true, Join: true, Endpoints: []config.Endpoint{{Addr: testNet(11), Port: config.PortControlClient}}}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	// Of one that was interrupted there is the key, and not what comes last.
	key := first.cfg.TLS.CAKeyFile
	if err := pki.WriteFileAtomic(key, []byte("of another attempt\n")); err != nil {
		t.Fatal(err)
	}
	if err := ClusterInit(ctx, InitOptions{Config: first.path}, &out); !errors.Is(err, control.ErrExists) || !strings.Contains(err.Error(), "interrupted dozo cluster init") {
		t.Errorf("with a key and no CA: %v", err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := ClusterInit(ctx, InitOptions{Config: first.path}, &out); err != nil {
		t.Fatal(err)
	}
	if err := ClusterInit(ctx, InitOptions{Config: first.path}, &out); err == nil {
		t.Error("a second cluster was made over the first one")
	}
	tc.start(first, Serve)
	local := tc.ready(first)

	// The administrator's certificate works over the network.
	admin := tc.adminClient(first)
	token, err := admin.Nodes.CreateToken(ctx, &dozov1.CreateJoinTokenRequest{Node: "second"})
	if err != nil {
		t.Fatal(err)
	}
	join := JoinOptions{Token: token.Token, Endpoints: []string{"https://" + first.cfg.ManagementAddr.String()}, Config: second.path}
	if err := Join(ctx, join, &out); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(second.cfg.TLS.NodeFile); err != nil {
		t.Fatal(err)
	}
	if err := Join(ctx, join, &out); api.Reason(err) != "BAD_TOKEN" {
		t.Errorf("a token used twice: %v", err)
	}
	if _, err := os.Stat(second.cfg.TLS.NodeFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("certificate after a join that failed: %v", err)
	}
	if token, err = admin.Nodes.CreateToken(ctx, &dozov1.CreateJoinTokenRequest{}); err != nil {
		t.Fatal(err)
	}
	join.Token = token.Token
	if err := Join(ctx, join, &out); err != nil {
		t.Fatal(err)
	}
	tc.start(second, Serve)
	c := tc.ready(second)
	nodes, err := c.Nodes.List(ctx, &dozov1.ListNodesRequest{})
	if err != nil || len(nodes.Nodes) != 2 || nodes.Nodes[0].State != nodeUp || nodes.Nodes[1].State != nodeUp || !nodes.Nodes[1].Voter {
		t.Fatalf("nodes: %v, %v", nodes, err)
	}
	if _, err := c.Volumes.Create(ctx, &dozov1.CreateVolumeRequest{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the volume is not served", func() error {
		v, err := local.Volumes.Get(ctx, &dozov1.GetVolumeRequest{Volume: "v"})
		if err == nil && (v.Volume.State != "serving" || v.Volume.Protection != "replicated") {
			err = fmt.Errorf("%v", v.Volume)
		}
		return err
	})

	// The first was configured when there was no other voter. It learns of the new one, and remembers it.
	for _, x := range []*testNode{first, second} {
		eventually(t, "the new voter is not known to "+string(x.cfg.Node), func() error {
			text, err := os.ReadFile(filepath.Join(x.cfg.StateDir, votersFile))
			for _, at := range []netip.Addr{testNet(11), testNet(12)} {
				if !strings.Contains(string(text), fmt.Sprintf("https://%s:%d\n", at, config.PortControlClient)) {
					return fmt.Errorf("%q, %w", text, err)
				}
			}
			return nil
		})
	}

	// The second node has no key of the CA: it passes on who wants to join, and has its own certificate renewed by
	// the first.
	third := tc.configure("third", testNet(13), func(c *config.Config) {
		c.Control = config.Control{Endpoints: []config.Endpoint{{Addr: testNet(11), Port: config.PortControlClient}}}
	})
	if token, err = c.Nodes.CreateToken(ctx, &dozov1.CreateJoinTokenRequest{Node: "third"}); err != nil {
		t.Fatal(err)
	}
	if err := Join(ctx, JoinOptions{Token: token.Token, Endpoints: []string{"https://" + second.cfg.ManagementAddr.String()}, Config: third.path}, &out); err != nil {
		t.Errorf("join by way of the second node: %v", err)
	}
	id, err := pki.Load(second.cfg.TLS.CAFile, second.cfg.TLS.NodeFile)
	if err != nil {
		t.Fatal(err)
	}
	asSecond, err := api.Dial(api.ClientOptions{Endpoints: []string{"https://" + first.cfg.ManagementAddr.String()}, TLS: id.APIClient()})
	if err != nil {
		t.Fatal(err)
	}
	defer asSecond.Close()
	csr, _, err := pki.NewRequest("anybody")
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := asSecond.Nodes.Renew(ctx, &dozov1.RenewRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(renewed.Certificate); block == nil {
		t.Error("no certificate")
	} else if cert, err := x509.ParseCertificate(block.Bytes); err != nil || cert.Subject.CommonName != "second" {
		t.Errorf("the renewed certificate is of %v, %v", cert.Subject, err)
	}

	// A certificate that is revoked opens nothing any more.
	revoked, err := admin.Nodes.Revoke(ctx, &dozov1.RevokeRequest{Node: "second", Reason: "test"})
	if err != nil || len(revoked.Serials) != 3 {
		t.Fatalf("revoke: %v, %v; want those of two joins and a renewal", revoked, err)
	}
	eventually(t, "the revoked certificate is taken", func() error {
		shutOut, err := api.Dial(api.ClientOptions{Endpoints: []string{"https://" + first.cfg.ManagementAddr.String()}, TLS: id.APIClient()})
		if err != nil {
			return err
		}
		defer shutOut.Close()
		if _, err := shutOut.Cluster.Version(ctx, &dozov1.VersionRequest{}); err == nil {
			return errors.New("it was answered")
		}
		return nil
	})
	// Nor do the connections go on that it had before, in either direction: a node whose API refuses to speak counts
	// as up as long as it answers frames.
	for name, c := range map[string]*api.Client{"second": local, "first": c} {
		eventually(t, "connections with the revoked node go on", func() error {
			l, err := c.Nodes.List(ctx, &dozov1.ListNodesRequest{})
			if err != nil {
				return err
			}
			for _, x := range l.Nodes {
				if x.Name == name && x.State == nodeUp {
					return fmt.Errorf("%s is up", name)
				}
			}
			return nil
		})
	}
}

// adminClient uses the certificate and the context file that ClusterInit has made.
func (tc *testCluster) adminClient(x *testNode) *api.Client {
	tc.t.Helper()
	ctx, err := api.LoadContext(filepath.Join(x.cfg.StateDir, api.ContextFile))
	if err != nil {
		tc.t.Fatal(err)
	}
	o, err := ctx.Options()
	if err != nil {
		tc.t.Fatal(err)
	}
	c, err := api.Dial(o)
	if err != nil {
		tc.t.Fatal(err)
	}
	tc.t.Cleanup(c.Close)
	return c
}
