package sim

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Recipes in which what is missing does not come back while anybody waits for it (stays.go), or comes back rotten.

// rottenTail: the owner dies, and the stores that were written to have bad records before good ones. What they answer counts for
// nothing, so nobody takes over before the owner's store is back.
func rottenTail(p *Plan, rng *rand.Rand) {
	p.Sites[0] = 3
	p.rounds(3, func(at time.Duration) {
		p.add(Fault{Kind: FaultRotTail, At: at + between(rng, time.Second, 5*time.Second), For: between(rng, 5*time.Second, 7*time.Second), Owner: true, Size: rng.IntN(1 << 20)})
	})
}

// uncovered: the owner's node and the other sites are lost, and no checkpoint was made before: whatever was answered is at two
// stores of the site still.
func uncovered(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.ClientsAt = 3, 1
	p.Limits.SegmentBytes = 32 << 10
	p.Limits.CheckpointInterval = time.Hour
	p.Limits.FollowAfter = -1 // a hand-over begins with a checkpoint
	at := between(rng, 12*time.Second, 30*time.Second)
	p.add(Fault{Kind: FaultSplit, At: at, Owner: true, Pick: p.pick(1), Stays: true})
	p.add(Fault{Kind: FaultKill, At: at + between(rng, 0, 2*time.Second), Owner: true, Stays: true})
}

// withoutCheckpoint: a site goes on alone at a moment when it has just let something go, because of a checkpoint that it has to
// have then.
func withoutCheckpoint(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer, p.ClientsAt = []int{2 + rng.IntN(2), 2}, 2, false, 2
	p.Limits.SegmentBytes, p.Limits.CheckpointInterval = 32<<10, between(rng, 8*time.Second, 12*time.Second)
	p.Limits.FollowAfter = -1 // or the volume is where its clients are
	p.add(Fault{Kind: FaultBurn, At: between(rng, 6*time.Second, 24*time.Second), For: 28 * time.Second, Pick: p.pick(1), Stays: true, Size: rng.IntN(1<<20) | 1})
	// Checkpoints are shipped as soon as they are there: it takes a slow copy for one not to be there yet.
	for i := range total(p.Sites) {
		p.add(Fault{Kind: FaultSlowCopies, At: firstFault, For: 50 * time.Second, Pick: (float64(i) + 0.5) / float64(total(p.Sites)), Size: 600 + rng.IntN(400)})
	}
}

// withoutPrefix: a site that lags goes on alone, while the other one was letting go what it needs no more.
func withoutPrefix(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer, p.ClientsAt = []int{2 + rng.IntN(2), 2}, 2, false, 1
	p.Limits.SegmentBytes, p.Limits.CheckpointInterval = 32<<10, between(rng, 3*time.Second, 5*time.Second)
	p.Limits.RepairGrace = time.Minute
	at, apart := between(rng, 5*time.Second, 12*time.Second), between(rng, 6*time.Second, 12*time.Second)
	p.add(Fault{Kind: FaultSplit, At: at, For: apart, Pick: p.pick(1)})
	for i := range 2 {
		p.add(Fault{Kind: FaultSlowDisk, At: at, For: 30 * time.Second, Pick: p.pick(2) + float64(i)/float64(total(p.Sites)), Size: 200 + rng.IntN(600)})
	}
	p.add(Fault{Kind: FaultBurn, At: at + apart, For: 24 * time.Second, Pick: p.pick(1), Stays: true, Size: rng.IntN(1<<20) &^ 1})
}

// burn has a site lost for good as soon as a replica of a retired segment has to go: at another site if Size is odd, else at
// this one, where it takes longer until a site that lags has more of what is left. Another site goes on with what it was last said to
// have, at least.
func (w *World) burn(n *Node, f *Fault) {
	late := 800
	if f.Size&1 == 0 {
		late = 5000
	}
	w.arm(trap{on: cueDrop, until: w.now() + f.For, drop: func(p *Proc, m *wire.Drop) bool {
		return m.Made == 0 && (p.node.site == n.site) == (f.Size&1 == 0)
	}, strike: func() {
		w.after(time.Duration(f.Size>>1%late)*time.Millisecond, func() {
			o := w.owner()
			if o == nil || o.site != n.site {
				return
			}
			w.stats.add("sites burnt when a replica went", 1)
			w.trouble()
			w.promise(o)
			g := *f
			g.Kind, g.For, g.Size = FaultSiteDies, 40*time.Second, f.Size&^(7<<4|3<<10) // given up soon, and not asked twice
			w.loseSite(n, &g, w.stays.until)
		})
	}})
}

// promise notes what the owner says that the other sites have.
func (w *World) promise(n *Node) {
	p := n.running()
	if p == nil || p.srv == nil {
		return
	}
	for _, o := range p.srv.Owners() {
		if v := o.View(); v != nil {
			for _, s := range v.Sites {
				w.chain.promise(s.Site, s.Watermark)
			}
		}
	}
}

