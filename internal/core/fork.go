package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What is set aside (R14) gets a name of its own. Where nothing of the replica is of the history that prevailed:
//
//	all of it stable -> note "fork" under the new name -> rename -> note "gone" under the old one
//
// and a start that finds a part of that done finishes it. Where its beginning is, that stays under the old name, and what
// is set aside is a copy of the whole:
//
//	copy, stable -> note "fork" -> the replica is cut and sealed as always
//
// and a start removes a copy without a note: the replica still has everything.

// renameForkLocked sets r aside under its other name; r.mu and r.sealing are held. After an error everything is as it was,
// or the next start goes on from there.
func (s *Store) renameForkLocked(r *replica, length uint32) error {
	if err := s.forkable(r); err != nil {
		return err
	}
	id := r.id.Fork()
	if err := s.syncFile(r); err != nil {
		return err
	}
	was := r.note.Load()
	n := &replicaNote{Segment: id, State: wire.ReplicaFork, Boot: was.Boot, Capacity: was.Capacity, Length: length, End: r.end.Load(), StableEnd: r.end.Load(),
		Before: r.mu.before, Last: r.mu.last, Start: r.mu.start, Made: s.made.Add(1)}
	if err := s.notes.putReplica(n).wait(s.life); err != nil {
		return fmt.Errorf("note a fork: %w", err)
	}
	to := s.replicaPath(id)
	if err := s.fs.Rename(r.path, to); err != nil {
		s.notes.putGone(id)
		return err
	}
	if err := s.fs.SyncDir(path.Dir(to)); err != nil {
		s.fail("sync the directory of a fork", err)
		return nil // it is under its new name all the same
	}
	gone := s.notes.putGone(r.id)
	fork := s.newReplica(n)
	fork.mu.closing = true
	fork.mu.stable = r.mu.last
	fork.mu.index = slices.Clone(r.mu.index)
	s.addReplica(fork)
	s.count(r, 0)
	s.count(fork, n.space())
	r.mu.state = stateDropped
	r.mu.closing = true
	unpin := s.emptyLocked(r)
	s.removeReplica(r)
	if unpin != nil {
		s.handles.release(unpin)
	}
	s.handles.forget(r)
	if err := gone.wait(s.life); err != nil {
		s.log.Error("a segment that was set aside is still noted under its old name", "segment", r.id.String(), "err", err)
	}
	return nil
}

// forkable says that a replica can be set aside.
func (s *Store) forkable(r *replica) error {
	if r.id.IsFork() || s.replica(r.id.Fork()) != nil {
		return fmt.Errorf("there is a fork of segment %s already", r.id)
	}
	return nil
}

// copyForkLocked makes a fork of a copy of r's file; r.mu and r.sealing are held. r stays as it is.
func (s *Store) copyForkLocked(r *replica, length uint32) (err error) {
	if fork := s.replica(r.id.Fork()); fork != nil && !r.id.IsFork() && fork.note.Load().End >= r.end.Load() && fork.note.Load().Before == r.mu.before {
		return nil // made before the power failed: replicas of a segment differ in nothing but where they end
	}
	if err := s.forkable(r); err != nil {
		return err
	}
	size := max(r.end.Load(), length)
	id := r.id.Fork()
	name := s.replicaPath(id)
	if err := s.copyFile(r, name, size); err != nil {
		_ = s.fs.Remove(name)
		return err
	}
	n := &replicaNote{Segment: id, State: wire.ReplicaFork, Boot: s.opts.Boot, Capacity: size, Length: length, End: r.end.Load(), StableEnd: r.end.Load(),
		Before: r.mu.before, Last: r.mu.last, Start: r.mu.start, Made: s.made.Add(1)}
	fork := s.newReplica(n)
	s.count(fork, n.space()) // the file is there whatever becomes of the note
	if err := s.notes.putReplica(n).wait(s.life); err != nil {
		return fmt.Errorf("note a fork: %w", err)
	}
	fork.mu.closing = true
	fork.mu.stable = r.mu.last
	fork.mu.index = slices.Clone(r.mu.index)
	s.addReplica(fork)
	return nil
}

