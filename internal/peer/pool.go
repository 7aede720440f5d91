package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Addr says where a node is and how to talk to it.
type Addr struct {
	Node    ident.NodeName
	Cluster string // host:port for everything
	Bulk    string // host:port for ClassBulk, where another path leads between sites; empty: Cluster
	Plain   bool   // data without encryption, if Options.PlainData: for nodes of one site on a trusted network
	Near    bool   // of the same site: see Options.NearDeadAfter
	Pace    Limiter
}

// linksOf is how many connections of each class a pair of nodes has at most. Appends have one, because it
// keeps their order; segments are spread over the bulk ones by their name.
var linksOf = [wire.ClassMax + 1]int{
	wire.ClassControl: 1,
	wire.ClassAppend:  1,
	wire.ClassRead:    1,
	wire.ClassForward: 1,
	wire.ClassBulk:    4,
}

// Pool has the connections of this process to other nodes.
type Pool struct {
	opt    Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		peers  map[ident.NodeName]*Peer
		closed bool
	}
}

// errClosed is why requests fail after Pool.Close.
var errClosed = errors.New("connections are closed")

// NewPool makes a pool without connections.
func NewPool(o Options) (*Pool, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if !o.Insecure && o.ClientTLS == nil {
		return nil, errors.New("peer pool without TLS")
	}
	p := &Pool{opt: o}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.mu.peers = make(map[ident.NodeName]*Peer)
	return p, nil
}

// Peer gives the node at a, which must have a name. Another address or pace than before counts for
// connections made from now on. Its control connection is made at once and kept; the others when they are
// first used.
func (p *Pool) Peer(a Addr) *Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q := p.mu.peers[a.Node]; q != nil {
		if q.addr() != a {
			moved := a // a itself stays off the heap: this is called for every command
			q.at.Store(&moved)
		}
		return q
	}
	q := &Peer{pool: p}
	q.ctx, q.cancel = context.WithCancel(p.ctx)
	at := a
	q.at.Store(&at)
	for class, n := range linksOf {
		q.slots[class] = make([]slot, n)
		for i := range q.slots[class] {
			s := &q.slots[class][i]
			s.peer, s.class = q, wire.Class(class)
			s.mu.gone = p.mu.closed
		}
	}
	if p.mu.closed {
		q.cancel()
		return q
	}
	p.mu.peers[a.Node] = q
	p.wg.Go(func() {
		pprof.Do(q.ctx, pprof.Labels("peer", string(a.Node), "task", "keeper"), q.keep)
	})
	return q
}

// Forget closes the connections to a node that has left the cluster.
func (p *Pool) Forget(node ident.NodeName) {
	p.mu.Lock()
	q := p.mu.peers[node]
	delete(p.mu.peers, node)
	p.mu.Unlock()
	if q != nil {
		q.close()
	}
}

// Close ends all connections, fails what is waited for and returns when all goroutines are gone. A second
// call waits too. It must not be called from a callback.
func (p *Pool) Close() {
	p.mu.Lock()
	p.mu.closed = true
	peers := p.mu.peers
	p.mu.peers = nil
	p.mu.Unlock()
	p.cancel()
	for _, q := range peers {
		q.close()
	}
	p.wg.Wait()
}

// Peer is another node.
type Peer struct {
	pool  *Pool
	at    atomic.Pointer[Addr]
	slots [wire.ClassMax + 1][]slot
	up    atomic.Bool
	gone  atomic.Bool // see Gone
	quiet atomic.Bool // see Silent
	down  atomic.Pointer[downState]
	next  atomic.Uint32 // spreads what has no order over connections of a class

	ctx    context.Context // until the node is forgotten or the pool closed
	cancel context.CancelFunc
}

func (p *Peer) addr() Addr { return *p.at.Load() }

// Up reports whether the control connection is there.
func (p *Peer) Up() bool { return p.up.Load() }

// Gone reports that the node's process has ended, for all that this node can see: its host refused the last attempt to
// connect, as nobody listens there. That is more than not being up, which a slow network or a hanging node is too.
func (p *Peer) Gone() bool { return p.gone.Load() }

// Silent reports that the node's control connection is away because nothing was heard of it for Options.NearDeadAfter or
// DeadAfter: its process hangs, or the way to it is cut.
func (p *Peer) Silent() bool { return p.quiet.Load() }

// downState is why a node can't be reached. As long as there is one, calls fail at once: a host whose process hangs goes on
// taking connections, and a call that waited for one to be made would wait for as long as an attempt may take, though
// everybody knows better.
type downState struct{ why error }

// fall notes that the node can't be reached: what waits for a connection to it fails.
func (p *Peer) fall(why error) {
	p.down.Store(&downState{why})
	for _, slots := range p.slots {
		for i := range slots {
			slots[i].fall()
		}
	}
}

func (p *Peer) close() {
	p.cancel()
	for _, slots := range p.slots {
		for i := range slots {
			slots[i].end()
		}
	}
}

