package vfs

import (
	"testing"
	"time"
)

// A throttled disk gives each read and write its turn, in order, at the rate that it was given.
func TestThrottledFilesShareARate(t *testing.T) {
	now := time.Unix(1000, 0)
	var waited time.Duration
	th := &throttle{rate: 1 << 20, now: func() time.Time { return now }, sleep: func(d time.Duration) { waited = d }}
	fsys := &throttledFS{NewMem(0), th}
	f, err := fsys.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	near := func(what string, want time.Duration) {
		t.Helper()
		if d := waited - want; d < -time.Millisecond || d > time.Millisecond {
			t.Errorf("%s waits for %v, want %v", what, waited, want)
		}
	}
	if _, err := f.WriteAt(make([]byte, 1<<19), 0); err != nil {
		t.Fatal(err)
	}
	near("the first write", 500*time.Millisecond-throttleBurst)
	if _, err := f.WriteVAt([][]byte{make([]byte, 1<<18), make([]byte, 1<<18)}, 0); err != nil {
		t.Fatal(err)
	}
	near("a write behind it", time.Second-throttleBurst)
	now = now.Add(time.Second)
	if _, err := f.ReadAt(make([]byte, 1<<18), 0); err != nil {
		t.Fatal(err)
	}
	near("a read when they are done", 250*time.Millisecond-throttleBurst)
	if err := f.ReadCachedAt(make([]byte, 1), 0); err != ErrNotCached {
		t.Errorf("%v: a throttled disk has no memory", err)
	}
}
