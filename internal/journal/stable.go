package journal

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// This part of the Writer follows what is stable (R8) and settles segments.

// WantStable asks that everything up to seq becomes stable soon: a flush waits.
func (w *Writer) WantStable(seq ident.Seq) {
	if w.stopped != nil || seq <= w.stable.Seq {
		return
	}
	w.wantSeq = max(w.wantSeq, seq)
	if w.held.Seq >= seq {
		w.syncAll()
	}
	w.copyLost()
}

// syncAll asks every member for an fdatasync of what it has unsynced. One that is under way may have begun
// too early, so another follows it.
func (w *Writer) syncAll() {
	for i := range w.members {
		w.syncMember(i)
	}
	w.syncedAt = w.now
}

func (w *Writer) syncMember(member int) {
	m := &w.members[member]
	if !m.up {
		return
	}
	if m.syncing {
		m.syncMore = true
		return
	}
	var ids []ident.SegmentID
	for _, s := range w.segments {
		if r := s.replica(member); r != nil && !r.lost && !r.sealed && r.stableEnd < r.acked {
			ids = append(ids, s.ID)
			r.asked = r.acked
		}
	}
	if len(ids) > 0 {
		m.syncing = true
		w.act(Action{Kind: ActSync, Member: member, Segments: ids})
	}
}

// Synced is the answer to ActSync.
func (w *Writer) Synced(member int, reply wire.SyncReply, err error) {
	if w.stopped != nil || w.deposed(err) {
		return
	}
	m := &w.members[member]
	m.syncing = false
	if err != nil {
		w.fail(member)
		w.Pump()
		return
	}
	if !w.sameBoot(member, reply.Boot) {
		w.Pump()
		return
	}
	short := false
	for _, x := range reply.Synced {
		for _, s := range w.segments {
			r := s.replica(member)
			if s.ID != x.Segment || r == nil || r.lost {
				continue
			}
			r.stableEnd = max(r.stableEnd, min(x.StableEnd, r.acked))
			want := r.asked
			if s.closed { // a seal may have cut what was not committed
				want = min(want, s.commitEnd)
			}
			short = short || !r.sealed && x.StableEnd < want
			r.asked = 0
		}
	}
	if short {
		// It has less of a replica than it had acknowledged, in the same boot: what is there is damaged. Asked again it would
		// say the same for ever.
		w.restable()
		w.fail(member)
		w.Pump()
		return
	}
	more := m.syncMore
	m.syncMore = false
	w.restable()
	if more && (w.wantSeq > w.stable.Seq || w.unsynced() > unsyncedBytesGoal) {
		w.syncMember(member)
	}
	w.Pump()
}

// Sealed is the answer to ActSeal and ActCopy.
func (w *Writer) Sealed(s *Segment, member int, err error) {
	if w.stopped != nil || w.deposed(err) {
		return
	}
	r := s.replica(member)
	if r == nil {
		return
	}
	w.made(s, r, err, true)
}

// CopiedOpen is the answer to ActCopyOpen: what was committed of s is stable at the member, which has not sealed it.
func (w *Writer) CopiedOpen(s *Segment, member int, err error) {
	if w.stopped != nil || w.deposed(err) {
		return
	}
	r := s.replica(member)
	if r == nil {
		return
	}
	w.made(s, r, err, false)
	if err == nil && s.sealSent { // the owner serves since
		w.act(Action{Kind: ActSeal, Member: member, Segment: s})
	}
}

// made takes the end of a seal or a copy.
func (w *Writer) made(s *Segment, r *replicaOf, err error, sealed bool) {
	if r.copying {
		r.copying, r.retryAt = false, w.now+copyRetry
	}
	member := r.member
	switch {
	case err == nil:
		r.lost, r.refused = false, false
		r.sealed = r.sealed || sealed
		r.stableEnd, r.acked = s.commitEnd, max(r.acked, s.commitEnd)
	case errors.Is(err, wire.ErrUnreached):
		w.fail(member)
	default:
		// The store is there but its replica isn't what it should be: it is made again elsewhere.
		r.lost, r.refused = true, true
	}
	w.restable()
	if err != nil && w.wantSeq > w.stable.Seq {
		w.copyLost()
	}
	w.Pump()
}

// stableEnd is how far two holders of a segment are stable.
func (s *Segment) stableEnd() uint32 {
	var first, second uint32
	for i := range s.replicas {
		if e := s.replicas[i].stableEnd; e > first {
			first, second = e, first
		} else if e > second {
			second = e
		}
	}
	return min(second, s.commitEnd)
}

