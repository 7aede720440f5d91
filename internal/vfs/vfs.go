package vfs

import (
	"errors"
	"io"
)

// FS is a tree of files. All methods may be called concurrently. Names are slash-separated paths.
type FS interface {
	// Create makes a new file for reading and writing; one that exists is fs.ErrExist. The name is stable
	// only after SyncDir of its directory.
	Create(name string) (File, error)

	// Open opens a file for reading.
	Open(name string) (File, error)

	// OpenReadWrite opens a file that exists for reading and writing.
	OpenReadWrite(name string) (File, error)

	// Remove deletes a file or an empty directory. Handles that are open go on working.
	Remove(name string) error

	// Rename replaces newname atomically. Both names are in one directory.
	Rename(oldname, newname string) error

	// MkdirAll makes a directory and its parents; one that exists is no error.
	MkdirAll(dir string) error

	// List gives the names in a directory, unordered.
	List(dir string) ([]string, error)

	// Size gives the length of a file.
	Size(name string) (int64, error)

	// SyncDir makes the names in a directory stable.
	SyncDir(dir string) error

	// Lock takes an exclusive lock on the named file, which is made if needed, until the Closer is closed or
	// the process ends. A lock that somebody has, in this process or another, is ErrLocked.
	Lock(name string) (io.Closer, error)

	// Usage tells of the file system that holds dir.
	Usage(dir string) (Usage, error)
}

// Usage is the space of a file system in bytes.
type Usage struct {
	ID    uint64 // tells the file systems of a host apart
	Total uint64
	Free  uint64 // for this process
}

// ErrLocked says that somebody else has the lock.
var ErrLocked = errors.New("locked by another process")

// ErrNotCached says that reading would wait for a device.
var ErrNotCached = errors.New("not in memory")

// ErrCantTell says that a file can't tell what is in memory.
var ErrCantTell = errors.New("unknown whether in memory")

// File is an open file. Reads and writes may be concurrent with each other and with SyncData; Close may not
// be concurrent with anything.
type File interface {
	io.Closer
	io.ReaderAt
	io.WriterAt

	// WriteVAt writes bufs one behind the other at off, in as few system calls as there can be.
	WriteVAt(bufs [][]byte, off int64) (int, error)

	// ReadCachedAt fills p without waiting for a device, or gives ErrNotCached, or ErrCantTell where that is
	// never known.
	ReadCachedAt(p []byte, off int64) error

	// Preallocate makes the file at least size bytes long and takes the space for those from byte from on, so that
	// writing there can't run out of it; with none in front of from that has no space yet, writing anywhere can't. To ask
	// again for what has its space costs a look at each page. New bytes read as zeroes.
	Preallocate(from, size int64) error

	// Truncate sets the length.
	Truncate(size int64) error

	// SyncData makes the bytes stable, and of the metadata what is needed to find them (fdatasync).
	SyncData() error

	// WriteBack hints that [off, off+n) should start on its way to the device. It promises nothing.
	WriteBack(off, n int64)

	// Size gives the file's length.
	Size() (int64, error)

	// NextData gives the first offset from off on at which there may be something else than zeroes that nobody has
	// written, or the file's length. A file system that doesn't tell where its holes are has none: then it is off.
	NextData(off int64) (int64, error)
}
