package initiator

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
)

// conn is one connection of a session in full feature phase. Session.mu guards the first groups.
type conn struct {
	s     *Session
	cid   uint16
	addr  string // where it was dialled, after redirects
	t     transport
	frame framing

	// sendMax is the target's MaxRecvDataSegmentLength.
	sendMax int

	// err is why the connection is lost; set once, then dead is closed.
	err  error
	dead chan struct{}

	// Sending. While writing is set, whoever set it owns batch, batchPos and vec.
	out     []outPDU
	writing bool
	idle    *sync.Cond // a lost connection's writer has stopped
	wake    chan struct{}

	// expStatSN is the first StatSN not yet received; ahead holds later ones that were (recovery level 1 and up),
	// snackTo is where the last status SNACK ended.
	expStatSN uint32
	ahead     map[uint32]struct{}
	snackTo   uint32

	inFlight  int      // tasks with allegiance
	activity  bool     // something was received since the last tick
	idleTicks int      // ticks without
	ping      *Command // outstanding NOP-Out
	leaving   bool     // logout under way: no new commands

	batch    []outPDU
	batchPos int
	vec      iovecs

	in     reader
	poller *Poller // that reads it; nil: it has a goroutine that does

	wg sync.WaitGroup
}

const readBufferLen = 128 << 10

func (s *Session) newConn(l *loginConn, r *loginResult) (*conn, error) {
	cn := &conn{
		s: s, cid: l.cid, addr: l.addr,
		frame:   framing{r.params.HeaderDigest, r.params.DataDigest, r.params.MaxRecvDataSegmentLength},
		sendMax: r.params.TargetMaxRecvDataSegmentLength,
		dead:    make(chan struct{}), wake: make(chan struct{}, 1),
		idle:      sync.NewCond(&s.mu),
		expStatSN: r.expStatSN, snackTo: r.expStatSN,
	}
	if c, ok := l.c.(*net.TCPConn); ok {
		t, err := newFDTransport(c)
		if err != nil {
			l.c.Close()
			return nil, fmt.Errorf("connection: %w", err)
		}
		cn.t = t
		// A hook may keep its reader waiting.
		if p := s.cfg.Poller; p != nil && s.cfg.Hooks.In == nil {
			cn.poller = p
			return cn, nil
		}
	} else {
		cn.t = &netTransport{l.c}
	}
	cn.in.buf = make([]byte, readBufferLen)
	return cn, nil
}

// start begins to read and write; the reader ends the connection's life.
func (cn *conn) start() {
	cn.wg.Go(cn.writeLoop)
	if cn.poller == nil {
		cn.wg.Go(cn.readLoop)
		return
	}
	cn.wg.Add(1) // until the teardown that the Poller begins
	if err := cn.poller.add(cn, cn.t.(*fdTransport).fd); err != nil {
		cn.in.buf = make([]byte, readBufferLen)
		go func() {
			defer cn.wg.Done()
			cn.readLoop()
		}()
	}
}

// failLocked marks the connection as lost; its reader finds out at once and cleans up.
func (cn *conn) failLocked(err error) {
	if cn.err != nil {
		return
	}
	cn.err = err
	close(cn.dead)
	cn.t.shutdown()
	if !cn.writing {
		cn.idle.Broadcast()
	}
	cn.s.kickLocked()
}

// teardown runs in the reader when it has stopped: nothing of the connection touches a buffer afterwards.
func (cn *conn) teardown(err error) {
	s := cn.s
	var finished list
	s.mu.Lock()
	cn.failLocked(err)
	for cn.writing {
		cn.idle.Wait()
	}
	for i := range cn.out {
		if c := cn.out[i].cmd; c != nil {
			s.unrefLocked(c, &finished)
		}
	}
	cn.out = nil
	cn.releaseDirectLocked(&finished)
	// With err set and nobody writing, nobody will wake the writer again.
	close(cn.wake)
	s.mu.Unlock()
	s.deliver(finished)
	// Under the lock, so that no late shutdown hits a descriptor that is somebody else's by then; failLocked does
	// nothing any more.
	cn.t.close()
}

// headerLocked fills what all requests have in common; a request with the immediate bit does not use up CmdSN.
func (cn *conn) headerLocked(h *BHS, op Opcode, itt uint32) {
	h[0] = byte(op)
	h[1] = flagFinal
	h.SetUint32(offITT, itt)
	h.SetUint32(offExpStatSN, cn.expStatSN)
}