// restable computes the stable point and settles segments that are sealed on two stores.
func (w *Writer) restable() {
	stable := w.stable
	for _, s := range w.segments {
		if s.end == 0 {
			break // not begun; nothing behind it is
		}
		if s.records == 0 {
			continue
		}
		end := s.stableEnd()
		n := 0
		for n < len(s.entries) && s.entries[n].end <= end {
			n++
		}
		if n > 0 && s.entries[n-1].pos.Seq > stable.Seq {
			stable = s.entries[n-1].pos
		}
		s.entries = append(s.entries[:0], s.entries[n:]...)
		if (end < s.end || !s.closed) && !mutant.On(mutant.R8Prefix) {
			break
		}
	}
	w.stable = stable
	w.settle()
	if !w.serving && w.stopped == nil && (w.stable.Seq >= w.start.At.Seq || mutant.On(mutant.R1StartStable) && w.held.Seq >= w.start.At.Seq) {
		w.serving = true
		w.commit = w.held
		w.act(Action{Kind: ActServing})
		w.sealClosed()
	}
}

// settle forgets segments that two stores have sealed, or one, where the others never will though they have made
// it stable: they are the driver's now.
func (w *Writer) settle() {
	kept := w.segments[:0]
	for _, s := range w.segments {
		sealed, hopeful := 0, 0
		for i := range s.replicas {
			switch r := &s.replicas[i]; {
			case r.sealed:
				sealed++
			case !r.lost || r.copying || !w.members[r.member].up:
				hopeful++
			}
		}
		done := sealed >= 2 || sealed == 1 && hopeful == 0
		if !s.closed || !done || len(s.entries) > 0 {
			kept = append(kept, s)
		}
	}
	clear(w.segments[len(kept):])
	w.segments = kept
}

// copyLost has the segments copied whose unstable records are left on one holder only, to another member
// that is up.
func (w *Writer) copyLost() {
	for _, s := range w.segments {
		if !s.closed || s.commitEnd != s.end || s.commitEnd <= SegmentHeaderSize || s.stableEnd() == s.commitEnd {
			continue
		}
		source, good := -1, 0
		for i := range s.replicas {
			if r := &s.replicas[i]; r.copying || !r.lost && w.members[r.member].up {
				good++
				if !r.copying {
					source = r.member
				}
			}
		}
		if good >= 2 || source < 0 {
			continue
		}
		// Before the epoch-start is stable none is sealed: see sealClosed.
		how := ActCopy
		if !w.serving {
			how = ActCopyOpen
		}
		if dest := w.spareMember(s); dest >= 0 {
			s.replicas = append(s.replicas, replicaOf{member: dest, copying: true})
			w.act(Action{Kind: how, Member: source, Dest: dest, Segment: s})
		} else if r := w.lostMember(s, source); r != nil {
			r.copying = true
			w.act(Action{Kind: how, Member: source, Dest: r.member, Segment: s})
		}
	}
}

// errNobodyHas stops a writer whose records are gone.
var errNobodyHas = errors.New("records that were committed, and are not stable, are on none of their holders any more: the journal is recovered as in a takeover")

// nobodyHas reports that some record was committed, is not stable, and that none of the stores that had it has it still, as far
// as they can be asked (R8). What the next epoch finds is the answer then, and R4 says what that is worth.
func (w *Writer) nobodyHas() bool {
	for _, s := range w.segments {
		if s.closed && s.commitEnd > SegmentHeaderSize && s.stableEnd() < s.commitEnd && !slices.ContainsFunc(s.replicas, w.mayHave) &&
			slices.ContainsFunc(s.replicas, func(r replicaOf) bool { return w.members[r.member].up }) {
			return true
		}
	}
	return false
}

// mayHave reports that a replica counts, or may count again without another epoch: by its copy's end, or by the answer to the seal
// that its store is sent when it is back. Before the epoch-start is stable none is sealed, so one that has failed stays lost.
func (w *Writer) mayHave(r replicaOf) bool {
	return !r.lost || r.copying || r.sealed || w.serving && !r.refused
}

// lostMember finds a holder of s whose replica is known not to be what it should be, though its store is up: it
// is completed there when no other member is left to copy to. That it is not is what the seal says, once one is sent.
func (w *Writer) lostMember(s *Segment, source int) *replicaOf {
	for i := range s.replicas {
		if r := &s.replicas[i]; r.member != source && r.lost && !r.sealed && w.members[r.member].up && (s.sealSent || !w.serving) && w.now >= r.retryAt {
			return r
		}
	}
	return nil
}

