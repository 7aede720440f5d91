package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// open logs in to x and opens its disk; the session is closed with the test.
func open(t testing.TB, x *scriptedTarget, cfg Config) *Disk {
	t.Helper()
	cfg.Portal, cfg.Target = x.addr, fakeName
	if cfg.NopInterval == 0 {
		cfg.NopInterval = -1
	}
	ctx := testContext(t)
	x.publish()
	s, err := Dial(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(ctx) })
	d, err := OpenDisk(ctx, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// roundTrip writes and reads some sizes.
func roundTrip(t *testing.T, d *Disk) {
	t.Helper()
	ctx := testContext(t)
	for _, n := range []int{512, 4096, 12 << 10, 300 << 10, 1 << 20} {
		want, got := noise(n), make([]byte, n)
		if err := d.WriteAt(ctx, want, 8192, false); err != nil {
			t.Fatalf("write of %d: %v", n, err)
		}
		if err := d.ReadAt(ctx, got, 8192); err != nil {
			t.Fatalf("read of %d: %v", n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes differ", n)
		}
	}
}

func offer(change func(*Offer)) *Offer {
	o := DefaultOffer()
	change(&o)
	return &o
}

func TestReadAndWriteInAllShapes(t *testing.T) {
	for name, tc := range map[string]struct {
		offer  func(*Offer)
		target func(*scriptedTarget)
	}{
		"default":            {},
		"digests":            {offer: func(o *Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C,None" }},
		"header digest":      {offer: func(o *Offer) { o.HeaderDigest = "CRC32C" }},
		"no immediate data":  {offer: func(o *Offer) { o.ImmediateData = false }},
		"only R2T":           {offer: func(o *Offer) { o.ImmediateData, o.InitialR2T = false, true }},
		"immediate then R2T": {offer: func(o *Offer) { o.InitialR2T = true }},
		"small segments": {offer: func(o *Offer) { o.MaxRecvDataSegmentLength, o.FirstBurstLength = 512, 1024 },
			target: func(x *scriptedTarget) { x.answer["MaxRecvDataSegmentLength"] = "1024" }},
		"odd R2Ts":         {target: func(x *scriptedTarget) { x.r2tSize = 3*512 + 100 }, offer: func(o *Offer) { o.FirstBurstLength = 512 }},
		"R2Ts backwards":   {target: func(x *scriptedTarget) { x.r2tSize, x.r2tBackwards = 64<<10, true }},
		"odd Data-In":      {target: func(x *scriptedTarget) { x.dataInSize = 10001 }},
		"odd with digests": {target: func(x *scriptedTarget) { x.dataInSize = 10001 }, offer: func(o *Offer) { o.DataDigest = "CRC32C" }},
		"separate status":  {target: func(x *scriptedTarget) { x.noCollapse = true }},
		"narrow window":    {target: func(x *scriptedTarget) { x.window = 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			x := newScriptedTarget(t)
			if tc.target != nil {
				tc.target(x)
			}
			cfg := Config{}
			if tc.offer != nil {
				cfg.Offer = offer(tc.offer)
			}
			d := open(t, x, cfg)
			if d.Size() != 4<<20 || d.PhysicalBlockSize != 4096 || !d.Thin || !d.WriteCache || d.Serial != "SN01" || d.Vendor != "DOZO" {
				t.Fatalf("disk is %+v", d)
			}
			roundTrip(t, d)
			if err := d.Unmap(testContext(t), 0, 4096); err != nil {
				t.Fatal(err)
			}
			if err := d.Flush(testContext(t)); err != nil {
				t.Fatal(err)
			}
			// With hooks the slow path carries the same bytes.
			d = open(t, x, Config{Offer: cfg.Offer, Hooks: Hooks{
				Out: func(uint16, *PDU) Action { return Action{} }, In: func(uint16, *PDU) Action { return Action{} }}})
			roundTrip(t, d)
		})
	}
}

// flood runs n writes and reads at depth, by callbacks only, and compares.
func flood(t *testing.T, d *Disk, n, depth int) {
	t.Helper()
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, depth)
	for i := range depth {
		wg.Add(1)
		c := &Command{}
		want, got := noise(4096), make([]byte, 4096)
		reading := false
		again := func(c *Command) {
			if err := c.Error(); err != nil {
				errs <- err
				wg.Done()
				return
			}
			if reading && !bytes.Equal(got, want) {
				errs <- fmt.Errorf("slot %d reads something else", i)
				wg.Done()
				return
			}
			if left.Add(-1) < 0 {
				wg.Done()
				return
			}
			reading = !reading
			if reading {
				clear(got)
				d.PrepareRead(c, got, int64(i)*4096)
			} else {
				want[rand.IntN(len(want))]++
				d.PrepareWrite(c, want, int64(i)*4096, false)
			}
			if err := d.S.Submit(c); err != nil {
				errs <- err
				wg.Done()
			}
		}
		c.Done = again
		d.PrepareWrite(c, want, int64(i)*4096, false)
		if err := d.S.Submit(c); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
}

func TestManyCommandsAndConnections(t *testing.T) {
	for _, conns := range []int{1, 4} {
		x := newScriptedTarget(t)
		d := open(t, x, Config{Connections: conns})
		if n := d.S.Stats().Connections; n != conns {
			t.Fatalf("%d connections, want %d", n, conns)
		}
		flood(t, d, 4000, 40)
	}
}

func TestDiscovery(t *testing.T) {
	x := newScriptedTarget(t)
	got, err := Discover(testContext(t), Config{Portal: x.addr})
	if err != nil {
		t.Fatal(err)
	}
	want := []PortalAddress{{x.addr, "1"}, {"[::1]:99", "2"}}
	if len(got) != 1 || got[0].Name != fakeName || !slices.Equal(got[0].Addresses, want) {
		t.Fatalf("discovered %+v", got)
	}
}

func TestCHAP(t *testing.T) {
	x := newScriptedTarget(t)
	x.chap = CHAP{"me", "topsecret-12", "you", "othersecret-3", nil}
	x.publish()
	dial := func(c CHAP) error {
		s, err := Dial(testContext(t), Config{Portal: x.addr, Target: fakeName, CHAP: c})
		if err == nil {
			s.Close(testContext(t))
		}
		return err
	}
	for _, good := range []CHAP{{User: "me", Secret: "topsecret-12"}, x.chap, {"me", "topsecret-12", "", "othersecret-3", nil}} {
		if err := dial(good); err != nil {
			t.Fatalf("%+v: %v", good, err)
		}
	}
	for _, bad := range []CHAP{{}, {User: "me", Secret: "wrong"}, {User: "he", Secret: "topsecret-12"},
		{"me", "topsecret-12", "you", "wrong", nil}, {"me", "topsecret-12", "they", "othersecret-3", nil}} {
		err := dial(bad)
		if !errors.Is(err, ErrAuthentication) {
			t.Fatalf("%+v: %v", bad, err)
		}
		if strings.Contains(err.Error(), "topsecret") {
			t.Fatalf("secret in %v", err)
		}
	}
}

func TestRedirect(t *testing.T) {
	for _, permanent := range []bool{false, true} {
		old, now := newScriptedTarget(t), newScriptedTarget(t)
		old.redirect, old.redirectPerm = now.addr, permanent
		now.publish()
		d := open(t, old, Config{ReconnectTimeout: 10 * time.Second})
		roundTrip(t, d)
		want := old.addr
		if permanent {
			want = now.addr
		}
		if got := d.S.Stats().CurrentPortal; got != want {
			t.Fatalf("permanent %v: portal %s, want %s", permanent, got, want)
		}
	}
	x := newScriptedTarget(t)
	x.redirect, x.redirectPerm = x.addr, true
	x.publish()
	if _, err := Dial(testContext(t), Config{Portal: x.addr, Target: fakeName}); err == nil || !strings.Contains(err.Error(), "circles") {
		t.Fatalf("endless redirect: %v", err)
	}
}

func TestLoginErrors(t *testing.T) {
	x := newScriptedTarget(t)
	_, err := Dial(testContext(t), Config{Portal: x.addr, Target: "iqn.2026-01.test:no"})
	var le *LoginError
	if !errors.As(err, &le) || le.Detail != 3 {
		t.Fatalf("unknown target: %v", err)
	}
	for key, bad := range map[string]string{"MaxBurstLength": "99999999", "ImmediateData": "Maybe", "HeaderDigest": "CRC32C",
		"ErrorRecoveryLevel": "2", "FirstBurstLength": "1"} {
		x := newScriptedTarget(t)
		x.answer[key] = bad
		x.publish()
		if _, err := Dial(testContext(t), Config{Portal: x.addr, Target: fakeName}); err == nil || !strings.Contains(err.Error(), key) {
			t.Fatalf("%s=%s: %v", key, bad, err)
		}
	}
}

func TestForcedKeys(t *testing.T) {
	x := newScriptedTarget(t)
	var seen []string
	hooks := Hooks{Out: func(_ uint16, p *PDU) Action {
		if p.BHS.Op() == OpLogin {
			seen = append(seen, strings.Split(strings.TrimSuffix(string(p.Data), "\x00"), "\x00")...)
		}
		return Action{}
	}}
	d := open(t, x, Config{Hooks: hooks, Override: []KeyValue{{"MaxBurstLength", "-"}, {"FirstBurstLength", "4096"}, {"X-com.example.k", "v"}}})
	roundTrip(t, d)
	if slices.ContainsFunc(seen, func(s string) bool { return strings.HasPrefix(s, "MaxBurstLength=") }) {
		t.Fatalf("MaxBurstLength was sent: %q", seen)
	}
	for _, want := range []string{"FirstBurstLength=4096", "X-com.example.k=v"} {
		if !slices.Contains(seen, want) {
			t.Fatalf("%s was not sent: %q", want, seen)
		}
	}
	if b := d.S.Params().MaxBurstLength; b != 262144 {
		t.Fatalf("MaxBurstLength %d, want the default", b)
	}
}

func TestReplayAfterLostConnections(t *testing.T) {
	x := newScriptedTarget(t)
	d := open(t, x, Config{ReconnectTimeout: 20 * time.Second, ReconnectDelay: time.Millisecond})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 20 {
			before := d.S.Stats().Reconnects
			x.setDown(i%3 == 0)
			x.dropAll()
			x.setDown(false)
			for d.S.Stats().Reconnects == before {
				select {
				case <-stop:
					return
				default:
					time.Sleep(time.Millisecond)
				}
			}
		}
	})
	flood(t, d, 20000, 32)
	close(stop)
	wg.Wait()
	if d.S.Stats().Reconnects == 0 {
		t.Fatal("nothing was reconnected")
	}
}

func TestLostConnectionWithoutReconnect(t *testing.T) {
	x := newScriptedTarget(t)
	hang := func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x88 {
			c.c.Close()
			return true
		}
		return false
	}
	x.script = hang
	d := open(t, x, Config{})
	if err := d.ReadAt(testContext(t), make([]byte, 4096), 0); !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("read: %v", err)
	}
	<-d.S.Done()
	if err := d.S.Submit(&Command{}); !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("submit: %v", err)
	}

	// A command that must not be sent twice ends, the session goes on.
	d = open(t, x, Config{ReconnectTimeout: 10 * time.Second})
	c := &Command{NoReplay: true}
	d.PrepareRead(c, make([]byte, 4096), 0)
	if err := d.S.Do(testContext(t), c); !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("no replay: %v", err)
	}
	if err := d.WriteAt(testContext(t), make([]byte, 4096), 0, false); err != nil {
		t.Fatal(err)
	}
}

