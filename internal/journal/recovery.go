package journal

import (
	"fmt"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// Recover decides what the history of a journal is, from what the stores of its ensembles answered to a fence
// (R1, R2, R4). It is a pure function. The caller asks again with more answers until Enough, or gives up
// waiting; reads and verifies the records of Tail; and starts a Writer with them.
//
// Two simplifications carry it. Within one epoch there was one owner, so (epoch, seq) names one record,
// whichever replicas hold it: no hashes need comparing to find the run, and the chain is verified when the
// records are read. And an epoch's first segment begins at the commit point that its taker heard, so older
// epochs count only up to there: what a taker recovered above it stands in its own segments again.
//
// Answers of stores that are in no ensemble, those of other sites, supply records and the points they were told;
// for the fence and for what is known of the end they count nothing (R2, R4).
//
// known are points that the records themselves show to have been committed and stable, though no store may
// have been told: what an announced checkpoint covers.
func Recover(ensembles [][]ident.StoreID, answers map[ident.StoreID]*wire.FenceReply, known ...ident.Position) *Recovery {
	r := &Recovery{}
	r.count(ensembles, answers)
	c := collect(answers, known)
	unsure := newUnsure(ensembles, answers)
	r.EndKnown = !slices.ContainsFunc(c.empty, unsure.of)
	r.chain(c, unsure)
	return r
}

// Recovery is what Recover found.
type Recovery struct {
	Enough   bool            // R2: all but one of every ensemble answered
	Missing  []ident.StoreID // those that did not, or whose answer counts for nothing
	EndKnown bool            // R4: of every segment, all but one that may hold it know the end

	Commit ident.Position // where the new epoch's first segment begins: the highest commit point seen
	Seen   ident.Position // the highest commit point seen, also where the history ends below it
	Stable ident.Position // the highest stable point seen
	Last   ident.Position // the end of the history: the highest record recovered
	Start  wire.EpochStart
	Tail   []Range // where the records above Commit lie, in order
	Past   []Range // segments of the history up to Commit, in order

	// Cuts are the epoch-starts of this history that were not proven: each may have given up records that were
	// committed before it.
	Cuts []wire.EpochStart
	// Starts are the epoch-starts of this history as far back as they were seen without a gap.
	Starts map[ident.Epoch]wire.EpochStart

	// Lost is set when records at or below the commit point that was seen are not there: it must be reported.
	// LostStable: even below the stable point; never served without force.
	Lost, LostStable bool

	// Behind are segments of the highest epoch behind a hole above the commit point that was seen, which therefore do not count. They may announce
	// a checkpoint that covers the hole: then what it covers was committed, and has been retired.
	Behind []Range
}

// Proven is what the new epoch's start record says: nothing can be missing.
func (r *Recovery) Proven() bool { return r.Enough && r.EndKnown && !r.Lost }

// Range is a segment, or a part of one, that the history runs through.
type Range struct {
	Segment ident.SegmentID
	Before  ident.Position // before the segment's first record
	From    ident.Seq      // first record of the part
	To      ident.Seq      // last record of the part
	Sealed  bool           // some replica is, and all of it counts
	End     uint32         // with Sealed: behind the last record
	Holders []Holder
}

// Holder is a replica of a Range.
type Holder struct {
	Store ident.StoreID
	State wire.ReplicaState
	Last  ident.Seq // the last record that it has
	Made  uint64    // wire.Replica.Made
}

// Has reports whether the holder has everything of the range.
func (h Holder) Has(r *Range) bool { return h.Last >= r.To && h.State != wire.ReplicaDamaged }

// count applies R2. A store with a damaged replica is absent for everything (R4).
func (r *Recovery) count(ensembles [][]ident.StoreID, answers map[ident.StoreID]*wire.FenceReply) {
	r.Enough = true
	for _, stores := range ensembles {
		n := 0
		for _, s := range stores {
			if a := answers[s]; a != nil && !damaged(a) {
				n++
			} else if !slices.Contains(r.Missing, s) {
				r.Missing = append(r.Missing, s)
			}
		}
		if mutant.On(mutant.R2Elsewhere) {
			n = max(n, min(len(answers), len(stores)-1))
		}
		if n < max(1, len(stores)-1) && !(mutant.On(mutant.R2AllButOne) && n > 0) {
			r.Enough = false
		}
	}
}

func damaged(a *wire.FenceReply) bool {
	return slices.ContainsFunc(a.Replicas, func(x wire.Replica) bool { return x.State == wire.ReplicaDamaged }) && !mutant.On(mutant.R4Damaged)
}

// group is all replicas of one segment of the history.
type group struct {
	Range
}

// collected is what the answers say, sorted.
type collected struct {
	groups []*group
	empty  []ident.SegmentID // opened, and no record is seen of it
	starts map[ident.Epoch]wire.EpochStart
	commit []ident.Position // points that were told or that follow from what is there
	stable []ident.Position
}

// collect sorts the replicas by segment and gathers the points seen.
func collect(answers map[ident.StoreID]*wire.FenceReply, known []ident.Position) *collected {
	stores := make([]ident.StoreID, 0, len(answers))
	for s := range answers {
		stores = append(stores, s)
	}
	slices.SortFunc(stores, ident.StoreID.Compare)
	bySegment := map[ident.SegmentID]*group{}
	c := &collected{starts: map[ident.Epoch]wire.EpochStart{}, commit: slices.Clone(known), stable: slices.Clone(known)}
	for _, store := range stores {
		a := answers[store]
		if a == nil {
			continue
		}
		c.commit, c.stable = append(c.commit, a.Commit), append(c.stable, a.Stable)
		for _, x := range a.Replicas {
			if x.Segment.IsCheckpoint() || x.State == wire.ReplicaFork || x.State == wire.ReplicaDamaged {
				continue
			}
			if x.End == 0 {
				c.empty = append(c.empty, x.Segment)
				continue
			}
			if x.Start.At.Seq != 0 {
				c.starts[x.Segment.Epoch] = x.Start
			}
			g := bySegment[x.Segment]
			if g == nil {
				g = &group{Range{Segment: x.Segment, Before: x.Before, From: x.Before.Seq + 1, To: x.Before.Seq}}
				bySegment[x.Segment] = g
				c.groups = append(c.groups, g)
			}
			g.To = max(g.To, x.Last.Seq)
			g.Holders = append(g.Holders, Holder{store, x.State, x.Last.Seq, x.Made})
			if x.State == wire.ReplicaSealed {
				g.Sealed, g.End = true, x.End
				c.commit = append(c.commit, x.Last) // only what is committed is sealed
			}
		}
	}
	slices.SortFunc(c.groups, func(a, b *group) int {
		if c := a.Segment.Epoch.Compare(b.Segment.Epoch); c != 0 {
			return c
		}
		if a.From != b.From {
			if a.From < b.From {
				return -1
			}
			return 1
		}
		return a.Segment.Compare(b.Segment)
	})
	return c
}

// unsure tells of which segments the end is not known (R4). A segment is on a pair of an ensemble; any other replica
// is a copy, whose end says nothing. So the end is known if the segment is sealed anywhere, or a member of its pair
// knows it, or if no two members can be its pair that both don't: those that have not answered, and those whose
// replica is shortened.
type unsure struct {
	ensembles [][]ident.StoreID
	absent    map[ident.StoreID]bool
	short     map[ident.SegmentID][]ident.StoreID
	known     map[ident.SegmentID]bool
}

func newUnsure(ensembles [][]ident.StoreID, answers map[ident.StoreID]*wire.FenceReply) *unsure {
	u := &unsure{ensembles, map[ident.StoreID]bool{}, map[ident.SegmentID][]ident.StoreID{}, map[ident.SegmentID]bool{}}
	member := map[ident.StoreID]bool{}
	for _, stores := range ensembles {
		for _, s := range stores {
			member[s] = true
			if a := answers[s]; a == nil || damaged(a) {
				u.absent[s] = true
			}
		}
	}
	for s, a := range answers {
		if a == nil {
			continue
		}
		for _, x := range a.Replicas {
			switch {
			case x.State == wire.ReplicaShort:
				u.short[x.Segment] = append(u.short[x.Segment], s)
			case x.State == wire.ReplicaSealed || x.State == wire.ReplicaOpen && member[s]:
				u.known[x.Segment] = true
			}
		}
	}
	return u
}

func (u *unsure) of(id ident.SegmentID) bool {
	short := u.short[id]
	if len(short) == 0 || u.known[id] || mutant.On(mutant.R4End) {
		return false
	}
	for _, stores := range u.ensembles {
		n, some := 0, false
		for _, s := range stores {
			if slices.Contains(short, s) {
				n, some = n+1, true
			} else if u.absent[s] {
				n++
			}
		}
		if some && n >= 2 {
			return true
		}
	}
	return false
}

// highest is the highest of the points that are of the history which r.Start ends: one of an older epoch counts
// only up to where a later one went on, since an owner that was not proven may have given up what an earlier one
// had committed.
func (r *Recovery) highest(points []ident.Position, starts map[ident.Epoch]wire.EpochStart) (p ident.Position) {
	for _, x := range points {
		if after(x, p) && r.onChain(x, starts) {
			p = x
		}
	}
	return p
}

func (r *Recovery) onChain(p ident.Position, starts map[ident.Epoch]wire.EpochStart) bool {
	for s := r.Start; p.Epoch.Less(s.At.Epoch); {
		// The start of the epoch before may not have been heard, where its records are copies in segments of this one: of its
		// last record the number is known to be another's.
		other := p.Seq == s.Before.Seq && p.Epoch != s.Before.Epoch
		if (p.Seq > s.Before.Seq || other || s.Before.Epoch.Less(p.Epoch)) && !mutant.On(mutant.TermsChain) {
			return false
		}
		next, known := starts[s.Before.Epoch]
		if !known || !next.At.Epoch.Less(s.At.Epoch) {
			break
		}
		s = next
	}
	return true
}

// cuts follows the starts back from the highest and gives those that were not proven. It notes all.
func (r *Recovery) cuts(starts map[ident.Epoch]wire.EpochStart) (list []wire.EpochStart) {
	r.Starts = map[ident.Epoch]wire.EpochStart{}
	for s := r.Start; s.At.Seq != 0; {
		r.Starts[s.At.Epoch] = s
		if !s.Proven {
			list = append(list, s)
		}
		next := starts[s.Before.Epoch]
		if !next.At.Epoch.Less(s.At.Epoch) {
			break
		}
		s = next
	}
	return list
}

// after orders points of a history that several epochs have told of: a later epoch's word supersedes, since a
// forced one may have given up what an earlier one had committed.
func after(a, b ident.Position) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c > 0
	}
	return a.Seq > b.Seq
}

