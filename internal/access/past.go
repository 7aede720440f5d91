package access

import (
	"context"
	"errors"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// endPast seals the segments of former epochs where their history ends.
func (o *Owner) endPast() {
	for _, s := range o.order {
		if s.id.Epoch == o.epoch {
			continue
		}
		for i := range s.holders {
			h := &s.holders[i]
			if h.stable || h.bad {
				continue
			}
			if r := o.strays.answered(h.store, s.id); r != nil && r.State == wire.ReplicaSealed {
				if o.reportedOf(s, h.store, r, o.strays.tookOver); h.stable {
					continue
				}
			}
			o.reseal(s, h.store, false, func() {})
		}
	}
}

// reseal has a holder seal its replica where the segment ends; what it can't is made again from another. elsewhere says that what it has
// behind that was found in other segments of this history. then is called in the loop.
func (o *Owner) reseal(s *segment, store ident.StoreID, elsewhere bool, then func()) {
	st, ok := o.env.Stores.Store(store)
	id, end, last, start, proven := s.id, s.end, s.last, o.w.Start(), o.provenSince(s.id.Epoch)
	proven = proven || elsewhere && start.Proven
	if r := o.strays.answered(store, id); !proven && r != nil {
		proven = start.Proven && o.superseded(id.Epoch, r.Last.Seq)
	}
	o.forks.sealing.Add(1)
	o.goBackground(func() {
		defer o.doneSealing()
		var r wire.SealReply
		var forked bool
		err := error(wire.Errorf(wire.CodeUnreached, "not registered"))
		if ok {
			ctx, cancel := context.WithTimeout(o.ctx, 4*o.env.Limits.SyncTimeout)
			r, forked, err = sealOrSetAside(ctx, st, &wire.Seal{Epoch: o.epoch, Segment: id, End: end, Last: last, Start: start, Proven: proven})
			o.heard(store, ctx.Err(), err)
			cancel()
		}
		o.call(func() {
			then()
			if forked {
				o.setAside(st, id, last.Seq)
			} else if ok && err != nil {
				o.forkUnknown(store)
			}
			switch {
			case o.stopErr != nil:
			case err == nil:
				o.confirm(s, store, r.Made)
			case mayPass(err):
				// Nothing is known to be wrong with the replica: it is tried again.
			default:
				o.log.Warn("replica can't be sealed", "segment", id, "store", store, "err", err)
				o.markBad(id, store, err)
			}
		})
	})
}

// mayPass reports that an error says nothing of a replica: the store could not do what it was asked to just then.
func mayPass(err error) bool {
	return errors.Is(err, wire.ErrUnreached) || errors.Is(err, wire.ErrFenced) || errors.Is(err, wire.ErrBusy) || errors.Is(err, wire.ErrShutdown)
}
