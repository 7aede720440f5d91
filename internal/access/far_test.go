package access

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The cache against a model: what is found is right, what was used last stays, and no more is kept than may be.
func TestFarCache(t *testing.T) {
	const most = 16
	c := NewFarCache(most * journal.BlockSize)
	rng := rand.New(rand.NewPCG(1, 2))
	block := func(k farKey) []byte {
		return bytes.Repeat([]byte{byte(k.record), byte(k.block), byte(k.segment.Number), 7}, journal.BlockSize/4)
	}
	var used []farKey // last one last
	use := func(k farKey) {
		for i := range used {
			if used[i] == k {
				used = append(used[:i], used[i+1:]...)
				break
			}
		}
		if used = append(used, k); len(used) > most {
			used = used[1:]
		}
	}
	for range 5000 {
		p := wire.ReadPiece{Segment: ident.SegmentID{Number: rng.Uint32N(3)}, Record: rng.Uint32N(4), First: uint16(rng.IntN(4)), Blocks: uint16(1 + rng.IntN(3))}
		var want []byte
		for i := range p.Blocks {
			want = append(want, block(farKey{p.Segment, p.Record, p.First + i})...)
		}
		all := true
		for i := range p.Blocks {
			found := false
			for _, u := range used {
				found = found || u == farKey{p.Segment, p.Record, p.First + i}
			}
			if c.has(farKey{p.Segment, p.Record, p.First + i}) != found {
				t.Fatalf("%+v: there is %v", p, !found)
			}
			all = all && found
		}
		if rng.IntN(2) == 0 {
			c.put(p, want)
			for i := range p.Blocks {
				use(farKey{p.Segment, p.Record, p.First + i})
			}
		} else if got, ok := c.read([]byte("before"), p); all && (!ok || !bytes.Equal(got[6:], want)) || !all && ok {
			t.Fatalf("%+v: %v, want %v", p, ok, all)
		} else {
			for i := range p.Blocks { // also of a piece that is there in part, up to where it is
				if !c.has(farKey{p.Segment, p.Record, p.First + i}) {
					break
				}
				use(farKey{p.Segment, p.Record, p.First + i})
			}
		}
		if n := c.Bytes(); n != int64(len(used))*journal.BlockSize || len(c.mu.blocks) > most+1 {
			t.Fatalf("%d bytes in %d blocks, want %d blocks", n, len(c.mu.blocks), len(used))
		}
	}
	if NewFarCache(1) != nil {
		t.Error("a cache of no block")
	}
	var none *FarCache
	if _, ok := none.read(nil, wire.ReadPiece{Blocks: 1}); ok || none.Bytes() != 0 {
		t.Error("no cache has something")
	}
}

// slowReads is a store whose reads can be held.
type slowReads struct {
	journal.Store
	mu    sync.Mutex
	hold  bool
	held  []func()
	reads int
}

func (s *slowReads) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.hold {
		s.held = append(s.held, func() { s.Store.Read(m, done) })
		return
	}
	s.Store.Read(m, done)
}

func (s *slowReads) release() {
	s.mu.Lock()
	list := s.held
	s.held, s.hold = nil, false
	s.mu.Unlock()
	for _, f := range list {
		f()
	}
}

// farCluster is one whose owner is at a site without stores.
func farCluster(t *testing.T, blocks int64) (*cluster, map[ident.StoreID]*slowReads) {
	c := newCluster(t, 2, 2)
	c.site, c.local = 9, ident.StoreID{}
	c.far = NewFarCache(blocks * journal.BlockSize)
	slow := map[ident.StoreID]*slowReads{}
	for _, s := range c.seats {
		slow[s.id] = &slowReads{Store: s}
	}
	c.wrap = func(st journal.Store) journal.Store { return slow[st.ID()] }
	return c, slow
}

func readsOf(slow map[ident.StoreID]*slowReads) (n int) {
	for _, s := range slow {
		s.mu.Lock()
		n += s.reads
		s.mu.Unlock()
	}
	return n
}

func counted(t *testing.T, c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func patterned(n int64, version byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i/4096)*31 + byte(i)*7 + version*101
	}
	return out
}

// fill writes what fits into the tests' small segments.
func fill(t *testing.T, o *Owner, off int64, data []byte) {
	t.Helper()
	for len(data) > 0 {
		n := min(64<<10, len(data))
		if err := writeAt(o, off, data[:n], false); err != nil {
			t.Fatal(err)
		}
		off, data = off+int64(n), data[n:]
	}
}

