package core

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// The path of a read: look the replica up, take its file, read header, CRC array and blocks (in one call for
// a small record), verify header and blocks, hand the buffer over. No lock is held while the disk works:
// bytes in front of a replica's end never change.

// buffer is a pooled buffer with the function that gives it back, made once.
type buffer struct {
	b       []byte
	class   int
	release func()
}

// buffers are pooled by powers of two from 8 KiB to 64 MiB.
const (
	bufferMin     = 13
	bufferMax     = 26
	readDataMax   = 64 << 20 // of one request
	readPiecesMax = 64 << 10
)

var bufferPools [bufferMax + 1]sync.Pool

func getBuffer(size int) *buffer {
	class := max(bufferMin, bits.Len(uint(size-1)))
	if class > bufferMax {
		b := &buffer{b: make([]byte, size)}
		b.release = func() {}
		return b
	}
	if b, _ := bufferPools[class].Get().(*buffer); b != nil {
		b.b = b.b[:size]
		return b
	}
	b := &buffer{b: make([]byte, size, 1<<class), class: class}
	b.release = func() { bufferPools[b.class].Put(b) }
	return b
}

// headMax is the largest header with CRC array.
const headMax = journal.RecordHeaderSize + 4*(journal.RecordBodyMax/journal.BlockSize)

// readAhead is the largest record whose body is read along with its header before the header is known.
const readAhead = 64 << 10

// inlineMax is from how many bytes on a read goes on in a goroutine of its own, cached or not: the caller's loop does not stand still for it, and its data
// go out while the processor has them in its cache, where a loop would read for all that wait before it sends for any.
const inlineMax = 128 << 10

// Read implements journal.Store. What is in the page cache, and is not much, is answered before it returns; a read that has to
// wait for the disk goes on in a goroutine of its own, so that the caller's loop does not.
func (s *Store) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	if err := s.begin(); err != nil {
		done(wire.ReadReply{}, err)
		return
	}
	if !s.cantTell.Load() && m.ReadBytes() < inlineMax {
		reply, err := s.read(m, true)
		if err != vfs.ErrNotCached {
			s.end()
			done(reply, err)
			return
		}
	}
	j, _ := readJobs.Get().(*readJob)
	if j == nil {
		j = &readJob{}
		j.run = j.read
	}
	j.s, j.m, j.done = s, m, done
	go j.run()
}

// readJob is a read in a goroutine of its own. Started by a function that is there already it costs no allocation.
type readJob struct {
	s    *Store
	m    *wire.Read
	done func(wire.ReadReply, error)
	run  func()
}

var readJobs sync.Pool

func (j *readJob) read() {
	s, m, done := j.s, j.m, j.done
	j.s, j.m, j.done = nil, nil, nil
	readJobs.Put(j)
	reply, err := s.read(m, false)
	s.end() // Close has waited for this
	done(reply, err)
}

// readAll reads all of b at off; if cached, only from memory.
func (s *Store) readAll(f *handle, b []byte, off int64, cached bool) error {
	if cached {
		err := f.ReadCachedAt(b, off)
		if err == vfs.ErrCantTell {
			s.cantTell.Store(true)
			err = vfs.ErrNotCached
		}
		return err
	}
	_, err := f.ReadAt(b, off)
	return err
}

// guess is what is read of a record before its header is known. Most records are what one asks for, from the
// first block to the last: then it is the whole record.
func guess(p *wire.ReadPiece) int {
	if upTo := (uint32(p.First) + uint32(p.Blocks)) * journal.BlockSize; upTo <= readAhead {
		return journal.RecordSize(upTo)
	}
	return headMax
}

