package journal

import (
	"testing"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

func pos(epoch, seq uint64) ident.Position {
	return ident.Position{Epoch: ident.Epoch{Number: epoch}, Seq: ident.Seq(seq), Hash: ident.Hash{byte(epoch), byte(seq)}}
}

func seg(epoch uint64, number uint32) ident.SegmentID {
	return ident.SegmentID{Journal: testSegment.Journal, Epoch: ident.Epoch{Number: epoch}, Number: number}
}

// replica of a segment of an epoch that began after before.
func replica(id ident.SegmentID, state wire.ReplicaState, before, last ident.Position, start wire.EpochStart) wire.Replica {
	return wire.Replica{Segment: id, State: state, Before: before, Last: last, End: SegmentHeaderSize + 128*uint32(last.Seq-before.Seq), Start: start}
}

// R4: who knows the end. Each line is a way in which acknowledged writes would vanish and the history be called
// proven, or in which a takeover would wait for nothing.
func TestWhoKnowsTheEnd(t *testing.T) {
	a, b, c, d := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}, ident.StoreID{4}
	start := wire.EpochStart{At: pos(1, 1), Proven: true}
	id := seg(1, 1)
	has := func(state wire.ReplicaState, seq uint64) *wire.FenceReply {
		return &wire.FenceReply{Replicas: []wire.Replica{replica(id, state, ident.Position{}, pos(1, seq), start)}}
	}
	none := &wire.FenceReply{}
	empty := &wire.FenceReply{Replicas: []wire.Replica{{Segment: id, State: wire.ReplicaShort}}}
	const open, short, sealed, part = wire.ReplicaOpen, wire.ReplicaShort, wire.ReplicaSealed, wire.ReplicaCopy
	three := [][]ident.StoreID{{a, b, c}}
	for _, x := range []struct {
		name      string
		ensembles [][]ident.StoreID
		answers   map[ident.StoreID]*wire.FenceReply
		known     bool
	}{
		{"all is well", three, map[ident.StoreID]*wire.FenceReply{a: has(open, 9), b: has(open, 9), c: none}, true},
		{"one is away", three, map[ident.StoreID]*wire.FenceReply{a: has(open, 9), c: none}, true},
		{"one lost its power, the other knows", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(open, 9), c: none}, true},
		{"one lost its power, the other is away", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), c: none}, false},
		{"both lost their power", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(short, 7), c: none}, false},
		{"both lost all of it", three, map[ident.StoreID]*wire.FenceReply{a: empty, b: empty, c: none}, false},
		{"the third has what was shipped or copied", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(short, 7), c: has(part, 8)}, false},
		{"the third has a part, one of the pair is away", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), c: has(part, 8)}, false},
		{"the third is away, and one lost its power", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(open, 9)}, true},
		{"sealed somewhere", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), c: has(sealed, 9)}, true},
		{"no second one ever opened it", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: none, c: none}, true},
		{"of two, one is away and one is short", [][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{a: has(short, 5)}, false},
		{"of two, one is away", [][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{a: has(open, 5)}, true},
		{"another site's is no word on the end", three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(short, 5), c: none, d: has(part, 9)}, false},
		{"in either of two ensembles", [][]ident.StoreID{{a, b, c}, {a, b, d}}, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: none}, false},
	} {
		r := Recover(x.ensembles, x.answers)
		if r.EndKnown != x.known {
			t.Errorf("%s: end known is %v", x.name, r.EndKnown)
		}
	}
	// What another site has is a part of the history all the same.
	r := Recover(three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), b: has(short, 5), c: none, d: has(part, 9)})
	if r.Last.Seq != 9 || !r.Enough || r.Proven() {
		t.Errorf("with another site's copy: %s", r.Describe())
	}
	r = Recover(three, map[ident.StoreID]*wire.FenceReply{a: has(short, 5), d: has(part, 9)})
	if r.Enough {
		t.Error("another site's answer counted towards the fence")
	}
}

