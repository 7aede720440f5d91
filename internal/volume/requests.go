package volume

import (
	"cmp"
	"errors"
	"iter"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// Bounds of Requests. A forwarder confirms many times a second, so even at 100,000 requests a second it has
// some thousands open; forwarders are access servers, and those that died are forgotten.
const (
	RequestsMax   = 1 << 16 // of one forwarder
	ForwardersMax = 1 << 10
)

// ErrRequestsFull says that a forwarder has not confirmed answers for too long: its next request gets BUSY.
var ErrRequestsFull = errors.New("too many requests without a confirmed answer")

// Requests remembers which client requests became records, until the forwarder has confirmed that it has the
// answer (R9): a request that is sent again is answered, not applied twice.
type Requests struct {
	by    []forwarder // ordered by id
	count int
	dirty bool // changed since a checkpoint took them
}

type forwarder struct {
	id   uint64
	upTo uint64 // all requests up to this number are confirmed
	open []request
}

// request is one part of a request; open ones are ordered by number and part.
type request struct {
	number uint64
	seq    ident.Seq
	part   uint8
}

func newRequests() Requests { return Requests{} }

func (r *Requests) memory() int64 {
	n := int64(cap(r.by)) * 40
	for i := range r.by {
		n += int64(cap(r.by[i].open)) * 24
	}
	return n
}

func (r *Requests) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(r.by, id, func(f forwarder, id uint64) int { return cmp.Compare(f.id, id) })
}

func (f *forwarder) find(number uint64, part uint8) (int, bool) {
	// Requests come nearly in order: look at the end first.
	if n := len(f.open); n == 0 || f.open[n-1].compare(number, part) < 0 {
		return n, false
	}
	return slices.BinarySearchFunc(f.open, request{number: number, part: part}, func(q, want request) int {
		return q.compare(want.number, want.part)
	})
}

func (q request) compare(number uint64, part uint8) int {
	return cmp.Or(cmp.Compare(q.number, number), cmp.Compare(q.part, part))
}

// Len is the number of parts remembered.
func (r *Requests) Len() int { return r.count }

// Room reports whether Add would take another request of the forwarder.
func (r *Requests) Room(forwarder uint64) bool {
	i, ok := r.find(forwarder)
	if !ok {
		return len(r.by) < ForwardersMax
	}
	return len(r.by[i].open) < RequestsMax
}

// Add notes that a part of the request is the record seq. The zero ID is no request; one that is confirmed
// already, or known, changes nothing. A committed record is always noted if there is room in memory at all:
// the bound is enforced by asking Room before the record is made, and ErrRequestsFull comes only at twice
// the bound.
func (r *Requests) Add(id journal.RequestID, part uint8, seq ident.Seq) error {
	if id == (journal.RequestID{}) {
		return nil
	}
	i, ok := r.find(id.Forwarder)
	if !ok {
		if len(r.by) >= 2*ForwardersMax {
			return ErrRequestsFull
		}
		r.by = slices.Insert(r.by, i, forwarder{id: id.Forwarder})
	}
	f := &r.by[i]
	if id.Number <= f.upTo {
		return nil
	}
	k, ok := f.find(id.Number, part)
	if ok {
		return nil
	}
	if len(f.open) >= 2*RequestsMax {
		return ErrRequestsFull
	}
	f.open = slices.Insert(f.open, k, request{number: id.Number, seq: seq, part: part})
	r.count++
	r.dirty = true
	return nil
}

// Find says which record a part of a request became. confirmed means that the forwarder had its answer: it
// doesn't ask again, so whatever comes under this number is late and must not run.
func (r *Requests) Find(id journal.RequestID, part uint8) (seq ident.Seq, ok, confirmed bool) {
	i, known := r.find(id.Forwarder)
	if !known {
		return 0, false, false
	}
	f := &r.by[i]
	if id.Number <= f.upTo {
		return 0, false, true
	}
	k, found := f.find(id.Number, part)
	if !found {
		return 0, false, false
	}
	return f.open[k].seq, true, false
}

// Confirm forgets the forwarder's requests up to number upTo and, of those above it, the ones in others,
// which needn't be in order. Numbers start at 1.
func (r *Requests) Confirm(forwarder, upTo uint64, others []uint64) {
	i, ok := r.find(forwarder)
	if !ok {
		return
	}
	f := &r.by[i]
	if upTo > f.upTo {
		f.upTo = upTo
		r.dirty = true
	}
	cut, _ := slices.BinarySearchFunc(f.open, f.upTo, func(q request, upTo uint64) int {
		if q.number <= upTo {
			return -1
		}
		return 1
	})
	if cut > 0 {
		f.open = slices.Delete(f.open, 0, cut)
		r.count -= cut
		r.dirty = true
	}
	for _, number := range others {
		k, _ := f.find(number, 0)
		n := k
		for n < len(f.open) && f.open[n].number == number {
			n++
		}
		if n > k {
			f.open = slices.Delete(f.open, k, n)
			r.count -= n - k
			r.dirty = true
		}
	}
}

// Forget drops everything of a forwarder that is gone for good.
func (r *Requests) Forget(forwarder uint64) {
	if i, ok := r.find(forwarder); ok {
		r.count -= len(r.by[i].open)
		r.by = slices.Delete(r.by, i, i+1)
		r.dirty = true
	}
}

// Forwarders lists the forwarders and how many parts are open of each.
func (r *Requests) Forwarders() iter.Seq2[uint64, int] {
	return func(yield func(uint64, int) bool) {
		for i := range r.by {
			if !yield(r.by[i].id, len(r.by[i].open)) {
				return
			}
		}
	}
}

// Since gives the parts whose records are behind seq.
func (r *Requests) Since(seq ident.Seq, yield func(id journal.RequestID, part uint8, seq ident.Seq)) {
	for i := range r.by {
		for _, q := range r.by[i].open {
			if q.seq > seq {
				yield(journal.RequestID{Forwarder: r.by[i].id, Number: q.number}, q.part, q.seq)
			}
		}
	}
}

// clone is what a checkpoint takes.
func (r *Requests) clone() Requests {
	c := Requests{by: slices.Clone(r.by), count: r.count}
	for i := range c.by {
		c.by[i].open = slices.Clone(c.by[i].open)
	}
	return c
}
