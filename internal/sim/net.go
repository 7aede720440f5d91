package sim

import (
	"context"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The network between nodes. As in package peer there is a connection for each pair of processes and class, two for the
// classes that carry data of several segments; messages of one connection arrive in order, those of different ones in
// any. A message is encoded when it is sent and decoded where it arrives: nothing is shared.
//
//	send ── delay, or held while the way is blocked ──> gate of the process, while it is paused ──> served
//
// A connection ends with its processes, and when there was no sign of life for deadAfter. What was under way to the
// other side is lost then, but for what had reached the gate of a paused process: that is in its socket's buffer, and is
// read when it wakes. Whoever waits for an answer is told that there was none.

const (
	deadAfter = 3 * time.Second        // peer.Options.DeadAfter
	pingEvery = 250 * time.Millisecond // how often that is looked at
	redialMax = 1500 * time.Millisecond
)

// network is the state of all ways. Guarded by mu; nothing is called with it held but World.at.
type network struct {
	w     *World
	mu    sync.Mutex
	pairs [][]pair // [from][to]: as from sees to
	slow  []time.Duration
	conns uint64
}

// pair is what one node knows of another, and the way to it.
type pair struct {
	up, gone bool
	blocked  int           // how many faults block the way from here to there
	since    time.Duration // since when, if blocked
	links    linksOf
}

// linksOf is the connections of one process to another, by class and lane.
type linksOf [wire.ClassMax + 1][lanes]*link

// link is a connection of a process to another.
type link struct {
	id       uint64
	from, to *Proc
	out      pipe // requests
	back     pipe // answers
	broken   bool
	calls    map[uint64]func(payload []byte, err *wire.Error)
	next     uint64
}

// pipe is one direction of a link.
type pipe struct {
	in   queue         // what has arrived and is to be read
	last time.Duration // when the last message arrives
	n    uint64
	held []*message // while the way is blocked, in order
}

// message is a frame under way. A function is what it does where it arrives.
type message struct {
	link    *link
	reply   bool
	typ     wire.Type
	request uint64
	store   ident.StoreID
	payload []byte
	err     *wire.Error // an answer that says no
	n       uint64      // of its pipe
}

// hold keeps a message until the way is free. One that departed before the way was blocked may come here late.
func (p *pipe) hold(m *message) {
	i := len(p.held)
	for i > 0 && p.held[i-1].n > m.n {
		i--
	}
	p.held = slices.Insert(p.held, i, m)
}

func (n *network) init(w *World) {
	n.w = w
	n.pairs = make([][]pair, len(w.nodes))
	n.slow = make([]time.Duration, len(w.nodes))
	for i := range n.pairs {
		n.pairs[i] = make([]pair, len(w.nodes))
	}
}

// delay is how long message number k of a connection is under way.
func (n *network) delay(a, b *Node, id, k uint64) time.Duration {
	d := 40*time.Microsecond + time.Duration(fraction(n.w.plan.Seed, id, k, 1)*float64(160*time.Microsecond))
	if a.site != b.site {
		far := n.w.plan.Distance
		d += far + time.Duration(fraction(n.w.plan.Seed, id, k, 2)*float64(far)/8)
	}
	if x := mix(n.w.plan.Seed, id, k, 3); x%200 == 0 { // now and then something is late
		d += time.Duration(fraction(x, 4) * float64(30*time.Millisecond))
	}
	return d + max(n.slow[a.index], n.slow[b.index])
}

// call sends a request; done is called once, by a goroutine that reads answers, or at once if nothing was sent.
func (n *network) call(p *Proc, to *Node, typ wire.Type, store ident.StoreID, bulk bool, lane uint8, payload []byte, done func([]byte, *wire.Error)) {
	n.mu.Lock()
	l := n.linkLocked(p, to, typ, bulk, lane)
	if l == nil {
		n.mu.Unlock()
		done(nil, unreached(to))
		return
	}
	l.next++
	m := &message{link: l, typ: typ, request: l.next, store: store, payload: payload}
	l.calls[m.request] = done
	n.sendLocked(m)
	n.mu.Unlock()
}

// post sends what has no answer.
func (n *network) post(p *Proc, to *Node, typ wire.Type, store ident.StoreID, payload []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.linkLocked(p, to, typ, false, 0); l != nil {
		n.sendLocked(&message{link: l, typ: typ, store: store, payload: payload})
	}
}

func unreached(to *Node) *wire.Error {
	return wire.Errorf(wire.CodeUnreached, "%s: no connection", to.name)
}

func (n *network) linkLocked(p *Proc, to *Node, typ wire.Type, bulk bool, lane uint8) *link {
	x := &n.pairs[p.node.index][to.index]
	if p.dead || !x.up || to.proc == nil {
		return nil
	}
	k, _ := wire.KindOf(typ)
	class := k.Class
	if bulk && class != wire.ClassControl {
		class = wire.ClassBulk
	}
	l := x.links[class][lane]
	if l == nil {
		n.conns++
		l = &link{id: mix(uint64(p.node.index), uint64(to.index), uint64(class), uint64(lane), p.start, to.proc.start), from: p, to: to.proc,
			calls: map[uint64]func([]byte, *wire.Error){}}
		x.links[class][lane] = l
	}
	return l
}

func (m *message) ends() (from, to *Proc) {
	if m.reply {
		return m.link.to, m.link.from
	}
	return m.link.from, m.link.to
}

func (m *message) pipe() *pipe {
	if m.reply {
		return &m.link.back
	}
	return &m.link.out
}

// sendLocked puts a message on its way.
func (n *network) sendLocked(m *message) {
	from, to := m.ends()
	if from.dead || m.link.broken && !m.reply {
		return
	}
	if from.paused {
		from.outGate = append(from.outGate, m)
		return
	}
	p := m.pipe()
	p.n++
	m.n = p.n
	if n.pairs[from.node.index][to.node.index].blocked > 0 {
		p.hold(m)
		return
	}
	n.departLocked(m)
}

func (n *network) departLocked(m *message) {
	from, to := m.ends()
	p := m.pipe()
	dir := uint64(0)
	if m.reply {
		dir = 1
	}
	p.last = max(p.last+time.Microsecond, n.w.now()+n.delay(from.node, to.node, m.link.id^dir, m.n))
	n.w.schedule(event{at: p.last, msg: m})
}

// arrive is a message's last step but the reading of it.
func (n *network) arrive(m *message) {
	n.mu.Lock()
	from, to := m.ends()
	switch {
	case to.dead || m.link.broken:
		n.mu.Unlock()
		return
	case n.pairs[from.node.index][to.node.index].blocked > 0: // since it departed
		m.pipe().hold(m)
		n.mu.Unlock()
		return
	case to.paused:
		to.inGate = append(to.inGate, m)
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	n.w.stats.Messages++
	n.w.trace.add(n.w.now(), "msg", m.link.id, uint64(m.typ)<<32|m.request, mix(0, uint64(len(m.payload)), sample(m.payload)))
	if n.w.trace.out != nil {
		n.w.tracef("net %s -> %s %s #%d reply=%v %d bytes err=%v", from.node.name, to.node.name, m.typ, m.request, m.reply, len(m.payload), m.err)
	}
	to.read(m)
}

// sample is a number that says something about some bytes.
func sample(b []byte) (h uint64) {
	for i := 0; i < len(b) && i < 64; i++ {
		h = h*31 + uint64(b[i])
	}
	return h
}

// answered takes an answer's call out; nil if nobody waits any more.
func (n *network) answered(m *message) func([]byte, *wire.Error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	done := m.link.calls[m.request]
	delete(m.link.calls, m.request)
	return done
}

// reply sends an answer.
func (n *network) reply(m *message, payload []byte, err error) {
	r := &message{link: m.link, reply: true, typ: m.typ, request: m.request, payload: payload, err: wireError(err)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !m.link.broken {
		n.sendLocked(r)
	}
}

// breakLinks ends all connections from a node to another and tells those who wait. why only for the trace.
func (n *network) breakLinks(from, to *Node) {
	n.mu.Lock()
	x := &n.pairs[from.index][to.index]
	var calls []func([]byte, *wire.Error)
	for class := range x.links {
		for lane, l := range x.links[class] {
			if l == nil {
				continue
			}
			l.broken = true
			l.out.held, l.back.held = nil, nil
			for k := uint64(1); k <= l.next; k++ {
				if done := l.calls[k]; done != nil {
					calls = append(calls, done)
				}
			}
			clear(l.calls)
			x.links[class][lane] = nil
		}
	}
	n.mu.Unlock()
	if len(calls) == 0 {
		return
	}
	err := unreached(to)
	n.w.wg.Go(func() {
		for _, done := range calls {
			done(nil, err)
		}
	})
}

// lanes is how many connections there are of the classes that have several.
const lanes = 2

// down notes that a node has lost another.
func (n *network) down(from, to *Node, gone bool) {
	n.mu.Lock()
	x := &n.pairs[from.index][to.index]
	was := x.up
	x.up, x.gone = false, gone
	n.mu.Unlock()
	n.breakLinks(from, to)
	if was {
		n.w.tracef("net %s has lost %s, gone=%v", from.name, to.name, gone)
	}
	n.redial(from, to)
}

// redial lets a node find another again, if it can be found, after a rest.
func (n *network) redial(from, to *Node) {
	rest := 50*time.Millisecond + time.Duration(n.w.rand64()%uint64(redialMax))
	n.w.after(rest, func() {
		n.mu.Lock()
		x := &n.pairs[from.index][to.index]
		a, b := from.proc, to.proc
		ok := !x.up && a != nil && b != nil && !a.dead && !b.dead && !b.paused && !a.paused && x.blocked == 0 && n.pairs[to.index][from.index].blocked == 0
		if ok {
			x.up, x.gone = true, false
		}
		again := !x.up && a != nil && b != nil
		n.mu.Unlock()
		switch {
		case ok:
			n.w.tracef("net %s has found %s", from.name, to.name)
		case again && !n.w.isOver():
			n.redial(from, to)
		}
	})
}

// block makes a way carry nothing; the other end of it is found dead after a while.
func (n *network) block(from, to *Node) {
	n.mu.Lock()
	x := &n.pairs[from.index][to.index]
	x.blocked++
	x.since = n.w.now()
	since := x.since
	n.mu.Unlock()
	n.w.after(deadAfter+time.Duration(n.w.rand64()%uint64(pingEvery)), func() {
		n.mu.Lock()
		still := x.blocked > 0 && x.since == since
		n.mu.Unlock()
		if still {
			n.down(from, to, false)
			n.down(to, from, false)
		}
	})
}

// unblock opens a way again; what was held goes on.
func (n *network) unblock(from, to *Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := &n.pairs[from.index][to.index]
	if x.blocked == 0 {
		return
	}
	if x.blocked--; x.blocked > 0 {
		return
	}
	flush := func(links *linksOf, reply bool) {
		for class := range links {
			for _, l := range links[class] {
				if l == nil {
					continue
				}
				p := &l.out
				if reply {
					p = &l.back
				}
				held := p.held
				p.held = nil
				for _, m := range held {
					n.departLocked(m)
				}
			}
		}
	}
	flush(&x.links, false)
	flush(&n.pairs[to.index][from.index].links, true)
}

// isUp reports whether a process has a connection to a node.
func (n *network) isUp(p *Proc, to *Node) (up, gone bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := &n.pairs[p.node.index][to.index]
	return x.up && !p.dead, x.gone
}

func wireError(err error) *wire.Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*wire.Error); ok {
		return e
	}
	return asWire(err)
}

// far is a store of another node.
type far struct {
	p    *Proc
	to   *Node
	bulk bool
}

var _ journal.Store = (*far)(nil)

func (s *far) ID() ident.StoreID { return s.to.store }

func laneOf(id ident.SegmentID) uint8 { return uint8(id.Number % lanes) }

func encode(m wire.Message) []byte {
	data := wire.DataOf(nil, m)
	size := fieldsMost
	for _, d := range data {
		size += len(d)
	}
	b := wire.AppendFields(make([]byte, 0, size), m)
	for _, d := range data {
		b = append(b, d...)
	}
	return b
}

// fieldsMost is room for the fields of most messages.
const fieldsMost = 256

func (s *far) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	s.p.w.chain.saw(m.Segment.Journal, m.Commit, "append by "+string(s.p.node.name))
	s.p.w.chain.began(s.p.node, m)
	if s.p.w.appending(s.p.node, m) {
		s.p.w.net.stall(s.p, s.to, wire.TypeAppend, s.bulk, laneOf(m.Segment))
	}
	s.p.w.net.call(s.p, s.to, wire.TypeAppend, s.to.store, s.bulk, laneOf(m.Segment), encode(m), func(b []byte, err *wire.Error) {
		var r wire.AppendReply
		done(r, decodeReply(&r, b, err))
	})
}

