package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"sync"
	"time"

	"dozo/internal/ident"
)

// Options are a client's. The zero value of each field means its default.
type Options struct {
	// Timeout bounds changes of specifications and looks into the audit log, and those operations on journals whose
	// context has no deadline. Default 10 s.
	Timeout time.Duration
	// AliveTTL is how long an announcement outlives its node. Default 10 s.
	AliveTTL time.Duration
	// EventsMax is how many events the audit log keeps. Default 10,000.
	EventsMax int
	// Log hears of trouble with the control store. Default: nothing is logged.
	Log *slog.Logger
	// Now is the clock of times that are recorded. Default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.AliveTTL <= 0 {
		o.AliveTTL = 10 * time.Second
	}
	if o.EventsMax <= 0 {
		o.EventsMax = 10_000
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Waiting between attempts: doubled from the first to the last, half of it random, so that the nodes of a
// cluster do not come back all at once when the control store does.
const (
	backoffMin = 20 * time.Millisecond
	backoffMax = 5 * time.Second
)

// probeEvery is how often a client asks the control store for one key, to know that it is there. It feeds
// Connected and nothing else.
const probeEvery = 3 * time.Second

// Client is a Store upon a kv.
type Client struct {
	kv    kv
	o     Options
	cache *cache

	life context.Context // of the watches and announcements
	stop context.CancelFunc
	wg   sync.WaitGroup

	combiner combiner

	closeOnce sync.Once
	closeErr  error

	mu struct {
		sync.Mutex
		closed    bool
		appended  int // events, for trimming now and then
		announced map[ident.NodeName]bool
		watching  context.CancelFunc // ends the watch that feeds the cache
		era       context.Context    // ends when another control store was read
		endEra    context.CancelFunc
		holding   map[ident.NodeName]bool
		connected bool
		since     time.Time
	}
}

var _ Store = (*Client)(nil)

// open lists everything, so that cached reads are complete, and starts watching. It waits for the control
// store until ctx ends.
func open(ctx context.Context, k kv, o Options) (*Client, error) {
	c := &Client{o: o.withDefaults(), cache: newCache()}
	c.kv = levelled{k, c}
	c.life, c.stop = context.WithCancel(context.Background())
	c.mu.announced, c.mu.holding = make(map[ident.NodeName]bool), make(map[ident.NodeName]bool)
	c.mu.era, c.mu.endEra = context.WithCancel(c.life)
	rev, err := retry(ctx, c, "list", func(ctx context.Context) (Rev, error) { return c.refill(ctx, true) })
	if err != nil {
		c.stop()
		return nil, errors.Join(fmt.Errorf("open control store: %w", err), k.close())
	}
	c.setConnected(true)
	c.wg.Go(func() { c.follow(rev) })
	c.wg.Go(c.probe)
	return c, nil
}

// Close implements Store.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.mu.closed = true
		c.mu.Unlock()
		c.stop()
		c.wg.Wait()
		c.cache.close()
		c.closeErr = c.kv.close()
	})
	return c.closeErr
}

// goOwned starts a goroutine that Close waits for, unless the client is closed already.
func (c *Client) goOwned(f func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return ErrClosed
	}
	c.wg.Go(f)
	return nil
}

