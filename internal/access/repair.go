package access

import (
	"context"
	"errors"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What becomes of replicas: dropped when n-1 other sites hold a segment (R5, R13), made again when a holder
// stays away, retired when nothing needs a segment any more. All of it is decided in the owner's loop.

// pendingPermit is a permit that is committed or under way and whose store has not confirmed.
type pendingPermit struct {
	journal.Permit
	seq ident.Seq
}

const (
	permitsMax     = 256 // in one record
	repairsRunning = 2   // copies at a time: repair does not starve writes
)

// remoteSites are the other sites that hold copies.
func (o *Owner) remoteSites() []ident.SiteID {
	return slices.DeleteFunc(slices.Clone(o.state.Sites), func(s ident.SiteID) bool { return s == o.env.Site })
}

// dropSome permits one of the two local replicas of segments that all other sites hold stably and a committed
// checkpoint covers, one replica of a segment at a time (R5).
func (o *Owner) dropSome() {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	o.retireSome()
	o.dropStrays()
	o.sendDrops()
	remote := o.remoteSites()
	if len(remote) == 0 || o.env.Limits.KeepBothLocal {
		return
	}
	var permits []journal.Permit
	for _, s := range o.segs {
		if len(permits) == permitsMax {
			break
		}
		if p, ok := o.mayDrop(s, remote); ok {
			permits = append(permits, p)
		}
	}
	if len(permits) == 0 {
		return
	}
	slices.SortFunc(permits, func(a, b journal.Permit) int { return a.Segment.Compare(b.Segment) })
	for _, p := range permits {
		o.permits[p.Segment] = pendingPermit{Permit: p}
	}
	o.queueOwn(journal.KindPermit, journal.AppendPermits(nil, permits), func(seq ident.Seq) {
		for _, p := range permits {
			o.permits[p.Segment] = pendingPermit{Permit: p, seq: seq}
			if s := o.segs[p.Segment]; s != nil {
				if h := s.holder(p.Store); h != nil {
					h.going = true
				}
			}
		}
		o.sendDrops()
	})
}

// mayDrop says which local replica of a segment may go: never this node's own if another has one.
func (o *Owner) mayDrop(s *segment, remote []ident.SiteID) (p journal.Permit, ok bool) {
	if !s.sealed || s.slot == 0 || !s.id.IsCheckpoint() && s.last.Seq > o.cp.lastSeq {
		return p, false
	}
	if _, pending := o.permits[s.id]; pending {
		return p, false
	}
	for _, site := range remote {
		if !slices.ContainsFunc(s.holders, func(h holder) bool { return h.stable && !h.going && !h.bad && o.env.Stores.Site(h.store) == site }) {
			return p, false
		}
	}
	var local []ident.StoreID
	for _, h := range s.holders {
		if h.stable && !h.going && !h.bad {
			if o.env.Stores.Site(h.store) == o.env.Site {
				local = append(local, h.store)
			} else {
				p.Remain = append(p.Remain, h.store)
			}
		}
	}
	if len(local) < 2 {
		return p, false
	}
	slices.SortFunc(local, func(a, b ident.StoreID) int {
		if la, lb := o.env.Stores.Local(a), o.env.Stores.Local(b); la != lb {
			if la {
				return 1
			}
			return -1
		}
		return a.Compare(b)
	})
	p.Segment, p.Store = s.id, local[0]
	p.Remain = append(p.Remain, local[1:]...)
	return p, true
}

// sendDrops tells stores of committed permits until they confirm. The permit, and with it the announcement of
// the checkpoint that allows it, is stable first: a power cut takes back what is not, but no dropped replica.
func (o *Owner) sendDrops() {
	stable := o.w.Stable().Seq
	for id, p := range o.permits {
		if p.seq == 0 || p.seq > stable || !o.env.Stores.Up(p.Store) {
			continue
		}
		s := o.segs[id]
		if s == nil || s.holder(p.Store) == nil {
			delete(o.permits, id)
			continue
		}
		o.drop(p.Store, id, p.seq, func() {
			delete(o.permits, id)
			s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.store == p.Store })
			o.env.Metrics.Dropped.Inc()
		})
	}
}

