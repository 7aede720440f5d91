package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Drop implements journal.Store. The note comes first: should the power fail, the next start finishes it.
func (s *Store) Drop(ctx context.Context, m *wire.Drop) (reply wire.DropReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	if err := s.admit(ctx, s.journal(m.Segment.Journal), m.Epoch); err != nil && !mutant.On(mutant.R13Fence) {
		return reply, err
	}
	r := s.replica(m.Segment)
	if r == nil {
		return reply, nil
	}
	r.sealing.Lock()
	defer r.sealing.Unlock()
	return reply, s.dropped(r, m)
}

// dropped does what a Drop asks for; r.sealing is held.
func (s *Store) dropped(r *replica, m *wire.Drop) error {
	r.mu.Lock()
	// Again, with the replica locked: whoever raises the fence reads its state under the lock afterwards, and a newer
	// owner may count on what it reads.
	r.j.mu.Lock()
	err := checkEpoch(r.j.mu.fence, m.Epoch)
	if mutant.On(mutant.R13Fence) {
		err = nil
	}
	r.j.mu.Unlock()
	switch {
	case err != nil:
	case m.Made != 0 && m.Made != r.note.Load().Made && !mutant.On(mutant.R13Made):
		r.mu.Unlock()
		return nil // what was permitted to go has gone
	case r.mu.state == stateLost && r.mu.away && m.Replace:
		r.mu.Unlock()
		return nil
	}
	if err != nil {
		r.mu.Unlock()
		return err
	}
	if m.Replace && r.mu.state == wire.ReplicaFork && s.forkable(r) == nil {
		// What has the segment's place is a fork, which nobody may give up so: it goes under its own name.
		err := s.renameForkLocked(r, r.note.Load().Length)
		r.mu.Unlock()
		if err != nil {
			return answer("set a fork aside", err)
		}
		return nil
	}
	to := stateDropped
	switch {
	case m.Replace:
		to = stateLost
	case r.mu.state == wire.ReplicaDamaged || r.mu.state == stateAside || r.mu.state == stateLost && !r.mu.away || s.isDamaged(r):
		to = stateAside
	}
	return s.discardLocked(r, to)
}

// discard deletes a replica that an owner has nothing of any more; r.sealing is held.
func (s *Store) discard(r *replica, epoch ident.Epoch) error {
	r.mu.Lock()
	if err := r.checkLocked(epoch); err != nil {
		r.mu.closing = false
		r.mu.Unlock()
		return err
	}
	return s.discardLocked(r, stateDropped)
}

// discardLocked has a replica gone: its file deleted, kept as a spare, or set aside. It unlocks r.mu.
func (s *Store) discardLocked(r *replica, to wire.ReplicaState) error {
	if r.mu.state >= stateDropped && s.replica(r.id) != r {
		r.mu.Unlock()
		return nil
	}
	sealed, length, last := r.mu.state == wire.ReplicaSealed, r.note.Load().Length, r.mu.last
	missing := r.mu.state == stateLost && r.mu.away // nothing under its name any more
	r.mu.state = to
	r.mu.closing = true
	batch := s.noteLocked(r, to, 0)
	r.mu.Unlock()
	if err := batch.wait(context.Background()); err != nil {
		return answer("note that a replica is dropped", err)
	}
	if !missing && to != stateDropped {
		if err := s.setAside(r.path, r.note.Load().Made); err != nil {
			s.log.Error("file of a damaged replica not set aside", "segment", r.id.String(), "err", err)
			return ioError("set aside "+r.path, err)
		}
		s.count(r, 0)
	}
	if to == stateLost {
		s.emptyLost(r)
		return nil
	}
	r.mu.Lock()
	unpin := s.emptyLocked(r)
	r.mu.Unlock()
	if unpin != nil {
		s.handles.release(unpin)
	}
	// A file that somebody reads still is not recycled, and from here on nobody can begin to.
	if idle := s.handles.forget(r); idle && sealed && to == stateDropped && s.keepSpare(r, length, last) {
		s.count(r, 0)
		s.removeReplica(r) // an OpenSegment that doesn't find it any more finds the spare
		return nil
	}
	if err := s.unlink(r.id, r.path); err != nil {
		s.log.Error("file of a dropped replica stays", "segment", r.id.String(), "err", err)
		return ioError("remove "+r.path, err)
	}
	s.count(r, 0)
	s.removeReplica(r)
	return nil
}

// emptyLost ends the way of a replica to be made again: the file is set aside.
func (s *Store) emptyLost(r *replica) {
	r.mu.Lock()
	r.mu.away = true
	unpin := s.emptyLocked(r)
	s.mu.Lock()
	delete(s.mu.dirty, r)
	s.mu.Unlock()
	r.mu.Unlock()
	if unpin != nil {
		s.handles.release(unpin)
	}
	s.handles.forget(r)
}

// setLostAside has a lost replica's file set aside, if that has failed before; r.sealing is held.
func (s *Store) setLostAside(r *replica) error {
	r.mu.Lock()
	away := r.mu.away
	r.mu.Unlock()
	if away {
		return nil
	}
	if err := s.setAside(r.path, r.note.Load().Made); err != nil {
		return ioError("set aside "+r.path, err)
	}
	s.count(r, 0)
	s.emptyLost(r)
	return nil
}

// emptyLocked forgets what was in a replica, and gives the handle that it kept.
func (s *Store) emptyLocked(r *replica) *handle {
	s.countStableLocked(r, r.end.Load()) // nothing of it is waited for any more
	unpin := r.mu.pinned
	r.mu.pinned = nil
	r.mu.index = nil
	if r.mu.state == stateLost {
		r.end.Store(0)
		r.mu.stableEnd, r.mu.syncing = 0, 0
	}
	return unpin
}

// asideMark stands in the names of files that were set aside, before the replica's number.
const asideMark = ".aside-"

// setAside renames the file of a replica of which nothing is believed any more: what is good in it may be wanted by
// people, and why it is bad. Nobody deletes it but them.
func (s *Store) setAside(name string, made uint64) error {
	err := s.fs.Rename(name, fmt.Sprintf("%s%s%016x", name, asideMark, made))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.fs.SyncDir(path.Dir(name))
	}
	if err == nil {
		s.aside.Add(1)
		s.log.Warn("the file of a damaged replica is set aside", "file", name)
	}
	return err
}

// unlink removes the file and forgets the note once the removal is stable.
func (s *Store) unlink(id ident.SegmentID, name string) error {
	if err := s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.fs.SyncDir(path.Dir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.notes.putGone(id)
	return nil
}
