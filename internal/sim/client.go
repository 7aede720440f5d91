package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/iscsi/proof"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// client is an initiator with a session to each of several access servers, one command at a time. As multipathing does
// it takes the next path when a command is not answered in time or its session has ended, and there it says again
// what it wants, at once and without any word to the old path. What it has given up may still lie in a buffer there.
type client struct {
	w       *World
	id      int
	site    ident.SiteID
	rng     *rand.Rand
	paths   []*session
	at      int
	timeout time.Duration
	isid    byte
	seen    map[int]blockState
	value   uint32
	number  uint64

	attached uint64    // the first epoch that has answered this port
	joined   ident.Seq // what was committed when its first login was answered
	shown    bool      // and nothing kept the sites in step from having its attachment by then
	rejoined uint64    // the newest epoch when its last one was
	told     uint64    // up to which epoch this port has got its error, or need not
}

// session is one login of a client by one path, as both sides know it.
type session struct {
	c     *client
	node  *Node
	proc  *Proc
	id    uint64
	nexus wire.Nexus
	vol   *access.Volume
	in    bool
	stamp wire.Stamp // of the newest message from the target that the client has
	exp   uint32     // ExpStatSN: what the client has of what has a number
	there target
	lost  chan struct{} // closed when the client knows that the session is over
	out   time.Duration // when the last message to the target arrives
	back  time.Duration
	n     uint64
	last  uint64        // number of the newest command's request
	stuck time.Duration // until when nothing gets to the target; guarded by network.mu
}

// target is what the access server keeps of a session.
type target struct {
	mu     sync.Mutex
	stream proof.Stream
	pings  uint32
	over   bool // the client's end of it has been read
}

// told notes a message with a number that the target makes now.
func (t *target) told(at wire.Stamp) (statSN uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stream.Told(scsi.Stamp(at))
}

// proved is the stamp of a command that comes with an ExpStatSN.
func (t *target) proved(exp uint32) wire.Stamp {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wire.Stamp(t.stream.Expects(exp))
}

// clientMessage is what a client has sent. f runs where the process has read it.
type clientMessage struct {
	s *session
	f func(*Proc)
}

// answer is what a command got.
type answer struct {
	err    error
	data   []byte
	epoch  ident.Epoch
	stamp  wire.Stamp
	statSN uint32

	decided time.Duration // when the owner did so
}

const (
	pingClients  = time.Second     // sessions are pinged (R9)
	pingPatience = 5 * time.Second // for an answer, before the target gives the session up
	loginMax     = 5 * time.Second // for a login, before the next path is tried
	busyRest     = 100 * time.Millisecond
	requestBits  = 12 // what a command becomes has numbers that differ in these
)

// clientDelay is how long a message of a session is under way.
func (w *World) clientDelay(s *session) time.Duration {
	s.n++
	d := 60*time.Microsecond + time.Duration(fraction(w.plan.Seed, s.id, s.n, 7)*float64(200*time.Microsecond))
	if s.c.site != s.node.site {
		d += w.plan.Distance
	}
	return d
}

// toTarget has f run at the target once the message has arrived and its process has read it; never, if it dies before.
func (w *World) toTarget(s *session, f func(*Proc)) {
	w.net.mu.Lock()
	s.out = max(s.out+time.Microsecond, w.now()+w.clientDelay(s))
	at := s.out
	w.net.mu.Unlock()
	m := &clientMessage{s, f}
	w.at(at, func() { w.arriveAtTarget(m) })
}

func (w *World) arriveAtTarget(m *clientMessage) {
	w.net.mu.Lock()
	p := m.s.proc
	switch {
	case p.dead:
		w.net.mu.Unlock()
		return
	case w.now() < m.s.stuck:
		at := m.s.stuck
		w.net.mu.Unlock()
		w.at(at, func() { w.arriveAtTarget(m) })
		return
	case w.clientBlocked(m.s):
		w.net.mu.Unlock()
		w.after(200*time.Millisecond, func() { w.arriveAtTarget(m) }) // sent again by the kernel
		return
	case p.paused:
		p.callers = append(p.callers, m)
		w.net.mu.Unlock()
		return
	}
	w.net.mu.Unlock()
	w.serveClient(p, m)
}

func (w *World) serveClient(p *Proc, m *clientMessage) {
	w.trace.add(w.now(), "cmd", m.s.id, m.s.n, 0)
	w.wg.Go(func() { m.f(p) })
}

