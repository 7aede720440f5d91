package iscsi

import (
	"sync/atomic"

	"dozo/internal/access/scsi"
)

// task is a SCSI command of a connection, from its PDU to its response. Its fields are under the mu of its
// connection, which changes by reassignment only (allegiance.go), except that memory for data-out belongs to the reader while conn.filling names the task, and to the device server
// while it runs.
//
//	(held ──>) waiting ──> receiving ──> running ──> gone
//	  └───────────┴────────────┴─ aborted ─┴──────────^
//	                                       └──> done ──^   (its connection was lost, at recovery level 2)
//
// held is for sessions where commands may arrive out of order (order.go).
type task struct {
	scsi.Command
	home      atomic.Pointer[conn] // the connection that it is allegiant to
	slot      uint16
	gen       uint16 // counts the slot's uses, so that a late Data-Out doesn't find its successor
	itt       uint32
	expected  uint32 // expected data transfer length
	isRead    bool
	isWrite   bool
	cmdSN     uint32
	immediate bool
	ordered   bool
	head      bool  // HEAD OF QUEUE: it passes whatever waits
	priority  uint8 // 1 first, 15 last
	delivered bool  // counted by the session's ordering
	preparing bool  // Prepare runs, before it waits for admission
	due       bool  // its turn came while the reader was writing into it
	fenced    bool  // its response has waited for acknowledgements
	barred    bool  // its ID is being barred at the owner
	refused   bool  // its frame asks for what we don't do
	uncounted bool  // its number belongs to another copy of the command
	aborted   bool  // no response any more
	phase     phase
	lun       uint16

	// Data-out. Data come in order (DataPDUInOrder and DataSequenceInOrder are Yes), so one offset says all.
	want        int  // bytes to keep: what the CDB asks for
	got         int  // bytes received
	unsolicited bool // more unsolicited data follow
	unsolSN     uint32
	asked       int // bytes that were announced or asked for
	r2tSN       uint32
	r2ts        []r2t  // outstanding, in order
	stash       []byte // data that came before there was memory
	stashBox    *[]byte
	stashCost   int
	segment     int // the place in Out where the next byte goes
	segmentOff  int
	shed        bool // there was no room for the data that came unasked: ends with TASK SET FULL
	spoiled     bool // a Data-Out was out of sequence: ends with CHECK CONDITION, nothing is written

	snackTag uint32 // of the last R-Data SNACK for it

	gone []func(error) // what waits for its end, after it was aborted

	lost   bool // recovery level 1: some of it has to be asked for again
	silent int  // pings since the last Data-Out

	writeCost, readCost int
}

type phase uint8

const (
	phaseHeld phase = iota
	phaseWaiting
	phaseAdmitting
	phaseReceiving
	phaseRunning
	phaseDone // finished while its connection was lost: the outcome waits for a reassignment
)

// r2t is an outstanding R2T.
type r2t struct {
	ttt    uint32
	sn     uint32
	start  int
	end    int
	dataSN uint32
}

// newTaskLocked takes a task from the pool and gives it a slot. There is always one: the window and the bound
// of immediate commands are what slots there are.
func (c *conn) newTaskLocked() *task {
	var t *task
	if n := len(c.pool); n > 0 {
		t = c.pool[n-1]
		c.pool = c.pool[:n-1]
	} else {
		t = new(task)
		t.home.Store(c)
		t.Command.Finish = func(*scsi.Command) { t.complete() }
	}
	c.seatLocked(t)
	return t
}

// seatLocked gives a task a slot.
func (c *conn) seatLocked(t *task) {
	if n := len(c.freeSlots); n > 0 {
		t.slot = c.freeSlots[n-1]
		c.freeSlots = c.freeSlots[:n-1]
	} else {
		t.slot = uint16(len(c.slots))
		c.slots = append(c.slots, nil)
	}
	t.gen++
	c.slots[t.slot] = t
	c.tasks++
}

// lock locks the connection that a task is allegiant to.
func (t *task) lock() *conn {
	for {
		c := t.home.Load()
		c.mu.Lock()
		if t.home.Load() == c {
			return c
		}
		c.mu.Unlock()
	}
}

// dropLocked ends a task: its slot is free, the window opens, its memory is accounted back. The caller gives
// the task to recycle afterwards, without the lock.
func (c *conn) dropLocked(t *task) {
	c.unseatLocked(t)
	if !t.immediate && !t.uncounted {
		c.sess.maxCmdSN.Add(1)
	}
	if t.delivered {
		c.sess.taskEnded(t)
	}
	c.room.Broadcast()
}

