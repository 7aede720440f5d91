//go:build e2e

package robust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/config"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Each node is in a namespace of its own, so that any two can be cut off from each other; so are the three voters of the
// control store, which are nothing else. The clients have one.
const (
	nsClients = "cl"
	siteA     = "site-a"
	siteB     = "site-b"
)

var (
	nsVoters   = []string{"w1", "w2", "w3"}
	namespaces = append([]string{"a1", "a2", "a3", "b1", nsClients}, nsVoters...)
)

// proc is a process of the cluster.
type proc struct {
	name string
	ns   string
	addr netip.Addr
	site string // empty: a voter
	dir  string
	disk string // where the store's file system is mounted
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *proc) voter() bool { return p.site == "" }

// cluster is all of it.
type cluster struct {
	t     *testing.T
	dir   string
	lab   string
	procs []*proc
	iqn   string
	hosts int // that were added to the control store
}

func (c *cluster) proc(name string) *proc {
	i := slices.IndexFunc(c.procs, func(p *proc) bool { return p.name == name })
	return c.procs[i]
}

// nodes are those that serve the volume's site.
func (c *cluster) nodes() []*proc { return c.procs[:3] }

func (c *cluster) voters() []*proc { return c.procs[4:] }

// storeBytes is the size of each store's file system, so small that it can be filled.
const storeBytes = 640 << 20

// startCluster makes everything; it ends with the test.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv("E2E_DIR"), "robust")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir, lab: fmt.Sprintf("e2erob%d", os.Getpid()%10000)}
	t.Cleanup(c.end)
	c.dozo("lab", "up", "--name", c.lab, "--sites", strings.Join(namespaces, ","), "--rtt", "200us")
	addr := func(ns string, n int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, 77, byte(slices.Index(namespaces, ns) + 1), byte(n)})
	}
	for _, n := range []string{"a1", "a2", "a3", "b1"} {
		p := &proc{name: n, ns: n, addr: addr(n, 1), site: siteA}
		if n[0] == 'b' {
			p.site = siteB
		}
		c.procs = append(c.procs, p)
	}
	for _, n := range nsVoters {
		c.procs = append(c.procs, &proc{name: n, ns: n, addr: addr(n, 1)})
	}
	c.prepare()
	for _, p := range c.procs {
		c.start(p)
	}
	for _, p := range c.procs {
		c.ready(p)
	}
	c.at("a1", "volume", "create", "v", "64M", "--at", siteA)
	var v struct {
		Volume struct{ IQN string }
	}
	c.ask("a1", &v, "volume", "show", "v")
	c.iqn = v.Volume.IQN
	c.healthy(30 * time.Second)
	return c
}

