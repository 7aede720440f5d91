package up

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"dozo/internal/config"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Bounds of a system on one machine. Each node is a process that wants some 100 MiB and four addresses' worth
// of ports; voters beyond seven make the control store slower and no safer.
const (
	sitesMax  = 16
	nodesMax  = 16
	votersMax = 7
	netMax    = 254
)

// What each node may keep in memory: a machine has room for six of them, which a machine of their own would
// give to one.
const (
	mapMemory   = 256 << 20
	cacheMemory = 128 << 20
)

// clusterName is what certificates and status call the system.
const clusterName = "dozo-up"

// witnessHost is the last octet of the witness's address 127.N.0.7: site 0 is nobody else's.
const witnessHost = 7

// Kinds of process: the command that runs it.
const (
	kindServe   = "serve"
	kindWitness = "witness"
)

// Shape is what a system looks like. Its fields are fixed when the directory is made.
type Shape struct {
	Sites int `yaml:"sites"`
	Nodes int `yaml:"nodes"` // of each site
	// Net is N in the addresses 127.N.i.j, so that several systems fit on one machine.
	Net int `yaml:"net"`
	// PlainData switches encryption of the data frames within a site off.
	PlainData bool `yaml:"plain_data"`
}

// ErrShape is a system that can not be.
var ErrShape = errors.New("impossible system")

// Check says whether there can be such a system.
func (s Shape) Check() error {
	switch {
	case s.Sites < 1 || s.Sites > sitesMax:
		return fmt.Errorf("%w: %d sites: want 1 to %d", ErrShape, s.Sites, sitesMax)
	case s.Nodes < 1 || s.Nodes > nodesMax:
		return fmt.Errorf("%w: %d nodes a site: want 1 to %d", ErrShape, s.Nodes, nodesMax)
	case s.Net < 0 || s.Net > netMax:
		return fmt.Errorf("%w: net %d: want 0 to %d", ErrShape, s.Net, netMax)
	case s.Sites == 1 && s.Nodes == 1:
		return fmt.Errorf("%w: one site of one node: a write is acknowledged only once two core servers hold it, so there must be a second node or another site", ErrShape)
	}
	return nil
}

// Process is one process of the system.
type Process struct {
	Name  ident.NodeName
	Kind  string // the command: serve or witness
	Site  string // empty: at none
	Addr  netip.Addr
	Voter bool
	// Issuer: the node has the CA's key and may issue certificates.
	Issuer bool
}

// Plan gives the processes of a system: sites and nodes in order, then the witness. Voters of the control
// store are one node of each of three sites or more; of two sites one node each, and a witness; of one site
// three nodes, or two and a witness: a majority then survives the loss of any one of them.
func Plan(s Shape) ([]Process, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	var out []Process
	for i := 1; i <= s.Sites; i++ {
		for j := 1; j <= s.Nodes; j++ {
			voter := j == 1 && i <= votersMax
			if s.Sites == 1 {
				voter = j <= 3
			}
			out = append(out, Process{
				Name: ident.NodeName(fmt.Sprintf("s%dn%d", i, j)), Kind: kindServe, Site: siteName(i), Addr: addr(s.Net, i, j),
				Voter: voter, Issuer: j == 1,
			})
		}
	}
	if s.Sites == 2 || s.Sites == 1 && s.Nodes == 2 {
		out = append(out, Process{Name: "witness", Kind: kindWitness, Addr: addr(s.Net, 0, witnessHost), Voter: true})
	}
	return out, nil
}

func siteName(i int) string { return fmt.Sprintf("site-%d", i) }

func addr(net, i, j int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(net), byte(i), byte(j)})
}

// ports gives the ports on which a process listens.
func (p Process) ports() []uint16 {
	ports := []uint16{config.PortAPI}
	if p.Kind == kindServe {
		ports = append(ports, config.PortISCSI, config.PortFrames)
	}
	if p.Voter {
		ports = append(ports, config.PortControlClient, config.PortControlPeer)
	}
	return ports
}

// roles gives the roles of a process.
func (p Process) roles() []config.Role {
	if p.Kind == kindWitness {
		return []config.Role{config.RoleWitness}
	}
	return []config.Role{config.RoleCore, config.RoleAccess}
}

// Files of the directory, relative to it.
const (
	shapeFile = "up.yaml"
	lockFile  = "lock"
	caDir     = "ca"
	tokenFile = "admin.token"
	nodesDir  = "nodes"
)

// Files of a node's directory, relative to it.
const (
	configFile = "dozo.yaml"
	pidFile    = "pid"
	logFile    = "log"
	socketFile = "api.sock"
	storeDir   = "store"
)

func nodeDir(dir string, name ident.NodeName) string {
	return filepath.Join(dir, nodesDir, string(name))
}

// nodeConfig makes the configuration of one process of the plan.
func nodeConfig(dir, clusterID string, s Shape, plan []Process, p Process) *config.Config {
	state := nodeDir(dir, p.Name)
	at := func(a netip.Addr, port uint16) config.Endpoint { return config.Endpoint{Addr: a, Port: port} }
	c := config.Default()
	c.Cluster = config.Cluster{Name: clusterName, ID: clusterID}
	c.Node, c.Roles = p.Name, p.roles()
	// All nodes are on one machine, and to the rules each is a host of its own: that is what this system is for.
	c.HostID = "up-" + string(p.Name)
	c.StateDir, c.Socket = state, filepath.Join(state, socketFile)
	c.Address = config.IP{Addr: p.Addr}
	c.ManagementAddr = at(p.Addr, config.PortAPI)
	c.Control = config.Control{Embedded: p.Voter}
	c.TLS = config.TLS{CAFile: filepath.Join(state, pki.CAFile), NodeFile: filepath.Join(state, pki.NodeFile)}
	c.Limits.MapMemory, c.Limits.CacheMemory = mapMemory, cacheMemory
	if p.Issuer {
		c.TLS.CAKeyFile = filepath.Join(dir, caDir, pki.CAKeyFile)
	}
	if p.Kind == kindServe {
		c.Site = config.Site{Name: p.Site, CIDRs: []netip.Prefix{netip.PrefixFrom(p.Addr, 24).Masked()}}
		c.Portals = []config.Endpoint{at(p.Addr, config.PortISCSI)}
		c.ClusterAddr = at(p.Addr, config.PortFrames)
		c.WanAddr = at(p.Addr, config.PortFrames)
		c.Stores = []config.Store{{Path: filepath.Join(state, storeDir)}}
		c.PlainData = s.PlainData
	}
	for _, v := range plan {
		if !v.Voter {
			continue
		}
		c.Control.Endpoints = append(c.Control.Endpoints, at(v.Addr, config.PortControlClient))
		if p.Voter {
			c.Control.InitialCluster = append(c.Control.InitialCluster, config.Voter{Node: v.Name, Peer: at(v.Addr, config.PortControlPeer)})
		}
	}
	if p.Voter {
		c.Control.ClientAddress = at(p.Addr, config.PortControlClient)
		c.Control.PeerAddress = at(p.Addr, config.PortControlPeer)
	}
	return c
}
