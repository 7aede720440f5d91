package peer

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"dozo/internal/nowait"
)

const (
	tlsRecord     = 16 << 10  // most plaintext of a TLS record
	tlsFlush      = 256 << 10 // ciphertext gathered before a system call
	tlsReadBuffer = 64 << 10  // ciphertext read by a system call, at first
	tlsReadMax    = 256 << 10 // and once as much was there
	slowPart      = 64 << 10  // of a write that the kernel does not take at once
	tlsHeader     = 5         // of a record; RFC 8446 5.1: its last two bytes are the length of what follows
	iovecsMax     = 1024      // of one writev
)

// socket is the connection below a link. One goroutine reads and one writes at a time.
//
// A write has two parts, so that a caller never waits for a peer: write tries, and what the kernel does not
// take at once stays pending until finish, which blocks, has been called from a goroutine that may wait.
type socket struct {
	conn net.Conn // the real one
	raw  syscall.RawConn
	tls  *tls.Conn // nil on plain connections
	g    *gather

	pending [][]byte // plaintext still to be written, head first; the array is owned by the socket
	head    int
	stage   []byte // less than a TLS record of pending, copied together

	// For tryRaw: the arguments and results of attempt, which is bound once.
	attempt func(fd uintptr) bool
	try     [][]byte
	one     [1][]byte
	tried   int
	tryErr  error
}

func newSocket(conn net.Conn) *socket {
	s := &socket{conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
	s.attempt = func(fd uintptr) bool {
		for {
			if len(s.try) == 1 {
				s.tried, s.tryErr = nowait.Write(int(fd), s.try[0])
			} else {
				s.tried, s.tryErr = nowait.Writev(int(fd), s.try)
			}
			if s.tryErr != unix.EINTR {
				return true
			}
		}
	}
	return s
}

// encrypt puts the established TLS connection c, which runs over g, on top of the socket.
func (s *socket) encrypt(c *tls.Conn, g *gather) {
	s.tls, s.g = c, g
	s.stage = make([]byte, 0, tlsRecord)
	g.start()
}

func (s *socket) read(p []byte) (int, error) {
	if s.tls != nil {
		return s.tls.Read(p)
	}
	return s.conn.Read(p)
}

// ready reports that read won't wait. False says nothing. For the reader only.
func (s *socket) ready() bool { return s.g != nil && s.g.ready() }

// close ends reads and writes that are under way. There is no TLS close message: frames have lengths, so a
// cut is seen without it.
func (s *socket) close() { _ = s.conn.Close() }

// write takes pieces, whose array it does not keep but whose bytes it uses until done or an error. Not done
// means that finish must be called before the next write.
func (s *socket) write(pieces [][]byte) (done bool, err error) {
	s.pending, s.head = append(s.pending[:0], pieces...), 0
	return s.push(false)
}

// finish writes what is pending and waits for it. progress is called after every part that the kernel took.
func (s *socket) finish(progress func()) error {
	for {
		if done, err := s.push(true); done || err != nil {
			return err
		}
		progress()
	}
}

// push writes a part of pending, or all if the kernel takes it. With block it waits for at least a part.
func (s *socket) push(block bool) (done bool, err error) {
	if s.tls != nil {
		return s.pushTLS(block)
	}
	for s.head < len(s.pending) {
		rest := s.pending[s.head:]
		var n int
		switch {
		case block:
			// Parts of bounded size, so that progress over a slow path shows.
			part := net.Buffers(upTo(rest, slowPart))
			var n64 int64
			n64, err = part.WriteTo(s.conn)
			n = int(n64)
		case s.raw != nil:
			n, err = s.tryRaw(rest)
		default:
			return false, nil
		}
		s.consume(n)
		if err != nil {
			s.drop()
			return false, err
		}
		if s.head < len(s.pending) && (block || n == 0) {
			return false, nil
		}
	}
	s.drop()
	return true, nil
}

// upTo copies the slice headers of pieces that together have at most n bytes, at least one.
func upTo(pieces [][]byte, n int) [][]byte {
	var part [][]byte
	for _, p := range pieces {
		if n <= 0 {
			break
		}
		part = append(part, p[:min(len(p), n)])
		n -= len(p)
	}
	return part
}

// tryRaw writes what the kernel takes now: 0 bytes if nothing.
func (s *socket) tryRaw(pieces [][]byte) (int, error) {
	s.try, s.tried, s.tryErr = pieces[:min(len(pieces), iovecsMax)], 0, nil
	err := s.raw.Write(s.attempt)
	s.try = nil
	switch {
	case err != nil:
		return 0, err
	case s.tryErr == unix.EAGAIN:
		return 0, nil
	case s.tryErr != nil:
		return 0, s.tryErr
	}
	return s.tried, nil
}

// consume drops the first n bytes of pending.
func (s *socket) consume(n int) {
	for s.head < len(s.pending) && n >= len(s.pending[s.head]) {
		n -= len(s.pending[s.head])
		s.pending[s.head] = nil
		s.head++
	}
	if n > 0 {
		s.pending[s.head] = s.pending[s.head][n:]
	}
}

func (s *socket) drop() { clear(s.pending); s.pending, s.head = s.pending[:0], 0 }

func (s *socket) pushTLS(block bool) (done bool, err error) {
	limit := tlsFlush
	if block {
		limit = slowPart
	}
	for {
		// All that is sealed goes first, so that the memory for it stays bounded.
		if s.head < len(s.pending) && s.g.size() == 0 {
			if err := s.seal(limit); err != nil {
				s.drop()
				return false, err
			}
			continue
		}
		out := s.g.unsent()
		if len(out) == 0 {
			s.drop()
			return true, nil
		}
		var n int
		switch {
		case block:
			n, err = s.conn.Write(out[:min(len(out), slowPart)])
		case s.raw != nil:
			s.one[0] = out
			n, err = s.tryRaw(s.one[:])
			s.one[0] = nil
		}
		left := s.g.sent(n)
		if err != nil {
			s.drop()
			return false, err
		}
		if n == 0 || block && (left > 0 || s.head < len(s.pending)) {
			return false, nil
		}
	}
}

// seal encrypts the next part of pending: whole records straight from where they are, the rest by way of
// stage, so that small pieces share a record. It stops at limit bytes that wait to be sent.
func (s *socket) seal(limit int) error {
	for s.head < len(s.pending) && s.g.size() < limit {
		p := s.pending[s.head]
		if len(s.stage) == 0 && len(p) >= tlsRecord {
			n := min(len(p), limit) / tlsRecord * tlsRecord
			if _, err := s.tls.Write(p[:n]); err != nil {
				return err
			}
			s.consume(n)
			continue
		}
		n := min(len(p), tlsRecord-len(s.stage))
		s.stage = append(s.stage, p[:n]...)
		s.consume(n)
		if len(s.stage) == tlsRecord {
			if err := s.sealStage(); err != nil {
				return err
			}
		}
	}
	if s.head == len(s.pending) && len(s.stage) > 0 {
		return s.sealStage()
	}
	return nil
}

func (s *socket) sealStage() error {
	_, err := s.tls.Write(s.stage)
	s.stage = s.stage[:0]
	return err
}

// gather stands between crypto/tls, which makes a system call a record, and the connection: once started it
// keeps what is written until the socket takes it, and reads ahead.
type gather struct {
	net.Conn

	mu struct {
		sync.Mutex // crypto/tls may also write from its read side
		on         bool
		out        []byte
		at         int // of out: sent so far
	}

	in      []byte // read ahead; by the one reader
	inStart int
	inEnd   int
	left    int // of the record that Read is giving out
}

func newGather(c net.Conn) *gather { return &gather{Conn: c} }

func (g *gather) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.on = true
}

