package access

import (
	"bytes"
	"fmt"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// admit decides upon a command that has arrived or has waited: it runs, waits, or is refused.
func (o *Owner) admit(op *Op) {
	if o.stopErr != nil {
		op.fresh = !op.child && !op.barred
		o.finish(op, wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch))
		if !op.fresh {
			o.dropBuf(op)
		}
		return
	}
	if !o.w.Serving() && !(mutant.On(mutant.R1Serving) && op.Kind == wire.OpRead) {
		o.waiting = append(o.waiting, op)
		return
	}
	if !op.barred {
		if o.silent() {
			o.finish(op, errSilent(o))
			o.dropBuf(op)
			return
		}
		if o.refusesPort(op) { // R11: also what an owner before has done, whose answer was lost
			o.late.arrived(op, o.tick())
			o.finish(op, wire.Errorf(wire.CodeUnproven, "attached before a takeover that was not proven"))
			o.dropBuf(op)
			return
		}
		if op.Forward && !op.child && recorded(op.Kind) && !mutant.On(mutant.R9Request) && o.answered(op) {
			o.dropBuf(op)
			return
		}
		if err := o.late.check(op, o.epoch, o.tick()); err != nil {
			o.env.Metrics.Stale.Inc()
			o.finish(op, err)
			o.dropBuf(op)
			return
		}
		if size := o.spec.Load().SizeBytes; op.Offset < 0 || op.Length < 0 || op.Offset > size || op.Length > size-op.Offset {
			o.finish(op, wire.Errorf(wire.CodeBadRequest, "bytes %d+%d of a volume of %d", op.Offset, op.Length, size))
			o.dropBuf(op)
			return
		}
		op.barred = true
		if !mutant.On(mutant.R9Arrived) {
			o.late.arrived(op, o.tick())
		}
	}
	if o.full && writes(op.Kind) && o.w.Stuck() {
		if o.earlier(op) {
			o.waiting = append(o.waiting, op)
			return
		}
		o.dropBuf(op)
		o.finish(op, wire.Errorf(wire.CodeNoSpace, "no two core servers have room for another segment"))
		return
	}
	if o.unitWaits(op) {
		o.waiting = append(o.waiting, op)
		return
	}
	if err := o.unitRefuses(op); err != nil {
		if o.earlier(op) {
			o.waiting = append(o.waiting, op)
			return
		}
		o.finish(op, err)
		o.dropBuf(op)
		return
	}
	switch op.Kind {
	case wire.OpUnit:
		o.changeUnit(op)
	case wire.OpUnitState:
		o.showUnit(op)
	case wire.OpToken:
		o.token(op)
	case wire.OpRead:
		o.read(op)
	case wire.OpProvisioned:
		o.provisioned(op)
	case wire.OpFlush:
		// What clients were or may be told of. The owner's own records behind that are not waited for: on full disks
		// they wait for room.
		op.seq = o.w.Commit().Seq
		if n := len(o.uncommitted); n > 0 {
			op.seq = max(op.seq, o.uncommitted[n-1].seq)
		}
		o.awaitStable(op)
	case wire.OpWrite:
		if o.mustWait(op, !op.Buf.aligned()) {
			o.waiting = append(o.waiting, op)
			return
		}
		if op.Buf.aligned() {
			o.queueWrite(op)
			return
		}
		o.merge(op)
	case wire.OpCompareAndWrite, wire.OpOrWrite:
		if o.mustWait(op, true) {
			o.waiting = append(o.waiting, op)
			return
		}
		o.merge(op)
	case wire.OpCopy:
		if o.mustWait(op, false) {
			o.waiting = append(o.waiting, op)
			return
		}
		o.copyBlocks(op)
	case wire.OpTrim, wire.OpZero:
		if o.mustWait(op, partial(op)) {
			o.waiting = append(o.waiting, op)
			return
		}
		if partial(op) {
			o.merge(op)
			return
		}
		o.queueTrim(op)
	default:
		o.finish(op, wire.Errorf(wire.CodeBadRequest, "operation %d", op.Kind))
	}
}

