package initiator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Config says whom to log in to and how. Zero values mean the defaults named.
type Config struct {
	Portal    string // host:port; port 3260 if it has none
	Target    string // TargetName
	Initiator string // InitiatorName; default DefaultInitiatorName
	Alias     string
	ISID      [6]byte // default: random, of the type that needs no registration (RFC 7143 11.12.5)
	Discovery bool    // a discovery session: Text only
	CHAP      CHAP
	// Connections wanted; the target may allow fewer. Default 1.
	Connections int
	Offer       *Offer // default DefaultOffer
	// Override forces keys of the login: replaces values, adds keys, and leaves out those with the value "-". The
	// answers are then not held against the rules.
	Override     []KeyValue
	SkipSecurity bool // begin in the operational stage

	// Poller, if there is one, reads the session's connections; it may be shared by many sessions.
	Poller *Poller

	Dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	Hooks Hooks
	Log   *slog.Logger // default: none
	// OnAsync is told of asynchronous messages, OnReconnect of each login after the first. Neither may block.
	OnAsync     func(AsyncEvent)
	OnReconnect func(n int, outage time.Duration)

	LoginTimeout time.Duration // of one connection; default 15 s
	// ReconnectTimeout is how long to try to log in again before commands fail; 0: not at all.
	ReconnectTimeout time.Duration
	ReconnectDelay   time.Duration // first pause between attempts, doubled up to 1 s; default 20 ms
	// Commands without an answer for so long are aborted and end with ErrTimeout; 0: never.
	CommandTimeout time.Duration
	// NopInterval is the silence after which a connection is pinged, NopTimeout how long the answer may take;
	// default 5 s each, negative: no pings.
	NopInterval, NopTimeout time.Duration
	// RetransmitAfter is when a command that the target has not acknowledged is sent again, at recovery level 1
	// and up; default 2 s.
	RetransmitAfter time.Duration
	// RetryLimit is how often a command is sent again after BUSY, TASK SET FULL or a unit attention before its
	// caller sees that; 0: never.
	RetryLimit int
}

// DefaultInitiatorName is used where no other is given.
const DefaultInitiatorName = "iqn.2026-01.dozo:initiator"

// tickInterval paces pings and timeouts, which are all of the order of seconds.
const tickInterval = 250 * time.Millisecond

func (c *Config) log() *slog.Logger { return c.Log }

func (c Config) withDefaults() Config {
	if c.Initiator == "" {
		c.Initiator = DefaultInitiatorName
	}
	if c.ISID == [6]byte{} {
		rand.Read(c.ISID[:])
		c.ISID[0] = 0x80
	}
	c.Connections = max(c.Connections, 1)
	if c.Offer == nil {
		o := DefaultOffer()
		c.Offer = &o
	}
	if c.Connections > c.Offer.MaxConnections {
		o := *c.Offer
		o.MaxConnections = c.Connections
		c.Offer = &o
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.LoginTimeout, 15*time.Second)
	def(&c.ReconnectDelay, 20*time.Millisecond)
	def(&c.NopInterval, 5*time.Second)
	def(&c.NopTimeout, 5*time.Second)
	def(&c.RetransmitAfter, 2*time.Second)
	c.Portal = withPort(c.Portal)
	return c
}

// Session is an iSCSI session. All methods may be called by several goroutines at once.
type Session struct {
	cfg    Config
	ctx    context.Context // the session's life
	cancel context.CancelFunc
	done   chan struct{} // closed when everything is gone
	kick   chan struct{} // wakes manage

	mu     sync.Mutex
	state  sessionState
	err    error // why it is closed
	params Params
	tsih   uint16
	portal string // moves with permanent redirects

	cmdSN, expCmdSN, maxCmdSN uint32

	conns   []*conn // replaced, never changed in place
	next    int     // connection for the next command
	corked  int     // readers that will flush after their callbacks
	tags    tagTable
	urgent  list // immediate requests, which the command window does not hold back
	pending list // waits for the window or for a connection
	held    list // waits for its time
	seq     uint64

	reconnects, strays, digestErrors int
	busyRetries                      int
}

