package node

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is CLOCK_BOOTTIME: it goes on while the host sleeps, and nobody sets it. It is read several times for each
// command, and Go can only ask the kernel for it, which takes ten times as long as CLOCK_MONOTONIC and the time of
// day, which it has from the vDSO. So it is reckoned from these.
func Clock() int64 { return bootClock.read() }

var bootClock = boottime{base: time.Now(), now: time.Now, ask: askBoottime}

// boottime reckons CLOCK_BOOTTIME as CLOCK_MONOTONIC plus how long the host has slept. When it wakes up, the kernel
// adds the sleep to CLOCK_BOOTTIME and to the time of day in one step and leaves CLOCK_MONOTONIC: so the time of day
// tells, in every single reading, whether the sum may still be used. Who sets the time of day makes us ask once
// too often, no more; and we ask now and then anyway.
type boottime struct {
	base  time.Time
	now   func() time.Time
	ask   func() int64
	known atomic.Pointer[bootOffset]
}

// bootOffset is what was found when the kernel was asked last, all in nanoseconds.
type bootOffset struct {
	boot int64 // CLOCK_BOOTTIME less monotonic time since base
	wall int64 // time of day less the same
	at   int64 // monotonic time since base
}

const (
	bootAskEvery  = int64(100 * time.Millisecond)
	bootWallSlack = int64(time.Millisecond)      // the two are read one after the other
	bootAskWithin = int64(20 * time.Microsecond) // a reading that took longer was interrupted, and is inexact
	bootAskTries  = 3
)

func (c *boottime) read() int64 {
	now := c.now()
	mono := int64(now.Sub(c.base))
	if k := c.known.Load(); k != nil {
		off := now.UnixNano() - mono - k.wall
		if off < bootWallSlack && off > -bootWallSlack && mono-k.at < bootAskEvery {
			return mono + k.boot
		}
	}
	return c.resync()
}

// resync asks the kernel. What it says replaces the offset only if the host has slept, or else the clock would
// go back and forth by what the asking takes.
func (c *boottime) resync() int64 {
	was := c.known.Load()
	for try := 1; ; try++ {
		before := c.now()
		boot := c.ask()
		after := int64(c.now().Sub(c.base))
		mono := int64(before.Sub(c.base))
		if after-mono > bootAskWithin {
			if try < bootAskTries {
				continue
			}
			return boot
		}
		k := &bootOffset{boot: boot - mono, wall: before.UnixNano() - mono, at: mono}
		if was != nil && k.boot-was.boot < bootWallSlack && was.boot-k.boot < bootWallSlack {
			k.boot = was.boot
		}
		c.known.Store(k)
		return mono + k.boot
	}
}

func askBoottime() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // every Linux that Go runs on has it
	}
	return t.Nano()
}
