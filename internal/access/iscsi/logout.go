package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"time"
)

// logoutTold bounds how long a logout waits until what is behind the target knows of it.
const logoutTold = 2 * time.Second

// errLoggedOut ends a connection that another one of its session has logged out.
var errLoggedOut = errors.New("logged out by another connection of the session")

// Reasons and responses of a logout (RFC 7143 11.14.1, 11.15.1).
const (
	logoutSession    = 0
	logoutConnection = 1
	logoutRecovery   = 2

	logoutDone         = 0
	logoutNoConnection = 1
	logoutNoRecovery   = 2
	logoutFailed       = 3
)

// logout takes a Logout Request (RFC 7143 11.14).
func (c *conn) logout(h *header) error {
	if err := c.skipData(h); err != nil {
		return err
	}
	ok, err := c.arrive(h)
	if err != nil || !ok {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), logoutTold)
	defer cancel()
	var r header
	r[0], r[1] = opLogoutR, finalBit
	switch reason := h[1] & 0x7f; reason {
	case logoutSession:
		c.loggedOut, c.endsAll = true, true
		c.farewell(ctx)
	case logoutConnection:
		r[2] = c.logoutOne(ctx, binary.BigEndian.Uint16(h[20:]))
	case logoutRecovery:
		r[2] = c.logoutForRecovery(ctx, binary.BigEndian.Uint16(h[20:]))
	default:
		c.reject(h, rejectInvalidField)
		c.ended(h.immediate())
		return nil
	}
	r.put32(16, h.itt())
	binary.BigEndian.PutUint16(r[40:], uint16(c.params.DefaultTime2Wait))
	binary.BigEndian.PutUint16(r[42:], c.sess.retains())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended(h.immediate())
	c.numberLocked(&r, true)
	c.appendPDULocked(&r, nil)
	return nil
}

// logoutOne closes one connection of the session, this one or another; the session ends with its last one.
func (c *conn) logoutOne(ctx context.Context, cid uint16) (response byte) {
	x := c.sess
	if cid == c.cid {
		c.loggedOut = true
		if x.leave(c) {
			c.farewell(ctx)
			return logoutDone
		}
		c.endGather() // answers of commands that have ended go out before
		if err := x.endTasks(ctx, c); err != nil {
			c.log.Warn("logout", "err", err)
		}
		c.tellCleared()
		c.beginGather()
		return logoutDone
	}
	response = logoutNoConnection
	for _, o := range x.connections() {
		if o.cid != cid {
			continue
		}
		if err := o.terminate(ctx, errLoggedOut); err != nil {
			c.log.Warn("logout of another connection", "cid", cid, "err", err)
			return logoutFailed
		}
		response = logoutDone
	}
	return response
}

// logoutForRecovery closes a connection whose tasks are to go on by another one (RFC 7143 11.14.1, reason 2).
func (c *conn) logoutForRecovery(ctx context.Context, cid uint16) (response byte) {
	if !c.keepsTasks() {
		if c.sess.params.ErrorRecoveryLevel < 2 {
			return logoutNoRecovery
		}
		return c.logoutOne(ctx, cid) // DefaultTime2Retain is 0: there is nothing to go on with
	}
	if cid == c.cid {
		c.lets = true
		c.mu.Lock()
		c.freed = true
		c.mu.Unlock()
		return logoutDone
	}
	response = logoutNoConnection
	for _, o := range c.sess.connections() {
		if o.cid != cid {
			continue
		}
		if err := o.free(ctx, errLoggedOut); err != nil {
			c.log.Warn("logout of another connection", "cid", cid, "err", err)
			return logoutFailed
		}
		response = logoutDone
	}
	return response
}

// farewell tells what is behind the target that the session ends by the initiator's wish, and ends its third-party copies: those to other
// volumes are nothing that who is told refuses.
func (c *conn) farewell(ctx context.Context) {
	x := c.sess
	if x.target == nil {
		return
	}
	over := make(chan error, 1)
	wait := newCountdown(1, func(err error) { over <- err })
	x.endCopies(wait)
	wait.done(nil)
	x.target.Logout(ctx, x.initiator.Nexus, x.id)
	select {
	case <-over:
	case <-ctx.Done():
		c.log.Warn("logout", "err", ctx.Err())
	}
}
