package iscsi

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"dozo/internal/access/reserve"
)

// reject answers a PDU that can't be processed with its header (RFC 7143 11.17).
func (c *conn) reject(bad *header, reason byte) {
	c.log.Warn("PDU rejected", "opcode", bad.opcode(), "reason", reason, "itt", bad.itt())
	var h header
	h[0], h[1], h[2] = opReject, finalBit, reason
	h.put32(16, noTag)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.numberLocked(&h, true)
	c.appendPDULocked(&h, bad[:])
}

// nopOut answers a ping, or takes the answer to one of ours.
func (c *conn) nopOut(h *header) error {
	data, err := c.readData(h)
	if err != nil {
		return err
	}
	_, ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	if h.ttt() != noTag {
		if c.stamps.echoed(h.ttt()) {
			c.pingWaiting = time.Time{}
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

// ping sends a NOP-In that asks for an answer; it ends the connection if the last one got none for too long.
func (c *conn) ping(now time.Time, timeout time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fullFeature || c.dead || c.sess.discovery {
		return
	}
	switch {
	case c.pingWaiting.IsZero():
		c.pingWaiting = now
	case now.Sub(c.pingWaiting) > timeout:
		c.killLocked(errPing)
		return
	case c.out.size > outMax:
		return // a client that doesn't read needs no more to read
	}
	if c.pingTTT++; c.pingTTT == 0 || c.pingTTT == noTag {
		c.pingTTT = 1
	}
	var h header
	h[0], h[1] = opNopIn, finalBit
	h.put32(16, noTag)
	h.put32(20, c.pingTTT)
	c.stamps.pinged(c.pingTTT, c.sess.target.Stamp())
	c.numberLocked(&h, false)
	c.appendPDULocked(&h, nil)
	c.flushLocked()
}

// logout takes a Logout Request (RFC 7143 11.14). Closing the session and closing its one connection are the
// same; recovery would need level 2.
func (c *conn) logout(h *header) error {
	const closeSession, closeConnection = 0, 1
	const done, noConnection, noRecovery = 0, 1, 2
	if err := c.skipData(h); err != nil {
		return err
	}
	_, ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	var r header
	r[0], r[1] = opLogoutR, finalBit
	switch reason := h[1] & 0x7f; {
	case reason == closeConnection && binary.BigEndian.Uint16(h[20:]) != c.cid:
		r[2] = noConnection
	case reason == closeSession || reason == closeConnection:
		r[2] = done
		c.loggedOut = true
		if x := c.sess; x != nil && x.target != nil {
			ctx, cancel := context.WithTimeout(context.Background(), logoutTold)
			x.target.Logout(ctx, x.initiator.Nexus, c.id)
			cancel()
		}
	default:
		r[2] = noRecovery
	}
	r.put32(16, h.itt())
	binary.BigEndian.PutUint16(r[40:], uint16(c.params.DefaultTime2Wait))
	binary.BigEndian.PutUint16(r[42:], uint16(c.params.DefaultTime2Retain))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	c.numberLocked(&r, true)
	c.appendPDULocked(&r, nil)
	return nil
}

// logoutTold bounds how long a logout waits until what is behind the target knows of it.
const logoutTold = 2 * time.Second

// askLogout sends asynchronous message 1 and ends the connection if nothing follows.
func (c *conn) askLogout(within time.Duration) {
	const requestsLogout = 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fullFeature || c.dead {
		return
	}
	c.asyncLocked(requestsLogout, 0, 0, uint16(min(within/time.Second, 65535)))
	if c.logoutTimer == nil {
		c.logoutTimer = time.AfterFunc(within, func() { c.kill(errLogoutIgnored) })
	}
}

// asyncLocked sends an Asynchronous Message (RFC 7143 11.9).
func (c *conn) asyncLocked(event byte, p1, p2, p3 uint16) {
	var h header
	h[0], h[1] = opAsync, finalBit
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
	request []byte // so far, of requests with the C bit
	reply   []byte // what is left to send
	ttt     uint32 // of the exchange under way, 0 if none
}

// textRequest takes a Text Request (RFC 7143 11.10).
func (c *conn) textRequest(h *header) error {
	data, err := c.readData(h)
	if err != nil {
		return err
	}
	_, ok, err := c.arrive(h)
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
		*x = textTransfer{}
	case h.ttt() != x.ttt || x.ttt == 0:
		c.reject(h, rejectInvalidField)
		c.mu.Lock()
		c.ended(h.immediate())
		c.mu.Unlock()
		return nil
	}
	if len(x.request)+len(data) > textLenMax {
		return badPDU(h, "text longer than %d bytes", textLenMax)
	}
	if len(x.reply) == 0 {
		x.request = append(x.request, data...)
		if !more {
			pairs, err := parseText(x.request)
			x.request = nil
			if err != nil {
				c.reject(h, rejectProtocolError)
				return badPDU(h, "%v", err)
			}
			if x.reply, err = c.answerText(pairs); err != nil {
				return badPDU(h, "%v", err)
			}
		}
	}
	n := min(len(x.reply), int(c.params.MaxSendDataSegment))
	part := x.reply[:n]
	x.reply = x.reply[n:]
	var r header
	r[0] = opTextR
	r.setLUN(h.lun())
	r.put32(16, h.itt())
	switch {
	case len(x.reply) > 0: // C bit: the initiator fetches the rest with an empty request
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
		*x = textTransfer{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	c.numberLocked(&r, true)
	c.appendPDULocked(&r, part)
	return nil
}

// answerText answers the keys that make sense in full feature phase: SendTargets, and a new
// MaxRecvDataSegmentLength.
func (c *conn) answerText(pairs []pair) ([]byte, error) {
	var b []byte
	for _, p := range pairs {
		switch p.key {
		case "SendTargets":
			var err error
			if b, err = c.sendTargets(b, p.value); err != nil {
				return nil, err
			}
		case "MaxRecvDataSegmentLength":
			n, err := parseNumber(p.value)
			if err != nil || n < 512 || n > 1<<24-1 {
				return nil, badText(p)
			}
			c.mu.Lock()
			c.params.MaxSendDataSegment = uint32(n)
			c.mu.Unlock()
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

type badTextError struct{ key, value string }

func (e *badTextError) Error() string { return e.key + "=" + e.value + " is out of range" }

func badText(p pair) error { return &badTextError{p.key, p.value} }

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
	targets, err := c.srv.cfg.Provider.Targets(ctx, c.peer)
	c.beginGather()
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

// Task management functions and responses (RFC 7143 11.5.1, 11.6.1).
const (
	tmfAbortTask    = 1
	tmfAbortTaskSet = 2
	tmfClearACA     = 3
	tmfClearTaskSet = 4
	tmfLUNReset     = 5
	tmfWarmReset    = 6
	tmfColdReset    = 7
	tmfReassign     = 8

	tmrComplete     = 0
	tmrNoTask       = 1
	tmrNoLUN        = 2
	tmrNoReassign   = 4
	tmrNotSupported = 5
	tmrRejected     = 255
)

// taskManagement takes a Task Management Function Request. What it aborts on this server has no effect on
// the initiator from now on; the answer waits until the target's owner says the same.
func (c *conn) taskManagement(h *header) error {
	if err := c.skipData(h); err != nil {
		return err
	}
	_, ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	function, itt, immediate := h[1]&0x7f, h.itt(), h.immediate()
	c.mu.Lock()
	c.tasks++ // the connection isn't done before the answer is
	c.mu.Unlock()
	answer := func(response byte) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tasks--
		c.ended(immediate)
		c.room.Broadcast()
		if c.dead {
			return
		}
		var r header
		r[0], r[1], r[2] = opTaskMgmtR, finalBit, response
		r.put32(16, itt)
		c.numberLocked(&r, true)
		c.appendPDULocked(&r, nil)
		c.flushLocked()
		if function == tmfColdReset && response == tmrComplete {
			c.srv.wg.Go(func() { c.srv.dropTarget(c.sess.targetName) })
		}
	}
	done := func(err error) {
		if err != nil {
			c.log.Warn("task management", "function", function, "err", err)
			answer(tmrRejected)
			return
		}
		answer(tmrComplete)
	}
	lun, hasLUN := c.sess.nexus.HasLUN(h.lun())
	if !hasLUN && (function == tmfAbortTaskSet || function == tmfClearTaskSet || function == tmfLUNReset) {
		answer(tmrNoLUN)
		return nil
	}
	nexus, target := c.sess.initiator.Nexus, c.sess.target
	switch function {
	case tmfAbortTask:
		id, found := c.abortOne(h.u32(20), h.lun())
		if !found {
			answer(tmrNoTask)
			return nil
		}
		target.AbortTask(id, done)
	case tmfAbortTaskSet:
		c.abortWhere(func(t *task) bool { return t.lun == lun })
		target.AbortTaskSet(nexus, lun, done)
	case tmfClearTaskSet:
		c.srv.clear(c.sess, lun, false, reserve.CommandsCleared)
		target.ClearTaskSet(nexus, lun, done)
	case tmfLUNReset:
		c.srv.clear(c.sess, lun, true, reserve.DeviceReset)
		target.ResetLUN(nexus, lun, done)
	case tmfWarmReset, tmfColdReset:
		units := target.Units()
		wait := newCountdown(len(units), done)
		for _, u := range units {
			c.srv.clear(c.sess, u.LUN, true, reserve.BusReset)
			target.ResetLUN(nexus, u.LUN, wait.done)
		}
	case tmfReassign:
		answer(tmrNoReassign)
	case tmfClearACA:
		answer(tmrNotSupported)
	default:
		answer(tmrNotSupported)
	}
	return nil
}
