package access

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// leaseClock is a clock of leases in a test; it must not begin at 0, which is no moment to the code.
func leaseClock(start time.Time) func() time.Duration {
	return func() time.Duration { return time.Since(start) + time.Hour }
}

// nodes is a cluster with real leases, and for each store a node that owns and forwards and can be cut off.
type nodes struct {
	*cluster
	list []*node

	away atomic.Int32 // a site that is cut off from the others

	onHandOver func(to *node, m *wire.HandOver, done bool) // not nil: sees each step, before and after
	onNamed    func(by *node)                              // not nil: by has had the control store name another owner
	onTake     func(by *node) error                        // not nil: what the control store says when by wants to be the owner, unless nil
}

// node is a store's node. Cut off, it has its own store, its clients and the control store: what is hardest on the
// rules, since such an owner learns of nothing by itself.
type node struct {
	n      *nodes
	name   ident.NodeName
	home   *seat
	clock  func() int64
	keeper *LeaseKeeper
	cut    atomic.Bool
	dark   atomic.Bool // leases are not asked for, though all else can be reached
	deaf   atomic.Bool // of journals' keys nothing more is heard
	srv    atomic.Pointer[Server]
	end    func()
	starts uint64
	far    map[ident.StoreID]*seat
	thin   map[ident.StoreID]*thinLink // stores that are reached by a link of a rate
}

func newNodes(t *testing.T, sites, count int, lease time.Duration) *nodes {
	c := newClusterOf(t, sites, count, func(s *seat) { s.lease = lease })
	n := &nodes{cluster: c}
	for i, s := range c.seats {
		name := ident.NodeName(fmt.Sprintf("n%d", i+1))
		x := &node{n: n, name: name, home: s, far: map[ident.StoreID]*seat{}}
		clock := leaseClock(time.Now())
		x.clock = func() int64 { return int64(clock()) }
		spec := control.Node{Name: name, Site: s.site, HostID: s.host, Roles: []control.Role{control.RoleCore, control.RoleAccess}, Version: "test",
			Stores: []control.StoreSpec{{ID: s.id, CapacityBytes: 1 << 30}}}
		spec.Addrs.Portals = []control.Portal{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), 3260)}}
		if _, err := c.ctl.RegisterNode(context.Background(), spec); err != nil {
			t.Fatal(err)
		}
		if err := c.ctl.Announce(name); err != nil {
			t.Fatal(err)
		}
		n.list = append(n.list, x)
	}
	for _, x := range n.list {
		for _, s := range c.seats {
			x.far[s.id] = &seat{id: s.id, site: s.site, host: s.host, by: func() (*core.Store, error) {
				if x.reaches(s) {
					return s.get()
				}
				return nil, wire.Errorf(wire.CodeUnreached, "%s is cut off from store %s", x.name, s.id)
			}}
		}
		x.keeper = x.newKeeper(lease)
	}
	t.Cleanup(func() {
		for _, x := range n.list {
			x.stop()
			x.keeper.Close()
		}
	})
	return n
}

// reaches reports that the node gets through to a store's node.
func (x *node) reaches(s *seat) bool {
	if s == x.home {
		return true
	}
	if x.n.apart(x.home.site, s.site) {
		return false
	}
	for _, o := range x.n.list {
		if o.home == s && o.cut.Load() {
			return false
		}
	}
	return !x.cut.Load()
}

// apart reports that a site is cut off from another.
func (n *nodes) apart(a, b ident.SiteID) bool {
	away := ident.SiteID(n.away.Load())
	return away != 0 && a != b && (a == away || b == away)
}

func (x *node) newKeeper(lease time.Duration) *LeaseKeeper {
	x.starts++
	return NewLeaseKeeper(x.name, x.starts<<32|uint64(x.home.host[2]), lease, x.clock, x.n.log, func(id ident.StoreID) (ident.NodeName, LeaseNode, bool) {
		s := x.n.seat(id)
		for _, o := range x.n.list {
			if o.home == s {
				return o.name, leaseLink{x, s}, true
			}
		}
		return "", nil, false
	})
}

// leaseLink carries a node's questions for leases.
type leaseLink struct {
	from *node
	to   *seat
}

func (l leaseLink) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	leases := l.to.leases.Load()
	if leases == nil || l.from.dark.Load() || !l.from.reaches(l.to) {
		return wire.LeaseReply{}, wire.Errorf(wire.CodeUnreached, "no way to the node of store %s", l.to.id)
	}
	return leases.Handle(ctx, m)
}

// nodeStores is the stores as a node reaches them.
type nodeStores struct {
	*cluster
	x *node
}

func (v nodeStores) Store(id ident.StoreID) (journal.Store, bool) {
	s := v.x.far[id]
	if l := v.x.thin[id]; l != nil {
		return l, true
	}
	if s != nil && v.wrap != nil {
		return v.wrap(s), true
	}
	return s, s != nil
}
func (v nodeStores) Local(id ident.StoreID) bool { return id == v.x.home.id }
func (v nodeStores) Up(id ident.StoreID) bool    { _, err := v.x.far[id].get(); return err == nil }

func (x *node) env() Env {
	return Env{Health: NewHealth(x.clock, nil), Node: x.name, Site: x.home.site, Stores: nodeStores{x.n.cluster, x}, Leases: x.keeper,
		Control: &hardOfHearing{Store: x.n.ctl, x: x}, Clock: x.clock, Log: x.n.log.With("node", x.name), Metrics: NewMetrics(prometheus.NewRegistry()), Limits: x.n.limit}
}

