package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A world of model stores without bytes, in which owners live and die: whatever the order of events, what an
// owner has committed stands in every later history.

type modelReplica struct {
	seg     ident.SegmentID
	before  ident.Position
	recs    []*Entry
	hasHead bool
	stable  int // records
	stabEnd uint32
	end     uint32
	sealed  bool
	short   bool
	start   wire.EpochStart
}

func (r *modelReplica) last() ident.Position {
	if len(r.recs) == 0 {
		return r.before
	}
	return r.recs[len(r.recs)-1].Position()
}

type modelStore struct {
	id       ident.StoreID
	boot     byte
	up       bool
	fence    ident.Epoch
	commit   ident.Position
	stable   ident.Position
	replicas map[ident.SegmentID]*modelReplica
}

type model struct {
	t        *testing.T
	rng      *rand.Rand
	stores   []*modelStore
	epoch    uint64
	w        *Writer
	pending  []letter // messages under way, delivered in order
	members  []int    // the stores of the newest ensemble; all if nil
	older    [][]int  // ensembles before it that are listed too
	past     bool     // an owner begins with what is not stable of the past (R8)
	capacity uint32   // of a segment; 64 KiB if 0
	home     int      // how many of the members are at the owner's site
	now      time.Duration
	acked    []ident.Position // of the whole life: what clients were told
	next     int
	trouble  string
	over     bool
}

// letter is something that an owner asks of a store.
type letter struct {
	w *Writer
	a Action
}

var errGone = wire.Errorf(wire.CodeUnreached, "store is down")

func newModel(t *testing.T, seed uint64, n int) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 1)), home: 2}
	for i := range n {
		m.stores = append(m.stores, &modelStore{id: ident.StoreID{byte(i + 1)}, up: true, boot: 1, replicas: map[ident.SegmentID]*modelReplica{}})
	}
	return m
}

func (m *model) fenceAll(answer func(*modelStore) bool) map[ident.StoreID]*wire.FenceReply {
	answers := map[ident.StoreID]*wire.FenceReply{}
	for _, s := range m.stores {
		if !s.up || !answer(s) {
			continue
		}
		s.fence = ident.Epoch{Number: m.epoch}
		a := &wire.FenceReply{Commit: s.commit, Stable: s.stable}
		for _, r := range s.replicas {
			x := wire.Replica{Segment: r.seg, State: wire.ReplicaOpen, Before: r.before, Last: r.last(), End: r.end, StableEnd: r.stabEnd, Start: r.start}
			if r.sealed {
				x.State = wire.ReplicaSealed
			} else if r.short {
				x.State = wire.ReplicaShort
			}
			a.Replicas = append(a.Replicas, x)
		}
		answers[s.id] = a
	}
	return answers
}

// takeOver starts a new owner from what all but one store say, and checks that nothing acknowledged is gone.
func (m *model) takeOver() bool {
	deaf := m.rng.IntN(len(m.stores) + 1)
	rec, answers := m.recover(func(s *modelStore) bool { return int(s.id[0])-1 != deaf })
	if !rec.Enough {
		return false
	}
	if rec.Lost && rec.EndKnown {
		m.t.Fatalf("%s: a proven history ends below the commit point: %s", m.trouble, rec.Describe())
	}
	if !rec.Proven() {
		return false // a power cut on both holders: not this test's business
	}
	m.begin(rec, answers)
	return true
}

// recover begins the next epoch: the stores for which answer holds are fenced, and say what they have.
func (m *model) recover(answer func(*modelStore) bool) (*Recovery, map[ident.StoreID]*wire.FenceReply) {
	m.epoch++
	m.pending = nil
	answers := m.fenceAll(answer)
	var ensembles [][]ident.StoreID
	for _, list := range append(slices.Clone(m.older), m.ensemble()) {
		var ids []ident.StoreID
		for _, i := range list {
			ids = append(ids, m.stores[i].id)
		}
		ensembles = append(ensembles, ids)
	}
	return Recover(ensembles, answers), answers
}

// ensemble is the newest one.
func (m *model) ensemble() []int {
	if m.members != nil {
		return m.members
	}
	all := make([]int, len(m.stores))
	for i := range all {
		all[i] = i
	}
	return all
}

