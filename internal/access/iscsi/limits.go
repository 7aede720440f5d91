package iscsi

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Bounds against initiators that come in floods. A connection that is not through its login yet counts against its source;
// LoginTimeout ends it. What such connections have to say is logged, but not without limit.

const (
	// defaultLoginsPerSource is above what a host with hundreds of volumes starts at once after a portal has come back,
	// and far below ConnectionsMax, so that no source keeps the others out.
	defaultLoginsPerSource = 512
	// noticesMax of connections that never became sessions are logged in noticesEvery, and as many of what one connection does
	// wrong without being ended for it.
	noticesMax   = 20
	noticesEvery = 10 * time.Second
	// linesMax are logged in noticesEvery of all sessions together: more than begin and end when a portal comes back that hundreds
	// of hosts use, and far less than initiators that log in again and again would have written.
	linesMax = 1000
	// discoverySegment is what a discovery session takes in one PDU, the default of RFC 7143 13.12, and discoveryOut how many bytes of
	// answers may wait for one that does not read.
	discoverySegment = 8 << 10
	discoveryOut     = 64 << 10
	// defaultDiscoveryIdle ends discovery sessions that ask for nothing more.
	defaultDiscoveryIdle = time.Minute
)

// crowdedMax is how many connections that gave way to newer ones may still be ending.
const crowdedMax = 64

// errCrowded ends a connection that has not logged in, or only for discovery, when there are as many as there may be and a newer one
// comes: who means it is through within a moment, so that connections which say nothing, or ask for what everybody may know, do not
// keep others out. Those that were lost, and whose tasks are kept, give way after them: the initiator hears that the tasks are gone.
var errCrowded = errors.New("too many connections, and it has not logged in to a target yet")

// perSource is how many connections one address may have: a host that opens sessions without end leaves room for others.
func (c *Config) perSource() int { return c.ConnectionsMax - c.ConnectionsMax/4 }

// oldestLoginLocked finds the connection that has gone without a session with a target for the longest time, of those of an address if
// it is a valid one; nil if all have one that they still have.
func (s *Server) oldestLoginLocked(of netip.Addr) (oldest *conn) {
	for c := range s.mu.conns {
		lost := c.lost.Load()
		switch {
		case c.in.Load() && !lost || c.gaveWay, of.IsValid() && c.peer.Remote.Addr() != of:
		case oldest == nil, oldest.lost.Load() && !lost, oldest.lost.Load() == lost && c.came.Before(oldest.came):
			oldest = c
		}
	}
	if oldest != nil {
		oldest.gaveWay = true
	}
	return oldest
}

// sources counts logins under way by address.
type sources struct {
	mu    sync.Mutex
	count map[netip.Addr]int
}

// enter counts one more, unless there are max.
func (s *sources) enter(a netip.Addr, max int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[a] >= max {
		return false
	}
	if s.count == nil {
		s.count = map[netip.Addr]int{}
	}
	s.count[a]++
	return true
}

func (s *sources) leave(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[a]--; s.count[a] <= 0 {
		delete(s.count, a)
	}
}

// notices is a throttle.
type notices struct {
	mu      sync.Mutex
	since   time.Time
	said    int
	omitted int
}

// allow says whether something may be logged now, and how much was not before it.
func (n *notices) allow(now time.Time, most int) (ok bool, omitted int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Sub(n.since) > noticesEvery {
		omitted = n.omitted
		n.since, n.said, n.omitted = now, 0, 0
	}
	if n.said == most {
		n.omitted++
		return false, 0
	}
	n.said++
	return true, omitted
}

// notice logs what happened to a connection that never became a session.
func (s *Server) notice(msg string, args ...any) {
	ok, omitted := s.notices.allow(time.Now(), noticesMax)
	if !ok {
		return
	}
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	s.cfg.Log.Warn(msg, args...)
}

// say logs what happened to a session.
func (s *Server) say(log *slog.Logger, level slog.Level, msg string, args ...any) {
	ok, omitted := s.lines.allow(time.Now(), linesMax)
	if !ok {
		return
	}
	if omitted > 0 {
		args = append(args, "omitted_of_all", omitted)
	}
	log.Log(s.ctx, level, msg, args...)
}

// complain logs what an initiator does wrong without its connection being ended for it.
func (c *conn) complain(msg string, args ...any) {
	ok, omitted := c.complaints.allow(time.Now(), noticesMax)
	if !ok {
		return
	}
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	c.srv.say(c.log, slog.LevelWarn, msg, args...)
}