// toClient has f run at the client. What a paused process says goes out when it wakes.
func (w *World) toClient(s *session, p *Proc, f func()) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if p.dead {
		return
	}
	if p.paused {
		p.replies = append(p.replies, func() { w.toClient(s, p, f) })
		return
	}
	s.back = max(s.back+time.Microsecond, w.now()+w.clientDelay(s))
	var arrive func()
	arrive = func() {
		w.net.mu.Lock()
		blocked := w.clientBlocked(s)
		w.net.mu.Unlock()
		if blocked {
			w.after(200*time.Millisecond, arrive)
			return
		}
		f()
	}
	w.at(s.back, arrive)
}

// clientBlocked reports that no message gets from the session's one end to the other.
func (w *World) clientBlocked(s *session) bool { return w.clientCuts[[2]int{s.c.id, s.node.index}] > 0 }

// clientsLost tells clients that the process of their session is gone, if its host says so.
func (w *World) clientsLost(n *Node, says bool) {
	if !says {
		return
	}
	for _, c := range w.clients {
		for _, s := range c.paths {
			if s.node == n {
				w.after(w.clientDelay(s), func() { s.end() })
			}
		}
	}
}

// end is the client's knowledge that the session is over.
func (s *session) end() {
	s.c.w.net.mu.Lock()
	was := s.isLost()
	if !was {
		close(s.lost)
	}
	s.c.w.net.mu.Unlock()
	if !was && s.proc != nil {
		s.c.w.toTarget(s, func(*Proc) {
			s.there.mu.Lock()
			s.there.over = true
			s.there.mu.Unlock()
		})
	}
}

func (s *session) isLost() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}

// login begins a session by path i; false if that did not work out.
func (c *client) login(i int) bool {
	w := c.w
	old := c.paths[i]
	p := old.node.running()
	if p == nil || p.srv == nil {
		return false
	}
	c.number++
	s := &session{c: c, node: old.node, proc: p, id: uint64(c.id+1)<<48 | uint64(i)<<40 | c.number, lost: make(chan struct{})}
	s.nexus = access.NexusOf(reserve.NexusID{Initiator: fmt.Sprintf("iqn.2026-11.sim:%d", c.id), ISID: [6]byte{byte(c.id), c.isid}, Port: uint16(old.node.index + 1)})
	c.paths[i] = s
	got := make(chan answer, 1)
	w.toTarget(s, func(p *Proc) {
		vol, ok := p.srv.Volume(w.vol.ID)
		if !ok {
			return
		}
		vol.Open()
		ctx, cancel := context.WithTimeout(context.Background(), loginMax)
		defer cancel()
		err := vol.Bar(ctx, &wire.Bar{Kind: wire.BarLogin, Nexus: s.nexus, Session: s.id})
		s.vol = vol
		stamp := vol.Stamp()
		s.there.stream.Start(1)
		sn := s.there.told(stamp)
		w.toClient(s, p, func() { got <- answer{err: err, stamp: stamp, statSN: sn} })
	})
	select {
	case a := <-got:
		if a.err == nil {
			s.stamp, s.exp, s.in = a.stamp, a.statSN+1, true
			if c.rejoined = w.chain.newest(); c.joined == 0 {
				c.joined, c.shown = w.chain.newestSeq(), w.calm()
			}
			w.stats.add("client: logins", 1)
			w.logins.Add(1)
			w.ping(s)
			return true
		}
	case <-s.lost:
	case <-time.After(loginMax + 500*time.Millisecond):
	case <-w.over:
	}
	s.end()
	return false
}

// ping has the target tell its stamp every second and the client echo that, until the target has heard that the session is over, or has
// nothing of the client for too long.
func (w *World) ping(s *session) {
	var ended time.Duration
	var again func()
	again = func() {
		w.net.mu.Lock()
		asleep, dead := s.proc.paused, s.proc.dead
		w.net.mu.Unlock()
		t := &s.there
		t.mu.Lock()
		over := t.over
		t.mu.Unlock()
		if s.isLost() && ended == 0 {
			ended = w.now()
		}
		if dead || over || ended != 0 && w.now() > ended+pingPatience || w.isOver() {
			return
		}
		if !asleep {
			stamp := s.vol.Stamp()
			t.mu.Lock()
			t.pings++
			n := t.pings
			t.stream.Pinged(n, scsi.Stamp(stamp))
			t.mu.Unlock()
			w.toClient(s, s.proc, func() {
				if s.isLost() {
					return
				}
				s.told(stamp, 0)
				w.toTarget(s, func(*Proc) {
					t.mu.Lock()
					defer t.mu.Unlock()
					t.stream.Echoed(n)
				})
			})
		}
		w.after(pingClients, again)
	}
	w.after(pingClients, again)
}

