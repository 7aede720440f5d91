package core

import (
	"bytes"
	"errors"
	"sync"
	"syscall"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The path of an append, all in the caller's goroutine:
//
//	admit (fence) -> lock the replica -> compare what is there already -> verify headers, chain and, for what
//	came over a network, bodies -> one pwritev -> count it -> unlock -> answer
//
// Appends of one segment are serial, of different segments parallel. Nothing is allocated in the common case
// but room for the index, now and then.

// appendScratch is what one append needs besides its message.
type appendScratch struct {
	bufs   [][]byte
	join   []byte // a record that lies in several buffers
	there  []byte // for comparing with the file
	fresh  []journal.IndexEntry
	record journal.Record
}

var appendScratches = sync.Pool{New: func() any { return &appendScratch{} }}

func (sc *appendScratch) free() {
	clear(sc.bufs)
	sc.bufs, sc.fresh = sc.bufs[:0], sc.fresh[:0]
	if cap(sc.join) > 64<<10 {
		sc.join = nil
	}
	appendScratches.Put(sc)
}

// Append implements journal.Store. done is called before it returns.
func (s *Store) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if err := s.begin(); err != nil {
		done(wire.AppendReply{}, err)
		return
	}
	reply, err := s.append(m)
	s.end()
	done(reply, err)
}

func (s *Store) append(m *wire.Append) (reply wire.AppendReply, err error) {
	r := s.replica(m.Segment)
	if r == nil {
		return reply, absent(m.Segment)
	}
	if err := s.admit(s.life, r.j, m.Epoch); err != nil {
		return reply, err
	}
	began := s.now()
	sc := appendScratches.Get().(*appendScratch)
	defer sc.free()
	r.mu.Lock()
	defer r.mu.Unlock()
	data, err := s.admitAppendLocked(r, m, sc)
	if err != nil {
		return reply, err
	}
	if data.left > 0 {
		if err := s.extendLocked(r, m, data, sc); err != nil {
			return reply, err
		}
		s.metrics.appended(len(sc.fresh), s.now()-began)
	}
	j := r.j
	j.mu.Lock()
	j.hearLocked(m.Commit, m.Stable)
	j.mu.Unlock()
	return wire.AppendReply{Boot: s.opts.Boot, End: r.end.Load(), Held: r.mu.last}, nil
}

// admitAppendLocked holds the append to the fence and to what the replica has; what it gives is new.
func (s *Store) admitAppendLocked(r *replica, m *wire.Append, sc *appendScratch) (data pieces, err error) {
	if err := r.checkLocked(m.Epoch); err != nil { // again, under the replica's lock
		return data, err
	}
	switch r.mu.state {
	case stateDropped, stateAside, stateLost:
		return data, absent(m.Segment)
	case wire.ReplicaDamaged:
		return data, wire.Errorf(wire.CodeCorrupt, "replica of %s is damaged", m.Segment)
	case wire.ReplicaFork:
		return data, wire.Errorf(wire.CodeFork, "replica of %s is set aside as a fork", m.Segment)
	}
	if r.mu.state != wire.ReplicaSealed {
		// On a failed disk even what seems to be there is not held.
		if err := s.usable(); err != nil {
			return data, err
		}
	}
	end := r.end.Load()
	if m.Offset > end {
		return data, wire.Errorf(wire.CodeGap, "append to %s at %d, the end is %d", m.Segment, m.Offset, end)
	}
	if m.Offset%journal.Alignment != 0 || m.Offset > 0 && m.Offset < journal.SegmentHeaderSize {
		return data, wire.Errorf(wire.CodeBadRequest, "append to %s at %d", m.Segment, m.Offset)
	}
	data = newPieces(m.Data)
	if m.Offset < end {
		if data, err = s.compareLocked(r, data, int(m.Offset), min(data.left, int(end-m.Offset)), sc); err != nil {
			return data, err
		}
	}
	if data.left == 0 {
		return data, nil
	}
	if r.mu.closing {
		return data, wire.Errorf(wire.CodeSealed, "replica of %s is sealed at %d", m.Segment, end)
	}
	if int64(end)+int64(data.left) > int64(r.mu.capacity) {
		return data, beyond(r, end, data.left)
	}
	return data, nil
}

