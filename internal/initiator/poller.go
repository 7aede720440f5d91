package initiator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Poller reads many connections with one goroutine: Config.Poller. A connection of its own goroutine waits in the kernel
// on a thread of its own, which answers soonest where there are few; among hundreds the switches between the threads
// are most of what the client costs. A Poller asks the kernel once which connections have something, and reads each of
// these once.
//
// Stages: wait (epoll) -> one non-blocking read of each ready connection -> conn.pass, as in readLoop. A connection that ends
// is taken out first and torn down beside the loop.
//
// Its callbacks are called one after the other. Close it after its sessions.
type Poller struct {
	ep, stop int // the epoll and an eventfd that ends the loop
	done     chan struct{}

	mu    sync.Mutex
	conns []*conn // by descriptor

	// The loop's own.
	events [pollerEvents]unix.EpollEvent
	ready  []*conn
	buf    []byte // what connections read into that have nothing left over: one, so that it stays in the processor's cache
}

// pollerEvents is how many ready connections one look finds at most.
const pollerEvents = 128

// NewPoller makes one and starts it.
func NewPoller() (*Poller, error) {
	p := &Poller{done: make(chan struct{}), buf: make([]byte, readBufferLen)}
	var err error
	if p.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if p.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(p.ep)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, p.stop, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.stop)}); err != nil {
		unix.Close(p.ep)
		unix.Close(p.stop)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go p.loop()
	return p, nil
}

// Close ends the loop and waits for it.
func (p *Poller) Close() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(p.stop, one[:])
	<-p.done
	unix.Close(p.ep)
	unix.Close(p.stop)
}

// add has a connection read from now on.
func (p *Poller) add(cn *conn, fd int) error {
	p.mu.Lock()
	for len(p.conns) <= fd {
		p.conns = append(p.conns, nil)
	}
	p.conns[fd] = cn
	p.mu.Unlock()
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		p.mu.Lock()
		p.conns[fd] = nil
		p.mu.Unlock()
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// remove is called by the loop only, so that what it has found ready is still what it was.
func (p *Poller) remove(fd int) {
	_ = unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil)
	p.mu.Lock()
	p.conns[fd] = nil
	p.mu.Unlock()
}

func (p *Poller) loop() {
	defer close(p.done)
	for {
		n, err := unix.EpollWait(p.ep, p.events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // a descriptor of ours that is none
		}
		stop := false
		p.ready = p.ready[:0]
		p.mu.Lock()
		for i := range max(n, 0) {
			fd := int(p.events[i].Fd)
			if fd == p.stop {
				stop = true
			} else if cn := p.conns[fd]; cn != nil {
				p.ready = append(p.ready, cn)
			}
		}
		p.mu.Unlock()
		for _, cn := range p.ready {
			p.read(cn)
		}
		if stop {
			return
		}
	}
}

// read reads a ready connection once. With nothing left over from before it reads into the Poller's buffer.
func (p *Poller) read(cn *conn) {
	in := &cn.in
	own := in.buf
	if in.r == in.w {
		in.buf, in.r, in.w = p.buf, 0, 0
	}
	t := cn.t.(*fdTransport)
	n, err := t.tryRead(in.direct.dst, in.room())
	if n > 0 {
		err = cn.pass(n)
	}
	if &in.buf[0] == &p.buf[0] { // it was not replaced by a larger one
		rest := in.buf[in.r:in.w]
		if len(rest) > 0 && own == nil {
			own = make([]byte, readBufferLen)
		}
		in.buf, in.r, in.w = own, 0, copy(own, rest)
	}
	if err != nil {
		p.remove(t.fd)
		go func() {
			defer cn.wg.Done()
			cn.teardown(err)
		}()
	}
}
