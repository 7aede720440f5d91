package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"dozo/internal/wire"
)

const (
	corkBytes   = 64 << 10 // queued while the reader works before someone writes anyway
	combineMax  = 16       // batches that one caller writes for others before the flusher takes over
	readBuffer  = 256 << 10
	readControl = 32 << 10
)

// handler is what a side does with frames. Both are called by the link's reader, in order.
type handler interface {
	// wants says whether the payload of h shall be in a pooled buffer, which handle then owns, and refuses
	// what must not be here.
	wants(h *wire.Header) (pooled bool, err error)
	// handle gets a whole message. payload is valid until handle returns; buf, which holds it, is not nil if
	// wants said so. An error ends the link.
	handle(h *wire.Header, payload []byte, buf *buffer) error
}

// link is one connection after its handshake.
type link struct {
	sock    *socket
	class   wire.Class
	version uint16 // of the protocol: the newest that both sides speak
	checked bool   // payloads have checksums: connections without TLS
	pace    Limiter
	handler handler
	queued  int // most bytes in the queue

	mu struct {
		sync.Mutex
		idle    sync.Cond // writing became false
		cur     *batch    // frames to be written next
		spare   *batch
		writing bool // somebody is in flush, or the flusher has been told to
		corked  bool // the reader will flush
		err     error
		credit  sync.Cond // budget grew
		budget  int64     // bytes of requests that may still be taken on
	}
	flushers chan struct{} // capacity 1: the flusher shall go on
	partial  *batch        // what the flusher has to finish
	stop     chan struct{} // closed once nobody writes any more

	received atomic.Uint64 // counts reads
	sent     atomic.Uint64 // counts progress of slow writes
	ctx      context.Context
	cancel   context.CancelFunc
}

func newLink(sock *socket, class wire.Class, theirs *wire.Hello, checked bool, queued int, budget int64) *link {
	l := &link{sock: sock, class: class, version: min(wire.VersionMax, theirs.VersionMax), checked: checked, queued: queued,
		flushers: make(chan struct{}, 1), stop: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.mu.idle.L, l.mu.credit.L = &l.mu, &l.mu
	l.mu.cur, l.mu.spare = &batch{version: l.version}, &batch{version: l.version}
	l.mu.budget = budget
	return l
}

var errQueueFull = &wire.Error{Code: wire.CodeBusy, Detail: "send queue is full"}

// lockToSend returns with mu held, or with an error and without it: the link has ended, or its queue is full.
func (l *link) lockToSend() error {
	l.mu.Lock()
	err := l.mu.err
	if err == nil && l.mu.cur.bytes >= l.queued {
		err = errQueueFull
	}
	if err != nil {
		l.mu.Unlock()
	}
	return err
}

// unlockAndSend sees to it that what has been added to mu.cur is written: by this goroutine unless somebody
// else is about to.
func (l *link) unlockAndSend() {
	if l.mu.writing || l.mu.corked && l.mu.cur.bytes < corkBytes {
		l.mu.Unlock()
		return
	}
	l.mu.writing = true
	l.mu.Unlock()
	if l.pace != nil {
		l.flushers <- struct{}{}
		return
	}
	l.flush(combineMax)
}

// flush writes batches until none is left, the kernel takes no more, or most were written. The caller has set
// writing. Whoever leaves work behind wakes the flusher, which then owns writing.
func (l *link) flush(most int) {
	for range most {
		b := l.next()
		if b == nil {
			return
		}
		b.cut()
		done, err := l.sock.write(b.pieces)
		if err != nil {
			l.fail(fmt.Errorf("write: %w", err))
		} else if !done {
			l.partial = b
			l.flushers <- struct{}{}
			return
		}
		l.written(b)
	}
	l.flushers <- struct{}{}
}

// next takes the batch to write; nil, and writing false, if there is none or the link has ended.
func (l *link) next() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.mu.cur
	if l.mu.err == nil && b.bytes > 0 {
		l.mu.cur, l.mu.spare = l.mu.spare, nil
		return b
	}
	l.mu.writing = false
	l.mu.idle.Broadcast()
	return nil
}

