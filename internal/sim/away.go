package sim

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Recipes in which nodes are gone until the clients are done (stays.go), as soon as nobody should need them any more.

// leave has a node die, for as long as the fault says. The driver calls it.
func (w *World) leave(f *Fault, n *Node) {
	w.stays.keep(f, n)
	w.stays.until(n.restart)
	n.kill()
}

// storeLeaving is the operator's word that a store is to be emptied, or not any more.
func (w *World) storeLeaving(n *Node, yes bool) {
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := w.admin.SetStoreLeaving(ctx, n.store, yes)
		w.tracef("store of %s is to be emptied=%v: %v", n.name, yes, err)
	})
}

// about is what a process knows of stores beyond their being there: what an operator says of them, and which of their replicas they
// have found to be damaged, as nodes tell each other. nil where there is neither.
func (p *Proc) about() func(ident.StoreID) access.StoreInfo {
	if !slices.ContainsFunc(p.w.plan.Faults, func(f Fault) bool {
		return f.Kind == FaultMember || f.Kind == FaultRestored || f.Kind == FaultRot || f.Kind == FaultRotTail
	}) {
		return nil
	}
	return func(id ident.StoreID) (i access.StoreInfo) {
		n := p.w.nodeOfStore(id)
		if n == nil {
			return i
		}
		x, _ := p.ctl.Node(n.name)
		i.Leaving = slices.ContainsFunc(x.Stores, func(s control.StoreSpec) bool { return s.ID == id && s.Leaving })
		if at := n.running(); at != nil && (at == p || (path{p, n}).Up()) {
			for _, d := range at.store.Damaged() {
				i.Damaged = append(i.Damaged, wire.DamagedReplica{Segment: d.Segment, Made: d.Made})
			}
		}
		return i
	}
}

// memberReplaced has another member of the owner's ensemble emptied. Once only ensembles without that one are listed it goes for good, and
// so does the owner's node: what those two had has to be elsewhere by then.
func (w *World) memberReplaced(n *Node, f *Fault) {
	state, _, ok := w.admin.Journal(w.vol.ID)
	if !ok || len(state.Ensembles) == 0 {
		return
	}
	var others []*Node
	for _, id := range state.Ensembles[len(state.Ensembles)-1].Stores {
		if x := w.nodeOfStore(id); x != n {
			others = append(others, x)
		}
	}
	gone := others[int(f.Also*float64(len(others)))]
	w.storeLeaving(gone, true)
	w.stays.until(func() { w.storeLeaving(gone, false) })
	w.arm(trap{on: cueListed, above: w.chain.newest(), until: w.now() + f.For, strike: func() {
		state, _, _ := w.admin.Journal(w.vol.ID)
		if len(state.Ensembles) != 1 || slices.Contains(state.Ensembles[0].Stores, gone.store) {
			return
		}
		w.stats.add("owners that left for good, with a former member, when an ensemble was off the list", 1)
		w.trouble()
		if o := w.nodeOf(state.Owner); o != nil {
			w.leave(f, o)
		}
		w.leave(f, gone)
	}})
}

// siteLeft has the volume handed over to another site, while clients write as fast as they can. As soon as anything is answered there
// the site that was left is gone for good: all that was acknowledged can be read all the same.
func (w *World) siteLeft(n *Node, f *Fault) {
	var to *Node
	for _, x := range w.nodes {
		if x.site != n.site {
			to = x
		}
	}
	struck := make(chan struct{})
	end := w.now() + f.For
	newest := w.chain.newest()
	var over atomic.Bool
	for i := range leftWriters {
		l := &leftWriter{client: w.lateClient(n, to), w: w, first: w.plan.Blocks + 1 + i*leftBlocks}
		w.wg.Go(func() { l.run(struck, end, &over) })
	}
	if f.Kind == FaultGiver {
		w.giverDies(n, f, newest, end)
	}
	w.arm(trap{on: cueServed, above: newest, count: f.Size >> 3 % 4, until: end, strike: sync.OnceFunc(func() {
		over.Store(true)
		if o := w.owner(); o == nil || o.site == n.site {
			return
		}
		w.stats.add("sites gone for good as soon as the volume had left them", 1)
		w.trouble()
		for _, x := range w.nodes {
			if x.site == n.site {
				w.leave(f, x)
			}
		}
		close(struck)
	})})
	w.after(time.Duration(200+f.Size>>8%500)*time.Millisecond, func() { w.move(n, "", to.site) })
}

