package access

import (
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Grant is one store's lease for one journal and epoch, as its owner sees it: the moment of CLOCK_BOOTTIME, in
// nanoseconds, until which the owner may count on it. The lease keeper writes it, the owner's loop reads it.
type Grant struct {
	Store ident.StoreID
	until atomic.Int64
}

// Set notes a renewal, or with 0 a refusal.
func (g *Grant) Set(until int64) { g.until.Store(until) }

// Leases keeps the leases of all journals that the node owns, batched per pair of nodes (R6).
type Leases interface {
	// Enroll starts asking the stores; the grants are renewed until Leave. deposed is called at most once, if a
	// store says that another epoch has fenced the journal.
	Enroll(journal ident.JournalID, epoch ident.Epoch, stores []ident.StoreID, deposed func(ident.Epoch)) []*Grant
	// Leave gives the grants back, so that a fence need not wait for them to run out.
	Leave(journal ident.JournalID, epoch ident.Epoch)
}

// mayRead reports whether two members of the ensemble have granted (R6). It is checked after the request
// arrived, at the map look-up.
func (o *Owner) mayRead() bool {
	now, n := o.env.Clock(), 0
	for _, g := range o.grants {
		if g.until.Load() > now {
			n++
		}
	}
	return n >= min(2, len(o.grants)) || mutant.On(mutant.R6Lease)
}

// leasePatience bounds how long a command waits for the lease: longer than a keeper takes to get one, and shorter than
// clients wait.
const leasePatience = 3 * time.Second

// leaseWait is a command that nothing keeps from being answered but the lease. In a hand-over one owner has given its grants back
// while reads are on their way to the map, and the next one begins to serve before its first grants are there: that is a pause,
// and no error. Whatever becomes of it, the lease is looked at again (R6); a deposed owner's go to the next one.
type leaseWait struct {
	op    *Op
	since uint64 // Owner.tick
	then  func()
}

// awaitLease has then called, in the loop, once two members have granted.
func (o *Owner) awaitLease(op *Op, then func()) {
	o.leaseless = append(o.leaseless, leaseWait{op, o.tick(), then})
}

// releaseLeaseless goes on with the commands that wait for the lease, or gives up those that have waited for too long.
func (o *Owner) releaseLeaseless() {
	list := o.leaseless
	o.leaseless = nil
	may := o.mayRead()
	for _, x := range list {
		switch {
		case o.stopErr != nil:
			o.finish(x.op, wire.Errorf(wire.CodeNotOwner, "%v", o.stopErr))
		case may:
			x.then()
		case time.Duration(o.tick()-x.since)*time.Millisecond > leasePatience:
			o.env.Metrics.NoLease.Inc()
			o.finish(x.op, wire.Errorf(wire.CodeBusy, "no lease at epoch %s", o.epoch))
		default:
			o.leaseless = append(o.leaseless, x)
		}
	}
}
