package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

func copyOpOf(from, to, n int64) *Op {
	op := NewOp()
	op.Kind, op.Offset, op.Length, op.Unit = wire.OpCopy, to, n, (&CopyCall{From: from}).Append(nil)
	return op
}

// copyAt copies by reference.
func copyAt(o *Owner, from, to, n int64) error { return do(o, copyOpOf(from, to, n)) }

// liveBlocks sums what the map counts in the segments of the history.
func liveBlocks(o *Owner) (sum uint64) {
	o.ask(func() {
		for _, s := range o.m.Segments() {
			if !s.ID.IsCheckpoint() {
				sum += uint64(s.Live)
			}
		}
	})
	return sum
}

// A copy reads as what was there, whatever becomes of its source, and costs a record of a few bytes.
func TestCopyWithinAVolumeIsByReference(t *testing.T) {
	c := newCluster(t, 2, 2)
	v := c.volume(4<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(11, 12))}
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(im.rng.Uint32())
	}
	put := func(off int64, d []byte) {
		t.Helper()
		copy(im.want[off:], d)
		for ; len(d) > 0; off, d = off+(32<<10), d[32<<10:] { // segments are small here
			if err := writeAt(im.o, off, d[:32<<10], false); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(0, data)
	written := func() (n uint64) { im.o.ask(func() { n = im.o.written }); return n }
	before := written()
	move := func(from, to, n int64) {
		t.Helper()
		if err := copyAt(im.o, from, to, n); err != nil {
			t.Fatal(err)
		}
		copy(im.want[to:to+n], im.want[from:from+n])
	}
	move(0, 1<<20, 1<<20)             // to what was never written
	move(0, 8192, 1<<20)              // onto itself, forwards
	move(12288, 4096, 1<<20)          // and backwards
	move(2<<20, 1<<20+65536, 128<<10) // zeroes
	move(1<<20, 2<<20, 1<<20)         // a copy of the copy
	if n := written() - before; n > 2048 {
		t.Errorf("copies of 4 MiB have written %d bytes", n)
	}
	if n := counter(im.o.env.Metrics.Referred); n != 4<<20+128<<10 {
		t.Errorf("%g bytes are counted as copied", n)
	}
	im.check(t)
	if mapped, live := im.o.View().Mapped, liveBlocks(im.o); mapped > live {
		t.Errorf("%d blocks mapped, %d alive", mapped, live)
	}
	// The source is overwritten, and everything that can go goes: what the copies refer to stays, here and at the other site.
	for range 4 {
		for i := range data {
			data[i] ^= 0x5a
		}
		put(0, data)
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		c.inStep(t, im.o)
		im.o.ask(im.o.retireSome)
		im.check(t)
	}
	move(2<<20, 0, 256<<10) // the other site replays these
	put(2<<20, data[:64<<10])
	move(1<<20, 3<<20, 512<<10)
	c.inStep(t, im.o)
	c.killSite(1)
	im.o.Close()
	c.at(2)
	c.force(t, v, 1)
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// What can't be done by reference is said, and nothing is done.
func TestCopiesThatAreNotByReference(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	defer o.Close()
	if err := writeAt(o, 0, bytes.Repeat([]byte{7}, 65536), false); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		from, to, n int64
		err         error
	}{
		{512, 8192, 4096, wire.ErrVersion}, {0, 512, 4096, wire.ErrVersion}, {0, 8192, 512, wire.ErrVersion},
		{1 << 20, 0, 4096, wire.ErrBadRequest}, {1<<20 - 4096, 0, 8192, wire.ErrBadRequest}, {0, 1<<20 - 4096, 8192, wire.ErrBadRequest},
		{0, 4096, 0, wire.ErrBadRequest}, {0, 0, CopyMax + 4096, wire.ErrBadRequest}, {-4096, 0, 4096, wire.ErrBadRequest},
	} {
		if err := copyAt(o, x.from, x.to, x.n); !errors.Is(err, x.err) {
			t.Errorf("from %d to %d, %d bytes: %v, want %v", x.from, x.to, x.n, err, x.err)
		}
	}
	var seq, after uint64
	o.ask(func() { seq = uint64(o.w.At().Seq) })
	// A token that was never given out, and one whose data have changed.
	op := copyOpOf(0, 131072, 4096)
	op.Unit = (&CopyCall{From: 0, HasToken: true, Token: [16]byte{9}}).Append(nil)
	if err := do(o, op); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("with an unknown token: %v", err)
	}
	o.ask(func() { after = uint64(o.w.At().Seq) })
	if seq != after {
		t.Errorf("%d records were made", after-seq)
	}
}

