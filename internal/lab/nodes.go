package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dozo/internal/api"
	"dozo/internal/config"
	"dozo/internal/ident"
	"dozo/internal/pki"
	"dozo/internal/up"
)

const (
	clusterName = "dozo-lab"
	// WitnessSite is where the witness is that two sites of nodes, or two nodes in all, want: a site of its own, so that
	// it can be partitioned from each of them.
	WitnessSite = "witness"
	kindWitness = "witness" // as up.Plan has it
	// nodesReady is ample: a control store over paths of 200 ms needs seconds.
	nodesReady = 90 * time.Second
	readyPoll  = 50 * time.Millisecond
	// What a node may keep in memory, where one machine has all of them.
	mapMemory, cacheMemory = 256 << 20, 128 << 20
)

// Files of the data directory.
const (
	nodesFile   = "lab.json"
	clientFile  = api.ContextFile
	nodesSubdir = "nodes"
	nodeConfig  = "dozo.yaml"
	nodeLog     = "log"
	nodeSocket  = "api.sock"
)

// nodesRecord is lab.json in the data directory: what the configurations there were made for.
type nodesRecord struct {
	ClusterID string   `json:"cluster_id"`
	Sites     []string `json:"sites"`
	Nodes     int      `json:"nodes"`
}

// labNode is one process of the plan.
type labNode struct {
	up.Process
	site int // index in the lab
}

func (n labNode) dir(s *Spec) string { return filepath.Join(s.Dir, nodesSubdir, string(n.Name)) }

// NodeSites says which sites a lab needs for nodes at the given ones: the witness's too, where there must be one.
func NodeSites(sites []string, nodes int) []string {
	if len(sites) == 2 || len(sites) == 1 && nodes == 2 {
		return append(slices.Clone(sites), WitnessSite)
	}
	return sites
}

// nodePlan gives the lab's nodes. Who is a voter, and who has the CA's key, is as in dozo up.
func nodePlan(s *Spec) ([]labNode, error) {
	if s.Nodes == 0 {
		return nil, nil
	}
	sites := len(s.Sites)
	if s.Sites[sites-1].Name == WitnessSite {
		sites--
	}
	procs, err := up.Plan(up.Shape{Sites: sites, Nodes: s.Nodes})
	if err != nil {
		return nil, err
	}
	var out []labNode
	for i, p := range procs {
		n := labNode{Process: p, site: i / s.Nodes}
		number := i%s.Nodes + 1
		if p.Kind == kindWitness {
			n.site, number = sites, 1
		} else {
			n.Site = s.Sites[n.site].Name
			n.Name = ident.NodeName(fmt.Sprintf("%s-%d", n.Site, number))
		}
		n.Addr = addr4(n.site+1, number)
		out = append(out, n)
	}
	return out, nil
}

