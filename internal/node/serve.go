package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dozo/internal/access"
	"dozo/internal/access/export"
	"dozo/internal/access/iscsi"
	"dozo/internal/api"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/cpulatency"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/peer"
	"dozo/internal/pki"
	"dozo/internal/version"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Node is one running process.
type Node struct {
	cfg      *config.Config
	log      *slog.Logger
	id       *pki.Identity
	reg      *prometheus.Registry
	boot     ident.BootID
	instance uint64
	started  time.Time

	voter  atomic.Pointer[control.Embedded]
	ctl    atomic.Pointer[control.Client]
	self   atomic.Pointer[control.Node]
	stores map[ident.StoreID]*core.Store
	known  knownStores // of all nodes
	leases *core.Leases
	pool   *peer.Pool
	frames *peer.Server
	keeper *access.LeaseKeeper
	awake  *cpulatency.Keeper // nil when off
	access *access.Server
	export *export.Exports
	iscsi  *iscsi.Server
	leave  atomic.Pointer[export.Exports] // once there may be sessions

	state struct {
		sync.Mutex
		name     string
		problems []string
	}
	wg sync.WaitGroup
}

// Serve runs the node of a configuration file until ctx ends.
func Serve(ctx context.Context, configFile string, out io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	if cfg.Has(config.RoleWitness) {
		return fmt.Errorf("%s: a witness is started by: dozo witness --config %s", configFile, configFile)
	}
	return run(ctx, cfg, out)
}

// Witness runs a voter of the control store and nothing else.
func Witness(ctx context.Context, configFile string, out io.Writer) error {
	cfg, err := config.Load(configFile)
	if err != nil {
		return err
	}
	if !cfg.Has(config.RoleWitness) {
		return fmt.Errorf("%s: the node's roles don't include witness; start it by: dozo serve --config %s", configFile, configFile)
	}
	return run(ctx, cfg, out)
}

func newLogger(c config.Log, out io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked when it was loaded
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, o))
	}
	return slog.New(slog.NewTextHandler(out, o))
}

func run(ctx context.Context, cfg *config.Config, out io.Writer) (err error) {
	n := &Node{cfg: cfg, log: newLogger(cfg.Log, out).With("node", string(cfg.Node)), instance: peer.NewInstance(), started: time.Now(),
		stores: map[ident.StoreID]*core.Store{}, reg: prometheus.NewRegistry()}
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.setState("starting")
	if cfg.Limits.Memory > 0 {
		debug.SetMemoryLimit(int64(cfg.Limits.Memory))
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	if n.boot, err = ident.ParseBootID(string(text)); err != nil {
		return err
	}
	if err := appointed(cfg); err != nil {
		return err
	}
	if n.id, err = pki.Load(cfg.TLS.CAFile, cfg.TLS.NodeFile); err != nil {
		return err
	}
	if self := n.id.Self(); self.Name != string(cfg.Node) {
		return fmt.Errorf("certificate %s is of node %s, the configuration is of %s", cfg.TLS.NodeFile, self.Name, cfg.Node)
	}
	n.log.Info("dozo starts", "version", version.Get().Version, "boot", n.boot.String())

	// From here on parts are running; they end in the reverse order.
	stop := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop))
	leaving := make(chan struct{})
	// What runs is told to end once initiators have been asked to go elsewhere.
	unasked := context.AfterFunc(stop, func() {
		defer close(leaving)
		if e := n.leave.Load(); e != nil {
			e.Leave()
		}
		cancel()
	})
	var closers []func()
	defer func() {
		n.setState("stopping")
		if !unasked() {
			<-leaving
		}
		cancel()
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
		n.wg.Wait()
		n.log.Info("dozo ends", "err", err)
	}()
	onClose := func(f func()) { closers = append(closers, f) }
	fatal := make(chan error, 8)

	if err := n.serveAPI(onClose, fatal); err != nil {
		return err
	}
	if err := n.openStores(onClose); err != nil {
		return err
	}
	if err := n.startControl(ctx, onClose, fatal); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if !cfg.Has(config.RoleWitness) {
		if cfg.CPULatency == config.CPULatencyAuto {
			n.awake = cpulatency.New(n.log, cpulatency.Device)
			n.wg.Go(func() { n.awake.Run(ctx) })
			n.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dozo_processors_kept_awake",
				Help: "1 while the processors of the machine are kept from deep sleep for this node's requests."}, func() float64 {
				if n.awake.Held() {
					return 1
				}
				return 0
			}))
		}
		if err := n.startPeers(ctx, onClose, fatal); err != nil {
			return err
		}
	}
	if cfg.Has(config.RoleAccess) {
		if err := n.startAccess(ctx, onClose, fatal); err != nil {
			return err
		}
	}
	if len(n.stores) > 0 {
		n.wg.Go(func() { n.buryDeleted(ctx) })
	}
	n.startBlocks(ctx, fatal)
	n.wg.Go(func() { n.keepCertificate(ctx) })
	n.setState("ready")
	n.log.Info("dozo is ready", "took", time.Since(n.started).Round(time.Millisecond))
	select {
	case <-ctx.Done():
		return nil
	case err := <-fatal:
		return err
	}
}

