package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What a takeover asks of other sites when its own ensembles do not know the end of the history (R4): two holders
// that lost their power at once have lost what was acknowledged and not yet stable, and a site that was shipped to
// may have it. Its copies supply bytes; for the fence they count nothing, and the result is never proven.
//
//	fence the site's stores -> what the history would be with their records -> records that fewer home stores
//	hold than must: pushed from there into the same segments here -> the ensembles asked again -> recovery as always
//
// Only what is on the chain of the highest epoch is fetched, and a site holds only what was committed; so dying on
// the way leaves nothing that a later takeover could not have found by itself.

type fenceAnswers = map[ident.StoreID]*wire.FenceReply

// otherSites lists the stores of the journal's sites that are in none of the ensembles, those of this site too: the ensembles may be
// of another one.
func (o *Owner) otherSites(members []ident.StoreID) map[ident.SiteID][]ident.StoreID {
	sites := map[ident.SiteID][]ident.StoreID{}
	for _, id := range o.asked(members) {
		site := o.env.Stores.Site(id)
		sites[site] = append(sites[site], id)
	}
	return sites
}

// sitesHeard reports that nothing more is to be expected soon: each site has answered, be it by members of ensembles, and each of its
// stores that is thought to be up.
func (o *Owner) sitesHeard(sites map[ident.SiteID][]ident.StoreID, members, far fenceAnswers) bool {
	for site, stores := range sites {
		some := false
		for id := range members {
			some = some || o.env.Stores.Site(id) == site
		}
		for _, id := range stores {
			if far[id] != nil {
				some = true
			} else if o.env.Stores.Up(id) {
				return false
			}
		}
		if !some {
			return false
		}
	}
	return true
}

// fetchFromSites brings home what only other sites have, and gives all answers together with what the history is by
// them.
func (o *Owner) fetchFromSites(ctx context.Context, members, far fenceAnswers) (fenceAnswers, *journal.Recovery, error) {
	for try := 0; ; try++ {
		all := maps.Clone(members)
		maps.Copy(all, far)
		rec := journal.Recover(o.ensembles(), all)
		if len(far) == 0 {
			return all, rec, nil
		}
		rd := &rebuilder{o: o, ctx: ctx, indexes: map[ident.SegmentID]*journal.Index{}}
		point, err := rd.newestCheckpoint(rec)
		if err != nil {
			return nil, nil, err
		}
		var todo []fetch
		for _, r := range slices.Concat(rec.Past, rec.Tail) {
			if r.To > point.At.Seq {
				todo = append(todo, o.wanting(&r, members)...)
			}
		}
		if len(todo) == 0 {
			return all, rec, nil
		}
		if try > len(far)+1 {
			return nil, nil, wire.Errorf(wire.CodeBusy, "journal %s: records of another site can not be brought here", o.journalID)
		}
		for _, f := range todo {
			if err := o.fetch(ctx, rd, f, far); err != nil {
				return nil, nil, err
			}
		}
		for _, f := range todo {
			st, _ := o.env.Stores.Store(f.dest)
			reply, err := st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node, Taking: true})
			if err != nil {
				return nil, nil, fmt.Errorf("fence %s again: %w", f.dest, err)
			}
			members[f.dest] = &reply
		}
	}
}

// fetch is a part of a segment that a store lacks.
type fetch struct {
	r    journal.Range
	dest ident.StoreID
	at   uint32 // what it has ends there
	open bool   // it has a replica
}

// wanting says which stores have to be given the records of a range: where a member has lost some of them with its
// power, two must have them again, else at least one.
func (o *Owner) wanting(r *journal.Range, members fenceAnswers) (list []fetch) {
	type place struct {
		fetch
		away bool
	}
	have, want := 0, 1
	var places []place
	for store, a := range members {
		if slices.Contains(a.Again, r.Segment) {
			continue // what is there is neither whole nor a place for more
		}
		p := place{fetch: fetch{r: *r, dest: store}, away: o.env.Stores.Site(store) != o.env.Site}
		i := slices.IndexFunc(a.Replicas, func(x wire.Replica) bool { return x.Segment == r.Segment })
		if i >= 0 {
			x := &a.Replicas[i]
			switch {
			case x.State == wire.ReplicaFork || x.State == wire.ReplicaDamaged:
				continue
			case x.Last.Seq >= r.To && x.End > 0:
				have++
				continue
			case x.State == wire.ReplicaSealed:
				continue
			case x.State == wire.ReplicaShort:
				want = 2
			}
			p.at, p.open = x.End, true
		}
		places = append(places, p)
	}
	// Those that have a part come first, then those at home.
	rank := func(p place) (n int) {
		if !p.open {
			n += 2
		}
		if p.away {
			n++
		}
		return n
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(rank(a)-rank(b), a.dest.Compare(b.dest)) })
	for i := range places {
		if have < want {
			have++
			list = append(list, places[i].fetch)
		}
	}
	return list
}

