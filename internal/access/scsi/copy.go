package scsi

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Third-party copy (SPC-4 5.17, 6.3 to 6.5, 6.20 to 6.26; SBC-3 5.21 to 5.23, 5.50): the copy manager of a logical unit. Data
// go from Disk to Disk through the access server and never to the initiator; within a disk, whole physical blocks are
// copied by reference and go nowhere. A copy is a list of pieces, done
// in order; within a piece a few records are under way at a time. There is no goroutine: the completion of one
// call makes the next.

// Limits of the copy manager that we chose; page 8Fh and RECEIVE COPY (OPERATING PARAMETERS) tell them.
const (
	copyTargetsMax  = 16
	copySegmentsMax = 64
	copyListMax     = 4096     // bytes of both descriptor lists together
	copyLengthMax   = 64 << 20 // bytes of one segment: well within an initiator's timeout
	copyRangesMax   = 64       // of a token, and of a command that uses one
	copyTokenMax    = 1 << 30  // bytes of a token, and of a command that uses one
	copyTokenBest   = 64 << 20 // of these, optimally: Windows wants an answer within 4 s, and asks for as much as 256 MiB if it may
	copyKept        = 64       // results that are kept for a nexus
	copiesMax       = 32       // under way for a nexus: each has memory for its window, in the background too
	copyWindow      = 4        // records of a piece under way
	copyChunk       = RecordMax
	copyByReference = 16 << 20 // bytes of one Copy: other commands wait while a map takes it in
)

// CopyMax bounds what a Disk is asked to copy at once.
const CopyMax = copyByReference

// copyPiece is one contiguous part of a copy.
type copyPiece struct {
	src, dst       Disk // src nil: zeros
	srcOff, dstOff int64
	n              int64
	token          *Token // read by this token: what is read counts only while the token is valid
}

// copyOp is a copy under way, or its outcome.
type copyOp struct {
	unit      *Unit
	list      uint32
	request   Request // of the command
	pieces    []copyPiece
	segments  bool // pieces are segments, to be counted
	release   []func()
	cancelled atomic.Bool
	parent    *atomic.Bool // the command's: it counts for one that runs in the foreground
	ended     func(func()) // nil, or called once it has gone through, before that is known; not if it never began
	finished  func(*copyOp)
	action    byte // service action that began it
	immediate bool
	tokenData []byte      // POPULATE TOKEN: the token
	discard   bool        // its results are not to be kept
	short     bool        // WRITE USING TOKEN: the token has less than was to be written
	unnamed   bool        // nobody can ask for it: its list identifier is none (LIST ID USAGE 11b)
	byData    atomic.Bool // a disk has said that it can't copy by reference

	mu struct {
		sync.Mutex
		piece   int
		at      int64    // of the piece, given out
		given   []*given // of the piece, in order, but for those at its beginning that are done
		front   int64    // bytes of the piece that are done and have none before them that isn't
		wrote   bool     // something of the piece is done
		active  int      // records under way
		pumping bool     // somebody is in pump
		again   bool
		err     error
		done    bool
		bytes   uint64 // done, in the order that was asked for
		count   uint16 // pieces done
		updates uint16
		sense   senseData
		stepped time.Time // when something last went on
		began   map[Disk]Stamp
		waits   []func()              // called once it is over
		others  map[Disk][]otherStamp // the first is the one that calls go by now
	}
}

// given is a part of a piece that was given out to be copied.
type given struct {
	n    int64
	done bool
}

// cancel ends the operation. over is called, possibly at once, when it has nothing under way any more: its calls of Disks have IDs that
// no refusal names, and take effect until they have ended (rule R9).
func (o *copyOp) cancel(over func()) {
	o.cancelled.Store(true)
	o.mu.Lock()
	done := o.mu.done
	if !done {
		o.mu.waits = append(o.mu.waits, over)
	}
	o.mu.Unlock()
	if done {
		over()
	}
}

