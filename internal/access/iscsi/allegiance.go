package iscsi

import (
	"context"
	"slices"
	"time"

	"dozo/internal/access/scsi"
)

// Connection recovery, error recovery level 2 (RFC 7143 7.1.4.3): the tasks of a connection that was lost are kept, and
// go on by another one of the session when TASK REASSIGN says so.
//
//	full feature ──lost──> parked ──Logout for recovery, or its CID logs in again──> freed ──> gone
//	                         └──────────── DefaultTime2Wait + DefaultTime2Retain ───────────────^
//
// Only the tasks of a freed connection may be reassigned; until then they are still allegiant to it (7.2.2). A task
// moves as it is: one that runs answers by its new connection, one that has finished meanwhile answers at once, one
// that lacks data asks for what is missing, and of one that had been answered the answer is sent again. The goroutine
// of the lost connection waits for all this, and ends what nobody wants.
//
// Rule R9: a task that has not begun takes the stamp of the request that reassigns it, which proves that the initiator
// still waits for it, and keeps its own as Began, which refusals go by. One that has begun keeps its own.

// keepsTasks says whether tasks outlive their connections.
func (x *Session) keepsTasks() bool {
	return !x.discovery && x.params.ErrorRecoveryLevel == 2 && x.params.DefaultTime2Retain > 0
}

func (c *conn) keepsTasks() bool { return c.sess != nil && c.sess.keepsTasks() }

// retains is DefaultTime2Retain as far as it means anything: an initiator that does not ask for 0 at a lower recovery level has agreed to
// the default, and nothing is kept for it.
func (x *Session) retains() uint16 {
	if !x.keepsTasks() {
		return 0
	}
	return uint16(x.params.DefaultTime2Retain)
}

// keptMax bounds for how long tasks are kept: DefaultTime2Wait is the initiator's to choose, up to an hour, and what is kept has memory
// that others wait for. It is what an initiator has that answers no ping.
const keptMax = 2 * time.Minute

// kept is for how long.
func (x *Session) kept() time.Duration {
	return min(time.Duration(x.params.DefaultTime2Wait+x.params.DefaultTime2Retain)*time.Second, keptMax)
}

func (c *conn) isParked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked
}

// park is called by the reader when it is done. It reports whether the connection's tasks are kept.
func (c *conn) park() bool {
	if !c.keepsTasks() || c.loggedOut {
		return false
	}
	x := c.sess
	select {
	case <-x.ended:
		return false
	default:
	}
	if t := c.filling; t != nil {
		c.advance(t)
	}
	c.forgetUnacknowledged()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parked = true
	c.lost.Store(true)
	c.keepUntil = time.Now().Add(x.kept())
	c.out.release()
	if c.tasks > 0 {
		c.log.Info("tasks of a lost connection are kept", "tsih", x.tsih, "cid", c.cid, "tasks", c.tasks, "for", x.kept())
	}
	return true
}

// forgetUnacknowledged drops commands that came early by a connection that was lost: the initiator doesn't know that
// they have come and sends them again (RFC 7143 11.14.1).
func (c *conn) forgetUnacknowledged() {
	o := &c.sess.order
	var gone []*task
	o.mu.Lock()
	exp := c.sess.expCmdSN.Load()
	for sn, h := range o.held {
		if before(sn, exp) {
			continue
		}
		if h.task != nil && h.task.home.Load() == c {
			gone = append(gone, h.task)
			delete(o.held, sn)
		} else if h.conn == c {
			delete(o.held, sn)
		}
	}
	o.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range gone {
		t.uncounted = true
		c.forgetLocked(t)
	}
}

