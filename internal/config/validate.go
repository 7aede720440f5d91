package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"dozo/internal/ident"
)

// name is what a cluster, site or node may be called; it stands in certificates and keys of the control store.
var name = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

var clusterID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// socketPathMax is what a unix socket's address holds (sun_path in unix(7)) with its final zero.
const socketPathMax = 107

// Bounds of limits and timeouts: what lies outside can not work or is surely a slip.
const (
	segmentMin    = 1 << 20
	segmentMax    = 64 << 20 // what a map can point into, docs/format.md
	unsyncedMin   = 1 << 20
	mapMemoryMin  = 16 << 20
	connectionMin = 1 << 20  // one record at its usual most
	clientsMin    = 64 << 20 // the largest command, twice
	followMin     = time.Second
	followMax     = 10 * time.Minute
	leaseMin      = 200 * time.Millisecond
	leaseMax      = 10 * time.Second
)

// problems gathers everything that is wrong, so that one attempt shows all.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

// Validate checks a complete configuration (Load's, or one that is about to be written). Every message names
// the key, what is wrong, and what to do.
func (c *Config) Validate() error {
	var p problems
	c.checkNames(&p)
	c.checkAddresses(&p)
	c.checkDiscovery(&p)
	c.checkStores(&p)
	c.checkControl(&p)
	c.checkLimits(&p)
	c.checkTimeouts(&p)
	switch c.CPULatency {
	case CPULatencyAuto, CPULatencyOff:
	default:
		p.add("cpu_latency: %q: want %s or %s", c.CPULatency, CPULatencyAuto, CPULatencyOff)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		p.add("log.level: %q: want debug, info, warn or error", c.Log.Level)
	}
	switch c.Log.Format {
	case "text", "json":
	default:
		p.add("log.format: %q: want text or json", c.Log.Format)
	}
	return errors.Join(p...)
}

func (c *Config) checkNames(p *problems) {
	for _, n := range []struct{ key, value string }{{"cluster.name", c.Cluster.Name}, {"node", string(c.Node)}} {
		if n.value == "" {
			p.add("%s is missing", n.key)
		} else if !name.MatchString(n.value) {
			p.add("%s: %q: want 1 to 63 letters and digits, with . _ - between them", n.key, n.value)
		}
	}
	if c.Cluster.ID != "" && !clusterID.MatchString(c.Cluster.ID) {
		p.add("cluster.id: %q: want 32 hexadecimal digits; leave it out to take it from the node's certificate", c.Cluster.ID)
	}
	if len(c.Roles) == 0 {
		p.add("roles: want at least one of core, access, hint, or witness alone")
	}
	for i, r := range c.Roles {
		switch r {
		case RoleCore, RoleAccess, RoleHint, RoleWitness:
		default:
			p.add("roles: %q: want core, access, hint or witness", r)
		}
		if slices.Contains(c.Roles[:i], r) {
			p.add("roles: %s is listed twice", r)
		}
	}
	if c.Has(RoleWitness) && len(c.Roles) > 1 {
		p.add("roles: a witness has no other role: it is a voter of the control store and nothing else")
	}
	if c.Site.Name == "" && !c.Has(RoleWitness) {
		p.add("site.name is missing: every node but a witness is at a site")
	}
	if c.Site.Name != "" && !name.MatchString(c.Site.Name) {
		p.add("site.name: %q: want 1 to 63 letters and digits, with . _ - between them", c.Site.Name)
	}
	for _, n := range c.Site.CIDRs {
		if n != n.Masked() {
			p.add("site.cidrs: %s has bits behind its length; want %s", n, n.Masked())
		}
	}
	if c.StateDir == "" {
		p.add("state_dir is missing")
	}
	if len(c.Socket) > socketPathMax {
		p.add("socket: %s has %d bytes, and a unix socket's path at most %d: give a shorter one, such as /run/dozo/api.sock", c.Socket, len(c.Socket), socketPathMax)
	}
	if c.TLS.CAFile == "" || c.TLS.NodeFile == "" {
		p.add("tls: ca_file and node_file are both needed")
	}
}

