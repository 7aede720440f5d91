package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// flip changes a byte of a store's replica of a segment, in its file.
func (c *cluster) flip(t *testing.T, s *seat, seg SegmentView, off int64) {
	t.Helper()
	f, err := s.mem.OpenReadWrite(s.live.Load().Path(seg.ID))
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// What one disk has changed silently is read from the other and made again; what both have is an error.
func TestCorruptBlocks(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for off := int64(0); off < 40*4096; off += 4096 {
		data := make([]byte, 4096)
		for i := range data {
			data[i] = byte(im.rng.Uint32())
		}
		if err := writeAt(im.o, off, data, false); err != nil {
			t.Fatal(err)
		}
		copy(im.want[off:], data)
	}
	var seg SegmentView
	eventually(t, "a sealed segment on both", func() bool {
		seg = im.o.Segments()[0]
		return seg.Sealed && len(seg.Holders) == 2 && seg.Holders[0].Stable && seg.Holders[1].Stable
	})
	bad := int64(seg.Bytes) - 100 // in the body of its last write
	c.flip(t, c.seats[0], seg, bad)
	im.check(t)
	if n := counter(im.o.env.Metrics.Corrupt); n != 1 {
		t.Errorf("%v corrupt reads counted", n)
	}
	eventually(t, "the replica is made again", func() bool { return counter(im.o.env.Metrics.Repaired) >= 1 })
	im.check(t)
	if n := counter(im.o.env.Metrics.Corrupt); n != 1 {
		t.Errorf("%v corrupt reads counted after the repair", n)
	}
	c.flip(t, c.seats[0], seg, bad)
	c.flip(t, c.seats[1], seg, bad)
	failed := 0
	for off := int64(0); off < 40*4096; off += 4096 {
		if _, err := readAt(im.o, off, 4096); err != nil {
			if !errors.Is(err, wire.ErrCorrupt) {
				t.Errorf("read at %d: %v", off, err)
			}
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d blocks can't be read, one is corrupt on both", failed)
	}
	if err := writeAt(im.o, 0, make([]byte, 4096), true); err != nil {
		t.Errorf("write after a corrupt read: %v", err)
	}
	im.o.Close()
}

// Full disks refuse writes with an error, flushes and reads go on, and so do writes once there is room.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		c := newCluster(t, 1, 2)
		v := c.volume(4<<20, 1, control.Replicated)
		im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
		for range 20 {
			im.change(t)
		}
		c.seats[1].mem.SetCapacity(1 << 20)
		if both {
			c.seats[0].mem.SetCapacity(1 << 20)
		}
		refused := 0
		for i := 0; i < 400 && refused < 3; i++ {
			off := int64(i%100) * 4096
			data := make([]byte, 4096)
			data[0] = byte(i)
			switch err := writeAt(im.o, off, data, false); {
			case err == nil:
				copy(im.want[off:], data)
			case errors.Is(err, wire.ErrNoSpace):
				refused++
			default:
				t.Fatalf("write %d: %v", i, err)
			}
		}
		if refused < 3 {
			t.Fatal("no write was refused")
		}
		im.check(t)
		// A record of the owner's own that finds no room is none of a flush's business.
		im.o.ask(func() {
			im.o.queuePorts([]journal.PortChange{{Op: journal.PortAttach, Port: journal.Port{Protocol: journal.PortISCSI, Name: "iqn.x"}, Group: 1, Session: 1}}, func(ident.Seq, error) {})
		})
		if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
			t.Errorf("flush on a full disk: %v", err)
		}
		// Nor is one that has its place in front of a write which is refused; what waits for that write waits no more.
		answers, bar := make(chan error, 2), make(chan bool, 1)
		im.o.ask(func() {
			im.o.full = false
			im.o.queuePorts([]journal.PortChange{{Op: journal.PortAttach, Port: journal.Port{Protocol: journal.PortISCSI, Name: "iqn.y"}, Group: 1, Session: 1}}, func(ident.Seq, error) {})
			for _, kind := range []wire.ForwardOp{wire.OpWrite, wire.OpFlush} {
				op := NewOp()
				op.Kind, op.Done = kind, func(_ *Op, err error) { answers <- err }
				if kind == wire.OpWrite {
					op.Length, op.count, op.Buf = 4096, 1, NewWriteBuf(0, 4096)
				}
				im.o.admit(op)
				im.o.barWait = append(im.o.barWait[:0], barWait{op.seq, bar}) // as Bar does
			}
			im.o.full = true
		})
		for _, want := range []error{wire.ErrNoSpace, nil} {
			select {
			case err := <-answers:
				if !errors.Is(err, want) {
					t.Errorf("answered with %v, not %v", err, want)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("a write that finds no room, or a flush behind it, is not answered")
			}
		}
		select {
		case <-bar:
		case <-time.After(20 * time.Second):
			t.Error("a refusal waits for a write that found no room")
		}
		cp := make(chan error, 1)
		go func() { cp <- im.o.Checkpoint() }()
		for _, s := range c.seats {
			s.mem.SetCapacity(1 << 30)
		}
		eventually(t, "writes go on", func() bool {
			err := writeAt(im.o, 0, make([]byte, 4096), false)
			clear(im.want[:4096])
			return err == nil
		})
		select {
		case <-cp: // whatever it says
		case <-time.After(time.Minute):
			t.Fatal("a checkpoint hangs")
		}
		for range 40 {
			im.change(t)
		}
		im.o.Close()
		im.o = c.own(v)
		im.check(t)
		im.o.Close()
	}
}

