package access

import (
	"testing"
	"testing/synctest"
	"time"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A store of the other site is away, and the owner dies. The next one has never heard the store, so it does not know what of the
// history is at the site: commands wait for that, but not for as long as the store is waited for. If it is back soon nothing
// is shipped twice; if not, what it may have is at the site's other store, and commands go on.
func TestCommandsDoNotWaitForAStoreThatTheOwnerNeverHeard(t *testing.T) {
	for _, back := range []time.Duration{5 * time.Second, 0} {
		t.Run(back.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNodes(t, 2, 2, time.Second)
				n.limit.SegmentBytes, n.limit.RepairGrace, n.limit.KeepBothLocal = 64<<10, time.Hour, true
				v := n.ackVolume(2, 1, "")
				x := n.served(t, v)
				o := x.srv.Load().Owners()[0]
				eventually(t, "a write", func() bool { return writeAt(o, 0, filled(1), false) == nil })
				for i := range 60 {
					put(t, o, int64(i%64), byte(i+1))
				}
				n.inStep(t, o)
				stays, goes := n.seats[2], n.seats[3]
				sealed := func(s *seat) (list []ident.SegmentID) {
					for id, r := range n.replicas(s, v.ID) {
						if r.State == wire.ReplicaSealed && !id.IsCheckpoint() {
							list = append(list, id)
						}
					}
					return list
				}
				only := map[ident.SegmentID]bool{} // at this store of the site
				eventually(t, "both stores have segments", func() bool {
					for _, id := range sealed(goes) {
						only[id] = true
					}
					for _, id := range sealed(stays) {
						delete(only, id)
					}
					if len(only) == 0 {
						put(t, o, 1, 1)
					}
					return len(only) > 0
				})
				again := func() (n int) {
					for _, id := range sealed(stays) {
						if only[id] {
							n++
						}
					}
					return n
				}
				n.kill(goes)
				x.stop()
				eventually(t, "another owner", func() bool { return n.owner(v.ID, x) != nil })
				o = n.owner(v.ID, x).srv.Load().Owners()[0]
				begun := time.Now()
				write := writeOp(0, filled(99))
				answer := send(o, write)
				time.Sleep(4 * time.Second)
				if len(answer) > 0 {
					t.Fatalf("a write is answered, and nobody knows what the other site has: %v", <-answer)
				}
				if back > 0 {
					time.Sleep(back)
					n.start(goes)
				}
				if err := <-answer; err != nil {
					t.Fatal(err)
				}
				took := time.Since(begun)
				if took > time.Minute {
					t.Errorf("it waited for %v", took)
				}
				if n := again(); back > 0 && n > 0 {
					t.Errorf("%d of %d segments were shipped again", n, len(only))
				} else if back == 0 {
					eventually(t, "what the store may have is at the other one", func() bool { return again() == len(only) })
				}
				if back == 0 {
					n.start(goes)
				}
				put(t, o, 2, 7)
				n.inStep(t, o)
				for i := range 60 {
					want := byte(i + 1)
					switch i {
					case 0:
						want = 99
					case 2:
						want = 7
					}
					if i == 1 {
						continue
					}
					if d, err := readAt(o, int64(i)*4096, 4096); err != nil || d[0] != want {
						t.Errorf("block %d: %v, %v", i, d[:1], err)
					}
				}
				if e := n.events("volume.fork"); len(e) > 0 {
					t.Errorf("forks: %v", e)
				}
				n.stopAll()
			})
		})
	}
}
