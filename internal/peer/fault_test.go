package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// logLines collects a log.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// dialRaw opens an insecure connection and does the handshake by hand.
func dialRaw(t *testing.T, addr Addr, class wire.Class) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	o := insecure(t, "raw")
	h := o.hello(wire.HelloClient, class)
	if _, err := c.Write(wire.AppendHello(nil, &h)); err != nil {
		t.Fatal(err)
	}
	if h, _, err := readHello(c); err != nil || h.Kind != wire.HelloServer {
		t.Fatalf("handshake: %+v, %v", h, err)
	}
	return c
}

func TestMalformedFrameEndsOnlyItsConnection(t *testing.T) {
	good := wire.AppendFrame(nil, wire.Header{Request: 1, Store: ident.StoreID{1}}, &wire.StoreStatus{}, true)
	badCRC := bytes.Clone(wire.AppendFrame(nil, wire.Header{Request: 1}, &wire.Tick{Journals: make([]ident.JournalID, 2)}, true))
	badCRC[len(badCRC)-1] ^= 1
	badCount := wire.AppendFrame(nil, wire.Header{Request: 1}, &wire.Tick{Journals: make([]ident.JournalID, 2)}, false)
	badCount[wire.HeaderSize+3] = 0x7f // two thousand million journals
	h := wire.Header{Type: wire.TypeTick, Request: 1, Flags: wire.FlagChecked, Length: uint32(len(badCount) - wire.HeaderSize), PayloadCRC: wire.Extend(0, badCount[wire.HeaderSize:])}
	wire.PutHeader(badCount, &h)
	short := wire.AppendFrame(nil, wire.Header{Request: 1, Type: wire.TypeAppend}, &wire.Ping{}, true)
	cases := []struct {
		name  string
		class wire.Class
		bytes []byte
	}{
		{"noise", wire.ClassControl, bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10)},
		{"header checksum", wire.ClassControl, append([]byte("DOZF0000"), good[8:]...)},
		{"payload checksum", wire.ClassControl, badCRC},
		{"payload checksum missing", wire.ClassControl, wire.AppendFrame(nil, wire.Header{Request: 1}, &wire.Ping{}, false)},
		{"list longer than the frame", wire.ClassControl, badCount},
		{"append without fields", wire.ClassAppend, short},
		{"unknown type", wire.ClassControl, wire.AppendFrame(nil, wire.Header{Request: 1, Type: 999}, &wire.Ping{}, true)},
		{"answer instead of request", wire.ClassControl, wire.AppendFrame(nil, wire.Header{Request: 1, Flags: wire.FlagReply}, &wire.Ping{}, true)},
		{"fence on a data connection", wire.ClassAppend, wire.AppendFrame(nil, wire.Header{Request: 1}, &wire.Fence{}, true)},
		{"continued data", wire.ClassAppend, wire.AppendFrame(nil, wire.Header{Request: 1, Flags: wire.FlagMore}, &wire.Append{}, true)},
		{"parts of two messages", wire.ClassControl, append(wire.AppendFrame(nil, wire.Header{Request: 1, Flags: wire.FlagMore}, &wire.Tick{}, true),
			wire.AppendFrame(nil, wire.Header{Request: 2}, &wire.Tick{}, true)...)},
	}
	log := new(logLines)
	store := newFakeStore()
	o := insecure(t, "server")
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	server, addr := startServer(t, nodeWith(store), o)
	other := startPool(t, insecure(t, "client")).Store(store.id, addr)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn := dialRaw(t, addr, c.class)
			if _, err := conn.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			if _, err := other.Status(t.Context(), &wire.StoreStatus{}); err != nil {
				t.Errorf("another connection: %v", err)
			}
		})
	}
	server.Close()
	if n := strings.Count(log.String(), "connection ended for what it sent"); n != len(cases) {
		t.Errorf("%d log lines for %d malformed frames:\n%s", n, len(cases), log)
	}
}

