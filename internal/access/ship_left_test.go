package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// received is a store behind a connection: it owns what it is sent, and does it whether or not anybody waits for the answer.
type received struct{ journal.Store }

func (s received) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return waitOnly(ctx, m, s.Store.OpenSegment)
}
func (s received) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	return waitOnly(ctx, m, s.Store.Sync)
}
func (s received) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return waitOnly(ctx, m, s.Store.Seal)
}

func waitOnly[M, R any](ctx context.Context, m M, f func(context.Context, M) (R, error)) (r R, err error) {
	done := make(chan struct{})
	var got R
	var failed error
	go func() {
		defer close(done)
		got, failed = f(context.Background(), m)
	}()
	select {
	case <-done:
		return got, failed
	case <-ctx.Done():
		return r, wire.Errorf(wire.CodeUnreached, "%v", ctx.Err())
	}
}

func (s received) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	c := *m
	c.Data = [][]byte{bytes.Join(m.Data, nil)}
	s.Store.Append(&c, done)
}

// boundOther has the stores of site 2 answered for by their node, as in package node.
func (c *cluster) boundOther(after time.Duration) {
	bounded := map[ident.StoreID]received{}
	for _, s := range c.seats {
		if s.site == 2 {
			s.far = nil
			b := core.NewBounded(s, after, c.log)
			bounded[s.id] = received{b}
			c.t.Cleanup(b.Close)
		}
	}
	c.wrap = func(s journal.Store) journal.Store {
		if b, ok := bounded[s.ID()]; ok {
			return b
		}
		return s
	}
}

// newerThan counts the segments of a store that are not in a list, and have records.
func (c *cluster) newerThan(s *seat, v control.VolumeSpec, old map[ident.SegmentID]wire.Replica) (n int) {
	for id, r := range c.replicas(s, v.ID) {
		if _, there := old[id]; !there && r.End > 0 && !id.IsCheckpoint() {
			n++
		}
	}
	return n
}

// shipsToBoth begins a volume at the first of two sites, and writes until both stores of the other one have something of it.
func (c *cluster) shipsToBoth(t *testing.T, ack bool) (v control.VolumeSpec, im *image) {
	t.Helper()
	c.limit.SegmentBytes, c.limit.RepairGrace, c.limit.KeepBothLocal = 64<<10, time.Hour, true
	if ack {
		v = c.ackVolume(2, 1, "")
	} else {
		v = c.volume(1<<20, 2, control.Replicated)
	}
	im = &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 9))}
	for c.newerThan(c.seats[2], v, nil) == 0 || c.newerThan(c.seats[3], v, nil) < 2 {
		im.change(t)
	}
	return v, im
}

// A disk of another site hangs while its node answers: shipping goes on to the other store of the site, and commands that wait for the site go
// on with it. The store is used again once the disk has gone on, and what it has that the other one was given as well does not stay.
func TestAHungDiskOfAnotherSiteIsLeft(t *testing.T) {
	for _, ack := range []bool{false, true} {
		for _, ops := range [][]vfs.Op{{vfs.OpWrite}, {vfs.OpSyncData}, {vfs.OpCreate, vfs.OpOpen}, everything} {
			t.Run(fmt.Sprintf("acknowledged %v, %v", ack, ops), func(t *testing.T) {
				t.Parallel()
				c := newFaultyCluster(t, 2, 2)
				c.boundOther(500 * time.Millisecond)
				v, im := c.shipsToBoth(t, ack)
				o, stays, hangs := im.o, c.seats[2], c.seats[3]
				c.inStep(t, o)
				release := hangs.hangs(t, ops...)
				old := c.replicas(stays, v.ID)
				for c.newerThan(stays, v, old) < 4 {
					im.change(t) // with ack each waits for the site
				}
				im.check(t)
				release()
				had := c.replicas(hangs, v.ID)
				eventually(t, "the store is used again", func() bool {
					im.change(t)
					return c.newerThan(hangs, v, had) > 0
				})
				o.ask(o.w.CloseIdle)
				c.inStep(t, o)
				im.check(t)
				eventually(t, "nothing that counts for nothing stays at the site", func() bool {
					list := map[ident.SegmentID]SegmentView{}
					for _, x := range o.Segments() {
						list[x.ID] = x
					}
					for _, s := range []*seat{stays, hangs} {
						for id, r := range c.replicas(s, v.ID) {
							x, ours := list[id]
							if id.IsCheckpoint() || ours && !x.Sealed {
								continue
							}
							counts := slices.ContainsFunc(x.Holders, func(h HolderView) bool { return h.Store == s.id && h.Stable && !h.Bad })
							if !counts || r.State != wire.ReplicaSealed {
								return false
							}
						}
					}
					return true
				})
				if n := counter(o.env.Metrics.ShipMismatch); n > 0 {
					t.Errorf("%v copies did not continue ours", n)
				}
				im.check(t)
				o.Close()
			})
		}
	}
}

