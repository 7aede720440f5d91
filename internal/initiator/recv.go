package initiator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// reader is the receiving half of a connection. Its goroutine owns it.
//
//	buf: |....consumed....|r....received....w|......free......|
//
// A Data-In PDU whose data are long and not all here yet is finished by reading straight into the command's buffer
// (direct), so large reads are copied by the kernel only.
type reader struct {
	buf  []byte
	r, w int

	direct struct {
		cmd  *Command // nil: no such PDU under way
		bhs  BHS
		dst  []byte // what is still to come
		full []byte // all of it, for the digest
	}
	done list
	pdu  PDU // being handled; here because a hook's argument would be allocated anew each time
}

// directMin is where a second readv for the rest costs less than copying it.
const directMin = 8 << 10

func (cn *conn) readLoop() {
	in := &cn.in
	var err error
	for err == nil {
		var n int
		if n, err = cn.t.read(in.direct.dst, in.room()); err == nil {
			err = cn.pass(n)
		} else {
			err = fmt.Errorf("read: %w", err)
		}
	}
	cn.teardown(err)
}

// room is the free part of the buffer, with what is there moved to its beginning where little is left behind it.
func (in *reader) room() []byte {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r > 0 && len(in.buf)-in.w < len(in.buf)/4 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	return in.buf[in.w:]
}

// pass handles n bytes that were read, first into the direct buffer and then into room, runs the callbacks, and sends
// what these submitted in one write, together with answers to R2Ts.
func (cn *conn) pass(n int) error {
	in, s := &cn.in, cn.s
	d := min(n, len(in.direct.dst))
	in.direct.dst = in.direct.dst[d:]
	in.w += n - d

	s.mu.Lock()
	cn.activity = true
	err := cn.processLocked()
	s.corked++
	s.pumpLocked()
	done := in.done.take()
	s.mu.Unlock()
	s.deliver(done)
	s.mu.Lock()
	s.corked--
	conns := s.conns
	s.mu.Unlock()
	for _, x := range conns {
		x.flush()
	}
	if len(conns) == 0 {
		cn.flush()
	}
	return err
}

// processLocked handles every whole PDU in the buffer.
func (cn *conn) processLocked() error {
	in := &cn.in
	for cn.err == nil {
		if in.direct.cmd != nil {
			ok, err := cn.finishDirectLocked()
			if !ok || err != nil {
				return err
			}
			continue
		}
		b := in.buf[in.r:in.w]
		if len(b) >= bhsLen && (*BHS)(b).Op() == OpDataIn && cn.s.cfg.Hooks.In == nil {
			started, err := cn.startDirectLocked(b)
			if err != nil {
				return err
			}
			if started {
				continue
			}
		}
		p := &in.pdu
		n, err := cn.frame.decode(b, p)
		if n == 0 && err == nil {
			return cn.makeRoom(b)
		}
		if err != nil && !(errors.Is(err, ErrDataDigest) && cn.s.params.ErrorRecoveryLevel > 0) {
			return err
		}
		in.r += n
		if h := cn.s.cfg.Hooks.In; h != nil {
			var act Action
			act, err = cn.hookInLocked(h, p, err)
			if err != nil && !errors.Is(err, ErrDataDigest) {
				return err
			}
			if act.Drop {
				continue
			}
		}
		if err != nil {
			err = cn.badDataLocked(p)
		} else {
			err = cn.handleLocked(p)
		}
		if err != nil {
			return err
		}
	}
	return cn.err
}

// hookInLocked runs the In hook, without the lock.
func (cn *conn) hookInLocked(h func(uint16, *PDU) Action, p *PDU, digest error) (Action, error) {
	cn.s.mu.Unlock()
	defer cn.s.mu.Lock()
	act := h(cn.cid, p)
	if act.Delay > 0 {
		t := time.NewTimer(act.Delay)
		select {
		case <-t.C:
		case <-cn.dead:
			t.Stop()
		}
	}
	switch {
	case act.Reset:
		return act, errHookReset
	case act.BreakDataDigest && cn.s.params.ErrorRecoveryLevel == 0:
		return act, fmt.Errorf("hook: %w %w", ErrDataDigest, errHookReset)
	case act.BreakDataDigest:
		return act, ErrDataDigest
	}
	return act, digest
}

// makeRoom sees to it that the PDU that begins in b will fit.
func (cn *conn) makeRoom(b []byte) error {
	in := &cn.in
	need := bhsLen
	if len(b) >= bhsLen {
		h := (*BHS)(b)
		if h.DataLen() > cn.frame.maxData && !cn.frame.headerDigest {
			return fmt.Errorf("%s with %d bytes: %w", h.Op(), h.DataLen(), ErrTooLong)
		}
		need = cn.frame.headerLen(h)
		if len(b) >= need {
			if err := cn.frame.checkHeader(b); err != nil {
				return err
			}
			need += cn.frame.dataWireLen(h.DataLen())
		}
	}
	if in.r+need <= len(in.buf) {
		return nil
	}
	dst := in.buf
	if need > len(dst) {
		dst = make([]byte, need+readBufferLen/2)
	}
	in.w = copy(dst, b)
	in.r = 0
	in.buf = dst
	return nil
}

