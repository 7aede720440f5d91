package access

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// What becomes of replicas: dropped when n-1 other sites hold a segment (R5, R13), made again when a holder
// stays away, retired when nothing needs a segment any more. All of it is decided in the owner's loop.

// pendingPermit is a permit that is committed or under way and whose store has not confirmed.
type pendingPermit struct {
	journal.Permit
	seq ident.Seq
}

// permitKey says whose replica of what: there is one permit for it at a time.
type permitKey struct {
	segment ident.SegmentID
	store   ident.StoreID
}

const permitsMax = 256 // in one record

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
	o.forgetLost()
	o.retireSome()
	o.sendDrops()
	var permits []journal.Permit
	permits = o.permitStrays(permits)
	pending := map[ident.SegmentID]bool{}
	for k := range o.permits {
		pending[k.segment] = true
	}
	for _, p := range permits {
		pending[p.Segment] = true
	}
	remote := o.remoteSites()
	isLost := o.whoIsLost()
	list, _, _ := o.repair.dropping.next(o)
	for i, s := range list {
		if len(permits) >= permitsMax {
			o.repair.dropping.back(list[i:])
			break
		}
		o.forgetLostOf(s, isLost)
		if pending[s.id] || o.retiring(s) {
			continue
		}
		p, ok := o.badReplica(s)
		if !ok {
			p, ok = o.mayDrop(s, remote)
		}
		if !ok {
			p, ok = o.tooMany(s)
		}
		if ok {
			permits = append(permits, p)
		}
	}
	o.permit(permits)
}

// permit records permissions; the stores are told once the record is stable.
func (o *Owner) permit(permits []journal.Permit) {
	if len(permits) == 0 {
		return
	}
	slices.SortFunc(permits, func(a, b journal.Permit) int { return a.Segment.Compare(b.Segment) })
	for _, p := range permits {
		o.permits[permitKey{p.Segment, p.Store}] = pendingPermit{Permit: p}
	}
	o.queueOwn(journal.KindPermit, journal.AppendPermits(nil, permits), func(seq ident.Seq) {
		for _, p := range permits {
			o.permits[permitKey{p.Segment, p.Store}] = pendingPermit{Permit: p, seq: seq}
			if s := o.segs[p.Segment]; s != nil {
				if h := s.holder(p.Store); h != nil && h.made == p.Made {
					h.going = true
				}
			}
		}
		o.sendDrops()
	})
}

// mayDrop says which local replica of a segment may go. Those of checkpoints both stay: a takeover needs them first, and
// they are small.
func (o *Owner) mayDrop(s *segment, remote []ident.SiteID) (p journal.Permit, ok bool) {
	if len(remote) == 0 || o.env.Limits.KeepBothLocal || s.id.IsCheckpoint() || !o.covered(s) && !(mutant.On(mutant.R5Checkpoint) && s.sealed) {
		return p, false
	}
	for _, site := range remote {
		if !slices.ContainsFunc(s.holders, func(h holder) bool { return h.stable && !h.going && !h.bad && o.env.Stores.Site(h.store) == site }) {
			return p, false
		}
	}
	return o.leastWanted(s, o.env.Site, 1)
}

// retiring reports that a segment is retired and its replicas are on their way out: none is made again.
func (o *Owner) retiring(s *segment) bool {
	seg, ok := o.m.Segment(s.slot)
	return ok && seg.Retired
}

// covered reports that a committed checkpoint has what is in a segment: a takeover need not find it.
func (o *Owner) covered(s *segment) bool {
	return s.sealed && s.slot != 0 && (s.id.IsCheckpoint() || s.last.Seq <= o.cp.lastSeq)
}

// good lists the replicas of a segment that count.
func (s *segment) good() (list []holder) {
	for _, h := range s.holders {
		if h.stable && !h.going && !h.bad {
			list = append(list, h)
		}
	}
	return list
}

