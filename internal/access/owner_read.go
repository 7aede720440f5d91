package access

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// segment is what the owner knows of a segment beyond the map's table: where its replicas are.
type segment struct {
	id      ident.SegmentID
	slot    volume.Slot
	before  ident.Position
	last    ident.Position
	end     uint32
	sealed  bool // the owner's word: nothing will be added
	writer  *journal.Segment
	place   int // in Owner.all
	holders []holder
	lasting bool // it has records of this epoch that are more than the owner's own housekeeping
	gone    []goneReplica
}

// records is how many it has once it is sealed, or has by now. Those of a checkpoint are a chain of their own.
func (s *segment) records() uint64 { return uint64(s.last.Seq - s.before.Seq) }

// goneReplica is a replica that was permitted to go, and whose store has confirmed that it has gone.
type goneReplica struct {
	store ident.StoreID
	made  uint64
}

// holder is a replica of a segment.
type holder struct {
	store  ident.StoreID
	stable bool // confirmed sealed and stable
	going  bool // a permit to drop it is committed or under way: it counts for nothing
	bad    bool // failed or damaged: to be made again
	fork   bool // with bad: it is a fork, which keeps the segment's name until something has to take its place (R14)
	made   uint64

	// strange, with bad, is what contradicts ours and nothing explains: nothing takes its place by itself.
	strange bool
	// over, with stable, is the last record of a replica that goes on behind the segment's end with records which this
	// history has in other segments.
	over   ident.Position
	moment uint64 // when this was learned; see strayState
}

// read looks up where the blocks lie and asks the stores. The lease is checked here, after the request's
// arrival (R6).
func (o *Owner) read(op *Op) {
	if !o.mayRead() {
		o.awaitLease(op, func() { o.read(op) })
		return
	}
	pieces, need := o.m.Lookup(op.first, uint32(op.count), op.pieces[:0])
	if need != volume.NoLeaf {
		o.loadLeaf(need, op)
		return
	}
	op.pieces = pieces
	o.sees(op)
	if op.lent { // what was asked for belongs to the store that has not answered
		o.readSlow(op)
		return
	}
	op.read.Journal = o.journalID
	op.read.Pieces = op.read.Pieces[:0]
	o.far.noteRead(op.first)
	var store journal.Store
	single, far, large := true, false, op.Length >= spreadFrom
	holes := 0
	for i := range pieces {
		p := &pieces[i]
		if p.Hole() {
			holes++
			continue
		}
		var s journal.Store
		if large {
			s = o.readSpread(o.segs[p.Segment], store)
		} else {
			s = o.readFrom(o.segs[p.Segment])
		}
		if s == nil {
			o.readSlow(op)
			return
		}
		if store == nil {
			store = s
			far = o.isFar(s)
		} else if store.ID() != s.ID() {
			single = false
			far = far || o.isFar(s)
		}
		op.read.Pieces = append(op.read.Pieces, wire.ReadPiece{Segment: p.Segment, Record: p.Record, First: p.First, Blocks: uint16(p.Count)})
	}
	if holes == len(pieces) {
		op.assemble(nil)
		o.answer(op)
		return
	}
	if far {
		o.readFar(op)
		return
	}
	if !single {
		o.readSlow(op)
		return
	}
	t := newReadTry(o, op, store.ID())
	if large {
		t.load, t.bytes = o.env.Health.reading(store.ID()), op.Length
		t.load.bytes.Add(t.bytes)
	}
	store.Read(&op.read, t.answer)
	if t.state.Load() == tryWaiting {
		o.reading = append(o.reading, t)
	} else {
		t.unref()
	}
}

// readTry is a read that a store has been asked for. What was answered at once, from memory, is never looked at
// again; the others are given up when they take too long.
type readTry struct {
	o      *Owner
	op     *Op
	store  ident.StoreID
	since  uint64 // Owner.tick
	state  atomic.Int32
	refs   atomic.Int32 // the loop's and the store's: the last one puts it back
	answer func(wire.ReadReply, error)

	load  *readLoad // of the store, which the read is counted in; nil: it is not
	bytes int64
}

