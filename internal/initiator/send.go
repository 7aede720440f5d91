package initiator

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// outPDU is a PDU in a connection's queue. Its data are the caller's buffer.
type outPDU struct {
	hdr  [bhsLen + digestLen]byte
	tail [3 + digestLen]byte // padding and data digest
	ahs  []byte              // with padding and, if used, header digest
	data []byte
	cmd  *Command // whose refs count this entry; may be nil
}

func (o *outPDU) bhs() *BHS { return (*BHS)(o.hdr[:bhsLen]) }

var (
	errEOF       = io.EOF
	errHookReset = errors.New("connection reset by a hook")
)

// queueLimit bounds what a connection's queue may hold for PDUs that the target provokes: a target that sends
// pings or R2Ts without reading the answers loses its connection instead of our memory.
const queueLimit = 1 << 16

// enqueueLocked returns a new entry at the end of the queue. The pointer is valid until the next call.
func (cn *conn) enqueueLocked(c *Command) *outPDU {
	if len(cn.out) < cap(cn.out) {
		cn.out = cn.out[:len(cn.out)+1]
	} else {
		cn.out = append(cn.out, outPDU{})
	}
	o := &cn.out[len(cn.out)-1]
	*o.bhs() = BHS{}
	o.ahs, o.data, o.cmd = nil, nil, c
	if c != nil {
		c.task.refs++
	}
	return o
}

// flush writes the queue if nobody else does, without ever waiting for the target: what the socket does not take
// is left to the writer goroutine. (A reader that waited here could wait for ever, for a target that waits for us
// to read.)
func (cn *conn) flush() {
	s := cn.s
	s.mu.Lock()
	for !cn.writing && len(cn.out) > 0 && cn.err == nil {
		cn.takeBatchLocked()
		if cn.s.cfg.Hooks.Out != nil {
			s.mu.Unlock()
			cn.wakeWriter()
			return
		}
		s.mu.Unlock()
		cn.prepare()
		done, err := cn.sendBatch(false)
		if err == nil && !done {
			cn.wakeWriter()
			return
		}
		s.mu.Lock()
		finished := cn.batchSentLocked(err)
		if finished.head != nil {
			s.mu.Unlock()
			s.deliver(finished)
			s.mu.Lock()
		}
	}
	s.mu.Unlock()
}

// takeBatchLocked makes the queue the batch; from then on the caller is the connection's writer.
func (cn *conn) takeBatchLocked() {
	cn.writing = true
	cn.batch, cn.out = cn.out, cn.batch[:0]
	cn.batchPos = 0
}

// batchSentLocked ends a batch: buffers go back to their owners. It returns commands that were only waiting for
// that.
func (cn *conn) batchSentLocked(err error) (finished list) {
	for i := range cn.batch {
		o := &cn.batch[i]
		o.data, o.ahs = nil, nil
		if c := o.cmd; c != nil {
			o.cmd = nil
			cn.s.unrefLocked(c, &finished)
		}
	}
	cn.batch = cn.batch[:0]
	cn.writing = false
	if err != nil {
		cn.failLocked(err)
	}
	if cn.err != nil {
		cn.idle.Broadcast()
	}
	return finished
}

// prepare computes digests and padding of the batch. Without the lock: the entries belong to the writer.
func (cn *conn) prepare() {
	cn.vec.n = 0
	if !cn.frame.headerDigest && !cn.frame.dataDigest {
		return
	}
	for i := range cn.batch {
		o := &cn.batch[i]
		if cn.frame.headerDigest {
			sum := crc32.Checksum(o.hdr[:bhsLen], castagnoli)
			if o.ahs == nil {
				binary.LittleEndian.PutUint32(o.hdr[bhsLen:], sum)
			} else {
				sum = crc32.Update(sum, castagnoli, o.ahs)
				o.ahs = binary.LittleEndian.AppendUint32(o.ahs[:len(o.ahs):len(o.ahs)], sum)
			}
		}
		if cn.frame.dataDigest && len(o.data) > 0 {
			pad := pad4(len(o.data)) - len(o.data)
			o.tail = [7]byte{}
			sum := crc32.Checksum(o.data, castagnoli)
			sum = crc32.Update(sum, castagnoli, o.tail[:pad])
			binary.LittleEndian.PutUint32(o.tail[pad:], sum)
		}
	}
}

