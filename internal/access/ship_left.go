package access

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A store of another site whose disk hangs is left: shipping goes on to another store of the site, which gets what the one that was left
// has not got whole, and that one counts as a store that is away (ship_away.go). That a disk hangs is the word of its own node, which
// answers everything with an error then (core.Bounded); here no clock decides it, so neither distance nor a full link is taken for a disk.
//
//	trusted ──an error, or a link that breaks──> suspected ──asked at the next session's beginning: refuses──> left
//	   ^                                             └──does not refuse──┐                                       │
//	   └─────────────────────────────────────────────────────────────────┴──────asked in the background: answers──┘
//
// A session ends only once everything that it has sent is answered, and a store is used again only once nothing of it hangs: so no answer comes from
// a store that shipping has gone on without, and nothing is done there later than it is compared. What it has is found at the beginning of
// the session in which it is used again, as always; a part of a segment that another store has by then is one too many, and goes.

// doubt is what is thought of a store of another site. None is trusted.
type doubt int

const (
	doubtSuspected doubt = 1 + iota // it is asked whether it takes anything before it is used
	doubtLeft                       // and nobody waits for the answer, while another store of the site answers
)

// suspect notes that something which a store was sent has failed.
func (s *siteShip) suspect(id ident.StoreID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubtLocked(id, doubtSuspected)
}

func (s *siteShip) leave(id ident.StoreID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubtLocked(id, doubtLeft)
}

func (s *siteShip) doubtLocked(id ident.StoreID, d doubt) {
	if s.mu.doubts == nil {
		s.mu.doubts = map[ident.StoreID]doubt{}
	}
	s.mu.doubts[id] = max(s.mu.doubts[id], d)
}

func (s *siteShip) trust(id ident.StoreID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.doubts, id)
}

func (s *siteShip) doubted(id ident.StoreID) doubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.doubts[id]
}

// refuses asks a store whether it takes anything: its node refuses this, as all that comes from another site, while an operation of the disk hangs.
func (o *Owner) refuses(ctx context.Context, st journal.Store) error {
	_, err := st.Sync(ctx, &wire.Sync{Epoch: o.epoch, Journal: o.journalID})
	return err
}

// refusesNow asks a suspected store, for a while: that no answer comes says nothing, since the link may be slow.
func (o *Owner) refusesNow(ctx context.Context, st journal.Store) error {
	tctx, cancel := context.WithTimeout(ctx, o.env.Limits.SyncTimeout)
	defer cancel()
	if err := o.refuses(tctx, st); err != nil && tctx.Err() == nil {
		return err
	}
	return nil
}

// watchLeft ends the session once a store answers that was left.
func (o *Owner) watchLeft(ctx context.Context, s *siteShip, failed chan error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, id := range o.env.Stores.Core(s.site) {
		if s.doubted(id) != doubtLeft {
			continue
		}
		o.log.Warn("a store of another site is left until it answers", "site", s.site, "store", id)
		wg.Go(func() {
			t := time.NewTicker(leftAgain)
			defer t.Stop()
			for {
				select {
				case <-t.C:
				case <-ctx.Done():
					return
				}
				st, ok := o.env.Stores.Store(id)
				if !ok || !o.env.Stores.Up(id) || o.refuses(ctx, st) != nil || !o.fences(ctx, st) {
					continue
				}
				s.trust(id)
				select {
				case failed <- fmt.Errorf("store %s answers again: %w", id, errSiteChanged):
				case <-ctx.Done():
				}
				return
			}
		})
	}
}

// leftAgain is how often a store that was left is asked. An answer that says no costs it nothing.
const leftAgain = time.Second

// fences reports that a store answers what it is asked when a session begins.
func (o *Owner) fences(ctx context.Context, st journal.Store) bool {
	fctx, cancel := context.WithTimeout(ctx, 2*o.env.Limits.SyncTimeout)
	defer cancel()
	_, err := st.Fence(fctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
	return err == nil
}

// toAsk lists the stores of the site that a session asks what they have, and those that it asks if none of these answers: they were left.
func (o *Owner) toAsk(s *siteShip) (lists [2][]journal.Store) {
	for _, id := range o.env.Stores.Core(s.site) {
		st, ok := o.env.Stores.Store(id)
		switch {
		case !ok || !o.env.Stores.Up(id) || o.env.about(id).Lost:
			s.trust(id) // whoever comes back is another process
		case s.doubted(id) == doubtLeft:
			lists[1] = append(lists[1], st)
		default:
			lists[0] = append(lists[0], st)
		}
	}
	return lists
}

// inTurn orders the parts that stores have of a segment which is not whole anywhere at the site: there are several where a store was left, or was
// away. What a store is unsure of is over once the segment is sealed there (R11); else the longest goes on. The others go, see partsLeft.
func inTurn(there []have) []have {
	there = slices.Clone(there)
	slices.SortStableFunc(there, func(a, b have) int {
		if a.unsure != b.unsure {
			if a.unsure {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.end, a.end)
	})
	return there
}

// partsLeft has the stores asked what they have that had a part of a segment which another one has whole now: what they have of it is one
// too many, and the owner is told so now, not in an hour.
func (o *Owner) partsLeft(there []have, whole ident.StoreID) {
	for _, h := range there {
		if id := h.store.ID(); id != whole {
			o.goBackground(func() { o.askWhatIsThere(id) })
		}
	}
}
