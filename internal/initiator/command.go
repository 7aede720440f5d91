package initiator

import (
	"errors"
	"fmt"
	"time"
)

// Command is one SCSI command. The caller sets the first group, Submit owns all of it until Done is called; then
// the second group says what came of it and the Command may be used again.
type Command struct {
	LUN     LUN
	CDB     [16]byte
	CDBTail []byte // bytes 16 and on of a longer CDB, sent as an extended-CDB AHS
	Attr    TaskAttr
	Out     []byte // data to the target
	In      []byte // where data from the target goes; with Out set too the command is bidirectional
	// ExpectedLen, if not 0, is sent as the expected data transfer length instead of the buffers' length: for
	// tests of over- and underflow.
	ExpectedLen uint32
	// Immediate sends the command outside CmdSN order (RFC 7143 4.2.2.1).
	Immediate bool
	// NoReplay makes a lost connection an error (ErrConnectionLost) instead of sending the command again.
	NoReplay bool
	// Timeout replaces Config.CommandTimeout; negative means none.
	Timeout time.Duration
	// Done is called once, without locks, from a goroutine of the session; it must not block.
	Done func(*Command)
	User any // the caller's own

	// Err is nil if the target answered; then Status, Response and Sense are its answer.
	Err       error
	Status    Status
	Response  byte // iSCSI service response: 0 completed at target, 1 target failure, 0x80.. vendor
	Sense     []byte
	InLen     int // bytes of In that were written, counted to the highest
	Residual  uint32
	Overflow  bool // the target had or wanted Residual bytes more than expected
	Underflow bool
	Retries   int // times it was sent again: BUSY, unit attention, reconnection

	task task
}

// Error is nil if the command ended with GOOD, else why not.
func (c *Command) Error() error {
	if c.Err != nil {
		return c.Err
	}
	if c.Response != 0 {
		return fmt.Errorf("SCSI command 0x%02x: iSCSI service response 0x%02x", c.CDB[0], c.Response)
	}
	if c.Status == StatusGood || c.Status == StatusConditionMet {
		return nil
	}
	e := &StatusError{CDB: c.CDB[0], Status: c.Status}
	e.Sense, _ = ParseSense(c.Sense)
	return e
}

// Errors of a command that the target has not answered.
var (
	ErrConnectionLost = errors.New("connection lost")
	ErrClosed         = errors.New("session closed")
	ErrAborted        = errors.New("task aborted")
	ErrTimeout        = errors.New("timed out")
)

// RejectError is a PDU of ours that the target refused (RFC 7143 11.17).
type RejectError struct {
	Reason byte
	Op     Opcode // of the refused PDU
}

func (e *RejectError) Error() string {
	return fmt.Sprintf("target rejected %s, reason 0x%02x", e.Op, e.Reason)
}

type taskKind byte

const (
	kindSCSI taskKind = iota
	kindTMF
	kindText
	kindLogout
	kindNop
)

type taskState byte

const (
	taskIdle   taskState = iota // not ours
	taskQueued                  // waits for the command window
	taskActive                  // has a tag and was handed to a connection
	taskHeld                    // retry after a delay, or session recovery
	taskRetry                   // to be sent again once the writer has let go of its buffers
	taskDone                    // finished, but the writer or the reader still holds its buffers
)

// task is the session's part of a Command. Session.mu guards it.
type task struct {
	kind    taskKind
	state   taskState
	itt     uint32
	cmdSN   uint32
	seq     uint64 // order of submission, kept over replays
	conn    *conn
	refs    int // queued PDUs and reads under way that touch the buffers
	started time.Time
	sent    time.Time // last transmission
	due     time.Time // of a held task
	next    *Command  // in a list
	abort   *Command  // ABORT TASK under way for it
	ordered bool      // counts against the command window (not immediate)

	nextDataSN uint32 // Data-In and R2T PDUs seen without a gap
	gap        *dataGap
	reassigned bool

	// For requests that are not SCSI commands: the request's header, and a copy of the answer.
	bhs  BHS
	data []byte
	resp PDU

	senseBuf [96]byte
}

// dataGap remembers what is missing between numbered PDUs of a task, at error recovery levels above 0.
type dataGap struct {
	missing map[uint32]struct{}
	status  *PDU // final status, held back until nothing is missing
}

func (c *Command) expected() uint32 {
	switch {
	case c.ExpectedLen != 0:
		return c.ExpectedLen
	case len(c.Out) > 0:
		return uint32(len(c.Out))
	}
	return uint32(len(c.In))
}

// resetResult clears what an earlier use or attempt left.
func (c *Command) resetResult() {
	c.Err, c.Status, c.Response, c.Sense = nil, 0, 0, nil
	c.InLen, c.Residual, c.Overflow, c.Underflow = 0, 0, false, false
}

// list is a FIFO of commands linked by task.next.
type list struct {
	head, tail *Command
	n          int
}

func (l *list) push(c *Command) {
	c.task.next = nil
	if l.tail == nil {
		l.head = c
	} else {
		l.tail.task.next = c
	}
	l.tail = c
	l.n++
}

func (l *list) pop() *Command {
	c := l.head
	if c == nil {
		return nil
	}
	l.head = c.task.next
	if l.head == nil {
		l.tail = nil
	}
	c.task.next = nil
	l.n--
	return c
}

func (l *list) take() list {
	t := *l
	*l = list{}
	return t
}

// remove takes c out of the list, if it is there.
func (l *list) remove(c *Command) bool {
	var prev *Command
	for x := l.head; x != nil; prev, x = x, x.task.next {
		if x != c {
			continue
		}
		if prev == nil {
			l.head = x.task.next
		} else {
			prev.task.next = x.task.next
		}
		if l.tail == x {
			l.tail = prev
		}
		x.task.next = nil
		l.n--
		return true
	}
	return false
}

// tagTable maps initiator task tags to commands: the low 16 bits are the slot, the high ones count its uses, so
// that a late answer to an earlier use finds nobody.
type tagTable struct {
	slots []tagSlot
	free  []uint16
}

type tagSlot struct {
	cmd *Command
	gen uint16
}

const tagSlotsMax = 1 << 16

// add gives c a tag; false if all are in use.
func (t *tagTable) add(c *Command) bool {
	if len(t.free) == 0 {
		if len(t.slots) == tagSlotsMax {
			return false
		}
		t.slots = append(t.slots, tagSlot{})
		t.free = append(t.free, uint16(len(t.slots)-1))
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	s := &t.slots[i]
	s.gen++
	if s.gen == 0xffff {
		s.gen = 0 // 0xffff with slot 0xffff would be the reserved tag
	}
	s.cmd = c
	c.task.itt = uint32(s.gen)<<16 | uint32(i)
	return true
}

func (t *tagTable) get(itt uint32) *Command {
	i := int(itt & 0xffff)
	if i >= len(t.slots) || t.slots[i].gen != uint16(itt>>16) {
		return nil
	}
	return t.slots[i].cmd
}

func (t *tagTable) remove(c *Command) {
	i := uint16(c.task.itt & 0xffff)
	if t.slots[i].cmd == c {
		t.slots[i].cmd = nil
		t.free = append(t.free, i)
	}
}
