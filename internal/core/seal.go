package core

import (
	"context"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Seal implements journal.Store.
func (s *Store) Seal(ctx context.Context, m *wire.Seal) (reply wire.SealReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	r := s.replica(m.Segment)
	if r == nil {
		if m.End <= journal.SegmentHeaderSize { // an empty one, sealed before
			return wire.SealReply{Boot: s.opts.Boot}, nil
		}
		return reply, absent(m.Segment)
	}
	if err := s.admit(ctx, r.j, m.Epoch); err != nil {
		return reply, err
	}
	// The caller may go away; the work is finished all the same.
	type result struct {
		length uint32
		err    error
	}
	c := make(chan result, 1)
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		length, err := s.seal(r, m)
		c <- result{length, err}
	}()
	select {
	case res := <-c:
		if res.err != nil {
			return reply, res.err
		}
		return wire.SealReply{Boot: s.opts.Boot, Length: res.length, Made: r.note.Load().Made}, nil
	case <-ctx.Done():
		return reply, answer("seal", ctx.Err())
	}
}

func (s *Store) seal(r *replica, m *wire.Seal) (length uint32, err error) {
	r.sealing.Lock()
	defer r.sealing.Unlock()
	keep, forked, err := s.admitSeal(r, m)
	if err != nil {
		return 0, err
	}
	if forked {
		// It ends as it was asked to; that something was set aside is what the caller has to hear. Asked again it succeeds.
		if length, err = s.sealAt(r, m, keep); err == nil {
			err = wire.Errorf(wire.CodeFork, "what segment %s had behind %s is set aside as a fork", r.id, m.Last)
		}
		return length, err
	}
	return s.sealAt(r, m, keep)
}

// sealAt ends a replica after keep records; r.sealing is held.
func (s *Store) sealAt(r *replica, m *wire.Seal, keep int) (length uint32, err error) {
	if keep < 0 { // it is sealed like this already
		return r.note.Load().Length, nil
	}
	if m.End <= journal.SegmentHeaderSize {
		return 0, s.discard(r, m.Epoch)
	}
	f, err := s.handles.acquire(r)
	if err != nil {
		return 0, s.sealFailed(r, ioError("open "+r.path, err))
	}
	defer s.handles.release(f)

	r.mu.Lock()
	if end := r.end.Load(); end > m.End {
		if err := r.checkLocked(m.Epoch); err != nil {
			r.mu.closing = false
			r.mu.Unlock()
			return 0, err
		}
		r.mu.index = slices.Clip(r.mu.index[:keep])
		if cut := min(end, max(r.mu.stableEnd, m.End)); end > cut {
			r.j.unsynced.Add(-int64(end - cut))
		}
		r.mu.stableEnd, r.mu.syncing = min(r.mu.stableEnd, m.End), min(r.mu.syncing, m.End)
		r.mu.last = m.Last
		r.end.Store(m.End)
		var lowered *noteBatch
		if r.note.Load().StableEnd > m.End {
			// The file is cut below what is noted as stable: a start that finds it so must not take it for damaged.
			lowered = s.noteLocked(r, r.mu.state, 0)
		}
		r.mu.Unlock()
		if lowered != nil {
			if err := lowered.wait(context.Background()); err != nil {
				s.fail("note that a tail goes", err)
				return 0, answer("note that a tail goes", err)
			}
		}
		// The tail goes before the index is written: what is left of it behind the index would look like
		// records after a bad one. Its space is taken back at once.
		if err := f.Truncate(int64(m.End)); err != nil {
			return 0, s.sealFailed(r, ioError("cut "+r.path, err))
		}
		r.mu.Lock()
		r.mu.taken = min(r.mu.taken, m.End)
	}
	x := journal.Index{Segment: r.id, Before: r.mu.before, Last: r.mu.last, End: m.End, Entries: r.mu.index}
	taken := r.mu.taken
	r.mu.Unlock()
	index := journal.AppendIndex(nil, &x)
	length = m.End + uint32(len(index))
	if taken < length {
		if err := f.Preallocate(int64(taken), int64(length)); err != nil {
			return 0, s.sealFailed(r, ioError("room for the index of "+r.path, err))
		}
	}
	if _, err := f.WriteAt(index, int64(m.End)); err != nil {
		return 0, s.sealFailed(r, ioError("write the index of "+r.path, err))
	}
	if err := f.Truncate(int64(length)); err != nil {
		return 0, s.sealFailed(r, ioError("truncate "+r.path, err))
	}
	if err := s.syncFile(r); err != nil {
		return 0, err
	}
	r.mu.Lock()
	s.countStableLocked(r, r.end.Load())
	r.mu.stable = r.mu.last
	batch := s.noteLocked(r, wire.ReplicaSealed, length)
	r.mu.Unlock()
	s.count(r, int64(length))
	if err := batch.wait(context.Background()); err != nil {
		s.fail("note that a replica is sealed", err)
		return 0, answer("note that a replica is sealed", err)
	}
	r.mu.Lock()
	r.mu.state = wire.ReplicaSealed
	r.mu.index = nil
	unpin := r.mu.pinned
	r.mu.pinned = nil
	s.mu.Lock()
	delete(s.mu.dirty, r)
	s.mu.Unlock()
	r.mu.Unlock()
	if unpin != nil {
		s.handles.release(unpin)
	}
	return length, nil
}

