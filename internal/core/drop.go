package core

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Drop implements journal.Store. The note comes first: should the power fail, the next start finishes it.
func (s *Store) Drop(ctx context.Context, m *wire.Drop) (reply wire.DropReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	if err := s.admit(ctx, s.journal(m.Segment.Journal), m.Epoch); err != nil {
		return reply, err
	}
	r := s.replica(m.Segment)
	if r == nil {
		return reply, nil
	}
	r.sealing.Lock()
	defer r.sealing.Unlock()
	// Again, now that no seal is under way: a newer owner may count on the replica.
	r.j.mu.Lock()
	err = checkEpoch(r.j.mu.fence, m.Epoch)
	r.j.mu.Unlock()
	if err != nil {
		return reply, err
	}
	return reply, s.discard(r)
}

// discard deletes a replica; r.sealing is held.
func (s *Store) discard(r *replica) error {
	r.mu.Lock()
	if r.mu.state == stateDropped && s.replica(r.id) != r {
		r.mu.Unlock()
		return nil
	}
	space := r.note.Load().space()
	again := r.mu.state == stateDropped
	r.mu.state = stateDropped
	r.mu.closing = true
	batch := s.noteLocked(r, stateDropped, 0)
	r.mu.Unlock()
	if err := batch.wait(context.Background()); err != nil {
		return answer("note that a replica is dropped", err)
	}
	if !again {
		s.used.Add(-space)
	}
	if err := s.unlink(r.id, r.path); err != nil {
		s.log.Error("file of a dropped replica stays", "segment", r.id.String(), "err", err)
		return ioError("remove "+r.path, err)
	}
	r.mu.Lock()
	s.countStableLocked(r, r.end.Load()) // nothing of it is waited for any more
	unpin := r.mu.pinned
	r.mu.pinned = nil
	r.mu.index = nil
	r.mu.Unlock()
	s.removeReplica(r)
	if unpin != nil {
		s.handles.release(unpin)
	}
	s.handles.forget(r)
	return nil
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
