package access

import (
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// The maps of all volumes of a node share one budget: the more there are, the less each may keep.
func TestMapsShareOneBudget(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.maps = NewMapMemory(1 << 60)
	c.maps.free = 10 << 10
	var owners []*Owner
	for _, name := range []string{"a", "b", "c"} {
		v, err := c.ctl.CreateVolume(t.Context(), control.VolumeSpec{Name: name, SizeBytes: 256 << 20, BlockSize: 512, Sites: 1, AtSite: 1}, []ident.SiteID{1})
		if err != nil {
			t.Fatal(err)
		}
		o := c.own(v)
		owners = append(owners, o)
		for at := int64(0); at < v.SizeBytes; at += 4 << 20 {
			for i := range int64(4) {
				if err := writeAt(o, at+i<<14, make([]byte, 4096), false); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	leaves := func() (n []int) {
		for _, o := range owners {
			o.ask(func() { n = append(n, o.m.Leaves()) })
		}
		return n
	}
	round := func() {
		for _, o := range owners {
			o.ask(o.pageOut)
		}
	}
	round()
	if n := leaves(); n[0] != 64 || n[1] != 64 || n[2] != 64 {
		t.Fatalf("%d leaves in memory, with room for all 64 of each", n)
	}
	c.maps.mu.Lock()
	c.maps.budget = c.maps.mu.total * 97 / 100
	budget := c.maps.budget
	c.maps.mu.Unlock()
	eventually(t, "all maps together are within the budget", func() bool {
		round()
		c.maps.mu.Lock()
		defer c.maps.mu.Unlock()
		return c.maps.mu.total <= budget
	})
	if n := leaves(); n[0] == 64 || n[0] == 0 || n[1] != n[0] || n[2] != n[0] {
		t.Errorf("%d leaves in memory, with room for as many of each", n)
	}
	for _, o := range owners {
		o.Close()
	}
	if c.maps.mu.total != 0 || len(c.maps.mu.of) != 0 {
		t.Errorf("owners that have ended count for %d bytes", c.maps.mu.total)
	}
}

// An owner that ends has nothing to copy any more: what is less urgent elsewhere no longer waits for it.
func TestNobodyWaitsForTheCopiesOfAnOwnerThatEnded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.copies = NewCopies(func() int64 { return 1 }, 0)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	o.ask(func() {
		o.env.Copies.announce(o.journalID, 1)
		if o.env.Copies.begin(dangerMove) {
			t.Error("what only moves goes before what is in danger")
		}
		o.stop(errClosed)
	})
	if !c.copies.begin(dangerMove) {
		t.Error("the copies of an owner that has ended are waited for")
	}
	o.Close()
}
