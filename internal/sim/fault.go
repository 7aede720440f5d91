package sim

import (
	"context"
	"fmt"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// owner is the node that serves the volume, as an onlooker sees it; nil if none does.
func (w *World) owner() *Node {
	var at *Node
	var epoch ident.Epoch
	for _, n := range w.nodes {
		p := n.running()
		if p == nil || p.srv == nil {
			continue
		}
		for _, o := range p.srv.Owners() {
			if e := o.Stamp().Epoch; at == nil || epoch.Less(e) {
				at, epoch = n, e
			}
		}
	}
	return at
}

// target is whom a fault hits.
func (w *World) target(f *Fault) *Node {
	if f.Owner {
		if n := w.owner(); n != nil {
			return n
		}
	}
	return w.nodes[int(f.Pick*float64(len(w.nodes)))]
}

// inject makes a fault begin; its end is scheduled too. The driver calls it.
func (w *World) inject(f *Fault) {
	n := w.target(f)
	w.stats.add("fault: "+f.Kind.String(), 1)
	w.tracef("fault: %s at %s for %v", f.Kind, n.name, f.For)
	w.trace.add(w.now(), "fault", uint64(f.Kind), uint64(n.index), uint64(f.For))
	other := w.nodes[int(f.Also*float64(len(w.nodes)))]
	for other == n || f.Kind == FaultPartial && other.site != n.site {
		other = w.nodes[(other.index+1)%len(w.nodes)]
	}
	w.trouble()
	undo := func(g func()) { w.after(f.For, func() { g(); w.trouble() }) }
	if f.Stays {
		undo = w.stays.until
	}
	switch f.Kind {
	case FaultKill:
		w.stays.keep(f, n)
		n.kill()
		undo(n.restart)
	case FaultPowerCut:
		n.powerCut(percentOf(f))
		undo(n.restart)
	case FaultBlackout:
		for _, x := range w.nodes {
			if x.site == n.site {
				x.powerCut(percentOf(f))
				undo(x.restart)
			}
		}
	case FaultPause, FaultPauseLong:
		n.pause()
		undo(n.resume)
	case FaultIsolate, FaultIsolateKill:
		for _, x := range w.nodes {
			if x != n {
				w.net.block(n, x)
				w.net.block(x, n)
			}
		}
		if f.Kind == FaultIsolateKill {
			w.after(f.For*3/4, n.kill)
		}
		undo(func() {
			for _, x := range w.nodes {
				if x != n {
					w.net.unblock(n, x)
					w.net.unblock(x, n)
				}
			}
			n.restart()
		})
	case FaultOneWay:
		w.net.block(n, other)
		undo(func() { w.net.unblock(n, other) })
	case FaultGroups, FaultPartial:
		// Nodes of other sites are with either group, by a bit each.
		side := map[*Node]bool{n: true}
		for i, x := range w.nodes {
			switch {
			case x == n:
			case f.Kind == FaultPartial && x.site == n.site:
				side[x] = false
			default:
				side[x] = f.Size>>i&1 == 1
			}
		}
		if f.Kind == FaultPartial && other.site == n.site { // with both
			delete(side, other)
		}
		var cut [][2]*Node
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				sa, inA := side[a]
				sb, inB := side[b]
				if inA && inB && sa != sb {
					cut = append(cut, [2]*Node{a, b})
				}
			}
		}
		w.cut(cut, undo)
	case FaultSplit:
		var cut [][2]*Node
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				if a.site == n.site && b.site != n.site && (f.Size%2 == 0 || b.site == other.site) {
					cut = append(cut, [2]*Node{a, b}, [2]*Node{b, a})
				}
			}
		}
		w.stays.keepCut(f, cut)
		w.cut(cut, undo)
	case FaultClients:
		w.cutClients(n, 1)
		undo(func() { w.cutClients(n, -1) })
	case FaultControlAway:
		n.cutOff.Add(1)
		undo(func() { n.cutOff.Add(-1) })
	case FaultControlDown:
		w.ctlDown++
		w.ctl.SetDown(true)
		undo(func() {
			if w.ctlDown--; w.ctlDown == 0 {
				w.ctl.SetDown(false)
			}
		})
	case FaultControlTorn:
		var k uint64
		w.ctl.SetFault(func() control.Fault {
			k++
			return []control.Fault{control.FaultNone, control.FaultAnswerLost, control.FaultRequestLost}[mix(w.plan.Seed, k, 77)%3]
		})
		undo(func() { w.ctl.SetFault(nil) })
	case FaultSlowNet:
		w.net.setSlow(n, time.Duration(1+f.Size%400)*time.Millisecond)
		undo(func() { w.net.setSlow(n, 0) })
	case FaultSlowDisk:
		n.slowDisk.Store(int64(time.Duration(1+f.Size%1500) * time.Millisecond))
		undo(func() { n.slowDisk.Store(0) })
	case FaultFullDisk:
		n.disk.SetCapacity(1)
		undo(func() { n.disk.SetCapacity(diskBytes) })
	case FaultRot:
		n.decay(f)
	case FaultRestart:
		n.stop()
		undo(n.restart)
	case FaultMove:
		w.move(n, other.name, 0)
	case FaultMoveSite:
		w.move(n, "", other.site)
	case FaultDrain:
		w.drain(n, true)
		undo(func() { w.drain(n, false) })
	case FaultClockStep:
		n.skew += time.Duration(f.Size%7200-3600) * time.Second
	case FaultSiteDies, FaultSiteLosesPower, FaultSiteCutOff:
		w.loseSite(n, f, undo)
	case FaultPolicy:
		w.changePolicy(f)
	case FaultAlone:
		n.cutOff.Add(1)
		undo(func() { n.cutOff.Add(-1) })
		w.alone(n, nil, undo)
	case FaultTakers:
		w.takers.Store(int64(w.now() + f.For - time.Second))
		away := f.For
		if f.Size>>13%4 > 0 { // it is back at once, and takes over itself
			away = time.Duration(300+f.Size>>5%600) * time.Millisecond
		}
		w.alone(n, nil, func(end func()) { w.after(away, end) })
		w.after(away*time.Duration(60+f.Size%40)/100, func() {
			if f.Size>>12%2 == 0 || away < f.For {
				n.kill()
			}
		})
		w.after(away, n.restart)
	case FaultLate:
		for other.site != n.site || other == n {
			other = w.nodes[(other.index+1)%len(w.nodes)]
		}
		n.cutOff.Add(1)
		undo(func() { n.cutOff.Add(-1) })
		w.alone(n, other, undo)
		late := 4200*time.Millisecond + time.Duration(f.Size%700)*time.Millisecond // others take over after about 4.8 s
		w.after(late, func() { w.net.block(n, other) })
		if f.Size>>17%3 == 0 {
			w.after(late+50*time.Millisecond, other.kill)
			w.after(late+150*time.Millisecond, other.restart)
		}
		w.after(late+time.Duration(1250+f.Size>>11%1000)*time.Millisecond, func() { w.net.unblock(n, other) })
	case FaultFlushed:
		w.afterFlush(n, f)
	case FaultUnflushed:
		w.dieUnflushed(n, f)
	case FaultServed:
		w.afterAnswers(n, f)
	case FaultForgetful:
		for other.site != n.site || other == n {
			other = w.nodes[(other.index+1)%len(w.nodes)]
		}
		w.forgetful(n, other, f, undo)
	case FaultDiskHangs:
		n.hungUntil.Store(int64(w.now() + f.For))
	case FaultSlowSync:
		n.slowSync.Store(int64(time.Duration(100+f.Size%700) * time.Millisecond))
		undo(func() { n.slowSync.Store(0) })
	case FaultSlowCopies:
		n.slowCopies.Store(int64(time.Duration(200+f.Size%1000) * time.Millisecond))
		undo(func() { n.slowCopies.Store(0) })
	case FaultBurn:
		w.burn(n, f)
	case FaultOldPermit:
		w.oldPermit(n, f)
	case FaultRotTail:
		w.rotTail(n, f, undo)
	case FaultLeft:
		w.siteLeft(n, f)
	case FaultForcedTakers:
		w.strikeForced(f)
	case FaultMember:
		w.memberReplaced(n, f)
	case FaultLateCommand, FaultLateLong, FaultLateOld:
		w.lateCommand(n, f)
	case FaultGiver:
		w.siteLeft(n, f)
	case FaultLateDrop:
		w.lateDrops(n, f)
	case FaultPermit:
		w.permitLost(n, f)
	case FaultPair:
		w.pairLost(n, f)
	case FaultReserved:
		w.reservedAlone(n, f)
	case FaultRestored:
		w.restoreControl(n, f)
	case FaultTail:
		w.tailOfOne(n, f)
	case FaultLie:
		w.disksLie(n, f)
	case FaultHang:
		w.storeHangs(n, f)
	case FaultDouble:
		n.kill()
		undo(n.restart)
		for _, x := range w.nodes {
			if x.site == n.site && x != n {
				x.kill()
				w.after(f.For/2, x.restart)
				break
			}
		}
	}
}