// sendBatch sends the rest of the batch; done is false if the socket is full (only without wait).
func (cn *conn) sendBatch(wait bool) (done bool, err error) {
	for {
		if cn.vec.n == 0 {
			for cn.batchPos < len(cn.batch) && cn.vec.n+4 <= iovMax {
				cn.gather(&cn.batch[cn.batchPos])
				cn.batchPos++
			}
			if cn.vec.n == 0 {
				return true, nil
			}
		}
		n, err := cn.t.write(&cn.vec, wait)
		if err != nil {
			return false, err
		}
		if n == 0 {
			return false, nil
		}
		cn.advance(n)
	}
}

// gather adds o's pieces to the list.
func (cn *conn) gather(o *outPDU) {
	switch {
	case o.ahs != nil:
		cn.vec.add(o.hdr[:bhsLen])
		cn.vec.add(o.ahs)
	case cn.frame.headerDigest:
		cn.vec.add(o.hdr[:])
	default:
		cn.vec.add(o.hdr[:bhsLen])
	}
	if len(o.data) == 0 {
		return
	}
	cn.vec.add(o.data)
	pad := pad4(len(o.data)) - len(o.data)
	if cn.frame.dataDigest {
		cn.vec.add(o.tail[:pad+digestLen])
	} else if pad > 0 {
		o.tail = [7]byte{}
		cn.vec.add(o.tail[:pad])
	}
}

// advance drops n sent bytes from the front of the list.
func (cn *conn) advance(n int) {
	i := 0
	for n > 0 {
		v := &cn.vec.vec[i]
		if l := int(v.Len); n >= l {
			n -= l
			i++
			continue
		}
		b := bytesOf(v)
		v.Base = &b[n]
		v.SetLen(len(b) - n)
		n = 0
	}
	if i == cn.vec.n {
		cn.vec.n = 0
		return
	}
	if i > 0 {
		cn.vec.n = copy(cn.vec.vec[:], cn.vec.vec[i:cn.vec.n])
	}
}

func (cn *conn) wakeWriter() {
	select {
	case cn.wake <- struct{}{}:
	default:
	}
}

// writeLoop is the writer goroutine: it finishes batches that the socket did not take at once.
func (cn *conn) writeLoop() {
	s := cn.s
	for range cn.wake {
		for {
			var err error
			if s.cfg.Hooks.Out != nil {
				err = cn.sendHooked()
			} else {
				if cn.batchPos == 0 && cn.vec.n == 0 {
					cn.prepare()
				}
				_, err = cn.sendBatch(true)
			}
			s.mu.Lock()
			finished := cn.batchSentLocked(err)
			more := len(cn.out) > 0 && cn.err == nil
			if more {
				cn.takeBatchLocked()
				s.mu.Unlock()
				if s.cfg.Hooks.Out == nil {
					cn.prepare()
				}
			} else {
				s.mu.Unlock()
			}
			s.deliver(finished)
			if !more {
				break
			}
		}
	}
}

// sendHooked sends the batch PDU by PDU through the hook.
func (cn *conn) sendHooked() error {
	for i := range cn.batch {
		o := &cn.batch[i]
		p := PDU{BHS: *o.bhs(), AHS: o.ahs, Data: o.data}
		raw, act := encodeHooked(cn.s.cfg.Hooks, cn.cid, cn.frame, &p)
		if act.Delay > 0 {
			t := time.NewTimer(act.Delay)
			select {
			case <-t.C:
			case <-cn.dead:
				t.Stop()
				return ErrConnectionLost
			}
		}
		if act.Reset {
			return errHookReset
		}
		for len(raw) > 0 {
			cn.vec.n = 0
			cn.vec.add(raw)
			n, err := cn.t.write(&cn.vec, true)
			if err != nil {
				return err
			}
			raw = raw[n:]
		}
		if act.CloseWrite {
			cn.t.closeWrite()
		}
	}
	cn.vec.n = 0
	return nil
}

// encodeHooked gives p to the Out hook and returns what is to be sent.
func encodeHooked(h Hooks, cid uint16, f framing, p *PDU) ([]byte, Action) {
	var act Action
	if h.Out != nil {
		act = h.Out(cid, p)
	}
	if act.Drop {
		return nil, act
	}
	raw := act.Raw
	if raw == nil {
		raw = f.append(nil, p)
		if act.BreakHeaderDigest && f.headerDigest {
			raw[bhsLen+len(p.AHS)] ^= 0xff
		}
		if act.BreakDataDigest && f.dataDigest && len(p.Data) > 0 {
			raw[len(raw)-1] ^= 0xff
		}
	}
	switch {
	case act.Truncate < 0:
		raw = nil
	case act.Truncate > 0 && act.Truncate < len(raw):
		raw = raw[:act.Truncate]
	}
	return raw, act
}
