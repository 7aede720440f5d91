package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"dozo/internal/access"
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
