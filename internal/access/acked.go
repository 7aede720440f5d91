package access

import "math/bits"

// acked remembers which sectors were written during a few seconds, and by which session last. A write that covers a whole granule
// is one entry for it, so that a large one costs few, and what is left of it one for each block; a block that it covers in part
// is remembered sector by sector, because neighbours that other sessions write at the same time are no conflict.
type acked struct {
	granules map[uint64]ack // by sector / granuleSectors
	blocks   ackedLevel
	sectors  ackedLevel
}

const (
	sectorSize     = 512 // bytes: the smallest logical block
	blockSectors   = 8   // 4 KiB: what is usually written at least
	granuleSectors = 512 // 256 KiB: four of them are the usual large write
	ackedBits      = 4096
)

// ackedLevel has entries of one size.
type ackedLevel struct {
	entries map[uint64]ack
	per     uint64 // entries in one of the next larger size
	// some has a bit for each of the next larger size in which there are entries, and for others that hash alike.
	some [ackedBits / 64]uint64
}

func newAcked() *acked {
	return &acked{granules: map[uint64]ack{}, blocks: ackedLevel{entries: map[uint64]ack{}, per: granuleSectors / blockSectors},
		sectors: ackedLevel{per: blockSectors}}
}

// ackedBit is the place in some of one of the next larger size.
func ackedBit(n uint64) uint64 { return n * 0x9e3779b97f4a7c15 >> (64 - (bits.Len(ackedBits) - 1)) }

func (s *acked) note(first, count uint64, a ack) {
	for end := first + count; first < end; {
		switch left := end - first; {
		case first%granuleSectors == 0 && left >= granuleSectors:
			s.granules[first/granuleSectors] = a
			first += granuleSectors
		case first%blockSectors == 0 && left >= blockSectors:
			s.blocks.note(first/blockSectors, a)
			first += blockSectors
		default:
			s.sectors.note(first, a)
			first++
		}
	}
}

func (l *ackedLevel) note(n uint64, a ack) {
	if l.entries == nil {
		l.entries = map[uint64]ack{}
	}
	b := ackedBit(n / l.per)
	l.some[b/64] |= 1 << (b % 64)
	l.entries[n] = a
}

// newer reports that one of the sectors was written by another session than this one at tick or later.
func (s *acked) newer(first, count, session, tick uint64) bool {
	if s == nil || count == 0 {
		return false
	}
	last := first + count - 1
	from, to := first/granuleSectors, last/granuleSectors+1
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
	return s.blocks.newer(first/blockSectors, last/blockSectors+1, hit) || s.sectors.newer(first, last+1, hit)
}

// newer reports that one of the entries in from to below to is a hit.
func (l *ackedLevel) newer(from, to uint64, hit func(ack) bool) bool {
	above, end := from/l.per, (to-1)/l.per+1
	switch {
	case len(l.entries) == 0:
	case end-above > uint64(len(l.entries)):
		for n, a := range l.entries {
			if n >= from && n < to && hit(a) {
				return true
			}
		}
	default:
		for u := above; u < end; u++ {
			if b := ackedBit(u); l.some[b/64]&(1<<(b%64)) == 0 {
				continue
			}
			for n := max(from, u*l.per); n < min(to, (u+1)*l.per); n++ {
				if a, ok := l.entries[n]; ok && hit(a) {
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
	for _, m := range []map[uint64]ack{s.granules, s.blocks.entries, s.sectors.entries} {
		for _, a := range m {
			note(a)
		}
	}
}
