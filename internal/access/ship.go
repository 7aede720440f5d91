package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Shipping brings the journal to the other sites: in order, streamed up to the commit point, each segment as
// the bytes that it is (architecture §3 step 4, §7). Where a site stands is never remembered: a session
// begins by fencing the site's stores and asking what they have, and every append compares positions and
// hashes again.
//
//	fence, inventory ──> segment by segment: open, append what is committed, seal ──error──> wait, begin again

const (
	shipFrame   = 2<<20 + 16<<10       // two of the largest records that we make
	shipSmall   = 256 << 10            // below it a frame waits shipGather for more
	shipGather  = 5 * time.Millisecond // less than any distance that is worth the name
	shipRetry   = time.Second
	shipSealing = 4 // seals under way
)

// siteShip is the shipping to one site. The fields below mu are read by the status.
type siteShip struct {
	site   ident.SiteID
	wake   chan struct{}
	points chan struct{} // likewise, of shipCheckpoints: there is a new one
	// nothing counts looks in a row that found nothing to do; only the ship's loop has it.
	nothing int
	// away says since when stores of the site have not answered; only the ship's loop has it.
	away map[ident.StoreID]awayWas
	// boots are those of the site's stores when the session began. One that has another has lost what was not stable there,
	// though what comes next may fit: the site has to be looked at again.
	boots map[ident.StoreID]ident.BootID
	// asked is when a store that was missing was asked last; only watchMissing has it.
	asked map[ident.StoreID]time.Time
	// core are the site's stores as they were registered when the session began; only the ship's loop has it.
	core []ident.StoreID

	mu struct {
		sync.Mutex
		mark    ident.Position // the site holds everything up to here
		stable  ident.Seq      // and stably to here
		sealed  stableRuns     // stable runs beyond it: seals end in any order
		gap     *ident.Seq     // what follows it is at a store that is away, and waited for; nil: nothing is
		reach   reach          // how far it is for acknowledgements
		hurried ident.StoreID  // the last one that commands did not wait for any more; see awaySince
		doubts  map[ident.StoreID]doubt
		passed  map[ident.StoreID]time.Time // until when stores are passed over
		segment ident.SegmentID
		shipped uint32        // of segment
		dest    ident.StoreID // that the open one goes to
		open    ident.SegmentID
		sent    ident.Seq // everything up to here is on its way, or there
		// What was begun in this session and is not known to be sealed there yet. It may be stable there, which is what the marks tell.
		unsealed map[ident.SegmentID]bool
		state    string
		// When the site last said how far it is. Only shown: nothing is decided by this clock.
		confirmed time.Time
		bytes     uint64 // taken by the site since the owner began
		told      wire.Told
	}
}

func (s *siteShip) set(state string) {
	s.mu.Lock()
	s.mu.state = state
	s.mu.Unlock()
}

func (s *siteShip) setInStep() {
	s.mu.Lock()
	s.mu.state = "in step"
	if s.mu.gap != nil {
		s.mu.state = "in step, but for what is at a store that is away"
	}
	s.mu.Unlock()
}

func (s *siteShip) progress(p ident.Position, id ident.SegmentID, end uint32) {
	s.mu.Lock()
	if p.Seq > s.mu.mark.Seq && (s.mu.gap == nil || p.Seq <= *s.mu.gap) {
		s.mu.mark = p
	}
	s.mu.reach.to(p.Seq)
	s.mu.segment, s.mu.shipped = id, end
	s.mu.sent = max(s.mu.sent, p.Seq)
	s.mu.confirmed = time.Now()
	s.mu.Unlock()
}

// hasSent notes that everything up to a record is on its way to the site, behind what went before.
func (s *siteShip) hasSent(seq ident.Seq) {
	s.mu.Lock()
	s.mu.sent = max(s.mu.sent, seq)
	s.mu.Unlock()
}

// afterServing starts the work that never hinders answers: ending old segments, shipping, dropping.
func (o *Owner) afterServing() {
	o.cp.last = time.Duration(o.env.Clock())
	o.lastAppend, o.servedAt, o.cp.lastingAt = o.cp.last, o.cp.last, o.cp.last
	if o.hand.moved || o.state.Forced != nil {
		// The first act (R10): the next look makes a checkpoint on this site's ensemble, and the other leaves the list.
		o.cp.last -= o.env.Limits.CheckpointInterval
	}
	o.endPast()
	o.fillHot(o.hand.hot)
	o.serveUnit()
	defer o.beginAcks()
	for _, site := range o.state.Sites {
		if site == o.env.Site {
			continue
		}
		s := &siteShip{site: site, wake: make(chan struct{}, 1), points: make(chan struct{}, 1)}
		s.mu.state = "starting"
		o.ships = append(o.ships, s)
		o.goBackground(func() { o.shipLoop(s) })
	}
}

