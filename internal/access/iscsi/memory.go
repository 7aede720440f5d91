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

// fits says whether a connection that has own bytes may have need more.
func (b *budget) fits(own, need int64) bool {
	used := b.used.Load()
	return own+need <= b.share || used+need <= b.max || used == 0
}

// wait puts somebody in line who did not fit, and says whether he does now: what was given back in between has not seen him.
func (b *budget) wait(w waiter, own, need int64) bool {
	b.mu.Lock()
	if !slices.Contains(b.mu.line, w) {
		b.mu.line = append(b.mu.line, w)
		b.waiting.Add(1)
	}
	b.mu.Unlock()
	return b.fits(own, need)
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

// pump lets those in line go on, as far as there is room. What is given back while it runs starts no other: it looks again.
func (b *budget) pump() {
	for {
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
		if slices.Contains(b.mu.line, w) && b.gave.Load() == gave { // it got what there was
			b.mu.pumping = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
	}
}

func (c *conn) letIn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.admitLocked()
}

// hasRoomLocked reports whether the budget admits so many bytes; if not, the connection is in line.
func (c *conn) hasRoomLocked(need int) bool {
	b, own := &c.srv.budget, int64(c.writeMem+c.readMem)
	if need == 0 || b.fits(own, int64(need)) {
		return true
	}
	fits := b.wait(c, own, int64(need))
	c.srv.notice("buffers for all connections are used up: commands wait", "peer", c.peer.Remote, "initiator", c.peer.Initiator, "bytes", b.used.Load(), "max", b.max)
	return fits
}

func (c *conn) takeLocked(n int) { c.srv.budget.used.Add(int64(n)) }

// giveLocked gives memory back.
func (c *conn) giveLocked(n int) {
	if n != 0 && c.srv.budget.give(int64(n)) {
		c.srv.wg.Go(c.srv.budget.pump) // it locks other connections
	}
}
