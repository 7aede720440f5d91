package access

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A volume has left a site, which is lost before its ensemble is off the list. Who owns the volume serves it, and a takeover would
// wait for that site (R2): so it is not handed over, and goes on, until what was there has been copied.
func TestAVolumeIsNotHandedOverToWhoCouldNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNodes(t, 2, 2, time.Second)
		v := n.volume(1<<20, 2, control.Replicated)
		was := n.served(t, v)
		want := bytes.Repeat([]byte{7}, 4096)
		if _, err := through(was, v, wire.OpWrite, 0, want, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := was.moveTo(v, "", 3-was.home.site); err != nil {
			t.Fatal(err)
		}
		x := n.owner(v.ID, nil)
		for _, o := range n.list {
			if o.home.site == was.home.site {
				o.stop()
				n.kill(o.home)
			}
		}
		before := n.listed(v)
		if len(before.Ensembles) < 2 {
			t.Fatalf("the ensemble of the site that was left is off the list: %+v", before)
		}
		y := n.other(x, x.home.site)
		if _, err := x.moveTo(v, y.name, 0); err == nil {
			t.Error("handed over, though stores that a takeover needs are lost")
		}
		if state := n.listed(v); state.Epoch != before.Epoch || n.owner(v.ID, nil) != x {
			t.Fatalf("%s served it at %s, and the key says now: %+v", x.name, before.Epoch, state)
		}
		if got, err := through(x, v, wire.OpRead, 0, nil, 4096); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the owner does not go on: %v", err)
		}
		eventually(t, "the ensemble of the site that was left is off the list", func() bool { return len(n.listed(v).Ensembles) == 1 })
		if _, err := x.moveTo(v, y.name, 0); err != nil {
			t.Errorf("nothing is missing any more: %v", err)
		}
		if got, err := through(y, v, wire.OpRead, 0, nil, 4096); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the taker: %v", err)
		}
		n.stopAll()
	})
}

// An owner whose member is gone serves on without another ensemble while one that is listed still lacks two stores: its own
// next takeover would wait for them.
func TestAnOwnerThatCouldNotBeginAgainGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 6)
		var opens, pushes atomic.Bool
		c.wrap = func(s journal.Store) journal.Store { return &listedStore{shut{s, &opens, &pushes}} }
		v := c.volume(1<<20, 1, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
		for range 40 {
			im.change(t)
		}
		pushes.Store(true) // the first ensemble stays listed
		ends := func(victim ident.StoreID) bool {
			c.kill(c.seat(victim))
			select {
			case <-im.o.Stopped():
			case <-time.After(5 * time.Minute):
				return false
			}
			if im.o.Err() != errMemberGone {
				t.Fatal(im.o.Err())
			}
			return true
		}
		first := im.o.members
		if !ends(first[1].Store) {
			t.Fatal("the owner doesn't want another ensemble")
		}
		old := im.o
		c.health = old.env.Health
		im.o = c.own(v)
		old.Close()
		if state := c.listed(v); len(state.Ensembles) != 2 {
			t.Fatalf("the first ensemble is off the list: %+v", state)
		}
		var both ident.StoreID // of the members of both
		for _, m := range im.o.members {
			if m.Store != c.local && (m.Store == first[0].Store || m.Store == first[2].Store) {
				both = m.Store
			}
		}
		if both.IsZero() {
			t.Fatalf("members of %v are now %v", first, im.o.members)
		}
		if ends(both) {
			t.Fatal("the owner has ended, and nobody can begin")
		}
		want := bytes.Repeat([]byte{7}, 4096) // of the first ensemble only one store is left
		if err := writeAt(im.o, 0, want, false); err != nil {
			t.Fatal(err)
		}
		if got, err := readAt(im.o, 0, 4096); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the owner does not go on: %v", err)
		}
		im.o.Close()
	})
}