func (n *Node) setState(s string) {
	n.state.Lock()
	n.state.name = s
	n.state.Unlock()
}

// control is the control store, nil while it hasn't been reached.
func (n *Node) control() *control.Client { return n.ctl.Load() }

func (n *Node) revoked(serial string) bool {
	c := n.control()
	return c != nil && c.Revoked(serial)
}

// serveAPI opens the API first, so that /healthz can say how the start goes on.
func (n *Node) serveAPI(onClose func(func()), fatal chan<- error) error {
	srv := api.NewServer(api.Options{Node: string(n.cfg.Node), Log: n.log, Backend: &backend{n}, Registerer: n.reg,
		Peer:    func(cs tls.ConnectionState) (pki.Peer, error) { return n.id.Check(cs, n.revoked) },
		Metrics: promhttp.HandlerFor(n.reg, promhttp.HandlerOpts{})})
	onClose(func() { _ = srv.Close() })
	l, err := net.Listen("tcp", n.cfg.ManagementAddr.String())
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	n.wg.Go(func() {
		if err := srv.Serve(l, n.id.APIServer(n.revoked, "h2", "http/1.1")); err != nil {
			fatal <- fmt.Errorf("API: %w", err)
		}
	})
	if n.cfg.Socket == "" {
		return nil
	}
	u, err := api.ListenSocket(n.cfg.Socket)
	if err != nil {
		return fmt.Errorf("API: %w", err)
	}
	n.wg.Go(func() {
		if err := srv.ServeSocket(u); err != nil {
			fatal <- fmt.Errorf("API socket: %w", err)
		}
	})
	return nil
}

// openStores opens the core server's disks. They come before the control store: what they hold does not depend
// on it.
func (n *Node) openStores(onClose func(func())) error {
	if !n.cfg.Has(config.RoleCore) {
		return nil
	}
	clock := func() time.Duration { return time.Duration(Clock()) }
	most := 2 * time.Duration(n.cfg.Timeouts.Lease)
	n.leases = core.NewLeases(clock, most, n.boot)
	for _, s := range n.cfg.Stores {
		fsys := vfs.Default
		if s.Throttle > 0 {
			fsys = vfs.Throttled(fsys, int64(s.Throttle))
		}
		st, err := core.Open(core.Options{FS: fsys, CapacityBytes: uint64(s.Capacity), Dir: s.Path, Create: true, Cluster: n.id.ClusterID(), Boot: n.boot, Clock: clock,
			Logger: n.log.With("store", s.Path), Metrics: n.reg, Leases: n.leases, LeaseMax: most,
			ReserveBytes: uint64(s.Reserve), SpareBytes: s.SpareBytes(), SyncAfter: time.Duration(n.cfg.Timeouts.SyncInterval), UnsyncedMax: int64(n.cfg.Limits.Unsynced),
			Peers: n.storeOf, FailMarkDir: markDir(n.cfg.StateDir),
			OnCorrupt: func(segment ident.SegmentID, offset uint32, err error) {
				n.log.Error("bad checksum on disk", "segment", segment.String(), "offset", offset, "err", err)
			}})
		if err != nil {
			return err // names the store
		}
		onClose(func() {
			if err := st.Close(); err != nil {
				n.log.Error("close store", "store", s.Path, "err", err)
			}
		})
		n.leases.Add(st)
		n.stores[st.ID()] = st
	}
	return nil
}

