package access

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Replicas that the owner's table doesn't have, or has otherwise: left by abandoned epochs and checkpoints, by a
// store that was away while a segment was retired, shipped twice because a store was down, damaged while nobody
// looked. Stores report all that they have with every fence; the owner asks its own site's after it begins to
// serve and now and then, the others' with every session of shipping and, more rarely, while one lasts. Nothing goes but by a committed record that
// names the very replica that was reported (R13).

// strayEvery is how often stores are asked what they have: what is left over costs space and nothing else.
const strayEvery = 10 * time.Minute

// strayEveryFar is the same for stores of other sites. A session of shipping may last for months, and what is left over
// there during it would stay as long. With ten thousand volumes on three sites that is a question each 90 ms in all.
const strayEveryFar = time.Hour

// leavingEvery is how often a store is asked that is being emptied and has something still: somebody waits for it.
const leavingEvery = 10 * time.Second

// strayState is what the owner's loop keeps about strays.
type strayState struct {
	answers map[ident.StoreID]*wire.FenceReply // of the takeover, until the first look
	starts  map[ident.Epoch]wire.EpochStart    // of former epochs, as replicas show them
	due     time.Duration                      // next look at the stores of this site
	farDue  time.Duration                      // and of the others; 0: not set yet
	asking  bool
	leaving map[ident.StoreID]time.Duration // when stores that are being emptied were asked
	found   map[permitKey]stray
	heard   map[ident.StoreID]bool // stores that have said what they have
	shown   int                    // of found, as the metric has it
	lost    map[permitKey]bool     // set aside by this owner's word, to be made again

	// What a store says of a replica is as old as the question. moment counts what this owner has learned of replicas
	// since it began; what was learned after the question was asked is not taken back by the answer.
	moment    uint64
	tookOver  uint64 // the moment of answers
	questions int    // under way
	went      map[permitKey]wentAt
}

// wentAt says that a store has confirmed that a replica is gone, and when.
type wentAt struct {
	made   uint64
	moment uint64
}

// asks begins a question about what a store has, and gives the moment of the answer.
func (x *strayState) asks() uint64 {
	x.questions++
	return x.moment
}

// asked ends one.
func (x *strayState) asked() {
	if x.questions--; x.questions == 0 && x.answers == nil {
		clear(x.went)
	}
}

// gone notes that a replica is, so that no older answer brings it back.
func (x *strayState) gone(k permitKey, made uint64) {
	x.moment++
	if x.questions == 0 && x.answers == nil {
		return
	}
	if x.went == nil {
		x.went = map[permitKey]wentAt{}
	}
	x.went[k] = wentAt{made, x.moment}
}

// uncounted reports that a replica is permitted to go, or has gone: from the permit on no answer, however long it was on its way, has it count (R13).
func (o *Owner) uncounted(s *segment, store ident.StoreID, made uint64) bool {
	if p, pending := o.permits[permitKey{s.id, store}]; pending && p.Made == made && !p.Replace {
		return true
	}
	return slices.Contains(s.gone, goneReplica{store, made})
}

// hasGone takes a replica off the table that was permitted to go.
func (s *segment) hasGone(store ident.StoreID, made uint64) {
	s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.store == store && h.made == made })
	if g := (goneReplica{store, made}); made != 0 && !slices.Contains(s.gone, g) {
		s.gone = append(s.gone, g)
	}
}

// answered gives what a store has said of a segment at the takeover, as long as that is kept.
func (x *strayState) answered(store ident.StoreID, id ident.SegmentID) *wire.Replica {
	if a := x.answers[store]; a != nil {
		if i := slices.IndexFunc(a.Replicas, func(r wire.Replica) bool { return r.Segment == id }); i >= 0 {
			return &a.Replicas[i]
		}
	}
	return nil
}

