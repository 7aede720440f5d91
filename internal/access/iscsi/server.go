package iscsi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Config is what a Server needs. Zero values of the limits mean the defaults below.
type Config struct {
	Provider Provider
	Log      *slog.Logger
	Group    uint16 // target portal group tag of this access server, not 0
	Offers   Offers // zero: DefaultOffers

	LoginTimeout time.Duration // of a connection that is not yet in full feature phase
	// PingEvery is the interval of NOP-Ins (rule R9 wants 1 s); negative means never, for tests only.
	PingEvery time.Duration
	// PingTimeout ends a connection that answers no ping for so long, although its host takes what is sent.
	PingTimeout time.Duration
	// FenceTimeout ends a connection that does not acknowledge for so long what the reset of another session waits for.
	FenceTimeout time.Duration
	// GapTimeout ends a session whose next command has not come for so long although later ones have.
	GapTimeout time.Duration
	QueueDepth int // commands that a session may have outstanding
	// WriteMemory and ReadMemory bound, per session, the buffers of commands that run; unsolicited data
	// come on top, at most QueueDepth times FirstBurstLength.
	WriteMemory, ReadMemory int
	MemoryMax               int // of the buffers of all connections together (memory.go)
	ConnectionsMax          int // connections at a time, beyond which new ones are closed
	LoginsPerSource         int // of them, from one address and not through their login yet
	// DiscoveryIdle ends a discovery session in which nothing is asked for so long.
	DiscoveryIdle time.Duration
	// Busy, if there is one, is told of every SCSI command; it must not wait.
	Busy func()
}

// Defaults, chosen by us.
const (
	defaultLoginTimeout = 15 * time.Second
	defaultPingEvery    = time.Second
	// A single-threaded initiator that does something else for a minute is not dead. A host that is shows by its
	// TCP, much sooner: unackedTimeout.
	defaultPingTimeout = 2 * time.Minute
	unackedTimeout     = 10 * time.Second
	// Above the time that initiators take to send a lost command again, below that of their command timeouts.
	defaultGapTimeout = 20 * time.Second
	// Below what initiators wait for the answer to a reset, 15 to 30 s.
	defaultFenceTimeout = 8 * time.Second
	defaultQueueDepth   = 256
	defaultMemory       = 32 << 20
	defaultConnections  = 4096
	defaultMemoryMax    = 1 << 30
	// outMax is how many bytes of answers may wait for the socket before the reader stops reading.
	outMax = 4 << 20
	// immediateMax is how many immediate commands may be outstanding beside the window.
	immediateMax = 32
)

func (c *Config) fill() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.QueueDepth = min(c.QueueDepth, slotsMax-immediateMax-1)
	if c.Offers.MaxBurstLength == 0 {
		c.Offers = DefaultOffers()
	}
	if c.Busy == nil {
		c.Busy = func() {}
	}
	set(&c.LoginTimeout, defaultLoginTimeout)
	set(&c.PingEvery, defaultPingEvery)
	set(&c.PingTimeout, defaultPingTimeout)
	set(&c.FenceTimeout, defaultFenceTimeout)
	set(&c.GapTimeout, defaultGapTimeout)
	set(&c.QueueDepth, defaultQueueDepth)
	set(&c.WriteMemory, defaultMemory)
	set(&c.ReadMemory, defaultMemory)
	set(&c.MemoryMax, defaultMemoryMax)
	set(&c.ConnectionsMax, defaultConnections)
	set(&c.LoginsPerSource, defaultLoginsPerSource)
	set(&c.DiscoveryIdle, defaultDiscoveryIdle)
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server serves any number of portals with one Provider.
type Server struct {
	cfg    Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	budget  budget
	kept    shared // at recovery level 1, for initiators that ask again
	stashes shared // data that came unasked, before there was memory for their commands
	outs    shared // answers that wait for the socket
	telling *telling
	untold  untold
	sources sources // of logins under way and of discovery sessions
	notices notices
	lines   notices // of all sessions

	mu struct {
		sync.Mutex
		closed    bool
		listeners []net.Listener
		conns     map[*conn]struct{}
		purses    map[netip.Addr]*purse
		sessions  map[uint16]*Session // by TSIH
		nextTSIH  uint16
		// mayCopy are the sessions with a target, those too that have ended while third-party copies of theirs have something under way.
		mayCopy map[*Session]struct{}
	}
}

