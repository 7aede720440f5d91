package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"dozo/internal/access/scsi"
)

// reject answers a PDU that can't be processed with its header (RFC 7143 11.17).
func (c *conn) reject(bad *header, reason byte) { c.rejectAt(bad, reason, 0) }

// rejectAt is reject of a SNACK; next is the number that the task's next Data-In or R2T would have.
func (c *conn) rejectAt(bad *header, reason byte, next uint32) {
	c.complain("PDU rejected", "opcode", bad.opcode(), "reason", reason, "itt", bad.itt())
	var h header
	h[0], h[1], h[2] = opReject, finalBit, reason
	h.put32(16, noTag)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.numberLocked(&h, true)
	h.put32(36, next)
	c.appendPDULocked(&h, bad[:])
}

// nopOut answers a ping, or takes the answer to one of ours.
func (c *conn) nopOut(h *header) error {
	data, err := c.readData(h)
	if err != nil {
		return err
	}
	ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	if h.ttt() != noTag {
		if c.stamps.Echoed(h.ttt()) {
			c.echoes = true
		}
	}
	if h.itt() == noTag {
		return nil
	}
	var r header
	r[0], r[1] = opNopIn, finalBit
	r.setLUN(h.lun())
	r.put32(16, h.itt())
	r.put32(20, noTag)
	c.numberLocked(&r, true)
	c.appendPDULocked(&r, data[:min(len(data), int(c.params.MaxSendDataSegment))])
	return nil
}

// ping sends a NOP-In that asks for an answer; it ends the connection, and says so, if an initiator that has answered before,
// or that doesn't take what waits for it, has sent nothing at all for too long.
func (c *conn) ping(now time.Time, timeout time.Duration) (dropped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fullFeature || c.dead || c.sess.discovery {
		return false
	}
	switch {
	case c.pingWaiting.IsZero():
		c.pingWaiting = now
	case (c.echoes || !c.out.empty()) && now.Sub(c.pingWaiting) > timeout:
		c.killLocked(errPing)
		return true
	case c.out.size > outMax:
		return false // a client that doesn't read needs no more to read
	}
	// Whoever has never answered one may be firmware that can't, and that reads nothing either while its machine waits in a
	// boot menu: what is sent meanwhile must not fill its window, after which TCP gives it up. Its host still has to
	// acknowledge keepalives.
	if c.echoes || c.unechoed < unechoedMax {
		c.unechoed++
		c.pingLocked()
	}
	c.watchDataLocked()
	return false
}

// unechoedMax is how many pings an initiator gets that has never answered one, before something comes from it. A guess: few, and
// enough for one that is slow to begin with.
const unechoedMax = 64

// aliveLocked notes that something has come: a ping that is not answered says nothing any more. RFC 7143 11.19 has every ping
// answered, but there are initiators in firmware that answer none (iPXE, UEFI) and go on using their session.
func (c *conn) aliveLocked() { c.pingWaiting, c.unechoed = time.Time{}, 0 }

// pingLocked sends a NOP-In that asks for an answer.
func (c *conn) pingLocked() {
	if c.pingTTT++; c.pingTTT == 0 || c.pingTTT == noTag {
		c.pingTTT = 1
	}
	var h header
	h[0], h[1] = opNopIn, finalBit
	h.put32(16, noTag)
	h.put32(20, c.pingTTT)
	c.stamps.Pinged(c.pingTTT, c.sess.target.Stamp())
	c.numberLocked(&h, false)
	c.appendPDULocked(&h, nil)
	c.flushLocked()
}

// proveLocked takes what an ExpStatSN of the initiator proves.
func (c *conn) proveLocked(expStatSN uint32) scsi.Stamp {
	c.aliveLocked()
	at := c.stamps.Expects(expStatSN)
	if c.recovery != nil {
		c.recovery.acknowledged(c.stamps.Acked())
	}
	if len(c.acks) > 0 {
		c.acknowledgedLocked()
	}
	return at
}

// ackWait is somebody who waits until the initiator has acknowledged everything before a StatSN.
type ackWait struct {
	statSN uint32
	done   func()
}