// prepare makes certificates, configurations and file systems.
func (c *cluster) prepare() {
	t := c.t
	now := time.Now()
	id := pki.NewClusterID()
	ca, err := pki.NewCA(id, "robust", now)
	if err != nil {
		t.Fatal(err)
	}
	var voters []config.Voter
	var endpoints []config.Endpoint
	for _, p := range c.procs[4:] {
		voters = append(voters, config.Voter{Node: ident.NodeName(p.name), Peer: config.Endpoint{Addr: p.addr, Port: config.PortControlPeer}})
		endpoints = append(endpoints, config.Endpoint{Addr: p.addr, Port: config.PortControlClient})
	}
	for _, p := range c.procs {
		p.dir = filepath.Join(c.dir, p.name)
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p.disk = filepath.Join(p.dir, "disk")
		c.mount(p)
		role := pki.RoleNode
		if p.voter() {
			role = pki.RoleWitness
		}
		cert, err := ca.IssueLocal(pki.Grant{Name: p.name, Role: role, IPs: []netip.Addr{p.addr}, Lifetime: 24 * time.Hour}, now)
		if err != nil {
			t.Fatal(err)
		}
		at := func(port uint16) config.Endpoint { return config.Endpoint{Addr: p.addr, Port: port} }
		conf := config.Default()
		conf.Cluster = config.Cluster{Name: "robust", ID: id}
		conf.Node, conf.HostID, conf.StateDir, conf.Socket = ident.NodeName(p.name), "host-"+p.name, p.dir, filepath.Join(p.dir, "api.sock")
		conf.Address, conf.ManagementAddr = config.IP{Addr: p.addr}, at(config.PortAPI)
		conf.TLS = config.TLS{CAFile: filepath.Join(p.dir, pki.CAFile), NodeFile: filepath.Join(p.dir, pki.NodeFile)}
		conf.Limits.MapMemory, conf.Limits.CacheMemory, conf.Limits.SegmentSize = 64<<20, 32<<20, 4<<20
		conf.Control = config.Control{Endpoints: endpoints}
		if p.voter() {
			conf.Roles = []config.Role{config.RoleWitness}
			conf.StateDir = p.disk
			conf.Control.Embedded, conf.Control.InitialCluster = true, voters
			conf.Control.ClientAddress, conf.Control.PeerAddress = at(config.PortControlClient), at(config.PortControlPeer)
		} else {
			conf.Roles = []config.Role{config.RoleCore, config.RoleAccess}
			conf.Site = config.Site{Name: p.site}
			conf.Portals = []config.Endpoint{at(config.PortISCSI)}
			conf.ClusterAddr, conf.WanAddr = at(config.PortFrames), at(config.PortFrames)
			spare := config.Size(8 << 20)
			conf.Stores = []config.Store{{Path: filepath.Join(p.disk, "store"), Reserve: 32 << 20, Spare: &spare}}
			if err := os.MkdirAll(filepath.Join(p.disk, "store"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		text, err := conf.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"dozo.yaml": text, pki.CAFile: ca.CertPEM(), pki.NodeFile: cert} {
			if err := pki.WriteFileAtomic(filepath.Join(p.dir, name), content); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// mount gives a node a disk of its own: a file system that can hang (fsfreeze) and become full.
func (c *cluster) mount(p *proc) {
	image, size := p.dir+"/disk.img", int64(storeBytes)
	if err := os.MkdirAll(p.disk, 0o700); err != nil {
		c.t.Fatal(err)
	}
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=1", image)
	c.run("mount", "-o", "loop", image, p.disk)
}

func (c *cluster) start(p *proc) {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	kind := "serve"
	if p.voter() {
		kind = "witness"
	}
	// dozo lab exec becomes the command: the process is the node.
	p.cmd = exec.Command(dozoBin, "lab", "exec", "--name", c.lab, p.ns, "--", dozoBin, kind, "--config", filepath.Join(p.dir, "dozo.yaml"))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(p.cmd, p.done)
}

func (c *cluster) ready(p *proc) {
	c.t.Helper()
	c.until(p.name+" is ready", 60*time.Second, func() (bool, string) {
		client, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(p.dir, "api.sock")}})
		if err != nil {
			return false, err.Error()
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		r, err := client.Health(ctx)
		if err != nil {
			return false, err.Error()
		}
		defer r.Body.Close()
		return r.StatusCode == 200, r.Status
	})
}

func (p *proc) signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

func (p *proc) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill is kill -9, and waits.
func (p *proc) kill() {
	_ = p.signal(syscall.SIGKILL)
	<-p.done
}

// end removes everything, however the test ended.
func (c *cluster) end() {
	if c.t.Failed() {
		for _, p := range c.procs {
			text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			lines := strings.Split(string(text), "\n")
			c.t.Logf("%s: end of its log:\n%s", p.name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	}
	for _, p := range c.procs {
		if p.disk != "" {
			_ = exec.Command("fsfreeze", "-u", p.disk).Run() // usually it is not frozen
		}
		if p.cmd != nil {
			_ = p.signal(syscall.SIGCONT)
			_ = p.signal(syscall.SIGKILL)
			<-p.done
		}
	}
	for _, p := range c.procs {
		if p.disk != "" {
			if out, err := exec.Command("umount", p.disk).CombinedOutput(); err != nil {
				c.t.Errorf("umount: %v: %s", err, out)
			}
		}
	}
	if out, err := exec.Command(dozoBin, "lab", "down", "--name", c.lab, "--grace", "0").CombinedOutput(); err != nil {
		c.t.Errorf("lab down: %v: %s", err, out)
	}
	if os.Getenv("ROBUST_KEEP") == "" {
		_ = os.RemoveAll(c.dir)
	}
}

func (c *cluster) run(name string, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (c *cluster) dozo(args ...string) string { c.t.Helper(); return c.run(dozoBin, args...) }

// net changes the network: words of dozo lab.
func (c *cluster) net(verb string, args ...string) {
	c.t.Helper()
	c.dozo(append([]string{"lab", verb, "--name", c.lab}, args...)...)
}

// at runs a command at one node, by its socket; again while it can not be answered now (exit code 5).
func (c *cluster) at(node string, args ...string) (out string) {
	c.t.Helper()
	tried := false
	c.until(strings.Join(args, " ")+" at "+node, 20*time.Second, func() (bool, string) {
		text, err := exec.Command(dozoBin, append(args, "--endpoint", "unix://"+filepath.Join(c.proc(node).dir, "api.sock"))...).CombinedOutput()
		x, failed := errors.AsType[*exec.ExitError](err)
		switch {
		case err == nil, tried && failed && x.ExitCode() == 4 && slices.Contains(args, "create"): // it was made the time before
			out = string(text)
			return true, ""
		case !failed || x.ExitCode() != 5:
			c.t.Fatalf("%v: %v: %s", args, err, text)
		}
		tried = true
		c.t.Logf("%v: %s", args, text)
		return false, string(text)
	})
	return out
}

// move hands the volume to a site. A hand-over may be given up where a machine stalls, and then the volume stays where it was;
// one that fails five times is broken.
func (c *cluster) move(node, site string) {
	c.t.Helper()
	for again := 1; ; again++ {
		out, err := exec.Command(dozoBin, "volume", "move", "v", "--to", site, "--endpoint", "unix://"+filepath.Join(c.proc(node).dir, "api.sock")).CombinedOutput()
		if err == nil {
			return
		}
		if again == 5 {
			c.t.Fatalf("a hand-over to %s: %v: %s", site, err, out)
		}
		c.t.Logf("a hand-over to %s: %v: %s", site, err, out)
		time.Sleep(time.Second)
	}
}

func (c *cluster) tryAsk(node string, into any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, dozoBin, append(args, "-o", "json", "--endpoint", "unix://"+filepath.Join(c.proc(node).dir, "api.sock"))...).Output()
	if err != nil {
		return err
	}
	return json.Unmarshal(out, into)
}

func (c *cluster) ask(node string, into any, args ...string) {
	c.t.Helper()
	c.until(strings.Join(args, " "), 20*time.Second, func() (bool, string) {
		err := c.tryAsk(node, into, args...)
		return err == nil, fmt.Sprint(err)
	})
}

// volume is what a node says of the volume.
type volumeState struct {
	Volume struct {
		Owner string
		State string
		Epoch string
	}
}

// volume asks any node that answers.
func (c *cluster) volume() (v volumeState, err error) {
	for _, p := range c.procs[:4] {
		if !p.alive() {
			continue
		}
		if err = c.tryAsk(p.name, &v, "volume", "show", "v"); err == nil && v.Volume.Owner != "" {
			return v, nil
		}
	}
	return v, cmpErr(err)
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("no owner")
	}
	return err
}

// owner is the node that owns the volume now.
func (c *cluster) owner() *proc {
	c.t.Helper()
	var v volumeState
	c.until("the volume has an owner", 40*time.Second, func() (bool, string) {
		var err error
		v, err = c.volume()
		return err == nil, fmt.Sprint(err)
	})
	return c.proc(v.Volume.Owner)
}

// healthy waits until the volume is served at its site and every node runs.
func (c *cluster) healthy(within time.Duration) {
	c.t.Helper()
	c.until("the cluster is healthy", within, func() (bool, string) {
		var st struct {
			NodesUp uint32 `json:"nodes_up"`
			Nodes   uint32 `json:"nodes"`
			Volumes []struct{ State, Owner string }
			Control struct{ Connected bool }
		}
		for _, p := range c.nodes() {
			if err := c.tryAsk(p.name, &st, "status"); err != nil {
				return false, fmt.Sprintf("%s: %v", p.name, err)
			}
			if !st.Control.Connected || st.NodesUp < st.Nodes || len(st.Volumes) != 1 || st.Volumes[0].State == "offline" || st.Volumes[0].Owner == "" {
				return false, fmt.Sprintf("%s: %+v", p.name, st)
			}
		}
		return true, ""
	})
}

// slow is how many times as long as a quiet machine a loaded one may take for anything.
const slow = 6

// until fails the test after slow times a time that is ample for a quiet machine.
func (c *cluster) until(what string, within time.Duration, holds func() (bool, string)) {
	c.t.Helper()
	within *= slow
	for deadline := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) {
		ok, why := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not after %v: %s", what, within, why)
		}
	}
}
