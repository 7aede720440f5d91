package access

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The block manager, as far as it is the owner's: once a second it looks at sealed segments (sweep.go) and at where their
// replicas are, and has made what is missing, in order of danger:
//
//	fewest copies left first ──> copies at stores that are being emptied ──> copies that only even the use of stores out
//
// A copy is made from the nearest store that has one, to a store of the same site that has none, never two on one host.
// What is too much afterwards goes by a permit, like everything that goes (R5, R13): a copy is never moved, it is made
// again and then one of those that are there is let go. Dying at any line leaves a replica too many, or a part of one;
// the next owner hears of both when it asks what is there.

// repairState is what the owner's loop keeps about it.
type repairState struct {
	away    map[ident.StoreID]time.Duration // since when stores can't be reached
	busy    map[ident.SegmentID]bool        // being copied or sealed
	failed  map[ident.SegmentID]repairPause // copies that failed are not tried again at once
	asked   map[ident.StoreID]time.Duration // about damaged replicas
	running int                             // seals and copies under way
	copied  uint64                          // bytes, since the owner began
	awaited int                             // segments that only stores have that are away
	lost    []ident.StoreID                 // that were declared lost, and are in no table any more

	wire.JournalBlocks // as of the last round

	// The rounds that are under way, and what they have found so far.
	looking, awaiting, dropping sweep
	counting                    wire.JournalBlocks
	awaits                      int
	tasks                       int    // copies to make
	worst                       danger // of what is to be copied, as far as it has been looked at since nothing was
}

type repairPause struct {
	at, until time.Duration
	tries     int
}

// Pauses of a copy that failed, and between questions to a store that says it has damaged replicas.
const (
	repairPauseMin  = 500 * time.Millisecond
	repairPauseMax  = 30 * time.Second
	askDamaged      = 30 * time.Second
	askUnheardEvery = 5 * time.Second
	heardPatience   = 30 * time.Second // for a store to say what it has, before what it may have is made again
)

func (r *repairState) init() {
	if r.busy == nil {
		r.worst = dangerNone
		r.away, r.busy, r.failed, r.asked = map[ident.StoreID]time.Duration{}, map[ident.SegmentID]bool{}, map[ident.SegmentID]repairPause{}, map[ident.StoreID]time.Duration{}
	}
}

// storeView is what one look needs to know of a store: it is asked for once, not once a segment.
type storeView struct {
	StoreInfo
	id         ident.StoreID
	site       ident.SiteID
	host       string
	up, fit    bool
	local      bool
	registered bool
	gone       bool // for longer than it is waited for, or for good
	crowding   int
}

// copyTask is a replica that is to be made.
type copyTask struct {
	s      *segment
	site   ident.SiteID
	danger danger
}

// sight is one look at segments.
type sight struct {
	o      *Owner
	now    time.Duration
	stores map[ident.StoreID]*storeView
	places map[ident.SiteID][]*storeView // where replicas may go
	hosts  map[ident.SiteID]int
	heard  map[ident.SiteID]bool
	tasks  []copyTask
	worst  danger
}

// look gives what is known of a store.
func (v *sight) look(id ident.StoreID) *storeView {
	if x := v.stores[id]; x != nil {
		return x
	}
	o, r := v.o, &v.o.repair
	_, registered := o.env.Stores.Store(id)
	x := &storeView{StoreInfo: o.env.about(id), id: id, site: o.env.Stores.Site(id), host: o.env.Stores.Host(id), local: o.env.Stores.Local(id), registered: registered}
	x.up = registered && o.env.Stores.Up(id) && !x.Lost
	x.fit = x.up && o.env.Health.Usable(id)
	if x.up {
		delete(r.away, id)
	} else if _, away := r.away[id]; !away {
		r.away[id] = v.now
	}
	since, away := r.away[id]
	x.gone = x.Lost || away && v.now-since > o.env.Limits.RepairGrace
	v.stores[id] = x
	return x
}