type sessionState byte

const (
	stateUp sessionState = iota
	stateRecovering
	stateClosing
	stateClosed
)

// Dial logs in. The session lives until Close, or until it is lost and may not or can not reconnect.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	cfg = cfg.withDefaults()
	s := &Session{cfg: cfg, portal: cfg.Portal, done: make(chan struct{}), kick: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.establish(ctx); err != nil {
		s.cancel()
		return nil, err
	}
	go s.manage()
	return s, nil
}

// establish logs in all connections of a new session and starts them.
func (s *Session) establish(ctx context.Context) error {
	s.mu.Lock()
	portal := s.portal
	s.mu.Unlock()
	l := &loginConn{cmdSN: 1}
	r, moved, err := dialLogin(ctx, &s.cfg, portal, l, defaultParams(), true)
	if err != nil {
		return err
	}
	lead, err := s.newConn(l, r)
	if err != nil {
		return err
	}
	conns := []*conn{lead}
	for cid := 1; cid < min(s.cfg.Connections, r.params.MaxConnections); cid++ {
		l2 := &loginConn{cid: uint16(cid), tsih: r.tsih, cmdSN: 1}
		r2, _, err := dialLogin(ctx, &s.cfg, lead.addr, l2, r.params, false)
		var cn *conn
		if err == nil {
			cn, err = s.newConn(l2, r2)
		}
		if err != nil {
			for _, c := range conns {
				c.t.close()
			}
			return fmt.Errorf("connection %d: %w", cid, err)
		}
		conns = append(conns, cn)
	}
	s.mu.Lock()
	if moved != "" {
		s.portal = moved
	}
	s.params, s.tsih = r.params, r.tsih
	s.cmdSN, s.expCmdSN, s.maxCmdSN = 1, r.expCmdSN, r.maxCmdSN
	if snLess(s.expCmdSN, 1) || s.expCmdSN > 1 {
		// The numbering begins where our first request put it (RFC 7143 11.12.9), whatever the answer says.
		s.expCmdSN = 1
	}
	s.conns = conns
	s.state = stateUp
	s.mu.Unlock()
	for _, cn := range conns {
		cn.start()
	}
	return nil
}

// Params is what the last login agreed on.
func (s *Session) Params() Params {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.params
}

// Stats counts what happened to a session.
type Stats struct {
	Connections   int
	Reconnects    int // sessions or connections logged in again
	Strays        int // answers to nobody: late ones after an abort
	DigestErrors  int // data digests that were wrong and recovered from
	BusyRetries   int // commands sent again after BUSY, TASK SET FULL or a unit attention
	Window        int // commands that may be sent now
	Pending       int // commands that wait for the window
	TSIH          uint16
	CurrentPortal string
}

// Stats returns the counters.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Connections: len(s.conns), Reconnects: s.reconnects, Strays: s.strays, DigestErrors: s.digestErrors,
		BusyRetries: s.busyRetries, Window: max(0, int(int32(s.maxCmdSN-s.cmdSN+1))), Pending: s.pending.n,
		TSIH: s.tsih, CurrentPortal: s.portal,
	}
}

// Submit starts c and returns at once; c.Done is called when it is finished. With an error Done is not called.
func (s *Session) Submit(c *Command) error {
	c.task.kind = kindSCSI
	return s.submit(c)
}

