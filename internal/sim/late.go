package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"dozo/internal/access"
	"dozo/internal/wire"
)

// R9: what a client has given up arrives late. Other clients do as multipathing does, and what they give up is seldom late by just
// so much that its stamp is still good, while something has come between that makes a difference. The clients here do nothing
// else: each sends one write that is held up on its way, ends it in one of the ways that there are, looks, and looks again when
// the write has arrived after all.

// lateKind is how a client is sure that a write is over, and what holds the write up.
type lateKind int

const (
	lateRetried   lateKind = iota // it was said again by another path, and done, and then something newer, or refused; it was in the client's socket
	lateReset                     // LUN RESET by another path
	lateLogin                     // the session was begun anew
	lateAborted                   // ABORT TASK; it was at a forwarder that had lost its connection to the owner
	lateAnswered                  // it was answered, but the connection that the answer came by was lost: the forwarder sends it again
	lateKinds     = int(lateAnswered) + 1
	lateLong      = lateKind(lateKinds) // it is one of several calls that a command became: its stamp is fresh, the command's is not (FaultLateLong)
	lateFirst     = 3000                // the identifiers of these clients
	lateReadEvery = 15 * time.Millisecond
)

// lateCommand is the fault: one such client, with a write by a node that is not the owner's.
func (w *World) lateCommand(owner *Node, f *Fault) {
	var forwarders []*Node
	for _, x := range w.nodes {
		if x != owner && x.running() != nil {
			forwarders = append(forwarders, x)
		}
	}
	if len(forwarders) == 0 {
		return
	}
	by := forwarders[int(f.Also*float64(len(forwarders)))]
	l := &lateClient{w: w, f: f, owner: owner, kind: lateKind(f.Size % lateKinds), client: w.lateClient(by, owner)}
	if f.Kind == FaultLateLong {
		l.kind = lateLong
	}
	if f.Kind == FaultLateOld {
		l.kind = lateRetried
	}
	w.wg.Go(l.run)
}

// lateClient makes a client with a path to each of some nodes.
func (w *World) lateClient(nodes ...*Node) *client {
	id := lateFirst + int(w.lateClients.Add(1))
	c := &client{w: w, id: id, site: nodes[0].site, rng: rand.New(rand.NewPCG(w.plan.Seed, uint64(id))), seen: map[int]blockState{}, timeout: 2500 * time.Millisecond}
	for _, n := range nodes {
		c.paths = append(c.paths, &session{c: c, node: n, lost: make(chan struct{})})
	}
	return c
}

type lateClient struct {
	*client
	w     *World
	f     *Fault
	kind  lateKind
	owner *Node
}

func (l *lateClient) run() {
	defer func() {
		for _, s := range l.paths {
			s.end()
		}
	}()
	if !l.login(1) || !l.login(0) {
		return
	}
	w, old, by := l.w, l.paths[0], l.paths[1]
	in := w.plan.on(opIn{kind: wire.OpWrite, block: l.rng.IntN(w.plan.Blocks), count: sectors, value: uint32(0xd0000000) | uint32(l.id)<<8})
	w.tracef("late client %d by %s and %s: %s, kind %d", l.id, old.node.name, by.node.name, in.String(), l.kind)
	if l.kind == lateAnswered {
		l.answeredTwice(old, by, in)
		return
	}
	if l.kind == lateLong {
		l.goesOn(old, by, in)
		return
	}
	var other *lateClient
	if l.kind == lateRetried && l.f.Size>>16&1 == 0 {
		if other = l.unequal(by, &in); other == nil {
			return
		}
		defer func() { other.paths[0].end() }()
	}
	switch l.kind {
	case lateAborted:
		w.net.down(old.node, l.owner, false)
	default:
		w.net.mu.Lock()
		old.stuck = w.now() + time.Duration(400+l.f.Size>>4%800)*time.Millisecond
		if l.f.Kind == FaultLateOld { // what the owner remembers of other writes is younger than this (R9)
			old.stuck += 3200 * time.Millisecond
		}
		w.net.mu.Unlock()
	}
	patience := l.timeout
	l.timeout = time.Duration(50+l.f.Size>>8%200) * time.Millisecond
	first := w.hist.tick()
	a, answered := l.command(old, &in, in.payload())
	l.timeout = patience
	if answered { // the connection was not lost for long
		l.note(&in, a, first)
		return
	}
	over := false
	switch l.kind {
	case lateRetried:
		over = l.try(by, in)
	case lateReset:
		over = l.bar(by, &wire.Bar{Kind: wire.BarLUNReset, Nexus: by.nexus, Session: by.id})
	case lateLogin:
		over = l.login(0)
	case lateAborted:
		over = l.bar(old, old.abortTask())
	}
	w.tracef("late client %d: over=%v, stuck until %v", l.id, over, old.stuck)
	if !over {
		w.hist.maybe(in, first, 0)
		return
	}
	w.hist.maybe(in, first, w.hist.tick())
	w.stats.add("client: writes given up that are still on their way", 1)
	switch {
	case other != nil:
		if !other.try(other.paths[0], w.plan.on(opIn{kind: wire.OpZero, block: in.block, count: sectors})) {
			return
		}
	case l.kind == lateRetried:
		newer := in
		newer.value++
		if !l.try(by, newer) {
			return
		}
	}
	l.look(by, in.block, max(0, old.stuck-w.now())+150*time.Millisecond)
}