// at lists where a site's replicas may go.
func (v *sight) at(site ident.SiteID) []*storeView {
	list, known := v.places[site]
	if known {
		return list
	}
	ids, hosts := v.o.env.places(site)
	crowding := v.o.env.crowding(ids)
	for _, id := range ids {
		x := v.look(id)
		x.crowding = crowding[id]
		list = append(list, x)
	}
	v.places[site], v.hosts[site] = list, hosts
	return list
}

// heardAll reports that the stores of a site have said what they have since the owner began, those that can.
func (v *sight) heardAll(site ident.SiteID) bool {
	yes, known := v.heard[site]
	if !known {
		o := v.o
		yes = v.now-o.servedAt > heardPatience || !slices.ContainsFunc(o.env.Stores.Core(site), func(id ident.StoreID) bool {
			return !o.strays.heard[id] && v.look(id).fit
		})
		v.heard[site] = yes
	}
	return yes
}

// repairSome looks at segments, says what is missing once it has looked at all, and begins what may be done now. What is less urgent than what
// is found meanwhile waits until that has been copied.
func (o *Owner) repairSome(now time.Duration) {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	r := &o.repair
	r.init()
	v := &sight{o: o, now: now, stores: map[ident.StoreID]*storeView{}, places: map[ident.SiteID][]*storeView{}, hosts: map[ident.SiteID]int{}, heard: map[ident.SiteID]bool{}, worst: dangerNone}
	o.forgetLost()
	o.heedDamage(now)
	list, first, last := r.looking.next(o)
	if first {
		r.counting, r.tasks = wire.JournalBlocks{}, 0
	}
	if first && last || len(r.busy) == 0 {
		r.worst = dangerNone
	}
	remote := o.remoteSites()
	pending := map[ident.SegmentID]bool{}
	o.w.Pending(func(ws *journal.Segment, _ []int) { pending[ws.ID] = true })
	marks := map[ident.SiteID]given{}
	for _, s := range o.ships {
		s.mu.Lock()
		marks[s.site] = given{s.mu.stable, maps.Clone(s.mu.unsealed)}
		dest, open := s.mu.dest, o.segs[s.mu.segment]
		s.mu.Unlock()
		if open != nil && !open.sealed && o.env.about(dest).Leaving && len(v.at(s.site)) > 0 {
			o.w.CloseIdle() // a slow writer would fill the segment for hours; the next one goes elsewhere
		}
	}
	isLost := o.whoIsLost()
	for _, s := range list {
		o.forgetLostOf(s, isLost)
		if s.slot == 0 || o.retiring(s) || o.needless(s) {
			continue
		}
		if !s.sealed || pending[s.id] || o.unsettled[s.id] != nil {
			v.unsettled(s) // the writer's to settle, and settlePast is faster
			continue
		}
		v.cutLonger(s)
		v.home(s, remote)
		for _, site := range remote {
			if v.shipped(s, site, marks[site]) {
				v.elsewhere(s, site)
			}
		}
	}
	for i, m := range o.members {
		x := v.look(m.Store)
		v.at(x.site)
		o.w.Crowded(i, x.crowding > 0 || x.Leaving)
	}
	r.worst, r.tasks = min(r.worst, v.worst), r.tasks+len(v.tasks)
	o.env.Copies.announce(o.journalID, r.worst)
	v.begin()
	if r.tasks == 0 && len(r.busy) == 0 {
		v.even(list, remote)
	}
	if last {
		if r.tasks > 0 {
			r.counting.Moving, r.counting.MovingBytes = 0, 0
		}
		r.JournalBlocks = r.counting
	}
	r.Journal, r.Copied, r.Running = o.journalID, r.copied, uint32(len(r.busy))
}

