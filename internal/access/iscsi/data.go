package iscsi

import (
	"slices"

	"dozo/internal/access/scsi"
)

// solicitLocked asks for a task's data, as many bursts at a time as were negotiated.
func (c *conn) solicitLocked(t *task) {
	for t.asked < t.want && uint32(len(t.r2ts)) < c.params.MaxOutstandingR2T {
		n := min(int(c.params.MaxBurstLength), t.want-t.asked)
		q := r2t{ttt: t.tag(), sn: t.r2tSN, start: t.asked, end: t.asked + n}
		c.sendR2TLocked(t, &q)
		t.r2ts = append(t.r2ts, q)
		t.r2tSN++
		t.asked += n
	}
	c.flushLocked()
}

// A target transfer tag has the task's slot in its low bits, the slot's count of uses, and the R2T's number;
// the last never reaches all ones, so the reserved tag is never given.
const (
	slotBits = 10
	genBits  = 12
	slotsMax = 1<<slotBits - 1
)

func (t *task) tag() uint32 {
	return uint32(t.slot) | uint32(t.gen)<<slotBits&(1<<(slotBits+genBits)-1) | t.r2tSN%1000<<(slotBits+genBits)
}

// taskOfDataLocked finds the task that a Data-Out belongs to, nil if it has ended.
func (c *conn) taskOfDataLocked(h *header) *task {
	if ttt := h.ttt(); ttt != noTag {
		if slot := int(ttt & slotsMax); slot < len(c.slots) {
			if t := c.slots[slot]; t != nil && !t.aborted && len(t.r2ts) > 0 && t.r2ts[0].ttt == ttt && t.itt == h.itt() {
				return t
			} else if t != nil && !t.aborted && (c.recovery != nil || t.spoiled) && t.itt == h.itt() {
				for i := range t.r2ts {
					if t.r2ts[i].ttt == ttt {
						return t
					}
				}
			}
		}
		return nil
	}
	for _, t := range c.slots {
		if t != nil && !t.aborted && t.unsolicited && t.itt == h.itt() {
			return t
		}
	}
	return nil
}

// dataOut takes a Data-Out PDU (RFC 7143 11.7).
func (c *conn) dataOut(h *header) error {
	n := h.dataLen()
	c.mu.Lock()
	c.proveLocked(h.expStatSN())
	t := c.taskOfDataLocked(h)
	if t == nil {
		c.mu.Unlock()
		c.log.Debug("data for no task dropped", "itt", h.itt(), "ttt", h.ttt())
		return c.skipData(h)
	}
	for t.phase == phaseAdmitting { // somebody prepares it or moves the stash; that takes no I/O
		c.room.Wait()
		if t != c.taskOfDataLocked(h) { // aborted meanwhile
			c.mu.Unlock()
			return c.skipData(h)
		}
	}
	c.filling, t.silent = t, 0
	recover := c.recovery != nil
	c.mu.Unlock()
	switch {
	case recover:
		return c.recoverData(t, h, n, h.ttt())
	case t.spoiled:
		return c.drainData(t, h)
	}

	limit, dataSN := 0, &t.unsolSN
	if h.ttt() == noTag {
		limit = min(int(c.params.FirstBurstLength), int(min(t.expected, 1<<30)))
	} else {
		limit, dataSN = t.r2ts[0].end, &t.r2ts[0].dataSN
	}
	if t.got+n > limit {
		return badPDU(h, "data up to %d, beyond %d", t.got+n, limit)
	}
	if h.u32(36) != *dataSN || h.u32(40) != uint32(t.got) {
		// A sequence error (RFC 7143 7.9): nothing can be fetched again at recovery level 0, so the task ends.
		c.complain("Data-Out out of sequence", "itt", t.itt, "datasn", h.u32(36), "want", *dataSN, "off", h.u32(40), "wantoff", t.got)
		t.spoiled = true
	}
	*dataSN++
	err := error(nil)
	if t.spoiled {
		err = c.skipData(h)
	} else {
		err = c.receive(t, h, n)
	}
	if err != nil {
		return err
	}
	switch {
	case h.ttt() == noTag:
		t.unsolicited = !h.final()
	default:
		if h.final() != (t.got == limit) {
			t.spoiled = true // a burst that is shorter or longer than was asked for
		}
		if h.final() || t.got == limit {
			t.r2ts = t.r2ts[:copy(t.r2ts, t.r2ts[1:])]
		}
	}
	if t.spoiled {
		// A task that is held fails when it is prepared.
		if t.phase != phaseHeld {
			c.sess.nexus.Fail(&t.Command, scsi.ErrTransfer)
		}
		t.want = 0
	}
	c.advance(t)
	return nil
}