// configOf makes the configuration of one node.
func configOf(s *Spec, clusterID string, plan []labNode, n labNode) *config.Config {
	at := func(a netip.Addr, port uint16) config.Endpoint { return config.Endpoint{Addr: a, Port: port} }
	dir := n.dir(s)
	c := config.Default()
	c.Cluster = config.Cluster{Name: clusterName, ID: clusterID}
	c.Node, c.HostID, c.StateDir, c.Socket = n.Name, "lab-"+string(n.Name), dir, filepath.Join(dir, nodeSocket)
	c.Address, c.ManagementAddr = config.IP{Addr: n.Addr}, at(n.Addr, config.PortAPI)
	c.TLS = config.TLS{CAFile: filepath.Join(dir, pki.CAFile), NodeFile: filepath.Join(dir, pki.NodeFile)}
	c.Limits.MapMemory, c.Limits.CacheMemory = mapMemory, cacheMemory
	if n.Issuer {
		c.TLS.CAKeyFile = filepath.Join(s.Dir, "ca", pki.CAKeyFile)
	}
	if n.Kind == kindWitness {
		c.Roles = []config.Role{config.RoleWitness}
	} else {
		c.Roles = []config.Role{config.RoleCore, config.RoleAccess}
		c.Site = config.Site{Name: n.Site, CIDRs: s.Sites[n.site].prefixes()}
		c.Portals = []config.Endpoint{at(n.Addr, config.PortISCSI)}
		c.ClusterAddr, c.WanAddr = at(n.Addr, config.PortFrames), at(n.Addr, config.PortFrames)
		c.Stores = []config.Store{{Path: filepath.Join(dir, "store")}}
	}
	c.Control.Embedded = n.Voter
	for _, v := range plan {
		if !v.Voter {
			continue
		}
		c.Control.Endpoints = append(c.Control.Endpoints, at(v.Addr, config.PortControlClient))
		if n.Voter {
			c.Control.InitialCluster = append(c.Control.InitialCluster, config.Voter{Node: v.Name, Peer: at(v.Addr, config.PortControlPeer)})
		}
	}
	if n.Voter {
		c.Control.ClientAddress, c.Control.PeerAddress = at(n.Addr, config.PortControlClient), at(n.Addr, config.PortControlPeer)
	}
	return c
}

// prepareNodes makes what of the data directory is not there: CA, certificates, configurations, the client's context.
// What is there stays, if it was made for the same sites and nodes.
func prepareNodes(s *Spec, plan []labNode, now time.Time) error {
	if err := os.MkdirAll(filepath.Join(s.Dir, "ca"), 0o700); err != nil {
		return err
	}
	rec := nodesRecord{ClusterID: pki.NewClusterID(), Sites: s.SiteNames(), Nodes: s.Nodes}
	path := filepath.Join(s.Dir, nodesFile)
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if text, err = json.Marshal(rec); err != nil {
			return err
		}
		if err := pki.WriteFileAtomic(path, text); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		var old nodesRecord
		if err := json.Unmarshal(text, &old); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if !slices.Equal(old.Sites, rec.Sites) || old.Nodes != rec.Nodes {
			return fmt.Errorf("%s %w, for %d nodes at each of %s: give another --dir", s.Dir, ErrExists, old.Nodes, strings.Join(old.Sites, ", "))
		}
		rec = old
	}
	caCert, caKey := filepath.Join(s.Dir, "ca", pki.CAFile), filepath.Join(s.Dir, "ca", pki.CAKeyFile)
	ca, err := pki.LoadCA(caCert, caKey)
	if errors.Is(err, fs.ErrNotExist) {
		if ca, err = pki.NewCA(rec.ClusterID, clusterName, now); err == nil {
			err = ca.Save(filepath.Dir(caCert))
		}
	}
	if err != nil {
		return err
	}
	var client api.Context
	for _, n := range plan {
		if err := prepareNode(s, rec.ClusterID, plan, n, ca, now); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		if n.Kind != kindWitness {
			// A socket in the file system is reached from every namespace, and needs no token of root.
			client.Endpoints = append(client.Endpoints, "unix://"+filepath.Join(n.dir(s), nodeSocket))
		}
	}
	if text, err = client.Marshal(); err != nil {
		return err
	}
	return pki.WriteFileAtomic(filepath.Join(s.Dir, clientFile), text)
}

