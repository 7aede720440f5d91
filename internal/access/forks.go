package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What an owner that was not proven may have given up (R4, R14): records that were committed, on stores that did
// not answer then. When such a store is heard again, what it holds beyond this history is set aside as a fork:
// kept, shown, and never shipped over or dropped.

// Kinds of state that owners keep in checkpoints; docs/format.md.
const (
	stateCuts uint16 = 1
)

// forks is what the owner's loop knows of them.
type forks struct {
	cuts []wire.EpochStart // the starts of this history that were not proven, oldest first
	at   map[ident.StoreID]forkAt
}

// forkAt is what one store has set aside.
type forkAt struct {
	segments int
	bytes    uint64
}

// beginForks gathers the cuts of the history: from the checkpoint, from what was recovered, and this epoch's own.
func (o *Owner) beginForks() {
	f := &o.forks
	f.at = map[ident.StoreID]forkAt{}
	if b := o.m.State(stateCuts); b != nil {
		cuts, err := journal.DecodeCuts(b)
		if err != nil {
			o.stop(fmt.Errorf("the checkpoint's list of cuts: %w", err))
			return
		}
		f.cuts = cuts
	}
	add := func(s wire.EpochStart) {
		if !slices.ContainsFunc(f.cuts, func(x wire.EpochStart) bool { return x.At == s.At }) {
			f.cuts = append(f.cuts, s)
		}
	}
	for _, s := range o.recovered.Cuts {
		add(s)
	}
	if s := o.w.Start(); !s.Proven {
		add(s)
	}
	slices.SortFunc(f.cuts, func(a, b wire.EpochStart) int { return a.At.Epoch.Compare(b.At.Epoch) })
	if len(f.cuts) == 0 {
		return
	}
	if err := o.m.SetState(stateCuts, journal.AppendCuts(nil, f.cuts)); err != nil {
		o.log.Error("the list of cuts is not kept", "err", err)
	}
	o.goBackground(o.forkLoop)
}

// gaveUp reports that records up to seq, made or kept in segments of an epoch, may not be of this history.
func (o *Owner) gaveUp(epoch ident.Epoch, seq ident.Seq) bool {
	return slices.ContainsFunc(o.forks.cuts, func(c wire.EpochStart) bool { return epoch.Less(c.At.Epoch) && seq > c.Before.Seq })
}

// forkEvery is how often the stores of the own site are looked at: one that was away may come back.
const forkEvery = 10 * time.Second

