package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// A hand-over to another site names the taker in the journal's key while the old owner still serves (R10). The leave that
// follows may never arrive: the old owner, or the taker, dies. Whoever then takes over for the taker's site, as the key says,
// finds a history that ends at the site it was to come from. Were that site lost next, this one would have to drop
// what it had acknowledged itself; so it begins nothing, and passes the journal on:
//
//	key: the taker, epoch+1, handed ──no leave──> takeover, epoch+2: fence, history ends there, not here
//	──> key: an access server there, epoch+3 ──> a takeover like any other
//
// Once the taker has begun, the history ends in a segment of its own site.

// endsElsewhere is why a takeover has begun nothing.
type endsElsewhere struct {
	at    ident.Position
	sites []ident.SiteID // where it belongs
}

func (e *endsElsewhere) Error() string {
	return fmt.Sprintf("the history ends at %s in a segment of site %d, and this site does not have it: an access server there has to own it", e.at, e.sites[0])
}

// endsElsewhere says whether the history that was found ends at another site, and this one lacks its end. Nobody has to wait for a
// site that has no access servers, and an operator's word that moves the journal takes the mark off the key.
func (o *Owner) endsElsewhere(rec *journal.Recovery) error {
	if !o.state.Handed || o.hand.told || mutant.On(mutant.R10Home) || rec.Last.Seq == 0 || len(o.env.Stores.Core(o.env.Site)) == 0 {
		return nil
	}
	var last *journal.Range
	for _, r := range slices.Concat(rec.Past, rec.Tail) {
		if r.To == rec.Last.Seq {
			last = &r
		}
	}
	if last == nil || last.Segment.Site == o.env.Site {
		return nil
	}
	sites := []ident.SiteID{last.Segment.Site}
	for _, h := range last.Holders {
		site := o.env.Stores.Site(h.Store)
		if !h.Has(last) {
			continue
		}
		if site == o.env.Site {
			return nil
		}
		if !slices.Contains(sites, site) {
			sites = append(sites, site)
		}
	}
	if !slices.ContainsFunc(o.env.Control.SharedNodes(), func(n control.Node) bool { return n.Has(control.RoleAccess) && slices.Contains(sites, n.Site) }) {
		return nil
	}
	return &endsElsewhere{rec.Last, sites}
}

const (
	passPatience = 5 * time.Second
	passRetry    = 5 * time.Second // where nobody is there to pass it to: each attempt takes an epoch
)

// passOn has the control store name an access server of the site at which the history ends. Where that can't be done it says why, and
// after how long it is worth another attempt; it does not wait for that itself, since it has the turns of others' takeovers.
func (s *Server) passOn(v *Volume, hand *handed, away *endsElsewhere) (retry time.Duration, _ error) {
	for _, site := range away.sites {
		to, err := s.taker(v, "", site)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, passPatience)
		defer cancel()
		state, _, err := s.env.Control.HandJournal(ctx, v.id, hand.rev, to.Name, nil, false)
		if err != nil { // known or not, the key says what became of it
			s.env.Log.Warn("a volume that belongs to another site is not passed on", "volume", v.Spec().Name, "to", to.Name, "err", err)
			return takeoverRetry, fmt.Errorf("%w; passing it on: %w", away, err)
		}
		s.env.Log.Info("a volume is passed on to the site at which its history ends: the hand-over from there was not finished",
			"volume", v.Spec().Name, "to", to.Name, "next", state.Epoch.String(), "at", away.at.String())
		return 0, nil
	}
	return passRetry, wire.Errorf(wire.CodeUnreached, "%v, and none can be reached", away)
}