func (o *copyOp) over() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.done
}

// stopped says that nobody wants the operation to go on.
func (o *copyOp) stopped() bool {
	return o.cancelled.Load() || !o.immediate && o.parent != nil && o.parent.Load()
}

// start runs the operation; finished is called once, possibly before start returns. The first call is a read by the
// command's own stamp: a command that comes late does nothing (R9).
func (o *copyOp) start() {
	o.mu.Lock()
	o.mu.stepped = time.Now()
	o.mu.active++
	o.mu.Unlock()
	o.unit.disk.Read(o.request, 0, int(o.unit.disk.Geometry().BlockSize), func(r ReadResult, err error) {
		if err == nil {
			r.Release()
		}
		o.step(nil, err)
	})
}

// pump begins as much as may be under way, and ends the operation when nothing is left. One at a time does it;
// who comes meanwhile has it look again.
func (o *copyOp) pump() {
	o.mu.Lock()
	if o.mu.pumping {
		o.mu.again = true
		o.mu.Unlock()
		return
	}
	o.mu.pumping = true
	for {
		o.mu.again = false
		if p, from, g := o.takeLocked(); p != nil {
			o.mu.Unlock()
			o.move(p, from, g)
			o.mu.Lock()
		} else if !o.mu.again {
			break
		}
	}
	o.mu.pumping = false
	last := o.mu.active == 0 && !o.mu.done
	o.mu.Unlock()
	if last {
		o.end()
	}
}

// end makes the outcome known.
func (o *copyOp) end() {
	o.mu.Lock()
	if f := o.ended; f != nil && o.mu.err == nil {
		o.ended = nil
		o.mu.Unlock()
		f(o.end)
		return
	}
	switch {
	case o.mu.err != nil:
		o.mu.sense = copySense(o.mu.err)
		if o.segments {
			o.whereLocked(&o.mu.sense)
		}
	case o.short: // SBC-5 4.28.2: the INFORMATION field has the transfer count
		o.mu.sense = senseData{key: CopyAborted, code: codeTargetUnderrun, infoValid: true,
			info: o.mu.bytes / uint64(max(1, o.unit.disk.Geometry().BlockSize))}
		if o.mu.bytes == 0 {
			o.mu.sense.key = IllegalRequest
		}
	}
	o.mu.done = true
	waits := o.mu.waits
	o.mu.waits = nil
	o.mu.Unlock()
	for _, f := range o.release {
		f()
	}
	o.finished(o)
	for _, f := range waits {
		f()
	}
}

// whereLocked says in a sense which segment could not be copied, and how much of it is left to be (SPC-4 5.17.7.4).
func (o *copyOp) whereLocked(s *senseData) {
	s.command, s.commandValid = uint32(uint16(o.mu.piece)), true
	if o.mu.wrote {
		p := &o.pieces[o.mu.piece]
		left := p.n - o.mu.front
		if p.backwards() {
			left = p.n
		}
		s.info, s.infoValid = uint64(left)/uint64(max(1, p.dst.Geometry().BlockSize)), true
	}
}

// processedLocked is how many segments were begun; what is no list of segments has none.
func (o *copyOp) processedLocked() uint16 {
	if o.segments && o.mu.at > 0 {
		return o.mu.count + 1
	}
	if o.segments {
		return o.mu.count
	}
	return 0
}

// overlapping copies of one disk onto itself go record by record, from the end that is not overwritten first.
func (p *copyPiece) overlapping() bool {
	return p.src == p.dst && p.srcOff < p.dstOff+p.n && p.dstOff < p.srcOff+p.n
}

// backwards says that the piece is copied from its end.
func (p *copyPiece) backwards() bool {
	return p.src != nil && p.overlapping() && p.dstOff > p.srcOff
}

