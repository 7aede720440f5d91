package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"dozo/internal/access"
	"dozo/internal/control"
)

// Plan is what a seed stands for.
type Plan struct {
	Seed       uint64
	Sites      []int // nodes of each
	Copies     int   // sites of the volume
	Durability control.Durability
	Clients    int
	Blocks     int
	Think      time.Duration // between two commands of a client, on average; less in troubled times, more in quiet ones
	Distance   time.Duration // one way between two sites
	Length     time.Duration // until the clients stop
	Heal       time.Duration // when the last fault ends
	Limits     access.Limits
	Faults     []Fault
	Mutant     string

	Partition control.Partition
	Ack       int     // sites that hold what is acknowledged, beside the owner's
	Refer     bool    // clients copy block 0 to block 1, and back, by reference
	Drift     float64 // of two clocks from each other, at most
	Extreme   bool    // clocks are as fast or as slow as they may be
	ClientsAt int     // the site of all clients; 0: they are anywhere
	Resets    bool    // clients give up what is not answered: by ABORT TASK, or LUN RESET by another path
}

// Fault is one thing that goes wrong.
type Fault struct {
	Kind  FaultKind
	At    time.Duration
	For   time.Duration
	Owner bool    // it hits the owner's node
	Pick  float64 // else which node, as a fraction of all
	Also  float64 // which other one, where there are two
	Size  int
	Stays bool // its end waits until the clients are done: then nothing that only it has helps anybody
}

// FaultKind says what goes wrong.
type FaultKind int

// Faults.
const (
	FaultKill FaultKind = iota
	FaultPowerCut
	FaultBlackout // of a whole site
	FaultPause
	FaultIsolate     // a node from all others; it has its clients and the control store
	FaultOneWay      // from one node to another
	FaultSplit       // between two sites
	FaultClients     // clients of a node
	FaultControlAway // for one node
	FaultControlDown // for all: a change of leader, or worse
	FaultControlTorn // transactions lose their answers
	FaultSlowNet     // of a node
	FaultSlowDisk    //
	FaultFullDisk    //
	FaultRot         // a bit of a replica
	FaultRestart     // in good order
	FaultMove        // a hand-over to another node
	FaultMoveSite    // to another site
	FaultDrain       //
	FaultClockStep   // of the wall clock
	FaultPauseLong   // longer than stamps live
	FaultIsolateKill // the owner is cut off, and dies before it comes back
	FaultDouble      // two nodes of a site die at once
	FaultGroups      // the nodes of a site fall into two groups
	FaultPartial     // the owner is cut off from all nodes of its site but one
	FaultSiteDies    // and is given up; later it comes back, and its volume goes home
	FaultSiteLosesPower
	FaultSiteCutOff   // the same for a site that goes on by itself
	FaultPolicy       // the volume's policies are changed
	FaultAlone        // a node is cut off from all others and from the control store; it has its clients
	FaultTakers       // the owner is cut off, and so, or dead, is whoever takes over, as soon as its epoch begins
	FaultLate         // the owner is cut off from all others but one, to which it speaks late
	FaultFlushed      // a site loses its power as soon as a flush is answered
	FaultUnflushed    // the owner dies when much is not synced, and then the same
	FaultServed       // the owner dies, and so does the next one after its first answers
	FaultForgetful    // the owner is alone with one other store, which is fenced and restarts
	FaultSlowSync     // fdatasync takes long
	FaultSlowCopies   // what is done with whole segments takes long
	FaultRotTail      // the owner dies, and what the site's other nodes were writing has rotted when they start again
	FaultBurn         // a site is lost, and is away, as soon as a replica has to go
	FaultOldPermit    // sites are apart, as soon as a store is told again to drop what has been made anew since
	FaultLateCommand  // a client gives up a write that arrives all the same
	FaultMember       // a member of the ensemble is emptied; when it is off the list, both it and the owner's node are gone for good
	FaultLeft         // the volume is handed over to another site, and its own is gone for good
	FaultForcedTakers // takers by force die as soon as their epochs begin
	FaultGiver        // as FaultLeft, and the owner dies when the control store names the taker
	FaultLateDrop     // what another owner has said of replicas that go arrives when the next one counts on them
	FaultPermit       // a site loses its power as soon as a replica is permitted to go
	FaultPair         // both holders of what an owner has not synced lose their power
	FaultReserved     // an owner that is alone takes a reservation, and dies
	FaultLateLong     // a client gives up a long command, which goes on all the same
	FaultRestored     // the control store goes back to a backup, since which the volume has moved
	FaultTail         // the owner dies, one store alone has its last records, and that store's node dies when it has just begun
	FaultLie          // two disks have lost what they had synced
	FaultHang         // a store hangs while it is written to and is given up, the owner dies, and the store is back
	FaultLateOld      // a client gives up a write that arrives when nobody remembers any more what has come since
	FaultDiskHangs    // nothing that a store is asked ends
	faultKinds        = int(FaultDiskHangs) + 1
	healed            = 8 * time.Second // from the last fault's end to the clients'
	firstFault        = 4 * time.Second
)

