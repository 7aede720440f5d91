package access

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Past is a volume as it was at a point of one of its histories. It is not for concurrent use.
type Past struct {
	o *Owner
	// Base is the last record that a fork has in common with the volume, Last its own.
	Base, Last ident.Position
	ranges     []journal.Range
	rd         *rebuilder
}

// PastKind says which.
type PastKind uint8

// Kinds of Past.
const (
	PastFork PastKind = iota // as the fork has it
	PastBase                 // where fork and volume part
	PastHead                 // the volume as it is now
)

// Past reads the history of a fork that a cut has left, or of the volume at that place, or now, from what stores have.
func (s *Server) Past(ctx context.Context, id ident.JournalID, cuts []wire.Cut, cut wire.Cut, kind PastKind) (*Past, error) {
	state, _, err := s.env.Control.JournalNow(ctx, id)
	if err != nil {
		return nil, err
	}
	o, err := s.viewer(ctx, id, state)
	if err != nil {
		return nil, err
	}
	all := o.askAll(ctx, nil)
	names := map[ident.StoreID]map[ident.SegmentID]ident.SegmentID{}
	answers := fenceAnswers{}
	var rest []spare
	below := state.Epoch
	below.Number++
	if kind != PastHead {
		below = cut.At.Epoch
	}
	for store, a := range all {
		x := *a
		x.Replicas, x.Commit, x.Stable = nil, ident.Position{}, ident.Position{}
		forks := map[ident.SegmentID]bool{}
		for _, r := range a.Replicas {
			if kind == PastFork && r.State == wire.ReplicaFork && leftBy(cuts, &r) == cut.At.Epoch {
				forks[r.Segment.Original()] = true
			}
		}
		for _, r := range a.Replicas {
			orig := r.Segment.Original()
			switch {
			case r.State == wire.ReplicaDamaged:
				continue
			case !r.Segment.Epoch.Less(below), r.State == wire.ReplicaFork && (!forks[orig] || leftBy(cuts, &r) != cut.At.Epoch):
				rest = append(rest, spare{store, r})
				continue
			case r.State != wire.ReplicaFork && forks[orig]:
				continue // the fork has all of it
			case r.State == wire.ReplicaFork:
				if names[store] == nil {
					names[store] = map[ident.SegmentID]ident.SegmentID{}
				}
				names[store][orig] = r.Segment
				r.Segment, r.State = orig, wire.ReplicaCopy
			}
			x.Replicas = append(x.Replicas, r)
		}
		slices.SortFunc(x.Replicas, func(a, b wire.Replica) int { return a.Segment.Compare(b.Segment) })
		answers[store] = &x
	}
	o.env.Stores = &renamed{Stores: o.env.Stores, names: names, made: map[ident.StoreID]*renamedStore{}}
	o.fenced = nil
	// All that is there counts, so the commit point is taken to be behind it.
	rec := journal.Recover(nil, answers, ident.Position{Epoch: below, Seq: 1 << 62})
	p := &Past{o: o, Base: cut.Before, rd: &rebuilder{o: o, ctx: ctx, indexes: map[ident.SegmentID]*journal.Index{}, answers: maps.Clone(answers)}}
	if kind != PastHead {
		p.rd.join(rec, cut.Before, rest, names)
	}
	if kind == PastBase {
		last := ident.Seq(0)
		for i := range rec.Past {
			last = max(last, rec.Past[i].To)
		}
		if last < cut.Before.Seq {
			return nil, p.fail(wire.Errorf(wire.CodeBusy, "journal %s: the history to seq %d is not at the stores that can be reached: it ends at %d", id, cut.Before.Seq, last))
		}
		rec.CutAt(cut.Before.Seq)
	}
	p.ranges = slices.Clone(rec.Past)
	cfg := journal.WriterConfig{Journal: id}
	if err := o.rebuild(ctx, answers, rec, &cfg); err != nil {
		return nil, p.fail(err)
	}
	p.Last = cfg.Heard
	return p, nil
}

