package iscsi

import (
	"errors"
	"slices"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

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
	tmrAllegiant    = 3
	tmrNoReassign   = 4
	tmrNotSupported = 5
	tmrRejected     = 255
)

// taskManagement takes a Task Management Function Request. One that concerns a set of tasks is carried out when
// all commands numbered before it are here (RFC 7143 4.2.3.3).
func (c *conn) taskManagement(h *header) error {
	if err := c.skipData(h); err != nil {
		return err
	}
	at, ok, err := c.number(h)
	if err != nil || !ok {
		return err
	}
	if h.immediate() {
		c.mu.Lock()
		full := c.functions >= immediateMax
		if !full {
			c.functions++
		}
		c.mu.Unlock()
		if full {
			c.reject(h, rejectTooManyImmediate)
			return nil
		}
	}
	x, own := c.sess, *h
	run := func() { c.manageTasks(&own, at) }
	switch function := h[1] & 0x7f; {
	case !x.unordered:
		run()
	case !h.immediate():
		x.receive(h.cmdSN(), held{call: run, conn: c})
	case ofTaskSet(function):
		x.afterAll(h.cmdSN(), run)
	default:
		run()
	}
	return nil
}

// ofTaskSet reports the functions that concern more than one task.
func ofTaskSet(function byte) bool {
	switch function {
	case tmfAbortTaskSet, tmfClearTaskSet, tmfLUNReset, tmfWarmReset, tmfColdReset, tmfNexusReset, tmfQueryTaskSet:
		return true
	}
	return false
}

// manages says whether a tag is that of a task management function which is not answered yet.
func (x *Session) manages(itt uint32) bool {
	return slices.ContainsFunc(x.connections(), func(c *conn) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.managing, itt)
	})
}

// errFence ends a connection whose initiator doesn't acknowledge what another one's reset waits for.
var errFence = errors.New("initiator does not acknowledge what it was sent, and another one's task management function waits for that")

// fence calls then once the initiator has acknowledged all that was sent on the session's other connections
// (RFC 7143 4.2.2.3, response fence), and on those of other sessions where TaskReporting wants it: nobody must hear
// that tasks are gone and then get their responses.
func (c *conn) fence(others []*conn, then func()) {
	if c.sess.params.TaskReporting == reportRFC3720 {
		others = nil
	}
	for _, o := range c.sess.connections() {
		if o != c {
			others = append(others, o)
		}
	}
	wait := newCountdown(len(others), func(error) { then() })
	for _, o := range others {
		if o.sess == c.sess {
			o.whenAcknowledged(func() { wait.done(nil) })
			continue
		}
		// Who acknowledges nothing holds up another initiator, whose patience is shorter than ours with a session of its own.
		impatient := time.AfterFunc(c.srv.cfg.FenceTimeout, func() { o.kill(errFence) })
		o.whenAcknowledged(func() {
			impatient.Stop()
			wait.done(nil)
		})
	}
}

// manageTasks carries out a task management function. What it aborts on this server has no effect on the
// initiator from now on; the answer waits until the target's owner says the same.
func (c *conn) manageTasks(h *header, at scsi.Stamp) {
	function, itt, immediate := h[1]&0x7f, h.itt(), h.immediate()
	c.mu.Lock()
	if c.dead {
		c.ended(immediate)
		c.mu.Unlock()
		return
	}
	c.tasks++ // the connection isn't done before the answer is
	c.managing = append(c.managing, itt)
	c.mu.Unlock()
	var info [3]byte // additional response information (RFC 7144)
	sendLocked := func(response byte) {
		c.tasks--
		if i := slices.Index(c.managing, itt); i >= 0 {
			c.managing = slices.Delete(c.managing, i, i+1)
		}
		if c.ended(immediate); immediate {
			c.functions--
		}
		c.room.Broadcast()
		if c.dead {
			return
		}
		var r header
		r[0], r[1], r[2] = opTaskMgmtR, finalBit, response
		copy(r[8:], info[:])
		r.put32(16, itt)
		c.numberLocked(&r, true)
		c.appendPDULocked(&r, nil)
		c.flushLocked()
		if function == tmfColdReset && response == tmrComplete {
			c.srv.wg.Go(func() { c.srv.dropTarget(c.sess) })
		}
	}
	send := func(response byte) {
		c.mu.Lock()
		defer c.mu.Unlock()
		sendLocked(response)
	}
	var others []*conn // of other sessions that lost tasks
	answer := func(response byte) {
		if ofTaskSet(function) && response == tmrComplete {
			c.fence(others, func() { send(response) })
			return
		}
		send(response)
	}
	done := func(err error) {
		if err != nil {
			c.complain("task management", "function", function, "err", err)
			answer(tmrRejected)
			return
		}
		answer(tmrComplete)
	}
	lun, hasLUN := c.sess.nexus.HasLUN(h.lun())
	if !hasLUN && (function == tmfAbortTaskSet || function == tmfClearTaskSet || function == tmfLUNReset) {
		answer(tmrNoLUN)
		return
	}
	nexus, target := c.sess.initiator.Nexus, c.sess.target
	switch function {
	case tmfAbortTask:
		// RefTaskTag and RefCmdSN name the task. One that has not come must not run when it does (RFC 7143 11.6.1).
		wait := newCountdown(1, done)
		id, found := c.sess.abortOne(h.u32(20), h.lun(), wait)
		switch refSN := h.u32(32); {
		case found:
			target.AbortTask(id, wait.done)
		case c.sess.manages(h.u32(20)):
			answer(tmrRejected) // 11.5.1: a function is not to be aborted
		case c.sess.unordered && before(refSN, h.cmdSN()) && c.sess.skip(refSN):
			answer(tmrComplete)
		default:
			answer(tmrNoTask)
		}
	case tmfAbortTaskSet:
		wait := newCountdown(1, done)
		c.sess.abortOwn(wait, func(t *task) bool { return t.lun == lun })
		target.AbortTaskSet(nexus, lun, wait.done)
	case tmfClearTaskSet:
		wait := newCountdown(1, done)
		c.sess.abortOwn(wait, func(t *task) bool { return t.lun == lun })
		others = c.srv.clear(c.sess, lun, false, reserve.CommandsCleared, wait)
		target.ClearTaskSet(nexus, lun, wait.done)
	case tmfLUNReset:
		wait := newCountdown(1, done)
		c.sess.abortOwn(wait, func(t *task) bool { return t.lun == lun })
		others = c.srv.clear(c.sess, lun, true, reserve.DeviceReset, wait)
		target.ResetLUN(nexus, lun, wait.done)
	case tmfWarmReset, tmfColdReset:
		units := target.Units()
		wait := newCountdown(1+len(units), done)
		c.sess.abortOwn(wait, func(*task) bool { return true })
		for _, u := range units {
			others = append(others, c.srv.clear(c.sess, u.LUN, true, reserve.BusReset, wait)...)
		}
		for _, u := range units {
			target.ResetLUN(nexus, u.LUN, wait.done)
		}
		wait.done(nil)
	case tmfReassign:
		c.reassign(h, at, sendLocked)
	case tmfQueryTask, tmfQueryTaskSet, tmfQueryEvent, tmfNexusReset:
		c.manageLevel2(h, answer, func(response byte, event [3]byte) { info = event; send(response) }, done)
	case tmfClearACA:
		answer(tmrNotSupported)
	default:
		answer(tmrNotSupported)
	}
}