// learnStarts notes the epoch-starts that replicas show.
func (x *strayState) learnStarts(replicas []wire.Replica) {
	if x.starts == nil {
		x.starts = map[ident.Epoch]wire.EpochStart{}
	}
	for i := range replicas {
		if s := replicas[i].Start; s.At.Seq != 0 {
			x.starts[s.At.Epoch] = s
		}
	}
}

// stray is a replica of a segment that is not in the table.
type stray struct {
	wire.Replica
	store ident.StoreID
}

// lookForStrays asks the stores of this site when it is time to.
func (o *Owner) lookForStrays(now time.Duration) {
	x := &o.strays
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	if x.answers != nil {
		answers := x.answers
		for store, a := range answers {
			o.reported(store, a.Replicas, x.tookOver)
		}
		x.answers = nil
	}
	o.askLeaving(now)
	if x.farDue == 0 { // what they have was, or will be, heard when shipping to them begins
		x.farDue = now + strayEveryFar - o.phase(strayEveryFar/2)
	}
	near, far := now >= x.due, now >= x.farDue
	if !near && !far || x.asking {
		return
	}
	x.asking = true
	ids := map[ident.StoreID]bool{}
	if near {
		x.due = now + strayEvery - o.phase(strayEvery/4)
		for _, m := range o.members {
			ids[m.Store] = true
		}
		for _, id := range o.env.Stores.Core(o.env.Site) {
			ids[id] = true
		}
	}
	if far {
		x.farDue = now + strayEveryFar - o.phase(strayEveryFar/4)
		for _, site := range o.remoteSites() {
			for _, id := range o.env.Stores.Core(site) {
				ids[id] = true
			}
		}
	}
	o.goBackground(func() {
		for id := range ids {
			o.askWhatIsThere(id)
		}
		o.call(func() { o.strays.asking = false })
	})
}

// showStrays has the metric say how many are known of; none once the owner has stopped.
func (o *Owner) showStrays() {
	n := len(o.strays.found)
	if o.stopErr != nil {
		n = 0
	}
	o.env.Metrics.Strays.Add(float64(n - o.strays.shown))
	o.strays.shown = n
}

// phase is a part of d that differs between journals: thousands that were taken over at once do not ask at once for ever.
func (o *Owner) phase(d time.Duration) time.Duration {
	return time.Duration(binary.LittleEndian.Uint64(o.journalID[:]) % uint64(d))
}

// askLeaving asks the stores that are being emptied, at any site: what they have that is in no table would keep them from
// becoming empty, and other sites' stores are asked rarely otherwise.
func (o *Owner) askLeaving(now time.Duration) {
	x := &o.strays
	for _, site := range o.state.Sites {
		for _, id := range o.env.Stores.Core(site) {
			if i := o.env.about(id); !i.Leaving || i.Lost || i.Known && i.Replicas == 0 {
				continue
			}
			if at, asked := x.leaving[id]; asked && now-at < leavingEvery {
				continue
			}
			if x.leaving == nil {
				x.leaving = map[ident.StoreID]time.Duration{}
			}
			x.leaving[id] = now
			o.goBackground(func() { o.askWhatIsThere(id) })
		}
	}
}

// askWhatIsThere asks one store. A fence, at the epoch that the owner has, is the question: who has answered it
// obeys no older owner's permits any more.
func (o *Owner) askWhatIsThere(id ident.StoreID) {
	st, ok := o.env.Stores.Store(id)
	if !ok || !o.env.Stores.Up(id) {
		return
	}
	ctx, cancel := context.WithTimeout(o.ctx, 2*o.env.Limits.SyncTimeout)
	defer cancel()
	var asked uint64
	o.ask(func() { asked = o.strays.asks() })
	r, err := st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
	o.call(func() {
		if err == nil {
			o.reported(id, r.Replicas, asked)
		}
		o.strays.asked()
	})
}

