package access

import (
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

// perform does what the writer asks for. Remote stores are asked before local ones, so that the network works
// while the local kernel copies.
func (o *Owner) perform() bool {
	acts := o.w.Actions()
	for i := range acts {
		if a := &acts[i]; a.Kind == journal.ActAppend && !o.env.Stores.Local(o.members[a.Member].Store) {
			o.append(a)
		}
	}
	for i := range acts {
		a := &acts[i]
		switch a.Kind {
		case journal.ActAppend:
			if o.env.Stores.Local(o.members[a.Member].Store) {
				o.append(a)
			}
		case journal.ActOpen:
			o.open(*a)
		case journal.ActSync:
			o.sync(*a)
		case journal.ActSeal:
			o.seal(*a)
		case journal.ActCopy, journal.ActCopyOpen:
			o.copyOver(*a)
		case journal.ActDiscard:
			o.discard(*a)
		case journal.ActNotice:
			o.stores[a.Member].Notice(&wire.Notice{Epoch: o.epoch, Journal: o.journalID, Commit: o.w.Commit(), Stable: o.w.Stable()})
		case journal.ActServing:
			o.nowServing()
		case journal.ActStopped:
			o.stop(a.Err)
		}
	}
	return len(acts) > 0
}

// appendWait is an append that a store has not answered.
type appendWait struct {
	batch  *journal.Batch
	member int
	since  uint64 // Owner.tick
}

func (o *Owner) append(a *journal.Action) {
	store := o.stores[a.Member]
	local := o.env.Stores.Local(o.members[a.Member].Store)
	msg := &wire.Append{Epoch: o.epoch, Segment: a.Segment.ID, Offset: a.Batch.Offset, Commit: o.w.Commit(), Stable: o.w.Stable(),
		Data: a.Batch.Data, Trusted: local}
	batch, member := a.Batch, a.Member
	o.unanswered = append(o.unanswered, appendWait{batch, member, o.tick()})
	store.Append(msg, func(r wire.AppendReply, err error) {
		o.post(event{kind: evAppended, batch: batch, member: member, boot: r.Boot, err: err})
	})
}

// appended takes the answer of a store. One that comes after the append was given up is for a batch that is
// gone, which the writer passes over.
func (o *Owner) appended(ev *event) {
	for i, x := range o.unanswered {
		if x.batch == ev.batch && x.member == ev.member {
			o.unanswered = append(o.unanswered[:i], o.unanswered[i+1:]...)
			break
		}
	}
	if ev.err != nil {
		o.heard(o.members[ev.member].Store, nil, ev.err)
	}
	o.w.Appended(ev.batch, ev.member, ev.boot, ev.err)
}

// giveUpSlow treats a store that doesn't answer an append in time as failed (gray failures too, and those of this
// node's own disks). When half of the time is over, another pair is made ready.
func (o *Owner) giveUpSlow() {
	now, most := o.tick(), uint64(o.env.Limits.AppendTimeout/time.Millisecond)
	for len(o.unanswered) > 0 && now-o.unanswered[0].since > most {
		x := o.unanswered[0]
		o.unanswered = append(o.unanswered[:0], o.unanswered[1:]...)
		o.log.Warn("store is slow: its segments are closed", "store", o.members[x.member].Store, "after", o.env.Limits.AppendTimeout)
		if g, ok := o.stores[x.member].(*localStore); ok {
			g.gaveUp()
		}
		err := wire.Errorf(wire.CodeUnreached, "no answer to an append within %v", o.env.Limits.AppendTimeout)
		o.letDown(o.members[x.member].Store, err)
		o.w.Appended(x.batch, x.member, ident.BootID{}, err)
	}
	for i := range o.unanswered {
		if now-o.unanswered[i].since <= most/2 {
			break
		}
		o.w.Slow(o.unanswered[i].member)
	}
}

// letDown notes that a store has failed by itself: it is tried again after a while. One that can't be reached is
// tried when it can.
func (o *Owner) letDown(store ident.StoreID, err error) {
	if errors.Is(err, wire.ErrNoSpace) {
		o.env.Health.Full(store, err.Error())
	} else {
		o.env.Health.Failed(store, err.Error())
	}
}

// heard looks at a store's answer for the store's own failures. ended is the context of the request.
// It may be called from any goroutine.
func (o *Owner) heard(store ident.StoreID, ended error, err error) {
	if errors.Is(err, wire.ErrIO) || errors.Is(err, wire.ErrNoSpace) || err != nil && errors.Is(ended, context.DeadlineExceeded) {
		o.letDown(store, err)
	}
}

// refuseForSpace fails the writes that no pair of stores has room for. Those that may be on a store already
// keep their place and go on once there is room again.
func (o *Owner) refuseForSpace() {
	if o.stopErr != nil || !o.w.Stuck() {
		return
	}
	for _, e := range o.w.DropUnsent() {
		op, ok := e.Context.(*Op)
		if !ok || op.parts > 1 {
			o.w.Queue(e) // the owner's own, and parts of something larger, wait for room in their new places
			if ok {
				op.seq = max(op.seq, e.Seq)
			}
			continue
		}
		o.refused = append(o.refused, op)
	}
	for _, op := range o.refused {
		if op.Kind == wire.OpUnit {
			o.unit.revert()
		}
		o.uncommitted = slices.DeleteFunc(o.uncommitted, func(x *Op) bool { return x == op })
		o.dropBuf(op)
		o.finish(op, wire.Errorf(wire.CodeNoSpace, "no two core servers have room for another segment"))
	}
	o.refused = o.refused[:0]
	// Whoever waits for what is refused now waits for what is left of it; the owner's own records among that wait for room.
	at, last := o.w.At().Seq, o.w.Commit().Seq
	for _, op := range o.uncommitted {
		last = max(last, op.seq)
	}
	for _, op := range o.stableWait {
		if op.home {
			op.seq = min(op.seq, at)
		} else {
			op.seq = min(op.seq, last)
		}
	}
	for i := range o.barWait {
		o.barWait[i].seq = min(o.barWait[i].seq, last)
	}
	o.retryWaiting()
}

// unreached makes a context's end an answer that the rules know.
func unreached(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return wire.Errorf(wire.CodeUnreached, "%v", err)
	}
	return err
}