// startDirectLocked begins to read a Data-In PDU straight into its command's buffer, if that is worth it.
func (cn *conn) startDirectLocked(b []byte) (bool, error) {
	in := &cn.in
	h := (*BHS)(b)
	hl := cn.frame.headerLen(h)
	dl := h.DataLen()
	if len(b) < hl || hl+dl-len(b) < directMin {
		return false, nil
	}
	if err := cn.frame.checkHeader(b); err != nil {
		return false, err
	}
	c := cn.s.tags.get(h.ITT())
	if c == nil || c.task.conn != cn || c.task.kind != kindSCSI || uint64(h.Uint32(offBufOffset))+uint64(dl) > uint64(len(c.In)) {
		return false, nil // the ordinary way reports what is wrong
	}
	off := int(h.Uint32(offBufOffset))
	d := &in.direct
	d.cmd, d.bhs = c, *h
	d.full = c.In[off : off+dl]
	n := copy(d.full, b[hl:])
	d.dst = d.full[n:]
	in.r += hl + n
	c.task.refs++
	return true, nil
}

// finishDirectLocked handles the PDU under way if all of it is here.
func (cn *conn) finishDirectLocked() (bool, error) {
	in := &cn.in
	d := &in.direct
	tail := cn.frame.dataWireLen(len(d.full)) - len(d.full)
	if len(d.dst) > 0 || in.w-in.r < tail {
		return false, nil
	}
	b := in.buf[in.r : in.r+tail]
	in.r += tail
	bad := false
	if cn.frame.dataDigest {
		pad := tail - digestLen
		sum := crc32.Update(crc32.Checksum(d.full, castagnoli), castagnoli, b[:pad])
		bad = sum != binary.LittleEndian.Uint32(b[pad:])
	}
	p := &in.pdu
	p.BHS, p.AHS, p.Data = d.bhs, nil, d.full
	c := d.cmd
	var err error
	switch {
	case bad && cn.s.params.ErrorRecoveryLevel == 0:
		err = ErrDataDigest
	case bad:
		err = cn.badDataLocked(p)
	default:
		err = cn.dataInLocked(p, c, true)
	}
	cn.releaseDirectLocked(&in.done)
	return true, err
}

func (cn *conn) releaseDirectLocked(finished *list) {
	d := &cn.in.direct
	if c := d.cmd; c != nil {
		d.cmd, d.dst, d.full = nil, nil, nil
		cn.s.unrefLocked(c, finished)
	}
}

// windowLocked takes ExpCmdSN and MaxCmdSN from h (RFC 7143 4.2.2.1).
func (s *Session) windowLocked(h *BHS) {
	exp, last := h.Uint32(offExpCmdSN), h.Uint32(offMaxCmdSN)
	if snLess(last, exp-1) {
		return
	}
	if snLess(s.maxCmdSN, last) {
		s.maxCmdSN = last
	}
	if snLess(s.expCmdSN, exp) {
		s.expCmdSN = exp
	}
}

// handleLocked acts on one PDU.
func (cn *conn) handleLocked(p *PDU) error {
	s := cn.s
	h := &p.BHS
	s.windowLocked(h)
	c := s.tags.get(h.ITT())
	if c != nil && (c.task.conn != cn || c.task.state != taskActive) {
		c = nil
	}
	switch op := h.Op(); op {
	case OpDataIn:
		return cn.dataInLocked(p, c, false)
	case OpSCSIResponse:
		return cn.responseLocked(p, c)
	case OpR2T:
		return cn.r2tLocked(p, c)
	case OpNopIn:
		return cn.nopInLocked(p, c)
	case OpTaskMgmtResp, OpTextResp, OpLogoutResp:
		if dup, err := cn.statSNLocked(h, true); dup || err != nil {
			return err
		}
		want := map[Opcode]taskKind{OpTaskMgmtResp: kindTMF, OpTextResp: kindText, OpLogoutResp: kindLogout}[op]
		if c == nil {
			s.strays++
			return nil
		}
		if c.task.kind != want {
			return fmt.Errorf("target answers another request with %s", op)
		}
		c.task.resp = PDU{BHS: *h, Data: append([]byte(nil), p.Data...)}
		s.finishLocked(c, &cn.in.done)
		return nil
	case OpAsync:
		return cn.asyncLocked(p)
	case OpReject:
		return cn.rejectLocked(p)
	default:
		return fmt.Errorf("target sends %s", op)
	}
}

