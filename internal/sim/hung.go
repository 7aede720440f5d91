package sim

import (
	"context"
	"math/rand/v2"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// R1: what a store has of a segment that was given up ends no other one.

// storeHangs: one of a site's two stores hangs while records are under way to it, at the end of a segment and at the beginning of the next if it so
// happens, and is given up; all of them go into a third segment, at the owner's own store and one of another site. The owner dies, and who takes
// over is the node that had hung.
func storeHangs(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Refer = 2, false
	p.Limits.SegmentBytes = uint32(journal.SegmentHeaderSize + hungRecords*journal.RecordSize(journal.BlockSize) + journal.IndexSize(hungRecords) + rng.IntN(100))
	p.Limits.FollowAfter = -1
	p.rounds(5, func(at time.Duration) {
		p.add(Fault{Kind: FaultHang, At: at + between(rng, 0, time.Second), For: 6 * time.Second, Owner: true, Pick: p.pick(1), Size: rng.IntN(1 << 20)})
	})
}

const (
	hungRecords = 3 // of a block, in a segment: so the first two appends of a burst are often for two segments
	hungLead    = 80 * time.Millisecond
	hungLasts   = 1200 * time.Millisecond // the owner gives a store up after 0.8 s
)

func (w *World) storeHangs(n *Node, f *Fault) {
	var other *Node
	for _, x := range w.nodes {
		if x.site == n.site && x != n {
			other = x
		}
	}
	w.burst(n, 12, hungLead)
	w.after(hungLead-2*time.Millisecond, other.pause)
	w.after(hungLead+50*time.Millisecond, func() {
		// What was sent is in its sockets; nothing that is said of it later arrives.
		w.cut([][2]*Node{{n, other}, {other, n}}, func(end func()) { w.after(f.For/2, end) })
	})
	w.after(hungLead+hungLasts+time.Duration(f.Size%400)*time.Millisecond, func() {
		n.kill()
		w.net.breakLinks(n, other)
		other.resume()
		w.after(20*time.Millisecond, func() {
			if other.hasGivenUp() {
				w.stats.add("stores back with a segment that was given up", 1)
			}
		})
	})
	w.after(f.For, n.restart)
}

// hasGivenUp reports that a node has records of a segment behind whose beginning a newer one of the same epoch begins elsewhere.
func (n *Node) hasGivenUp() bool {
	has := func(x *Node) (list []wire.Replica) {
		if p := x.running(); p != nil {
			r, _ := p.store.Inventory(context.Background(), &wire.Inventory{Journal: n.w.vol.ID})
			for _, r := range r.Replicas {
				if r.End > 0 && !r.Segment.IsCheckpoint() {
					list = append(list, r)
				}
			}
		}
		return list
	}
	begins := map[ident.SegmentID]ident.Seq{}
	for _, x := range n.w.nodes {
		for _, r := range has(x) {
			begins[r.Segment] = r.Before.Seq
		}
	}
	for _, r := range has(n) {
		for id, before := range begins {
			if r.State == wire.ReplicaOpen && id.Epoch == r.Segment.Epoch && id.Number > r.Segment.Number && before < r.Before.Seq {
				return true
			}
		}
	}
	return false
}
