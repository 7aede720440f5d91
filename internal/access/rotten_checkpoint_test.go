package access

import (
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