// waitParked returns when the tasks of a lost connection need not be kept any more: they were reassigned, nobody came
// for them in time, or the session has ended.
func (c *conn) waitParked() {
	x := c.sess
	for {
		c.mu.Lock()
		left := time.Until(c.keepUntil)
		over := c.expired || c.freed && c.tasks == 0 && !c.recovery.answers()
		if left <= 0 {
			c.expired = true
		}
		tasks := c.tasks
		c.mu.Unlock()
		if over {
			return
		}
		if left <= 0 {
			if tasks > 0 {
				c.log.Warn("tasks of a lost connection are given up", "tsih", x.tsih, "cid", c.cid, "tasks", tasks)
			}
			// The initiator may do them again from now on.
			ctx, cancel := context.WithTimeout(c.srv.ctx, logoutTold)
			if err := x.endTasks(ctx, c); err != nil {
				c.log.Warn("tasks of a lost connection", "err", err)
			}
			cancel()
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-c.unpark:
		case <-timer.C:
		case <-x.ended:
			timer.Stop()
			return
		case <-c.srv.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// nudge has waitParked look again.
func (c *conn) nudge() {
	select {
	case c.unpark <- struct{}{}:
	default:
	}
}

// expire ends the wait for a reassignment.
func (c *conn) expire() {
	c.mu.Lock()
	c.keepUntil = time.Time{}
	c.mu.Unlock()
	c.nudge()
}

// free ends a connection, whose tasks may then be reassigned. It returns when nothing is received by it any more.
func (c *conn) free(ctx context.Context, cause error) error {
	c.kill(cause)
	select {
	case <-c.quit:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.mu.Lock()
	if c.parked && !c.freed && !c.expired {
		c.freed = true
		c.keepUntil = time.Now().Add(c.sess.kept())
	}
	c.mu.Unlock()
	c.nudge()
	return nil
}

// doneLocked keeps the outcome of a task whose connection was lost.
func (c *conn) doneLocked(t *task) {
	t.phase = phaseDone
	if t.delivered {
		c.sess.taskEnded(t)
		t.delivered = false
	}
	if t.ordered {
		c.ordered, t.ordered = false, false
	}
	c.room.Broadcast()
}

// taskLocked finds a task by its initiator task tag.
func (c *conn) taskLocked(itt uint32, lun uint64) *task {
	for _, t := range c.slots {
		if t != nil && t.itt == itt && t.LUN == lun {
			return t
		}
	}
	return nil
}

// reassign carries out TASK REASSIGN (RFC 7143 7.2.2, 11.5.1). at is what the request's own stream has proved; sendLocked
// answers it.
func (c *conn) reassign(h *header, at scsi.Stamp, sendLocked func(byte)) {
	x := c.sess
	send := func(response byte) {
		c.mu.Lock()
		defer c.mu.Unlock()
		sendLocked(response)
	}
	if x.params.ErrorRecoveryLevel < 2 {
		send(tmrNoReassign)
		return
	}
	x.reassigning.Lock()
	defer x.reassigning.Unlock()
	itt, exp := h.u32(20), h.u32(36)
	conns := x.connections()
	slices.Reverse(conns) // the newest first
	for _, o := range conns {
		o.mu.Lock()
		t := o.taskLocked(itt, h.lun())
		for t != nil && o != c && (t.preparing || t.phase == phaseAdmitting || t == o.filling) {
			o.room.Wait()
			t = o.taskLocked(itt, h.lun())
		}
		switch {
		case t == nil:
			o.mu.Unlock()
			continue
		case t.aborted: // given up, but it still runs
			id := t.Request.ID
			wait := newCountdown(1, func(err error) {
				if err != nil {
					c.complain("task reassignment", "err", err)
					send(tmrRejected)
					return
				}
				send(tmrNoTask)
			})
			t.awaitLocked(wait)
			o.mu.Unlock()
			x.target.AbortTask(id, wait.done)
			return
		case o == c || !o.freed:
			o.mu.Unlock()
			send(tmrAllegiant)
			return
		}
		o.mu.Unlock()
		if c.adopt(o, t, itt, exp, at, sendLocked) {
			o.nudge()
			return
		}
	}
	for _, o := range conns {
		o.mu.Lock()
		answer, data, found := keptStatus{}, (*sentData)(nil), false
		lost, freed := o.dead && o != c && o.recovery != nil, o.freed
		if lost {
			answer, data, found = o.recovery.takeAnswer(itt, freed)
		}
		o.mu.Unlock()
		switch {
		case !found:
			continue
		case !freed:
			send(tmrAllegiant)
		default:
			c.answerAgain(answer, data, exp, sendLocked)
			o.nudge()
		}
		return
	}
	if x.manages(itt) { // 11.5.1: only SCSI tasks are reassigned
		send(tmrRejected)
		return
	}
	send(tmrNoTask)
}

// adopt takes a task over from a lost connection; false if it has gone meanwhile.
func (c *conn) adopt(o *conn, t *task, itt, exp uint32, at scsi.Stamp, sendLocked func(byte)) bool {
	c.mu.Lock()
	o.mu.Lock()
	switch {
	case t.home.Load() != o || int(t.slot) >= len(o.slots) || o.slots[t.slot] != t || t.itt != itt || t.aborted:
		o.mu.Unlock()
		c.mu.Unlock()
		return false
	case c.dead || len(c.freeSlots) == 0 && len(c.slots) >= slotsMax || t.preparing || t.phase == phaseAdmitting:
		o.mu.Unlock()
		sendLocked(tmrRejected)
		c.mu.Unlock()
		return true
	}
	o.unseatLocked(t)
	o.unqueueLocked(t)
	t.home.Store(c)
	o.stashMem -= t.stashCost
	c.stashMem += t.stashCost
	o.room.Broadcast()
	o.mu.Unlock()
	c.seatLocked(t)
	if t.immediate {
		c.immediate++
	}
	if t.phase > phaseWaiting {
		c.running++
		c.writeMem += t.writeCost
		c.readMem += t.readCost
		c.takeLocked(t.writeCost + t.readCost)
		c.ordered = c.ordered || t.ordered
	}
	if t.phase < phaseRunning {
		t.restartLocked(exp)
		t.restamp(at)
	}
	if t.phase == phaseWaiting {
		c.queueLocked(t)
	}
	gen, slot := t.gen, t.slot
	sendLocked(tmrComplete) // before it becomes effective; it may let go of the lock meanwhile
	run := false
	if c.slots[slot] == t && t.gen == gen && !t.aborted {
		switch t.phase {
		case phaseReceiving:
			run = c.advanceLocked(t)
		case phaseDone:
			c.dropLocked(t)
			if !c.dead {
				c.respondLocked(t)
			}
			c.recycleLocked(t)
			c.flushLocked()
		}
	}
	if len(c.waiting) > 0 {
		c.admitLocked()
	}
	c.mu.Unlock()
	if run {
		c.sess.nexus.Execute(&t.Command)
	}
	return true
}

// restartLocked makes void what the initiator was asked for by the lost connection: what is missing is asked for anew,
// with R2Ts numbered from the first that it has not seen.
func (t *task) restartLocked(exp uint32) {
	if len(t.r2ts) > 0 && before(t.r2ts[0].sn, t.r2tSN) {
		first := t.r2ts[0].sn
		if exp != 0 && !before(t.r2tSN, exp) {
			first = exp
		}
		t.r2tSN = first
	} else if exp != 0 && before(exp, t.r2tSN) {
		t.r2tSN = exp
	}
	t.r2ts = t.r2ts[:0]
	t.unsolicited, t.lost, t.silent = false, false, 0
	t.asked = t.got
}

// restamp is rule R9 of a task that was reassigned before it began. A command that proved nothing goes on proving
// nothing.
func (t *task) restamp(at scsi.Stamp) {
	r := &t.Request
	if r.Stamp == (scsi.Stamp{}) || !at.Newer(r.Stamp) {
		return
	}
	if r.Began == (scsi.Stamp{}) {
		r.Began = r.Stamp
	}
	r.Stamp = at
}

// answers reports that there are responses which nobody has acknowledged.
func (r *recovery) answers() bool {
	return slices.ContainsFunc(r.statuses, func(k keptStatus) bool { return k.h.opcode() == opResponse })
}

// takeAnswer finds the response to a task, and its data; with remove they are the caller's.
func (r *recovery) takeAnswer(itt uint32, remove bool) (k keptStatus, d *sentData, found bool) {
	for i := len(r.statuses) - 1; i >= 0; i-- {
		if k = r.statuses[i]; k.h.opcode() != opResponse || k.h.itt() != itt {
			continue
		}
		if !remove {
			return k, nil, true
		}
		r.statuses = slices.Delete(r.statuses, i, i+1)
		r.count(-len(k.data), 0)
		for j, x := range r.data {
			if x.itt == itt && x.statSN == k.h.u32(24) {
				r.data = slices.Delete(r.data, j, j+1)
				r.count(0, -x.n)
				return k, x, true
			}
		}
		return k, nil, true
	}
	return keptStatus{}, nil, false
}

// answerAgain sends the response to a task that was answered by a lost connection, and what the initiator lacks of its
// data. Where the data were given up (recovery.go) the task can't be brought to its end.
func (c *conn) answerAgain(k keptStatus, d *sentData, exp uint32, sendLocked func(byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || k.reads && d == nil && exp != k.h.u32(36) {
		if d != nil {
			d.release()
		}
		sendLocked(tmrNoTask)
		return
	}
	sendLocked(tmrComplete)
	if c.dead {
		if d != nil {
			d.release()
		}
		return
	}
	h := k.h
	if d != nil {
		d.received(exp)
		d.segment = int(c.params.MaxSendDataSegment)
		h.put32(36, c.sendPiecesLocked(d, d.pieces, 0xffffffff))
	}
	c.numberLocked(&h, true)
	c.appendPDULocked(&h, k.data)
	if d != nil {
		d.statSN = c.statSN - 1
		c.recovery.keepData(d)
	}
	c.recovery.markReads(h.u32(24), k.reads)
	c.flushLocked()
}

// received takes the data acknowledgement of a reassignment (RFC 7143 11.5.6): pieces before exp, as they were cut then,
// need not come again. A number that makes no sense is ignored.
func (d *sentData) received(exp uint32) {
	pieces, off := d.pieces, d.bytes
	for off < d.n && before(pieces, exp) {
		m := min(d.segment, d.n-off)
		if d.burst > 0 {
			m = min(m, d.burst-off%d.burst)
		}
		pieces, off = pieces+1, off+m
	}
	if pieces == exp {
		d.pieces, d.bytes = pieces, off
	}
}
