package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dozo/internal/access/iscsi/proof"
	"dozo/internal/access/scsi"
)

// conn is one connection.
//
//	login ──> full feature ──> closing
//	   └───────────┴──────────────^ (error, kill, logout)
type conn struct {
	srv   *Server
	nc    net.Conn
	raw   *rawWriter // nil if the connection isn't a socket
	log   *slog.Logger
	peer  Peer
	purse *purse
	id    uint64 // RequestID.Conn
	rd    reader
	came  time.Time
	in    atomic.Bool // through its login to a target
	lost  atomic.Bool // and gone since; its tasks are kept
	// gaveWay to a newer one; under Server.mu.
	gaveWay bool

	// The reader's own.
	requests  uint64 // commands so far, for RequestID.Seq
	scratch   []byte
	loggedOut bool
	lets      bool          // it has logged itself out for recovery
	cid       uint16        // set during login, before anybody else sees the connection
	quit      chan struct{} // closed when the reader is done
	endsAll   bool          // it has logged the session out
	agreed    Params        // what the login agreed upon, until it is answered

	wake          chan struct{} // hands the writer role to the writer goroutine
	leftover      [][]byte      // what it has to write first
	leftoverBatch *batch

	mu sync.Mutex
	// room is signalled when something waited for may have changed: output, tasks, the writer role.
	room sync.Cond

	// Under mu.

	sess        *Session // set once, at the end of the login
	params      Params
	fullFeature bool
	statSN      uint32
	stamps      proof.Stream
	out, spare  *batch
	writing     bool // somebody holds the writer role
	gathering   bool // the reader will flush soon
	dead        bool
	cause       error
	written     uint64

	slots     []*task // by slot number; nil is free
	freeSlots []uint16
	tasks     int     // in slots
	immediate int     // of them, immediate
	functions int     // immediate task management functions that are not answered yet
	running   int     // admitted and not finished
	ordered   bool    // an ORDERED task runs: nothing else may start
	waiting   []*task // not admitted yet, in order
	pumping   bool    // somebody runs admitLocked
	filling   *task   // the reader is writing into this task's memory
	writeMem  int
	readMem   int
	stashMem  int // of tasks that have no memory yet
	// outgoing is the memory of what is being written; outCounted is what Server.outs has of it and of out.
	outgoing, outCounted int
	pool                 []*task

	left        bool      // under Session.mu: it doesn't count as one of the session's connections any more
	parked      bool      // lost, but its tasks are kept for reassignment
	freed       bool      // logged out for recovery, or reinstated: they may be reassigned
	expired     bool      // they are not kept any more
	keepUntil   time.Time // of a parked connection
	unpark      chan struct{}
	recovery    *recovery // recovery level 1 and above
	keep        bool      // the next PDU has used its StatSN up
	acks        []ackWait // who waits for the initiator's acknowledgement
	pingTTT     uint32    // tag of the last ping
	pingWaiting time.Time // since when a ping was sent and nothing has come, or zero
	unechoed    int       // pings since something has come
	echoes      bool      // it has answered a ping
	transfer    textTransfer
	cleared     []uint16 // the LUNs of tasks that have ended with the connection, until the initiator is told
	complaints  notices  // what the initiator does wrong; not under mu
	managing    []uint32 // tags of task management functions that are not answered yet
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, raw: newRawWriter(nc), id: randomID(), came: time.Now(), wake: make(chan struct{}, 1), quit: make(chan struct{}), unpark: make(chan struct{}, 1),
		statSN: 1, params: defaultParams(), out: new(batch), spare: new(batch)}
	c.room.L = &c.mu
	c.peer = Peer{Remote: addrPort(nc.RemoteAddr()), Local: addrPort(nc.LocalAddr()), Group: s.cfg.Group}
	c.log = s.cfg.Log.With("peer", nc.RemoteAddr().String())
	c.rd = newReader(nc, c.endGather, c.beginGather)
	c.stamps.Start(c.statSN)
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
		_ = t.SetKeepAlive(true)
		if raw, err := t.SyscallConn(); err == nil {
			// With a ping every second a dead host is found out by what it doesn't acknowledge.
			const tcpUserTimeout = 18 // of linux/tcp.h; package syscall doesn't name it
			_ = raw.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unackedTimeout/time.Millisecond))
			})
		}
	}
	return c
}

// beginGather lets completions leave their output to the reader, which is about to work through what it has
// buffered; endGather flushes it before the reader may block.
func (c *conn) beginGather() {
	c.mu.Lock()
	c.gathering = true
	c.mu.Unlock()
}

func (c *conn) endGather() {
	c.mu.Lock()
	c.gathering = false
	c.flushLocked()
	c.mu.Unlock()
}