// written gives back what a batch has used.
func (l *link) written(b *batch) {
	for _, f := range b.after {
		f()
	}
	l.mu.Lock()
	if b.credit > 0 {
		l.mu.budget += b.credit
		l.mu.credit.Broadcast()
	}
	b.reset()
	l.mu.spare = b
	l.mu.Unlock()
}

// runFlusher is the goroutine that waits for the kernel and for the pace, so that callers don't.
func (l *link) runFlusher() {
	for {
		select {
		case <-l.flushers:
			l.flushWaiting()
		case <-l.stop:
			return
		}
	}
}

func (l *link) flushWaiting() {
	b := l.partial
	l.partial = nil
	for {
		if b == nil {
			if b = l.next(); b == nil {
				return
			}
			b.cut()
			if l.pace != nil {
				if err := l.pace.Wait(l.ctx, b.bytes); err != nil {
					l.fail(fmt.Errorf("pace: %w", err))
				}
			}
			done, err := l.sock.write(b.pieces)
			if done || err != nil {
				if err != nil {
					l.fail(fmt.Errorf("write: %w", err))
				}
				l.written(b)
				b = nil
				continue
			}
		}
		if err := l.sock.finish(func() { l.sent.Add(1) }); err != nil {
			l.fail(fmt.Errorf("write: %w", err))
		}
		l.written(b)
		b = nil
	}
}

// cork makes senders wait for the reader's next uncork, which writes for all of them.
func (l *link) cork() {
	l.mu.Lock()
	l.mu.corked = true
	l.mu.Unlock()
}

func (l *link) uncork() {
	l.mu.Lock()
	l.mu.corked = false
	if l.mu.cur.bytes == 0 {
		l.mu.Unlock()
		return
	}
	l.unlockAndSend()
}

// fail ends the link; the first reason counts. It does not wait.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.mu.err == nil {
		l.mu.err = err
		l.sock.close()
		l.cancel()
	}
	l.mu.credit.Broadcast()
	l.mu.Unlock()
}

// spend takes n bytes out of the budget, waiting for earlier requests to end. It fails with the link.
func (l *link) spend(n int64) error {
	l.mu.Lock()
	if l.mu.budget < n && l.mu.err == nil {
		l.mu.Unlock()
		l.uncork() // what it waits for may be waiting for it
		l.mu.Lock()
		for l.mu.budget < n && l.mu.err == nil {
			l.mu.credit.Wait()
		}
	}
	err := l.mu.err
	if err == nil {
		l.mu.budget -= n
	}
	l.mu.Unlock()
	return err
}

// run reads until the link ends, then waits until nobody writes any more and returns why it ended. From then
// on no data that was handed in is in use.
func (l *link) run() error {
	var wg sync.WaitGroup
	wg.Go(l.runFlusher)
	l.fail(l.readLoop())
	l.mu.Lock()
	l.mu.corked = false
	for l.mu.writing {
		l.mu.idle.Wait()
	}
	err, left := l.mu.err, l.mu.cur
	l.mu.cur = new(batch) // nobody adds any more: err is set
	l.mu.Unlock()
	close(l.stop)
	for _, f := range left.after {
		f()
	}
	wg.Wait()
	return err
}

var errMalformed = errors.New("malformed frame")

// readLoop reads frames and hands them to the handler, until an error. The link is corked while frames that
// have arrived whole are being handled.
func (l *link) readLoop() error {
	size := readBuffer
	if l.class == wire.ClassControl {
		size = readControl
	}
	r := frameReader{link: l, buf: make([]byte, size)}
	for {
		if err := r.frame(); err != nil {
			return err
		}
	}
}

// frameReader cuts the byte stream into frames. buf[start:end] has been read and not yet used.
type frameReader struct {
	link       *link
	buf        []byte
	start, end int
	corked     bool
	h          wire.Header // of the frame under way; here so that it needs no allocation
	more       []byte      // the parts so far of a continued message
	first      wire.Header // its first header
}

