package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Once other sites hold a segment, one local replica is all that its own site keeps (R5), and the store that has it may
// be the one that is away when the next owner asks. What such a segment holds is below a committed checkpoint, so the
// history is known without it: its bytes are read from any replica that is sealed exactly where the segment ends, at
// whichever site. Where it ends is the map's word, and the map's own parts are verified by the digests that lead to
// them from the announcement.
//
//	a part or a segment without a replica that was reported ──> ask the stores that the fence has not heard: other
//	sites', and members that come back ──> a holder like any other; for the fence it counts for nothing (R2)

const (
	seekRound    = time.Second     // between two rounds of questions
	seekTimeout  = 3 * time.Second // for the answers of one round
	seekPatience = 5 * time.Second // for the checkpoint's parts, before the takeover is begun anew
)

// ReadPart implements volume.PartReader for the takeover: what no store of the fence has is sought elsewhere.
func (rd *rebuilder) ReadPart(id ident.SegmentID, offset uint32, digest uint64) (*journal.Record, []byte, error) {
	rec, body, err := rd.o.readPart(id, offset, digest)
	if err == nil || !seekable(err) || rd.o.viewing {
		return rec, body, err
	}
	until := time.Now().Add(seekPatience)
	said := false
	for {
		first := err
		if serr := rd.seek([]ident.SegmentID{id}); serr != nil {
			return nil, nil, serr
		}
		if rec, body, err = rd.o.readPart(id, offset, digest); err == nil {
			return rec, body, nil
		}
		if !said {
			said = true
			rd.o.log.Warn("takeover waits for a store or a site that has a part of the checkpoint", "segment", id, "err", first)
			if rd.o.env.Patience != nil {
				defer rd.o.env.Patience()()
			}
		}
		if time.Now().After(until) {
			return nil, nil, wire.Errorf(wire.CodeBusy, "the stores that have segment %s of the checkpoint can not be reached: %v", id, err)
		}
		select {
		case <-time.After(seekRound):
		case <-rd.ctx.Done():
			return nil, nil, rd.ctx.Err()
		}
	}
}

// seekable reports that another replica may have what could not be read.
func seekable(err error) bool {
	return errors.Is(err, wire.ErrAbsent) || errors.Is(err, wire.ErrUnreached) || errors.Is(err, wire.ErrBusy) || errors.Is(err, wire.ErrCorrupt) || errors.Is(err, wire.ErrIO)
}

// seek asks the stores that have not answered yet, all at once, until each of the segments is at one of them or all
// that can be reached have answered, for one round at most. Checkpoint segments get their holders here; history
// segments by adopt, once the map says where they end.
func (rd *rebuilder) seek(ids []ident.SegmentID) error {
	o := rd.o
	if o.viewing {
		return nil // all have been asked, and nobody is fenced
	}
	var ask []ident.StoreID
	add := func(id ident.StoreID) {
		if rd.answers[id] == nil && o.env.Stores.Up(id) && !slices.Contains(ask, id) {
			ask = append(ask, id)
		}
	}
	for _, stores := range o.ensembles() {
		for _, id := range stores {
			add(id)
		}
	}
	for _, site := range append(o.remoteSites(), o.env.Site) {
		for _, id := range o.env.Stores.Core(site) {
			add(id)
		}
	}
	ctx, cancel := context.WithTimeout(rd.ctx, seekTimeout)
	defer cancel()
	type answer struct {
		store ident.StoreID
		reply wire.FenceReply
		err   error
	}
	got := make(chan answer, len(ask))
	for _, id := range ask {
		st, ok := o.env.Stores.Store(id)
		if !ok {
			got <- answer{store: id, err: wire.Errorf(wire.CodeAbsent, "store %s is not registered", id)}
			continue
		}
		o.goBackground(func() {
			r, err := st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
			got <- answer{id, r, err}
		})
	}
	for range ask {
		var a answer
		select {
		case a = <-got:
		case <-ctx.Done():
			return rd.ctx.Err()
		}
		switch {
		case errors.Is(a.err, wire.ErrFenced) || errors.Is(a.err, wire.ErrConflict):
			return fmt.Errorf("fence %s: %w", o.journalID, a.err)
		case a.err != nil:
			o.log.Warn("store doesn't say what it has", "store", a.store, "site", o.env.Stores.Site(a.store), "err", a.err)
			continue
		}
		rd.answers[a.store] = &a.reply
		o.checkpointHolders(a.store, a.reply.Replicas)
		ids = slices.DeleteFunc(slices.Clone(ids), func(id ident.SegmentID) bool {
			return slices.ContainsFunc(a.reply.Replicas, func(r wire.Replica) bool { return r.Segment == id && r.State == wire.ReplicaSealed })
		})
		if len(ids) == 0 {
			return nil
		}
	}
	return nil
}

