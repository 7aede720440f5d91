package iscsi

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"dozo/internal/nowait"

	"dozo/internal/access/scsi"
)

// The stages of output:
//
//	completions, reader ──(conn.mu)──> conn.out ──(writer role)──> socket
//
// Appending is done by many goroutines under conn.mu, which also gives out StatSNs, so the stream is in their
// order. The writer role belongs to one goroutine at a time: it takes all of conn.out and writes it without
// the lock. Who appends and finds neither a writer nor the reader about to flush takes the role. It never
// waits for the socket: what the socket doesn't take at once is left, with the role, to the connection's
// writer goroutine.

// copyMax is the largest piece of read data that is copied to the headers around it; for longer ones an entry
// of writev is cheaper than the copy. A guess, between one page and two.
const copyMax = 8 << 10

// batch is what one turn of the writer writes. Its memory is lent while there is something to write: the connections of a server use the
// same few pieces in turn, which stay in the processor's cache and which idle connections do not have.
type batch struct {
	lent  *outMemory
	mem   []byte   // headers, small data, padding and digests, in order
	run   int      // start in mem of the run that iov doesn't have yet
	iov   [][]byte // what to write, in order, up to run
	reads []scsi.ReadResult
	size  int // bytes to write
	cost  int // bytes of read memory that are free once it is written
}

func (b *batch) empty() bool { return b.size == 0 }

// outMemory is memory for a batch.
type outMemory struct{ b []byte }

var outMemories = sync.Pool{New: func() any { return &outMemory{make([]byte, 0, outMemoryMin)} }}

// answers is the memory of what is no read data: that is in the budget.
func (b *batch) answers() int { return max(0, len(b.mem)-b.cost) }

// own appends bytes by copying them.
func (b *batch) own(p []byte) {
	if b.lent == nil {
		b.lent = outMemories.Get().(*outMemory)
		b.mem = b.lent.b
	}
	b.mem = append(b.mem, p...)
	b.size += len(p)
}

// refer appends bytes that stay where they are until the batch is released.
func (b *batch) refer(p []byte) {
	if len(b.mem) > b.run {
		b.iov = append(b.iov, b.mem[b.run:len(b.mem):len(b.mem)])
		b.run = len(b.mem)
	}
	b.iov = append(b.iov, p)
	b.size += len(p)
}

// pieces gives everything to write.
func (b *batch) pieces() [][]byte {
	if len(b.mem) > b.run {
		b.iov = append(b.iov, b.mem[b.run:])
		b.run = len(b.mem)
	}
	return b.iov
}

// Memory of batches begins with room for the answer to a small read; what has grown beyond a burst of them is not kept.
const (
	outMemoryMin  = 8 << 10
	outMemoryKeep = 256 << 10
)

// release gives the read data back and empties the batch.
func (b *batch) release() {
	for i, r := range b.reads {
		r.Release()
		b.reads[i] = nil
	}
	clear(b.iov)
	if m := b.lent; m != nil && cap(b.mem) <= outMemoryKeep {
		m.b = b.mem[:0]
		outMemories.Put(m)
	}
	*b = batch{iov: b.iov[:0], reads: b.reads[:0]}
}

// appendPDULocked puts a PDU into the out queue, copying its data. The header's sequence numbers are the
// caller's. Digests begin with the full feature phase: until then c.params has none.
func (c *conn) appendPDULocked(h *header, data []byte) {
	h.setDataLen(len(data))
	if c.keep {
		if c.keep = false; c.recovery != nil {
			c.recovery.keepStatus(h, data)
		}
	}
	b := c.out
	b.own(h[:])
	c.headerDigestLocked(h)
	if len(data) == 0 {
		return
	}
	b.own(data)
	crc := uint32(0)
	if c.params.DataDigest {
		crc = digest(0, data)
	}
	c.endDataLocked(len(data), crc)
}

// headerDigestLocked follows a header where header digests were agreed upon.
func (c *conn) headerDigestLocked(h *header) {
	if c.params.HeaderDigest {
		c.out.mem = binary.LittleEndian.AppendUint32(c.out.mem, digest(0, h[:]))
		c.out.size += 4
	}
}

// endDataLocked pads a data segment and adds its digest, continuing the data's sum.
func (c *conn) endDataLocked(n int, crc uint32) {
	b := c.out
	b.own(zeroPad[:pad(n)])
	if c.params.DataDigest {
		b.mem = binary.LittleEndian.AppendUint32(b.mem, digest(crc, zeroPad[:pad(n)]))
		b.size += 4
	}
}

// numberLocked sets StatSN, ExpCmdSN and MaxCmdSN; a PDU that uses its StatSN up carries news of this moment.
func (c *conn) numberLocked(h *header, uses bool) {
	h.put32(24, c.statSN)
	c.commandWindowLocked(h)
	if uses {
		c.keep = c.recovery != nil
		c.statSN++
		if c.sess != nil && c.sess.target != nil {
			c.stamps.Told(c.sess.target.Stamp())
		} else {
			c.stamps.Told(scsi.Stamp{})
		}
	}
}