// goodAt counts the replicas at a site that count.
func (o *Owner) goodAt(s *segment, site ident.SiteID) (n int) {
	for i := range s.holders {
		if h := &s.holders[i]; h.stable && !h.going && !h.bad && o.env.Stores.Site(h.store) == site {
			n++
		}
	}
	return n
}

// leastWanted names a replica at a site that has more than keep: one on a store that is being emptied, then the one on
// the store with the least room, and where that is much the same, this node's own last: its owner reads it without a
// network.
func (o *Owner) leastWanted(s *segment, site ident.SiteID, keep int) (p journal.Permit, ok bool) {
	if o.goodAt(s, site) <= keep {
		return p, false
	}
	var there []holder
	var ids []ident.StoreID
	for _, h := range s.good() {
		if o.env.Stores.Site(h.store) == site {
			there = append(there, h)
			ids = append(ids, h.store)
		} else {
			p.Remain = append(p.Remain, h.store)
		}
	}
	crowding := o.env.crowding(ids)
	slices.SortFunc(there, func(a, b holder) int {
		if la, lb := o.env.placeable(a.store), o.env.placeable(b.store); la != lb {
			if lb {
				return -1
			}
			return 1
		}
		if c := cmp.Compare(crowding[b.store], crowding[a.store]); c != 0 {
			return c
		}
		if la, lb := o.env.Stores.Local(a.store), o.env.Stores.Local(b.store); la != lb {
			if la {
				return 1
			}
			return -1
		}
		return a.store.Compare(b.store)
	})
	p.Segment, p.Store, p.Made = s.id, there[0].store, there[0].made
	for _, h := range there[1:] {
		p.Remain = append(p.Remain, h.store)
	}
	return p, p.Made != 0
}

// sendDrops tells stores of committed permits until they confirm. The permit, and with it the announcement of
// the checkpoint that allows it, is stable first: a power cut takes back what is not, but no dropped replica.
func (o *Owner) sendDrops() {
	stable, own := o.w.Stable().Seq, o.w.OwnStable().Seq
	for k, p := range o.permits {
		switch {
		case p.seq == 0 || !o.fit(p.Store):
			continue
		case p.Replace && o.segs[p.Segment] != nil && !slices.ContainsFunc(o.segs[p.Segment].good(), func(h holder) bool { return o.fit(h.store) }):
			continue // it could not be made again now, and may be the only one that is heard of, where a former owner permitted it
		case p.Replace && p.seq > own || !p.Replace && p.seq > stable && !mutant.On(mutant.R13Stable):
			continue // what is bad counts for nothing anyhow, and what is unstable may wait for it to be made again
		}
		o.drop(p.Store, &wire.Drop{Segment: p.Segment, Permit: p.seq, Made: p.Made, Replace: p.Replace}, func() {
			if x := o.permits[k]; x.Made == p.Made && x.Replace == p.Replace {
				delete(o.permits, k)
			}
			o.strays.gone(k, p.Made)
			if p.Segment.IsFork() {
				o.goBackground(func() { o.askWhatIsThere(p.Store) })
			}
			if s := o.segs[p.Segment]; s != nil {
				s.hasGone(p.Store, p.Made)
			}
			if p.Replace {
				if o.strays.lost == nil {
					o.strays.lost = map[permitKey]bool{}
				}
				o.strays.lost[k] = true
			} else {
				o.env.Metrics.Dropped.Inc()
			}
		})
	}
}

