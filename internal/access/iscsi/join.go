package iscsi

import (
	"context"
	"errors"
	"slices"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// loginError is a refusal that no Provider made.
type loginError struct {
	status loginStatus
	what   string
}

func (e *loginError) Error() string { return e.what }

// open gives a login that is through its session: a new one, or with a TSIH the one that it names.
func (c *conn) open(ctx context.Context, l *login, cmdSN uint32) (*Session, error) {
	c.cid = l.cid
	if l.tsih != 0 {
		return c.join(ctx, l)
	}
	return c.lead(ctx, l, cmdSN)
}

// lead makes the session of a leading connection: it opens the target, lets the new session replace older ones
// of the same nexus, and waits until their commands are barred.
func (c *conn) lead(ctx context.Context, l *login, cmdSN uint32) (*Session, error) {
	x := &Session{srv: c.srv, id: c.id, discovery: l.discovery, alias: l.alias, auth: l.used(), targetName: l.target,
		params: l.ops.result(), peer: c.peer, opened: time.Now(), ended: make(chan struct{})}
	x.initiator = &scsi.Initiator{
		Nexus:  reserve.NexusID{Initiator: c.peer.Initiator, ISID: l.isid, Port: c.peer.Group},
		Remote: c.peer.Remote.String(),
	}
	if !x.discovery {
		x.initiator.Proved = x.proved
	}
	x.expCmdSN.Store(cmdSN)
	x.maxCmdSN.Store(cmdSN + uint32(c.srv.cfg.QueueDepth) - 1)
	x.unordered = !x.discovery && (x.params.MaxConnections > 1 || x.params.ErrorRecoveryLevel > 0)
	x.order.next, x.order.held = cmdSN, map[uint32]held{}
	c.agreed = x.params
	if !l.discovery {
		target, err := c.srv.cfg.Provider.Login(ctx, c.peer, l.target, l.isid)
		if err != nil {
			return nil, err
		}
		x.target = target
		x.nexus = scsi.NewNexus(x.initiator, l.target, target.Units()...)
		if x.params.ProtocolLevel >= 2 {
			x.nexus.AllowQueries()
		}
	}
	fail := func(err error) (*Session, error) {
		c.srv.unregister(x)
		if x.target != nil {
			c.srv.ended(x)
			x.target.Close()
		}
		return nil, err
	}
	_, _ = x.attach(c) // a session that nobody knows yet takes it
	if err := c.srv.register(x); err != nil {
		return fail(err)
	}
	if err := c.srv.endCopiesBefore(ctx, x); err != nil {
		return fail(err)
	}
	if x.target != nil {
		if err := x.target.Bar(ctx, x.initiator.Nexus, c.id); err != nil {
			return fail(err)
		}
	}
	c.srv.cfg.Provider.Opened(x)
	return x, nil
}

// join adds a connection to a session, or reinstates one (RFC 7143 6.3.4): the tasks of the old connection with
// the same CID end without notice, and the login is answered only once they can't take effect any more (R9).
func (c *conn) join(ctx context.Context, l *login) (*Session, error) {
	x := c.srv.sessionByTSIH(l.tsih)
	nexus := reserve.NexusID{Initiator: c.peer.Initiator, ISID: l.isid, Port: c.peer.Group}
	if x == nil || x.discovery != l.discovery || x.targetName != l.target || x.initiator.Nexus != nexus {
		return nil, &loginError{statusNoSession, "no such session"}
	}
	if x.target != nil {
		if err := x.target.Admits(c.peer); err != nil {
			return nil, err
		}
	}
	own := l.ops.result()
	c.agreed = x.params
	c.agreed.HeaderDigest, c.agreed.DataDigest = own.HeaderDigest, own.DataDigest
	c.agreed.MaxSendDataSegment, c.agreed.MaxRecvDataSegment = own.MaxSendDataSegment, own.MaxRecvDataSegment
	old, err := x.attach(c)
	if err != nil {
		return nil, err
	}
	end := (*conn).terminate
	if x.keepsTasks() {
		end = (*conn).free // RFC 7143 6.3.4: at recovery level 2 its tasks may be reassigned
	}
	for _, o := range old {
		if err := end(o, ctx, errReinstated); err != nil {
			x.leave(c)
			x.detach(c)
			return nil, err
		}
	}
	return x, nil
}

// errReinstated ends a connection that a newer one with its CID replaces.
var errReinstated = errors.New("connection reinstated by the initiator")

// terminate ends a connection with its tasks, and returns when none of them can take effect any more.
func (c *conn) terminate(ctx context.Context, cause error) error {
	c.kill(cause)
	select {
	case <-c.quit:
	case <-ctx.Done():
		return ctx.Err()
	}
	x := c.sess
	if x == nil {
		return nil // its login had not been answered
	}
	x.leave(c)
	err := x.endTasks(ctx, c)
	c.tellCleared()
	c.expire()
	return err
}

// abandon aborts all tasks of a connection, and gives the IDs of those that run; wait counts those that linger. Once these are
// barred and those are over the initiator is to be told (tellCleared).
func (c *conn) abandon(wait *countdown) (ids []scsi.RequestID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearedLocked()
	for _, t := range c.slots {
		if t == nil {
			continue
		}
		if t.phase == phaseRunning && !t.barred {
			t.barred = true
			ids = append(ids, t.Request.ID)
		}
		t.awaitLocked(wait)
		if !t.aborted {
			c.abortLocked(t)
		}
	}
	return ids
}

// clearedLocked notes at which logical units tasks end because their connection does.
func (c *conn) clearedLocked() {
	for _, t := range c.slots {
		switch {
		case t == nil || t.aborted:
		case t.phase == phaseHeld && !t.delivered && !before(t.cmdSN, c.sess.expCmdSN.Load()):
			// The initiator was never told that it had come: it is discarded, not terminated (11.14).
		default:
			c.noteClearedLocked(t)
		}
	}
}

func (c *conn) noteClearedLocked(t *task) {
	if !slices.Contains(c.cleared, t.lun) {
		c.cleared = append(c.cleared, t.lun)
	}
}

// tellCleared establishes the unit attention for tasks that ended with their connection while their session goes on: the
// initiator can't know what became of them (RFC 7143 7.5).
func (c *conn) tellCleared() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, lun := range c.cleared {
		c.sess.Post(lun, reserve.ClearedByProtocol)
	}
	c.cleared = nil
}

