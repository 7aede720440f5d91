package access

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Reads of blocks that no store of the owner's site has: of a site without core servers, or while the site's own replicas
// are missing. They are read at another site, kept in the node's FarCache, and read ahead:
//
//	read ──a piece is far──> readFar ──all in the cache──> answer
//	                            │ missing ──> flight: one request, joined by whoever wants the same blocks
//	                            │               └──answered, late or not──> cache, and the waiting reads begin anew
//	                            └ in sequence ──> flights of what comes next
//	after a hand-over: the leaves that the former owner was read from most ──> flights, one at a time
//
// All that is kept here is the loop's own. A read that begins anew looks its blocks up again and needs its lease again
// (R6): what arrived for it is only in a cache.

const (
	farFetchMost   = 1 << 20 / journal.BlockSize // blocks of one request
	farAheadFirst  = 256 << 10 / journal.BlockSize
	farAheadMost   = 4 << 20 / journal.BlockSize // ahead of one stream: 100 ms at 40 MB/s
	farFlyingMost  = 8 << 20 / journal.BlockSize // of reads ahead, at a time
	farStreams     = 4                           // that are told apart
	farSequence    = 2                           // reads in a row, after the first, until what follows is read ahead
	farTries       = 3                           // of one read; then it is done without the cache
	farHotLeaves   = 512                         // told to the next owner
	farHotSlots    = 2048
	farHotLeast    = 4 // reads
	farHotForget   = 30
	leafBlocksSpan = leafBytes / journal.BlockSize
)

// farState is what the owner's loop keeps of it.
type farState struct {
	flights map[farKey]*farFlight
	list    []*farFlight // not answered, by time
	flying  int          // blocks of flights that nobody waits for
	streams [farStreams]farStream
	turn    uint64
	hot     []hotLeaf // nil before the first read; farHotSlots long from then on
}

// farFlight is a request for blocks of another site.
type farFlight struct {
	keys   []farKey
	blocks int
	ops    []*Op
	ahead  bool
	since  uint64 // Owner.tick
	state  atomic.Int32
	done   chan struct{} // not nil: closed when it is over
}

// farStream is a run of reads, each of which begins where the last one ended.
type farStream struct {
	next, upTo uint64 // blocks: where the next read is expected, and up to where is read ahead
	run        int
	used       uint64
}

// isFar reports that a store is at another site, and what is read there worth keeping.
func (o *Owner) isFar(st journal.Store) bool {
	return o.env.Far != nil && !o.env.Stores.Local(st.ID()) && o.env.Stores.Site(st.ID()) != o.env.Site
}

func pieceOf(p *volume.Piece) wire.ReadPiece {
	return wire.ReadPiece{Segment: p.Segment, Record: p.Record, First: p.First, Blocks: uint16(p.Count)}
}

// readFar does a read whose pieces, or some of them, are at other sites only. op.pieces is what the map says now.
func (o *Owner) readFar(op *Op) {
	op.farTries++
	if op.farTries > farTries {
		o.readSlow(op)
		return
	}
	all := true
	for i := range op.pieces {
		p := &op.pieces[i]
		if p.Hole() {
			continue
		}
		st := o.readFrom(o.segs[p.Segment])
		if st == nil || !o.isFar(st) {
			all = false
			continue
		}
		o.fly(st, pieceOf(p), op)
	}
	o.lookAhead(op.first, op.count)
	if op.farWaits > 0 {
		o.env.Metrics.FarMisses.Inc()
		return
	}
	if op.farTries == 1 {
		o.env.Metrics.FarHits.Inc()
	}
	if all {
		data := op.far[:0]
		for i := range op.pieces {
			ok := true
			if p := &op.pieces[i]; !p.Hole() {
				data, ok = o.env.Far.read(data, pieceOf(p))
			}
			if !ok { // its room was wanted for others
				all = false
				break
			}
		}
		op.far = data
	}
	if !all {
		o.readSlow(op) // piece by piece: what is in the cache is taken from there
		return
	}
	op.assemble(op.far)
	o.answer(op)
}