// history puts what was recovered together, as replay does; n of it is not of the tail.
func (m *model) history(rec *Recovery, answers map[ident.StoreID]*wire.FenceReply) (history []ident.Position, n int) {
	m.t.Helper()
	find := func(x Range) {
		for seq := x.From; seq <= x.To; seq++ {
			var got *Entry
			for _, h := range x.Holders {
				r := m.stores[h.Store[0]-1].replicas[x.Segment]
				if i := int(seq - r.before.Seq - 1); i < len(r.recs) {
					got = r.recs[i]
				}
			}
			if got == nil {
				m.t.Fatalf("%s: seq %d of segment %s is on no holder", m.trouble, seq, x.Segment)
			}
			history = append(history, got.Position())
		}
	}
	for _, x := range rec.Past {
		find(x)
	}
	n = len(history)
	for _, x := range rec.Tail {
		find(x)
	}
	for i, p := range history {
		if p.Seq != ident.Seq(i+1) {
			m.t.Fatalf("%s: history has seq %d at place %d\n%s\n%s", m.trouble, p.Seq, i+1, rec.Describe(), m.dump(rec, answers))
		}
	}
	return history, n
}

// stands holds what was acknowledged to be in a history.
func (m *model) stands(history []ident.Position, rec *Recovery) {
	m.t.Helper()
	for _, p := range m.acked {
		if int(p.Seq) > len(history) || history[p.Seq-1] != p {
			m.t.Fatalf("%s: acknowledged %v is not in the history of epoch %d (%s)", m.trouble, p, m.epoch, rec.Describe())
		}
	}
}

// begin starts the epoch's owner with what was recovered.
func (m *model) begin(rec *Recovery, answers map[ident.StoreID]*wire.FenceReply) {
	m.t.Helper()
	history, n := m.history(rec, answers)
	m.stands(history, rec)
	cfg := WriterConfig{Journal: testSegment.Journal, Kind: JournalVolume, Epoch: ident.Epoch{Number: m.epoch}, Capacity: 64 << 10,
		Heard: rec.Commit, HeardStable: rec.Stable, Proven: rec.Proven()}
	cfg.PastUnstable = m.past && rec.Stable.Seq < rec.Commit.Seq
	if m.capacity != 0 {
		cfg.Capacity = m.capacity
	}
	if n > 0 && rec.Commit != history[n-1] {
		m.t.Fatalf("%s: commit point %v, the history has %v", m.trouble, rec.Commit, history[n-1])
	}
	for _, x := range rec.Tail {
		for seq := x.From; seq <= x.To; seq++ {
			for _, h := range x.Holders {
				if r := m.stores[h.Store[0]-1].replicas[x.Segment]; int(seq-r.before.Seq-1) < len(r.recs) {
					e := *r.recs[seq-r.before.Seq-1]
					cfg.Tail = append(cfg.Tail, &e)
					break
				}
			}
		}
	}
	for i, of := range m.ensemble() {
		cfg.Members = append(cfg.Members, Member{Store: m.stores[of].id, Home: i < m.home})
	}
	m.w = NewWriter(cfg, m.now)
	for i, of := range m.ensemble() {
		if !m.stores[of].up {
			m.w.Down(i)
		}
	}
	m.drain()
}

func (m *model) dump(rec *Recovery, answers map[ident.StoreID]*wire.FenceReply) string {
	text := ""
	for _, x := range append(slices.Clone(rec.Past), rec.Tail...) {
		text += fmt.Sprintf("range %d..%d of epoch %s segment %d before %d\n", x.From, x.To, x.Segment.Epoch, x.Segment.Number, x.Before.Seq)
	}
	for i := range m.stores {
		if a := answers[m.stores[i].id]; a != nil {
			text += fmt.Sprintf("store %d: commit %d\n", i, a.Commit.Seq)
			for _, r := range a.Replicas {
				text += fmt.Sprintf("  epoch %s segment %d: %d..%d state %d start %d\n", r.Segment.Epoch, r.Segment.Number, r.Before.Seq+1, r.Last.Seq, r.State, r.Start.At.Seq)
			}
		}
	}
	return text
}