func (o *Owner) open(a journal.Action) {
	store := o.stores[a.Member]
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		late := time.AfterFunc(o.env.Limits.SyncPatience, func() {
			o.letDown(store.ID(), wire.Errorf(wire.CodeUnreached, "no answer to the opening of a segment within %v", o.env.Limits.SyncPatience))
		})
		r, err := store.OpenSegment(ctx, &wire.OpenSegment{Epoch: o.epoch, Segment: a.Segment.ID, Capacity: journal.CapacityOf(a.Segment.ID, o.env.Limits.SegmentBytes)})
		late.Stop()
		o.call(func() {
			if err != nil && o.stopErr == nil {
				o.log.Warn("segment not opened", "segment", a.Segment.ID, "store", store.ID(), "err", err)
			}
			o.heard(store.ID(), ctx.Err(), err)
			o.w.Opened(a.Segment, a.Member, r.Boot, unreached(err))
			switch {
			case err == nil:
				o.full = false
			case errors.Is(err, wire.ErrNoSpace):
				o.full = true
				o.refuseForSpace()
			}
		})
	})
}

// sync has a member sync. One that takes too long is given up if others can do without it (R8): what it did not
// make stable is put elsewhere before a flush returns.
func (o *Owner) sync(a journal.Action) {
	store := o.stores[a.Member]
	o.goBackground(func() {
		start := time.Now()
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		answered := false // in the loop
		patience := time.AfterFunc(o.env.Limits.SyncPatience, func() {
			o.call(func() {
				if answered || o.stopErr != nil || !o.w.CanSpare(a.Member) {
					return
				}
				answered = true
				err := wire.Errorf(wire.CodeUnreached, "no answer to an fdatasync within %v", o.env.Limits.SyncPatience)
				o.log.Warn("store is slow: its segments are closed", "store", store.ID(), "err", err)
				o.letDown(store.ID(), err)
				o.w.Synced(a.Member, wire.SyncReply{}, err)
			})
		})
		r, err := store.Sync(ctx, &wire.Sync{Epoch: o.epoch, Journal: o.journalID, Segments: a.Segments})
		patience.Stop()
		o.env.Metrics.SyncSeconds.Observe(time.Since(start).Seconds())
		o.call(func() {
			if answered {
				return
			}
			answered = true
			o.heard(store.ID(), ctx.Err(), err)
			o.w.Synced(a.Member, r, unreached(err))
		})
	})
}