// earlier reports that a write by another session of the initiator, to the same blocks, has been let in and is not committed: what is
// refused now may be another attempt of it, and is over for the client once it is answered (R9). So the answer waits.
func (o *Owner) earlier(op *Op) bool {
	if op.Nexus == nil || !writes(op.Kind) {
		return false
	}
	for _, list := range [][]*Op{o.uncommitted, o.waiting} {
		for _, x := range list {
			if x.Nexus != nil && x.Nexus.Initiator == op.Nexus.Initiator && x.Session != op.Session && writes(x.Kind) && x.overlaps(op) {
				return true
			}
		}
	}
	return false
}

func (o *Owner) dropBuf(op *Op) {
	if op.Buf != nil {
		op.Buf.Release()
		op.Buf = nil
	}
}

// answered answers a forwarded request that a former owner, or this one, has put into the history already
// (R9). Its parts are found one by one: a request is answered once all that were sent are committed.
func (o *Owner) answered(op *Op) bool {
	id := journal.RequestID{Forwarder: op.Request.Forwarder, Number: op.Request.Number}
	for _, list := range [][]*Op{o.uncommitted, o.waiting, o.split, o.stableWait, o.ack.wait} {
		for _, u := range list {
			if u != op && u.Forward && !u.child && u.Request == op.Request && !u.over {
				// The same request is under way: it was sent twice over two connections. The first answers both.
				first := u.Done
				u.Done = func(x *Op, err error) {
					op.Epoch, op.Tick, op.Miscompare = x.Epoch, x.Tick, x.Miscompare
					op.Data = append(op.Data[:0], x.Data...)
					op.Done(op, err)
					first(x, err)
				}
				return true
			}
		}
	}
	seq, found, confirmed := o.m.Requests().Find(id, 0)
	if confirmed {
		o.env.Metrics.Stale.Inc()
		o.finish(op, wire.Errorf(wire.CodeStale, "its answer was confirmed, or it is older than all that are remembered"))
		return true
	}
	if !found {
		return false
	}
	if partial(op) {
		return false // some of its parts may be missing: zeroParts looks at each
	}
	op.seq = seq
	if op.Kind == wire.OpUnit {
		op.Data = append(op.Data[:0], goodOutcome)
	}
	if op.FUA || op.Kind == wire.OpUnit || o.durable() {
		o.awaitStable(op)
	} else {
		o.answer(op)
	}
	return true
}

// mustWait applies R7: what depends on state waits for overlapping records in flight; everything waits for
// overlapping commands that are being decided, and for those that wait already (so that none is overtaken
// for ever).
func (o *Owner) mustWait(op *Op, decides bool) bool {
	if decides && !mutant.On(mutant.R7Overlap) {
		for _, u := range o.uncommitted {
			if u.overlaps(op) {
				return true
			}
		}
	}
	for _, x := range o.waiting {
		if (x.merging || decides) && x != op && x.overlaps(op) {
			return true
		}
	}
	return false
}

// partial reports a trim or zero that doesn't consist of whole blocks: it becomes several records.
func partial(op *Op) bool {
	return (op.Kind == wire.OpTrim || op.Kind == wire.OpZero) &&
		(op.Offset%journal.BlockSize != 0 || (op.Offset+op.Length)%journal.BlockSize != 0)
}

// requestID of a record: only forwarded requests need one.
func requestID(op *Op) journal.RequestID {
	if !op.Forward {
		return journal.RequestID{}
	}
	return journal.RequestID{Forwarder: op.Request.Forwarder, Number: op.Request.Number}
}

