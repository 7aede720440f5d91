package sim

import (
	"errors"
	"math/rand/v2"
	"time"

	"dozo/internal/core"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Disks that hang: for a while nothing that is asked of them ends. The node's own owners have a guard (access.Health), what comes from other
// sites is answered by core.Bounded, as in package node.

// diskPatience is that of package node.
const diskPatience = 5 * time.Second

// hungElsewhere: the disk of a store hangs at the site to which is shipped, again and again, now and then those of two; and meanwhile, or when it has
// just gone on, the owner dies, or the store's process, or their site loses its power, or the other one is given up.
func hungElsewhere(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.ClientsAt, p.Refer = []int{2 + rng.IntN(2), 2 + rng.IntN(2)}, 2, 1, false
	p.Limits.SegmentBytes, p.Limits.FollowAfter = 32<<10, -1
	p.Ack = rng.IntN(2)
	p.rounds(3, func(at time.Duration) {
		node := func() float64 { return p.pick(2) + float64(rng.IntN(p.Sites[1]))/float64(total(p.Sites)) }
		hung := node()
		at += between(rng, 0, 2*time.Second)
		p.add(Fault{Kind: FaultDiskHangs, At: at, For: between(rng, 6*time.Second, 12*time.Second), Pick: hung})
		if rng.IntN(4) == 0 {
			p.add(Fault{Kind: FaultDiskHangs, At: at + between(rng, 0, 4*time.Second), For: between(rng, 6*time.Second, 10*time.Second), Pick: node()})
		}
		then := at + between(rng, 4*time.Second, 13*time.Second)
		switch rng.IntN(7) {
		case 0, 1:
			p.add(Fault{Kind: FaultKill, At: then, For: between(rng, 500*time.Millisecond, 3*time.Second), Owner: true})
		case 2:
			p.add(Fault{Kind: FaultKill, At: then, For: between(rng, 200*time.Millisecond, 2*time.Second), Pick: hung})
		case 3:
			p.add(Fault{Kind: FaultPowerCut, At: then, For: between(rng, 200*time.Millisecond, 2*time.Second), Pick: hung})
		case 4:
			p.add(Fault{Kind: FaultBlackout, At: then, For: time.Second, Pick: p.pick(2)})
		case 5:
			p.add(Fault{Kind: FaultSplit, At: then, For: between(rng, time.Second, 5*time.Second), Pick: p.pick(1)})
		}
	})
	if rng.IntN(3) == 0 {
		p.add(Fault{Kind: FaultSiteDies, At: between(rng, 12*time.Second, 30*time.Second), For: 16 * time.Second, Owner: true, Size: 1<<4 | 1<<10})
	}
}

// hangs reports whether the node's disk does.
func (n *Node) hangs() bool { return n.w.now() < time.Duration(n.hungUntil.Load()) }

// waitForDisk waits while it does. A sleep that is too long by a bit is one that a fault's end was late for.
func (n *Node) waitForDisk(p *Proc) {
	for n.hangs() && !n.isDead(p) {
		time.Sleep(50 * time.Millisecond)
	}
}

// arriving is the process's store for what has come over the network.
type arriving struct{ *local }

func (s arriving) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	s.later(func() { s.st.Append(m, done) })
}

// bound makes the same for other sites.
func (p *Proc) bound() {
	p.far = core.NewBounded(arriving{p.own}, diskPatience, p.w.log.With("node", p.node.name, "process", p.node.count))
}

// toStore is the store by which a message's request is served.
func (p *Proc) toStore(m *message) journal.Store {
	if m.link.from.node.site != p.node.site {
		return p.far
	}
	return arriving{p.own}
}

// leftAt counts the answers that did not wait for a disk.
func (p *Proc) leftAt(err error) {
	if _, inUse := errors.AsType[*journal.InUse](err); inUse {
		p.w.stats.add("appends answered while the disk hung", 1)
	}
}