func (o *Owner) seal(a journal.Action) {
	store := o.stores[a.Member]
	end, last := a.Segment.End(), a.Segment.Last()
	start := o.w.Start()
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, 4*o.env.Limits.SyncTimeout)
		defer cancel()
		asked := o.env.Clock()
		r, err := store.Seal(ctx, &wire.Seal{Epoch: o.epoch, Segment: a.Segment.ID, End: end, Last: last, Start: start})
		took := time.Duration(o.env.Clock() - asked)
		o.call(func() {
			if o.chore.held {
				o.env.Chores.felt(took)
			}
			o.heard(store.ID(), ctx.Err(), err)
			o.sealed(a.Segment, a.Member, r.Made, unreached(err))
		})
	})
}

// sealed notes a sealed replica, in the writer and in the owner's own table.
func (o *Owner) sealed(s *journal.Segment, member int, made uint64, err error) {
	o.w.Sealed(s, member, err)
	seg := o.segs[s.ID]
	if seg == nil {
		return
	}
	store := o.members[member].Store
	if err != nil {
		if o.stopErr == nil {
			o.log.Warn("replica not sealed", "segment", s.ID, "store", store, "err", err)
		}
		if !mayPass(err) {
			o.markBad(s.ID, store, err)
		}
		return
	}
	o.endSegment(seg, s.Last(), s.End())
	o.confirm(seg, store, made)
}

// endSegment notes that nothing will be added to a segment.
func (o *Owner) endSegment(seg *segment, last ident.Position, end uint32) {
	if seg.sealed {
		return
	}
	seg.sealed, seg.last, seg.end = true, last, end
	if err := o.m.Seal(seg.slot, last, end); err != nil {
		o.log.Error("segment table", "segment", seg.id, "err", err)
	}
}

// confirm notes a stable, sealed replica; made tells it from others that the store had. What says so may be older than the permit for it
// to go (R13): then nobody counts it.
func (o *Owner) confirm(s *segment, store ident.StoreID, made uint64) {
	if o.uncounted(s, store, made) || o.env.about(store).Lost {
		return // forgetLost has been through
	}
	o.strays.moment++
	if h := s.holder(store); h != nil {
		h.stable, h.bad, h.fork, h.strange, h.made, h.over, h.moment = true, false, false, false, made, ident.Position{}, o.strays.moment
		return
	}
	s.holders = append(s.holders, holder{store: store, stable: true, made: made, moment: o.strays.moment})
}

func (s *segment) holder(store ident.StoreID) *holder {
	for i := range s.holders {
		if s.holders[i].store == store {
			return &s.holders[i]
		}
	}
	return nil
}