func decodeReply(r wire.Message, b []byte, err *wire.Error) error {
	if err != nil {
		return err
	}
	if e := wire.Decode(r, b); e != nil {
		return wire.Errorf(wire.CodeUnreached, "%v", e)
	}
	return nil
}

func (s *far) Notice(m *wire.Notice) {
	s.p.w.chain.saw(m.Journal, m.Commit, "notice by "+string(s.p.node.name))
	s.p.w.net.post(s.p, s.to, wire.TypeNotice, s.to.store, encode(m))
}

func (s *far) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	s.p.turn++
	s.p.w.net.call(s.p, s.to, wire.TypeRead, s.to.store, s.bulk, uint8(s.p.turn%lanes), encode(m), func(b []byte, err *wire.Error) {
		var r wire.ReadReply
		e := decodeReply(&r, b, err)
		done(r, e)
	})
}

// ask sends a request and waits for the answer, or for ctx.
func ask[T any, P interface {
	*T
	wire.Message
}](ctx context.Context, p *Proc, to *Node, store ident.StoreID, bulk bool, lane uint8, m wire.Message) (T, error) {
	type answer struct {
		b   []byte
		err *wire.Error
	}
	got := make(chan answer, 1)
	var none T
	p.w.net.call(p, to, m.Type(), store, bulk, lane, encode(m), func(b []byte, err *wire.Error) { got <- answer{b, err} })
	select {
	case a := <-got:
		r := new(T)
		if err := decodeReply(P(r), a.b, a.err); err != nil {
			return none, err
		}
		return *r, nil
	case <-ctx.Done():
		return none, &gaveUp{unreached(to), ctx.Err()}
	}
}

