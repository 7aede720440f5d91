package iscsi

import (
	"encoding/binary"
	"slices"

	"dozo/internal/access/scsi"
)

// iSCSIProtocolLevel 2: what RFC 7144 adds.

// protocolLevel is the highest that we know.
const protocolLevel = 2

// The task management functions of RFC 7144 and the response that they have.
const (
	tmfQueryTask    = 9
	tmfQueryTaskSet = 10
	tmfNexusReset   = 11
	tmfQueryEvent   = 12

	tmrSucceeded = 7 // the task is there, or the event
)

// manageLevel2 carries out a function of RFC 7144.
func (c *conn) manageLevel2(h *header, answer func(byte), inform func(byte, [3]byte), done func(error)) {
	x := c.sess
	if x.params.ProtocolLevel < 2 {
		answer(tmrNotSupported)
		return
	}
	function := h[1] & 0x7f
	lun, hasLUN := x.nexus.HasLUN(h.lun())
	if !hasLUN && function != tmfNexusReset {
		answer(tmrNoLUN)
		return
	}
	there := func(meant func(*task) bool) {
		for _, o := range x.connections() {
			if o.has(meant) {
				answer(tmrSucceeded)
				return
			}
		}
		answer(tmrComplete)
	}
	switch function {
	case tmfQueryTask:
		ref := h.u32(20)
		there(func(t *task) bool { return t.itt == ref && t.lun == lun })
	case tmfQueryTaskSet:
		there(func(t *task) bool { return t.lun == lun })
	case tmfQueryEvent:
		if x.unordered {
			x.prepare.Lock()
		}
		info, pending := x.nexus.Event(lun)
		if x.unordered {
			x.prepare.Unlock()
		}
		if !pending {
			answer(tmrComplete)
			return
		}
		inform(tmrSucceeded, info)
	case tmfNexusReset:
		units := x.target.Units()
		wait := newCountdown(1+2*len(units), done)
		x.abortOwn(wait, func(*task) bool { return true })
		for _, u := range units {
			x.target.AbortTaskSet(x.initiator.Nexus, u.LUN, wait.done)
			x.nexus.Lose(u.LUN, x.id, wait.done)
		}
		wait.done(nil)
	}
}

// has says whether the connection has a task that is meant.
func (c *conn) has(meant func(*task) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.slots {
		if t != nil && !t.aborted && t.phase != phaseDone && meant(t) {
			return true
		}
	}
	return false
}

// defaultPriority is what a command counts as that states none: the middle of 1, the first, to 15.
const defaultPriority = 8

// priorityOf takes the PRI field of a SCSI Command.
func (x *Session) priorityOf(h *header) uint8 {
	if p := h[2] >> 4; x.params.ProtocolLevel >= 2 && p != 0 {
		return p
	}
	return defaultPriority
}

// queueLocked puts a task among those that wait for admission: before SIMPLE ones of lower priority (SAM-5 8.7), behind
// all others.
func (c *conn) queueLocked(t *task) {
	if t.head { // SAM-5 8.6.2: before all that has not begun, the newest first
		c.waiting = slices.Insert(c.waiting, 0, t)
		return
	}
	c.waiting = append(c.waiting, t)
	if t.ordered {
		return
	}
	for i := len(c.waiting) - 1; i > 0; i-- {
		w := c.waiting[i-1]
		if w.ordered || w.head || w == c.filling || w.priority <= t.priority {
			return
		}
		c.waiting[i-1], c.waiting[i] = t, w
	}
}

// busyRetry is the retry delay timer code for BUSY (SAM-5 5.3.2), in steps of 100 ms: a volume that moves to another
// owner, which is why most commands end so, is back in about that.
const busyRetry = 1

// qualify sets the status qualifier of a SCSI Response.
func (c *conn) qualify(h *header, s scsi.Status) {
	if c.sess.params.ProtocolLevel >= 2 && s == scsi.StatusBusy {
		binary.BigEndian.PutUint16(h[8:], busyRetry)
	}
}