func TestHandshakeRefusals(t *testing.T) {
	ca, strangers := newTestCA(t), newTestCA(t)
	for _, c := range []struct {
		name           string
		server, client func(o *Options, a *Addr)
		want           string
	}{
		{"another cluster", nil, func(o *Options, _ *Addr) { o.Self.Cluster = "other" }, "is of cluster"},
		{"another name than the certificate's", nil, func(o *Options, _ *Addr) { o.Self.Node = "somebody" }, "not the certificate's"},
		{"server with another name", nil, func(_ *Options, a *Addr) { a.Node = "third" }, "reached server"},
		{"certificate of another CA", nil, func(o *Options, _ *Addr) { *o = strangers.options(t, "client") }, "certificate"},
		{"no TLS", nil, func(o *Options, _ *Addr) { *o = insecure(t, "client") }, "not enabled"},
		{"no ticket", func(o *Options, _ *Addr) { o.PlainData = true }, func(o *Options, _ *Addr) { *o = insecure(t, "client") }, "ticket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			so, co := ca.options(t, "server"), ca.options(t, "client")
			if c.server != nil {
				c.server(&so, nil)
			}
			_, addr := startServer(t, nodeWith(), so)
			c.client(&co, &addr)
			_, err := startPool(t, co).Peer(addr).Tick(t.Context(), &wire.Tick{})
			if !errors.Is(err, wire.ErrUnreached) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestVersionsWithoutOneInCommon(t *testing.T) {
	_, addr := startServer(t, nodeWith(), insecure(t, "server"))
	c, err := net.Dial("tcp", addr.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(wire.AppendHello(nil, &wire.Hello{Kind: wire.HelloClient, Class: wire.ClassControl, VersionMin: 900, VersionMax: 901, Cluster: "test", Node: "x"})); err != nil {
		t.Fatal(err)
	}
	h, _, err := readHello(c)
	if err != nil || h.Kind != wire.HelloRefuse || h.Code != wire.CodeVersion || !strings.Contains(h.Detail, "900 to 901") {
		t.Errorf("answer %+v, %v", h, err)
	}
}

func TestPlainDataNeedsBothSides(t *testing.T) {
	ca := newTestCA(t)
	store := newFakeStore()
	_, addr := startServer(t, nodeWith(store), ca.options(t, "server"))
	addr.Plain = true
	co := ca.options(t, "client")
	co.PlainData = true
	_, err := startPool(t, co).Store(store.id, addr).Seal(t.Context(), &wire.Seal{})
	if !errors.Is(err, wire.ErrUnreached) || !strings.Contains(err.Error(), "not enabled at server") {
		t.Errorf("error %v", err)
	}
}

func TestPlainDataAreNotEncryptedAndControlIs(t *testing.T) {
	ca := newTestCA(t)
	so, co := ca.options(t, "server"), ca.options(t, "client")
	so.PlainData, co.PlainData = true, true
	store := newFakeStore()
	_, addr := startServer(t, nodeWith(store), so)
	addr.Plain = true
	pool := startPool(t, co)
	if _, err := pool.Store(store.id, addr).Seal(t.Context(), &wire.Seal{}); err != nil {
		t.Fatal(err)
	}
	peer := pool.Peer(addr)
	if c := peer.slots[wire.ClassAppend][0].link.Load(); c.sock.tls != nil || !c.checked {
		t.Errorf("append connection: TLS %v, checksums %v", c.sock.tls != nil, c.checked)
	}
	if c := peer.slots[wire.ClassControl][0].link.Load(); c.sock.tls == nil {
		t.Errorf("control connection without TLS")
	}
}

func TestTicketIsGoodOnceAndNotForLong(t *testing.T) {
	var box ticketBox
	now := time.Now()
	auth := func(r *wire.TicketReply) []byte { return append(r.ID[:], make([]byte, nonceSize)...) }
	r := box.issue("n", wire.ClassRead, now)
	if box.use(auth(r), now) == nil {
		t.Error("fresh ticket refused")
	}
	if box.use(auth(r), now) != nil {
		t.Error("ticket taken twice")
	}
	if r := box.issue("n", wire.ClassRead, now); box.use(auth(r), now.Add(ticketLife+1)) != nil {
		t.Error("old ticket taken")
	}
	for range ticketsMax {
		box.issue("n", wire.ClassRead, now)
	}
	if box.issue("n", wire.ClassRead, now) != nil {
		t.Error("more tickets than the limit")
	}
	if box.issue("n", wire.ClassRead, now.Add(ticketLife+1)) == nil {
		t.Error("expired tickets still count")
	}
}

// A wrong MAC is refused on both sides even by those who know a ticket's ID.
func TestTicketWithoutItsSecret(t *testing.T) {
	ca := newTestCA(t)
	so := ca.options(t, "server")
	so.PlainData = true
	server, addr := startServer(t, nodeWith(), so)
	stolen := *server.tickets.issue("client", wire.ClassRead, time.Now())
	stolen.Secret[0] ^= 1
	co := ca.options(t, "client")
	o, err := co.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, err := o.dialled(t.Context(), c, "server", wire.ClassRead, &stolen); !errors.Is(err, errTicket) {
		t.Errorf("handshake with a wrong secret: %v", err)
	}
}

// answers waits until a store can be reached: with limits this short it may not be for a moment.
func answers(t *testing.T, s journal.Store) {
	t.Helper()
	for {
		if _, err := s.Seal(t.Context(), &wire.Seal{}); err == nil {
			return
		} else if !errors.Is(err, wire.ErrUnreached) {
			t.Fatal(err)
		}
	}
}

// A stopped process answers nothing but keeps its connections: only pings tell.
func TestStoppedPeerIsNoticed(t *testing.T) {
	cmd, addr := startChild(t)
	down := make(chan error, 10)
	up := make(chan struct{}, 10)
	o := insecure(t, "client")
	o.PingInterval, o.DeadAfter, o.BackoffMax = 20*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	o.DialTimeout = 100 * time.Millisecond
	o.OnDown = func(_ ident.NodeName, err error) { down <- err }
	o.OnUp = func(ident.NodeName, uint64) { up <- struct{}{} }
	pool := startPool(t, o)
	remote := pool.Store(ident.StoreID{}, addr)
	<-up
	answers(t, remote)
	for len(down) > 0 {
		<-down // it was the machine that hung
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGCONT) })
	waitFor(t, func() bool { // all its threads are stopped
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), ") T ")
	})
	failed := make(chan error, 1)
	remote.Append(&wire.Append{Segment: testSegment(1), Data: [][]byte{{1}}}, func(_ wire.AppendReply, err error) { failed <- err })
	if err := <-failed; !errors.Is(err, wire.ErrUnreached) || !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("append to a stopped process: %v", err)
	}
	if err := <-down; !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("down because of: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-up
	answers(t, remote)
}