// reported compares what a store has with the table; asked is when it was asked.
func (o *Owner) reported(store ident.StoreID, replicas []wire.Replica, asked uint64) {
	if o.stopErr != nil || o.env.about(store).Lost {
		return
	}
	x := &o.strays
	if x.found == nil {
		x.found, x.heard = map[permitKey]stray{}, map[ident.StoreID]bool{}
	}
	x.heard[store] = true
	for k := range x.found {
		if k.store == store {
			delete(x.found, k)
		}
	}
	o.forksSaid(store, replicas, asked)
	x.learnStarts(replicas)
	for i := range replicas {
		r := &replicas[i]
		k := permitKey{r.Segment, store}
		if p, pending := o.permits[k]; pending && p.Made == r.Made && !p.Replace {
			continue // from the permit on nobody counts it
		}
		if w, ok := x.went[k]; ok && w.made == r.Made && w.moment > asked {
			continue
		}
		s := o.segs[r.Segment]
		if s == nil {
			x.found[k] = stray{*r, store}
			continue
		}
		o.reportedOf(s, store, r, asked)
	}
	o.lacksRetired(store, replicas, asked)
}

// lacksRetired takes what is retired, and what a store does not have, off the table: it has let it go, and only its word got lost.
// The store is not told again before its site has the retirement, and a site that is compared anew would be shipped the segment
// on the way there, out of that very store.
func (o *Owner) lacksRetired(store ident.StoreID, replicas []wire.Replica, asked uint64) {
	if len(o.cp.retired) == 0 {
		return
	}
	has := make(map[ident.SegmentID]bool, len(replicas))
	for i := range replicas {
		has[replicas[i].Segment] = true
	}
	for _, r := range o.cp.retired {
		for _, id := range r.segments {
			s := o.segs[id]
			if s == nil || has[id] || o.repair.busy[id] {
				continue // what is being copied is there in a moment
			}
			if h := s.holder(store); h != nil && h.moment <= asked {
				o.strays.gone(permitKey{id, store}, h.made)
				s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.store == store })
			}
		}
	}
}

// reportedOf compares a replica of a segment that is in the table. Within an epoch a seq names one record, and a segment is
// one epoch's: so its replicas differ in nothing but where they end.
func (o *Owner) reportedOf(s *segment, store ident.StoreID, r *wire.Replica, asked uint64) {
	if !s.sealed || s.slot == 0 {
		return // the writer follows it
	}
	h := s.holder(store)
	if h != nil && (h.moment > asked || h.going && h.made == r.Made) {
		return
	}
	o.learnEnd(s, r)
	same := r.State == wire.ReplicaSealed && r.End == s.end && r.Last == s.last
	enter := func(x holder) {
		x.store, x.made, x.moment = store, r.Made, o.strays.moment
		// A store that was asked since has it again: a power cut may have taken the deletion.
		s.gone = slices.DeleteFunc(s.gone, func(g goneReplica) bool { return g == goneReplica{store, r.Made} })
		if h != nil {
			*h = x
		} else {
			s.holders = append(s.holders, x)
		}
	}
	switch {
	case same && (h == nil || h.fork || !h.stable && !h.bad || h.made != r.Made):
		// One that was copied elsewhere while its store was away, or that ends where it should by now. It counts again, and
		// then one may be too many.
		enter(holder{stable: true})
	case same:
	case r.State == wire.ReplicaSealed && r.Last.Seq > s.last.Seq && o.followed(r.Last):
		// Its store was told that more was committed than the takeover heard of: the rest of it is in segments behind this
		// one. It has all of this one, and is cut once nothing can depend on the rest: see cutLonger.
		if h == nil || h.fork || h.made != r.Made || !h.bad && h.over != r.Last {
			o.log.Info("a store has more of a segment than the history: the rest is in other segments", "segment", s.id, "store", store, "to", r.Last.Seq, "end", s.last.Seq)
			enter(holder{stable: true, over: r.Last})
		}
	case r.State == wire.ReplicaSealed && r.Last.Seq > s.last.Seq:
		// It has what is not of this history. Its store sets that aside when it is asked to end where the segment does; it
		// counts again then.
		if h == nil || h.stable || h.bad && h.made != r.Made {
			enter(holder{})
		}
	case r.State == wire.ReplicaSealed && r.Last.Seq == s.last.Seq:
		if h == nil || !h.strange {
			o.log.Error("a store's copy is not ours, and nothing explains it: it is left alone", "segment", s.id, "store", store, "site", o.env.Stores.Site(store), "last", r.Last, "ours", s.last)
		}
		if h != nil && len(s.good()) > 1 {
			h.bad, h.strange = true, true
		}
	case r.State == wire.ReplicaSealed:
		// Sealed too early: by an owner that put the rest elsewhere, where it is no more.
		if !o.repair.busy[s.id] {
			enter(holder{bad: true})
		}
	case r.State == wire.ReplicaFork:
		// Its store had no room to set it aside under its own name.
		if !o.repair.busy[s.id] {
			enter(holder{bad: true, fork: true})
		}
	case r.State == wire.ReplicaDamaged:
		if o.repair.busy[s.id] || h == nil && o.strays.lost[permitKey{s.id, store}] {
			return // it is being made again, or will be
		}
		if h == nil {
			o.log.Error("a store has a damaged replica", "segment", s.id, "store", store)
		}
		enter(holder{bad: true})
	case h == nil:
		o.reportedPart(s, store, r)
	case h.made != r.Made:
		h.made = r.Made
		h.stable, h.going = false, false
	}
}