func (o *Owner) shipLoop(s *siteShip) {
	var failed int // sessions in a row that have shipped nothing
	var said time.Time
	for o.ctx.Err() == nil {
		before := s.counted()
		err := o.shipSession(s)
		if failed++; s.counted() != before {
			failed = 0
		}
		if o.ctx.Err() != nil {
			return
		}
		if errors.Is(err, errSiteChanged) {
			o.log.Info("shipping looks at a site again", "site", s.site, "why", err)
		} else {
			s.set(fmt.Sprintf("waiting: %v", err))
			if failed == 0 || time.Since(said) >= shipRetry-ackRetry { // it may be tried more often than that
				said = time.Now()
				o.log.Warn("shipping interrupted", "site", s.site, "err", err)
			}
		}
		select {
		case <-time.After(o.shipRetry(failed)):
		case <-o.ctx.Done():
		}
	}
}

// shipSession ships until something fails.
func (o *Owner) shipSession(s *siteShip) error {
	ctx, cancel := context.WithCancel(o.ctx)
	defer cancel()
	s.set("comparing positions")
	s.core = o.env.Stores.Core(s.site)
	there, stores, err := o.siteInventory(ctx, s)
	if err != nil {
		return err
	}
	if err := o.findForks(ctx, s.site, there); err != nil {
		return err
	}
	o.lookedAt(stores)
	s.mu.Lock()
	s.mu.mark, s.mu.stable, s.mu.sealed, s.mu.gap, s.mu.reach, s.mu.sent = ident.Position{}, 0, nil, nil, reach{}, 0 // watermarks are computed from what is readable now (R12)
	s.mu.unsealed = map[ident.SegmentID]bool{}
	s.mu.Unlock()
	o.endUnsure(there)
	away := o.awaySince(s, stores)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, 8)
	takers := o.takers(s, stores)
	wg.Go(func() { o.watchLeft(ctx, s, failed) })
	wg.Go(func() { o.watchPassed(ctx, s, stores, takers, failed) })
	wg.Go(func() { o.watchMissing(ctx, s, stores, failed) })
	wg.Go(func() {
		if err := o.shipCheckpoints(ctx, s, takers); err != nil {
			select {
			case failed <- err:
			case <-ctx.Done():
			}
		}
	})
	if o.ack.on.Load() && len(away) > 0 { // what it is unsure of counts until it was compared
		wg.Go(func() { o.watchAway(ctx, s, away, failed) })
	}
	sealing := make(chan struct{}, shipSealing)
	var after ident.Seq
	opened := map[ident.SegmentID]bool{}
	for {
		if err := o.hasNew(s); err != nil {
			return err
		}
		seg, before := o.segmentAfter(after, s.site)
		if seg == nil {
			s.setInStep()
			if err := o.shipWait(ctx, s, failed); err != nil {
				return err
			}
			continue
		}
		id := seg.id
		known, room := true, journal.CapacityOf(id, o.env.Limits.SegmentBytes)
		o.ask(func() {
			known = !seg.sealed || seg.end != 0
			// A former owner, or this one under another configuration, may have made larger segments.
			if seg.sealed {
				room = journal.CapacityOfCopy(seg.end, seg.records(), room)
			}
		})
		if !known {
			return wire.Errorf(wire.CodeAbsent, "no store that has segment %s can be reached", id)
		}
		if h, ok := o.wholeAt(seg, there[id]); ok {
			after = h.last.Seq
			s.progress(h.last, id, h.end)
			s.markStable(before, h.last.Seq)
			o.siteMoved()
			continue
		} else if h != nil {
			if err := o.shipFork(ctx, s, seg, h); err != nil {
				return err
			}
			continue
		}
		if waits, has := o.waitsFor(seg, away); waits {
			if s.leaveGap(before) {
				wg.Go(func() { o.watchAway(ctx, s, away, failed) })
			}
			o.ask(func() { after = seg.last.Seq })
			s.passOver(before, after, has)
			o.siteMoved()
			continue
		}
		dest, from, last := o.shipTo(seg, there[id], takers)
		if dest == nil {
			return wire.Errorf(wire.CodeUnreached, "no store of site %d is up", s.site)
		}
		if !opened[id] && from == 0 {
			if _, err := dest.OpenSegment(ctx, &wire.OpenSegment{Epoch: o.epoch, Segment: id, Capacity: room, Copy: true}); err != nil {
				s.failedAt(dest.ID(), err)
				return fmt.Errorf("open %s at %s: %w", id, dest.ID(), err)
			}
			opened[id] = true
		}
		s.set("shipping")
		s.mu.Lock()
		s.mu.dest, s.mu.open = dest.ID(), id
		s.mu.unsealed[id] = true
		s.mu.Unlock()
		same := false
		if o.ask(func() { same = from > 0 && seg.end == from && seg.last == last }); same {
			s.progress(last, id, from) // nothing has to be sent for it to be known
			o.siteMoved()
		}
		end, err := o.shipSegment(ctx, s, seg, before, dest, from, failed)
		if err != nil {
			return err
		}
		after = end.last.Seq
		select {
		case sealing <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-sealing }()
			r, err := dest.Seal(ctx, &wire.Seal{Epoch: o.epoch, Segment: id, End: end.end, Last: end.last, Start: end.start, Proven: end.proven})
			if err != nil {
				if ctx.Err() == nil {
					s.failedAt(dest.ID(), err)
					o.shipFailed(s, seg, dest, err)
				}
				select {
				case failed <- fmt.Errorf("seal %s at %s: %w", id, dest.ID(), err):
				case <-ctx.Done():
				}
				return
			}
			o.call(func() {
				o.confirm(seg, dest.ID(), r.Made)
				s.mu.Lock()
				delete(s.mu.unsealed, id)
				s.mu.Unlock()
			})
			s.markStable(before, end.last.Seq)
			o.siteMoved()
			o.partsLeft(there[id], dest.ID())
		})
	}
}

