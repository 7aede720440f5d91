package access

import (
	"errors"
	"fmt"

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
	holders []holder
}

// holder is a replica of a segment.
type holder struct {
	store  ident.StoreID
	stable bool // confirmed sealed and stable
	going  bool // a permit to drop it is committed or under way: it counts for nothing
	bad    bool // failed or damaged: to be made again
}

// read looks up where the blocks lie and asks the stores. The lease is checked here, after the request's
// arrival (R6).
func (o *Owner) read(op *Op) {
	if !o.mayRead() {
		o.env.Metrics.NoLease.Inc()
		o.finish(op, wire.Errorf(wire.CodeBusy, "no lease at epoch %s", o.epoch))
		return
	}
	pieces, need := o.m.Lookup(op.first, uint32(op.count), op.pieces[:0])
	if need != volume.NoLeaf {
		o.loadLeaf(need, op)
		return
	}
	op.pieces = pieces
	op.read.Journal = o.journalID
	op.read.Pieces = op.read.Pieces[:0]
	var store journal.Store
	single := true
	holes := 0
	for i := range pieces {
		p := &pieces[i]
		if p.Hole() {
			holes++
			continue
		}
		s := o.readFrom(o.segs[p.Segment])
		if s == nil {
			o.readSlow(op)
			return
		}
		if store == nil {
			store = s
		} else if store.ID() != s.ID() {
			single = false
		}
		op.read.Pieces = append(op.read.Pieces, wire.ReadPiece{Segment: p.Segment, Record: p.Record, First: p.First, Blocks: uint16(p.Count)})
	}
	if holes == len(pieces) {
		op.assemble(nil)
		o.finish(op, nil)
		return
	}
	if !single {
		o.readSlow(op)
		return
	}
	store.Read(&op.read, func(r wire.ReadReply, err error) {
		if err != nil {
			o.call(func() { o.readAgain(op, err) })
			return
		}
		op.replies = append(op.replies, r)
		op.assemble(r.Data)
		op.Epoch, op.Tick = o.epoch, o.tick()
		op.Done(op, nil)
	})
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
			if len(d) > 0 {
				op.Data = append(op.Data, d)
			}
		}
	}
}

// readFrom chooses the replica to read: this node's, then one of this site, then any.
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
		case o.env.Stores.Local(h.store):
			n = 4
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
		first := o.readFrom(s)
		if first != nil {
			src.stores = append(src.stores, first)
		}
		for _, h := range holdersIn(s) {
			if first != nil && h.store == first.ID() {
				continue
			}
			if st, ok := o.env.Stores.Store(h.store); ok {
				src.stores = append(src.stores, st)
			}
		}
		sources = append(sources, src)
	}
	o.goBackground(func() {
		var data []byte
		for _, src := range sources {
			var got bool
			var last error = wire.Errorf(wire.CodeAbsent, "no replica of segment %s is known", src.piece.Segment)
			for _, st := range src.stores {
				done := make(chan struct{})
				st.Read(&wire.Read{Journal: o.journalID, Pieces: []wire.ReadPiece{src.piece}}, func(r wire.ReadReply, err error) {
					if err == nil {
						data = append(data, r.Data...)
						if r.Release != nil {
							r.Release()
						}
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
					close(done)
				})
				<-done
				if got {
					break
				}
			}
			if !got {
				err := fmt.Errorf("segment %s record %d: %w", src.piece.Segment, src.piece.Record, last)
				o.call(func() { o.finish(op, err) })
				return
			}
		}
		o.call(func() {
			// What was read after the owner was deposed may be stale (R6).
			if o.stopErr != nil || !o.mayRead() {
				o.finish(op, wire.Errorf(wire.CodeBusy, "no lease at epoch %s", o.epoch))
				return
			}
			op.assemble(data)
			o.finish(op, nil)
		})
	})
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
			h.bad = true
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
	o.finish(op, nil)
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
	seg, offset, ok := o.m.Locate(id)
	if !ok {
		o.leafLoaded(id, nil) // it is in memory or empty by now
		return
	}
	reader := o.partReader()
	o.goBackground(func() {
		rec, body, err := reader.ReadPart(seg, offset)
		o.call(func() {
			if err == nil {
				err = o.m.Loaded(id, rec, body)
			}
			if errors.Is(err, volume.ErrStale) {
				o.fetchLeaf(id)
				return
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
			o.finish(op, fmt.Errorf("map leaf %d: %w", id, err))
		} else if op.Kind == wire.OpProvisioned {
			o.provisioned(op)
		} else {
			o.read(op)
		}
	}
}
