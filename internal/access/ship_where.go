package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// have is what a store of the site has of a segment.
type have struct {
	store journal.Store
	state wire.ReplicaState
	end   uint32
	last  ident.Position
	made  uint64

	unsure bool
}

// siteInventory fences the site's stores (receivers are fenced before their prefix is read, R1) and lists what
// they have.
func (o *Owner) siteInventory(ctx context.Context, s *siteShip) (map[ident.SegmentID][]have, []journal.Store, error) {
	site := s.site
	s.boots = map[ident.StoreID]ident.BootID{}
	there := map[ident.SegmentID][]have{}
	var stores []journal.Store
	last := error(wire.Errorf(wire.CodeUnreached, "none is up"))
	for _, list := range o.toAsk(s) {
		for _, a := range o.askSite(ctx, s, list) {
			if errors.Is(a.e, wire.ErrFenced) || errors.Is(a.e, wire.ErrConflict) {
				o.call(func() { o.stop(fmt.Errorf("a store of site %d: %w", site, a.e)) })
				return nil, nil, a.e
			}
			if a.e != nil {
				last = a.e
				o.log.Warn("store of another site doesn't answer", "site", site, "store", a.st.ID(), "err", a.e)
				continue
			}
			s.trust(a.st.ID())
			stores = append(stores, a.st)
			s.boots[a.st.ID()] = a.r.Boot
			for _, x := range a.r.Replicas {
				there[x.Segment] = append(there[x.Segment], have{a.st, x.State, x.End, x.Last, x.Made, x.Unsure})
			}
		}
		if len(stores) > 0 {
			return there, stores, nil
		}
	}
	return nil, nil, wire.Errorf(wire.CodeUnreached, "no core server of site %d answers: %v", site, last)
}

// siteAnswer is what a store of another site has said of itself.
type siteAnswer struct {
	st journal.Store
	r  wire.FenceReply
	e  error
}

// askSite asks stores all at once: the site may be far away.
func (o *Owner) askSite(ctx context.Context, s *siteShip, stores []journal.Store) []siteAnswer {
	got := make([]siteAnswer, len(stores))
	var wg sync.WaitGroup
	for i, st := range stores {
		a := &got[i]
		a.st = st
		wg.Go(func() {
			if s.doubted(st.ID()) != 0 {
				if a.e = o.refusesNow(ctx, st); a.e != nil {
					s.leave(st.ID())
					return
				}
			}
			fctx, cancel := context.WithTimeout(ctx, 2*o.env.Limits.SyncTimeout)
			defer cancel()
			var asked uint64
			o.ask(func() { asked = o.strays.asks() })
			a.r, a.e = st.Fence(fctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
			if a.e != nil && fctx.Err() != nil && ctx.Err() == nil {
				s.leave(st.ID()) // it is up, and nothing that is shipped is in the way of this question
			}
			o.call(func() {
				if a.e == nil {
					o.reported(st.ID(), a.r.Replicas, asked)
				}
				o.strays.asked()
			})
		})
	}
	wg.Wait()
	return got
}

// wholeAt finds a replica of a site that has all of a segment and is sealed, and says where the segment ends: one that goes
// on behind it with records that are in other segments here has no less. Where only others are sealed it gives one of those,
// and false.
func (o *Owner) wholeAt(seg *segment, list []have) (found *have, whole bool) {
	for i := range list {
		h := &list[i]
		if h.state != wire.ReplicaSealed {
			continue
		}
		o.ask(func() {
			switch {
			case !seg.sealed, o.uncounted(seg, h.store.ID(), h.made):
			case seg.end == h.end && seg.last == h.last:
				whole = true
				o.confirm(seg, h.store.ID(), h.made)
			case h.last.Seq > seg.last.Seq && o.followed(h.last):
				x := seg.holder(h.store.ID())
				if whole = x != nil && x.stable && !x.bad && x.made == h.made; whole { // reported has entered it
					h.end, h.last = seg.end, seg.last
				}
			}
		})
		if found = h; whole {
			return found, true
		}
	}
	return found, false
}

// shipFork deals with a sealed replica of a site that is not our segment. What it has behind the segment's end is of another
// history: the store keeps that as a fork, and the segment ends there where it should (R14). Anything else is an error, and loud.
func (o *Owner) shipFork(ctx context.Context, s *siteShip, seg *segment, h *have) error {
	err := wire.Errorf(wire.CodeMismatch, "segment %s is sealed at %s after %s: not where ours ends", seg.id, h.store.ID(), h.last)
	o.shipFailed(s, seg, h.store, err)
	var m *wire.Seal
	o.ask(func() {
		if o.stopErr == nil && seg.sealed && seg.id.Epoch.Less(o.epoch) && h.last.Seq > seg.last.Seq && !o.followed(h.last) {
			m = &wire.Seal{Epoch: o.epoch, Segment: seg.id, End: seg.end, Last: seg.last, Start: o.w.Start()}
		}
	})
	if m == nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, 4*o.env.Limits.SyncTimeout)
	defer cancel()
	o.forks.sealing.Add(1)
	defer o.doneSealing()
	r, forked, failed := sealOrSetAside(sctx, h.store, m)
	if forked {
		o.call(func() { o.setAside(h.store, seg.id, m.Last.Seq) })
	} else if failed != nil {
		o.call(func() { o.forkUnknown(h.store.ID()) })
	}
	if failed != nil {
		return fmt.Errorf("%w; set aside: %w", err, failed)
	}
	h.end, h.last, h.made = m.End, m.Last, r.Made
	return nil
}

