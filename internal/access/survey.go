package access

import (
	"cmp"
	"context"
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
	Holed   bool            // it ends at a hole: there is more behind that
	Reach   []SiteReach     // the site that has most first
	// What is known to be lost if the history ends there, and whether some of it was stable.
	Records, Bytes uint64
	Span           time.Duration
	Stable         bool

	// Where the journal's key says that other sites hold what was acknowledged (R11): which sites have been heard whole, and
	// how many have to be so that a takeover without the others leaves nothing acknowledged behind; 0: the key does not say it.
	Whole []ident.SiteID
	Need  int

	Held map[ident.SegmentID]SegmentHeld // of all segments of which a store has something that counts
}

// SegmentHeld is in how many stores a segment is, and how long it is there.
type SegmentHeld struct {
	Stores int
	Bytes  uint64
}

func heldIn(answers fenceAnswers) map[ident.SegmentID]SegmentHeld {
	out := map[ident.SegmentID]SegmentHeld{}
	for _, a := range answers {
		for i := range a.Replicas {
			if r := &a.Replicas[i]; CountsAsCopy(r) {
				c := out[r.Segment]
				out[r.Segment] = SegmentHeld{c.Stores + 1, max(c.Bytes, uint64(r.End))}
			}
		}
	}
	return out
}

// CountsAsCopy reports that a replica has records of the history, as far as it can tell.
func CountsAsCopy(r *wire.Replica) bool {
	return r.State != wire.ReplicaDamaged && r.State != wire.ReplicaFork && r.End > journal.SegmentHeaderSize
}

// Kept reports that a takeover leaves nothing behind that was acknowledged, by the policy --ack=site:K.
func (x *Survey) Kept() bool { return x.Need > 0 && len(x.Whole) >= x.Need }

// ShortOfRecords reports that what keeps a takeover from serving is that records are not there, and not that too few stores
// answer: giving up more stores changes nothing, an operator has to agree to the loss.
func (x *Survey) ShortOfRecords() bool { return x.Stable || x.Holed && x.Enough || len(x.Missing) == 0 }

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

// Survey asks all stores what they have of a volume's journal, but for those in without: what if they were not there?
func (s *Server) Survey(ctx context.Context, id ident.JournalID, without ...ident.StoreID) (*Survey, error) {
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
	answers := o.askAll(ctx, without)
	x.Held = heldIn(answers)
	rec := journal.Recover(o.ensembles(), answers)
	x.Missing, x.Enough = rec.Missing, rec.Enough && rec.EndKnown
	if state.Forced != nil && !x.Enough {
		if heard, forced := o.forcedEnough(state, answers, nil); forced != nil {
			x.Enough, rec = !o.forced, forced
			answers = heard
		}
	}
	x.Last = o.endOf(ctx, rec, answers)
	x.Stable, x.Holed = rec.LostStable, o.holed
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
			x.Reach = append(x.Reach, SiteReach{site, o.endOf(ctx, journal.Recover(nil, of), of)})
		}
	}
	slices.SortFunc(x.Reach, func(a, b SiteReach) int {
		return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(slices.Index(state.Sites, a.Site), slices.Index(state.Sites, b.Site)))
	})
	return x, nil
}

// endOf is where a takeover would find that a history ends: a gap that no checkpoint covers ends it, and behind one may be the announcement of the
// checkpoint that covers it. Of the records no more is read than tells that. rec becomes what the takeover would have.
func (o *Owner) endOf(ctx context.Context, rec *journal.Recovery, answers fenceAnswers) (last ident.Seq) {
	rd := &rebuilder{o: o, ctx: ctx, indexes: map[ident.SegmentID]*journal.Index{}, answers: answers}
	o.segs = map[ident.SegmentID]*segment{}
	point, err := rd.newestCheckpoint(rec)
	if _, hole := rec.Hole(point.At.Seq); err == nil && (hole || len(rec.Behind) > 0) {
		o.forced = true // without force it would wait here and there, and the history end in the same place
		_, _, err = rd.ending(rec, answers)
	}
	if err != nil {
		o.log.Warn("where the history ends is told by the numbers of its records alone", "err", err)
	}
	for _, r := range slices.Concat(rec.Past, rec.Tail) {
		last = max(last, r.To)
	}
	return last
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
func (o *Owner) askAll(ctx context.Context, without []ident.StoreID) fenceAnswers {
	ids := o.asked(nil)
	for _, e := range o.state.Ensembles {
		for _, id := range e.Stores {
			if !slices.Contains(ids, id) && !o.env.about(id).Lost {
				ids = append(ids, id)
			}
		}
	}
	answers := fenceAnswers{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		st, ok := o.env.Stores.Store(id)
		if !ok || !o.env.Stores.Up(id) || slices.Contains(without, id) {
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
