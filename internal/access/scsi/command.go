package scsi

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// CDBMax is the longest command descriptor block that the device server knows. Longer ones are variable
// length CDBs, of which none is supported.
const CDBMax = 16

// Command is one SCSI command on its way through the device server. The zero value is ready to be filled in;
// Reset makes a finished one ready again and keeps its buffers.
type Command struct {
	// Set by the transport before Prepare.

	LUN     uint64 // the 8-byte LUN field, big endian
	CDB     [CDBMax]byte
	Request Request
	// ExpectIn and ExpectOut are how many bytes the initiator expects to receive and to send; the other one
	// is 0 for a command that moves data one way.
	ExpectIn, ExpectOut uint32
	// Finish is called once after Execute.
	Finish func(*Command)

	// Set by Prepare.

	// WantOut is how many bytes of data-out the CDB asks for, also after the command has failed for it: the
	// transport tells the initiator by how much it differs from ExpectOut.
	WantOut uint64
	// FetchOut is how many bytes of data-out the transport has to fetch: at most ExpectOut, none once the
	// command has failed.
	FetchOut int
	// ReadCost is about how many bytes of memory Execute takes for what it reads.
	ReadCost int

	// Out, set by Allocate, is where the data-out goes, in order; altogether FetchOut bytes.
	Out [][]byte

	// Set when finished.

	Status Status
	Sense  []byte // empty, or sense data in the format that D_SENSE asks for, valid until Reset
	// In is the data for the initiator, in order, valid until Reset; the transport sends no more than
	// ExpectIn bytes of it.
	In [][]byte
	// WantIn is how many bytes the CDB asked to be sent; In has fewer where nobody would receive them.
	WantIn uint64

	// Below: the device server's own.

	unit     *Unit
	op       *opcode
	geo      Geometry
	failed   bool // Prepare has decided the outcome
	off      int64
	n        int64 // bytes of the disk that the command is about
	fua      bool
	partial  int // bytes of a last block that the initiator sends only the beginning of
	writes   []WriteBuffer
	reads    []ReadResult
	inBuf    []byte // backing of In for answers that are made here
	outBuf   []byte // backing of Out for parameter lists and data to compare
	senseMem [SenseMax]byte
	// cancelled: nobody waits for the outcome any more; what is done in steps ends after the present one.
	cancelled atomic.Bool
	stepped   time.Time // when the last step of one that is done in steps ended

	step struct {
		sync.Mutex
		pending int   // calls of the Disk that have not completed, and one while they are being made
		err     error // the first that failed
	}
	// bound once so that calls of the Disk don't allocate
	onStep func(error)
	onRead func(ReadResult, error)
	onCAW  func(int, error)
	after  func(*Command) // what follows when all steps of a stage have succeeded
}

// Reset gives back whatever the command still holds and makes it ready for another.
func (c *Command) Reset() {
	for i, w := range c.writes {
		if w != nil {
			w.Release()
		}
		c.writes[i] = nil
	}
	for i, r := range c.reads {
		if r != nil {
			r.Release()
		}
		c.reads[i] = nil
	}
	clear(c.Out)
	clear(c.In)
	c.writes, c.reads, c.Out, c.In = c.writes[:0], c.reads[:0], c.Out[:0], c.In[:0]
	if cap(c.outBuf) > keepBuffer {
		c.outBuf = nil
	}
	if cap(c.inBuf) > keepBuffer {
		c.inBuf = nil
	}
	c.inBuf, c.outBuf = c.inBuf[:0], c.outBuf[:0]
	c.LUN, c.CDB, c.Request = 0, [CDBMax]byte{}, Request{}
	c.ExpectIn, c.ExpectOut, c.WantOut, c.WantIn, c.ReadCost = 0, 0, 0, 0, 0
	c.FetchOut, c.partial = 0, 0
	c.Status, c.Sense = StatusGood, nil
	c.unit, c.op, c.geo, c.failed, c.off, c.n, c.fua = nil, nil, Geometry{}, false, 0, 0, false
	c.step.pending, c.step.err, c.after = 0, nil, nil
	c.cancelled.Store(false)
}

// Cancel says, from any goroutine, that the command was aborted. It finishes all the same, as soon as it can.
func (c *Command) Cancel() { c.cancelled.Store(true) }

// Lingers says of a command that was executed that its calls of Disks have IDs of their own (Disk.NewID). Whoever refuses the command
// by its ID doesn't meet them: they can take effect until it has finished.
func (c *Command) Lingers() bool {
	const thirdPartyCopy = 0x83
	return c.op != nil && c.op.code == thirdPartyCopy
}

// conflict ends the command with RESERVATION CONFLICT.
func (c *Command) conflict() {
	c.failed = true
	c.Status, c.Sense = StatusReservationConflict, nil
	c.FetchOut, c.ReadCost = 0, 0
	c.dropIn()
}

// keepBuffer is the largest private buffer that a pooled Command keeps: parameter data fit, data to compare
// rarely.
const keepBuffer = 8 << 10

// WritesData reports, after Prepare, whether the command changes what is on the disk; a transport counts by it.
func (c *Command) WritesData() bool { return c.op != nil && c.op.flags&changesMedium != 0 }

// ReadsData is the same for commands that return contents of the disk.
func (c *Command) ReadsData() bool { return c.op != nil && c.op.flags&readsMedium != 0 }

// Failed reports, after Prepare, that the outcome is decided: there is nothing to fetch, and Execute only
// finishes.
func (c *Command) Failed() bool { return c.failed }

