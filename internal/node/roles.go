package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/export"
	"dozo/internal/access/iscsi"
	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/peer"
	"dozo/internal/pki"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// openStores opens the core server's disks. They come before the control store: what they hold does not depend
// on it.
func (n *Node) openStores(onClose func(func())) error {
	if !n.cfg.Has(config.RoleCore) {
		return nil
	}
	clock := func() time.Duration { return time.Duration(Clock()) }
	most := leaseMost(time.Duration(n.cfg.Timeouts.Lease))
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
		far := core.NewBounded(st, max(diskPatience, 2*time.Duration(n.cfg.Timeouts.Append)), n.log)
		onClose(far.Close)
		n.bounded[st.ID()] = far
	}
	return nil
}

// diskPatience is how long other sites wait for an operation of a store's disk: what takes that long is no load any more. Who writes from there with a
// timeout, as an ensemble's member, gives up before.
const diskPatience = 5 * time.Second

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

// leaseSlow is the longest lease that owners get whose answers take long, where timeouts.lease is short.
const leaseSlow = 2 * time.Second

// leaseMost is the longest lease that is granted: a node whose timeouts.lease is longer than this one's, or that asks for a longer one as its answers
// take long, gets no more. Every start of a store waits for that long.
func leaseMost(lease time.Duration) time.Duration { return max(2*lease, min(4*lease, leaseSlow)) }

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

// startPeers opens the port for frames and the connections to other nodes.
func (n *Node) startPeers(ctx context.Context, onClose func(func()), fatal chan<- error) error {
	o := peer.Options{Self: peer.Self{Cluster: n.id.ClusterID(), Node: n.cfg.Node, Instance: n.instance}, Log: n.log,
		ServerTLS: n.id.NodeServer(n.revoked),
		ClientTLS: func(name ident.NodeName) *tls.Config { return n.id.NodeClient(string(name), n.revoked) },
		Identify: func(cs tls.ConnectionState) (ident.NodeName, error) {
			p, err := n.id.Check(cs, n.revoked, pki.RoleNode, pki.RoleWitness)
			return ident.NodeName(p.Name), err
		},
		PlainData: n.cfg.PlainData, Busy: n.awake.Busy, OnGone: n.nodeGone}
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
			Metrics: access.NewMetrics(n.reg), Maps: access.NewMapMemory(int64(n.cfg.Limits.MapMemory)), Far: access.NewFarCache(int64(n.cfg.Limits.CacheMemory)), Limits: access.Limits{SegmentBytes: uint32(n.cfg.Limits.SegmentSize),
				AppendTimeout: time.Duration(n.cfg.Timeouts.Append), RepairGrace: time.Duration(n.cfg.Timeouts.RepairGrace),
				FollowAfter: followAfter(n.cfg.Timeouts.Follow)},
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

// nodeGone has those look who need not wait for what a node's process did that has ended, as far as its host says: the voter
// here, which may have lost its leader, and the access role.
func (n *Node) nodeGone(name ident.NodeName) {
	if v := n.voter.Load(); v != nil {
		var deaf []ident.NodeName // they keep no connections to other nodes
		for _, x := range n.control().Nodes() {
			if x.Has(control.RoleWitness) {
				deaf = append(deaf, x.Name)
			}
		}
		v.NodeGone(name, deaf)
	}
	if n.access != nil {
		n.access.LookSoon()
	}
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
	n.export.Loads = n.sessionsOf
	in, out, err := n.cfg.Discovery.Secrets()
	if err != nil {
		return err
	}
	n.export.Discovery = iscsi.Credentials{Required: in != "", In: iscsi.Secret{Name: n.cfg.Discovery.User, Secret: in},
		Out: iscsi.Secret{Name: n.cfg.Discovery.TargetUser, Secret: out}}
	n.iscsi = iscsi.New(iscsi.Config{Provider: n.export, Log: n.log, Busy: n.awake.Busy, Group: n.self.Load().TPGT, ConnectionsMax: n.cfg.Limits.Connections,
		WriteMemory: int(n.cfg.Limits.Connection), ReadMemory: int(n.cfg.Limits.Connection), MemoryMax: int(n.cfg.Limits.ClientMemory)})
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
