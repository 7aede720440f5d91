package vfs

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// Op is what a Call does.
type Op string

// Operations that a Fault can see.
const (
	OpCreate      Op = "create"
	OpOpen        Op = "open"
	OpRemove      Op = "remove"
	OpRename      Op = "rename"
	OpMkdir       Op = "mkdir"
	OpList        Op = "list"
	OpSyncDir     Op = "syncdir"
	OpRead        Op = "read"
	OpWrite       Op = "write"
	OpPreallocate Op = "preallocate"
	OpTruncate    Op = "truncate"
	OpSyncData    Op = "syncdata"
)

// Call is one operation as a Fault sees it.
type Call struct {
	Op   Op
	Path string
	Off  int64
	Len  int
}

// Fault is asked before an operation and may fail it with an error, or wait. The Faults it is set on may be
// called from it.
type Fault func(Call) error

// PartialWrite is the error of a Fault that has the first bytes of a write done before it fails.
type PartialWrite struct {
	Bytes int
	Err   error
}

// Error implements error.
func (e *PartialWrite) Error() string { return fmt.Sprintf("after %d bytes: %v", e.Bytes, e.Err) }

// Unwrap gives the error that the write ends with.
func (e *PartialWrite) Unwrap() error { return e.Err }

// Faults wraps a file system and fails what its faults say.
type Faults struct {
	FS
	mu     sync.Mutex
	faults []*Fault
	reads  []*func(Call, []byte)
}

// NewFaults wraps under without any fault.
func NewFaults(under FS) *Faults { return &Faults{FS: under} }

// Add sets a fault; remove takes it away again.
func (f *Faults) Add(fault Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &fault
	f.faults = append(f.faults[:len(f.faults):len(f.faults)], p)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		var rest []*Fault
		for _, o := range f.faults {
			if o != p {
				rest = append(rest, o)
			}
		}
		f.faults = rest
	}
}

// OnRead sets a function that may change bytes after they were read.
func (f *Faults) OnRead(change func(c Call, data []byte)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads = append(f.reads[:len(f.reads):len(f.reads)], &change)
}

func (f *Faults) before(c Call) error {
	f.mu.Lock()
	faults := f.faults
	f.mu.Unlock()
	for _, fault := range faults {
		if err := (*fault)(c); err != nil {
			return err
		}
	}
	return nil
}

// FailOn fails operations op on paths whose base matches pattern (path.Match) with err.
func FailOn(op Op, pattern string, err error) Fault {
	return func(c Call) error {
		if ok, _ := path.Match(pattern, path.Base(c.Path)); ok && c.Op == op {
			return err
		}
		return nil
	}
}

// HangOn makes operations op on paths whose base matches pattern wait until release is closed.
func HangOn(op Op, pattern string, release <-chan struct{}) Fault {
	return func(c Call) error {
		if ok, _ := path.Match(pattern, path.Base(c.Path)); ok && c.Op == op {
			<-release
		}
		return nil
	}
}

// NoSpaceAfter fails every write and preallocation with ENOSPC once bytes have been taken by them.
func NoSpaceAfter(bytes int64) Fault {
	var taken atomic.Int64
	return func(c Call) error {
		if c.Op != OpWrite && c.Op != OpPreallocate {
			return nil
		}
		if taken.Add(int64(c.Len)) > bytes {
			return syscall.ENOSPC
		}
		return nil
	}
}

// FlipBit makes a change for OnRead: bit of the byte at off of files whose base matches pattern reads wrong.
func FlipBit(pattern string, off int64, bit uint) func(Call, []byte) {
	return func(c Call, data []byte) {
		if ok, _ := path.Match(pattern, path.Base(c.Path)); ok && off >= c.Off && off < c.Off+int64(len(data)) {
			data[off-c.Off] ^= 1 << bit
		}
	}
}

// Create implements FS.
func (f *Faults) Create(name string) (File, error) {
	return f.file(OpCreate, name, f.FS.Create)
}

// Open implements FS.
func (f *Faults) Open(name string) (File, error) { return f.file(OpOpen, name, f.FS.Open) }

// OpenReadWrite implements FS.
func (f *Faults) OpenReadWrite(name string) (File, error) {
	return f.file(OpOpen, name, f.FS.OpenReadWrite)
}

func (f *Faults) file(op Op, name string, do func(string) (File, error)) (File, error) {
	if err := f.before(Call{Op: op, Path: name}); err != nil {
		return nil, err
	}
	under, err := do(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: under, fs: f, name: name}, nil
}

// Remove implements FS.
func (f *Faults) Remove(name string) error {
	if err := f.before(Call{Op: OpRemove, Path: name}); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Rename implements FS.
func (f *Faults) Rename(oldname, newname string) error {
	if err := f.before(Call{Op: OpRename, Path: newname}); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

// MkdirAll implements FS.
func (f *Faults) MkdirAll(dir string) error {
	if err := f.before(Call{Op: OpMkdir, Path: dir}); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir)
}

// List implements FS.
func (f *Faults) List(dir string) ([]string, error) {
	if err := f.before(Call{Op: OpList, Path: dir}); err != nil {
		return nil, err
	}
	return f.FS.List(dir)
}

// SyncDir implements FS.
func (f *Faults) SyncDir(dir string) error {
	if err := f.before(Call{Op: OpSyncDir, Path: dir}); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

type faultFile struct {
	File
	fs   *Faults
	name string
}

var _ io.ReaderAt = (*faultFile)(nil)

func (f *faultFile) ReadAt(p []byte, off int64) (int, error) {
	c := Call{Op: OpRead, Path: f.name, Off: off, Len: len(p)}
	if err := f.fs.before(c); err != nil {
		return 0, err
	}
	n, err := f.File.ReadAt(p, off)
	f.fs.mu.Lock()
	reads := f.fs.reads
	f.fs.mu.Unlock()
	for _, change := range reads {
		(*change)(c, p[:n])
	}
	return n, err
}

// ReadCachedAt sends every read through ReadAt, where the faults are.
func (f *faultFile) ReadCachedAt([]byte, int64) error { return ErrNotCached }

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(Call{Op: OpWrite, Path: f.name, Off: off, Len: len(p)}); err != nil {
		return f.part(err, p, off), err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	sum := 0
	for _, b := range bufs {
		sum += len(b)
	}
	if err := f.fs.before(Call{Op: OpWrite, Path: f.name, Off: off, Len: sum}); err != nil {
		return f.part(err, slices.Concat(bufs...), off), err
	}
	return f.File.WriteVAt(bufs, off)
}

// part writes what err says is written before it.
func (f *faultFile) part(err error, p []byte, off int64) int {
	e, ok := errors.AsType[*PartialWrite](err)
	if !ok {
		return 0
	}
	n, _ := f.File.WriteAt(p[:min(e.Bytes, len(p))], off)
	return n
}

func (f *faultFile) Preallocate(from, size int64) error {
	if err := f.fs.before(Call{Op: OpPreallocate, Path: f.name, Off: from, Len: int(size - from)}); err != nil {
		return err
	}
	return f.File.Preallocate(from, size)
}

func (f *faultFile) Truncate(size int64) error {
	if err := f.fs.before(Call{Op: OpTruncate, Path: f.name, Off: size}); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *faultFile) SyncData() error {
	if err := f.fs.before(Call{Op: OpSyncData, Path: f.name}); err != nil {
		return err
	}
	return f.File.SyncData()
}