// kill ends the connection for a reason; only the first one counts.
func (c *conn) kill(cause error) {
	c.mu.Lock()
	c.killLocked(cause)
	c.mu.Unlock()
}

func (c *conn) killLocked(cause error) {
	if c.dead {
		return
	}
	c.dead, c.cause = true, cause
	_ = c.nc.Close()
	if len(c.acks) > 0 {
		c.acknowledgedLocked() // nobody will; at recovery level 2 the end of the connection may be far
	}
	c.room.Broadcast()
}

// run is the connection's goroutine. It returns when nothing of the connection is left.
func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Go(c.writer)
	err := c.login()
	if err == nil && c.sess.discovery {
		// Anybody may have one: it counts as a login that is under way until it ends.
		err = c.serve()
		c.srv.sources.leave(c.peer.Remote.Addr())
	} else {
		c.srv.sources.leave(c.peer.Remote.Addr())
		if err == nil {
			c.in.Store(true)
			err = c.serve()
		}
	}
	c.kill(err)
	c.endTransfer()
	parked := c.park()
	close(c.quit)
	c.report()
	if parked {
		c.waitParked()
	}
	c.end()
	close(c.wake)
	wg.Wait()
}

// report logs why the connection ended: what an operator should see is a warning.
func (c *conn) report() {
	c.mu.Lock()
	cause, sess := c.cause, c.sess
	c.mu.Unlock()
	log := c.log
	if c.peer.Initiator != "" {
		log = log.With("initiator", c.peer.Initiator)
	}
	if sess != nil {
		log = log.With("target", sess.targetName, "tsih", sess.tsih)
	}
	switch {
	case cause == nil || c.loggedOut || errors.Is(cause, io.EOF) || errors.Is(cause, errLoggedOut) || sess != nil && sess.discovery && errors.Is(cause, os.ErrDeadlineExceeded) || errors.Is(cause, ErrServerClosed):
		log.Debug("connection closed", "err", cause)
	case errors.Is(cause, errReplaced), errors.Is(cause, errReinstated), errors.Is(cause, errKilled):
		c.srv.say(log, slog.LevelInfo, "connection closed", "err", cause)
	case sess == nil:
		c.srv.notice("login failed", "peer", c.peer.Remote, "initiator", c.peer.Initiator, "err", cause)
	default:
		c.srv.say(log, slog.LevelWarn, "connection ended", "err", cause)
	}
}

// end gives everything back once the reader is done: tasks that still wait are dropped, those that run are
// waited for.
func (c *conn) end() {
	c.mu.Lock()
	sess := c.sess
	c.mu.Unlock()
	if sess != nil {
		sess.leave(c)
	}
	c.mu.Lock()
	c.expired = true
	c.acknowledgedLocked() // nobody will
	c.filling = nil        // the reader has returned, perhaps in the middle of a task's data
	if sess != nil && !c.loggedOut {
		c.clearedLocked()
	}
	for _, t := range c.slots {
		if t != nil {
			c.abortLocked(t)
		}
	}
	for c.writing || c.tasks > 0 || c.pumping {
		c.room.Wait()
	}
	c.out.release()
	c.countOutLocked()
	if c.recovery != nil {
		c.recovery.release()
	}
	c.giveLocked(c.writeMem + c.readMem) // of what was not sent any more
	c.writeMem, c.readMem = 0, 0
	c.mu.Unlock()
	c.tellCleared()
	if sess != nil {
		sess.detach(c)
	}
}

// readHeader reads a basic header segment and checks it.
func (c *conn) readHeader(h *header) error {
	b, err := c.rd.next(bhsLen)
	if err != nil {
		return err
	}
	copy(h[:], b)
	return checkHeader(h, int(max(c.params.MaxRecvDataSegment, 8192)))
}

// errHeaderDigest ends a connection: where the next PDU begins is not known any more (RFC 7143 7.8). errDataDigest
// does at error recovery level 0 (7.8).
var (
	errHeaderDigest = errors.New("header digest is wrong")
	errDataDigest   = errors.New("data digest is wrong")
)

// readAHS reads additional header segments and the header digest.
func (c *conn) readAHS(h *header) ([]byte, error) {
	n := h.ahsLen()
	if n == 0 && !c.params.HeaderDigest {
		return nil, nil
	}
	if !c.params.HeaderDigest {
		return c.rd.next(n)
	}
	b, err := c.rd.next(n + 4)
	if err != nil {
		return nil, unexpected(err)
	}
	if binary.LittleEndian.Uint32(b[n:]) != digest(0, h[:], b[:n]) {
		return nil, errHeaderDigest
	}
	return b[:n], nil
}

// scratchKeep is how much memory a connection keeps for what it reads next: pings and text are short, mostly.
const scratchKeep = 64 << 10

