package sim

import (
	"math/rand/v2"
	"time"

	"dozo/internal/control"
)

// Recipes are faults that belong together: what one clause of the rules is there for happens by chance too seldom. A seed of a
// recipe has it several times, each time at other moments.

// between draws a time.
func between(rng *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(rng.Int64N(int64(to-from)))
}

// rounds calls f for the beginnings of n parts of the time with clients, and each part's length.
func (p *Plan) rounds(n int, f func(at time.Duration)) {
	for i := range n {
		f(firstFault + time.Duration(i)*(p.Heal-firstFault)/time.Duration(n))
	}
}

func (p *Plan) add(f Fault) { p.Faults = append(p.Faults, f) }

// pick gives what Fault.Pick and Also have to be for the first node of a site, which count from 1.
func (p *Plan) pick(site int) float64 {
	n, at := 0, 0
	for i, k := range p.Sites {
		if i+1 == site {
			at = n
		}
		n += k
	}
	return (float64(at) + 0.5) / float64(n)
}

// unheardSite: a site falls behind; the owner's dies, and the one that has kept up with it can not be reached either.
func unheardSite(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies, p.Refer = []int{2 + rng.IntN(2), 2, 2}, 3, false
	behind := 2 + rng.IntN(2)
	lost := between(rng, 10*time.Second, 20*time.Second)
	apart := between(rng, time.Second, 5*time.Second)
	p.add(Fault{Kind: FaultSplit, At: lost - apart, For: apart + 4*time.Second, Pick: p.pick(1), Also: p.pick(behind), Size: 1})
	p.add(Fault{Kind: FaultSiteDies, At: lost, For: 16 * time.Second, Owner: true, Size: 1<<4 | 1<<10})
	p.add(Fault{Kind: FaultKill, At: lost + between(rng, 0, 200*time.Millisecond), For: 9 * time.Second, Pick: p.pick(5 - behind)})
	p.add(Fault{Kind: FaultKill, At: lost + between(rng, 0, 200*time.Millisecond), For: 9 * time.Second, Pick: p.pick(5-behind) + 1/float64(p.Sites[0]+4)})
}

// takersDie: what the former owner and several takers leave in pieces at one store each is sorted out by those after them.
func takersDie(p *Plan, rng *rand.Rand) {
	p.Sites[0] = 3
	p.Clients += 4
	p.rounds(5, func(at time.Duration) {
		p.add(Fault{Kind: FaultTakers, At: at + between(rng, 0, time.Second), For: between(rng, 5*time.Second, 7*time.Second), Owner: true, Size: rng.IntN(1 << 20)})
	})
}

// ensembleChanges: a member is away for so long that another one takes its place; then the owner's node and a former member are
// away at once.
func ensembleChanges(p *Plan, rng *rand.Rand) {
	p.Sites[0] = 4
	p.Limits.RepairGrace = 2 * time.Second
	p.rounds(3, func(at time.Duration) {
		at += between(rng, 0, time.Second)
		away := between(rng, 3*time.Second, 6*time.Second)
		p.add(Fault{Kind: FaultKill, At: at, For: away + 5*time.Second, Pick: p.pick(1) + float64(rng.IntN(4))/float64(total(p.Sites))})
		p.add(Fault{Kind: FaultKill, At: at + away, For: 4 * time.Second, Owner: true})
	})
}

func total(list []int) (n int) {
	for _, x := range list {
		n += x
	}
	return n
}

// rottenStore: a store finds what has rotted when it starts, and is one of those that answer the next taker.
func rottenStore(p *Plan, rng *rand.Rand) {
	p.Sites[0] = 3
	p.rounds(4, func(at time.Duration) {
		node := p.pick(1) + float64(rng.IntN(3))/float64(total(p.Sites))
		at += between(rng, 0, 2*time.Second)
		for range 3 {
			p.add(Fault{Kind: FaultRot, At: at, Pick: node, Size: rng.IntN(1 << 20)})
		}
		p.add(Fault{Kind: FaultKill, At: at + 10*time.Millisecond, For: 500 * time.Millisecond, Pick: node})
		p.add(Fault{Kind: FaultKill, At: at + between(rng, 700*time.Millisecond, 2*time.Second), For: 3 * time.Second, Owner: true})
	})
}