// unseatLocked takes a task out of a connection's accounts.
func (c *conn) unseatLocked(t *task) {
	c.slots[t.slot] = nil
	c.freeSlots = append(c.freeSlots, t.slot)
	c.tasks--
	if t.immediate {
		c.immediate--
	}
	if t.phase > phaseWaiting && !t.preparing {
		c.running--
		c.writeMem -= t.writeCost
		c.readMem -= t.readCost
		c.giveLocked(t.writeCost + t.readCost)
	}
	if t.ordered && t.phase > phaseWaiting && !t.preparing {
		c.ordered = false
	}
}

// unqueueLocked takes a task out of those that wait.
func (c *conn) unqueueLocked(t *task) {
	for i, w := range c.waiting {
		if w == t {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			return
		}
	}
}

// recycleLocked gives a task's memory back and the task to the pool.
func (c *conn) recycleLocked(t *task) {
	t.Command.Reset()
	c.unstashLocked(t)
	c.pool = append(c.pool, t)
	t.clear()
}

// clear makes a task as new but for what it keeps: its memory and the count of uses.
func (t *task) clear() {
	t.itt, t.expected = 0, 0
	t.isRead, t.isWrite, t.immediate, t.ordered, t.aborted, t.spoiled, t.unsolicited = false, false, false, false, false, false, false
	t.phase, t.lun, t.want, t.got, t.unsolSN, t.asked, t.r2tSN = phaseWaiting, 0, 0, 0, 0, 0, 0
	t.r2ts, t.segment, t.segmentOff, t.shed = t.r2ts[:0], 0, 0, false
	t.writeCost, t.readCost = 0, 0
	t.lost, t.silent, t.head, t.snackTag, t.gone = false, 0, false, 0, nil
	t.cmdSN, t.delivered, t.preparing, t.due, t.uncounted, t.refused, t.barred, t.fenced = 0, false, false, false, false, false, false, false
}

// Task attributes (RFC 7143 11.3.1).
const (
	attrOrdered = 2
	attrHead    = 3
	attrACA     = 4 // and above: reserved
)

// command takes a SCSI Command PDU.
func (c *conn) command(h *header, ahs []byte) error {
	bidirectional, err := parseAHS(ahs)
	if err != nil {
		return badPDU(h, "%v", err)
	}
	// The proof comes with the PDU itself, before anything it carries is looked at.
	at, ok, err := c.number(h)
	if err != nil {
		return err
	}
	n := h.dataLen()
	write, read := h[1]&0x20 != 0, h[1]&0x40 != 0
	expected := h.u32(20)
	if ok {
		switch {
		case n > 0 && !write:
			return badPDU(h, "data with a command that writes none")
		case n > 0 && !c.params.ImmediateData:
			return badPDU(h, "immediate data although ImmediateData is No")
		case uint32(n) > expected || n > 0 && uint32(n) > c.params.FirstBurstLength:
			return badPDU(h, "%d bytes of immediate data, expected length %d, FirstBurstLength %d", n, expected, c.params.FirstBurstLength)
		case !h.final() && (!write || c.params.InitialR2T):
			return badPDU(h, "unsolicited data are not agreed upon")
		}
	}
	if !ok {
		return c.skipData(h)
	}
	c.mu.Lock()
	if h.immediate() && c.immediate >= immediateMax {
		c.mu.Unlock()
		c.reject(h, rejectTooManyImmediate)
		return c.skipData(h)
	}
	t := c.newTaskLocked()
	c.filling = t // the reader's own until advance
	if t.immediate = h.immediate(); t.immediate {
		c.immediate++
	}
	c.requests++
	c.srv.cfg.Busy()
	t.itt, t.expected, t.isRead, t.isWrite = h.itt(), expected, read, write
	t.unsolicited = write && !h.final()
	t.ordered, t.head = h[1]&7 == attrOrdered, h[1]&7 == attrHead
	t.priority = c.sess.priorityOf(h)
	t.LUN = h.lun()
	t.lun, _ = scsi.LUNNumber(t.LUN)
	copy(t.CDB[:], h[32:48])
	t.Request = scsi.Request{Initiator: c.sess.initiator, Stamp: at,
		ID: scsi.RequestID{Conn: c.id, Seq: c.requests, Tag: t.itt}}
	if c.sess.id != c.id {
		t.Request.Session = c.sess.id
	}
	t.ExpectIn, t.ExpectOut = 0, 0
	if read {
		t.ExpectIn = expected
	}
	if write {
		t.ExpectOut = expected
	}
	// No command moves data both ways, and there is no auto contingent allegiance. Where data are expected, R or W says in which
	// direction; where none are, both bits may be set (RFC 7143 11.3.1).
	t.refused = bidirectional || expected > 0 && read == write || h[1]&7 >= attrACA
	if c.sess.unordered && !t.immediate {
		t.cmdSN, t.phase = h.cmdSN(), phaseHeld
		t.want = int(min(expected, c.params.FirstBurstLength)) // until Prepare says what it is
		c.mu.Unlock()
		return c.hold(t, h, n)
	}
	c.mu.Unlock()

	c.prepare(t)
	t.asked = n
	c.place(t)
	if n > 0 {
		if err := c.receive(t, h, n); err != nil {
			return c.damaged(t, err)
		}
	}
	c.advance(t)
	return nil
}

