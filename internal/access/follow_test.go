package access

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// The rule by itself: each letter is a slot of half a second, in which the nodes of that name wrote; a and b are of site
// 1, where a is the owner, c and d of site 2, e of site 3; "." is a slot without writes, "(cd)" one of both.
func TestWhereWritesComeFrom(t *testing.T) {
	sites := map[rune]ident.SiteID{'a': 1, 'b': 1, 'c': 2, 'd': 2, 'e': 3}
	for _, x := range []struct {
		name, slots string
		handed      bool
		at          int // the slot at the end of which the rule says where to; -1: never
		to          ident.NodeName
	}{
		{"none", ".....................", false, -1, ""},
		{"the owner", "aaaaaaaaaaaaaaaaaaaaaaa", false, -1, ""},
		{"another site", "aacccccc", false, 5, "c"},
		{"another site at once", "ccccc", false, 3, "c"},
		{"two sites at a time", "(ac)(ac)(ac)(ac)(ac)(ac)(ac)(ac)(ac)(ac)(ac)(ac)", false, -1, ""},
		{"two sites in turn", "acacacacacacaccaccaccacccaccc", false, -1, ""},
		{"two other sites", "cececececece(ce)(ce)(ce)", false, -1, ""},
		{"a writer that is idle", "aaaa.........c.........c........c.......c..", false, 40, "c"},
		{"an owner that is idle too", "a....c....a....c....a....c.c.c.a", false, -1, ""},
		{"the busier of two nodes", "(ac)ccd(cd)dcc", false, 4, "c"},
		{"handed here, not written yet", "ccccccccccccccc", true, -1, ""},
		{"handed here, then written", "cccccaaccccc", true, 10, "c"},
		{"a node of the site", "aabbbbbbbbbbbbbbbbbbbbbbb", false, 21, "b"},
		{"two nodes of the site", "(ab)b(ab)(ab)aaabababab(ab)bbb(ab)bbbbbbbb(ab)", false, -1, ""},
		{"the site's other node, and another site", "bbbbbbbcbbbbbbbcbbbbbbbbbbbbbbbbbbb", false, -1, ""},
	} {
		f := &follower{self: "a", site: 1, after: 2 * time.Second, armed: !x.handed, near: !x.handed}
		at, to, n := -1, ident.NodeName(""), -1
		var now time.Duration
		var slot []origin
		in := false
		for _, r := range x.slots {
			switch {
			case r == '(':
				in = true
				continue
			case r == ')':
				in = false
			case r != '.':
				slot = append(slot, origin{ident.NodeName(r), sites[r], 1})
			}
			if in {
				continue
			}
			n++
			now += followSlot
			if got := f.look(now, slot); got != "" && at < 0 {
				at, to = n, got
			}
			slot = nil
		}
		if at != x.at || to != x.to {
			t.Errorf("%s: to %q at slot %d, want %q at %d", x.name, to, at, x.to, x.at)
		}
	}
	// Handed over within the site, to a node that nobody used: it stays there, but another site's writer is followed.
	g := &follower{self: "a", site: 1, after: 2 * time.Second, armed: true}
	var at time.Duration
	for range 60 {
		at += followSlot
		if got := g.look(at, []origin{{"b", 1, 1}}); got != "" {
			t.Fatalf("to %s, where it came from", got)
		}
	}
	for range 4 {
		at += followSlot
		if got := g.look(at, []origin{{"c", 2, 1}}); got != "" && at < 32*time.Second {
			t.Fatalf("to %s after %v", got, at)
		} else if at == 32*time.Second && got != "c" {
			t.Error("the other site's writer is not followed")
		}
	}
	// Handed here and never written, but long ago.
	f := &follower{self: "a", site: 1, after: 2 * time.Second}
	for now := time.Duration(0); now < followUnarmed; now += followSlot {
		if got := f.look(now, []origin{{"c", 2, 1}}); got != "" {
			t.Fatalf("to %s after %v", got, now)
		}
	}
	if got := f.look(followUnarmed, []origin{{"c", 2, 1}}); got != "c" {
		t.Error("it stays for ever where nobody writes")
	}
}

func TestFollowRests(t *testing.T) {
	var f followState
	now := time.Now()
	if f.rest(now) != 0 {
		t.Error("a journal that has never moved rests")
	}
	want := followStay
	for i := range 12 {
		f.handed(now)
		if got := f.rest(now); got != want {
			t.Errorf("after %d hand-overs it rests %v, want %v", i+1, got, want)
		}
		now = now.Add(want)
		if f.rest(now) != 0 {
			t.Errorf("%v later it still rests", want)
		}
		want = min(2*want, followStayMost)
	}
	if now = now.Add(followMemory + time.Second); f.rest(now) != 0 || len(f.hands) != 0 {
		t.Error("an hour later they are not forgotten")
	}
	f.tried, f.wait = now, followRetry
	if f.rest(now) != followRetry || f.rest(now.Add(followRetry)) != 0 {
		t.Error("after one that failed")
	}
}

