package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"dozo/internal/ident"
)

// Config is the whole file. Zero values of addresses are filled in from Address by Load.
type Config struct {
	Cluster Cluster        `yaml:"cluster"`
	Node    ident.NodeName `yaml:"node"`
	Site    Site           `yaml:"site"`
	Roles   []Role         `yaml:"roles"`
	// HostID says which machine this is; two nodes with one HostID are never members of one ensemble. Empty: from
	// /etc/machine-id.
	HostID   string `yaml:"host_id,omitempty"`
	StateDir string `yaml:"state_dir"` // keys, control store, sockets: small and on stable storage

	// Address is the node's one address where the more particular ones below are not given.
	Address        IP         `yaml:"address,omitempty"`
	Portals        []Endpoint `yaml:"portals,omitempty"` // iSCSI; several, IPv4 and IPv6
	ClusterAddr    Endpoint   `yaml:"cluster_address,omitempty"`
	WanAddr        Endpoint   `yaml:"wan_address,omitempty"`
	ManagementAddr Endpoint   `yaml:"management_address,omitempty"`
	Socket         string     `yaml:"socket,omitempty"` // unix socket of the local API

	Discovery Discovery `yaml:"discovery,omitempty"`
	ISNS      ISNS      `yaml:"isns,omitempty"`

	Stores    []Store `yaml:"stores,omitempty"`
	Control   Control `yaml:"control"`
	TLS       TLS     `yaml:"tls,omitempty"`
	PlainData bool    `yaml:"plain_data,omitempty"`
	// CPULatency says whether the machine's processors are kept from sleeping while requests follow closely: auto, off.
	CPULatency string   `yaml:"cpu_latency,omitempty"`
	Limits     Limits   `yaml:"limits,omitempty"`
	Timeouts   Timeouts `yaml:"timeouts,omitempty"`
	Log        Log      `yaml:"log,omitempty"`
}

// Role is what the node does.
type Role string

// The roles.
const (
	RoleCore    Role = "core"
	RoleAccess  Role = "access"
	RoleHint    Role = "hint"
	RoleWitness Role = "witness"
)

// What CPULatency may be.
const (
	CPULatencyAuto = "auto"
	CPULatencyOff  = "off"
)

// Ports of a node's address, where the configuration gives none.
const (
	PortISCSI         = 3260 // IANA's
	PortAPI           = 7070
	PortFrames        = 7071
	PortControlClient = 7072
	PortControlPeer   = 7073
)

// Cluster says which cluster the node belongs to.
type Cluster struct {
	Name string `yaml:"name"`
	// ID is the cluster's identity in certificates; empty: from the node's certificate.
	ID string `yaml:"id,omitempty"`
}

// Site says where the node is. Every node of a site gives the same.
type Site struct {
	Name  string         `yaml:"name,omitempty"`
	CIDRs []netip.Prefix `yaml:"cidrs,omitempty"`
}

// Store is a data directory, one per disk.
type Store struct {
	Path  string `yaml:"path"`
	Label string `yaml:"label,omitempty"`
	// Reserve is what stays free on the file system: a full disk must still be able to record a fence. 0: 256 MiB.
	Reserve Size `yaml:"reserve,omitempty"`
	// Capacity bounds what the store uses; 0: the whole file system less Reserve.
	Capacity Size `yaml:"capacity,omitempty"`
	// Throttle slows the store down to so many bytes a second, read and written together: for measurements on one
	// machine. 0: not at all.
	Throttle Size `yaml:"throttle,omitempty"`
	// Spare bounds the files of dropped replicas that are kept for new segments; nil: 2 GiB. 0: none is kept.
	Spare *Size `yaml:"spare,omitempty"`
}

// SpareBytes is Spare as the store's options want it: below 0 for none.
func (s *Store) SpareBytes() int64 {
	switch {
	case s.Spare == nil:
		return 0
	case *s.Spare == 0:
		return -1
	}
	return int64(*s.Spare)
}

// Control says where the control store is: in this process, in other nodes' processes, or external.
type Control struct {
	Embedded  bool       `yaml:"embedded,omitempty"`  // this node is a voter
	Endpoints []Endpoint `yaml:"endpoints,omitempty"` // where clients reach voters; every node needs them
	External  bool       `yaml:"external,omitempty"`  // the endpoints are of an etcd that is not ours

	// Of an embedded voter.
	ClientAddress Endpoint `yaml:"client_address,omitempty"`
	PeerAddress   Endpoint `yaml:"peer_address,omitempty"`
	// InitialCluster lists all first voters, this one included; empty with Join.
	InitialCluster []Voter `yaml:"initial_cluster,omitempty"`
	// Join makes the voter a member of a cluster that runs already.
	Join bool `yaml:"join,omitempty"`

	// Of external endpoints with TLS. Without CAFile and CertFile there is none.
	CAFile   string `yaml:"ca_file,omitempty"`
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"`
	Prefix   string `yaml:"prefix,omitempty"` // of all keys, where an external etcd is shared
}