// acknowledgedLocked tells those who wait for what has been acknowledged; all of them, if the connection is dead.
func (c *conn) acknowledgedLocked() {
	rest := c.acks[:0]
	for _, a := range c.acks {
		if !c.dead && before(c.stamps.Acked(), a.statSN) {
			rest = append(rest, a)
			continue
		}
		c.srv.wg.Go(a.done) // it locks other connections
	}
	clear(c.acks[len(rest):])
	c.acks = rest
}

// whenAcknowledged calls done once the initiator has acknowledged every status sent on the connection so far,
// asking for it by a ping.
func (c *conn) whenAcknowledged(done func()) {
	c.mu.Lock()
	if c.dead || !c.fullFeature || !before(c.stamps.Acked(), c.statSN) {
		c.mu.Unlock()
		done()
		return
	}
	c.acks = append(c.acks, ackWait{c.statSN, done})
	c.pingLocked()
	c.mu.Unlock()
}

// askLogout sends asynchronous message 1.
func (c *conn) askLogout(within time.Duration) {
	const requestsLogout = 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fullFeature || c.dead {
		return
	}
	c.asyncLocked(requestsLogout, 0, 0, 0, uint16(min(within/time.Second, 65535)))
}

// asyncLocked sends an Asynchronous Message (RFC 7143 11.9).
func (c *conn) asyncLocked(event byte, lun uint64, p1, p2, p3 uint16) {
	var h header
	h[0], h[1] = opAsync, finalBit
	h.setLUN(lun)
	h.put32(16, noTag)
	c.numberLocked(&h, true)
	h[36] = event
	binary.BigEndian.PutUint16(h[38:], p1)
	binary.BigEndian.PutUint16(h[40:], p2)
	binary.BigEndian.PutUint16(h[42:], p3)
	c.appendPDULocked(&h, nil)
	c.flushLocked()
}

// textTransfer is a text exchange that spans several PDUs, in either direction.
type textTransfer struct {
	request  []byte          // so far, of requests with the C bit
	received int             // bytes of the exchange altogether
	left     *answer         // what is left to send
	ttt      uint32          // of the exchange under way, 0 if none
	seen     map[string]bool // the keys that have come
	// maxSend is the MaxRecvDataSegmentLength that the initiator has declared, or 0. It holds once the exchange is complete.
	maxSend uint32
}

