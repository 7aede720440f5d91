package core

import (
	"context"
	"time"

	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// usage is the space of the file system, or the part of it that the store may use.
func (s *Store) usage() (vfs.Usage, error) {
	u, err := s.fs.Usage(s.dir)
	if most := s.opts.CapacityBytes; err == nil && most > 0 && most < u.Total {
		// Spares are free to whoever wants their space, and take it until then.
		used := uint64(max(0, s.used.Load()+s.spares.bytes()))
		u.Total, u.Free = most, min(u.Free, most-min(most, used)+s.opts.ReserveBytes)
	}
	return u, err
}

// Blocks is what the block manager tells of the store.
func (s *Store) Blocks(ctx context.Context) (wire.StoreBlocks, error) {
	st, err := s.Status(ctx, &wire.StoreStatus{})
	if err != nil {
		return wire.StoreBlocks{}, err
	}
	u, err := s.fs.Usage(s.dir)
	if err != nil {
		return wire.StoreBlocks{}, ioError("free space", err)
	}
	nanos := func(t time.Time) uint64 {
		if t.IsZero() {
			return 0
		}
		return uint64(t.UnixNano())
	}
	x := s.Scrubbing()
	b := wire.StoreBlocks{Store: s.id, FileSystem: u.ID, FileSystemBytes: u.Total, Capacity: st.Capacity, Free: st.Free - min(st.Free, s.opts.ReserveBytes), Used: st.Used, Replicas: st.Replicas,
		Corrupt: st.Corrupt, Aside: st.Aside, Failed: st.Failed, ScrubPassed: nanos(x.Passed), ScrubBegan: nanos(x.Began), ScrubDone: x.Done, ScrubTotal: x.Total,
		ScrubFound: x.Found, ScrubHealed: x.Healed, ScrubNow: x.Now}
	for _, d := range s.Damaged() {
		b.Damaged = append(b.Damaged, wire.DamagedReplica{Segment: d.Segment, Made: d.Made})
	}
	return b, nil
}