// told takes what has reached the client; a ping uses no number up.
func (s *session) told(stamp wire.Stamp, statSN uint32) {
	if s.stamp.Epoch.Less(stamp.Epoch) || s.stamp.Epoch == stamp.Epoch && s.stamp.Tick < stamp.Tick {
		s.stamp = stamp
	}
	s.exp = max(s.exp, statSN+1)
}

// command sends one attempt by a session. answered is false if the client gave up.
func (c *client) command(s *session, in *opIn, buf []byte) (a answer, answered bool) {
	w := c.w
	if in.fua || in.kind == wire.OpFlush {
		w.flushes.Add(1)
		w.flushing.Add(1)
		defer w.flushing.Add(-1)
	}
	c.number++
	number := c.number << requestBits
	s.last = number
	exp := s.exp
	got := make(chan answer, 1)
	data := slices.Clone(buf)
	w.toTarget(s, func(p *Proc) {
		op := access.NewOp()
		op.Kind, op.FUA, op.Offset, op.Length = in.kind, in.fua, in.offset(), in.length()
		op.Nexus, op.Session, op.Stamp = &s.nexus, s.id, s.there.proved(exp)
		op.Request = wire.RequestID{Forwarder: s.id, Number: number}
		switch in.kind {
		case wire.OpWrite:
			op.Buf = access.NewWriteBuf(op.Offset, len(data))
			copy(op.Buf.Bytes(), data)
		case wire.OpCompareAndWrite:
			op.Compare = data[:sectorSize]
			op.Buf = access.NewWriteBuf(op.Offset, sectorSize)
			copy(op.Buf.Bytes(), data[sectorSize:])
		case wire.OpCopy:
			op.Unit = (&access.CopyCall{From: int64(in.from) * blockBytes}).Append(nil)
		}
		op.Done = func(op *access.Op, err error) {
			r := answer{err: err, epoch: op.Epoch, decided: w.decidedAt(op)}
			for _, d := range op.Data {
				r.data = append(r.data, d...)
			}
			op.Release()
			r.stamp = s.vol.Stamp()
			if r.epoch.Number == 0 {
				r.epoch = r.stamp.Epoch
			}
			r.statSN = s.there.told(r.stamp)
			w.toClient(s, p, func() { got <- r })
		}
		s.vol.Submit(op)
	})
	t := time.NewTimer(c.timeout)
	defer t.Stop()
	select {
	case a = <-got:
		s.told(a.stamp, a.statSN)
		return a, true
	case <-s.lost:
	case <-t.C:
	case <-w.over:
	}
	s.end()
	return a, false
}

