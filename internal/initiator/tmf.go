package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// TMF is a task management function (RFC 7143 11.5.1).
type TMF byte

// Task management functions.
const (
	TMFAbortTask       TMF = 1
	TMFAbortTaskSet    TMF = 2
	TMFClearACA        TMF = 3
	TMFClearTaskSet    TMF = 4
	TMFLogicalUnitRst  TMF = 5
	TMFTargetWarmReset TMF = 6
	TMFTargetColdReset TMF = 7
	TMFTaskReassign    TMF = 8
)

// TMFResponse is the target's answer (RFC 7143 11.6.1): 0 done, 1 no such task, 2 no such LUN, 3 task still
// allegiant, 4 reassignment not supported, 5 function not supported, 6 not authorized, 255 rejected.
type TMFResponse byte

// TMFTimeout is how long a task management function may take before its connection is given up.
const TMFTimeout = 15 * time.Second

func tmfCommand(fn TMF, lun LUN, ref, refCmdSN, expDataSN uint32) *Command {
	c := &Command{Timeout: TMFTimeout}
	c.task.kind = kindTMF
	h := &c.task.bhs
	h[0] = byte(OpTaskMgmt) | flagImmediate
	h[1] = flagFinal | byte(fn)
	h.SetLUN(lun)
	h.SetUint32(offTTT, ref)
	h.SetUint32(32, refCmdSN)
	h.SetUint32(offDataSN, expDataSN)
	return c
}

// TaskManagement runs fn; ref is the task that ABORT TASK means. Commands that the function ended, if it was done,
// finish with ErrAborted.
func (s *Session) TaskManagement(ctx context.Context, fn TMF, lun LUN, ref *Command) (TMFResponse, error) {
	s.mu.Lock()
	itt, refSN := uint32(tagNone), uint32(0)
	var cn *conn
	if ref != nil {
		if ref.task.state != taskActive {
			s.mu.Unlock()
			return 1, nil
		}
		itt, refSN, cn = ref.task.itt, ref.task.cmdSN, ref.task.conn
	}
	m := tmfCommand(fn, lun, itt, refSN, 0)
	m.task.conn = cn
	s.mu.Unlock()
	if err := s.do(ctx, m); err != nil {
		return 0xff, fmt.Errorf("task management function %d: %w", fn, err)
	}
	resp := TMFResponse(m.task.resp.BHS[2])
	if resp == 0 || fn == TMFAbortTask && resp == 1 {
		s.aborted(fn, lun, itt, m.task.cmdSN, ErrAborted)
	}
	return resp, nil
}

// aborted ends the commands that a finished function has ended at the target.
func (s *Session) aborted(fn TMF, lun LUN, itt, before uint32, err error) {
	var finished list
	s.mu.Lock()
	for i := range s.tags.slots {
		c := s.tags.slots[i].cmd
		if c == nil || c.task.kind != kindSCSI || c.task.state != taskActive {
			continue
		}
		hit := false
		switch fn {
		case TMFAbortTask:
			hit = c.task.itt == itt
		case TMFAbortTaskSet, TMFClearTaskSet, TMFLogicalUnitRst:
			hit = c.LUN == lun && snLess(c.task.cmdSN, before)
		case TMFTargetWarmReset, TMFTargetColdReset:
			hit = snLess(c.task.cmdSN, before)
		}
		if hit {
			c.Err = err
			s.finishLocked(c, &finished)
		}
	}
	s.mu.Unlock()
	s.deliver(finished)
}

// abort takes c back: out of a queue at once, from the target by ABORT TASK. c then finishes with err, or with its
// status if that comes first.
func (s *Session) abort(c *Command, err error) {
	var finished list
	s.mu.Lock()
	t := &c.task
	switch t.state {
	case taskQueued, taskHeld:
		if s.pending.remove(c) || s.urgent.remove(c) || s.held.remove(c) {
			c.Err = err
			s.finishLocked(c, &finished)
		}
	case taskActive:
		if t.abort != nil {
			break
		}
		if t.kind != kindSCSI {
			// Nothing aborts these; without an answer the connection is of no use.
			c.Err = err
			if t.conn != nil {
				t.conn.failLocked(fmt.Errorf("%w: no answer to %s", ErrTimeout, t.bhs.Op()))
			}
			break
		}
		m := tmfCommand(TMFAbortTask, c.LUN, t.itt, t.cmdSN, 0)
		m.task.conn = t.conn
		itt := t.itt
		m.Done = func(m *Command) {
			if m.Err == nil {
				s.aborted(TMFAbortTask, 0, itt, 0, err)
			}
		}
		t.abort = m
		s.mu.Unlock()
		if e := s.submit(m); e != nil {
			return // the session ends, and c with it
		}
		return
	}
	s.mu.Unlock()
	s.deliver(finished)
}

// Abort sends ABORT TASK for c and does not wait; c finishes with ErrAborted unless its status comes first.
func (s *Session) Abort(c *Command) { s.abort(c, ErrAborted) }

// AsyncEvent is an asynchronous message of the target (RFC 7143 11.9).
type AsyncEvent struct {
	Event, VCode  byte
	LUN           LUN
	P1, P2, P3    uint16
	Sense         []byte // event 0
	CID           uint16 // of the connection that it came on
	SenseReceived Sense
}

