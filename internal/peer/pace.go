package peer

import (
	"context"
	"sync"
	"time"
)

// Bucket is a Limiter by rate: it lets a burst go at once and then as many bytes a second as its rate. It is
// first come, first served.
type Bucket struct {
	mu    sync.Mutex
	rate  float64       // bytes a second; 0: no limit
	burst time.Duration // how much of unused time counts
	free  time.Time     // when what was let go will have been sent
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
}

// burstTime is a guess: long enough for timers that are late, short enough for a buffer of a router.
const burstTime = 10 * time.Millisecond

// NewBucket makes a Bucket of rateBps bytes a second, 0 for no limit.
func NewBucket(rateBps float64) *Bucket {
	return &Bucket{rate: rateBps, burst: burstTime, now: time.Now, sleep: sleep}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetRate changes the rate for what comes from now on.
func (b *Bucket) SetRate(rateBps float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = rateBps
}

// Wait returns when n more bytes may go, or ctx ends; they count in both cases.
func (b *Bucket) Wait(ctx context.Context, n int) error {
	b.mu.Lock()
	if b.rate <= 0 {
		b.mu.Unlock()
		return ctx.Err()
	}
	now := b.now()
	if oldest := now.Add(-b.burst); b.free.Before(oldest) {
		b.free = oldest
	}
	b.free = b.free.Add(time.Duration(float64(n) / b.rate * float64(time.Second)))
	wait := b.free.Sub(now)
	b.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	return b.sleep(ctx, wait)
}