// hardOfHearing is the control store as a node sees it whose watch can be interrupted: what it has been told of a journal's
// key stays.
type hardOfHearing struct {
	control.Store
	x    *node
	mu   sync.Mutex
	told map[ident.JournalID]control.JournalState
}

func (h *hardOfHearing) Journal(id ident.JournalID) (control.JournalState, control.Rev, bool) {
	state, rev, ok := h.Store.Journal(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, known := h.told[id]; known && h.x.deaf.Load() {
		return old, rev, ok
	}
	if h.told == nil {
		h.told = map[ident.JournalID]control.JournalState{}
	}
	h.told[id] = state
	return state, rev, ok
}

func (h *hardOfHearing) HandJournal(ctx context.Context, id ident.JournalID, rev control.Rev, to ident.NodeName, stores []ident.StoreID, early bool) (control.JournalState, control.Rev, error) {
	state, now, err := h.Store.HandJournal(ctx, id, rev, to, stores, early)
	if f := h.x.n.onNamed; f != nil && err == nil {
		f(h.x)
	}
	return state, now, err
}

func (h *hardOfHearing) TakeJournal(ctx context.Context, id ident.JournalID, rev control.Rev, by ident.NodeName) (control.JournalState, control.Rev, error) {
	if f := h.x.n.onTake; f != nil {
		if err := f(h.x); err != nil {
			return control.JournalState{}, 0, err
		}
	}
	return h.Store.TakeJournal(ctx, id, rev, by)
}

// lane has a node's appends to a store go by a connection that can be held: what is on it arrives when it is let go, whatever
// has become of the node.
func (x *node) lane(s *seat) { x.n.asFar(x.far[s.id]) }

// holdAll holds what a node appends to the stores of a site.
func (x *node) holdAll(site ident.SiteID) (release func()) {
	var all []func()
	for _, s := range x.n.seats {
		if s.site == site {
			all = append(all, x.far[s.id].hold())
		}
	}
	return func() {
		for _, f := range all {
			f()
		}
	}
}

// serve starts the node's access role.
func (x *node) serve() {
	s := NewServer(x.env(), func(name ident.NodeName) (Peer, bool) {
		for _, o := range x.n.list {
			if o.name == name && o != x {
				return link{x, o}, true
			}
		}
		return nil, false
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	x.end = func() { cancel(); <-done }
	x.srv.Store(s)
}

// stop ends the node's access role in good order. A second call does nothing.
func (x *node) stop() {
	if x.srv.Swap(nil) != nil {
		x.end()
	}
}

// own takes a volume over on this node, without its server.
func (x *node) own(v control.VolumeSpec) *Owner {
	x.n.t.Helper()
	o, err := TakeOver(context.Background(), x.env(), v)
	if err != nil {
		x.n.t.Fatalf("take over: %v", err)
	}
	<-o.Serving()
	return o
}

// link is the connection of two nodes' access roles. What is under way when it breaks may have been done or not.
type link struct{ from, to *node }

func (l link) Up() bool {
	return !l.from.n.apart(l.from.home.site, l.to.home.site) && l.to.srv.Load() != nil && !l.from.cut.Load() && !l.to.cut.Load()
}

func (l link) down() error { return wire.Errorf(wire.CodeUnreached, "node %s", l.to.name) }

func (l link) server() (*Server, error) {
	if s := l.to.srv.Load(); s != nil && l.Up() {
		return s, nil
	}
	return nil, l.down()
}

func (l link) Forward(m *wire.Forward, done func(wire.ForwardReply, error)) {
	s, err := l.server()
	if err != nil {
		done(wire.ForwardReply{}, err)
		return
	}
	s.Forward(l.from.name, m, func(r wire.ForwardReply, err error) {
		if !l.Up() {
			if r.Release != nil {
				r.Release()
			}
			r, err = wire.ForwardReply{}, l.down()
		}
		done(r, err)
	})
}

func (l link) Bar(ctx context.Context, m *wire.Bar) (r wire.BarReply, err error) {
	s, err := l.server()
	if err != nil {
		return r, err
	}
	return s.Bar(ctx, m)
}

func (l link) Tick(ctx context.Context, m *wire.Tick) (r wire.TickReply, err error) {
	s, err := l.server()
	if err != nil {
		return r, err
	}
	return s.Tick(ctx, m)
}

func (l link) OwnerStatus(ctx context.Context, m *wire.OwnerStatus) (r wire.OwnerStatusReply, err error) {
	s, err := l.server()
	if err != nil {
		return r, err
	}
	return s.OwnerStatus(ctx, m)
}

func (l link) HandOver(ctx context.Context, m *wire.HandOver) (r wire.HandOverReply, err error) {
	s, err := l.server()
	if err != nil {
		return r, err
	}
	if f := l.from.n.onHandOver; f != nil {
		f(l.to, m, false)
		if !l.Up() {
			return r, l.down()
		}
		defer func() {
			if f(l.to, m, true); !l.Up() {
				r, err = wire.HandOverReply{}, l.down()
			}
		}()
	}
	c := *m // as a connection would: nothing is shared
	if r, err = s.HandOver(ctx, l.from.name, &c); !l.Up() {
		return wire.HandOverReply{}, l.down()
	}
	return r, err
}

func (l link) Unit(ctx context.Context, m *wire.Unit) (r wire.UnitReply, err error) {
	s, err := l.server()
	if err != nil {
		return r, err
	}
	return s.Unit(ctx, m)
}