// submit sends a call by a connection of the class; key chooses which where there are several: what has the
// same key stays in order.
func (p *Peer) submit(class wire.Class, key uint64, x *call) {
	slots := p.slots[class]
	slots[key%uint64(len(slots))].submit(x)
}

// slot is the place of one connection: it has none, is making one, or has one.
//
//	empty ── submit ──> dialling ── ok ──> up ── link ends ──> empty
//	  ^                    │ fails
//	  └── next submit ── resting (calls fail until the pause is over)
//
// While the node is known to be away (Peer.down) calls fail and nobody dials but the keeper.
type slot struct {
	peer  *Peer
	class wire.Class
	link  atomic.Pointer[client] // not nil: up

	mu struct {
		sync.Mutex
		dialling bool
		abort    context.CancelFunc // of the attempt under way; not of the keeper's
		waiting  []*call            // in order; sent when up
		bytes    int
		until    time.Time // resting
		pause    time.Duration
		why      error
		gone     bool
	}
}

const (
	pauseMin = 50 * time.Millisecond
	// livedMin is how long a connection must have lived for the next attempt to come at once: one that is
	// accepted and then ends at once is as bad as one refused.
	livedMin = time.Second
)

func (s *slot) submit(x *call) {
	if c := s.link.Load(); c != nil {
		s.sendOn(c, x)
		return
	}
	s.mu.Lock()
	c, down := s.link.Load(), s.peer.down.Load()
	var err error
	switch {
	case c != nil:
	case s.mu.gone:
		err = unreached(s.peer.addr().Node, errClosed)
	case down != nil:
		err = unreached(s.peer.addr().Node, down.why)
	case !s.mu.dialling && time.Now().Before(s.mu.until):
		err = unreached(s.peer.addr().Node, s.mu.why)
	case len(s.mu.waiting) >= 1<<slotBits || s.mu.bytes >= s.peer.pool.opt.QueueMax:
		err = errQueueFull
	default:
		s.mu.waiting = append(s.mu.waiting, x)
		s.mu.bytes += sizeOf(x.msg)
		s.dialLocked()
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		x.finish(err)
	case c != nil:
		s.sendOn(c, x)
	}
}

func (s *slot) sendOn(c *client, x *call) {
	err := c.send(x)
	switch {
	case err == nil:
	case err == errQueueFull:
		x.finish(err)
	default:
		x.finish(unreached(s.peer.addr().Node, err))
	}
}

func sizeOf(m wire.Message) int {
	n := wire.HeaderSize
	for _, p := range wire.DataOf(nil, m) {
		n += len(p)
	}
	return n
}

// dialLocked starts a goroutine that makes the connection and lives as long as it.
func (s *slot) dialLocked() {
	p := s.peer.pool
	if s.mu.dialling || s.mu.gone || s.class == wire.ClassControl {
		return // the keeper dials for control, at once unless it rests
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return // end follows and fails what waits
	}
	s.mu.dialling = true
	ctx, abort := context.WithCancel(s.peer.ctx)
	s.mu.abort = abort
	p.wg.Go(func() {
		defer abort()
		pprof.Do(ctx, pprof.Labels("peer", string(s.peer.addr().Node), "class", s.class.String()), func(ctx context.Context) { _ = s.live(ctx, nil) })
	})
}

// live dials, sends what waits, and serves the connection to its end. It returns why there is none any more.
func (s *slot) live(ctx context.Context, up func(*client)) error {
	c, err := s.dial(ctx)
	s.mu.Lock()
	s.mu.dialling, s.mu.abort = false, nil
	if err == nil && s.mu.gone {
		c.fail(errClosed)
	}
	if err != nil {
		s.restLocked(err)
	}
	waiting := s.mu.waiting
	s.mu.waiting, s.mu.bytes = nil, 0
	if err == nil {
		for i, x := range waiting {
			if c.send(x) == nil { // ends are noticed below: serve fails what was sent
				waiting[i] = nil
			}
		}
		s.link.Store(c)
	}
	s.mu.Unlock()
	if err == nil && c.sock.tls != nil {
		// A certificate revoked between the handshake and now has been seen by neither it nor Pool.Recheck.
		c.recheck(&s.peer.pool.opt)
	}
	why := err
	if why == nil {
		why = errQueueFull
	}
	for _, x := range waiting {
		if x != nil {
			x.finish(unreached(s.peer.addr().Node, why))
		}
	}
	if err != nil {
		return err
	}
	if up != nil {
		up(c)
	}
	began := time.Now()
	err = c.serve()
	s.mu.Lock()
	s.link.CompareAndSwap(c, nil)
	if time.Since(began) < livedMin {
		s.restLocked(err)
	} else {
		s.mu.pause, s.mu.until = 0, time.Time{}
	}
	s.mu.Unlock()
	s.peer.pool.opt.Log.Info("connection ended", "peer", s.peer.addr().Node, "class", s.class.String(), "err", err)
	return err
}

