package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// scanners is how many files a start reads at once: a guess between a rotating disk and an SSD.
const scanners = 4

// restart makes the state from the notes and the files. What is believed:
//
//   - a sealed replica is what its note says; its bytes are verified when they are read;
//   - an open one is what its file holds, record by record. In the boot in which it was opened the page cache
//     has everything that was answered, so a bad record before good ones is damage. After another boot it is
//     short (R4): there the disk may well have taken later pages and not earlier ones, so it ends at the first
//     bad record, and it is damaged only if that lies in front of what is known to have been stable;
//   - a file without a note never held an answered record: it is removed if it is empty.
func (s *Store) restart(fresh bool) error {
	image := s.notes.mu.image // nobody else is here yet; the maps are only added to below, after the walk
	boot := image.store.Boot
	s.made.Store((image.store.Starts + 1) << 32) // more than a start can make
	s.opts.LeaseMax = max(s.opts.LeaseMax, image.store.LeaseMax)
	if !fresh && !mutant.On(mutant.R6Restart) {
		s.fenceFrom = s.now() + longer(s.opts.LeaseMax)
	}
	for id, n := range image.journals {
		s.mu.journals[id] = newJournalState(n)
	}
	files, err := s.listFiles()
	if err != nil {
		return err
	}
	if err := s.finishForks(image.replicas, files); err != nil {
		return err
	}
	var scan, dropped []*replicaNote
	for _, n := range image.replicas {
		switch n.State {
		case stateDropped, stateAside, stateLost:
			dropped = append(dropped, n)
		case wire.ReplicaSealed:
			r := s.newReplica(n)
			s.addReplica(r)
			s.count(r, n.space())
		default:
			scan = append(scan, n)
		}
	}
	for _, n := range dropped {
		if err := s.finishDrop(n, files[n.Segment]); err != nil && s.Failed() == "" {
			return fmt.Errorf("finish dropping %s: %w", n.Segment, err)
		}
		delete(files, n.Segment)
		if n.State == stateLost {
			r := s.newReplica(n)
			r.end.Store(0)
			r.mu.stableEnd, r.mu.closing, r.mu.away = 0, true, true
			s.addReplica(r)
			files[n.Segment] = true // none is missed
		}
	}
	var g errgroup.Group
	g.SetLimit(scanners)
	var mu sync.Mutex
	var changed []*noteBatch
	for _, n := range scan {
		g.Go(func() error {
			r := s.newReplica(n)
			if err := s.rescan(r, boot != s.opts.Boot); err != nil {
				return err
			}
			r.mu.Lock()
			if r.mu.state != n.State {
				batch := s.noteLocked(r, r.mu.state, 0)
				mu.Lock()
				changed = append(changed, batch)
				mu.Unlock()
			}
			r.mu.Unlock()
			s.count(r, n.space())
			s.addReplica(r)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for id, r := range s.mu.replicas {
		if !files[id] && r.mu.state != wire.ReplicaDamaged && r.mu.state != stateLost {
			s.log.Error("the file of a replica is missing", "segment", id.String())
			r.mu.Lock()
			r.mu.state = wire.ReplicaDamaged
			changed = append(changed, s.noteLocked(r, wire.ReplicaDamaged, r.note.Load().Length))
			r.mu.Unlock()
		}
		delete(files, id)
	}
	orphans, err := s.orphans(files)
	if err != nil {
		return err
	}
	changed = append(changed, orphans...)
	changed = append(changed, s.notes.putStore(storeNote{Boot: s.opts.Boot, Starts: image.store.Starts + 1, LeaseMax: s.opts.LeaseMax}))
	for _, b := range changed {
		if err := b.wait(context.Background()); err != nil && s.Failed() == "" {
			return err
		}
	}
	if !fresh {
		s.log.Info("store open", "replicas", len(s.mu.replicas), "scanned", len(scan), "rebooted", boot != s.opts.Boot, "failed", s.Failed())
	}
	return nil
}

// finishDrop does what a crash has kept a drop from. What lies where a lost replica was, and is empty, was to become
// the new one and not noted yet.
func (s *Store) finishDrop(n *replicaNote, there bool) error {
	name := s.replicaPath(n.Segment)
	switch {
	case n.State == stateDropped || !there:
	default:
		f, err := s.fs.Open(name)
		if err != nil {
			return err
		}
		var head [journal.SegmentHeaderSize]byte
		k, err := f.ReadAt(head[:], 0)
		_ = f.Close()
		if err == nil && !allZero(head[:k]) || n.State == stateAside {
			if err := s.setAside(name, n.Made); err != nil {
				return err
			}
		} else if err := s.fs.Remove(name); err != nil {
			return err
		}
	}
	if n.State == stateLost {
		return nil
	}
	return s.unlink(n.Segment, name)
}

// listFiles gives the segments that have a file.
func (s *Store) listFiles() (map[ident.SegmentID]bool, error) {
	files := map[ident.SegmentID]bool{}
	root := s.dir + "/" + segmentsName
	subs, err := s.fs.List(root)
	if err != nil {
		return nil, err
	}
	for _, sub := range subs {
		dir := root + "/" + sub
		names, err := s.fs.List(dir)
		if err != nil {
			return nil, err
		}
		if err := s.makeDir(dir); err != nil {
			return nil, err
		}
		for _, name := range names {
			id, err := ident.ParseSegmentID(name)
			if strings.Contains(name, asideMark) {
				s.aside.Add(1)
				continue
			}
			if err != nil || path.Dir(s.replicaPath(id)) != dir {
				s.log.Warn("not a segment of ours", "file", dir+"/"+name)
				continue
			}
			files[id] = true
		}
	}
	return files, nil
}

// rescan brings a replica that isn't sealed to what its file holds; booted says that no process has had the store in this boot.
func (s *Store) rescan(r *replica, booted bool) error {
	n := r.note.Load()
	known := n.Boot == s.opts.Boot // page cache has been with us since the replica was opened
	f, err := s.fs.OpenReadWrite(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // restart sees it in the list of files
	}
	if crowded(err) {
		return fmt.Errorf("open %s: %w", r.path, err)
	}
	if err != nil {
		s.damaged(r, err.Error())
		return nil
	}
	sc, err := scan(f, r.id.Original(), journal.SegmentCapacityMax, n.StableEnd, nil)
	if err != nil {
		_ = f.Close()
		s.damaged(r, err.Error())
		return nil
	}
	s.handles.release(s.handles.adopt(r, f))
	r.mu.last, r.mu.start, r.mu.index = sc.last, sc.start, sc.index
	r.beginsLocked(sc.before)
	r.end.Store(sc.end)
	switch {
	case sc.recycled != nil:
		r.mu.stale = sc.recycled.Last.Seq
	case !sc.header && (sc.bad != nil || sc.follows != 0): // whatever it holds, the first append must not stand before it
		r.mu.stale = math.MaxUint64
	}
	switch {
	case n.State == wire.ReplicaDamaged:
		r.mu.closing = true
		return nil
	case sc.end < n.StableEnd:
		s.damaged(r, fmt.Sprintf("valid up to %d, was stable up to %d: %v", sc.end, n.StableEnd, sc.bad))
		return nil
	case known && (sc.follows != 0 || !sc.header && sc.bad != nil):
		s.damaged(r, fmt.Sprintf("bad at %d (%v), before a good record at %d", sc.end, sc.bad, sc.follows))
		return nil
	case n.State == wire.ReplicaFork:
		r.mu.closing = true
	case !known && n.State != wire.ReplicaCopy && !mutant.On(mutant.R4Short): // the end of a copy was never known
		r.mu.state = wire.ReplicaShort
	}
	r.mu.stable = sc.stable
	// Read from the disk itself, moments after the boot. At a later start what came since may be in memory only: a copy from
	// before the boot goes on being one, and is shipped more.
	if booted && !known && (n.State == wire.ReplicaOpen || n.State == wire.ReplicaCopy) {
		r.mu.stableEnd, r.mu.stable = sc.end, sc.last
	}
	if behind := sc.end - r.mu.stableEnd; behind > 0 {
		r.j.unsynced.Add(int64(behind))
		r.mu.dirtySince = s.now()
		s.dirtied(r)
	}
	return nil
}

func (s *Store) damaged(r *replica, why string) {
	s.log.Error("replica is damaged", "segment", r.id.String(), "why", why)
	s.corrupt.Add(1)
	r.mu.state = wire.ReplicaDamaged
	r.mu.closing = true
	r.mu.stableEnd = min(r.mu.stableEnd, r.end.Load())
}

// orphans looks at files without a note. An empty one is what an OpenSegment left that was never answered.
// One with a header should not be: it is kept, as damaged, and shown.
func (s *Store) orphans(files map[ident.SegmentID]bool) (notes []*noteBatch, err error) {
	for id := range files {
		name := s.replicaPath(id)
		f, err := s.fs.Open(name)
		if err != nil {
			return nil, err
		}
		sc, err := scan(f, id, journal.SegmentCapacityMax, 0, nil)
		size, _ := f.Size()
		_ = f.Close()
		if err == nil && !sc.header && sc.bad == nil && sc.follows == 0 {
			if err := s.fs.Remove(name); err != nil {
				return nil, err
			}
			continue
		}
		s.log.Error("a segment file that no note knows is kept as damaged", "file", name)
		r := s.newReplica(&replicaNote{Segment: id, State: wire.ReplicaDamaged, Capacity: uint32(size), Made: s.made.Add(1), End: sc.end, Before: sc.before, Last: sc.last, Start: sc.start})
		r.mu.closing = true
		s.addReplica(r)
		s.count(r, size)
		notes = append(notes, s.notes.putReplica(r.note.Load()))
	}
	return notes, nil
}
