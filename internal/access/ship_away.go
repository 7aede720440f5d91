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
//	                      └─> nothing to leave out ──> it answers ──> a new session, so that it gets its part of what comes
//
// A session begins with what the stores have, so nothing has to be remembered of the one before.
//
// Where commands wait for the site (R11) an owner that has never heard the store is not as patient: as long as nobody knows
// what the store has, the site counts for nothing behind it, and nothing would be answered. After ackUnheard it ships what the
// store may have to another one of the site. It is in nobody's way, since what comes next waits all the same; and once the
// store is back, one of the two replicas goes.

// errSiteChanged ends a session that left something out: there is reason to look again.
var errSiteChanged = errors.New("the stores of the site have changed")

// awayStore is a store of a site that is waited for.
type awayStore struct {
	id    ident.StoreID
	until time.Time
	again time.Time // not asked again before, though it is thought to be up

	since   time.Time
	hurried bool // what this owner has not heard it to have is not waited for any more
}

// awayWas is what the ship's loop remembers of a store of its site that has not answered.
type awayWas struct {
	since   time.Time
	hurried bool
}

// ackUnheard is how long commands wait for a store of another site that the owner has never heard: a restart takes less.
const ackUnheard = 15 * time.Second

// awayAgain is how long a store that is thought to be up and does not answer is left alone.
const awayAgain = 10 * time.Second

// awaySince notes which stores of the site have answered, and gives those that have not and are waited for.
func (o *Owner) awaySince(s *siteShip, answered []journal.Store) (away []awayStore) {
	now := time.Now()
	was := s.away
	s.away = map[ident.StoreID]awayWas{}
	for _, id := range o.env.Stores.Core(s.site) {
		if slices.ContainsFunc(answered, func(st journal.Store) bool { return st.ID() == id }) || o.env.about(id).Lost {
			continue
		}
		x, known := was[id]
		if !known {
			x.since = now
		}
		s.mu.Lock()
		x.hurried = x.hurried || s.mu.hurried == id
		s.mu.Unlock()
		s.away[id] = x
		if until := x.since.Add(o.env.Limits.RepairGrace); now.Before(until) {
			a := awayStore{id: id, until: until, since: x.since, hurried: x.hurried}
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
			return seg.id.Epoch != o.epoch && !o.strays.heard[a.id] && (!a.hurried || o.readFrom(seg) == nil)
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

// hurries reports that a store was waited for long enough by commands, though not by shipping: without its site fewer than K
// others count for what comes next.
func (o *Owner) hurries(s *siteShip, a awayStore) (yes bool) {
	if a.hurried || !o.ack.on.Load() || time.Since(a.since) < ackUnheard || !s.hides() {
		return false
	}
	o.ask(func() {
		if o.strays.heard[a.id] || !slices.Contains(o.ack.sites, s.site) {
			return
		}
		n := 0
		for _, x := range o.ships {
			if x != s && slices.Contains(o.ack.sites, x.site) && !x.hides() && slices.ContainsFunc(o.env.Stores.Core(x.site), o.env.Stores.Up) {
				n++
			}
		}
		yes = n < o.ack.rule.Need()
	})
	return yes
}

// hides reports that the site counts for nothing behind what a store may have that is away.
func (s *siteShip) hides() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.reach.hides != nil
}

// awayLook is how often stores that are waited for are looked at.
const awayLook = 250 * time.Millisecond

// watchAway ends the session once a store that something was left out for is back, or is not waited for any more.
func (o *Owner) watchAway(ctx context.Context, s *siteShip, away []awayStore, failed chan error) {
	t := time.NewTicker(awayLook)
	defer t.Stop()
	for {
		for _, a := range away {
			_, registered := o.env.Stores.Store(a.id)
			why := ""
			switch {
			case registered && o.env.Stores.Up(a.id) && time.Now().After(a.again) && s.doubted(a.id) != doubtLeft: // watchLeft asks that one
				why = "is up"
			case !registered || o.env.about(a.id).Lost:
				why = "is gone for good"
			case time.Now().After(a.until):
				why = "was waited for long enough"
			case o.hurries(s, a):
				why = "has not been heard, and commands wait for its site"
				s.mu.Lock()
				s.mu.hurried = a.id
				s.mu.Unlock()
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

// watchMissing ends the session once a store answers that did not when the session began, though nothing was left out for it:
// what comes next may go there. A session can last for months.
func (o *Owner) watchMissing(ctx context.Context, s *siteShip, stores []journal.Store, failed chan error) {
	missing := slices.DeleteFunc(o.env.Stores.Core(s.site), func(id ident.StoreID) bool { return among(stores, id) })
	if len(missing) == 0 {
		return
	}
	if s.asked == nil {
		s.asked = map[ident.StoreID]time.Time{} // kept for the next session: one that answers this and then no more must not end them all
	}
	t := time.NewTicker(leftAgain)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, id := range missing {
			st, ok := o.env.Stores.Store(id)
			if !ok || !o.env.Stores.Up(id) || o.env.about(id).Lost || s.doubted(id) == doubtLeft || time.Since(s.asked[id]) < awayAgain {
				continue
			}
			if s.asked[id] = time.Now(); !o.fences(ctx, st) {
				continue // its process is there, and its disk isn't
			}
			select {
			case failed <- fmt.Errorf("store %s answers: %w", id, errSiteChanged):
			case <-ctx.Done():
			}
			return
		}
	}
}

// hasNew ends a session at whose beginning a store of the site was not there at all.
func (o *Owner) hasNew(s *siteShip) error {
	for _, id := range o.env.Stores.Core(s.site) {
		if !slices.Contains(s.core, id) && o.env.Stores.Up(id) && !o.env.about(id).Lost {
			return fmt.Errorf("store %s is new: %w", id, errSiteChanged)
		}
	}
	return nil
}