// queueWrite gives a write its place in the history.
func (o *Owner) queueWrite(op *Op) {
	e := &op.Buf.entry
	o.touched(op.first, op.count)
	e.Request, e.Part = requestID(op), op.part
	e.Context = op
	op.parts = 1
	o.w.Queue(e)
	op.seq = e.Seq
	o.uncommitted = append(o.uncommitted, op)
}

// queueTrim gives a trim of whole blocks its place. A command longer than a record can say becomes several.
func (o *Owner) queueTrim(op *Op) {
	op.parts = 0
	o.touched(op.first, op.count)
	const most = 1 << 31 // blocks in a record
	for first, left := op.first, op.count; ; {
		n := min(left, most)
		if n == 0 {
			break
		}
		e := &journal.Entry{Record: journal.Record{Kind: journal.KindTrim, Block: first, Count: uint32(n), Part: op.part + uint8(op.parts), Request: requestID(op)}, Context: op}
		e.Bytes = make([]byte, journal.RecordSize(0))
		op.parts++
		o.w.Queue(e)
		op.seq = e.Seq
		first, left = first+n, left-n
	}
	if op.parts == 0 {
		o.finish(op, nil)
		return
	}
	o.uncommitted = append(o.uncommitted, op)
}

// merge reads the blocks that a command replaces only in part or compares, and holds others off them
// meanwhile. The command stays on the waiting list, marked, until merged.
func (o *Owner) merge(op *Op) {
	op.merging = true
	o.merging++
	o.waiting = append(o.waiting, op)
	r := NewOp()
	r.Kind, r.Offset, r.Length = wire.OpRead, int64(op.first)*journal.BlockSize, int64(op.count)*journal.BlockSize
	if op.Kind == wire.OpTrim || op.Kind == wire.OpZero {
		// Only the first and the last block may be partial.
		r.Length = journal.BlockSize
	}
	r.first, r.count = uint64(r.Offset)/journal.BlockSize, uint64(r.Length)/journal.BlockSize
	r.barred = true
	r.early = op.Kind != wire.OpCompareAndWrite // what is merged gets its place behind what it was merged with
	r.Done = func(r *Op, err error) {
		if err == nil {
			err = o.mergeRead(op, r)
		}
		r.Release()
		o.post(event{kind: evMerged, op: op, err: err})
	}
	o.read(r)
}

// mergeRead puts what was read around what the client writes. It runs on the reader's goroutine; the command
// is marked, so nobody else touches it.
func (o *Owner) mergeRead(op *Op, r *Op) error {
	switch op.Kind {
	case wire.OpWrite, wire.OpCompareAndWrite, wire.OpOrWrite:
		old := make([]byte, 0, r.Length)
		for _, d := range r.Data {
			old = append(old, d...)
		}
		b := op.Buf
		at := int(b.off - int64(b.first)*journal.BlockSize)
		if op.Kind == wire.OpCompareAndWrite {
			there := old[at : at+len(b.data)]
			if !bytes.Equal(there, op.Compare) {
				for i := range there {
					if there[i] != op.Compare[i] {
						op.Miscompare = int64(i)
						break
					}
				}
				return wire.Errorf(wire.CodeMiscompare, "at byte %d", op.Miscompare)
			}
		}
		if op.Kind == wire.OpOrWrite {
			if op.Compare == nil { // what the client sent, should the blocks be read again
				op.Compare = bytes.Clone(b.data)
			}
			for i, x := range old[at : at+len(b.data)] {
				b.data[i] = op.Compare[i] | x
			}
		}
		copy(b.body[:at], old[:at])
		copy(b.body[at+len(b.data):], old[at+len(b.data):])
		b.sum()
		return nil
	}
	// A trim or zero: the partial blocks become writes of whole ones. The head was read;
	// zeroParts makes a command of its own of a partial tail.
	head := NewWriteBuf(int64(op.first)*journal.BlockSize, journal.BlockSize)
	n := 0
	for _, d := range r.Data {
		n += copy(head.body[n:], d)
	}
	from := op.Offset - int64(op.first)*journal.BlockSize
	clear(head.body[from:min(journal.BlockSize, from+op.Length)])
	head.sum()
	op.zeroHead = head
	return nil
}

