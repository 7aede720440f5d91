// Package vfs is the seam between dozo and the file system: the real one, one in memory that can be cloned as
// a power cut would leave it, and a wrapper that injects faults.
//
// Start at FS and File in vfs.go. Default is the real file system; NewMem (mem.go) makes one in memory, and
// Mem.CrashClone what is left of it after a power cut; Faults (fault.go) wraps either. All state belongs to
// the FS value; there is none in the package.
//
// It is an interface of its own and not that of a key-value store's file layer, because segments need what
// those leave out: truncation, vectored writes at an offset, preallocation that is sure, and a crash that
// tears writes at the size of a sector.
//
// Always true: an error of the operating system can be found with errors.Is (fs.ErrNotExist, fs.ErrExist,
// syscall.ENOSPC); what SyncData or SyncDir has returned nil for survives a CrashClone. Offsets and lengths
// are bytes.
package vfs