func beyond(r *replica, end uint32, n int) error {
	return wire.Errorf(wire.CodeBadRequest, "%d bytes at %d and the index don't fit in the %d of segment %s", n, end, r.mu.capacity, r.id)
}

// compareLocked takes n bytes of data that must be those at off.
func (s *Store) compareLocked(r *replica, data pieces, off, n int, sc *appendScratch) (pieces, error) {
	f, err := s.handles.acquire(r)
	if err != nil {
		return data, ioError("open "+r.path, err)
	}
	defer s.handles.release(f)
	const step = 64 << 10
	if sc.there == nil {
		sc.there = make([]byte, step)
	}
	for n > 0 {
		k := min(n, step)
		if _, err := f.ReadAt(sc.there[:k], int64(off)); err != nil {
			return data, s.readError(r, uint32(off), err)
		}
		if !bytes.Equal(data.peek(k, &sc.join), sc.there[:k]) {
			return data, wire.Errorf(wire.CodeMismatch, "append to %s at %d differs from what is there", r.id, off)
		}
		data.skip(k)
		off, n = off+k, n-k
	}
	return data, nil
}

// extendLocked verifies data and writes it at the end.
func (s *Store) extendLocked(r *replica, m *wire.Append, data pieces, sc *appendScratch) error {
	v := verifier{segment: r.id, at: r.mu.last, offset: r.end.Load(), bodies: !m.Trusted}
	from := v.offset
	before, start := r.mu.before, r.mu.start
	rest := data
	if v.offset == 0 {
		if rest.left < journal.SegmentHeaderSize {
			return wire.Errorf(wire.CodeBadRequest, "append to %s starts without a segment header", r.id)
		}
		h, err := journal.DecodeSegmentHeader(rest.peek(journal.SegmentHeaderSize, &sc.join))
		if err != nil {
			return mismatch(r.id, 0, err)
		}
		if h.Segment != r.id {
			return wire.Errorf(wire.CodeMismatch, "header of segment %s in an append to %s", h.Segment, r.id)
		}
		rest.skip(journal.SegmentHeaderSize)
		before, start = h.Before, ownStart(r.id, h.Start)
		v.at, v.offset = h.Before, journal.SegmentHeaderSize
	}
	for rest.left > 0 {
		at := v.offset
		if err := v.next(&rest, sc); err != nil {
			return mismatch(r.id, at, err)
		}
		sc.fresh = append(sc.fresh, sc.record.Entry(at))
		if v.start.At.Seq != 0 {
			start = v.start
		}
	}
	if int64(v.offset)+int64(journal.IndexSize(len(r.mu.index)+len(sc.fresh))) > int64(r.mu.capacity) {
		return beyond(r, from, data.left)
	}
	need := v.offset + uint32(journal.IndexSize(len(r.mu.index)+len(sc.fresh)))
	f := r.mu.pinned
	if f == nil {
		var err error
		if f, err = s.handles.acquire(r); err != nil {
			return s.failOpen(r.path, err)
		}
		r.mu.pinned = f
		r.mu.dirtySince = s.now()
		s.dirtied(r)
	}
	if from == 0 && r.mu.stale > before.Seq {
		if err := s.wipeLocked(r, f); err != nil {
			return err
		}
	}
	if err := s.growLocked(r, f, need); err != nil {
		return err
	}
	sc.bufs = data.rest(sc.bufs[:0])
	if _, err := f.WriteVAt(sc.bufs, int64(from)); err != nil {
		return s.writeFailedLocked(r, f, from, err)
	}
	if from == 0 {
		r.beginsLocked(before)
	}
	r.mu.start = start
	r.mu.index = append(r.mu.index, sc.fresh...)
	r.mu.last = v.at
	r.end.Store(v.offset)
	r.j.appended.Add(int64(v.offset - from))
	if r.j.unsynced.Add(int64(v.offset-from)) > s.opts.UnsyncedMax {
		select {
		case s.tickle <- struct{}{}:
		default:
		}
	}
	return nil
}

