package core

import (
	"context"
	"time"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

func fenced(code wire.Code, fence, epoch ident.Epoch) error {
	e := wire.Errorf(code, "epoch %s, the fence is %s", epoch, fence)
	e.Epoch = fence
	return e
}

// check compares an epoch with a fence.
func checkEpoch(fence, epoch ident.Epoch) error {
	switch {
	case mutant.On(mutant.R1Fence) && epoch.Less(fence):
		return nil
	case epoch.Less(fence):
		return fenced(wire.CodeFenced, fence, epoch)
	case epoch.Conflicts(fence):
		return fenced(wire.CodeConflict, fence, epoch)
	}
	return nil
}

// checkLocked is checkEpoch with r.mu held, in the same hold of it as what is done then: whoever raises the fence looks at the replica
// under the lock afterwards, and a newer owner counts on what it reads.
func (r *replica) checkLocked(epoch ident.Epoch) error {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	return checkEpoch(r.j.mu.fence, epoch)
}

// admit lets a request of an epoch through: an older one is refused, a newer one raises the fence, durably
// before anything else (R6). The common case is one atomic load.
func (s *Store) admit(ctx context.Context, j *journalState, epoch ident.Epoch) error {
	if *j.durable.Load() == epoch {
		return nil
	}
	return s.raise(ctx, j, epoch)
}

func (s *Store) raise(ctx context.Context, j *journalState, epoch ident.Epoch) error {
	j.mu.Lock()
	if err := checkEpoch(j.mu.fence, epoch); err != nil {
		j.mu.Unlock()
		return err
	}
	if j.mu.fence.Less(epoch) {
		j.mu.was = j.mu.fence
		j.mu.fence = epoch
		if !mutant.On(mutant.R6Durable) {
			j.mu.raising = s.notes.putJournal(j.noteLocked())
		}
	}
	batch := j.mu.raising
	j.mu.Unlock()
	s.opts.Leases.remove(s.id, j.id, epoch)
	if err := batch.wait(ctx); err != nil {
		return answer("raise the fence", err)
	}
	j.mu.Lock()
	if j.mu.fence == epoch {
		j.durable.Store(&epoch)
	}
	j.mu.Unlock()
	return nil
}

// Fence implements journal.Store. The fence is obeyed from the first line on; only the answer waits for the
// disk and for the grants that run.
func (s *Store) Fence(ctx context.Context, m *wire.Fence) (reply wire.FenceReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	if m.Journal.IsZero() {
		return reply, wire.Errorf(wire.CodeBadRequest, "fence of no journal")
	}
	j := s.journal(m.Journal)
	j.mu.Lock()
	taker := m.Taking || j.mu.fence.Less(m.Epoch)
	j.mu.Unlock()
	if err := s.raise(ctx, j, m.Epoch); err != nil {
		return reply, err
	}
	if err := s.waitSilent(ctx, j, m.Epoch); err != nil {
		return reply, answer("wait for leases", err)
	}
	reply.Boot = s.opts.Boot
	// An append that was let in before the fence rose has its replica locked until its bytes are counted; so
	// what describe sees is final for the older epochs.
	for _, id := range s.ids(m.Journal) {
		if r := s.replica(id); r != nil {
			// A replica that is being made again is one that a committed record has let go: no epoch counts it, there or not
			// (R13). Were the store damaged in a taker's eyes, it could wait for ever for what only an owner can mend. So it only
			// names the replica: the taker waits where the history has a hole that this one would fill.
			if taker && r.beingMadeAgain() {
				if m.Taking {
					reply.Again = append(reply.Again, id)
				}
				continue
			}
			if d := s.describe(r); d.State != stateDropped {
				reply.Replicas = append(reply.Replicas, d)
			}
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := checkEpoch(j.mu.fence, m.Epoch); err != nil { // a newer taker came by meanwhile
		return wire.FenceReply{}, err
	}
	reply.Was, reply.Commit, reply.Stable, reply.Told = j.mu.was, j.mu.commit, j.mu.stable, j.mu.told
	return reply, nil
}

// waitSilent waits until no owner of an older epoch can believe in a grant of this store: those given have
// run out or were given back, and one full lease time has passed since the start, for what was given before.
func (s *Store) waitSilent(ctx context.Context, j *journalState, epoch ident.Epoch) error {
	for {
		until, changed := s.opts.Leases.until(s.id, j.id, epoch)
		until = max(until, s.fenceFrom)
		left := until - s.now()
		if left <= 0 || mutant.On(mutant.R6Wait) {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.life.Done():
			timer.Stop()
			return wire.Errorf(wire.CodeShutdown, "store %s is closing", s.id)
		}
		timer.Stop()
	}
}

// Notice implements journal.Store.
func (s *Store) Notice(m *wire.Notice) {
	s.mu.RLock()
	j := s.mu.journals[m.Journal]
	s.mu.RUnlock()
	if j == nil || s.closed.Load() {
		return
	}
	j.mu.Lock()
	if j.mu.fence == m.Epoch {
		j.hearLocked(m.Commit, m.Stable)
		if m.Told.Time != 0 {
			j.mu.told = m.Told
		}
	}
	j.mu.Unlock()
}
