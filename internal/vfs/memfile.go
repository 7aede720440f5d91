package vfs

import (
	"io"
	"io/fs"
	"syscall"
)

// memFile is a handle of a file in memory.
type memFile struct {
	m     *Mem
	n     *memNode
	name  string
	write bool
}

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.n == nil {
		return fs.ErrClosed
	}
	f.m.unlinkLocked(f.n)
	f.n = nil
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (n int, err error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	for n < len(p) && off < f.n.size {
		from := off % pageSize
		k := int(min(pageSize-from, f.n.size-off, int64(len(p)-n)))
		if pg := f.n.pages[off/pageSize]; pg != nil {
			copy(p[n:n+k], pg[from:])
		} else {
			clear(p[n : n+k])
		}
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadCachedAt: all is in memory.
func (f *memFile) ReadCachedAt(p []byte, off int64) error {
	if _, err := f.ReadAt(p, off); err != nil {
		return ErrNotCached
	}
	return nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.writeLocked(p, off)
}

func (f *memFile) WriteVAt(bufs [][]byte, off int64) (n int, err error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	for _, b := range bufs {
		k, err := f.writeLocked(b, off+int64(n))
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (f *memFile) writeLocked(p []byte, off int64) (n int, err error) {
	if !f.write {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: syscall.EBADF}
	}
	for n < len(p) {
		pg, err := f.pageLocked(off/pageSize, off%pageSize == 0 && len(p)-n >= pageSize)
		if err != nil {
			return n, err
		}
		k := copy(pg[off%pageSize:], p[n:])
		n += k
		off += int64(k)
		f.n.size = max(f.n.size, off)
	}
	return n, nil
}

// pageLocked gives a page that may be written: its own copy, with its space taken. Where all of it is to be written, what
// it held is not copied.
func (f *memFile) pageLocked(i int64, whole bool) (*page, error) {
	n := f.n
	pg := n.pages[i]
	if pg == nil {
		if i*pageSize >= n.allocated {
			if err := f.takeLocked(pageSize); err != nil {
				return nil, err
			}
		}
		pg = new(page)
		n.pages[i] = pg
	} else if pg == n.synced[i] {
		fresh := new(page)
		if !whole {
			*fresh = *pg
		}
		pg = fresh
		n.pages[i] = pg
	}
	n.dirty[i] = struct{}{}
	return pg, nil
}

func (f *memFile) takeLocked(bytes int64) error {
	if f.m.capacity > 0 && f.m.used+bytes > f.m.capacity {
		return &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.m.used += bytes
	return nil
}

func (f *memFile) Preallocate(_, size int64) error { // space is counted from the start of the file
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := f.n
	want := (size + pageSize - 1) / pageSize * pageSize
	if want > n.allocated {
		more := want - n.allocated
		for i := range n.pages { // those were charged already
			if at := i * pageSize; at >= n.allocated && at < want {
				more -= pageSize
			}
		}
		if err := f.takeLocked(more); err != nil {
			return err
		}
		n.allocated = want
	}
	n.size = max(n.size, size)
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := f.n
	before := n.charged()
	for i := range n.pages {
		if i*pageSize >= size {
			delete(n.pages, i)
			n.dirty[i] = struct{}{}
		}
	}
	n.allocated = min(n.allocated, (size+pageSize-1)/pageSize*pageSize)
	f.m.used -= before - n.charged()
	if at := size % pageSize; at != 0 && n.pages[size/pageSize] != nil {
		pg, err := f.pageLocked(size/pageSize, false)
		if err != nil {
			return err
		}
		clear(pg[at:])
	}
	n.size = size
	return nil
}

func (f *memFile) SyncData() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	n := f.n
	if f.m.off {
		return &fs.PathError{Op: "fdatasync", Path: f.name, Err: syscall.EIO}
	}
	for i := range n.dirty {
		if pg := n.pages[i]; pg != nil {
			n.synced[i] = pg
		} else {
			delete(n.synced, i)
		}
	}
	clear(n.dirty)
	n.syncedSize = n.size
	return nil
}

func (f *memFile) WriteBack(off, n int64) {}

func (f *memFile) Size() (int64, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	return f.n.size, nil
}

func (f *memFile) NextData(off int64) (int64, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	for off < f.n.size && f.n.pages[off/pageSize] == nil {
		off = off - off%pageSize + pageSize
	}
	return min(off, f.n.size), nil
}
