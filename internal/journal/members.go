package journal

import (
	"errors"
	"fmt"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// This part of the Writer follows its members: what becomes of records under way when one fails, and when one is back.

// fail takes a member out: the segments it is part of end at their commit point, and what is not committed
// goes to another pair, in order (protocol.md, "Simple on purpose").
func (w *Writer) fail(member int) {
	if !w.members[member].up {
		return
	}
	w.members[member].up = false
	w.members[member].slow = false
	w.members[member].syncing = false
	uncommitted := false
	for _, s := range w.segments {
		if r := s.replica(member); r != nil && !r.sealed {
			r.lost, r.asked = true, 0
		}
	}
	for _, b := range w.inflight {
		if b.Segment.replica(member) != nil {
			uncommitted = true
		}
	}
	if uncommitted {
		w.resend()
	}
	if s := w.cur; s != nil && s.replica(member) != nil {
		w.cur = nil
		w.close(s)
	}
	if s := w.next; s != nil && s.replica(member) != nil {
		w.next = nil
		w.discard(s)
	}
	if w.wantSeq > w.stable.Seq {
		w.copyLost()
	}
}

// resend gives up every append under way: the records go back to the head of the queue, their segments end at
// the commit point.
func (w *Writer) resend() {
	var again []*Entry
	for _, b := range w.inflight {
		b.gone = true
		for _, e := range b.entries {
			e.Shared = true
			again = append(again, e)
			w.queued += len(e.Bytes)
		}
		s := b.Segment
		s.end, s.closed, s.closedAt = s.commitEnd, true, w.now
		if s == w.cur {
			w.cur = nil
		}
	}
	w.queue = append(again, w.queue...)
	w.inflight = w.inflight[:0]
	w.flying = 0
	w.sent = w.held
	for _, s := range append([]*Segment(nil), w.segments...) {
		if s.closed && s.commitEnd <= SegmentHeaderSize {
			w.discard(s)
		}
	}
	w.sealClosed()
}

// discard forgets a segment without a committed record.
func (w *Writer) discard(s *Segment) {
	for i := range s.replicas {
		w.act(Action{Kind: ActDiscard, Member: s.replicas[i].member, Segment: s})
	}
	w.forget(s)
}

func (w *Writer) forget(s *Segment) {
	for i, x := range w.segments {
		if x == s {
			w.segments = append(w.segments[:i], w.segments[i+1:]...)
			return
		}
	}
}

// deposed stops the writer if err says that another owner has the journal.
func (w *Writer) deposed(err error) bool {
	if err == nil {
		return false
	}
	// A conflict that names no epoch is about a replica (one set aside as a fork, say), not about the ownership.
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Code != wire.CodeFenced && (e.Code != wire.CodeConflict || e.Epoch == ident.Epoch{}) {
		return false
	}
	w.stop(fmt.Errorf("epoch %s of journal %s: %w", w.cfg.Epoch, w.cfg.Journal, err))
	return true
}

func (w *Writer) stop(err error) {
	if w.stopped == nil {
		w.stopped = err
		w.serving = false
		w.act(Action{Kind: ActStopped, Err: err})
	}
}

// DropUnsent takes back the records that were never sent to any store, newest places first to be given again:
// when there is no room for them anywhere. What was sent once keeps its place, since a store may hold it.
func (w *Writer) DropUnsent() []*Entry {
	n := len(w.queue)
	for n > 0 && !w.queue[n-1].Shared && w.queue[n-1].Epoch == w.cfg.Epoch && w.queue[n-1].Kind != KindEpochStart {
		n--
	}
	dropped := append([]*Entry(nil), w.queue[n:]...)
	w.queue = w.queue[:n]
	w.at = w.sent
	if n > 0 {
		w.at = w.queue[n-1].Position()
	}
	for _, e := range dropped {
		w.queued -= len(e.Bytes)
	}
	return dropped
}

// Stop ends the writer from outside: a message of a higher epoch was seen, or the node is closing.
func (w *Writer) Stop(err error) { w.stop(err) }

// sameBoot notes the boot ID of a member; a new one means that what was not stable there is lost (R8), which
// is a failure of the member at this moment.
func (w *Writer) sameBoot(member int, boot ident.BootID) bool {
	m := &w.members[member]
	if m.boot == (ident.BootID{}) {
		m.boot = boot
	}
	if m.boot == boot || mutant.On(mutant.R8Boot) {
		return true
	}
	m.boot = boot
	w.fail(member)
	m.up = true
	w.sealAgain(member)
	return false
}

// sealAgain asks a member that was given up what it has still of closed segments: what was stable there counts again, and
// sealing it makes the rest so.
func (w *Writer) sealAgain(member int) {
	for _, s := range w.segments {
		if r := s.replica(member); r != nil && s.sealSent && !r.sealed && !r.copying {
			w.act(Action{Kind: ActSeal, Member: member, Segment: s})
		}
	}
}

// Up says that a member can be reached again; it is used from the next segment on, which is opened at once if
// the current one is on a member of another site for want of it.
func (w *Writer) Up(member int) {
	m := &w.members[member]
	m.full = false
	if m.up || w.stopped != nil {
		return
	}
	m.up = true
	w.sealAgain(member)
	m.slow = false
	w.comeHome()
	if !w.serving {
		w.copyLost() // nothing is sealed yet, and the epoch-start waits for it
	}
	w.Pump()
}

// comeHome ends the use of another site's member where two at home can be used.
func (w *Writer) comeHome() {
	home := 0
	for _, m := range w.members {
		if m.Home && m.up && !m.slow && !m.full {
			home++
		}
	}
	if home < 2 {
		return
	}
	if s := w.cur; s != nil && w.away(s) && s.commitEnd == s.end {
		w.cur = nil
		w.close(s)
	}
	if s := w.next; s != nil && w.away(s) {
		w.next = nil
		w.discard(s)
	}
}

// Slow says that a member is late with an answer. It is not given up yet, but a segment without it is opened where
// that is possible: should it be given up, the records that wait have somewhere to go at once.
func (w *Writer) Slow(member int) {
	if m := &w.members[member]; w.stopped == nil && m.up && !m.slow {
		m.slow = true
		w.avoidSlow()
	}
}

// well says that a member has answered.
func (w *Writer) well(member int) {
	if m := &w.members[member]; m.slow {
		m.slow = false
		w.comeHome()
	}
}

// avoidSlow opens the next segment without those that are slow, if there is a pair of others.
func (w *Writer) avoidSlow() {
	if _, _, ok := w.pairOf(false); !ok {
		return
	}
	if s := w.next; s != nil {
		for i := range s.replicas {
			if w.members[s.replicas[i].member].slow {
				w.next = nil
				w.discard(s)
				break
			}
		}
	}
	if w.next == nil {
		w.open()
	}
}

// askOthers looks for another pair when a member doesn't open the next segment.
func (w *Writer) askOthers() {
	s := w.next
	if s == nil || s.ready() || w.now-s.askedAt < openPatience {
		return
	}
	for i := range s.replicas {
		if r := &s.replicas[i]; !r.opened {
			w.Slow(r.member)
		}
	}
}

// Crowded says whether a member's store has much less room than others: as long as there are two at home that are not
// crowded, new segments go there.
func (w *Writer) Crowded(member int, yes bool) { w.members[member].crowded = yes }

// CanSpare reports that there are two members without this one, so that it need not be waited for.
func (w *Writer) CanSpare(member int) bool {
	up := 0
	for i, m := range w.members {
		if i != member && m.up {
			up++
		}
	}
	return up >= 2
}

// away reports that a segment has a holder at another site.
func (w *Writer) away(s *Segment) bool {
	for i := range s.replicas {
		if !w.members[s.replicas[i].member].Home {
			return true
		}
	}
	return false
}

// Down says that a member can't be reached.
func (w *Writer) Down(member int) {
	if w.stopped == nil {
		w.fail(member)
		w.Pump()
	}
}