func (s *Session) submit(c *Command) error {
	s.mu.Lock()
	if s.state >= stateClosing && c.task.kind != kindLogout {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = ErrClosed
		}
		return err
	}
	if c.task.state != taskIdle {
		s.mu.Unlock()
		return errors.New("command submitted twice")
	}
	s.seq++
	t := &c.task
	t.seq, t.started, t.refs, t.abort = s.seq, s.nowLocked(c), 0, nil
	c.Retries = 0
	c.resetResult()
	t.state = taskQueued
	if c.Immediate || t.kind != kindSCSI {
		s.urgent.push(c)
	} else {
		s.pending.push(c)
	}
	if s.state == stateRecovering {
		s.mu.Unlock()
		return nil
	}
	touched := s.pumpLocked()
	if s.corked > 0 {
		s.mu.Unlock()
		return nil
	}
	conns := s.conns
	s.mu.Unlock()
	if touched != nil && len(conns) == 1 {
		touched.flush()
		return nil
	}
	for _, cn := range conns {
		cn.flush()
	}
	return nil
}

// nowLocked avoids the clock where nothing will ask for the time: it costs as much as the rest of a submission.
func (s *Session) nowLocked(c *Command) time.Time {
	if s.timeoutOf(c) <= 0 && s.params.ErrorRecoveryLevel == 0 {
		return time.Time{}
	}
	return time.Now()
}

func (s *Session) timeoutOf(c *Command) time.Duration {
	if c.Timeout != 0 {
		return c.Timeout
	}
	return s.cfg.CommandTimeout
}

// pumpLocked hands pending commands to connections while the command window is open. It returns the last
// connection that got one.
func (s *Session) pumpLocked() (touched *conn) {
	for s.state == stateUp || s.state == stateClosing {
		from := &s.urgent
		if from.n == 0 {
			from = &s.pending
			if from.n == 0 || snLess(s.maxCmdSN, s.cmdSN) {
				break
			}
		}
		c := from.head
		cn := s.pickLocked(c)
		if cn == nil || !s.tags.add(c) {
			break
		}
		from.pop()
		s.startLocked(c, cn)
		touched = cn
	}
	return touched
}

// pickLocked chooses the connection for c; nil if there is none.
func (s *Session) pickLocked(c *Command) *conn {
	if want := c.task.conn; want != nil { // bound to one
		if want.err != nil {
			return nil
		}
		return want
	}
	for range s.conns {
		cn := s.conns[s.next%len(s.conns)]
		s.next++
		if cn.err == nil && !cn.leaving {
			return cn
		}
	}
	return nil
}

// startLocked sends c, which has a tag, on cn.
func (s *Session) startLocked(c *Command, cn *conn) {
	t := &c.task
	t.conn, t.state, t.sent = cn, taskActive, t.started
	t.nextDataSN, t.gap, t.reassigned = 0, nil, false
	t.cmdSN = s.cmdSN
	cn.inFlight++
	if t.kind != kindSCSI {
		t.ordered = false
		cn.sendRequestLocked(c)
		return
	}
	t.ordered = !c.Immediate
	if t.ordered {
		s.cmdSN++
	}
	cn.sendSCSILocked(c)
}

// answeredLocked ends a SCSI command with the target's status, or sends it again if that says so.
func (s *Session) answeredLocked(c *Command, done *list) {
	if c.Status != StatusGood && c.Response == 0 && c.Retries < s.cfg.RetryLimit && c.task.abort == nil {
		delay := time.Duration(-1)
		switch c.Status {
		case StatusBusy, StatusTaskSetFull:
			delay = time.Duration(min(c.Retries+1, 20)) * 5 * time.Millisecond
		case StatusCheckCondition:
			if sense, ok := ParseSense(c.Sense); ok && sense.Key == SenseUnitAttention && !sense.Deferred {
				delay = 0
			}
		}
		if delay >= 0 {
			s.busyRetries++
			c.Retries++
			s.detachLocked(c)
			c.resetResult()
			c.task.due = time.Now().Add(delay)
			if c.task.refs > 0 {
				// The target has answered before all of the command was written: the buffers are still in use.
				c.task.state = taskRetry
				return
			}
			s.holdLocked(c)
			return
		}
	}
	s.finishLocked(c, done)
}

// holdLocked puts c aside until it is due to be sent again.
func (s *Session) holdLocked(c *Command) {
	c.task.state = taskHeld
	s.held.push(c)
	s.kickLocked()
}