// do does a command until it is answered, by whichever path; false if the world ended before.
func (c *client) do(in opIn) bool {
	w := c.w
	buf := in.payload()
	first := int64(0)
	for n := 0; ; n++ {
		if w.isOver() {
			if first != 0 && in.mutates() {
				w.hist.maybe(in, first, 0)
			}
			return false
		}
		s := c.paths[c.at]
		if !s.in || s.isLost() {
			if !c.login(c.at) {
				c.at = (c.at + 1) % len(c.paths)
				c.rest(20 * time.Millisecond)
				continue
			}
			s = c.paths[c.at]
		}
		call := w.hist.tick()
		a, answered := c.command(s, &in, buf)
		done := answered && (a.err == nil || errors.Is(a.err, wire.ErrMiscompare))
		if w.trace.out != nil {
			w.tracef("client %d: %s by %s: answered=%v err=%v epoch=%v", c.id, in.String(), s.node.name, answered, a.err, a.epoch)
		}
		if done {
			if in.mutates() && first != 0 {
				w.hist.maybe(in, first, w.hist.tick())
			}
			w.answers.Add(1)
			w.stats.add("client: "+in.kind.String(), 1)
			if in.fua {
				w.stats.add("client: FUA", 1)
			}
			out := opOut{epoch: a.epoch.Number, decided: a.decided, same: a.err == nil}
			if in.kind == wire.OpRead {
				out.read = c.parse(in, a.data)
				c.seen[in.block] = out.read
			}
			w.hist.done(in, out, call)
			c.checkPort(s, a.epoch.Number)
			w.told(&in, a.epoch.Number)
			w.trace.add(w.now(), "ack", uint64(c.id), uint64(in.value), uint64(call))
			return true
		}
		if first == 0 {
			first = call
		}
		if !answered && w.plan.Resets && in.mutates() && c.rng.IntN(2) == 0 && c.abandon(s, n == 0) {
			w.hist.maybe(in, first, w.hist.tick()) // nothing of it comes later
			return true
		}
		switch {
		case !answered:
			w.stats.add("client: commands given up and said again by another path", 1)
			c.at = (c.at + 1) % len(c.paths)
		case errors.Is(a.err, wire.ErrUnproven):
			w.stats.add("client: R11 errors", 1)
			c.told = max(c.told, a.epoch.Number)
			c.rest(time.Second)
			c.accept(s, a.epoch)
		case errors.Is(a.err, wire.ErrVersion) && in.kind == wire.OpCopy:
			w.stats.add("client: copies that have to be done otherwise", 1)
			w.hist.maybe(in, first, w.hist.tick())
			return true
		case errors.Is(a.err, wire.ErrStale):
			w.stats.add("client: refused as late (R9)", 1)
			c.rest(busyRest)
		default:
			w.stats.add("client: busy and other errors", 1)
			c.rest(busyRest)
			if n%4 == 3 {
				c.at = (c.at + 1) % len(c.paths)
			}
		}
	}
}

// abandon has a command that was not answered ended: by ABORT TASK in its own session, if it was sent by no other one, or by
// LUN RESET by the next path. true if that was answered.
func (c *client) abandon(s *session, alone bool) bool {
	if alone && c.rng.IntN(2) == 0 {
		c.w.stats.add("client: ABORT TASK", 1)
		return c.bar(s, s.abortTask())
	}
	c.at = (c.at + 1) % len(c.paths)
	if x := c.paths[c.at]; (!x.in || x.isLost()) && !c.login(c.at) {
		return false
	}
	c.w.stats.add("client: LUN RESET", 1)
	x := c.paths[c.at]
	return c.bar(x, &wire.Bar{Kind: wire.BarLUNReset, Nexus: x.nexus, Session: x.id})
}

// abortTask is about the newest command of a session, with all the requests that it may have become.
func (s *session) abortTask() *wire.Bar {
	return &wire.Bar{Kind: wire.BarAbortTask, Nexus: s.nexus, Forwarder: s.id, Session: s.id, First: s.last, Last: s.last + 1<<requestBits - 1}
}

// bar sends what is not a command of its own by a session.
func (c *client) bar(s *session, m *wire.Bar) bool {
	got := make(chan error, 1)
	c.w.toTarget(s, func(p *Proc) {
		ctx, cancel := context.WithTimeout(context.Background(), loginMax)
		defer cancel()
		err := s.vol.Bar(ctx, m)
		c.w.toClient(s, p, func() { got <- err })
	})
	select {
	case err := <-got:
		return err == nil
	case <-time.After(loginMax):
	case <-c.w.over:
	}
	return false
}

// calmFor is how long after a fault a site may still have to catch up, with time to spare.
const calmFor = 5 * time.Second

// calm reports that nothing has happened lately which keeps a site from having what its owner commits.
func (w *World) calm() bool {
	now := w.now()
	for i := range w.plan.Faults {
		if f := &w.plan.Faults[i]; f.Stays || f.At < now && now < f.At+f.For+calmFor {
			return false
		}
	}
	return !w.traps.armed.Load() && now > w.chain.newestAt()+calmFor
}

// checkPort is R11: a port that was attached before a takeover that was not proven has no command answered after it,
// until it was told.
func (c *client) checkPort(s *session, epoch uint64) {
	if epoch == 0 || c.told >= epoch {
		return
	}
	for e := c.told + 1; e <= epoch; e++ {
		if c.attached != 0 && c.attached < e && c.w.chain.isUnproven(e) && c.w.chain.lostBefore(epoch, e) && !c.w.isKept(e) {
			if !c.shown && c.rejoined >= e && c.w.chain.leftOut(c.joined, e) {
				// It attached for the first time while its site was cut off from others or these lagged; so it was not known, and is like a
				// new port since it has logged in again.
				c.w.stats.add("ports that attached while a site was cut off, unknown after a takeover by force (R11)", 1)
				continue
			}
			c.w.fail("client %d was attached in epoch %d and got no error after epoch %d, which is not proven (R11): an answer of epoch %d by %s", c.id, c.attached, e, epoch, s.node.name)
		}
	}
	c.told = epoch
	if c.attached == 0 {
		c.attached = epoch
	}
}