// chain follows the history from the highest epoch whose start was seen, forward to the end of its run and
// back through the epochs before.
func (r *Recovery) chain(c *collected, unsure *unsure) {
	groups, starts := c.groups, c.starts
	for _, s := range starts {
		if r.Start.At.Epoch.Less(s.At.Epoch) {
			r.Start = s
		}
	}
	if mutant.On(mutant.R1Highest) {
		r.Start = longest(groups, starts, r.Start)
	}
	if r.Start.At.Seq == 0 {
		return // nothing was ever begun
	}
	r.Commit, r.Stable = r.highest(c.commit, starts), r.highest(c.stable, starts)
	r.Seen, r.Cuts = r.Commit, r.cuts(starts)
	limit := ident.Seq(1<<64 - 1)
	newest := true
	var past []Range
	for epoch := r.Start.At.Epoch; epoch.Number != 0; {
		of := slices.DeleteFunc(slices.Clone(groups), func(g *group) bool { return g.Segment.Epoch != epoch })
		if len(of) == 0 {
			break
		}
		last := newest
		if newest {
			newest = false
			r.run(of)
			limit = r.Commit.Seq
		}
		for _, g := range of {
			// Of an earlier epoch nothing counts behind limit: a segment that begins there may end wherever it does.
			if (last || g.From <= limit) && unsure.of(g.Segment) {
				r.EndKnown = false
			}
		}
		past = append(past, cut(of, limit)...)
		limit = min(limit, of[0].Before.Seq)
		// The start record says which epoch the history goes on from. What that one had committed may be records of an
		// earlier one, copied again: the epoch of the record in front of the first segment is the lowest that it can be.
		// In between lies what is left where the one that the start names had nothing that counts, and it is gone.
		low, high := of[0].Before.Epoch, starts[epoch].Before.Epoch
		if !low.Less(epoch) {
			low = high // the first segment is gone (retired: a checkpoint covers it)
		}
		if !high.Less(epoch) || high.Less(low) {
			high = low
		}
		if !high.Less(epoch) {
			break
		}
		epoch = low
		for _, g := range groups {
			if e := g.Segment.Epoch; epoch.Less(e) && !high.Less(e) {
				epoch = e
			}
		}
	}
	slices.SortFunc(past, func(a, b Range) int {
		if a.From < b.From {
			return -1
		}
		return 1
	})
	r.Past = past
}

