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

	dto "github.com/prometheus/client_model/go"

	"dozo/internal/control"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// numbered is a volume whose writes are numbered: write i puts i into block i%blocks. So the state after any
// write is known, and what is read can be held to be such a state.
type numbered struct {
	blocks  int
	mu      sync.Mutex
	next    int
	acked   int // all up to here were acknowledged
	done    map[int]bool
	flushed int // all up to here were flushed
}

func (n *numbered) write(o *Owner) error {
	n.mu.Lock()
	n.next++
	i := n.next
	n.mu.Unlock()
	err := writeAt(o, int64(i%n.blocks)*4096, bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}, 1024), false)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.done[i] = true
	for n.done[n.acked+1] {
		delete(n.done, n.acked+1)
		n.acked++
	}
	n.mu.Unlock()
	return nil
}

func (n *numbered) flush(o *Owner) error {
	n.mu.Lock()
	at := n.acked
	n.mu.Unlock()
	err := simple(o, wire.OpFlush, 0, 0)
	if err == nil {
		n.mu.Lock()
		n.flushed = max(n.flushed, at)
		n.mu.Unlock()
	}
	return err
}

// check reads everything, holds it to be the state after some write that is not older than least, and goes on
// from there. Writes are made by one writer at a time in the runs that are checked for being a prefix.
func (n *numbered) check(t *testing.T, o *Owner, least int, what string) {
	t.Helper()
	last := 0
	got := make([]int, n.blocks)
	for b := range got {
		d, err := readAt(o, int64(b)*4096, 4096)
		if err != nil {
			t.Fatalf("%s: read: %v", what, err)
		}
		for i := 4; i < len(d); i += 4 {
			if !bytes.Equal(d[i:i+4], d[:4]) {
				t.Fatalf("%s: block %d is torn", what, b)
			}
		}
		got[b] = int(d[0]) | int(d[1])<<8 | int(d[2])<<16
		last = max(last, got[b])
	}
	if last < least {
		t.Fatalf("%s: write %d must be there, the newest is %d", what, least, last)
	}
	want := make([]int, n.blocks)
	for i := 1; i <= last; i++ {
		want[i%n.blocks] = i
	}
	for b := range got {
		if got[b] != want[b] {
			t.Fatalf("%s: block %d has write %d, the state after write %d has %d", what, b, got[b], last, want[b])
		}
	}
	n.next, n.acked, n.flushed = last, last, min(n.flushed, last)
	clear(n.done)
}

// Stores and owners die at random moments, with writes under way.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	seeds := uint64(8)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 77))
			sites, nodes := 1+int(seed%3), 2+rng.IntN(2)
			c := newCluster(t, sites, nodes)
			c.limit.SegmentBytes = 64 << 10
			c.limit.UncertainWait = time.Second
			v := c.volume(1<<20, sites, control.Replicated)
			n := &numbered{blocks: 64, done: map[int]bool{}}
			o := c.own(v)
			for round := range 8 {
				what := fmt.Sprintf("seed %d round %d", seed, round)
				var wg sync.WaitGroup
				stop := make(chan struct{})
				own := o // the writer stays with it
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						if n.write(own) != nil {
							return
						}
						if i%17 == 16 && n.flush(own) != nil {
							return
						}
					}
				})
				time.Sleep(time.Duration(5+rng.IntN(30)) * time.Millisecond)
				if rng.IntN(3) == 0 {
					if err := o.Checkpoint(); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
				}
				s := c.seats[rng.IntN(nodes)]
				least := 0
				fault := rng.IntN(4)
				switch fault {
				case 0: // one store dies and comes back
					c.kill(s)
					time.Sleep(5 * time.Millisecond)
					c.start(s)
					close(stop)
					old := o
					o = c.own(v)
					old.Close()
					wg.Wait()
					least = n.acked
				case 1: // one loses its power
					c.powerCut(s)
					c.start(s)
					close(stop)
					old := o
					o = c.own(v)
					old.Close()
					wg.Wait()
					least = n.acked
				case 2: // everything is killed
					for _, s := range c.seats {
						c.kill(s)
					}
					close(stop)
					o.Close()
					wg.Wait()
					for _, s := range c.seats {
						c.start(s)
					}
					least = n.acked
					o = c.own(v)
				case 3: // all lose their power
					for _, s := range c.seats {
						c.powerCut(s)
					}
					close(stop)
					o.Close()
					wg.Wait()
					for _, s := range c.seats {
						c.start(s)
					}
					least = n.flushed
					o = c.own(v)
				}
				n.check(t, o, least, what)
			}
			if sites > 1 {
				defer func() {
					if t.Failed() {
						t.Logf("commit %d, sites %+v, segments %+v", o.View().Commit, o.View().Sites, o.Segments())
					}
				}()
				eventually(t, "the other sites have everything", func() bool {
					o.ask(o.publish)
					for _, s := range o.View().Sites {
						if s.Watermark != o.View().Commit {
							return false
						}
					}
					return len(o.View().Sites) == sites-1
				})
			}
			o.Close()
		})
	}
}