// drop sends a permitted drop; then runs in the loop once the store has confirmed.
func (o *Owner) drop(store ident.StoreID, m *wire.Drop, then func()) {
	o.log.Debug("replica may go", "segment", m.Segment, "store", store, "permit", m.Permit, "made", m.Made, "replace", m.Replace)
	m.Epoch = o.epoch
	st, ok := o.env.Stores.Store(store)
	if !ok {
		return
	}
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		_, err := st.Drop(ctx, m)
		o.heard(store, ctx.Err(), err)
		if err != nil {
			if o.ctx.Err() == nil && !errors.Is(err, wire.ErrUnreached) {
				o.log.Warn("replica not dropped", "segment", m.Segment, "store", store, "err", err)
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
		if !mutant.On(mutant.R12Prefix) {
			covered = min(covered, s.mu.stable)
		}
		s.mu.Unlock()
	}
	for _, site := range remote {
		complete = complete && o.recoversAt(site)
	}
	if (complete || mutant.On(mutant.R12Complete)) && len(o.ships) == len(remote) {
		for _, d := range o.m.DeadSegments() {
			s := o.segs[d.Segment]
			if d.At.Seq <= covered && s != nil && s.last.Seq <= covered && len(retire) < permitsMax && (!o.pinnedSegment(s) || mutant.On(mutant.R13Pin)) {
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
			o.cp.retired = append(o.cp.retired, retiredAt{segments: retire, seq: seq})
		})
	}
	o.dropRetired()
}

// recoversAt reports that a site holds all that the last finished checkpoint needs of checkpoints' segments.
func (o *Owner) recoversAt(site ident.SiteID) bool {
	for _, s := range o.parts {
		if s.slot == 0 || o.goodAt(s, site) > 0 {
			continue
		}
		if seg, ok := o.m.Segment(s.slot); ok && seg.Live > 0 {
			return false
		}
	}
	return true
}

// needless reports that no replica of a segment is known, and that neither the last committed checkpoint nor the replay from it needs it.
// It was retired by a record that was left behind: the sites had obeyed it, and a takeover by force did not find it any more.
func (o *Owner) needless(s *segment) bool {
	if s.id.IsCheckpoint() || slices.ContainsFunc(s.holders, func(h holder) bool { return !h.bad && !h.going }) {
		return false
	}
	at, dead := o.m.DeadAt(s.slot)
	return dead && at.Seq <= o.cp.lastSeq
}

// dropRetired has the replicas of retired segments dropped: at home at once, at another site when the
// retirement is in its own prefix (R13). As with permits, once the retirement is stable.
func (o *Owner) dropRetired() {
	stable := o.w.Stable().Seq
	kept := o.cp.retired[:0]
	gone := map[*segment]bool{}
	for _, r := range o.cp.retired {
		r.begun = r.begun || r.seq <= stable
		left := r.segments[:0]
		for _, id := range r.segments {
			s := o.segs[id]
			if s == nil {
				continue
			}
			if r.seq > stable || o.repair.busy[id] { // what is being copied would leave a replica that nobody knows of
				left = append(left, id)
				continue
			}
			s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return h.fork }) // kept: it has more than what is retired
			for _, h := range s.holders {
				site := o.env.Stores.Site(h.store)
				if site != o.env.Site && !o.siteHas(site, r.seq) || !o.fit(h.store) {
					continue
				}
				o.drop(h.store, &wire.Drop{Segment: id, Permit: r.seq}, func() {
					o.strays.gone(permitKey{id, h.store}, h.made)
					s.holders = slices.DeleteFunc(s.holders, func(x holder) bool { return x.store == h.store })
				})
			}
			if len(s.holders) > 0 {
				left = append(left, id)
				continue
			}
			if err := o.m.Remove(s.slot); err == nil {
				o.leaveOut(id)
				for k := range o.permits {
					if k.segment == id {
						delete(o.permits, k)
					}
				}
				gone[s] = true
				o.env.Metrics.Retired.Inc()
			} else {
				left = append(left, id)
			}
		}
		if len(left) > 0 {
			kept = append(kept, retiredAt{segments: left, seq: r.seq, begun: r.begun})
		}
	}
	o.cp.retired = kept
	if len(gone) > 0 {
		o.order = slices.DeleteFunc(o.order, func(x *segment) bool { return gone[x] })
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

// resealLater is reseal, counted as a repair of the segment.
func (o *Owner) resealLater(s *segment, store ident.StoreID) {
	o.repair.running++
	o.repair.busy[s.id] = true
	o.reseal(s, store, false, func() {
		o.repair.running--
		delete(o.repair.busy, s.id)
	})
}

// permitReplace has a bad replica made again where it is, because no other store can take a copy. Until the new one
// is sealed the store counts for nothing in a takeover. A fork that has the segment's name is kept under its own.
func (o *Owner) permitReplace(s *segment, stores []ident.StoreID) {
	good := s.good()
	for _, h := range s.holders {
		permitted, pending := o.permits[permitKey{s.id, h.store}]
		if len(good) == 0 || h.made == 0 || h.strange || !slices.Contains(stores, h.store) || !o.fit(h.store) {
			continue
		}
		switch {
		case h.bad && !h.going && !pending:
		case h.going && pending && !permitted.Replace && permitted.seq != 0 && permitted.Made == h.made && o.unsettled[s.id] != nil:
			// It may go, once that is stable; which it is once the segment is on two servers again, and there is no other
			// place for it. As one that is made again it need not wait for what is of former epochs.
		default:
			continue
		}
		p := journal.Permit{Segment: s.id, Store: h.store, Made: h.made, Replace: true}
		for _, g := range good {
			p.Remain = append(p.Remain, g.store)
		}
		o.permit([]journal.Permit{p})
		return
	}
}

// fit reports that a store can be reached and has not failed lately.
func (o *Owner) fit(id ident.StoreID) bool { return o.env.Stores.Up(id) && o.env.Health.Usable(id) }

// withoutSome reports that stores of the list were given up, by force or because they are lost. What was stable by their word need
// not be stable on two servers any more: the stable point is of two members of one ensemble (R8), so before a flush may rely on it
// everything that no checkpoint covers is put on two members of the newest one.
func (o *Owner) withoutSome() bool {
	return o.state.Forced != nil || slices.ContainsFunc(o.state.Ensembles, func(e control.Ensemble) bool {
		return slices.ContainsFunc(e.Stores, func(s ident.StoreID) bool { return o.env.about(s).Lost })
	})
}

// settles reports that a store is one of those on two of which the past has to be stable.
func (o *Owner) settles(store ident.StoreID) bool {
	return !o.regathers || slices.ContainsFunc(o.members, func(m journal.Member) bool { return m.Store == store })
}

// firstUnsettled is the oldest segment of former epochs that is not known to be stable on two servers.
func (o *Owner) firstUnsettled() *segment {
	for _, s := range o.order {
		if o.unsettled[s.id] != nil {
			return s
		}
	}
	return nil
}

// pastStable forgets the segments of former epochs that two servers hold stably by now, and says whether those
// are all.
func (o *Owner) pastStable() bool {
	for id, s := range o.unsettled {
		n := 0
		for _, h := range s.holders {
			if h.stable && !h.bad && !h.going && o.settles(h.store) {
				n++
			}
		}
		if n >= 2 {
			delete(o.unsettled, id)
		}
	}
	return len(o.unsettled) == 0
}

// settlePause is how long a copy that flushes wait for is not tried again after it failed for the third time.
const settlePause = 2 * time.Second

// settlePast makes what a former epoch left unstable stable on two servers, on another one at once where a
// holder is away: flushes wait for it (R8).
func (o *Owner) settlePast() {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	r := &o.repair
	r.init()
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
			if o.settles(h.store) {
				good++
			}
			if !h.stable {
				sealing = true
				o.resealLater(s, h.store)
				break
			}
			from, _ = o.env.Stores.Store(h.store)
		}
		if p := r.failed[id]; sealing || good >= 2 || from == nil || p.tries > 2 && time.Duration(o.env.Clock()) < min(p.until, p.at+settlePause) {
			continue
		}
		for _, home := range []bool{true, false} {
			for i, m := range o.members {
				h := s.holder(m.Store)
				if dest == nil && m.Home == home && o.fit(m.Store) && h == nil {
					dest = o.stores[i]
				}
			}
		}
		if dest != nil {
			o.copyTo(s, from, dest, dangerNone)
			continue
		}
		var members []ident.StoreID
		for _, m := range o.members {
			members = append(members, m.Store)
		}
		o.permitReplace(s, members)
	}
	o.sendDrops()
}