// blockOf is the physical block by which a piece can be copied by reference; 0: it can't.
func (o *copyOp) blockOf(p *copyPiece) int64 {
	if p.src == nil || p.src != p.dst || o.byData.Load() {
		return 0
	}
	block := int64(p.dst.Geometry().PhysicalBlockSize)
	if block == 0 || (p.srcOff-p.dstOff)%block != 0 {
		return 0
	}
	return block
}

// chunk says how much of a piece is copied at once when at bytes of it have been given out: as many whole physical
// blocks as may be where they can be copied by reference, and what is before the first and behind the last by itself.
func (o *copyOp) chunk(p *copyPiece, at int64) int64 {
	left := p.n - at
	if p.src == nil {
		return p.n // zeros of any length are one call
	}
	block := o.blockOf(p)
	if block == 0 {
		return min(copyChunk, left)
	}
	edge := p.dstOff + at // towards which it is copied from the left end or, backwards, from the right one
	odd := (block - edge%block) % block
	if p.backwards() {
		edge = p.dstOff + left
		odd = edge % block
	}
	switch whole := left / block * block; {
	case odd != 0:
		return min(odd, left)
	case whole == 0:
		return left
	default:
		return min(copyByReference/block*block, whole)
	}
}

// takeLocked gives the next record; nil if there is none now.
func (o *copyOp) takeLocked() (p *copyPiece, from int64, g *given) {
	for o.mu.err == nil && o.mu.piece < len(o.pieces) {
		p = &o.pieces[o.mu.piece]
		window := copyWindow
		if p.src != nil && p.overlapping() {
			window = 1
		}
		switch {
		case o.mu.active >= window:
			return nil, 0, nil
		case o.mu.at == p.n:
			if o.mu.active > 0 {
				return nil, 0, nil // pieces are done in order
			}
			o.mu.piece, o.mu.at, o.mu.front, o.mu.wrote = o.mu.piece+1, 0, 0, false
			o.mu.count++
			continue
		}
		if o.stopped() { // with something left; else it has gone through
			o.mu.err = ErrAborted
			return nil, 0, nil
		}
		n := o.chunk(p, o.mu.at)
		g = &given{n: n}
		o.mu.given = append(o.mu.given, g)
		from = o.mu.at
		if p.backwards() {
			from = p.n - o.mu.at - n
		}
		o.mu.at += n
		o.mu.active++
		return p, from, g
	}
	return nil, 0, nil
}

// step ends the copying of a part and goes on with what is next.
func (o *copyOp) step(g *given, err error) {
	o.mu.Lock()
	switch {
	case err == nil && g != nil:
		g.done, o.mu.wrote = true, true
		o.countLocked()
	case err != nil && o.mu.err == nil:
		o.mu.err = err
	}
	o.mu.active--
	o.mu.stepped = time.Now()
	if err == nil {
		o.mu.updates++
	}
	o.mu.Unlock()
	o.pump()
}

// stepped says that something has gone on.
func (o *copyOp) stepped() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.stepped = time.Now()
}

// countLocked counts what is done in the order that was asked for (SPC-4 6.24, TRANSFER COUNT): a piece that is copied from its end
// once it is there as a whole.
func (o *copyOp) countLocked() {
	p := &o.pieces[o.mu.piece]
	before := o.mu.front
	for len(o.mu.given) > 0 && o.mu.given[0].done {
		o.mu.front += o.mu.given[0].n
		o.mu.given = o.mu.given[1:]
	}
	switch {
	case !p.backwards():
		o.mu.bytes += uint64(o.mu.front - before)
	case o.mu.front == p.n:
		o.mu.bytes += uint64(p.n)
	}
}

