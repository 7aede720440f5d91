package access

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// localHolders counts the sealed segments of the history that end at or before a record by the local stores that have
// them and count (R13); each must be at both other sites.
func localHolders(c *cluster, o *Owner, at ident.Seq) (one map[*seat]int, more int) {
	one = map[*seat]int{}
	for _, s := range o.Segments() {
		if !s.Sealed || s.Last > at || s.ID.IsCheckpoint() {
			continue
		}
		var local []*seat
		remote := map[*seat]bool{}
		for _, h := range s.Holders {
			if x := c.seat(h.Store); x.site == 1 {
				local = append(local, x)
			} else {
				remote[x] = true
			}
		}
		if len(local) == 1 && len(remote) == 2 {
			one[local[0]]++
		} else {
			more++
		}
	}
	return one, more
}

// Once one of the two local replicas has gone (R5), all can be read from the other or from other sites: by the owner
// that gave the permits and by those after it, with either local store dead, killed or without power.
func TestAfterDropsEverythingStaysReadable(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, 2)
	c.limit.SegmentBytes = 128 << 10
	v := c.volume(4<<20, 3, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(21, 5))}
	next := func() {
		t.Helper()
		old := im.o
		im.o = c.own(v)
		old.Close()
	}
	for round := range 3 {
		// Each store has the only replica of some.
		home := c.seats[round%2]
		im.o.Close()
		c.local = home.id
		im.o = c.own(v)
		for range 200 {
			im.change(t)
		}
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		covered := im.o.cpSeq()
		eventually(t, "sealed segments have one local replica, some of them at the owner's node", func() bool {
			im.o.call(im.o.dropSome)
			one, more := localHolders(c, im.o, covered)
			return more == 0 && one[home] > 0
		})
		im.check(t)
		// The successor knows what went, from the records, and the rest from the stores.
		next()
		eventually(t, "the successor knows one local holder of each", func() bool {
			im.o.call(im.o.dropSome) // of what was being copied again
			_, more := localHolders(c, im.o, covered)
			return more == 0
		})
		im.check(t)
		for i, s := range c.seats[:2] {
			// A store dies: what had its one local replica there is read from other sites, by this owner ...
			if (round+i)%2 == 0 {
				c.kill(s)
			} else {
				c.powerCut(s)
			}
			im.check(t)
			for range 10 {
				im.change(t)
			}
			im.check(t)
			// ... and by one that has never seen the store.
			next()
			im.check(t)
			c.start(s)
			eventually(t, "what was written meanwhile is on two stores", func() bool {
				im.o.ask(im.o.everySecond)
				return im.o.View().Degraded == 0
			})
			im.check(t)
		}
		// The stores keep what they hold; a permit that was given before is not forgotten by a restart of everything.
		for _, s := range c.seats {
			c.kill(s)
		}
		im.o.Close()
		for _, s := range c.seats {
			c.start(s)
		}
		im.o = c.own(v)
		im.check(t)
	}
	im.o.Close()
}

// The owner that gave the permits dies with the store that has the only local replica of what it dropped: the next one
// finds the history and its map without them, reads the bytes at other sites, and makes local replicas again; with all
// other sites away it waits for what it can't do without, and goes on as soon as one is back.
func TestTheOwnersNodeDiesAfterDrops(t *testing.T) {
	t.Parallel()
	for _, far := range []bool{true, false} {
		c := newCluster(t, 3, 2)
		c.limit.SegmentBytes = 128 << 10
		v := c.volume(4<<20, 3, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(22, 6))}
		for range 2 {
			for range 150 {
				im.change(t)
			}
			if err := im.o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		covered := im.o.cpSeq()
		eventually(t, "sealed segments have one local replica", func() bool {
			im.o.call(im.o.dropSome)
			one, more := localHolders(c, im.o, covered)
			return more == 0 && one[c.seats[0]] > 0
		})
		// Checkpoints stay at both; a store that was away while one was made has none of it.
		eventually(t, "the second local store has no checkpoint, and other sites have", func() bool {
			im.o.call(im.o.dropSome)
			there, checkpoints := true, []journal.Permit(nil)
			im.o.ask(func() {
				for id, s := range im.o.segs {
					if !id.IsCheckpoint() {
						continue
					}
					h := s.holder(c.seats[1].id)
					if h != nil || len(s.good()) < 3 {
						there = false
					}
					if h != nil && h.stable && !h.going {
						checkpoints = append(checkpoints, journal.Permit{Segment: id, Store: h.store, Made: h.made, Remain: []ident.StoreID{c.seats[0].id}})
					}
				}
				im.o.permit(checkpoints)
			})
			if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
				t.Fatal(err)
			}
			return there
		})
		for range 20 {
			im.change(t)
		}
		old := im.o
		c.kill(c.seats[0])
		old.Close()
		c.local = c.seats[1].id
		if !far {
			// Only the third member of the ensemble, which the fence needs, can be reached; then the rest of the sites.
			e, _ := old.state.Newest()
			for _, s := range c.seats[2:] {
				if s.id != e.Stores[2] {
					c.kill(s)
				}
			}
			time.AfterFunc(2*time.Second, func() { // longer than a round of questions
				for _, s := range c.seats[2:] {
					if s.live.Load() == nil {
						c.start(s)
					}
				}
			})
		}
		im.o = c.own(v)
		if !im.o.proven {
			t.Error("the takeover is not proven though all but one answered")
		}
		eventually(t, "every block has a replica that can be reached", func() bool {
			left := 0
			im.o.ask(func() { im.o.awaited(); left = im.o.repair.awaited })
			return left == 0
		})
		im.check(t)
		for range 20 {
			im.change(t)
		}
		im.check(t)
		c.start(c.seats[0])
		eventually(t, "nothing lacks a copy", func() bool {
			im.o.ask(im.o.everySecond)
			return im.o.View().Degraded == 0
		})
		im.check(t)
		im.o.Close()
	}
}

// A read that goes piece by piece finds that no store has a piece any more: its blocks were rewritten, and the segment retired
// and dropped, since they were looked up. It reads what is there now; it used to end with an error.
func TestReadOfWhatWasRetiredMeanwhile(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(256<<10, 1, control.Replicated)
	o := c.own(v)
	write := func(b byte) {
		t.Helper()
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			if err := writeAt(o, off, bytes.Repeat([]byte{b}, 32<<10), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1)
	var stale []volume.Piece
	o.ask(func() { stale, _ = o.m.Lookup(0, 2, nil) })
	b := byte(1)
	eventually(t, "the segment is nowhere", func() bool {
		b++
		write(b)
		if err := o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		gone := false
		o.ask(func() { o.dropSome(); gone = o.segs[stale[0].Segment] == nil })
		return gone
	})
	op := NewOp()
	op.Kind, op.Length, op.count = wire.OpRead, 8192, 2
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	o.call(func() {
		op.pieces = stale
		o.readSlow(op)
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if data := slices.Concat(op.Data...); !bytes.Equal(data, bytes.Repeat([]byte{b}, 8192)) {
		t.Errorf("%d bytes that begin with %d, want %d", len(data), data[0], b)
	}
	op.Release()
	// Where it is still what the map says, it is an error.
	op = NewOp()
	op.Kind, op.Length, op.count = wire.OpRead, 8192, 2
	op.Done = func(_ *Op, err error) { done <- err }
	for _, s := range c.seats {
		c.kill(s)
	}
	o.call(func() {
		op.pieces, _ = o.m.Lookup(0, 2, op.pieces[:0])
		o.readSlow(op)
	})
	if err := <-done; err == nil {
		t.Error("read without any store")
	}
	o.Close()
}
