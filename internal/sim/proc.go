package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Node is a host with one disk, on which one process after another runs.
type Node struct {
	w     *World
	index int
	name  ident.NodeName
	site  ident.SiteID
	store ident.StoreID
	disk  *vfs.Mem
	boot  byte
	drift float64 // of its CLOCK_BOOTTIME
	proc  *Proc   // nil while none runs
	count uint64  // of processes so far

	slowDisk    atomic.Int64  // nanoseconds: what each answer of the store takes longer
	slowSync    atomic.Int64  // the same for fdatasync alone
	slowCopies  atomic.Int64  // and for what is done with whole segments: sealing, copying
	hungUntil   atomic.Int64  // nothing that the store is asked ends before this time of the world
	syncs       atomic.Int64  // how often something was made stable
	heardStable atomic.Uint64 // the stable point in the last notice
	cutOff      atomic.Int32  // from the control store: by so many faults
	rot         []func(vfs.Call, []byte)
	skew        time.Duration // of its wall clock
	starting    bool          // the driver's: a process is being launched
	again       bool          // the driver's: and another one, should that one die before it serves
	launching   *Proc         // guarded by network.mu: it can die before it is proc
}

// Proc is one process: core server and access server. After a kill its goroutines run to their end, but nothing that
// they do reaches anybody: neither the disk, nor the network, nor the control store.
type Proc struct {
	w     *World
	node  *Node
	start uint64 // a number of its own in the world
	fs    *vfs.Faults
	store *core.Store
	own   *local
	far   *core.Bounded // the same store, as other sites write to it
	lease *core.Leases
	keep  *access.LeaseKeeper
	ctl   *control.Client
	srv   *access.Server
	quit  context.CancelFunc // ends a launch
	end   context.CancelFunc
	done  chan struct{} // closed when the access server has ended
	turn  uint64

	// Guarded by network.mu.
	dead    bool
	paused  bool
	inGate  []*message
	outGate []*message
	callers []*clientMessage // commands of clients that wait for it to wake
	replies []func()         // answers to clients that wait for it to wake
}

// queue is the messages of one direction of a connection that have arrived: a goroutine reads them in order while there
// are any.
type queue struct {
	mu      sync.Mutex
	list    []*message
	next    int // in list
	reading bool
}

const (
	leaseFor  = time.Second // timeouts.lease
	storeDir  = "/store"
	markDir   = "/run"
	notesSize = 16 << 10
)

// clock is the node's CLOCK_BOOTTIME: it begins at a time of its own and drifts.
func (n *Node) clock() time.Duration {
	return time.Hour*time.Duration(n.index+1) + time.Duration(float64(n.w.now())*n.drift)
}

// since is when the node's clock showed a time.
func (n *Node) since(clock time.Duration) time.Duration {
	return time.Duration(float64(clock-time.Hour*time.Duration(n.index+1)) / n.drift)
}

func (n *Node) isDead(p *Proc) bool {
	n.w.net.mu.Lock()
	defer n.w.net.mu.Unlock()
	return p.dead
}

// launch makes a process for the node: its store is open and it knows the control store.
func (n *Node) launch() (*Proc, error) {
	w := n.w
	n.count++
	p := &Proc{w: w, node: n, start: uint64(n.index)<<32 | n.count}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.quit = cancel
	w.net.mu.Lock()
	p.fs, n.launching = vfs.NewFaults(n.disk), p
	w.net.mu.Unlock()
	p.fs.Add(func(c vfs.Call) error {
		if n.isDead(p) {
			return errDead
		}
		return nil
	})
	for _, r := range n.rot {
		p.fs.OnRead(r)
	}
	n.disk.DropLocks()
	log := w.log.With("node", n.name, "process", n.count)
	p.lease = core.NewLeases(n.clock, 2*leaseFor, ident.BootID{n.boot, byte(n.index)})
	st, err := core.Open(core.Options{FS: p.fs, Dir: storeDir, Create: n.count == 1, Boot: ident.BootID{n.boot, byte(n.index)}, Clock: n.clock, Logger: log,
		Leases: p.lease, LeaseMax: 2 * leaseFor, NotesSize: notesSize, FailMarkDir: fmt.Sprint(markDir, "/", n.boot), // a tmpfs: a boot makes it anew
		SpareLeast: 1, SpareBytes: 4 << 20,
		Peers: func(id ident.StoreID) (journal.Store, error) {
			if s, ok := (stores{p}).Store(id); ok {
				return s, nil
			}
			return nil, wire.Errorf(wire.CodeAbsent, "no store %s", id)
		}})
	if err != nil {
		return p, fmt.Errorf("node %s: %w", n.name, err)
	}
	p.store, n.store = st, st.ID()
	p.own = &local{p: p, st: st}
	p.bound()
	p.lease.Add(st)
	ctl, err := w.ctl.OpenBy(ctx, control.Options{Timeout: 5 * time.Second, Log: log, Now: func() time.Time { return time.Now().Add(n.skew) }}, (*way)(p))
	if err != nil {
		_ = st.Close()
		return p, fmt.Errorf("node %s: control store: %w", n.name, err)
	}
	p.ctl = ctl
	return p, nil
}