// markDir is where stores that have failed are marked until the host boots anew (R8): on a file system in memory
// where this process may write to one, else beside the node's state. A mark names the boot that it holds for, so
// one that outlives it means nothing.
func markDir(state string) string {
	for _, dir := range []string{"/run/dozo", filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "dozo")} {
		if !filepath.IsAbs(dir) || os.MkdirAll(dir, 0o700) != nil {
			continue
		}
		if f, err := os.CreateTemp(dir, "try-"); err == nil {
			f.Close()
			os.Remove(f.Name())
			return dir
		}
	}
	return filepath.Join(state, "failed-stores")
}

// storeHealth puts into the log and among the events that a store begins to be avoided, or is used again.
func (n *Node) storeHealth(s access.StoreHealth) {
	e := control.Event{Time: time.Now(), Actor: "node/" + string(n.cfg.Node), Action: "store.used", Object: "store/" + s.Store.String(), Note: "used again"}
	if s.Why != "" {
		e.Action, e.Note = "store.avoided", s.Why
		n.log.Warn("store is avoided", "store", s.Store.String(), "err", s.Why, "failures", s.Failures, "left", s.Left.Round(time.Millisecond))
	} else {
		n.log.Info("store is used again", "store", s.Store.String())
	}
	n.record(e)
}

// record adds an event without waiting for it.
func (n *Node) record(e control.Event) {
	n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := n.control().AppendEvent(ctx, e); err != nil {
			n.log.Warn("event not recorded", "action", e.Action, "object", e.Object, "err", err)
		}
	})
}

// followAfter is timeouts.follow as the access role's limits have it: below 0 for never.
func followAfter(d config.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return time.Duration(d)
}

// followed puts a hand-over that nobody asked for among the events, as one that somebody did is.
func (n *Node) followed(v control.VolumeSpec, to ident.NodeName, pause time.Duration, err error) {
	e := control.Event{Time: time.Now(), Actor: "node/" + string(n.cfg.Node), Action: "volume.move", Object: "volume/" + v.Tenant + "/" + v.Name,
		Note: fmt.Sprintf("to %s, where all writes come from, pause %v", to, pause.Round(time.Millisecond))}
	if err != nil {
		e.Note = fmt.Sprintf("to %s, where all writes come from: %v", to, err)
	}
	n.record(e)
}

// Files in the node's state directory.
const (
	controlDir = "control"
	crlFile    = "revoked.crl"
)

// startControl starts the voter that runs here, if any, connects, and registers the node.
func (n *Node) startControl(ctx context.Context, onClose func(func()), fatal chan<- error) error {
	c := n.cfg.Control
	endpoints := n.voterURLs()
	tlsConf := n.id.NodeClient("", n.revoked)
	crl := filepath.Join(n.cfg.StateDir, crlFile)
	onClose(func() {
		if e := n.voter.Load(); e != nil {
			_ = e.Close()
		}
	})
	if c.Embedded {
		if err := n.startVoter(ctx, c, fatal); err != nil {
			return err
		}
	}
	if c.External {
		conf, err := externalTLS(c)
		if err != nil {
			return err
		}
		tlsConf = conf
		endpoints = externalURLs(c, conf != nil)
	}
	ctl, err := control.OpenEtcd(ctx, control.EtcdConfig{Endpoints: endpoints, TLS: tlsConf, Prefix: c.Prefix},
		control.Options{Log: n.log, Timeout: time.Duration(n.cfg.Timeouts.Control)})
	if err != nil {
		return fmt.Errorf("control store: %w", err)
	}
	onClose(func() { _ = ctl.Close() })
	if err := n.register(control.WithActor(ctx, "node/"+string(n.cfg.Node)), ctl); err != nil {
		return err
	}
	n.ctl.Store(ctl)
	n.wg.Go(func() { n.keepRevocations(ctx, ctl, crl) })
	n.wg.Go(func() { n.settleControl(ctx) })
	if !c.External {
		n.wg.Go(func() { n.keepVoters(ctx, ctl) })
		n.wg.Go(func() { n.keepAppointed(ctx, ctl, fatal) })
	}
	return nil
}