// fall ends the attempt to connect, if one is under way, with what waits for it. Peer.down is set: no other begins. The
// keeper's attempts go on.
func (s *slot) fall() {
	s.mu.Lock()
	if s.mu.abort != nil {
		s.mu.abort()
	}
	s.mu.Unlock()
}

// restLocked makes calls fail for a while, each time longer.
func (s *slot) restLocked(why error) {
	s.mu.pause = min(max(2*s.mu.pause, pauseMin), s.peer.pool.opt.BackoffMax)
	s.mu.until = time.Now().Add(s.mu.pause/2 + rand.N(s.mu.pause))
	s.mu.why = why
}

// dial makes one connection.
func (s *slot) dial(ctx context.Context) (*client, error) {
	p, o, a := s.peer, &s.peer.pool.opt, s.peer.addr()
	ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
	defer cancel()
	var ticket *wire.TicketReply
	plain := o.Insecure
	if a.Plain && o.PlainData && !o.Insecure && s.class != wire.ClassControl {
		ticket, plain = new(wire.TicketReply), true
		if err := p.ask(ctx, wire.ClassControl, 0, wire.Header{}, &wire.Ticket{Class: s.class}, ticket); err != nil {
			return nil, fmt.Errorf("ask for a plain connection: %w", err)
		}
	}
	addr := a.Cluster
	if s.class == wire.ClassBulk && a.Bulk != "" {
		addr = a.Bulk
	}
	conn, err := o.Dial(ctx, addr, s.class)
	if err != nil {
		return nil, err
	}
	sock, hello, err := o.dialled(ctx, conn, a.Node, s.class, ticket)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	c := &client{peer: p, hello: hello, link: newLink(sock, s.class, hello, plain, o.QueueMax, 0)}
	c.handler = c
	if s.class == wire.ClassBulk {
		c.pace = a.Pace
	}
	return c, nil
}

// end closes the slot for ever.
func (s *slot) end() {
	s.mu.Lock()
	s.mu.gone = true
	c := s.link.Load()
	waiting := s.mu.waiting
	s.mu.waiting = nil
	s.mu.Unlock()
	if c != nil {
		c.fail(errClosed)
	}
	for _, x := range waiting {
		x.finish(unreached(s.peer.addr().Node, errClosed))
	}
}

// keep is the goroutine that holds the control connection and pings all connections of the peer.
func (p *Peer) keep(ctx context.Context) {
	o := &p.pool.opt
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() { p.ping(done) })
	s := &p.slots[wire.ClassControl][0]
	for ctx.Err() == nil {
		s.mu.Lock()
		s.mu.dialling = true
		s.mu.Unlock()
		reached := false
		err := s.live(ctx, func(c *client) {
			reached = true
			p.up.Store(true)
			p.gone.Store(false)
			p.quiet.Store(false)
			p.down.Store(nil)
			p.endRests()
			o.Log.Info("peer is up", "peer", c.hello.Node, "instance", c.hello.Instance)
			o.OnUp(c.hello.Node, c.hello.Instance)
		})
		refused := errors.Is(err, syscall.ECONNREFUSED)
		ended := refused && !p.gone.Load()
		p.gone.Store(refused)
		if silent := errors.Is(err, errSilent); silent || !reached {
			if silent {
				p.quiet.Store(true)
			}
			p.fall(err)
		}
		if p.up.Swap(false) {
			o.OnDown(p.addr().Node, err)
		} else if ctx.Err() == nil {
			o.Log.Debug("peer is not reached", "peer", p.addr().Node, "err", err)
		}
		if ended {
			o.OnGone(p.addr().Node)
		}
		s.mu.Lock()
		rest := time.Until(s.mu.until)
		s.mu.Unlock()
		select {
		case <-time.After(rest):
		case <-ctx.Done():
		}
	}
}

// endRests lets the other connections be tried again at once, as the node is back.
func (p *Peer) endRests() {
	for _, slots := range p.slots {
		for i := range slots {
			s := &slots[i]
			s.mu.Lock()
			s.mu.until, s.mu.pause = time.Time{}, 0
			s.mu.Unlock()
		}
	}
}

// ping looks after every connection of the peer, often enough that a dead one is seen in time.
func (p *Peer) ping(done <-chan struct{}) {
	o := &p.pool.opt
	every := min(o.PingInterval/4, o.DeadAfter/4, o.NearPingInterval/2, o.NearDeadAfter/4)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		now := time.Now()
		late := now.Sub(last) - every
		last = now
		near, quiet := p.addr().Near, p.quiet.Load()
		for class, slots := range p.slots {
			interval, dead := o.PingInterval, o.DeadAfter
			switch {
			case wire.Class(class) == wire.ClassControl && near:
				interval, dead = o.NearPingInterval, o.NearDeadAfter
			case quiet: // these need not wait for as long again
				dead = max(o.NearDeadAfter/2, o.PingInterval+every)
			}
			for i := range slots {
				if c := slots[i].link.Load(); c != nil {
					if late > every {
						c.pardon(late)
					}
					c.look(now, interval, dead)
				}
			}
		}
	}
}
