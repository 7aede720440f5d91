package node

import (
	"testing"
	"time"
)

// fakeTimes are the clocks of a host that can sleep.
type fakeTimes struct {
	mono, slept int64
	cost        int64 // that asking takes
	asked       int
}

var fakeDay = time.Now() // a time with a monotonic reading

func (f *fakeTimes) clock() *boottime {
	return &boottime{base: fakeDay, now: f.now, ask: func() int64 { f.asked++; f.mono += f.cost; return f.mono + f.slept + 1e12 }}
}

func (f *fakeTimes) now() time.Time { return fakeDay.Add(time.Duration(f.mono)) }

func TestClockIsBoottime(t *testing.T) {
	last := Clock()
	for range 100_000 {
		before := askBoottime()
		c := Clock()
		after := askBoottime()
		if c < before-bootWallSlack || c > after+bootWallSlack {
			t.Fatalf("%d is not between %d and %d", c, before, after)
		}
		if c < last-bootWallSlack {
			t.Fatalf("%d after %d", c, last)
		}
		last = c
	}
}

func TestClockAsksNowAndThen(t *testing.T) {
	f := &fakeTimes{}
	c := f.clock()
	for range 1000 {
		f.mono += int64(time.Millisecond)
		if got, want := c.read(), f.mono+f.slept+1e12; got != want {
			t.Fatalf("%d, want %d", got, want)
		}
	}
	if f.asked < 9 || f.asked > 12 {
		t.Errorf("asked %d times in a second", f.asked)
	}
	// What the asking takes does not make the clock jump.
	f.cost = bootAskWithin - 1
	last := c.read()
	for range 1000 {
		f.mono += int64(time.Millisecond)
		now := c.read()
		if d := now - last; d < int64(time.Millisecond) || d > int64(time.Millisecond)+f.cost {
			t.Fatalf("%d ns in a millisecond", d)
		}
		last = now
	}
	// An interrupted asking gives the kernel's word, and is not kept.
	f.cost = bootAskWithin + 1
	f.mono += bootAskEvery
	offset := c.known.Load().boot
	if got, want := c.read(), f.mono+1e12; got != want || c.known.Load().boot != offset {
		t.Errorf("%d, want %d; offset %d, was %d", got, want, c.known.Load().boot, offset)
	}
}

// The host sleeps between two readings that are a moment apart in CLOCK_MONOTONIC: a lease must not outlive that (R6).
func TestClockGoesOnWhileTheHostSleeps(t *testing.T) {
	f := &fakeTimes{}
	c := f.clock()
	c.read()
	const sleep = int64(10 * time.Second)
	f.slept += sleep
	f.mono += 1000
	// The time of day has moved along, the monotonic reading has not.
	c.known.Load().wall -= sleep
	if got, want := c.read(), f.mono+sleep+1e12; got != want {
		t.Errorf("%d, want %d", got, want)
	}
}