// unsettled counts the segments at the end of the history that have one copy less than they should.
func (v *sight) unsettled(s *segment) {
	r := &v.o.repair
	n := 0
	for i := range s.holders {
		if h := &s.holders[i]; !h.bad && !h.going && v.look(h.store).up {
			n++
		}
	}
	if n < 2 && len(s.holders) > 0 && len(v.at(v.o.env.Site)) > 0 {
		r.counting.Degraded++
		r.counting.Single++
		r.counting.DegradedBytes += uint64(s.end)
	}
}

// copies counts what there is of a segment at a site: replicas that count, those of them that can be reached now, and
// those that will stay because their store does.
func (v *sight) copies(s *segment, site ident.SiteID) (have, reached, staying int) {
	for i := range s.holders {
		h := &s.holders[i]
		x := v.look(h.store)
		if h.bad || h.going || x.gone || x.site != site {
			continue
		}
		have++
		if x.up {
			reached++
		}
		if !x.Leaving {
			staying++
		}
	}
	return have, reached, staying
}

// left counts the copies that can be read now, wherever they are.
func (v *sight) left(s *segment) (n int) {
	for i := range s.holders {
		if h := &s.holders[i]; h.stable && !h.bad && !h.going && v.look(h.store).up {
			n++
		}
	}
	return n
}

// home looks at the replicas at the owner's site: two, or one where all other sites have the segment.
func (v *sight) home(s *segment, remote []ident.SiteID) {
	o := v.o
	v.reseal(s, o.env.Site)
	want, far := 2, 0
	for i := range s.holders {
		if h := &s.holders[i]; h.stable && !h.bad && !h.going && !v.look(h.store).gone && v.look(h.store).site != o.env.Site {
			far++
		}
	}
	if len(remote) > 0 && far >= len(remote) && !s.id.IsCheckpoint() && !o.env.Limits.KeepBothLocal {
		want = 1
	}
	v.judge(s, o.env.Site, want)
}

// given is how far shipping to a site is.
type given struct {
	stable   ident.Seq
	unsealed map[ident.SegmentID]bool
}

// shipped reports that a site has been given a segment: what it has not been given yet is lag, and for shipping to bring. All of it
// may be stable there before it is sealed, and the seal is under way then, perhaps far: a copy would bring it there twice.
// Checkpoints are shipped by a loop of their own, in any order. They don't all go by themselves when a newer one is there:
// of what has not changed since, such as the attachments of a session that lasts, the newer one names the old part.
func (v *sight) shipped(s *segment, site ident.SiteID, mark given) bool {
	if !s.id.IsCheckpoint() {
		return mark.stable >= s.last.Seq && !mark.unsealed[s.id]
	}
	return slices.ContainsFunc(s.holders, func(h holder) bool {
		return h.stable && !h.bad && !h.going && v.look(h.store).site == site
	})
}

// elsewhere looks at a site that has been shipped a segment: it keeps one replica.
func (v *sight) elsewhere(s *segment, site ident.SiteID) {
	v.reseal(s, site)
	v.judge(s, site, 1)
}

// reseal has the replicas of a site sealed that are not known to be.
func (v *sight) reseal(s *segment, site ident.SiteID) {
	o, r := v.o, &v.o.repair
	for i := range s.holders {
		h := &s.holders[i]
		if x := v.look(h.store); !h.stable && !h.bad && !h.going && x.site == site && x.fit && r.running < copiesMax && !r.busy[s.id] {
			o.resealLater(s, h.store)
		}
	}
}

// cutLonger has a replica cut that goes on behind its segment's end, once nobody can depend on what it has there: that is in
// other segments of this history, stable on two servers at home and, where the replica is of another site, there too.
func (v *sight) cutLonger(s *segment) {
	o, r := v.o, &v.o.repair
	for i := range s.holders {
		h := &s.holders[i]
		x := v.look(h.store)
		if h.over.Seq == 0 || h.bad || h.going || !x.fit || len(o.unsettled) > 0 || r.busy[s.id] || r.running >= copiesMax || v.now < r.failed[s.id].until {
			continue
		}
		if x.site == o.env.Site || o.siteHas(x.site, h.over.Seq) {
			o.cutLater(s, h.store, h.over, h.made)
		}
	}
}