// spareMember finds a member that is up and has no part in s, home ones first.
func (w *Writer) spareMember(s *Segment) int {
	for _, home := range []bool{true, false} {
		for i, m := range w.members {
			if m.up && m.Home == home && s.replica(i) == nil {
				return i
			}
		}
	}
	return -1
}

// unsynced is how many bytes are not yet stable on two stores.
func (w *Writer) unsynced() int {
	n := 0
	for _, s := range w.segments {
		if s.end > 0 {
			n += int(s.end - s.stableEnd())
		}
	}
	return n
}

// Tick tells the time; call it every 10 to 50 ms while there is anything unsettled. It sends notices, starts
// background fdatasyncs and copies what a lost holder left unstable.
func (w *Writer) Tick(now time.Duration) {
	w.now = now
	if w.stopped != nil {
		return
	}
	if n := w.unsynced(); n > 0 && (n > unsyncedBytesGoal || now-w.syncedAt >= unsyncedAgeMax) {
		w.syncAll()
	}
	if w.serving && w.commit != w.told && now-w.toldAt >= noticeAfter {
		w.told, w.toldAt = w.commit, now
		for i, m := range w.members {
			if m.up {
				w.act(Action{Kind: ActNotice, Member: i})
			}
		}
	}
	w.askOthers()
	if w.nobodyHas() {
		w.stop(fmt.Errorf("epoch %s of journal %s: %w", w.cfg.Epoch, w.cfg.Journal, errNobodyHas))
		return
	}
	for _, s := range w.segments {
		if s.closed && now-s.closedAt >= copyAfter {
			w.copyLost()
			break
		}
	}
	w.Pump()
}

// CloseIdle ends the open segment if it has records, so that it can be sealed (R4: a tail idle for 60 s), and takes
// back one that was opened ahead: a power cut leaves nothing then of which the end is not known.
func (w *Writer) CloseIdle() {
	if s := w.cur; s != nil && s.records > 0 && s.commitEnd == s.end {
		w.cur = nil
		w.close(s)
	}
	if s := w.next; s != nil && s.ready() && w.cur == nil && len(w.queue) == 0 && w.stopped == nil {
		w.next = nil
		w.discard(s)
	}
}

// Idle reports that nothing waits, is under way, or is unstable.
func (w *Writer) Idle() bool {
	return len(w.queue) == 0 && len(w.inflight) == 0 && w.unsynced() == 0 && w.told == w.commit
}

// Tail reports that a segment is open that CloseIdle could end.
func (w *Writer) Tail() bool { return w.cur != nil && w.cur.records > 0 || w.next != nil }

// Settled reports that, beyond Idle, no segment is being sealed or copied.
func (w *Writer) Settled() bool {
	return w.Idle() && !slices.ContainsFunc(w.segments, func(s *Segment) bool { return s.closed })
}

// SetPoint names the newest announced checkpoint for the headers of later segments (R12).
func (w *Writer) SetPoint(p CheckpointPoint) { w.cfg.Point = p }

// Point is the newest announced checkpoint, zero if there is none.
func (w *Writer) Point() CheckpointPoint { return w.cfg.Point }

// Pending lists the segments that are not settled, with the members that hold them now.
func (w *Writer) Pending(visit func(s *Segment, holders []int)) {
	for _, s := range w.segments {
		var holders []int
		for i := range s.replicas {
			if r := &s.replicas[i]; !r.lost && !r.copying && r.acked > 0 {
				holders = append(holders, r.member)
			}
		}
		visit(s, holders)
	}
}

// Unstable says, for people, which segments keep the record from being stable, and at which stores they are.
func (w *Writer) Unstable(seq ident.Seq) (list []string) {
	for _, s := range w.segments {
		if s.records == 0 || s.Before.Seq >= seq || s.stableEnd() == s.end && s.closed {
			continue
		}
		what := fmt.Sprintf("segment %s from %d", s.ID, s.Before.Seq+1)
		for i := range s.replicas {
			r := &s.replicas[i]
			state := fmt.Sprintf("stable to byte %d of %d", r.stableEnd, s.end)
			switch {
			case r.copying:
				state = "being copied"
			case !w.members[r.member].up:
				state += ", away"
			case r.lost:
				state += ", lost the rest"
			case w.members[r.member].syncing:
				state += ", syncing"
			}
			what += fmt.Sprintf(", %s: %s", w.members[r.member].Store, state)
		}
		list = append(list, what)
	}
	return list
}

// IsUp reports that a member is used.
func (w *Writer) IsUp(member int) bool { return w.members[member].up }