// A segment that was retired leaves a hole that a site, compared anew, has to get over.
func TestWatermarksGetOverRetiredSegments(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.limit.SegmentBytes = 64 << 10
	v := c.volume(256<<10, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	eventually(t, "segments are retired", func() bool {
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			data := make([]byte, 32<<10)
			data[5] = byte(im.rng.Uint32())
			if err := writeAt(im.o, off, data, false); err != nil {
				t.Fatal(err)
			}
			copy(im.want[off:], data)
		}
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		c.inStep(t, im.o) // written on without a pause, a slow machine's other site never has the newest checkpoint
		im.o.ask(im.o.dropSome)
		return counter(im.o.env.Metrics.Retired) > 3
	})
	for _, s := range c.seats[2:] {
		c.kill(s)
	}
	for range 20 {
		im.change(t)
	}
	for _, s := range c.seats[2:] {
		c.start(s)
	}
	im.o.Close()
	im.o = c.own(v)
	eventually(t, "site 2 is stable to the end", func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		return len(view.Sites) == 1 && view.Sites[0].StableWatermark == view.Commit.Seq
	})
	im.check(t)
	im.o.Close()
}

// A volume that is overwritten has checkpoints early enough that it needs little space, and its segments are written
// over the files of old ones; what it says stays true through kills and power cuts.
func TestOverwritingNeedsLittleSpace(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	c.limit.SegmentBytes = 64 << 10
	c.limit.CheckpointDead = 512 << 10
	v := c.volume(256<<10, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 2))}
	overwrite := func() {
		for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
			data := make([]byte, 32<<10)
			data[5], data[5000] = byte(im.rng.Uint32()), byte(im.rng.Uint32())
			if err := writeAt(im.o, off, data, false); err != nil {
				t.Fatal(err)
			}
			copy(im.want[off:], data)
		}
	}
	for range 2 {
		before := counter(im.o.env.Metrics.Retired)
		eventually(t, "segments are retired by checkpoints that come by themselves", func() bool {
			overwrite()
			time.Sleep(20 * time.Millisecond)
			return counter(im.o.env.Metrics.Checkpoints) >= 2 && counter(im.o.env.Metrics.Retired) > before+8
		})
		overwrite()
		im.check(t)
		im.o.Close()
		for _, s := range c.seats {
			c.kill(s)
			c.start(s)
		}
		im.o = c.own(v)
		im.check(t)
	}
	if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	im.o.Close()
	for _, s := range c.seats {
		c.powerCut(s)
	}
	for _, s := range c.seats {
		c.start(s)
	}
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// A refusal holds for commands that wait, and is answered after those that have their place.
func TestBarsHoldForWhatWaits(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	nexus := &wire.Nexus{Initiator: "iqn.a"}
	answers := make(chan error, 2)
	send := func(n uint64, off int64, data byte) {
		op := NewOp()
		op.Kind, op.Offset, op.Length, op.Buf = wire.OpWrite, off, 512, NewWriteBuf(off, 512)
		op.Buf.Bytes()[0] = data
		op.Nexus, op.Session, op.Stamp, op.Request = nexus, 1, o.Stamp(), wire.RequestID{Forwarder: 9, Number: n}
		op.Done = func(_ *Op, err error) { answers <- err }
		op.first, op.count = uint64(off)/4096, 1
		o.admit(op)
	}
	// Both in one turn of the loop: the second waits for the first's record.
	o.ask(func() {
		send(1, 0, 1)
		send(2, 512, 2)
		o.late.bar(&wire.Bar{Kind: wire.BarAbortTask, Forwarder: 9, First: 2, Last: 2}, o.tick())
		for _, op := range o.waiting {
			op.barred = false
		}
	})
	stale := 0
	for range 2 {
		if err := <-answers; errors.Is(err, wire.ErrStale) {
			stale++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	got, err := readAt(o, 0, 1024)
	if err != nil || got[0] != 1 || got[512] != 0 || stale != 1 {
		t.Errorf("%d refused, bytes %d %d, %v", stale, got[0], got[512], err)
	}
	for kind := range wire.BarKind(5) {
		if _, err := o.Bar(&wire.Bar{Kind: kind}); err != nil && !strings.Contains(err.Error(), "bad") {
			t.Errorf("bar %d: %v", kind, err)
		}
	}
	o.Close()
}

// A session that was not seen before brings nothing older than what another of its initiator got acknowledged.
func TestLateWriteOfAnUnseenSession(t *testing.T) {
	l := newLate()
	op := func(session, tick, first uint64) *Op {
		return &Op{Kind: wire.OpWrite, Nexus: &wire.Nexus{Initiator: "iqn.a"}, Session: session, Stamp: wire.Stamp{Tick: tick}, Offset: int64(first) * 4096, Length: 4096}
	}
	y := op(2, 1000, 5)
	if err := l.check(y, y.Stamp.Epoch, 1010); err != nil {
		t.Fatal(err)
	}
	l.arrived(y, 1020)
	if err := l.check(op(1, 1005, 5), y.Stamp.Epoch, 1030); err == nil {
		t.Error("a late write of an unseen session was let in")
	}
	if err := l.check(op(1, 1031, 5), y.Stamp.Epoch, 1040); err != nil {
		t.Errorf("a fresh one was refused: %v", err)
	}
	if err := l.check(op(2, 1005, 5), y.Stamp.Epoch, 1040); err != nil {
		t.Errorf("the session's own was refused: %v", err)
	}
}

// What one disk has changed silently before another site had it is shipped from the other disk, and made again. The site that
// was away used to be behind for ever, as the same bytes were sent to it again and again.
func TestRottenBytesAreNotShipped(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]func(SegmentView) int64{
		"body":   func(s SegmentView) int64 { return int64(s.Bytes) - 100 },
		"header": func(SegmentView) int64 { return journal.SegmentHeaderSize + 18 }, // the length of the first record
	} {
		for _, sealed := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " sealed=", sealed), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 2, 2)
				c.limit.SegmentBytes = 64 << 10
				v := c.volume(1<<20, 2, control.Replicated)
				im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 8))}
				c.inStep(t, im.o)
				c.killSite(2)
				for off := int64(0); off < 40*4096; off += 4096 {
					data := bytes.Repeat([]byte{byte(im.rng.Uint32()) | 1}, 4096)
					if err := writeAt(im.o, off, data, false); err != nil {
						t.Fatal(err)
					}
					copy(im.want[off:], data)
				}
				var seg SegmentView
				eventually(t, "a segment with two holders", func() bool {
					list := im.o.Segments()
					if seg = list[len(list)-1]; sealed {
						seg = list[1]
					}
					return seg.Sealed == sealed && len(seg.Holders) == 2 && (!sealed || seg.Holders[0].Stable && seg.Holders[1].Stable)
				})
				var source journal.Store
				im.o.ask(func() { source = im.o.readFrom(im.o.segs[seg.ID]) })
				c.flip(t, c.seat(source.ID()), seg, off(seg))
				c.startSite(2)
				c.inStep(t, im.o)
				if n := counter(im.o.env.Metrics.Corrupt); n == 0 {
					t.Error("nothing was found corrupt")
				}
				im.check(t)
				im.o.Close()
			})
		}
	}
}

