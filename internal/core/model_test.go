package core

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// model is what a store must be, in the simplest form: for each segment the records that it holds.
type model struct {
	t      *rapid.T
	tb     testing.TB
	mem    *vfs.Mem
	s      *Store
	boot   byte
	fences map[ident.JournalID]uint64
	tips   map[ident.JournalID]ident.Position // the highest that was made
	segs   []*modelSegment
	numb   uint32
}

type modelSegment struct {
	*owner     // has made len(owner.ends) records
	held   int // records that the replica holds
	synced int // of them stable
	state  wire.ReplicaState
}

var bg = context.Background()

func (m *model) open() {
	var err error
	if m.s, err = Open(spareOptions(m.mem, ident.BootID{m.boot})); err != nil {
		m.t.Fatalf("open: %v", err)
	}
}

func (m *model) any() *modelSegment {
	if len(m.segs) == 0 {
		m.t.Skip("no segment")
	}
	return m.segs[rapid.IntRange(0, len(m.segs)-1).Draw(m.t, "segment")]
}

// epochFor draws an epoch around the fence and says whether the store must take it; then the fence rises.
func (m *model) epochFor(j ident.JournalID) (e ident.Epoch, admitted bool) {
	n := m.fences[j] + uint64(rapid.SampledFrom([]int{0, 0, 0, 0, 1, 2}).Draw(m.t, "epoch"))
	if rapid.IntRange(0, 9).Draw(m.t, "old") == 0 && n > 0 {
		return epoch(m.fences[j] - 1), false
	}
	m.fences[j] = n
	return epoch(n), true
}

func (m *model) OpenSegment(t *rapid.T) {
	j := ident.JournalID{byte(rapid.IntRange(1, 2).Draw(t, "journal"))}
	m.numb++
	if m.fences[j] == 0 {
		m.fences[j] = 1
		fence(m.tb, m.s, j, 1)
	}
	o := newOwner(m.tb, segment(j, m.fences[j], m.numb))
	if rapid.IntRange(0, 4).Draw(t, "from zero") != 0 { // else stale records of a recycled file may be newer
		o.at = m.tips[j]
	}
	e, ok := m.epochFor(j)
	_, err := m.s.OpenSegment(bg, &wire.OpenSegment{Epoch: e, Segment: o.seg, Capacity: testCapacity})
	if !ok {
		if err == nil {
			t.Fatal("opened below the fence")
		}
		return
	}
	if err != nil {
		t.Fatalf("open segment: %v", err)
	}
	m.segs = append(m.segs, &modelSegment{owner: o, state: wire.ReplicaOpen})
}

// Append sends records [from, to) of the segment; new ones are made as needed.
func (m *model) Append(t *rapid.T) {
	g := m.any()
	from := rapid.IntRange(max(0, g.held-2), g.held+1).Draw(t, "from")
	to := from + rapid.IntRange(1, 3).Draw(t, "records")
	for len(g.ends) < to {
		g.make(rapid.IntRange(1, 3).Draw(t, "blocks"), byte(g.numbs()))
	}
	if g.at.Seq > m.tips[g.seg.Journal].Seq {
		m.tips[g.seg.Journal] = g.at
	}
	start := uint32(0)
	if from > 0 {
		start = g.ends[from-1]
	}
	e, ok := m.epochFor(g.seg.Journal)
	data := g.bytes[start:g.ends[to-1]]
	cut := rapid.IntRange(0, len(data)).Draw(t, "cut")
	reply, err := appendAt(m.s, &wire.Append{Epoch: e, Segment: g.seg, Offset: start, Data: [][]byte{data[:cut], data[cut:]}})
	switch {
	case !ok:
		wantCode(m.tb, err, wire.CodeFenced)
	case g.state == wire.ReplicaFork:
		wantCode(m.tb, err, wire.CodeFork)
	case from > g.held:
		wantCode(m.tb, err, wire.CodeGap)
	case to > g.held && g.state == wire.ReplicaSealed:
		wantCode(m.tb, err, wire.CodeSealed)
	case err != nil:
		t.Fatalf("append [%d, %d) to %d: %v", from, to, g.held, err)
	default:
		g.held = max(g.held, to)
		if reply.End != g.ends[g.held-1] || reply.Held != g.pos[g.held-1] {
			t.Fatalf("append [%d, %d): %+v", from, to, reply)
		}
	}
}