// dataInLocked takes a Data-In PDU; placed says that its data are in the buffer already.
func (cn *conn) dataInLocked(p *PDU, c *Command, placed bool) error {
	s := cn.s
	h := &p.BHS
	if placed {
		s.windowLocked(h)
	}
	withStatus := h[1]&flagStatus != 0
	if withStatus {
		if dup, err := cn.statSNLocked(h, true); dup || err != nil {
			return err
		}
	}
	if c == nil || c.task.state != taskActive {
		s.strays++
		return nil
	}
	off, n := h.Uint32(offBufOffset), len(p.Data)
	if c.task.kind != kindSCSI || uint64(off)+uint64(n) > uint64(len(c.In)) {
		return fmt.Errorf("Data-In for bytes %d to %d of a buffer of %d", off, uint64(off)+uint64(n), len(c.In))
	}
	if !placed {
		copy(c.In[off:], p.Data)
	}
	c.InLen = max(c.InLen, int(off)+n)
	if _, err := cn.dataSNLocked(c, h.Uint32(offDataSN)); err != nil {
		return err
	}
	if h[1]&flagAck != 0 && s.params.ErrorRecoveryLevel > 0 {
		cn.sendSNACKLocked(snackDataACK, h.LUN(), tagNone, h.TTT(), c.task.nextDataSN, 0)
	}
	if withStatus {
		if h[1]&flagFinal == 0 {
			return errors.New("Data-In with status but without the final bit")
		}
		cn.statusLocked(c, p)
	}
	return nil
}

// responseLocked takes a SCSI Response.
func (cn *conn) responseLocked(p *PDU, c *Command) error {
	h := &p.BHS
	if dup, err := cn.statSNLocked(h, true); dup || err != nil {
		return err
	}
	if c == nil {
		cn.s.strays++
		return nil
	}
	if c.task.kind != kindSCSI {
		return errors.New("target answers another request with SCSI Response")
	}
	// ExpDataSN says how many Data-In and R2T PDUs there were (RFC 7143 11.4.8).
	if err := cn.expectDataSNLocked(c, h.Uint32(offDataSN)); err != nil {
		return err
	}
	cn.statusLocked(c, p)
	return nil
}

// statusLocked finishes c with the status in p, a SCSI Response or the last Data-In, unless data are missing.
func (cn *conn) statusLocked(c *Command, p *PDU) {
	if g := c.task.gap; g != nil && len(g.missing) > 0 {
		g.status = &PDU{BHS: p.BHS}
		if p.BHS.Op() == OpSCSIResponse {
			g.status.Data = append([]byte(nil), p.Data...)
		}
		return
	}
	h := &p.BHS
	c.Status = Status(h[3])
	c.Overflow, c.Underflow = h[1]&flagOverflow != 0, h[1]&flagUnderflow != 0
	if c.Overflow || c.Underflow {
		c.Residual = h.Uint32(offResidual)
	}
	if h.Op() == OpSCSIResponse {
		c.Response = h[2]
		if d := p.Data; len(d) >= 2 {
			// RFC 7143 11.4.7: two bytes of sense length, the sense data, then response data.
			n := min(int(binary.BigEndian.Uint16(d)), len(d)-2)
			c.Sense = append(c.task.senseBuf[:0], d[2:2+n]...)
		}
	}
	cn.s.answeredLocked(c, &cn.in.done)
}

// r2tLocked sends the data that the target asks for.
func (cn *conn) r2tLocked(p *PDU, c *Command) error {
	h := &p.BHS
	if dup, err := cn.statSNLocked(h, false); dup || err != nil {
		return err
	}
	if c == nil {
		cn.s.strays++
		return nil
	}
	off, n := uint64(h.Uint32(offBufOffset)), uint64(h.Uint32(offResidual))
	if c.task.kind != kindSCSI || n == 0 || off+n > uint64(len(c.Out)) {
		return fmt.Errorf("R2T for bytes %d to %d of a buffer of %d", off, off+n, len(c.Out))
	}
	if h.TTT() == tagNone {
		return errors.New("R2T with the reserved transfer tag")
	}
	dup, err := cn.dataSNLocked(c, h.Uint32(offDataSN))
	if dup || err != nil {
		return err
	}
	if uint64(len(cn.out))+n/uint64(cn.sendMax) > queueLimit {
		return errors.New("target sends R2Ts and reads no data")
	}
	cn.sendDataOutLocked(c, h.LUN(), h.TTT(), int(off), int(off+n))
	return nil
}

func (cn *conn) nopInLocked(p *PDU, c *Command) error {
	h := &p.BHS
	// RFC 7143 11.19.2: a NOP-In that answers nothing does not use up its StatSN.
	if dup, err := cn.statSNLocked(h, h.ITT() != tagNone); dup || err != nil {
		return err
	}
	if h.TTT() != tagNone {
		return cn.answerPingLocked(p)
	}
	if h.ITT() == tagNone {
		return nil
	}
	if c == nil || c.task.kind != kindNop {
		cn.s.strays++
		return nil
	}
	c.task.resp = PDU{BHS: *h, Data: append([]byte(nil), p.Data...)}
	cn.s.finishLocked(c, &cn.in.done)
	return nil
}
