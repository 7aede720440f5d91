package iscsi

import (
	"errors"
	"slices"
	"time"

	"dozo/internal/access/iscsi/proof"
	"dozo/internal/access/scsi"
)

// Recovery within a connection, error recovery level 1 (RFC 7143 7.1.4.2): what was sent is kept until the
// initiator has acknowledged it, and sent again where a SNACK asks for it; data that don't arrive are asked for
// again. What is kept is bounded; a SNACK for something that was given up for that is rejected (11.17, "SNACK Reject"),
// and the initiator ends the task. One for something that was acknowledged or never sent breaks the protocol.
//
// On such connections status never travels in a Data-In, so that it can be sent again without its data.

const (
	// keptStatusMax bounds the responses that are kept, keptStatusBytes their data, keptDataBytes the read data.
	keptStatusMax   = proof.RingLen
	keptStatusBytes = 1 << 20
	keptDataBytes   = 8 << 20
	// keptShare is what a connection may keep of both however much others do. A guess: some responses with sense data and small reads.
	keptShare = 256 << 10
	// silentTicks is after how many pings' intervals without data a burst is taken for lost.
	silentTicks = 3
)

// errWithheld ends a connection whose initiator holds memory by not sending what it has announced.
var errWithheld = errors.New("data that were asked for do not come")

// Types of SNACK (RFC 7143 11.16.1).
const (
	snackData    = 0
	snackStatus  = 1
	snackDataACK = 2
	snackResend  = 3 // R-Data: everything anew, cut for the present MaxRecvDataSegmentLength
)

// recovery is what a connection keeps. It is under conn.mu.
type recovery struct {
	all         *shared
	statuses    []keptStatus // in order of StatSN
	statusBytes int
	data        []*sentData // in order of StatSN
	dataBytes   int
	givenUp     uint32 // statuses and data before this StatSN may have been given up for the bounds
	gaveUp      bool   // any were
}

// keptStatus is a PDU that has used a StatSN up.
type keptStatus struct {
	h     header
	data  []byte
	reads bool // data-in went before it
}

// sentData is the data-in of a task that has ended.
type sentData struct {
	itt, statSN    uint32
	lun            uint64
	n              int
	segment, burst int // as it was cut
	// What was received before the task was reassigned: so many pieces and bytes. Numbers go on from there.
	pieces uint32
	bytes  int
	in     [][]byte
	reads  []scsi.ReadResult
}

func (d *sentData) release() {
	for _, r := range d.reads {
		r.Release()
	}
	d.in, d.reads = nil, nil
}

// count notes that so much more is kept of responses and of data.
func (r *recovery) count(status, data int) {
	r.statusBytes += status
	r.dataBytes += data
	r.all.used.Add(int64(status + data))
}

// crowded says that the connection has more than its share of what is too much for all.
func (r *recovery) crowded() bool {
	return r.statusBytes+r.dataBytes > keptShare && r.all.used.Load() > r.all.max
}

// keepStatus keeps a PDU; the oldest make room.
func (r *recovery) keepStatus(h *header, data []byte) {
	r.statuses = append(r.statuses, keptStatus{h: *h, data: append([]byte(nil), data...)})
	r.count(len(data), 0)
	for len(r.data) > 0 && r.crowded() {
		r.giveUp(r.data[0].statSN)
		r.dropData()
	}
	for len(r.statuses) > keptStatusMax || r.statusBytes > keptStatusBytes || r.crowded() {
		r.giveUp(r.statuses[0].h.u32(24))
		r.dropStatus()
	}
}

func (r *recovery) dropStatus() {
	r.count(-len(r.statuses[0].data), 0)
	r.statuses[0].data = nil
	r.statuses = r.statuses[1:]
}

func (r *recovery) keepData(d *sentData) {
	r.data = append(r.data, d)
	r.count(0, d.n)
	for r.dataBytes > keptDataBytes || len(r.data) > 0 && r.crowded() {
		r.giveUp(r.data[0].statSN)
		r.dropData()
	}
}

func (r *recovery) giveUp(statSN uint32) {
	if !r.gaveUp || before(r.givenUp, statSN+1) {
		r.gaveUp, r.givenUp = true, statSN+1
	}
}