func (s *Store) read(m *wire.Read, cached bool) (reply wire.ReadReply, err error) {
	began := s.now()
	if len(m.Pieces) > readPiecesMax {
		return reply, wire.Errorf(wire.CodeBadRequest, "read of %d pieces", len(m.Pieces))
	}
	total, scratch := 0, headMax
	for i := range m.Pieces {
		total += int(m.Pieces[i].Blocks) * journal.BlockSize
		scratch = max(scratch, guess(&m.Pieces[i]))
	}
	if total == 0 || total > readDataMax {
		return reply, wire.Errorf(wire.CodeBadRequest, "read of %d bytes in %d pieces", total, len(m.Pieces))
	}
	if len(m.Pieces) == 1 {
		// Header and blocks land in one buffer, and the blocks are answered from where they are.
		buf := getBuffer(max(scratch, headMax+total))
		data, err := s.readPiece(m.Journal, &m.Pieces[0], buf.b, nil, nil, cached)
		if err != nil {
			buf.release()
			return reply, err
		}
		took := s.now() - began
		s.metrics.read(len(data), took)
		return wire.ReadReply{Data: data, Release: buf.release, Took: took}, nil
	}
	buf := getBuffer(total + scratch + headMax)
	last := headCache{head: buf.b[total+scratch:]}
	used := 0
	for i := range m.Pieces {
		p := &m.Pieces[i]
		data, err := s.readPiece(m.Journal, p, buf.b[total:total+scratch], buf.b[used:used+int(p.Blocks)*journal.BlockSize], &last, cached)
		if err != nil {
			buf.release()
			return reply, err
		}
		used += len(data)
	}
	took := s.now() - began
	s.metrics.read(used, took)
	return wire.ReadReply{Data: buf.b[:used], Release: buf.release, Took: took}, nil
}

// headCache has the verified header and CRC array of the last large record of a request: where small writes have
// been put over a large one, what is left of it comes in many pieces.
type headCache struct {
	segment ident.SegmentID
	record  uint32 // 0: none
	rec     journal.Record
	head    []byte
}

func (c *headCache) has(p *wire.ReadPiece) bool {
	return c != nil && c.record == p.Record && c.segment == p.Segment
}

// keep remembers a head that was verified just now.
func (c *headCache) keep(p *wire.ReadPiece, rec *journal.Record, head []byte) {
	if c != nil && rec.StoredLen > readAhead {
		c.segment, c.record, c.rec = p.Segment, p.Record, *rec
		copy(c.head, head)
	}
}

// readPiece reads the blocks of p: into dst, or, if that is nil, somewhere into scratch. They are fewer bytes
// than asked for if the record's body ends within the last block.
func (s *Store) readPiece(id ident.JournalID, p *wire.ReadPiece, scratch, dst []byte, last *headCache, cached bool) ([]byte, error) {
	if p.Segment.Journal != id {
		return nil, wire.Errorf(wire.CodeBadRequest, "segment %s in a read of journal %s", p.Segment, id)
	}
	if p.Record < journal.SegmentHeaderSize || p.Record%journal.Alignment != 0 || p.Blocks == 0 {
		return nil, wire.Errorf(wire.CodeBadRequest, "read of %d blocks of a record at %d", p.Blocks, p.Record)
	}
	r := s.replica(p.Segment)
	if r == nil {
		return nil, absent(p.Segment)
	}
	end := r.end.Load()
	if int64(p.Record)+journal.RecordHeaderSize > int64(end) {
		return nil, wire.Errorf(wire.CodeAbsent, "no record at %d of %s, which ends at %d", p.Record, p.Segment, end)
	}
	f := s.handles.opened(r)
	if f == nil {
		if cached { // opening it may wait for the disk
			return nil, vfs.ErrNotCached
		}
		var err error
		if f, err = s.handles.acquire(r); err != nil {
			return nil, s.readError(r, p.Record, err)
		}
	}
	defer s.handles.release(f)

	if last.has(p) {
		return s.readRest(r, f, p, last, dst, end, cached)
	}
	got := min(guess(p), int(end-p.Record))
	if err := s.readAll(f, scratch[:got], int64(p.Record), cached); err != nil {
		return nil, s.readError(r, p.Record, err)
	}
	head, err := journal.HeadLen(scratch[:got])
	if err != nil {
		return nil, s.foundCorrupt(r, p.Record, err)
	}
	if head > got {
		if got = head; int64(p.Record)+int64(head) > int64(end) {
			return nil, s.foundCorrupt(r, p.Record, journal.ErrCutOff)
		}
		if err := s.readAll(f, scratch[:got], int64(p.Record), cached); err != nil {
			return nil, s.readError(r, p.Record, err)
		}
	}
	var rec journal.Record
	if err := rec.Decode(scratch[:head]); err != nil {
		return nil, s.foundCorrupt(r, p.Record, err)
	}
	if err := s.checkRecord(r, p, &rec); err != nil {
		return nil, err
	}
	last.keep(p, &rec, scratch[:head])
	from := int(p.First) * journal.BlockSize
	n := min(int(p.Blocks)*journal.BlockSize, int(rec.StoredLen)-from)
	at := journal.BodyOffset(rec.StoredLen) + from
	if int64(p.Record)+int64(at+n) > int64(end) {
		return nil, s.foundCorrupt(r, p.Record, journal.ErrCutOff)
	}
	have := 0
	switch {
	case at+n <= got && dst == nil:
		dst, have = scratch[at:at+n], n
	case dst == nil:
		dst = scratch[head : head+n]
		if at < got { // what was read along moves to where the rest follows it
			have = copy(dst, scratch[at:got])
		}
	default:
		dst = dst[:n]
		if at < got {
			have = copy(dst, scratch[at:got])
		}
	}
	if have < n {
		if err := s.readAll(f, dst[have:], int64(p.Record)+int64(at+have), cached); err != nil {
			return nil, s.readError(r, p.Record, err)
		}
	}
	if bad := journal.VerifyBlocks(scratch[journal.RecordHeaderSize+4*int(p.First):], dst); bad >= 0 {
		return nil, s.foundCorrupt(r, p.Record, fmt.Errorf("CRC of block %d of the record's body", int(p.First)+bad))
	}
	return dst, nil
}

