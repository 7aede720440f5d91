package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/reserve"
	"dozo/internal/wire"
)

// A recipe in which an owner says something that it alone knows, and dies.

// reservedAlone: an owner that is alone takes a reservation, which nobody else hears of.
func reservedAlone(p *Plan, rng *rand.Rand) {
	p.Sites[0] = 3
	p.rounds(4, func(at time.Duration) {
		p.add(Fault{Kind: FaultReserved, At: at + between(rng, 0, 2*time.Second), For: 8 * time.Second, Owner: true, Size: rng.IntN(1 << 20)})
	})
}

// reservedAlone is the fault: one client reserves the volume, another one writes, and the owner dies. Whoever was told that the volume is reserved
// counts on it: nobody but the first client may write before it is released.
func (w *World) reservedAlone(n *Node, f *Fault) {
	var other *Node
	for _, x := range w.nodes {
		if x.site == n.site && x != n {
			other = x
		}
	}
	first, second := w.lateClient(n, other), w.lateClient(n, other)
	first.timeout, second.timeout = time.Second, 900*time.Millisecond
	w.wg.Go(func() {
		defer func() {
			for _, s := range append(first.paths, second.paths...) {
				s.end()
			}
		}()
		if !first.login(0) || !second.login(0) {
			return
		}
		w.after(0, func() {
			w.alone(n, nil, func(end func()) { w.after(2*time.Second, end) })
			w.after(time.Duration(1000+f.Size%200)*time.Millisecond, n.kill)
			w.after(f.For, n.restart)
		})
		time.Sleep(time.Millisecond)
		done := make(chan bool, 1)
		w.wg.Go(func() { done <- first.reserve(first.paths[0]) })
		time.Sleep(time.Duration(1+f.Size>>8%20) * time.Millisecond)
		refused := second.refused(second.paths[0])
		reserved := <-done
		if refused {
			w.stats.add("client: refused because of a reservation", 1)
		}
		for end := w.now() + f.For; w.now() < end && !w.isOver() && !second.login(1); {
			second.rest(50 * time.Millisecond)
		}
		for end := w.now() + f.For; (refused || reserved) && w.now() < end && !w.isOver(); second.rest(50 * time.Millisecond) {
			s := second.paths[1]
			if (!s.in || s.isLost()) && !second.login(1) {
				continue
			}
			in := w.plan.on(opIn{kind: wire.OpWrite, block: second.rng.IntN(w.plan.Blocks), count: sectors, value: 0xc0000000 | uint32(second.id)<<8 | uint32(second.number&0xff)})
			call := w.hist.tick()
			a, answered := second.command(s, &in, in.payload())
			switch {
			case answered && a.err == nil:
				w.fail("a client was told that the volume is reserved, and may write now though nobody has released it (R7): an answer of epoch %d by %s", a.epoch.Number, s.node.name)
				w.hist.done(in, opOut{epoch: a.epoch.Number, decided: a.decided, same: true}, call)
				return
			case answered && errors.Is(a.err, wire.ErrDenied):
				w.stats.add("client: reservations that have outlived their owner", 1)
				end = 0
			default:
				w.hist.maybe(in, call, 0)
			}
		}
		// LUN RESET releases it, if it is there.
		for !w.isOver() {
			s := second.paths[1]
			if s.in && !s.isLost() || second.login(1) {
				if second.bar(s, &wire.Bar{Kind: wire.BarLUNReset, Nexus: s.nexus, Session: s.id}) {
					return
				}
				s.end()
			}
			second.rest(50 * time.Millisecond)
		}
	})
}

// reserve is RESERVE (6); true if that was answered.
func (c *client) reserve(s *session) bool {
	got := make(chan error, 1)
	stamp := s.stamp
	c.number++
	number := c.number << requestBits
	c.w.toTarget(s, func(p *Proc) {
		op := access.NewOp()
		cmd := reserve.Command{Action: reserve.LegacyReserve, Session: s.id,
			Nexus: reserve.NexusID{Initiator: s.nexus.Initiator, ISID: s.nexus.ISID, Port: s.nexus.TPGT}}
		op.Kind, op.Unit = wire.OpUnit, cmd.Append(nil)
		op.Nexus, op.Session, op.Stamp = &s.nexus, s.id, stamp
		op.Request = wire.RequestID{Forwarder: s.id, Number: number}
		op.Done = func(op *access.Op, err error) {
			if err == nil && (len(op.Data) == 0 || len(op.Data[0]) == 0 || op.Data[0][0] != byte(reserve.Good)) {
				err = wire.ErrDenied
			}
			op.Release()
			c.w.toClient(s, p, func() { got <- err })
		}
		s.vol.Submit(op)
	})
	select {
	case err := <-got:
		return err == nil
	case <-time.After(c.timeout):
	case <-c.w.over:
	}
	return false
}

// refused reports that a write was refused because somebody else has reserved the volume.
func (c *client) refused(s *session) bool {
	in := c.w.plan.on(opIn{kind: wire.OpWrite, block: c.rng.IntN(c.w.plan.Blocks), count: sectors, value: 0xc0000000 | uint32(c.id)<<8 | 0xff})
	call := c.w.hist.tick()
	a, answered := c.command(s, &in, in.payload())
	switch {
	case answered && errors.Is(a.err, wire.ErrDenied):
		return true
	case answered && a.err == nil:
		c.w.hist.done(in, opOut{epoch: a.epoch.Number, decided: a.decided, same: true}, call)
	default:
		c.w.hist.maybe(in, call, 0)
	}
	return false
}
