package access

import (
	"math/rand/v2"
	"testing"

	"dozo/internal/wire"
)

// TestAborts compares ranges with a list of numbers, until what is added at one place is too much.
func TestAborts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		a, want := aborts{}, map[wire.RequestID]uint64{}
		for tick := uint64(10); tick < 10+abortsMost; tick++ {
			first := wire.RequestID{Forwarder: rng.Uint64N(2), Number: 1 + rng.Uint64N(3<<abortsShift)}
			last := first.Number + rng.Uint64N(2<<abortsShift)
			a.add(first, last, tick)
			for n := first.Number; n <= last; n++ {
				want[wire.RequestID{Forwarder: first.Forwarder, Number: n}] = tick
			}
		}
		b := aborts{}
		a.each(b.add)
		for _, x := range []aborts{a, b} {
			for f := range uint64(3) {
				for n := range uint64(6 << abortsShift) {
					id := wire.RequestID{Forwarder: f, Number: n}
					if _, yes := want[id]; x.has(id) != yes {
						t.Fatalf("request %d of %d: %v, want %v", n, f, x.has(id), yes)
					}
				}
			}
			x.prune(20)
			for id, tick := range want {
				if tick >= 20 && !x.has(id) {
					t.Fatalf("request %v of tick %d is forgotten", id, tick)
				}
			}
			if x.prune(100); len(x) != 0 {
				t.Fatalf("%d blocks are kept", len(x))
			}
		}
	}
}

// Many small ranges in one block become one that has them all; a range that ends before it begins is none, and one too long ends early.
func TestAbortsAreBounded(t *testing.T) {
	a := aborts{}
	for n := uint64(0); n < 1<<abortsShift; n += 2 {
		a.add(wire.RequestID{Number: n + 1}, n+1, n)
	}
	if len(a) > 2 || len(a[abortsBlock{}]) > abortsMost {
		t.Errorf("%d blocks, %d ranges in the first", len(a), len(a[abortsBlock{}]))
	}
	for n := uint64(0); n < 1<<abortsShift; n += 2 {
		if !a.has(wire.RequestID{Number: n + 1}) {
			t.Fatalf("%d is not refused", n+1)
		}
	}
	a = aborts{}
	a.add(wire.RequestID{Number: 9}, 8, 1)
	if len(a) != 0 {
		t.Error("a range without a request")
	}
	a.add(wire.RequestID{Number: ^uint64(0) - 5}, ^uint64(0), 1)
	a.add(wire.RequestID{Number: 1}, ^uint64(0), 1)
	if !a.has(wire.RequestID{Number: ^uint64(0)}) || !a.has(wire.RequestID{Number: abortsSpan}) || a.has(wire.RequestID{Number: abortsSpan + 1}) {
		t.Error("the ends of long ranges")
	}
}