// New makes a server; Serve gives it portals.
func New(cfg Config) *Server {
	cfg.fill()
	s := &Server{cfg: cfg, telling: newTelling()}
	s.budget.max, s.budget.share = int64(cfg.MemoryMax), int64(cfg.MemoryMax/cfg.ConnectionsMax)
	s.kept.max, s.stashes.max, s.outs.max = int64(cfg.MemoryMax/4), int64(cfg.MemoryMax/4), int64(cfg.MemoryMax/4)
	s.untold.max = cfg.MemoryMax / 16
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.conns = map[*conn]struct{}{}
	s.mu.purses = map[netip.Addr]*purse{}
	s.mu.sessions = map[uint16]*Session{}
	s.mu.mayCopy = map[*Session]struct{}{}
	if cfg.PingEvery > 0 {
		s.wg.Go(s.pinger)
	}
	return s
}

// ErrServerClosed is what Serve returns after Close.
var ErrServerClosed = errors.New("iscsi server closed")

// Serve accepts connections until the listener fails or the server is closed. It takes the listener over.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		_ = l.Close()
		return ErrServerClosed
	}
	s.mu.listeners = append(s.mu.listeners, l)
	s.mu.Unlock()
	for delay := time.Duration(0); ; {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors, most likely: wait for some to come back rather than give the portal up.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.cfg.Log.Warn("accept", "err", err)
			select {
			case <-time.After(delay):
				continue
			case <-s.ctx.Done():
				return ErrServerClosed
			}
		}
		delay = 0
		s.start(nc)
	}
}

// start runs a connection.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	var crowded *conn // gives way
	from, max := c.peer.Remote.Addr(), s.cfg.ConnectionsMax
	full := len(s.mu.conns) >= s.cfg.ConnectionsMax
	var of netip.Addr // who has to give way
	p := s.mu.purses[from]
	if p == nil {
		p = new(purse)
	}
	if p.conns >= s.cfg.perSource() {
		full, of, max = true, from, s.cfg.perSource()
	}
	if full && !s.mu.closed && len(s.mu.conns) < s.cfg.ConnectionsMax+crowdedMax {
		if crowded = s.oldestLoginLocked(of); crowded != nil {
			full = false
		}
	}
	if s.mu.closed || full {
		s.mu.Unlock()
		switch {
		case full && of.IsValid():
			s.notice("connection refused: too many from its address", "peer", nc.RemoteAddr(), "max", max)
		case full:
			s.notice("connection refused: too many", "peer", nc.RemoteAddr(), "max", max)
		}
		_ = nc.Close()
		return
	}
	if !s.sources.enter(from, s.cfg.LoginsPerSource) {
		s.mu.Unlock()
		s.notice("connection refused: too many logins from its address", "peer", nc.RemoteAddr(), "max", s.cfg.LoginsPerSource)
		_ = nc.Close()
		return
	}
	s.mu.conns[c] = struct{}{}
	s.mu.purses[from] = p
	p.conns++
	c.purse = p
	s.wg.Add(1)
	s.mu.Unlock()
	if crowded != nil {
		crowded.kill(errCrowded)
		crowded.expire()
	}
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.mu.conns, c)
		if p.conns--; p.conns == 0 {
			delete(s.mu.purses, from)
		}
		s.mu.Unlock()
	}()
}

// Close ends all connections and returns when nothing of the server runs any more, commands included. A
// second call waits as well.
func (s *Server) Close() error {
	s.mu.Lock()
	s.mu.closed = true
	listeners := s.mu.listeners
	s.mu.listeners = nil
	conns := make([]*conn, 0, len(s.mu.conns))
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	s.cancel()
	for _, l := range listeners {
		_ = l.Close()
	}
	for _, c := range conns {
		c.kill(ErrServerClosed)
	}
	s.wg.Wait()
	return nil
}