// drop sends a permitted drop; then runs in the loop once the store has confirmed.
func (o *Owner) drop(store ident.StoreID, id ident.SegmentID, permit ident.Seq, then func()) {
	st, ok := o.env.Stores.Store(store)
	if !ok {
		return
	}
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		_, err := st.Drop(ctx, &wire.Drop{Epoch: o.epoch, Segment: id, Permit: permit})
		if err != nil {
			if o.ctx.Err() == nil && !errors.Is(err, wire.ErrUnreached) {
				o.log.Warn("replica not dropped", "segment", id, "store", store, "err", err)
			}
			return
		}
		o.call(then)
	})
}

// retireSome retires segments that neither the last checkpoint nor the replay from it needs, at any site: each
// must have a prefix beyond that checkpoint and hold the checkpoint itself (R12, R13).
func (o *Owner) retireSome() {
	var retire []ident.SegmentID
	covered := o.cp.lastSeq
	complete := true
	remote := o.remoteSites()
	for _, s := range o.ships {
		s.mu.Lock()
		covered = min(covered, s.mu.stable)
		s.mu.Unlock()
	}
	for id, s := range o.segs {
		if !id.IsCheckpoint() || s.slot == 0 {
			continue
		}
		if seg, ok := o.m.Segment(s.slot); !ok || seg.Live == 0 {
			continue
		}
		for _, site := range remote {
			if !slices.ContainsFunc(s.holders, func(h holder) bool { return h.stable && !h.bad && !h.going && o.env.Stores.Site(h.store) == site }) {
				complete = false
			}
		}
	}
	if complete && len(o.ships) == len(remote) {
		for _, d := range o.m.DeadSegments() {
			s := o.segs[d.Segment]
			if d.At.Seq <= covered && s != nil && s.last.Seq <= covered && len(retire) < permitsMax {
				retire = append(retire, d.Segment)
			}
		}
	}
	if len(retire) > 0 {
		for _, id := range retire {
			if err := o.m.Retire(o.segs[id].slot); err != nil {
				o.log.Error("retire", "segment", id, "err", err)
				return
			}
		}
		o.queueOwn(journal.KindRetire, journal.AppendRetired(nil, retire), func(seq ident.Seq) {
			o.cp.retired = append(o.cp.retired, retiredAt{retire, seq})
		})
	}
	o.dropRetired()
}

// dropRetired has the replicas of retired segments dropped: at home at once, at another site when the
// retirement is in its own prefix (R13). As with permits, once the retirement is stable.
func (o *Owner) dropRetired() {
	stable := o.w.Stable().Seq
	kept := o.cp.retired[:0]
	for _, r := range o.cp.retired {
		left := r.segments[:0]
		for _, id := range r.segments {
			s := o.segs[id]
			if s == nil {
				continue
			}
			if r.seq > stable {
				left = append(left, id)
				continue
			}
			s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.fork }) // kept: it has more than what is retired
			for _, h := range s.holders {
				site := o.env.Stores.Site(h.store)
				if site != o.env.Site && !o.siteHas(site, r.seq) || !o.env.Stores.Up(h.store) {
					continue
				}
				o.drop(h.store, id, r.seq, func() {
					s.holders = slices.DeleteFunc(s.holders, func(x holder) bool { return x.store == h.store })
				})
			}
			if len(s.holders) > 0 {
				left = append(left, id)
				continue
			}
			if err := o.m.Remove(s.slot); err == nil {
				delete(o.segs, id)
				delete(o.permits, id)
				o.order = slices.DeleteFunc(o.order, func(x *segment) bool { return x == s })
				o.env.Metrics.Retired.Inc()
			} else {
				left = append(left, id)
			}
		}
		if len(left) > 0 {
			kept = append(kept, retiredAt{left, r.seq})
		}
	}
	o.cp.retired = kept
	// Checkpoint segments that no checkpoint needs: left by an owner that died while it wrote them.
	orphans := o.cp.orphans
	o.cp.orphans = nil
	for _, id := range orphans {
		if s := o.segs[id]; s != nil {
			for _, h := range s.holders {
				o.drop(h.store, id, 0, func() {})
			}
			delete(o.segs, id)
		}
	}
}

func (o *Owner) siteHas(site ident.SiteID, seq ident.Seq) bool {
	for _, s := range o.ships {
		if s.site == site {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.mu.stable >= seq
		}
	}
	return false
}

// stray is a replica at another site of a segment that the owner's table doesn't have.
type stray struct {
	site  ident.SiteID
	store ident.StoreID
	id    ident.SegmentID
	last  ident.Seq
}

