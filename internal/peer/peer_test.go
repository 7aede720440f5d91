package peer

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childServer()
		return
	}
	goleak.VerifyTestMain(m)
}

// kindsOfConnection runs f with each way to connect: two sets of options that fit together.
func kindsOfConnection(t *testing.T, f func(t *testing.T, server, client Options, plain bool)) {
	t.Run("insecure", func(t *testing.T) { f(t, insecure(t, "server"), insecure(t, "client"), false) })
	ca := newTestCA(t)
	t.Run("tls", func(t *testing.T) { f(t, ca.options(t, "server"), ca.options(t, "client"), false) })
	t.Run("plain data", func(t *testing.T) {
		s, c := ca.options(t, "server"), ca.options(t, "client")
		s.PlainData, c.PlainData = true, true
		f(t, s, c, true)
	})
}

func testSegment(n uint32) ident.SegmentID {
	return ident.SegmentID{Journal: ident.JournalID{1}, Number: n, Site: 1, Epoch: ident.Epoch{Number: 1}}
}

func TestStoreContract(t *testing.T) {
	kindsOfConnection(t, func(t *testing.T, so, co Options, plain bool) {
		store := newFakeStore()
		_, addr := startServer(t, nodeWith(store), so)
		addr.Plain = plain
		pool := startPool(t, co)
		remote := pool.Store(store.id, addr)
		ctx := t.Context()

		if remote.ID() != store.id {
			t.Errorf("ID = %s, want %s", remote.ID(), store.id)
		}
		seg := testSegment(1)
		if r, err := remote.OpenSegment(ctx, &wire.OpenSegment{Segment: seg}); err != nil || r.Boot != (ident.BootID{1}) {
			t.Fatalf("OpenSegment = %v, %v", r, err)
		}
		want := appendMany(t, remote, seg, 300)
		if got := store.bytes(seg); !bytes.Equal(got, want) {
			t.Fatalf("store has %d bytes, want %d, or they differ", len(got), len(want))
		}

		// Reads of different sizes at once, by callbacks.
		var wg sync.WaitGroup
		for i := range 100 {
			n := uint16(1 + i%16)
			from := uint32(i * 1000)
			wg.Add(1)
			remote.Read(&wire.Read{Pieces: []wire.ReadPiece{{Segment: seg, Record: from, Blocks: n}, {Segment: seg, Record: 0, First: 1, Blocks: 1}}}, func(r wire.ReadReply, err error) {
				defer wg.Done()
				if err != nil {
					t.Errorf("Read: %v", err)
					return
				}
				if !bytes.Equal(r.Data, append(bytes.Clone(want[from:from+uint32(n)*4096]), want[4096:8192]...)) {
					t.Errorf("Read %d blocks at %d: other bytes", n, from)
				}
				r.Release()
			})
		}
		wg.Wait()
		wg.Add(1)
		remote.Read(&wire.Read{Pieces: []wire.ReadPiece{{Segment: testSegment(9), Blocks: 1}}}, func(_ wire.ReadReply, err error) {
			if !errors.Is(err, wire.ErrAbsent) {
				t.Errorf("read of an absent segment: %v", err)
			}
			wg.Done()
		})
		wg.Wait()

		if r, err := remote.ReadRaw(ctx, &wire.ReadRaw{Segment: seg, Offset: 5, Len: 100000}); err != nil || !bytes.Equal(r.Data, want[5:100005]) {
			t.Errorf("ReadRaw: %d bytes, %v", len(r.Data), err)
		} else if r.Release != nil {
			r.Release()
		}
		if r, err := remote.ReadRaw(ctx, &wire.ReadRaw{Segment: seg, Offset: uint32(len(want)), Len: 10}); err != nil || len(r.Data) != 0 {
			t.Errorf("ReadRaw behind the end: %d bytes, %v", len(r.Data), err)
		}
		if r, err := remote.ReadIndex(ctx, &wire.ReadIndex{}); err != nil || string(r.Data) != "index" {
			t.Errorf("ReadIndex: %q, %v", r.Data, err)
		}
		if r, err := remote.Sync(ctx, &wire.Sync{Segments: []ident.SegmentID{seg}}); err != nil || len(r.Synced) != 1 || int(r.Synced[0].StableEnd) != len(want) {
			t.Errorf("Sync = %v, %v", r, err)
		}
		if r, err := remote.Seal(ctx, &wire.Seal{Segment: seg, End: 77}); err != nil || r.Length != 77 {
			t.Errorf("Seal = %v, %v", r, err)
		}
		if r, err := remote.Fence(ctx, &wire.Fence{Epoch: ident.Epoch{Number: 4}, Taker: "client"}); err != nil || r.Was.Number != 4 {
			t.Errorf("Fence = %v, %v", r, err)
		}
		if r, err := remote.Inventory(ctx, &wire.Inventory{}); err != nil || !r.More {
			t.Errorf("Inventory = %v, %v", r, err)
		}
		if r, err := remote.Push(ctx, &wire.Push{Segment: seg, To: 8}); err != nil || r.End != 8 {
			t.Errorf("Push = %v, %v", r, err)
		}
		if _, err := remote.Drop(ctx, &wire.Drop{}); !errors.Is(err, wire.ErrIO) {
			t.Errorf("Drop's error of no code: %v", err)
		}
		if r, err := remote.Status(ctx, &wire.StoreStatus{}); err != nil || r.Free != 7 {
			t.Errorf("Status = %v, %v", r, err)
		}
		remote.Notice(&wire.Notice{})
		if _, err := pool.Store(ident.NewStoreID(), addr).Status(ctx, &wire.StoreStatus{}); !errors.Is(err, wire.ErrAbsent) {
			t.Errorf("store that isn't there: %v", err)
		}
		bulk := pool.BulkStore(store.id, addr)
		seg2 := testSegment(2)
		if want := appendMany(t, bulk, seg2, 50); !bytes.Equal(store.bytes(seg2), want) {
			t.Errorf("appends by bulk connections differ")
		}
	})
}

