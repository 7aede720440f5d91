package core

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Leases grants owners the right to answer reads (R6), for all stores of a node, batched per pair of nodes.
//
// A grant counts at the owner from the moment of sending, here from the later moment of arrival, and here a
// tenth longer: so an owner's belief ends first. All methods of a nil *Leases do nothing.
type Leases struct {
	clock func() time.Duration
	most  time.Duration
	boot  ident.BootID
	// instance is random: an owner sees by it that this process has forgotten what another had enrolled.
	instance uint64

	mu struct {
		sync.Mutex
		stores  map[ident.StoreID]*Store
		pairs   map[ident.NodeName]*leasePair
		changed chan struct{} // closed and made anew when a grant ends early
	}
}

// leasePair is what one owner's process holds.
type leasePair struct {
	instance uint64
	dead     []uint64 // earlier instances: their late messages count for nothing
	sent     uint64   // the latest message handled, by the owner's clock
	until    time.Duration
	journals map[leaseKey]*enrolled
}

type leaseKey struct {
	store   ident.StoreID
	journal ident.JournalID
}

type enrolled struct {
	epoch   ident.Epoch
	removed bool
	fence   ident.Epoch   // that removed it
	until   time.Duration // once removed: when the last grant that covered it runs out
}

// deadMax bounds how many earlier instances of a node are told apart: a message is not delayed for longer
// than a process takes to start so often.
const deadMax = 64

// NewLeases makes the leases of a node; grants are for most at the most.
func NewLeases(clock func() time.Duration, most time.Duration, boot ident.BootID) *Leases {
	l := &Leases{clock: clock, most: most, boot: boot, instance: rand.Uint64()}
	l.mu.stores = map[ident.StoreID]*Store{}
	l.mu.pairs = map[ident.NodeName]*leasePair{}
	l.mu.changed = make(chan struct{})
	return l
}

// Add makes a store's journals leasable.
func (l *Leases) Add(s *Store) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.stores[s.id] = s
}

// Handle answers one request of an owner.
func (l *Leases) Handle(ctx context.Context, m *wire.Lease) (reply wire.LeaseReply, err error) {
	refused := l.admit(ctx, m)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	pair := l.mu.pairs[m.Owner]
	if pair == nil {
		pair = &leasePair{instance: m.Instance, journals: map[leaseKey]*enrolled{}}
		l.mu.pairs[m.Owner] = pair
	}
	if pair.instance != m.Instance {
		for _, d := range pair.dead {
			if d == m.Instance {
				return reply, wire.Errorf(wire.CodeStale, "a newer process of node %s has asked", m.Owner)
			}
		}
		// The process that held the grants is gone, and its grants with it.
		pair.dead = append(pair.dead, pair.instance)
		if len(pair.dead) > deadMax {
			pair.dead = pair.dead[1:]
		}
		pair.instance, pair.sent, pair.until = m.Instance, 0, 0
		clear(pair.journals)
		l.wakeLocked()
	}
	// Who got no answer asks again, and what is handled late, because it hung at a disk, would take out what has been enrolled
	// since: a fence would be answered while the owner counts on that grant.
	if m.Sent < pair.sent {
		return reply, wire.Errorf(wire.CodeStale, "node %s has asked again since", m.Owner)
	}
	pair.sent = m.Sent
	for _, e := range m.Leave {
		key := leaseKey{e.Store, e.Journal}
		if have := pair.journals[key]; have != nil && !e.Epoch.Less(have.epoch) {
			delete(pair.journals, key)
			l.wakeLocked()
		}
	}
	for _, e := range m.Enroll {
		key := leaseKey{e.Store, e.Journal}
		if _, no := refused[key]; no {
			continue
		}
		if fence := l.mu.stores[e.Store].fence(e.Journal); fence != e.Epoch { // raised since it was admitted
			refused[key] = wire.JournalEpoch{Store: e.Store, Journal: e.Journal, Epoch: fence}
			continue
		}
		if have := pair.journals[key]; have == nil || have.epoch.Less(e.Epoch) {
			pair.journals[key] = &enrolled{epoch: e.Epoch}
		}
	}
	reply = wire.LeaseReply{Sent: m.Sent, Duration: max(0, min(m.Duration, l.most)), Boot: l.boot, Instance: l.instance}
	pair.until = max(pair.until, now+longer(reply.Duration))
	for _, r := range refused {
		reply.Removed = append(reply.Removed, r)
	}
	for key, e := range pair.journals {
		if _, told := refused[key]; e.removed && !told {
			reply.Removed = append(reply.Removed, wire.JournalEpoch{Store: key.store, Journal: key.journal, Epoch: e.fence})
		}
	}
	return reply, nil
}

