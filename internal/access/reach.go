package access

import "dozo/internal/ident"

// reach is how far a site is for acknowledgements (R11). It differs from the watermark in one thing: what a store has by its
// own word counts also while the store is away. For the loss of the site it is the same whether it is back: the site counts as
// heard only with all of its stores (Owner.wholeSites).
type reach struct {
	mark   ident.Seq // the site holds everything up to here
	stable ident.Seq // and stably to here
	sealed stableRuns
	hides  *ident.Seq // what follows it may be at a store that is away, or nowhere
}

func (r *reach) to(seq ident.Seq) {
	if seq > r.mark && (r.hides == nil || seq <= *r.hides) {
		r.mark = seq
	}
}

// made notes that the records after before, up to last, are stable.
func (r *reach) made(before, last ident.Seq) {
	r.stable = r.sealed.add(r.stable, before, last)
}

// madeOpen notes that of a segment, which begins after before, everything up to stable is.
func (r *reach) madeOpen(before, stable ident.Seq) {
	r.to(stable) // what is stable is held, though that answer may still be on its way
	if r.stable >= before {
		r.stable = max(r.stable, min(stable, r.mark))
	}
}

// passOver notes that a segment is left out, because a store is away which has it, or may have it.
func (s *siteShip) passOver(before, last ident.Seq, has bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.mu.reach
	switch {
	case has:
		r.to(last)
		r.made(before, last)
	case r.hides == nil:
		r.hides = &before
	}
}

// stableRuns are stable runs of records that others stand before which are not known to be stable yet, by the seq before them.
type stableRuns map[ident.Seq]ident.Seq

// add takes the run after before, up to last, and gives the new end of what is stable from the beginning on.
func (r *stableRuns) add(stable, before, last ident.Seq) ident.Seq {
	if *r == nil {
		*r = stableRuns{}
	}
	(*r)[before] = last
	for more := true; more; {
		more = false
		for b, l := range *r {
			if b <= stable {
				delete(*r, b)
				more = more || l > stable
				stable = max(stable, l)
			}
		}
	}
	return stable
}