// sealFailed lets appends in again: nothing was promised. An error of the disk itself ends the store.
func (s *Store) sealFailed(r *replica, err *wire.Error) error {
	if err.Code == wire.CodeIO {
		s.fail("seal "+r.path, err)
	}
	r.mu.Lock()
	r.mu.closing = false
	r.mu.Unlock()
	return err
}

// admitSeal decides whether the replica may end at m.End and closes it to appends if so. It gives how many
// records stay, -1 if it is sealed like that already, and whether those behind were set aside.
func (s *Store) admitSeal(r *replica, m *wire.Seal) (keep int, forked bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.checkLocked(m.Epoch); err != nil {
		return 0, false, err
	}
	end := r.end.Load()
	switch r.mu.state {
	case wire.ReplicaDamaged:
		return 0, false, wire.Errorf(wire.CodeCorrupt, "replica of %s is damaged", r.id)
	case wire.ReplicaFork:
		// It kept the name of its segment, because there was no room for a copy, say. It is tried again: the segment may
		// have no other place for this replica.
		length := r.note.Load().Length
		if r.id.IsFork() || m.Epoch == r.id.Epoch || end < m.End || !s.setAsideLocked(r, m, length) {
			return 0, false, wire.Errorf(wire.CodeFork, "replica of %s is set aside as a fork", r.id)
		}
		if length > 0 {
			err = s.unsealLocked(r, m)
		} else if _, err = s.positionAtLocked(r, m.End, m.Last); err == nil {
			err = s.reopenLocked(r)
		}
		if err != nil {
			return 0, false, err
		}
		forked = true
	case stateDropped, stateAside, stateLost:
		return 0, false, absent(r.id)
	}
	if end < m.End {
		return 0, false, wire.Errorf(wire.CodeGap, "seal of %s at %d, the end is %d", r.id, m.End, end)
	}
	if r.mu.state == wire.ReplicaSealed {
		if end == m.End && r.mu.last == m.Last {
			return -1, false, nil
		}
		refused := wire.Errorf(wire.CodeFork, "seal of %s at %d after %s, it is sealed at %d after %s", r.id, m.End, m.Last, end, r.mu.last)
		switch {
		case m.Epoch == r.id.Epoch:
			return 0, false, refused
		case !vouched(m) && !followed(r.mu.last, m, s.starts(r)):
			// What was sealed was committed then. Who wants less follows another history. Of that a later epoch's owner is
			// the judge: the replica is kept, as a fork, and counts for nothing any more (R14).
			if !s.setAsideLocked(r, m, r.note.Load().Length) {
				return 0, false, refused
			}
			forked = true
		case m.End <= journal.SegmentHeaderSize:
			return 0, false, wire.Errorf(wire.CodeMismatch, "seal of %s at %d, it is sealed at %d after %s, with nothing that epoch %s does not have", r.id, m.End, end, r.mu.last, m.Epoch)
		default:
			// The next owner has not heard that so much was committed, and has put the last records into a segment of its
			// own: they are part of its history, and go from here as from a replica that is open.
		}
		if err := s.unsealLocked(r, m); err != nil {
			return 0, forked, err
		}
	}
	if err := s.usable(); err != nil {
		return 0, forked, err
	}
	switch {
	case m.End <= journal.SegmentHeaderSize:
		keep = 0
	case end == m.End:
		if r.mu.last != m.Last {
			return 0, forked, wire.Errorf(wire.CodeMismatch, "seal of %s after %s, the last record is %s", r.id, m.Last, r.mu.last)
		}
		keep = len(r.mu.index)
	default:
		if keep, err = s.positionAtLocked(r, m.End, m.Last); err != nil {
			return 0, forked, err
		}
	}
	if end > m.End && len(r.mu.index) > keep && !forked && !s.mayCutLocked(r, m) {
		last := r.mu.last
		if !s.setAsideLocked(r, m, 0) {
			return 0, false, wire.Errorf(wire.CodeFork, "replica of %s goes on to %s behind %s and may not be cut by the start of epoch %s", r.id, last, m.Last, m.Start.At.Epoch)
		}
		forked = true
	}
	r.mu.closing = true
	return keep, forked, nil
}