// drainData drops data of a task that will fail. Its response waits for the end of every burst that was asked for (RFC
// 7143 11.4.2).
func (c *conn) drainData(t *task, h *header) error {
	if err := c.skipData(h); err != nil {
		return err
	}
	if h.final() {
		c.mu.Lock()
		if h.ttt() == noTag {
			t.unsolicited = false
		}
		t.r2ts = slices.DeleteFunc(t.r2ts, func(q r2t) bool { return q.ttt == h.ttt() })
		c.mu.Unlock()
	}
	c.advance(t)
	return nil
}

// respondLocked answers a finished command: Data-In and a response, in one where possible.
func (c *conn) respondLocked(t *task) {
	send := 0
	for _, p := range t.In {
		send += len(p)
	}
	send = min(send, int(t.ExpectIn))
	flags, residual := t.residual()
	if send > 0 && t.Status == scsi.StatusGood {
		if c.recovery != nil {
			c.sendKeptLocked(t, send, flags, residual)
			return
		}
		c.sendDataLocked(t, send, flags, residual)
		return
	}
	var h header
	h[0], h[1] = opResponse, finalBit|flags
	h[3] = byte(t.Status)
	c.qualify(&h, t.Status)
	h.put32(16, t.itt)
	h.put32(20, t.snackTag)
	c.numberLocked(&h, true)
	h.put32(36, t.r2tSN)
	h.put32(44, residual)
	if len(t.Sense) == 0 {
		c.appendPDULocked(&h, nil)
		return
	}
	var sense [2 + scsi.SenseMax]byte
	sense[1] = byte(len(t.Sense))
	copy(sense[2:], t.Sense)
	c.appendPDULocked(&h, sense[:2+len(t.Sense)])
}

// Flags of residual counts (RFC 7143 11.4.1).
const (
	residualOverflow  = 0x04
	residualUnderflow = 0x02
)

// residual compares what the CDB asked to move with what the initiator expected.
func (t *task) residual() (flags byte, count uint32) {
	want := t.WantIn
	if t.isWrite || t.WantOut > 0 && !t.isRead {
		want = t.WantOut
	}
	switch expected := uint64(t.expected); {
	case want > expected:
		return residualOverflow, uint32(min(want-expected, 0xffffffff))
	case want < expected:
		return residualUnderflow, uint32(expected - want)
	}
	return 0, 0
}

// sendDataLocked sends the first n bytes of a task's data, in segments that the initiator takes and bursts
// that were negotiated; the last segment carries the status (RFC 7143 11.7.3, S bit).
func (c *conn) sendDataLocked(t *task, n int, flags byte, residual uint32) {
	refer := n > copyMax && t.HoldsReads()
	segment, burst := int(c.params.MaxSendDataSegment), int(c.params.MaxBurstLength)
	piece, at := 0, 0 // place in t.In
	inBurst := 0
	for off, sn := 0, uint32(0); off < n; sn++ {
		m := min(segment, n-off, burst-inBurst)
		inBurst += m
		var h header
		h[0] = opDataIn
		last := off+m == n
		if last || inBurst == burst {
			h[1], inBurst = finalBit, 0
		}
		h.setLUN(t.LUN)
		h.put32(16, t.itt)
		h.put32(20, noTag)
		if last {
			h[1] |= 0x01 | flags
			h[3] = byte(t.Status)
			h.put32(44, residual)
			c.numberLocked(&h, true)
		} else {
			c.commandWindowLocked(&h)
		}
		h.put32(36, sn)
		h.put32(40, uint32(off))
		h.setDataLen(m)
		b := c.out
		b.own(h[:])
		c.headerDigestLocked(&h)
		crc := uint32(0)
		for left := m; left > 0; {
			p := t.In[piece][at:]
			if len(p) > left {
				p = p[:left]
			}
			if c.params.DataDigest {
				crc = digest(crc, p)
			}
			if refer && len(p) > copyMax {
				b.refer(p)
			} else {
				b.own(p)
			}
			if left, at = left-len(p), at+len(p); at == len(t.In[piece]) {
				piece, at = piece+1, 0
			}
		}
		c.endDataLocked(m, crc)
		off += m
	}
	if refer {
		c.out.reads = t.TakeReads(c.out.reads)
		c.out.cost += t.readCost
		c.readMem += t.readCost // dropLocked gave it back; it is free once written
		c.takeLocked(t.readCost)
	}
}