// drain turns the writer's actions into messages.
func (m *model) drain() {
	for {
		acts := m.w.Actions()
		if w := m.w; w.Serving() {
			for _, e := range w.Committed() {
				m.acked = append(m.acked, e.Position())
			}
		}
		if len(acts) == 0 {
			return
		}
		w := m.w
		for _, a := range acts {
			m.pending = append(m.pending, letter{w, a})
		}
	}
}

func (m *model) member(i int) *modelStore { return m.stores[m.ensemble()[i]] }

func (m *model) deliver(w *Writer, a Action) {
	s := m.member(a.Member)
	fenced := func() error {
		if !s.up {
			return errGone
		}
		if w.cfg.Epoch.Less(s.fence) {
			return &wire.Error{Code: wire.CodeFenced, Epoch: s.fence}
		}
		return nil
	}
	boot := ident.BootID{s.boot}
	err := fenced()
	answer := func(f func()) {
		if w == m.w {
			f()
		}
	}
	switch a.Kind {
	case ActOpen:
		if err == nil {
			s.replicas[a.Segment.ID] = &modelReplica{seg: a.Segment.ID}
		}
		answer(func() { w.Opened(a.Segment, a.Member, boot, err) })
	case ActAppend:
		r := s.replicas[a.Batch.segID()]
		if err == nil && (r == nil || r.sealed || r.short || r.end != a.Batch.Offset) {
			err = wire.Errorf(wire.CodeGap, "no such place")
		}
		if err == nil {
			if a.Batch.Offset == 0 {
				h, err := DecodeSegmentHeader(a.Batch.Data[0])
				if err != nil {
					m.t.Fatal(err)
				}
				r.hasHead, r.before, r.start = true, h.Before, h.Start
			}
			for _, e := range a.Batch.entries {
				if e.Kind == KindEpochStart && e.Epoch == r.seg.Epoch {
					r.start = wire.EpochStart{At: e.Position(), Before: w.start.Before, Proven: w.start.Proven}
				}
				c := *e
				r.recs = append(r.recs, &c)
			}
			r.end = a.Batch.end
			if c := w.Commit(); c.Seq > s.commit.Seq {
				s.commit = c
			}
			if c := w.Stable(); c.Seq > s.stable.Seq && c.Seq <= s.commit.Seq {
				s.stable = c
			}
		}
		answer(func() { w.Appended(a.Batch, a.Member, boot, err) })
	case ActSync:
		reply := wire.SyncReply{Boot: boot}
		if err == nil {
			for _, id := range a.Segments {
				if r := s.replicas[id]; r != nil && !r.short {
					r.stable, r.stabEnd = len(r.recs), r.end
					reply.Synced = append(reply.Synced, wire.SegmentSynced{Segment: id, StableEnd: r.end})
				}
			}
		}
		answer(func() { w.Synced(a.Member, reply, err) })
	case ActSeal:
		if err == nil {
			err = m.seal(s, a.Segment)
		}
		answer(func() { w.Sealed(a.Segment, a.Member, err) })
	case ActCopy, ActCopyOpen:
		dest := m.member(a.Dest)
		if !dest.up && err == nil {
			err = errGone
		}
		if err == nil {
			from := s.replicas[a.Segment.ID]
			c := *from
			c.recs, c.stable, c.stabEnd = slices.Clone(from.recs), 0, 0
			dest.replicas[a.Segment.ID] = &c
			if a.Kind == ActCopy {
				err = m.seal(dest, a.Segment)
			} else {
				c.recs = c.recs[:a.Segment.Last().Seq-c.before.Seq]
				c.end = a.Segment.End()
				c.stable, c.stabEnd = len(c.recs), c.end
			}
		}
		if a.Kind == ActCopyOpen {
			answer(func() { w.CopiedOpen(a.Segment, a.Dest, err) })
			break
		}
		answer(func() { w.Sealed(a.Segment, a.Dest, err) })
	case ActDiscard:
		if err == nil {
			delete(s.replicas, a.Segment.ID)
		}
	case ActNotice:
		if err == nil && w.Commit().Seq > s.commit.Seq {
			s.commit = w.Commit()
		}
	}
	if w == m.w {
		m.drain()
	}
}

func (b *Batch) segID() ident.SegmentID {
	if b.Segment == nil {
		return ident.SegmentID{}
	}
	return b.Segment.ID
}

