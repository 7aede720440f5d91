// Package nowait has system calls on non-blocking sockets that return at once, made without telling Go's
// scheduler. An ordinary system call that takes longer than 20 µs, as a write into a loopback connection does
// that wakes its reader, has the scheduler hand the processor to another thread: two context switches more for
// each small message. Only calls that the kernel never lets wait may be made this way.
//
// Start at Write. There is no state.
package nowait

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// SizeMax is how many bytes Write and Writev take at most; the copy of more is long enough for the scheduler
// to know of it.
const SizeMax = 64 << 10

const piecesMax = 16

// Write writes p to the non-blocking socket fd like unix.Write.
func Write(fd int, p []byte) (int, error) {
	if len(p) == 0 || len(p) > SizeMax {
		return unix.Write(fd, p)
	}
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// Read reads what there is from the non-blocking socket fd like unix.Read. p is no larger than a fraction of a millisecond copies.
func Read(fd int, p []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// Writev writes pieces to the non-blocking socket fd like unix.Writev.
func Writev(fd int, pieces [][]byte) (int, error) {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	if size == 0 || size > SizeMax || len(pieces) > piecesMax {
		return unix.Writev(fd, pieces)
	}
	var iov [piecesMax]unix.Iovec
	n := 0
	for _, p := range pieces {
		if len(p) > 0 {
			iov[n].Base = unsafe.SliceData(p)
			iov[n].SetLen(len(p))
			n++
		}
	}
	r, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov)), uintptr(n))
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}