// What was read at another site is not read there again, in sequence it is read ahead, and what is written meanwhile is
// what is read.
func TestReadsOfAnotherSiteAreKept(t *testing.T) {
	c, slow := farCluster(t, 4096)
	const size = 8 << 20
	o := c.own(c.volume(size, 2, control.Replicated))
	defer o.Close()
	want := patterned(size, 1)
	fill(t, o, 0, want)
	read := func(off, n int64) {
		t.Helper()
		got, err := readAt(o, off, n)
		if err != nil || !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("%d bytes at %d: %v", n, off, err)
		}
	}
	read(1<<20+1000, 9000)
	n := readsOf(slow)
	if n == 0 {
		t.Fatal("nothing was read at a store")
	}
	read(1<<20+1000, 9000)
	read(1<<20+4096, 4096)
	if readsOf(slow) != n {
		t.Error("it was read again")
	}
	copy(want[1<<20+4096:], patterned(4096, 9))
	if err := writeAt(o, 1<<20+4096, want[1<<20+4096:1<<20+8192], false); err != nil {
		t.Fatal(err)
	}
	read(1<<20, 16384)

	misses := counted(t, o.env.Metrics.FarMisses)
	for off := int64(2 << 20); off < 6<<20; off += 16 << 10 {
		read(off, 16<<10)
	}
	if misses = counted(t, o.env.Metrics.FarMisses) - misses; misses > 200 || counted(t, o.env.Metrics.FarAhead) == 0 {
		t.Errorf("%v of 256 reads in sequence waited for another site", misses)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		off, n := rng.Int64N(size-200<<10), 1+rng.Int64N(200<<10)
		read(off, n)
		if rng.IntN(3) == 0 {
			off = off / 4096 * 4096
			copy(want[off:], patterned(8192, byte(rng.IntN(256))))
			if err := writeAt(o, off, want[off:off+8192], false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := c.far.Bytes(); got > 4096*journal.BlockSize {
		t.Errorf("%d bytes are kept", got)
	}
	var left int
	o.ask(func() { left = len(o.far.list) })
	if left > farFlyingMost {
		t.Errorf("%d requests under way", left)
	}
}

// A cache that is far too small is only slow.
func TestASmallCacheOfAnotherSite(t *testing.T) {
	c, _ := farCluster(t, 3)
	const size = 1 << 20
	o := c.own(c.volume(size, 2, control.Replicated))
	defer o.Close()
	want := patterned(size, 2)
	fill(t, o, 0, want)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(5, uint64(i)))
			for range 50 {
				off, n := rng.Int64N(size-70<<10), 1+rng.Int64N(70<<10)
				if got, err := readAt(o, off, n); err != nil || !bytes.Equal(got, want[off:off+n]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
				}
			}
		})
	}
	wg.Wait()
}

// A site doesn't answer: others are asked. What it says at last is of then, and never stands for what was written since. An owner
// that stops while reads wait answers them.
func TestALateAnswerOfAnotherSite(t *testing.T) {
	c, slow := farCluster(t, 64)
	c.limit.ReadTimeout = 100 * time.Millisecond
	o := c.own(c.volume(1<<20, 2, control.Replicated))
	old, young := patterned(4096, 1), patterned(4096, 2)
	if err := writeAt(o, 0, old, false); err != nil {
		t.Fatal(err)
	}
	var first *slowReads
	o.ask(func() { first = slow[o.readFrom(o.order[0]).ID()] })
	first.mu.Lock()
	first.hold = true
	first.mu.Unlock()
	if got, err := readAt(o, 0, 4096); err != nil || !bytes.Equal(got, old) {
		t.Fatalf("another store was to be read: %v", err)
	}
	if err := writeAt(o, 0, young, false); err != nil {
		t.Fatal(err)
	}
	first.release()
	for range 2 {
		if got, err := readAt(o, 0, 4096); err != nil || !bytes.Equal(got, young) {
			t.Fatalf("what was written since is not what is read: %v", err)
		}
	}

	if err := writeAt(o, 8192, old, false); err != nil {
		t.Fatal(err)
	}
	for _, s := range slow {
		s.mu.Lock()
		s.hold = true
		s.mu.Unlock()
	}
	answers := make(chan error, 8)
	for range cap(answers) {
		go func() {
			_, err := readAt(o, 8192, 4096)
			answers <- err
		}()
	}
	var waiting int
	for waiting == 0 {
		o.ask(func() { waiting = len(o.far.list) })
	}
	o.ask(func() { o.stop(errClosed) })
	for range cap(answers) {
		if err := <-answers; err == nil {
			t.Error("an owner that has stopped answers a read")
		}
	}
	for _, s := range slow {
		s.release()
	}
	o.Close()
}

// The next owner reads ahead what the former one was read from most.
func TestTheNextOwnerFillsWhatIsHot(t *testing.T) {
	c, slow := farCluster(t, 4096)
	const size = 24 << 20
	v := c.volume(size, 2, control.Replicated)
	o := c.own(v)
	want := patterned(1<<20, 3)
	for leaf := int64(0); leaf < 6; leaf++ {
		fill(t, o, leaf*leafBytes, want)
	}
	for range 20 {
		for _, leaf := range []int64{4, 1} {
			if _, err := readAt(o, leaf*leafBytes, 4096); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := &wire.HandOver{}
	o.handAway(m, "n2")
	o.Close()
	if len(m.Hot) != 2 || m.Hot[0]+m.Hot[1] != 5 {
		t.Fatalf("hot are %v", m.Hot)
	}
	c.far = NewFarCache(4096 * journal.BlockSize)
	_, rev, err := c.ctl.JournalNow(context.Background(), v.ID)
	if err != nil {
		t.Fatal(err)
	}
	state, rev, err := c.ctl.TakeJournal(context.Background(), v.ID, rev, "n2")
	if err != nil {
		t.Fatal(err)
	}
	env := o.env
	env.Node, env.Stores, env.Far = "n2", c, c.far
	next, err := takeAt(context.Background(), env, v, &handed{state: state, rev: rev, hot: append(m.Hot, 1<<40)})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	eventually(t, "the hot leaves are here", func() bool { return c.far.Bytes() >= 2<<20 })
	n := readsOf(slow)
	for _, leaf := range []int64{1, 4} {
		if got, err := readAt(next, leaf*leafBytes, 1<<20); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("leaf %d: %v", leaf, err)
		}
	}
	if readsOf(slow) != n || c.far.Bytes() != 2<<20 {
		t.Errorf("%d reads more, %d bytes", readsOf(slow)-n, c.far.Bytes())
	}
}
