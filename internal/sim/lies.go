package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// R4: disks that have lied. What a flush has promised is gone from both stores that had it, and the third one was told that it is stable.

// disksLie: all that two stores have written in a fraction of a second is gone with the power, synced or not; in it nothing has happened but
// writes and flushes. What the rules promise of disks that keep what they have synced is not asked for then, only that nobody serves what is left as if
// nothing were: an operator has to say so.
func disksLie(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Copies, p.Refer, p.Durability = 3, 1, false, control.Replicated
	p.Limits.UncertainWait, p.Limits.CheckpointInterval, p.Limits.FollowAfter = 3*time.Second, time.Hour, -1
	p.rounds(3, func(at time.Duration) {
		p.add(Fault{Kind: FaultLie, At: at + between(rng, 0, 2*time.Second), For: 12 * time.Second, Owner: true, Pick: p.pick(1), Size: rng.IntN(1 << 20)})
	})
}

const (
	lieTries = 6
	lieTold  = 400 * time.Millisecond // for a notice, which other appends put off
)

func (w *World) disksLie(n *Node, f *Fault) {
	c := w.lateClient(n)
	l := &lateClient{client: c, w: w, f: f}
	w.wg.Go(func() {
		defer func() { c.paths[0].end() }()
		if !l.login(0) {
			return
		}
		for try := range lieTries {
			time.Sleep(200 * time.Millisecond)
			if w.stopped() || c.paths[0].isLost() || w.lieOnce(l, f.Size>>try) {
				return
			}
		}
	})
}

// onDriver has the driver call f, and waits for that.
func (w *World) onDriver(f func()) {
	done := make(chan struct{})
	w.after(0, func() { f(); close(done) })
	<-done
}

// lieOnce has a client write and flush; and if all that has come since is at two stores and was said to be stable, they lose it. false if it has to be
// tried again.
func (w *World) lieOnce(l *lateClient, size int) (struck bool) {
	before, opened := map[*Node]*vfs.Mem{}, map[*Node]ident.SegmentID{}
	owner, epoch, logins := w.owner(), w.chain.newest(), w.logins.Load()
	seq := w.chain.newestSeq()
	w.onDriver(func() {
		for _, x := range w.nodes {
			before[x] = x.disk.CrashClone(vfs.Crash{})
			r, _ := x.written()
			opened[x] = r.Segment
		}
	})
	for i := range 1 + size%3 {
		l.number++
		if !l.try(l.paths[0], w.plan.on(opIn{kind: wire.OpWrite, block: l.rng.IntN(w.plan.Blocks), count: sectors, value: 0xa0000000 | uint32(l.id)<<12 | uint32(l.number&0xff)<<4 | uint32(i)})) {
			return false
		}
	}
	var last ident.Seq // that is flushed, or will be
	for _, x := range w.nodes {
		r, _ := x.written()
		last = max(last, r.Last.Seq)
	}
	if !l.try(l.paths[0], opIn{kind: wire.OpFlush}) {
		return false
	}
	flushes := w.flushes.Load()
	told := func() bool { // there is one that does not lie
		return slices.ContainsFunc(w.nodes, func(x *Node) bool {
			r, _ := x.written()
			return x.site == owner.site && r.Last.Seq <= seq && x.heardStable.Load() >= uint64(last)
		})
	}
	for end := w.now() + lieTold; w.now() < end && !told(); {
		time.Sleep(5 * time.Millisecond)
	}
	w.onDriver(func() {
		var pair []*Node
		traces := true // of what was opened are there still: only so anybody knows that something may be missing
		for _, x := range w.nodes {
			if x.site != owner.site {
				continue
			}
			if x.running() == nil {
				return
			}
			if r, state := x.written(); state == wire.ReplicaOpen && r.Last.Seq > seq {
				pair = append(pair, x)
				traces = traces && r.Segment == opened[x]
			}
		}
		// Of what others have made stable since nobody may have heard.
		others := w.flushes.Load() != flushes || w.flushing.Load() > 0
		if w.owner() != owner || w.chain.newest() != epoch || w.logins.Load() != logins || len(pair) != 2 || !traces || others || !told() {
			return
		}
		struck = true
		w.stats.add("flushes that two disks have lied about", 1)
		w.trouble()
		for _, x := range pair {
			x.powerCut(0)
			w.net.mu.Lock()
			x.disk = before[x]
			w.net.mu.Unlock()
			w.after(time.Duration(200+size>>8%300)*time.Millisecond, x.restart)
		}
		owner.kill()
		w.after(time.Second, owner.restart)
		w.after(4*time.Second, func() { w.wg.Go(w.recoverVolume) })
	})
	return struck
}