var faultNames = [faultKinds]string{"kill", "power cut", "blackout of a site", "pause", "isolated node", "one-way partition", "sites apart", "clients cut off",
	"control store away for a node", "control store away", "control store loses answers", "slow network", "slow disk", "full disk", "bit rot", "restart in good order",
	"hand-over", "hand-over to a site", "drain", "wall clock step", "long pause", "isolated owner dies", "two nodes die at once", "site in two groups",
	"owner with one other node", "site dies", "site loses its power", "site cut off", "policy changed", "node alone", "takers die", "owner late", "power lost after a flush",
	"owner dies before a flush", "owners die one after the other", "store forgets", "slow fdatasync", "slow copies", "owner dies and what others were writing has rotted",
	"site burns when a replica goes", "sites apart when an old permit is read",
	"late command", "member replaced", "site left", "takers by force die", "giver dies", "late drops", "power lost after a permit", "pair loses its power", "reservation of an owner that dies",
	"late long command", "control store restored",
	"taker of what one store has dies", "disks have lied", "store hangs and owner dies", "old command", "disk hangs"}

func (k FaultKind) String() string { return faultNames[k] }

// weights say how often each kind is drawn. Those behind them have draws of their own (drawSites, recipes.go).
var weights = [faultKinds]int{10, 9, 4, 8, 9, 6, 4, 4, 3, 3, 3, 3, 4, 3, 3, 3, 7, 6, 4, 1, 6, 5, 4, 9, 9}

// Focus is what the faults of a seed have in common: seeds from Focus*FocusStep on have only the kinds of one entry, so
// that what depends on those comes up more often.
var focuses = [...][]FaultKind{
	nil,
	{FaultGroups, FaultPartial, FaultOneWay},
	{FaultIsolate, FaultPause, FaultOneWay, FaultGroups},
	{FaultBlackout, FaultKill, FaultPowerCut},
	{FaultPauseLong, FaultPause, FaultClients, FaultIsolate},
	{FaultMoveSite, FaultBlackout, FaultSplit, FaultKill},
	{FaultKill, FaultPowerCut, FaultIsolateKill, FaultDouble},
}

// siteFocuses are those from FocusSites on: sites are given up, by volumes of the one policy or the other.
var siteFocuses = [...]siteFocus{
	{kinds: []FaultKind{FaultKill, FaultSplit, FaultMoveSite, FaultPowerCut, FaultDouble}},
	{kinds: []FaultKind{FaultKill, FaultSplit, FaultBlackout, FaultPowerCut, FaultOneWay}, ack: true},
	{kinds: []FaultKind{FaultKill, FaultSplit, FaultControlAway, FaultControlDown, FaultPause}, stop: true},
	{kinds: []FaultKind{FaultKill, FaultSplit, FaultBlackout, FaultControlAway, FaultPolicy}, ack: true, stop: true},
	{recipe: unheardSite, ack: true},
	{recipe: takersDie},
	{recipe: ensembleChanges},
	{recipe: rottenStore},
	{recipe: ownerAlone},
	{recipe: lateAppends},
	{recipe: movedAway},
	{recipe: siteBehind},
	{recipe: holderGone},
	{recipe: powerless},
	{recipe: givenUp},
	{recipe: flushedAway},
	{recipe: forgetful},
	{recipe: firstAnswers},
	{recipe: takersHang},
	19: {recipe: lateCommands},
	20: {recipe: memberReplaced},
	21: {recipe: siteLeft},
	22: {recipe: longCommands},
	26: {recipe: rottenTail},
	27: {recipe: uncovered},
	28: {recipe: withoutCheckpoint},
	29: {recipe: withoutPrefix},
	30: {recipe: oldPermits},
	31: {recipe: forcedTakers},
	32: {recipe: forcedTakersHang},
	33: {recipe: giverDies},
	34: {recipe: lateDrops},
	35: {recipe: permitLost},
	36: {recipe: pairLost},
	37: {recipe: reservedAlone},
	38: {recipe: controlRestored},
	39: {recipe: tailOfOne},
	40: {recipe: startAhead},
	41: {recipe: disksLie},
	42: {recipe: storeHangs},
	43: {recipe: oldCommands},
	44: {recipe: hungElsewhere},
}