// accept is the operator's word that ports may go on which an owner has refused. It is about the takeovers up to that owner's, however late
// it is heard.
func (c *client) accept(s *session, seen ident.Epoch) {
	ctx, cancel := context.WithTimeout(context.Background(), loginMax)
	defer cancel()
	p := s.node.running()
	if p == nil || p.srv == nil {
		return
	}
	if vol, ok := p.srv.Volume(c.w.vol.ID); ok {
		err := vol.Bar(ctx, &wire.Bar{Kind: wire.BarAccept, Nexus: wire.Nexus{Initiator: s.nexus.Initiator}, First: seen.Number, Last: uint64(seen.Lineage)})
		if errors.Is(err, wire.ErrConflict) {
			c.w.stats.add("operator: words about ports that came behind another takeover (R11)", 1)
		}
	}
}

func (c *client) rest(d time.Duration) {
	select {
	case <-time.After(d + time.Duration(c.rng.Int64N(int64(d)))):
	case <-c.w.over:
	}
}

// parse makes a block's state of what was read.
func (c *client) parse(in opIn, data []byte) (st blockState) {
	if len(data) != blockBytes {
		c.w.fail("client %d: a read of block %d has %d bytes", c.id, in.block, len(data))
		return
	}
	for i := range st {
		sector := data[i*sectorSize:][:sectorSize]
		st[i] = binary.LittleEndian.Uint32(sector)
		for k := 4; k < sectorSize; k += 4 {
			if v := binary.LittleEndian.Uint32(sector[k:]); v != st[i] {
				c.w.fail("client %d: block %d, sector %d is torn: %x and %x", c.id, in.block, i, st[i], v)
				return
			}
		}
	}
	return
}

// next draws a command. After trouble a client reads for a while: so few commands are uncertain.
func (c *client) next() opIn {
	p := &c.w.plan
	in := opIn{kind: wire.OpRead, block: c.rng.IntN(p.Blocks)}
	k := c.rng.IntN(100)
	c.value++
	v := uint32(c.id+1)<<24 | c.value
	switch {
	case k < 35:
	case k < 60: // part of a block
		in.kind, in.value = wire.OpWrite, v
		in.sector = c.rng.IntN(sectors)
		in.count = 1 + c.rng.IntN(min(3, sectors-in.sector))
	case k < 80: // a whole one
		in.kind, in.value, in.count = wire.OpWrite, v, sectors
	case k < 92:
		in.kind, in.value, in.count = wire.OpCompareAndWrite, v, 1
		in.sector = c.rng.IntN(2)
		in.old = c.seen[in.block][in.sector]
	case k < 95:
		in.kind, in.count = wire.OpZero, sectors
	default:
		in.kind = wire.OpFlush
	}
	if p.Refer && in.kind == wire.OpWrite && in.count == sectors && in.block < 2 && c.rng.IntN(2) == 0 {
		in.kind, in.from = wire.OpCopy, 1-in.block
	}
	in.fua = in.kind == wire.OpWrite && c.rng.IntN(12) == 0
	return p.on(in)
}

// on says which half of its unit a command is about.
func (p *Plan) on(in opIn) opIn {
	if p.Refer && in.block == 1 {
		in.half = 1
	}
	return in
}

// run works until the world is over.
func (c *client) run() {
	for !c.w.stopped() {
		d := time.Duration(c.rng.Int64N(int64(2 * c.w.plan.Think)))
		if c.w.now() < time.Duration(c.w.troubled.Load()) {
			d /= 2
		} else {
			d = d * 3 / 2
		}
		select {
		case <-time.After(d):
		case <-c.w.over:
			return
		case <-c.w.quiet:
			return
		}
		c.do(c.next())
		if c.rng.IntN(100) == 0 {
			c.at = c.rng.IntN(len(c.paths))
		}
	}
}
