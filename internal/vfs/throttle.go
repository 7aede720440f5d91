package vfs

import (
	"sync"
	"time"
)

// Throttled is a file system whose files together read and write no more than so many bytes a second, as if a slower
// disk were below them: a seam for tests and measurements on machines whose disks are all one. Reads and writes share
// the rate, and each waits for its turn; what is in the page cache is slowed down like everything else. Syncs are not:
// what they would wait for has been waited for by the writes.
func Throttled(fsys FS, bytesPerSecond int64) FS {
	return &throttledFS{fsys, &throttle{rate: bytesPerSecond, now: time.Now, sleep: time.Sleep}}
}

// throttleBurst is for how long an idle disk saves up its rate.
const throttleBurst = 5 * time.Millisecond

// throttle hands out turns in the order in which they are asked for.
type throttle struct {
	rate  int64
	now   func() time.Time
	sleep func(time.Duration)

	mu   sync.Mutex
	next time.Time // when the disk has done everything that it has been asked for
}

func (t *throttle) take(n int) {
	if n <= 0 {
		return
	}
	now := t.now()
	t.mu.Lock()
	if first := now.Add(-throttleBurst); t.next.Before(first) {
		t.next = first
	}
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	wait := t.next.Sub(now)
	t.mu.Unlock()
	if wait > 0 {
		t.sleep(wait)
	}
}

type throttledFS struct {
	FS
	t *throttle
}

func (f *throttledFS) wrap(x File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &throttledFile{x, f.t}, nil
}

// Create implements FS.
func (f *throttledFS) Create(name string) (File, error) { return f.wrap(f.FS.Create(name)) }

// Open implements FS.
func (f *throttledFS) Open(name string) (File, error) { return f.wrap(f.FS.Open(name)) }

// OpenReadWrite implements FS.
func (f *throttledFS) OpenReadWrite(name string) (File, error) {
	return f.wrap(f.FS.OpenReadWrite(name))
}

type throttledFile struct {
	File
	t *throttle
}

// ReadAt implements File.
func (f *throttledFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.t.take(n)
	return n, err
}

// WriteAt implements File.
func (f *throttledFile) WriteAt(p []byte, off int64) (int, error) {
	f.t.take(len(p))
	return f.File.WriteAt(p, off)
}

// WriteVAt implements File.
func (f *throttledFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	f.t.take(n)
	return f.File.WriteVAt(bufs, off)
}

// ReadCachedAt implements File: nothing is ever in memory, so that whoever reads waits where waiting is expected.
func (f *throttledFile) ReadCachedAt([]byte, int64) error { return ErrNotCached }