// VoterFile, in the state directory, says that the node has a voter whatever its configuration says: it was appointed
// when another one was removed.
const VoterFile = "control-voter"

// Appointed has the configuration say what the state directory does.
func (c *Config) Appointed() error {
	_, err := os.Stat(filepath.Join(c.StateDir, VoterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = c.BecomeVoter()
	}
	if err != nil {
		return fmt.Errorf("the node was made a voter of the control store: %w", err)
	}
	return nil
}

// BecomeVoter makes it the configuration of a node that has a voter and joins the voters that there are, at the addresses that
// it would have by default.
func (c *Config) BecomeVoter() error {
	ctl := &c.Control
	if ctl.Embedded || ctl.External {
		return nil
	}
	at := c.Address.Addr
	if !at.IsValid() {
		at = c.ClusterAddr.Addr
	}
	ctl.PeerAddress, ctl.ClientAddress = ctl.PeerAddress.or(at, PortControlPeer), ctl.ClientAddress.or(at, PortControlClient)
	if err := ctl.PeerAddress.dialable(); err != nil {
		return fmt.Errorf("control.peer_address %w", err)
	}
	ctl.Embedded, ctl.Join = true, true
	return nil
}

// Voter is a member of the embedded control store.
type Voter struct {
	Node ident.NodeName `yaml:"node"`
	Peer Endpoint       `yaml:"peer"`
}

// TLS says where the node's certificate and the cluster's CA certificate are; relative to StateDir.
type TLS struct {
	CAFile   string `yaml:"ca_file,omitempty"`
	NodeFile string `yaml:"node_file,omitempty"` // certificate and key in one file
	// CAKeyFile is there only on nodes that may issue certificates.
	CAKeyFile string `yaml:"ca_key_file,omitempty"`
}

// Limits bound memory and what is at risk.
type Limits struct {
	Memory      Size `yaml:"memory,omitempty"`       // soft limit of the process; 0: none
	MapMemory   Size `yaml:"map_memory,omitempty"`   // leaves of the volumes' maps kept in memory
	CacheMemory Size `yaml:"cache_memory,omitempty"` // read cache
	Connection  Size `yaml:"connection,omitempty"`   // buffers of one client connection
	Connections int  `yaml:"connections,omitempty"`  // client connections of the node
	// ClientMemory is for the buffers of all client connections together.
	ClientMemory Size `yaml:"client_memory,omitempty"`

	Unsynced    Size `yaml:"unsynced,omitempty"`     // acknowledged and not yet stable, per journal (R8)
	SegmentSize Size `yaml:"segment_size,omitempty"` // a segment is sealed at this size
	RepairRate  Size `yaml:"repair_rate,omitempty"`  // bytes a second that this node's owners copy to repair, to empty stores and to even their use out; 0: no limit
}

// Timeouts are the times that decide when something counts as gone.
type Timeouts struct {
	Lease        Duration `yaml:"lease,omitempty"`         // R6: grants of the right to read
	Append       Duration `yaml:"append,omitempty"`        // an append that takes longer is treated as failed
	SyncInterval Duration `yaml:"sync_interval,omitempty"` // unsynced writes are synced at least this often
	RepairGrace  Duration `yaml:"repair_grace,omitempty"`  // a node may be away so long before its replicas are made anew
	ScrubPeriod  Duration `yaml:"scrub_period,omitempty"`  // everything that a store has is read and verified once in it
	IdleSeal     Duration `yaml:"idle_seal,omitempty"`     // R4: an idle tail is sealed
	Follow       Duration `yaml:"follow"`                  // writes from elsewhere only for so long: the owner hands over; 0: never
	Control      Duration `yaml:"control,omitempty"`       // an operation of the control store
	Shutdown     Duration `yaml:"shutdown,omitempty"`      // draining when the process is told to end
}

// Log says what is logged, to standard error.
type Log struct {
	Level  string `yaml:"level,omitempty"`  // debug, info, warn, error
	Format string `yaml:"format,omitempty"` // text, json
}

// Duration is a time.Duration written as Go does: 1s, 10m, 1h30m.
type Duration time.Duration

// Size is a number of bytes, written as people do: 4096, 64KiB, 20G (binary units either way).
type Size int64

// Endpoint is an IP address and a port; the port may be left out in the file, and is then filled in.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
}