// judge compares a site's replicas with what it should have.
func (v *sight) judge(s *segment, site ident.SiteID, want int) {
	r := &v.o.repair
	places := v.at(site)
	if len(places) == 0 {
		want = 0 // a site of access servers only, or one that is being emptied: its copies are at other sites
	}
	if !v.heardAll(site) {
		return // a store that is not in the ensemble may have it
	}
	have, reached, staying := v.copies(s, site)
	left := v.left(s)
	if reached < want {
		r.counting.Degraded++
		r.counting.DegradedBytes += uint64(s.end)
		if left <= 1 {
			r.counting.Single++
		}
	}
	d := dangerNone
	switch can := min(want, v.hosts[site]); {
	case have < can || staying < can && have < want:
		d = danger(left)
	case staying < can:
		d = dangerEmpty
	case staying < have:
		// Enough stay; the one at the store that is being emptied goes by a permit.
		r.counting.Emptying++
		r.counting.EmptyingBytes += uint64(s.end)
		return
	default:
		return
	}
	missing := uint64(s.end) * uint64(max(1, min(want, v.hosts[site])-staying))
	if d == dangerEmpty {
		r.counting.Emptying++
		r.counting.EmptyingBytes += missing
	} else {
		r.counting.Missing += missing
	}
	if r.busy[s.id] || left == 0 {
		if left == 0 {
			r.counting.Stuck++
		}
		return
	}
	if p := r.failed[s.id]; v.now < p.until {
		return
	}
	v.worst = min(v.worst, d)
	v.tasks = append(v.tasks, copyTask{s, site, d})
}

// begin starts copies, the most urgent first.
func (v *sight) begin() {
	slices.SortFunc(v.tasks, func(a, b copyTask) int {
		return cmp.Or(cmp.Compare(a.danger, b.danger), cmp.Compare(a.s.before.Seq, b.s.before.Seq), a.s.id.Compare(b.s.id), cmp.Compare(a.site, b.site))
	})
	o := v.o
	for _, t := range v.tasks {
		if o.repair.busy[t.s.id] {
			continue // for another site
		}
		from := v.source(t.s, t.site)
		if from == nil {
			o.repair.counting.Stuck++
			continue
		}
		dest := v.dest(t.s, t.site, nil)
		if dest == nil {
			o.repair.counting.Stuck++
			var ids []ident.StoreID
			for _, x := range v.at(t.site) {
				ids = append(ids, x.id)
			}
			o.permitReplace(t.s, ids)
			continue
		}
		if !o.env.Copies.begin(t.danger) {
			return
		}
		o.copyTo(t.s, from, dest, t.danger)
	}
}

// source chooses where to copy from: at the destination's site, else at home, else anywhere.
func (v *sight) source(s *segment, site ident.SiteID) journal.Store {
	var best *storeView
	rank := func(x *storeView) (n int) {
		switch x.site {
		case site:
			n = 4
		case v.o.env.Site:
			n = 2
		}
		if x.fit {
			n += 8
		}
		return n
	}
	for i := range s.holders {
		h := &s.holders[i]
		x := v.look(h.store)
		if h.stable && !h.bad && !h.going && x.up && (best == nil || rank(x) > rank(best)) {
			best = x
		}
	}
	if best == nil {
		return nil
	}
	st, _ := v.o.env.Stores.Store(best.id)
	return st
}