// The announcement of the newest checkpoint may lie above the commit point that restarted stores know, and the
// checkpoint before it may be gone.
func TestAnnouncementAboveTheCommitPointThatIsKnown(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range 3 {
		for range 20 {
			im.change(t)
		}
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	retired := func() (n int) {
		im.o.ask(func() { n = len(im.o.cp.retired) })
		return n
	}
	im.o.ask(im.o.dropSome)
	if retired() == 0 {
		eventually(t, "a dead checkpoint is retired", func() bool { im.o.ask(im.o.dropSome); return retired() > 0 })
	}
	if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dropped", func() bool { im.o.ask(im.o.dropSome); return retired() == 0 })
	// Killed, the stores forget the commit point of the last seconds.
	for _, s := range c.seats {
		c.kill(s)
	}
	im.o.Close()
	for _, s := range c.seats {
		c.start(s)
	}
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// The first checkpoint of all, announced above the commit point that restarted stores know: what it covers is retired and
// gone, and there is none before it that the history could begin with.
func TestTheFirstAnnouncementIsAboveTheCommitPointThatIsKnown(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	fill := func(b byte) {
		for off := int64(0); off < 64<<10; off += 4096 {
			if err := writeAt(o, off, bytes.Repeat([]byte{b}, 4096), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(1)
	o.ask(o.w.CloseIdle)
	first := o.Segments()[0].ID
	fill(2) // nothing of the first segment lives
	if err := o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first segment is gone from both stores", func() bool {
		if err := simple(o, wire.OpFlush, 0, 0); err != nil {
			t.Fatal(err)
		}
		o.ask(o.dropSome)
		return !slices.ContainsFunc(o.Segments(), func(s SegmentView) bool { return s.ID == first })
	})
	for _, s := range c.seats {
		c.powerCut(s)
	}
	o.Close()
	for _, s := range c.seats {
		c.start(s)
	}
	o = c.own(v)
	defer o.Close()
	for off := int64(0); off < 64<<10; off += 4096 {
		if got, err := readAt(o, off, 4096); err != nil || got[0] != 2 {
			t.Fatalf("at %d: %v, %d", off, err, got[:1])
		}
	}
}

func forwarded(o *Owner, request uint64, off int64, data []byte) error {
	op := NewOp()
	op.Kind, op.Offset, op.Length = wire.OpWrite, off, int64(len(data))
	op.Buf = NewWriteBuf(off, len(data))
	copy(op.Buf.Bytes(), data)
	op.Forward, op.Request = true, wire.RequestID{Forwarder: 7, Number: request}
	return do(o, op)
}

// A request that was applied is answered, not applied again, by every later owner (R9).
func TestAResentRequestIsNotAppliedTwice(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	o := c.own(v)
	x, y := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	if err := forwarded(o, 1, 0, x); err != nil {
		t.Fatal(err)
	}
	z := NewOp()
	z.Kind, z.Offset, z.Length, z.Forward, z.Request = wire.OpZero, 8192+512, 8192, true, wire.RequestID{Forwarder: 7, Number: 2}
	if err := do(o, z); err != nil {
		t.Fatal(err)
	}
	copied := func() *Op {
		op := copyOpOf(65536, 0, 20480) // zeroes
		op.Forward, op.Request = true, wire.RequestID{Forwarder: 7, Number: 3}
		return op
	}
	if err := do(o, copied()); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 20480; off += 4096 {
		if err := writeAt(o, off, y, false); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 4 {
		if round == 2 {
			if err := o.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		// So that the records are below the commit point which the next owner hears.
		o.ask(func() { o.w.Tick(time.Duration(o.env.Clock()) + time.Hour) })
		o.Close()
		o = c.own(v)
		if err := forwarded(o, 1, 0, x); err != nil {
			t.Fatal(err)
		}
		z := NewOp()
		z.Kind, z.Offset, z.Length, z.Forward, z.Request = wire.OpZero, 8192+512, 8192, true, wire.RequestID{Forwarder: 7, Number: 2}
		if err := do(o, z); err != nil {
			t.Fatal(err)
		}
		if err := do(o, copied()); err != nil {
			t.Fatal(err)
		}
		got, err := readAt(o, 0, 20480)
		if err != nil || !bytes.Equal(got, bytes.Repeat(y, 5)) {
			t.Fatalf("round %d: a request was applied twice (%v)", round, err)
		}
	}
	o.Close()
}

// Every command is answered once, whatever ends the owner while it is under way.
func TestEachCommandIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(1<<20, 1, control.Replicated)
	for range 15 {
		o := c.own(v)
		var wg sync.WaitGroup
		var mu sync.Mutex
		answers := map[int]int{}
		const most = 400
		for i := range most {
			wg.Add(1)
			op := NewOp()
			n := 4096
			if i%3 == 0 {
				n = 512
			}
			op.Kind, op.Offset, op.Length = wire.OpWrite, int64(i%8)*4096, int64(n)
			op.Buf = NewWriteBuf(op.Offset, n)
			op.Done = func(op *Op, _ error) {
				mu.Lock()
				answers[i]++
				mu.Unlock()
				op.Release()
				wg.Done()
			}
			o.Submit(op)
			if i == most/2 {
				// As the lease keeper and a fenced append do it: between two events.
				go o.call(func() { o.stop(errors.New("deposed")) })
			}
		}
		wg.Wait()
		o.Close()
		for i := range most {
			if answers[i] != 1 {
				t.Fatalf("command %d was answered %d times", i, answers[i])
			}
		}
	}
	o := c.own(v)
	eventually(t, "nothing of the owner's own is under way", func() (idle bool) { o.ask(func() { idle = o.w.Idle() }); return idle })
	// What was committed in the very turn in which the owner stops.
	op := NewOp()
	op.Kind, op.Length, op.Buf = wire.OpWrite, 4096, NewWriteBuf(0, 4096)
	n := 0
	op.Done = func(op *Op, _ error) { n++; op.Release() }
	op.Buf.sum()
	o.ask(func() {
		op.count = 1
		o.admit(op)
		o.w.Pump()
		var batch *journal.Batch
		for _, a := range o.w.Actions() {
			if a.Kind == journal.ActAppend {
				batch = a.Batch
				o.w.Appended(batch, a.Member, c.boot(), nil)
			}
		}
		if batch == nil {
			t.Error("nothing was sent")
		}
		o.stop(errors.New("deposed"))
	})
	o.ask(func() {})
	if n != 1 {
		t.Errorf("answered %d times", n)
	}
	o.Close()
}

func (c *cluster) boot() (b [16]byte) { b[0] = 1; return b }

// A site with one core server that lost its power goes on from what it has.
func TestASiteGoesOnAfterItsPowerCut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	c.seats = c.seats[:3] // one at site 2
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	inStep := func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		return len(view.Sites) == 1 && view.Sites[0].Watermark == view.Commit
	}
	for range 3 {
		for range 30 {
			im.change(t)
		}
		c.powerCut(c.seats[2])
		for range 30 {
			im.change(t)
		}
		c.start(c.seats[2])
		eventually(t, "site 2 has caught up", inStep)
		if err := im.o.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	im.check(t)
	im.o.Close()
}

// A site whose copy is another history is never shipped over.
func TestADivergedSiteIsLoud(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 2)
	v := c.volume(1<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 8))}
	for range 60 {
		im.change(t)
	}
	// All of a segment may be stable there before it is sealed, and what is open is not compared by what the owner believes.
	eventually(t, "site 2 has the first segment sealed", func() (yes bool) {
		im.o.ask(func() {
			s := im.o.order[0]
			yes = s.sealed && slices.ContainsFunc(s.holders, func(h holder) bool { return h.stable && c.Site(h.store) == 2 })
		})
		return yes
	})
	// The owner comes to believe in another end of a sealed segment: as good as another history.
	var first *segment
	im.o.ask(func() {
		first = im.o.order[0]
		first.last.Hash[0] ^= 1
	})
	c.kill(c.seats[2])
	c.kill(c.seats[3])
	eventually(t, "the session has ended", func() bool {
		im.change(t)
		s := im.o.ships[0]
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.HasPrefix(s.mu.state, "waiting")
	})
	c.start(c.seats[2])
	c.start(c.seats[3])
	eventually(t, "the mismatch is counted", func() bool { return counter(im.o.env.Metrics.ShipMismatch) > 0 })
	im.o.ask(im.o.publish)
	if view := im.o.View(); view.Sites[0].Watermark.Seq > first.last.Seq {
		t.Errorf("watermark of a diverged site is %d", view.Sites[0].Watermark.Seq)
	}
	im.o.Close()
}

var _ = context.Background
var _ = vfs.Crash{}

func counter(c interface{ Write(*dto.Metric) error }) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return -1
	}
	return m.GetCounter().GetValue()
}