// markStable notes that the site holds the records after before, up to last, stably.
func (s *siteShip) markStable(before, last ident.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.confirmed = time.Now()
	s.mu.stable = s.mu.sealed.add(s.mu.stable, before, last)
	s.mu.reach.made(before, last)
}

// shipEnd is where a segment ended.
type shipEnd struct {
	end     uint32
	records uint64
	last    ident.Position
	start   wire.EpochStart
	proven  bool // Owner.provenSince
}

// shipSegment appends what is committed of one segment to dest until the segment has ended and all of it is
// there.
func (o *Owner) shipSegment(ctx context.Context, s *siteShip, seg *segment, before ident.Seq, dest journal.Store, at uint32, failed chan error) (shipEnd, error) {
	window := make(chan struct{}, o.env.Limits.ShipWindow)
	drain := func() {
		for range cap(window) {
			window <- struct{}{}
		}
	}
	defer drain() // the stores have given their last word before another session begins
	var syncs sync.WaitGroup
	defer syncs.Wait()
	var syncing atomic.Int32
	lastSent := false
	boot := s.boots[dest.ID()]
	var broken atomic.Bool
	synced := uint64(0) // a sync was sent behind everything up to here
	sentAt := time.Time{}
	// makeStable has the site make stable what was sent, if there is reason to: one at a time, so that many writes share an
	// fdatasync; but the last one of a hand-over waits for none, and where flushes wait for the site (R11), they do not wait
	// for each other.
	makeStable := func(e *shipEnd) {
		last, wanted := o.move.drained.Load(), o.ack.on.Load() && o.ack.want.Load() > synced
		if n := syncing.Load(); n > 0 && (!last || lastSent) && (n >= ackSyncs || !wanted) {
			return
		}
		if !wanted && !o.unstable(s, seg, at, last) {
			return
		}
		lastSent, synced = last, uint64(e.last.Seq)
		syncing.Add(1)
		syncs.Go(func() {
			more, err := o.shipStable(ctx, s, seg, before, dest, last)
			syncing.Add(-1)
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
			if more { // there may be more to make stable; if it made none, asking again at once won't either
				s.wakeUp()
			}
		})
	}
	for {
		var end uint32
		var sealed bool
		var e shipEnd
		var commit, stable ident.Position
		var source journal.Store
		o.ask(func() {
			end, sealed = seg.end, seg.sealed
			e = shipEnd{seg.end, seg.records(), seg.last, o.w.Start(), o.provenSince(seg.id.Epoch)}
			commit, stable = o.w.Commit(), o.w.Stable()
			source = o.readFrom(seg)
		})
		if err := o.Err(); err != nil {
			return e, err
		}
		if at >= end {
			if sealed {
				drain()
				for range cap(window) {
					<-window
				}
				select {
				case err := <-failed:
					return e, err
				default:
				}
				return e, nil
			}
			makeStable(&e)
			if err := o.shipWait(ctx, s, failed); err != nil {
				return e, err
			}
			continue
		}
		if end-at < shipSmall && !sealed && time.Since(sentAt) < shipGather && !o.move.hurry.Load() && !o.ack.on.Load() {
			select {
			case <-time.After(shipGather):
			case <-ctx.Done():
				return e, ctx.Err()
			}
			sentAt = time.Time{}
			continue
		}
		sentAt = time.Now()
		if source == nil {
			return e, wire.Errorf(wire.CodeAbsent, "no replica of segment %s can be read", seg.id)
		}
		rctx, cancel := context.WithTimeout(ctx, rawTimeout)
		r, err := source.ReadRaw(rctx, &wire.ReadRaw{Segment: seg.id, Offset: at, Len: min(end-at, shipFrame)})
		ended := rctx.Err()
		cancel()
		if err != nil {
			o.heard(source.ID(), ended, err)
			if errors.Is(err, wire.ErrAbsent) {
				o.sourceAbsent(seg.id, source, err)
			}
			return e, fmt.Errorf("read %s: %w", seg.id, err)
		}
		n := wholeRecords(r.Data, at)
		if n == 0 {
			release(r)
			err := wire.Errorf(wire.CodeCorrupt, "segment %s has no record at %d", seg.id, at)
			o.sourceRotten(seg.id, source, err)
			return e, err
		}
		select {
		case window <- struct{}{}:
		case err := <-failed:
			release(r)
			return e, err
		case <-ctx.Done():
			release(r)
			return e, ctx.Err()
		}
		from, next := at, at+uint32(n)
		dest.Append(&wire.Append{Epoch: o.epoch, Segment: seg.id, Offset: at, Commit: commit, Stable: stable, Data: [][]byte{r.Data[:n]}},
			func(reply wire.AppendReply, err error) {
				err = o.refusedFrame(seg.id, source, r.Data[:n], from, err)
				release(r)
				if err == nil && reply.Boot != boot && boot != (ident.BootID{}) {
					err = fmt.Errorf("store %s has started anew: %w", dest.ID(), errSiteChanged)
				}
				if err != nil {
					s.failedAt(dest.ID(), err)
					// What was sent behind a frame that was not taken leaves a gap.
					if behind := broken.Swap(true); !behind || !errors.Is(err, wire.ErrGap) {
						o.shipFailed(s, seg, dest, err)
					}
					select {
					case failed <- fmt.Errorf("append to %s at %s: %w", seg.id, dest.ID(), err):
					default:
					}
				} else {
					s.progress(reply.Held, seg.id, next)
					s.took(n, o.move.hurry.Load())
					o.env.Metrics.ShippedBytes.Add(float64(n))
					o.siteMoved()
				}
				<-window
			})
		if next == end && !broken.Load() {
			s.hasSent(e.last.Seq)
		}
		if at = next; at == end && o.ack.on.Load() && o.ack.want.Load() > synced {
			makeStable(&e)
		}
	}
}