// merged goes on with a command whose blocks have been read.
func (o *Owner) merged(op *Op, err error) {
	o.merging--
	op.merging = false
	for i, x := range o.waiting {
		if x == op {
			o.waiting = append(o.waiting[:i], o.waiting[i+1:]...)
			break
		}
	}
	defer o.retryWaiting()
	if o.stopErr != nil {
		o.finish(op, wire.Errorf(wire.CodeNotOwner, "epoch %s is over", o.epoch))
		return
	}
	if !op.barred && err == nil { // a refusal was recorded meanwhile
		if e := o.late.check(op, o.epoch, o.tick()); e != nil {
			o.env.Metrics.Stale.Inc()
			err = e
		}
		op.barred = true
	}
	if err == nil && o.unitWaits(op) {
		// A change of reservations came in between: the command gets its place after it, so it is judged by it,
		// and reads its blocks again.
		if op.zeroHead != nil {
			op.zeroHead.Release()
			op.zeroHead = nil
		}
		o.waiting = append(o.waiting, op)
		return
	}
	if err == nil {
		if e := o.unitRefuses(op); e != nil {
			err = e
		}
	}
	if err != nil {
		o.dropBuf(op)
		o.finish(op, err)
		return
	}
	if op.Kind == wire.OpWrite || op.Kind == wire.OpCompareAndWrite || op.Kind == wire.OpOrWrite {
		o.queueWrite(op)
		return
	}
	if op.Kind == wire.OpCopy {
		o.copyBlocks(op)
		return
	}
	o.zeroParts(op)
}

// zeroParts continues a partial trim or zero: its first block is ready; what follows is a command of its own,
// which ends in whole blocks or in a last partial one.
func (o *Owner) zeroParts(op *Op) {
	head := op.zeroHead
	op.zeroHead = nil
	headEnd := (int64(op.first) + 1) * journal.BlockSize
	rest := op.Offset + op.Length - headEnd
	w := NewOp()
	w.Kind, w.Offset, w.Length, w.Buf, w.FUA, w.barred = wire.OpWrite, int64(head.first)*journal.BlockSize, journal.BlockSize, head, op.FUA, true
	w.first, w.count, w.child, w.part = head.first, 1, true, op.part
	w.Forward, w.Request, w.Nexus, w.Session = op.Forward, op.Request, op.Nexus, op.Session
	left := 1
	var failed error
	done := func(x *Op, err error) {
		x.Release()
		if left--; err != nil {
			failed = err
		}
		if left > 0 {
			return
		}
		o.split = slices.DeleteFunc(o.split, func(x *Op) bool { return x == op })
		o.finish(op, failed)
	}
	// Every part is a record of the request: one that is in the history already, put there by a former owner,
	// isn't applied again (R9).
	part := op.part
	there := func() bool {
		part++
		_, found, _ := o.m.Requests().Find(requestID(op), part-1)
		return op.Forward && found
	}
	o.split = append(o.split, op)
	sub := func(off, n int64) {
		if n <= 0 {
			return
		}
		left++
		z := NewOp()
		z.Kind, z.Offset, z.Length, z.FUA, z.barred = op.Kind, off, n, op.FUA, true
		z.first, z.count = uint64(off)/journal.BlockSize, uint64(off+n+journal.BlockSize-1)/journal.BlockSize-uint64(off)/journal.BlockSize
		z.child, z.part, z.Forward, z.Request, z.Nexus, z.Session = true, part, op.Forward, op.Request, op.Nexus, op.Session
		z.Stamp, z.Since = op.Stamp, op.Since // refusals that come while it waits are about it, too
		if there() {
			o.dropPart(z, done)
			return
		}
		z.Done = func(x *Op, err error) { o.call(func() { done(x, err) }) }
		o.admit(z)
	}
	w.Done = func(x *Op, err error) { o.call(func() { done(x, err) }) }
	if there() {
		head.Release()
		w.Buf = nil
		o.dropPart(w, done)
	} else {
		o.queueWrite(w)
	}
	whole := rest / journal.BlockSize * journal.BlockSize
	sub(headEnd, whole)
	sub(headEnd+whole, rest-whole)
}

