package access

import "math/bits"

// acked remembers which blocks were written during a few seconds, and by which session last. A write that covers a whole granule
// is one entry for it, so that a large one costs few; what it covers in part is remembered block by block, because neighbours
// that other sessions write at the same time are no conflict.
type acked struct {
	granules map[uint64]ack // by block / granuleBlocks
	blocks   map[uint64]ack // the rest
	some     [ackedBits / 64]uint64
}

const (
	granuleBlocks = 64   // 256 KiB: four of them are the usual large write
	ackedBits     = 4096 // of some: a bit for each granule that has entries in blocks, and for others that hash alike
)

func newAcked() *acked { return &acked{granules: map[uint64]ack{}, blocks: map[uint64]ack{}} }

// bit is a granule's place in some.
func ackedBit(granule uint64) uint64 {
	return granule * 0x9e3779b97f4a7c15 >> (64 - (bits.Len(ackedBits) - 1))
}

func (s *acked) note(first, count uint64, a ack) {
	for end := first + count; first < end; {
		g := first / granuleBlocks
		next := min(end, (g+1)*granuleBlocks)
		if next-first == granuleBlocks {
			s.granules[g] = a
			first = next
			continue
		}
		n := ackedBit(g)
		s.some[n/64] |= 1 << (n % 64)
		for ; first < next; first++ {
			s.blocks[first] = a
		}
	}
}

// newer reports that one of the blocks was written by another session than this one at tick or later.
func (s *acked) newer(first, count, session, tick uint64) bool {
	if s == nil || count == 0 {
		return false
	}
	end := first + count
	from, to := first/granuleBlocks, (end-1)/granuleBlocks+1
	hit := func(a ack) bool { return a.session != session && tick <= a.tick }
	if to-from <= uint64(len(s.granules)) {
		for g := from; g < to; g++ {
			if a, ok := s.granules[g]; ok && hit(a) {
				return true
			}
		}
	} else {
		for g, a := range s.granules {
			if g >= from && g < to && hit(a) {
				return true
			}
		}
	}
	switch {
	case len(s.blocks) == 0:
	case to-from > uint64(len(s.blocks)):
		for b, a := range s.blocks {
			if b >= first && b < end && hit(a) {
				return true
			}
		}
	default:
		for g := from; g < to; g++ {
			if n := ackedBit(g); s.some[n/64]&(1<<(n%64)) == 0 {
				continue
			}
			for b := max(first, g*granuleBlocks); b < min(end, (g+1)*granuleBlocks); b++ {
				if a, ok := s.blocks[b]; ok && hit(a) {
					return true
				}
			}
		}
	}
	return false
}

// each calls note for all there is.
func (s *acked) each(note func(ack)) {
	if s == nil {
		return
	}
	for _, a := range s.granules {
		note(a)
	}
	for _, a := range s.blocks {
		note(a)
	}
}