type siteFocus struct {
	kinds     []FaultKind // of the other faults
	ack, stop bool
	recipe    func(*Plan, *rand.Rand) // draws all faults instead
}

const (
	// FocusStep is how many seeds there are of a focus.
	FocusStep = 1_000_000
	// FocusSites is the first of siteFocuses.
	FocusSites = 100
)

// focusOf gives what the seeds around one have in common.
func focusOf(seed uint64) (kinds []FaultKind, site *siteFocus) {
	if f := seed / FocusStep; f >= FocusSites {
		x := &siteFocuses[(f-FocusSites)%uint64(len(siteFocuses))]
		return x.kinds, x
	}
	return focuses[seed/FocusStep%uint64(len(focuses))], nil
}

// allOften is how many seeds that draw from all faults a spread batch has for one of each focus.
const allOften = 9

// Spread gives the seed of a number, from 0 on, for batches that take some of every focus: their numbers stand for the same
// seeds for as long as there are the same foci.
func Spread(number uint64) uint64 {
	var firsts []uint64
	for f := range focuses[1:] {
		firsts = append(firsts, uint64(1+f)*FocusStep)
	}
	for f := range siteFocuses {
		if x := &siteFocuses[f]; x.kinds != nil || x.recipe != nil {
			firsts = append(firsts, uint64(FocusSites+f)*FocusStep)
		}
	}
	each := uint64(allOften + len(firsts))
	round, at := number/each, number%each
	if at < allOften {
		return 1 + round*allOften + at
	}
	return firsts[at-allOften] + round
}

// NewPlan draws a plan from a seed.
func NewPlan(seed uint64) Plan {
	rng := rand.New(rand.NewPCG(seed, 0x646f7a6f))
	p := Plan{Seed: seed, Clients: 4 + rng.IntN(3), Blocks: 4 + rng.IntN(5), Length: 60 * time.Second, Durability: control.Replicated, Drift: 0.02}
	for range few(rng) {
		p.Sites = append(p.Sites, few(rng))
	}
	p.Copies = 1 + rng.IntN(len(p.Sites))
	if p.Copies == 1 && rng.IntN(3) > 0 {
		p.Copies = 2
	}
	if rng.IntN(8) == 0 {
		p.Durability = control.Sync
	}
	p.Think = p.Length * time.Duration(p.Clients) / time.Duration(1100+rng.IntN(600))
	p.Distance = time.Duration(1+rng.IntN(20)) * time.Millisecond
	p.Limits = access.Limits{SegmentBytes: uint32(64<<10) << rng.IntN(3), CheckpointInterval: time.Duration(4+rng.IntN(20)) * time.Second,
		RepairGrace: time.Duration(2+rng.IntN(10)) * time.Second, UncertainWait: time.Duration(5+rng.IntN(20)) * time.Second}
	p.Heal = p.Length - healed
	n := 3 + rng.IntN(6)
	total := 0
	for _, x := range weights {
		total += x
	}
	for i := range n {
		f := Fault{At: firstFault + time.Duration(rng.Int64N(int64(p.Heal-firstFault-time.Second))), For: time.Duration(200+rng.IntN(6000)) * time.Millisecond,
			Owner: rng.IntN(2) == 0, Pick: rng.Float64(), Also: rng.Float64(), Size: rng.IntN(1 << 20)}
		k := rng.IntN(total)
		for x, weight := range weights {
			if k < weight {
				f.Kind = FaultKind(x)
				break
			}
			k -= weight
		}
		if kinds, _ := focusOf(seed); kinds != nil {
			f.Kind = kinds[rng.IntN(len(kinds))]
		} else if i == 0 { // one change of ownership at least
			f.Owner = true
			f.Kind = [...]FaultKind{FaultKill, FaultPause, FaultIsolate, FaultMove, FaultPowerCut, FaultMoveSite, FaultGroups, FaultPartial}[rng.IntN(8)]
			f.For = 2500*time.Millisecond + f.For
		}
		if f.Kind == FaultPauseLong {
			f.For = 4*time.Second + f.For
		}
		f.For = min(f.For, p.Heal-f.At-100*time.Millisecond)
		p.Faults = append(p.Faults, f)
	}
	if rng := rand.New(rand.NewPCG(seed, 0x73776565)); rng.IntN(3) == 0 {
		p.Limits.SweepSegments = 4 + rng.IntN(12) // as for a volume of a terabyte
	}
	p.drawSites(rand.New(rand.NewPCG(seed, 0x73697465)))
	return p
}