// unstable reports that a site holds more of an open segment than it has made stable; at the end of a hand-over, that more
// was sent.
func (o *Owner) unstable(s *siteShip, seg *segment, sent uint32, last bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.stable < s.mu.mark.Seq || s.mu.reach.stable < s.mu.reach.mark || last && (s.mu.segment != seg.id || s.mu.shipped < sent)
}

// shipStable has what a site holds of an open segment made stable once nothing more is to be shipped, so that
// "the site holds it" is true after its power cut too. At the end of a hand-over it does not wait for the answers to the
// appends: it asks right behind them, on the same connection, and what it is told to be stable is held, too.
func (o *Owner) shipStable(ctx context.Context, s *siteShip, seg *segment, before ident.Seq, dest journal.Store, last bool) (progress bool, err error) {
	sctx, cancel := context.WithTimeout(ctx, 2*o.env.Limits.SyncTimeout)
	defer cancel()
	r, err := dest.Sync(sctx, &wire.Sync{Epoch: o.epoch, Journal: o.journalID, Segments: []ident.SegmentID{seg.id}})
	if err != nil {
		if ctx.Err() == nil {
			s.failedAt(dest.ID(), err)
		}
		return false, fmt.Errorf("sync %s at %s: %w", seg.id, dest.ID(), err)
	}
	defer o.siteMoved()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.confirmed = time.Now()
	was := s.mu.stable + s.mu.reach.stable
	for _, x := range r.Synced {
		// Earlier segments of the site are sealed, or their seal is under way and will move the mark itself.
		if x.Segment != seg.id {
			continue
		}
		if last && x.Stable.Seq > s.mu.mark.Seq && s.mu.gap == nil {
			s.mu.mark = x.Stable
		}
		if s.mu.stable >= before {
			s.mu.stable = max(s.mu.stable, min(x.Stable.Seq, s.mu.mark.Seq))
		}
		s.mu.reach.madeOpen(before, x.Stable.Seq)
	}
	return s.mu.stable+s.mu.reach.stable > was, nil
}