// unequal makes the command a COMPARE AND WRITE that finds something else, written by another client: so it is over with MISCOMPARE when it
// has been said again, and would not be any more once that client has put back what it compares with. nil if that can't be.
func (l *lateClient) unequal(by *session, in *opIn) *lateClient {
	o := &lateClient{client: l.w.lateClient(by.node), w: l.w, f: l.f}
	there := *in
	there.value++
	in.kind, in.count, in.old = wire.OpCompareAndWrite, 1, 0
	if !o.login(0) || !o.try(o.paths[0], there) {
		o.paths[0].end()
		return nil
	}
	l.w.stats.add("client: COMPARE AND WRITE that are over and still on their way", 1)
	return o
}

// look reads a block for a while.
func (l *lateClient) look(s *session, block int, long time.Duration) {
	for end := l.w.now() + long; l.w.now() < end && !s.isLost() && !l.w.isOver(); time.Sleep(lateReadEvery) {
		l.try(s, l.w.plan.on(opIn{kind: wire.OpRead, block: block}))
	}
}

// try does a command once; true if it was done.
func (l *lateClient) try(s *session, in opIn) bool {
	call := l.w.hist.tick()
	a, answered := l.command(s, &in, in.payload())
	if !answered {
		a.err = errNoAnswer
	}
	return l.note(&in, a, call)
}

var errNoAnswer = errors.New("no answer")

// note tells the history of an attempt that is not said again.
func (l *lateClient) note(in *opIn, a answer, call int64) bool {
	l.w.tracef("late client %d: %s: %v", l.id, in.String(), a.err)
	if a.err != nil && !errors.Is(a.err, wire.ErrMiscompare) {
		if in.mutates() {
			l.w.hist.maybe(*in, call, 0)
		}
		return false
	}
	out := opOut{epoch: a.epoch.Number, decided: a.decided, same: a.err == nil}
	if in.kind == wire.OpRead {
		out.read = l.parse(*in, a.data)
	}
	l.w.hist.done(*in, out, call)
	return true
}

// answeredTwice loses the answer to a write, together with the connection that it came by; another client reads what was written
// and writes something else before the forwarder has a connection again, now and then to another owner.
func (l *lateClient) answeredTwice(old, by *session, in opIn) {
	w := l.w
	if l.f.Size>>4%3 == 0 {
		in.kind, in.count, in.old = wire.OpCompareAndWrite, 1, 0
		zero := w.plan.on(opIn{kind: wire.OpZero, block: in.block, count: sectors})
		if !l.try(by, zero) {
			return
		}
	}
	other := w.lateClient(by.node)
	o := &lateClient{client: other, w: w, f: l.f}
	defer func() { other.paths[0].end() }()
	if !other.login(0) {
		return
	}
	lost := make(chan struct{})
	w.arm(trap{on: cueForwarded, at: old.node, until: w.now() + time.Second, lost: true, strike: func() {
		w.stats.add("answers lost that a forwarder waited for", 1)
		w.net.down(old.node, l.owner, false)
		switch l.f.Size >> 6 % 4 {
		case 0:
			w.move(l.owner, by.node.name, 0)
		case 1:
			w.move(l.owner, old.node.name, 0)
		}
		close(lost)
	}})
	done := make(chan struct{})
	w.wg.Go(func() {
		defer close(done)
		call := w.hist.tick()
		a, answered := l.command(old, &in, in.payload())
		if !answered {
			a.err = errNoAnswer
		}
		l.note(&in, a, call)
	})
	select {
	case <-lost:
		if o.try(other.paths[0], w.plan.on(opIn{kind: wire.OpRead, block: in.block})) && in.kind == wire.OpWrite {
			newer := in
			newer.value++
			o.try(other.paths[0], newer)
		}
	case <-done:
	}
	<-done
	o.look(other.paths[0], in.block, 5*lateReadEvery)
}

// goesOn has an access server go on with a command that has become several calls, as WRITE SAME does, after the client has given it up: by
// LUN RESET, or by a new login. What the server has heard of the owner's clock since makes the call's stamp fresh, and the command's stays beside it.
func (l *lateClient) goesOn(old, by *session, in opIn) {
	w := l.w
	first := w.hist.tick()
	began := old.stamp
	l.rest(time.Duration(1+l.f.Size>>4%50) * time.Millisecond)
	over := false
	if l.f.Size%2 == 0 {
		over = l.bar(by, &wire.Bar{Kind: wire.BarLUNReset, Nexus: by.nexus, Session: by.id})
	} else {
		over = l.login(0)
	}
	if !over {
		return // nothing of it was said yet
	}
	w.hist.maybe(in, first, w.hist.tick())
	w.stats.add("client: long commands given up that go on", 1)
	l.look(by, in.block, time.Duration(1000+l.f.Size>>10%400)*time.Millisecond)
	w.toTarget(old, func(*Proc) {
		op := access.NewOp()
		op.Kind, op.Offset, op.Length = in.kind, in.offset(), in.length()
		op.Nexus, op.Session = &old.nexus, old.id
		op.Request = wire.RequestID{Forwarder: old.id, Number: l.number<<requestBits | 1}
		if op.Stamp = old.vol.Stamp(); op.Stamp.Epoch == began.Epoch {
			op.Since = began.Tick
		} else {
			op.Stamp = began
		}
		data := in.payload()
		op.Buf = access.NewWriteBuf(op.Offset, len(data))
		copy(op.Buf.Bytes(), data)
		op.Done = func(op *access.Op, err error) {
			w.tracef("late client %d: what goes on: %v", l.id, err)
			op.Release()
		}
		old.vol.Submit(op)
	})
	l.look(by, in.block, 200*time.Millisecond)
}