// noteStrays remembers what a site holds beyond the table: segments that were retired while the site, or the
// owner, was away. Only sealed ones are of interest; anything else may be a fork.
func (o *Owner) noteStrays(site ident.SiteID, there map[ident.SegmentID][]have) {
	var list []stray
	for id, replicas := range there {
		for _, h := range replicas {
			if h.state == wire.ReplicaSealed {
				list = append(list, stray{site, h.store.ID(), id, h.last.Seq})
			}
		}
	}
	o.call(func() {
		o.strays = slices.DeleteFunc(o.strays, func(x stray) bool { return x.site == site })
		for _, x := range list {
			if o.segs[x.id] == nil {
				o.strays = append(o.strays, x)
			}
		}
	})
}

// dropStrays has those dropped that are known to be retired: what is sealed is committed, and a committed
// segment below a committed checkpoint that is not in that checkpoint's table was taken out of it by a retire
// record. The site must have that record in its own prefix (R13).
func (o *Owner) dropStrays() {
	covered := o.cp.lastSeq
	if covered == 0 || len(o.strays) == 0 {
		return
	}
	kept := o.strays[:0]
	for _, x := range o.strays {
		switch {
		case o.segs[x.id] != nil:
		case o.gaveUp(x.id.Epoch, x.last):
			kept = append(kept, x) // it may be part of a fork
		case x.id.Epoch.Less(o.epoch) && (x.id.IsCheckpoint() || x.last <= covered) && o.siteHas(x.site, covered) && o.env.Stores.Up(x.store):
			o.drop(x.store, x.id, covered, func() { o.env.Metrics.Retired.Inc() })
		default:
			kept = append(kept, x)
		}
	}
	o.strays = kept
}

// repairState counts copies under way and remembers since when stores are away.
type repairState struct {
	running int
	away    map[ident.StoreID]time.Duration
	busy    map[ident.SegmentID]bool
	// Segments with fewer copies than they should have, and their bytes.
	wanting      int
	wantingBytes uint64
}

// repairSome looks for segments with too few copies at home and has them copied to another store of the site,
// where there is one; the other sites are the ships' business.
func (o *Owner) repairSome(now time.Duration) {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	r := &o.repair
	if r.away == nil {
		r.away, r.busy = map[ident.StoreID]time.Duration{}, map[ident.SegmentID]bool{}
	}
	r.wanting, r.wantingBytes = 0, 0
	remote := o.remoteSites()
	seen := map[ident.StoreID]bool{}
	pending := map[ident.SegmentID]bool{}
	o.w.Pending(func(ws *journal.Segment, _ []int) { pending[ws.ID] = true })
	for _, s := range o.segs {
		if !s.sealed || s.slot == 0 || pending[s.id] || o.unsettled[s.id] != nil {
			continue // those that are pending are the writer's to settle, and settlePast is faster
		}
		home, remoteSites, resealing := 0, 0, false
		for i := range s.holders {
			h := &s.holders[i]
			up := o.env.Stores.Up(h.store)
			if !seen[h.store] {
				seen[h.store] = true
				if up {
					delete(r.away, h.store)
				} else if _, ok := r.away[h.store]; !ok {
					r.away[h.store] = now
				}
			}
			since, away := r.away[h.store]
			if h.bad || h.going || away && now-since > o.env.Limits.RepairGrace {
				continue
			}
			if !h.stable {
				if up && r.running < repairsRunning && !r.busy[s.id] {
					resealing = true
					r.running++
					r.busy[s.id] = true
					o.resealLater(s, h.store)
				}
			}
			if o.env.Stores.Site(h.store) == o.env.Site {
				home++
			} else if h.stable {
				remoteSites++
			}
		}
		want := 2
		if len(remote) > 0 && remoteSites >= len(remote) {
			want = 1
		}
		if len(o.env.Stores.Core(o.env.Site)) == 0 {
			want = 0 // a site of access servers only: its copies are at other sites
		}
		if home >= want {
			continue
		}
		r.wanting++
		r.wantingBytes += uint64(s.end)
		if resealing || r.running >= repairsRunning || r.busy[s.id] {
			continue
		}
		o.copyAgain(s)
	}
}