// longest is a mutant's choice: the epoch whose records go furthest, instead of the highest.
func longest(groups []*group, starts map[ident.Epoch]wire.EpochStart, start wire.EpochStart) wire.EpochStart {
	var to ident.Seq
	for _, g := range groups {
		if s, known := starts[g.Segment.Epoch]; known && g.To > to {
			start, to = s, g.To
		}
	}
	return start
}

// Hole gives the end of the history in front of the first gap behind from, and whether there is one up to the
// commit point. What from covers need not be there.
func (r *Recovery) Hole(from ident.Seq) (end ident.Seq, hole bool) {
	end = from
	for i := range r.Past {
		if x := &r.Past[i]; x.To > end {
			if x.From > end+1 {
				return end, true
			}
			end = x.To
		}
	}
	return end, end < r.Commit.Seq
}

// CutAt ends the history at a hole in the past (R8: the prefix ends in front of what was never stable, even if
// something behind it was): a loss that is reported.
func (r *Recovery) CutAt(end ident.Seq) {
	r.Lost = true
	r.LostStable = end < r.Stable.Seq
	r.Commit, r.Last = ident.Position{Seq: end}, ident.Position{Seq: end}
	r.Tail = nil
	past := r.Past[:0]
	for _, x := range r.Past {
		if x.From > end {
			continue
		}
		if x.To > end {
			x.To, x.Sealed, x.End = end, false, 0
		}
		past = append(past, x)
	}
	r.Past = past
}