// dropPart counts a part as done that is in the history already.
func (o *Owner) dropPart(x *Op, done func(*Op, error)) { o.call(func() { done(x, nil) }) }

// committed takes what the writer has committed into the map and answers.
func (o *Owner) committed() bool {
	entries := o.w.Committed()
	if len(entries) == 0 || o.stopErr != nil { // stopped in this turn: all have had their answer
		return false
	}
	sync := o.durable()
	now := o.tick()
	last := entries[len(entries)-1].Seq // the entries go with the buffers that are given back below
	for _, e := range entries {
		o.apply(e)
		if o.stopErr != nil {
			return true
		}
		o.ack.written(e)
		op, ok := e.Context.(*Op)
		if !ok {
			if fn, ok := e.Context.(func(ident.Seq)); ok {
				fn(e.Seq)
			} else if e.Kind == journal.KindPermit || e.Kind == journal.KindRetire { // a former owner's, in the tail
				if err := o.applyGoing(e.Kind, e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen], e.Seq); err != nil {
					o.stop(fmt.Errorf("seq %d: %w", e.Seq, err))
					return true
				}
			}
			continue
		}
		if op.Buf != nil {
			op.Buf.Release()
			op.Buf = nil
		}
		if op.parts--; op.parts > 0 {
			continue
		}
		if op.Kind == wire.OpUnit {
			o.unitCommitted(op, now)
			continue
		}
		if mutant.On(mutant.R9Arrived) {
			o.late.arrived(op, now)
		}
		if op.FUA || sync {
			o.waitFor(op)
		} else {
			o.answer(op)
		}
	}
	// Those committed are the oldest: they are at the head.
	n := 0
	for n < len(o.uncommitted) && o.uncommitted[n].parts == 0 {
		n++
	}
	o.uncommitted = append(o.uncommitted[:0], o.uncommitted[n:]...)
	o.noteTail(last, now)
	if len(o.waiting) > 0 {
		o.retryWaiting()
	}
	return true
}

// retryWaiting admits waiting commands again, in order.
func (o *Owner) retryWaiting() {
	if len(o.waiting) == o.merging {
		return
	}
	list := o.waiting
	o.waiting = nil
	for _, op := range list {
		if op.merging {
			o.waiting = append(o.waiting, op)
		} else {
			o.admit(op)
		}
	}
}

// awaitStable answers op once everything up to op.seq is stable (R8).
func (o *Owner) awaitStable(op *Op) {
	if op.seq <= o.stableFor(op) || mutant.On(mutant.R8Flush) {
		o.finish(op, nil)
		return
	}
	o.waitFor(op)
}

// waitFor has op answered once its seq is stable.
func (o *Owner) waitFor(op *Op) {
	op.waits = o.tick()
	o.stableWait = append(o.stableWait, op)
	o.w.WantStable(op.seq)
	o.wantSynced(op)
}

// releaseStable answers flushes and FUA writes up to the stable point.
func (o *Owner) releaseStable() {
	if len(o.unsettled) > 0 && o.pastStable() {
		o.w.SettlePast()
	}
	if len(o.stableWait) == 0 || !o.w.Serving() {
		return
	}
	kept := o.stableWait[:0]
	for _, op := range o.stableWait {
		if op.seq <= o.stableFor(op) {
			o.finish(op, nil)
		} else {
			kept = append(kept, op)
		}
	}
	clear(o.stableWait[len(kept):])
	o.stableWait = kept
}
