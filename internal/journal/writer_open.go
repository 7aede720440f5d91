package journal

import (
	"errors"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Opening segments: the next one before the last is complete, on another pair of the ensemble.

// openAhead opens the next segment when the current one is half full.
func (w *Writer) openAhead() {
	if w.next == nil && w.stopped == nil && (w.cur == nil && len(w.queue) > 0 || w.cur != nil && w.cur.end > w.capacity(w.cur)/2) {
		w.open()
	}
}

// open asks a pair of members for the next segment; none if fewer than two are up.
func (w *Writer) open() {
	a, b, ok := w.pair()
	if !ok {
		return
	}
	w.turn++
	s := &Segment{ID: ident.SegmentID{Site: w.cfg.Site, Journal: w.cfg.Journal, Epoch: w.cfg.Epoch, Number: w.number},
		replicas: []replicaOf{{member: a}, {member: b}}, askedAt: w.now}
	w.number++
	w.next = s
	w.segments = append(w.segments, s)
	w.act(Action{Kind: ActOpen, Member: a, Segment: s})
	w.act(Action{Kind: ActOpen, Member: b, Segment: s})
}

// pair chooses two members: home ones in turn, those with room before those without; one of another site only when fewer
// than two at home are up; a slow one only when there are no others.
func (w *Writer) pair() (a, b int, ok bool) {
	if a, b, ok = w.pairOf(false); !ok {
		a, b, ok = w.pairOf(true)
	}
	return a, b, ok
}

func (w *Writer) pairOf(slow bool) (a, b int, ok bool) {
	var home, roomy, away []int
	for i, m := range w.members {
		switch {
		case m.full || m.slow && !slow:
		case m.up && m.Home:
			home = append(home, i)
			if !m.crowded {
				roomy = append(roomy, i)
			}
		case m.up:
			away = append(away, i)
		}
	}
	switch {
	case len(roomy) >= 2:
		return roomy[w.turn%len(roomy)], roomy[(w.turn+1)%len(roomy)], true
	case len(home) >= 2:
		return home[w.turn%len(home)], home[(w.turn+1)%len(home)], true
	case len(home)+len(away) >= 2:
		all := append(home, away...)
		return all[0], all[1], true
	}
	return 0, 0, false
}

// Opened is the answer to ActOpen.
func (w *Writer) Opened(s *Segment, member int, boot ident.BootID, err error) {
	if w.stopped != nil || w.deposed(err) {
		return
	}
	if errors.Is(err, wire.ErrNoSpace) {
		// What it has open has its room already: only new segments go elsewhere.
		w.members[member].full = true
		if w.next == s {
			w.next = nil
			w.discard(s)
		}
	} else if err != nil {
		s.openFails = true
		w.fail(member)
	} else {
		w.sameBoot(member, boot)
		if r := s.replica(member); r != nil {
			r.opened = true
		}
		w.well(member)
	}
	w.Pump()
}

func (s *Segment) replica(member int) *replicaOf {
	for i := range s.replicas {
		if s.replicas[i].member == member {
			return &s.replicas[i]
		}
	}
	return nil
}