func (m *model) seal(s *modelStore, seg *Segment) error {
	r := s.replicas[seg.ID]
	if r == nil || r.end < seg.End() {
		return wire.Errorf(wire.CodeGap, "shorter")
	}
	r.recs = r.recs[:seg.Last().Seq-r.before.Seq]
	r.end, r.sealed, r.short = seg.End(), true, false
	r.stable, r.stabEnd = len(r.recs), r.end
	return nil
}

// powerCut drops what a store has not synced.
func (s *modelStore) powerCut() {
	s.boot++
	for id, r := range s.replicas {
		if r.sealed {
			continue
		}
		r.recs, r.end, r.short = r.recs[:r.stable], r.stabEnd, true
		if r.stabEnd == 0 {
			r.hasHead = false
			s.replicas[id] = &modelReplica{seg: id, short: true}
		}
	}
}

func (m *model) step() {
	m.now += time.Duration(m.rng.IntN(20)) * time.Millisecond
	switch k := m.rng.IntN(100); {
	case k < 30 && m.w != nil && m.w.Err() == nil:
		m.next++
		blocks := 1 + m.rng.IntN(3)
		e := &Entry{Record: Record{Kind: KindWrite, Block: uint64(m.rng.IntN(50)), Count: uint32(blocks), LogicalLen: uint32(blocks * BlockSize), StoredLen: uint32(blocks * BlockSize)}}
		e.Bytes = make([]byte, RecordSize(e.StoredLen))
		m.w.Queue(e)
		m.w.Pump()
	case k < 85 && len(m.pending) > 0:
		// Connections keep the order, so only messages to different members change places.
		i := 0
		if m.rng.IntN(3) == 0 {
			i = m.rng.IntN(len(m.pending))
			i = slices.IndexFunc(m.pending, func(x letter) bool { return x.a.Member == m.pending[i].a.Member })
		}
		x := m.pending[i]
		m.pending = slices.Delete(m.pending, i, i+1)
		m.deliver(x.w, x.a)
		return
	case k < 90 && m.w != nil:
		m.w.Tick(m.now)
	case k < 92 && m.w != nil:
		m.w.WantStable(m.w.At().Seq)
	case k < 94:
		i := m.rng.IntN(len(m.stores))
		s := m.stores[i]
		m.trouble = fmt.Sprintf("store %d up=%v", i, !s.up)
		up := 0
		for _, x := range m.stores {
			if x.up {
				up++
			}
		}
		if s.up && up == len(m.stores) {
			s.up = false
			if m.rng.IntN(4) == 0 {
				s.powerCut()
				m.trouble += " after a power cut"
			}
			if m.w != nil {
				m.w.Down(i)
			}
		} else if !s.up {
			s.up = true
			if m.w != nil {
				m.w.Up(i)
			}
		}
	case k < 95:
		m.nextOwner()
	}
	if m.w != nil {
		m.drain()
	}
}

// nextOwner has somebody take over, with all stores there if it can't be done without.
func (m *model) nextOwner() {
	for try := 0; !m.takeOver(); try++ {
		if try == 20 {
			m.over = true // both holders lost power: the end is not known, as it should be
			return
		}
		for _, s := range m.stores {
			s.up = true
		}
	}
}

func TestAcknowledgedRecordsStandInEveryLaterHistory(t *testing.T) {
	seeds := uint64(120)
	if testing.Short() {
		seeds = 50
	}
	commits, epochs := 0, uint64(0)
	for seed := range seeds {
		for n := 2; n <= 4; n++ {
			m := newModel(t, seed, n)
			m.trouble = fmt.Sprintf("seed %d of %d stores", seed, n)
			if !m.takeOver() {
				for !m.takeOver() {
				}
			}
			for range 1500 {
				if m.step(); m.over {
					break
				}
				if errors.Is(m.w.Err(), errNobodyHas) {
					m.nextOwner() // what two stores have lost is the next one's business, and it says that all is there
				} else if m.w.Err() != nil {
					t.Fatalf("seed %d: stopped: %v", seed, m.w.Err())
				}
			}
			commits += len(m.acked)
			epochs += m.epoch
		}
	}
	t.Logf("%d records acknowledged in %d epochs", commits, epochs)
	if commits < 1000 || epochs < 1000 {
		t.Errorf("only %d records acknowledged in %d epochs: the test tests nothing", commits, epochs)
	}
}
