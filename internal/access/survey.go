package access

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Survey is what the stores that can be reached have of a journal. Nothing is changed by asking: no store is fenced, and
// an owner may go on meanwhile.
type Survey struct {
	State   control.JournalState
	Rev     control.Rev
	Missing []ident.StoreID // members of listed ensembles that do not answer
	Enough  bool            // a takeover would be without force (R2, R4)
	Last    ident.Seq       // the last record that is there
	LastAt  time.Time       // when it was made; zero if not known
	Reach   []SiteReach     // the site that has most first
	// What is known to be lost if the history ends there, and whether some of it was stable.
	Records, Bytes uint64
	Span           time.Duration
	Stable         bool

	// Where the journal's key says that other sites hold what was acknowledged (R11): which sites have been heard whole, and
	// how many have to be so that a takeover without the others leaves nothing acknowledged behind; 0: the key does not say it.
	Whole []ident.SiteID
	Need  int
}

// Kept reports that a takeover leaves nothing behind that was acknowledged, by the policy --ack=site:K.
func (x *Survey) Kept() bool { return x.Need > 0 && len(x.Whole) >= x.Need }

// WaitsFor reports that a takeover could not begin without force because stores of a site don't answer.
func (s *Server) WaitsFor(x *Survey, site ident.SiteID) bool {
	return !x.Enough && slices.ContainsFunc(x.Missing, func(id ident.StoreID) bool { return s.env.Stores.Site(id) == site })
}

// SiteReach is how far a site's stores get together.
type SiteReach struct {
	Site ident.SiteID
	Last ident.Seq
}

// surveyTimeout bounds the question to one store.
const surveyTimeout = 3 * time.Second

// Survey asks all stores what they have of a volume's journal.
func (s *Server) Survey(ctx context.Context, id ident.JournalID) (*Survey, error) {
	state, rev, err := s.env.Control.JournalNow(ctx, id)
	if err != nil {
		return nil, err
	}
	o, err := s.viewer(ctx, id, state)
	if err != nil {
		return nil, err
	}
	defer o.cancel()
	x := &Survey{State: state, Rev: rev}
	answers := o.askAll(ctx)
	rec := journal.Recover(o.ensembles(), answers)
	x.Missing, x.Enough, x.Stable = rec.Missing, rec.Enough && rec.EndKnown, rec.LostStable
	if state.Forced != nil && !x.Enough {
		if heard, forced := o.forcedEnough(state, answers, nil); forced != nil {
			x.Enough, rec = !o.forced, forced
			answers = heard
		}
	}
	for _, r := range slices.Concat(rec.Past, rec.Tail) {
		x.Last = max(x.Last, r.To)
	}
	l := o.measureLoss(ctx, answers, rec)
	x.Records, x.Bytes, x.Span, x.LastAt = l.records, l.bytes, l.span, l.at
	sites := map[ident.SiteID]fenceAnswers{}
	for store, a := range answers {
		site := o.env.Stores.Site(store)
		if sites[site] == nil {
			sites[site] = fenceAnswers{}
		}
		sites[site][store] = a
	}
	if state.Ack > 0 {
		x.Whole, x.Need = o.wholeSites(answers), journal.HeardSites(len(state.Sites), state.Ack)
	}
	for site, of := range sites {
		if slices.Contains(state.Sites, site) {
			x.Reach = append(x.Reach, SiteReach{site, journal.Recover(nil, of).Last.Seq})
		}
	}
	slices.SortFunc(x.Reach, func(a, b SiteReach) int {
		return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(slices.Index(state.Sites, a.Site), slices.Index(state.Sites, b.Site)))
	})
	return x, nil
}

// Taker names the access server of a site that would take a journal over: the same that its site would choose.
func (s *Server) Taker(id ident.JournalID, site ident.SiteID) (ident.NodeName, bool) {
	var names []ident.NodeName
	for _, n := range s.env.Control.Nodes() {
		if n.Site == site && n.Has(control.RoleAccess) && !n.Draining && (n.Name == s.env.Node || s.env.Control.Alive(n.Name) && s.reachable(n.Name)) {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return names[spread(id)%uint64(len(names))], true
}

// viewer makes an owner that owns nothing: it reads the history of a journal from what stores say.
func (s *Server) viewer(ctx context.Context, id ident.JournalID, state control.JournalState) (*Owner, error) {
	spec, ok := s.env.Control.Volume(id)
	if !ok {
		return nil, wire.Errorf(wire.CodeAbsent, "no volume %s", id)
	}
	env := s.env
	env.Stores = guardLocal(env.Stores, env.Health)
	o := &Owner{env: env, log: env.Log.With("journal", id.String(), "volume", spec.Name), journalID: id, epoch: state.Epoch, state: state, started: time.Now(),
		viewing: true, fenced: state.Ensembles, hand: &handed{state: state}, segs: map[ident.SegmentID]*segment{}, late: newLate(),
		leafWait: map[volume.LeafID][]*Op{}, permits: map[permitKey]pendingPermit{}}
	o.spec.Store(&spec)
	o.ctx, o.cancel = context.WithCancel(ctx)
	return o, nil
}

// askAll lists what every store has that may have something.
func (o *Owner) askAll(ctx context.Context) fenceAnswers {
	ids := o.everywhere(nil)
	for _, e := range o.state.Ensembles {
		for _, id := range e.Stores {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	answers := fenceAnswers{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		st, ok := o.env.Stores.Store(id)
		if !ok || !o.env.Stores.Up(id) {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
			defer cancel()
			a := &wire.FenceReply{}
			for m := (&wire.Inventory{Journal: o.journalID, Limit: 4096}); ; {
				r, err := st.Inventory(ctx, m)
				if err != nil {
					o.log.Debug("store not heard", "store", id, "err", err)
					return
				}
				a.Boot, a.Commit, a.Stable, a.Told = r.Boot, r.Commit, r.Stable, r.Told
				a.Replicas = append(a.Replicas, r.Replicas...)
				if !r.More || len(r.Replicas) == 0 {
					break
				}
				m.After = r.Replicas[len(r.Replicas)-1].Segment
			}
			mu.Lock()
			answers[id] = a
			mu.Unlock()
		})
	}
	wg.Wait()
	return answers
}

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
	all := o.askAll(ctx)
	names := map[ident.StoreID]map[ident.SegmentID]ident.SegmentID{}
	answers := fenceAnswers{}
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
			case !r.Segment.Epoch.Less(below) || r.State == wire.ReplicaDamaged:
				continue
			case r.State == wire.ReplicaFork && (!forks[orig] || leftBy(cuts, &r) != cut.At.Epoch):
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
	if kind == PastBase {
		rec.CutAt(min(rec.Last.Seq, cut.Before.Seq))
		if rec.Last.Seq < cut.Before.Seq {
			return nil, p.fail(fmt.Errorf("the history to seq %d is not at the stores that answer: it ends at %d", cut.Before.Seq, rec.Last.Seq))
		}
	}
	p.ranges = slices.Clone(rec.Past)
	cfg := journal.WriterConfig{Journal: id}
	if err := o.rebuild(ctx, answers, rec, &cfg); err != nil {
		return nil, p.fail(err)
	}
	p.Last = cfg.Heard
	return p, nil
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
			rec, _, err := p.o.readRecordFrom(p.rd.stores(r), r.Segment, offset)
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
