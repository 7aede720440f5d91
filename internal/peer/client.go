package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// call is one request that is waited for. Exactly one of the answers is called, once.
type call struct {
	header  wire.Header
	msg     wire.Message
	append  func(wire.AppendReply, error)
	read    func(wire.ReadReply, error)
	forward func(wire.ForwardReply, error)
	reply   wire.Message     // with answer: filled in before it
	answer  func(error)      // every other request
	held    wire.AppendReply // room to decode into
	fwd     wire.ForwardReply
}

var calls = sync.Pool{New: func() any { return new(call) }}

// finish answers with an error and gives the call back.
func (c *call) finish(err error) {
	a, r, f, s := c.append, c.read, c.forward, c.answer
	*c = call{}
	calls.Put(c)
	switch {
	case a != nil:
		a(wire.AppendReply{}, err)
	case r != nil:
		r(wire.ReadReply{}, err)
	case f != nil:
		f(wire.ForwardReply{}, err)
	case s != nil:
		s(err)
	}
}

// client is the asking side of a link. Its table of calls is guarded by link.mu.
type client struct {
	*link
	peer  *Peer
	hello *wire.Hello

	slots []*call  // by the low bits of the request number
	free  []uint32 // indexes of empty slots
	turn  uint64   // the high bits: makes numbers unique

	lastReceived uint64 // of link.received at the last look, by the pinger
	lastSent     uint64
	lastSign     time.Time
	nextPing     time.Time
}

// slotBits leaves room for a million calls under way on a connection.
const slotBits = 20

func (c *client) wants(h *wire.Header) (bool, error) {
	k, ok := wire.KindOf(h.Type)
	if !ok || h.Flags&wire.FlagReply == 0 || k.Reply == nil {
		return false, wire.Errorf(wire.CodeBadRequest, "%s is not an answer", h.Type)
	}
	pooled := h.Code == 0 && carriesData(h.Type)
	if pooled && h.Flags&wire.FlagMore != 0 {
		return false, wire.Errorf(wire.CodeBadRequest, "data of %s are continued", h.Type)
	}
	return pooled, nil
}

// carriesData says whose answers hold data that the caller gets without a copy.
func carriesData(t wire.Type) bool {
	switch t {
	case wire.TypeRead, wire.TypeReadRaw, wire.TypeReadIndex, wire.TypeForward:
		return true
	}
	return false
}