const (
	tryWaiting int32 = iota
	tryAnswered
	tryGivenUp
)

var tryPool sync.Pool

func newReadTry(o *Owner, op *Op, store ident.StoreID) *readTry {
	t, _ := tryPool.Get().(*readTry)
	if t == nil {
		t = &readTry{}
		t.answer = t.answered
	}
	t.o, t.op, t.store, t.since, t.load = o, op, store, o.tick(), nil
	t.state.Store(tryWaiting)
	t.refs.Store(2)
	return t
}

func (t *readTry) unref() {
	if t.refs.Add(-1) == 0 {
		t.o, t.op = nil, nil
		tryPool.Put(t)
	}
}

func (t *readTry) answered(r wire.ReadReply, err error) {
	defer t.unref()
	if t.load != nil {
		t.load.bytes.Add(-t.bytes)
		t.load.note(t.bytes, r.Took)
	}
	if !t.state.CompareAndSwap(tryWaiting, tryAnswered) {
		release(r)
		return
	}
	o, op := t.o, t.op
	if err == nil && int64(len(r.Data)) != op.read.ReadBytes() {
		err = badLength(t.store, len(r.Data), op.read.ReadBytes())
		release(r)
	}
	if err != nil {
		o.call(func() { o.readAgain(op, err) })
		return
	}
	op.replies = append(op.replies, r)
	op.assemble(r.Data)
	if op.seq != 0 { // other sites may not hold what it saw
		o.call(func() { o.answer(op) })
		return
	}
	op.Epoch, op.Tick = o.epoch, o.tick()
	op.Done(op, nil)
}

// badLength is what an answer with another number of bytes than were asked for is taken for: none.
func badLength(store ident.StoreID, got int, want int64) error {
	return wire.Errorf(wire.CodeIO, "store %s answers a read of %d bytes with %d", store, want, got)
}

// giveUpReads asks others for what a store doesn't answer in time. When the owner stops it gives up all.
func (o *Owner) giveUpReads() {
	now, most := o.tick(), uint64(o.env.Limits.ReadTimeout/time.Millisecond)
	kept := o.reading[:0]
	for _, t := range o.reading {
		switch {
		case t.state.Load() == tryAnswered:
			t.unref()
		case now-t.since <= most && o.stopErr == nil:
			kept = append(kept, t)
		case t.state.CompareAndSwap(tryWaiting, tryGivenUp):
			op, err := t.op, wire.Errorf(wire.CodeUnreached, "no answer to a read within %v", o.env.Limits.ReadTimeout)
			op.lent = true // its list of pieces is the store's until it answers
			if o.stopErr == nil {
				o.log.Warn("store is slow: another is read", "store", t.store, "after", o.env.Limits.ReadTimeout)
				o.letDown(t.store, err)
			}
			o.readAgain(op, err)
			t.unref()
		default:
			t.unref()
		}
	}
	clear(o.reading[len(kept):])
	o.reading = kept
}

// assemble cuts the data of the pieces, holes as zeroes, to the bytes that were asked for.
func (op *Op) assemble(data []byte) {
	op.Data = op.Data[:0]
	skip := int(op.Offset - int64(op.first)*journal.BlockSize)
	left := int(op.Length)
	for i := range op.pieces {
		p := &op.pieces[i]
		n := int(p.Count) * journal.BlockSize
		for n > 0 {
			var d []byte
			if p.Hole() {
				d = zeroes[:min(n, len(zeroes))]
			} else {
				d, data = data[:n], data[n:]
			}
			n -= len(d)
			if skip > 0 {
				cut := min(skip, len(d))
				d, skip = d[cut:], skip-cut
			}
			d = d[:min(len(d), left)]
			left -= len(d)
			if len(d) == 0 {
				continue
			}
			if last := len(op.Data) - 1; !p.Hole() && last >= 0 && follows(op.Data[last], d) {
				op.Data[last] = op.Data[last][:len(op.Data[last])+len(d)]
			} else {
				op.Data = append(op.Data, d)
			}
		}
	}
}