// TakeReads hands the read results behind In over to the caller, who releases them once In has been sent.
func (c *Command) TakeReads(to []ReadResult) []ReadResult {
	to = append(to, c.reads...)
	clear(c.reads)
	c.reads = c.reads[:0]
	return to
}

// HoldsReads reports that In is memory of the disk, which TakeReads hands over.
func (c *Command) HoldsReads() bool { return len(c.reads) > 0 }

// check ends the command with CHECK CONDITION.
func (c *Command) check(s senseData) {
	c.failed = true
	c.Status = StatusCheckCondition
	if c.unit != nil && c.unit.disk != nil && c.unit.disk.Unit().State.Current.DescriptorSense {
		c.Sense = s.appendDescriptor(c.senseMem[:0])
	} else {
		c.Sense = s.appendFixed(c.senseMem[:0])
	}
	c.FetchOut, c.ReadCost = 0, 0
	c.dropIn()
}

// dropIn forgets data that an error makes void.
func (c *Command) dropIn() {
	clear(c.In)
	c.In, c.inBuf, c.WantIn = c.In[:0], c.inBuf[:0], 0
}

// illegal ends the command with ILLEGAL REQUEST.
func (c *Command) illegal(code Code) { c.check(senseData{key: IllegalRequest, code: code}) }

// outOfRange ends the command with LOGICAL BLOCK ADDRESS OUT OF RANGE; the INFORMATION field has the first of the LBAs from lba on
// that isn't there (SBC-3 4.18.1).
func (c *Command) outOfRange(lba uint64) {
	c.check(senseData{key: IllegalRequest, code: codeLBAOutOfRange, info: max(lba, c.geo.Blocks), infoValid: true})
}

// badField ends the command with INVALID FIELD IN CDB, pointing at a byte and the highest bit of the field.
func (c *Command) badField(at int, bit uint8) {
	c.check(senseData{key: IllegalRequest, code: codeInvalidFieldInCDB, field: uint16(at), fieldValid: true,
		inCDB: true, bit: bit, bitValid: true})
}

// badParameter ends the command with INVALID FIELD IN PARAMETER LIST, pointing at a byte of it.
func (c *Command) badParameter(at int) {
	c.check(senseData{key: IllegalRequest, code: codeInvalidFieldInParameter, field: uint16(at), fieldValid: true})
}

// fail ends the command with what an error of the Disk means.
func (c *Command) fail(err error) {
	o := outcomeOf(err)
	if o.status != StatusCheckCondition {
		c.failed = true
		c.Status, c.Sense = o.status, nil
		c.FetchOut, c.ReadCost = 0, 0
		c.dropIn()
		return
	}
	s := senseData{key: o.key, code: o.code}
	if m, ok := errors.AsType[*MediumError](err); ok && c.geo.BlockSize != 0 {
		s.info, s.infoValid = uint64(m.Offset)/uint64(c.geo.BlockSize), true
	}
	c.check(s)
}

// finish ends the command as it is.
func (c *Command) finish() { c.Finish(c) }

// answer sends b, cut to the allocation length.
func (c *Command) answer(b []byte, allocation uint64) {
	c.inBuf = b
	if uint64(len(b)) > allocation {
		b = b[:allocation]
	}
	c.WantIn = uint64(len(b))
	if len(b) > 0 {
		c.In = append(c.In[:0], b)
	}
}

// begin starts a stage of calls of the Disk: what follows runs once end has been called and all of them have
// completed without error; after an error the command finishes with it.
func (c *Command) begin(after func(*Command)) {
	if c.onStep == nil {
		c.onStep = c.stepDone
		c.onRead = c.readDone
		c.onCAW = c.cawDone
	}
	c.after = after
	c.step.Lock()
	c.step.pending, c.step.err = 1, nil
	c.step.Unlock()
}

// add announces one more call of the stage.
func (c *Command) add() {
	c.step.Lock()
	c.step.pending++
	c.step.Unlock()
}

// end says that all calls of the stage were made.
func (c *Command) end() { c.stepDone(nil) }

// stepDone completes one call.
func (c *Command) stepDone(err error) {
	c.step.Lock()
	if err != nil && c.step.err == nil {
		c.step.err = err
	}
	c.step.pending--
	last, first := c.step.pending == 0, c.step.err
	c.step.Unlock()
	switch {
	case !last:
	case first != nil:
		c.fail(first)
		c.finish()
	default:
		c.after(c)
	}
}

// readDone completes a Read of which the stage has only one.
func (c *Command) readDone(r ReadResult, err error) { c.readPart(0, r, err) }

// readPart keeps the i-th result of a stage of Reads. Slots are distinct and read only after the stage, so
// they need no lock.
func (c *Command) readPart(i int, r ReadResult, err error) {
	if err == nil {
		c.reads[i] = r
	}
	c.stepDone(err)
}

// part is the request of the i-th call.
func (c *Command) part(i int) Request {
	r := c.Request
	r.ID.Part = uint32(i)
	return r
}

// allocateOut makes n bytes of private memory the next place for data-out.
func (c *Command) allocateOut(n int) {
	if cap(c.outBuf) < n {
		c.outBuf = make([]byte, n)
	}
	c.outBuf = c.outBuf[:n]
	if n > 0 {
		c.Out = append(c.Out, c.outBuf)
	}
}

func (c *Command) u16(at int) uint16 { return binary.BigEndian.Uint16(c.CDB[at:]) }
func (c *Command) u32(at int) uint32 { return binary.BigEndian.Uint32(c.CDB[at:]) }
func (c *Command) u64(at int) uint64 { return binary.BigEndian.Uint64(c.CDB[at:]) }