// prepare runs Prepare. A session's units see one command at a time.
func (c *conn) prepare(t *task) {
	x := c.sess
	if x.unordered {
		x.prepare.Lock()
		defer x.prepare.Unlock()
	}
	x.nexus.Prepare(&t.Command)
	if !t.Failed() && (t.refused || t.contradicts()) {
		x.nexus.RejectTransfer(&t.Command)
	}
	switch {
	case t.spoiled:
		x.nexus.Fail(&t.Command, scsi.ErrTransfer)
	case t.shed:
		x.nexus.Fail(&t.Command, scsi.ErrQueueFull)
	}
	t.want = t.FetchOut
	c.count(t)
}

// contradicts says that data are to be received which the CDB wants sent: the command would write nothing, and be answered as
// if it had. The other way round nothing is lost, and the residual count tells it (libiscsi's Read10Invalid wants success).
func (t *task) contradicts() bool { return t.expected > 0 && t.WantOut > 0 && !t.isWrite }

// hold reads a command's immediate data and leaves the command to the session's ordering.
func (c *conn) hold(t *task, h *header, n int) error {
	if n > 0 {
		if err := c.receive(t, h, n); err != nil {
			return c.damaged(t, err)
		}
	}
	c.mu.Lock()
	c.filling = nil
	c.mu.Unlock()
	if !c.sess.receive(h.cmdSN(), held{task: t}) {
		c.mu.Lock()
		t.uncounted = true // another connection brought it meanwhile
		c.forgetLocked(t)
		c.mu.Unlock()
	}
	return nil
}

// damaged drops a command whose immediate data were damaged: as if it had not come (RFC 7143 7.8). It has been
// rejected, and the initiator sends it again.
// So is one whose connection was lost in the middle of them.
func (c *conn) damaged(t *task, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recovery == nil || err != errDataDigest && !c.keepsTasks() {
		return err
	}
	c.filling = nil
	t.uncounted = true
	if t.phase == phaseHeld {
		c.forgetLocked(t)
	} else {
		c.abortLocked(t)
	}
	return err
}

// deliver carries on a task that was held, when its turn has come.
func (t *task) deliver() {
	c := t.lock()
	defer c.mu.Unlock()
	t.delivered = true
	if t == c.filling {
		t.due = true
		return
	}
	c.startLocked(t)
}

// startLocked prepares a task whose turn has come. It releases and retakes the lock.
func (c *conn) startLocked(t *task) {
	t.due = false
	if t.aborted {
		c.forgetLocked(t)
		return
	}
	t.phase, t.preparing = phaseAdmitting, true
	c.mu.Unlock()
	c.prepare(t)
	c.mu.Lock()
	c.room.Broadcast()
	if t.aborted {
		c.forgetLocked(t)
		return
	}
	t.phase, t.preparing = phaseWaiting, false
	c.queueLocked(t)
	c.admitLocked()
}

// count keeps the session's statistics.
func (c *conn) count(t *task) {
	switch {
	case t.WritesData():
		c.sess.writeCommands.Add(1)
		c.sess.writtenBytes.Add(uint64(t.want))
	case t.ReadsData():
		c.sess.readCommands.Add(1)
		c.sess.readBytes.Add(uint64(t.ReadCost))
	default:
		c.sess.otherCommands.Add(1)
	}
}

