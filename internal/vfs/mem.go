package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

const (
	pageSize   = 4096
	sectorSize = 512 // what a device writes whole: a torn write tears between sectors
)

// Mem is a file system in memory that remembers what has been synced, so that CrashClone can show what a
// power cut would leave. Pages are shared between the running state, the synced state and clones, and copied
// before they are written.
type Mem struct {
	mu       sync.RWMutex
	root     *memDir
	capacity int64 // 0: unlimited
	used     int64
	off      bool // see PowerOff
}

// PowerOff ends the life of the disk: nothing becomes stable any more. Who takes a CrashClone of a file system that is in use
// calls it before, as what is made stable behind the clone's back would be reported and be lost.
func (m *Mem) PowerOff() {
	m.mu.Lock()
	m.off = true
	m.mu.Unlock()
}

// page is never written while anybody else could hold it.
type page [pageSize]byte

type memDir struct {
	files  map[string]*memNode
	dirs   map[string]*memDir
	synced map[string]*memNode // the files whose names are stable
	ops    []dirOp             // since the last SyncDir, in order: a crash keeps a prefix of them
	dirty  bool                // the directory's own name in its parent is not stable
}

// dirOp sets name to node, nil to remove it, and likewise the second name of a rename, both or neither.
type dirOp struct {
	name string
	node *memNode
	also string
	gone bool // also is removed
}

type memNode struct {
	size       int64
	allocated  int64 // [0, allocated) has its space; pages behind are charged one by one
	pages      map[int64]*page
	synced     map[int64]*page
	syncedSize int64
	dirty      map[int64]struct{} // pages that differ from synced
	links      int                // names plus handles: space is given back at 0
	lock       bool
}

// NewMem makes an empty file system; capacity 0 is unlimited.
func NewMem(capacity int64) *Mem { return &Mem{root: newMemDir(), capacity: capacity} }

func newMemDir() *memDir {
	return &memDir{files: map[string]*memNode{}, dirs: map[string]*memDir{}, synced: map[string]*memNode{}}
}

// SetCapacity changes the size of the device; below what is used, nothing more can be allocated.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Crash says what a power cut leaves of what was not synced.
type Crash struct {
	// Percent is the chance that an unsynced sector, length or name is there all the same; 0 drops all of
	// them. Names of one directory survive in order.
	Percent int
	Rand    *rand.Rand // needed unless Percent is 0
}

// CrashClone gives a file system as it is after a power cut at this moment. m itself goes on.
func (m *Mem) CrashClone(c Crash) *Mem {
	m.mu.RLock()
	defer m.mu.RUnlock()
	clone := &Mem{capacity: m.capacity}
	nodes := map[*memNode]*memNode{}
	clone.root = clone.crashDir(m.root, &c, nodes)
	return clone
}

func (c *Crash) keep() bool { return c.Percent > 0 && c.Rand.IntN(100) < c.Percent }

func (m *Mem) crashDir(d *memDir, c *Crash, nodes map[*memNode]*memNode) *memDir {
	n := newMemDir()
	names := make(map[string]*memNode, len(d.synced))
	for name, node := range d.synced {
		names[name] = node
	}
	for _, op := range d.ops {
		if !c.keep() {
			break
		}
		op.apply(names)
	}
	// In order of names, so that one seed gives one outcome.
	for _, name := range sortedKeys(names) {
		node := names[name]
		crashed := nodes[node]
		if crashed == nil {
			crashed = node.crash(c)
			nodes[node] = crashed
			m.used += crashed.charged()
		}
		crashed.links++
		n.files[name], n.synced[name] = crashed, crashed
	}
	for _, name := range sortedKeys(d.dirs) {
		if sub := d.dirs[name]; !sub.dirty || c.keep() {
			n.dirs[name] = m.crashDir(sub, c, nodes)
		}
	}
	return n
}

func (op dirOp) apply(names map[string]*memNode) {
	if op.node == nil {
		delete(names, op.name)
	} else {
		names[op.name] = op.node
	}
	if op.gone {
		delete(names, op.also)
	}
}

