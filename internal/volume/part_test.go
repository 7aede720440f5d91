package volume

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// testLeaf draws a leaf from a few segments and records, so that neighbours go on in one record often.
func testLeaf(t *rapid.T) *leaf {
	l := new(leaf)
	tl := tally{live: make([]uint32, 1<<10), dirty: make([]bool, 4)}
	for range rapid.IntRange(0, 60).Draw(t, "sets") {
		a := rapid.IntRange(0, leafBlocks-1).Draw(t, "a")
		n := rapid.IntRange(1, min(512, leafBlocks-a)).Draw(t, "n")
		e := makeEntry(Slot(rapid.IntRange(1, 1000).Draw(t, "slot")), uint32(rapid.IntRange(0, 1<<23-1).Draw(t, "record"))*8, uint32(rapid.IntRange(0, 512-n).Draw(t, "first")))
		l.set(a, n, e, &tl)
	}
	if rapid.IntRange(0, 3).Draw(t, "scatter") == 0 {
		for i := range leafBlocks {
			l.set(i, 1, makeEntry(Slot(1+i*37%1000), uint32(i*977%(1<<23))*8, uint32(i%512)), &tl)
		}
	}
	return l
}

// The two forms of a leaf answer like a plain array, and the tally like a count of it.
func TestLeafEqualsArray(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want [leafBlocks]entry
		l := new(leaf)
		tl := tally{live: make([]uint32, 4), dirty: make([]bool, 1)}
		if rapid.Bool().Draw(t, "flat") {
			for i := range leafBlocks {
				e := makeEntry(1, uint32(i)*8, 0)
				l.set(i, 1, e, &tl)
				want[i] = e
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "sets") {
			a := rapid.IntRange(0, leafBlocks-1).Draw(t, "a")
			n := rapid.IntRange(1, min(16, leafBlocks-a)).Draw(t, "n")
			if rapid.IntRange(0, 4).Draw(t, "long") == 0 {
				n = min(512, leafBlocks-a)
			}
			e := hole
			if s := rapid.IntRange(0, 3).Draw(t, "slot"); s > 0 {
				// Block a of the leaf is mostly block a of the record: neighbours go on in it.
				e = makeEntry(Slot(s), 4096, uint32(min(a%512, 512-n)))
			}
			l.set(a, n, e, &tl)
			for i := range n {
				want[a+i] = e.plus(i)
			}
		}
		var live [4]uint32
		runs := 0
		for i, e := range want {
			if got, _ := l.run(i, leafBlocks); got != e {
				t.Fatalf("block %d: %x, want %x", i, got, e)
			}
			if e != hole {
				live[e.slot()]++
				if i == 0 || want[i-1] == hole || !follows(want[i-1], 1, e) {
					runs++
				}
			}
		}
		if !reflect.DeepEqual(live[:], tl.live) {
			t.Fatalf("live %v, want %v", tl.live, live)
		}
		if l.flat != nil && int(l.runs) != runs || l.flat == nil && len(l.ext) != runs {
			t.Fatalf("%d runs or %d extents, want %d", l.runs, len(l.ext), runs)
		}
		checkLeaf(t, l)
	})
}

func sameLeaf(a, b *leaf) bool {
	for i := range leafBlocks {
		x, _ := a.run(i, i+1)
		y, _ := b.run(i, i+1)
		if x != y {
			return false
		}
	}
	return true
}

func TestLeafRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testLeaf(t)
		body := appendLeaf(nil, 12345, l)
		if len(body) > 8*leafBlocks+10 {
			t.Fatalf("%d bytes", len(body))
		}
		got, err := decodeLeaf(12345, body)
		if err != nil || !sameLeaf(got, l) {
			t.Fatalf("%v", err)
		}
		if _, err := decodeLeaf(12346, body); err == nil {
			t.Fatal("taken for another leaf")
		}
	})
}

// Random 4 KiB writes spread over 1,024 segments take less on disk than in memory.
func TestPackedLeafOfRandomWrites(t *testing.T) {
	l := new(leaf)
	tl := tally{live: make([]uint32, 1<<15), dirty: make([]bool, 1<<7)}
	for i := range leafBlocks {
		l.set(i, 1, makeEntry(Slot(1+i*7919%32000), uint32(i*104729%(4<<20))*8, 0), &tl)
	}
	if n := len(appendLeaf(nil, 0, l)); n > 8*leafBlocks*9/10 {
		t.Errorf("%d bytes for %d blocks", n, leafBlocks)
	}
}