// A point that an owner which was not proven has given up is not waited for by the next: it would be a loss reported
// again and again, or a history with two versions.
func TestAPointThatWasGivenUpIsNone(t *testing.T) {
	a, b, x := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}
	first := wire.EpochStart{At: pos(1, 1), Proven: true}
	second := wire.EpochStart{At: pos(2, 91), Before: pos(1, 90)}
	old := replica(seg(1, 1), wire.ReplicaOpen, ident.Position{}, pos(1, 90), first)
	now := replica(seg(2, 1), wire.ReplicaOpen, pos(1, 90), pos(2, 95), second)
	home := &wire.FenceReply{Replicas: []wire.Replica{old, now}}
	ensembles := [][]ident.StoreID{{a, b}}
	for name, far := range map[string]*wire.FenceReply{
		"told":   {Commit: pos(1, 100), Stable: pos(1, 99)},
		"sealed": {Replicas: []wire.Replica{replica(seg(1, 1), wire.ReplicaSealed, ident.Position{}, pos(1, 100), first)}},
	} {
		r := Recover(ensembles, map[ident.StoreID]*wire.FenceReply{a: home, b: home, x: far})
		if r.Lost || r.LostStable || r.Last.Seq != 95 || r.Commit != pos(1, 90) {
			t.Errorf("%s: lost %v: %s", name, r.Lost, r.Describe())
		}
		if len(r.Cuts) != 1 || r.Cuts[0] != second {
			t.Errorf("%s: cuts %v", name, r.Cuts)
		}
	}
	// The same points, of a history that goes on from them: a loss.
	r := Recover(ensembles, map[ident.StoreID]*wire.FenceReply{a: home, b: home, x: {Commit: pos(2, 97), Stable: pos(2, 96)}})
	if !r.Lost || !r.LostStable || r.Seen != pos(2, 97) {
		t.Errorf("lost %v %v: %s", r.Lost, r.LostStable, r.Describe())
	}
}

