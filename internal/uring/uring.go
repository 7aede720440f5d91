// Package uring waits for slow system calls on files by io_uring(7), without a thread and a processor of Go's
// scheduler for each.
//
// A goroutine in a system call keeps one of the GOMAXPROCS processors until the runtime's monitor notices, which takes up to 10 ms. Where
// there is one processor, as for the nodes of dozo up on a small machine, nothing else of the process runs while a
// disk does its fdatasync. Handed to the kernel by a ring, the call costs two short system calls and a wake-up of the network poller.
//
// Start at Open and Ring.Datasync. One goroutine, which lives as long as the process, hands results to callers. Offsets of the rings are
// those of struct io_uring_params, of the kernel's include/uapi/linux/io_uring.h.
package uring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBusy says that so many calls are under way that another one might have to wait for one of them: not all of them
// go to the same disk. Make it as an ordinary system call.
var ErrBusy = errors.New("as many calls as the kernel works on at a time are under way")

// Of include/uapi/linux/io_uring.h.
const (
	opFsync          = 3
	opSyncFileRange  = 8
	fsyncDatasync    = 1
	offSQ            = 0
	offSQEs          = 0x10000000
	featSingleMmap   = 1
	registerEventfd  = 4
	sqeSize, cqeSize = 64, 16
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// sqe is struct io_uring_sqe.
type sqe struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off, addr     uint64
	len, opFlags  uint32
	user          uint64
	_             [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	user  uint64
	res   int32
	flags uint32
}

// Ring is a pair of queues with the kernel. It is for any number of goroutines and is never closed.
type Ring struct {
	fd    int
	event *os.File // readable when there are results

	sqTail, cqHead, cqTail *uint32
	sqMask, cqMask         uint32
	sqes                   []sqe
	cqes                   []cqe
	sqArray                []uint32

	mu struct {
		sync.Mutex
		free []uint32
	}
	done []chan int32 // by the number in a call's user data
}

// Open makes a ring for as many calls at a time as the kernel works on without one waiting for another. An error means that
// the kernel has none, or none for us.
func Open() (*Ring, error) {
	// The kernel's workers for regular files are at most four for each processor and at most the entries of the ring, for each thread
	// that submits.
	n := uint32(4)
	for n < 4*uint32(runtime.NumCPU()) && n < 64 {
		n *= 2
	}
	if n > 4*uint32(runtime.NumCPU()) {
		n /= 2
	}
	var p params
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, os.NewSyscallError("io_uring_setup", e)
	}
	r := &Ring{fd: int(fd)}
	if err := r.open(&p); err != nil {
		unix.Close(r.fd)
		return nil, err
	}
	for i := range p.sqEntries {
		r.mu.free = append(r.mu.free, i)
		r.done = append(r.done, make(chan int32, 1))
	}
	go r.reap()
	return r, nil
}

func (r *Ring) open(p *params) error {
	if p.features&featSingleMmap == 0 {
		return fmt.Errorf("io_uring: %w: kernel before 5.4", unix.EOPNOTSUPP)
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+cqeSize*p.cqEntries)
	queues, err := unix.Mmap(r.fd, offSQ, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("io_uring: map the queues: %w", err)
	}
	entries, err := unix.Mmap(r.fd, offSQEs, int(sqeSize*p.sqEntries), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return errors.Join(fmt.Errorf("io_uring: map the entries: %w", err), unix.Munmap(queues))
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&queues[off])) }
	r.sqTail, r.cqHead, r.cqTail = at(p.sq.tail), at(p.cq.head), at(p.cq.tail)
	r.sqMask, r.cqMask = *at(p.sq.mask), *at(p.cq.mask)
	r.sqArray = unsafe.Slice(at(p.sq.array), p.sqEntries)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&entries[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&queues[p.cq.cqes])), p.cqEntries)
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		efd32 := int32(efd)
		if _, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerEventfd, uintptr(unsafe.Pointer(&efd32)), 1, 0, 0); e != 0 {
			unix.Close(efd)
			err = e
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("io_uring: event: %w", err), unix.Munmap(entries), unix.Munmap(queues))
	}
	r.event = os.NewFile(uintptr(efd), "io_uring")
	return nil
}

// Datasync is fdatasync(2), of a file that the caller keeps open until it returns. It makes the call or returns ErrBusy.
func (r *Ring) Datasync(fd int) error {
	return r.do(&sqe{opcode: opFsync, fd: int32(fd), opFlags: fsyncDatasync})
}

// Sync is fsync(2), likewise.
func (r *Ring) Sync(fd int) error { return r.do(&sqe{opcode: opFsync, fd: int32(fd)}) }

// WriteBack is sync_file_range(2) with SYNC_FILE_RANGE_WRITE, likewise.
func (r *Ring) WriteBack(fd int, off int64, n uint32) error {
	return r.do(&sqe{opcode: opSyncFileRange, fd: int32(fd), off: uint64(off), len: n, opFlags: unix.SYNC_FILE_RANGE_WRITE})
}

func (r *Ring) do(e *sqe) error {
	r.mu.Lock()
	last := len(r.mu.free) - 1
	if last < 0 {
		r.mu.Unlock()
		return ErrBusy
	}
	slot := r.mu.free[last]
	e.user = uint64(slot)
	// The kernel reads the queue only within io_uring_enter, so what it has not taken can be taken back.
	tail := *r.sqTail
	r.sqes[tail&r.sqMask] = *e
	r.sqArray[tail&r.sqMask] = tail & r.sqMask
	atomic.StoreUint32(r.sqTail, tail+1)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 0, 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			atomic.StoreUint32(r.sqTail, tail)
			r.mu.Unlock()
			return ErrBusy
		}
		break
	}
	r.mu.free = r.mu.free[:last]
	r.mu.Unlock()
	res := <-r.done[slot]
	r.mu.Lock()
	r.mu.free = append(r.mu.free, slot)
	r.mu.Unlock()
	if res < 0 {
		return unix.Errno(-res)
	}
	return nil
}

// reap hands results to those who wait for them.
func (r *Ring) reap() {
	var count [8]byte
	for {
		if _, err := r.event.Read(count[:]); err != nil {
			// The descriptor is ours and never closed: calls would wait for ever.
			panic(fmt.Sprintf("io_uring: event: %v", err))
		}
		head := *r.cqHead
		for tail := atomic.LoadUint32(r.cqTail); head != tail; head++ {
			c := r.cqes[head&r.cqMask]
			atomic.StoreUint32(r.cqHead, head+1)
			r.done[c.user] <- c.res
		}
	}
}