func (c *conn) commandWindowLocked(h *header) {
	if c.sess != nil {
		h.put32(28, c.sess.expCmdSN.Load())
		h.put32(32, c.sess.maxCmdSN.Load())
	}
}

// gatherMax is how much output waits for more of it. Read data that have just come from the store leave while the processor has
// them in its cache.
const gatherMax = 64 << 10

// flushSoonLocked is flushLocked for who has finished one command of several: more of them are likely to be finished by the same turn
// of the owner's loop, and their responses go in one write, by the writer goroutine. A last one goes at once. It may
// release and retake the lock.
func (c *conn) flushSoonLocked() {
	switch {
	case c.running == 0 || c.out.size >= gatherMax || c.raw == nil:
		c.flushLocked()
	case !c.writing && !c.gathering && !c.out.empty() && !c.dead:
		c.writing = true
		c.wake <- struct{}{} // the role goes with it; the channel has room for one
	}
}

// flushLocked writes the out queue if nobody else does. It may release and retake the lock.
func (c *conn) flushLocked() {
	if c.writing || c.gathering || c.out.empty() || c.dead {
		return
	}
	c.writing = true
	c.writeLocked(false)
}

// writeLocked holds the writer role. With wait it writes all; without, it hands the role over when the socket
// takes no more.
func (c *conn) writeLocked(wait bool) {
	for !c.out.empty() && !c.dead {
		b := c.out
		c.out = c.spare
		c.spare, c.outgoing = nil, b.answers()
		c.mu.Unlock()
		size := b.size
		rest, err := c.tryWrite(b.pieces())
		if err == nil && len(rest) > 0 {
			if !wait {
				c.leftover, c.leftoverBatch = rest, b
				c.mu.Lock()
				c.wake <- struct{}{} // the role goes with it; the channel has room for one
				return
			}
			err = writeAll(c.nc, rest)
		}
		c.finishBatch(b, size, err)
	}
	c.writing = false
}

// finishBatch gives a written batch back; it returns with the lock held.
func (c *conn) finishBatch(b *batch, size int, err error) {
	cost := b.cost
	b.release()
	c.mu.Lock()
	c.spare, c.outgoing = b, 0
	c.countOutLocked()
	c.written += uint64(size)
	c.readMem -= cost
	c.giveLocked(cost)
	if err != nil {
		c.killLocked(err)
	}
	c.room.Broadcast()
	if cost > 0 {
		c.admitLocked()
	}
}

func writeAll(nc net.Conn, pieces [][]byte) error {
	bufs := net.Buffers(pieces)
	_, err := bufs.WriteTo(nc)
	return err
}

// writer is the goroutine that waits for the socket, and for more to write; it ends when the channel is closed.
func (c *conn) writer() {
	for range c.wake {
		if b := c.leftoverBatch; b != nil {
			err := writeAll(c.nc, c.leftover)
			c.leftover, c.leftoverBatch = nil, nil
			c.finishBatch(b, b.size, err)
		} else {
			c.mu.Lock()
		}
		c.writeLocked(true)
		c.room.Broadcast() // who waits for the role
		c.mu.Unlock()
	}
}

// rawWriter writes to a socket without waiting.
type rawWriter struct {
	raw    syscall.RawConn
	pieces [][]byte
	n      int
	err    error
	try    func(fd uintptr) bool
}

func newRawWriter(nc net.Conn) *rawWriter {
	raw := rawOf(nc)
	if raw == nil {
		return nil
	}
	w := &rawWriter{raw: raw}
	w.try = func(fd uintptr) bool {
		if len(w.pieces) == 1 {
			w.n, w.err = nowait.Write(int(fd), w.pieces[0])
		} else {
			w.n, w.err = nowait.Writev(int(fd), w.pieces[:min(len(w.pieces), iovMax)])
		}
		return true // never wait here
	}
	return w
}

// iovMax is how many pieces one writev takes (Linux UIO_MAXIOV).
const iovMax = 1024

// tryWrite writes what the socket takes at once and gives back what is left.
func (c *conn) tryWrite(pieces [][]byte) ([][]byte, error) {
	if c.raw == nil {
		return pieces, nil
	}
	for len(pieces) > 0 {
		c.raw.pieces, c.raw.n, c.raw.err = pieces, 0, nil
		err := c.raw.raw.Write(c.raw.try)
		c.raw.pieces = nil
		switch {
		case err != nil:
			return nil, err
		case c.raw.err == unix.EINTR:
			continue
		case c.raw.err == unix.EAGAIN:
			return pieces, nil
		case c.raw.err != nil:
			return nil, c.raw.err
		}
		n := c.raw.n
		for len(pieces) > 0 && n >= len(pieces[0]) {
			n -= len(pieces[0])
			pieces = pieces[1:]
		}
		if n > 0 {
			pieces[0] = pieces[0][n:]
		}
	}
	return nil, nil
}