// A site was given up that had 91; an epoch began after 90, and all that is left of it is its start, 91, which the one after has copied.
func TestAPointByTheNumberOfACopiedStartIsNone(t *testing.T) {
	a, b, x := ident.StoreID{1}, ident.StoreID{2}, ident.StoreID{3}
	old := replica(seg(1, 1), wire.ReplicaOpen, ident.Position{}, pos(1, 90), wire.EpochStart{At: pos(1, 1), Proven: true})
	now := replica(seg(3, 0), wire.ReplicaOpen, pos(1, 90), pos(3, 92), wire.EpochStart{At: pos(3, 92), Before: pos(2, 91), Proven: true})
	home := &wire.FenceReply{Replicas: []wire.Replica{old, now}}
	r := Recover([][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{a: home, b: home, x: {Commit: pos(1, 91), Stable: pos(1, 91)}})
	if r.Lost || r.Last.Seq != 92 || r.Commit != pos(1, 90) {
		t.Errorf("commit %s: %s", r.Commit, r.Describe())
	}
}

// Records that an epoch copied again keep the epoch they were made in: the next epoch's first segment begins behind
// one of those, and they lie in the segments of the epoch that copied them.
func TestRecordsThatWereCopiedAgainAreInTheHistory(t *testing.T) {
	a, b := ident.StoreID{1}, ident.StoreID{2}
	five := wire.EpochStart{At: pos(5, 1), Proven: true}
	six := wire.EpochStart{At: pos(6, 750), Before: pos(5, 749), Proven: true}
	seven := wire.EpochStart{At: pos(7, 751), Before: pos(6, 750), Proven: true}
	list := []wire.Replica{
		replica(seg(5, 0), wire.ReplicaSealed, ident.Position{}, pos(5, 614), five),
		replica(seg(6, 0), wire.ReplicaSealed, pos(5, 614), pos(5, 700), wire.EpochStart{}),
		replica(seg(6, 1), wire.ReplicaOpen, pos(5, 700), pos(6, 750), six),
		replica(seg(7, 0), wire.ReplicaOpen, pos(5, 734), pos(7, 796), seven),
	}
	check := func(what string, list []wire.Replica, hole bool) {
		t.Helper()
		answer := &wire.FenceReply{Commit: pos(7, 790), Stable: pos(7, 780), Replicas: list}
		r := Recover([][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{a: answer, b: answer})
		if end, is := r.Hole(0); is != hole || !r.Proven() || r.Last.Seq != 796 {
			t.Errorf("%s: %s: hole %v behind %d", what, r.Describe(), is, end)
		}
	}
	check("all is there", list, false)
	// Epoch 6 copied, but what epoch 7 heard was still of epoch 5, and nothing of 6 is left.
	list[3].Before = pos(5, 614)
	check("nothing of the one in between is left", []wire.Replica{list[0], list[3]}, false)
}

// A site keeps one replica of what a checkpoint covers (R5): with its store away, the history of the newest epoch goes
// on behind the hole, which the caller compares with the checkpoint. A hole that reaches above the commit point ends it.
func TestAHoleBelowTheCommitPointDoesNotEndTheHistory(t *testing.T) {
	a, b := ident.StoreID{1}, ident.StoreID{2}
	start := wire.EpochStart{At: pos(3, 11), Before: pos(2, 10), Proven: true}
	first := replica(seg(3, 0), wire.ReplicaSealed, pos(2, 10), pos(3, 20), start)
	third := replica(seg(3, 2), wire.ReplicaSealed, pos(3, 30), pos(3, 40), start)
	last := replica(seg(3, 3), wire.ReplicaOpen, pos(3, 40), pos(3, 50), start)
	for _, x := range []struct {
		name     string
		replicas []wire.Replica
		commit   uint64
		last     uint64
		covered  ident.Seq // by the checkpoint
		hole     bool
		lost     bool
	}{
		{"covered", []wire.Replica{first, third, last}, 45, 50, 30, false, false},
		{"not covered", []wire.Replica{first, third, last}, 45, 50, 25, true, false},
		{"from the beginning", []wire.Replica{third, last}, 45, 50, 30, false, false},
		{"up to the commit point", []wire.Replica{first, last}, 40, 50, 40, false, false},
		{"above the commit point", []wire.Replica{first, last}, 25, 20, 30, false, true},
	} {
		answer := &wire.FenceReply{Commit: pos(3, x.commit), Stable: pos(3, x.commit), Replicas: x.replicas}
		r := Recover([][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{b: answer})
		if _, hole := r.Hole(x.covered); r.Lost != x.lost || !x.lost && hole != x.hole || r.Last.Seq != ident.Seq(x.last) {
			t.Errorf("%s: hole %v, lost %v: %s", x.name, hole, r.Lost, r.Describe())
		}
		if x.lost {
			// What is behind the hole may announce a checkpoint that covers it: what that covers was committed.
			if len(r.Behind) != 1 || r.Behind[0].Segment != last.Segment || r.Behind[0].From != 41 || r.Behind[0].To != 50 {
				t.Errorf("%s: behind the hole is %+v", x.name, r.Behind)
			}
			r = Recover([][]ident.StoreID{{a, b}}, map[ident.StoreID]*wire.FenceReply{b: answer}, pos(3, 40))
			if _, hole := r.Hole(40); hole || r.Lost || r.Last.Seq != 50 || len(r.Behind) > 0 {
				t.Errorf("%s, with what a checkpoint covers: hole %v, behind it %+v: %s", x.name, hole, r.Behind, r.Describe())
			}
			continue
		}
		if len(r.Behind) > 0 {
			t.Errorf("%s: behind a hole are %+v", x.name, r.Behind)
		}
		if len(r.Tail) != 1 || r.Tail[0].From != ident.Seq(x.commit)+1 || r.Tail[0].To != 50 {
			t.Errorf("%s: tail %+v", x.name, r.Tail)
		}
	}
}