// sendSCSILocked queues c's command PDU and its unsolicited data.
func (cn *conn) sendSCSILocked(c *Command) {
	t := &c.task
	p := &cn.s.params
	edtl := c.expected()
	out := c.Out[:min(len(c.Out), int(edtl))]
	unsolicited := 0 // bytes that may go without an R2T, immediate ones included
	if !p.InitialR2T || p.ImmediateData {
		unsolicited = min(len(out), p.FirstBurstLength)
	}
	immediate := 0
	if p.ImmediateData {
		immediate = min(unsolicited, cn.sendMax)
	}
	if p.InitialR2T {
		unsolicited = immediate
	}

	o := cn.enqueueLocked(c)
	h := o.bhs()
	cn.headerLocked(h, OpSCSICommand, t.itt)
	if c.Immediate {
		h[0] |= flagImmediate
	}
	h[1] = c.Attr.wire()
	if immediate == unsolicited {
		h[1] |= flagFinal
	}
	if len(c.In) > 0 {
		h[1] |= flagRead
	}
	if len(c.Out) > 0 {
		h[1] |= flagWrite
	}
	h.SetLUN(c.LUN)
	h.SetUint32(offTTT, edtl)
	h.SetUint32(offCmdSN, t.cmdSN)
	copy(h[32:48], c.CDB[:])
	if len(c.CDBTail) > 0 || len(c.In) > 0 && len(c.Out) > 0 {
		o.ahs = commandAHS(c)
		h[4] = byte(len(o.ahs) / 4)
	}
	h.SetDataLen(immediate)
	o.data = out[:immediate]
	if immediate < unsolicited {
		cn.sendDataOutLocked(c, c.LUN, tagNone, immediate, unsolicited)
	}
}

// commandAHS encodes a long CDB and the expected length of a bidirectional command's read half (RFC 7143 11.2.2).
func commandAHS(c *Command) []byte {
	var b []byte
	if n := len(c.CDBTail); n > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(n+1))
		b = append(b, ahsExtendedCDB, 0)
		b = append(b, c.CDBTail...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	if len(c.In) > 0 && len(c.Out) > 0 {
		b = append(b, 0, 5, ahsBidiLength, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(c.In)))
	}
	return b
}

// sendDataOutLocked queues one sequence of Data-Out PDUs with c.Out[from:to].
func (cn *conn) sendDataOutLocked(c *Command, lun LUN, ttt uint32, from, to int) {
	for sn := uint32(0); from < to; sn++ {
		n := min(to-from, cn.sendMax)
		o := cn.enqueueLocked(c)
		h := o.bhs()
		cn.headerLocked(h, OpDataOut, c.task.itt)
		if from+n < to {
			h[1] = 0
		}
		h.SetLUN(lun)
		h.SetUint32(offTTT, ttt)
		h.SetUint32(offDataSN, sn)
		h.SetUint32(offBufOffset, uint32(from))
		h.SetDataLen(n)
		o.data = c.Out[from : from+n]
		from += n
	}
}

// sendRequestLocked queues a request that is no SCSI command; c.task.bhs has its header, c.task.data its data.
func (cn *conn) sendRequestLocked(c *Command) {
	t := &c.task
	o := cn.enqueueLocked(c)
	h := o.bhs()
	*h = t.bhs
	h.SetUint32(offITT, t.itt)
	h.SetUint32(offCmdSN, t.cmdSN)
	h.SetUint32(offExpStatSN, cn.expStatSN)
	h.SetDataLen(len(t.data))
	o.data = t.data
}

// sendSNACKLocked asks for PDUs again, or acknowledges data.
func (cn *conn) sendSNACKLocked(kind byte, lun LUN, itt, ttt, begin, run uint32) {
	o := cn.enqueueLocked(nil)
	h := o.bhs()
	cn.headerLocked(h, OpSNACK, itt)
	h[1] |= kind
	h.SetLUN(lun)
	h.SetUint32(offTTT, ttt)
	h.SetUint32(offBufOffset, begin)
	h.SetUint32(offResidual, run)
}

// Kinds of SNACK (RFC 7143 11.16.1).
const (
	snackData    = 0 // Data-In and R2T
	snackStatus  = 1
	snackDataACK = 2
)

// answerPingLocked answers a NOP-In that asks for it.
func (cn *conn) answerPingLocked(p *PDU) error {
	if len(cn.out) > queueLimit {
		return fmt.Errorf("target sends pings and reads no answers")
	}
	o := cn.enqueueLocked(nil)
	h := o.bhs()
	cn.headerLocked(h, OpNopOut, tagNone)
	h[0] |= flagImmediate
	h.SetLUN(p.BHS.LUN())
	h.SetUint32(offTTT, p.BHS.TTT())
	h.SetUint32(offCmdSN, cn.s.cmdSN)
	h.SetDataLen(len(p.Data))
	o.data = append([]byte(nil), p.Data...)
	return nil
}
