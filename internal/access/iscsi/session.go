package iscsi

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// Session is one iSCSI session: up to MaxConnections connections with one command numbering.
type Session struct {
	srv        *Server
	tsih       uint16
	id         uint64 // RequestID.Conn of the leading connection: what the target's owner knows the session by
	discovery  bool
	initiator  *scsi.Initiator
	alias      string
	auth       Auth
	targetName string // empty in a discovery session
	target     Target // nil in a discovery session
	nexus      *scsi.Nexus
	params     Params
	peer       Peer
	opened     time.Time

	// RFC 7143 4.2.2.1. maxCmdSN grows by one with every numbered command that ends, so the window that
	// initiators see is the queue depth less what is outstanding.
	expCmdSN, maxCmdSN atomic.Uint32

	// unordered: commands may arrive in another order than that of their numbers.
	unordered bool
	order     ordering
	prepare   sync.Mutex   // held around Nexus.Prepare and Event if unordered
	live      atomic.Int32 // connections that have not left
	// reassigning is held around a reassignment, so that nobody else locks two connections at a time.
	reassigning sync.Mutex
	ended       chan struct{} // closed with mu.closed

	readCommands, writeCommands, otherCommands atomic.Uint64
	readBytes, writtenBytes                    atomic.Uint64

	mu struct {
		sync.Mutex
		conns  []*conn
		closed bool // the last connection has left: nobody may join
		// logout ends the session at logoutAt, since the initiator was asked to log out.
		logout   *time.Timer
		logoutAt time.Time
		gap      uint32    // ExpCmdSN where later commands wait for it
		gapped   time.Time // since when; zero: none waits
	}
}

// SessionInfo is what there is to say about a session.
type SessionInfo struct {
	TSIH      uint16
	Discovery bool
	Initiator string
	Alias     string
	Auth      Auth
	ISID      [6]byte
	Target    string
	Group     uint16
	Remotes   []string // of its connections
	Local     string   // of the first
	Opened    time.Time
	Params    Params

	ReadCommands, WriteCommands, OtherCommands uint64
	ReadBytes, WrittenBytes                    uint64
	Outstanding                                int
	Connections                                int
}

// Info gives the present state.
func (x *Session) Info() SessionInfo {
	i := SessionInfo{
		TSIH: x.tsih, Discovery: x.discovery, Initiator: x.initiator.Nexus.Initiator, Alias: x.alias, Auth: x.auth,
		ISID: x.initiator.Nexus.ISID, Target: x.targetName, Group: x.peer.Group,
		Local: x.peer.Local.String(), Opened: x.opened, Params: x.params,
		ReadCommands: x.readCommands.Load(), WriteCommands: x.writeCommands.Load(), OtherCommands: x.otherCommands.Load(),
		ReadBytes: x.readBytes.Load(), WrittenBytes: x.writtenBytes.Load(),
	}
	for _, p := range x.Peers() {
		i.Remotes = append(i.Remotes, p.Remote.String())
	}
	for _, c := range x.connections() {
		c.mu.Lock()
		if !c.parked {
			i.Connections++
		}
		i.Outstanding += c.tasks
		c.mu.Unlock()
	}
	return i
}

// Peers are who is at the other ends of the session's connections, the oldest first; where all of them are lost and their
// tasks are kept, who opened the session.
func (x *Session) Peers() (list []Peer) {
	for _, c := range x.connections() {
		if !c.isParked() {
			list = append(list, c.peer)
		}
	}
	if len(list) == 0 {
		list = append(list, x.peer)
	}
	return list
}

// Nexus is the session's I_T nexus, nil for a discovery session.
func (x *Session) Nexus() *scsi.Nexus { return x.nexus }

// Target is what the session's Provider opened for it, nil for a discovery session.
func (x *Session) Target() Target { return x.target }

// Post establishes a unit attention at one logical unit of the session.
func (x *Session) Post(lun uint16, a reserve.Attention) {
	if x.nexus != nil {
		x.nexus.Post(lun, a)
	}
}

// errKilled ends a session by the administrator's wish.
var errKilled = errors.New("session killed by the administrator")

// Kill ends the session at once. The initiator may log in again.
func (x *Session) Kill() { x.drop(errKilled) }

func (x *Session) kill(cause error) {
	for _, c := range x.close() {
		c.kill(cause)
	}
}

// errLogoutIgnored ends a session whose initiator was asked to log out and didn't.
var errLogoutIgnored = errors.New("initiator was asked to log out and did not")

// Logout asks the initiator to log out (asynchronous message 1) and ends the session if it hasn't after a
// time: all of it, also what is kept of connections that were lost and those that have joined since. It returns at once.
func (x *Session) Logout(within time.Duration) {
	end := time.Now().Add(within)
	x.mu.Lock()
	if x.mu.closed {
		x.mu.Unlock()
		return
	}
	if x.mu.logout != nil && end.Before(x.mu.logoutAt) {
		x.mu.logout.Stop()
		x.mu.logout = nil
	}
	if x.mu.logout == nil {
		x.mu.logout, x.mu.logoutAt = time.AfterFunc(within, func() { x.drop(errLogoutIgnored) }), end
	}
	x.mu.Unlock()
	for _, c := range x.connections() {
		c.askLogout(within)
	}
}

// close lets no connection join any more; it gives those that there are.
func (x *Session) close() []*conn {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closeLocked()
	return append([]*conn(nil), x.mu.conns...)
}

func (x *Session) closeLocked() {
	if !x.mu.closed {
		x.mu.closed = true
		close(x.ended)
		if x.mu.logout != nil {
			x.mu.logout.Stop()
		}
	}
}

// proved is the newest moment that the byte streams of the session's connections have proved.
func (x *Session) proved() (newest scsi.Stamp) {
	for _, c := range x.connections() {
		c.mu.Lock()
		if at := c.stamps.Proved(); at.Newer(newest) {
			newest = at
		}
		c.mu.Unlock()
	}
	return newest
}

func (x *Session) connections() []*conn {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]*conn(nil), x.mu.conns...)
}

// allParkedLocked says that all connections were lost, and their tasks are kept.
func (x *Session) allParkedLocked() bool {
	return !slices.ContainsFunc(x.mu.conns, func(c *conn) bool { return !c.isParked() })
}