// takeCall finds the call that h answers and removes it; nil for an answer that nobody waits for.
func (c *client) takeCall(h *wire.Header) *call {
	i := h.Request & (1<<slotBits - 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= uint64(len(c.slots)) || c.slots[i] == nil || c.slots[i].header.Request != h.Request || c.slots[i].header.Type != h.Type {
		return nil
	}
	found := c.slots[i]
	c.slots[i] = nil
	c.free = append(c.free, uint32(i))
	return found
}

func (c *client) handle(h *wire.Header, payload []byte, buf *buffer) error {
	if h.Type == wire.TypePing {
		return nil // link.received has been counted
	}
	found := c.takeCall(h)
	if found == nil {
		if buf != nil {
			buf.put()
		}
		return fmt.Errorf("%w: answer to %s %d, which was not asked", errMalformed, h.Type, h.Request)
	}
	if h.Code != 0 {
		e, err := wire.DecodeError(payload)
		if err != nil {
			found.finish(unreached(c.peer.addr().Node, err))
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		found.finish(e)
		return nil
	}
	return c.succeed(found, payload, buf)
}

// succeed decodes the answer and passes it on. The call is given back first: its callback may make the next.
func (c *client) succeed(found *call, payload []byte, buf *buffer) error {
	var m wire.Message = found.reply
	var read *wire.ReadReply
	switch {
	case found.append != nil:
		m = &found.held
	case found.forward != nil:
		m = &found.fwd
	case buf != nil && found.read != nil:
		reply := wire.ReadReply{Data: payload, Release: buf.release}
		done := found.read
		*found = call{}
		calls.Put(found)
		done(reply, nil)
		return nil
	}
	if err := wire.DecodeAt(m, payload, c.version); err != nil {
		if buf != nil {
			buf.put()
		}
		found.finish(unreached(c.peer.addr().Node, err))
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	switch {
	case found.append != nil:
		done, reply := found.append, found.held
		*found = call{}
		calls.Put(found)
		done(reply, nil)
	case found.forward != nil:
		done, reply := found.forward, found.fwd
		*found = call{}
		calls.Put(found)
		if len(reply.Data) == 0 {
			buf.put()
			reply.Data = nil
		} else {
			reply.Release = buf.release
		}
		done(reply, nil)
	default:
		if read, _ = m.(*wire.ReadReply); read != nil {
			read.Release = buf.release
		}
		done := found.answer
		*found = call{}
		calls.Put(found)
		done(nil)
	}
	return nil
}

// send queues a call. If it can't, the error says that nothing was sent, and the call is the caller's again.
func (c *client) send(x *call) error {
	if wire.Since(x.msg) > c.version {
		return wire.Errorf(wire.CodeVersion, "node %s does not know this %s yet: it speaks version %d of the protocol", c.peer.addr().Node, x.msg.Type(), c.version)
	}
	if err := c.lockToSend(); err != nil {
		return err
	}
	var i uint32
	if n := len(c.free); n > 0 {
		i = c.free[n-1]
		c.free = c.free[:n-1]
	} else if len(c.slots) < 1<<slotBits {
		i = uint32(len(c.slots))
		c.slots = append(c.slots, nil)
	} else {
		c.mu.Unlock()
		return errQueueFull
	}
	c.turn++
	x.header.Request = c.turn<<slotBits | uint64(i)
	c.slots[i] = x
	c.mu.cur.add(x.header, x.msg, c.checked, nil)
	c.unlockAndSend()
	return nil
}

// post queues what has no answer.
func (c *client) post(h wire.Header, m wire.Message) {
	if c.lockToSend() != nil {
		return
	}
	c.mu.cur.add(h, m, c.checked, nil)
	c.unlockAndSend()
}

// serve runs the link to its end and fails what is still waited for.
func (c *client) serve() error {
	err := c.run()
	c.mu.Lock()
	left := c.slots
	c.slots, c.free = nil, nil
	c.mu.Unlock()
	for _, x := range left {
		if x != nil {
			x.finish(unreached(c.peer.addr().Node, err))
		}
	}
	return err
}

// errSilent is why a connection ends on which nothing was heard for too long.
var errSilent = errors.New("no sign of life")

// look is called by the pinger: it sends a ping if nothing came for a while and ends a link without signs of
// life. For paced and long transfers, bytes that the kernel of the other side has taken count too.
func (c *client) look(now time.Time, ping, dead time.Duration) {
	received, sent := c.received.Load(), c.sent.Load()
	if received != c.lastReceived || c.class == wire.ClassBulk && sent != c.lastSent || c.lastSign.IsZero() {
		c.lastReceived, c.lastSent, c.lastSign = received, sent, now
	}
	if now.Sub(c.lastSign) >= dead {
		c.fail(fmt.Errorf("%w for %v", errSilent, now.Sub(c.lastSign).Round(time.Millisecond)))
		return
	}
	if now.Before(c.nextPing) {
		return
	}
	c.nextPing = now.Add(ping)
	c.post(wire.Header{Type: wire.TypePing}, &wire.Ping{})
}

// pardon takes a time in which this process did not get to look out of the silence: what has come meanwhile has not
// been read either.
func (c *client) pardon(d time.Duration) {
	if !c.lastSign.IsZero() {
		c.lastSign = c.lastSign.Add(d)
	}
}

func unreached(node ident.NodeName, err error) *wire.Error {
	return wire.Errorf(wire.CodeUnreached, "%s: %v", node, err)
}

// ask makes a call and waits for its answer. A context that ends stops the waiting only.
func (p *Peer) ask(ctx context.Context, class wire.Class, key uint64, h wire.Header, m, reply wire.Message) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w (%w)", unreached(p.addr().Node, fmt.Errorf("%s not sent", m.Type())), err)
	}
	answered := make(chan error, 1)
	x := calls.Get().(*call)
	h.Type = m.Type()
	x.header, x.msg, x.reply, x.answer = h, m, reply, func(err error) { answered <- err }
	p.submit(class, key, x)
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", unreached(p.addr().Node, fmt.Errorf("gave up waiting for %s", m.Type())), ctx.Err())
	}
}
