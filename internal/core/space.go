package core

import (
	"errors"
	"syscall"

	"dozo/internal/ident"
	"dozo/internal/vfs"
)

// An open segment's file is as long as the segment may become. Space for all of it is taken when it is opened, so that no
// append runs out of it or has the file system look for blocks; but not for the first segments of an epoch, and not for
// checkpoints. Of most volumes that were just made or taken over the former never hold more than a few KiB, and with the whole of it
// taken at each of their stores ten thousand such volumes filled the disks that they hardly wrote to.
//
// Space for those is taken as they grow, four times as much each time, by the append that needs it. Where there is none
// the append says so, as one does that finds the disk full; the owner goes on elsewhere.

// spaceFirst is what is taken at first: the header, the epoch's first records, and the index.
const spaceFirst = 64 << 10

// spaceAtOpen is how much is taken for a segment when it is opened.
func spaceAtOpen(id ident.SegmentID, capacity uint32) uint32 {
	if id.IsCheckpoint() || id.Number < 2 {
		return min(capacity, spaceFirst)
	}
	return capacity
}

// takeSpace takes space for the first n bytes of a file that is, or becomes, as long as capacity.
func takeSpace(f vfs.File, n, capacity uint32) error {
	if err := f.Preallocate(int64(n)); err != nil || n >= capacity {
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
	if err := f.Preallocate(int64(n)); err != nil {
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			s.fail("take space for "+r.path, err)
		}
		return ioError("take space for "+r.path, err)
	}
	r.mu.taken = n
	return nil
}
