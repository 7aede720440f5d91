package iscsi

import (
	"slices"
	"sync"
	"sync/atomic"
)

// budget bounds the buffers of all connections together, so that many sessions which ask for much and read slowly don't take
// the machine's memory. Each connection has a share that nobody else gets, so that small commands go on whatever others do;
// what goes beyond it is first come, first served. Altogether it is never more than twice the bound.
//
// One address leaves a quarter of the bound to others: a host that has the memory of its writes and withholds their data keeps nobody
// waiting but itself.
//
// A connection whose next task doesn't fit waits in line; whoever gives memory back lets the line go on.
type budget struct {
	max, share int64
	used       atomic.Int64
	gave       atomic.Uint64 // counts how often memory was given back
	waiting    atomic.Int32  // len(mu.line)
	mu         struct {
		sync.Mutex
		line    []waiter
		pumping bool
	}
}

// waiter is who waits in line. letIn takes what there is room for, and gets in line again if that is not all.
type waiter interface{ letIn() }

// purse is what the connections of one address have.
type purse struct {
	used  atomic.Int64
	conns int // under Server.mu
}

// fits says whether a connection that has own bytes may have need more.
func (b *budget) fits(p *purse, own, need int64) bool {
	used, theirs := b.used.Load(), p.used.Load()
	return own+need <= b.share || used == 0 || used+need <= b.max && (theirs == 0 || theirs+need <= b.max-b.max/4)
}

// wait puts somebody in line who did not fit, and says whether he does now: what was given back in between has not seen him.
func (b *budget) wait(w waiter, p *purse, own, need int64) bool {
	b.mu.Lock()
	if !slices.Contains(b.mu.line, w) {
		b.mu.line = append(b.mu.line, w)
		b.waiting.Add(1)
	}
	b.mu.Unlock()
	return b.fits(p, own, need)
}

// give gives memory back, and says whether pump is to be called.
func (b *budget) give(n int64) (pump bool) {
	b.used.Add(-n)
	b.gave.Add(1)
	if b.waiting.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	pump = !b.mu.pumping && len(b.mu.line) > 0
	b.mu.pumping = b.mu.pumping || pump
	return pump
}

// lookMax is at how many who still do not fit pump looks for one who does: others of an address that has its three quarters are no reason
// for all behind them to wait. Those it has looked at are behind the rest then.
const lookMax = 16

// pump lets those in line go on, as far as there is room. What is given back while it runs starts no other: it looks again.
func (b *budget) pump() {
	for vain := 0; ; {
		b.mu.Lock()
		if len(b.mu.line) == 0 || b.used.Load() >= b.max {
			b.mu.pumping = false
			b.mu.Unlock()
			return
		}
		w, gave := b.mu.line[0], b.gave.Load()
		b.mu.line = slices.Delete(b.mu.line, 0, 1)
		b.waiting.Add(-1)
		b.mu.Unlock()
		w.letIn()
		b.mu.Lock()
		if slices.Contains(b.mu.line, w) && b.gave.Load() == gave { // it got what there was for it
			if vain++; vain >= min(lookMax, len(b.mu.line)) {
				b.mu.pumping = false
				b.mu.Unlock()
				return
			}
		} else {
			vain = 0
		}
		b.mu.Unlock()
	}
}

// shared bounds memory of one kind that connections have beside the budget: beyond max, which is for all of them together, each has a
// small share only, so that many of them which take and don't give back don't have the machine's memory.
type shared struct {
	max  int64
	used atomic.Int64
}

// holds reports that a connection which has own bytes may have need more.
func (s *shared) holds(own, need, share int) bool {
	return own+need <= share || s.used.Load()+int64(need) <= s.max
}

// What a connection may have of what is shared however much others have. Guesses: the unsolicited data of one command with our own
// FirstBurstLength; some hundreds of answers.
const (
	stashShare = 256 << 10
	outShare   = 64 << 10
)

// mayStash reports that n bytes more of a task's data may be held before the task has its memory, and counts them.
func (c *conn) mayStash(t *task, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.srv.stashes.holds(c.stashMem, n, stashShare) {
		return false
	}
	if t.stashBox == nil {
		t.stashBox = stashMemories.Get().(*[]byte)
		t.stash = (*t.stashBox)[:0]
	}
	t.stashCost += n
	c.stashMem += n
	c.srv.stashes.used.Add(int64(n))
	return true
}

// unstashLocked gives back what was held for a task.
func (c *conn) unstashLocked(t *task) {
	c.stashMem -= t.stashCost
	c.srv.stashes.used.Add(int64(-t.stashCost))
	if b := t.stashBox; b != nil && cap(t.stash) <= stashKeep {
		*b = t.stash[:0]
		stashMemories.Put(b)
	}
	t.stash, t.stashBox, t.stashCost = nil, nil, 0
}

// Memory for data that come early is lent, so that idle connections have none.
var stashMemories = sync.Pool{New: func() any { return new([]byte) }}

const stashKeep = 256 << 10

// countOutLocked notes how much memory the answers have that wait for the socket; what is within the share counts for nothing.
func (c *conn) countOutLocked() {
	n := c.outMemLocked()
	if n <= outShare {
		n = 0
	}
	if n != c.outCounted {
		c.srv.outs.used.Add(int64(n - c.outCounted))
		c.outCounted = n
	}
}

func (c *conn) outMemLocked() int { return c.out.answers() + c.outgoing }

// outFullLocked reports that too many answers wait for a client that doesn't read.
func (c *conn) outFullLocked() bool {
	limit, n := outMax, c.outMemLocked()
	if c.sess.discovery {
		limit = discoveryOut
	}
	return c.out.size > limit || n > limit || n > outShare && c.srv.outs.used.Load() > c.srv.outs.max
}

func (c *conn) letIn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.admitLocked()
}

// hasRoomLocked reports whether the budget admits so many bytes; if not, the connection is in line.
func (c *conn) hasRoomLocked(need int) bool {
	b, own := &c.srv.budget, int64(c.writeMem+c.readMem)
	if need == 0 || b.fits(c.purse, own, int64(need)) {
		return true
	}
	fits := b.wait(c, c.purse, own, int64(need))
	c.srv.notice("buffers for all connections are used up: commands wait", "peer", c.peer.Remote, "initiator", c.peer.Initiator, "bytes", b.used.Load(), "of_its_address", c.purse.used.Load(), "max", b.max)
	return fits
}

func (c *conn) takeLocked(n int) {
	c.srv.budget.used.Add(int64(n))
	c.purse.used.Add(int64(n))
}

// giveLocked gives memory back.
func (c *conn) giveLocked(n int) {
	c.purse.used.Add(int64(-n))
	if n != 0 && c.srv.budget.give(int64(n)) {
		c.srv.wg.Go(c.srv.budget.pump) // it locks other connections
	}
}