// forkLoop looks for forks in the stores of the own site and of the ensembles, once each time that one has come
// back; the ships look at the other sites.
func (o *Owner) forkLoop() {
	looked := map[ident.StoreID]bool{}
	for wait := time.Duration(0); ; wait = forkEvery {
		select {
		case <-time.After(wait):
		case <-o.ctx.Done():
			return
		}
		there := map[ident.SegmentID][]have{}
		ids := o.env.Stores.Core(o.env.Site)
		for _, e := range o.fenced {
			for _, id := range e.Stores {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
		for _, id := range ids {
			st, ok := o.env.Stores.Store(id)
			if !ok || !o.env.Stores.Up(id) {
				delete(looked, id)
				continue
			}
			if looked[id] {
				continue
			}
			list, err := o.inventory(st)
			if err != nil {
				o.log.Debug("store not looked at for forks", "store", id, "err", err)
				continue
			}
			for _, x := range list {
				there[x.Segment] = append(there[x.Segment], have{st, x.State, x.End, x.Last, x.Made})
			}
			looked[id] = true
			o.noteForks(id, list)
		}
		if err := o.findForks(o.ctx, o.env.Site, there); err != nil {
			clear(looked)
			o.log.Debug("forks", "err", err)
		}
	}
}

// inventory lists all that a store has of the journal.
func (o *Owner) inventory(st journal.Store) (list []wire.Replica, err error) {
	for m := (&wire.Inventory{Journal: o.journalID, Limit: 4096}); ; {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		r, err := st.Inventory(ctx, m)
		cancel()
		if err != nil {
			return nil, err
		}
		list = append(list, r.Replicas...)
		if !r.More || len(r.Replicas) == 0 {
			return list, nil
		}
		m.After = r.Replicas[len(r.Replicas)-1].Segment
	}
}

// noteForks remembers for the status what a store has set aside.
func (o *Owner) noteForks(store ident.StoreID, list []wire.Replica) {
	var f forkAt
	for _, x := range list {
		if x.State == wire.ReplicaFork {
			f.segments++
			f.bytes += uint64(x.End)
		}
	}
	o.call(func() { o.forks.at[store] = f })
}

// beyond is a replica that goes on behind the end of its segment in this history, or whose segment is not in it.
type beyond struct {
	id   ident.SegmentID
	h    *have
	end  uint32 // where it should end, 0: it should not be there
	last ident.Position
}

// findForks has what is not of this history set aside, and marks it so in there.
func (o *Owner) findForks(ctx context.Context, site ident.SiteID, there map[ident.SegmentID][]have) error {
	var list []beyond
	var start wire.EpochStart
	o.ask(func() {
		if o.stopErr != nil || len(o.forks.cuts) == 0 {
			return
		}
		start = o.w.Start()
		for id, replicas := range there {
			if id.IsCheckpoint() || !id.Epoch.Less(o.epoch) {
				continue
			}
			s := o.segs[id]
			for i := range replicas {
				h := &replicas[i]
				switch {
				case h.state == wire.ReplicaFork || h.state == wire.ReplicaDamaged || !o.gaveUp(id.Epoch, h.last.Seq):
				case s == nil:
					list = append(list, beyond{id: id, h: h})
				case s.sealed && h.last.Seq > s.last.Seq:
					list = append(list, beyond{id, h, s.end, s.last})
				}
			}
		}
	})
	slices.SortFunc(list, func(a, b beyond) int { return a.id.Compare(b.id) })
	segments, records, size := 0, uint64(0), uint64(0)
	for _, b := range list {
		sctx, cancel := context.WithTimeout(ctx, 4*o.env.Limits.SyncTimeout)
		_, err := b.h.store.Seal(sctx, &wire.Seal{Epoch: o.epoch, Segment: b.id, End: b.end, Last: b.last, Start: start})
		cancel()
		switch {
		case err == nil: // it held nothing that this history does not have, and ends where it should now
			b.h.state, b.h.end, b.h.last = wire.ReplicaSealed, b.end, b.last
			if b.end == 0 {
				b.h.state = 0 // gone
			}
		case errors.Is(err, wire.ErrFork):
			b.h.state = wire.ReplicaFork
			o.call(func() {
				f := o.forks.at[b.h.store.ID()]
				o.forks.at[b.h.store.ID()] = forkAt{f.segments + 1, f.bytes + uint64(b.h.end)}
			})
			segments++
			records += uint64(b.h.last.Seq - max(b.last.Seq, o.cutBefore(b.id.Epoch, b.h.last.Seq)))
			size += uint64(b.h.end - b.end)
			o.log.Error("records that are not of this history are kept as a fork", "segment", b.id, "store", b.h.store.ID(), "site", site,
				"to", b.h.last.Seq, "err", err)
		default:
			return fmt.Errorf("set %s aside at %s: %w", b.id, b.h.store.ID(), err)
		}
	}
	if segments > 0 {
		o.report("volume.fork", fmt.Sprintf("site %d keeps at most %d records, %d bytes in %d segments that are not of the history which is served: a fork; nothing of it is overwritten or deleted",
			site, records, size, segments))
	}
	return nil
}

// cutBefore is where this history left an epoch whose records up to seq it does not have.
func (o *Owner) cutBefore(epoch ident.Epoch, seq ident.Seq) (least ident.Seq) {
	least = seq
	o.ask(func() {
		for _, c := range o.forks.cuts {
			if epoch.Less(c.At.Epoch) {
				least = min(least, c.Before.Seq)
			}
		}
	})
	return least
}

// reportUnproven says what a takeover lost, as far as that is known.
func (o *Owner) reportUnproven(rec *journal.Recovery) {
	lost := uint64(0)
	if rec.Lost && rec.Seen.Seq > rec.Last.Seq {
		lost = uint64(rec.Seen.Seq - rec.Last.Seq)
	}
	o.lost = lost
	note := fmt.Sprintf("epoch %s begins after seq %d and is not proven: the end of the history was not known", o.epoch, rec.Last.Seq)
	if lost > 0 {
		o.log.Error("records at or below the commit point are lost", "records", lost, "last", rec.Last.Seq, "seen", rec.Seen.Seq, "stable", rec.Stable.Seq)
		note += fmt.Sprintf("; %d records are lost that were acknowledged: the commit point had been %d", lost, rec.Seen.Seq)
	}
	o.report("volume.unproven", note)
}

// report puts an event into the log of the cluster, which the operator reads. It never holds anything up.
func (o *Owner) report(action, note string) {
	s := o.spec.Load()
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, time.Minute)
		defer cancel()
		err := o.env.Control.AppendEvent(ctx, control.Event{Actor: string(o.env.Node), Action: action, Object: "volume/" + s.Tenant + "/" + s.Name, Note: note})
		if err != nil && o.ctx.Err() == nil {
			o.log.Error("event not written", "action", action, "note", note, "err", err)
		}
	})
}
