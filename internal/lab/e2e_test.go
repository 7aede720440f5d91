//go:build e2e

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dozo/internal/lab/router"
)

// These tests make labs on this machine and measure them with ping, iperf3, captures and sockets of their own.
// They need root and the Debian packages iproute2, iputils-ping, iperf3 and tcpdump. Bounds are on medians, so
// that a machine with other work to do does not fail them: single packets may be late, and dozo lab stat says so.

func TestMain(m *testing.M) {
	// The router's process is this program.
	if len(os.Args) == 5 && slices.Equal(os.Args[1:4], []string{"lab", "router", "--name"}) {
		if err := ServeRouter(context.Background(), os.Args[4], os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestDelay(t *testing.T) {
	l := newTestLab(t, "e2edelay", 3, "set all rtt=18ms", "set east north one-way delay=40ms", "set north east one-way delay=3ms")
	for _, c := range []struct {
		from, to string
		want     time.Duration
	}{{"east", "10.77.2.1", 18 * time.Millisecond}, {"west", "fd77:0:0:3::2", 18 * time.Millisecond}, {"north", "10.77.1.2", 43 * time.Millisecond}} {
		out := string(l.command(t, c.from, "ping", "-n", "-c", "30", "-i", "0.02", c.to))
		var rtts []time.Duration
		for _, line := range strings.Split(out, "\n") {
			if _, after, ok := strings.Cut(line, "time="); ok {
				d, err := time.ParseDuration(strings.ReplaceAll(after, " ", ""))
				if err != nil {
					t.Fatal(err)
				}
				rtts = append(rtts, d)
			}
		}
		m := median(rtts)
		t.Logf("%s to %s: median %v of %d, want %v", c.from, c.to, m, len(rtts), c.want)
		if len(rtts) != 30 || m < c.want || m > c.want+600*time.Microsecond {
			t.Errorf("%s to %s: %v of %d, want %v within 0.3 ms each way", c.from, c.to, m, len(rtts), c.want)
		}
	}
	// Captures at both ends have one clock: the time of each packet, each way.
	at := map[string]func() []captured{"east": l.capture(t, "east", "icmp"), "north": l.capture(t, "north", "icmp")}
	l.command(t, "east", "ping", "-n", "-c", "30", "-i", "0.02", "10.77.3.1")
	type key struct {
		kind byte
		seq  uint16
	}
	seen := map[string]map[key]time.Duration{}
	for site, stop := range at {
		seen[site] = map[key]time.Duration{}
		for _, p := range stop() {
			seen[site][key{p.data[20], binary.BigEndian.Uint16(p.data[26:])}] = p.at
		}
	}
	var there, back []time.Duration
	for k, e := range seen["east"] {
		if n, ok := seen["north"][k]; ok && k.kind == 8 {
			there = append(there, n-e)
		} else if ok {
			back = append(back, e-n)
		}
	}
	t.Logf("captured: %v there, %v back", median(there), median(back))
	for _, c := range []struct {
		got  []time.Duration
		want time.Duration
	}{{there, 40 * time.Millisecond}, {back, 3 * time.Millisecond}} {
		if m := median(c.got); len(c.got) < 25 || m < c.want-50*time.Microsecond || m > c.want+300*time.Microsecond {
			t.Errorf("one way: %v of %d, want %v", m, len(c.got), c.want)
		}
	}
}

func TestRate(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2erate", 3)
	for _, c := range []struct {
		rate string
		want float64
	}{{"5mbit", 5e6}, {"100mbit", 100e6}} {
		l.do(t, "set all rtt=4ms rate="+c.rate)
		stop := l.capture(t, "west", "udp")
		l.iperf(t, "east", "west", "-u", "-l", "1472", "-t", "2", "-b", strconv.Itoa(int(c.want*1.5)))
		got := lineRate(stop())
		t.Logf("UDP at %s: %.0f bit/s", c.rate, got)
		if math.Abs(got/c.want-1) > 0.01 {
			t.Errorf("UDP at %s: %.0f bit/s", c.rate, got)
		}
	}
	// TCP in super-packets: 1448 bytes of payload in 1500, as far as congestion control keeps the line full.
	l.do(t, "set all rtt=4ms rate=500mbit")
	stop := l.capture(t, "west", "tcp and greater 1000")
	l.iperf(t, "east", "west", "-t", "2")
	got, super := 0.0, 0
	list := stop()
	list = list[len(list)/2:]
	var bytes float64
	for _, p := range list[1:] {
		// A super-packet stands for segments with 52 bytes of headers each.
		segs := math.Ceil(float64(p.bytes-52) / 1448)
		bytes += float64(p.bytes) + (segs-1)*52
		if segs > 1 {
			super++
		}
	}
	got = bytes * 8 / (list[len(list)-1].at - list[0].at).Seconds()
	t.Logf("TCP at 500 Mbit/s: %.0f bit/s; %d of %d were super-packets", got, super, len(list))
	if got > 505e6 || got < 450e6 || super == 0 {
		t.Errorf("TCP at 500 Mbit/s: %.0f bit/s", got)
	}
	// An access link is shared by all paths.
	l.do(t, "set all rate=unlimited rtt=2ms")
	l.do(t, "set north down=20mbit")
	stop = l.capture(t, "north", "udp")
	dst := l.udp(t, "north", 0)
	done := make(chan struct{})
	sockets := []*net.UDPConn{l.udp(t, "east", 0), l.udp(t, "west", 1)}
	for _, a := range sockets {
		go func() {
			numbered(t, a, dst, 2500, 1500, 600*time.Microsecond)
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	if got := lineRate(stop()); math.Abs(got/20e6-1) > 0.01 {
		t.Errorf("access link of 20 Mbit/s: %.0f bit/s", got)
	}
}

func TestThroughput(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2efast", 2, "set all rtt=2ms rate=3gbit")
	var best float64
	for range 3 {
		if best = max(best, l.iperf(t, "east", "west", "-t", "2", "-O", "1")); best >= 2e9 {
			break
		}
	}
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.2f Gbit/s; %d of %d writes late", best/1e9, st.Router.Late, st.Router.Written)
	if best < 2e9 {
		t.Errorf("%.2f Gbit/s of TCP at a rate of 3", best/1e9)
	}
}

func TestBuffer(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2ebuffer", 2, "set all delay=1ms rate=10mbit buffer=60000")
	a, b := l.udp(t, "east", 0), l.udp(t, "west", 0)
	began := time.Now()
	numbered(t, a, b, 200, 1500, 0)
	burst := time.Since(began)
	got := collect(b, 300*time.Millisecond)
	// 40 fit; what is sent on while the burst comes in makes room for some more.
	most := 41 + int(burst/(1200*time.Microsecond))
	var last time.Duration
	for _, r := range got {
		last = max(last, r.took)
	}
	t.Logf("%d of 200 arrived, the last after %v; the burst took %v", len(got), last, burst)
	if len(got) < 40 || len(got) > most {
		t.Errorf("%d arrived, want 40 to %d", len(got), most)
	}
	if full := 49 * time.Millisecond; last < full-2*time.Millisecond || last > full+5*time.Millisecond {
		t.Errorf("a full buffer takes %v, want %v", last, full)
	}
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Paths {
		if p.Queue.BytesMax > 60000 || p.From == "east" && p.Queue.BytesMax < 58000 {
			t.Errorf("%s to %s: %d bytes in a buffer of 60000", p.From, p.To, p.Queue.BytesMax)
		}
	}
}

func TestLossReorderJitter(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2eloss", 2, "set all delay=2ms", "set east west one-way loss=10%")
	a, b := l.udp(t, "east", 1), l.udp(t, "west", 1)
	const n = 4000
	done := make(chan []received)
	go func() { done <- collect(b, 400*time.Millisecond) }()
	numbered(t, a, b, n, 200, 20*time.Microsecond)
	got := <-done
	// Five standard deviations of a binomial distribution.
	if lost, sd := float64(n-len(got)), math.Sqrt(n*0.1*0.9); math.Abs(lost-n*0.1) > 5*sd {
		t.Errorf("%.0f of %d lost at 10 %%", lost, n)
	}
	l.do(t, "set east west one-way loss=0 reorder=5% reorder-by=3ms")
	go func() { done <- collect(b, 400*time.Millisecond) }()
	numbered(t, a, b, 1000, 200, 200*time.Microsecond)
	got = <-done
	late, last := 0, -1
	for _, r := range got {
		if r.n < last {
			late++
		}
		last = max(last, r.n)
	}
	if len(got) != 1000 || late < 20 || late > 90 {
		t.Errorf("%d of %d came late at 5 %%", late, len(got))
	}
	l.do(t, "set east west one-way reorder=0 jitter=1500us")
	go func() { done <- collect(b, 400*time.Millisecond) }()
	numbered(t, a, b, 300, 200, 4*time.Millisecond/4)
	got = <-done
	var low, high int
	for i, r := range got {
		if r.n != i {
			t.Fatalf("packet %d in place %d", r.n, i)
		}
		if r.took < 1500*time.Microsecond {
			low++
		} else if r.took > 2500*time.Microsecond {
			high++
		}
	}
	if len(got) != 300 || low < 5 || high < 50 {
		t.Errorf("jitter: %d of %d below 1.5 ms, %d above 2.5 ms", low, len(got), high)
	}
}

// TestContentSurvives: TCP through loss, reordering and a queue that cuts super-packets anywhere, on both families.
func TestContentSurvives(t *testing.T) {
	l := newTestLab(t, "e2ebytes", 2, "set all delay=1ms rate=300mbit buffer=100000 loss=0.3% reorder=0.5%")
	for _, n := range []int{0, 2} {
		s, _ := l.Site("west")
		var ln net.Listener
		l.at(t, "west", func() (err error) {
			ln, err = net.Listen("tcp", netip.AddrPortFrom(s.Addresses[n], 0).String())
			return err
		})
		data := make([]byte, 12<<20)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], rnd.Uint64())
		}
		sum := make(chan [32]byte, 1)
		go func() {
			defer close(sum)
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			got, _ := io.ReadAll(c)
			sum <- sha256.Sum256(got)
		}()
		var fd net.Conn
		l.at(t, "east", func() (err error) {
			fd, err = net.DialTimeout("tcp", ln.Addr().String(), 5*time.Second)
			return err
		})
		_ = fd.SetDeadline(time.Now().Add(15 * time.Second))
		if _, err := fd.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = fd.Close()
		if <-sum != sha256.Sum256(data) {
			t.Errorf("address %d: other bytes", n)
		}
		_ = ln.Close()
	}
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if p := st.Paths[0]; p.Lost == 0 || p.Reordered == 0 || p.DroppedQueue == 0 || st.Router.WriteErrors > 0 || st.Router.Malformed > 0 {
		t.Errorf("nothing was in its way: %+v %+v", p, st.Router)
	}
	if st.Router.MemoryUsed > 2<<20 {
		t.Errorf("%d bytes of packets are not given back", st.Router.MemoryUsed)
	}
}

func TestPartition(t *testing.T) {
	l := newTestLab(t, "e2ecut", 3, "set all delay=50ms")
	a, b, c := l.udp(t, "east", 0), l.udp(t, "west", 0), l.udp(t, "north", 0)
	numbered(t, a, b, 10, 100, 0)
	l.do(t, "partition east west")
	numbered(t, a, b, 10, 100, 0)
	numbered(t, b, a, 10, 100, 0)
	numbered(t, a, c, 10, 100, 0)
	if got := collect(b, 150*time.Millisecond); len(got) != 0 {
		t.Errorf("%d packets through a partition", len(got))
	}
	if got := collect(a, 50*time.Millisecond); len(got) != 0 {
		t.Errorf("%d packets back through a partition", len(got))
	}
	if got := collect(c, 50*time.Millisecond); len(got) != 10 {
		t.Errorf("%d of 10 packets beside the partition", len(got))
	}
	// Played: healed one way, then all.
	s, err := ParseScenario([]byte("steps: [{at: 0s, do: heal west east one-way}, {at: 200ms, do: heal}]"), l.SiteNames())
	if err != nil {
		t.Fatal(err)
	}
	began, steps := time.Now(), 0
	if err := l.Play(t.Context(), s, func(at time.Duration, words []string) {
		steps++
		if d := at - s.Steps[steps-1].At; d < 0 || d > 100*time.Millisecond {
			t.Errorf("step %v at %v", words, at)
		}
		if steps == 1 {
			numbered(t, a, b, 10, 100, 0)
			numbered(t, b, a, 10, 100, 0)
		}
	}); err != nil || steps != 2 || time.Since(began) < 200*time.Millisecond {
		t.Fatalf("%d steps: %v", steps, err)
	}
	if got := collect(a, 50*time.Millisecond); len(got) != 10 {
		t.Errorf("%d of 10 packets after it was healed", len(got))
	}
	numbered(t, a, b, 10, 100, 0)
	if got := collect(b, 150*time.Millisecond); len(got) != 10 {
		t.Errorf("%d of 10 packets after all was healed", len(got))
	}
}

func TestDownAfterCrashes(t *testing.T) {
	l := newTestLab(t, "e2ecrash", 2)
	if _, err := Up(t.Context(), Options{Spec: &l.Spec}); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	st, err := l.Status()
	if err != nil || !st.Router.Running || len(st.Paths) != 2 {
		t.Fatalf("%+v %v", st, err)
	}
	if err := l.Do("set", "east", "west", "buffer=10"); !errors.Is(err, router.ErrSetting) {
		t.Errorf("a buffer of 10 bytes: %v", err)
	}
	stubborn := exec.Command("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
	if err := l.Start("east", stubborn); err != nil {
		t.Fatal(err)
	}
	go func() { _ = stubborn.Wait() }()
	r, err := os.FindProcess(st.Router.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if st, err = l.Status(); err == nil && !st.Router.Running {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || st.Router.Running || len(st.Sites[0].Processes) == 0 {
		t.Errorf("%+v %v", st, err)
	}
	if err := l.Do("heal"); !errors.Is(err, ErrNoRouter) {
		t.Errorf("without a router: %v", err)
	}
	// Nor is the state needed.
	if err := os.RemoveAll(stateDir(l.Name)); err != nil {
		t.Fatal(err)
	}
	if names, err := List(); err != nil || !slices.Contains(names, l.Name) {
		t.Errorf("%v %v", names, err)
	}
	if err := Down(l.Name, 200*time.Millisecond, io.Discard); err != nil {
		t.Fatal(err)
	}
	if left, err := find(l.Name); err != nil || left.any() {
		t.Errorf("left behind: %v %v", left, err)
	}
	if err := Down(l.Name, 0, io.Discard); !errors.Is(err, ErrNoLab) {
		t.Errorf("nothing to end: %v", err)
	}
	// The cleanup of the test wants a lab to end.
	if _, err := Up(t.Context(), Options{Spec: &l.Spec}); err != nil {
		t.Fatal(err)
	}
}

// TestNodes starts dozo nodes, if DOZO_BIN says with what program.
func TestNodes(t *testing.T) {
	program := os.Getenv("DOZO_BIN")
	if program == "" {
		t.Skip("DOZO_BIN names no program")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	const name = "e2enodes"
	spec, err := NewSpec(name, NodeSites([]string{"east", "west"}, 1), 2)
	if err != nil {
		t.Fatal(err)
	}
	spec.Nodes, spec.Dir = 1, t.TempDir()
	if err := Down(name, 0, io.Discard); err != nil && !errors.Is(err, ErrNoLab) {
		t.Fatal(err)
	}
	l, err := Up(t.Context(), Options{Spec: spec, Program: program, Commands: [][]string{{"set", "all", "rtt=10ms", "rate=1gbit"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Nodes whose data nobody wants again need not drain.
		if err := Down(name, time.Second, io.Discard); err != nil {
			t.Error(err)
		}
	})
	st, err := l.Status()
	if err != nil || len(st.Nodes) != 3 {
		t.Fatalf("%+v %v", st, err)
	}
	for _, n := range st.Nodes {
		if n.PID == 0 {
			t.Errorf("%s does not run", n.Name)
		}
	}
	c := exec.Command(program, "status", "-o", "json")
	c.Env = append(os.Environ(), l.Env()...)
	if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte(`"west-1"`)) {
		t.Errorf("status: %v\n%s", err, out)
	}
	// The voters speak to each other through the router.
	counts, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range counts.Paths {
		if p.Delivered == 0 {
			t.Errorf("nothing passed from %s to %s", p.From, p.To)
		}
	}
}