// copyFile copies the first bytes of r's file to a new one, and makes that stable.
func (s *Store) copyFile(r *replica, name string, size uint32) error {
	from, err := s.handles.acquire(r)
	if err != nil {
		return err
	}
	defer s.handles.release(from)
	to, err := s.fs.Create(name)
	if errors.Is(err, fs.ErrExist) { // left by an attempt that failed
		if err = s.fs.Remove(name); err == nil {
			to, err = s.fs.Create(name)
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	if err := to.Preallocate(0, int64(size)); err != nil {
		return err
	}
	buf := getBuffer(int(min(size, pushChunk)))
	defer buf.release()
	for at := int64(0); at < int64(size); {
		n := min(int64(len(buf.b)), int64(size)-at)
		if _, err := from.ReadAt(buf.b[:n], at); err != nil {
			return err
		}
		if _, err := to.WriteAt(buf.b[:n], at); err != nil {
			return err
		}
		at += n
	}
	if err := to.SyncData(); err != nil {
		return err
	}
	return s.fs.SyncDir(path.Dir(name))
}

// unsealLocked makes an open replica of a sealed one that is to end where m says: what it has behind that is in a fork, or in
// other segments. A crash behind the note leaves one that is open, with all its records.
func (s *Store) unsealLocked(r *replica, m *wire.Seal) error {
	was := r.note.Load()
	f, err := s.handles.acquire(r)
	if err != nil {
		return s.readError(r, r.end.Load(), err)
	}
	defer s.handles.release(f)
	b := make([]byte, was.Length-r.end.Load())
	if _, err := f.ReadAt(b, int64(r.end.Load())); err != nil {
		return s.readError(r, r.end.Load(), err)
	}
	x, err := journal.DecodeIndex(b)
	if err != nil {
		return s.foundCorrupt(r, r.end.Load(), err)
	}
	r.mu.index = x.Entries
	if _, err := s.positionAtLocked(r, m.End, m.Last); err != nil {
		r.mu.index = nil // it stays as it is
		return err
	}
	r.mu.capacity = max(r.mu.capacity, was.Length)
	return s.reopenLocked(r)
}

// reopenLocked makes an open replica of one that was sealed or set aside, and whose index is known.
func (s *Store) reopenLocked(r *replica) error {
	r.mu.state = wire.ReplicaOpen
	batch := s.noteLocked(r, wire.ReplicaOpen, 0)
	s.count(r, r.note.Load().space())
	if err := batch.wait(s.life); err != nil {
		return answer("note that a replica is opened again", err)
	}
	return nil
}

// finishForks does what a crash has kept renameForkLocked from; the notes that it changes are put, and those in image
// with them.
func (s *Store) finishForks(image map[ident.SegmentID]*replicaNote, files map[ident.SegmentID]bool) error {
	var changed []*noteBatch
	for id, n := range image {
		if !id.IsFork() || n.State != wire.ReplicaFork {
			continue
		}
		old := image[id.Original()]
		if old == nil || old.Made > n.Made {
			continue // the segment was had again since
		}
		if !files[id] && files[old.Segment] {
			if err := s.fs.Rename(s.replicaPath(old.Segment), s.replicaPath(id)); err != nil {
				return err
			}
			if err := s.fs.SyncDir(path.Dir(s.replicaPath(id))); err != nil {
				return err
			}
			files[id] = true
			delete(files, old.Segment)
		}
		if files[id] && !files[old.Segment] {
			changed = append(changed, s.notes.putGone(old.Segment))
		}
	}
	for id := range files {
		if id.IsFork() && image[id] == nil {
			if err := s.fs.Remove(s.replicaPath(id)); err != nil {
				return err
			}
			delete(files, id)
		}
	}
	for _, b := range changed {
		if err := b.wait(context.Background()); err != nil {
			return err
		}
	}
	return nil
}