// oldPermits: the owner's node is away for good, what only it had is made again where it has been before, from another site;
// and then an owner reads the old permits.
func oldPermits(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer, p.ClientsAt = []int{3, 2}, 2, false, 1
	p.Blocks = 60 // so that what was written early is read late
	p.Limits.SegmentBytes, p.Limits.CheckpointInterval, p.Limits.RepairGrace = 32<<10, between(rng, 9*time.Second, 12*time.Second), time.Second
	at := p.Limits.CheckpointInterval + between(rng, time.Second, 4*time.Second)
	p.add(Fault{Kind: FaultKill, At: at, Owner: true, Stays: true})
	at += between(rng, 6*time.Second, 11*time.Second)
	p.add(Fault{Kind: FaultOldPermit, At: at, For: 20 * time.Second, Pick: p.pick(1), Stays: true, Size: rng.IntN(1 << 20)})
	p.add(Fault{Kind: FaultKill, At: at, For: between(rng, 300*time.Millisecond, 1500*time.Millisecond), Owner: true})
}

// oldPermit cuts a site off from the others once one of its stores is told to drop a replica that is another by now, if the
// site has everything.
func (w *World) oldPermit(n *Node, f *Fault) {
	w.arm(trap{on: cueDrop, until: w.now() + f.For, drop: func(p *Proc, m *wire.Drop) bool {
		if p.node.site != n.site || m.Made == 0 {
			return false
		}
		r, err := p.store.Inventory(context.Background(), &wire.Inventory{Journal: w.vol.ID})
		return err == nil && slices.ContainsFunc(r.Replicas, func(x wire.Replica) bool {
			return x.Segment == m.Segment && x.State == wire.ReplicaSealed && x.Made != m.Made
		}) && w.isWhole(n.site)
	}, strike: func() {
		w.stats.add("old permits read", 1)
		w.after(time.Duration(f.Size%100)*time.Millisecond, func() { w.inject(&Fault{Kind: FaultSplit, Pick: f.Pick, Stays: true}) })
	}})
}

// isWhole reports that the nodes of a site that run have all segments of the owner's table.
func (w *World) isWhole(site ident.SiteID) bool {
	o := w.owner()
	if o == nil {
		return false
	}
	has := map[ident.SegmentID]bool{}
	for _, x := range w.nodes {
		if p := x.running(); x.site == site && p != nil {
			r, err := p.store.Inventory(context.Background(), &wire.Inventory{Journal: w.vol.ID})
			if err != nil {
				return false
			}
			for _, y := range r.Replicas {
				has[y.Segment] = has[y.Segment] || y.State == wire.ReplicaSealed || y.State == wire.ReplicaOpen
			}
		}
	}
	p := o.running()
	if p == nil || p.srv == nil {
		return false
	}
	for _, own := range p.srv.Owners() {
		for _, s := range own.Segments() {
			if !has[s.ID] && len(s.Holders) > 0 {
				return false
			}
		}
	}
	return true
}

// rotTail kills a node and the other one of its site that was written to last: of that one's newest replica the first record has
// rotted when it starts again.
func (w *World) rotTail(n *Node, f *Fault, undo func(func())) {
	var at *Node
	var newest wire.Replica
	for _, x := range w.nodes {
		r, state := x.written()
		if state == wire.ReplicaDamaged {
			return // one is enough, wherever it is: with two of three stores absent nobody can take over any more
		}
		if x.site != n.site {
			continue
		}
		if x.running() == nil {
			return
		}
		if x != n && state == wire.ReplicaOpen && (at == nil || newest.Last.Seq < r.Last.Seq) {
			at, newest = x, r
		}
	}
	if at != nil && newest.Last.Seq > newest.Before.Seq+1 {
		w.stats.add("replicas that rotted while they were written", 1)
		at.flip(newest.Segment, journal.SegmentHeaderSize+int64(f.Size>>4%64), uint(f.Size%8))
		at.kill()
		w.after(time.Duration(50+f.Size%300)*time.Millisecond, at.restart)
	}
	n.kill()
	undo(n.restart)
}

// written is the newest replica of a node that is being written. The state is that of the worst of all.
func (n *Node) written() (at wire.Replica, state wire.ReplicaState) {
	p := n.running()
	if p == nil {
		return at, state
	}
	r, err := p.store.Inventory(context.Background(), &wire.Inventory{Journal: n.w.vol.ID})
	if err != nil {
		return at, state
	}
	for _, x := range r.Replicas {
		switch {
		case x.State == wire.ReplicaDamaged:
			state = x.State
		case x.State == wire.ReplicaOpen && !x.Segment.IsCheckpoint() && at.Last.Seq < x.Last.Seq:
			at, state = x, max(state, x.State)
		}
	}
	return at, state
}
