package vfs

import (
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A read of 4 KiB that lies in the page cache costs two to three times as much by system call as a copy from a mapping of the file: the kernel
// looks every page up, and copies without wide registers. A file that is read often is therefore mapped, and read there as long as nothing has
// to be waited for:
//
//	pread ──mapAfter reads──> mapped ──file system is memory────────────────────────────────> copy
//	                             └──askAfter reads within a second──> all in memory? ──yes──> copy, for one second
//
// A fault that has to wait for the disk would hold up a processor of Go's, where a system call gives it back. That is why the kernel is
// asked first, why the answer holds for so short a time, and why a copy that took long ends it at once.
//
// The bytes are copied out before anybody looks at them, and the mapping is never lent: what has been verified can't change under who sends it.
//
// An error of the device, or a file that somebody has cut off, is a fault (SIGBUS); whoever copies turns it into a panic of its own goroutine,
// recovers, and leaves it to the system call to say what it is.
type window struct {
	state atomic.Int32           // one of window*
	mem   atomic.Pointer[[]byte] // the whole file as it was when it was mapped; nil: not mapped
	cut   atomic.Int64           // no byte from here on: the file ends there, or did once
	sure  atomic.Int64           // what the kernel was asked for ends here
	until atomic.Int64           // in memory, as far as is known, until then (osFS.now)
	since atomic.Int64           // reads counts from then
	reads atomic.Int32
	high  atomic.Int64 // end of the furthest read
}

const (
	windowIdle int32 = iota
	windowBusy       // somebody maps, or asks the kernel
	windowNever
)

const (
	mapAfter   = 16                     // reads until a file is mapped. A guess: mapping, unmapping and the faults cost as much as some reads save
	askAfter   = 512                    // reads within windowTime until the kernel is asked, which takes as long as some hundred reads save
	windowTime = time.Second            // how long its answer holds
	slowCopy   = 100 * time.Microsecond // a copy that took so long, and a nanosecond for each byte, has waited for the disk

	mappedMax = 1 << 30 // a larger file is never mapped; segments are 32 MiB
)

// weight is as how many reads one counts: what is saved grows with its length, but less.
func weight(p []byte) int32 { return 1 + int32(len(p)>>14) }

// readMapped fills p from the mapping, or says that somebody else has to.
func (f *osFile) readMapped(p []byte, off int64) bool {
	w := &f.window
	if w.state.Load() == windowNever || len(p) == 0 || off < 0 || off > mappedMax {
		return false
	}
	end := off + int64(len(p))
	if f.inMemory() {
		mem := w.mem.Load()
		if mem == nil {
			if w.reads.Add(weight(p)) < mapAfter || !f.openWindow() {
				return false
			}
			mem = w.mem.Load()
		}
		return end <= w.cut.Load() && guardedCopy(p, (*mem)[off:end])
	}
	now := f.fs.now()
	if now >= w.until.Load() && !f.ask(now, end, weight(p)) || end > w.sure.Load() || end > w.cut.Load() {
		return false
	}
	if !guardedCopy(p, (*w.mem.Load())[off:end]) {
		w.until.Store(0)
		return false
	}
	if took := f.fs.now() - now; took > int64(slowCopy)+int64(len(p)) {
		w.until.Store(0)
	}
	return true
}

// guardedCopy copies from a mapping, which may fault.
func guardedCopy(dst, src []byte) (ok bool) {
	was := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(was)
		if recover() != nil { // only the copy is here
			ok = false
		}
	}()
	copy(dst, src)
	return true
}

// openWindow maps the file; false if that can't be done, or somebody else does it.
func (f *osFile) openWindow() bool {
	w := &f.window
	if w.mem.Load() != nil {
		return true
	}
	if !w.state.CompareAndSwap(windowIdle, windowBusy) {
		return false
	}
	if w.mem.Load() != nil {
		w.state.Store(windowIdle)
		return true
	}
	w.cut.Store(math.MaxInt64) // Truncate lowers it from now on
	size, err := f.Size()
	if err != nil || size <= 0 || size > mappedMax {
		w.state.Store(windowNever)
		return false
	}
	mem, err := unix.Mmap(f.fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		w.state.Store(windowNever)
		return false
	}
	w.lower(size)
	w.mem.Store(&mem)
	w.state.Store(windowIdle)
	return true
}

// lower makes sure that nothing is read from the mapping from byte end on.
func (w *window) lower(end int64) {
	for {
		was := w.cut.Load()
		if was <= end || w.cut.CompareAndSwap(was, end) {
			return
		}
	}
}

// ask finds out whether a file that is read often lies in memory, as far as it is read.
func (f *osFile) ask(now, end int64, n int32) bool {
	w := &f.window
	if high := w.high.Load(); end > high {
		w.high.CompareAndSwap(high, end)
	}
	if since := w.since.Load(); now-since > int64(windowTime) {
		if w.since.CompareAndSwap(since, now) {
			w.reads.Store(0)
		}
		return false
	}
	if reads := w.reads.Add(n); reads < askAfter || reads-n >= askAfter || !f.openWindow() || !w.state.CompareAndSwap(windowIdle, windowBusy) {
		return false
	}
	high := min(w.high.Load(), w.cut.Load())
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{Len: uint64(high)}, &st, 0)
	if err == unix.ENOSYS || err == unix.EPERM || err == unix.EOPNOTSUPP {
		w.state.Store(windowNever)
		return false
	}
	yes := err == nil && high > 0 && st.Cache >= uint64(high+4095)/4096
	if yes {
		w.sure.Store(high)
		w.until.Store(now + int64(windowTime))
	}
	w.state.Store(windowIdle)
	return yes
}

// closeWindow unmaps the file; nobody reads any more.
func (f *osFile) closeWindow() {
	if mem := f.window.mem.Swap(nil); mem != nil {
		_ = unix.Munmap(*mem)
	}
}