// fill reads until at least n bytes are there; n fits into buf.
func (r *frameReader) fill(n int) error {
	for r.end-r.start < n {
		if r.corked && !r.link.sock.ready() {
			r.corked = false
			r.link.uncork()
		}
		if r.start == r.end {
			r.start, r.end = 0, 0
		} else if len(r.buf)-r.start < n {
			r.end = copy(r.buf, r.buf[r.start:r.end])
			r.start = 0
		}
		m, err := r.link.sock.read(r.buf[r.end:])
		r.link.received.Add(1)
		r.end += m
		if err != nil && r.end-r.start < n {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// frame reads and handles one.
func (r *frameReader) frame() error {
	if err := r.fill(wire.HeaderSize); err != nil {
		return err
	}
	var err error
	h := &r.h
	if *h, err = wire.ParseHeader(r.buf[r.start:r.end]); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	if r.link.checked && h.Flags&wire.FlagChecked == 0 {
		return fmt.Errorf("%w: %s without payload checksum on a connection without encryption", errMalformed, h.Type)
	}
	pooled, err := r.link.handler.wants(h)
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	n := int(h.Length)
	var payload []byte
	var buf *buffer
	if pooled || wire.HeaderSize+n > len(r.buf) {
		r.start += wire.HeaderSize
		buf = getBuffer(n)
		payload = buf.b
		if err := r.readFull(payload); err != nil {
			buf.put()
			return err
		}
	} else {
		if err := r.fill(wire.HeaderSize + n); err != nil {
			return err
		}
		payload = r.buf[r.start+wire.HeaderSize : r.start+wire.HeaderSize+n]
		r.start += wire.HeaderSize + n
	}
	if err := wire.Verify(h, payload); err != nil {
		if buf != nil {
			buf.put()
		}
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	if !r.corked {
		r.corked = true
		r.link.cork()
	}
	if pooled {
		return r.link.handler.handle(h, payload, buf)
	}
	if buf != nil {
		defer buf.put()
	}
	if h.Flags&wire.FlagMore != 0 || r.more != nil {
		if payload, err = r.join(h, payload); payload == nil || err != nil {
			return err
		}
	}
	return r.link.handler.handle(h, payload, nil)
}

// readFull fills p from buf and then straight from the socket: one copy at most for what is large.
func (r *frameReader) readFull(p []byte) error {
	n := copy(p, r.buf[r.start:r.end])
	r.start += n
	for n < len(p) {
		if r.corked && !r.link.sock.ready() {
			r.corked = false
			r.link.uncork()
		}
		if len(p)-n < len(r.buf)/4 { // the tail together with what follows it
			if err := r.fill(len(p) - n); err != nil {
				return err
			}
			m := copy(p[n:], r.buf[r.start:r.end])
			r.start += m
			n += m
			continue
		}
		m, err := r.link.sock.read(p[n:])
		r.link.received.Add(1)
		n += m
		if err != nil && n < len(p) {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// join collects a message that goes on in the next frame; nil until it is complete.
func (r *frameReader) join(h *wire.Header, payload []byte) ([]byte, error) {
	if r.more == nil {
		r.first = *h
	} else if h.Type != r.first.Type || h.Request != r.first.Request || h.Store != r.first.Store ||
		h.Flags&wire.FlagReply != r.first.Flags&wire.FlagReply || h.Code != r.first.Code {
		return nil, fmt.Errorf("%w: %s %d within the parts of %s %d", errMalformed, h.Type, h.Request, r.first.Type, r.first.Request)
	}
	if len(r.more)+len(payload) > wire.MessageMax {
		return nil, fmt.Errorf("%w: %s of more than %d bytes", errMalformed, h.Type, wire.MessageMax)
	}
	r.more = append(r.more, payload...)
	if h.Flags&wire.FlagMore != 0 {
		return nil, nil
	}
	whole := r.more
	r.more = nil
	return whole, nil
}