// drawSites adds the policies of R11, the loss of sites, and copies by reference. It has a stream of its own, so that what
// else a seed stands for does not depend on it.
func (p *Plan) drawSites(rng *rand.Rand) {
	kinds, focus := focusOf(p.Seed)
	if kinds != nil && focus == nil {
		return
	}
	if focus != nil && focus.recipe != nil {
		p.Faults, p.Copies = nil, max(p.Copies, 2)
		focus.recipe(p, rng)
		for i := range p.Faults {
			f := &p.Faults[i]
			f.For = min(f.For, p.Heal-f.At-100*time.Millisecond)
		}
		if focus.ack {
			p.Ack = 1
		}
		return
	}
	p.Refer = rng.IntN(3) == 0
	p.Resets = focus == nil && mix(p.Seed, 0x7265)%4 == 0
	if focus != nil {
		if len(p.Sites) < 3 && rng.IntN(3) > 0 { // without a third one nothing happens by itself
			p.Sites = append(p.Sites, few(rng))
		}
		p.Copies = 2 + rng.IntN(len(p.Sites)-1)
	}
	if p.Copies < 2 {
		return
	}
	if focus != nil && focus.ack || focus == nil && rng.IntN(4) == 0 {
		p.Ack = 1 + rng.IntN(p.Copies-1)
	}
	if focus != nil && focus.stop || focus == nil && rng.IntN(4) == 0 {
		p.Partition = control.PartitionStop
	}
	if focus == nil && rng.IntN(4) > 0 {
		return
	}
	lost := Fault{Kind: [...]FaultKind{FaultSiteDies, FaultSiteLosesPower, FaultSiteCutOff, FaultSiteCutOff}[rng.IntN(4)], Owner: rng.IntN(5) > 0,
		Pick: rng.Float64(), Also: rng.Float64(), Size: rng.IntN(1 << 20),
		At: firstFault + time.Duration(rng.Int64N(int64(22*time.Second))), For: 13*time.Second + time.Duration(rng.Int64N(int64(9*time.Second)))}
	if p.Partition == control.PartitionStop { // its lease has to run out
		lost.For += 4 * time.Second
	}
	// Few other faults while the site is away: whatever else is missing, nobody takes over.
	others := 0
	p.Faults = slices.DeleteFunc(p.Faults, func(f Fault) bool {
		if f.At+f.For < lost.At || f.At > lost.At+lost.For {
			return false
		}
		others++
		return others > 1
	})
	p.Faults = append(p.Faults, lost)
	if rng.IntN(3) == 0 {
		p.Faults = append(p.Faults, Fault{Kind: FaultPolicy, At: firstFault + time.Duration(rng.Int64N(int64(p.Heal-firstFault))), Size: rng.IntN(1 << 20)})
	}
}

// few is 2 to 4, small ones more often: where there is little to spare, a fault does more, and the seed costs less.
func few(rng *rand.Rand) int { return [...]int{2, 2, 2, 2, 3, 3, 3, 4, 4}[rng.IntN(9)] }

func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: sites of %v nodes, %v apart, copies at %d, %s, ", p.Seed, p.Sites, p.Distance, p.Copies, p.Durability)
	if p.Ack > 0 || p.Partition != "" {
		fmt.Fprintf(&b, "ack %s, partition %s, ", control.AckText(p.Ack), cmp.Or(p.Partition, control.PartitionContinue))
	}
	fmt.Fprintf(&b, "%d clients, %d blocks, segments of %d KiB;", p.Clients, p.Blocks, p.Limits.SegmentBytes>>10)
	for _, f := range p.Faults {
		fmt.Fprintf(&b, " %s at %.1f for %.1f s", f.Kind, f.At.Seconds(), f.For.Seconds())
		if f.Owner {
			b.WriteString(" (owner)")
		}
		b.WriteByte(';')
	}
	return b.String()
}