// run finds the end of the highest epoch's run and what of it is above the commit point.
func (r *Recovery) run(of []*group) {
	first := of[0].Before
	if first.Seq > r.Commit.Seq {
		r.Commit, r.Seen = first, first // the commit point that this epoch's taker had heard
	}
	last := first.Seq
	for i, g := range of {
		// A hole: nothing behind it counts, unless it ends at or below the commit point. There it may be what a
		// checkpoint covers, of which the site keeps one replica (R5), at a store that has not answered: see Hole.
		if g.From > last+1 && g.From > r.Commit.Seq+1 {
			for _, b := range of[i:] {
				r.Behind = append(r.Behind, b.Range)
			}
			break
		}
		last = max(last, g.To)
	}
	r.Last.Seq = last
	if last < r.Commit.Seq {
		r.Lost = true
		r.Commit = ident.Position{} // the caller finds the position at Last by reading
		r.Commit.Seq = last
	}
	r.LostStable = last < r.Stable.Seq
	// The tail: from each group what lies above the commit point and was not in an earlier one.
	have := r.Commit.Seq
	for _, g := range of {
		if g.From > have+1 || g.To <= have {
			continue
		}
		t := g.Range
		t.From = have + 1
		r.Tail = append(r.Tail, t)
		have = g.To
	}
}

// cut gives the groups' ranges up to limit, without those that are empty. Segments of one epoch are numbered in the order in which its owner
// wrote to them, so each ends where a newer one begins. One that begins behind a newer one was given up when a store failed while two
// were open: what it had was sent again into the newer one, and it counts only for what is nowhere else.
func cut(of []*group, limit ident.Seq) []Range {
	var out []Range
	var have ident.Seq
	for i, g := range of {
		x := g.Range
		end := min(x.To, limit)
		for _, next := range of[i+1:] {
			if g.Segment.Number < next.Segment.Number || mutant.On(mutant.R1GivenUp) {
				end = min(end, next.Before.Seq)
				break
			}
		}
		if x.From = max(x.From, have+1); end < x.From {
			continue
		}
		if end != x.To {
			x.To = end
			if x.Sealed {
				x.Sealed, x.End = false, 0
			}
		}
		have = end
		out = append(out, x)
	}
	return out
}

// Describe says in a sentence what the recovery found.
func (r *Recovery) Describe() string {
	return fmt.Sprintf("history of epoch %s to seq %d, committed to %d, stable to %d, %d segments, tail of %d records, proven %v",
		r.Start.At.Epoch, r.Last.Seq, r.Commit.Seq, r.Stable.Seq, len(r.Past), r.Last.Seq-r.Commit.Seq, r.Proven())
}