func (o *Owner) copyOver(a journal.Action) {
	from, to := o.stores[a.Member], o.stores[a.Dest]
	end, last, start := a.Segment.End(), a.Segment.Last(), o.w.Start()
	records := uint64(last.Seq - a.Segment.Before.Seq)
	o.goBackground(func() {
		var made uint64
		var err error
		if a.Kind == journal.ActCopyOpen {
			err = o.copyOpen(from, to, a.Segment.ID, end, records)
		} else {
			made, err = o.copySegment(from, to, a.Segment.ID, end, records, last, start, nil)
		}
		err = unreached(err)
		if errors.Is(err, wire.ErrUnreached) {
			// The source or the destination: appends will tell which. The copy is tried again.
			err = wire.Errorf(wire.CodeBusy, "copy: %v", err)
		}
		o.call(func() {
			switch {
			case err == nil:
				o.refusedCopies = 0
			case refusesCopy(err):
				o.refusedCopies++
			}
			if a.Kind == journal.ActCopyOpen {
				if err != nil && o.stopErr == nil {
					o.log.Warn("segment not copied", "segment", a.Segment.ID, "store", to.ID(), "err", err)
				}
				o.w.CopiedOpen(a.Segment, a.Dest, err)
				return
			}
			o.sealed(a.Segment, a.Dest, made, err)
		})
	})
}

// copyFrame is how much one push of a copy carries.
const copyFrame = 1 << 20

// copySegment makes a sealed replica of [0, end), which is so many records, at another store from one that has it. With a budget it takes as long
// as the budget lets it.
func (o *Owner) copySegment(from, to journal.Store, id ident.SegmentID, end uint32, records uint64, last ident.Position, start wire.EpochStart, budget *Copies) (made uint64, err error) {
	ctx := o.ctx
	if budget == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(o.ctx, time.Minute)
		defer cancel()
	}
	r, err := o.copyBytes(ctx, from, to, id, end, records, budget)
	if err != nil {
		return 0, err
	}
	if r.State == wire.ReplicaSealed {
		if r.End != end || r.Last != last {
			return 0, wire.Errorf(wire.CodeMismatch, "segment %s is sealed at %s after %s, not after %s", id, to.ID(), r.Last, last)
		}
		return r.Made, nil
	}
	sctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	sealed, err := to.Seal(sctx, &wire.Seal{Epoch: o.epoch, Segment: id, End: end, Last: last, Start: start})
	return sealed.Made, err
}

// copyOpen makes [0, end) of a segment stable at another store, which does not seal it.
func (o *Owner) copyOpen(from, to journal.Store, id ident.SegmentID, end uint32, records uint64) error {
	ctx, cancel := context.WithTimeout(o.ctx, time.Minute)
	defer cancel()
	if _, err := o.copyBytes(ctx, from, to, id, end, records, nil); err != nil {
		return err
	}
	sctx, scancel := context.WithTimeout(ctx, o.env.Limits.SyncTimeout)
	defer scancel()
	r, err := to.Sync(sctx, &wire.Sync{Epoch: o.epoch, Journal: o.journalID, Segments: []ident.SegmentID{id}})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(r.Synced, func(x wire.SegmentSynced) bool { return x.Segment == id && x.StableEnd >= end }) {
		return wire.Errorf(wire.CodeBusy, "segment %s is not stable to %d at %s", id, end, to.ID())
	}
	return nil
}

// copyBytes brings the bytes of [0, end) that a store lacks to it, and gives what it had. One that has sealed the segment is
// left as it is.
func (o *Owner) copyBytes(ctx context.Context, from, to journal.Store, id ident.SegmentID, end uint32, records uint64, budget *Copies) (r wire.Replica, err error) {
	octx, ocancel := context.WithTimeout(ctx, 2*o.env.Limits.SyncPatience) // there may be others to copy to
	_, err = to.OpenSegment(octx, &wire.OpenSegment{Epoch: o.epoch, Segment: id, Capacity: journal.CapacityOfCopy(end, records, o.env.Limits.SegmentBytes), Copy: true})
	ended := octx.Err()
	ocancel()
	if err != nil {
		o.heard(to.ID(), ended, err)
		return r, fmt.Errorf("open at %s: %w", to.ID(), err)
	}
	// What the destination has already is compared by the append itself; a differing replica is loud.
	r, there, err := o.replicaAt(ctx, to, id)
	if err != nil || there && r.State == wire.ReplicaSealed {
		return r, err
	}
	at := uint32(0)
	if there {
		at = min(r.End, end)
	}
	ends, err := o.recordEnds(ctx, from, id)
	if err != nil {
		return r, err
	}
	for at < end {
		n, _ := slices.BinarySearch(ends, at+copyFrame+1)
		next := end
		if n > 0 && ends[n-1] > at {
			next = min(end, ends[n-1])
		} else if n < len(ends) {
			next = min(end, ends[n])
		}
		if err := budget.pace(ctx, int(next-at)); err != nil {
			return r, err
		}
		commit, stable := o.pointsNow()
		pctx, cancel := context.WithTimeout(ctx, pushTimeout)
		_, err := from.Push(pctx, &wire.Push{Epoch: o.epoch, Segment: id, From: at, To: next, Commit: commit, Stable: stable, Dest: to.ID()})
		cancel()
		if err != nil {
			return r, fmt.Errorf("push to %s: %w", to.ID(), err)
		}
		at = next
	}
	return r, nil
}