// fly asks for the blocks of a piece that are neither in the cache nor asked for already; op, if there is one, waits for
// all that are not in the cache. Without, nobody does, and what is not asked for now may be later. It gives the
// flights that were begun.
func (o *Owner) fly(st journal.Store, p wire.ReadPiece, op *Op) (begun []*farFlight) {
	f := &o.far
	if f.flights == nil {
		f.flights = map[farKey]*farFlight{}
	}
	wait := func(x *farFlight) {
		if op != nil && !slices.Contains(x.ops, op) {
			x.ops = append(x.ops, op)
			op.farWaits++
			if x.ahead {
				x.ahead = false // somebody waits for it now
				f.flying -= x.blocks
			}
		}
	}
	for i := uint16(0); i < p.Blocks; {
		k := farKey{p.Segment, p.Record, p.First + i}
		if x := f.flights[k]; x != nil {
			wait(x)
			i++
			continue
		}
		if o.env.Far.has(k) {
			i++
			continue
		}
		n := uint16(1)
		for i+n < p.Blocks && n < farFetchMost {
			k := farKey{p.Segment, p.Record, p.First + i + n}
			if f.flights[k] != nil || o.env.Far.has(k) {
				break
			}
			n++
		}
		x := o.begin(st, wire.ReadPiece{Segment: p.Segment, Record: p.Record, First: p.First + i, Blocks: n}, op == nil)
		begun = append(begun, x)
		wait(x)
		i += n
	}
	return begun
}

func (o *Owner) begin(st journal.Store, p wire.ReadPiece, ahead bool) *farFlight {
	f := &o.far
	x := &farFlight{blocks: int(p.Blocks), ahead: ahead, since: o.tick(), done: make(chan struct{})}
	for i := range p.Blocks {
		k := farKey{p.Segment, p.Record, p.First + i}
		x.keys = append(x.keys, k)
		f.flights[k] = x
	}
	f.list = append(f.list, x)
	if ahead {
		f.flying += x.blocks
		o.env.Metrics.FarAhead.Add(float64(x.blocks * journal.BlockSize))
	}
	st.Read(&wire.Read{Journal: o.journalID, Pieces: []wire.ReadPiece{p}}, func(r wire.ReadReply, err error) {
		if err == nil && len(r.Data) == int(p.Blocks)*journal.BlockSize {
			o.env.Far.put(p, r.Data)
			o.env.Metrics.FarFetched.Add(float64(len(r.Data)))
		} else if err == nil {
			err = wire.Errorf(wire.CodeCorrupt, "%d bytes for %d blocks", len(r.Data), p.Blocks)
		}
		release(r)
		if x.state.CompareAndSwap(tryWaiting, tryAnswered) {
			o.call(func() { o.landed(x, err) })
		}
	})
	return x
}

// landed ends a flight: who waited for it begins anew, or where it failed asks other stores.
func (o *Owner) landed(x *farFlight, err error) {
	f := &o.far
	for _, k := range x.keys {
		delete(f.flights, k)
	}
	if i := slices.Index(f.list, x); i >= 0 {
		f.list = slices.Delete(f.list, i, i+1)
	}
	if x.ahead {
		f.flying -= x.blocks
	}
	close(x.done)
	for _, op := range x.ops {
		op.farWaits--
		if op.farErr == nil {
			op.farErr = err
		}
		if op.farWaits > 0 {
			continue
		}
		if err := op.farErr; err != nil {
			op.farErr = nil
			o.readAgain(op, err)
		} else if o.stopErr != nil {
			o.finish(op, wire.Errorf(wire.CodeNotOwner, "%v", o.stopErr))
		} else {
			o.read(op)
		}
	}
}

// giveUpFlights asks others for what is not answered in time; when the owner stops nobody waits any more.
func (o *Owner) giveUpFlights() {
	now, most := o.tick(), uint64(o.env.Limits.ReadTimeout/time.Millisecond)
	for _, x := range slices.Clone(o.far.list) {
		if o.stopErr == nil && now-x.since <= most {
			return
		}
		if x.state.CompareAndSwap(tryWaiting, tryGivenUp) {
			o.landed(x, wire.Errorf(wire.CodeUnreached, "no answer to a read of another site within %v", o.env.Limits.ReadTimeout))
		}
	}
}

