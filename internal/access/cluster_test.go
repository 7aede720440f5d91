package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// asFar makes the seat's appends asynchronous until the test ends.
func (c *cluster) asFar(s *seat) {
	l := &laneSeat{make(chan func(), 1024)}
	s.far = l
	go func() {
		for f := range l.c {
			f()
		}
	}()
	c.t.Cleanup(func() { close(l.c) })
}

// cluster is stores on in-memory disks, a control store in memory, and owners.
type cluster struct {
	t     testing.TB
	seats []*seat
	ctl   *control.Client
	mem   *control.Mem
	local ident.StoreID
	site  ident.SiteID
	log   *slog.Logger
	limit Limits
	tell  func(StoreHealth)

	health *Health // nil: each owner has its own
	far    *FarCache
	wrap   func(journal.Store) journal.Store // nil: none

	copies *Copies
	maps   *MapMemory
	// unknown is not registered yet.
	unknown atomic.Pointer[seat]

	infoMu sync.Mutex
	info   map[ident.StoreID]StoreInfo
}

// about is what is known of a store beyond Stores.
func (c *cluster) about(id ident.StoreID) StoreInfo {
	c.infoMu.Lock()
	defer c.infoMu.Unlock()
	return c.info[id]
}

// tellOf sets it.
func (c *cluster) tellOf(id ident.StoreID, i StoreInfo) {
	c.infoMu.Lock()
	defer c.infoMu.Unlock()
	if c.info == nil {
		c.info = map[ident.StoreID]StoreInfo{}
	}
	c.info[id] = i
}