// checkpointHolders enters the sealed checkpoint segments that a store has.
func (o *Owner) checkpointHolders(store ident.StoreID, replicas []wire.Replica) {
	for _, r := range replicas {
		if !r.Segment.IsCheckpoint() || r.State != wire.ReplicaSealed {
			continue
		}
		s := o.segs[r.Segment]
		if s == nil {
			s = &segment{id: r.Segment, sealed: true}
			o.keep(s)
		}
		if len(s.holders) == 0 { // the table may have been written before the segment was complete
			s.last, s.end = r.Last, r.End
		}
		if s.last == r.Last && s.end == r.End {
			o.confirm(s, store, r.Made)
		}
	}
}

// adopt gives a segment of the map's table the holders that have all of it.
func (rd *rebuilder) adopt(s *segment) {
	o := rd.o
	for store, a := range rd.answers {
		for i := range a.Replicas {
			r := &a.Replicas[i]
			if r.Segment != s.id || r.State != wire.ReplicaSealed || s.holder(store) != nil {
				continue
			}
			o.learnEnd(s, r)
			if r.End != s.end || r.Last != s.last {
				continue
			}
			if p, permitted := o.permits[permitKey{s.id, store}]; permitted && p.Made == r.Made {
				continue // from the permit on nobody counts it (R13)
			}
			o.confirm(s, store, r.Made)
		}
	}
}

// learnEnd completes a segment that was not sealed yet when the table was written, from a sealed replica. Which record
// is its last is known all the same: the one that the next segment begins after.
func (o *Owner) learnEnd(s *segment, r *wire.Replica) {
	if s.end != 0 || r.State != wire.ReplicaSealed || !s.id.IsCheckpoint() && r.Last != s.last {
		return
	}
	s.last, s.end = r.Last, r.End
	o.tableEnd(s)
}

// tableEnd has the map's table say where a segment ends. Of the last segment of a checkpoint none does: it is sealed when the root is in it, and
// with an end that the table doesn't know it would be needed for ever.
func (o *Owner) tableEnd(s *segment) {
	if err := o.m.Seal(s.slot, s.last, s.end); err != nil {
		o.log.Error("a segment's end does not fit the map's table", "segment", s.id, "err", err)
	}
}

// unheard completes the table with the segments that no store of the fence has, and asks once who else has them. The
// volume is served without those that nobody has who can be reached: their blocks are answered with BUSY until a store
// comes back that has them.
func (rd *rebuilder) unheard() error {
	o := rd.o
	var list []*segment
	for slot, seg := range o.m.Segments() {
		if o.segs[seg.ID] != nil || seg.Retired {
			continue
		}
		s := segmentOf(slot, seg)
		o.keep(s)
		if !seg.ID.IsCheckpoint() {
			o.order = append(o.order, s)
		}
		list = append(list, s)
	}
	slices.SortFunc(o.order, func(a, b *segment) int { return cmp.Compare(a.before.Seq, b.before.Seq) })
	for i, s := range o.order {
		if s.end == 0 && i+1 < len(o.order) {
			s.last = o.order[i+1].before
			o.m.Ended(s.slot, s.last)
		}
	}
	wanting := func() (ids []ident.SegmentID) {
		for _, s := range list {
			if rd.adopt(s); len(s.holders) == 0 {
				ids = append(ids, s.id)
			}
		}
		return ids
	}
	ids := wanting()
	if len(ids) == 0 {
		return nil
	}
	if err := rd.seek(ids); err != nil {
		return err
	}
	o.log.Info("segments that no store of the ensembles has are read from elsewhere", "segments", len(ids), "missing", len(wanting()))
	return nil
}

func segmentOf(slot volume.Slot, seg volume.Segment) *segment {
	return &segment{id: seg.ID, slot: slot, before: seg.Before, last: seg.Last, end: seg.End, sealed: true}
}