func TestCountingWrites(t *testing.T) {
	var c ioCount
	var wg sync.WaitGroup
	for _, n := range []ident.NodeName{"", "x", "y"} {
		for range 4 {
			wg.Go(func() {
				for range 500 {
					c.note(n)
				}
			})
		}
	}
	sum := map[ident.NodeName]uint64{}
	site := func(ident.NodeName) ident.SiteID { return 1 }
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for last := false; ; {
		for _, o := range c.take("self", site) {
			sum[o.node] += o.n
		}
		if last {
			break
		}
		last = isClosed(done)
	}
	if sum["self"] != 2000 || sum["x"] != 2000 || sum["y"] != 2000 {
		t.Errorf("%v", sum)
	}
	c.note("x")
	if n := testing.AllocsPerRun(100, func() { c.note(""); c.note("x") }); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}

// following is a cluster whose volumes follow, with writers that can be moved.
type following struct {
	*nodes
	v    control.VolumeSpec
	stop chan struct{}
	wg   sync.WaitGroup
}

func newFollowing(t *testing.T, sites, count int) (*following, *node) {
	n := newNodes(t, sites, count, time.Second)
	n.limit.SegmentBytes = 128 << 10
	n.limit.FollowAfter = 2 * time.Second
	f := &following{nodes: n, v: n.volume(1<<20, sites, control.Replicated), stop: make(chan struct{})}
	return f, n.served(t, f.v)
}

// writer writes by a node, every so often, until the test ends or end is closed.
func (f *following) writer(t *testing.T, by *node, block int64, every time.Duration) (end func()) {
	over := make(chan struct{})
	f.wg.Go(func() {
		vol := by.volumeAt(f.v)
		vol.Open()
		defer vol.Close()
		for i := byte(1); ; i++ {
			select {
			case <-f.stop:
				return
			case <-over:
				return
			case <-time.After(every):
			}
			// Commands that come while owners die may be answered with BUSY: an initiator asks again.
			_, err := through(by, f.v, wire.OpWrite, block*4096, bytes.Repeat([]byte{i}, 4096), 0)
			if err != nil && !errorsIs(err, wire.ErrBusy) && !errorsIs(err, wire.ErrStale) {
				t.Errorf("write by %s: %v", by.name, err)
				return
			}
		}
	})
	return func() { close(over) }
}

func (f *following) end() {
	close(f.stop)
	f.wg.Wait()
	f.stopAll()
}

// The writer moves to another site, and the volume after it; back, and the volume after it again.
func TestOwnershipFollowsTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, x := newFollowing(t, 2, 2)
		y := f.other(x, 3-x.home.site)
		end := f.writer(t, x, 0, 20*time.Millisecond)
		time.Sleep(5 * time.Second)
		if f.owner(f.v.ID, nil) != x {
			t.Fatal("it does not stay with its writer")
		}
		for i, by := range []*node{y, x, y} {
			end()
			end = f.writer(t, by, int64(i), 20*time.Millisecond)
			began := time.Now()
			eventually(t, "the volume follows", func() bool { return f.owner(f.v.ID, nil) == by })
			t.Logf("it followed to %s after %v", by.name, time.Since(began))
			time.Sleep(3 * time.Second)
		}
		f.end()
	})
}

// A pinned volume stays; once it is not any more it follows.
func TestAPinnedVolumeStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, x := newFollowing(t, 2, 2)
		pin := func(o control.Ownership) {
			if _, err := f.ctl.UpdateVolume(t.Context(), f.v.ID, func(v *control.VolumeSpec) error { v.Ownership = o; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		pin(control.OwnershipPin)
		y := f.other(x, 3-x.home.site)
		f.writer(t, y, 0, 20*time.Millisecond)
		time.Sleep(time.Minute)
		if f.owner(f.v.ID, nil) != x {
			t.Fatal("it has not stayed")
		}
		pin(control.OwnershipFollow)
		eventually(t, "the volume follows", func() bool { return f.owner(f.v.ID, nil) == y })
		f.end()
	})
}