// missing is why something is not there to be sent again, where acked is the StatSN up to which the initiator has
// acknowledged.
func (r *recovery) missing(acked uint32) byte {
	if r.gaveUp && before(acked, r.givenUp) {
		return rejectSNACK
	}
	return rejectProtocolError
}

func (r *recovery) dropData() {
	d := r.data[0]
	r.data[0] = nil
	r.data = r.data[1:]
	r.count(0, -d.n)
	d.release()
}

// acknowledged forgets everything before a StatSN.
func (r *recovery) acknowledged(statSN uint32) {
	for len(r.statuses) > 0 && before(r.statuses[0].h.u32(24), statSN) {
		r.dropStatus()
	}
	for len(r.data) > 0 && before(r.data[0].statSN, statSN) {
		r.dropData()
	}
}

func (r *recovery) release() {
	for len(r.data) > 0 {
		r.dropData()
	}
	r.count(-r.statusBytes, 0)
	r.statuses = nil
}

// snack takes a SNACK Request (RFC 7143 11.16).
func (c *conn) snack(h *header) error {
	if err := c.skipData(h); err != nil {
		return err
	}
	c.mu.Lock()
	c.proveLocked(h.expStatSN())
	reason, next := byte(rejectSNACK), uint32(0)
	if c.recovery != nil {
		from, run := h.u32(40), h.u32(44)
		switch h[1] & 0x0f {
		case snackStatus:
			reason = c.resendStatusLocked(from, run)
		case snackData:
			reason, next = c.resendDataLocked(h.itt(), from, run)
		case snackResend:
			reason = c.resegmentLocked(h.itt(), h.ttt(), from, run)
		case snackDataACK:
			reason = rejectDataACK // no A bit asked for it
		default:
			reason = rejectInvalidField
		}
		c.flushLocked()
	}
	c.mu.Unlock()
	if reason != 0 {
		c.rejectAt(h, reason, next)
	}
	return nil
}

// resendStatusLocked sends the PDUs with StatSNs from a number on again; a run of 0 means all, and so does 0 for both. It
// gives the reason to reject it, or 0.
func (c *conn) resendStatusLocked(from, run uint32) (reason byte) {
	if from == 0 && run == 0 {
		from = c.stamps.Acked()
	}
	kept := c.recovery.statuses
	switch {
	case run == 0 && from == c.statSN:
		return 0
	case before(from, c.stamps.Acked()), !before(from, c.statSN), run > c.statSN-from:
		return rejectProtocolError
	case len(kept) == 0 || before(from, kept[0].h.u32(24)):
		return rejectSNACK
	}
	for i := range kept {
		sn := kept[i].h.u32(24)
		if before(sn, from) || run != 0 && !before(sn, from+run) {
			continue
		}
		c.resendLocked(&kept[i])
	}
	return 0
}

// resendLocked sends a status again, under its StatSN.
func (c *conn) resendLocked(k *keptStatus) {
	h := k.h
	c.commandWindowLocked(&h)
	c.appendPDULocked(&h, k.data)
}

// resendDataLocked sends R2Ts or Data-Ins of a task again. next is the number that the task's next one would have, for a
// Reject.
func (c *conn) resendDataLocked(itt, from, run uint32) (reason byte, next uint32) {
	for _, t := range c.slots {
		if t == nil || t.itt != itt || t.aborted {
			continue
		}
		sent := 0
		for i := range t.r2ts {
			if q := &t.r2ts[i]; !before(q.sn, from) && (run == 0 || before(q.sn, from+run)) {
				c.sendR2TLocked(t, q)
				sent++
			}
		}
		if sent == 0 && (from != 0 || run != 0) { // it was not sent yet, or the data that it asked for have come
			return rejectProtocolError, t.r2tSN
		}
		return 0, 0
	}
	for i := len(c.recovery.data) - 1; i >= 0; i-- {
		if d := c.recovery.data[i]; d.itt == itt {
			to := from + run
			if run == 0 {
				to = 0xffffffff
			}
			switch next = d.count(); {
			case run == 0 && from == 0:
				from = d.pieces
			case before(from, d.pieces), !before(from, next), run > next-from:
				return rejectProtocolError, next
			}
			c.sendPiecesLocked(d, from, to)
			return 0, 0
		}
	}
	return c.recovery.missing(c.stamps.Acked()), 0
}