// lookAhead finds out whether reads come in sequence, and reads what follows.
func (o *Owner) lookAhead(first, count uint64) {
	f := &o.far
	f.turn++
	var s *farStream
	for i := range f.streams {
		if x := &f.streams[i]; x.run > 0 && x.next == first {
			s = x
		}
	}
	if s == nil {
		for i := range f.streams {
			if x := &f.streams[i]; s == nil || x.used < s.used {
				s = x
			}
		}
		*s = farStream{}
	}
	s.next, s.used = first+count, f.turn
	if s.run++; s.run <= farSequence {
		return
	}
	ahead := uint64(min(farAheadFirst<<min(s.run-farSequence-1, 8), farAheadMost))
	from, to := max(s.upTo, s.next), min(s.next+ahead, o.m.Size())
	if from >= to || to-from < ahead/2 {
		return // enough is under way
	}
	s.upTo = to
	o.fetchAhead(from, to, nil)
}

// fetchAhead asks for the blocks from..to that only other sites have, as far as the map is in memory and not too much is
// under way. begun, if not nil, gets the flights.
func (o *Owner) fetchAhead(from, to uint64, begun *[]*farFlight) {
	for from < to && o.far.flying < farFlyingMost {
		n := min(to-from, leafBlocksSpan-from%leafBlocksSpan)
		pieces, need := o.m.Lookup(from, uint32(n), nil)
		from += n
		if need != volume.NoLeaf {
			continue
		}
		for i := range pieces {
			p := &pieces[i]
			if p.Hole() || o.far.flying >= farFlyingMost {
				continue
			}
			if st := o.readFrom(o.segs[p.Segment]); st != nil && o.isFar(st) {
				if l := o.fly(st, pieceOf(p), nil); begun != nil {
					*begun = append(*begun, l...)
				}
			}
		}
	}
}

// hotLeaf counts reads of a leaf of the map: of those that fall into one slot, the one that is read most stays.
type hotLeaf struct {
	leaf volume.LeafID
	n    uint32
}

func (f *farState) noteRead(first uint64) {
	if f.hot == nil {
		f.hot = make([]hotLeaf, farHotSlots)
	}
	leaf := volume.LeafID(first / leafBlocksSpan)
	h := &f.hot[leaf%farHotSlots]
	switch {
	case h.leaf == leaf:
		h.n = min(h.n+1, 1<<20)
	case h.n > 0:
		h.n--
	default:
		*h = hotLeaf{leaf, 1}
	}
}

// cool lets what was read long ago count for less.
func (f *farState) cool() {
	for i := range f.hot {
		f.hot[i].n /= 2
	}
}

// hottest lists the leaves that were read most lately.
func (f *farState) hottest() (list []uint64) {
	hot := slices.DeleteFunc(slices.Clone(f.hot), func(h hotLeaf) bool { return h.n < farHotLeast })
	slices.SortFunc(hot, func(a, b hotLeaf) int { return cmp.Or(-cmp.Compare(a.n, b.n), cmp.Compare(a.leaf, b.leaf)) })
	for _, h := range hot[:min(len(hot), farHotLeaves)] {
		list = append(list, uint64(h.leaf))
	}
	return list
}

// fillHot reads the leaves that the former owner was read from most, as far as this site does not have them: one request
// after the other, into half of the cache at most.
func (o *Owner) fillHot(leaves []uint64) {
	if o.env.Far == nil || len(leaves) == 0 {
		return
	}
	o.goBackground(func() {
		room := o.env.Far.most / 2
		reader := o.partReader()
		for _, leaf := range leaves {
			if leaf >= (o.blocks()+leafBlocksSpan-1)/leafBlocksSpan || o.loadLeafNow(volume.LeafID(leaf), reader) != nil {
				continue
			}
			for at := leaf * leafBlocksSpan; at < (leaf+1)*leafBlocksSpan; at += farFetchMost {
				var begun []*farFlight
				o.ask(func() {
					if o.stopErr == nil {
						o.fetchAhead(at, min(at+farFetchMost, o.m.Size()), &begun)
					}
				})
				for _, x := range begun {
					room -= x.blocks
					select {
					case <-x.done:
					case <-o.ctx.Done():
						return
					}
				}
				if room <= 0 {
					return
				}
			}
		}
	})
}

func (o *Owner) blocks() uint64 { return uint64(o.spec.Load().SizeBytes) / journal.BlockSize }