// fetch pushes what the destination lacks from whichever store has it. A site whose copy does not continue what is
// here is left out from then on, loudly.
func (o *Owner) fetch(ctx context.Context, rd *rebuilder, f fetch, far fenceAnswers) error {
	dest, ok := o.env.Stores.Store(f.dest)
	if !ok {
		return wire.Errorf(wire.CodeUnreached, "store %s is not registered", f.dest)
	}
	last := error(wire.Errorf(wire.CodeAbsent, "segment %s to seq %d: no store has it", f.r.Segment, f.r.To))
	refused := false
	for _, src := range rd.stores(&f.r) {
		err := o.pushRange(ctx, src, dest, f)
		switch {
		case err == nil:
			o.log.Warn("records brought from another store", "segment", f.r.Segment, "from", src.ID(), "site", o.env.Stores.Site(src.ID()), "to", f.dest, "seq", f.r.To)
			return nil
		case errors.Is(err, wire.ErrMismatch) && far[src.ID()] != nil:
			o.log.Error("a site's copy does not continue what is here: it is not used", "site", o.env.Stores.Site(src.ID()), "store", src.ID(), "segment", f.r.Segment, "err", err)
			delete(far, src.ID())
			refused = true
		default:
			last = fmt.Errorf("segment %s from %s to %s: %w", f.r.Segment, src.ID(), f.dest, err)
			o.log.Warn("records not brought here", "err", last)
		}
	}
	if refused {
		return nil // the history is found anew without it
	}
	return last
}

// pushRange makes dest's replica as long as the range, which src has whole.
func (o *Owner) pushRange(ctx context.Context, src, dest journal.Store, f fetch) error {
	x, err := readIndex(ctx, src, f.r.Segment)
	if err != nil {
		return err
	}
	n := int(f.r.To - f.r.Before.Seq)
	if n > len(x.Entries) {
		return wire.Errorf(wire.CodeAbsent, "index of %s at %s has %d records of %d", f.r.Segment, src.ID(), len(x.Entries), n)
	}
	var ends []uint32 // behind each record
	for i := 1; i <= n; i++ {
		if i < len(x.Entries) {
			ends = append(ends, x.Entries[i].Offset)
		} else {
			ends = append(ends, x.End)
		}
	}
	end := ends[n-1]
	if !f.open {
		// Room for all that the source has: the next taker may want more of it, and what is open doesn't grow.
		octx, cancel := context.WithTimeout(ctx, o.env.Limits.SyncTimeout)
		_, err := dest.OpenSegment(octx, &wire.OpenSegment{Epoch: o.epoch, Segment: f.r.Segment, Capacity: journal.CapacityOfCopy(max(end, x.End), uint64(len(x.Entries)), o.env.Limits.SegmentBytes), Copy: true})
		cancel()
		if err != nil {
			return err
		}
	}
	for at := f.at; at < end; {
		// As many whole records as fill a frame, at least one.
		i, _ := slices.BinarySearch(ends, at+copyFrame+1)
		next := ends[max(0, i-1)]
		if next <= at {
			next = ends[i]
		}
		pctx, cancel := context.WithTimeout(ctx, pushTimeout)
		_, err := src.Push(pctx, &wire.Push{Epoch: o.epoch, Segment: f.r.Segment, From: at, To: next, Dest: dest.ID()})
		cancel()
		if err != nil {
			return err
		}
		at = next
	}
	return nil
}

// pushTimeout bounds one frame between sites.
const pushTimeout = 30 * time.Second