// startVoter starts the voter of the control store that runs here.
func (n *Node) startVoter(ctx context.Context, c config.Control, fatal chan<- error) error {
	files, err := n.id.Etcd(n.cfg.TLS.CAFile, filepath.Join(n.cfg.StateDir, crlFile), nil)
	if err != nil {
		return err
	}
	voter := control.EmbeddedConfig{Name: n.cfg.Node, Dir: filepath.Join(n.cfg.StateDir, controlDir), ListenPeer: addrPort(c.PeerAddress),
		ListenClient: addrPort(c.ClientAddress), Join: c.Join, ClusterID: n.id.ClusterID(), TLS: files, Revoked: n.revoked, Log: n.log}
	for _, v := range c.InitialCluster {
		voter.Initial = append(voter.Initial, control.VoterAddr{Name: v.Node, Peer: addrPort(v.Peer)})
	}
	if _, err := finishRestore(n.cfg.StateDir, time.Now()); err != nil {
		return fmt.Errorf("control store: %w", err)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.StateDir, joinFile)); err == nil {
		c.Join, voter.Join = true, true // it was restored on another voter
	}
	switch {
	case c.Join && !control.HasVoterData(voter.Dir):
		if err := n.joinVoters(ctx, &voter, n.voterURLs(), n.id.NodeClient("", n.revoked)); err != nil {
			return err
		}
	case c.Join: // it may have been stopped before it got its vote
		n.wg.Go(func() { n.takeVote(ctx) })
	}
	e, err := control.StartEmbedded(ctx, voter)
	if err != nil {
		return fmt.Errorf("control store: %w", err)
	}
	n.voter.Store(e)
	n.wg.Go(func() {
		select {
		case err := <-e.Failed():
			fatal <- fmt.Errorf("control store: %w", err)
		case <-ctx.Done():
		}
	})
	return nil
}

func addrPort(e config.Endpoint) netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }

// register writes this node's entry, and cluster and site if they are not there yet.
func (n *Node) register(ctx context.Context, ctl *control.Client) error {
	name := n.cfg.Cluster.Name
	cl, err := ctl.InitCluster(ctx, control.Cluster{ID: n.id.ClusterID(), Name: name})
	if err != nil {
		return fmt.Errorf("cluster %s: %w", name, err)
	}
	if cl.ID != n.id.ClusterID() {
		return fmt.Errorf("the control store is of cluster %s, this node's certificate of %s", cl.ID, n.id.ClusterID())
	}
	var site ident.SiteID
	if s := n.cfg.Site; s.Name != "" {
		have, ok := ctl.SiteByName(s.Name)
		if r, anew := ctl.Restoration(); !ok && anew && r.Pending() {
			// Segments are named by the site's number, which a control store that was rebuilt does not know.
			if have, ok = n.ownSite(s.Name); ok {
				if err := ctl.KeepSite(ctx, have); err != nil && !errors.Is(err, control.ErrExists) {
					return fmt.Errorf("site %s: %w", s.Name, err)
				}
			}
		}
		if !ok {
			have, err = ctl.CreateSite(ctx, control.Site{Name: s.Name, CIDRs: s.CIDRs})
			if errors.Is(err, control.ErrExists) {
				err = nil
				for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					if have, ok = ctl.SiteByName(s.Name); ok {
						break
					}
					if time.Now().After(deadline) {
						return fmt.Errorf("site %s: another node has made it, but it is not seen", s.Name)
					}
				}
			}
			if err != nil {
				return fmt.Errorf("site %s: %w", s.Name, err)
			}
		}
		site = have.ID
	}
	hostID := n.cfg.HostID
	if hostID == "" {
		b, err := os.ReadFile("/etc/machine-id")
		if err != nil {
			return fmt.Errorf("host identity: %w; set host_id in the configuration", err)
		}
		hostID = strings.TrimSpace(string(b))
	}
	voter := n.voter.Load()
	e := control.Node{Name: n.cfg.Node, Site: site, HostID: hostID, Version: version.Get().Version, Voter: voter != nil,
		Addrs: control.Addrs{Cluster: addrPort(n.cfg.ClusterAddr), Wan: addrPort(n.cfg.WanAddr), Management: addrPort(n.cfg.ManagementAddr)}}
	if voter != nil {
		e.Addrs.ControlURL = voter.ClientURL()
	}
	for _, r := range n.cfg.Roles {
		e.Roles = append(e.Roles, control.Role(r))
	}
	for _, p := range n.cfg.Portals {
		e.Addrs.Portals = append(e.Addrs.Portals, control.Portal{Addr: addrPort(p)})
	}
	for i, s := range n.cfg.Stores {
		for _, st := range n.stores {
			if st.Dir() == s.Path {
				if ctl.StoreLost(st.ID()) {
					n.log.Error("store was declared lost and is not used: move its directory away, and a new one is made there at the next start", "store", s.Path, "id", st.ID().String())
					st.GiveUp("it was declared lost: it is not used any more")
					continue
				}
				status, err := st.Status(ctx, &wire.StoreStatus{})
				if err != nil {
					return fmt.Errorf("store %s: %w", s.Path, err)
				}
				label := s.Label
				if label == "" {
					label = fmt.Sprintf("disk%d", i)
				}
				e.Stores = append(e.Stores, control.StoreSpec{ID: st.ID(), Label: label, CapacityBytes: int64(status.Capacity)})
			}
		}
	}
	self, err := ctl.RegisterNode(ctx, e)
	if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	n.self.Store(&self)
	return ctl.Announce(n.cfg.Node)
}

