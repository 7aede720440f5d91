package sim

import (
	"math/rand/v2"
	"time"
)

// lateCommands: what clients have given up arrives while its stamp is good, in whichever way it is late and they are sure that it
// is over; now and then ownership changes meanwhile.
func lateCommands(p *Plan, rng *rand.Rand) {
	p.rounds(16, func(at time.Duration) {
		p.add(Fault{Kind: FaultLateCommand, At: at + between(rng, 0, time.Second), Owner: true, Also: rng.Float64(), Size: rng.IntN(1 << 20)})
	})
	p.rounds(2, func(at time.Duration) {
		at += between(rng, 2*time.Second, 18*time.Second)
		p.add(Fault{Kind: [...]FaultKind{FaultKill, FaultMove, FaultMoveSite, FaultPause}[rng.IntN(4)], At: at, For: between(rng, time.Second, 3*time.Second), Owner: true,
			Pick: rng.Float64(), Also: rng.Float64(), Size: rng.IntN(1 << 20)})
	})
}

// memberReplaced: a member of the ensemble is emptied, so that another ensemble takes its place. As soon as the former one is off the list,
// that member and the owner's node are gone.
func memberReplaced(p *Plan, rng *rand.Rand) {
	p.Sites[0], p.Copies = 4, 1
	p.Limits.CheckpointInterval, p.Limits.SegmentBytes = 30*time.Second, 32<<10
	at := between(rng, 6*time.Second, 26*time.Second)
	for i := range p.Sites[0] {
		p.add(Fault{Kind: FaultSlowCopies, At: at, For: 20 * time.Second, Pick: p.pick(1) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(1 << 20)})
	}
	p.add(Fault{Kind: FaultMember, At: at, For: 20 * time.Second, Owner: true, Pick: p.pick(1), Also: rng.Float64(), Size: rng.IntN(1 << 20), Stays: true})
}

// siteLeft: a site is gone as soon as the volume has left it, while the site that it has gone to takes what is shipped slowly.
func siteLeft(p *Plan, rng *rand.Rand) {
	p.Sites, p.Copies = []int{2 + rng.IntN(2), 2 + rng.IntN(2)}, 2
	at := between(rng, 6*time.Second, 16*time.Second) // a hand-over may take half a minute
	if rng.IntN(2) == 0 {
		for i := range p.Sites[1] {
			p.add(Fault{Kind: FaultSlowCopies, At: at, For: 20 * time.Second, Pick: p.pick(2) + float64(i)/float64(total(p.Sites)), Size: rng.IntN(1 << 20)})
		}
	}
	p.add(Fault{Kind: FaultLeft, At: at, For: 35 * time.Second, Owner: true, Pick: p.pick(1), Size: rng.IntN(1 << 20), Stays: true})
}

// giverDies: the owner dies when the control store names the taker, which is at another site and has not got everything.
func giverDies(p *Plan, rng *rand.Rand) {
	siteLeft(p, rng)
	p.Faults[len(p.Faults)-1].Kind = FaultGiver
}

// longCommands: commands that have become several calls go on after their clients have given them up.
func longCommands(p *Plan, rng *rand.Rand) {
	lateCommands(p, rng)
	for i := range p.Faults {
		if f := &p.Faults[i]; f.Kind == FaultLateCommand {
			f.Kind = FaultLateLong
		}
	}
}

// oldCommands: writes that clients have given up arrive when their stamps are no good any more, and the writes that they would be
// compared with are forgotten.
func oldCommands(p *Plan, rng *rand.Rand) {
	lateCommands(p, rng)
	for i := range p.Faults {
		if f := &p.Faults[i]; f.Kind == FaultLateCommand {
			f.Kind = FaultLateOld
		}
	}
}
