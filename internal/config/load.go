package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// fileMax bounds what is read: a configuration is some kilobytes.
const fileMax = 1 << 20

// Default has what holds where a file is silent. It is not a valid configuration by itself: it names no
// cluster, node, site or address.
func Default() *Config {
	return &Config{
		Roles:    []Role{RoleCore, RoleAccess},
		StateDir: "/var/lib/dozo",
		TLS:      TLS{CAFile: "ca.crt", NodeFile: "node.pem", CAKeyFile: "ca.key"},
		Limits: Limits{
			MapMemory:    1 << 30, // half a TiB written wholly at random
			CacheMemory:  512 << 20,
			Connection:   16 << 20, // a bandwidth-delay product of 1.2 Gbit/s over 100 ms
			Connections:  1024,
			ClientMemory: 1 << 30,  // a guess: 32 connections that use all they may
			Unsynced:     64 << 20, // R8
			SegmentSize:  32 << 20,
			RepairRate:   128 << 20, // a guess: what one disk reads beside its clients
		},
		Timeouts: Timeouts{
			Lease:        Duration(500 * time.Millisecond),
			Append:       Duration(800 * time.Millisecond),
			SyncInterval: Duration(time.Second),
			RepairGrace:  Duration(10 * time.Minute),
			ScrubPeriod:  Duration(14 * 24 * time.Hour),
			IdleSeal:     Duration(time.Minute),
			Follow:       Duration(2 * time.Second),
			Control:      Duration(10 * time.Second),
			Shutdown:     Duration(20 * time.Second),
		},
		Log: Log{Level: "info", Format: "text"}, CPULatency: CPULatencyAuto,
	}
}

// Load reads a file, fills in what it leaves out and checks it. Errors name the file, and the line where there
// is one.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if len(text) > fileMax {
		return nil, fmt.Errorf("configuration %s: larger than %s: this is not a configuration", path, Size(fileMax))
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	c, err := Parse(text, filepath.Dir(abs))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse is Load without the file; relative paths are taken from dir.
func Parse(text []byte, dir string) (*Config, error) {
	c := Default()
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		return nil, Explain(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is a second YAML document in it: want one")
	}
	c.fill(dir)
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Explain turns the words of the YAML decoder, which name types of the program, into those for a file's reader.
func Explain(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return err
	}
	out := make([]error, len(te.Errors))
	for i, m := range te.Errors {
		if line, rest, ok := strings.Cut(m, ": field "); ok {
			if key, _, ok := strings.Cut(rest, " not found in type "); ok {
				m = fmt.Sprintf("%s: unknown key %q", line, key)
			}
		}
		out[i] = errors.New(m)
	}
	return errors.Join(out...)
}

// fill makes the configuration complete: addresses from Address, ports, absolute paths.
func (c *Config) fill(dir string) {
	abs := func(p *string, base string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(base, *p)
		}
	}
	abs(&c.StateDir, dir)
	for _, p := range []*string{&c.TLS.CAFile, &c.TLS.NodeFile, &c.TLS.CAKeyFile} {
		abs(p, c.StateDir)
	}
	for _, p := range []*string{&c.Control.CAFile, &c.Control.CertFile, &c.Control.KeyFile} {
		abs(p, dir)
	}
	for i := range c.Stores {
		abs(&c.Stores[i].Path, dir)
		if c.Stores[i].Reserve == 0 {
			c.Stores[i].Reserve = reserveDefault
		}
	}
	if c.Socket == "" {
		c.Socket = "api.sock"
	}
	abs(&c.Socket, c.StateDir)

	c.ClusterAddr = c.ClusterAddr.or(c.Address.Addr, PortFrames)
	if c.WanAddr.IsZero() {
		c.WanAddr = c.ClusterAddr // one listener serves both
	}
	c.WanAddr = c.WanAddr.orPort(PortFrames)
	c.ManagementAddr = c.ManagementAddr.or(c.Address.Addr, PortAPI)
	if len(c.Portals) == 0 && c.Has(RoleAccess) && c.Address.IsValid() {
		c.Portals = []Endpoint{{Addr: c.Address.Addr}}
	}
	for i := range c.Portals {
		c.Portals[i] = c.Portals[i].orPort(PortISCSI)
	}
	abs(&c.Discovery.SecretFile, dir)
	abs(&c.Discovery.TargetSecretFile, dir)
	for i := range c.ISNS.Servers {
		c.ISNS.Servers[i] = c.ISNS.Servers[i].orPort(PortISNS)
	}
	ctl := &c.Control
	if ctl.Embedded {
		ctl.PeerAddress = ctl.PeerAddress.or(c.Address.Addr, PortControlPeer)
		ctl.ClientAddress = ctl.ClientAddress.or(c.Address.Addr, PortControlClient)
		if len(ctl.Endpoints) == 0 && !ctl.ClientAddress.IsZero() {
			ctl.Endpoints = []Endpoint{ctl.ClientAddress}
		}
		if len(ctl.InitialCluster) == 0 && !ctl.Join && !ctl.PeerAddress.IsZero() {
			ctl.InitialCluster = []Voter{{Node: c.Node, Peer: ctl.PeerAddress}}
		}
	}
	for i := range ctl.InitialCluster {
		ctl.InitialCluster[i].Peer = ctl.InitialCluster[i].Peer.orPort(PortControlPeer)
	}
	port := uint16(PortControlClient)
	if ctl.External {
		port = portEtcd
	}
	for i := range ctl.Endpoints {
		ctl.Endpoints[i] = ctl.Endpoints[i].orPort(port)
	}
}

// reserveDefault holds the fences of a million journals with room to spare.
const reserveDefault = 256 << 20

// portEtcd is IANA's port of etcd clients.
const portEtcd = 2379

// Has reports whether the node has the role.
func (c *Config) Has(r Role) bool {
	for _, x := range c.Roles {
		if x == r {
			return true
		}
	}
	return false
}

// Marshal writes a file that Load reads back as the same configuration. Comments that explain the keys are in
// the reference, not here.
func (c *Config) Marshal() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# dozo: configuration of node " + string(c.Node) + ". Every key: docs/reference/configuration.md\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(c); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}
