package access

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// LeaseNode is what the keeper needs of the node that has some stores: one batch of leases a pair of nodes.
type LeaseNode interface {
	Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error)
}

// LeaseKeeper keeps the leases of a node's owners (R6). Grants count from the moment of sending, on
// CLOCK_BOOTTIME. One goroutine a node that is asked renews three times within a lease; Close waits for them.
//
// How long the leases are is what clients wait for when their owner dies, so they are short; and a renewal that takes longer
// than they last means that nothing is read. So where answers come late, over distance or from a machine that has more to do than
// processors, longer ones are asked for: leaseAnswers times what an answer took lately.
type LeaseKeeper struct {
	node     ident.NodeName
	instance uint64
	duration time.Duration
	clock    func() int64
	log      *slog.Logger
	find     func(ident.StoreID) (ident.NodeName, LeaseNode, bool)
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu struct {
		sync.Mutex
		pairs map[ident.NodeName]*leasePair
	}
}

// leasePair is the lease from one node. Guarded by LeaseKeeper.mu.
type leasePair struct {
	node     LeaseNode
	enrolled []*enrollment
	leave    []wire.JournalEpoch
	kick     chan struct{}
	instance uint64        // of the process that has granted
	slow     time.Duration // what an answer took lately, with what it was asked for too late; only renew's
}

const (
	leaseAnswers   = 4           // a renewal may take three times as long as the last ones before a grant is missed
	leaseLongest   = 4           // times the duration that is configured: the granting side has a limit as well
	leaseAskAtMost = time.Second // for an answer: one that comes too late for a grant still says who is enrolled
)

// felt notes what an answer took: the slowest one counts, for about a dozen of others.
func (p *leasePair) felt(took time.Duration) { p.slow = max(took, p.slow-p.slow/8) }

// asks is for how long leases are asked.
func (p *leasePair) asks(duration time.Duration) time.Duration {
	return min(max(duration, leaseAnswers*p.slow), leaseLongest*duration)
}

type enrollment struct {
	left bool // it is not enrolled any more
	wire.JournalEpoch
	grant   *Grant
	known   bool // the other side has confirmed it
	deposed func(ident.Epoch)
}

// journalAt is a journal at a store.
type journalAt struct {
	store   ident.StoreID
	journal ident.JournalID
}