// resegmentLocked takes an R-Data SNACK: the initiator has thrown away what it has not acknowledged, and wants it cut for
// what it takes now (11.16.3). The response comes again with it, under the tag that says that it came after.
func (c *conn) resegmentLocked(itt, tag, from, run uint32) (reason byte) {
	if from != 0 || run != 0 || tag == 0 || tag == noTag {
		return rejectInvalidField
	}
	for _, t := range c.slots {
		if t != nil && t.itt == itt && !t.aborted {
			t.snackTag = tag // nothing was sent yet: its only response will carry the tag
			return 0
		}
	}
	r := c.recovery
	for i := len(r.statuses) - 1; i >= 0; i-- {
		k := &r.statuses[i]
		if k.h.opcode() != opResponse || k.h.itt() != itt {
			continue
		}
		at := slices.IndexFunc(r.data, func(d *sentData) bool { return d.itt == itt && d.statSN == k.h.u32(24) })
		if k.reads && at < 0 {
			return rejectSNACK
		}
		if at >= 0 {
			d := r.data[at]
			d.segment = int(c.params.MaxSendDataSegment)
			k.h.put32(36, c.sendPiecesLocked(d, d.pieces, 0xffffffff))
		}
		k.h.put32(20, tag)
		c.resendLocked(k)
		return 0
	}
	return r.missing(c.stamps.Acked())
}

// count is how many Data-Ins the task has altogether, as they were cut.
func (d *sentData) count() uint32 {
	n := d.pieces
	for off := d.bytes; off < d.n; n++ {
		m := min(d.segment, d.n-off)
		if d.burst > 0 {
			m = min(m, d.burst-off%d.burst)
		}
		off += m
	}
	return n
}

// sendKeptLocked sends a task's data and status apart, and keeps the data.
func (c *conn) sendKeptLocked(t *task, n int, flags byte, residual uint32) {
	d := &sentData{itt: t.itt, lun: t.LUN, n: n, segment: int(c.params.MaxSendDataSegment), burst: int(c.params.MaxBurstLength)}
	if t.HoldsReads() {
		d.in = append(d.in, t.In...)
		d.reads = t.TakeReads(nil)
		c.out.cost += t.readCost // the copy in the out queue
		c.readMem += t.readCost
		c.takeLocked(t.readCost)
	} else {
		for _, p := range t.In {
			d.in = append(d.in, append([]byte(nil), p...))
		}
	}
	sent := c.sendPiecesLocked(d, 0, 0xffffffff)
	var h header
	h[0], h[1] = opResponse, finalBit|flags
	h[3] = byte(t.Status)
	h.put32(16, t.itt)
	h.put32(20, t.snackTag)
	c.numberLocked(&h, true)
	h.put32(36, sent)
	h.put32(44, residual)
	c.appendPDULocked(&h, nil)
	d.statSN = c.statSN - 1
	c.recovery.keepData(d)
	c.recovery.markReads(d.statSN, true)
}

// markReads notes that the newest response has data.
func (r *recovery) markReads(statSN uint32, reads bool) {
	if n := len(r.statuses); n > 0 && r.statuses[n-1].h.u32(24) == statSN {
		r.statuses[n-1].reads = reads
	}
}

// sendPiecesLocked sends the Data-Ins with DataSNs from a number up to another one, which is excluded. It gives how
// many the task has altogether. The data are copied: they may be forgotten before the socket has taken them.
func (c *conn) sendPiecesLocked(d *sentData, from, to uint32) (count uint32) {
	piece, at, inBurst := 0, d.bytes, 0
	for piece < len(d.in) && at >= len(d.in[piece]) {
		piece, at = piece+1, at-len(d.in[piece])
	}
	if d.burst > 0 {
		inBurst = d.bytes % d.burst
	}
	count = d.pieces
	for off := d.bytes; off < d.n; count++ {
		m := min(d.segment, d.n-off, d.burst-inBurst)
		inBurst += m
		send := !before(count, from) && count < to
		last := off+m == d.n
		if send {
			var h header
			h[0] = opDataIn
			if last || inBurst == d.burst {
				h[1] = finalBit
			}
			h.setLUN(d.lun)
			h.put32(16, d.itt)
			h.put32(20, noTag)
			c.commandWindowLocked(&h)
			h.put32(36, count)
			h.put32(40, uint32(off))
			h.setDataLen(m)
			c.out.own(h[:])
			c.headerDigestLocked(&h)
		}
		crc := uint32(0)
		for left := m; left > 0; {
			p := d.in[piece][at:]
			p = p[:min(len(p), left)]
			if send {
				if c.params.DataDigest {
					crc = digest(crc, p)
				}
				c.out.own(p)
			}
			if left, at = left-len(p), at+len(p); at == len(d.in[piece]) {
				piece, at = piece+1, 0
			}
		}
		if send {
			c.endDataLocked(m, crc)
		}
		if inBurst == d.burst {
			inBurst = 0
		}
		off += m
	}
	return count
}

