package sim

import (
	"context"
	"math/rand/v2"
	"time"

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
	at := between(rng, 12*time.Second, 30*time.Second)
	p.add(Fault{Kind: FaultSplit, At: at, Owner: true, Pick: p.pick(1), Stays: true})
	p.add(Fault{Kind: FaultKill, At: at + between(rng, 0, 2*time.Second), Owner: true, Stays: true})
}

// rotTail kills a node and the other one of its site that was written to last: of that one's newest replica the first record has
// rotted when it starts again.
func (w *World) rotTail(n *Node, f *Fault, undo func(func())) {
	var at *Node
	var newest wire.Replica
	for _, x := range w.nodes {
		if x.site != n.site {
			continue
		}
		r, state := x.written()
		if state == wire.ReplicaDamaged || x.running() == nil {
			return // one is enough: with two of three stores absent nobody can take over any more
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