// alone cuts a node off from all others but one, until undo is over.
func (w *World) alone(n, but *Node, undo func(func())) {
	var cut [][2]*Node
	for _, x := range w.nodes {
		if x != n && x != but {
			cut = append(cut, [2]*Node{n, x}, [2]*Node{x, n})
		}
	}
	w.cut(cut, undo)
}

// struck has whoever begins an epoch while FaultTakers lasts die soon, or lose its power, or be cut off.
func (w *World) struck(n *Node, epoch uint64) {
	until := time.Duration(w.takers.Load())
	if w.now() >= until {
		return
	}
	x := mix(w.plan.Seed, epoch, 0x7a6b)
	delay := time.Duration(fraction(x, 1) * float64([...]time.Duration{2 * time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond}[x%3]))
	away := 1500*time.Millisecond + time.Duration(fraction(x, 2)*float64(4*time.Second))
	w.after(delay, func() {
		w.stats.add("takers struck down", 1)
		w.tracef("fault: taker %s is struck down", n.name)
		w.trouble()
		switch x >> 8 % 4 {
		case 0:
			n.powerCut(0)
		case 1, 2:
			n.kill()
		default:
			w.alone(n, nil, func(end func()) { w.after(away, end) })
		}
		w.after(away, n.restart)
	})
}