type appender interface {
	Append(m *wire.Append, done func(wire.AppendReply, error))
}

// appendMany sends n appends of random sizes, one behind the other without waiting, and returns all bytes.
func appendMany(t *testing.T, store appender, seg ident.SegmentID, n int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(1, uint64(seg.Number)))
	var want []byte
	var wg sync.WaitGroup
	for i := range n {
		m := &wire.Append{Segment: seg, Offset: uint32(len(want)), Commit: ident.Position{Seq: ident.Seq(i)}}
		for range 1 + r.IntN(3) {
			size := []int{1 + r.IntN(200), 4096 + r.IntN(5000), 200_000 + r.IntN(100_000)}[min(r.IntN(20), 2)%3]
			if i%10 != 0 {
				size %= 10_000
			}
			p := make([]byte, size)
			for j := range p {
				p[j] = byte(len(want) + j*j>>4)
			}
			m.Data = append(m.Data, p)
			want = append(want, p...)
		}
		end := len(want)
		wg.Add(1)
		store.Append(m, func(reply wire.AppendReply, err error) {
			defer wg.Done()
			if err != nil || int(reply.End) != end || reply.Held.Seq != ident.Seq(i) {
				t.Errorf("append %d: %v, %v; want end %d", i, reply, err, end)
			}
		})
	}
	wg.Wait()
	return want
}

