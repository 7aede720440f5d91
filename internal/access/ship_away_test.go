package access

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A store of another site that is away for a while: what it has is not shipped to the site's other store, what is new is,
// and the watermark says what the site can use. When the store is back, nothing had to be shipped twice; when it stays away
// for longer than it is waited for, all is shipped again. That holds for the owner that has shipped it and for the next
// one, which has never heard of the store.
func TestAStoreOfAnotherSiteIsWaitedFor(t *testing.T) {
	for _, next := range []bool{false, true} {
		for _, back := range []bool{true, false} {
			t.Run(fmt.Sprintf("next owner %v, store back %v", next, back), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 2, 2)
				c.limit.SegmentBytes, c.limit.RepairGrace = 64<<10, time.Hour
				if !back {
					c.limit.RepairGrace = 1500 * time.Millisecond
				}
				c.limit.KeepBothLocal = true
				v := c.volume(1<<20, 2, control.Replicated)
				o := c.own(v)
				write := func(n int) {
					t.Helper()
					for i := range n {
						if err := writeAt(o, int64(i%64)<<13, bytes.Repeat([]byte{byte(i + 1)}, 8<<10), false); err != nil {
							t.Fatal(err)
						}
					}
				}
				write(40)
				c.inStep(t, o)
				stays, goes := c.seats[2], c.seats[3]
				sealed := func(s *seat) map[ident.SegmentID]bool {
					out := map[ident.SegmentID]bool{}
					for id, r := range c.replicas(s, v.ID) {
						if r.State == wire.ReplicaSealed && !id.IsCheckpoint() {
							out[id] = true
						}
					}
					return out
				}
				var old map[ident.SegmentID]bool
				eventually(t, "the owner knows what the store that goes away has", func() bool {
					old = sealed(goes)
					n := 0
					for _, s := range o.Segments() {
						if old[s.ID] && slices.ContainsFunc(s.Holders, func(h HolderView) bool { return h.Store == goes.id && h.Stable }) {
							n++
						}
					}
					if n != len(old) {
						return false
					}
					for id := range c.replicas(stays, v.ID) {
						delete(old, id) // one of the pair was slow, and the third member, of the other site, took its place
					}
					if len(old) == 0 {
						write(10)
					}
					return len(old) > 0
				})
				last := o.View().Commit
				c.kill(goes)
				if next {
					o.Close()
					o = c.own(v)
				}
				write(20)
				committed := o.View().Commit.Seq
				eventually(t, "what is new reaches the site", func() bool {
					o.ask(o.publish)
					committed = max(committed, o.View().Commit.Seq)
					for _, r := range c.replicas(stays, v.ID) {
						if r.Last.Seq >= committed && r.Last.Seq > last.Seq {
							return true
						}
					}
					return false
				})
				again := func() (n int) {
					for id := range sealed(stays) {
						if old[id] {
							n++
						}
					}
					return n
				}
				if back {
					if w := o.View().Sites[0].Watermark; w.Seq >= last.Seq {
						t.Errorf("the watermark is %d, though the site lacks some of %d records", w.Seq, last.Seq)
					}
					c.start(goes)
				}
				c.inStep(t, o)
				if back {
					if n := again(); n > 0 {
						t.Errorf("%d of %d segments were shipped again", n, len(old))
					}
				} else {
					eventually(t, "all of it is shipped again, and sealed", func() bool { return again() == len(old) })
					c.start(goes)
				}
				o.Close()
			})
		}
	}
}

// A store of another site is away, or not there at all, when shipping begins, and nothing waits for it. Once it is there it
// gets its part of what comes, however long the session goes on, and nothing that was shipped before is shipped again.
func TestAStoreOfAnotherSiteThatComesLaterIsUsed(t *testing.T) {
	for _, grace := range []time.Duration{time.Hour, time.Millisecond} {
		t.Run(fmt.Sprint("waited for ", grace), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, 2)
			c.limit.SegmentBytes, c.limit.RepairGrace, c.limit.KeepBothLocal = 64<<10, grace, true
			c.kill(c.seats[3])
			comesLater(t, c, func() { c.start(c.seats[3]) })
		})
	}
	t.Run("registered later", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 2, 2)
		c.limit.SegmentBytes, c.limit.KeepBothLocal = 64<<10, true
		c.unknown.Store(c.seats[3])
		comesLater(t, c, func() { c.unknown.Store(nil) })
	})
}

func comesLater(t *testing.T, c *cluster, comes func()) {
	v := c.volume(1<<20, 2, control.Replicated)
	o := c.own(v)
	defer o.Close()
	write := func() {
		t.Helper()
		for i := range 10 {
			if err := writeAt(o, int64(i%64)<<13, bytes.Repeat([]byte{byte(i + 1)}, 8<<10), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 4 {
		write()
	}
	c.inStep(t, o)
	was := c.replicas(c.seats[2], v.ID)
	comes()
	if n := c.newerThan(c.seats[3], v, nil); n > 0 {
		t.Fatalf("the store that was not there has %d segments", n)
	}
	eventually(t, "the store is used", func() bool {
		write()
		return c.newerThan(c.seats[3], v, was) > 0
	})
	for id := range c.replicas(c.seats[3], v.ID) {
		if r, again := was[id]; again && r.State == wire.ReplicaSealed && !id.IsCheckpoint() {
			t.Errorf("segment %s was shipped again", id)
		}
	}
}
