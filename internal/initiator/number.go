package initiator

import (
	"errors"
	"fmt"
	"time"
)

// errLost reports a hole in a numbering at error recovery level 0, where only a new session mends it.
func errLost(what string, got, want uint32) error {
	return fmt.Errorf("%s %d, expected %d: a PDU was lost", what, got, want)
}

// statSNLocked follows the connection's status numbers. advances is false for PDUs that only show the next one.
// dup says that the PDU was seen before.
func (cn *conn) statSNLocked(h *BHS, advances bool) (dup bool, err error) {
	sn := h.Uint32(offStatSN)
	level := cn.s.params.ErrorRecoveryLevel
	switch {
	case sn == cn.expStatSN:
		if advances {
			cn.expStatSN++
			for len(cn.ahead) > 0 {
				if _, ok := cn.ahead[cn.expStatSN]; !ok {
					break
				}
				delete(cn.ahead, cn.expStatSN)
				cn.expStatSN++
			}
		}
		return false, nil
	case snLess(sn, cn.expStatSN):
		if !advances {
			return false, nil
		}
		if level == 0 {
			return false, errLost("StatSN", sn, cn.expStatSN)
		}
		return true, nil
	}
	if level == 0 {
		return false, errLost("StatSN", sn, cn.expStatSN)
	}
	if sn-cn.expStatSN > queueLimit {
		return false, fmt.Errorf("StatSN %d is far beyond %d", sn, cn.expStatSN)
	}
	if _, ok := cn.ahead[sn]; ok {
		return advances, nil
	}
	from := cn.expStatSN
	if snLess(from, cn.snackTo) {
		from = cn.snackTo
	}
	if snLess(from, sn) {
		cn.sendSNACKLocked(snackStatus, 0, tagNone, tagNone, from, sn-from)
	}
	if advances {
		if cn.ahead == nil {
			cn.ahead = map[uint32]struct{}{}
		}
		cn.ahead[sn] = struct{}{}
		sn++
	}
	if snLess(cn.snackTo, sn) {
		cn.snackTo = sn
	}
	return false, nil
}

// missingLocked notes the numbers from from to to, which is excluded, as missing and asks for them.
func (cn *conn) missingLocked(c *Command, from, to uint32) error {
	if cn.s.params.ErrorRecoveryLevel == 0 {
		return errLost("DataSN or R2TSN", to, from)
	}
	if to-from > queueLimit {
		return fmt.Errorf("DataSN %d is far beyond %d", to, from)
	}
	t := &c.task
	if t.gap == nil {
		t.gap = &dataGap{missing: map[uint32]struct{}{}}
	}
	for sn := from; sn != to; sn++ {
		t.gap.missing[sn] = struct{}{}
	}
	cn.sendSNACKLocked(snackData, c.LUN, t.itt, tagNone, from, to-from)
	return nil
}

// dataSNLocked follows the numbers of a task's Data-In and R2T PDUs, which count together (RFC 7143 11.8.2).
func (cn *conn) dataSNLocked(c *Command, sn uint32) (dup bool, err error) {
	t := &c.task
	if len(c.In) > 0 && len(c.Out) > 0 && cn.s.params.ErrorRecoveryLevel == 0 {
		// Targets disagree on how bidirectional commands are numbered; without recovery nothing depends on it.
		return false, nil
	}
	switch {
	case sn == t.nextDataSN:
		t.nextDataSN++
		return false, nil
	case snLess(t.nextDataSN, sn):
		if err := cn.missingLocked(c, t.nextDataSN, sn); err != nil {
			return false, err
		}
		t.nextDataSN = sn + 1
		return false, nil
	}
	if t.gap != nil {
		if _, ok := t.gap.missing[sn]; ok {
			delete(t.gap.missing, sn)
			if len(t.gap.missing) == 0 && t.gap.status != nil {
				st := t.gap.status
				t.gap.status = nil
				cn.statusLocked(c, st)
			}
			return false, nil
		}
	}
	if cn.s.params.ErrorRecoveryLevel == 0 {
		return false, errLost("DataSN or R2TSN", sn, t.nextDataSN)
	}
	return true, nil
}

// expectDataSNLocked compares how many numbered PDUs the target says it sent with what came.
func (cn *conn) expectDataSNLocked(c *Command, n uint32) error {
	t := &c.task
	if !snLess(t.nextDataSN, n) {
		return nil
	}
	if cn.s.params.ErrorRecoveryLevel == 0 {
		if len(c.In) == 0 || len(c.Out) > 0 {
			return nil
		}
		return errLost("ExpDataSN", n, t.nextDataSN)
	}
	from := t.nextDataSN
	t.nextDataSN = n
	return cn.missingLocked(c, from, n)
}