// questioned is a store that answers the question whether it takes anything in its own way.
type questioned struct {
	journal.Store
	takes func(context.Context) error
}

func (s questioned) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	if len(m.Segments) == 0 {
		return wire.SyncReply{}, s.takes(ctx)
	}
	return s.Store.Sync(ctx, m)
}

// A link broke, or was full, and nobody knows of a disk that hangs: what is not answered is no word of the store. It is
// used at once, and what it has is not shipped to another one. One that has said so itself is left, and is asked again.
func TestOnlyAStoresOwnWordHasItLeft(t *testing.T) {
	for _, says := range []bool{false, true} {
		t.Run(fmt.Sprint(says), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2, 2)
			c.limit.SyncTimeout = 200 * time.Millisecond
			var hangs, questions atomic.Int32
			hangs.Store(1)
			c.wrap = func(s journal.Store) journal.Store {
				if c.Site(s.ID()) != 2 {
					return s
				}
				return questioned{s, func(ctx context.Context) error {
					questions.Add(1)
					switch {
					case hangs.Load() == 0:
						return nil
					case says:
						return wire.Errorf(wire.CodeUnreached, "its disk hangs")
					}
					<-ctx.Done() // the question is behind minutes of data
					return wire.Errorf(wire.CodeUnreached, "%v", ctx.Err())
				}}
			}
			v := c.volume(1<<20, 2, control.Replicated)
			o := c.own(v)
			defer o.Close()
			s := &siteShip{site: 2}
			id := c.seats[2].id
			s.suspect(id)
			_, stores, err := o.siteInventory(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if used := slices.ContainsFunc(stores, func(st journal.Store) bool { return st.ID() == id }); used == says || (s.doubted(id) == doubtLeft) != says {
				t.Fatalf("used: %v, left: %v", used, s.doubted(id) == doubtLeft)
			}
			if !says {
				return
			}
			n := questions.Load()
			if _, stores, err = o.siteInventory(t.Context(), s); err != nil || len(stores) != 1 || questions.Load() != n {
				t.Errorf("a session waits for a store that was left: %d stores, %v", len(stores), err)
			}
			s.leave(c.seats[3].id) // nobody is left who could take anything
			if _, _, err := o.siteInventory(t.Context(), s); err == nil || !strings.Contains(err.Error(), "its disk hangs") || questions.Load() == n {
				t.Errorf("all were left: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 8)
			done := make(chan struct{})
			go func() { defer close(done); o.watchLeft(ctx, s, failed) }()
			hangs.Store(0)
			if err := <-failed; !errors.Is(err, errSiteChanged) {
				t.Error(err)
			}
			cancel()
			<-done
			if s.doubted(c.seats[2].id) != 0 && s.doubted(c.seats[3].id) != 0 {
				t.Error("a store that answers again is left")
			}
		})
	}
}
