package iscsi

import "dozo/internal/access/scsi"

// A task's place among those that run, and the data of a write, read into its buffer.

// skipData reads and forgets a PDU's data segment.
func (c *conn) skipData(h *header) error {
	crc, n := uint32(0), h.dataLen()
	if err := c.dropData(n, &crc); err != nil {
		return err
	}
	return c.endData(h, n, crc)
}

// place admits a new task, or puts it behind those that wait.
func (c *conn) place(t *task) {
	c.mu.Lock()
	if len(c.waiting) > 0 && !t.head || !c.mayStartLocked(t) {
		t.phase = phaseWaiting
		c.queueLocked(t)
		c.mu.Unlock()
		return
	}
	c.enterLocked(t, phaseReceiving)
	c.mu.Unlock()
	c.allocate(t)
}

// allocate gets a task's memory; where that fails there is nothing to fetch any more.
func (c *conn) allocate(t *task) {
	c.sess.nexus.Allocate(&t.Command)
	if t.Failed() {
		t.want = 0
	}
}

// receive reads n bytes of data-out into the memory of the task that the reader holds; what the CDB doesn't
// ask for is dropped.
func (c *conn) receive(t *task, h *header, n int) error {
	crc := uint32(0)
	keep := max(0, min(n, t.want-t.got))
	rest := n - keep
	t.got += n
	switch {
	case t.shed:
		keep, rest = 0, n
	case t.phase <= phaseWaiting && keep > 0 && !c.mayStash(t, keep):
		// The initiator may send what it likes without being asked: where nobody has room for it any more the command ends instead.
		c.srv.notice("buffers for data that come unasked are used up: commands end with TASK SET FULL", "peer", c.peer.Remote, "initiator", c.peer.Initiator,
			"bytes", c.srv.stashes.used.Load(), "max", c.srv.stashes.max)
		c.shed(t)
		keep, rest = 0, n
	case t.phase <= phaseWaiting && keep > 0:
		at := len(t.stash)
		t.stash = append(t.stash, make([]byte, keep)...)
		if err := c.fill(t.stash[at:], &crc); err != nil {
			return err
		}
		keep = 0
	}
	for keep > 0 {
		dst := t.Out[t.segment][t.segmentOff:]
		dst = dst[:min(len(dst), keep)]
		if err := c.fill(dst, &crc); err != nil {
			return err
		}
		t.advanceSegment(len(dst))
		keep -= len(dst)
	}
	if rest > 0 {
		if err := c.dropData(rest, &crc); err != nil {
			return err
		}
	}
	return c.endData(h, n, crc)
}

// shed ends a task whose data there is no room for; the rest of them is dropped as it comes.
func (c *conn) shed(t *task) {
	c.mu.Lock()
	c.unstashLocked(t)
	c.mu.Unlock()
	t.shed = true
	if t.phase != phaseHeld { // else it fails when it is prepared
		c.sess.nexus.Fail(&t.Command, scsi.ErrQueueFull)
		t.want = 0
	}
}

func (t *task) advanceSegment(n int) {
	t.segmentOff += n
	for t.segment < len(t.Out) && t.segmentOff == len(t.Out[t.segment]) {
		t.segment, t.segmentOff = t.segment+1, 0
	}
}

func (c *conn) fill(dst []byte, crc *uint32) error {
	if err := c.rd.full(dst); err != nil {
		return err
	}
	if c.params.DataDigest {
		*crc = digest(*crc, dst)
	}
	return nil
}

func (c *conn) dropData(n int, crc *uint32) error {
	if !c.params.DataDigest {
		return c.rd.discard(n)
	}
	for n > 0 {
		b, err := c.rd.next(min(n, 4096))
		if err != nil {
			return unexpected(err)
		}
		*crc = digest(*crc, b)
		n -= len(b)
	}
	return nil
}

// advance lets go of the task that the reader held and carries it on.
func (c *conn) advance(t *task) {
	c.mu.Lock()
	c.filling = nil
	run := false
	switch {
	case t.aborted && t.phase == phaseHeld && !t.delivered:
		// Its turn will come, and end it.
	case t.aborted:
		c.forgetLocked(t)
	case t.due:
		c.startLocked(t)
	default:
		run = c.advanceLocked(t)
	}
	if len(c.waiting) > 0 {
		c.admitLocked()
	}
	c.mu.Unlock()
	if run {
		c.sess.nexus.Execute(&t.Command)
	}
}

// advanceLocked decides what a task does next: it reports that the task is to be executed, or asks for more
// data, or leaves it waiting.
func (c *conn) advanceLocked(t *task) (run bool) {
	switch {
	case t.phase <= phaseWaiting || t.unsolicited || t.spoiled && len(t.r2ts) > 0:
		return false
	case t.got >= t.want && !t.lost:
		t.phase = phaseRunning
		return true
	}
	if t.lost {
		if t.askAgainLocked(); t.lost {
			return false
		}
		return c.advanceLocked(t)
	}
	t.asked = max(t.asked, t.got)
	c.solicitLocked(t)
	return false
}
