package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Recipes in which a site is given up that is not the newest of all, and those that take over by force die right after their
// epoch's start: what they leave is at one store, or at two that are gone for a while, and the site that was given up comes back
// meanwhile.

// forcedTakers: the other site lags when the owner's is lost; who takes over dies with its first append.
func forcedTakers(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer = []int{2 + rng.IntN(2), 2 + rng.IntN(2)}, 2, false
	if rng.IntN(3) == 0 {
		p.Sites, p.Copies = append(p.Sites, 2), 3
	}
	p.Limits.SegmentBytes, p.Limits.UncertainWait = 32<<10, 5*time.Second
	p.Limits.CheckpointInterval = between(rng, 4*time.Second, 20*time.Second)
	lost := between(rng, 8*time.Second, 16*time.Second)
	apart := between(rng, 50*time.Millisecond, 3*time.Second)
	gone, insist := between(rng, 4*time.Second, 9*time.Second), 0
	if rng.IntN(4) == 0 { // the operator waits until its nodes are known to be gone
		gone, insist = between(rng, 13*time.Second, 17*time.Second), 1<<4
	}
	// Not cut off: what its owner goes on with counts as a fork for the checker, and may be the history after all where nobody
	// heard of the first epoch that was begun without it.
	kind := [...]FaultKind{FaultSiteDies, FaultSiteDies, FaultSiteDies, FaultSiteLosesPower}[rng.IntN(4)]
	p.add(Fault{Kind: FaultSplit, At: lost - apart, For: apart + 300*time.Millisecond, Pick: p.pick(1)})
	p.add(Fault{Kind: kind, At: lost, For: gone, Owner: true, Pick: p.pick(1), Size: 7*rng.IntN(500)<<8 | insist | rng.IntN(4)}) // given up after 2 s
	p.add(Fault{Kind: FaultForcedTakers, At: lost, For: between(rng, 8*time.Second, 20*time.Second), Pick: p.pick(2), Size: rng.IntN(1 << 20), Stays: rng.IntN(4) == 0})
}

// forcedTakersHang is forcedTakers at a site of slow disks: an epoch has begun long before its start is stable.
func forcedTakersHang(p *Plan, rng *rand.Rand) {
	forcedTakers(p, rng)
	for i := range p.Sites[1] {
		p.add(Fault{Kind: FaultSlowSync, At: firstFault, For: p.Heal - firstFault, Pick: p.pick(2) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(700)})
	}
}

// forcedStrikes is what FaultForcedTakers has in store.
type forcedStrikes struct {
	f     *Fault
	until time.Duration
	left  int
}

// strikeForced has whoever begins an epoch by force, or after that, die at once; the first two that do while the fault lasts. The
// driver calls it.
func (w *World) strikeForced(f *Fault) {
	w.forcedTakers.Store(&forcedStrikes{f: f, until: w.now() + f.For, left: 1 + f.Size%2})
}

// struckForced strikes whoever has begun an epoch, in the moment of its first append.
func (w *World) struckForced(n *Node, epoch uint64) {
	s := w.forcedTakers.Load()
	if s == nil || w.now() >= s.until || !w.forced() {
		return
	}
	x := mix(w.plan.Seed, epoch, 0x666f)
	w.after(time.Duration(fraction(x, 1)*float64([...]time.Duration{2 * time.Millisecond, 12 * time.Millisecond, 60 * time.Millisecond}[x%3])), func() {
		if s.left == 0 {
			return
		}
		s.left--
		w.stats.add("takers by force struck down", 1)
		w.tracef("fault: taker by force %s is struck down", n.name)
		w.trouble()
		away := 3*time.Second + time.Duration(fraction(x, 2)*float64(9*time.Second))
		switch {
		case s.f.Stays && s.left == 0:
			w.leave(s.f, n)
			w.after(9*time.Second, func() { w.wg.Go(w.recoverVolume) })
		case x>>8%3 == 0: // and its site with it
			for _, y := range w.nodes {
				if y.site != n.site {
					continue
				}
				if x>>10%2 == 0 {
					y.kill()
				} else {
					y.powerCut(percentOf(s.f))
				}
				w.after(away, y.restart)
			}
		default:
			n.kill()
			w.after(away, n.restart)
		}
	})
}

// recoverVolume is `dozo volume recover`: the stores that do not answer are given up, and what is left then is agreed to.
func (w *World) recoverVolume() {
	for try := 0; try < 20 && !w.isOver(); try++ {
		if w.recoverOnce(try >= 5) {
			return
		}
		time.Sleep(time.Second)
	}
}

// recoverOnce reports that there is nothing more to do. insist is --force: it waits for nobody, though enough stores answer.
func (w *World) recoverOnce(insist bool) bool {
	if o := w.owner(); o != nil {
		if p := o.running(); p != nil && p.srv != nil {
			for _, x := range p.srv.Owners() {
				select {
				case <-x.Serving():
					return true
				default:
				}
			}
		}
	}
	for _, n := range w.nodes {
		p := n.running()
		if p == nil || p.srv == nil || n.cutOff.Load() > 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s, err := p.srv.Survey(ctx, w.vol.ID)
		if err != nil || (s.Enough || s.Stable) && !insist || s.Last == 0 {
			w.tracef("operator: recover: nothing to do yet: %v", err)
			return false
		}
		var taker ident.NodeName
		for _, r := range s.Reach {
			if name, ok := p.srv.Taker(w.vol.ID, r.Site); ok {
				taker = name
				break
			}
		}
		if taker == "" {
			return false
		}
		w.forces.mu.Lock()
		w.forces.insist[s.State.Epoch.Number+1] = true
		w.forces.mu.Unlock()
		hear := s.Need
		if insist {
			hear = 0
		}
		state, _, err := p.ctl.ForceJournal(ctx, w.vol.ID, s.Rev, taker, s.Missing, "", hear, insist && s.ShortOfRecords())
		if u, ok := errors.AsType[*control.UncertainError](err); ok {
			state, _, err = p.ctl.Settle(ctx, u)
		}
		if err == nil {
			w.stats.add("volumes recovered by the operator", 1)
			w.tracef("operator: recover: %s takes over at %s with what there is up to %d", taker, state.Epoch, s.Last)
		}
		return err == nil
	}
	return false
}

// noLess compares the beginnings of epochs that follow from one takeover by force: none is without a record that the operator was
// told of as being there, unless the stores that were given up have been heard after all.
func (c *chain) noLess(e ident.Epoch, s wire.EpochStart) {
	state, _, ok := c.w.admin.Journal(c.w.vol.ID)
	if f := state.Forced; !ok || f == nil || s.Proven || f.Hear > 0 || state.Epoch.Less(e) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, x := range c.starts {
		if n >= state.Forced.Epoch.Number && n < e.Number && !x.Proven && s.Before.Seq < x.Before.Seq {
			c.w.fail("epoch %s begins after %s, and epoch %s of the same takeover by force had begun after %s (R11)", e, s.Before, x.At.Epoch, x.Before)
		}
	}
}
