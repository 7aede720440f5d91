package journal

import (
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Scripted scenarios: the failures of docs/internals/rules.md that need no bytes. Each stands for a clause, and fails in a
// program that leaves the clause out (internal/mutant). Stores are 0, 1, 2, ..., all at the owner's site.

func newScript(t *testing.T, stores int) *model {
	m := newModel(t, 1, stores)
	m.home, m.trouble = stores, t.Name()
	return m
}

// take has the next owner begin, from what the stores say that are not deaf to it.
func (m *model) take(deaf ...int) *Recovery {
	m.t.Helper()
	rec, answers := m.hear(deaf...)
	if !rec.Proven() {
		m.t.Fatalf("epoch %d is not proven: %s", m.epoch, rec.Describe())
	}
	m.begin(rec, answers)
	return rec
}

func (m *model) hear(deaf ...int) (*Recovery, map[ident.StoreID]*wire.FenceReply) {
	return m.recover(func(s *modelStore) bool { return !contains(deaf, int(s.id[0])-1) })
}

func contains(list []int, x int) bool {
	for _, y := range list {
		if x == y {
			return true
		}
	}
	return false
}

// write gives a record of so many blocks its place and has it sent.
func (m *model) write(blocks int) ident.Position {
	e := &Entry{Record: Record{Kind: KindWrite, Count: uint32(blocks), LogicalLen: uint32(blocks * BlockSize), StoredLen: uint32(blocks * BlockSize)}}
	e.Bytes = make([]byte, RecordSize(e.StoredLen))
	m.w.Queue(e)
	m.w.Pump()
	m.drain()
	return e.Position()
}

// run delivers what is under way and what follows from it. What pass holds off is lost.
func (m *model) run(pass func(store int, a Action) bool) {
	for len(m.pending) > 0 {
		x := m.pending[0]
		m.pending = m.pending[1:]
		if pass == nil || pass(m.ensemble()[x.a.Member], x.a) {
			m.deliver(x.w, x.a)
		}
	}
}

// appendsTo lets appends through to the given stores, and everything else but fdatasync and sealing to all.
func appendsTo(stores ...int) func(int, Action) bool {
	return func(store int, a Action) bool {
		switch a.Kind {
		case ActAppend:
			return contains(stores, store)
		case ActSync, ActSeal:
			return false
		}
		return true
	}
}

func (m *model) down(store int) { m.stores[store].up = false }
func (m *model) back(store int) { m.stores[store].up = true }

// A record counts once two members of one ensemble hold it.
func TestARecordOnOneStoreIsNotCommitted(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	before := len(m.acked)
	m.write(1)
	m.run(appendsTo(0))
	if len(m.acked) != before {
		t.Error("a record that one store holds was acknowledged")
	}
	m.take(0)
}

// A store has a dead record of epoch 1. A commit point of the same number that a later history has is no word on it.
func TestADeadRecordIsNotCommittedByItsNumber(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	dead := m.write(1)
	m.run(appendsTo(0))
	m.down(0)
	m.take(0)
	m.run(nil)
	if m.w.Start().At.Seq != dead.Seq || !m.w.Serving() {
		t.Fatal("not what the test is about")
	}
	m.back(0)
	// The last word to the store that has it was that its record is committed: an owner that was not proven gave it up.
	m.stores[0].commit = dead
	rec := m.take(2)
	if rec.Lost || rec.Commit == dead {
		t.Errorf("a point of a history that was left is taken for one of this: %s", rec.Describe())
	}
}

// 104 and 105 of epoch 1 reached only A. The next owner hears B and C: the run ends at 103; it acknowledges a 104 of its
// own on B and C and dies. The one after hears A and B: A's run is longer.
func TestALongerRunOfAnOlderEpoch(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	m.write(1)
	m.run(nil)
	m.write(1)
	m.run(appendsTo(0))
	for range 4 { // nobody answers for what goes to the others
		m.write(1)
		m.run(appendsTo(0))
	}
	m.down(0)
	m.take(0)
	m.run(nil)
	before := len(m.acked)
	m.write(1)
	m.run(nil)
	if len(m.acked) != before+1 {
		t.Fatal("the second owner acknowledges nothing")
	}
	m.back(0)
	m.take(2)
}

// The start of epoch 2 and a record behind it are on B and C, unsynced; both lose their power: A's dead tail of epoch 1 is
// then of the highest epoch seen. Nothing of epoch 2 may have been acknowledged.
func TestNothingIsAcknowledgedBeforeTheStartIsStable(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	m.write(1)
	m.run(nil)
	for range 2 {
		m.write(1)
		m.run(appendsTo(0))
	}
	m.down(0)
	m.take(0)
	m.write(1)
	m.run(appendsTo(1, 2))
	if m.w.Serving() || m.w.Commit() != m.w.cfg.Heard {
		t.Errorf("the start is not stable, and the commit point is %v", m.w.Commit())
	}
	m.stores[1].powerCut()
	m.stores[2].powerCut()
	m.back(0)
	rec, answers := m.hear()
	history, _ := m.history(rec, answers)
	m.stands(history, rec)
}

// Record 1 of epoch 1 is on A. O2 hears B and C and leaves its start on B only. O3 hears A and C, copies 1 to B, and its start
// reaches A only. O4 hears B and C, follows O2's start and drops 1: so nobody may have been told that 1 is committed.
func TestWhatIsCopiedAgainIsNotCommittedByThat(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	one := m.write(1)
	m.run(appendsTo(0))
	m.down(0)
	m.take(0)
	m.run(appendsTo(1))
	m.back(0)
	m.take(1)
	start := false
	m.run(func(store int, a Action) bool {
		if a.Kind == ActAppend && len(a.Batch.entries) > 0 && a.Batch.entries[0].Kind == KindEpochStart {
			start = start || store == 0
			return store == 0
		}
		return a.Kind != ActSync && a.Kind != ActSeal
	})
	if !start {
		t.Fatal("O3 has sent no start")
	}
	rec, answers := m.hear(0)
	history, _ := m.history(rec, answers)
	if int(one.Seq) <= len(history) && history[one.Seq-1] == one {
		t.Fatal("not what the test is about: 1 is in the history")
	}
	for i, s := range m.stores {
		if p := s.commit; int(p.Seq) > len(history) || p.Seq > 0 && history[p.Seq-1] != p {
			t.Errorf("store %d was told that %v is committed, and would ship it", i, p)
		}
	}
}

// What was recovered fills a segment, the start goes to the next one, on another pair. Were it sent before the rest is on two
// stores, the next owner could find the start and not what it follows.
func TestTheStartFollowsWhatWasRecovered(t *testing.T) {
	m := newScript(t, 3)
	m.capacity = uint32(SegmentHeaderSize + RecordSize(8*BlockSize) + IndexSize(1) + 100)
	m.take()
	m.run(nil)
	m.write(8)
	m.run(appendsTo(1))
	m.take(2)
	sent := false
	m.run(func(store int, a Action) bool {
		switch {
		case a.Kind != ActAppend:
			return a.Kind != ActSync && a.Kind != ActSeal
		case a.Batch.entries[0].Kind == KindEpochStart:
			sent = true
			return store == 2
		}
		return false // the copy reaches nobody
	})
	if sent {
		t.Error("the start is under way, and what it follows is on one store")
	}
	m.take(1)
}

// O1 puts 1 on C, of A, B and C, and dies. O2 records the ensemble A, B, D, finds 1 and goes on from it. C and D die: A and B
// are all but one of both ensembles.
func TestWhatIsFoundOnOneIsPutOnTwoMembersOfTheNewest(t *testing.T) {
	m := newScript(t, 4)
	m.members = []int{0, 1, 2}
	m.take(3)
	m.run(nil)
	m.w.CloseIdle() // the next segment is on B and C
	m.run(nil)
	m.write(1)
	m.run(appendsTo(2))
	m.older, m.members = [][]int{m.members}, []int{0, 1, 3}
	m.take(0)
	m.run(func(_ int, a Action) bool { return a.Kind != ActSeal })
	if !m.w.Serving() || m.w.Commit() != m.w.At() {
		t.Fatal("O2 doesn't serve")
	}
	m.acked = append(m.acked, m.w.cfg.Heard, m.w.Commit())
	for _, e := range m.w.cfg.Tail {
		m.acked = append(m.acked, e.Position())
	}
	m.down(2)
	m.down(3)
	m.take(2, 3)
}

// O, A and B are cut off from C. The taker reaches C and another site, whose copy has everything: O goes on acknowledging.
func TestAnotherSiteIsNoAnswerToAFence(t *testing.T) {
	a, b, c, x, y := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}, ident.StoreID{4}, ident.StoreID{5}
	start := wire.EpochStart{At: pos(1, 1), Proven: true}
	all := &wire.FenceReply{Commit: pos(1, 9), Replicas: []wire.Replica{replica(seg(1, 1), wire.ReplicaSealed, ident.Position{}, pos(1, 9), start)}}
	three := [][]ident.StoreID{{a, b, c}}
	if r := Recover(three, map[ident.StoreID]*wire.FenceReply{c: all, x: all, y: all}); r.Enough || r.Proven() {
		t.Errorf("one of three and two of another site are enough: %s", r.Describe())
	}
	if r := Recover(three, map[ident.StoreID]*wire.FenceReply{b: all, c: all}); !r.Proven() {
		t.Errorf("two of three are not: %s", r.Describe())
	}
	// Each listed ensemble by itself: of the older one only B has answered.
	if r := Recover([][]ident.StoreID{{a, b, c}, {b, x, y}}, map[ident.StoreID]*wire.FenceReply{b: all, x: all, y: all}); r.Enough {
		t.Errorf("one of the older ensemble is enough: %s", r.Describe())
	}
}