// Sessions lists what is open, ordered by TSIH.
func (s *Server) Sessions() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Session, 0, len(s.mu.sessions))
	for _, x := range s.mu.sessions {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *Session) int { return int(a.tsih) - int(b.tsih) })
	return all
}

// sessionsOf lists the sessions of a target.
func (s *Server) sessionsOf(target string) []*Session {
	all := s.Sessions()
	return slices.DeleteFunc(all, func(x *Session) bool { return x.targetName != target })
}

// Logout asks the initiators of a target (of all, if the name is empty) to log out within a time, after which
// their connections are closed: for a planned stop, or when a target goes away. It returns at once.
func (s *Server) Logout(target string, within time.Duration) {
	for _, x := range s.Sessions() {
		if target == "" || x.targetName == target {
			x.Logout(within)
		}
	}
}

// errReplaced ends the older of two sessions of one initiator port.
var errReplaced = errors.New("session reinstated by the initiator")

// register enters a new session, after the older ones of the same initiator port, target and group have gone
// (RFC 7143 6.3.5, session reinstatement).
func (s *Server) register(x *Session) error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	var old []*Session
	for _, o := range s.mu.sessions {
		if !o.discovery && !x.discovery && o.targetName == x.targetName && o.initiator.Nexus == x.initiator.Nexus {
			old = append(old, o)
			delete(s.mu.sessions, o.tsih)
		}
	}
	for {
		s.mu.nextTSIH++
		if _, taken := s.mu.sessions[s.mu.nextTSIH]; s.mu.nextTSIH != 0 && !taken {
			break
		}
		if len(s.mu.sessions) == 65535 {
			s.mu.Unlock()
			return ErrOutOfResources
		}
	}
	x.tsih = s.mu.nextTSIH
	s.mu.sessions[x.tsih] = x
	if x.target != nil {
		s.mu.mayCopy[x] = struct{}{}
	}
	s.mu.Unlock()
	for _, o := range old {
		if from, now := o.peer.Remote.Addr(), x.peer.Remote.Addr(); from != now && o.heard(time.Now()) {
			s.notice("a session was reinstated from another address, though its initiator was there: two hosts have one initiator name, or one of them is a copy",
				"initiator", x.peer.Initiator, "target", x.targetName, "peer", now, "before", from)
		}
		o.kill(errReplaced)
	}
	return nil
}

// heardLately is how long ago an initiator that was there has sent something, or has left a ping unanswered: more than the time between
// pings, and less than a host takes to log in again that has lost its connection without a sign.
const heardLately = 2 * time.Second

// heard says that something has come from the session's initiator a moment ago.
func (x *Session) heard(now time.Time) bool {
	return slices.ContainsFunc(x.connections(), func(c *conn) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.dead && (c.pingWaiting.IsZero() || now.Sub(c.pingWaiting) < heardLately)
	})
}

// unregister removes a session unless it was replaced already.
func (s *Server) unregister(x *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.sessions[x.tsih] == x {
		delete(s.mu.sessions, x.tsih)
	}
}

// ended forgets a session of which nothing runs any more, once its copies have nothing under way.
func (s *Server) ended(x *Session) {
	x.nexus.Close(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.mu.mayCopy, x)
	})
}

// endCopiesBefore returns when no third-party copy of an older session of the same initiator port, target and group has anything
// under way. What copies do to other volumes is not refused by those that the new session is for (rule R9).
func (s *Server) endCopiesBefore(ctx context.Context, x *Session) error {
	var older []*Session
	s.mu.Lock()
	for o := range s.mu.mayCopy {
		if o != x && o.targetName == x.targetName && o.initiator.Nexus == x.initiator.Nexus {
			older = append(older, o)
		}
	}
	s.mu.Unlock()
	over := make(chan error, 1)
	wait := newCountdown(1, func(err error) { over <- err })
	for _, o := range older {
		o.endCopies(wait)
	}
	wait.done(nil)
	select {
	case err := <-over:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) sessionByTSIH(tsih uint16) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.sessions[tsih]
}

// randomID is for RequestID.Conn.
func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:])
}

// addrPort is the address of one end of a connection, as far as it has one.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
