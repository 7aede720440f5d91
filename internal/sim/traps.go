package sim

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/wire"
)

// Some windows are a millisecond long and open at moments that no plan can know. A trap is a fault that waits for its cue,
// something that the protocol does or a client is told, and strikes then.

// cue is a moment of the protocol.
type cue int

const (
	cueFlushed   cue = iota // a client was told that what it flushed, or wrote with FUA, is stable
	cueServed               // a client has an answer of an epoch
	cueUnflushed            // clients were told of several writes since one was last told of a flush
	cueFenceIn              // a fence has arrived at a store of another node, and is not yet answered
	cueFenceOut             // it is
	cueDrop                 // a store is told that a replica may go
	cueForwarded            // an owner is about to answer a write that a node has forwarded
	cueListed               // the older ensembles have left the list: only the newest is asked from now on
	cueHanded               // the control store names the taker of a hand-over, and the owner goes on
	cuePermit               // an owner has permits in what it appends
	cueAppend               // an owner appends to the store of another node
	cueBegun                // an owner appends its epoch's start, for the first time
)

// trap waits for a cue, once.
type trap struct {
	on     cue
	at     *Node  // where; nil: anywhere
	above  uint64 // only epochs above this one count
	count  int    // how many more such moments pass before it strikes
	until  time.Duration
	lost   bool                         // it strikes by losing the message
	drop   func(*Proc, *wire.Drop) bool // cueDrop: whether this is the one
	strike func()                       // the driver calls it, at that moment
}

// traps are those that wait.
type traps struct {
	armed atomic.Bool // there is one
	mu    sync.Mutex
	list  []*trap
}

func (w *World) arm(t trap) {
	w.traps.mu.Lock()
	defer w.traps.mu.Unlock()
	w.traps.list = append(w.traps.list, &t)
	w.traps.armed.Store(true)
}

// cue strikes with the first trap that waits for what happens at a node, in an epoch. It reports that the message is lost.
func (w *World) cue(on cue, n *Node, epoch uint64) (lost bool) { return w.cueWith(on, n, epoch, nil) }

// cueDropped is cueDrop, before the store has done anything.
func (p *Proc) cueDropped(m *wire.Drop) {
	p.w.cueWith(cueDrop, p.node, m.Epoch.Number, func(t *trap) bool { return t.drop(p, m) })
}

func (w *World) cueWith(on cue, n *Node, epoch uint64, wanted func(*trap) bool) (lost bool) {
	if !w.traps.armed.Load() {
		return false
	}
	w.traps.mu.Lock()
	defer w.traps.mu.Unlock()
	now := w.now()
	list := w.traps.list[:0]
	struck := false
	for _, t := range w.traps.list {
		switch {
		case t.until < now:
			continue
		case struck || t.on != on || t.at != nil && t.at != n || epoch <= t.above || wanted != nil && !wanted(t):
		case t.count > 0:
			t.count--
		default:
			struck, lost = true, t.lost
			w.after(0, t.strike)
			continue
		}
		list = append(list, t)
	}
	w.traps.list = list
	w.traps.armed.Store(len(list) > 0)
	return lost
}

// unflushedMany is how many writes have to be answered since the last flush for cueUnflushed.
const unflushedMany = 5

// told notes what a client was told about a change.
func (w *World) told(in *opIn, epoch uint64) {
	w.cue(cueServed, nil, epoch)
	switch {
	case in.fua || in.kind == wire.OpFlush:
		w.unflushed.Store(0)
		w.cue(cueFlushed, nil, epoch)
	case in.mutates() && w.unflushed.Add(1) >= unflushedMany:
		w.cue(cueUnflushed, nil, epoch)
	}
}

// dieUnflushed has the owner die when much is not flushed, and the site lose its power when the next one has flushed.
func (w *World) dieUnflushed(n *Node, f *Fault) {
	w.arm(trap{on: cueUnflushed, until: w.now() + f.For, strike: func() {
		if o := w.owner(); o != nil && o.site == n.site {
			w.afterFlush(o, f)
			o.kill()
			w.after(time.Duration(100+f.Size>>3%2000)*time.Millisecond, o.restart)
		}
	}})
}

