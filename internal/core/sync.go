package core

import (
	"context"
	"runtime"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// syncRun is one fdatasync of one replica, and those who wait for it. A request joins the run that hasn't
// begun yet, never the one that has: that may miss the last bytes.
type syncRun struct {
	done chan struct{}
	err  error
}

// startSyncLocked gives the run that makes everything written so far stable; nil if it is already.
func (s *Store) startSyncLocked(r *replica) *syncRun {
	if r.mu.stableEnd >= r.end.Load() {
		return nil
	}
	if r.mu.running != nil {
		if r.mu.next == nil {
			r.mu.next = &syncRun{done: make(chan struct{})}
		}
		return r.mu.next
	}
	run := &syncRun{done: make(chan struct{})}
	r.mu.running = run
	s.work.Add(1) // the caller is a request or the background, so Close isn't waiting yet
	go s.runSync(r, run)
	return run
}

func (s *Store) runSync(r *replica, run *syncRun) {
	defer s.work.Done()
	for run != nil {
		r.mu.Lock()
		end, last := r.end.Load(), r.mu.last
		r.mu.syncing = end
		began := s.now()
		r.mu.Unlock()
		err := s.usable()
		if err == nil {
			// A restart in the same boot may find unsynced bytes with no handle that wrote them; a new handle
			// syncs them as well, and hears of errors that nobody has heard of yet.
			err = s.syncFile(r)
		}
		gone := err == errGone
		if gone {
			err = nil
		}
		var unpin *handle
		r.mu.Lock()
		other := false // behind the cut of a seal that gave up there are other records by now, of which this one need not know
		if end > r.mu.syncing {
			end, last = r.mu.syncing, r.mu.last
			other = r.end.Load() != end
		}
		if err == nil && !gone && !other && end > r.mu.stableEnd {
			s.countStableLocked(r, end)
			r.mu.stable = last
			if r.end.Load() == end { // clean
				unpin, r.mu.pinned = r.mu.pinned, nil
				s.mu.Lock()
				delete(s.mu.dirty, r)
				s.mu.Unlock()
			} else {
				r.mu.dirtySince = began
			}
		}
		run.err = err
		close(run.done)
		run, r.mu.next = r.mu.next, nil
		r.mu.running = run
		r.mu.Unlock()
		if unpin != nil {
			s.handles.release(unpin)
		}
	}
}

// syncFile is the fdatasync. An error ends the store, but errGone: there is nothing to make stable any more.
func (s *Store) syncFile(r *replica) error {
	f, err := s.handles.acquire(r)
	if err == errGone {
		return err
	}
	if err != nil {
		return s.failOpen(r.path, err)
	}
	defer s.handles.release(f)
	began := s.now()
	slow := time.AfterFunc(s.opts.SyncTimeout, func() {
		s.metrics.slowSyncs.Inc()
		s.log.Warn("fdatasync takes long", "segment", r.id.String(), "after", s.opts.SyncTimeout)
	})
	// The system call keeps one of the processors that Go has, of which there may be one only. What was to be sent
	// meanwhile, for instance to the other holder of the same records, goes first.
	runtime.Gosched()
	err = f.SyncData()
	slow.Stop()
	if err != nil {
		s.fail("fdatasync "+r.path, err)
		return ioError("fdatasync "+r.path, err)
	}
	s.metrics.synced(s.now() - began)
	return nil
}

// countStableLocked moves the stable end forward.
func (s *Store) countStableLocked(r *replica, end uint32) {
	if end > r.mu.stableEnd {
		r.j.unsynced.Add(-int64(end - r.mu.stableEnd))
		r.mu.stableEnd = end
	}
}

// Sync implements journal.Store. The replicas are synced concurrently; the slowest counts.
func (s *Store) Sync(ctx context.Context, m *wire.Sync) (reply wire.SyncReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	if err := s.admit(ctx, s.journal(m.Journal), m.Epoch); err != nil {
		return reply, err
	}
	reply.Boot = s.opts.Boot
	var runs []*syncRun
	var list []*replica
	for _, id := range m.Segments {
		r := s.replica(id)
		if r == nil {
			continue
		}
		list = append(list, r)
		r.mu.Lock()
		if run := s.startSyncLocked(r); run != nil {
			runs = append(runs, run)
		}
		r.mu.Unlock()
	}
	for _, run := range runs {
		select {
		case <-run.done:
			if run.err != nil {
				err = run.err // the others go on by themselves
			}
		case <-ctx.Done():
			return reply, answer("sync", ctx.Err())
		}
	}
	if err != nil {
		return wire.SyncReply{}, err
	}
	for _, r := range list {
		r.mu.Lock()
		if r.mu.state < stateDropped { // as if it had not been there to begin with
			reply.Synced = append(reply.Synced, wire.SegmentSynced{Segment: r.id, StableEnd: r.mu.stableEnd, Stable: r.mu.stable})
		}
		r.mu.Unlock()
	}
	return reply, nil
}

// noteEvery is how often what the journals were told is noted: it need not be exact (R4 compares it with what
// the others were told), so it isn't worth an fdatasync each.
const noteEvery = 5 * time.Second

// noteTold puts into the notes how far commit and stable points and the stable ends of open replicas have
// come. Nobody waits for it.
func (s *Store) noteTold() {
	s.mu.RLock()
	journals := make([]*journalState, 0, len(s.mu.journals))
	for _, j := range s.mu.journals {
		journals = append(journals, j)
	}
	var unsealed []*replica
	for _, r := range s.mu.replicas {
		if r.note.Load().State != wire.ReplicaSealed {
			unsealed = append(unsealed, r)
		}
	}
	s.mu.RUnlock()
	for _, j := range journals {
		j.mu.Lock()
		n := j.noteLocked()
		if n.Commit != j.mu.noted.Commit || n.Stable != j.mu.noted.Stable {
			j.mu.noted = *n
			s.notes.putJournal(n)
		}
		j.mu.Unlock()
	}
	for _, r := range unsealed {
		r.mu.Lock()
		if n := r.note.Load(); !r.mu.closing && r.mu.stableEnd > n.StableEnd {
			s.noteLocked(r, n.State, 0)
		}
		r.mu.Unlock()
	}
}

// dirtied notes that a replica has unsynced bytes. r.mu is held.
func (s *Store) dirtied(r *replica) {
	s.mu.Lock()
	s.mu.dirty[r] = struct{}{}
	first := len(s.mu.dirty) == 1
	s.mu.Unlock()
	if !first {
		return
	}
	select {
	case s.tickle <- struct{}{}:
	default:
	}
}

// background bounds what is unsynced (R8), so that a flush never waits for gigabytes, starts the device on it
// early, and notes now and then what the journals were told. While nothing is unsynced it looks seldom.
func (s *Store) background() {
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	noted := s.now()
	for {
		select {
		case <-s.life.Done():
			return
		case <-timer.C:
		case <-s.tickle:
		}
		now := s.now()
		wait := tickIdle
		if s.syncDue(now) {
			wait = tickEvery
		}
		if now-noted >= noteEvery {
			noted = now
			s.noteTold()
		}
		timer.Reset(wait)
	}
}

// syncDue starts the syncs that are due and doesn't wait for them. It reports whether anything is unsynced.
func (s *Store) syncDue(now time.Duration) bool {
	s.mu.RLock()
	dirty := make([]*replica, 0, len(s.mu.dirty))
	for r := range s.mu.dirty {
		dirty = append(dirty, r)
	}
	s.mu.RUnlock()
	if s.failure.Load() != nil {
		return false
	}
	slices.SortFunc(dirty, func(a, b *replica) int { return a.id.Compare(b.id) })
	for _, r := range dirty {
		var hint *handle
		var from, to uint32
		r.mu.Lock()
		due := now-r.mu.dirtySince >= s.opts.SyncAfter || r.j.unsynced.Load() > s.opts.UnsyncedMax
		switch end := r.end.Load(); {
		case due && r.mu.running == nil:
			s.startSyncLocked(r)
		case end >= r.mu.hinted+writeBackStep && r.mu.pinned != nil:
			from, to = r.mu.hinted, end
			r.mu.hinted = end
			hint, _ = s.handles.acquire(r)
		}
		r.mu.Unlock()
		if hint != nil {
			hint.WriteBack(int64(from), int64(to-from))
			s.handles.release(hint)
		}
	}
	return len(dirty) > 0
}

// writeBackStep is how much is gathered before the device is started on it: a guess, large enough for the
// device to stream.
const writeBackStep = 4 << 20

// stableOf is the stable end as a segment of a journal is asked for it; for tests and status.
func (s *Store) stableOf(id ident.SegmentID) uint32 {
	r := s.replica(id)
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.stableEnd
}