// A token that is good when the copy gets its place counts; one that the copy itself ends does not the next time.
func TestCopyByToken(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	defer o.Close()
	if err := writeAt(o, 0, bytes.Repeat([]byte{7}, 65536), false); err != nil {
		t.Fatal(err)
	}
	op := NewOp()
	op.Kind, op.Unit = wire.OpToken, (&TokenCall{What: TokenCreate, Seconds: 60, Ranges: []TokenRange{{8192, 8192}}}).Append(nil)
	if err := do(o, op); err != nil {
		t.Fatal(err)
	}
	x, err := DecodeTokenCall(op.Data[0])
	if err != nil {
		t.Fatal(err)
	}
	by := func(from, to, n int64) error {
		op := copyOpOf(from, to, n)
		op.Unit = (&CopyCall{From: from, HasToken: true, Token: x.ID}).Append(nil)
		return do(o, op)
	}
	if err := by(8192, 262144, 8192); err != nil {
		t.Error(err)
	}
	if err := by(4096, 262144, 8192); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("beyond what the token stands for: %v", err)
	}
	if err := by(8192, 12288, 4096); err != nil { // into its own source
		t.Error(err)
	}
	if err := by(8192, 524288, 4096); !errors.Is(err, wire.ErrMismatch) {
		t.Errorf("by a token whose data were overwritten: %v", err)
	}
}

// While there are nodes that don't know them, no copy records are made (control.LevelCopies).
func TestNoCopyRecordsForOlderNodes(t *testing.T) {
	c := newCluster(t, 1, 2)
	node := control.Node{Name: "old", Site: 1, HostID: "h", Roles: []control.Role{control.RoleAccess}, Version: "1"}
	node.Addrs.Portals = []control.Portal{{Addr: netip.MustParseAddrPort("127.0.0.9:3260")}}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	c.mem.Downgrade("old")
	eventually(t, "the node is known to be older", func() bool { return c.ctl.Level() == 1 })
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	defer o.Close()
	if err := copyAt(o, 0, 65536, 65536); !errors.Is(err, wire.ErrVersion) {
		t.Errorf("with an older node there: %v", err)
	}
	if _, err := c.ctl.RegisterNode(t.Context(), node); err != nil { // it was upgraded
		t.Fatal(err)
	}
	eventually(t, "the node is known to be upgraded", func() bool { return c.ctl.Level() == control.Level })
	if err := copyAt(o, 0, 65536, 65536); err != nil {
		t.Errorf("with all upgraded: %v", err)
	}
}

// heldReads is a store whose reads of raw bytes wait once hold is set.
type heldReads struct {
	journal.Store
	hold  *atomic.Bool
	until <-chan struct{}
	asked chan<- struct{}
}

func (h heldReads) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	if h.hold.Load() {
		select {
		case h.asked <- struct{}{}:
		default:
		}
		<-h.until
	}
	return h.Store.ReadRaw(ctx, m)
}

// While a copy waits for a leaf of the map, a reset refuses it (R9), the same request sent again is not a second copy, and
// an owner that ends answers it.
func TestACopyThatWaitsForALeaf(t *testing.T) {
	for _, what := range []string{"reset", "again", "stop"} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t, 1, 2)
			c.limit.MapBudgetBytes = 1
			var hold atomic.Bool
			until, asked := make(chan struct{}), make(chan struct{}, 1)
			c.wrap = func(s journal.Store) journal.Store { return heldReads{s, &hold, until, asked} }
			v := c.volume(16<<20, 1, control.Replicated)
			o := c.own(v)
			defer o.Close()
			if err := writeAt(o, 0, bytes.Repeat([]byte{7}, 8192), false); err != nil {
				t.Fatal(err)
			}
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			o.ask(func() {
				o.m.Evict(1)
				o.m.Evict(1)
				if _, need := o.m.MayCopy(0, 1); need == volume.NoLeaf {
					t.Error("the leaf is in memory")
				}
			})
			hold.Store(true)
			nexus := &wire.Nexus{Initiator: "iqn.a", Digest: [16]byte{1}}
			request := func() *Op {
				op := copyOpOf(0, 8<<20, 8192)
				op.Nexus, op.Session, op.Stamp = nexus, 1, o.Stamp()
				op.Forward, op.Request = true, wire.RequestID{Forwarder: 5, Number: 1}
				return op
			}
			var before uint64
			o.ask(func() { before = uint64(o.w.At().Seq) })
			first := send(o, request())
			select {
			case <-asked:
			case err := <-first:
				t.Fatalf("it did not wait: %v", err)
			}
			var second chan error
			switch what {
			case "reset":
				if _, err := o.Bar(&wire.Bar{Kind: wire.BarLUNReset, Nexus: *nexus}); err != nil {
					t.Fatal(err)
				}
				o.ask(func() { before = uint64(o.w.At().Seq) }) // the reset is a record, too
			case "again":
				second = send(o, request())
			case "stop":
				o.call(func() { o.stop(errClosed) })
			}
			close(until)
			err := <-first
			var made uint64
			o.ask(func() { made = uint64(o.w.At().Seq) - before })
			switch {
			case what == "reset" && (!errors.Is(err, wire.ErrStale) || made != 0):
				t.Errorf("after a reset: %v, %d records", err, made)
			case what == "stop" && !errors.Is(err, wire.ErrNotOwner):
				t.Errorf("of an owner that ended: %v", err)
			case what == "again":
				if again := <-second; err != nil || again != nil || made != 1 {
					t.Errorf("sent twice: %v and %v, %d records", err, again, made)
				}
			}
		})
	}
}