// serve starts the access role of a launched process, whose node the control store knows by now; from then on others
// can reach it.
func (p *Proc) serve() {
	n, w := p.node, p.w
	log := w.log.With("node", n.name, "process", n.count)
	clock := func() int64 { return int64(n.clock()) }
	p.keep = access.NewLeaseKeeper(n.name, mix(w.plan.Seed, p.start), leaseFor, clock, log, func(id ident.StoreID) (ident.NodeName, access.LeaseNode, bool) {
		to := w.nodeOfStore(id)
		if to == nil {
			return "", nil, false
		}
		if to == n {
			return n.name, ownLeases{p}, true
		}
		return to.name, path{p, to}, true
	})
	env := access.Env{Health: access.NewHealth(clock, nil), Node: n.name, Site: n.site, Stores: stores{p}, Leases: p.keep, Control: p.ctl, Clock: clock,
		Log: log, Metrics: access.NewMetrics(prometheus.NewRegistry()), Limits: w.plan.Limits, About: p.about()}
	p.srv = access.NewServer(env, func(name ident.NodeName) (access.Peer, bool) {
		to := w.nodeOf(name)
		if to == nil || to == n {
			return nil, false
		}
		return path{p, to}, true
	})
	ctx, cancel := context.WithCancel(context.Background())
	p.end, p.done = cancel, make(chan struct{})
	w.wg.Go(func() {
		defer close(p.done)
		var helps sync.WaitGroup
		if w.plan.isRestored() {
			helps.Go(func() { p.settle(ctx) })
		}
		p.srv.Run(ctx)
		helps.Wait()
	})
	_ = p.ctl.Announce(n.name)
	w.net.mu.Lock()
	p.dead = p.dead || w.ended
	if !p.dead {
		n.proc = p
	}
	n.launching = nil
	w.net.mu.Unlock()
	if p.dead {
		w.wg.Go(p.bury)
	}
}

// spec is the node's entry in the control store.
func (n *Node) spec() control.Node {
	x := control.Node{Name: n.name, Site: n.site, HostID: string(n.name), Roles: []control.Role{control.RoleCore, control.RoleAccess}, Version: "sim",
		Stores: []control.StoreSpec{{ID: n.store, CapacityBytes: 1 << 30}}}
	x.Addrs.Portals = []control.Portal{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(n.site), byte(n.index + 1)}), 3260)}}
	return x
}

// errDead is what a process that was killed gets from its disk.
var errDead = errors.New("the process is dead")

// lost tells everybody that a node's process is gone: at once if its host says so, else by its silence.
func (n *network) lost(x *Node, says bool) {
	for _, o := range n.w.nodes {
		if o == x {
			continue
		}
		n.mu.Lock()
		quiet := n.pairs[x.index][o.index].blocked > 0
		n.pairs[x.index][o.index].up = false
		n.mu.Unlock()
		n.breakLinks(x, o)
		d := deadAfter + time.Duration(n.w.rand64()%uint64(pingEvery))
		hears := says && !quiet
		if hears {
			d = n.delay(x, o, uint64(x.index), n.w.rand64())
		}
		count := x.count
		n.w.after(d, func() {
			if x.count == count || !hears { // a new process has new connections; those of the old one end all the same
				n.down(o, x, hears && x.proc == nil)
			}
		})
	}
}

// found has a new process find everybody, and be found.
func (n *network) found(x *Node) {
	for _, o := range n.w.nodes {
		if o != x {
			n.redial(x, o)
			n.down(o, x, false)
		}
	}
}

// read hands an arrived message to the goroutine that reads its connection.
func (p *Proc) read(m *message) {
	q := &m.pipe().in
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, m)
	if !q.reading {
		q.reading = true
		p.w.wg.Go(func() { p.readAll(q) })
	}
}

func (p *Proc) readAll(q *queue) {
	for {
		q.mu.Lock()
		if q.next == len(q.list) {
			clear(q.list)
			q.list, q.next, q.reading = q.list[:0], 0, false
			q.mu.Unlock()
			return
		}
		m := q.list[q.next]
		q.next++
		q.mu.Unlock()
		if m.reply {
			if done := p.w.net.answered(m); done != nil {
				done(m.payload, m.err)
			}
			continue
		}
		p.handle(m)
	}
}