// follow keeps the cache current until the client is closed.
func (c *Client) follow(rev Rev) {
	var b backoff
	for c.life.Err() == nil {
		ctx, cancel := context.WithCancelCause(c.life)
		c.mu.Lock()
		c.mu.watching = func() { cancel(errRenewed) }
		c.mu.Unlock()
		err := c.kv.watch(ctx, "", rev, func(changes []change, upTo Rev) error {
			b.reset()
			c.applyWatched(changes, upTo)
			rev = max(rev, upTo)
			return nil
		})
		if errors.Is(context.Cause(ctx), errRenewed) {
			err = errRenewed
		}
		cancel(nil)
		if c.life.Err() != nil {
			return
		}
		if errors.Is(err, errMoved) {
			continue
		}
		c.o.Log.Warn("watch of the control store was interrupted", "err", err, "rev", rev)
		if errors.Is(err, errRenewed) {
			c.kv.renew()
			if fresh, err := retry(c.life, c, "list", c.relist); err == nil {
				rev = fresh
				continue
			}
		}
		if errors.Is(err, errCompacted) {
			// What happened in between can only be seen by listing.
			fresh, err := retry(c.life, c, "list", func(ctx context.Context) (Rev, error) { return c.refill(ctx, false) })
			if err == nil {
				rev = fresh
				continue
			}
			c.o.Log.Error("list of the control store", "err", err)
		}
		b.wait(c.life)
	}
}

// refill lists everything and replaces the cache's content. A value that can not be read is an error with
// strict; later it is logged and what was known stays.
func (c *Client) refill(ctx context.Context, strict bool) (Rev, error) {
	pairs, rev, err := c.kv.list(ctx, "")
	if err != nil {
		return 0, err
	}
	bad := c.cache.replace(pairs, rev)
	for _, err := range bad {
		if strict {
			return 0, permanentError{err}
		}
		c.o.Log.Error("value in the control store is ignored", "err", err)
	}
	return rev, nil
}

// relist takes what a control store has that was started anew.
func (c *Client) relist(ctx context.Context) (Rev, error) {
	pairs, rev, err := c.kv.list(ctx, "")
	if err != nil {
		return 0, err
	}
	for _, err := range c.cache.renew(pairs, rev) {
		c.o.Log.Error("value in the control store is ignored", "err", err)
	}
	c.o.Log.Warn("the control store was started anew: everything was read again", "rev", rev)
	// Watches that were made at the former one may go on at this one, and hear nothing before its revisions are where that one's were.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.endEra()
	c.mu.era, c.mu.endEra = context.WithCancel(c.life)
	return rev, nil
}

// renewed makes follow read everything again.
func (c *Client) renewed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.watching != nil {
		c.mu.watching()
	}
}

func (c *Client) applyWatched(changes []change, upTo Rev) {
	for _, err := range c.cache.apply(changes, upTo) {
		c.o.Log.Error("value in the control store is ignored", "err", err)
	}
}

func (c *Client) probe() {
	for {
		wait := probeEvery/2 + mrand.N(probeEvery)
		select {
		case <-c.life.Done():
			return
		case <-time.After(wait):
		}
		ctx, cancel := context.WithTimeout(c.life, probeEvery)
		_, _, err := c.kv.get(ctx, keyCluster)
		cancel()
		if errors.Is(err, errRenewed) {
			c.renewed()
		}
		if c.life.Err() == nil {
			c.setConnected(err == nil)
		}
	}
}

func (c *Client) setConnected(up bool) {
	c.mu.Lock()
	changed := c.mu.since.IsZero() || c.mu.connected != up
	if changed {
		c.mu.connected, c.mu.since = up, c.o.Now()
	}
	c.mu.Unlock()
	if changed {
		if up {
			c.o.Log.Info("control store answers")
		} else {
			c.o.Log.Warn("control store does not answer: I/O goes on, changes wait")
		}
		c.cache.poke()
	}
}

// Connected implements Store.
func (c *Client) Connected() (bool, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.connected, c.mu.since
}

// Subscribe implements Store.
func (c *Client) Subscribe() (<-chan struct{}, func()) { return c.cache.subscribe() }

// bound gives the operation a deadline if it has none.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.o.Timeout)
}

// limit gives the operation Options.Timeout, or less if its context has an earlier deadline: for what people wait
// for.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.o.Timeout)
}

