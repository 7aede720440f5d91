package iscsi

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"dozo/internal/nowait"
)

// readerSize is the receive buffer of a connection: a window of 4 KiB writes in one read. Data segments
// longer than directMin bypass it. Until the login is through there is less, so that a flood of connections takes little.
const (
	readerSize      = 128 << 10
	directMin       = 16 << 10
	loginReaderSize = directMin
)

// reader is a buffered reader of a socket that can read the rest of a data segment straight to where it
// belongs, and tells before it may block. It has a small buffer of its own until share: from then on it has none while it waits with nothing
// buffered, and takes one when there is something to read, so that the connections of a server read into the same few, which stay in
// the processor's cache.
type reader struct {
	nc     net.Conn
	raw    syscall.RawConn // nil while the buffer is its own
	lent   *readBuffer
	buf    []byte
	r, w   int
	before func() // called before a read that may block, and after it
	after  func()

	fill    func(fd uintptr) bool // reads into a new buffer
	fillErr error
}

type readBuffer [readerSize]byte

var readBuffers = sync.Pool{New: func() any { return new(readBuffer) }}

func newReader(nc net.Conn, before, after func()) reader {
	return reader{nc: nc, buf: make([]byte, loginReaderSize), before: before, after: after}
}

// rawOf gives the socket of a connection, nil if it has none.
func rawOf(nc net.Conn) syscall.RawConn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// share gives up the buffer of its own for those that connections have in turn; what isn't a socket gets a larger one of its own.
func (r *reader) share() {
	rest := r.buf[r.r:r.w]
	if r.raw = rawOf(r.nc); r.raw == nil {
		r.buf = make([]byte, readerSize)
	} else if len(rest) > 0 {
		r.lent = readBuffers.Get().(*readBuffer)
		r.buf = r.lent[:]
	} else {
		r.buf = nil
	}
	r.r, r.w = 0, copy(r.buf, rest)
}

func (r *reader) buffered() int { return r.w - r.r }

// read does one read of the socket.
func (r *reader) read(p []byte) (int, error) {
	r.before()
	n, err := r.nc.Read(p)
	r.after()
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

// more reads what there is behind what is buffered.
func (r *reader) more() error {
	if r.r < r.w || r.raw == nil {
		if r.r == r.w {
			r.r, r.w = 0, 0
		}
		n, err := r.read(r.buf[r.w:])
		r.w += n
		return err
	}
	r.giveBack()
	if r.fill == nil {
		r.fill = r.tryFill
	}
	r.fillErr = nil
	r.before()
	err := r.raw.Read(r.fill)
	r.after()
	if err != nil {
		return err
	}
	return r.fillErr
}

// tryFill takes a buffer and reads into it; false if there is nothing to read yet.
func (r *reader) tryFill(fd uintptr) bool {
	b := readBuffers.Get().(*readBuffer)
	for {
		n, err := nowait.Read(int(fd), b[:])
		switch {
		case err == unix.EINTR:
			continue
		case n > 0:
			r.lent, r.buf, r.r, r.w = b, b[:], 0, n
			return true
		case err == unix.EAGAIN:
			readBuffers.Put(b)
			return false
		case err != nil:
			r.fillErr = os.NewSyscallError("read", err)
		default:
			r.fillErr = io.EOF
		}
		readBuffers.Put(b)
		return true
	}
}

// giveBack gives the buffer back; what next gave is not valid any more.
func (r *reader) giveBack() {
	if r.lent != nil {
		readBuffers.Put(r.lent)
		r.lent, r.buf, r.r, r.w = nil, nil, 0, 0
	}
}

// next gives the next n bytes, n at most what the buffer holds. They are valid until the next call.
func (r *reader) next(n int) ([]byte, error) {
	if r.r < r.w && len(r.buf)-r.r < n {
		copy(r.buf, r.buf[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
	}
	for r.buffered() < n {
		if err := r.more(); err != nil {
			if r.buffered() > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	return b, nil
}

// full fills p.
func (r *reader) full(p []byte) error {
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	p = p[n:]
	for len(p) >= directMin {
		m, err := r.read(p)
		if err != nil {
			return unexpected(err)
		}
		p = p[m:]
	}
	if len(p) == 0 {
		return nil
	}
	b, err := r.next(len(p))
	copy(p, b)
	return unexpected(err)
}

// discard skips n bytes.
func (r *reader) discard(n int) error {
	for n > 0 {
		if r.buffered() == 0 {
			if _, err := r.next(1); err != nil {
				return unexpected(err)
			}
			r.r--
		}
		m := min(n, r.buffered())
		r.r += m
		n -= m
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
