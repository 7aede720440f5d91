package iscsi

import (
	"io"
	"net"
)

// readerSize is the receive buffer of a connection: a window of 4 KiB writes in one read. Data segments
// longer than directMin bypass it. Until the login is through there is less, so that a flood of connections takes little.
const (
	readerSize      = 128 << 10
	directMin       = 16 << 10
	loginReaderSize = directMin
)

// reader is a buffered reader of a socket that can read the rest of a data segment straight to where it
// belongs, and tells before it may block.
type reader struct {
	nc     net.Conn
	buf    []byte
	r, w   int
	before func() // called before a read that may block, and after it
	after  func()
}

// grow makes the buffer larger.
func (r *reader) grow(n int) {
	buf := make([]byte, n)
	r.w = copy(buf, r.buf[r.r:r.w])
	r.buf, r.r = buf, 0
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

// next gives the next n bytes, n at most what the buffer holds. They are valid until the next call.
func (r *reader) next(n int) ([]byte, error) {
	if len(r.buf)-r.r < n {
		copy(r.buf, r.buf[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
	}
	for r.buffered() < n {
		if r.r == r.w {
			r.r, r.w = 0, 0
		}
		m, err := r.read(r.buf[r.w:])
		if err != nil {
			if r.buffered() > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		r.w += m
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