// endTasks aborts all tasks of a connection, and returns when they can't take effect anywhere any more.
func (x *Session) endTasks(ctx context.Context, c *conn) error {
	done := make(chan error, 1)
	wait := newCountdown(1, func(err error) { done <- err })
	for _, id := range c.abandon(wait) {
		wait.add()
		x.target.AbortTask(id, wait.done)
	}
	wait.done(nil)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attach makes a connection one of the session's. It gives those that it replaces.
func (x *Session) attach(c *conn) (old []*conn, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.closed {
		return nil, &loginError{statusNoSession, "the session has ended"}
	}
	others := 0
	var parked []*conn
	for _, o := range x.mu.conns {
		lost := o.isParked()
		if lost {
			parked = append(parked, o)
		}
		switch {
		case o.cid == c.cid:
			old = append(old, o)
		case !o.left && !lost:
			others++
		}
	}
	for len(parked) > int(x.params.MaxConnections) {
		parked[0].expire() // a connection that comes and goes doesn't pile up tasks
		parked = parked[1:]
	}
	if others >= int(x.params.MaxConnections) {
		return nil, &loginError{statusTooManyConnections, "more connections than MaxConnections"}
	}
	x.mu.conns = append(x.mu.conns, c)
	x.live.Add(1)
	return old, nil
}

// leave says that a connection ends, although some of its tasks may still run. The session ends with its last
// connection; last says that this was it.
func (x *Session) leave(c *conn) (last bool) {
	x.mu.Lock()
	if !c.left {
		c.left = true
		last = x.live.Add(-1) == 0
		if last {
			x.closeLocked()
		}
	}
	closed := x.mu.closed
	x.mu.Unlock()
	if closed {
		x.srv.unregister(x)
	}
	return last
}

// detach says that nothing of a connection runs any more; with the last one, nothing of the session does.
func (x *Session) detach(c *conn) {
	x.mu.Lock()
	for i, o := range x.mu.conns {
		if o == c {
			x.mu.conns = append(x.mu.conns[:i:i], x.mu.conns[i+1:]...)
			break
		}
	}
	last := x.mu.closed && len(x.mu.conns) == 0
	x.mu.Unlock()
	if !last {
		return
	}
	if x.target != nil {
		x.srv.ended(x)
		x.target.Close()
	}
	x.srv.cfg.Provider.Closed(x)
}
