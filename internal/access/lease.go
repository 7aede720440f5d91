package access

import (
	"sync/atomic"

	"dozo/internal/ident"
	"dozo/internal/mutant"
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