// followed reports that a record of a former epoch is in the history that this one follows, as far as the epoch-starts
// in between are known.
func (o *Owner) followed(last ident.Position) bool {
	start := o.w.Start()
	for last.Epoch.Less(start.Before.Epoch) {
		next, known := o.startOf(start.Before.Epoch)
		if !known || !next.At.Epoch.Less(start.At.Epoch) {
			return false
		}
		start = next
	}
	return last.Epoch == start.Before.Epoch && (last.Seq < start.Before.Seq || last == start.Before)
}

// startOf is the start of an epoch of this history, as replicas have shown it since, or before at the takeover.
func (o *Owner) startOf(epoch ident.Epoch) (s wire.EpochStart, known bool) {
	if s, known = o.strays.starts[epoch]; !known {
		s, known = o.recovered.Starts[epoch]
	}
	return s, known
}

// cutLater has a replica end where its segment does. What it has behind that is held to be ours by position and hash
// first: the record at over is read from the segment that has it in this history.
func (o *Owner) cutLater(s *segment, store ident.StoreID, over ident.Position, made uint64) {
	o.repair.running++
	o.repair.busy[s.id] = true
	done := func() {
		o.repair.running--
		delete(o.repair.busy, s.id)
	}
	o.compare(over, func(ours ident.Position, err error) {
		o.call(func() {
			h := s.holder(store)
			switch {
			case o.stopErr != nil || h == nil || h.made != made || h.over != over || h.bad || h.going:
				done()
			case err != nil:
				done()
				o.log.Info("a replica that is longer than its segment can't be compared", "segment", s.id, "store", store, "err", err)
				o.repair.failed[s.id] = repairPause{until: time.Duration(o.env.Clock()) + repairPauseMax}
			case ours != over:
				done()
				o.env.Metrics.ShipMismatch.Inc()
				o.log.Error("a store's copy is not ours, and nothing explains it: it is left alone", "segment", s.id, "store", store, "site", o.env.Stores.Site(store), "last", over, "ours", ours)
				h.bad, h.strange, h.over = true, true, ident.Position{}
			default:
				o.reseal(s, store, true, done)
			}
		})
	})
}

// compare reads which record this history has in the place of one, in the background; it gives the one itself where that is in no segment
// any more: it was retired since, a checkpoint covers it, and nobody has it to compare with. It runs in the loop.
func (o *Owner) compare(at ident.Position, then func(ours ident.Position, err error)) {
	var in ident.SegmentID
	if i, _ := slices.BinarySearchFunc(o.order, at.Seq, func(s *segment, seq ident.Seq) int { return cmp.Compare(s.last.Seq, seq) }); i < len(o.order) && o.order[i].before.Seq < at.Seq {
		in = o.order[i].id
	}
	o.goBackground(func() {
		if in == (ident.SegmentID{}) {
			then(at, nil)
		} else {
			then(o.positionIn(in, at.Seq))
		}
	})
}