func (g *modelSegment) numbs() int { return len(g.ends) }

func (m *model) Sync(t *rapid.T) {
	g := m.any()
	e, ok := m.epochFor(g.seg.Journal)
	reply, err := m.s.Sync(bg, &wire.Sync{Epoch: e, Journal: g.seg.Journal, Segments: []ident.SegmentID{g.seg, segment(g.seg.Journal, 1, 9999)}})
	if !ok {
		wantCode(m.tb, err, wire.CodeFenced)
		return
	}
	if err != nil || len(reply.Synced) != 1 || g.held > 0 && reply.Synced[0].StableEnd != g.ends[g.held-1] {
		t.Fatalf("sync: %+v, %v", reply, err)
	}
	if g.held > 0 && reply.Synced[0].Stable != g.pos[g.held-1] {
		t.Fatalf("sync: stable %v, want %v", reply.Synced[0].Stable, g.pos[g.held-1])
	}
	g.synced = g.held
}

// fork sets a segment aside: all of it is stable then, and has a name of its own; its first n records stay. There is one
// fork of a segment at most.
func (m *model) fork(g *modelSegment, n int) {
	for _, x := range m.segs {
		if x.seg == g.seg.Fork() {
			g.state, g.held, g.synced = wire.ReplicaSealed, n, n // it has all of it
			return
		}
	}
	base := *g.owner
	m.segs = append(m.segs, &modelSegment{owner: &base, held: n, synced: n, state: wire.ReplicaSealed})
	g.state, g.seg, g.synced = wire.ReplicaFork, g.seg.Fork(), g.held
}

func (m *model) Seal(t *rapid.T) {
	g := m.any()
	if g.held == 0 {
		t.Skip("empty")
	}
	n := rapid.IntRange(max(1, g.held-1), min(g.held+1, len(g.ends))).Draw(t, "seal")
	e, ok := m.epochFor(g.seg.Journal)
	_, err := m.s.Seal(bg, &wire.Seal{Epoch: e, Segment: g.seg, End: g.ends[n-1], Last: g.pos[n-1]})
	switch {
	case !ok:
		wantCode(m.tb, err, wire.CodeFenced)
	case g.state == wire.ReplicaFork:
		wantCode(m.tb, err, wire.CodeFork)
	case n > g.held:
		wantCode(m.tb, err, wire.CodeGap)
	case n < g.held && g.state == wire.ReplicaSealed:
		wantCode(m.tb, err, wire.CodeFork)
		if e != g.seg.Epoch {
			m.fork(g, n)
		}
	case n < g.held && e != g.seg.Epoch:
		wantCode(m.tb, err, wire.CodeFork)
		m.fork(g, n)
	case err != nil:
		t.Fatalf("seal after %d of %d: %v", n, g.held, err)
	default:
		g.state, g.held, g.synced = wire.ReplicaSealed, n, n
	}
}

func (m *model) Fence(t *rapid.T) {
	j := ident.JournalID{byte(rapid.IntRange(1, 2).Draw(t, "journal"))}
	m.fences[j]++
	reply := fence(m.tb, m.s, j, m.fences[j])
	n := 0
	for _, g := range m.segs {
		if g.seg.Journal == j {
			n++
		}
	}
	if len(reply.Replicas) != n || !slices.IsSortedFunc(reply.Replicas, func(a, b wire.Replica) int { return a.Segment.Compare(b.Segment) }) {
		t.Fatalf("fence: %d replicas, want %d in order", len(reply.Replicas), n)
	}
}

// DropSealed leaves a spare.
func (m *model) DropSealed(t *rapid.T) {
	for _, g := range m.segs {
		if g.state == wire.ReplicaSealed {
			m.drop(t, g)
			return
		}
	}
	t.Skip("none is sealed")
}

func (m *model) Trim(t *rapid.T) {
	if sp := m.s.spares.oldest(anyAge); sp != nil {
		m.s.giveUp(sp)
	}
}

func (m *model) Drop(t *rapid.T) { m.drop(t, m.any()) }

