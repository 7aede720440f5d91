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
	waiting    atomic.Int32 // len(mu.line)
	mu         struct {
		sync.Mutex
		line    []*conn
		pumping bool
	}
}

// fits says whether a connection that has own bytes may have need more.
func (b *budget) fits(own, need int64) bool {
	used := b.used.Load()
	return own+need <= b.share || used+need <= b.max || used == 0
}

// hasRoomLocked reports whether the budget admits so many bytes; if not, the connection is in line.
func (c *conn) hasRoomLocked(need int) bool {
	b, own := &c.srv.budget, int64(c.writeMem+c.readMem)
	if need == 0 || b.fits(own, int64(need)) {
		return true
	}
	b.mu.Lock()
	if !slices.Contains(b.mu.line, c) {
		b.mu.line = append(b.mu.line, c)
		b.waiting.Add(1)
	}
	b.mu.Unlock()
	c.srv.notice("buffers for all connections are used up: commands wait", "peer", c.peer.Remote, "initiator", c.peer.Initiator, "bytes", b.used.Load(), "max", b.max)
	return b.fits(own, int64(need)) // what was given back meanwhile has not seen it in line
}

func (c *conn) takeLocked(n int) { c.srv.budget.used.Add(int64(n)) }

// giveLocked gives memory back.
func (c *conn) giveLocked(n int) {
	if n == 0 {
		return
	}
	b := &c.srv.budget
	if b.used.Add(int64(-n)); b.waiting.Load() > 0 {
		b.mu.Lock()
		start := !b.mu.pumping && len(b.mu.line) > 0
		b.mu.pumping = b.mu.pumping || start
		b.mu.Unlock()
		if start {
			c.srv.wg.Go(b.pump) // it locks other connections
		}
	}
}

// pump lets those in line go on, as far as there is room.
func (b *budget) pump() {
	for {
		b.mu.Lock()
		if len(b.mu.line) == 0 || b.used.Load() >= b.max {
			b.mu.pumping = false
			b.mu.Unlock()
			return
		}
		c := b.mu.line[0]
		b.mu.line = slices.Delete(b.mu.line, 0, 1)
		b.waiting.Add(-1)
		b.mu.Unlock()
		c.mu.Lock()
		c.admitLocked()
		c.mu.Unlock()
		b.mu.Lock()
		if slices.Contains(b.mu.line, c) { // it got what there was
			b.mu.pumping = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
	}
}
