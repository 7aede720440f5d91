package initiator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// manage is the session's own goroutine.
//
//	up ──connection lost──> recovering ──login──> up          (commands are sent again)
//	                            └──may not, or not in time──> closed   (commands fail)
//	up, recovering ──Close──> closing ──> closed
func (s *Session) manage() {
	defer close(s.done)
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		ticked := false
		select {
		case <-s.ctx.Done():
			s.end(ErrClosed)
			return
		case <-s.kick:
		case <-retry.C:
		case <-tick.C:
			ticked = true
		}
		if cn := s.broken(); cn != nil {
			if err := s.recover(cn); err != nil {
				s.end(err)
				return
			}
		}
		if wait := s.resumeHeld(time.Now()); wait > 0 {
			retry.Reset(wait)
		}
		if ticked {
			s.tick(time.Now())
		}
	}
}

func (s *Session) broken() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cn := range s.conns {
		if cn.err != nil {
			return cn
		}
	}
	return nil
}

// flushAll sends what is queued anywhere. The lock must not be held.
func (s *Session) flushAll() {
	s.mu.Lock()
	s.pumpLocked()
	conns := s.conns
	s.mu.Unlock()
	for _, cn := range conns {
		cn.flush()
	}
}

// resumeHeld sends commands whose pause is over again; it returns how long the next one has to wait, 0 if none is.
func (s *Session) resumeHeld(now time.Time) time.Duration {
	s.mu.Lock()
	if s.held.n == 0 || s.state != stateUp {
		s.mu.Unlock()
		return 0
	}
	var wait time.Duration
	held := s.held.take()
	for c := held.pop(); c != nil; c = held.pop() {
		if d := c.task.due.Sub(now); d > 0 {
			if wait == 0 || d < wait {
				wait = d
			}
			s.held.push(c)
			continue
		}
		c.task.state = taskQueued
		s.pending.push(c)
	}
	s.mu.Unlock()
	s.flushAll()
	return wait
}

// tick looks after silence and timeouts.
func (s *Session) tick(now time.Time) {
	s.mu.Lock()
	var pings []*Command
	for _, cn := range s.conns {
		if cn.err != nil {
			continue
		}
		cn.idleTicks++
		if cn.activity {
			cn.activity, cn.idleTicks = false, 0
		}
		silent := time.Duration(cn.idleTicks) * tickInterval
		switch {
		case s.cfg.NopInterval < 0 || s.cfg.NopTimeout < 0:
		case cn.ping != nil && silent > s.cfg.NopInterval+s.cfg.NopTimeout:
			cn.failLocked(fmt.Errorf("no answer to a ping for %s: %w", silent, ErrTimeout))
		case cn.ping == nil && silent >= s.cfg.NopInterval:
			c := nopCommand(nil)
			c.task.conn = cn
			c.Done = func(*Command) {
				s.mu.Lock()
				cn.ping = nil
				s.mu.Unlock()
			}
			cn.ping = c
			pings = append(pings, c)
		}
		if s.params.ErrorRecoveryLevel > 0 {
			cn.retransmitLocked(now, s.cfg.RetransmitAfter)
		}
	}
	var late []*Command
	for i := range s.tags.slots {
		c := s.tags.slots[i].cmd
		if c == nil || c.task.kind != kindSCSI && c.task.kind != kindTMF || c.task.abort != nil {
			continue
		}
		if d := s.timeoutOf(c); d > 0 && now.Sub(c.task.started) > d {
			late = append(late, c)
		}
	}
	s.mu.Unlock()
	for _, c := range pings {
		if err := s.submit(c); err != nil {
			c.Done(c)
		}
	}
	for _, c := range late {
		s.abort(c, ErrTimeout)
	}
	s.flushAll()
}