// muteDrops is a store whose word that a replica is gone gets lost.
type muteDrops struct {
	journal.Store
	gone *sync.Map // of permitKey
}

func (s muteDrops) Drop(ctx context.Context, m *wire.Drop) (r wire.DropReply, err error) {
	if r, err = s.Store.Drop(ctx, m); err == nil {
		s.gone.Store(permitKey{m.Segment, s.ID()}, nil)
		return wire.DropReply{}, wire.Errorf(wire.CodeUnreached, "the answer of store %s got lost", s.ID())
	}
	return r, err
}

// A store of another site, which has the last replica of a retired segment by the owner's table, has let it go, and its word got
// lost. Nobody is to be shipped that segment any more: a site that was compared anew waited for it, and the store was not asked again
// before its site had the retirement. Where it was the store's own site it was shipped from that store into an empty replica there, and
// taken for corrupt.
func TestLostWordOfARetiredReplica(t *testing.T) {
	t.Parallel()
	for _, anew := range []ident.SiteID{2, 3} {
		t.Run(fmt.Sprint("site ", anew, " is compared anew"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, int(anew), 2)
			c.limit.SegmentBytes = 64 << 10
			c.limit.RepairGrace = time.Hour // nothing is made again
			var gone sync.Map
			c.wrap = func(s journal.Store) journal.Store {
				if c.Site(s.ID()) != 1 {
					return muteDrops{s, &gone}
				}
				return s
			}
			v := c.volume(128<<10, int(anew), control.Replicated)
			im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
			o := im.o
			for range 2 {
				for off := int64(0); off < v.SizeBytes; off += 32 << 10 {
					data := bytes.Repeat([]byte{byte(im.rng.Uint32()) | 1}, 32<<10)
					if err := writeAt(o, off, data, false); err != nil {
						t.Fatal(err)
					}
					copy(im.want[off:], data)
				}
			}
			first := o.Segments()[0].ID
			allSealed(t, o)
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			replicas := func() (list []holder) {
				o.ask(func() {
					o.dropSome()
					if s := o.segs[first]; s != nil {
						list = slices.Clone(s.holders)
					}
				})
				return list
			}
			eventually(t, "each other site's store has let the first segment go", func() bool {
				list := replicas()
				return len(list) == int(anew)-1 && !slices.ContainsFunc(list, func(h holder) bool {
					_, ok := gone.Load(permitKey{first, h.store})
					return !ok
				})
			})
			c.killSite(anew)
			for range 20 {
				im.change(t)
			}
			eventually(t, "the site is to be compared anew", func() bool {
				s := o.ships[anew-2]
				s.mu.Lock()
				defer s.mu.Unlock()
				return strings.HasPrefix(s.mu.state, "waiting")
			})
			c.startSite(anew)
			c.inStep(t, o)
			if list := replicas(); len(list) > 0 {
				t.Errorf("the first segment has replicas still: %+v", list)
			}
			if n := counter(o.env.Metrics.Corrupt); n > 0 {
				t.Errorf("%v replicas were taken for corrupt", n)
			}
			im.check(t)
			o.Close()
		})
	}
}