func (c *cluster) Store(id ident.StoreID) (journal.Store, bool) {
	s := c.seat(id)
	if s != nil && c.wrap != nil {
		return c.wrap(s), true
	}
	return s, s != nil
}
func (c *cluster) Local(id ident.StoreID) bool        { return id == c.local }
func (c *cluster) Up(id ident.StoreID) bool           { return c.seat(id).live.Load() != nil }
func (c *cluster) Site(id ident.StoreID) ident.SiteID { return c.seat(id).site }
func (c *cluster) Host(id ident.StoreID) string       { return c.seat(id).host }
func (c *cluster) Core(site ident.SiteID) (ids []ident.StoreID) {
	for _, s := range c.seats {
		if s.site == site && s != c.unknown.Load() {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// freeLeases grants for ever: these tests fence by epochs alone.
type freeLeases struct{}

func (freeLeases) Enroll(_ ident.JournalID, _ ident.Epoch, stores []ident.StoreID, _ func(ident.Epoch)) (grants []*Grant) {
	for _, s := range stores {
		g := &Grant{Store: s}
		g.Set(1 << 62)
		grants = append(grants, g)
	}
	return grants
}
func (freeLeases) Leave(ident.JournalID, ident.Epoch) {}

func (c *cluster) start(s *seat) {
	opts := core.Options{FS: s.fs(), Dir: s.dir + "/store", Create: true, Boot: ident.BootID{s.boot}, LeaseMax: time.Millisecond,
		Logger: c.log, NotesSize: 64 << 10, FailMarkDir: s.dir + "/run",
		SpareLeast: 1, // small segments are written over old ones too
		Peers:      func(id ident.StoreID) (journal.Store, error) { return c.seat(id), nil }}
	var leases *core.Leases
	if s.lease != 0 {
		opts.LeaseMax, opts.Clock = s.lease, leaseClock(time.Now())
		leases = core.NewLeases(opts.Clock, s.lease, opts.Boot)
		opts.Leases = leases
	}
	st, err := core.Open(opts)
	if err != nil {
		c.t.Fatalf("open store: %v", err)
	}
	if leases != nil {
		leases.Add(st)
		s.leases.Store(leases)
	}
	if s.id.IsZero() {
		s.id = st.ID()
	}
	s.live.Store(st)
}

// kill ends a store's process: what the kernel has stays.
func (c *cluster) kill(s *seat) {
	s.leases.Store(nil)
	if st := s.live.Swap(nil); st != nil {
		st.Close()
	}
}

// powerCut ends a store's process and drops all that was not synced.
func (c *cluster) powerCut(s *seat) {
	s.leases.Store(nil)
	st := s.live.Swap(nil)
	s.mem.PowerOff()
	clone := s.mem.CrashClone(vfs.Crash{})
	if st != nil {
		st.Close()
	}
	s.mem = clone
	s.boot++
}

func newCluster(t testing.TB, sites, nodes int) *cluster {
	return newClusterOf(t, sites, nodes, func(*seat) {})
}

// newFaultyCluster is one whose stores' disks can be made to fail.
func newFaultyCluster(t testing.TB, sites, nodes int) *cluster {
	c := newClusterOf(t, sites, nodes, func(s *seat) { s.faults = vfs.NewFaults(s.mem) })
	for _, s := range c.seats[1:] {
		c.asFar(s)
	}
	return c
}

func newClusterOf(t testing.TB, sites, nodes int, with func(*seat)) *cluster {
	level := slog.LevelError
	if os.Getenv("DOZO_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	c := &cluster{t: t, site: 1, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	// That a store hangs is not to be believed because the machine that runs the tests pauses for a second.
	const patience = 5 * time.Second
	c.limit = Limits{FollowAfter: -1, SegmentBytes: 256 << 10, CheckpointInterval: time.Hour, RepairGrace: 300 * time.Millisecond,
		AppendTimeout: patience, ReadTimeout: patience, SyncPatience: patience}
	for i := range sites {
		for j := range nodes {
			s := &seat{site: ident.SiteID(i + 1), host: fmt.Sprint(i, "/", j), mem: vfs.NewMem(1 << 30), boot: 1}
			with(s)
			c.start(s)
			c.seats = append(c.seats, s)
		}
	}
	c.local = c.seats[0].id
	c.mem = control.NewMem()
	ctl, err := c.mem.Open(context.Background(), control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.ctl = ctl
	if _, err := ctl.InitCluster(context.Background(), control.Cluster{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	for i := range sites {
		if _, err := ctl.CreateSite(context.Background(), control.Site{Name: fmt.Sprintf("site-%d", i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, s := range c.seats {
			c.kill(s)
		}
		ctl.Close()
	})
	return c
}

func (c *cluster) volume(size int64, sites int, d control.Durability) control.VolumeSpec {
	var ids []ident.SiteID
	for i := range sites {
		ids = append(ids, ident.SiteID(i+1))
	}
	v, err := c.ctl.CreateVolume(context.Background(), control.VolumeSpec{Name: "v", SizeBytes: size, BlockSize: 512, Sites: sites, AtSite: 1, Durability: d}, ids)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

func (c *cluster) own(v control.VolumeSpec) *Owner {
	c.t.Helper()
	o := c.take(v)
	select {
	case <-o.Serving():
	case <-o.Stopped():
		c.t.Fatalf("owner stopped: %v", o.Err())
	case <-time.After(time.Minute):
		c.t.Fatal("owner doesn't serve")
	}
	return o
}

// take makes an owner that may not serve yet.
func (c *cluster) take(v control.VolumeSpec) *Owner {
	c.t.Helper()
	o, err := TakeOver(context.Background(), c.env(), v)
	if err != nil {
		c.t.Fatalf("take over: %v", err)
	}
	return o
}

func (c *cluster) env() Env {
	start := time.Now()
	clock := func() int64 { return int64(time.Since(start)) + int64(time.Hour) }
	health := c.health
	if health == nil {
		health = NewHealth(clock, c.tell)
	}
	return Env{Health: health, Node: "n1", Site: c.site, Stores: c, Leases: freeLeases{}, Control: c.ctl, Clock: clock, About: c.about, Copies: c.copies, Maps: c.maps,
		Log: c.log, Metrics: NewMetrics(prometheus.NewRegistry()), Limits: c.limit, Far: c.far}
}

func do(o *Owner, op *Op) error {
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	o.Submit(op)
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		return errors.New("no answer")
	}
}

func writeAt(o *Owner, off int64, data []byte, fua bool) error {
	op := NewOp()
	op.Kind, op.Offset, op.Length, op.FUA = wire.OpWrite, off, int64(len(data)), fua
	op.Buf = NewWriteBuf(off, len(data))
	copy(op.Buf.Bytes(), data)
	return do(o, op)
}

func readAt(o *Owner, off, n int64) ([]byte, error) {
	op := NewOp()
	op.Kind, op.Offset, op.Length = wire.OpRead, off, n
	err := do(o, op)
	var out []byte
	for _, d := range op.Data {
		out = append(out, d...)
	}
	op.Release()
	return out, err
}

func simple(o *Owner, kind wire.ForwardOp, off, n int64) error {
	op := NewOp()
	op.Kind, op.Offset, op.Length = kind, off, n
	return do(o, op)
}

// image is a volume and what it must read as.
type image struct {
	o    *Owner
	want []byte
	rng  *rand.Rand
}

// change does a random write, trim, copy or flush and keeps the model in step.
func (im *image) change(t *testing.T) {
	t.Helper()
	size := int64(len(im.want))
	off := im.rng.Int64N(size/512) * 512
	n := min((1+im.rng.Int64N(64))*512, size-off)
	if im.rng.IntN(3) == 0 {
		off, n = off&^4095, (n+4095)&^4095
		n = min(n, size-off)
	}
	switch im.rng.IntN(14) {
	case 12, 13:
		to := im.rng.Int64N(size/4096) * 4096
		from := im.rng.Int64N(size/4096) * 4096
		n := min((1+im.rng.Int64N(40))*4096, (size-max(from, to))/4096*4096)
		if n == 0 {
			return
		}
		if err := copyAt(im.o, from, to, n); err != nil {
			t.Fatalf("copy: %v", err)
		}
		copy(im.want[to:to+n], im.want[from:from+n])
	case 0:
		if err := simple(im.o, wire.OpTrim, off, n); err != nil {
			t.Fatalf("trim: %v", err)
		}
		clear(im.want[off : off+n])
	case 1:
		if err := simple(im.o, wire.OpFlush, 0, 0); err != nil {
			t.Fatalf("flush: %v", err)
		}
	default:
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(im.rng.Uint32())
		}
		if err := writeAt(im.o, off, data, im.rng.IntN(20) == 0); err != nil {
			t.Fatalf("write: %v", err)
		}
		copy(im.want[off:], data)
	}
}

func (im *image) check(t *testing.T) {
	t.Helper()
	const step = 100 << 10
	for off := int64(0); off < int64(len(im.want)); off += step {
		n := min(step, int64(len(im.want))-off)
		got, err := readAt(im.o, off, n)
		if err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		if !bytes.Equal(got, im.want[off:off+n]) {
			for i := range got {
				if got[i] != im.want[off+int64(i)] {
					t.Fatalf("byte %d differs: %02x, want %02x", off+int64(i), got[i], im.want[off+int64(i)])
				}
			}
			t.Fatalf("%d bytes read of %d", len(got), n)
		}
	}
}

func TestVolumeReadsWhatWasWritten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(3<<20+512*7, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(1, 2))}
	im.check(t)
	for round := range 6 {
		for range 150 {
			im.change(t)
		}
		im.check(t)
		if round%2 == 1 {
			if err := im.o.Checkpoint(); err != nil {
				t.Fatalf("checkpoint: %v", err)
			}
		}
		// Another epoch, by a clean stop or by dying on the spot (the old owner is fenced, not asked).
		if round%3 != 0 {
			im.o.Close()
		}
		old := im.o
		im.o = c.own(v)
		im.check(t)
		if err := writeAt(old, 0, make([]byte, 4096), false); err == nil {
			t.Fatal("a deposed owner acknowledged a write")
		}
		old.Close()
	}
	im.o.Close()
}

func TestConcurrentWritesAreAllThere(t *testing.T) {
	c := newCluster(t, 1, 2)
	v := c.volume(8<<20, 1, control.Replicated)
	o := c.own(v)
	defer o.Close()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				off := int64(w)<<20 + int64(i)*5*512
				if err := writeAt(o, off, bytes.Repeat([]byte{byte(w*100 + i)}, 5*512), false); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for w := range 8 {
		for i := range 100 {
			got, err := readAt(o, int64(w)<<20+int64(i)*5*512, 5*512)
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(w*100 + i)}, 5*512)) {
				t.Fatalf("writer %d, write %d: %v", w, i, err)
			}
		}
	}
}

func TestSitesHoldAndOneLocalReplicaGoes(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := newCluster(t, 3, 2)
	v := c.volume(4<<20, 3, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(3, 4))}
	for range 400 {
		im.change(t)
	}
	if err := im.o.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both other sites have everything", func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		if len(view.Sites) != 2 {
			return false
		}
		for _, s := range view.Sites {
			if s.Watermark != view.Commit || s.LagBytes != 0 {
				return false
			}
			if at := time.Unix(0, int64(s.Confirmed)); at.Before(began) || at.After(time.Now()) {
				t.Fatalf("site %d confirmed at %s, the test began at %s", s.Site, at, began)
			}
		}
		if view.Checkpoint.Seq != im.o.cpSeq() || view.Checkpoint.Seq == 0 {
			t.Fatalf("the view's checkpoint is %s, the owner's covers %d", view.Checkpoint, im.o.cpSeq())
		}
		return true
	})
	eventually(t, "sealed segments below the checkpoint have one local replica", func() bool {
		im.o.call(im.o.dropSome)
		n := 0
		for _, s := range im.o.Segments() {
			local, remote := 0, 0
			for _, h := range s.Holders {
				if c.Site(h.Store) == 1 {
					local++
				} else {
					remote++
				}
			}
			if s.Sealed && s.Last <= im.o.cpSeq() && !s.ID.IsCheckpoint() {
				n++
				if local != 1 || remote != 2 {
					return false
				}
			}
		}
		return n > 3
	})
	im.check(t)
	// The stores say the same as the owner.
	for _, s := range im.o.Segments() {
		for _, h := range s.Holders {
			inv, err := c.seat(h.Store).Inventory(context.Background(), &wire.Inventory{Journal: v.ID})
			if err != nil || !slices.ContainsFunc(inv.Replicas, func(r wire.Replica) bool { return r.Segment == s.ID }) {
				t.Errorf("store %s doesn't have segment %s: %v", h.Store, s.ID, err)
			}
		}
	}
	old := im.o
	im.o = c.own(v)
	old.Close()
	im.check(t)
	im.o.Close()
}