// follows reports whether b lies in memory right behind a: the data of many pieces come in one buffer, and go
// out as one.
func follows(a, b []byte) bool {
	return cap(a) >= len(a)+len(b) && unsafe.SliceData(a[:len(a)+1][len(a):]) == unsafe.SliceData(b)
}

// readFrom chooses the replica to read: this node's, then one of this site, then any; one that has let us down lately
// only when there is no other.
func (o *Owner) readFrom(s *segment) journal.Store {
	var best journal.Store
	if s == nil {
		return nil
	}
	rank := 0
	for i := range s.holders {
		h := &s.holders[i]
		if h.going || h.bad {
			continue
		}
		n := 1
		switch {
		case !o.env.Health.Usable(h.store):
		case o.env.Stores.Local(h.store):
			if st, ok := o.env.Stores.Store(h.store); ok {
				return st
			}
		case !o.env.Stores.Up(h.store):
		case o.env.Stores.Site(h.store) == o.env.Site:
			n = 3
		default:
			n = 2
		}
		if n > rank {
			if st, ok := o.env.Stores.Store(h.store); ok {
				best, rank = st, n
			}
		}
	}
	return best
}

// Large reads are spread over the replicas of the site, so that one disk is no bottleneck; small ones stay local, and so
// do large ones as long as this node's store is fast: what comes from its memory costs less processor time than what
// another node has to send.
const (
	spreadFrom   = 128 << 10
	spreadRemote = 256 << 10            // by so many bytes a store of another node must have less to do
	spreadPace   = 4 * time.Millisecond // for 1 MiB: a store of this node that is quicker reads all
)

// readSpread chooses the replica of the site whose store has the least to read for this node now. last, if it has the
// segment, is taken again: a command that is one request costs less than two.
func (o *Owner) readSpread(s *segment, last journal.Store) journal.Store {
	if s == nil {
		return nil
	}
	if last != nil {
		id := last.ID()
		for i := range s.holders {
			if h := &s.holders[i]; h.store == id && !h.going && !h.bad {
				return last
			}
		}
	}
	var best ident.StoreID
	least, found := int64(0), false
	for i := range s.holders {
		h := &s.holders[i]
		if h.going || h.bad || o.env.Stores.Site(h.store) != o.env.Site || !o.fit(h.store) {
			continue
		}
		load := o.env.Health.reading(h.store)
		n := load.bytes.Load()
		if !o.env.Stores.Local(h.store) {
			n += spreadRemote
		} else if load.pace.Load() < int64(spreadPace) {
			best, found = h.store, true
			break
		}
		if !found || n < least {
			best, least, found = h.store, n, true
		}
	}
	if found {
		if st, ok := o.env.Stores.Store(best); ok {
			return st
		}
	}
	return o.readFrom(s)
}

func holdersIn(s *segment) []holder {
	if s == nil {
		return nil
	}
	return s.holders
}

// readAgain goes to the other replicas after one failed; bad data is counted and made again from a good copy.
func (o *Owner) readAgain(op *Op, err error) {
	if o.stopErr != nil {
		o.finish(op, wire.Errorf(wire.CodeNotOwner, "%v", o.stopErr))
		return
	}
	// The answer took its time: what was looked up then may have been rewritten and retired since.
	pieces, need := o.m.Lookup(op.first, uint32(op.count), op.pieces[:0])
	if need != volume.NoLeaf {
		o.loadLeaf(need, op)
		return
	}
	op.pieces = pieces
	o.sees(op)
	o.readSlow(op)
}