// A store that lacks a replica, or has a bad record before good ones, is absent for everything: of two it is none.
func TestADamagedStoreIsAbsent(t *testing.T) {
	a, b := ident.StoreID{1}, ident.StoreID{2}
	start := wire.EpochStart{At: pos(1, 1), Proven: true}
	reply := &wire.FenceReply{Commit: pos(1, 5), Replicas: []wire.Replica{replica(seg(1, 1), wire.ReplicaOpen, ident.Position{}, pos(1, 5), start),
		{Segment: seg(1, 2), State: wire.ReplicaDamaged}}}
	if r := Recover([][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{b: reply}); r.Enough {
		t.Errorf("a store with a damaged replica counts: %s", r.Describe())
	}
}

// A store fails while records are under way in two segments: the last one of a segment, and the first of the next. All of them are sent
// again into a third, elsewhere, which begins in front of the second. The store still has the second when it is back: that does
// not end the third.
func TestASegmentThatWasGivenUpEndsNoNewerOne(t *testing.T) {
	for _, more := range []int{0, 3} {
		m := newScript(t, 3)
		m.capacity = uint32(SegmentHeaderSize + 8*RecordSize(BlockSize) + IndexSize(8))
		m.take()
		m.run(nil)
		for m.w.cur.end+uint32(2*RecordSize(BlockSize)+IndexSize(m.w.cur.records+2)) <= m.capacity {
			m.write(1)
			m.run(nil)
		}
		last, next := m.w.cur, m.w.next
		if next == nil || !next.ready() {
			t.Fatal("the next segment is not open")
		}
		var fails int
		for i := range last.replicas {
			if r := next.replica(last.replicas[i].member); r != nil {
				fails = r.member
			}
		}
		m.write(1)
		m.write(1)
		m.run(appendsTo(fails))
		for _, s := range []*Segment{last, next} {
			if r := m.stores[fails].replicas[s.ID]; len(r.recs) == 0 || r.last().Seq <= m.w.Commit().Seq {
				t.Fatalf("not what the test is about: segment %d has %d records", s.ID.Number, len(r.recs))
			}
		}
		m.down(fails)
		m.w.Down(fails)
		m.drain()
		for range more {
			m.write(1)
		}
		m.run(nil)
		now := m.w.cur
		if now.ID.Number <= next.ID.Number || now.Before.Seq >= m.stores[fails].replicas[next.ID].before.Seq || !m.w.AllCommitted() {
			t.Fatal("not what the test is about: nothing was sent again in front of the segment that was given up")
		}
		m.now += time.Minute
		m.w.Tick(m.now) // the stores hear that it is committed
		m.drain()
		m.run(func(_ int, a Action) bool { return a.Kind == ActNotice })
		m.back(fails)
		rec := m.take((fails + 1) % 3)
		if end, hole := rec.Hole(0); hole {
			t.Errorf("%d more: a hole behind %d: %s", more, end, rec.Describe())
		}
		// What was committed counts where it was committed, on two stores, and not at the one that has it by chance.
		if r := rec.Past[len(rec.Past)-1]; r.Segment != now.ID || r.To != rec.Commit.Seq || r.From != now.Before.Seq+1 {
			t.Errorf("%d more: the end of the history is segment %d, %d to %d: %s", more, r.Segment.Number, r.From, r.To, rec.Describe())
		}
	}
}

// A write with FUA is stable on (B, C), older ones are unsynced on A: power fails, B dies, and the prefix ends in front.
func TestAFlushCoversOlderSegments(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	m.write(1)
	notA := func(store int, a Action) bool { return a.Kind != ActSeal && (a.Kind != ActSync || store != 0) }
	m.run(notA)
	m.w.CloseIdle() // the next segment is on B and C
	last := m.write(1)
	m.w.WantStable(last.Seq)
	m.drain()
	m.run(notA)
	claimed := m.w.Stable()
	m.stores[0].powerCut()
	m.stores[2].powerCut()
	rec, _ := m.hear(1)
	if end, _ := rec.Hole(0); end < claimed.Seq {
		t.Errorf("a flush at %d was answered, the prefix that is there ends at %d", claimed.Seq, end)
	}
	if m.acked[len(m.acked)-1] != last {
		t.Error("not what the test is about: the last write is not even held by two")
	}
}

// What an owner has left unsynced is not stable because its successor's own records are: the first flush waits until that has been
// put right.
func TestAFlushCoversEarlierEpochs(t *testing.T) {
	m := newScript(t, 3)
	m.past = true
	m.take()
	m.run(nil)
	last := m.write(1)
	m.run(func(_ int, a Action) bool { return a.Kind != ActSync && a.Kind != ActSeal })
	m.now += time.Minute
	m.w.Tick(m.now) // the stores hear that it is committed
	m.drain()
	m.run(func(_ int, a Action) bool { return a.Kind == ActNotice })
	m.take(2)
	if m.w.cfg.Heard != last {
		t.Fatalf("not what the test is about: the commit point is %v", m.w.cfg.Heard)
	}
	m.run(nil)
	m.w.WantStable(m.w.Commit().Seq)
	m.drain()
	m.run(nil)
	claimed := m.w.Stable()
	if !m.w.Serving() || m.w.OwnStable().Seq <= last.Seq {
		t.Fatal("the second owner's own start is not stable")
	}
	for _, s := range m.stores {
		s.powerCut()
	}
	rec, _ := m.hear()
	if end, _ := rec.Hole(0); end < claimed.Seq {
		t.Errorf("a flush at %d was answered, the prefix that is there ends at %d", claimed.Seq, end)
	}
}

// A holder that has booted anew has lost what was not stable there. A flush has it put on another store.
func TestAFlushAfterAHolderHasBooted(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	last := m.write(1)
	m.run(nil)
	m.stores[1].powerCut()
	m.w.WantStable(last.Seq)
	m.drain()
	for range 200 {
		m.run(nil)
		m.now += 20 * time.Millisecond
		m.w.Tick(m.now)
		m.drain()
	}
	if m.w.Stable().Seq < last.Seq {
		t.Fatalf("stable up to %d of %d", m.w.Stable().Seq, last.Seq)
	}
	m.stores[0].powerCut()
	rec, answers := m.hear(0)
	history, _ := m.history(rec, answers)
	if len(history) < int(last.Seq) {
		t.Errorf("what was flushed is gone: %s", rec.Describe())
	}
}

// Both holders of a segment lose their power before it is stable, and the owner's host does not. No flush can ever be answered: the journal stops and is
// recovered as in a takeover (R8), which says that something is missing.
func TestBothHoldersLoseWhatWasNotStable(t *testing.T) {
	m := newScript(t, 3)
	m.take()
	m.run(nil)
	last := m.write(1)
	m.run(nil)
	m.stores[0].powerCut()
	m.stores[1].powerCut()
	m.w.WantStable(last.Seq)
	m.drain()
	for range 200 {
		m.run(nil)
		m.now += 20 * time.Millisecond
		m.w.Tick(m.now)
		m.drain()
	}
	if m.w.stopped == nil {
		t.Errorf("stable up to %d, and no store has %d", m.w.Stable().Seq, last.Seq)
	}
}
