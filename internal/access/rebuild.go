package access

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// rebuild makes the map as it is at the recovery's commit point and reads the tail above it: the newest
// announced checkpoint (R12), then the records since, from the segments' indexes.
func (o *Owner) rebuild(ctx context.Context, answers map[ident.StoreID]*wire.FenceReply, rec *journal.Recovery, cfg *journal.WriterConfig) error {
	blocks := uint64(o.spec.Load().SizeBytes) / journal.BlockSize
	rd := &rebuilder{o: o, ctx: ctx, indexes: map[ident.SegmentID]*journal.Index{}, answers: maps.Clone(answers)}
	tail, point, err := rd.ending(rec, answers)
	if err != nil {
		return err
	}
	cfg.Heard, cfg.HeardStable, cfg.Proven = rec.Commit, rec.Stable, rec.Proven()
	for store, a := range answers {
		o.checkpointHolders(store, a.Replicas)
	}
	for _, r := range rec.Past {
		s := &segment{id: r.Segment, before: r.Before, sealed: true}
		for _, h := range r.Holders {
			s.holders = append(s.holders, holder{store: h.Store, made: h.Made, stable: h.State == wire.ReplicaSealed && r.Sealed, bad: !h.Has(&r)})
		}
		o.keep(s)
	}
	if rec.Lost {
		// The commit point that was seen is gone: the history ends at what is there.
		cfg.Heard = rd.at
		cfg.Tail = nil
	} else {
		cfg.Tail = tail
	}
	// An announcement in the tail counts too: it becomes committed with the tail, and the next owner will go by it.
	if point, err = rd.tailPoint(cfg.Tail, point, rec.Last.Seq); err != nil {
		return err
	}
	if o.m = o.hand.loaded(point); o.m != nil {
		cfg.Point = point
	} else if point.At.Seq > 0 {
		if o.m, err = volume.Load(o.journalID, point, rd); err != nil {
			return fmt.Errorf("map of %s: %w", o.journalID, err)
		}
		cfg.Point = point
	} else if o.m, err = volume.New(o.journalID, blocks); err != nil {
		return err
	}
	if o.m.Size() < blocks {
		if err := o.m.Resize(blocks); err != nil {
			return err
		}
	}
	if err := o.loadUnit(); err != nil {
		return err
	}
	if err := o.ports.load(o.m.State(stateAttachments)); err != nil {
		return fmt.Errorf("the checkpoint's attachments: %w", err)
	}
	o.cp.appliedAt = cfg.Heard
	rd.told = o.hand.knowsRequests(point)
	for _, r := range rec.Past {
		if err := rd.replay(&r); err != nil {
			return err
		}
	}
	if rd.told {
		for _, q := range o.hand.requests {
			o.noteRequest(journal.RequestID{Forwarder: q.Request.Forwarder, Number: q.Request.Number}, q.Part, q.Seq)
		}
	}
	if err := rd.unheard(); err != nil {
		return err
	}
	if err := o.fetchSources(cfg.Tail, rd); err != nil {
		return fmt.Errorf("copies at the end of the history: %w", err)
	}
	// Retired before the checkpoint, but not gone everywhere.
	since := map[ident.SegmentID]bool{}
	for _, r := range o.cp.retired {
		for _, id := range r.segments {
			since[id] = true
		}
	}
	before := retiredAt{seq: cfg.Point.At.Seq}
	for slot, seg := range o.m.Segments() {
		if !seg.Retired || since[seg.ID] {
			continue
		}
		if o.segs[seg.ID] == nil {
			o.keep(segmentOf(slot, seg))
		}
		before.segments = append(before.segments, seg.ID)
	}
	if len(before.segments) > 0 {
		o.cp.retired = append(o.cp.retired, before)
	}
	for id, s := range o.segs {
		if id.IsCheckpoint() {
			if slot, ok := o.m.Slot(id); ok {
				if s.slot = slot; s.end != 0 {
					o.tableEnd(s)
				}
			} else {
				o.leaveOut(id) // left by an owner that died while it wrote it: a stray
			}
		}
	}
	return nil
}

func errLostStable(o *Owner, rec *journal.Recovery) error {
	return fmt.Errorf("journal %s ends at seq %d, below the stable point %d: dozo volume recover --force goes on with what there is", o.journalID, rec.Last.Seq, rec.Stable.Seq)
}

