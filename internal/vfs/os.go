package vfs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/uring"
)

// Default is the file system of the operating system.
var Default FS = osFS{ring: sync.OnceValue(openRing), since: time.Now()}

type osFS struct {
	ring  func() *uring.Ring // gives nil: waiting calls are ordinary ones
	since time.Time
}

// now is the time of windows: nanoseconds since the process began.
func (s osFS) now() int64 { return int64(time.Since(s.since)) }

// processorsFew is up to how many processors of Go's a waiting system call does without one: with more, one that waits is not missed.
const processorsFew = 4

func openRing() *uring.Ring {
	if runtime.GOMAXPROCS(0) > processorsFew {
		return nil
	}
	r, _ := uring.Open() // a kernel without is no error
	return r
}

func (s osFS) open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o640)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f, fd: int(f.Fd()), fs: s}, nil
}

func (s osFS) Create(name string) (File, error) {
	return s.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}
func (s osFS) Open(name string) (File, error)          { return s.open(name, os.O_RDONLY) }
func (s osFS) OpenReadWrite(name string) (File, error) { return s.open(name, os.O_RDWR) }
func (osFS) Remove(name string) error                  { return os.Remove(name) }
func (osFS) Rename(oldname, newname string) error      { return os.Rename(oldname, newname) }
func (osFS) MkdirAll(dir string) error                 { return os.MkdirAll(dir, 0o750) }

func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (osFS) Size(name string) (int64, error) {
	st, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (s osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if r := s.ring(); r != nil {
		if err := r.Sync(int(d.Fd())); err == nil {
			return nil
		} else if err != uring.ErrBusy {
			return &os.PathError{Op: "fsync", Path: dir, Err: err}
		}
	}
	return d.Sync()
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

func (osFS) Usage(dir string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	var at unix.Stat_t
	if err := unix.Stat(dir, &at); err != nil {
		return Usage{}, fmt.Errorf("stat %s: %w", dir, err)
	}
	return Usage{ID: at.Dev, Total: st.Blocks * uint64(st.Bsize), Free: st.Bavail * uint64(st.Bsize)}, nil
}

// osFile keeps the descriptor beside the os.File: the raw calls below cost no poller and no allocation. The
// owner closes only when nothing is under way.
type osFile struct {
	f  *os.File
	fd int
	fs osFS

	memory struct {
		sync.Once
		yes bool // the file system is memory: there is nothing to wait for
	}
	window window // for reads without a system call
}

// inMemory says that the file system is memory: its calls wait for nothing.
func (f *osFile) inMemory() bool {
	f.memory.Do(func() {
		var st unix.Statfs_t
		f.memory.yes = unix.Fstatfs(f.fd, &st) == nil && st.Type == unix.TMPFS_MAGIC
	})
	return f.memory.yes
}

// ring gives the ring for calls that wait for the disk, nil if there is none or they do not.
func (f *osFile) ring() *uring.Ring {
	if f.inMemory() {
		return nil
	}
	return f.fs.ring()
}

func (f *osFile) Close() error {
	f.closeWindow()
	return f.f.Close()
}

func (f *osFile) ReadAt(p []byte, off int64) (n int, err error) {
	if f.readMapped(p, off) {
		return len(p), nil
	}
	return f.pread(p, off)
}

// pread is ReadAt by system call.
func (f *osFile) pread(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, &os.PathError{Op: "read", Path: f.f.Name(), Err: err}
		case m == 0:
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

func (f *osFile) ReadCachedAt(p []byte, off int64) error {
	if f.readMapped(p, off) {
		return nil
	}
	if f.inMemory() { // which does not know RWF_NOWAIT
		if _, err := f.pread(p, off); err != nil {
			return ErrNotCached // ReadAt says why
		}
		return nil
	}
	iov := [1][]byte{p}
	for {
		n, err := unix.Preadv2(f.fd, iov[:], off, unix.RWF_NOWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.EINVAL:
			return ErrCantTell
		case err != nil || n < len(p):
			// Not cached, or an error, or the end of the file: ReadAt knows.
			return ErrNotCached
		}
		return nil
	}
}

func (f *osFile) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(f.fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, &os.PathError{Op: "write", Path: f.f.Name(), Err: err}
		}
		n += m
	}
	return n, nil
}

// iovMax is IOV_MAX of Linux.
const iovMax = 1024

func (f *osFile) WriteVAt(bufs [][]byte, off int64) (n int, err error) {
	for len(bufs) > 0 {
		if len(bufs) == 1 {
			m, err := f.WriteAt(bufs[0], off)
			return n + m, err
		}
		m, err := unix.Pwritev(f.fd, bufs[:min(len(bufs), iovMax)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, &os.PathError{Op: "write", Path: f.f.Name(), Err: err}
		}
		n += m
		off += int64(m)
		for len(bufs) > 0 && m >= len(bufs[0]) {
			m -= len(bufs[0])
			bufs = bufs[1:]
		}
		if m > 0 { // the kernel stopped within a buffer: finish it, so that bufs need not be changed
			k, err := f.WriteAt(bufs[0][m:], off)
			n += k
			off += int64(k)
			if err != nil {
				return n, err
			}
			bufs = bufs[1:]
		}
	}
	return n, nil
}

func (f *osFile) Preallocate(from, size int64) error {
	for from < size {
		err := unix.Fallocate(f.fd, 0, from, size-from)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
			continue
		case err == unix.EOPNOTSUPP || err == unix.ENOSYS:
			return f.writeZeroes(size)
		}
		return &os.PathError{Op: "fallocate", Path: f.f.Name(), Err: err}
	}
	return nil
}

// writeZeroes takes space the hard way, from the present end of the file on, where fallocate is not known.
func (f *osFile) writeZeroes(size int64) error {
	at, err := f.Size()
	if err != nil {
		return err
	}
	zeroes := make([]byte, 1<<20)
	for at < size {
		n, err := f.WriteAt(zeroes[:min(int64(len(zeroes)), size-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

func (f *osFile) Truncate(size int64) error {
	// Before, for readers; after, for one who maps it just now and saw the old size.
	f.window.lower(size)
	defer f.window.lower(size)
	return f.f.Truncate(size)
}

func (f *osFile) SyncData() error {
	err := error(uring.ErrBusy)
	if r := f.ring(); r != nil {
		err = r.Datasync(f.fd)
	}
	for err == uring.ErrBusy || err == unix.EINTR {
		err = unix.Fdatasync(f.fd)
	}
	if err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) WriteBack(off, n int64) {
	if r := f.ring(); r != nil && n <= math.MaxUint32 && r.WriteBack(f.fd, off, uint32(n)) != uring.ErrBusy {
		return
	}
	_ = unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

func (f *osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *osFile) NextData(off int64) (int64, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	if off >= size {
		return size, nil
	}
	// The descriptor's own offset, which this moves, is nobody's: all other calls name theirs.
	switch at, err := unix.Seek(f.fd, off, unix.SEEK_DATA); {
	case err == unix.ENXIO: // nothing but a hole up to the end
		return size, nil
	case err != nil: // not known here
		return off, nil
	default:
		return min(at, size), nil
	}
}