func TestNodeMessages(t *testing.T) {
	kindsOfConnection(t, func(t *testing.T, so, co Options, plain bool) {
		node := nodeWith()
		node.forward = func(from *From, m *wire.Forward, done func(wire.ForwardReply, error)) {
			if from.Node != "client" || from.Instance != co.Self.Instance {
				t.Errorf("forwarded by %+v", from)
			}
			switch m.Op {
			case wire.OpRead:
				buf := getBuffer(int(m.Length))
				for i := range buf.b {
					buf.b[i] = byte(m.Offset)
				}
				done(wire.ForwardReply{Tick: 3, Data: buf.b, Release: buf.release}, nil)
			case wire.OpWrite:
				done(wire.ForwardReply{Tick: uint64(dataBytes(m.Data))}, nil)
			case wire.OpCompareAndWrite:
				done(wire.ForwardReply{Status: wire.CodeMiscompare, Miscompare: 12, Tick: 4}, nil)
			default:
				done(wire.ForwardReply{}, wire.Errorf(wire.CodeStale, "%s", m.Nexus.Initiator))
			}
		}
		_, addr := startServer(t, node, so)
		addr.Plain = plain
		peer := startPool(t, co).Peer(addr)
		ctx := t.Context()

		if r, err := peer.Lease(ctx, &wire.Lease{Owner: "client", Sent: 8}); err != nil || r.Sent != 8 {
			t.Errorf("Lease = %v, %v", r, err)
		}
		if _, err := peer.Lease(ctx, &wire.Lease{Owner: "other"}); !errors.Is(err, wire.ErrDenied) {
			t.Errorf("lease for another node: %v", err)
		}
		if r, err := peer.Bar(ctx, &wire.Bar{Kind: wire.BarLogin}); err != nil || r.Tick != 5 {
			t.Errorf("Bar = %v, %v", r, err)
		}
		if r, err := peer.Tick(ctx, &wire.Tick{Journals: make([]ident.JournalID, 3)}); err != nil || len(r.Ticks) != 3 {
			t.Errorf("Tick = %v, %v", r, err)
		}
		if r, err := peer.OwnerStatus(ctx, &wire.OwnerStatus{}); err != nil || r.Journals[0].State != "serving" {
			t.Errorf("OwnerStatus = %v, %v", r, err)
		}

		forward := func(m *wire.Forward) (reply wire.ForwardReply, err error) {
			done := make(chan struct{})
			peer.Forward(m, func(r wire.ForwardReply, e error) { reply, err = r, e; close(done) })
			<-done
			return
		}
		if r, err := forward(&wire.Forward{Op: wire.OpRead, Offset: 7, Length: 1 << 20}); err != nil || len(r.Data) != 1<<20 || r.Data[1<<20-1] != 7 {
			t.Errorf("forwarded read: %d bytes, %v", len(r.Data), err)
		} else {
			r.Release()
		}
		if r, err := forward(&wire.Forward{Op: wire.OpWrite, Data: [][]byte{make([]byte, 5000), make([]byte, 3)}}); err != nil || r.Tick != 5003 {
			t.Errorf("forwarded write = %v, %v", r, err)
		}
		if r, err := forward(&wire.Forward{Op: wire.OpCompareAndWrite, Data: [][]byte{make([]byte, 1024)}}); err != nil || r.Status != wire.CodeMiscompare || r.Miscompare != 12 {
			t.Errorf("forwarded compare and write = %v, %v", r, err)
		}
		if _, err := forward(&wire.Forward{Op: wire.OpFlush, Nexus: wire.Nexus{Initiator: "iqn.x"}}); !errors.Is(err, wire.ErrStale) || err.Error() != "stale command: iqn.x" {
			t.Errorf("refused command: %v", err)
		}
		if _, err := forward(&wire.Forward{Op: wire.OpRead, Length: wire.DataMax + 1}); !errors.Is(err, wire.ErrBadRequest) {
			t.Errorf("too long a read: %v", err)
		}
	})
}

