package access

import "dozo/internal/wire"

// aborts are the requests that were aborted (R9), in ranges: each command has a number for every part that it may be cut into,
// so that an ABORT TASK names thousands.
//
// Ranges are found by the upper bits of a number. Invariants: a range lies within its block; a block has at most abortsMost ranges.
type aborts map[abortsBlock][]abortedRange

type abortsBlock struct{ forwarder, block uint64 }

type abortedRange struct {
	first, last uint64
	tick        uint64
}

const (
	abortsShift = 12 // of numbers, to their block: those of one command, as sessions of iSCSI number them
	abortsMost  = 16 // ranges of a block; what is between them is refused too where there are more
	abortsSpan  = 1 << 16
)

// add notes the numbers from first to last, abortsSpan of them at most.
func (a aborts) add(first wire.RequestID, last, tick uint64) {
	if last < first.Number {
		return
	}
	last = first.Number + min(last-first.Number, abortsSpan-1)
	for n := first.Number; ; {
		r := abortedRange{n, min(last, n|(1<<abortsShift-1)), tick}
		key := abortsBlock{first.Forwarder, n >> abortsShift}
		a[key] = r.into(a[key])
		if r.last == last {
			return
		}
		n = r.last + 1
	}
}

// into adds a range to those of its block.
func (r abortedRange) into(list []abortedRange) []abortedRange {
	for i := range list {
		if list[i].first == r.first && list[i].last == r.last {
			list[i].tick = max(list[i].tick, r.tick)
			return list
		}
	}
	if len(list) < abortsMost {
		return append(list, r)
	}
	for _, x := range list {
		r = abortedRange{min(r.first, x.first), max(r.last, x.last), max(r.tick, x.tick)}
	}
	return append(list[:0], r)
}

func (a aborts) has(id wire.RequestID) bool {
	if len(a) == 0 || id.Number == 0 {
		return false
	}
	for _, r := range a[abortsBlock{id.Forwarder, id.Number >> abortsShift}] {
		if r.first <= id.Number && id.Number <= r.last {
			return true
		}
	}
	return false
}

// prune forgets what was aborted before a tick.
func (a aborts) prune(before uint64) {
	for k, list := range a {
		kept := list[:0]
		for _, r := range list {
			if r.tick >= before {
				kept = append(kept, r)
			}
		}
		if a[k] = kept; len(kept) == 0 {
			delete(a, k)
		}
	}
}

// each calls f for every range, in no order.
func (a aborts) each(f func(first wire.RequestID, last, tick uint64)) {
	for k, list := range a {
		for _, r := range list {
			f(wire.RequestID{Forwarder: k.forwarder, Number: r.first}, r.last, r.tick)
		}
	}
}