const (
	leftWriters  = 6
	leftBlocks   = 8 // of each
	leftPatience = 20 * time.Second
	leftRest     = 5 * time.Millisecond
)

// leftWriter is a client with blocks of its own, which nobody else knows.
type leftWriter struct {
	*client
	w     *World
	first int
	acked [leftBlocks]uint32 // what the owner has last acknowledged
	tried [leftBlocks]uint32 // the newest value sent
}

func (l *leftWriter) run(struck chan struct{}, end time.Duration, over *atomic.Bool) {
	w := l.w
	defer func() {
		for _, s := range l.paths {
			s.end()
		}
	}()
	l.rng = rand.New(rand.NewPCG(w.plan.Seed, uint64(l.id)))
	l.timeout = time.Second
	if !l.login(1) || !l.login(0) {
		return
	}
	at := 0 // by which path
	for i := 0; w.now() < end && !over.Load() && !w.isOver(); i++ {
		in := opIn{kind: wire.OpWrite, block: l.first + i%leftBlocks, count: sectors, value: uint32(l.id)<<16 | uint32(i+1)}
		l.tried[i%leftBlocks] = in.value
		a, answered := l.command(l.paths[at], &in, in.payload())
		switch {
		case !answered:
			at = 1
			for l.paths[1].isLost() && !l.login(1) && w.now() < end && !over.Load() && !w.isOver() {
				l.rest(leftRest)
			}
		case a.err == nil:
			l.acked[i%leftBlocks] = in.value
			w.cue(cueServed, nil, a.epoch.Number)
		}
		time.Sleep(leftRest)
	}
	select {
	case <-struck:
		l.readAll()
	case <-time.After(max(0, end-w.now())):
	case <-w.over:
	}
}

// readAll reads everything at the other site.
func (l *leftWriter) readAll() {
	w := l.w
	until := w.now() + leftPatience
	for k := range leftBlocks {
		in := opIn{kind: wire.OpRead, block: l.first + k}
		for {
			var err error = errNoAnswer
			if s := l.paths[1]; s.in && !s.isLost() || l.login(1) {
				a, answered := l.command(l.paths[1], &in, nil)
				if answered && a.err == nil {
					w.stats.add("client: blocks read where their site has gone", 1)
					got := l.parse(in, a.data)
					if x := got[0]; x < l.acked[k] || x > l.tried[k] {
						w.fail("block %d is %x after the volume has left a site which is gone, acknowledged was %x (R10)", in.block, got, l.acked[k])
						return
					}
					break
				}
				if answered {
					err = a.err
				}
			}
			if w.isOver() {
				return
			}
			if w.now() > until {
				w.fail("block %d can not be read after the volume has left a site which is gone (R10): %v", in.block, err)
				return
			}
			l.rest(busyRest)
		}
	}
}

// giverDies has the owner's site and the others apart from the moment at which the control store names the taker of the hand-over, and the owner
// dies there: what it has acknowledged since may be at its own site only. Who takes over for the taker's site has to leave it to that one.
func (w *World) giverDies(n *Node, f *Fault, newest uint64, end time.Duration) {
	w.arm(trap{on: cueHanded, at: n, above: newest, until: end, strike: func() {
		w.stats.add("owners that died when the control store named the taker", 1)
		var cut [][2]*Node
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if a.site == n.site && b.site != n.site {
					cut = append(cut, [2]*Node{a, b}, [2]*Node{b, a})
				}
			}
		}
		dies := time.Duration(f.Size>>4%100) * time.Millisecond
		w.cut(cut, func(end func()) { w.after(dies+time.Duration(100+f.Size>>11%900)*time.Millisecond, end) })
		w.after(dies, func() { w.leave(f, n) })
	}})
}