// Asynchronous events (RFC 7143 11.9.1).
const (
	AsyncSCSI           = 0
	AsyncLogoutRequest  = 1
	AsyncDropConnection = 2
	AsyncDropSession    = 3
	AsyncRenegotiate    = 4
	AsyncTasksAborted   = 5
)

// asyncLocked takes an asynchronous message. What it asks for is done by goroutines of its own that end with the
// session: the reader must go on reading for the answers to arrive.
func (cn *conn) asyncLocked(p *PDU) error {
	s := cn.s
	h := &p.BHS
	if dup, err := cn.statSNLocked(h, true); dup || err != nil {
		return err
	}
	ev := AsyncEvent{Event: h[36], VCode: h[37], LUN: h.LUN(), P1: h.Uint16(38), P2: h.Uint16(40), P3: h.Uint16(42), CID: cn.cid}
	if ev.Event == AsyncSCSI && len(p.Data) >= 2 {
		n := min(int(binary.BigEndian.Uint16(p.Data)), len(p.Data)-2)
		ev.Sense = append([]byte(nil), p.Data[2:2+n]...)
		ev.SenseReceived, _ = ParseSense(ev.Sense)
	}
	s.mu.Unlock()
	if f := s.cfg.OnAsync; f != nil {
		f(ev)
	}
	s.mu.Lock()
	switch ev.Event {
	case AsyncLogoutRequest:
		if !cn.leaving {
			cn.leaving = true
			limit := time.Duration(ev.P3) * time.Second
			cn.wg.Go(func() { cn.leave(limit) })
		}
	case AsyncDropConnection:
		for _, x := range s.conns {
			if x.cid == ev.P1 && x != cn {
				x.failLocked(errTargetDrops)
			}
		}
		if ev.P1 == cn.cid {
			return errTargetDrops
		}
	case AsyncDropSession:
		return errTargetDrops
	case AsyncRenegotiate:
		// The only key that full feature phase lets us declare again is our MaxRecvDataSegmentLength.
		c := &Command{}
		c.task.kind = kindText
		c.task.conn = cn
		c.task.bhs[0] = byte(OpText) | flagImmediate
		c.task.bhs[1] = flagFinal
		c.task.bhs.SetUint32(offTTT, tagNone)
		c.task.data = appendKeys(nil, []KeyValue{{"MaxRecvDataSegmentLength", fmt.Sprint(cn.frame.maxData)}})
		c.task.state = taskQueued
		c.Done = func(*Command) {}
		s.urgent.push(c)
	}
	return nil
}

var errTargetDrops = errors.New("target drops the connection")

// leave logs the connection out because the target asked: commands under way may finish first, as long as the target
// gives them. The session then recovers as from a loss, with nothing left to send again.
func (cn *conn) leave(limit time.Duration) {
	s := cn.s
	end := time.NewTimer(max(limit*3/4, tickInterval))
	defer end.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for waiting := true; waiting; {
		select {
		case <-cn.dead:
			return
		case <-end.C:
			waiting = false
		case <-poll.C:
			s.mu.Lock()
			waiting = cn.inFlight > 0
			s.mu.Unlock()
		}
	}
	c := logoutCommand(cn, logoutConnection)
	finished := make(chan struct{})
	c.Done = func(*Command) { close(finished) }
	if s.submit(c) == nil {
		select {
		case <-finished:
		case <-cn.dead:
		case <-time.After(limit + time.Second):
		}
	}
	s.mu.Lock()
	cn.failLocked(errors.New("logged out as the target asked"))
	s.mu.Unlock()
}

// Logout reasons (RFC 7143 11.14.1).
const (
	logoutSession    = 0
	logoutConnection = 1
)

func logoutCommand(cn *conn, reason byte) *Command {
	c := &Command{}
	c.task.kind = kindLogout
	c.task.conn = cn
	c.task.bhs[0] = byte(OpLogout) | flagImmediate
	c.task.bhs[1] = flagFinal | reason
	c.task.bhs.SetUint16(20, cn.cid)
	return c
}

// Close logs out, ends what is under way with ErrClosed, and returns when all goroutines of the session are gone.
// ctx bounds how long the target may take to answer the logout. A second call waits for the first.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	up := s.state == stateUp
	var lead *conn
	if up {
		s.state = stateClosing
		for _, cn := range s.conns {
			if cn.err == nil && !cn.leaving {
				lead = cn
				break
			}
		}
	} else if s.state == stateRecovering {
		s.state = stateClosing
	}
	s.mu.Unlock()
	var err error
	if lead != nil {
		c := logoutCommand(lead, logoutSession)
		finished := make(chan struct{})
		c.Done = func(*Command) { close(finished) }
		if err = s.submit(c); err == nil {
			select {
			case <-finished:
				if r := c.task.resp.BHS[2]; c.Err == nil && r != 0 {
					err = fmt.Errorf("logout: response %d", r)
				}
			case <-lead.dead:
			case <-ctx.Done():
				err = fmt.Errorf("logout: %w", ctx.Err())
			}
		}
	}
	s.cancel()
	<-s.done
	return err
}

// Kill drops the session without a logout, as a dying host does, and returns when its goroutines are gone.
func (s *Session) Kill() {
	s.mu.Lock()
	if s.state < stateClosing {
		s.state = stateClosing
	}
	s.mu.Unlock()
	s.cancel()
	<-s.done
}
