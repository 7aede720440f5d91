package sim

import (
	"math/rand/v2"
	"sync"
	"time"

	"dozo/internal/journal"
	"dozo/internal/wire"
)

// R1: a taker has found records that one store alone has, and dies between two steps of its beginning.

// tailOfOne: an owner dies, and one store of its site has what its own store and the third one, which were slow, have not. The taker is that
// store's node. It is cut off in the moment in which it sends its epoch's start, is read from as fast as can be, and dies. The next owner hears
// the other two stores.
func tailOfOne(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Copies, p.Refer = 3, 1+rng.IntN(2), false
	p.Limits.SegmentBytes, p.Limits.FollowAfter = 32<<10, -1
	p.rounds(4, func(at time.Duration) {
		p.add(Fault{Kind: FaultTail, At: at + between(rng, 0, time.Second), For: 8 * time.Second, Owner: true, Pick: p.pick(1), Size: rng.IntN(1<<20) &^ 1})
	})
}

// startAhead: the same, but the connection by which the taker copies what it has found stalls, and the taker dies in the moment in which it sends its
// epoch's start. What it has found is two records, which fill a segment, so the start is in the next one and has another connection.
func startAhead(p *Plan, rng *rand.Rand) {
	tailOfOne(p, rng)
	p.Limits.SegmentBytes = uint32(journal.SegmentHeaderSize + startAfter*journal.RecordSize(journal.BlockSize) + journal.IndexSize(startAfter) + rng.IntN(100))
	for i := range p.Faults {
		p.Faults[i].Size |= 1
	}
}

// startAfter is how many records there are in front of the start.
const startAfter = 2

const (
	tailLead = 80 * time.Millisecond // for logins
	tailSlow = 40 * time.Millisecond // what the owner's own store takes longer
)

func (w *World) tailOfOne(n *Node, f *Fault) {
	var others []*Node
	for _, x := range w.nodes {
		if x.site == n.site && x != n {
			others = append(others, x)
		}
	}
	taker, third := others[f.Size>>1&1], others[1-f.Size>>1&1]
	w.drain(third, true) // so it is not the one that takes over
	free := sync.OnceFunc(func() { w.drain(third, false) })
	w.after(f.For, free)
	writes, killed := 16, tailSlow+time.Duration(1+f.Size>>4%30)*time.Millisecond // the first two appends are under way for so long; then the rest goes out
	if f.Size&1 == 1 {
		writes, killed = startAfter, time.Duration(1+f.Size>>4%30)*time.Millisecond
	}
	w.burst(n, writes, tailLead)
	w.after(tailLead-5*time.Millisecond, func() {
		n.slowDisk.Store(int64(tailSlow))
		third.slowDisk.Store(int64(tailSlow))
	})
	w.after(tailLead+killed, func() {
		n.kill()
		n.slowDisk.Store(0)
		third.slowDisk.Store(0)
		back := sync.OnceFunc(n.restart)
		w.after(f.For, back)
		die := func(after, away time.Duration) {
			w.after(after, func() {
				w.stats.add("takers struck that had found what one store alone has", 1)
				w.trouble()
				taker.kill()
				free()
				back()
				w.after(away, taker.restart)
			})
		}
		away := 3*time.Second + time.Duration(f.Size>>9%1500)*time.Millisecond
		above := w.chain.newest()
		until := w.now() + f.For - away
		if f.Size&1 == 0 {
			w.wg.Go(func() { w.hammer(taker, f) })
			w.arm(trap{on: cueBegun, at: taker, above: above, until: until, strike: func() {
				long := time.Duration(200+f.Size>>9%700) * time.Millisecond
				w.hammering.Store(int64(w.now() + long))
				w.alone(taker, nil, func(end func()) { w.after(long, end) })
				die(long, away)
			}})
			return
		}
		w.arm(trap{on: cueAppend, at: taker, above: above, until: until, lost: true, strike: func() {
			w.arm(trap{on: cueBegun, at: taker, above: above, until: until, strike: func() {
				die(300*time.Microsecond+time.Duration(f.Size>>9%3000)*time.Microsecond, away)
			}})
		}})
	})
}

// appending tells traps of what an owner appends to another node's store; true if the connection is to stall with it.
func (w *World) appending(n *Node, m *wire.Append) (stalls bool) {
	return w.traps.armed.Load() && !m.Segment.IsCheckpoint() && m.Epoch == m.Segment.Epoch && w.cue(cueAppend, n, m.Epoch.Number)
}

// stallLasts is for how long nothing comes out of a connection that stalls.
const stallLasts = 2 * time.Second

// stall has nothing of what follows arrive by a connection, for a while.
func (n *network) stall(p *Proc, to *Node, typ wire.Type, bulk bool, lane uint8) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.linkLocked(p, to, typ, bulk, lane); l != nil {
		l.out.last = max(l.out.last, n.w.now()+stallLasts)
	}
}