func prepareNode(s *Spec, clusterID string, plan []labNode, n labNode, ca *pki.CA, now time.Time) error {
	dir := n.dir(s)
	if err := os.MkdirAll(filepath.Join(dir, "store"), 0o700); err != nil {
		return err
	}
	if err := pki.WriteFileAtomic(filepath.Join(dir, pki.CAFile), ca.CertPEM()); err != nil {
		return err
	}
	file := filepath.Join(dir, pki.NodeFile)
	if id, err := pki.Load(filepath.Join(dir, pki.CAFile), file); err != nil || id.RenewAt().Before(now) {
		role := pki.RoleNode
		if n.Kind == kindWitness {
			role = pki.RoleWitness
		}
		text, err := ca.IssueLocal(pki.Grant{Name: string(n.Name), Role: role, IPs: []netip.Addr{n.Addr}, Lifetime: pki.NodeLifetime}, now)
		if err != nil {
			return err
		}
		if err := pki.WriteFileAtomic(file, text); err != nil {
			return err
		}
	}
	file = filepath.Join(dir, nodeConfig)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	text, err := configOf(s, clusterID, plan, n).Marshal()
	if err != nil {
		return err
	}
	if _, err := config.Parse(text, dir); err != nil {
		return err
	}
	return pki.WriteFileAtomic(file, append([]byte("# Made by dozo lab. It is not written again: what you change here stays.\n"), text...))
}

// startNodes starts the lab's nodes in their namespaces and waits until all are ready.
func (l *Lab) startNodes(ctx context.Context, program string) error {
	plan, err := nodePlan(&l.Spec)
	if err != nil || len(plan) == 0 {
		return err
	}
	if err := prepareNodes(&l.Spec, plan, time.Now()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nodesReady)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range plan {
		cmd, err := l.startNode(program, n)
		if err != nil {
			cancel()
			return errors.Join(fmt.Errorf("start %s: %w", n.Name, err), g.Wait())
		}
		ended := make(chan error, 1)
		// It outlives this process; where it does not, its end is seen here. Nobody but the system waits for it then.
		go func() { ended <- cmd.Wait() }()
		g.Go(func() error {
			if err := l.waitReady(ctx, n, ended); err != nil {
				return fmt.Errorf("%s: %w; its log is %s", n.Name, err, filepath.Join(n.dir(&l.Spec), nodeLog))
			}
			return nil
		})
	}
	return g.Wait()
}

func (l *Lab) startNode(program string, n labNode) (*exec.Cmd, error) {
	dir := n.dir(&l.Spec)
	log, err := os.OpenFile(filepath.Join(dir, nodeLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, n.Kind, "--config", filepath.Join(dir, nodeConfig))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, l.Start(l.Sites[n.site].Name, cmd)
}

func (l *Lab) waitReady(ctx context.Context, n labNode, ended <-chan error) error {
	c, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(n.dir(&l.Spec), nodeSocket)}})
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	last := errors.New("no answer yet")
	for {
		if err := healthy(ctx, c, n); err == nil {
			return nil
		} else if ctx.Err() == nil {
			last = err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended before it was ready: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

func healthy(ctx context.Context, c *api.Client, n labNode) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := c.Health(ctx)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var h api.Health
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&h); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	if resp.StatusCode != http.StatusOK || h.Node != string(n.Name) {
		return fmt.Errorf("%s is %s: %s", h.Node, h.State, strings.Join(h.Problems, "; "))
	}
	return nil
}

// nodeStatus says which nodes run, from the processes in the lab's namespaces.
func (l *Lab) nodeStatus(procs []Process) []NodeStatus {
	out := []NodeStatus{}
	plan, err := nodePlan(&l.Spec)
	if err != nil {
		return out
	}
	for _, n := range plan {
		dir := n.dir(&l.Spec)
		st := NodeStatus{Name: string(n.Name), Site: l.Sites[n.site].Name, Address: n.Addr, Log: filepath.Join(dir, nodeLog)}
		for _, p := range procs {
			args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
			if err == nil && strings.HasSuffix(string(args), "\x00--config\x00"+filepath.Join(dir, nodeConfig)+"\x00") {
				st.PID = p.PID
			}
		}
		out = append(out, st)
	}
	return out
}

// Env is what commands at a site are given besides the environment: where the lab's nodes are.
func (l *Lab) Env() []string {
	if l.Nodes == 0 {
		return nil
	}
	return []string{"DOZO_CONFIG=" + filepath.Join(l.Dir, clientFile)}
}