// setAsideLocked makes a fork of a replica; length is that of the file if it was sealed. The fork gets a name of its own.
// Where the segment's beginning is of the history that m speaks of, it is a copy, and the replica may be cut: that is what
// it says. Should that fail, all of the replica becomes the fork under the segment's name, and counts for nothing.
func (s *Store) setAsideLocked(r *replica, m *wire.Seal, length uint32) (cut bool) {
	var err error
	if m.End > journal.SegmentHeaderSize {
		if err = s.copyForkLocked(r, length); err == nil {
			return true
		}
	} else if err = s.renameForkLocked(r, length); err == nil {
		return false
	}
	s.log.Error("a fork keeps the name of its segment", "segment", r.id.String(), "err", err)
	r.mu.state = wire.ReplicaFork
	r.mu.closing = true
	if err := s.noteLocked(r, wire.ReplicaFork, length).wait(s.life); err != nil {
		s.log.Error("a fork could not be noted", "segment", r.id.String(), "err", err)
	}
	return false
}

// positionAtLocked holds last to be the position at the record boundary end, and counts the records before it.
func (s *Store) positionAtLocked(r *replica, end uint32, last ident.Position) (keep int, err error) {
	keep, ok := slices.BinarySearchFunc(r.mu.index, end, func(e journal.IndexEntry, at uint32) int { return int(e.Offset) - int(at) })
	if !ok || keep == 0 {
		return 0, wire.Errorf(wire.CodeMismatch, "seal of %s at %d, where no record ends", r.id, end)
	}
	rec, err := s.readHead(r, r.mu.index[keep-1].Offset)
	if err != nil {
		return 0, err
	}
	if rec.Position() != last {
		return 0, wire.Errorf(wire.CodeMismatch, "seal of %s at %d after %s, the record there is %s", r.id, end, last, rec.Position())
	}
	return keep, nil
}

// mayCutLocked says whether what lies behind m.Last may be discarded. The owner of the segment itself may
// abandon what it appended and never got committed. Anybody else needs R14: its own epoch-start, committed, of
// the highest epoch here (the fence has seen to that), and every epoch-start between the tail and that history
// proven. That is the sender's word, who knows them all; without it, of a start that isn't known here it is not known.
func (s *Store) mayCutLocked(r *replica, m *wire.Seal) bool {
	if m.Epoch == r.id.Epoch || mutant.On(mutant.R14Cut) {
		return true
	}
	start := m.Start
	if start.At.Epoch != m.Epoch && !mutant.On(mutant.R14Own) || start.At.Seq == 0 {
		return false
	}
	starts := s.starts(r)
	if vouched(m) || followed(r.mu.last, m, starts) {
		return true
	}
	for {
		if !start.Proven {
			return false
		}
		if start.Before.Seq <= m.Last.Seq || !m.Last.Epoch.Less(start.Before.Epoch) {
			return true // directly behind what is kept, or only records of that epoch in between
		}
		next, known := starts[start.Before.Epoch]
		if !known || !next.At.Epoch.Less(start.At.Epoch) {
			return false
		}
		start = next
	}
}

// vouched reports the sealer's word that all epochs since the segment's were proven: what this replica has beyond its end was
// either never committed or is elsewhere in the sealer's history.
func vouched(m *wire.Seal) bool {
	return m.Proven && m.Start.Proven && m.Start.At.Epoch == m.Epoch && m.Start.At.Seq != 0
}

// followed reports that a record is part of the history that the sealer's epoch-start follows, as far as the starts
// before it are known. Within an epoch a seq names one record, and an owner has what it follows stable on two servers,
// in segments of its own if need be: so nothing is lost with another copy, proven or not.
func followed(last ident.Position, m *wire.Seal, starts map[ident.Epoch]wire.EpochStart) bool {
	start := m.Start
	if start.At.Epoch != m.Epoch || start.At.Seq == 0 {
		return false
	}
	for last.Epoch.Less(start.Before.Epoch) {
		next, known := starts[start.Before.Epoch]
		if !known || !next.At.Epoch.Less(start.At.Epoch) {
			return false
		}
		start = next
	}
	return last.Epoch == start.Before.Epoch && last.Seq <= start.Before.Seq
}

// starts gives the epoch-starts that replicas of the journal here carry. r's own is read without its lock,
// which the caller holds.
func (s *Store) starts(locked *replica) map[ident.Epoch]wire.EpochStart {
	starts := map[ident.Epoch]wire.EpochStart{}
	for _, id := range s.ids(locked.id.Journal) {
		r := s.replica(id)
		if r == nil || r == locked {
			continue
		}
		// The durable note has the start of a sealed replica; an open one is asked, unless it is busy: two
		// replicas are never locked in a chain.
		start := r.note.Load().Start
		if r.mu.TryLock() {
			start = r.mu.start
			r.mu.Unlock()
		}
		if start.At.Seq != 0 {
			starts[start.At.Epoch] = start
		}
	}
	return starts
}