// detachLocked frees c's tag and connection.
func (s *Session) detachLocked(c *Command) {
	s.tags.remove(c)
	if cn := c.task.conn; cn != nil {
		cn.inFlight--
		c.task.conn = nil
	}
}

// finishLocked ends an active command; it is put into done now or when its buffers are free.
func (s *Session) finishLocked(c *Command, done *list) {
	if c.task.state == taskActive {
		s.detachLocked(c)
	}
	c.task.conn = nil
	c.task.state = taskDone
	if c.task.refs == 0 {
		s.returnLocked(c, done)
	}
}

// returnLocked gives c back: done is delivered once the lock is free.
func (s *Session) returnLocked(c *Command, done *list) {
	c.task.state = taskIdle
	c.task.gap = nil
	done.push(c)
}

func (s *Session) unrefLocked(c *Command, done *list) {
	c.task.refs--
	if c.task.refs > 0 {
		return
	}
	switch c.task.state {
	case taskDone:
		s.returnLocked(c, done)
	case taskRetry:
		s.holdLocked(c)
	}
}

// deliver calls the callbacks of l, without locks.
func (s *Session) deliver(l list) {
	for c := l.pop(); c != nil; c = l.pop() {
		c.Done(c)
	}
}

// Do runs c and waits for it; c.Done is used by Do itself. When ctx ends first the task is aborted, and Do returns
// only once the buffers are free. The error is c.Error().
func (s *Session) Do(ctx context.Context, c *Command) error {
	c.task.kind = kindSCSI
	return s.do(ctx, c)
}

func (s *Session) do(ctx context.Context, c *Command) error {
	finished := make(chan struct{})
	c.Done = func(*Command) { close(finished) }
	if err := s.submit(c); err != nil {
		return err
	}
	select {
	case <-finished:
	case <-ctx.Done():
		s.abort(c, fmt.Errorf("%w: %w", ErrAborted, context.Cause(ctx)))
		<-finished
	}
	return c.Error()
}

// Text sends a text request in full feature phase and returns the answer's keys.
func (s *Session) Text(ctx context.Context, kvs []KeyValue) ([]KeyValue, error) {
	var answer []byte
	data := appendKeys(nil, kvs)
	ttt := uint32(tagNone)
	var lun LUN
	for range loginRoundsMax {
		c := &Command{}
		c.task.kind = kindText
		h := &c.task.bhs
		h[0] = byte(OpText) | flagImmediate
		h[1] = flagFinal
		h.SetLUN(lun)
		h.SetUint32(offTTT, ttt)
		c.task.data = data
		if err := s.do(ctx, c); err != nil {
			return nil, fmt.Errorf("text request: %w", err)
		}
		r := &c.task.resp
		answer = append(answer, r.Data...)
		if len(answer) > loginTextMax*16 {
			break
		}
		if r.BHS[1]&flagFinal != 0 {
			return parseKeys(answer)
		}
		// RFC 7143 11.10.4: an empty request with the target's tag asks for more.
		ttt, lun, data = r.BHS.TTT(), r.BHS.LUN(), nil
	}
	return nil, errors.New("text request: the answer does not end")
}

// Ping sends a NOP-Out with data and waits for the echo.
func (s *Session) Ping(ctx context.Context, data []byte) ([]byte, error) {
	c := nopCommand(data)
	if err := s.do(ctx, c); err != nil {
		return nil, err
	}
	return c.task.resp.Data, nil
}

func nopCommand(data []byte) *Command {
	c := &Command{}
	c.task.kind = kindNop
	c.task.bhs[0] = byte(OpNopOut) | flagImmediate
	c.task.bhs[1] = flagFinal
	c.task.bhs.SetUint32(offTTT, tagNone)
	c.task.data = data
	return c
}

func (s *Session) kickLocked() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Err says why the session ended; nil while it lives.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Done is closed when the session is gone for good and all its commands are finished.
func (s *Session) Done() <-chan struct{} { return s.done }
