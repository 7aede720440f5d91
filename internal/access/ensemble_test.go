package access

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/journal"
)

// A member that stays away is replaced, what it held is made again, and the ensemble that lists it leaves the list:
// then the next loss of one is as harmless as the first was.
func TestAMemberThatIsGoneIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 6)
		c.limit.SegmentBytes = 64 << 10
		v := c.volume(1<<20, 1, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
		for range 40 {
			im.change(t)
		}
		for range 2 {
			victim := c.seat(im.o.members[1].Store)
			c.kill(victim)
			for range 20 {
				im.change(t)
			}
			select {
			case <-im.o.Stopped():
			case <-time.After(time.Minute):
				t.Fatal("the owner doesn't want another ensemble")
			}
			if im.o.Err() != errMemberGone {
				t.Fatal(im.o.Err())
			}
			old := im.o
			health := old.env.Health
			c.health = health
			im.o = c.own(v)
			old.Close()
			if n := len(im.o.state.Ensembles); n != 2 {
				t.Errorf("%d ensembles are listed", n)
			}
			for _, m := range im.o.members {
				if m.Store == victim.id {
					t.Error("the store that is gone is a member still")
				}
			}
			im.check(t)
			if err := im.o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the older ensemble is off the list", func() bool {
				im.o.look()
				state, _, ok := c.ctl.Journal(v.ID)
				return ok && len(state.Ensembles) == 1 && !slices.Contains(state.Ensembles[0].Stores, victim.id)
			})
		}
		old := im.o
		im.o = c.own(v)
		old.Close()
		im.check(t)
		im.o.Close()
	})
}

// While something is only on stores of an older ensemble, that stays on the list.
func TestAnEnsembleThatIsNeededStaysListed(t *testing.T) {
	c := newCluster(t, 1, 3)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	for i := range 20 {
		if err := writeAt(o, int64(i)*4096, make([]byte, 4096), false); err != nil {
			t.Fatal(err)
		}
	}
	o.ask(o.w.CloseIdle)
	eventually(t, "it is sealed", func() bool {
		s := o.Segments()[0]
		return s.Sealed && len(s.Holders) == 2 && s.Holders[0].Stable && s.Holders[1].Stable
	})
	newest := func() (ok bool) { o.ask(func() { ok = o.onNewest() }); return ok }
	if !newest() {
		t.Fatal("all is on two members")
	}
	o.ask(func() {
		s := o.order[0]
		o.members = slices.DeleteFunc(slices.Clone(o.members), func(m journal.Member) bool { return m.Store == s.holders[0].store })
	})
	if newest() {
		t.Error("one of two holders is a member, no checkpoint covers the segment, and the old ensemble may go")
	}
	o.Close()
}