// readRest reads blocks of a record whose head is known.
func (s *Store) readRest(r *replica, f *handle, p *wire.ReadPiece, last *headCache, dst []byte, end uint32, cached bool) ([]byte, error) {
	if err := s.checkRecord(r, p, &last.rec); err != nil {
		return nil, err
	}
	from := int(p.First) * journal.BlockSize
	n := min(int(p.Blocks)*journal.BlockSize, int(last.rec.StoredLen)-from)
	at := int64(p.Record) + int64(journal.BodyOffset(last.rec.StoredLen)+from)
	if at+int64(n) > int64(end) {
		return nil, s.foundCorrupt(r, p.Record, journal.ErrCutOff)
	}
	dst = dst[:n]
	if err := s.readAll(f, dst, at, cached); err != nil {
		return nil, s.readError(r, p.Record, err)
	}
	if bad := journal.VerifyBlocks(last.head[journal.RecordHeaderSize+4*int(p.First):], dst); bad >= 0 {
		return nil, s.foundCorrupt(r, p.Record, fmt.Errorf("CRC of block %d of the record's body", int(p.First)+bad))
	}
	return dst, nil
}

// checkRecord holds a record to be one that the piece can mean.
func (s *Store) checkRecord(r *replica, p *wire.ReadPiece, rec *journal.Record) error {
	if rec.Journal != r.id.Journal || r.id.Epoch.Less(rec.Epoch) {
		// A write of another journal that the disk put here.
		return s.foundCorrupt(r, p.Record, wire.Errorf(wire.CodeCorrupt, "record of journal %s, epoch %s", rec.Journal, rec.Epoch))
	}
	// Segments of a journal are written one over the other, with records at the same places: where the disk has lost a write, the older one
	// may be whole.
	n := r.note.Load()
	if uint64(rec.Seq) <= r.from.Load() || n.State == wire.ReplicaSealed && rec.Seq > n.Last.Seq {
		return s.foundCorrupt(r, p.Record, wire.Errorf(wire.CodeCorrupt, "record of seq %d in a segment that begins after seq %d", rec.Seq, r.from.Load()))
	}
	if rec.Codec != journal.CodecNone || rec.KeyID != 0 {
		return wire.Errorf(wire.CodeVersion, "record at %d of %s is stored with codec %d, key %d", p.Record, r.id, rec.Codec, rec.KeyID)
	}
	if blocks := journal.CRCCount(rec.StoredLen); int(p.First)+int(p.Blocks) > blocks {
		return wire.Errorf(wire.CodeBadRequest, "blocks %d+%d of a record of %d at %d of %s", p.First, p.Blocks, blocks, p.Record, r.id)
	}
	return nil
}

