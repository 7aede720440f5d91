package sim

import (
	"math/rand/v2"
	"time"

	"dozo/internal/control"
)

// Recipes with traps (traps.go): what they wait for happens when it happens.

// flushedAway: all of the only site with copies loses its power just after a flush was answered: by a new owner, whose
// predecessor has left much that is not synced; when a store has just booted; when some have synced and others not yet.
func flushedAway(p *Plan, rng *rand.Rand) {
	p.Copies, p.Durability = 1, control.Replicated
	p.Think = p.Think * 2 / 3
	p.Sites[0] = 2 + rng.IntN(2)
	p.Limits.SegmentBytes, p.Limits.UncertainWait = 32<<10, 5*time.Second
	p.rounds(5, func(at time.Duration) {
		at += between(rng, 0, time.Second)
		node := p.pick(1) + float64(rng.IntN(p.Sites[0]))/float64(total(p.Sites))
		trap := Fault{Kind: FaultFlushed, At: at, For: 6 * time.Second, Owner: true, Size: rng.IntN(1<<20) &^ 3}
		switch rng.IntN(3) {
		case 0:
			trap.Kind = FaultUnflushed
			for i := range p.Sites[0] {
				p.add(Fault{Kind: FaultSlowCopies, At: at, For: 5 * time.Second, Pick: p.pick(1) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(1 << 20)})
			}
			trap.Size &^= 1 << 5
		case 1:
			p.add(Fault{Kind: FaultPowerCut, At: at, For: between(rng, 20*time.Millisecond, 400*time.Millisecond), Pick: node})
			trap.At, trap.Size = at+between(rng, 20*time.Millisecond, 1500*time.Millisecond), trap.Size|1<<5
		default:
			p.add(Fault{Kind: FaultSlowSync, At: at, For: 6 * time.Second, Pick: node, Size: 200 + rng.IntN(500)})
			p.add(Fault{Kind: FaultSlowCopies, At: at, For: 6 * time.Second, Pick: node, Size: 500 + rng.IntN(500)})
			trap.At, trap.Size = at+between(rng, 500*time.Millisecond, 2*time.Second), trap.Size|1<<5
		}
		p.add(trap)
	})
}

// firstAnswers: what a dead owner alone has is longer than what its successor has answered before it dies.
func firstAnswers(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Copies = 3, 1+rng.IntN(2)
	p.Clients += 3
	p.rounds(5, func(at time.Duration) {
		p.add(Fault{Kind: FaultServed, At: at + between(rng, 0, time.Second), For: 6 * time.Second, Owner: true, Size: rng.IntN(1 << 20)})
	})
}

// takersHang is takersDie where fdatasync takes long: an epoch has begun long before its start is stable.
func takersHang(p *Plan, rng *rand.Rand) {
	takersDie(p, rng)
	p.Limits.SegmentBytes = 32 << 10
	p.Sites[0] = 3 + rng.IntN(2)
	for i := range p.Sites[0] {
		p.add(Fault{Kind: FaultSlowSync, At: firstFault, For: p.Heal - firstFault, Pick: p.pick(1) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(400)})
	}
}

// forgetful: an owner is alone with one store, which is fenced; that store restarts, or its clock is fast.
func forgetful(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Drift, p.Extreme = 3, 0.09, true
	p.Clients += 2
	p.rounds(4, func(at time.Duration) {
		p.add(Fault{Kind: FaultForgetful, At: at + between(rng, 0, time.Second), For: 11 * time.Second, Owner: true, Pick: rng.Float64(), Also: rng.Float64(), Size: rng.IntN(1 << 20)})
	})
}