// badDataLocked handles a PDU whose header is good and whose data digest is not, at recovery level 1 and up: it is
// as if it had been lost, only that we know at once what was (RFC 7143 7.8).
func (cn *conn) badDataLocked(p *PDU) error {
	s := cn.s
	s.digestErrors++
	h := &p.BHS
	s.windowLocked(h)
	if h.Op() != OpDataIn {
		// It carries a StatSN that will be missed; ask for it now if it does use one up.
		if h.Op() == OpNopIn && h.ITT() == tagNone {
			return nil
		}
		sn := h.Uint32(offStatSN)
		if snLess(sn, cn.snackTo) {
			return nil
		}
		cn.sendSNACKLocked(snackStatus, 0, tagNone, tagNone, sn, 1)
		cn.snackTo = sn + 1
		return nil
	}
	c := s.tags.get(h.ITT())
	if c == nil || c.task.conn != cn || c.task.kind != kindSCSI || c.task.state != taskActive {
		s.strays++
		return nil
	}
	sn := h.Uint32(offDataSN)
	t := &c.task
	if snLess(sn, t.nextDataSN) {
		if t.gap == nil {
			return nil
		}
		if _, ok := t.gap.missing[sn]; ok { // bad again
			cn.sendSNACKLocked(snackData, c.LUN, t.itt, tagNone, sn, 1)
		}
		return nil
	}
	from := t.nextDataSN
	t.nextDataSN = sn + 1
	return cn.missingLocked(c, from, sn+1)
}

// Reject reasons (RFC 7143 11.17.1).
const (
	rejectDataDigest    = 0x02
	rejectSNACK         = 0x03
	rejectImmediate     = 0x06
	rejectTaskInProcess = 0x07
)

// rejectLocked finds out whom a Reject concerns.
func (cn *conn) rejectLocked(p *PDU) error {
	h := &p.BHS
	if dup, err := cn.statSNLocked(h, true); dup || err != nil {
		return err
	}
	if len(p.Data) < bhsLen {
		return errors.New("target rejects without saying what")
	}
	bad := (*BHS)(p.Data)
	rej := &RejectError{Reason: h[2], Op: bad.Op()}
	c := cn.s.tags.get(bad.ITT())
	if c != nil && c.task.conn != cn {
		c = nil
	}
	level := cn.s.params.ErrorRecoveryLevel
	switch {
	case rej.Reason == rejectDataDigest && bad.Op() == OpDataOut:
		// Level 0: the target ends the task with a status. Above: it asks again with an R2T.
		return nil
	case rej.Reason == rejectDataDigest && level > 0 && c != nil && c.task.kind == kindSCSI && !snLess(c.task.cmdSN, cn.s.expCmdSN):
		cn.resendLocked(c)
		return nil
	case rej.Reason == rejectTaskInProcess:
		return nil // a retry that was not needed
	case c == nil || bad.Op() == OpDataOut || bad.Op() == OpSNACK:
		return rej
	}
	c.Err = rej
	cn.s.finishLocked(c, &cn.in.done)
	return nil
}

// resendLocked sends a command again with the tag and CmdSN that it had (RFC 7143 7.2.1).
func (cn *conn) resendLocked(c *Command) {
	c.task.sent = time.Now()
	c.Retries++
	if c.task.kind == kindSCSI {
		cn.sendSCSILocked(c)
	} else {
		cn.sendRequestLocked(c)
	}
}

// retransmitLocked is called every tick at recovery level 1 and up: what was asked for and did not come is asked for
// again, commands that the target has not seen are sent again.
func (cn *conn) retransmitLocked(now time.Time, after time.Duration) {
	s := cn.s
	if len(cn.ahead) > 0 {
		low := cn.snackTo
		for sn := range cn.ahead {
			if snLess(sn, low) {
				low = sn
			}
		}
		cn.sendSNACKLocked(snackStatus, 0, tagNone, tagNone, cn.expStatSN, low-cn.expStatSN)
	} else if snLess(cn.expStatSN, cn.snackTo) {
		cn.sendSNACKLocked(snackStatus, 0, tagNone, tagNone, cn.expStatSN, cn.snackTo-cn.expStatSN)
	}
	for i := range s.tags.slots {
		c := s.tags.slots[i].cmd
		if c == nil || c.task.conn != cn || c.task.state != taskActive || now.Sub(c.task.sent) < after || c.task.refs > 0 {
			continue
		}
		t := &c.task
		if t.ordered && !snLess(t.cmdSN, s.expCmdSN) && t.kind == kindSCSI {
			cn.resendLocked(c)
			continue
		}
		if t.gap != nil {
			for sn := range t.gap.missing {
				cn.sendSNACKLocked(snackData, c.LUN, t.itt, tagNone, sn, 1)
			}
			t.sent = now
		}
	}
}