func (o *Owner) cpSeq() (seq ident.Seq) { o.ask(func() { seq = o.cp.lastSeq }); return }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

func TestAStoreDiesAndComesBack(t *testing.T) {
	c := newCluster(t, 2, 2)
	v := c.volume(2<<20, 2, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(5, 6))}
	for round := range 6 {
		for range 40 {
			im.change(t)
		}
		s := c.seats[1]
		switch round {
		case 0, 2:
			c.kill(s)
		case 4:
			c.powerCut(s)
		default:
			c.start(s)
		}
		im.check(t)
	}
	im.o.ask(im.o.publish)
	im.o.Close()
	im.o = c.own(v)
	im.check(t)
	im.o.Close()
}

// What the status says is degraded is what has lost a copy for longer than the grace, in segments and in bytes.
func TestDegradedBytesAreThoseOfTheSegmentsThatLackACopy(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	v := c.volume(2<<20, 1, control.Replicated)
	im := &image{o: c.own(v), want: make([]byte, v.SizeBytes), rng: rand.New(rand.NewPCG(7, 8))}
	defer func() { im.o.Close() }()
	for range 80 {
		im.change(t)
	}
	sealed := func() (n int, bytes uint64) {
		for _, s := range im.o.Segments() {
			if s.Sealed {
				n++
				bytes += uint64(s.Bytes)
			}
		}
		return n, bytes
	}
	eventually(t, "some segments are sealed, and nothing is degraded", func() bool {
		im.o.ask(im.o.publish)
		n, _ := sealed()
		view := im.o.View()
		return n > 1 && view.Degraded == 0 && view.DegradedBytes == 0
	})
	c.kill(c.seats[1])
	eventually(t, "all segments count as degraded, with their bytes", func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		n, bytes := 0, uint64(0)
		for _, s := range im.o.Segments() {
			n++
			bytes += uint64(s.Bytes)
		}
		return int(view.Degraded) == n && view.DegradedBytes == bytes && view.Blocks.Single == view.Degraded
	})
	c.start(c.seats[1])
	eventually(t, "with the store back nothing is degraded", func() bool {
		im.o.ask(im.o.publish)
		view := im.o.View()
		return view.Degraded == 0 && view.DegradedBytes == 0
	})
}