// readData reads a PDU's whole data segment into memory of the connection, valid until the next call. It is
// for PDUs whose data don't go to a task.
func (c *conn) readData(h *header) ([]byte, error) {
	n := h.dataLen()
	if n == 0 {
		return nil, nil
	}
	if cap(c.scratch) < n {
		c.scratch = make([]byte, n)
	}
	b := c.scratch[:n]
	if err := c.rd.full(b); err != nil {
		return nil, err
	}
	crc := uint32(0)
	if c.params.DataDigest {
		crc = digest(0, b)
	}
	return b, c.endData(h, n, crc)
}

// endData reads the padding and digest after n bytes of data.
func (c *conn) endData(h *header, n int, crc uint32) error {
	want := pad(n)
	if c.params.DataDigest {
		want += 4
	}
	if want == 0 || n == 0 {
		return nil
	}
	b, err := c.rd.next(want)
	if err != nil {
		return unexpected(err)
	}
	if c.params.DataDigest && binary.LittleEndian.Uint32(b[pad(n):]) != digest(crc, b[:pad(n)]) {
		c.reject(h, rejectDataDigest)
		return errDataDigest
	}
	return nil
}

// login runs the login phase; it returns nil once the session is in full feature phase.
func (c *conn) login() error {
	deadline := time.Now().Add(c.srv.cfg.LoginTimeout)
	_ = c.nc.SetDeadline(deadline)
	ctx, cancel := context.WithDeadline(c.srv.ctx, deadline)
	defer cancel()
	l := newLogin(c.srv.cfg.Provider, c.peer, c.srv.cfg.Offers)
	for {
		var h header
		if err := c.readHeader(&h); err != nil {
			return err
		}
		if h.ahsLen() > 0 {
			return badPDU(&h, "additional header segments during login")
		}
		data, err := c.readData(&h)
		if err != nil {
			return err
		}
		if l.first && l.tsih == 0 {
			c.mu.Lock()
			c.statSN = h.expStatSN() // whatever the initiator expects is as good as any number
			c.stamps.Start(c.statSN)
			c.mu.Unlock()
		}
		r := l.step(ctx, &h, data)
		c.peer = l.peer
		var sess *Session
		var moved string
		if r.status == statusSuccess && r.finished {
			sess, err = c.open(ctx, l, h.cmdSN())
			if err != nil {
				r = loginReply{status: loginStatusOf(err), why: err}
				if s, ok := errors.AsType[*loginError](err); ok {
					r.status = s.status
				}
				if m, ok := errors.AsType[*RedirectError](err); ok {
					moved = m.Address
				}
			}
		}
		if a, ok := aliasOf(sess); ok && l.tsih == 0 {
			r.text = appendPair(r.text, "TargetAlias", a)
		}
		if moved != "" {
			r.text = appendPair(r.text, "TargetAddress", moved)
		}
		c.answerLogin(&h, r, sess)
		if r.status != statusSuccess {
			c.flushWait()
			return r.why
		}
		if r.finished {
			_ = c.nc.SetDeadline(time.Time{})
			c.srv.say(c.log, slog.LevelInfo, "session opened", "initiator", c.peer.Initiator, "target", sess.targetName, "tsih", sess.tsih, "cid", c.cid)
			return nil
		}
	}
}

// aliasOf gives the alias of a session's target, if it has one (RFC 7143 13.6).
func aliasOf(x *Session) (string, bool) {
	if x == nil {
		return "", false
	}
	a, ok := x.target.(Alias)
	if !ok {
		return "", false
	}
	name := a.Alias()
	return name, name != "" && len(name) <= 255
}

// answerLogin puts a Login Response into the out queue; with a session it is the last and full feature phase
// begins after it.
func (c *conn) answerLogin(req *header, r loginReply, sess *Session) {
	var h header
	h[0] = opLoginR
	if r.transit {
		h[1] |= 0x80
	}
	if r.more {
		h[1] |= 0x40
	}
	h[1] |= byte(r.csg<<2 | r.nsg)
	copy(h[8:14], req[8:14])
	binary.BigEndian.PutUint16(h[14:], binary.BigEndian.Uint16(req[14:]))
	h.put32(16, req.itt())
	h[36], h[37] = byte(r.status>>8), byte(r.status)
	c.mu.Lock()
	defer c.mu.Unlock()
	if sess != nil {
		c.sess = sess
		binary.BigEndian.PutUint16(h[14:], sess.tsih)
	}
	h.put32(28, req.cmdSN())
	h.put32(32, req.cmdSN()+uint32(c.srv.cfg.QueueDepth)-1)
	c.commandWindowLocked(&h)
	if r.status == statusSuccess {
		c.numberLocked(&h, true)
	} else {
		h.put32(24, 0) // RFC 7143 11.13.4: StatSN is valid with success only
	}
	c.appendPDULocked(&h, r.text)
	if sess != nil {
		c.params = c.agreed
		c.fullFeature = true
		if !sess.discovery {
			c.rd.share()
		}
		if c.params.ErrorRecoveryLevel > 0 {
			c.recovery = &recovery{all: &c.srv.kept}
		}
		c.keep = false
	}
}