// Of a process that hangs nobody waits twice: the connections to it that are near are given up soon, and calls fail at once
// from then on, although its host goes on taking connections.
func TestNobodyWaitsForAStoppedPeerAgain(t *testing.T) {
	cmd, addr := startChild(t)
	down := make(chan error, 10)
	up := make(chan struct{}, 10)
	o := insecure(t, "client")
	o.NearPingInterval, o.NearDeadAfter, o.PingInterval, o.DeadAfter = 20*time.Millisecond, 400*time.Millisecond, 50*time.Millisecond, time.Hour
	o.DialTimeout, o.BackoffMax = time.Second, 50*time.Millisecond
	var dialled atomic.Int32
	o.Dial = func(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
		if class != wire.ClassControl {
			dialled.Add(1)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	o.OnDown = func(_ ident.NodeName, err error) { down <- err }
	o.OnUp = func(ident.NodeName, uint64) { up <- struct{}{} }
	addr.Near = true
	pool := startPool(t, o)
	p := pool.Peer(addr)
	remote := pool.Store(ident.StoreID{}, addr)
	<-up
	answers(t, remote)
	for len(down) > 0 {
		<-down // it was the machine that hung
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGCONT) })
	waitFor(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), ") T ")
	})
	failed := make(chan error, 3)
	ask := func() {
		remote.Append(&wire.Append{Segment: testSegment(1), Data: [][]byte{{1}}}, func(_ wire.AppendReply, err error) { failed <- err })
	}
	ask() // makes a connection that is never finished, or waits for an answer
	if err := <-down; !errors.Is(err, errSilent) {
		t.Errorf("down because of: %v", err)
	}
	if err := <-failed; !errors.Is(err, wire.ErrUnreached) {
		t.Errorf("an append under way: %v", err)
	}
	if !p.Silent() {
		t.Error("it is not said that nothing was heard")
	}
	before := dialled.Load()
	ask()
	if err := <-failed; !errors.Is(err, wire.ErrUnreached) {
		t.Errorf("a later append: %v", err)
	}
	if dialled.Load() != before {
		t.Error("an append waited for a connection to be made")
	}
	if _, err := remote.Seal(t.Context(), &wire.Seal{}); !errors.Is(err, wire.ErrUnreached) {
		t.Errorf("a later question: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-up
	if p.Silent() {
		t.Error("it is there again")
	}
	waitFor(t, func() bool { // connections that were begun while it was stopped end first
		_, err := remote.Seal(t.Context(), &wire.Seal{})
		return err == nil
	})
}

// A process that did not run for a while does not take its own silence for that of others.
func TestOwnSilenceIsNobodysFault(t *testing.T) {
	c := &client{link: &link{handler: nil}}
	c.mu.err = errClosed // nothing is sent
	now := time.Now()
	c.nextPing = now.Add(time.Hour)
	c.look(now, time.Second, 3*time.Second)
	now = now.Add(time.Minute)
	c.pardon(time.Minute)
	if c.look(now, time.Second, 3*time.Second); now.Sub(c.lastSign) != 0 {
		t.Errorf("silent for %v", now.Sub(c.lastSign))
	}
}

// A peer that takes no bytes holds no caller up: the queue fills and then refuses.
func TestFullQueueRefusesAndDoesNotBlock(t *testing.T) {
	for _, mode := range []string{"plain", "tls"} {
		t.Run(mode, func(t *testing.T) {
			l, err := listenLoopback()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ca := newTestCA(t)
			so, co := insecure(t, "server"), insecure(t, "client")
			if mode == "tls" {
				so, co = ca.options(t, "server"), ca.options(t, "client")
			}
			so, err = so.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			wg.Go(func() { // handshakes and then silence
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					defer c.Close()
					wg.Go(func() {
						if _, _, err := so.accepted(ctx, c, nil); err != nil && ctx.Err() == nil {
							t.Errorf("handshake: %v", err)
						}
					})
				}
			})
			co.QueueMax = 8 << 20
			co.DeadAfter = time.Hour
			pool := startPool(t, co)
			remote := pool.Store(ident.NewStoreID(), Addr{Node: "server", Cluster: l.Addr().String()})
			errs := make(chan error, 1000)
			data := make([]byte, 1<<20)
			var busy bool
			n := 0
			for ; n < 200 && !busy; n++ {
				remote.Append(&wire.Append{Data: [][]byte{data}}, func(_ wire.AppendReply, err error) { errs <- err })
				select {
				case err := <-errs:
					if busy = errors.Is(err, wire.ErrBusy); !busy {
						t.Fatal(err)
					}
				default:
				}
			}
			if !busy {
				t.Errorf("%d MiB for a peer that takes none were queued", n)
			}
			cancel()
			_ = l.Close()
			pool.Close()
			wg.Wait()
			for range n - 1 {
				if err := <-errs; !errors.Is(err, wire.ErrUnreached) && !errors.Is(err, wire.ErrBusy) {
					t.Errorf("queued append: %v", err)
				}
			}
		})
	}
}