// shipFailed makes a mismatch loud: it is never shipped over (§2.3).
func (o *Owner) shipFailed(s *siteShip, seg *segment, dest journal.Store, err error) {
	if errors.Is(err, wire.ErrMismatch) || errors.Is(err, wire.ErrGap) || errors.Is(err, wire.ErrFork) || errors.Is(err, wire.ErrSealed) {
		o.env.Metrics.ShipMismatch.Inc()
		o.log.Error("a site's copy does not continue ours", "site", s.site, "segment", seg.id, "store", dest.ID(), "err", err)
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && (e.Code == wire.CodeFenced || e.Code == wire.CodeConflict && e.Epoch != ident.Epoch{}) {
		o.call(func() { o.stop(err) })
	}
}

// patience is how long to wait before a look that nothing has asked for: longer after each that found nothing to do.
func (s *siteShip) patience(first, most time.Duration) time.Duration {
	if s.nothing < 16 {
		s.nothing++
	}
	return min(first<<(s.nothing/4), most)
}

// shipWait waits for more to ship.
func (o *Owner) shipWait(ctx context.Context, s *siteShip, failed chan error) error {
	select {
	case <-s.wake:
		s.nothing = 0
		return nil
	case <-time.After(s.patience(200*time.Millisecond, 5*time.Second)):
		return o.hasNew(s)
	case err := <-failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wakeShips tells the ships that the commit point has moved.
func (o *Owner) wakeShips() {
	for _, s := range o.ships {
		s.wakeUp()
	}
}

func (s *siteShip) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// shipCheckpoints copies sealed checkpoint segments to the site, so that it can recover from them (R12).
func (o *Owner) shipCheckpoints(ctx context.Context, s *siteShip, stores []journal.Store) error {
	var quiet time.Duration
	for {
		var todo []*segment
		o.ask(func() {
			for _, seg := range o.parts {
				if seg.sealed && seg.slot != 0 && !slices.ContainsFunc(seg.holders, func(h holder) bool {
					return h.stable && !h.going && !h.bad && o.env.Stores.Site(h.store) == s.site
				}) {
					todo = append(todo, seg)
				}
			}
		})
		slices.SortFunc(todo, func(a, b *segment) int { return a.id.Compare(b.id) })
		for _, seg := range todo {
			var from journal.Store
			var e shipEnd
			o.ask(func() {
				from, e = o.readFrom(seg), shipEnd{seg.end, seg.records(), seg.last, o.w.Start(), o.provenSince(seg.id.Epoch)}
			})
			kept := slices.DeleteFunc(slices.Clone(stores), func(st journal.Store) bool { return o.env.about(st.ID()).Lost })
			if len(kept) == 0 {
				return wire.Errorf(wire.CodeUnreached, "checkpoint segment %s: all stores of site %d have been declared lost", seg.id, s.site)
			}
			to := o.env.roomyFirst(kept, int(seg.id.Number&0xffff))[0]
			if from == nil && o.env.Stores.Up(to.ID()) {
				continue // who has it has not been heard yet: the sessions with the other sites ask
			}
			if from == nil || !o.env.Stores.Up(to.ID()) {
				return wire.Errorf(wire.CodeUnreached, "checkpoint segment %s: no store to copy from or to", seg.id)
			}
			made, err := o.copySegment(from, to, seg.id, e.end, e.records, e.last, e.start, nil)
			if err != nil {
				s.failedAt(to.ID(), err)
				return fmt.Errorf("checkpoint segment %s: %w", seg.id, err)
			}
			o.call(func() { o.confirm(seg, to.ID(), made) })
		}
		if len(todo) > 0 {
			quiet = 0
		} else if quiet < 8*time.Second {
			quiet += time.Second / 2 // only what was lost again is found by looking, and there may be thousands of idle volumes
		}
		select {
		case <-s.points: // a hand-over waits for it
			quiet = 0
		case <-time.After(time.Second + quiet):
		case <-ctx.Done():
			return nil
		}
	}
}