// textRequest takes a Text Request (RFC 7143 11.10).
func (c *conn) textRequest(h *header) error {
	data, err := c.readData(h)
	if err != nil {
		return err
	}
	ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	x := &c.transfer
	more := h[1]&0x40 != 0
	switch {
	case more && h.final():
		c.reject(h, rejectProtocolError)
		return badPDU(h, "text request with F and C")
	case h.ttt() == noTag: // a new exchange ends an old one
		c.endTransfer()
	case h.ttt() != x.ttt || x.ttt == 0:
		c.reject(h, rejectInvalidField)
		c.mu.Lock()
		c.ended(h.immediate())
		c.mu.Unlock()
		return nil
	}
	// All of it, since the keys that have come are remembered until the exchange is over.
	if x.received += len(data); x.received > textLenMax {
		return badPDU(h, "text longer than %d bytes", textLenMax)
	}
	var part []byte
	unfinished := false // something of the answer is left
	if x.left == nil {
		x.request = append(x.request, data...)
		if !more {
			pairs, err := parseText(x.request)
			x.request = nil
			if err != nil {
				c.reject(h, rejectProtocolError)
				return badPDU(h, "%v", err)
			}
			switch part, err = c.answerText(x, pairs); {
			case errors.Is(err, errNegotiation):
				// RFC 7143 6.4, 7.12: the negotiation is over, nothing of it takes effect, and the connection goes on.
				c.log.Debug("text negotiation failed", "err", err)
				c.endTransfer()
				c.reject(h, rejectProtocolError)
				c.mu.Lock()
				c.ended(h.immediate())
				c.mu.Unlock()
				return nil
			case err != nil:
				return badPDU(h, "%v", err)
			}
		}
	}
	switch n := int(c.params.MaxSendDataSegment); {
	case x.left != nil:
		if part, unfinished = c.srv.untold.part(x.left, n); len(part) == 0 {
			c.srv.notice("answers to text requests that nobody fetches take too much memory: one is dropped", "peer", c.peer.Remote)
			c.endTransfer()
			c.reject(h, rejectNoResources)
			c.mu.Lock()
			c.ended(h.immediate())
			c.mu.Unlock()
			return nil
		}
		if !unfinished {
			c.srv.untold.drop(x.left)
			x.left = nil
		}
	case len(part) > n:
		unfinished = true
		x.left = c.srv.untold.keep(c.peer.Remote.Addr(), part[n:])
		part = part[:n]
	}
	var maxSend uint32
	var r header
	r[0] = opTextR
	r.setLUN(h.lun())
	r.put32(16, h.itt())
	switch {
	case unfinished: // C bit: the initiator fetches the rest with an empty request
		r[1] = 0x40
		fallthrough
	case !h.final():
		if x.ttt == 0 {
			x.ttt = 1
		}
		r.put32(20, x.ttt)
	default:
		r[1] = finalBit
		r.put32(20, noTag)
		maxSend = x.maxSend
		c.endTransfer()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	c.numberLocked(&r, true)
	c.appendPDULocked(&r, part)
	if maxSend != 0 {
		c.params.MaxSendDataSegment = maxSend
	}
	return nil
}

// endTransfer forgets the text exchange that is under way.
func (c *conn) endTransfer() {
	c.srv.untold.drop(c.transfer.left)
	c.transfer = textTransfer{}
}

// errNegotiation ends a negotiation in full feature phase: what the initiator sent breaks its rules.
var errNegotiation = errors.New("the negotiation failed")

// answerText answers the keys that make sense in full feature phase: SendTargets, and a new
// MaxRecvDataSegmentLength.
func (c *conn) answerText(x *textTransfer, pairs []pair) ([]byte, error) {
	var b []byte
	for _, p := range pairs {
		// RFC 7143 6.4: no key twice in one negotiation sequence.
		if x.seen[p.key] {
			return nil, fmt.Errorf("%w: key %s was sent twice", errNegotiation, p.key)
		}
		if x.seen == nil {
			x.seen = map[string]bool{}
		}
		x.seen[p.key] = true
		switch p.key {
		case "SendTargets":
			var err error
			if b, err = c.sendTargets(b, p.value); err != nil {
				return nil, err
			}
		case "MaxRecvDataSegmentLength":
			n, err := parseNumber(p.value)
			if err != nil || n < 512 || n > 1<<24-1 {
				// A declaration has no answer that could say so (RFC 7143 6.2).
				return nil, fmt.Errorf("%w: %s=%.40q is out of range", errNegotiation, p.key, p.value)
			}
			x.maxSend = uint32(n)
		case "InitiatorAlias":
		default:
			if isOperational(p.key) || p.key == "AuthMethod" || p.key == "InitiatorName" || p.key == "TargetName" || p.key == "SessionType" {
				b = appendPair(b, p.key, valueReject)
			} else {
				b = appendPair(b, p.key, valueNotUnderstood)
			}
		}
	}
	return b, nil
}

// sendTargets answers SendTargets (RFC 7143 appendix C): All in a discovery session, one target by name, or
// the session's own with an empty value.
func (c *conn) sendTargets(b []byte, which string) ([]byte, error) {
	switch {
	case which == "All" && !c.sess.discovery, which == "" && c.sess.discovery:
		return appendPair(b, "SendTargets", valueReject), nil
	case which == "":
		which = c.sess.targetName
	}
	ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.cfg.LoginTimeout)
	defer cancel()
	c.endGather() // the Provider may take its time, and answers must not wait for it
	defer c.beginGather()
	done, err := c.srv.telling.enter(ctx, c.peer.Remote.Addr())
	if err != nil {
		return nil, fmt.Errorf("SendTargets: %w", err)
	}
	defer done()
	targets, err := c.srv.cfg.Provider.Targets(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if which != "All" && !strings.EqualFold(which, t.Name) {
			continue
		}
		b = appendPair(b, "TargetName", t.Name)
		for _, p := range t.Portals {
			b = appendPair(b, "TargetAddress", p.Address+","+strconv.Itoa(int(p.Group)))
		}
	}
	return b, nil
}
