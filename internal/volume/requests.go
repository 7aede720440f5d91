package volume

import (
	"cmp"
	"errors"
	"iter"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// Bounds of Requests: so much is kept at least, and twice as much at most. A forwarder is one connection of a client, or a process
// that has calls of its own; it asks again within seconds, or never. What it has under way is some thousands of parts at
// most.
const (
	RequestsMax   = 1 << 16 // parts of one forwarder
	ForwardersMax = 1 << 10
)

// ErrRequestsFull says that Add has no room before MakeRoom is called.
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

// Add notes that a part of the request is the record seq. The zero ID is no request; one that is confirmed
// already, or known, changes nothing. ErrRequestsFull comes at twice the bounds.
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

// MakeRoom forgets what is the least likely to be asked about where Add has no room for a request of a forwarder. Of that one the newest
// RequestsMax parts stay, by their numbers, whatever these are; the others count as confirmed. If there are too many forwarders, those
// go whose latest request lies furthest back in the history.
func (r *Requests) MakeRoom(id uint64) {
	if i, ok := r.find(id); ok {
		if open := r.by[i].open; len(open) > RequestsMax {
			r.Confirm(id, open[len(open)-RequestsMax-1].number, nil)
		}
		return
	}
	if len(r.by) <= ForwardersMax {
		return
	}
	latest := func(f *forwarder) ident.Seq {
		if len(f.open) == 0 {
			return 0
		}
		return f.open[len(f.open)-1].seq
	}
	seqs := make([]ident.Seq, len(r.by))
	for i := range r.by {
		seqs[i] = latest(&r.by[i])
	}
	slices.Sort(seqs)
	kept, last := 0, seqs[len(seqs)-ForwardersMax]
	r.by = slices.DeleteFunc(r.by, func(f forwarder) bool {
		if latest(&f) >= last && kept < ForwardersMax {
			kept++
			return false
		}
		r.count -= len(f.open)
		return true
	})
	r.dirty = true
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