func testRoot() *root {
	loc := location{7, 4096, 100, 1 << 60}
	return &root{journal: testJournal, at: ident.Position{Seq: 9}, size: 1 << 20, mapped: 5,
		dirs: []indexed{{0, loc}, {7, loc}}, chunks: []indexed{{3, loc}}, requests: []indexed{{0, loc}}, states: []indexed{{65535, loc}},
		segments: testSegments(7)}
}

func testSegments(slots ...Slot) (list []slotted) {
	for i, s := range slots {
		list = append(list, slotted{s, Segment{ID: historyID(i), Before: ident.Position{Seq: 3}, Last: ident.Position{Seq: 9, Hash: ident.Hash{1}},
			End: 5, Sealed: i%2 == 0, Retired: i%3 == 0, Live: 77, PartBytes: 1 << 40}})
	}
	return list
}

func testRequests(n int) Requests {
	r := newRequests()
	for i := range n {
		_ = r.Add(journal.RequestID{Forwarder: 1 + uint64(i%3)*1e18, Number: uint64(10 + i)}, uint8(i), ident.Seq(1000-i%7))
	}
	r.Confirm(1, 12, nil)
	r.Confirm(1+1e18, 5, nil)
	return r
}

func TestPartsRoundTrip(t *testing.T) {
	list := []indexed{{0, location{1, 8, 0, 0}}, {1, location{slotMax - 1, journal.SegmentCapacityMax - 8, 1 << 20, 1<<64 - 1}}, {511, location{3, 4096, 1, 9}}}
	for _, typ := range []PartType{PartPage, PartDirectory} {
		if got, err := decodeIndex(typ, 99, appendIndex(nil, typ, 99, list)); err != nil || !reflect.DeepEqual(got, list) {
			t.Errorf("%s: %+v, %v", typ, got, err)
		}
	}
	segments := testSegments(256, 257, 511)
	if got, err := decodeTable(1, appendTable(nil, 1, segments)); err != nil || !reflect.DeepEqual(got, segments) {
		t.Errorf("table: %+v, %v", got, err)
	}
	if _, err := decodeTable(1, appendTable(nil, 1, testSegments(512))); err == nil {
		t.Error("table: a slot of another chunk")
	}
	r := testRoot()
	if got, err := decodeRoot(appendRoot(nil, r)); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("root: %+v, %v", got, err)
	}
}

func TestRequestsRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 100, 150000} {
		r := testRequests(n)
		var got Requests
		id := uint64(0)
		for at, from := 0, 0; at < len(r.by); id++ {
			var body []byte
			body, at, from = appendRequests(nil, id, &r, at, from)
			if len(body) > journal.RecordBodyGoal {
				t.Fatalf("a part of %d bytes", len(body))
			}
			if err := decodeRequests(id, body, &got); err != nil {
				t.Fatal(err)
			}
		}
		if len(got.by) != len(r.by) || got.count != r.count {
			t.Fatalf("%d forwarders with %d requests, want %d with %d", len(got.by), got.count, len(r.by), r.count)
		}
		for i := range r.by {
			if got.by[i].id != r.by[i].id || got.by[i].upTo != r.by[i].upTo || !slices.Equal(got.by[i].open, r.by[i].open) {
				t.Errorf("forwarder %d differs", i)
			}
		}
		if n > 1e5 && id < 2 {
			t.Errorf("%d requests in %d part", n, id)
		}
	}
}

