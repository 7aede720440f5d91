package control

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// trimEvery is how many events a client appends before it looks whether the log has grown past its bound; the
// log may be longer by that for each client.
const trimEvery = 64

// AppendEvent implements Store.
func (c *Client) AppendEvent(ctx context.Context, e Event) error {
	if e.Action == "" {
		return invalidf("event without an action")
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if e.Time.IsZero() {
		e.Time = c.o.Now()
	}
	e.Time, e.Rev, e.Actor = e.Time.UTC(), 0, cmp.Or(e.Actor, ActorFrom(ctx))
	id := newChangeID()
	key := keyEvent(e.Time, id)
	t := txn{conds: []cond{{key: key}}, ops: []op{{key: key, value: encode(e, id)}}}
	var b backoff
	for {
		// The key is unique: if it is there, an earlier attempt took effect.
		res, err := c.kv.commit(ctx, t)
		if err == nil {
			if res.ok {
				c.trimSometimes()
			}
			return nil
		}
		if isPermanent(err) {
			return err
		}
		if ctx.Err() != nil || !b.wait(ctx) {
			return errors.Join(ErrUncertain, err)
		}
	}
}

// decodeEvent passes over an event that a newer node wrote in a way that this one can't read: the log is for
// people, and one entry must not hide the others.
func (c *Client) decodeEvent(p pair) (Event, bool) {
	e, _, err := decode[Event](p.key, p.value)
	if err != nil {
		c.o.Log.Warn("entry of the audit log is left out", "err", err)
	}
	e.Rev = p.mod
	return e, err == nil
}

// eventPairs lists the log in the order of the control store's history.
func (c *Client) eventPairs(ctx context.Context) ([]pair, Rev, error) {
	pairs, rev, err := c.listing(ctx, dirEvents)
	slices.SortStableFunc(pairs, func(a, b pair) int { return cmp.Compare(a.mod, b.mod) })
	return pairs, rev, err
}

// Events implements Store.
func (c *Client) Events(ctx context.Context, limit int) ([]Event, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	pairs, _, err := c.eventPairs(ctx)
	if err != nil {
		return nil, err
	}
	if limit > 0 && len(pairs) > limit {
		pairs = pairs[len(pairs)-limit:]
	}
	out := make([]Event, 0, len(pairs))
	for _, p := range pairs {
		if e, ok := c.decodeEvent(p); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// WatchEvents implements Store.
func (c *Client) WatchEvents(ctx context.Context, after Rev, f func(Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.life, func() { cancel(ErrClosed) })()
	var shown time.Time // the newest event that was
	deliver := func(p pair) error {
		if p.mod <= after {
			return nil
		}
		after = p.mod
		if e, ok := c.decodeEvent(p); ok {
			shown = e.Time
			return f(e)
		}
		return nil
	}
	var b backoff
	for {
		c.mu.Lock()
		era := c.mu.era
		c.mu.Unlock()
		pairs, rev, err := c.eventPairs(ctx)
		if err != nil {
			return cmp.Or(context.Cause(ctx), err) // never nothing: to the caller that is the end of what there is to show
		}
		if rev < after { // another control store: what was shown is told by its time, or by that of the restore
			after = 0
			at, err := c.RestoredAt(ctx)
			if err != nil {
				return cmp.Or(context.Cause(ctx), err)
			}
			if at.After(shown) {
				shown = at
			}
			for _, p := range pairs {
				if e, ok := c.decodeEvent(p); ok && !e.Time.After(shown) {
					after = p.mod
				}
			}
		}
		for _, p := range pairs {
			if err := deliver(p); err != nil {
				return err
			}
		}
		var stop error
		wctx, end := context.WithCancel(ctx)
		left := context.AfterFunc(era, end)
		err = c.kv.watch(wctx, dirEvents, rev, func(changes []change, _ Rev) error {
			b.reset()
			for _, ch := range changes {
				if ch.deleted {
					continue
				}
				if stop = deliver(ch.pair); stop != nil {
					return stop
				}
			}
			return nil
		})
		left()
		end()
		switch {
		case stop != nil:
			return stop
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		// Interrupted, or compacted: the listing shows what was missed.
		c.o.Log.Warn("watch of the audit log was interrupted", "err", err)
		b.wait(ctx)
	}
}

// RestoredAt is when the control store was made anew, as it says itself; zero if it never was. What its log has from before was in the former
// one's, too, under other revisions.
func (c *Client) RestoredAt(ctx context.Context) (time.Time, error) {
	r, _, err := read[Restoration](ctx, c, keyRestored)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return r.Time, err
}

// trimSometimes cuts the log to its bound after every trimEvery events of this client, in the background.
// Several clients doing it at once delete the same keys.
func (c *Client) trimSometimes() {
	c.mu.Lock()
	c.mu.appended++
	due := c.mu.appended%trimEvery == 0
	c.mu.Unlock()
	if due {
		_ = c.goOwned(func() { // a closed client needs no trimming
			ctx, cancel := context.WithTimeout(c.life, c.o.Timeout)
			defer cancel()
			if err := c.trim(ctx); err != nil && c.life.Err() == nil {
				c.o.Log.Warn("trim of the audit log", "err", err)
			}
		})
	}
}

func (c *Client) trim(ctx context.Context) error {
	pairs, _, err := c.eventPairs(ctx)
	if err != nil {
		return err
	}
	excess := len(pairs) - c.o.EventsMax
	for from := 0; from < excess; from += changesPerTxn {
		var t txn
		for _, p := range pairs[from:min(from+changesPerTxn, excess)] {
			t.ops = append(t.ops, op{key: p.key, delete: true})
		}
		if _, err := c.kv.commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}