// dest chooses a store of a site for another replica: none that has anything of the segment, none on a host that has a
// replica which stays. A member of the ensemble comes first as long as no checkpoint covers the segment, since a takeover asks
// members only; then the stores with room, then this node's own, which its owner reads without a network. instead is a holder that
// is to go in its favour.
func (v *sight) dest(s *segment, site ident.SiteID, instead *storeView) journal.Store {
	o := v.o
	var hosts []string
	for i := range s.holders {
		h := &s.holders[i]
		if x := v.look(h.store); !h.bad && !h.going && !x.gone && !x.Leaving && x != instead && x.site == site {
			hosts = append(hosts, x.host)
		}
	}
	covered := o.covered(s)
	member := func(x *storeView) bool {
		return !covered && slices.ContainsFunc(o.members, func(m journal.Member) bool { return m.Store == x.id })
	}
	better := func(a, b *storeView) bool {
		if ma, mb := member(a), member(b); ma != mb {
			return ma
		}
		if a.crowding != b.crowding {
			return a.crowding < b.crowding
		}
		if a.local != b.local {
			return a.local
		}
		return rendezvous(o.journalID, a.id, b.id) < 0
	}
	var best *storeView
	for _, x := range v.at(site) {
		if x.fit && s.holder(x.id) == nil && !slices.Contains(hosts, x.host) && (best == nil || better(x, best)) {
			best = x
		}
	}
	if best == nil {
		return nil
	}
	st, _ := o.env.Stores.Store(best.id)
	return st
}

// even begins to copy one segment from a crowded store of a site to one with room, when nothing else is to be done: of those
// that are looked at the one that helps most. What is then too much goes from the crowded one, by the same choice that leastWanted makes.
func (v *sight) even(list []*segment, remote []ident.SiteID) {
	o, r := v.o, &v.o.repair
	var pick copyTask
	var to journal.Store
	best := 0
	for _, site := range append([]ident.SiteID{o.env.Site}, remote...) {
		places := v.at(site)
		least, most := math.MaxInt, 0
		for _, x := range places {
			if x.fit {
				least, most = min(least, x.crowding), max(most, x.crowding)
			}
		}
		if len(places) < 2 || most <= least {
			continue
		}
		for _, s := range list {
			if !v.mayMove(s) {
				continue
			}
			for i := range s.holders {
				h := &s.holders[i]
				gain, dest := v.gain(s, h, site)
				if dest == nil {
					continue
				}
				r.counting.Moving++
				r.counting.MovingBytes += uint64(s.end)
				if gain > best || gain == best && s.id.Compare(pick.s.id) < 0 {
					best, pick, to = gain, copyTask{s, site, dangerMove}, dest
				}
			}
		}
	}
	if to == nil {
		return
	}
	if from := v.source(pick.s, pick.site); from != nil && o.env.Copies.begin(dangerMove) {
		o.copyTo(pick.s, from, to, dangerMove)
	}
}

// mayMove reports that a segment could be copied only to even the use of stores out.
func (v *sight) mayMove(s *segment) bool {
	o, r := v.o, &v.o.repair
	return o.covered(s) && !o.retiring(s) && o.unsettled[s.id] == nil && !r.busy[s.id] && v.now >= r.failed[s.id].until
}

// gain says by how much it would even out the use of a site's stores if a replica went to another store, and to which; nil if it would not.
func (v *sight) gain(s *segment, h *holder, site ident.SiteID) (int, journal.Store) {
	x := v.look(h.store)
	if !h.stable || h.bad || h.going || x.site != site || !x.up || x.crowding == 0 {
		return 0, nil
	}
	dest := v.dest(s, site, x)
	if dest == nil {
		return 0, nil
	}
	if g := x.crowding - v.look(dest.ID()).crowding; g > 0 {
		return g, dest
	}
	return 0, nil
}

