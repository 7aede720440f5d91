package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A store of another site that has no room, or whose disk has failed, is passed over: what it has can be read and counts, what comes next goes to another
// store of the site, and so does all of a segment that it has a part of. Where no other store is there it is tried all the same.

// passOver is how long a store is passed over that could not take what it was shipped: somebody may have made room. A guess.
const passOver = time.Minute

// failedAt notes why something that a store was shipped was not done.
func (s *siteShip) failedAt(id ident.StoreID, err error) {
	if !errors.Is(err, wire.ErrIO) && !errors.Is(err, wire.ErrNoSpace) {
		s.suspect(id)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.passed == nil {
		s.mu.passed = map[ident.StoreID]time.Time{}
	}
	s.mu.passed[id] = time.Now().Add(passOver)
}

// takes reports that a store may take what is shipped.
func (o *Owner) takes(s *siteShip, id ident.StoreID) bool {
	s.mu.Lock()
	until := s.mu.passed[id]
	s.mu.Unlock()
	return time.Now().After(until) && !o.env.about(id).Failed
}

// takers are the stores that may take what is shipped in a session, or all if there is none.
func (o *Owner) takers(s *siteShip, stores []journal.Store) []journal.Store {
	list := slices.DeleteFunc(slices.Clone(stores), func(st journal.Store) bool { return !o.takes(s, st.ID()) })
	if len(list) == 0 {
		return stores
	}
	return list
}

func among(stores []journal.Store, id ident.StoreID) bool {
	return slices.ContainsFunc(stores, func(st journal.Store) bool { return st.ID() == id })
}

// watchPassed ends the session once a store may take something again.
func (o *Owner) watchPassed(ctx context.Context, s *siteShip, stores, takers []journal.Store, failed chan error) {
	if len(takers) == len(stores) {
		return
	}
	t := time.NewTicker(passOver / 4)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, st := range stores {
			if among(takers, st.ID()) || !o.env.Stores.Up(st.ID()) || !o.takes(s, st.ID()) {
				continue
			}
			select {
			case failed <- fmt.Errorf("store %s is tried again: %w", st.ID(), errSiteChanged):
			case <-ctx.Done():
			}
			return
		}
	}
}
