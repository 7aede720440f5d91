package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// Another site keeps one replica of a segment, so a store of it that is away for a moment leaves holes in what the site
// has. Shipping all of that again, in front of what is new, would take hours for what a restart of the store takes back.
// So for as long as a store is waited for (Limits.RepairGrace) what it has, or may have, is left out, and shipping goes on
// behind it; the watermark stays where the first hole is, because that is the prefix which the site can use now (R12).
//
//	store does not answer ──> left out, gap ──> it is up again, was declared lost, or the grace is over ──> a new session
//
// A session begins with what the stores have, so nothing has to be remembered of the one before.

// errSiteChanged ends a session that left something out: there is reason to look again.
var errSiteChanged = errors.New("the stores of the site have changed")

// awayStore is a store of a site that is waited for.
type awayStore struct {
	id    ident.StoreID
	until time.Time
	again time.Time // not asked again before, though it is thought to be up
}

// awayAgain is how long a store that is thought to be up and does not answer is left alone.
const awayAgain = 10 * time.Second

// awaySince notes which stores of the site have answered, and gives those that have not and are waited for.
func (o *Owner) awaySince(s *siteShip, answered []journal.Store) (away []awayStore) {
	now := time.Now()
	was := s.away
	s.away = map[ident.StoreID]time.Time{}
	for _, id := range o.env.Stores.Core(s.site) {
		if slices.ContainsFunc(answered, func(st journal.Store) bool { return st.ID() == id }) || o.env.about(id).Lost {
			continue
		}
		since, known := was[id]
		if !known {
			since = now
		}
		s.away[id] = since
		if until := since.Add(o.env.Limits.RepairGrace); now.Before(until) {
			a := awayStore{id: id, until: until}
			if o.env.Stores.Up(id) {
				a.again = now.Add(awayAgain)
			}
			away = append(away, a)
		}
	}
	return away
}

// waitsFor reports that a segment is not shipped now, because a store has it that is away and waited for: as its own
// word was, or, where this owner has not heard it yet, perhaps. What this epoch has made itself is only where it was
// shipped to.
//
// has says that it is the store's own word.
func (o *Owner) waitsFor(seg *segment, away []awayStore) (yes, has bool) {
	if len(away) == 0 {
		return false, false
	}
	o.ask(func() {
		yes = seg.sealed && slices.ContainsFunc(away, func(a awayStore) bool {
			h := seg.holder(a.id)
			if h != nil {
				there := h.stable && !h.bad && !h.going
				has = has || there
				return there
			}
			return seg.id.Epoch != o.epoch && !o.strays.heard[a.id]
		})
	})
	return yes, has
}

// leaveGap notes that the site lacks what follows a record; true for the first gap of a session.
func (s *siteShip) leaveGap(before ident.Seq) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.gap != nil {
		return false
	}
	s.mu.gap = &before
	return true
}

// awayLook is how often stores that are waited for are looked at.
const awayLook = 250 * time.Millisecond

// watchAway ends the session once a store that something was left out for is back, or is not waited for any more.
func (o *Owner) watchAway(ctx context.Context, away []awayStore, failed chan error) {
	t := time.NewTicker(awayLook)
	defer t.Stop()
	for {
		for _, a := range away {
			_, registered := o.env.Stores.Store(a.id)
			why := ""
			switch {
			case registered && o.env.Stores.Up(a.id) && time.Now().After(a.again):
				why = "is up"
			case !registered || o.env.about(a.id).Lost:
				why = "is gone for good"
			case time.Now().After(a.until):
				why = "was waited for long enough"
			default:
				continue
			}
			select {
			case failed <- fmt.Errorf("store %s %s: %w", a.id, why, errSiteChanged):
			case <-ctx.Done():
			}
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