// trouble has clients hurry for a while.
func (w *World) trouble() { w.troubled.Store(int64(w.now() + troubleLasts)) }

// troubleLasts is longer than a takeover takes.
const troubleLasts = 5 * time.Second

// cut blocks ways, until undo is over.
func (w *World) cut(ways [][2]*Node, undo func(func())) {
	for _, x := range ways {
		w.net.block(x[0], x[1])
	}
	undo(func() {
		for _, x := range ways {
			w.net.unblock(x[0], x[1])
		}
	})
}

// percentOf is how much of what was not synced a power cut leaves.
func percentOf(f *Fault) int { return []int{0, 0, 50, 90}[f.Size%4] }

// diskBytes is how large a disk is.
const diskBytes = 256 << 20

func (n *network) setSlow(x *Node, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[x.index] = d
}

func (w *World) cutClients(n *Node, by int) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for _, c := range w.clients {
		w.clientCuts[[2]int{c.id, n.index}] += by
	}
}

// decay flips a bit in a block that a replica of the node has on its disk, for as long as this disk lives.
func (n *Node) decay(f *Fault) {
	p := n.running()
	if p == nil {
		return
	}
	r, err := p.store.Inventory(context.Background(), &wire.Inventory{Journal: n.w.vol.ID})
	if err != nil {
		return
	}
	var sealed []wire.Replica
	for _, x := range r.Replicas {
		if x.State == wire.ReplicaSealed && x.End > 8192 {
			sealed = append(sealed, x)
		}
	}
	if len(sealed) == 0 {
		return
	}
	x := sealed[f.Size%len(sealed)]
	off := int64(4096 + mix(uint64(f.Size), 5)%uint64(x.End-4096))
	n.flip(x.Segment, off, uint(f.Size%8))
}

// flip has a bit of a replica rot.
func (n *Node) flip(id ident.SegmentID, off int64, bit uint) {
	flip := vfs.FlipBit("*"+id.String()+"*", off, bit)
	n.w.lostBytes.Store(true)
	n.rot = append(n.rot, flip)
	if p := n.running(); p != nil {
		p.fs.OnRead(flip)
	}
	n.w.tracef("bit at %d of segment %s at %s has rotted", off, id, n.name)
}

// move asks the owner to hand the volume over.
func (w *World) move(owner *Node, to ident.NodeName, site ident.SiteID) {
	p := owner.running()
	if p == nil || p.srv == nil {
		return
	}
	w.wg.Go(func() {
		_, err := p.srv.HandOver(context.Background(), "", &wire.HandOver{Journal: w.vol.ID, Step: wire.HandBegin, Node: to, Site: site})
		if err != nil {
			w.tracef("hand-over from %s to %s%d: %v", owner.name, to, site, err)
			return
		}
		w.stats.add("hand-overs begun", 1)
	})
}

func (w *World) drain(n *Node, yes bool) {
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, x := range w.nodes {
			if p := x.running(); p != nil {
				if _, err := p.ctl.SetDraining(ctx, n.name, yes); err == nil {
					return
				} else if ctx.Err() != nil {
					w.tracef("drain %s: %v", n.name, err)
					return
				}
			}
		}
	})
}

// heal ends every fault that is still there.
func (w *World) heal() {
	for _, n := range w.nodes {
		n.cutOff.Store(0)
		w.net.setSlow(n, 0)
		n.slowDisk.Store(0)
		n.slowSync.Store(0)
		n.hungUntil.Store(0)
		n.slowCopies.Store(0)
		n.disk.SetCapacity(diskBytes)
		n.resume()
		if !w.stays.nodes[n] {
			n.restart()
		}
		w.drain(n, false)
	}
	w.ctl.SetFault(nil)
	w.ctl.SetDown(false)
	w.ctlDown = 0
	w.net.mu.Lock()
	clear(w.clientCuts)
	w.net.mu.Unlock()
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			for w.net.isBlocked(a, b) && !w.stays.ways[[2]*Node{a, b}] {
				w.net.unblock(a, b)
			}
		}
	}
	w.tracef("healed")
}

func (n *network) isBlocked(a, b *Node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pairs[a.index][b.index].blocked > 0
}

func nodeName(site, i int) ident.NodeName { return ident.NodeName(fmt.Sprintf("s%dn%d", site, i)) }