// ownerAlone: an owner that is cut off hears of nothing, and its clients go on reading. A store that has granted restarts.
func ownerAlone(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Drift = 3, 0.09
	p.rounds(5, func(at time.Duration) {
		at += between(rng, 0, time.Second)
		p.add(Fault{Kind: FaultAlone, At: at, For: between(rng, 5500*time.Millisecond, 7500*time.Millisecond), Owner: true})
		if rng.IntN(2) == 0 {
			node := p.pick(1) + float64(rng.IntN(3))/float64(total(p.Sites))
			p.add(Fault{Kind: FaultKill, At: at + between(rng, 3*time.Second, 5*time.Second), For: 200 * time.Millisecond, Pick: node})
		}
	})
}

// lateAppends: a store has answered the next owner's fence, and then hears of the former one, which knows nothing of it.
func lateAppends(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Drift = 3, 0.09
	p.Limits.AppendTimeout = 2500 * time.Millisecond // or the owner gives that store up first
	p.rounds(5, func(at time.Duration) {
		p.add(Fault{Kind: FaultLate, At: at + between(rng, 0, time.Second), For: 7500 * time.Millisecond, Owner: true, Pick: rng.Float64(), Also: rng.Float64(), Size: rng.IntN(1 << 20)})
	})
}

// movedAway: the site that a volume has just left loses its power.
func movedAway(p *Plan, rng *rand.Rand) {
	at := between(rng, 8*time.Second, 20*time.Second)
	p.add(Fault{Kind: FaultMoveSite, At: at, Owner: true, Also: p.pick(2)})
	p.add(Fault{Kind: FaultSiteLosesPower, At: at + between(rng, 50*time.Millisecond, 1500*time.Millisecond), For: 15 * time.Second, Pick: p.pick(1), Size: 1 << 4})
}

// siteBehind: a site lacks a long piece of the history, and has to go on without it.
func siteBehind(p *Plan, rng *rand.Rand) {
	p.Limits.CheckpointInterval = between(rng, 2*time.Second, 4*time.Second)
	at := between(rng, 6*time.Second, 16*time.Second)
	apart := between(rng, 6*time.Second, 12*time.Second)
	p.add(Fault{Kind: FaultSplit, At: at, For: apart + 3*time.Second, Owner: true, Pick: p.pick(1), Size: 0})
	p.add(Fault{Kind: FaultSiteDies, At: at + apart, For: 16 * time.Second, Owner: true, Size: 1<<4 | 1<<10})
}

// holderGone: what the owner's node has may be the last copy at its site, and the other sites can not be asked.
func holderGone(p *Plan, rng *rand.Rand) {
	p.Limits.CheckpointInterval = 30 * time.Second
	p.Limits.SegmentBytes = 64 << 10
	p.Sites[0] = 3
	p.rounds(3, func(at time.Duration) {
		at += between(rng, time.Second, 4*time.Second)
		p.add(Fault{Kind: FaultSplit, At: at, For: 8 * time.Second, Owner: true, Pick: p.pick(1), Size: 0})
		p.add(Fault{Kind: FaultKill, At: at + between(rng, 100*time.Millisecond, time.Second), For: 6 * time.Second, Owner: true})
	})
}

// powerless: all of the only site with copies loses its power, and whatever was not synced; now and then after a takeover.
func powerless(p *Plan, rng *rand.Rand) {
	p.Copies, p.Durability = 1, control.Replicated
	p.Think = p.Think * 2 / 3 // so that there is much that is not synced
	p.rounds(6, func(at time.Duration) {
		at += between(rng, 0, time.Second)
		if rng.IntN(2) == 0 {
			p.add(Fault{Kind: FaultKill, At: at, For: time.Second, Owner: true})
			at += between(rng, 400*time.Millisecond, 2500*time.Millisecond)
		}
		p.add(Fault{Kind: FaultBlackout, At: at, For: 500 * time.Millisecond, Owner: true})
	})
}

// givenUp: clients give up commands that lie at nodes which hang, for less time than stamps live.
func givenUp(p *Plan, rng *rand.Rand) {
	p.Resets = true
	kinds := [...]FaultKind{FaultPause, FaultClients, FaultPause, FaultSlowNet, FaultKill}
	p.rounds(10, func(at time.Duration) {
		p.add(Fault{Kind: kinds[rng.IntN(len(kinds))], At: at + between(rng, 0, 2*time.Second), For: between(rng, time.Second, 3*time.Second), Owner: rng.IntN(3) == 0, Pick: rng.Float64(),
			Also: rng.Float64(), Size: rng.IntN(1 << 20)})
	})
}