func TestRequests(t *testing.T) {
	r := newRequests()
	id := func(n uint64) journal.RequestID { return journal.RequestID{Forwarder: 5, Number: n} }
	for n := uint64(10); n > 0; n-- {
		for part := range uint8(2) {
			if err := r.Add(id(n), part, ident.Seq(100*n)+ident.Seq(part)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.Add(id(3), 0, 999); err != nil || r.Len() != 20 {
		t.Fatalf("%v, %d open", err, r.Len())
	}
	if seq, ok, _ := r.Find(id(3), 1); seq != 301 || !ok {
		t.Errorf("request 3 part 1 is record %d, %t", seq, ok)
	}
	r.Confirm(5, 4, []uint64{9, 7, 100})
	if r.Len() != 8 {
		t.Errorf("%d open, want 8", r.Len())
	}
	if _, ok, confirmed := r.Find(id(3), 0); ok || !confirmed {
		t.Error("request 3 should be confirmed")
	}
	if _, ok, confirmed := r.Find(id(7), 0); ok || confirmed {
		t.Error("request 7 should be forgotten")
	}
	if err := r.Add(id(2), 0, 5); err != nil || r.Len() != 8 {
		t.Error("a confirmed request came back")
	}
	r.Confirm(5, 10, nil)
	if err := r.Add(journal.RequestID{}, 0, 1); err != nil || r.Len() != 0 {
		t.Error("no request is not a request")
	}
}

// TestRequestsMakeRoom: what is kept of a forwarder is so many parts, however its numbers go on; of forwarders those that were
// heard of last are kept.
func TestRequestsMakeRoom(t *testing.T) {
	r := newRequests()
	const step = 1 << 12 // numbers of commands that may have as many parts
	id := func(n int) journal.RequestID { return journal.RequestID{Forwarder: 5, Number: uint64(n) * step} }
	seq := ident.Seq(0)
	for n := 1; n <= 2*RequestsMax; n++ {
		if seq++; r.Add(id(n), 0, seq) != nil {
			t.Fatalf("no room for request %d", n)
		}
	}
	next := 2*RequestsMax + 1
	if err := r.Add(id(next), 0, seq); !errors.Is(err, ErrRequestsFull) {
		t.Fatalf("a part too many: %v", err)
	}
	r.MakeRoom(5)
	if err := r.Add(id(next), 0, seq); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		n                int
		found, confirmed bool
	}{{1, false, true}, {RequestsMax, false, true}, {RequestsMax + 1, true, false}, {next - 100, true, false}, {next, true, false}, {next + 1, false, false}} {
		if _, found, confirmed := r.Find(id(x.n), 0); found != x.found || confirmed != x.confirmed {
			t.Errorf("request %d: found %t, confirmed %t", x.n, found, confirmed)
		}
	}

	r = newRequests()
	for f := uint64(2 * ForwardersMax); f > 0; f-- { // the last ones have the lowest IDs
		if seq++; r.Add(journal.RequestID{Forwarder: f, Number: 1}, 0, seq) != nil {
			t.Fatalf("no room for forwarder %d", f)
		}
	}
	r.Confirm(7, 1, nil) // nothing is open of it
	one := journal.RequestID{Forwarder: 1 << 40, Number: 1}
	if err := r.Add(one, 0, seq); !errors.Is(err, ErrRequestsFull) {
		t.Fatalf("a forwarder too many: %v", err)
	}
	r.MakeRoom(one.Forwarder)
	if err := r.Add(one, 0, seq); err != nil || r.Len() != ForwardersMax+1 {
		t.Fatalf("%v, %d open", err, r.Len())
	}
	for _, x := range []struct {
		forwarder uint64
		want      bool
	}{{1, true}, {7, false}, {ForwardersMax + 1, true}, {ForwardersMax + 2, false}, {2 * ForwardersMax, false}, {one.Forwarder, true}} {
		if _, found, _ := r.Find(journal.RequestID{Forwarder: x.forwarder, Number: 1}, 0); found != x.want {
			t.Errorf("forwarder %d: found %t", x.forwarder, found)
		}
	}
}

// testParts makes a part of each type.
func testParts(t testing.TB) (parts []Part) {
	m, s := newTestMap(t, 1<<30)
	apply(t, m, write(5, 10, 4096), s)
	fill(t, m, s, 1)
	apply(t, m, write(leafBlocks+5, 10, 4096), s)
	_ = m.Requests().Add(journal.RequestID{Forwarder: 1, Number: 2}, 3, 4)
	if err := m.SetState(9, []byte("state")); err != nil {
		t.Fatal(err)
	}
	cp, err := m.BeginCheckpoint(ident.Position{Seq: m.Applied()})
	if err != nil {
		t.Fatal(err)
	}
	w := &cpWriter{d: newDisk(), max: 1 << 20}
	for {
		step, err := cp.Next(1)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, step.Parts...)
		if err := w.write(m, cp, step.Parts); err != nil {
			t.Fatal(err)
		}
		if step.Done {
			return parts
		}
	}
}

func TestInspectPart(t *testing.T) {
	var out strings.Builder
	for _, p := range testParts(t) {
		_, rec := p.Append(nil, testJournal, ident.Epoch{}, ident.Position{})
		if err := InspectPart(&out, &rec, p.Body); err != nil {
			t.Errorf("%s: %v", p.Type, err)
		}
		if err := InspectPart(&out, &rec, p.Body[:len(p.Body)-1]); err == nil && p.Type != PartState {
			t.Errorf("%s cut off: no error", p.Type)
		}
	}
	for _, want := range []string{"leaf 1,", "  blocks 1029+10: slot 1, record at 4096, block 0\n", "page 0,", "  leaf 1: slot 2,", "directory 0,", "table 0,", "1034 live blocks",
		"requests 0,", "    request 2 part 3: record 4\n", "state 9,", "  5 bytes: 7374617465\n", "root 0,", "  size 1073741824 blocks, 1034 mapped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if err := InspectPart(&out, &journal.Record{Kind: journal.KindWrite}, nil); err == nil {
		t.Error("a write record was printed")
	}
	if err := InspectPart(&out, &journal.Record{Kind: journal.KindPart, Block: 99 << partIDBits}, nil); err == nil {
		t.Error("a part of no type was printed")
	}
}

// fuzzPart adds the bodies of the parts of type typ as seeds and runs fn over bodies.
func fuzzPart(f *testing.F, typ PartType, fn func(t *testing.T, id uint64, body []byte)) {
	for _, p := range testParts(f) {
		if p.Type == typ {
			f.Add(p.ID, p.Body)
		}
	}
	f.Fuzz(fn)
}

func FuzzLeaf(f *testing.F) {
	fuzzPart(f, PartLeaf, func(t *testing.T, id uint64, body []byte) {
		l, err := decodeLeaf(LeafID(id), body)
		if err != nil {
			return
		}
		again, err := decodeLeaf(LeafID(id), appendLeaf(nil, LeafID(id), l))
		if err != nil || !sameLeaf(l, again) {
			t.Errorf("encoded and decoded again: %v", err)
		}
	})
}

func FuzzIndexPart(f *testing.F) {
	fuzzPart(f, PartPage, func(t *testing.T, id uint64, body []byte) {
		for _, typ := range []PartType{PartPage, PartDirectory} {
			if list, err := decodeIndex(typ, id, body); err == nil {
				again, err := decodeIndex(typ, id, appendIndex(nil, typ, id, list))
				if err != nil || !reflect.DeepEqual(list, again) {
					t.Errorf("encoded and decoded again: %v", err)
				}
			}
		}
	})
}

func FuzzTablePart(f *testing.F) {
	fuzzPart(f, PartTable, func(t *testing.T, id uint64, body []byte) {
		if list, err := decodeTable(id, body); err == nil {
			if again, err := decodeTable(id, appendTable(nil, id, list)); err != nil || !reflect.DeepEqual(list, again) {
				t.Errorf("encoded and decoded again: %v", err)
			}
		}
	})
}

func FuzzRequestsPart(f *testing.F) {
	fuzzPart(f, PartRequests, func(t *testing.T, id uint64, body []byte) {
		var r, again Requests
		if decodeRequests(id, body, &r) != nil || len(r.by) == 0 {
			return
		}
		for at, from := 0, 0; at < len(r.by); {
			var b []byte
			b, at, from = appendRequests(nil, id, &r, at, from)
			if err := decodeRequests(id, b, &again); err != nil {
				t.Fatalf("encoded and decoded again: %v", err)
			}
		}
		if again.count != r.count || len(again.by) != len(r.by) {
			t.Error("encoded and decoded again: not the same")
		}
	})
}

func FuzzStatePart(f *testing.F) {
	fuzzPart(f, PartState, func(t *testing.T, id uint64, body []byte) { _, _ = decodeState(id, body) })
}

func FuzzRoot(f *testing.F) {
	f.Add(uint64(0), appendRoot(nil, testRoot()))
	fuzzPart(f, PartRoot, func(t *testing.T, _ uint64, body []byte) {
		if r, err := decodeRoot(body); err == nil {
			if again, err := decodeRoot(appendRoot(nil, r)); err != nil || !reflect.DeepEqual(r, again) {
				t.Errorf("encoded and decoded again: %v", err)
			}
		}
	})
}

func FuzzInspect(f *testing.F) {
	for _, p := range testParts(f) {
		f.Add(p.Block(), p.Body)
	}
	f.Fuzz(func(t *testing.T, block uint64, body []byte) {
		var out bytes.Buffer
		_ = InspectPart(&out, &journal.Record{Kind: journal.KindPart, Block: block}, body)
	})
}