func (c *Config) checkAddresses(p *problems) {
	check := func(key string, e Endpoint) {
		if err := e.dialable(); err != nil {
			p.add("%s %v (or give address)", key, err)
		}
	}
	if c.Address.IsValid() {
		if err := (Endpoint{Addr: c.Address.Addr}).dialable(); err != nil {
			p.add("address %v", err)
		}
	}
	if !c.Has(RoleWitness) {
		check("cluster_address", c.ClusterAddr)
		check("wan_address", c.WanAddr)
	}
	check("management_address", c.ManagementAddr)
	if c.Has(RoleAccess) && len(c.Portals) == 0 {
		p.add("portals: an access server needs at least one (or give address)")
	}
	if !c.Has(RoleAccess) && len(c.Portals) > 0 {
		p.add("portals: the node hasn't the role access: add it, or leave the portals out")
	}
	for i, e := range c.Portals {
		check(fmt.Sprintf("portals[%d]", i), e)
	}
	// Two listeners can't share an address, apart from one that is meant for both.
	seen := make(map[Endpoint]string)
	listen := func(key string, e Endpoint) {
		if e.IsZero() {
			return
		}
		if other, ok := seen[e]; ok {
			p.add("%s: %s is already the address of %s: give it another port", key, e, other)
			return
		}
		seen[e] = key
	}
	listen("cluster_address", c.ClusterAddr)
	if c.WanAddr != c.ClusterAddr {
		listen("wan_address", c.WanAddr)
	}
	listen("management_address", c.ManagementAddr)
	for i, e := range c.Portals {
		listen(fmt.Sprintf("portals[%d]", i), e)
	}
	listen("control.client_address", c.Control.ClientAddress)
	listen("control.peer_address", c.Control.PeerAddress)
}

func (c *Config) checkStores(p *problems) {
	if c.Has(RoleCore) && len(c.Stores) == 0 {
		p.add("stores: a core server needs at least one, a directory on a disk of its own")
	}
	if !c.Has(RoleCore) && len(c.Stores) > 0 {
		p.add("stores: the node hasn't the role core: add it, or leave the stores out")
	}
	labels := make(map[string]bool)
	for i, s := range c.Stores {
		if s.Path == "" {
			p.add("stores[%d].path is missing", i)
			continue
		}
		for _, o := range c.Stores[:i] {
			if within(s.Path, o.Path) || within(o.Path, s.Path) {
				p.add("stores[%d].path: %s and %s are one directory or within each other: want one directory per disk", i, s.Path, o.Path)
			}
		}
		if s.Label != "" && labels[s.Label] {
			p.add("stores[%d].label: %q is the label of two stores", i, s.Label)
		}
		labels[s.Label] = true
		if s.Spare != nil && *s.Spare < 0 {
			p.add("stores[%d].spare: %s is below 0", i, *s.Spare)
		}
		if s.Throttle < 0 {
			p.add("stores[%d].throttle: %s is below 0", i, s.Throttle)
		}
		if s.Capacity != 0 && s.Capacity <= s.Reserve {
			p.add("stores[%d]: capacity %s leaves nothing above reserve %s", i, s.Capacity, s.Reserve)
		}
	}
}

