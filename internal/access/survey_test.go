package access

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// survey is what a dry run of a recovery says.
func (c *cluster) survey(t *testing.T, v control.VolumeSpec, without ...ident.StoreID) *Survey {
	t.Helper()
	x, err := (&Server{env: c.env()}).Survey(t.Context(), v.ID, without...)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// is holds that a takeover right behind it has found what the survey said.
func (x *Survey) is(t *testing.T, o *Owner) {
	t.Helper()
	var last ident.Seq
	for _, r := range slices.Concat(o.recovered.Past, o.recovered.Tail) {
		last = max(last, r.To)
	}
	if x.Last != last || x.Records != o.loss.records || x.Stable != o.recovered.LostStable {
		t.Errorf("the survey said: to seq %d, %d records lost, some of them stable: %v; the takeover found: to seq %d, %d records lost, some of them stable: %v",
			x.Last, x.Records, x.Stable, last, o.loss.records, o.recovered.LostStable)
	}
	for _, r := range x.Reach {
		if len(x.Reach) == 1 && r.Last != last {
			t.Errorf("the only site is said to have what there is to seq %d, the takeover found it to %d", r.Last, last)
		}
	}
}

// holdersBeforeOthers are the two stores that have a sealed segment behind the first one, where something is behind it that
// neither has: the earliest such segment's. None, if there is none: after a pause of the machine all may be on one pair.
func (c *cluster) holdersBeforeOthers(id ident.JournalID) []*seat {
	holders := map[ident.SegmentID][]*seat{}
	before := map[ident.SegmentID]ident.Seq{}
	for _, s := range c.seats {
		for seg, r := range c.replicas(s, id) {
			if r.State == wire.ReplicaSealed && r.Before.Seq > 0 && !seg.IsCheckpoint() {
				holders[seg], before[seg] = append(holders[seg], s), r.Before.Seq
			}
		}
	}
	order := slices.SortedFunc(maps.Keys(holders), func(a, b ident.SegmentID) int { return cmp.Compare(before[a], before[b]) })
	for i, hole := range order {
		at := holders[hole]
		if len(at) != 2 {
			continue
		}
		for _, later := range order[i+1:] {
			if before[later] > before[hole] && !slices.ContainsFunc(at, func(s *seat) bool { return slices.Contains(holders[later], s) }) {
				return at
			}
		}
	}
	return nil
}

// Both stores with a segment in the middle are given up: the history ends in front of it, whatever there is behind it.
func TestASurveyEndsTheHistoryAtAHole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 6)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 1, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	var holders []*seat // of the hole
	for len(holders) == 0 {
		n.writes(t, o, 100)
		if err := n.flush(o); err != nil {
			t.Fatal(err)
		}
		// A notice that is under way would be heard by the takeover, and not yet by the survey.
		eventually(t, "the stores have been told how far it goes", func() bool {
			return !slices.ContainsFunc(c.seats, func(s *seat) bool {
				r, err := s.Inventory(t.Context(), &wire.Inventory{Journal: v.ID})
				return err != nil || len(r.Replicas) > 0 && (r.Commit != o.View().Commit || r.Stable != r.Commit)
			})
		})
		holders = c.holdersBeforeOthers(v.ID)
	}
	o.Close()
	var lost []ident.StoreID
	for _, s := range holders {
		lost = append(lost, s.id)
	}
	all, asked := c.survey(t, v), c.survey(t, v, lost...)
	for _, s := range holders {
		c.kill(s)
	}
	for _, s := range c.seats {
		if s.live.Load() != nil {
			c.local = s.id
		}
	}
	said := c.survey(t, v)
	// What was said before of their loss is what is there after it, and somewhere there is only one copy left, or none.
	if asked.Last != said.Last || asked.Records != said.Records || asked.Enough != said.Enough || asked.Stable != said.Stable || !maps.Equal(asked.Held, said.Held) {
		t.Errorf("before the stores were lost the survey said %+v, now it says %+v", asked, said)
	}
	single := 0
	for id, h := range all.Held {
		if left, ok := asked.Held[id]; h.Stores < 2 && !ok || left.Stores > h.Stores {
			t.Errorf("segment %s: %+v with the stores, %+v without", id, h, left)
		} else if left.Stores < 2 {
			single++
		}
	}
	if len(all.Held) <= len(asked.Held) || single == 0 || all.Records != 0 || asked.Records == 0 {
		t.Errorf("with the stores %+v, without %+v", all, asked)
	}
	_, rev, err := c.ctl.JournalNow(t.Context(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ctl.ForceJournal(t.Context(), v.ID, rev, "n1", lost, "", 0, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if o, err = TakeOver(ctx, c.env(), v); err != nil {
		t.Fatal(err)
	}
	if !o.holed {
		t.Fatal("the history has no hole, and the test means nothing")
	}
	said.is(t, o)
	o.Close()
}