func TestCloseEndsCommands(t *testing.T) {
	x := newScriptedTarget(t)
	reached := make(chan struct{}, 1)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x88 {
			reached <- struct{}{}
			return true
		}
		return false
	}
	d := open(t, x, Config{})
	finished := make(chan error, 1)
	c := &Command{Done: func(c *Command) { finished <- c.Error() }}
	d.PrepareRead(c, make([]byte, 512), 0)
	if err := d.S.Submit(c); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := d.S.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-finished; !errors.Is(err, ErrClosed) {
		t.Fatalf("command ended with %v", err)
	}
}

func TestBusyAndUnitAttentionAreRetried(t *testing.T) {
	x := newScriptedTarget(t)
	var n atomic.Int32
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() != OpSCSICommand || p.BHS[32] != 0x88 {
			return false
		}
		k := n.Add(1)
		if k > 4 {
			return false
		}
		c.t.mu.Lock()
		c.s.expCmdSN++
		c.t.mu.Unlock()
		switch k {
		case 1:
			c.status(p.BHS.ITT(), StatusBusy, 0, 0, 0)
		case 2:
			c.status(p.BHS.ITT(), StatusTaskSetFull, 0, 0, 0)
		default:
			c.status(p.BHS.ITT(), StatusCheckCondition, SenseUnitAttention, 0x29, 0)
		}
		return true
	}
	d := open(t, x, Config{RetryLimit: 10})
	if err := d.ReadAt(testContext(t), make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if r := d.S.Stats().BusyRetries; r != 4 {
		t.Fatalf("%d retries", r)
	}
	n.Store(2)
	d = open(t, x, Config{})
	err := d.ReadAt(testContext(t), make([]byte, 4096), 0)
	var se *StatusError
	if !errors.As(err, &se) || se.Sense.Key != SenseUnitAttention || se.Sense.ASC != 0x29 {
		t.Fatalf("without retries: %v", err)
	}
}