// NewLeaseKeeper makes a keeper; find says which node has a store.
func NewLeaseKeeper(node ident.NodeName, instance uint64, duration time.Duration, clock func() int64, log *slog.Logger,
	find func(ident.StoreID) (ident.NodeName, LeaseNode, bool)) *LeaseKeeper {
	k := &LeaseKeeper{node: node, instance: instance, duration: duration, clock: clock, log: log, find: find}
	k.mu.pairs = map[ident.NodeName]*leasePair{}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Close stops renewing and waits.
func (k *LeaseKeeper) Close() {
	k.cancel()
	k.wg.Wait()
}

// Enroll implements Leases.
func (k *LeaseKeeper) Enroll(journal ident.JournalID, epoch ident.Epoch, stores []ident.StoreID, deposed func(ident.Epoch)) []*Grant {
	var once sync.Once
	tell := func(e ident.Epoch) { once.Do(func() { deposed(e) }) }
	var grants []*Grant
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range stores {
		g := &Grant{Store: s}
		grants = append(grants, g)
		name, node, ok := k.find(s)
		if !ok {
			continue
		}
		p := k.mu.pairs[name]
		if p == nil {
			p = &leasePair{node: node, kick: make(chan struct{}, 1)}
			k.mu.pairs[name] = p
			k.wg.Go(func() { k.renew(p) })
		}
		p.enrolled = append(p.enrolled, &enrollment{JournalEpoch: wire.JournalEpoch{Store: s, Journal: journal, Epoch: epoch}, grant: g, deposed: tell})
		p.wake()
	}
	return grants
}

func (p *leasePair) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Leave implements Leases.
func (k *LeaseKeeper) Leave(journal ident.JournalID, epoch ident.Epoch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.mu.pairs {
		p.enrolled = slices.DeleteFunc(p.enrolled, func(e *enrollment) bool {
			if e.Journal != journal || e.Epoch != epoch {
				return false
			}
			e.left = true
			e.grant.Set(0) // before the other side hears of it
			p.leave = append(p.leave, e.JournalEpoch)
			return true
		})
		p.wake()
	}
}

// renew asks one node again and again.
func (k *LeaseKeeper) renew(p *leasePair) {
	every := k.duration / 3
	t := time.NewTimer(0)
	defer t.Stop()
	for due := k.clock(); ; {
		select {
		case <-k.ctx.Done():
			return
		case <-t.C:
		case <-p.kick:
		}
		began := k.clock()
		due = min(due, began)
		t.Reset(every)
		k.ask(p)
		p.felt(time.Duration(k.clock() - due))
		due = began + int64(every)
	}
}

func (k *LeaseKeeper) ask(p *leasePair) {
	k.mu.Lock()
	if len(p.enrolled) == 0 && len(p.leave) == 0 {
		k.mu.Unlock()
		return
	}
	m := &wire.Lease{Owner: k.node, Instance: k.instance, Duration: p.asks(k.duration)}
	asked := slices.Clone(p.enrolled)
	for _, e := range asked {
		if !e.known {
			m.Enroll = append(m.Enroll, e.JournalEpoch)
		}
	}
	m.Leave = slices.Clone(p.leave)
	k.mu.Unlock()

	ctx, cancel := context.WithTimeout(k.ctx, max(k.duration, leaseAskAtMost))
	defer cancel()
	m.Sent = uint64(k.clock())
	r, err := p.node.Lease(ctx, m)
	if err != nil {
		// What the other side knows is not known: everything is enrolled again.
		k.mu.Lock()
		for _, e := range asked {
			e.known = false
		}
		k.mu.Unlock()
		return
	}
	until := int64(m.Sent) + int64(r.Duration)
	type removal struct {
		e     *enrollment
		epoch ident.Epoch
	}
	var removed []removal
	gone := make(map[journalAt]ident.Epoch, len(r.Removed))
	for _, x := range r.Removed {
		gone[journalAt{x.Store, x.Journal}] = x.Epoch
	}
	k.mu.Lock()
	p.leave = p.leave[len(m.Leave):]
	if p.instance != r.Instance {
		// Another process than the one that knew what is enrolled: only what this request enrolled is granted.
		p.instance = r.Instance
		fresh := make(map[wire.JournalEpoch]bool, len(m.Enroll))
		for _, e := range m.Enroll {
			fresh[e] = true
		}
		for _, e := range p.enrolled {
			e.known = fresh[e.JournalEpoch]
			if !e.known {
				e.grant.Set(0)
			}
		}
		asked = slices.DeleteFunc(asked, func(e *enrollment) bool { return !e.known })
		p.wake()
	}
	for _, e := range asked {
		if epoch, out := gone[journalAt{e.Store, e.Journal}]; out {
			e.grant.Set(0)
			e.known = false
			if e.Epoch.Less(epoch) {
				removed = append(removed, removal{e, epoch})
			}
			continue
		}
		if !e.left {
			e.known = true
			e.grant.Set(until)
		}
	}
	if len(r.Removed) > 0 {
		kept := make(map[journalAt]bool, len(p.enrolled))
		for _, e := range p.enrolled {
			kept[journalAt{e.Store, e.Journal}] = true
		}
		for _, x := range r.Removed {
			// Told until it is left out: an enrollment of a former epoch that nobody here keeps any more.
			if !kept[journalAt{x.Store, x.Journal}] {
				p.leave = append(p.leave, x)
			}
		}
	}
	k.mu.Unlock()
	for _, x := range removed {
		x.e.deposed(x.epoch)
	}
}
