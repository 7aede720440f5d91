package access

import (
	"context"
	"sync"
	"time"

	"dozo/internal/ident"
)

// Copies is what all owners of a node share when they make replicas again, empty stores and even their use out: a
// number of copies at a time, a rate, and the order of danger. What has the fewest copies left goes first, whichever
// journal it is of; what only has to move waits until nothing is in danger.
//
// It decides about speed only. A nil *Copies lets every owner run on its own, without a limit.
type Copies struct {
	clock   func() int64
	rateBps int64

	mu struct {
		sync.Mutex
		running int
		wants   map[ident.JournalID]danger // the most urgent that each journal has to do
		next    int64                      // when the budget allows the next bytes
		total   uint64                     // bytes copied since the start
		slots   [copiedSlots]copiedSlot    // for the rate that is shown
	}
}

// danger orders copies: the lower, the sooner. Below dangerEmpty it is the number of copies that are left.
type danger int

const (
	dangerEmpty danger = 1000 + iota // the copy is at a store that is being emptied
	dangerMove                       // nothing is missing: it only makes the use of stores even
	dangerNone
)

const (
	copiesMax    = 4  // at a time and node: what copies wait for is mostly the other disk
	copiedSlots  = 10 // seconds over which the rate that is shown is taken
	copiesMoving = 1  // copies that only move something, at a time: clients use the same disks
)

type copiedSlot struct {
	second int64
	bytes  uint64
}

// NewCopies makes the budget of a node: at most rateBps bytes a second, 0 for no limit.
func NewCopies(clock func() int64, rateBps int64) *Copies {
	c := &Copies{clock: clock, rateBps: rateBps}
	c.mu.wants = map[ident.JournalID]danger{}
	return c
}

// announce says what the most urgent copy is that a journal has to make.
func (c *Copies) announce(j ident.JournalID, d danger) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d >= dangerNone {
		delete(c.mu.wants, j)
		return
	}
	c.mu.wants[j] = d
}

// begin asks for one of the copies that may run at a time; end gives it back.
func (c *Copies) begin(d danger) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	most := copiesMax
	if d >= dangerMove {
		most = copiesMoving
	}
	if c.mu.running >= most {
		return false
	}
	for _, other := range c.mu.wants {
		if other < d {
			return false
		}
	}
	c.mu.running++
	return true
}

func (c *Copies) end() {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.mu.running--
	c.mu.Unlock()
}

// pace waits until n more bytes may be copied, and counts them. It ends early with ctx.
func (c *Copies) pace(ctx context.Context, n int) error {
	if c == nil {
		return nil
	}
	now := c.clock()
	c.mu.Lock()
	wait := time.Duration(0)
	if c.rateBps > 0 {
		// Nothing is saved up while nothing is copied.
		c.mu.next = max(c.mu.next, now)
		wait = time.Duration(c.mu.next - now)
		c.mu.next += int64(float64(n) / float64(c.rateBps) * float64(time.Second))
	}
	c.mu.Unlock()
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.total += uint64(n)
	second := c.clock() / int64(time.Second)
	s := &c.mu.slots[int(second%copiedSlots)]
	if s.second != second {
		*s = copiedSlot{second: second}
	}
	s.bytes += uint64(n)
	return nil
}

// Rate is how many bytes a second were copied lately, and how many in all.
func (c *Copies) Rate() (rateBps, total uint64) {
	if c == nil {
		return 0, 0
	}
	now := c.clock() / int64(time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum uint64
	first := now
	for _, s := range c.mu.slots {
		if s.bytes > 0 && now-s.second < copiedSlots {
			sum += s.bytes
			first = min(first, s.second)
		}
	}
	if sum == 0 {
		return 0, c.mu.total
	}
	return sum / uint64(now-first+1), c.mu.total
}

// Limit is the highest rate in bytes a second, 0 for none.
func (c *Copies) Limit() uint64 {
	if c == nil {
		return 0
	}
	return uint64(max(0, c.rateBps))
}