// An operator moves the volume ahead of its user: it waits there until the user has come.
func TestAVolumeThatWasMovedAheadStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, x := newFollowing(t, 2, 2)
		y := f.other(x, 3-x.home.site)
		end := f.writer(t, x, 0, 20*time.Millisecond)
		time.Sleep(3 * time.Second)
		if _, err := x.moveTo(f.v, y.name, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if f.owner(f.v.ID, nil) != y {
			t.Fatal("it has gone back")
		}
		end()
		end = f.writer(t, y, 1, 20*time.Millisecond)
		time.Sleep(20 * time.Second)
		end()
		f.writer(t, x, 2, 20*time.Millisecond)
		eventually(t, "the volume follows", func() bool { return f.owner(f.v.ID, nil) == x })
		f.end()
	})
}

// Written from two sites at once it does not move at all; written from each in turn for long enough to follow, it moves
// ever more seldom. It stays correct all the time.
func TestAVolumeOfTwoSitesDoesNotBounce(t *testing.T) {
	t.Parallel()
	for _, phase := range []time.Duration{0, 4 * time.Second} {
		t.Run(fmt.Sprint("phases of ", phase), func(t *testing.T) {
			rec := &blockHistory{}
			synctest.Test(t, func(t *testing.T) {
				f, x := newFollowing(t, 2, 2)
				y := f.other(x, 3-x.home.site)
				moves := 0
				f.onHandOver = func(_ *node, m *wire.HandOver, done bool) {
					if m.Step == wire.HandTake && done {
						moves++
					}
				}
				var clients []*linearClient
				for _, z := range f.list {
					vol := z.volumeAt(f.v)
					vol.Open()
					defer vol.Close()
					eventually(t, "a stamp", func() bool { return vol.Stamp().Tick != 0 })
				}
				if phase == 0 { // and a reader and writer at each node, whose history is checked
					for i := range 3 {
						c := &linearClient{n: f.nodes, id: i, v: f.v.ID, rng: rand.New(rand.NewPCG(3, uint64(i))), rec: rec, seen: map[int]blockState{}}
						clients = append(clients, c)
						f.wg.Go(func() { c.run(t, 3, f.stop) })
					}
					f.writer(t, x, 10, 300*time.Millisecond)
					f.writer(t, y, 11, 5*time.Millisecond)
					time.Sleep(20 * time.Second)
				}
				for i := 0; phase > 0 && i < 150; i++ {
					end := f.writer(t, []*node{x, y}[i%2], 10+int64(i%2), 200*time.Millisecond)
					time.Sleep(phase)
					end()
				}
				t.Logf("%d moves", moves)
				if phase == 0 && moves > 0 || moves > 8 {
					t.Errorf("%d moves", moves)
				}
				f.end()
				for _, c := range clients {
					for _, err := range c.failed {
						t.Errorf("client %d: %v", c.id, err)
					}
				}
			})
			if res, _ := porcupine.CheckOperationsVerbose(blockModel, rec.ops, time.Minute); res != porcupine.Ok {
				t.Errorf("the history of %d commands is not linearizable: %v", len(rec.ops), res)
			}
		})
	}
}

// Whoever dies while the volume follows: it is served, with everything, and it follows once that is possible.
func TestTheOneToFollowDiesAtEachStep(t *testing.T) {
	t.Parallel()
	for _, step := range []wire.HandStep{wire.HandPrepare, wire.HandReady, wire.HandTake} {
		for _, old := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d/old owner %v", step, old), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, x := newFollowing(t, 2, 3)
					y := f.other(x, 3-x.home.site)
					z := f.other(y, y.home.site)
					var seen atomic.Int32
					f.onHandOver = func(to *node, m *wire.HandOver, done bool) {
						if m.Step != step || done {
							return
						}
						n := seen.Add(1)
						if n == 1 && old {
							x.cut.Store(true)
						} else if n == 1 {
							to.cut.Store(true)
						}
					}
					// Both nodes of the site carry its writes, so whichever dies the writer goes on by the other.
					f.writer(t, y, 1, 10*time.Millisecond)
					f.writer(t, z, 2, 20*time.Millisecond)
					eventually(t, "the step", func() bool { return seen.Load() > 0 })
					time.Sleep(time.Second)
					x.cut.Store(false)
					y.cut.Store(false)
					z.cut.Store(false)
					eventually(t, "the volume follows", func() bool {
						o := f.owner(f.v.ID, nil)
						return o != nil && o.home.site == y.home.site
					})
					for b, by := range map[int64]*node{1: y, 2: z} {
						eventually(t, "what was written by "+string(by.name), func() bool {
							got, err := through(by, f.v, wire.OpRead, b*4096, nil, 4096)
							return err == nil && got[0] != 0
						})
					}
					f.end()
				})
			})
		}
	}
}