// retry repeats a read until it succeeds, fails permanently, or ctx ends.
func retry[T any](ctx context.Context, c *Client, what string, f func(context.Context) (T, error)) (T, error) {
	var b backoff
	for {
		v, err := f(ctx)
		if err == nil || isPermanent(err) {
			return v, err
		}
		if errors.Is(err, errRenewed) {
			c.renewed()
		}
		if ctx.Err() != nil || !b.wait(ctx) {
			if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
				return v, fmt.Errorf("%s: %w: %v", what, cause, err)
			}
			return v, fmt.Errorf("%w (%s: %v)", ErrAway, what, err)
		}
	}
}

// read gets a key, decoded; ErrNotFound if it is not there.
func read[T any](ctx context.Context, c *Client, key string) (T, Rev, error) {
	var v T
	p, err := c.pair(ctx, key)
	if err != nil {
		return v, 0, err
	}
	if p.mod == 0 {
		return v, 0, ErrNotFound
	}
	v, _, err = decode[T](key, p.value)
	return v, p.mod, err
}

func (c *Client) pair(ctx context.Context, key string) (pair, error) {
	return retry(ctx, c, "read "+key, func(ctx context.Context) (pair, error) {
		p, _, err := c.kv.get(ctx, key)
		return p, err
	})
}

func (c *Client) listing(ctx context.Context, dir string) (pairs []pair, rev Rev, err error) {
	_, err = retry(ctx, c, "list "+dir, func(ctx context.Context) (struct{}, error) {
		pairs, rev, err = c.kv.list(ctx, dir)
		return struct{}{}, err
	})
	return pairs, rev, err
}

// newChangeID is unique for ever: 128 random bits.
func newChangeID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// audit says what a change of specifications is to be recorded as. Before and after are without secrets
// because their JSON is.
type audit struct {
	action, object string
	before, after  any
}

// commit runs a transaction of specifications, with its audit event, until the outcome is known: the event's
// key is unique, so that finding it is the proof that an earlier attempt took effect. ErrConflict: the
// conditions do not hold. On success the cache has caught up, unless its watch is interrupted.
func (c *Client) commit(ctx context.Context, t txn, a audit) (Rev, error) {
	id := newChangeID()
	now := c.o.Now().UTC()
	event := keyEvent(now, id)
	t.conds = append(t.conds, cond{key: event})
	t.ops = append(t.ops, op{key: event, value: encode(Event{Time: now, Actor: ActorFrom(ctx), Action: a.action,
		Object: a.object, Before: summary(a.before), After: summary(a.after)}, id)})
	t.reads = append(t.reads, event)
	var b backoff
	for {
		res, err := c.kv.commit(ctx, t)
		switch {
		case err == nil && res.ok:
			c.cache.waitFor(ctx, res.rev)
			c.trimSometimes()
			return res.rev, nil
		case err == nil:
			if p := res.read(event); p.mod != 0 {
				c.cache.waitFor(ctx, p.mod)
				return p.mod, nil
			}
			return 0, ErrConflict
		case isPermanent(err):
			return 0, err
		}
		if ctx.Err() != nil || !b.wait(ctx) {
			return 0, fmt.Errorf("%s %s: %w: %w", a.action, a.object, ErrUncertain, err)
		}
	}
}

// again runs a read-decide-commit step until it does not end in ErrConflict. f does the whole step.
func again[T any](ctx context.Context, c *Client, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	var b backoff
	for {
		v, err := f(ctx)
		if !errors.Is(err, ErrConflict) {
			return v, err
		}
		if !b.wait(ctx) {
			return v, err
		}
	}
}

// backoff is the waiting of one loop. The zero value is ready.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// wait returns false if ctx ended, at once if its deadline would pass meanwhile.
func (b *backoff) wait(ctx context.Context) bool {
	b.next = min(max(2*b.next, backoffMin), backoffMax)
	d := b.next/2 + mrand.N(b.next/2)
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// waitShort is wait for something that surely comes within seconds.
func (b *backoff) waitShort(ctx context.Context) bool {
	b.next = min(b.next, 250*time.Millisecond)
	return b.wait(ctx)
}