// handle serves a request as package peer does: what is frequent in the order of arrival, the rest at the same time.
func (p *Proc) handle(m *message) {
	k, _ := wire.KindOf(m.typ)
	req := k.Request()
	if err := wire.Decode(req, m.payload); err != nil {
		p.w.fail("%s can't be decoded: %v", m.typ, err)
		return
	}
	answer := func(r wire.Message, err error) {
		if err != nil {
			p.w.net.reply(m, nil, err)
			return
		}
		p.w.net.reply(m, encode(r), nil)
	}
	if k.ToStore && m.store != p.store.ID() {
		answer(nil, wire.Errorf(wire.CodeAbsent, "no store %s", m.store))
		return
	}
	switch x := req.(type) {
	case *wire.Append:
		p.toStore(m).Append(x, func(r wire.AppendReply, err error) {
			p.leftAt(err)
			answer(&r, err)
		})
	case *wire.Notice:
		p.node.heardStable.Store(uint64(x.Stable.Seq))
		p.store.Notice(x)
	case *wire.Read:
		p.own.later(func() {
			p.store.Read(x, func(r wire.ReadReply, err error) {
				answer(&r, err)
				if r.Release != nil {
					r.Release()
				}
			})
		})
	case *wire.Forward:
		if p.srv == nil {
			answer(nil, wire.Errorf(wire.CodeNotOwner, "no access server yet"))
			return
		}
		p.srv.Forward(m.link.from.node.name, x, func(r wire.ForwardReply, err error) {
			if err == nil && r.Status == 0 && (x.Op == wire.OpWrite || x.Op == wire.OpCompareAndWrite) && p.w.cue(cueForwarded, m.link.from.node, r.Epoch.Number) {
				return
			}
			answer(&r, err)
			if r.Release != nil {
				r.Release()
			}
		})
	default:
		p.w.wg.Go(func() { p.handleSlow(m, req, answer) })
	}
}

func (p *Proc) handleSlow(m *message, req wire.Message, answer func(wire.Message, error)) {
	ctx := context.Background()
	from := m.link.from.node.name
	if p.srv == nil && !(func() bool { k, _ := wire.KindOf(m.typ); return k.ToStore || m.typ == wire.TypeLease })() {
		answer(nil, wire.Errorf(wire.CodeNotOwner, "no access server yet"))
		return
	}
	var r wire.Message
	var err error
	switch x := req.(type) {
	case *wire.Lease:
		r, err = got(p.lease.Handle(ctx, x))
	case *wire.Bar:
		r, err = got(p.srv.Bar(ctx, x))
	case *wire.Tick:
		r, err = got(p.srv.Tick(ctx, x))
	case *wire.OwnerStatus:
		r, err = got(p.srv.OwnerStatus(ctx, x))
	case *wire.Unit:
		r, err = got(p.srv.Unit(ctx, x))
	case *wire.HandOver:
		r, err = got(p.srv.HandOver(ctx, from, x))
	case *wire.OpenSegment:
		r, err = got(p.toStore(m).OpenSegment(ctx, x))
	case *wire.Sync:
		r, err = got(p.toStore(m).Sync(ctx, x))
	case *wire.Seal:
		r, err = got(p.toStore(m).Seal(ctx, x))
	case *wire.Fence:
		if p.w.cue(cueFenceIn, p.node, x.Epoch.Number) {
			answer(nil, unreached(p.node))
			return
		}
		if r, err = got(p.own.Fence(ctx, x)); err == nil {
			p.w.cue(cueFenceOut, p.node, x.Epoch.Number)
		}
	case *wire.Inventory:
		r, err = got(p.own.Inventory(ctx, x))
	case *wire.ReadRaw:
		r, err = got(p.own.ReadRaw(ctx, x))
	case *wire.ReadIndex:
		r, err = got(p.own.ReadIndex(ctx, x))
	case *wire.Push:
		r, err = got(p.own.Push(ctx, x))
	case *wire.Drop:
		p.cueDropped(x)
		p.w.holdDrop(p, x)
		r, err = got(p.own.Drop(ctx, x))
	case *wire.StoreStatus:
		r, err = got(p.own.Status(ctx, x))
	default:
		p.w.fail("nobody serves %s", m.typ)
		return
	}
	answer(r, err)
	if x, ok := r.(*wire.ReadReply); ok && x.Release != nil {
		x.Release()
	}
}

// got makes a reply a message.
func got[T any, P interface {
	*T
	wire.Message
}](reply T, err error) (wire.Message, error) {
	return P(&reply), err
}

func asWire(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return wire.Errorf(wire.CodeShutdown, "%v", err)
	}
	return wire.Errorf(wire.CodeIO, "%v", err)
}

func (l ownLeases) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	if l.p.node.isDead(l.p) {
		return wire.LeaseReply{}, errDead
	}
	return l.p.lease.Handle(ctx, m)
}

var _ journal.Store = (*local)(nil)

// way is a process's way to the control store.
type way Proc

// Pass implements control.Way.
func (x *way) Pass(ctx context.Context) error {
	p := (*Proc)(x)
	k := p.node.w.rand64()
	d := time.Millisecond + time.Duration(fraction(k)*float64(p.w.plan.Distance))
	if p.node.isDead(p) {
		return errDead
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for p.isPaused() { // what it says has not left, what it is told lies in its socket
		select {
		case <-time.After(pausedLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.node.cutOff.Load() > 0 || p.node.isDead(p) {
		return errCutOff
	}
	return nil
}

// pausedLook is how often the way to the control store is tried while the process is paused.
const pausedLook = 100 * time.Millisecond

func (p *Proc) isPaused() bool {
	p.w.net.mu.Lock()
	defer p.w.net.mu.Unlock()
	return p.paused && !p.dead
}

var errCutOff = errors.New("the control store is out of reach")