// numberedCopies is a history of writes and copies of single blocks; what is there must be the state after one of them.
type numberedCopies struct {
	rng   *rand.Rand
	steps []struct{ block, from, value int } // from -1: a write
}

const copyBlocksInTest = 96

func (n *numberedCopies) step(o *Owner) error {
	block, from, value := n.rng.IntN(copyBlocksInTest), -1, len(n.steps)+1
	count := 1
	if n.rng.IntN(2) == 0 {
		count = 1 + n.rng.IntN(6)
		block, from = n.rng.IntN(copyBlocksInTest-count+1), n.rng.IntN(copyBlocksInTest-count+1)
	}
	var err error
	if from < 0 {
		err = writeAt(o, int64(block)*4096, bytes.Repeat([]byte{byte(value), byte(value >> 8), byte(value >> 16), 1}, 1024), false)
	} else {
		value = count
		err = copyAt(o, int64(from)*4096, int64(block)*4096, int64(count)*4096)
	}
	n.steps = append(n.steps, struct{ block, from, value int }{block, from, value})
	return err
}

// check finds the step after which the state is as it is, at least the given one, and goes on from there.
func (n *numberedCopies) check(t *testing.T, o *Owner, least int, what string) {
	t.Helper()
	got := make([]int, copyBlocksInTest)
	d, err := readAt(o, 0, copyBlocksInTest*4096)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for b := range got {
		x := d[b*4096:][:4096]
		for i := 4; i < len(x); i += 4 {
			if !bytes.Equal(x[i:i+4], x[:4]) {
				t.Fatalf("%s: block %d is torn", what, b)
			}
		}
		got[b] = int(x[0]) | int(x[1])<<8 | int(x[2])<<16
	}
	state := make([]int, copyBlocksInTest)
	last := -1
	if slices.Equal(state, got) {
		last = 0
	}
	for i, s := range n.steps {
		if s.from < 0 {
			state[s.block] = s.value
		} else {
			copy(state[s.block:s.block+s.value], slices.Clone(state[s.from:s.from+s.value]))
		}
		if slices.Equal(state, got) {
			last = i + 1
		}
	}
	if last < least {
		t.Fatalf("%s: what is there is the state after step %d of %d (-1: of none), step %d must be there", what, last, len(n.steps), least)
	}
	n.steps = n.steps[:last]
}

// Owners and stores die at random moments, all of a site by the loss of power, with copies in the last records, before
// and behind checkpoints, and with leaves of the map that are not in memory: what is there is the state after one of the
// steps, all that were flushed among them.
func TestCopiesSurviveTakeoversAndPowerCuts(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 31))
			c := newCluster(t, 1, 2+int(seed%2))
			c.limit.SegmentBytes = 96 << 10
			c.limit.MapBudgetBytes = 1
			v := c.volume(4<<20, 1, control.Replicated)
			n := &numberedCopies{rng: rng}
			o := c.own(v)
			for round := range 8 {
				what := fmt.Sprintf("seed %d round %d", seed, round)
				flushed := 0
				for range 30 + rng.IntN(60) {
					if err := n.step(o); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					switch rng.IntN(25) {
					case 0:
						if err := simple(o, wire.OpFlush, 0, 0); err != nil {
							t.Fatal(err)
						}
						flushed = len(n.steps)
					case 1:
						if err := o.Checkpoint(); err != nil {
							t.Fatal(err)
						}
						flushed = len(n.steps)
					case 2:
						o.ask(o.retireSome)
						o.ask(o.everySecond)
					}
				}
				least := len(n.steps)
				old := o
				switch rng.IntN(3) {
				case 0: // it dies on the spot: it is fenced, not asked
				case 1:
					old.Close()
				case 2: // all stores lose their power at the same moment
					c.cutSite(1)
					old.Close()
					c.startSite(1)
					least = flushed
				}
				o = c.own(v)
				old.Close()
				n.check(t, o, least, what)
			}
			o.Close()
		})
	}
}

func FuzzDecodeCopyCall(f *testing.F) {
	f.Add((&CopyCall{From: 4096}).Append(nil))
	f.Add((&CopyCall{From: 1 << 40, HasToken: true, Token: [16]byte{1}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodeCopyCall(b); err == nil && !bytes.Equal(c.Append(nil), b) {
			t.Error("decoded and encoded again, the bytes differ")
		}
	})
}
