package core

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
)

// A new file costs fresh pages, blocks and metadata; one that was written before has them. So the file of a dropped
// replica is kept for a while as a spare, and the next segment of the same journal is written over it.
//
//	Drop: note "dropped" ──> spare, at its old path ──take──> header, fdatasync, rename, fsync, note "open", note "gone"
//	                              │ unused, or space is short
//	                              └──> unlink, fsync, note "gone"
//
// Nothing on disk says that a file is a spare: its replica is noted as dropped, and a start deletes it. What is true of
// a spare, and why the stale bytes in its new life are never believed:
//
//   - It was sealed, so that it ends with its own index and holds records of that segment only, up to a seq that is
//     known; and nobody has it open, nor can open it any more (handles.forget).
//   - It becomes a later segment of the same journal (recycles), of a chain that goes on behind those records. A reader
//     of the file therefore looks for seqs above its own, and no stale record has one. Should the first append say that
//     it begins before the last stale record, the file is emptied first (wipeLocked).
//   - Until that append the file starts with journal.RecycledHeader, so that stale records without a segment header
//     are not taken for a replica that has lost its header.
//
// Whoever takes a spare out of the list has it busy until its note is gone: an OpenSegment of the segment that it was
// waits for that, so that neither the unlinking nor the note hits the new file.
type spares struct {
	mu struct {
		sync.Mutex
		list  []*spare // by age, the oldest first
		busy  map[ident.SegmentID]chan struct{}
		bytes int64 // of list
	}
}

// spare is the file of a dropped replica.
type spare struct {
	of    ident.SegmentID
	last  ident.Position // after its last record
	path  string
	size  int64
	since time.Duration
}

const (
	spareGoal      = 2 << 30                // bytes of spares: what a fast writer leaves behind between two checkpoints, twice
	sparePart      = 16                     // and of the disk: this part at most; they go when less than it is free
	spareLeastGoal = 1 << 20                // smaller files aren't worth a rename
	spareAge       = time.Minute            // unused that long, a spare is deleted
	spareStep      = 100 * time.Millisecond // between two deletions, so that they don't hold up the disk
	spareIdle      = time.Second            // between two looks while there are no spares
)

// anyAge is for oldest.
const anyAge = time.Duration(math.MaxInt64)

func (p *spares) init() { p.mu.busy = map[ident.SegmentID]chan struct{}{} }

func (p *spares) bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.bytes
}

// takeLocked takes the spare at i out of the list; whoever calls gives it back with done.
func (p *spares) takeLocked(i int) *spare {
	sp := p.mu.list[i]
	p.mu.list = slices.Delete(p.mu.list, i, i+1)
	p.mu.bytes -= sp.size
	p.mu.busy[sp.of] = make(chan struct{})
	return sp
}

// done ends what takeLocked began.
func (p *spares) done(sp *spare) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.mu.busy[sp.of])
	delete(p.mu.busy, sp.of)
}

// recycles says whether the file of segment old may become that of id: within one journal, in the order in which
// its owners open segments. Segments of checkpoint parts have chains of their own from seq 1, so they take no part.
func recycles(old, id ident.SegmentID) bool {
	return old.Journal == id.Journal && !old.IsCheckpoint() && !id.IsCheckpoint() &&
		(old.Epoch.Less(id.Epoch) || old.Epoch == id.Epoch && old.Number < id.Number)
}

// take gives the best spare for a segment: the largest that is not above its capacity, else the smallest; of
// equal ones the newest, whose pages are the likeliest to be in memory still.
func (p *spares) take(id ident.SegmentID, capacity int64) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := -1
	for i, sp := range p.mu.list {
		if !recycles(sp.of, id) {
			continue
		}
		if best >= 0 {
			b := p.mu.list[best].size
			if b <= capacity && (sp.size > capacity || sp.size < b) || b > capacity && sp.size > b {
				continue
			}
		}
		best = i
	}
	if best < 0 {
		return nil
	}
	return p.takeLocked(best)
}

// oldest gives the spare that is unused for the longest time, if that was at until or before.
func (p *spares) oldest(until time.Duration) *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mu.list) == 0 || p.mu.list[0].since > until {
		return nil
	}
	return p.takeLocked(0)
}

// of gives the spare that was this segment's. If somebody has it, it waits until it is gone.
func (p *spares) of(id ident.SegmentID) *spare {
	for {
		p.mu.Lock()
		busy := p.mu.busy[id]
		if busy == nil {
			defer p.mu.Unlock()
			if i := slices.IndexFunc(p.mu.list, func(sp *spare) bool { return sp.of == id }); i >= 0 {
				return p.takeLocked(i)
			}
			return nil
		}
		p.mu.Unlock()
		<-busy
	}
}

// keepSpare makes a spare of the file of a dropped replica that nobody can open any more, if there is room for it.
func (s *Store) keepSpare(r *replica, length uint32, last ident.Position) bool {
	size := int64(length)
	if s.opts.SpareBytes < 0 || size < int64(s.opts.SpareLeast) || r.id.IsCheckpoint() || s.closed.Load() || s.Failed() != "" {
		return false
	}
	u, err := s.fs.Usage(s.dir)
	if err != nil || s.shortOfSpace(u) {
		return false
	}
	most := min(s.opts.SpareBytes, int64(u.Total/sparePart))
	p := &s.spares
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.bytes+size > most {
		return false
	}
	p.mu.list = append(p.mu.list, &spare{of: r.id, last: last, path: r.path, size: size, since: s.now()})
	p.mu.bytes += size
	return true
}