// writeFailedLocked: what the kernel took of the failed append lies behind the end and doesn't count. It may
// hold whole records, which would then stand behind others, so it is cut off: a restart must not take them
// for the rest of something damaged.
func (s *Store) writeFailedLocked(r *replica, f *handle, end uint32, err error) error {
	if cut := f.Truncate(int64(end)); cut == nil {
		if err := takeSpace(f, end, max(r.mu.taken, end), r.mu.capacity); err != nil {
			r.mu.taken = end // the next append asks for it again
		}
	}
	e := ioError("write "+r.path, err)
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		s.fail("write "+r.path, err)
	}
	return e
}

// mismatch says that bytes sent to us are not what they must be: nothing here is damaged.
func mismatch(id ident.SegmentID, offset uint32, err error) error {
	if v, ok := errors.AsType[*journal.VersionError](err); ok {
		return wire.Errorf(wire.CodeVersion, "append to %s at %d: %v", id, offset, v)
	}
	return wire.Errorf(wire.CodeMismatch, "append to %s at %d: %v", id, offset, err)
}

// verifier is journal.Run over pieces: for bodies that need no checking it looks at the heads only, so that a
// record cut by a buffer's boundary isn't copied.
type verifier struct {
	segment ident.SegmentID
	at      ident.Position
	offset  uint32
	bodies  bool
	start   wire.EpochStart // of the segment's epoch, if the last record was one
}

// next takes one record into sc.record.
func (v *verifier) next(p *pieces, sc *appendScratch) error {
	if p.left < journal.RecordHeaderSize {
		return journal.ErrCutOff
	}
	head, err := journal.HeadLen(p.peek(journal.RecordHeaderSize, &sc.join))
	if err != nil {
		return err
	}
	if p.left < head {
		return journal.ErrCutOff
	}
	b := p.peek(head, &sc.join)
	rec := &sc.record
	if err := rec.Decode(b); err != nil {
		return err
	}
	size := journal.RecordSize(rec.StoredLen)
	if p.left < size {
		return journal.ErrCutOff
	}
	if rec.Journal != v.segment.Journal {
		return wire.Errorf(wire.CodeMismatch, "record of journal %s", rec.Journal)
	}
	if v.segment.Epoch.Less(rec.Epoch) {
		return wire.Errorf(wire.CodeMismatch, "record of epoch %s in a segment of epoch %s", rec.Epoch, v.segment.Epoch)
	}
	if err := rec.VerifyChain(v.at, b); err != nil {
		return err
	}
	v.start = wire.EpochStart{}
	isStart := rec.Kind == journal.KindEpochStart && rec.Epoch == v.segment.Epoch
	if v.bodies || isStart {
		whole := p.peek(size, &sc.join)
		if err := rec.VerifyBody(whole); err != nil {
			return err
		}
		if isStart {
			if v.start, err = journal.DecodeEpochStart(rec, body(rec, whole)); err != nil {
				return err
			}
		}
	}
	v.at = rec.Position()
	v.offset += uint32(size)
	p.skip(size)
	return nil
}

func body(rec *journal.Record, whole []byte) []byte {
	return whole[journal.BodyOffset(rec.StoredLen):][:rec.StoredLen]
}

// ownStart is the start that a header repeats, if it is that of the segment's own epoch.
func ownStart(id ident.SegmentID, start wire.EpochStart) wire.EpochStart {
	if start.At.Seq == 0 || start.At.Epoch != id.Epoch {
		return wire.EpochStart{}
	}
	return start
}
