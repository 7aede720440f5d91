package access

import (
	"slices"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// A volume of a terabyte has 32,000 segments, and what looks at all of them holds up its clients' commands for tens of
// milliseconds. So what has to look at each segment does so in rounds, a part of them at a time. Smaller volumes are looked at
// whole, each time.

// sweep is a walk through the segments of a volume.
type sweep struct {
	all  []*segment
	left []*segment
}

// next gives the segments that are to be looked at now, and says whether they are the first or the last of a round. What was entered
// after a round began is looked at in the next one.
func (w *sweep) next(o *Owner) (list []*segment, first, last bool) {
	if first = len(w.left) == 0; first {
		w.all = append(w.all[:0], o.all...)
		w.left = w.all
	}
	n := min(len(w.left), o.env.Limits.SweepSegments)
	list, w.left = w.left[:n], w.left[n:]
	if last = len(w.left) == 0; last && len(w.all) > 2*o.env.Limits.SweepSegments {
		w.all = nil // it is only wanted again in a while, and may be far smaller then
	}
	return slices.DeleteFunc(list, func(s *segment) bool { return o.segs[s.id] != s }), first, last
}

// back has segments looked at next that were not looked at after all: they lie in front of those that are left.
func (w *sweep) back(list []*segment) {
	w.left = append(slices.Clone(list), w.left...)
}

// keep enters a segment; leaveOut takes it out.
func (o *Owner) keep(s *segment) {
	if old := o.segs[s.id]; old != nil {
		s.place = old.place
		o.all[s.place] = s
	} else {
		s.place = len(o.all)
		o.all = append(o.all, s)
	}
	o.segs[s.id] = s
	if s.id.IsCheckpoint() {
		if o.parts == nil {
			o.parts = map[ident.SegmentID]*segment{}
		}
		o.parts[s.id] = s
	}
}

func (o *Owner) leaveOut(id ident.SegmentID) {
	s := o.segs[id]
	if s == nil {
		return
	}
	last := len(o.all) - 1
	o.all[s.place] = o.all[last]
	o.all[s.place].place = s.place
	o.all[last] = nil
	o.all = o.all[:last]
	delete(o.segs, id)
	delete(o.parts, id)
}

// forgetLost takes what was on stores that an operator has declared lost out of the tables: it counts for nothing, whatever
// becomes of it, and nobody waits for its confirmation (R13). Of stores that the cluster still knows that is done for all segments at
// once, of others where a segment is looked at.
func (o *Owner) forgetLost() {
	var lost []ident.StoreID
	add := func(id ident.StoreID) {
		if o.env.about(id).Lost && !slices.Contains(lost, id) {
			lost = append(lost, id)
		}
	}
	for _, site := range append(o.remoteSites(), o.env.Site) {
		for _, id := range o.env.Stores.Core(site) {
			add(id)
		}
	}
	for _, e := range append(slices.Clone(o.state.Ensembles), control.Ensemble{Stores: o.memberStores()}) {
		for _, id := range e.Stores {
			add(id)
		}
	}
	slices.SortFunc(lost, ident.StoreID.Compare)
	if !slices.Equal(lost, o.repair.lost) {
		o.repair.lost = lost
		for _, s := range o.all {
			o.forgetLostOf(s, func(id ident.StoreID) bool { return slices.Contains(lost, id) })
		}
	}
	isLost := o.whoIsLost()
	for k := range o.permits {
		if isLost(k.store) {
			delete(o.permits, k)
		}
	}
	for k := range o.strays.found {
		if isLost(k.store) {
			delete(o.strays.found, k)
		}
	}
}

// whoIsLost tells lost stores, and asks for each only once.
func (o *Owner) whoIsLost() func(ident.StoreID) bool {
	known := map[ident.StoreID]bool{}
	return func(id ident.StoreID) bool {
		lost, ok := known[id]
		if !ok {
			lost = o.env.about(id).Lost
			known[id] = lost
		}
		return lost
	}
}

func (o *Owner) forgetLostOf(s *segment, isLost func(ident.StoreID) bool) {
	if slices.ContainsFunc(s.holders, func(h holder) bool { return isLost(h.store) }) {
		s.holders = slices.DeleteFunc(s.holders, func(h holder) bool { return isLost(h.store) })
	}
}

func (o *Owner) memberStores() (list []ident.StoreID) {
	for _, m := range o.members {
		list = append(list, m.Store)
	}
	return list
}
