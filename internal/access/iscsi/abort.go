package iscsi

import (
	"errors"
	"slices"
	"sync"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// errPing and errReset are why connections end.
var (
	errPing  = errors.New("initiator answers no ping")
	errReset = errors.New("target cold reset")
)

// awaitLocked has wait count an aborted task that runs and that bars at the owner don't stop: what it has under way takes effect
// until it ends (rule R9: who is told that a task is aborted must not find it at work).
func (t *task) awaitLocked(wait *countdown) {
	if t.phase == phaseRunning && t.Lingers() {
		wait.add()
		t.gone = append(t.gone, wait.done)
	}
}

// abortOne aborts the session's task with an initiator task tag, on whichever connection.
func (x *Session) abortOne(itt uint32, lun uint64, wait *countdown) (id scsi.RequestID, found bool) {
	for _, c := range x.connections() {
		if id, found = c.abortOne(itt, lun, wait); found {
			break
		}
	}
	return id, found
}

// abortOne aborts the task with an initiator task tag.
func (c *conn) abortOne(itt uint32, lun uint64, wait *countdown) (id scsi.RequestID, found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.slots {
		if t != nil && t.itt == itt && t.LUN == lun && !t.aborted {
			id, t.barred = t.Request.ID, true
			t.awaitLocked(wait)
			c.abortLocked(t)
			return id, true
		}
	}
	return id, false
}

// abortOwn aborts all tasks of a session that are meant, by its own initiator's wish; wait counts those that linger.
func (x *Session) abortOwn(wait *countdown, meant func(*task) bool) {
	for _, c := range x.connections() {
		c.abortWhere(func(t *task) bool {
			if !meant(t) {
				return false
			}
			t.awaitLocked(wait)
			return true
		})
	}
}

// endCopies ends the session's third-party copies, also those in the background; wait counts what they have under way.
func (x *Session) endCopies(wait *countdown) {
	for _, c := range x.connections() {
		c.mu.Lock()
		for _, t := range c.slots {
			if t == nil || t.phase != phaseRunning || !t.Lingers() {
				continue
			}
			t.awaitLocked(wait)
			if !t.aborted {
				c.abortLocked(t)
			}
		}
		c.mu.Unlock()
	}
	wait.add()
	x.nexus.Close(func() { wait.done(nil) })
}

// abortWhere aborts all tasks that are meant, and says how many.
func (c *conn) abortWhere(meant func(*task) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.slots {
		if t != nil && !t.aborted && meant(t) {
			c.abortLocked(t)
			n++
		}
	}
	return n
}

// clear aborts the tasks of all nexuses on this server at one logical unit of a target, and establishes the
// unit attention: for the nexuses that lost something to another's CLEAR TASK SET, for all after a reset. It gives
// the connections of others that lost something; wait counts the copies in the background that end.
func (s *Server) clear(by *Session, lun uint16, all bool, a reserve.Attention, wait *countdown) (others []*conn) {
	for _, x := range s.sessionsLike(by) {
		n := 0
		for _, c := range x.connections() {
			m := c.abortWhere(func(t *task) bool { return t.lun == lun })
			if n += m; m > 0 && x != by {
				c.tellAborted(lun)
				others = append(others, c)
			}
		}
		wait.add()
		x.nexus.CancelCopies(lun, func() { wait.done(nil) })
		if all || n > 0 && x != by {
			x.Post(lun, a)
		}
	}
	return others
}

// tellAborted tells an initiator that negotiated it that its tasks at a logical unit are gone (asynchronous message
// 5). It need not send data for them any more; the tags that it was given for that are not given again soon.
func (c *conn) tellAborted(lun uint16) {
	const tasksAborted = 5
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fullFeature && !c.dead && c.sess.params.TaskReporting == reportFastAbort {
		c.asyncLocked(tasksAborted, scsi.LUNField(lun), 0, 0, 0)
	}
}

// Clear aborts the commands of the session at one logical unit without responses and establishes a unit
// attention there: what another initiator's reset, CLEAR TASK SET or PREEMPT AND ABORT does to it. With
// ifAborted the condition is established only if there was something to abort.
func (x *Session) Clear(lun uint16, a reserve.Attention, ifAborted bool) {
	n := 0
	for _, c := range x.connections() {
		m := c.abortWhere(func(t *task) bool { return t.lun == lun })
		if n += m; m > 0 {
			c.tellAborted(lun)
		}
	}
	x.nexus.CancelCopies(lun, func() {})
	if n > 0 || !ifAborted {
		x.Post(lun, a)
	}
}

// sessionsLike lists the sessions that have the same logical units as one: those of its target, as far as they are of its
// scope.
func (s *Server) sessionsLike(by *Session) []*Session {
	list := s.sessionsOf(by.targetName)
	own, ok := by.target.(Scoped)
	if !ok {
		return list
	}
	return slices.DeleteFunc(list, func(x *Session) bool {
		other, ok := x.target.(Scoped)
		return !ok || other.Scope() != own.Scope()
	})
}

// dropTarget ends all sessions of a target, telling the initiators (asynchronous message 3: all connections
// of the session will be dropped).
func (s *Server) dropTarget(by *Session) {
	for _, x := range s.sessionsLike(by) {
		x.drop(errReset)
	}
}

// drop ends a session by our own will, telling the initiator (asynchronous message 3).
func (x *Session) drop(cause error) {
	const lastWords = time.Second // for an initiator that reads slowly
	const dropsAll = 3
	for _, c := range x.close() {
		c.mu.Lock()
		if !c.dead && c.fullFeature {
			_ = c.nc.SetWriteDeadline(time.Now().Add(lastWords))
			c.asyncLocked(dropsAll, 0, 0, uint16(x.params.DefaultTime2Wait), 0) // nothing is kept of it
		}
		c.mu.Unlock()
		c.flushWait()
		c.kill(cause)
	}
}

// announceDrop tells the initiator by the session's other connections that one was dropped (asynchronous message 2).
func (x *Session) announceDrop(gone *conn) {
	const drops = 2
	for _, c := range x.connections() {
		c.mu.Lock()
		if c != gone && !c.dead && c.fullFeature {
			c.asyncLocked(drops, 0, gone.cid, uint16(x.params.DefaultTime2Wait), x.retains())
		}
		c.mu.Unlock()
	}
}

// pinger pings all sessions at the configured interval until the server closes.
func (s *Server) pinger() {
	tick := time.NewTicker(s.cfg.PingEvery)
	defer tick.Stop()
	var conns []*conn
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			conns = conns[:0]
			s.mu.Lock()
			for c := range s.mu.conns {
				conns = append(conns, c)
			}
			s.mu.Unlock()
			for _, c := range conns {
				if c.ping(now, s.cfg.PingTimeout) {
					c.sess.announceDrop(c)
				}
			}
			for _, x := range s.Sessions() {
				x.watchGap(now, s.cfg.GapTimeout)
			}
			clear(conns)
		}
	}
}

// countdown calls a function once several others have completed, with the first error.
type countdown struct {
	mu   sync.Mutex
	left int
	err  error
	then func(error)
}

// newCountdown waits for n completions; with none to wait for, it completes at once.
func newCountdown(n int, then func(error)) *countdown {
	d := &countdown{left: n, then: then}
	if n == 0 {
		then(nil)
	}
	return d
}

// add makes it wait for one more; it has not completed yet.
func (d *countdown) add() {
	d.mu.Lock()
	d.left++
	d.mu.Unlock()
}

func (d *countdown) done(err error) {
	d.mu.Lock()
	if d.err == nil {
		d.err = err
	}
	d.left--
	last, first := d.left == 0, d.err
	d.mu.Unlock()
	if last {
		d.then(first)
	}
}