func TestAbortAndReset(t *testing.T) {
	x := newScriptedTarget(t)
	come := make(chan struct{}, 10)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x88 {
			c.t.mu.Lock()
			c.s.expCmdSN++
			c.t.mu.Unlock()
			come <- struct{}{}
			return true // never answered
		}
		return false
	}
	d := open(t, x, Config{})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		<-come
		cancel()
	}()
	if err := d.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, ErrAborted) || !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled read: %v", err)
	}
	finished := make(chan error, 1)
	c := &Command{Done: func(c *Command) { finished <- c.Error() }}
	d.PrepareRead(c, make([]byte, 512), 0)
	if err := d.S.Submit(c); err != nil {
		t.Fatal(err)
	}
	if r, err := d.S.TaskManagement(testContext(t), TMFLogicalUnitRst, 0, nil); r != 0 || err != nil {
		t.Fatalf("LUN reset: %d, %v", r, err)
	}
	if err := <-finished; !errors.Is(err, ErrAborted) {
		t.Fatalf("after the reset: %v", err)
	}
	c = &Command{Timeout: time.Millisecond}
	d.PrepareRead(c, make([]byte, 512), 0)
	if err := d.S.Do(testContext(t), c); !errors.Is(err, ErrTimeout) {
		t.Fatalf("timeout: %v", err)
	}
}