// spare is a replica at a store that is of a later epoch than the history which is read, or set aside and not of its fork.
type spare struct {
	store ident.StoreID
	wire.Replica
}

// join completes a history up to a record that it is known to have. The owner that went on from that record has put what was above
// the commit point that it had heard into segments of its own, and older replicas end in front of it since: so those records may be in
// segments of later epochs only, or in a replica that was set aside before its store knew better. Which of the spares are of this history
// says the record itself, by its hash: what is in front of it in the same segment is this history's, too.
func (rd *rebuilder) join(rec *journal.Recovery, to ident.Position, rest []spare, names map[ident.StoreID]map[ident.SegmentID]ident.SegmentID) {
	for to.Seq > 0 {
		if i := slices.IndexFunc(rec.Past, func(r journal.Range) bool { return r.From <= to.Seq && to.Seq <= r.To }); i >= 0 {
			to = rec.Past[i].Before // what is in front of it may be missing all the same
			continue
		}
		r, ok := rd.spareRange(to, rest, names)
		if !ok {
			return // the hole is found later, if no checkpoint covers it
		}
		// What is in front of the hole ends where the segment begins, as everywhere else.
		for i := range rec.Past {
			if x := &rec.Past[i]; x.To < to.Seq && x.To > r.Before.Seq {
				x.To, x.Sealed, x.End = r.Before.Seq, false, 0
			}
		}
		rec.Past = append(slices.DeleteFunc(rec.Past, func(x journal.Range) bool { return x.To < x.From }), r)
		slices.SortFunc(rec.Past, func(a, b journal.Range) int { return cmp.Compare(a.From, b.From) })
		to = r.Before
	}
}

// spareRange finds a segment among the spares that has a record, and gives it up to there. The replicas that were set aside are read by
// the names that they have now.
func (rd *rebuilder) spareRange(to ident.Position, rest []spare, names map[ident.StoreID]map[ident.SegmentID]ident.SegmentID) (journal.Range, bool) {
	found := map[ident.SegmentID]*journal.Range{}
	for _, x := range rest {
		id := x.Segment.Original()
		if id.IsCheckpoint() || x.End == 0 || x.Before.Seq >= to.Seq || x.Last.Seq < to.Seq {
			continue
		}
		if x.Segment.IsFork() {
			if names[x.store] == nil {
				names[x.store] = map[ident.SegmentID]ident.SegmentID{}
			}
			names[x.store][id] = x.Segment // it has all that a replica under the old name has
		}
		r := found[id]
		if r == nil {
			r = &journal.Range{Segment: id, Before: x.Before, From: x.Before.Seq + 1, To: to.Seq}
			found[id] = r
		}
		r.Holders = append(r.Holders, journal.Holder{Store: x.store, State: wire.ReplicaCopy, Last: x.Last.Seq, Made: x.Made})
	}
	for _, id := range slices.SortedFunc(maps.Keys(found), ident.SegmentID.Compare) {
		r := found[id]
		slices.SortFunc(r.Holders, func(a, b journal.Holder) int { return a.Store.Compare(b.Store) })
		x, err := rd.index(r)
		if err != nil {
			rd.o.log.Debug("segment not read", "segment", id, "err", err)
			continue
		}
		last, _, err := rd.o.readRecordFrom(rd.stores(r), id, x.Entries[to.Seq-r.Before.Seq-1].Offset, to.Seq)
		if err == nil && last.Position() == to {
			return *r, true
		}
	}
	return journal.Range{}, false
}

func (p *Past) fail(err error) error {
	p.o.cancel()
	return err
}

// LeftBy finds the epoch-start that has left a replica's records behind: the first that does not have them.
func LeftBy(cuts []wire.Cut, r *wire.Replica) (wire.Cut, bool) {
	for _, c := range cuts {
		if leftBehind(wire.EpochStart{At: c.At, Before: c.Before}, r.Segment.Epoch, r.Last.Seq) {
			return c, true
		}
	}
	return wire.Cut{}, false
}

// leftBy is that start's epoch.
func leftBy(cuts []wire.Cut, r *wire.Replica) ident.Epoch {
	c, _ := LeftBy(cuts, r)
	return c.At.Epoch
}