// newest is the number of the newest epoch that has begun.
func (c *chain) newest() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.begun) == 0 {
		return 0
	}
	return c.begun[len(c.begun)-1].Number
}

// afterFlush has a site lose its power as soon as the next flush is answered, or the next one of a new epoch.
func (w *World) afterFlush(n *Node, f *Fault) {
	t := trap{on: cueFlushed, count: f.Size >> 6 % 3, until: w.now() + f.For}
	if f.Size>>5%2 == 0 {
		t.above, t.count = w.chain.newest(), 0
	}
	t.strike = func() {
		w.stats.add("power lost at once after a flush", 1)
		w.trouble()
		var here []*Node
		for _, x := range w.nodes {
			if x.site == n.site {
				here = append(here, x)
			}
		}
		spared := -1
		if len(here) > 2 && f.Size>>7%3 > 0 { // one dies instead, and is away until nobody waits for it any more
			spared = f.Size >> 9 % len(here)
		}
		for i, x := range here {
			if i == spared {
				x.kill()
				w.after(9*time.Second, x.restart)
				continue
			}
			x.powerCut(percentOf(f))
			w.after(500*time.Millisecond, x.restart)
		}
	}
	w.arm(t)
}

// afterAnswers cuts an owner off and has it die a moment later, with what nobody else has. When its successor has answered
// something, that one, or what it has written, is gone too, and the former owner's node is back.
func (w *World) afterAnswers(n *Node, f *Fault) {
	// While the other store's answers are under way, what comes gathers (group commit): so the owner's own store has much
	// that the other one has not.
	w.net.setSlow(n, burstSlow)
	w.burst(n, 12, burstLead)
	w.after(burstLead+2*burstSlow+time.Duration(f.Size>>8%int(burstSlow)), func() {
		w.net.setSlow(n, 0)
		w.alone(n, nil, func(end func()) {
			w.after(time.Duration(f.Size>>5%200)*time.Millisecond, func() { n.kill(); end() })
		})
	})
	w.after(f.For, n.restart)
	w.arm(trap{on: cueServed, above: w.chain.newest(), count: f.Size >> 14 % 4, until: w.now() + f.For, strike: func() {
		w.stats.add("owners struck down after their first answers", 1)
		w.trouble()
		o := w.owner()
		switch {
		case o == nil || o == n:
			return
		case f.Size>>17%2 == 0:
			o.kill()
		default:
			for _, x := range w.nodes {
				if x.site == o.site && x != n {
					x.powerCut(0)
					w.after(time.Duration(f.Size>>2%400)*time.Millisecond, x.restart)
				}
			}
		}
		w.after(2*time.Second, o.restart)
		n.restart()
	}})
}

const (
	burstLead = 5 * time.Millisecond // for logins
	burstSlow = 10 * time.Millisecond
)

// burst has as many clients as that write a block each at a node, all at one moment, and never say it again.
func (w *World) burst(n *Node, count int, lead time.Duration) {
	at := w.now() + lead
	for i := range count {
		c := &client{w: w, id: 1000 + 16*int(w.chain.newest()) + i, site: n.site, rng: rand.New(rand.NewPCG(w.plan.Seed, uint64(i))), seen: map[int]blockState{}, timeout: time.Second}
		c.paths = []*session{{c: c, node: n, lost: make(chan struct{})}}
		value := 0xe0000000 | uint32(c.id)
		w.wg.Go(func() {
			if !c.login(0) {
				return
			}
			time.Sleep(at - w.now())
			in := w.plan.on(opIn{kind: wire.OpWrite, block: c.rng.IntN(w.plan.Blocks), count: sectors, value: value})
			call := w.hist.tick()
			if a, ok := c.command(c.paths[0], &in, in.payload()); ok && a.err == nil {
				w.hist.done(in, opOut{epoch: a.epoch.Number, decided: a.decided, same: true}, call)
			} else {
				w.hist.maybe(in, call, 0)
			}
			c.paths[0].end()
		})
	}
}