func (m *model) drop(t *rapid.T, g *modelSegment) {
	e, ok := m.epochFor(g.seg.Journal)
	_, err := m.s.Drop(bg, &wire.Drop{Epoch: e, Segment: g.seg})
	if !ok {
		wantCode(m.tb, err, wire.CodeFenced)
		return
	}
	if err != nil {
		t.Fatalf("drop: %v", err)
	}
	m.segs = slices.DeleteFunc(m.segs, func(o *modelSegment) bool { return o == g })
}

func (m *model) Read(t *rapid.T) {
	g := m.any()
	if g.held == 0 {
		t.Skip("empty")
	}
	n := rapid.IntRange(0, g.held-1).Draw(t, "record")
	at := uint32(4096)
	if n > 0 {
		at = g.ends[n-1]
	}
	data, err := read(m.s, g.seg.Journal, wire.ReadPiece{Segment: g.seg, Record: at, Blocks: 1})
	if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{byte(n)}, 4096)) {
		t.Fatalf("read of record %d: %v", n, err)
	}
}

func (m *model) Kill(t *rapid.T) {
	old := m.s
	m.mem.DropLocks()
	m.open()
	// The dead process must not write any more.
	old.notes.mu.Lock()
	old.notes.mu.failed = wire.Errorf(wire.CodeShutdown, "killed")
	old.notes.mu.Unlock()
	old.spares.mu.Lock()
	old.spares.mu.list = nil
	old.spares.mu.Unlock()
	old.Close()
	m.mem.DropLocks()
	lock, err := m.mem.Lock("/store/lock")
	if err != nil {
		t.Fatal(err)
	}
	m.s.lock = lock
}

func (m *model) PowerCut(t *rapid.T) {
	percent := rapid.SampledFrom([]int{0, 30, 100}).Draw(t, "percent")
	after := m.mem.CrashClone(vfs.Crash{Percent: percent, Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))})
	m.s.Close()
	m.mem = after
	m.boot++
	m.open()
	inv := inventory(m.tb, m.s, ident.JournalID{})
	for _, g := range m.segs {
		r := inv[g.seg]
		if g.state == wire.ReplicaOpen {
			g.state = wire.ReplicaShort
		}
		held := 0
		for held < len(g.ends) && g.ends[held] <= r.End {
			held++
		}
		if held < g.synced || held > g.held {
			t.Fatalf("%s: %d records after the power cut, %d were held and %d synced", g.seg, held, g.held, g.synced)
		}
		g.held = held
		g.synced = held
	}
}

// Check compares everything.
func (m *model) Check(t *rapid.T) {
	inv := inventory(m.tb, m.s, ident.JournalID{})
	if len(inv) != len(m.segs) {
		t.Fatalf("%d replicas, want %d", len(inv), len(m.segs))
	}
	for _, g := range m.segs {
		r := inv[g.seg]
		if r.State != g.state {
			t.Fatalf("%s in state %d, want %d", g.seg, r.State, g.state)
		}
		if g.held == 0 {
			if r.End > 4096 {
				t.Fatalf("%s ends at %d, want nothing", g.seg, r.End)
			}
			continue
		}
		if r.End != g.ends[g.held-1] || r.Last != g.pos[g.held-1] || r.StableEnd > r.End {
			t.Fatalf("%s is %+v, want %d records to %d", g.seg, r, g.held, g.ends[g.held-1])
		}
	}
}

func TestStoreIsItsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{tb: t, mem: vfs.NewMem(0), boot: 1, fences: map[ident.JournalID]uint64{}, tips: map[ident.JournalID]ident.Position{}}
		m.t = rt
		m.open()
		defer func() { m.s.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"":             m.Check,
			"OpenSegment":  m.OpenSegment,
			"Append":       m.Append,
			"Append again": m.Append,
			"Sync":         m.Sync,
			"Seal":         m.Seal,
			"Fence":        m.Fence,
			"Drop":         m.Drop,
			"Drop sealed":  m.DropSealed,
			"Trim":         m.Trim,
			"Read":         m.Read,
			"Kill":         m.Kill,
			"PowerCut":     m.PowerCut,
		})
	})
}