// gaveUp is both: nobody knows what became of it, and the context ended.
type gaveUp struct {
	unreached *wire.Error
	cause     error
}

func (e *gaveUp) Error() string   { return e.unreached.Error() + " (" + e.cause.Error() + ")" }
func (e *gaveUp) Unwrap() []error { return []error{e.unreached, e.cause} }

func (s *far) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return ask[wire.OpenReply](ctx, s.p, s.to, s.to.store, s.bulk, laneOf(m.Segment), m)
}
func (s *far) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	return ask[wire.SyncReply](ctx, s.p, s.to, s.to.store, s.bulk, 0, m)
}
func (s *far) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return ask[wire.SealReply](ctx, s.p, s.to, s.to.store, s.bulk, laneOf(m.Segment), m)
}
func (s *far) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	return ask[wire.FenceReply](ctx, s.p, s.to, s.to.store, false, 0, m)
}
func (s *far) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	return ask[wire.InventoryReply](ctx, s.p, s.to, s.to.store, s.bulk, 0, m)
}
func (s *far) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	return ask[wire.ReadReply](ctx, s.p, s.to, s.to.store, s.bulk, 1, m)
}
func (s *far) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return ask[wire.ReadReply](ctx, s.p, s.to, s.to.store, s.bulk, 1, m)
}
func (s *far) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	s.p.w.chain.saw(m.Segment.Journal, m.Commit, "push by "+string(s.p.node.name))
	return ask[wire.AppendReply](ctx, s.p, s.to, s.to.store, s.bulk, laneOf(m.Segment), m)
}
func (s *far) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	return ask[wire.DropReply](ctx, s.p, s.to, s.to.store, false, 0, m)
}
func (s *far) Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	return ask[wire.StoreStatusReply](ctx, s.p, s.to, s.to.store, false, 0, m)
}