// recover brings a session with a lost connection back. It returns why it could not.
func (s *Session) recover(lost *conn) error {
	start := time.Now()
	s.mu.Lock()
	cause := lost.err
	level := s.params.ErrorRecoveryLevel
	closing := s.state >= stateClosing
	s.mu.Unlock()
	if closing {
		return ErrClosed // the target hangs up after a logout
	}
	if level == 2 && s.cfg.ReconnectTimeout > 0 {
		err := s.recoverConnection(lost)
		if err == nil {
			s.reconnected(start)
			return nil
		}
		s.cfg.log().Warn("connection not recovered, logging in anew", "target", s.cfg.Target, "err", err)
	}

	// RFC 7143 7.1.4.1: session recovery. All connections go, then the same ISID logs in with TSIH 0.
	s.mu.Lock()
	s.state = stateRecovering
	conns := s.conns
	for _, cn := range conns {
		cn.failLocked(fmt.Errorf("session recovery: %w", cause))
	}
	s.mu.Unlock()
	for _, cn := range conns {
		cn.wg.Wait()
	}
	s.cfg.log().Info("connection lost", "target", s.cfg.Target, "err", cause)
	if s.cfg.ReconnectTimeout <= 0 {
		return fmt.Errorf("%w: %w", ErrConnectionLost, cause)
	}
	s.requeue(cause)
	deadline := start.Add(s.cfg.ReconnectTimeout)
	ctx, cancel := context.WithDeadline(s.ctx, deadline)
	defer cancel()
	delay := s.cfg.ReconnectDelay
	for {
		err := s.establish(ctx)
		if err == nil {
			s.reconnected(start)
			s.flushAll()
			return nil
		}
		var le *LoginError
		if errors.As(err, &le) && le.permanent() && !s.cfg.Discovery && errors.Is(err, ErrAuthentication) {
			return err
		}
		select {
		case <-ctx.Done():
			if s.ctx.Err() != nil {
				return ErrClosed
			}
			return fmt.Errorf("%w: %w; no login for %s: %w", ErrConnectionLost, cause, s.cfg.ReconnectTimeout, err)
		case <-time.After(delay):
		}
		delay = min(2*delay, time.Second)
	}
}

func (s *Session) reconnected(start time.Time) {
	s.mu.Lock()
	s.reconnects++
	n := s.reconnects
	s.mu.Unlock()
	if f := s.cfg.OnReconnect; f != nil {
		f(n, time.Since(start))
	}
}

// requeue puts all commands that were under way back into the queue in the order in which they were submitted, ends
// those that may not be sent twice, and forgets the old session's tags.
func (s *Session) requeue(cause error) {
	var finished list
	s.mu.Lock()
	var again []*Command
	for i := range s.tags.slots {
		c := s.tags.slots[i].cmd
		if c == nil {
			continue
		}
		s.detachLocked(c)
		if c.task.kind == kindSCSI && !c.NoReplay && c.task.abort == nil {
			c.Retries++
			again = append(again, c)
			continue
		}
		c.Err = fmt.Errorf("%w: %w", ErrConnectionLost, cause)
		s.finishLocked(c, &finished)
	}
	for l := s.held.take(); l.n > 0; {
		again = append(again, l.pop())
	}
	for l := s.pending.take(); l.n > 0; {
		again = append(again, l.pop())
	}
	for l := s.urgent.take(); l.n > 0; {
		c := l.pop()
		if c.task.kind == kindSCSI && c.task.conn == nil {
			again = append(again, c)
			continue
		}
		c.Err = fmt.Errorf("%w: %w", ErrConnectionLost, cause)
		s.finishLocked(c, &finished)
	}
	slices.SortFunc(again, func(a, b *Command) int {
		if a.task.seq < b.task.seq {
			return -1
		}
		return 1
	})
	for _, c := range again {
		c.resetResult()
		c.task.state = taskQueued
		if c.Immediate {
			s.urgent.push(c)
		} else {
			s.pending.push(c)
		}
	}
	s.mu.Unlock()
	s.deliver(finished)
}

// end fails everything that is left and closes the session.
func (s *Session) end(err error) {
	s.cancel()
	s.mu.Lock()
	s.state = stateClosed
	s.err = err
	conns := s.conns
	s.conns = nil
	for _, cn := range conns {
		cn.failLocked(err)
	}
	s.mu.Unlock()
	for _, cn := range conns {
		cn.wg.Wait()
	}
	var finished list
	s.mu.Lock()
	for i := range s.tags.slots {
		if c := s.tags.slots[i].cmd; c != nil {
			c.Err = err
			s.finishLocked(c, &finished)
		}
	}
	for _, l := range []*list{&s.held, &s.pending, &s.urgent} {
		for c := l.pop(); c != nil; c = l.pop() {
			c.Err = err
			s.finishLocked(c, &finished)
		}
	}
	s.mu.Unlock()
	s.deliver(finished)
}