// positionIn reads the position of a record out of a segment.
func (o *Owner) positionIn(id ident.SegmentID, seq ident.Seq) (p ident.Position, err error) {
	err = wire.Errorf(wire.CodeAbsent, "no replica of segment %s can be read", id)
	for _, st := range o.holdersOf(id) {
		x, e := readIndex(o.ctx, st, id)
		if e == nil && (seq <= x.Before.Seq || seq-x.Before.Seq > ident.Seq(len(x.Entries))) {
			e = wire.Errorf(wire.CodeAbsent, "segment %s at %s has no record %d", id, st.ID(), seq)
		}
		if e != nil {
			err = e
			continue
		}
		rec, _, e := o.readOne(st, id, x.Entries[seq-x.Before.Seq-1].Offset)
		if e == nil {
			return rec.Position(), nil
		}
		err = e
	}
	return p, err
}

// reportedPart deals with a part of a segment at a store that is not known to have any.
func (o *Owner) reportedPart(s *segment, store ident.StoreID, r *wire.Replica) {
	if o.repair.busy[s.id] || r.Last.Seq > s.last.Seq && (o.gaveUp(r.Segment.Epoch, r.Last.Seq) || r.Segment.Epoch.Less(o.epoch) &&
		!o.provenSince(r.Segment.Epoch) && !o.superseded(r.Segment.Epoch, r.Last.Seq)) {
		return // being copied; or it has more, which may be part of a fork
	}
	site, enough := o.env.Stores.Site(store), 1
	if site == o.env.Site {
		enough = 2
	}
	switch {
	case o.goodAt(s, site) >= enough:
		// Its store went away, and the rest went elsewhere.
		s.holders = append(s.holders, holder{store: store, bad: true, made: r.Made})
	case site == o.env.Site && (r.State == wire.ReplicaOpen || r.State == wire.ReplicaShort):
		s.holders = append(s.holders, holder{store: store, made: r.Made}) // one of the pair: it may be whole
	}
}

// badReplica names a replica that is not what it should be and that is not needed: the segment is on two servers
// without it, in a way that every takeover finds (R2: two members of the ensemble, unless a checkpoint covers it).
func (o *Owner) badReplica(s *segment) (p journal.Permit, ok bool) {
	if len(o.unsettled) > 0 || !slices.ContainsFunc(s.holders, func(h holder) bool { return h.bad && !h.going && !h.fork && !h.strange && h.made != 0 }) {
		return p, false
	}
	good := s.good()
	if len(good) < 2 {
		return p, false
	}
	members := 0
	for _, g := range good {
		for _, m := range o.members {
			if m.Store == g.store {
				members++
			}
		}
	}
	if members < 2 && !o.covered(s) {
		return p, false
	}
	for _, h := range s.holders {
		if h.bad && !h.going && !h.fork && !h.strange && h.made != 0 {
			p = journal.Permit{Segment: s.id, Store: h.store, Made: h.made}
			for _, g := range good {
				p.Remain = append(p.Remain, g.store)
			}
			return p, true
		}
	}
	return p, false
}

// tooMany names one replica of a segment that a checkpoint covers where a site has more than it should: two at
// home, one elsewhere; or one at a store that is being emptied, once there are enough without it.
func (o *Owner) tooMany(s *segment) (p journal.Permit, ok bool) {
	if !o.covered(s) || len(s.holders) < 2 {
		return p, false
	}
	for _, site := range o.state.Sites {
		keep := 1
		if site == o.env.Site {
			keep = 2
		}
		if o.leavingAt(s, site) {
			_, hosts := o.env.places(site)
			keep = min(keep, hosts)
		} else if o.env.Limits.KeepBothLocal {
			continue
		}
		if p, ok = o.leastWanted(s, site, keep); ok && len(p.Remain) >= 2 {
			return p, true
		}
	}
	return p, false
}