// The power cut that kill -9 is not: every flushed write survives, the rest is a prefix.
func TestPowerCutOfBothHolders(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		c := newCluster(t, 1, 2)
		v := c.volume(1<<20, 1, control.Replicated)
		o := c.own(v)
		rng := rand.New(rand.NewPCG(seed, 9))
		n := 50 + rng.IntN(200)
		flushed := 0
		for i := 1; i <= n; i++ {
			// Write i puts its number into block i%200.
			if err := writeAt(o, int64(i%200)*4096, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 2048), false); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(20) == 0 {
				if err := simple(o, wire.OpFlush, 0, 0); err != nil {
					t.Fatal(err)
				}
				flushed = i
			}
		}
		for _, s := range c.seats {
			c.powerCut(s)
		}
		o.Close()
		for _, s := range c.seats {
			c.start(s)
		}
		o = c.own(v)
		// The newest write that is there: everything before it must be, nothing after.
		last := 0
		var blocks [200]int
		for b := range 200 {
			got, err := readAt(o, int64(b)*4096, 4096)
			if err != nil {
				t.Fatal(err)
			}
			blocks[b] = int(got[0]) | int(got[1])<<8
			last = max(last, blocks[b])
		}
		if last < flushed {
			t.Errorf("seed %d: write %d was flushed, the newest there is %d of %d", seed, flushed, last, n)
		}
		var want [200]int
		for i := 1; i <= last; i++ {
			want[i%200] = i
		}
		if blocks != want {
			t.Errorf("seed %d: what is there after the power cut is not the state after write %d", seed, last)
		}
		o.Close()
	}
}
