package control

import (
	"bytes"
	"context"
	"slices"
	"sync"
)

// combiner lets changes of single journals that are wanted at the same time share transactions (R3): when a node has
// died, its successors take thousands of journals over. While one transaction is on its way the others gather; one that
// comes alone waits for nothing.
type combiner struct {
	mu      sync.Mutex
	busy    bool // a goroutine is at work
	waiting []*combined
}

type combined struct {
	change journalChange
	done   chan EnsembleResult // has room for the result
	given  bool                // combiner.mu: whoever asked has gone
}

// commitOne is commitJournals of one change, together with others. A change whose asker's context has ended is
// uncertain, and may still be made.
func (c *Client) commitOne(ctx context.Context, ch journalChange) EnsembleResult {
	w := &combined{change: ch, done: make(chan EnsembleResult, 1)}
	b := &c.combiner
	b.mu.Lock()
	if !b.busy {
		if err := c.goOwned(c.combine); err != nil {
			b.mu.Unlock()
			return EnsembleResult{Err: err}
		}
		b.busy = true
	}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case r := <-w.done:
		return r
	case <-ctx.Done():
		b.mu.Lock()
		w.given = true
		b.mu.Unlock()
		return EnsembleResult{Err: &UncertainError{Journal: ch.journal, ChangeID: ch.changeID, Cause: context.Cause(ctx), pending: ch}}
	}
}

// combine makes changes until none waits.
func (c *Client) combine() {
	b := &c.combiner
	for {
		b.mu.Lock()
		b.waiting = slices.DeleteFunc(b.waiting, func(w *combined) bool { return w.given })
		var batch []*combined
		b.waiting = slices.DeleteFunc(b.waiting, func(w *combined) bool {
			// One transaction depends on one control store, and has a key once.
			if len(batch) == changesPerTxn || len(batch) > 0 && !bytes.Equal(batch[0].change.cluster, w.change.cluster) ||
				slices.ContainsFunc(batch, func(x *combined) bool { return x.change.journal == w.change.journal }) {
				return false
			}
			batch = append(batch, w)
			return true
		})
		if len(batch) == 0 {
			b.busy = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		changes := make([]journalChange, len(batch))
		for i, w := range batch {
			changes[i] = w.change
		}
		ctx, cancel := context.WithTimeout(c.life, c.o.Timeout)
		for i, r := range c.commitJournals(ctx, changes) {
			batch[i].done <- r
		}
		cancel()
	}
}