// awaited counts the segments whose replicas are all at stores that can not be reached. While there are some of which
// no replica is known, the stores of this site are asked what they have whenever the owner looks; the ships ask the
// others. Where those that are known are all bad, a store that was away at the takeover may have a whole one.
func (o *Owner) awaited() {
	unknown, allBad := false, false
	r := &o.repair
	list, first, last := r.awaiting.next(o)
	if first {
		r.awaits = 0
	}
	for _, s := range list {
		allBad = allBad || s.sealed && s.slot != 0 && len(s.holders) > 0 && !slices.ContainsFunc(s.holders, func(h holder) bool { return !h.bad && !h.going })
		if !s.sealed || s.slot == 0 || slices.ContainsFunc(s.holders, func(h holder) bool { return !h.going && o.env.Stores.Up(h.store) }) || o.retiring(s) || o.needless(s) {
			continue
		}
		r.awaits++
		unknown = unknown || len(s.holders) == 0
	}
	if last {
		if r.awaits > 0 && r.awaited == 0 {
			o.log.Warn("segments are only at stores that can not be reached", "segments", r.awaits)
		}
		r.awaited = r.awaits
	}
	if unknown {
		o.strays.due = 0
	}
	if allBad {
		o.askUnheard()
	}
}

// fallsBack reports that the takeover may be at a site that has a prefix of the history, and so the announcement of a
// checkpoint, but not all of the checkpoint: R12.
func (o *Owner) fallsBack() bool { return o.state.Forced != nil || o.viewing }

// newestComplete gives the newest announced checkpoint of which everything is there, or the zero point: all is replayed.
// One that would leave a hole is none.
func (rd *rebuilder) newestComplete(rec *journal.Recovery, newest journal.CheckpointPoint) (p journal.CheckpointPoint, err error) {
	if newest.At.Seq == 0 || rd.complete(newest) {
		return newest, nil
	}
	list, err := rd.announcements(rec)
	if err != nil {
		return p, err
	}
	for _, p := range append(list, journal.CheckpointPoint{}) {
		if p.At.Seq >= newest.At.Seq {
			continue
		}
		if _, hole := rec.Hole(p.At.Seq); hole {
			break
		}
		if p.At.Seq == 0 || rd.complete(p) {
			rd.o.log.Warn("the newest checkpoint is not all here: an older one is taken", "newest", newest.At.Seq, "seq", p.At.Seq)
			return p, nil
		}
	}
	return newest, nil // the takeover waits for the stores that have it
}

// announcements lists the checkpoints that the history up to the commit point speaks of, newest first.
func (rd *rebuilder) announcements(rec *journal.Recovery) (list []journal.CheckpointPoint, err error) {
	add := func(p journal.CheckpointPoint) {
		if p.At.Seq != 0 && !slices.ContainsFunc(list, func(x journal.CheckpointPoint) bool { return x.At == p.At }) {
			list = append(list, p)
		}
	}
	for i := range rec.Past {
		r := &rec.Past[i]
		p, err := rd.headerPoint(r)
		if err != nil {
			return nil, err
		}
		add(p)
		x, err := rd.index(r)
		if err != nil {
			return nil, err
		}
		for j := range min(len(x.Entries), int(r.To-r.Before.Seq)) {
			if x.Entries[j].Kind != journal.KindCheckpoint {
				continue
			}
			_, body, err := rd.o.readRecordFrom(rd.stores(r), r.Segment, x.Entries[j].Offset, r.Before.Seq+1+ident.Seq(j))
			if err != nil {
				return nil, fmt.Errorf("checkpoint announcement: %w", err)
			}
			if p, err = journal.DecodeCheckpoint(body); err != nil {
				return nil, err
			}
			add(p)
		}
	}
	slices.SortFunc(list, func(a, b journal.CheckpointPoint) int { return cmp.Compare(b.At.Seq, a.At.Seq) })
	return list, nil
}

// complete reports that the root of a checkpoint can be read, and that each segment with a part of it is sealed at a store
// that has answered.
func (rd *rebuilder) complete(p journal.CheckpointPoint) bool {
	m, err := volume.Load(rd.o.journalID, p, rd.o.partReader())
	if err != nil {
		return false
	}
	for _, seg := range m.Segments() {
		if !seg.ID.IsCheckpoint() || seg.Retired || seg.Live == 0 {
			continue
		}
		if s := rd.o.segs[seg.ID]; s == nil || len(s.holders) == 0 {
			return false
		}
	}
	return true
}