func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	if !g.mu.on {
		g.mu.Unlock()
		return g.Conn.Write(b)
	}
	defer g.mu.Unlock()
	g.mu.out = append(g.mu.out, b...)
	return len(b), nil
}

// Read gives no more than the rest of one TLS record, so that what lies behind it stays here and ready can
// see it.
func (g *gather) Read(p []byte) (int, error) {
	for g.left == 0 && g.inEnd-g.inStart < tlsHeader || g.inStart == g.inEnd {
		if g.in == nil {
			g.in = make([]byte, tlsReadBuffer)
		}
		to := g.in
		if g.inEnd == len(g.in) && len(g.in) < tlsReadMax {
			to = make([]byte, tlsReadMax) // more was there than a read could take
		}
		if g.inStart > 0 || len(to) > len(g.in) {
			g.inEnd = copy(to, g.in[g.inStart:g.inEnd])
			g.in, g.inStart = to, 0
		}
		n, err := g.Conn.Read(g.in[g.inEnd:])
		g.inEnd += n
		if n == 0 {
			return 0, err
		}
	}
	if g.left == 0 {
		g.left = g.record()
	}
	n := copy(p, g.in[g.inStart:min(g.inEnd, g.inStart+g.left)])
	g.inStart += n
	g.left -= n
	return n, nil
}

// record is the size of the record whose header is next.
func (g *gather) record() int {
	return tlsHeader + int(g.in[g.inStart+3])<<8 + int(g.in[g.inStart+4])
}

// ready reports that a whole record is here, so that a read won't wait.
func (g *gather) ready() bool {
	n := g.inEnd - g.inStart
	return g.left == 0 && n >= tlsHeader && n >= g.record()
}

// size is how much there is to send.
func (g *gather) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.mu.out) - g.mu.at
}

// unsent is what there is to send. It stays as it is until sent is called, whatever is written meanwhile.
func (g *gather) unsent() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.out[g.mu.at:]
}

// sent drops the first n bytes of unsent, and says how many are left. Once there are none the memory is used from its beginning
// again, where it is still in the cache.
func (g *gather) sent(n int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.at += n; g.mu.at == len(g.mu.out) {
		g.mu.out, g.mu.at = g.mu.out[:0], 0
	}
	return len(g.mu.out) - g.mu.at
}