// segmentAfter finds the segment of the history that holds the record after seq, nil if there is none yet, and
// the seq where the one before it ends.
func (o *Owner) segmentAfter(seq ident.Seq, site ident.SiteID) (found *segment, before ident.Seq) {
	o.ask(func() {
		i, _ := slices.BinarySearchFunc(o.order, seq, func(s *segment, seq ident.Seq) int {
			if s.last.Seq <= seq && s.last.Seq != 0 {
				return -1
			}
			return 1
		})
		// Retired and, but for a part that was left somewhere, gone: that part goes too, once the sites have the record of
		// it. They would wait for ever for a whole one.
		// Likewise what nobody has and no checkpoint needs, once the site has the checkpoint.
		gone := func(s *segment) bool {
			return o.retiring(s) && len(s.good()) == 0 || o.needless(s) && o.recoversAt(site)
		}
		for i < len(o.order) && gone(o.order[i]) {
			i++
		}
		if i == len(o.order) {
			return
		}
		// What is missing in front of it has been retired, or is needless.
		found = o.order[i]
		for i--; i >= 0; i-- {
			if !gone(o.order[i]) {
				before = o.order[i].last.Seq
				break
			}
		}
	})
	return found, before
}

// shipTo chooses the store of the site for a segment: the one that has a part of it already, else one with room, in
// turn by the segment's number, so that load and capacity spread. With it come the end of that part and the last record in it.
func (o *Owner) shipTo(seg *segment, there []have, takers []journal.Store) (journal.Store, uint32, ident.Position) {
	for _, h := range inTurn(there) {
		// A short one has lost what its power cut took; appends go on from there, compared with what there is.
		if (h.state == wire.ReplicaOpen || h.state == wire.ReplicaCopy || h.state == wire.ReplicaShort) && o.env.Stores.Up(h.store.ID()) && among(takers, h.store.ID()) {
			return h.store, h.end, h.last
		}
	}
	for _, st := range o.env.roomyFirst(takers, int(seg.id.Number)) {
		taken := slices.ContainsFunc(there, func(h have) bool { return h.store == st && h.state != 0 })
		if !taken && o.env.Stores.Up(st.ID()) {
			return st, 0, ident.Position{}
		}
	}
	return nil, 0, ident.Position{}
}
