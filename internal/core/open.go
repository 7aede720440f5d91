package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// OpenSegment implements journal.Store: file, space, name and note are stable in this order, so that a noted
// replica has a file, and a file without a note never had a record. The file may be a spare (spares.go).
func (s *Store) OpenSegment(ctx context.Context, m *wire.OpenSegment) (reply wire.OpenReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	least := uint32(journal.SegmentHeaderSize + journal.IndexSize(0))
	if m.Capacity < least || m.Capacity > journal.SegmentCapacityMax {
		return reply, wire.Errorf(wire.CodeBadRequest, "segment %s with a capacity of %d", m.Segment, m.Capacity)
	}
	if m.Epoch.Less(m.Segment.Epoch) || m.Segment.Journal.IsZero() {
		return reply, wire.Errorf(wire.CodeBadRequest, "segment %s opened in epoch %s", m.Segment, m.Epoch)
	}
	if err := s.usable(); err != nil {
		return reply, err
	}
	state := wire.ReplicaOpen
	if m.Copy {
		state = wire.ReplicaCopy
	}
	j := s.journal(m.Segment.Journal)
	if err := s.admit(ctx, j, m.Epoch); err != nil {
		return reply, err
	}
	s.mu.Lock()
	r, o := s.mu.replicas[m.Segment], s.mu.opening[m.Segment]
	mine := false
	var lost *replica // is made again
	if r != nil && r.note.Load().State == stateLost {
		lost = r
	}
	if (r == nil || lost != nil) && o == nil {
		o, mine = &opening{done: make(chan struct{})}, true
		s.mu.opening[m.Segment] = o
		s.work.Add(1) // Close waits for it
	}
	s.mu.Unlock()
	if mine {
		go func() {
			defer s.work.Done()
			if o.err = s.lockLost(lost); o.err == nil {
				o.err = s.makeReplica(m.Segment, m.Capacity, state, lost != nil)
				if lost != nil {
					lost.sealing.Unlock()
				}
			}
			s.mu.Lock()
			delete(s.mu.opening, m.Segment)
			s.mu.Unlock()
			close(o.done)
		}()
	}
	if o != nil {
		select {
		case <-o.done:
			err = o.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			return reply, answer("open segment "+m.Segment.String(), err)
		}
	} else if r.note.Load().Again {
		// It is being made again: what is missing may be appended.
	} else if state := s.describe(r).State; state >= stateDropped {
		return reply, wire.Errorf(wire.CodeBusy, "replica of %s is being dropped", m.Segment)
	} else if state != wire.ReplicaOpen && state != wire.ReplicaSealed && state != wire.ReplicaShort && state != wire.ReplicaCopy {
		return reply, wire.Errorf(wire.CodeConflict, "replica of %s is there in state %d", m.Segment, state)
	}
	return wire.OpenReply{Boot: s.opts.Boot}, nil
}

// lockLost takes the sealing of a replica that is to be made again, once its file is out of the way; nil is none. A Drop that is
// under way would else set the new file aside.
func (s *Store) lockLost(lost *replica) error {
	if lost == nil {
		return nil
	}
	if !lost.sealing.TryLock() {
		return wire.Errorf(wire.CodeBusy, "replica of %s is being dropped", lost.id)
	}
	err := error(wire.Errorf(wire.CodeBusy, "replica of %s was dropped", lost.id))
	if s.replica(lost.id) == lost && lost.note.Load().State == stateLost {
		if err = s.setLostAside(lost); err == nil {
			return nil
		}
	}
	lost.sealing.Unlock()
	return err
}

