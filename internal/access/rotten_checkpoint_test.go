package access

import (
	"bytes"
	"context"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// All replicas of the newest checkpoint that the site has have rotted, unread. A takeover reads the other site's.
func TestARottenCheckpointIsReadElsewhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 3)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 2, control.Replicated)
	n := &numbered{blocks: 64, done: map[int]bool{}}
	o := c.own(v)
	n.writes(t, o, 100)
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	parts := func(seats []*seat) (has map[ident.SegmentID][]*seat) {
		has = map[ident.SegmentID][]*seat{}
		for _, s := range seats {
			for id, r := range c.replicas(s, v.ID) {
				if id.IsCheckpoint() && r.State == wire.ReplicaSealed {
					has[id] = append(has[id], s)
				}
			}
		}
		return has
	}
	eventually(t, "the other site has the checkpoint", func() bool { return len(parts(c.seats[3:])) > 0 })
	o.Close()
	elsewhere := parts(c.seats[3:])
	rotten := 0
	for id, seats := range parts(c.seats[:3]) {
		if len(elsewhere[id]) == 0 {
			t.Fatalf("only the site has %s", id)
		}
		for _, s := range seats {
			c.rotAt(s, id, 4700)
			rotten++
		}
	}
	if rotten < 2 {
		t.Fatalf("%d replicas at home", rotten)
	}
	o = c.own(v)
	defer o.Close()
	n.check(t, o, n.acked, "with what the other site has")
}

// Both replicas of what a takeover replays have rotted, each at another record: all of it is there.
func TestReplicasThatHaveRottedAtDifferentPlacesAreReplayed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	for i := range int64(8) {
		if err := forwarded(o, uint64(i+1), i*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	o.ask(o.w.CloseIdle)
	id := o.Segments()[0].ID
	eventually(t, "the segment is sealed", func() bool {
		return c.replicas(c.seats[0], v.ID)[id].State == wire.ReplicaSealed && c.replicas(c.seats[1], v.ID)[id].State == wire.ReplicaSealed
	})
	x, err := readIndex(context.Background(), c.seats[0], id)
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
	rotten := 0
	for i := range x.Entries {
		if x.Entries[i].Requested && rotten < 4 {
			c.rotAt(c.seats[rotten%2], id, int64(x.Entries[i].Offset)+20)
			rotten++
		}
	}
	if rotten != 4 {
		t.Fatalf("%d records with requests", rotten)
	}
	o = c.own(v)
	defer o.Close()
	// None of them is done again.
	for i := range uint64(8) {
		if err := forwarded(o, i+1, int64(i)*4096, bytes.Repeat([]byte{99}, 4096)); err != nil {
			t.Fatal(err)
		}
		if got, err := readAt(o, int64(i)*4096, 4096); err != nil || got[0] == 99 {
			t.Errorf("request %d: %v, %d", i+1, err, got[:1])
		}
	}
}