// mayStartLocked reports whether the bounds admit a task now. A task larger than a bound is admitted alone.
func (c *conn) mayStartLocked(t *task) bool {
	share := max(1, int(c.sess.live.Load())) // the bounds are the session's
	switch {
	case c.ordered && !t.head || t.ordered && c.running > 0:
		return false
	case t.want > 0 && c.writeMem > 0 && (c.writeMem+t.want)*share > c.srv.cfg.WriteMemory:
		return false
	case t.ReadCost > 0 && c.readMem > 0 && (c.readMem+t.ReadCost)*share > c.srv.cfg.ReadMemory:
		return false
	}
	return c.hasRoomLocked(max(0, t.want) + t.ReadCost)
}

// enterLocked admits a task.
func (c *conn) enterLocked(t *task, p phase) {
	t.phase = p
	c.running++
	t.writeCost, t.readCost = t.want, t.ReadCost
	c.writeMem += t.writeCost
	c.readMem += t.readCost
	c.takeLocked(t.writeCost + t.readCost)
	c.ordered = c.ordered || t.ordered
}

// admitLocked starts tasks that waited, as far as the bounds allow. It releases and retakes the lock; only
// one goroutine at a time does it.
func (c *conn) admitLocked() {
	if c.pumping || c.dead {
		return
	}
	c.pumping = true
	for len(c.waiting) > 0 && !c.dead {
		t := c.waiting[0]
		if t == c.filling || !c.mayStartLocked(t) {
			break
		}
		c.waiting = c.waiting[:copy(c.waiting, c.waiting[1:])]
		c.enterLocked(t, phaseAdmitting)
		c.mu.Unlock()
		c.allocate(t)
		for data := t.stash[:min(len(t.stash), t.want)]; len(data) > 0; {
			n := copy(t.Out[t.segment][t.segmentOff:], data)
			t.advanceSegment(n)
			data = data[n:]
		}
		c.mu.Lock()
		c.unstashLocked(t)
		t.phase = phaseReceiving
		c.room.Broadcast()
		if t.aborted {
			c.forgetLocked(t)
		} else if c.advanceLocked(t) {
			c.mu.Unlock()
			c.sess.nexus.Execute(&t.Command)
			c.mu.Lock()
		}
	}
	c.pumping = false
	c.room.Broadcast()
	c.flushLocked()
}

// forgetLocked ends a task without a response.
func (c *conn) forgetLocked(t *task) {
	c.dropLocked(t)
	c.recycleLocked(t)
}

// abortLocked ends a task without a response, now or, if it runs or somebody fills it, when that is over.
func (c *conn) abortLocked(t *task) {
	t.aborted = true
	t.Command.Cancel()
	if t == c.filling || t.phase == phaseAdmitting || t.phase == phaseRunning {
		return
	}
	if t.phase == phaseHeld && !c.sess.dropHeld(t) {
		return // on its way to deliver
	}
	if t.phase == phaseWaiting {
		c.unqueueLocked(t)
	}
	c.forgetLocked(t)
}

// isAttention reports sense data of UNIT ATTENTION, fixed or descriptor.
func isAttention(sense []byte) bool {
	const unitAttention = 6
	at := 2
	if sense[0]&0x7f >= 0x72 {
		at = 1
	}
	return len(sense) > at && sense[at]&15 == unitAttention
}

// complete is Finish of every task: it answers.
func (t *task) complete() {
	c := t.home.Load()
	if len(t.Sense) > 0 && !t.fenced && c.sess.live.Load() > 1 && isAttention(t.Sense) && c.sess.params.TaskReporting != reportRFC3720 {
		// What it reports may have aborted tasks: their responses come first (RFC 7143 4.2.2.3.3).
		t.fenced = true
		c.fence(nil, t.complete)
		return
	}
	c = t.lock()
	defer c.mu.Unlock()
	if c.dead && !t.aborted && c.keepsTasks() && !c.expired {
		c.doneLocked(t)
		return
	}
	c.dropLocked(t)
	for _, f := range t.gone {
		c.srv.wg.Go(func() { f(nil) }) // it locks connections
	}
	switch {
	case t.aborted:
	case c.dead:
		c.noteClearedLocked(t)
	default:
		c.respondLocked(t)
	}
	c.recycleLocked(t)
	c.flushSoonLocked()
	if len(c.waiting) > 0 {
		c.admitLocked()
	}
}