// keepRevocations has the embedded voter's revocation list follow the control store.
func (n *Node) keepRevocations(ctx context.Context, ctl *control.Client, crl string) {
	changed, cancel := ctl.Subscribe()
	defer cancel()
	written := "none yet"
	for {
		if list := ctl.Revocations(); serials(list) != written && n.voter.Load() != nil {
			if err := pki.WriteCRL(crl, list, time.Now()); err != nil {
				n.log.Error("revocation list", "err", err)
			} else {
				written = serials(list)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// serials tells one set of revocations from another. Their number does not: old ones go when a new one comes.
func serials(list []pki.Revocation) string {
	all := make([]string, len(list))
	for i, r := range list {
		all[i] = r.Serial
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// endRevoked ends the connections of nodes whose certificate was revoked, those that they made and those that we
// made to them, as soon as it is known: a certificate is looked at only when a connection begins.
func (n *Node) endRevoked(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	known := ""
	for {
		if now := serials(ctl.Revocations()); now != known {
			known = now
			n.frames.Recheck()
			n.pool.Recheck()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// startPeers opens the port for frames and the connections to other nodes.
func (n *Node) startPeers(ctx context.Context, onClose func(func()), fatal chan<- error) error {
	o := peer.Options{Self: peer.Self{Cluster: n.id.ClusterID(), Node: n.cfg.Node, Instance: n.instance}, Log: n.log,
		ServerTLS: n.id.NodeServer(n.revoked),
		ClientTLS: func(name ident.NodeName) *tls.Config { return n.id.NodeClient(string(name), n.revoked) },
		Identify: func(cs tls.ConnectionState) (ident.NodeName, error) {
			p, err := n.id.Check(cs, n.revoked, pki.RoleNode, pki.RoleWitness)
			return ident.NodeName(p.Name), err
		},
		PlainData: n.cfg.PlainData, Busy: n.awake.Busy}
	pool, err := peer.NewPool(o)
	if err != nil {
		return err
	}
	onClose(pool.Close)
	n.pool = pool
	find := func(id ident.StoreID) (ident.NodeName, access.LeaseNode, bool) {
		if _, here := n.stores[id]; here {
			return n.cfg.Node, localLeases{n.leases}, true
		}
		node, ok := n.control().NodeOfStore(id)
		if !ok {
			return "", nil, false
		}
		return node.Name, n.peerOf(node), true
	}
	n.keeper = access.NewLeaseKeeper(n.cfg.Node, n.instance, time.Duration(n.cfg.Timeouts.Lease), Clock, n.log, find)
	onClose(n.keeper.Close)
	// The access role is made before frames are served, though it works only later: requests for it may come.
	if n.cfg.Has(config.RoleAccess) {
		env := access.Env{About: n.about, Copies: access.NewCopies(Clock, int64(n.cfg.Limits.RepairRate)), Health: access.NewHealth(Clock, n.storeHealth), Node: n.cfg.Node, Site: n.self.Load().Site, Stores: n, Leases: n.keeper, Control: n.control(), Clock: Clock, Log: n.log,
			Metrics: access.NewMetrics(n.reg), Far: access.NewFarCache(int64(n.cfg.Limits.CacheMemory)), Limits: access.Limits{SegmentBytes: uint32(n.cfg.Limits.SegmentSize),
				AppendTimeout: time.Duration(n.cfg.Timeouts.Append), RepairGrace: time.Duration(n.cfg.Timeouts.RepairGrace),
				MapBudgetBytes: int64(n.cfg.Limits.MapMemory), FollowAfter: followAfter(n.cfg.Timeouts.Follow)},
			Followed: n.followed}
		n.access = access.NewServer(env, n.accessPeer)
	}
	frames, err := peer.NewServer(handler{n}, o)
	if err != nil {
		return err
	}
	onClose(frames.Close)
	n.frames = frames
	seen := map[string]bool{}
	for _, e := range []config.Endpoint{n.cfg.ClusterAddr, n.cfg.WanAddr} {
		if addr := e.String(); !seen[addr] {
			seen[addr] = true
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("frames: %w", err)
			}
			n.wg.Go(func() {
				if err := frames.Accept(l); err != nil && ctx.Err() == nil {
					fatal <- fmt.Errorf("frames: %w", err)
				}
			})
		}
	}
	n.wg.Go(func() { n.keepPeers(ctx) })
	n.wg.Go(func() { n.endRevoked(ctx) })
	return nil
}

// keepPeers holds a connection to every node, so that who is up is known before it is needed.
func (n *Node) keepPeers(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	known := map[ident.NodeName]bool{}
	for {
		now := map[ident.NodeName]bool{}
		for _, x := range ctl.Nodes() {
			if x.Name != n.cfg.Node && x.Addrs.Cluster.IsValid() {
				now[x.Name] = true
				n.peerOf(x)
			}
		}
		for name := range known {
			if !now[name] {
				n.pool.Forget(name)
			}
		}
		known = now
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// startAccess opens the portals.
func (n *Node) startAccess(ctx context.Context, onClose func(func()), fatal chan<- error) error {
	n.wg.Go(func() { n.access.Run(ctx) })
	onClose(n.access.Close)
	n.export = export.New(n.access, n.control(), n.cfg.Node)
	in, out, err := n.cfg.Discovery.Secrets()
	if err != nil {
		return err
	}
	n.export.Discovery = iscsi.Credentials{Required: in != "", In: iscsi.Secret{Name: n.cfg.Discovery.User, Secret: in},
		Out: iscsi.Secret{Name: n.cfg.Discovery.TargetUser, Secret: out}}
	n.iscsi = iscsi.New(iscsi.Config{Provider: n.export, Log: n.log, Busy: n.awake.Busy, Group: n.self.Load().TPGT, ConnectionsMax: n.cfg.Limits.Connections,
		WriteMemory: int(n.cfg.Limits.Connection), ReadMemory: int(n.cfg.Limits.Connection)})
	onClose(func() { _ = n.iscsi.Close() })
	n.wg.Go(func() { n.endOrphans(ctx) })
	n.wg.Go(func() { n.export.Run(ctx) })
	n.leave.Store(n.export)
	for _, p := range n.cfg.Portals {
		l, err := net.Listen("tcp", p.String())
		if err != nil {
			return fmt.Errorf("portal: %w", err)
		}
		n.wg.Go(func() {
			if err := n.iscsi.Serve(l); err != nil && !errors.Is(err, iscsi.ErrServerClosed) {
				fatal <- fmt.Errorf("portal %s: %w", p, err)
			}
		})
	}
	return n.registerISNS(ctx)
}

// storeOf finds a store for a push.
func (n *Node) storeOf(id ident.StoreID) (journal.Store, error) {
	if st, ok := n.Store(id); ok {
		return st, nil
	}
	return nil, wire.Errorf(wire.CodeAbsent, "store %s is not registered", id)
}