// readError: what cannot be read is healed from another copy, like what reads wrong.
func (s *Store) readError(r *replica, offset uint32, err error) error {
	if err == vfs.ErrNotCached {
		return err
	}
	if err == errGone {
		return absent(r.id)
	}
	if crowded(err) {
		return ioError("open "+r.path, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the file is too short")
	}
	return s.foundCorrupt(r, offset, err)
}

// foundCorrupt counts bytes that are not what was written, tells who heals them, and makes the answer.
func (s *Store) foundCorrupt(r *replica, offset uint32, err error) error {
	if s.replica(r.id) != r {
		return absent(r.id) // dropped under the read
	}
	s.corrupt.Add(1)
	s.metrics.corrupt.Inc()
	if r.note.Load().State == wire.ReplicaSealed {
		s.damagedReplica(r)
	}
	s.log.Warn("corrupt bytes", "segment", r.id.String(), "offset", offset, "err", err)
	if s.opts.OnCorrupt != nil {
		s.opts.OnCorrupt(r.id, offset, err)
	}
	return wire.Errorf(wire.CodeCorrupt, "segment %s at %d: %v", r.id, offset, err)
}

// readHead reads the header of the record at offset.
func (s *Store) readHead(r *replica, offset uint32) (rec journal.Record, err error) {
	f, err := s.handles.acquire(r)
	if err != nil {
		return rec, s.readError(r, offset, err)
	}
	defer s.handles.release(f)
	buf := getBuffer(headMax)
	defer buf.release()
	n := min(headMax, int(r.end.Load()-offset))
	if _, err := f.ReadAt(buf.b[:n], int64(offset)); err != nil {
		return rec, s.readError(r, offset, err)
	}
	if err := rec.Decode(buf.b[:n]); err != nil {
		return rec, s.foundCorrupt(r, offset, err)
	}
	return rec, nil
}

// ReadRaw implements journal.Store. It gives records only: the index of a sealed replica is had by ReadIndex.
func (s *Store) ReadRaw(ctx context.Context, m *wire.ReadRaw) (reply wire.ReadReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	r := s.replica(m.Segment)
	if r == nil {
		return reply, absent(m.Segment)
	}
	return s.readRaw(r, m.Offset, m.Len)
}

func (s *Store) readRaw(r *replica, offset, length uint32) (reply wire.ReadReply, err error) {
	end := r.end.Load()
	if offset >= end || length == 0 {
		return wire.ReadReply{}, nil
	}
	n := min(length, end-offset)
	f, err := s.handles.acquire(r)
	if err != nil {
		return reply, s.readError(r, offset, err)
	}
	defer s.handles.release(f)
	buf := getBuffer(int(n))
	if _, err := f.ReadAt(buf.b, int64(offset)); err != nil {
		buf.release()
		return reply, s.readError(r, offset, err)
	}
	return wire.ReadReply{Data: buf.b, Release: buf.release}, nil
}

// ReadIndex implements journal.Store.
func (s *Store) ReadIndex(ctx context.Context, m *wire.ReadIndex) (reply wire.ReadReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	r := s.replica(m.Segment)
	if r == nil {
		return reply, absent(m.Segment)
	}
	r.mu.Lock()
	if state := r.mu.state; state != wire.ReplicaSealed && !(state == wire.ReplicaFork && r.note.Load().Length > 0) { // a fork that was sealed has its index in the file
		x := journal.Index{Segment: r.id.Original(), Before: r.mu.before, Last: r.mu.last, End: r.end.Load(), Entries: r.mu.index}
		b := journal.AppendIndex(nil, &x)
		r.mu.Unlock()
		return wire.ReadReply{Data: b}, nil
	}
	was := r.note.Load()
	end, length := r.end.Load(), was.Length
	r.mu.Unlock()
	f, err := s.handles.acquire(r)
	if err != nil {
		return reply, s.readError(r, end, err)
	}
	defer s.handles.release(f)
	buf := getBuffer(int(length - end))
	if _, err := f.ReadAt(buf.b, int64(end)); err != nil {
		buf.release()
		if r.note.Load() != was {
			return reply, errCut(r)
		}
		return reply, s.readError(r, end, err)
	}
	x, err := journal.DecodeIndex(buf.b)
	if err == nil && (x.Segment != r.id.Original() || x.End != end || x.Last != was.Last) {
		err = wire.Errorf(wire.CodeCorrupt, "index of %s from %s to %s ending at %d", x.Segment, x.Before, x.Last, x.End)
	}
	if err != nil {
		buf.release()
		if r.note.Load() != was {
			return reply, errCut(r)
		}
		return reply, s.foundCorrupt(r, end, err)
	}
	return wire.ReadReply{Data: buf.b, Release: buf.release}, nil
}

// errCut: a sealed replica was cut or let go while its index was read, which then is no whole one. Nothing is rotten.
func errCut(r *replica) error {
	return wire.Errorf(wire.CodeBusy, "replica of %s was changed while its index was read", r.id)
}