// The budget of a connection bounds what the server holds, and everything is answered in the end.
func TestServerReadsNoMoreThanItsBudget(t *testing.T) {
	store := newFakeStore()
	store.hold = make(chan struct{})
	so := insecure(t, "server")
	so.InflightMax = 1 // raised to the smallest that works
	server, addr := startServer(t, nodeWith(store), so)
	remote := startPool(t, insecure(t, "client")).Store(store.id, addr)
	var wg sync.WaitGroup
	data := make([]byte, 1<<20)
	for i := range 30 {
		wg.Add(1)
		remote.Append(&wire.Append{Segment: testSegment(1), Offset: uint32(i << 20), Data: [][]byte{data}}, func(_ wire.AppendReply, err error) {
			defer wg.Done()
			if err != nil {
				t.Errorf("append: %v", err)
			}
		})
	}
	waitFor(t, func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		return len(store.segments[testSegment(1)]) >= 7<<20
	})
	server.mu.Lock()
	for l := range server.mu.links {
		l.link.mu.Lock()
		if l.link.mu.budget < 0 {
			t.Errorf("budget is %d", l.link.mu.budget)
		}
		l.link.mu.Unlock()
	}
	server.mu.Unlock()
	store.mu.Lock()
	if n := len(store.segments[testSegment(1)]); n > 2*wire.PayloadMax {
		t.Errorf("%d bytes under way, at most %d", n, 2*wire.PayloadMax)
	}
	store.mu.Unlock()
	close(store.hold)
	wg.Wait()
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited for 20 s")
		}
	}
}