// flushWait writes what is queued before the connection is closed. The login's deadline or the peer's reset
// ends the wait.
func (c *conn) flushWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering = false
	c.flushLocked()
	for c.writing && !c.dead {
		c.room.Wait()
	}
}

// serve is the full feature phase.
func (c *conn) serve() error {
	for {
		if err := c.waitRoom(); err != nil {
			return err
		}
		if c.sess.discovery { // it is not pinged
			_ = c.nc.SetDeadline(time.Now().Add(c.srv.cfg.DiscoveryIdle))
		}
		var h header
		if err := c.readHeader(&h); err != nil {
			return err
		}
		ahs, err := c.readAHS(&h)
		if err != nil {
			return err
		}
		err = c.handle(&h, ahs)
		if cap(c.scratch) > scratchKeep {
			c.scratch = nil
		}
		if err == errDataDigest && c.sess.params.ErrorRecoveryLevel > 0 {
			err = nil // the PDU was rejected and is forgotten; whoever missed something asks again
		}
		if err != nil {
			c.flushWait()
			return err
		}
		if c.loggedOut || c.lets {
			c.flushWait()
			if c.endsAll {
				c.sess.kill(errLoggedOut)
			}
			return io.EOF
		}
	}
}

// waitRoom stops reading while too many answers wait for a client that doesn't read.
func (c *conn) waitRoom() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.countOutLocked(); c.outFullLocked() {
		c.gathering = false
		c.flushLocked()
		for !c.dead && c.outFullLocked() {
			c.room.Wait()
		}
		c.gathering = true
	}
	if c.dead {
		return c.cause
	}
	return nil
}

// handle takes one PDU.
func (c *conn) handle(h *header, ahs []byte) error {
	if c.sess.discovery {
		switch h.opcode() {
		case opText, opLogout, opNopOut:
		default:
			c.reject(h, rejectProtocolError)
			return badPDU(h, "not in a discovery session")
		}
	}
	switch h.opcode() {
	case opCommand:
		return c.command(h, ahs)
	case opDataOut:
		return c.dataOut(h)
	case opNopOut:
		return c.nopOut(h)
	case opTaskMgmt:
		return c.taskManagement(h)
	case opText:
		return c.textRequest(h)
	case opLogout:
		return c.logout(h)
	case opSNACK:
		if !c.sess.discovery {
			return c.snack(h)
		}
	}
	// The rest is refused without ending the connection: a SNACK has no place in a discovery session, a Login
	// Request none in full feature phase, and other opcodes don't exist.
	if err := c.skipData(h); err != nil {
		return err
	}
	switch h.opcode() {
	case opSNACK:
		c.reject(h, rejectSNACK)
	case opLogin:
		c.reject(h, rejectProtocolError)
	default:
		c.reject(h, rejectNotSupported)
	}
	return nil
}

// number takes the numbering of a command, and what its ExpStatSN proves. It reports whether the command is to be
// processed: one outside the window is ignored (RFC 7143 4.2.2.1). Where one connection without recovery is
// agreed upon, a gap ends the connection: TCP keeps the order, and what was left out can't come any more. There
// the number is used up; else hold does that.
func (c *conn) number(h *header) (at scsi.Stamp, ok bool, err error) {
	c.mu.Lock()
	at = c.proveLocked(h.expStatSN())
	c.mu.Unlock()
	if h.immediate() {
		return at, true, nil
	}
	x := c.sess
	ok, gap := x.acceptable(h.cmdSN())
	switch {
	case !ok:
		c.log.Debug("PDU outside the command window ignored", "cmdsn", h.cmdSN(), "expcmdsn", x.expCmdSN.Load(), "maxcmdsn", x.maxCmdSN.Load())
	case x.unordered:
	case gap:
		return at, false, badPDU(h, "CmdSN %d where %d is expected", h.cmdSN(), x.expCmdSN.Load())
	default:
		x.expCmdSN.Store(h.cmdSN() + 1)
	}
	return at, ok, nil
}

// arrive is number for requests that don't wait for others' turn: what they do depends on no command. The
// number is used up.
func (c *conn) arrive(h *header) (ok bool, err error) {
	_, ok, err = c.number(h)
	if ok && c.sess.unordered && !h.immediate() {
		ok = c.sess.receive(h.cmdSN(), held{})
	}
	return ok, err
}

// ended opens the window by one for a numbered PDU that is done.
func (c *conn) ended(immediate bool) {
	if !immediate {
		c.sess.maxCmdSN.Add(1)
	}
}