// shortOfSpace says that the disk has better use for the space of spares, be it for somebody else.
func (s *Store) shortOfSpace(u vfs.Usage) bool {
	return u.Free < s.opts.ReserveBytes+u.Total/sparePart
}

// giveUp deletes the file of a spare that was taken.
func (s *Store) giveUp(sp *spare) {
	if err := s.unlink(sp.of, sp.path); err != nil {
		s.log.Error("file of a dropped replica stays until the next start", "segment", sp.of.String(), "err", err)
	}
	s.spares.done(sp)
}

// trimSpares deletes spares that nothing uses, and all of them, one by one, while space is short. It runs until the store closes.
func (s *Store) trimSpares() {
	timer := time.NewTimer(spareIdle)
	defer timer.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-timer.C:
		}
		s.trimOne()
		if s.spares.bytes() > 0 {
			timer.Reset(spareStep)
		} else {
			timer.Reset(spareIdle)
		}
	}
}

func (s *Store) trimOne() {
	if s.spares.bytes() == 0 || s.Failed() != "" {
		return
	}
	until := s.now() - spareAge
	if u, err := s.fs.Usage(s.dir); err == nil && s.shortOfSpace(u) {
		until = anyAge
	}
	if sp := s.spares.oldest(until); sp != nil {
		s.giveUp(sp)
	}
}

// closeSpares deletes all spares: the next start would have to.
func (s *Store) closeSpares() {
	for s.Failed() == "" {
		sp := s.spares.oldest(anyAge)
		if sp == nil {
			return
		}
		s.giveUp(sp)
	}
}

// recycle makes the spare the file of r, which isn't noted yet: what of the old segment could be taken for the new one's
// is overwritten and stable before the file has its new name, and the name is stable when it returns. The spare is
// busy until its note is gone. An error leaves the file with either name; both may be removed.
func (s *Store) recycle(sp *spare, r *replica, capacity uint32) (f vfs.File, err error) {
	if f, err = s.fs.OpenReadWrite(sp.path); err != nil {
		return nil, err
	}
	head := journal.AppendRecycledHeader(nil, journal.RecycledHeader{Segment: r.id, Of: sp.of, Last: sp.last})
	_, err = f.WriteAt(head, 0)
	// A trailer at the end of the file would say that it is sealed.
	var none [journal.TrailerSize]byte
	if err == nil {
		_, err = f.WriteAt(none[:], sp.size-journal.TrailerSize)
	}
	switch {
	case err != nil:
	case sp.size > int64(capacity):
		r.mu.taken = capacity
		if err = f.Truncate(int64(capacity)); err == nil {
			_, err = f.WriteAt(none[:], int64(capacity)-journal.TrailerSize)
		}
	default:
		r.mu.taken = max(uint32(sp.size), r.spaceAtOpen(capacity))
		err = takeSpace(f, uint32(sp.size), r.mu.taken, capacity) // it was written up to there
	}
	if err == nil {
		if err = f.SyncData(); err != nil {
			s.fail("fdatasync "+sp.path, err)
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if err := s.fs.Rename(sp.path, r.path); err != nil {
		return nil, err
	}
	if err := s.fs.SyncDir(path.Dir(r.path)); err != nil {
		if !crowded(err) {
			s.fail("fsync "+path.Dir(r.path), err)
		}
		return nil, err
	}
	return s.fs.OpenReadWrite(r.path) // under its name, so that errors have it
}

// wipeLocked empties a recycled file whose stale records are not all older than what it is to hold, before its first
// byte is written. That it is stable keeps a power cut from bringing them back behind the new ones. It costs what a
// new file costs; OpenSegment chooses spares so that it hardly ever happens.
func (s *Store) wipeLocked(r *replica, f vfs.File) error {
	err := f.Truncate(0)
	if err == nil {
		r.mu.taken = r.spaceAtOpen(r.mu.capacity)
		err = takeSpace(f, 0, r.mu.taken, r.mu.capacity)
	}
	if err == nil {
		err = f.SyncData()
	}
	if err == nil {
		r.mu.stale = 0
		return nil
	}
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		s.fail("empty "+r.path, err)
	}
	return ioError("empty "+r.path, err)
}

// makeRecycled makes the replica out of the spare, or says why that can't be. In either case the spare is done with.
func (s *Store) makeRecycled(r *replica, sp *spare, capacity uint32) error {
	f, err := s.recycle(sp, r, capacity)
	if err != nil {
		_ = s.fs.Remove(r.path)
		s.giveUp(sp)
		return fmt.Errorf("recycle %s: %w", sp.path, err)
	}
	r.mu.stale = sp.last.Seq
	if err := s.notes.putReplica(r.note.Load()).wait(context.Background()); err != nil {
		s.fail("note that a replica is open", err)
		s.count(r, int64(capacity))
		_ = f.Close() // as in makeReplica the file stays
		s.spares.done(sp)
		return err
	}
	s.notes.putGone(sp.of)
	s.spares.done(sp)
	s.metrics.recycled.Inc()
	s.handles.release(s.handles.adopt(r, f))
	return nil
}