func (o *Owner) ensembles() (list [][]ident.StoreID) {
	for _, e := range o.fenced {
		list = append(list, e.Stores)
	}
	return list
}

type rebuilder struct {
	o       *Owner
	ctx     context.Context
	indexes map[ident.SegmentID]*journal.Index
	at      ident.Position
	answers fenceAnswers // of the fence, and of the stores that were asked since for what is missing
	told    bool         // the owner that handed over has said which requests there are
}

// stores lists who has the whole of a range, this node's store first, then those of this site.
func (rd *rebuilder) stores(r *journal.Range) []journal.Store {
	var list []journal.Store
	for _, h := range r.Holders {
		if st, ok := rd.o.env.Stores.Store(h.Store); ok && h.Has(r) {
			list = append(list, st)
		}
	}
	far := func(st journal.Store) int {
		switch {
		case rd.o.env.Stores.Local(st.ID()):
			return 0
		case rd.o.env.Stores.Site(st.ID()) == rd.o.env.Site:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(list, func(a, b journal.Store) int { return far(a) - far(b) })
	return list
}

func (rd *rebuilder) index(r *journal.Range) (*journal.Index, error) {
	if x := rd.indexes[r.Segment]; x != nil && ident.Seq(len(x.Entries)) >= r.To-r.Before.Seq {
		return x, nil
	}
	var last error = fmt.Errorf("segment %s to seq %d: no replica has it", r.Segment, r.To)
	for _, st := range rd.stores(r) {
		x, err := readIndex(rd.ctx, st, r.Segment)
		if err != nil {
			last = err
			continue
		}
		if ident.Seq(len(x.Entries)) >= r.To-r.Before.Seq {
			rd.indexes[r.Segment] = x
			return x, nil
		}
	}
	return nil, last
}

// tail reads the records above the commit point and verifies them from the head of their segments on.
func (rd *rebuilder) tail(rec *journal.Recovery) ([]*journal.Entry, error) {
	var out []*journal.Entry
	rd.at = rec.Commit
	for i := range rec.Tail {
		r := &rec.Tail[i]
		got, err := rd.readRange(r)
		if err != nil {
			return nil, fmt.Errorf("tail: %w", err)
		}
		for _, e := range got {
			if e.Seq == rec.Commit.Seq && e.Position() != rec.Commit {
				return nil, fmt.Errorf("tail: seq %d is %s, the commit point %s: the history has two versions", e.Seq, e.Position(), rec.Commit)
			}
			if e.Seq >= r.From && e.Seq <= r.To {
				out = append(out, e)
				rd.at = e.Position()
			}
		}
	}
	if rec.Lost && rec.Commit.Seq == 0 {
		return nil, nil
	}
	if rec.Lost && len(rec.Past) > 0 {
		got, err := rd.readRange(&rec.Past[len(rec.Past)-1])
		if err != nil {
			return nil, err
		}
		rd.at = got[len(got)-1].Position()
	}
	return out, nil
}

// readRange reads a range's records from one of its holders.
func (rd *rebuilder) readRange(r *journal.Range) ([]*journal.Entry, error) {
	var last error = fmt.Errorf("segment %s to seq %d: no replica has it", r.Segment, r.To)
	for _, st := range rd.stores(r) {
		got, err := rd.readFrom(st, r)
		if err == nil {
			return got, nil
		}
		last = fmt.Errorf("segment %s at %s: %w", r.Segment, st.ID(), err)
	}
	return nil, last
}

func (rd *rebuilder) readFrom(st journal.Store, r *journal.Range) ([]*journal.Entry, error) {
	var raw []byte
	for off := uint32(0); ; {
		reply, err := st.ReadRaw(rd.ctx, &wire.ReadRaw{Segment: r.Segment, Offset: off, Len: copyFrame})
		if err != nil {
			return nil, err
		}
		raw = append(raw, reply.Data...)
		n := len(reply.Data)
		release(reply)
		if n == 0 {
			break
		}
		off += uint32(n)
	}
	h, err := journal.DecodeSegmentHeader(raw)
	if err != nil {
		return nil, err
	}
	run := journal.Run{Segment: r.Segment, At: h.Before, Offset: journal.SegmentHeaderSize, Bodies: true}
	var out []*journal.Entry
	for run.At.Seq < r.To {
		rest := raw[run.Offset:]
		n, err := run.Next(rest)
		if err != nil {
			return nil, err
		}
		out = append(out, &journal.Entry{Record: run.Record, Bytes: append([]byte(nil), rest[:n]...)})
	}
	return out, nil
}

// newestCheckpoint finds the newest announcement. The header of the last segment names the newest one that was
// committed when the segment was begun; a later one stands in a record, in that segment or, if it was under way
// just then, at the end of an earlier one.
func (rd *rebuilder) newestCheckpoint(rec *journal.Recovery) (p journal.CheckpointPoint, err error) {
	if len(rec.Past) == 0 {
		return p, nil
	}
	if p, err = rd.headerPoint(&rec.Past[len(rec.Past)-1]); err != nil {
		return p, err
	}
	for i := len(rec.Past) - 1; i >= 0 && rec.Past[i].To > p.At.Seq; i-- {
		r := &rec.Past[i]
		x, err := rd.index(r)
		if err != nil {
			return p, err
		}
		for j := int(r.To-r.Before.Seq) - 1; j >= 0; j-- {
			if x.Entries[j].Kind != journal.KindCheckpoint {
				continue
			}
			_, body, err := rd.o.readRecordFrom(rd.stores(r), r.Segment, x.Entries[j].Offset, r.Before.Seq+1+ident.Seq(j))
			if err != nil {
				return p, fmt.Errorf("checkpoint announcement: %w", err)
			}
			found, err := journal.DecodeCheckpoint(body)
			if err != nil || found.At.Seq > p.At.Seq {
				return found, err
			}
			return p, nil
		}
	}
	return p, nil
}

// headerPoint reads the checkpoint that a segment's header names.
func (rd *rebuilder) headerPoint(r *journal.Range) (p journal.CheckpointPoint, err error) {
	last := fmt.Errorf("segment %s: no replica answers", r.Segment)
	for _, st := range rd.stores(r) {
		var head wire.ReadReply
		if head, last = st.ReadRaw(rd.ctx, &wire.ReadRaw{Segment: r.Segment, Offset: 0, Len: journal.SegmentHeaderSize}); last != nil {
			continue
		}
		var h journal.SegmentHeader
		h, last = journal.DecodeSegmentHeader(head.Data)
		release(head)
		if last == nil {
			return h.Point, nil
		}
	}
	return p, last
}

// replay applies the records of a range that the map doesn't have.
func (rd *rebuilder) replay(r *journal.Range) error {
	o := rd.o
	s := o.segs[r.Segment]
	if r.To <= o.m.Applied() {
		slot, ok := o.m.Slot(r.Segment)
		if !ok {
			// Retired, and gone from everywhere once: a store that was away, or whose power cut took the removal back, has it
			// still. That is a stray, and may be permitted to go already; as a segment it would then be one without a replica.
			o.leaveOut(r.Segment)
			return nil
		}
		if seg, _ := o.m.Segment(slot); seg.Sealed {
			s.slot, s.last, s.end = slot, seg.Last, seg.End
			o.order = append(o.order, s)
			return nil
		}
	}
	x, err := rd.index(r)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	n := int(r.To - r.Before.Seq)
	s.end = x.End
	if n < len(x.Entries) {
		s.end = x.Entries[n].Offset
	}
	if s.last, err = rd.positionAt(r, x, n); err != nil {
		return err
	}
	slot, err := o.m.AddSegment(volume.Segment{ID: s.id, Before: s.before, Last: s.last, End: s.end, Sealed: true})
	if err != nil {
		return err
	}
	s.slot = slot
	if err := o.m.Seal(slot, s.last, s.end); err != nil {
		return err
	}
	o.order = append(o.order, s)
	if !rd.told {
		if err := rd.requests(r, x.Entries[:n]); err != nil {
			return err
		}
	}
	for i := range x.Entries[:n] {
		seq := r.Before.Seq + 1 + ident.Seq(i)
		if seq < r.From {
			continue
		}
		if err := o.replayed(r.Segment, &x.Entries[i], seq, slot, rd); err != nil {
			return err
		}
	}
	return nil
}

// replayed takes one record of the past into the map.
func (o *Owner) replayed(id ident.SegmentID, e *journal.IndexEntry, seq ident.Seq, slot volume.Slot, parts volume.PartReader) error {
	if seq <= o.m.Applied() {
		return nil
	}
	switch e.Kind {
	case journal.KindAttach, journal.KindEpochStart:
		rec, body, err := o.readRecord(id, e.Offset, seq)
		if err == nil {
			err = o.applyPorts(e.Kind, rec, body)
		}
		if err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
	case journal.KindPermit, journal.KindRetire:
		_, body, err := o.readRecord(id, e.Offset, seq)
		if err == nil {
			err = o.applyGoing(e.Kind, body, seq)
		}
		if err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
	case journal.KindPin:
		_, body, err := o.readRecord(id, e.Offset, seq)
		if err == nil {
			err = o.applyPins(body)
		}
		if err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
	case journal.KindCopy:
		_, body, err := o.readRecord(id, e.Offset, seq)
		if err == nil {
			err = o.replayCopy(e, seq, body, parts)
		}
		if err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
		return nil
	case journal.KindReservation:
		_, body, err := o.readRecord(id, e.Offset, seq)
		if err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
		if err := o.unitApplied(body); err != nil {
			return fmt.Errorf("replay of seq %d: %w", seq, err)
		}
	}
	if err := o.m.Apply(e, seq, slot); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

// applyGoing takes a permit or a retirement of a former owner into the tables: one that is replayed, or that the tail
// of the history has. Its replicas may be gone already.
func (o *Owner) applyGoing(kind journal.Kind, body []byte, seq ident.Seq) error {
	if kind == journal.KindPermit {
		permits, err := journal.DecodePermits(body)
		if err != nil {
			return err
		}
		for _, p := range permits {
			if s := o.segs[p.Segment]; s != nil {
				// From the permit on, no epoch counts it (R13); one that was made since is another.
				if h := s.holder(p.Store); h != nil && h.made == p.Made {
					h.going = true
				}
			}
			o.permits[permitKey{p.Segment, p.Store}] = pendingPermit{Permit: p, seq: seq}
		}
		return nil
	}
	retired, err := journal.DecodeRetired(body)
	if err != nil {
		return err
	}
	for _, s := range retired {
		if slot, ok := o.m.Slot(s); ok {
			if err := o.m.Retire(slot); err != nil {
				return err
			}
		}
	}
	o.cp.retired = append(o.cp.retired, retiredAt{segments: retired, seq: seq})
	return nil
}

// positionAt is the position after the n-th record of an index.
func (rd *rebuilder) positionAt(r *journal.Range, x *journal.Index, n int) (ident.Position, error) {
	if n == len(x.Entries) {
		return x.Last, nil
	}
	rec, _, err := rd.o.readRecord(r.Segment, x.Entries[n-1].Offset, r.Before.Seq+ident.Seq(n))
	if err != nil {
		return ident.Position{}, err
	}
	return rec.Position(), nil
}

// partReader reads records one by one from whichever replica has them intact: checkpoint parts and the
// journal's own small records.
func (o *Owner) partReader() volume.PartReader { return partReader{o} }

type partReader struct{ o *Owner }

func (p partReader) ReadPart(id ident.SegmentID, offset uint32, digest uint64) (*journal.Record, []byte, error) {
	return p.o.readPart(id, offset, digest)
}

// readPart reads a part of a checkpoint from the first of its stores that has it. One that has something else there has rotted,
// or has lost a write without noticing: it is counted and made again, like one that a client's read has found.
func (o *Owner) readPart(id ident.SegmentID, offset uint32, digest uint64) (*journal.Record, []byte, error) {
	return o.readRight(o.holdersOf(id), id, offset, func(r *journal.Record) error {
		if r.BodyDigest != digest {
			return wire.Errorf(wire.CodeCorrupt, "part of digest %016x where the checkpoint says %016x", r.BodyDigest, digest)
		}
		return nil
	}, func(st journal.Store, err error) {
		if !errors.Is(err, wire.ErrCorrupt) || o.viewing {
			return
		}
		o.env.Metrics.Corrupt.Inc()
		o.log.Error("replica of a checkpoint is corrupt, reading another", "segment", id, "store", st.ID(), "err", err)
		if o.w == nil {
			o.markBad(id, st.ID(), err)
		} else {
			o.call(func() { o.markBad(id, st.ID(), err) })
		}
	})
}

// holdersOf lists the stores of a segment; it may be called from any goroutine once the owner runs.
func (o *Owner) holdersOf(id ident.SegmentID) []journal.Store {
	var list []journal.Store
	collect := func() {
		s := o.segs[id]
		if s == nil {
			return
		}
		if first := o.readFrom(s); first != nil {
			list = append(list, first)
		}
		for _, h := range s.holders {
			if st, ok := o.env.Stores.Store(h.store); ok && !slices.Contains(list, st) {
				list = append(list, st)
			}
		}
	}
	if o.w == nil { // still taking over: nobody else is there
		collect()
	} else {
		o.ask(collect)
	}
	return list
}

func (o *Owner) readRecord(id ident.SegmentID, offset uint32, seq ident.Seq) (*journal.Record, []byte, error) {
	return o.readRecordFrom(o.holdersOf(id), id, offset, seq)
}

// recordGuess is how much is read before a record's size is known; most parts and small records fit.
const recordGuess = 64 << 10

// readRecordFrom reads a record from the first of the stores that has it whole. seq is 0 where only the caller can say whether it is the right one:
// else one of another seq, which an older segment has left in the file where the disk has lost a write, is none.
func (o *Owner) readRecordFrom(stores []journal.Store, id ident.SegmentID, offset uint32, seq ident.Seq) (*journal.Record, []byte, error) {
	return o.readRight(stores, id, offset, func(r *journal.Record) error {
		if seq != 0 && r.Seq != seq {
			return wire.Errorf(wire.CodeCorrupt, "record of seq %d where %d should be", r.Seq, seq)
		}
		return nil
	}, func(journal.Store, error) {})
}

// readRight reads a record from the first of the stores that has it whole and of which right says that it is the one; missed
// is told of the others. Where none has it, and one of them could not be asked, the error says that: it may have it.
func (o *Owner) readRight(stores []journal.Store, id ident.SegmentID, offset uint32, right func(*journal.Record) error, missed func(journal.Store, error)) (*journal.Record, []byte, error) {
	var last error = wire.Errorf(wire.CodeAbsent, "no replica of segment %s is known", id)
	for i, st := range stores {
		rec, body, err := o.readOne(st, id, offset)
		if err == nil {
			err = right(rec)
		}
		if err == nil {
			return rec, body, nil
		}
		missed(st, err)
		if i > 0 && !errors.Is(last, wire.ErrCorrupt) && !errors.Is(last, wire.ErrAbsent) {
			continue
		}
		last = fmt.Errorf("record at %d of segment %s at %s: %w", offset, id, st.ID(), err)
	}
	return nil, nil, last
}

func (o *Owner) readOne(st journal.Store, id ident.SegmentID, offset uint32) (*journal.Record, []byte, error) {
	var raw []byte
	for want := recordGuess; len(raw) < want; {
		ctx, cancel := context.WithTimeout(o.ctx, rawTimeout)
		r, err := st.ReadRaw(ctx, &wire.ReadRaw{Segment: id, Offset: offset + uint32(len(raw)), Len: uint32(min(want-len(raw), copyFrame))})
		ended := ctx.Err()
		cancel()
		if err != nil {
			o.heard(st.ID(), ended, err)
			return nil, nil, err
		}
		raw = append(raw, r.Data...)
		n := len(r.Data)
		release(r)
		if len(raw) >= journal.RecordHeaderSize {
			stored := binary.LittleEndian.Uint32(raw[16:])
			if stored > journal.RecordBodyMax {
				break
			}
			want = journal.RecordSize(stored)
		}
		if n == 0 {
			break
		}
	}
	var rec journal.Record
	if err := rec.Decode(raw); err != nil {
		return nil, nil, err
	}
	if err := rec.VerifyBody(raw); err != nil {
		return nil, nil, err
	}
	if rec.Journal != id.Journal {
		return nil, nil, wire.Errorf(wire.CodeCorrupt, "record of journal %s in a segment of %s", rec.Journal, id.Journal)
	}
	return &rec, raw[journal.BodyOffset(rec.StoredLen):][:rec.StoredLen], nil
}