// readSlow reads piece by piece, each from whichever replica answers. It is for the rare cases: pieces on
// different stores, failed stores, bad checksums.
func (o *Owner) readSlow(op *Op) {
	type source struct {
		piece  wire.ReadPiece
		stores []journal.Store
	}
	var sources []source
	for i := range op.pieces {
		p := &op.pieces[i]
		if p.Hole() {
			continue
		}
		src := source{piece: wire.ReadPiece{Segment: p.Segment, Record: p.Record, First: p.First, Blocks: uint16(p.Count)}}
		s := o.segs[p.Segment]
		src.stores = o.inOrder(s)
		sources = append(sources, src)
	}
	o.goBackground(func() {
		var data []byte
		for _, src := range sources {
			var got bool
			// Its stores are away, or it was reported by none since the takeover: it is read once one is back.
			var last error = wire.Errorf(wire.CodeBusy, "no store that has segment %s can be reached", src.piece.Segment)
			for _, st := range src.stores {
				if kept, ok := o.env.Far.read(nil, src.piece); ok {
					data, got = append(data, kept...), true
					break
				}
				r, err := o.readPiece(st, src.piece)
				if err == nil {
					data = append(data, r.Data...)
					release(r)
					got = true
				} else {
					last = err
					if errors.Is(err, wire.ErrCorrupt) {
						o.env.Metrics.Corrupt.Inc()
						o.log.Error("replica is corrupt, reading another", "err", err)
					}
					if errors.Is(err, wire.ErrCorrupt) || errors.Is(err, wire.ErrAbsent) {
						o.call(func() { o.markBad(src.piece.Segment, st.ID(), err) })
					}
				}
				if got {
					break
				}
			}
			if !got {
				err := fmt.Errorf("segment %s record %d: %w", src.piece.Segment, src.piece.Record, last)
				o.call(func() { o.readMoved(op, src.piece, err) })
				return
			}
		}
		o.call(func() {
			answer := func() {
				op.assemble(data)
				o.answer(op)
			}
			switch {
			case o.stopErr != nil:
				o.finish(op, wire.Errorf(wire.CodeNotOwner, "%v", o.stopErr))
			case !o.mayRead():
				// What was read after the owner was deposed may be stale (R6). Grants of this epoch say that it was not.
				o.awaitLease(op, answer)
			default:
				answer()
			}
		})
	})
}

// slowTries is how often a read is begun anew because what it was about to read was rewritten and retired meanwhile. More
// than once needs a client that writes the same blocks again and again.
const slowTries = 8

// readMoved ends a read of which no store has a piece, unless the map knows something else of the piece's blocks by now.
func (o *Owner) readMoved(op *Op, p wire.ReadPiece, err error) {
	if o.stopErr == nil && op.slowTries < slowTries {
		pieces, need := o.m.Lookup(op.first, uint32(op.count), nil)
		if need != volume.NoLeaf || !slices.ContainsFunc(pieces, func(x volume.Piece) bool { return !x.Hole() && pieceOf(&x) == p }) {
			op.slowTries++
			o.readAgain(op, err)
			return
		}
	}
	o.finish(op, err)
}

// inOrder lists the stores of a segment, the best to read first.
func (o *Owner) inOrder(s *segment) (list []journal.Store) {
	first := o.readFrom(s)
	if first != nil {
		list = append(list, first)
	}
	var avoided []journal.Store
	for _, h := range holdersIn(s) {
		if first != nil && h.store == first.ID() {
			continue
		}
		if st, ok := o.env.Stores.Store(h.store); !ok {
		} else if o.env.Health.Usable(h.store) {
			list = append(list, st)
		} else {
			avoided = append(avoided, st)
		}
	}
	return slices.Concat(list, avoided)
}