// replicaAt asks a store for its replica of a segment.
func (o *Owner) replicaAt(ctx context.Context, st journal.Store, id ident.SegmentID) (r wire.Replica, there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*o.env.Limits.SyncTimeout)
	defer cancel()
	for m := (&wire.Inventory{Journal: id.Journal}); ; {
		if id.Number > 0 && m.After == (ident.SegmentID{}) {
			m.After, m.Limit = id, 1
			m.After.Number-- // the next one in order, if it is there
		}
		inv, err := st.Inventory(ctx, m)
		if err != nil {
			return r, false, err
		}
		for _, x := range inv.Replicas {
			if x.Segment == id {
				return x, true, nil
			}
		}
		if !inv.More || len(inv.Replicas) == 0 || m.Limit == 1 {
			return r, false, nil
		}
		m.After = inv.Replicas[len(inv.Replicas)-1].Segment
	}
}

// recordEnds lists the offsets behind each record of a replica: pushes carry whole records.
func (o *Owner) recordEnds(ctx context.Context, from journal.Store, id ident.SegmentID) ([]uint32, error) {
	x, err := readIndex(ctx, from, id)
	if err != nil {
		return nil, err
	}
	ends := make([]uint32, 0, len(x.Entries))
	for i := 1; i < len(x.Entries); i++ {
		ends = append(ends, x.Entries[i].Offset)
	}
	return append(ends, x.End), nil
}

// rawTimeout bounds one request for bytes of a replica that is not a client's: a disk that hangs must not hold up
// shipping or a takeover for ever.
const rawTimeout = 10 * time.Second

func readIndex(ctx context.Context, from journal.Store, id ident.SegmentID) (*journal.Index, error) {
	ctx, cancel := context.WithTimeout(ctx, rawTimeout)
	defer cancel()
	r, err := from.ReadIndex(ctx, &wire.ReadIndex{Segment: id})
	if err != nil {
		return nil, fmt.Errorf("index of %s at %s: %w", id, from.ID(), err)
	}
	defer release(r)
	return journal.DecodeIndex(r.Data)
}

func release(r wire.ReadReply) {
	if r.Release != nil {
		r.Release()
	}
}

// pointsNow gives the commit and stable points for messages that are made outside the loop: those last published.
func (o *Owner) pointsNow() (commit, stable ident.Position) {
	if v := o.view.Load(); v != nil {
		commit, stable = v.Commit, v.Stable
	}
	return commit, stable
}

func (o *Owner) discard(a journal.Action) {
	store := o.stores[a.Member]
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		defer cancel()
		// Best effort: what stays counts for nothing that is in another segment, and is taken away as a stray.
		if _, err := store.Drop(ctx, &wire.Drop{Epoch: o.epoch, Segment: a.Segment.ID}); err != nil && o.ctx.Err() == nil {
			o.log.Debug("empty segment not dropped", "segment", a.Segment.ID, "store", store.ID(), "err", err)
		}
	})
}

