package sim

import (
	"math/rand/v2"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Recipes of R13: permits that arrive late, or that a power cut takes; and of R8: what both holders lose.

// heldDrops are words that replicas may go which stores have been sent, and read later.
type heldDrops struct {
	site  ident.SiteID
	epoch uint64        // of this one and those before
	until time.Duration // when they are read
}

// holdDrop waits where a word is to be late.
func (w *World) holdDrop(p *Proc, m *wire.Drop) {
	h := w.held.Load()
	if h == nil || h.site != p.node.site || m.Epoch.Number > h.epoch || w.now() >= h.until {
		return
	}
	w.stats.add("words that a replica may go, held up", 1)
	select {
	case <-time.After(h.until - w.now()):
	case <-w.over:
	}
}

// lateDrops: a site that is cut off is given up, and goes on for itself. What its owner permits to go there meanwhile, and that is not of the history
// that the other site goes on with, is read once the next owner has heard what the site has.
func lateDrops(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer = []int{2 + rng.IntN(2), 2}, 2, false
	p.Limits.SegmentBytes, p.Limits.CheckpointInterval = 32<<10, between(rng, 4*time.Second, 8*time.Second)
	p.Limits.RepairGrace = time.Minute
	at := between(rng, 8*time.Second, 18*time.Second)
	lost := Fault{Kind: FaultSiteCutOff, At: at, For: 14*time.Second + between(rng, 0, 4*time.Second), Owner: true, Size: 1<<4 | rng.IntN(3)<<8}
	p.add(lost)
	p.add(Fault{Kind: FaultLateDrop, At: at, For: lost.For + between(rng, 1500*time.Millisecond, 6*time.Second), Owner: true})
}

func (w *World) lateDrops(n *Node, f *Fault) {
	w.held.Store(&heldDrops{site: n.site, epoch: w.chain.newest(), until: w.now() + f.For})
}

// permitLost: the only site that can be reached loses its power as soon as replicas are permitted to go for the first time, and the permits with it. One
// of its nodes is gone for good: so what the others have had before is all that is left.
func permitLost(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer, p.ClientsAt = []int{3, 2}, 2, false, 1
	p.Limits.SegmentBytes, p.Limits.CheckpointInterval = 32<<10, between(rng, 8*time.Second, 14*time.Second)
	p.Limits.UncertainWait = 4 * time.Second
	for i := range p.Sites[0] {
		p.add(Fault{Kind: FaultSlowSync, At: firstFault, For: 24 * time.Second, Pick: p.pick(1) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(300)})
	}
	p.add(Fault{Kind: FaultPermit, At: firstFault, For: 26 * time.Second, Owner: true, Pick: p.pick(1), Stays: true, Size: rng.IntN(1 << 20)})
}

// permitted looks for permits in what an owner appends.
func (w *World) permitted(n *Node, m *wire.Append) {
	if !w.traps.armed.Load() || m.Segment.IsCheckpoint() || m.Epoch != m.Segment.Epoch {
		return
	}
	eachAppended(m, func(r *journal.Record, _ []byte) {
		if r.Kind == journal.KindPermit {
			w.cue(cuePermit, n, m.Epoch.Number)
		}
	})
}

func (w *World) permitLost(n *Node, f *Fault) {
	w.arm(trap{on: cuePermit, until: w.now() + f.For, strike: func() {
		syncs := map[*Node]int64{}
		for _, x := range w.nodes {
			syncs[x] = x.syncs.Load()
		}
		w.after(time.Duration(2+f.Size%30)*time.Millisecond, func() { w.powerlessNow(n, f, syncs) })
	}})
}

// powerlessNow cuts a site's power, unless one of its stores has made something stable since: then what was permitted may have gone already.
func (w *World) powerlessNow(n *Node, f *Fault, syncs map[*Node]int64) {
	var here []*Node
	stable := 0
	for _, x := range w.nodes {
		if x.site == n.site {
			here = append(here, x)
			if x.syncs.Load() > syncs[x] {
				stable++
			}
		}
	}
	o := w.owner()
	if o == nil || o.site != n.site || stable > 0 {
		return
	}
	w.stats.add("sites that lost their power, and one node, with a permit", 1)
	w.trouble()
	for _, x := range here {
		x.powerCut(0)
		if x != o {
			w.after(300*time.Millisecond, x.restart)
		}
	}
	w.leave(f, o)
	w.inject(&Fault{Kind: FaultSplit, Pick: w.pickOf(o), Stays: true})
}

// pickOf is what Fault.Pick has to be for a node.
func (w *World) pickOf(n *Node) float64 { return (float64(n.index) + 0.5) / float64(len(w.nodes)) }

// stableAt is the stable point as an owner knows it.
func (w *World) stableAt(n *Node) (seq ident.Seq) {
	if p := n.running(); p != nil && p.srv != nil {
		for _, o := range p.srv.Owners() {
			if v := o.View(); v != nil {
				seq = max(seq, v.Stable.Seq)
			}
		}
	}
	return seq
}

// pairLost: both stores that have the newest segment lose their power, with what is not synced, and the owner's node does not.
func pairLost(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Copies = 4, 1+rng.IntN(2)
	p.Limits.UncertainWait, p.Limits.SegmentBytes = 3*time.Second, 32<<10
	p.rounds(3, func(at time.Duration) {
		p.add(Fault{Kind: FaultPair, At: at + between(rng, 0, 3*time.Second), For: 8 * time.Second, Owner: true, Pick: p.pick(1), Size: rng.IntN(1 << 20)})
	})
}

func (w *World) pairLost(n *Node, f *Fault) {
	w.arm(trap{on: cueUnflushed, count: f.Size % 20, until: w.now() + f.For, strike: func() {
		o := w.owner()
		if o == nil || o.site != n.site {
			return
		}
		var pair []*Node
		for _, x := range w.nodes {
			if r, state := x.written(); x.site == n.site && x != o && state == wire.ReplicaOpen && r.Last.Seq > w.stableAt(o) {
				pair = append(pair, x)
			}
		}
		if len(pair) != 2 {
			return
		}
		w.stats.add("power lost by both holders of what an owner has not synced", 1)
		w.trouble()
		for i, x := range pair {
			x.powerCut(percentOf(f))
			w.after(time.Duration(200+f.Size>>(5+8*i)%300)*time.Millisecond, x.restart)
		}
	}})
}