// on makes the request of one call of a Disk.
func (o *copyOp) on(d Disk) Request {
	r := o.request
	r.ID = d.NewID()
	r.Session = o.request.SessionID()
	own, other := o.request.fresh(o.unit.disk), d.Stamp()
	now := own
	if d != o.unit.disk {
		now = o.unit.disk.Stamp()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	r.Stamp = own
	if d != o.unit.disk {
		r.Stamp = o.freshLocked(d, other, now, own)
	}
	if time.Since(o.mu.stepped) > longGap && o.mu.err == nil {
		o.mu.err = ErrBusy
	}
	if o.mu.err != nil {
		r.Stamp = Stamp{} // too old for anything
	}
	if o.mu.began == nil {
		o.mu.began = map[Disk]Stamp{o.unit.disk: o.request.began()}
	}
	began, known := o.mu.began[d]
	if !known {
		began = r.Stamp
		o.mu.began[d] = began
	}
	r.Began = began
	return r
}

// otherStamp is a stamp of another unit than the copy manager's, and the moment of its own unit at which it was the present one.
type otherStamp struct{ stamp, at Stamp }

// freshLocked is Request.fresh of another unit, whose stamps the initiator proves nothing about: the newest one that was not newer than what
// it has proved of the copy manager's own. stamp is the other unit's, and now its own one's, at this moment.
func (o *copyOp) freshLocked(d Disk, stamp, now, proved Stamp) Stamp {
	if o.request.Initiator == nil || o.request.Initiator.Proved == nil {
		return stamp
	}
	if o.mu.others == nil {
		o.mu.others = map[Disk][]otherStamp{}
	}
	list := o.mu.others[d]
	switch n := len(list); {
	case n == 0: // the first call: the command has just proved that it is not late
		list = append(list, otherStamp{stamp: stamp})
	case n == otherStampsMost: // nothing was proved for long
		list = slices.Delete(list, 1, n/2)
	}
	if now.Newer(list[len(list)-1].at) {
		list = append(list, otherStamp{stamp, now})
	}
	i := len(list) - 1
	for i > 0 && list[i].at.Newer(proved) {
		i--
	}
	o.mu.others[d] = slices.Delete(list, 0, i)
	return o.mu.others[d][0].stamp
}

// otherStampsMost is how many are kept of a unit: what is proved lags by a second or two.
const otherStampsMost = 256

// move copies a part of a piece, from on.
func (o *copyOp) move(p *copyPiece, from int64, g *given) {
	n := g.n
	if p.src == nil {
		p.dst.Zero(o.on(p.dst), p.dstOff+from, n, true, func(err error) { o.step(g, err) })
		return
	}
	if block := o.blockOf(p); block == 0 || n%block != 0 || (p.dstOff+from)%block != 0 {
		o.moveAll(p, from, n, g)
		return
	}
	p.dst.Copy(o.on(p.dst), p.srcOff+from, p.dstOff+from, n, p.token, func(err error) {
		switch {
		case p.token != nil && errors.Is(err, ErrTokenUnknown): // the token is not good any more: ask why
			p.dst.UseToken(o.on(p.dst), *p.token, func(_ []Range, why error) { o.step(g, cmp.Or(why, err)) })
			return
		case !errors.Is(err, ErrNotSupported):
			o.step(g, err)
			return
		}
		o.byData.Store(true)
		o.moveAll(p, from, n, g)
	})
}

// moveAll copies as data what is left of a part of a piece, by the record: more than one if a disk was to copy it by
// reference, and can't.
func (o *copyOp) moveAll(p *copyPiece, from, left int64, g *given) {
	m := min(copyChunk, left)
	at := from
	if p.backwards() {
		at += left - m
	} else {
		from += m
	}
	o.moveData(p, at, m, func(err error) {
		if err != nil || m == left {
			o.step(g, err)
			return
		}
		o.stepped()
		o.moveAll(p, from, left-m, g)
	})
}

// moveData copies n bytes of a piece by reading and writing.
func (o *copyOp) moveData(p *copyPiece, from, n int64, done func(error)) {
	p.src.Read(o.on(p.src), p.srcOff+from, int(n), func(r ReadResult, err error) {
		if err != nil {
			done(err)
			return
		}
		w, err := p.dst.NewWrite(p.dstOff+from, int(n))
		if err != nil {
			r.Release()
			done(err)
			return
		}
		b := w.Bytes()
		for _, d := range r.Buffers() {
			b = b[copy(b, d):]
		}
		r.Release()
		write := func(err error) {
			if err == nil && o.stopped() {
				err = ErrAborted
			}
			if err != nil {
				w.Release()
				done(err)
				return
			}
			p.dst.Write(o.on(p.dst), w, false, done)
		}
		if p.token == nil {
			write(nil)
			return
		}
		// Had anything been written before this answer, the token would not be valid any more.
		p.src.UseToken(o.on(p.src), *p.token, func(_ []Range, err error) { write(err) })
	})
}

// enter makes the operation known, from where on it can be asked for and ended. False: it can't be begun, and the command has finished.
func (u *Unit) enter(c *Command, o *copyOp) bool {
	o.unit, o.request, o.parent = u, c.Request, &c.cancelled
	o.stepped()
	if err := u.copies.enter(o); err != nil {
		c.notEntered(err)
		return false
	}
	return true
}

// begin tells the initiator at once if it doesn't want to wait, and runs the operation.
func (u *Unit) begin(c *Command, o *copyOp) {
	if o.immediate {
		if c.cancelled.Load() {
			o.cancelled.Store(true)
		}
		o.finished = func(o *copyOp) { u.copies.left(o) }
		c.finish()
		o.start()
		return
	}
	o.finished = func(o *copyOp) {
		c.copied(o)
	}
	o.start()
}

// copied finishes the command of an operation that has ended.
func (c *Command) copied(o *copyOp) {
	switch {
	case o.mu.err == nil && o.mu.sense == senseData{}:
	case o.mu.err == nil, o.segments, o.mu.sense.key == IllegalRequest, errors.Is(o.mu.err, ErrAborted), errors.As(o.mu.err, new(*refusal)):
		c.check(o.mu.sense)
	default:
		c.fail(o.mu.err)
	}
	switch {
	case o.unnamed:
		o.unit.copies.left(o)
	case o.discard:
		o.unit.copies.drop(o.list)
	}
	c.finish()
}

// refusal is an error that says by itself what the initiator is told.
type refusal struct{ sense senseData }

func (r *refusal) Error() string { return fmt.Sprintf("refused: %+v", r.sense) }

// notEntered ends a command whose copy could not begin.
func (c *Command) notEntered(err error) {
	switch {
	case errors.Is(err, errCopyUnderWay):
		c.illegal(codeOperationInProgress)
	case errors.Is(err, errCopyOtherFormat):
		c.badParameter(1)
	default:
		c.fail(err)
	}
	c.finish()
}

// copySense is what an error of a Disk means to who asked for the copy (SPC-4 5.17.7.4).
func copySense(err error) senseData {
	if e, ok := errors.AsType[*unreachableError](err); ok {
		return senseData{key: CopyAborted, code: codeCopyUnreachable, field: e.field, fieldValid: e.field != 0}
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.sense
	}
	if errors.Is(err, ErrAborted) { // SPC-4 5.17.4.7: by COPY OPERATION ABORT
		return senseData{key: CopyAborted, code: codeClearedByServer}
	}
	switch x := outcomeOf(err); x.code {
	case codeTokenUnknown, codeTokenCorrupt, codeTokenExpired, codeTokenCancelled, codeTokenDeleted, codeNoTokenResources:
		return senseData{key: IllegalRequest, code: x.code}
	case codeLBAOutOfRange:
		return senseData{key: CopyAborted, code: codeNone}
	default:
		if x.status != StatusCheckCondition {
			return senseData{key: CopyAborted, code: codeThirdPartyFailure}
		}
		return senseData{key: CopyAborted, code: x.code}
	}
}