// within reports whether the path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func (c *Config) checkControl(p *problems) {
	ctl := c.Control
	if c.Has(RoleWitness) && !ctl.Embedded {
		p.add("control.embedded: a witness is a voter: set it to true")
	}
	if ctl.Embedded && ctl.External {
		p.add("control: embedded and external exclude each other")
	}
	if len(ctl.Endpoints) == 0 {
		p.add("control.endpoints is missing: where the voters take clients (port %d), or an external etcd", PortControlClient)
	}
	for i, e := range ctl.Endpoints {
		if err := e.dialable(); err != nil {
			p.add("control.endpoints[%d] %v", i, err)
		}
	}
	if !ctl.External {
		if ctl.CAFile != "" || ctl.CertFile != "" || ctl.KeyFile != "" || ctl.Prefix != "" {
			p.add("control: ca_file, cert_file, key_file and prefix are for an external control store; the cluster's own uses the cluster's certificates")
		}
	} else {
		if (ctl.CertFile == "") != (ctl.KeyFile == "") {
			p.add("control: cert_file and key_file are given together or not at all")
		}
		if n := len(ctl.Prefix); n > 0 && (ctl.Prefix[0] != '/' || ctl.Prefix[n-1] != '/') {
			p.add("control.prefix: %q: want it to begin and end with /", ctl.Prefix)
		}
	}
	if !ctl.Embedded {
		if !ctl.PeerAddress.IsZero() || !ctl.ClientAddress.IsZero() || len(ctl.InitialCluster) > 0 || ctl.Join {
			p.add("control: client_address, peer_address, initial_cluster and join are for a voter: set embedded to true, or leave them out")
		}
		return
	}
	for key, e := range map[string]Endpoint{"control.client_address": ctl.ClientAddress, "control.peer_address": ctl.PeerAddress} {
		if err := e.dialable(); err != nil {
			p.add("%s %v (or give address)", key, err)
		}
	}
	if ctl.Join {
		if len(ctl.InitialCluster) > 0 {
			p.add("control: initial_cluster is not for a voter that joins: it asks the voters at the endpoints")
		}
		return
	}
	seen := make(map[ident.NodeName]bool)
	for i, v := range ctl.InitialCluster {
		if err := v.Peer.dialable(); err != nil {
			p.add("control.initial_cluster[%d].peer %v", i, err)
		}
		if !name.MatchString(string(v.Node)) || seen[v.Node] {
			p.add("control.initial_cluster[%d].node: %q is no node's name, or is listed twice", i, v.Node)
		}
		seen[v.Node] = true
	}
	i := slices.IndexFunc(ctl.InitialCluster, func(v Voter) bool { return v.Node == c.Node })
	switch {
	case i < 0:
		p.add("control.initial_cluster: %s itself is missing: list all first voters, alike on all of them", c.Node)
	case ctl.InitialCluster[i].Peer != ctl.PeerAddress:
		p.add("control.initial_cluster[%d].peer: %s is not control.peer_address %s", i, ctl.InitialCluster[i].Peer, ctl.PeerAddress)
	}
}

func (c *Config) checkLimits(p *problems) {
	l := c.Limits
	for _, x := range []struct {
		key             string
		value, min, max Size
	}{
		{"map_memory", l.MapMemory, mapMemoryMin, 1 << 50},
		{"connection", l.Connection, connectionMin, 1 << 40},
		{"client_memory", l.ClientMemory, clientsMin, 1 << 40},
		{"unsynced", l.Unsynced, unsyncedMin, 1 << 40},
		{"segment_size", l.SegmentSize, segmentMin, segmentMax},
	} {
		if x.value < x.min || x.value > x.max {
			p.add("limits.%s: %s: want %s to %s", x.key, x.value, x.min, x.max)
		}
	}
	if l.Connections < 1 {
		p.add("limits.connections: %d: want at least 1", l.Connections)
	}
	if need := l.MapMemory + l.CacheMemory; l.Memory != 0 && l.Memory < need {
		p.add("limits.memory: %s is below map_memory and cache_memory together (%s)", l.Memory, need)
	}
}

func (c *Config) checkTimeouts(p *problems) {
	t := c.Timeouts
	if d := time.Duration(t.Lease); d < leaseMin || d > leaseMax {
		p.add("timeouts.lease: %s: want %v to %v: it is how long a takeover waits, and an owner lives without word", t.Lease, leaseMin, leaseMax)
	}
	for _, x := range []struct {
		key   string
		value Duration
	}{{"append", t.Append}, {"sync_interval", t.SyncInterval}, {"repair_grace", t.RepairGrace}, {"scrub_period", t.ScrubPeriod}, {"idle_seal", t.IdleSeal}, {"control", t.Control}, {"shutdown", t.Shutdown}} {
		if x.value <= 0 {
			p.add("timeouts.%s: %s: want a positive time", x.key, x.value)
		}
	}
	if f := time.Duration(t.Follow); f != 0 && (f < followMin || f > followMax) {
		p.add("timeouts.follow: %s: want %v to %v, or 0s for never", t.Follow, followMin, followMax)
	}
}
