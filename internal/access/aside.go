package access

import (
	"time"

	"dozo/internal/ident"
)

// A store sets aside what it can not judge. Where a replica goes on with records that this history has in other segments, and the store has
// not heard of the epoch-starts in between, records of this history are kept as a fork. No cut has left those behind: nobody would be shown
// them to give them up, and while they are there no cut is closed by itself. They go, by a permit as all others, once the last of them has
// been found in this history by its hash.

// superseded reports that what replicas of an epoch have up to a record and this history does not was never committed: of the epoch-starts of this
// history the first one that leaves it behind says proven. Later ones that are not proven have left nothing of it behind, since it was not of
// what they went on from. It runs in the loop.
func (o *Owner) superseded(epoch ident.Epoch, last ident.Seq) bool {
	proven := false
	for start := o.w.Start(); ; {
		if leftBehind(start, epoch, last) {
			proven = start.Proven
		}
		before := start.Before.Epoch
		if !epoch.Less(before) {
			return proven
		}
		next, known := o.startOf(before)
		if !known || !next.At.Epoch.Less(start.At.Epoch) {
			return false
		}
		start = next
	}
}

// compared is what came of looking for the last record of a replica.
type compared struct {
	made  uint64
	ours  bool
	again time.Duration // when it may be looked for again; 0: it is known
}

// isOurs reports that all records of a replica that was set aside are in this history, stable on two servers, and at its own site. It runs in
// the loop, and looks if that is not known.
func (o *Owner) isOurs(r *stray) bool {
	f, k := &o.forks, permitKey{r.Segment, r.store}
	site := o.env.Stores.Site(r.store)
	if o.gaveUp(r.Segment.Epoch, r.Last.Seq) || !o.followed(r.Last) || len(o.unsettled) > 0 || site != o.env.Site && !o.siteHas(site, r.Last.Seq) {
		return false
	}
	now := time.Duration(o.env.Clock())
	if x, ok := f.compared[k]; ok && x.made == r.Made && (x.again == 0 || now < x.again) {
		return x.ours
	}
	if f.compared == nil {
		f.compared = map[permitKey]compared{}
	}
	f.compared[k] = compared{made: r.Made, again: now + repairPauseMax}
	last, made := r.Last, r.Made
	o.compare(last, func(ours ident.Position, err error) {
		o.call(func() {
			switch {
			case err != nil:
				o.log.Info("what is set aside can't be compared", "segment", k.segment, "store", k.store, "err", err)
			case ours != last:
				o.log.Error("what is set aside is not ours, and nothing explains it: it is left alone", "segment", k.segment, "store", k.store, "last", last, "ours", ours)
				f.compared[k] = compared{made: made}
			default:
				f.compared[k] = compared{made: made, ours: true}
			}
		})
	})
	return false
}
