package access

import (
	"slices"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// crowd enters segments as a volume of a terabyte has them, with replicas at both stores of the owner's site, and gives them.
func crowd(t testing.TB, o *Owner, n int) (list []*segment) {
	t.Helper()
	o.ask(func() {
		at := ident.Position{Epoch: o.epoch, Seq: 1 << 40}
		for i := range n {
			s := &segment{id: ident.SegmentID{Site: 1, Journal: o.journalID, Epoch: o.epoch, Number: uint32(1000 + i)}, before: at, sealed: true, end: 32 << 20}
			at.Seq += 1000
			s.last = at
			for _, st := range o.stores[:2] {
				s.holders = append(s.holders, holder{store: st.ID(), stable: true, made: uint64(i + 1)})
			}
			o.enter(s)
			list = append(list, s)
		}
		if o.stopErr != nil {
			t.Fatal(o.stopErr)
		}
	})
	return list
}

// BenchmarkManySegments is what the owner's loop does once a second, and ten times a second, for a volume of 1 TiB: clients' commands wait
// for as long.
func BenchmarkManySegments(b *testing.B) {
	for _, x := range []struct {
		name string
		f    func(o *Owner)
	}{
		{"second", func(o *Owner) { o.everySecond() }},
		{"dying", func(o *Owner) { o.m.DyingBytes() }},
	} {
		for _, n := range []int{1000, 32000} {
			b.Run(x.name+"/"+map[int]string{1000: "1000", 32000: "32000"}[n], func(b *testing.B) {
				c := newCluster(b, 1, 2)
				o := c.own(c.volume(4<<40, 1, control.Replicated))
				defer o.Close()
				crowd(b, o, n)
				var longest time.Duration
				b.ResetTimer()
				o.ask(func() {
					for range b.N {
						begun := time.Now()
						x.f(o)
						longest = max(longest, time.Since(begun))
					}
				})
				b.ReportMetric(float64(longest.Nanoseconds()), "longest-ns")
			})
		}
	}
}

// A large volume is looked at in parts, each segment once a round; what is wrong with one is found, counted once the round is over, and mended.
func TestALargeVolumeIsLookedAtInParts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<40, 1, control.Replicated))
	defer o.Close()
	sweepMost := o.env.Limits.SweepSegments
	n := 3*sweepMost + 100
	list := crowd(t, o, n)
	o.ask(func() {
		rounds := 2
		seen := map[*segment]int{}
		var w sweep
		for parts := 0; rounds > 0; parts++ {
			if parts == 10 {
				t.Fatal("no end")
			}
			part, first, last := w.next(o)
			if len(part) > sweepMost || first != (len(seen) == 0) {
				t.Errorf("%d segments at once, the first: %v", len(part), first)
			}
			for _, s := range part {
				seen[s]++
			}
			if !last {
				continue
			}
			for _, s := range list {
				if seen[s] != 1 {
					t.Fatalf("segment %s was seen %d times in a round", s.id, seen[s])
				}
			}
			clear(seen)
			parts = 0
			rounds--
		}
		// What goes in the middle of a round is not looked at any more, and what comes is in the next one.
		w.next(o)
		gone := list[n-1]
		o.leaveOut(gone.id)
		for last := false; !last; {
			var part []*segment
			if part, _, last = w.next(o); slices.Contains(part, gone) {
				t.Error("a segment that is gone is looked at")
			}
		}
		o.keep(gone)

		missing := 0
		for i := range list {
			if i%400 == 7 { // it is at one store only
				list[i].holders = list[i].holders[:1]
				missing++
			}
		}
		o.repair.looking = sweep{} // it may be in the middle of a round
		for range 5 {
			o.repairSome(o.servedAt + 2*heardPatience)
		}
		if got := int(o.repair.Degraded); got != missing {
			t.Errorf("%d segments are said to have too few copies, want %d", got, missing)
		}
		lost := list[0].holders[0].store
		c.tellOf(lost, StoreInfo{Lost: true})
		o.forgetLost()
		for _, s := range list {
			if s.holder(lost) != nil {
				t.Fatal("what was on a lost store counts")
			}
		}
		if o.confirm(list[1], lost, 1); list[1].holder(lost) != nil {
			t.Error("a copy that ends at a lost store counts")
		}
	})
}