// recoverData takes a Data-Out at recovery level 1: one that is damaged or out of sequence makes all that is under
// way for its task void; once that has come, the data are asked for again from the first byte that is missing
// (RFC 7143 7.8, 7.9: recovery R2T). The caller is the reader, which holds the task.
func (c *conn) recoverData(t *task, h *header, n int, ttt uint32) error {
	var q *r2t
	index := 0
	for i := range t.r2ts {
		if t.r2ts[i].ttt == ttt {
			q, index = &t.r2ts[i], i
		}
	}
	limit, dataSN := min(int(c.params.FirstBurstLength), int(min(t.expected, 1<<30))), &t.unsolSN
	if q != nil {
		limit, dataSN = q.end, &q.dataSN
	}
	if off := h.u32(40); uint64(off)+uint64(n) > uint64(limit) {
		return badPDU(h, "data up to %d, beyond %d", uint64(off)+uint64(n), limit)
	}
	if index > 0 || h.u32(36) != *dataSN || h.u32(40) != uint32(t.got) {
		t.lost = true
	}
	err := error(nil)
	if t.lost {
		err = c.skipData(h)
	} else {
		*dataSN++
		got, segment, segmentOff, stash := t.got, t.segment, t.segmentOff, len(t.stash)
		if err = c.receive(t, h, n); err != nil { // damaged, or the connection was lost in the middle
			t.got, t.segment, t.segmentOff, t.stash, t.lost = got, segment, segmentOff, t.stash[:min(stash, len(t.stash))], true
		}
	}
	if err != nil && err != errDataDigest {
		return err
	}
	c.mu.Lock()
	t.silent = 0
	switch {
	case !h.final():
	case q == nil:
		t.unsolicited = false
	default:
		if t.got != limit {
			t.lost = true
		}
		t.r2ts = append(t.r2ts[:index], t.r2ts[index+1:]...)
	}
	c.mu.Unlock()
	c.advance(t)
	return nil
}

// askAgainLocked begins anew where data are missing, once nothing is under way for the task.
func (t *task) askAgainLocked() {
	if t.lost && len(t.r2ts) == 0 && !t.unsolicited {
		t.lost = false
		t.asked = t.got
	}
}

// watchDataLocked takes bursts that have stopped for lost: the last Data-Out of one may be what was damaged. It is
// called with every ping.
//
// At level 0 nothing is asked for again. An initiator that answers pings and withholds data is given the time that one has
// which answers none.
func (c *conn) watchDataLocked() {
	for _, t := range c.slots {
		if t == nil || t.aborted || t == c.filling || t.phase != phaseReceiving || !t.unsolicited && len(t.r2ts) == 0 {
			continue
		}
		t.silent++
		if c.recovery == nil {
			if time.Duration(t.silent)*c.srv.cfg.PingEvery > c.srv.cfg.PingTimeout {
				c.killLocked(errWithheld)
				return
			}
			continue
		}
		if t.silent > silentTicks {
			t.silent, t.lost, t.unsolicited = 0, true, false
			t.r2ts = t.r2ts[:0]
			if c.advanceLocked(t) {
				c.srv.wg.Go(func() { c.sess.nexus.Execute(&t.Command) })
			}
		}
	}
}

// sendR2TLocked sends an R2T, for the first time or again.
func (c *conn) sendR2TLocked(t *task, q *r2t) {
	var h header
	h[0], h[1] = opR2T, finalBit
	h.setLUN(t.LUN)
	h.put32(16, t.itt)
	h.put32(20, q.ttt)
	c.numberLocked(&h, false)
	h.put32(36, q.sn)
	h.put32(40, uint32(q.start))
	h.put32(44, uint32(q.end-q.start))
	c.appendPDULocked(&h, nil)
}