// admit has the stores obey the epochs that are to be enrolled, and says which may not be. A grant of a higher epoch first raises the
// fence, durably; so before the lock is taken. A disk that fails or hangs keeps only what is to be enrolled at its own store from being
// granted: everything else of the pair waits for the same answer. Whoever is refused without a fence asks again.
func (l *Leases) admit(ctx context.Context, m *wire.Lease) map[leaseKey]wire.JournalEpoch {
	refused := map[leaseKey]wire.JournalEpoch{}
	if len(m.Enroll) == 0 {
		return refused
	}
	within := m.Duration / 2
	if within <= 0 {
		within = l.most
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var stores []*Store // in the order of the request, each with what is asked of it
	asked := map[*Store][]int{}
	errs := make([]error, len(m.Enroll))
	for i, e := range m.Enroll {
		l.mu.Lock()
		s := l.mu.stores[e.Store]
		l.mu.Unlock()
		if s == nil {
			errs[i] = wire.Errorf(wire.CodeAbsent, "store %s is not on this node", e.Store)
			continue
		}
		if asked[s] == nil {
			stores = append(stores, s)
		}
		asked[s] = append(asked[s], i)
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		admit := func() {
			for _, i := range asked[s] {
				errs[i] = s.admitLease(ctx, m.Enroll[i].Journal, m.Enroll[i].Epoch)
			}
		}
		if len(stores) == 1 {
			admit()
		} else {
			wg.Go(admit)
		}
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			continue
		}
		e := m.Enroll[i]
		fence, _ := fenceOf(err) // none: that says nothing of the owner
		refused[leaseKey{e.Store, e.Journal}] = wire.JournalEpoch{Store: e.Store, Journal: e.Journal, Epoch: fence}
	}
	return refused
}

// longer is how long the granting side counts: clocks drift.
func longer(d time.Duration) time.Duration {
	if mutant.On(mutant.R6Longer) {
		return d
	}
	return d + d/10
}

func (l *Leases) wakeLocked() {
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
}

// remove takes a journal out of the leases of epochs below fence. Grants given run on.
func (l *Leases) remove(store ident.StoreID, id ident.JournalID, fence ident.Epoch) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, pair := range l.mu.pairs {
		e := pair.journals[leaseKey{store, id}]
		if e == nil || !e.epoch.Less(fence) {
			continue
		}
		if !e.removed {
			e.removed, e.until = true, pair.until
		}
		if e.fence.Less(fence) {
			e.fence = fence
		}
	}
}

// until says when the last grant of an epoch below fence runs out, and gives a channel that closes when that
// may have become earlier.
func (l *Leases) until(store ident.StoreID, id ident.JournalID, fence ident.Epoch) (until time.Duration, changed <-chan struct{}) {
	if l == nil {
		return 0, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, pair := range l.mu.pairs {
		e := pair.journals[leaseKey{store, id}]
		switch {
		case e == nil || !e.epoch.Less(fence):
		case e.removed:
			until = max(until, e.until)
		default:
			until = max(until, pair.until)
		}
	}
	return until, l.mu.changed
}

// admitLease is admit for an enrolment.
func (s *Store) admitLease(ctx context.Context, id ident.JournalID, epoch ident.Epoch) error {
	if err := s.begin(); err != nil {
		return err
	}
	defer s.end()
	return s.admit(ctx, s.journal(id), epoch)
}

func (s *Store) fence(id ident.JournalID) ident.Epoch {
	j := s.journal(id)
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.fence
}

// fenceOf gives the fence that an error names.
func fenceOf(err error) (ident.Epoch, bool) {
	if e, ok := err.(*wire.Error); ok && (e.Code == wire.CodeFenced || e.Code == wire.CodeConflict) {
		return e.Epoch, true
	}
	return ident.Epoch{}, false
}