// readPiece asks one store for one piece and waits, for no longer than a read may take.
func (o *Owner) readPiece(st journal.Store, p wire.ReadPiece) (wire.ReadReply, error) {
	type answer struct {
		r   wire.ReadReply
		err error
	}
	var given atomic.Bool
	c := make(chan answer, 1)
	st.Read(&wire.Read{Journal: o.journalID, Pieces: []wire.ReadPiece{p}}, func(r wire.ReadReply, err error) {
		if given.Swap(true) {
			release(r)
			return
		}
		c <- answer{r, err}
	})
	timer := time.NewTimer(o.env.Limits.ReadTimeout)
	defer timer.Stop()
	answered := func(x answer) (wire.ReadReply, error) {
		if want := int64(p.Blocks) * journal.BlockSize; x.err == nil && int64(len(x.r.Data)) != want {
			release(x.r)
			return wire.ReadReply{}, badLength(st.ID(), len(x.r.Data), want)
		}
		return x.r, x.err
	}
	select {
	case x := <-c:
		return answered(x)
	case <-timer.C:
	}
	if given.Swap(true) {
		return answered(<-c)
	}
	err := wire.Errorf(wire.CodeUnreached, "no answer to a read within %v", o.env.Limits.ReadTimeout)
	o.call(func() { o.letDown(st.ID(), err) })
	return wire.ReadReply{}, err
}

// markBad takes a replica out of use; the repair makes it again.
func (o *Owner) markBad(id ident.SegmentID, store ident.StoreID, err error) {
	s := o.segs[id]
	if s == nil {
		return
	}
	for i := range s.holders {
		if h := &s.holders[i]; h.store == store && !h.bad && !h.going {
			good := 0
			for _, x := range s.holders {
				if !x.bad && !x.going && x.store != store {
					good++
				}
			}
			if good == 0 {
				return // the last one: better read in part than not at all
			}
			h.bad, h.fork = true, errors.Is(err, wire.ErrFork)
			o.log.Error("replica given up", "segment", id, "store", store, "err", err)
		}
	}
}

// goBackground runs fn on a goroutine of the owner's.
func (o *Owner) goBackground(fn func()) {
	o.wg.Add(1)
	go func() { defer o.wg.Done(); fn() }()
}

// provisioned answers GET LBA STATUS and its like.
func (o *Owner) provisioned(op *Op) {
	size := o.spec.Load().SizeBytes
	mapped, run, need := o.m.Provisioned(op.first, (uint64(size)+journal.BlockSize-1)/journal.BlockSize-op.first)
	if need != volume.NoLeaf {
		o.loadLeaf(need, op)
		return
	}
	op.Mapped = mapped
	op.Extent = min(int64(op.first+run)*journal.BlockSize, size) - op.Offset
	op.seq = o.lastShown()
	o.answer(op)
}

// loadLeaf fetches a leaf of the map that was paged out; commands wait for it.
func (o *Owner) loadLeaf(id volume.LeafID, op *Op) {
	waiting := o.leafWait[id]
	o.leafWait[id] = append(waiting, op)
	if len(waiting) > 0 {
		return
	}
	o.fetchLeaf(id)
}

func (o *Owner) fetchLeaf(id volume.LeafID) {
	at, ok := o.m.Locate(id)
	if !ok {
		o.leafLoaded(id, nil) // it is in memory or empty by now
		return
	}
	reader := o.partReader()
	o.goBackground(func() {
		rec, body, err := reader.ReadPart(at.Segment, at.Offset, at.Digest)
		o.call(func() {
			moved, err := o.takeLeaf(id, at, rec, body, err)
			if moved {
				o.fetchLeaf(id)
				return
			}
			if err != nil && o.stopErr == nil {
				o.log.Error("a part of the map can not be read", "leaf", uint64(id), "segment", at.Segment, "offset", at.Offset, "err", err)
			}
			o.leafLoaded(id, err)
		})
	})
}

func (o *Owner) leafLoaded(id volume.LeafID, err error) {
	list := o.leafWait[id]
	delete(o.leafWait, id)
	for _, op := range list {
		if err != nil {
			o.finish(op, err)
		} else if op.Kind == wire.OpProvisioned {
			o.provisioned(op)
		} else if op.Kind == wire.OpCopy {
			o.finish(op, nil) // copyAfter's
		} else {
			o.read(op)
		}
	}
}