// recoverConnection is recovery level 2 (RFC 7143 7.1.4.3, 7.2.2): the connection is logged in again under its CID,
// which logs the old one out, and its tasks are reassigned to the new one; commands that the target has not seen are
// sent again as they were.
func (s *Session) recoverConnection(lost *conn) error {
	lost.wg.Wait()
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.LoginTimeout)
	defer cancel()
	s.mu.Lock()
	base, tsih, cmdSN := s.params, s.tsih, s.cmdSN
	s.mu.Unlock()
	l := &loginConn{cid: lost.cid, tsih: tsih, cmdSN: cmdSN}
	r, _, err := dialLogin(ctx, &s.cfg, lost.addr, l, base, false)
	if err != nil {
		return err
	}
	if r.tsih != tsih {
		l.c.Close()
		return fmt.Errorf("target answers TSIH %d, the session has %d", r.tsih, tsih)
	}
	cn, err := s.newConn(l, r)
	if err != nil {
		return err
	}

	var finished list
	var reassign []*Command
	s.mu.Lock()
	// What the target has seen, the login says: the rest is sent as it was, that is reassigned.
	if snLess(s.expCmdSN, r.expCmdSN) {
		s.expCmdSN = r.expCmdSN
	}
	i := slices.Index(s.conns, lost)
	s.conns = slices.Clone(s.conns)
	s.conns[i] = cn
	tsk := s.tasksOfLocked(lost)
	for _, c := range tsk {
		t := &c.task
		switch {
		case t.kind != kindSCSI:
			c.Err = fmt.Errorf("%w: %w", ErrConnectionLost, lost.err)
			s.finishLocked(c, &finished)
			continue
		case t.ordered && !snLess(t.cmdSN, s.expCmdSN):
			s.moveLocked(c, cn)
			cn.resendLocked(c)
		default:
			s.moveLocked(c, cn)
			reassign = append(reassign, c)
		}
	}
	s.mu.Unlock()
	cn.start()
	s.deliver(finished)
	for _, c := range reassign {
		s.reassign(c, cn)
	}
	s.flushAll()
	return nil
}

// tasksOfLocked lists cn's tasks in order of CmdSN.
func (s *Session) tasksOfLocked(cn *conn) []*Command {
	var out []*Command
	for i := range s.tags.slots {
		if c := s.tags.slots[i].cmd; c != nil && c.task.conn == cn {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *Command) int { return int(int32(a.task.cmdSN - b.task.cmdSN)) })
	return out
}

func (s *Session) moveLocked(c *Command, to *conn) {
	if from := c.task.conn; from != nil {
		from.inFlight--
	}
	c.task.conn = to
	to.inFlight++
}

// reassign asks the target to go on with c on the connection cn.
func (s *Session) reassign(c *Command, cn *conn) {
	s.mu.Lock()
	t := &c.task
	next := t.nextDataSN
	if t.gap != nil {
		for sn := range t.gap.missing {
			if snLess(sn, next) {
				next = sn
			}
		}
		// The target begins again at next; what came after it will come again.
		t.gap = nil
	}
	if len(c.In) > 0 && len(c.Out) > 0 {
		next = 0
	}
	t.nextDataSN = next
	m := tmfCommand(TMFTaskReassign, c.LUN, t.itt, 0, next)
	m.task.conn = cn
	itt := t.itt
	s.mu.Unlock()
	m.Done = func(m *Command) {
		if m.Err == nil && m.task.resp.BHS[2] == 0 {
			return
		}
		// The target does not know the task any more, or does not allow it: only the caller's data say what it did,
		// so it is sent again as a new one.
		var finished list
		s.mu.Lock()
		if s.tags.get(itt) == c && c.task.state == taskActive && c.task.refs == 0 && c.task.conn != nil && c.task.conn.err == nil {
			s.detachLocked(c)
			if c.NoReplay {
				c.Err = ErrConnectionLost
				s.finishLocked(c, &finished)
			} else {
				c.Retries++
				c.resetResult()
				c.task.state = taskHeld
				c.task.due = time.Time{}
				s.held.push(c)
				s.kickLocked()
			}
		}
		s.mu.Unlock()
		s.deliver(finished)
	}
	if err := s.submit(m); err != nil {
		return // the session ends, and c with it
	}
}
