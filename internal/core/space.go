package core

import (
	"errors"
	"syscall"

	"dozo/internal/vfs"
)

// An open segment's file is as long as the segment may become. Space for all of it is taken when it is opened, so that no
// append runs out of it or has the file system look for blocks; but not while little of its journal was appended here. Most volumes
// that were just made or taken over never get more than a few KiB, and with the whole of their segments taken at each of
// their stores ten thousand such volumes filled the disks that they hardly wrote to.
//
// Space for those is taken as they grow, four times as much each time, by the append that needs it. Where there is none
// the append says so, as one does that finds the disk full; the owner goes on elsewhere.

// spaceFirst is what is taken at first: the header, the epoch's first records, and the index.
const spaceFirst = 64 << 10

// spaceWholeFrom is how much of a journal was appended to a store since it was opened when the space for whole segments is taken.
const spaceWholeFrom = 4 << 20

// spaceAtOpen is how much is taken for a segment when it is opened.
func (r *replica) spaceAtOpen(capacity uint32) uint32 {
	if r.j.appended.Load() < spaceWholeFrom {
		return min(capacity, spaceFirst)
	}
	return capacity
}

// takeSpace takes space for the first n bytes of a file that is, or becomes, as long as capacity; those in front of from have it.
func takeSpace(f vfs.File, from, n, capacity uint32) error {
	if err := f.Preallocate(int64(from), int64(n)); err != nil || n >= capacity {
		return err
	}
	return f.Truncate(int64(capacity))
}

// growLocked takes space for need bytes, and some that will be needed next. Nothing was written yet if it fails.
func (s *Store) growLocked(r *replica, f vfs.File, need uint32) error {
	if need <= r.mu.taken {
		return nil
	}
	next := uint64(max(r.mu.taken, spaceFirst))
	for next < uint64(need) {
		next *= 4
	}
	n := uint32(min(next, uint64(max(need, r.mu.capacity))))
	if err := f.Preallocate(int64(r.mu.taken), int64(n)); err != nil {
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			s.fail("take space for "+r.path, err)
		}
		return ioError("take space for "+r.path, err)
	}
	r.mu.taken = n
	return nil
}
