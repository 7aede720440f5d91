package access

import (
	"sync"
	"time"
)

// Chores bounds the housekeeping of a node's owners that is due by the clock alone: the checkpoint of a volume that was
// written a minute ago, the sealing of a tail that is idle. Thousands of volumes that were made, or taken over, within
// seconds are due within seconds too, and each costs dozens of fdatasyncs; at once they leave a disk no time for the
// writes of clients and for the control store.
//
// How many may be under way is found out: one more for each that stores took quickly, half as many once one was slow.
// It decides about time only, and never holds up what clients wait for. A nil *Chores lets every owner run on its own.
type Chores struct {
	clock func() int64

	mu struct {
		sync.Mutex
		running int
		limit   float64
		halved  int64 // when limit was halved last, by clock
	}
}

const (
	choresFirst = 4
	choresMin   = 2
	choresMax   = 64
	choreQuick  = 250 * time.Millisecond // for a store to open or to seal a segment: it could take more
	choreSlow   = 800 * time.Millisecond // half of what lets it be avoided (Health)
	choresPause = 2 * time.Second        // between two halvings: those under way all feel the same crowd
	choreRest   = 2 * time.Second        // what follows a chore (records of its own, their fdatasync) has so long to end
)

// NewChores makes the budget of a node.
func NewChores(clock func() int64) *Chores {
	c := &Chores{clock: clock}
	c.mu.limit = choresFirst
	return c
}

// begin asks for a turn; end gives it back. What is urgent may use all of them, the rest half.
func (c *Chores) begin(urgent bool) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	most := int(c.mu.limit)
	if !urgent {
		most = max(1, most/2)
	}
	if c.mu.running >= most {
		return false
	}
	c.mu.running++
	return true
}

func (c *Chores) end() {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.mu.running--
	c.mu.Unlock()
}

// felt notes how long a store took for a part of a chore.
func (c *Chores) felt(d time.Duration) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case d < choreQuick:
		c.mu.limit = min(choresMax, c.mu.limit+1)
	case d > choreSlow && c.clock()-c.mu.halved > int64(choresPause):
		c.mu.limit, c.mu.halved = max(choresMin, c.mu.limit/2), c.clock()
	}
}

// chore is an owner's turn.
type chore struct {
	held  bool
	since time.Duration
}

// beginChore asks for a turn for this owner, which has one at a time.
func (o *Owner) beginChore(urgent bool) bool {
	if o.chore.held || !o.env.Chores.begin(urgent) {
		return false
	}
	o.chore = chore{held: true, since: time.Duration(o.env.Clock())}
	return true
}

// keepChore gives the turn back once what it was for, and what that brought with it, is done.
func (o *Owner) keepChore(now time.Duration) {
	if !o.chore.held || o.cp.running || now-o.chore.since < choreRest && !o.w.Settled() {
		return
	}
	o.endChore()
}

// endChore gives the turn back, if there is one.
func (o *Owner) endChore() {
	if o.chore.held {
		o.chore.held = false
		o.env.Chores.end()
	}
}