func sortedKeys[K ~string | ~int64, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (n *memNode) crash(c *Crash) *memNode {
	r := &memNode{size: n.syncedSize, allocated: n.allocated, pages: map[int64]*page{}, synced: map[int64]*page{}, dirty: map[int64]struct{}{}}
	if n.size != n.syncedSize && c.keep() {
		r.size = n.size
	}
	for i, p := range n.synced {
		r.pages[i] = p
	}
	for _, i := range sortedKeys(n.dirty) {
		var torn page
		if old := n.synced[i]; old != nil {
			torn = *old
		}
		now := n.pages[i]
		for at := 0; at < pageSize; at += sectorSize {
			if c.keep() {
				if now == nil {
					clear(torn[at : at+sectorSize])
				} else {
					copy(torn[at:at+sectorSize], now[at:])
				}
			}
		}
		r.pages[i] = &torn
	}
	for i := range r.pages { // nothing lies behind the end
		if i*pageSize >= r.size {
			delete(r.pages, i)
		} else if over := (i+1)*pageSize - r.size; over > 0 {
			cut := *r.pages[i]
			clear(cut[pageSize-over:])
			r.pages[i] = &cut
		}
	}
	for i, p := range r.pages {
		r.synced[i] = p
	}
	r.syncedSize = r.size
	r.allocated = min(r.allocated, (r.size+pageSize-1)/pageSize*pageSize)
	return r
}

func (n *memNode) charged() int64 {
	sum := n.allocated
	for i := range n.pages {
		if i*pageSize >= n.allocated {
			sum += pageSize
		}
	}
	return sum
}

// dir walks to a directory.
func (m *Mem) dirLocked(name string) (*memDir, error) {
	d := m.root
	for _, part := range strings.Split(path.Clean("/" + name)[1:], "/") {
		if part == "" {
			continue
		}
		if d = d.dirs[part]; d == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
	}
	return d, nil
}

func (m *Mem) parentLocked(name string) (*memDir, string, error) {
	d, err := m.dirLocked(path.Dir("/" + name))
	return d, path.Base(name), err
}

func (d *memDir) set(op dirOp) {
	op.apply(d.files)
	d.ops = append(d.ops, op)
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return nil, err
	}
	if d.files[base] != nil || d.dirs[base] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n := &memNode{pages: map[int64]*page{}, synced: map[int64]*page{}, dirty: map[int64]struct{}{}, links: 2}
	d.set(dirOp{name: base, node: n})
	return &memFile{m: m, n: n, name: name, write: true}, nil
}

func (m *Mem) open(name string, write bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return nil, err
	}
	n := d.files[base]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	n.links++
	return &memFile{m: m, n: n, name: name, write: write}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

// OpenReadWrite implements FS.
func (m *Mem) OpenReadWrite(name string) (File, error) { return m.open(name, true) }

func (m *Mem) unlinkLocked(n *memNode) {
	if n.links--; n.links == 0 {
		m.used -= n.charged()
	}
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return err
	}
	if n := d.files[base]; n != nil {
		d.set(dirOp{name: base})
		m.unlinkLocked(n)
		return nil
	}
	if sub := d.dirs[base]; sub != nil && len(sub.files)+len(sub.dirs) == 0 {
		delete(d.dirs, base)
		return nil
	}
	return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, from, err := m.parentLocked(oldname)
	if err != nil {
		return err
	}
	d2, to, err := m.parentLocked(newname)
	if err != nil {
		return err
	}
	n := d.files[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: oldname, Err: fs.ErrNotExist}
	}
	if d != d2 {
		return fmt.Errorf("rename %s to %s: %w", oldname, newname, syscall.EXDEV)
	}
	if old := d.files[to]; old != nil {
		m.unlinkLocked(old)
	}
	d.set(dirOp{name: to, node: n, also: from, gone: true})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.root
	for _, part := range strings.Split(path.Clean("/" + dir)[1:], "/") {
		if part == "" {
			continue
		}
		if d.files[part] != nil {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		sub := d.dirs[part]
		if sub == nil {
			sub = newMemDir()
			sub.dirty = true
			d.dirs[part] = sub
		}
		d = sub
	}
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d, err := m.dirLocked(dir)
	if err != nil {
		return nil, err
	}
	return append(sortedKeys(d.files), sortedKeys(d.dirs)...), nil
}

// Size implements FS.
func (m *Mem) Size(name string) (int64, error) {
	f, err := m.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.dirLocked(dir)
	if err != nil {
		return err
	}
	if m.off {
		return &fs.PathError{Op: "fsync", Path: dir, Err: syscall.EIO}
	}
	for _, op := range d.ops {
		op.apply(d.synced)
	}
	d.ops = nil
	for _, sub := range d.dirs {
		sub.dirty = false
	}
	return nil
}

type memLock struct {
	m *Mem
	n *memNode
}

func (l *memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.n.lock = false
	return nil
}

// Lock implements FS. A clone starts without locks, as after a reboot.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parentLocked(name)
	if err != nil {
		return nil, err
	}
	n := d.files[base]
	if n == nil {
		n = &memNode{pages: map[int64]*page{}, synced: map[int64]*page{}, dirty: map[int64]struct{}{}, links: 1}
		d.set(dirOp{name: base, node: n})
	}
	if n.lock {
		return nil, ErrLocked
	}
	n.lock = true
	return &memLock{m, n}, nil
}

// DropLocks forgets all locks, as the kernel does for a process that was killed.
func (m *Mem) DropLocks() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var walk func(d *memDir)
	walk = func(d *memDir) {
		for _, n := range d.files {
			n.lock = false
		}
		for _, sub := range d.dirs {
			walk(sub)
		}
	}
	walk(m.root)
}

// Usage implements FS.
func (m *Mem) Usage(string) (Usage, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.capacity == 0 {
		return Usage{Total: 1 << 50, Free: 1<<50 - uint64(m.used)}, nil
	}
	return Usage{Total: uint64(m.capacity), Free: uint64(max(0, m.capacity-m.used))}, nil
}