// forgetful leaves an owner with one other store, until that one is fenced by the next owner. Then the former owner hears
// nothing from it any more, and the store restarts, before or after it has answered; or does not, and clocks differ.
func (w *World) forgetful(n, store *Node, f *Fault, undo func(func())) {
	n.cutOff.Add(1)
	store.cutOff.Add(1) // another one takes over
	free := sync.OnceFunc(func() { store.cutOff.Add(-1) })
	undo(func() { n.cutOff.Add(-1); free() })
	w.alone(n, store, undo)
	rest := time.Duration(20+f.Size>>6%100) * time.Millisecond
	newest, kind := w.chain.newest(), f.Size>>2%4
	w.wg.Go(func() { w.hammer(n, f) })
	w.arm(trap{on: cueFenceIn, at: store, above: newest, until: w.now() + f.For, lost: kind < 2, strike: func() {
		w.stats.add("stores fenced that an owner alone relied upon", 1)
		free()
		w.hammering.Store(int64(w.now() + 2500*time.Millisecond))
		if kind >= 2 {
			w.cut([][2]*Node{{store, n}}, func(end func()) { w.after(1800*time.Millisecond, end) })
			return
		}
		w.after(time.Duration(300+f.Size>>9%400)*time.Millisecond, func() { // the taker asks again after a second
			store.kill()
			w.net.breakLinks(n, store)
			w.cut([][2]*Node{{store, n}, {n, store}}, func(end func()) { w.after(1800*time.Millisecond, end) })
			w.after(rest, store.restart)
		})
	}})
	if kind != 2 {
		return
	}
	w.arm(trap{on: cueFenceOut, at: store, above: newest, until: w.now() + f.For, strike: func() {
		w.after(time.Duration(2+f.Size>>13%60)*time.Millisecond, func() { // the answer is on its way
			w.stats.add("stores restarted that had answered a fence", 1)
			if f.Size>>4%2 == 0 {
				store.kill()
			} else {
				store.powerCut(percentOf(f))
			}
			w.net.breakLinks(n, store)
			var cut [][2]*Node
			for _, x := range w.nodes {
				if x != n && x != store {
					cut = append(cut, [2]*Node{x, store}, [2]*Node{store, x})
				}
			}
			w.cut(cut, func(end func()) { w.after(4*time.Second, end) })
			w.after(rest, store.restart)
		})
	}})
}

// hammer reads at a node that is alone, whenever hammering says so, as fast as it can: a stale answer is possible for a
// few milliseconds only.
func (w *World) hammer(n *Node, f *Fault) {
	end := w.now() + f.For
	id := 200 + int(w.chain.newest())
	c := &client{w: w, id: id, site: n.site, rng: rand.New(rand.NewPCG(w.plan.Seed, uint64(f.Size)<<8)), seen: map[int]blockState{}, timeout: 400 * time.Millisecond, isid: byte(f.Size)}
	c.paths = []*session{{c: c, node: n, lost: make(chan struct{})}}
	for w.now() < end && !w.stopped() {
		if s := c.paths[0]; !s.in || s.isLost() {
			if !c.login(0) {
				c.rest(20 * time.Millisecond)
				continue
			}
		}
		if w.now() > time.Duration(w.hammering.Load()) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		in := w.plan.on(opIn{kind: wire.OpRead, block: c.rng.IntN(w.plan.Blocks)})
		call := w.hist.tick()
		if a, ok := c.command(c.paths[0], &in, nil); ok && a.err == nil {
			w.stats.add("client: reads at an owner that is alone", 1)
			w.hist.done(in, opOut{epoch: a.epoch.Number, decided: a.decided, same: true, read: c.parse(in, a.data)}, call)
		}
		time.Sleep(3 * time.Millisecond)
	}
	c.paths[0].end()
}
