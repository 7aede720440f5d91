package initiator

import (
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transport is a connection after login. One goroutine reads, one at a time writes; shutdown may be called by
// anybody at any time and makes both return. close is called once, when reader and writer are gone.
type transport interface {
	// read fills a, then b, with what is there; at least one byte or an error.
	read(a, b []byte) (int, error)
	// write writes bytes of v. Without wait it returns what fits at once, 0 if nothing does.
	write(v *iovecs, wait bool) (int, error)
	closeWrite()
	shutdown()
	close()
}

// iovecs is a gather list with room for one batch.
type iovecs struct {
	vec [iovMax]syscall.Iovec
	n   int
}

// iovMax is far below the kernel's 1,024: one batch should fit the socket buffer more often than not.
const iovMax = 192

func (v *iovecs) add(b []byte) {
	if len(b) == 0 {
		return
	}
	v.vec[v.n].Base = unsafe.SliceData(b)
	v.vec[v.n].SetLen(len(b))
	v.n++
}

func bytesOf(v *syscall.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// fdTransport uses blocking system calls on the descriptor. A thread that sleeps in recvmsg is woken by the
// kernel directly; the runtime's poller would cost an epoll_wait and a goroutine switch for each round trip,
// which is most of what a command at depth 1 costs here.
type fdTransport struct {
	fd  int
	rv  [2]syscall.Iovec // the reader's, as msg is
	msg syscall.Msghdr
}

// newFDTransport takes the descriptor over from c, which is closed.
func newFDTransport(c *net.TCPConn) (*fdTransport, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	c.Close()
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &fdTransport{fd: fd}, nil
}

func (t *fdTransport) read(a, b []byte) (int, error) {
	t.rv[0].Base, t.rv[1].Base = unsafe.SliceData(a), unsafe.SliceData(b)
	t.rv[0].SetLen(len(a))
	t.rv[1].SetLen(len(b))
	for {
		n, _, e := syscall.Syscall(syscall.SYS_READV, uintptr(t.fd), uintptr(unsafe.Pointer(&t.rv[0])), 2)
		switch {
		case e == syscall.EINTR:
		case e != 0:
			return 0, e
		case n == 0:
			return 0, errEOF
		default:
			return int(n), nil
		}
	}
}

// tryRead is read for who knows that something is there: it never waits, and gives 0 if nothing is.
func (t *fdTransport) tryRead(a, b []byte) (int, error) {
	t.rv[0].Base, t.rv[1].Base = unsafe.SliceData(a), unsafe.SliceData(b)
	t.rv[0].SetLen(len(a))
	t.rv[1].SetLen(len(b))
	t.msg.Iov, t.msg.Iovlen = &t.rv[0], 2
	n, _, e := syscall.Syscall(syscall.SYS_RECVMSG, uintptr(t.fd), uintptr(unsafe.Pointer(&t.msg)), unix.MSG_DONTWAIT)
	switch {
	case e == syscall.EINTR || e == syscall.EAGAIN:
		return 0, nil
	case e != 0:
		return 0, fmt.Errorf("read: %w", e)
	case n == 0:
		return 0, fmt.Errorf("read: %w", errEOF)
	}
	return int(n), nil
}

func (t *fdTransport) write(v *iovecs, wait bool) (int, error) {
	var h syscall.Msghdr
	h.Iov = &v.vec[0]
	h.Iovlen = uint64(v.n)
	flags := uintptr(unix.MSG_NOSIGNAL)
	if !wait {
		flags |= unix.MSG_DONTWAIT
	}
	for {
		n, _, e := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(t.fd), uintptr(unsafe.Pointer(&h)), flags)
		switch e {
		case 0:
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, e
		}
	}
}

func (t *fdTransport) closeWrite() { unix.Shutdown(t.fd, unix.SHUT_WR) }
func (t *fdTransport) shutdown()   { unix.Shutdown(t.fd, unix.SHUT_RDWR) }
func (t *fdTransport) close()      { unix.Close(t.fd) }

// netTransport is any other net.Conn, such as net.Pipe in tests. It cannot write without waiting, so the writer
// goroutine does all of it.
type netTransport struct {
	c net.Conn
}

func (t *netTransport) read(a, b []byte) (int, error) {
	if len(a) == 0 {
		a = b
	}
	return t.c.Read(a)
}

func (t *netTransport) write(v *iovecs, wait bool) (int, error) {
	if !wait {
		return 0, nil
	}
	var bufs net.Buffers
	for i := range v.vec[:v.n] {
		bufs = append(bufs, bytesOf(&v.vec[i]))
	}
	n, err := bufs.WriteTo(t.c)
	return int(n), err
}

func (t *netTransport) closeWrite() {
	if c, ok := t.c.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}
func (t *netTransport) shutdown() { t.c.Close() }
func (t *netTransport) close()    { t.c.Close() }