// path is another node's access server and leases.
type path struct {
	p  *Proc
	to *Node
}

func (l path) Up() bool   { up, _ := l.p.w.net.isUp(l.p, l.to); return up }
func (l path) Gone() bool { _, gone := l.p.w.net.isUp(l.p, l.to); return gone }

func (l path) Forward(m *wire.Forward, done func(wire.ForwardReply, error)) {
	l.p.w.net.call(l.p, l.to, wire.TypeForward, ident.StoreID{}, false, 0, encode(m), func(b []byte, err *wire.Error) {
		var r wire.ForwardReply
		e := decodeReply(&r, b, err)
		done(r, e)
	})
}
func (l path) Bar(ctx context.Context, m *wire.Bar) (wire.BarReply, error) {
	return ask[wire.BarReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
func (l path) Tick(ctx context.Context, m *wire.Tick) (wire.TickReply, error) {
	return ask[wire.TickReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
func (l path) OwnerStatus(ctx context.Context, m *wire.OwnerStatus) (wire.OwnerStatusReply, error) {
	return ask[wire.OwnerStatusReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
func (l path) Unit(ctx context.Context, m *wire.Unit) (wire.UnitReply, error) {
	return ask[wire.UnitReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
func (l path) HandOver(ctx context.Context, m *wire.HandOver) (wire.HandOverReply, error) {
	return ask[wire.HandOverReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
func (l path) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	return ask[wire.LeaseReply](ctx, l.p, l.to, ident.StoreID{}, false, 0, m)
}