func TestBucket(t *testing.T) {
	now := time.Unix(100, 0)
	var slept time.Duration
	b := NewBucket(1000)
	b.now = func() time.Time { return now }
	b.sleep = func(_ context.Context, d time.Duration) error { slept += d; now = now.Add(d); return nil }
	start := now
	for range 100 {
		if err := b.Wait(t.Context(), 50); err != nil {
			t.Fatal(err)
		}
	}
	if took := now.Sub(start); took != 5*time.Second-burstTime || slept != took {
		t.Errorf("5,000 bytes at 1,000 a second took %v", took)
	}
	b.SetRate(0)
	before := slept
	if err := b.Wait(t.Context(), 1<<30); err != nil || slept != before {
		t.Errorf("without a limit slept %v, %v", slept-before, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewBucket(1).Wait(ended, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

type countingLimiter struct {
	mu sync.Mutex
	n  int
}

func (c *countingLimiter) Wait(_ context.Context, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	return nil
}

func TestBulkConnectionsArePacedAndGoTheirOwnWay(t *testing.T) {
	store := newFakeStore()
	h := nodeWith(store)
	_, addr := startServer(t, h, insecure(t, "server"))
	_, wan := startServer(t, h, insecure(t, "server"))
	pace := new(countingLimiter)
	addr.Bulk, addr.Pace = wan.Cluster, pace
	var mu sync.Mutex
	dialled := map[wire.Class]string{}
	o := insecure(t, "client")
	o.Dial = func(ctx context.Context, a string, class wire.Class) (net.Conn, error) {
		mu.Lock()
		dialled[class] = a
		mu.Unlock()
		return new(net.Dialer).DialContext(ctx, "tcp", a)
	}
	pool := startPool(t, o)
	want := appendMany(t, pool.BulkStore(store.id, addr), testSegment(1), 100)
	if !bytes.Equal(store.bytes(testSegment(1)), want) {
		t.Error("bytes differ")
	}
	appendMany(t, pool.Store(store.id, addr), testSegment(2), 10)
	pool.Close()
	if pace.n < len(want) || pace.n > len(want)+100*300+10_000 {
		t.Errorf("%d bytes paced of %d", pace.n, len(want))
	}
	if dialled[wire.ClassBulk] != wan.Cluster || dialled[wire.ClassAppend] != addr.Cluster {
		t.Errorf("dialled %v", dialled)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, mode := range []string{"plain", "tls"} {
		store := newFakeStore()
		store.keep = false
		so, co := insecure(t, "server"), insecure(t, "client")
		if mode == "tls" {
			ca := newTestCA(t)
			so, co = ca.options(t, "server"), ca.options(t, "client")
		}
		_, addr := startServer(t, nodeWith(store), so)
		remote := startPool(t, co).Store(store.id, addr)
		m := &wire.Append{Data: [][]byte{make([]byte, 4096)}}
		done := make(chan error, 1)
		f := func(_ wire.AppendReply, err error) { done <- err }
		n := testing.AllocsPerRun(500, func() {
			remote.Append(m, f)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
		if n > map[string]float64{"plain": 0, "tls": 4}[mode] { // crypto/tls makes up to two a record that it reads
			t.Errorf("%s: %v allocations an append", mode, n)
		}
	}
}