func TestMessagesLongerThanAFrame(t *testing.T) {
	kindsOfConnection(t, func(t *testing.T, so, co Options, _ bool) {
		store := newFakeStore()
		store.replicas = 30_000 // 5.6 MB
		so.DeadAfter, co.DeadAfter = time.Minute, time.Minute
		_, addr := startServer(t, nodeWith(store), so)
		r, err := startPool(t, co).Store(store.id, addr).Fence(t.Context(), &wire.Fence{})
		if err != nil || len(r.Replicas) != store.replicas || r.Replicas[29_999].Segment.Number != 29_999 {
			t.Fatalf("fence with %d replicas, %v", len(r.Replicas), err)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	store := newFakeStore()
	began, finish := make(chan struct{}, 10), make(chan struct{})
	store.slow = func(wire.Message) { began <- struct{}{}; <-finish }
	_, addr := startServer(t, nodeWith(store), insecure(t, "server"))
	remote := startPool(t, insecure(t, "client")).Store(store.id, addr)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := remote.Seal(ctx, &wire.Seal{}); errs <- err }()
	go func() { _, err := remote.ReadRaw(ctx, &wire.ReadRaw{}); errs <- err }()
	<-began
	<-began
	cancel()
	for range 2 {
		if err := <-errs; !errors.Is(err, context.Canceled) || !errors.Is(err, wire.ErrUnreached) {
			t.Errorf("cancelled request: %v", err)
		}
	}
	close(finish)
	if _, err := remote.Seal(t.Context(), &wire.Seal{}); err != nil {
		t.Errorf("after it: %v", err)
	}
	if _, err := remote.Seal(ctx, &wire.Seal{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestUnreached(t *testing.T) {
	store := newFakeStore()
	store.hold = make(chan struct{})
	server, addr := startServer(t, nodeWith(store), insecure(t, "server"))
	o := insecure(t, "client")
	gone := make(chan ident.NodeName, 10)
	o.OnGone = func(n ident.NodeName) { gone <- n }
	pool := startPool(t, o)
	remote := pool.Store(store.id, addr)
	const n = 20
	errs := make(chan error, n)
	for i := range n {
		remote.Append(&wire.Append{Segment: testSegment(1), Offset: uint32(i), Data: [][]byte{{1}}}, func(_ wire.AppendReply, err error) { errs <- err })
	}
	if _, err := remote.Seal(t.Context(), &wire.Seal{}); err != nil { // so the appends have arrived
		t.Fatal(err)
	}
	server.shut()
	for range n {
		if err := <-errs; !errors.Is(err, wire.ErrUnreached) {
			t.Errorf("append when the connection ended: %v", err)
		}
	}
	close(store.hold)
	server.Close()
	if _, err := remote.Status(t.Context(), &wire.StoreStatus{}); !errors.Is(err, wire.ErrUnreached) {
		t.Errorf("request to a node that is gone: %v", err)
	}
	// Nobody listens there any more: that is told once, and known from then on.
	if n := <-gone; n != addr.Node || !pool.Peer(addr).Gone() {
		t.Errorf("%s is gone, known: %v; want %s", n, pool.Peer(addr).Gone(), addr.Node)
	}
	store.wg.Wait()
}

func TestPoolClose(t *testing.T) {
	store := newFakeStore()
	store.hold = make(chan struct{})
	_, addr := startServer(t, nodeWith(store), insecure(t, "server"))
	pool := startPool(t, insecure(t, "client"))
	remote := pool.Store(store.id, addr)
	errs := make(chan error, 1)
	remote.Append(&wire.Append{Segment: testSegment(1), Data: [][]byte{{1}}}, func(_ wire.AppendReply, err error) { errs <- err })
	if _, err := remote.Seal(t.Context(), &wire.Seal{}); err != nil {
		t.Fatal(err)
	}
	pool.Close()
	if err := <-errs; !errors.Is(err, wire.ErrUnreached) {
		t.Errorf("append under way: %v", err)
	}
	for _, s := range []interface {
		Status(context.Context, *wire.StoreStatus) (wire.StoreStatusReply, error)
	}{remote, pool.Store(store.id, addr), pool.Store(store.id, Addr{Node: "new", Cluster: addr.Cluster})} {
		if _, err := s.Status(t.Context(), &wire.StoreStatus{}); !errors.Is(err, wire.ErrUnreached) {
			t.Errorf("request to a closed pool: %v", err)
		}
	}
	close(store.hold)
}

// leavingStore answers an append while it goes on reading what it was given.
type leavingStore struct {
	*fakeStore
	kept chan *wire.Append
}

func (s *leavingStore) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if m.Offset > 0 {
		s.fakeStore.Append(m, done)
		return
	}
	s.kept <- m
	done(wire.AppendReply{}, &journal.InUse{Err: wire.Errorf(wire.CodeUnreached, "the disk hangs")})
}

// The data of an append that is answered and not over are nobody else's.
func TestWhatAStoreGoesOnReadingIsLeftAlone(t *testing.T) {
	store := &leavingStore{fakeStore: newFakeStore(), kept: make(chan *wire.Append, 20)}
	node := nodeWith()
	node.stores[store.id] = store
	ca := newTestCA(t)
	_, addr := startServer(t, node, ca.options(t, "server"))
	remote := startPool(t, ca.options(t, "client")).Store(store.id, addr)
	ask := func(seg ident.SegmentID, at uint32, b byte) error {
		answer := make(chan error, 1)
		remote.Append(&wire.Append{Segment: seg, Offset: at, Data: [][]byte{bytes.Repeat([]byte{b}, 8192)}}, func(_ wire.AppendReply, err error) { answer <- err })
		return <-answer
	}
	for i := range byte(20) {
		if err := ask(testSegment(uint32(i)), 0, i); !errors.Is(err, wire.ErrUnreached) {
			t.Fatal(err)
		}
		if err := ask(testSegment(uint32(i)), 1, 0xff); !errors.Is(err, wire.ErrGap) {
			t.Fatal(err)
		}
	}
	for i := range cap(store.kept) {
		m := <-store.kept
		if m.Segment != testSegment(uint32(i)) || !bytes.Equal(bytes.Join(m.Data, nil), bytes.Repeat([]byte{byte(i)}, 8192)) {
			t.Errorf("append %d has other bytes by now", i)
		}
	}
}