func TestPingsBothWays(t *testing.T) {
	x := newScriptedTarget(t)
	echo := make(chan PDU, 1)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpNopOut && p.BHS.ITT() == tagNone {
			echo <- *p
			return true
		}
		if p.BHS.Op() == OpNopOut {
			c.ping(4711, []byte("are you there"))
		}
		return false
	}
	d := open(t, x, Config{})
	if got, err := d.S.Ping(testContext(t), []byte("hello")); err != nil || string(got) != "hello" {
		t.Fatalf("ping: %q %v", got, err)
	}
	p := <-echo
	if p.BHS.TTT() != 4711 || string(p.Data) != "are you there" || p.BHS[0]&flagImmediate == 0 {
		t.Fatalf("answer to the target's ping: %v %q", p.BHS, p.Data)
	}
	// A target that falls silent is noticed by pings.
	y := newScriptedTarget(t)
	y.script = func(_ *targetConn, p *PDU) bool { return p.BHS.Op() == OpNopOut }
	y.publish()
	// No command is sent, which a machine that stalls would end with the session.
	s, err := Dial(testContext(t), Config{Portal: y.addr, Target: fakeName, NopInterval: 20 * time.Millisecond, NopTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrTimeout) {
		t.Fatalf("silent target: %v", err)
	}
}

func TestAsyncMessages(t *testing.T) {
	x := newScriptedTarget(t)
	texts := make(chan string, 4)
	x.script = func(c *targetConn, p *PDU) bool {
		if p.BHS.Op() == OpText {
			texts <- string(p.Data)
		}
		if p.BHS.Op() == OpSCSICommand && p.BHS[32] == 0x91 {
			c.async(AsyncRenegotiate, 0, 0, 3)
			c.async(AsyncLogoutRequest, 0, 0, 1)
		}
		return false
	}
	var events []byte
	var mu sync.Mutex
	back := make(chan struct{}, 4)
	d := open(t, x, Config{ReconnectTimeout: 10 * time.Second,
		OnAsync:     func(e AsyncEvent) { mu.Lock(); events = append(events, e.Event); mu.Unlock() },
		OnReconnect: func(int, time.Duration) { back <- struct{}{} }})
	if err := d.Flush(testContext(t)); err != nil {
		t.Fatal(err)
	}
	<-back
	if s := <-texts; !strings.HasPrefix(s, "MaxRecvDataSegmentLength=") {
		t.Fatalf("renegotiation sends %q", s)
	}
	roundTrip(t, d)
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(events, []byte{AsyncRenegotiate, AsyncLogoutRequest}) {
		t.Fatalf("events %v", events)
	}
}