// leavingAt reports that a good replica at a site is at a store that is being emptied.
func (o *Owner) leavingAt(s *segment, site ident.SiteID) bool {
	return slices.ContainsFunc(s.holders, func(h holder) bool {
		return h.stable && !h.going && !h.bad && o.env.Stores.Site(h.store) == site && o.env.about(h.store).Leaving
	})
}

// permitStrays adds those strays that may go.
func (o *Owner) permitStrays(permits []journal.Permit) []journal.Permit {
	x := &o.strays
	if len(x.found) == 0 {
		return permits
	}
	pending := map[ident.SegmentID]bool{}
	o.w.Pending(func(ws *journal.Segment, _ []int) { pending[ws.ID] = true })
	for k, r := range x.found {
		if _, permitted := o.permits[k]; permitted || len(permits) >= permitsMax {
			continue
		}
		switch {
		case o.segs[k.segment] != nil || pending[k.segment]:
			delete(x.found, k) // it was about to be entered when it was reported
		case r.Made != 0 && o.strayMayGo(&r):
			permits = append(permits, journal.Permit{Segment: k.segment, Store: k.store, Made: r.Made})
			delete(x.found, k)
		}
	}
	return permits
}

// strayMayGo says whether a replica that is not in the table is known to hold nothing that anybody needs. What
// can't be known is kept: it may be a fork.
func (o *Owner) strayMayGo(r *stray) bool {
	id := r.Segment
	switch {
	case r.State == wire.ReplicaFork:
		return o.forgotten(id.Epoch, r.Last.Seq) || id.IsFork() && o.superseded(id.Epoch, r.Last.Seq) || o.isOurs(r)
	case o.epoch.Less(id.Epoch) || o.epoch.Conflicts(id.Epoch) || o.pinned(id):
		return false
	case r.End == 0 && id.Epoch.Less(o.epoch):
		// Opened, and nothing of it is left, if ever there was anything. This owner has said where the history ends, and
		// once it has everything on two stores that is the word which R4 wants: with the replica goes the doubt, which
		// would else make no takeover proven any more.
		return len(o.unsettled) == 0
	case !id.IsCheckpoint() && o.gaveUp(id.Epoch, r.Last.Seq):
		return false // it may be part of a fork
	case id.Epoch == o.epoch:
		// What this owner itself has given up: a segment without a committed record, an abandoned checkpoint.
		return !id.IsCheckpoint() || !o.cp.running
	}
	// At another site the record that explains it must be in the site's own prefix.
	site := o.env.Stores.Site(r.store)
	after := func(seq ident.Seq) bool { return site == o.env.Site || o.siteHas(site, seq) }
	covered := o.cp.lastSeq
	switch {
	case id.IsCheckpoint():
		return after(max(covered, 1)) && (covered > 0 || o.proven)
	case (r.State == wire.ReplicaSealed || o.followed(r.Last)) && r.Last.Seq <= covered && after(covered):
		// What is sealed was committed, and what is below a committed checkpoint and not in its table was retired. So was
		// what is part of the history by epoch and number: another segment had it.
		return true
	}
	// An abandoned epoch's: not part of the history that this epoch goes on from (R14).
	return o.provenSince(id.Epoch) && after(o.w.Start().At.Seq)
}

// provenSince reports that every epoch-start behind an epoch's records, up to this owner's, says that nothing was
// missing: what this owner's history lacks of that epoch was never committed.
func (o *Owner) provenSince(epoch ident.Epoch) bool {
	start := o.w.Start()
	for {
		if !start.Proven {
			return false
		}
		before := start.Before.Epoch
		if !epoch.Less(before) {
			return true
		}
		next, known := o.startOf(before)
		if !known || !next.At.Epoch.Less(start.At.Epoch) {
			return false
		}
		start = next
	}
}