func (s *Store) makeReplica(id ident.SegmentID, capacity uint32, state wire.ReplicaState, again bool) error {
	if old := s.spares.of(id); old != nil {
		s.giveUp(old)
	}
	var sp *spare
	room := int64(capacity)
	if !again { // a crash in between would leave stale bytes where a start looks for lost ones (finishDrop)
		if sp = s.spares.take(id, room); sp != nil {
			room = max(0, room-sp.size)
		}
	}
	if err := s.makeRoom(room); err != nil {
		if sp != nil {
			s.giveUp(sp)
		}
		return err
	}
	defer func() { s.reserved.Add(-room) }()
	r := s.newReplica(&replicaNote{Segment: id, State: state, Boot: s.opts.Boot, Capacity: capacity, Made: s.made.Add(1), Again: again})
	dir := path.Dir(r.path)
	if err := s.makeDir(dir); err != nil {
		if sp != nil {
			s.giveUp(sp)
		}
		return ioError("make "+dir, err)
	}
	if sp != nil {
		err := s.makeRecycled(r, sp, capacity)
		if err == nil {
			s.madeReplica(r, capacity)
			return nil
		}
		if s.Failed() != "" {
			return ioError("make "+r.path, err)
		}
		s.log.Warn("a file is made instead of recycled", "segment", id.String(), "err", err)
		r.mu.stale = 0
		rest := int64(capacity) - room
		if err := s.makeRoom(rest); err != nil {
			return err
		}
		room += rest
	}
	f, err := s.fs.Create(r.path)
	if errors.Is(err, fs.ErrExist) {
		// Left by an OpenSegment that failed, or being dropped: it isn't noted.
		if err = s.fs.Remove(r.path); err == nil {
			f, err = s.fs.Create(r.path)
		}
	}
	if err != nil {
		return ioError("create "+r.path, err)
	}
	r.mu.taken = r.spaceAtOpen(capacity)
	if err = takeSpace(f, 0, r.mu.taken, capacity); err == nil {
		if err = f.SyncData(); err != nil {
			s.fail("fdatasync "+r.path, err)
		}
	}
	if err == nil {
		if err = s.fs.SyncDir(dir); err != nil && !crowded(err) {
			s.fail("fsync "+dir, err)
		}
	}
	if err != nil {
		_ = f.Close()
		_ = s.fs.Remove(r.path)
		return ioError("make "+r.path, err)
	}
	if !mutant.On(mutant.R4Noted) {
		if err := s.notes.putReplica(r.note.Load()).wait(context.Background()); err != nil {
			s.fail("note that a replica is open", err)
			s.count(r, int64(capacity))
			_ = f.Close() // the file stays: the note may be on the disk all the same, and a replica without a file is a damaged one
			return ioError("make "+r.path, err)
		}
	}
	s.handles.release(s.handles.adopt(r, f))
	s.madeReplica(r, capacity)
	return nil
}

func (s *Store) madeReplica(r *replica, capacity uint32) {
	s.count(r, int64(capacity))
	s.addReplica(r)
}

// count notes what a replica's file takes of the disk: 0 once it is gone, and not before.
func (s *Store) count(r *replica, bytes int64) { s.used.Add(bytes - r.counted.Swap(bytes)) }

// makeRoom holds back capacity bytes of the disk and a place in the notes, or says that there is none.
func (s *Store) makeRoom(capacity int64) error {
	if !s.notes.room() {
		if err := s.notes.grow(context.Background()); err != nil {
			return ioError("grow the notes log", err)
		}
	}
	taken := s.reserved.Add(capacity)
	for {
		u, err := s.usage()
		if err != nil {
			s.reserved.Add(-capacity)
			return ioError("free space", err)
		}
		if u.Free >= uint64(taken)+s.opts.ReserveBytes {
			return nil
		}
		sp := s.spares.oldest(anyAge)
		if sp == nil {
			s.reserved.Add(-capacity)
			return wire.Errorf(wire.CodeNoSpace, "%d bytes free, %d wanted and %d kept in reserve", u.Free, taken, s.opts.ReserveBytes)
		}
		s.giveUp(sp)
	}
}

// makeDir makes a directory below segments/ and its name stable.
func (s *Store) makeDir(dir string) error {
	s.mu.RLock()
	there := s.mu.dirs[dir]
	s.mu.RUnlock()
	if there {
		return nil
	}
	if err := s.fs.MkdirAll(dir); err != nil {
		return err
	}
	if err := s.fs.SyncDir(path.Dir(dir)); err != nil {
		return fmt.Errorf("sync %s: %w", path.Dir(dir), err)
	}
	s.mu.Lock()
	s.mu.dirs[dir] = true
	s.mu.Unlock()
	return nil
}