func (o *Owner) resealLater(s *segment, store ident.StoreID) {
	st, ok := o.env.Stores.Store(store)
	id, end, last, start := s.id, s.end, s.last, o.w.Start()
	o.goBackground(func() {
		err := error(wire.Errorf(wire.CodeUnreached, "not registered"))
		if ok {
			ctx, cancel := context.WithTimeout(o.ctx, 4*o.env.Limits.SyncTimeout)
			_, err = st.Seal(ctx, &wire.Seal{Epoch: o.epoch, Segment: id, End: end, Last: last, Start: start})
			cancel()
		}
		o.call(func() {
			o.repair.running--
			delete(o.repair.busy, id)
			if err == nil {
				s.confirm(store)
			} else if !errors.Is(err, wire.ErrUnreached) && o.stopErr == nil {
				o.markBad(id, store, err)
			}
		})
	})
}

// copyAgain makes a replica at a store of the site that has none, from whichever is nearest.
func (o *Owner) copyAgain(s *segment) {
	from := o.readFrom(s)
	if from == nil || !o.env.Stores.Up(from.ID()) {
		return
	}
	var dest journal.Store
	for _, id := range o.env.Stores.Core(o.env.Site) {
		h := s.holder(id)
		if o.fit(id) && (h == nil || h.bad && !h.fork) && id != from.ID() {
			dest, _ = o.env.Stores.Store(id)
			if h == nil {
				break
			}
		}
	}
	if dest != nil {
		o.copyTo(s, from, dest)
	}
}

// fit reports that a store can be reached and has not failed lately.
func (o *Owner) fit(id ident.StoreID) bool { return o.env.Stores.Up(id) && o.env.Health.Usable(id) }

// pastStable forgets the segments of former epochs that two servers hold stably by now, and says whether those
// are all.
func (o *Owner) pastStable() bool {
	for id, s := range o.unsettled {
		n := 0
		for _, h := range s.holders {
			if h.stable && !h.bad && !h.going {
				n++
			}
		}
		if n >= 2 {
			delete(o.unsettled, id)
		}
	}
	return len(o.unsettled) == 0
}

// settlePast makes what a former epoch left unstable stable on two servers, on another one at once where a
// holder is away: flushes wait for it (R8).
func (o *Owner) settlePast() {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	r := &o.repair
	if r.busy == nil {
		r.away, r.busy = map[ident.StoreID]time.Duration{}, map[ident.SegmentID]bool{}
	}
	for id, s := range o.unsettled {
		if r.busy[id] {
			continue
		}
		var from, dest journal.Store
		good, sealing := 0, false
		for _, h := range s.holders {
			if h.bad || h.going || !o.fit(h.store) {
				continue
			}
			good++
			if !h.stable {
				sealing = true
				r.running++
				r.busy[id] = true
				o.resealLater(s, h.store)
				break
			}
			from, _ = o.env.Stores.Store(h.store)
		}
		if sealing || good >= 2 || from == nil {
			continue
		}
		for _, home := range []bool{true, false} {
			for i, m := range o.members {
				h := s.holder(m.Store)
				if dest == nil && m.Home == home && o.fit(m.Store) && (h == nil || h.bad && !h.fork) {
					dest = o.stores[i]
				}
			}
		}
		if dest != nil {
			o.copyTo(s, from, dest)
		}
	}
}

// copyTo makes a replica at dest from one that is whole.
func (o *Owner) copyTo(s *segment, from, dest journal.Store) {
	o.repair.running++
	o.repair.busy[s.id] = true
	id, end, last, start := s.id, s.end, s.last, o.w.Start()
	again := s.holder(dest.ID()) != nil
	o.goBackground(func() {
		if again {
			// What is there is bad: it goes first. Another good replica exists, it is the source.
			ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
			_, _ = dest.Drop(ctx, &wire.Drop{Epoch: o.epoch, Segment: id})
			cancel()
		}
		err := o.copySegment(from, dest, id, end, last, start)
		o.call(func() {
			o.repair.running--
			delete(o.repair.busy, id)
			if err != nil {
				if o.stopErr == nil {
					o.log.Warn("replica not made again", "segment", id, "store", dest.ID(), "err", err)
				}
				if errors.Is(err, wire.ErrConflict) && s.holder(dest.ID()) == nil { // a fork has the segment's name there
					s.holders = append(s.holders, holder{store: dest.ID(), bad: true, fork: true})
				}
				return
			}
			s.confirm(dest.ID())
			o.env.Metrics.Repaired.Inc()
			o.log.Info("replica made again", "segment", id, "store", dest.ID())
		})
	})
}