// Close ends it.
func (p *Past) Close() { p.o.cancel() }

// Size of the volume in bytes.
func (p *Past) Size() int64 { return p.o.spec.Load().SizeBytes }

// Pieces says where blocks lie.
func (p *Past) Pieces(block uint64, count uint32, dst []volume.Piece) ([]volume.Piece, error) {
	for {
		pieces, need := p.o.m.Lookup(block, count, dst)
		if need == volume.NoLeaf {
			return pieces, nil
		}
		if err := p.o.m.LoadLeaf(need, p.o.partReader()); err != nil {
			return nil, err
		}
	}
}

// Read reads the blocks of a piece, which is no hole.
func (p *Past) Read(ctx context.Context, x *volume.Piece, dst []byte) error {
	m := &wire.Read{Journal: p.o.journalID, Pieces: []wire.ReadPiece{{Segment: x.Segment, Record: x.Record, First: x.First, Blocks: uint16(x.Count)}}}
	last := error(wire.Errorf(wire.CodeAbsent, "no store that answers has segment %s", x.Segment))
	type answer struct {
		r   wire.ReadReply
		err error
	}
	for _, st := range p.o.holdersOf(x.Segment) {
		got := make(chan answer, 1)
		st.Read(m, func(r wire.ReadReply, err error) { got <- answer{r, err} })
		select {
		case a := <-got:
			if a.err == nil {
				copy(dst, a.r.Data)
				release(a.r)
				return nil
			}
			last = a.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return last
}

// Sum counts what a fork has behind the place where it parts from the volume.
func (p *Past) Sum() (writes, bytes uint64, first, last time.Time, err error) {
	var sum forkSum
	seen := p.Base.Seq
	for i := range p.ranges {
		r := &p.ranges[i]
		if r.To <= seen {
			continue
		}
		x, err := p.rd.index(r)
		if err != nil {
			return 0, 0, first, last, err
		}
		part := *x
		part.Entries = x.Entries[:min(len(x.Entries), int(r.To-r.Before.Seq))]
		sum.add(&part, seen, func(offset uint32) int64 {
			rec, _, err := p.o.readRecordFrom(p.rd.stores(r), r.Segment, offset, 0)
			if err != nil {
				return 0
			}
			return rec.Time
		})
		seen = r.To
	}
	when := func(n int64) (t time.Time) {
		if n != 0 {
			t = time.Unix(0, n)
		}
		return t
	}
	return sum.writes, sum.bytes, when(sum.first), when(sum.last), nil
}

// renamed is stores some of whose replicas are asked for under another name.
type renamed struct {
	Stores
	names map[ident.StoreID]map[ident.SegmentID]ident.SegmentID

	mu   sync.Mutex
	made map[ident.StoreID]*renamedStore
}

func (s *renamed) Store(id ident.StoreID) (journal.Store, bool) {
	st, ok := s.Stores.Store(id)
	if !ok || s.names[id] == nil {
		return st, ok
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[id] == nil {
		s.made[id] = &renamedStore{st, s.names[id]}
	}
	return s.made[id], true
}

type renamedStore struct {
	journal.Store
	names map[ident.SegmentID]ident.SegmentID
}

func (s *renamedStore) name(id ident.SegmentID) ident.SegmentID {
	if n, ok := s.names[id]; ok {
		return n
	}
	return id
}

func (s *renamedStore) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	return s.Store.ReadRaw(ctx, &wire.ReadRaw{Segment: s.name(m.Segment), Offset: m.Offset, Len: m.Len})
}

func (s *renamedStore) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return s.Store.ReadIndex(ctx, &wire.ReadIndex{Segment: s.name(m.Segment)})
}

func (s *renamedStore) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	c := &wire.Read{Journal: m.Journal, Pieces: slices.Clone(m.Pieces)}
	for i := range c.Pieces {
		c.Pieces[i].Segment = s.name(c.Pieces[i].Segment)
	}
	s.Store.Read(c, done)
}