// heedDamage gives up the replicas of which their stores say that they have a bad place: they are made again from good ones.
func (o *Owner) heedDamage(now time.Duration) {
	if o.env.About == nil {
		return
	}
	for _, site := range append([]ident.SiteID{o.env.Site}, o.remoteSites()...) {
		for _, id := range o.env.Stores.Core(site) {
			ask := false
			for _, d := range o.env.about(id).Damaged {
				s := o.segs[d.Segment]
				if s == nil || d.Segment.Journal != o.journalID {
					continue
				}
				if h := s.holder(id); h == nil {
					ask = true // it is not known to have any
				} else if h.made == d.Made && h.stable && !h.bad && !h.going {
					o.env.Metrics.Corrupt.Inc()
					o.markBad(d.Segment, id, wire.Errorf(wire.CodeCorrupt, "its store has found a bad place"))
				}
			}
			if at, asked := o.repair.asked[id]; ask && (!asked || now-at > askDamaged) {
				o.repair.asked[id] = now
				o.goBackground(func() { o.askWhatIsThere(id) })
			}
		}
	}
}

// askUnheard asks the stores that have not said yet what they have: one that was away when this owner took over and has come back
// may have the replica that the others lack, or have in pieces, and is asked by the clock after minutes only.
func (o *Owner) askUnheard() {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	o.repair.init()
	now := time.Duration(o.env.Clock())
	for _, site := range append([]ident.SiteID{o.env.Site}, o.remoteSites()...) {
		for _, id := range o.env.Stores.Core(site) {
			if at, asked := o.repair.asked[id]; o.strays.heard[id] || !o.env.Stores.Up(id) || asked && now-at <= askUnheardEvery {
				continue
			}
			o.repair.asked[id] = now
			o.goBackground(func() { o.askWhatIsThere(id) })
		}
	}
}

// refusesCopy reports that what a store has in the place of a replica keeps it from being made.
func refusesCopy(err error) bool {
	return errors.Is(err, wire.ErrMismatch) || errors.Is(err, wire.ErrConflict) || errors.Is(err, wire.ErrCorrupt) || errors.Is(err, wire.ErrFork)
}

// copyTo makes a replica at dest from one that is whole. Whoever calls it with a danger has asked the node's budget.
func (o *Owner) copyTo(s *segment, from, dest journal.Store, d danger) {
	r := &o.repair
	r.running++
	r.busy[s.id] = true
	id, end, records, last, start := s.id, s.end, s.records(), s.last, o.w.Start()
	budget := o.env.Copies
	if d == dangerNone {
		budget = nil // flushes wait for it
	}
	o.goBackground(func() {
		made, err := o.copySegment(from, dest, id, end, records, last, start, budget)
		if d != dangerNone {
			o.env.Copies.end()
		}
		o.call(func() {
			r.running--
			delete(r.busy, id)
			if err != nil {
				p := r.failed[id]
				p.tries++
				p.at = time.Duration(o.env.Clock())
				p.until = p.at + min(repairPauseMax, repairPauseMin<<min(p.tries-1, 16))
				r.failed[id] = p
				if o.stopErr == nil {
					o.log.Warn("replica not made again", "segment", id, "store", dest.ID(), "err", err)
				}
				o.askUnheard()
				if refusesCopy(err) && s.holder(dest.ID()) == nil { // what it has of the segment is not this
					if errors.Is(err, wire.ErrCorrupt) {
						delete(o.strays.lost, permitKey{id, dest.ID()}) // nor is it what was to be made again
					}
					o.goBackground(func() { o.askWhatIsThere(dest.ID()) })
				}
				return
			}
			delete(r.failed, id)
			r.copied += uint64(end)
			o.confirm(s, dest.ID(), made)
			delete(o.strays.lost, permitKey{id, dest.ID()})
			switch {
			case d == dangerMove:
				o.env.Metrics.Moved.Inc()
			case d == dangerEmpty:
				o.env.Metrics.Emptied.Inc()
			default:
				o.env.Metrics.Repaired.Inc()
			}
			o.env.Metrics.CopiedBytes.Add(float64(end))
			o.log.Info("replica made again", "segment", id, "store", dest.ID())
		})
	})
}