// apply takes one committed record into the map and the owner's tables.
func (o *Owner) apply(e *journal.Entry) {
	s := o.lastSeg
	if s == nil || s.id != e.Segment {
		if s = o.segs[e.Segment]; s == nil {
			s = o.addSegment(e)
		}
		o.lastSeg = s
	}
	x := e.Entry(e.Offset)
	var err error
	if e.Kind == journal.KindCopy {
		err = o.copied(&x, e.Seq, e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen])
	} else {
		err = o.m.Apply(&x, e.Seq, s.slot)
	}
	if err != nil {
		// A bug: rather stop than answer from a map that we do not understand.
		o.stop(fmt.Errorf("map: %w", err))
		return
	}
	if e.Kind == journal.KindAttach || e.Kind == journal.KindEpochStart {
		if err := o.applyPorts(e.Kind, &e.Record, e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen]); err != nil {
			o.stop(fmt.Errorf("seq %d: %w", e.Seq, err))
			return
		}
	}
	if e.Kind == journal.KindPin {
		if err := o.applyPins(e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen]); err != nil {
			o.stop(fmt.Errorf("pins at seq %d: %w", e.Seq, err))
			return
		}
	}
	s.last, s.end = e.Position(), e.Offset+uint32(len(e.Bytes))
	o.cp.appliedAt = s.last
	if !housekeeping(e.Kind) {
		s.lasting, o.cp.lastingAt = true, time.Duration(o.env.Clock())
	}
	o.written += uint64(len(e.Bytes))
	if e.Kind == journal.KindReservation {
		if err := o.unitApplied(e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen]); err != nil {
			o.stop(fmt.Errorf("state of the unit at seq %d: %w", e.Seq, err))
			return
		}
	}
	if e.Request.Number != 0 {
		o.noteRequest(e.Request, e.Part, e.Seq)
	}
}

// noteRequest remembers a request that became a record. Where there are too many of a forwarder the oldest count as confirmed:
// it has far fewer under way, and what comes under their numbers is refused, never applied again.
func (o *Owner) noteRequest(id journal.RequestID, part uint8, seq ident.Seq) {
	r := o.m.Requests()
	if r.Add(id, part, seq) == nil {
		return
	}
	r.MakeRoom(id.Forwarder)
	if err := r.Add(id, part, seq); err != nil {
		o.log.Error("a request can't be remembered", "forwarder", id.Forwarder, "err", err)
	}
}

// addSegment enters the segment of the first committed record in the tables.
func (o *Owner) addSegment(e *journal.Entry) *segment {
	s := &segment{id: e.Segment}
	o.w.Pending(func(ws *journal.Segment, holders []int) {
		if ws.ID == e.Segment {
			s.before, s.writer = ws.Before, ws
			for _, m := range holders {
				s.holders = append(s.holders, holder{store: o.members[m].Store})
			}
		}
	})
	s.last = s.before
	o.enter(s)
	return s
}

// enter puts a segment of the history into the map's table and the order of seq.
func (o *Owner) enter(s *segment) {
	slot, err := o.m.AddSegment(volume.Segment{ID: s.id, Before: s.before, Last: s.last, End: s.end, Sealed: s.sealed})
	if err != nil {
		o.stop(err)
		return
	}
	s.slot = slot
	o.keep(s)
	if s.id.IsCheckpoint() {
		return
	}
	i, _ := slices.BinarySearchFunc(o.order, s, func(a, b *segment) int {
		if a.before.Seq < b.before.Seq {
			return -1
		} else if a.before.Seq > b.before.Seq {
			return 1
		}
		return 0
	})
	o.order = slices.Insert(o.order, i, s)
}

// nowServing opens the gates.
func (o *Owner) nowServing() {
	o.log.Info("owner serves", "epoch", o.epoch, "seq", o.w.At().Seq, "proven", o.proven,
		"took", time.Since(o.started).Round(time.Millisecond))
	o.keptAll()
	if o.beginForks(); o.stopErr != nil {
		return
	}
	o.ports.strict = o.forgotPorts()
	close(o.serving)
	o.publish()
	list := o.waiting
	o.waiting = nil
	for _, op := range list {
		o.admit(op)
	}
	o.afterServing()
}
