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
// They need root and the Debian packages iproute2, iputils-ping, iperf3 and tcpdump. What counts packets waits until the
// router has accounted for each; what measures time is measured again while the router's own account (dozo lab stat)
// says that the machine kept it from its work, and so does a clock of the test's own (measured).

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

// TestDelay: no packet comes early, ever. That none comes late can be asked of the router only as far as the machine lets
// it: the long form wants the median of a round within the 0.3 ms each way that a lab promises, the short form, which
// runs beside other work, the quickest packet of it.
func TestDelay(t *testing.T) {
	l := newTestLab(t, "e2edelay", 3, "set all rtt=18ms", "set east north one-way delay=40ms", "set north east one-way delay=3ms")
	late := median[time.Duration]
	if testing.Short() {
		late = slices.Min[[]time.Duration]
	}
	st, err := l.State()
	if err != nil {
		t.Fatal(err)
	}
	// A round has 30 packets, whose times are the kernel's: that the router was late with a few of them is no excuse for the
	// median, nor for the quickest. A router without real-time priority does not see how late it takes what comes.
	quiet := func(late, stalls uint64, _ int) bool { return st.Counts.RealTime && late+stalls <= 7 }
	for _, c := range []struct {
		from, to string
		want     time.Duration
	}{{"east", "10.77.2.1", 18 * time.Millisecond}, {"west", "fd77:0:0:3::2", 18 * time.Millisecond}, {"north", "10.77.1.2", 43 * time.Millisecond}} {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			l.measuredBut(t, quiet, func() error {
				rtts := l.ping(t, c.from, c.to)
				if m := slices.Min(rtts); m < c.want {
					t.Fatalf("a packet was back after %v, want %v", m, c.want)
				}
				t.Logf("median %v, least %v of %d, want %v", median(rtts), rtts[0], len(rtts), c.want)
				if m := late(rtts); m > c.want+600*time.Microsecond {
					return fmt.Errorf("%v, want %v within 0.3 ms each way", m, c.want)
				}
				return nil
			})
		})
	}
	t.Run("each way", func(t *testing.T) {
		l.measuredBut(t, quiet, func() error {
			there, back := l.oneWay(t)
			if len(there) < 25 || len(back) < 25 {
				return fmt.Errorf("%d and %d of 30 packets were captured at both ends: %w", len(there), len(back), errUnfit)
			}
			t.Logf("captured: median %v there, %v back; least %v and %v", median(there), median(back), there[0], back[0])
			for _, c := range []struct {
				got  []time.Duration
				want time.Duration
			}{{there, 40 * time.Millisecond}, {back, 3 * time.Millisecond}} {
				// The capture takes the time a little after the router gets the packet, or a little before it has it.
				if m := slices.Min(c.got); m < c.want-50*time.Microsecond {
					t.Fatalf("a packet came after %v, want %v", m, c.want)
				}
				if m := late(c.got); m > c.want+300*time.Microsecond {
					return fmt.Errorf("%v one way, want %v", m, c.want)
				}
			}
			return nil
		})
	})
}

// ping sends 30 packets, and gives the times after which they were back.
func (l *Lab) ping(t *testing.T, from, to string) []time.Duration {
	t.Helper()
	var rtts []time.Duration
	for line := range strings.Lines(string(l.command(t, from, "ping", "-n", "-c", "30", "-i", "0.02", to))) {
		if _, after, ok := strings.Cut(line, "time="); ok {
			d, err := time.ParseDuration(strings.ReplaceAll(strings.TrimSpace(after), " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			rtts = append(rtts, d)
		}
	}
	if len(rtts) != 30 {
		t.Fatalf("%d of 30 packets were back", len(rtts))
	}
	return rtts
}

// oneWay gives what packets from east to north and back took: captures at both ends have one clock.
func (l *Lab) oneWay(t *testing.T) (there, back []time.Duration) {
	t.Helper()
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
	for k, e := range seen["east"] {
		if n, ok := seen["north"][k]; ok && k.kind == 8 {
			there = append(there, n-e)
		} else if ok {
			back = append(back, e-n)
		}
	}
	return there, back
}

func TestRate(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2erate", 3)
	for _, c := range []struct {
		rate string
		want float64
	}{{"5mbit", 5e6}, {"100mbit", 100e6}} {
		t.Run("UDP at "+c.rate, func(t *testing.T) {
			l.do(t, "set all rtt=4ms rate="+c.rate)
			l.measured(t, func() error {
				stop := l.capture(t, "west", "udp")
				l.iperf(t, "east", "west", "-u", "-l", "1472", "-t", "2", "-b", strconv.Itoa(int(c.want*1.5)))
				got := lineRate(stop())
				t.Logf("%.0f bit/s", got)
				if math.Abs(got/c.want-1) > 0.01 {
					return fmt.Errorf("%.0f bit/s", got)
				}
				return nil
			})
		})
	}
	// TCP in super-packets: 1448 bytes of payload in 1500, as far as congestion control keeps the line full.
	t.Run("TCP at 500mbit", func(t *testing.T) {
		l.do(t, "set all rtt=4ms rate=500mbit")
		l.measured(t, func() error {
			stop := l.capture(t, "west", "tcp and greater 1000")
			l.iperf(t, "east", "west", "-t", "2")
			list := stop()
			list = list[len(list)/2:]
			if len(list) < 2 {
				return fmt.Errorf("%d packets were captured: %w", len(list), errUnfit)
			}
			super := 0
			var bytes float64
			for _, p := range list[1:] {
				// A super-packet stands for segments with 52 bytes of headers each.
				segs := math.Ceil(float64(p.bytes-52) / 1448)
				bytes += float64(p.bytes) + (segs-1)*52
				if segs > 1 {
					super++
				}
			}
			got := bytes * 8 / (list[len(list)-1].at - list[0].at).Seconds()
			t.Logf("%.0f bit/s; %d of %d were super-packets", got, super, len(list))
			if got > 505e6 || got < 450e6 || super == 0 {
				return fmt.Errorf("%.0f bit/s", got)
			}
			return nil
		})
	})
	t.Run("an access link is shared by all paths", func(t *testing.T) {
		l.do(t, "set all rate=unlimited rtt=2ms")
		l.do(t, "set north down=20mbit")
		dst := l.udp(t, "north", 0)
		sockets := []*net.UDPConn{l.udp(t, "east", 0), l.udp(t, "west", 1)}
		l.measured(t, func() error {
			stop := l.capture(t, "north", "udp")
			done := make(chan struct{})
			for _, a := range sockets {
				go func() {
					numbered(t, a, dst, 2500, 1500, 600*time.Microsecond)
					done <- struct{}{}
				}()
			}
			<-done
			<-done
			if got := lineRate(stop()); math.Abs(got/20e6-1) > 0.01 {
				return fmt.Errorf("%.0f bit/s over an access link of 20 Mbit/s", got)
			}
			return nil
		})
	})
}

// TestThroughput: what the machine has left for the router is not in the router's account, so the best of ten counts.
func TestThroughput(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2efast", 2, "set all rtt=2ms rate=3gbit")
	var best float64
	for range 10 {
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
	l.measured(t, func() error {
		before := l.path(t, "east", "west")
		began := time.Now()
		numbered(t, a, b, 200, 1500, 0)
		burst := time.Since(began)
		after := l.settled(t, "east", "west", before.Sent+200)
		arrived := int(after.Delivered - before.Delivered)
		got := receive(b, arrived)
		// 40 fit; what is sent on while the burst comes in makes room for some more.
		most := 41 + int(burst/(1200*time.Microsecond))
		var last time.Duration
		for _, r := range got {
			last = max(last, r.took)
		}
		t.Logf("%d of 200 arrived, the last after %v; the burst took %v", len(got), last, burst)
		if len(got) != arrived || arrived < 40 || after.Queue.BytesMax > 60000 {
			t.Fatalf("%d of %d arrived; up to %d bytes were in a buffer of 60000", len(got), arrived, after.Queue.BytesMax)
		}
		if arrived > most || after.Queue.BytesMax < 58000 {
			return fmt.Errorf("%d arrived, want 40 to %d; up to %d bytes were in a buffer of 60000", arrived, most, after.Queue.BytesMax)
		}
		if full := 49 * time.Millisecond; last < full-2*time.Millisecond || last > full+5*time.Millisecond {
			return fmt.Errorf("a full buffer takes %v, want %v", last, full)
		}
		return nil
	})
}

func TestLossReorderJitter(t *testing.T) {
	long(t)
	l := newTestLab(t, "e2eloss", 2, "set all delay=2ms", "set east west one-way loss=10%")
	a, b := l.udp(t, "east", 1), l.udp(t, "west", 1)
	// send gives what arrived of n packets.
	send := func(n int, pause time.Duration) []received {
		t.Helper()
		before := l.path(t, "east", "west")
		numbered(t, a, b, n, 200, pause)
		after := l.settled(t, "east", "west", before.Sent+uint64(n))
		arrived := int(after.Delivered - before.Delivered)
		got := receive(b, arrived)
		if len(got) != arrived {
			t.Fatalf("%d packets arrived of %d that were delivered", len(got), arrived)
		}
		return got
	}
	const n = 4000
	// Five standard deviations of a binomial distribution.
	if lost, sd := float64(n-len(send(n, 0))), math.Sqrt(n*0.1*0.9); math.Abs(lost-n*0.1) > 5*sd {
		t.Errorf("%.0f of %d lost at 10 %%", lost, n)
	}
	l.do(t, "set east west one-way loss=0 reorder=5% reorder-by=3ms")
	l.measured(t, func() error {
		got := send(1000, 200*time.Microsecond)
		late, last := 0, -1
		for _, r := range got {
			if r.n < last {
				late++
			}
			last = max(last, r.n)
		}
		if len(got) != 1000 || late > 90 {
			t.Fatalf("%d of %d came late at 5 %%", late, len(got))
		}
		// One is overtaken only if others are sent within 3 ms.
		if late < 20 {
			return fmt.Errorf("%d of %d came late at 5 %%", late, len(got))
		}
		return nil
	})
	l.do(t, "set east west one-way reorder=0 jitter=1500us")
	l.measured(t, func() error {
		got := send(300, time.Millisecond)
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
		if len(got) != 300 {
			t.Fatalf("%d of 300 arrived", len(got))
		}
		if low < 5 || high < 50 {
			return fmt.Errorf("jitter: %d of %d below 1.5 ms, %d above 2.5 ms", low, len(got), high)
		}
		return nil
	})
}

// TestContentSurvives: TCP through loss, reordering and a queue that cuts super-packets anywhere, on both families.
func TestContentSurvives(t *testing.T) {
	l := newTestLab(t, "e2ebytes", 2, "set all delay=1ms rate=300mbit buffer=100000 loss=0.3% reorder=0.5%")
	var p PathStat
	// A sender that gets little of the machine may not fill the buffer: then a smaller one, at last one below what TCP
	// begins with.
	for _, buffer := range []int{100000, 40000, 12000} {
		l.do(t, "set all buffer="+strconv.Itoa(buffer))
		for _, n := range []int{0, 2} {
			l.sameBytes(t, n)
		}
		if p = l.path(t, "east", "west"); p.DroppedQueue > 0 {
			break
		}
	}
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if p.Lost == 0 || p.Reordered == 0 || p.DroppedQueue == 0 || st.Router.WriteErrors > 0 || st.Router.Malformed > 0 {
		t.Errorf("nothing was in its way: %+v %+v", p, st.Router)
	}
	if st.Router.MemoryUsed > 2<<20 {
		t.Errorf("%d bytes of packets are not given back", st.Router.MemoryUsed)
	}
}

// sameBytes sends 12 MiB over TCP from east to the n-th address of west, and compares.
func (l *Lab) sameBytes(t *testing.T, n int) {
	t.Helper()
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
		fd, err = net.DialTimeout("tcp", ln.Addr().String(), time.Minute)
		return err
	})
	_ = fd.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := fd.Write(data); err != nil {
		t.Fatal(err)
	}
	_ = fd.Close()
	if <-sum != sha256.Sum256(data) {
		t.Errorf("address %d: other bytes", n)
	}
	_ = ln.Close()
}

func TestPartition(t *testing.T) {
	l := newTestLab(t, "e2ecut", 3)
	a, b, c := l.udp(t, "east", 0), l.udp(t, "west", 0), l.udp(t, "north", 0)
	// What is under way when the cut comes does not arrive. What arrived before it, on a machine that stalls, is no
	// proof of anything: then again over a longer way.
	for delay := 50 * time.Millisecond; ; delay *= 4 {
		l.do(t, "set all delay="+delay.String())
		before := l.path(t, "east", "west")
		numbered(t, a, b, 10, 100, 0)
		l.taken(t, "east", "west", before.Sent+10)
		l.do(t, "partition east west")
		arrived := int(l.path(t, "east", "west").Delivered - before.Delivered)
		after := l.settled(t, "east", "west", before.Sent+10)
		cut := int(after.DroppedCut - before.DroppedCut)
		if got := receive(b, arrived); len(got) != arrived || arrived+cut != 10 {
			t.Fatalf("%d packets arrived, of 10 of which %d were delivered before the cut and %d cut off", len(got), arrived, cut)
		}
		if arrived == 0 {
			break
		}
		if delay > 5*time.Second {
			t.Fatalf("%d of 10 packets were not on their way for %v", arrived, delay)
		}
		l.do(t, "heal")
	}
	l.do(t, "set all delay=50ms")
	for _, way := range []struct {
		from, to string
		a, b     *net.UDPConn
		want     int
	}{{"east", "west", a, b, 0}, {"west", "east", b, a, 0}, {"east", "north", a, c, 10}} {
		before := l.path(t, way.from, way.to)
		numbered(t, way.a, way.b, 10, 100, 0)
		after := l.settled(t, way.from, way.to, before.Sent+10)
		if got, cut := receive(way.b, way.want), after.DroppedCut-before.DroppedCut; len(got) != way.want || int(cut) != 10-way.want {
			t.Errorf("%s to %s: %d of 10 packets arrived, %d were cut off", way.from, way.to, len(got), cut)
		}
	}
	// Played: healed one way, then all.
	s, err := ParseScenario([]byte("steps: [{at: 0s, do: heal west east one-way}, {at: 200ms, do: heal}]"), l.SiteNames())
	if err != nil {
		t.Fatal(err)
	}
	began, steps := time.Now(), 0
	if err := l.Play(t.Context(), s, func(at time.Duration, words []string) {
		steps++
		if want := s.Steps[steps-1].At; at < want {
			t.Errorf("step %v at %v, before its time %v", words, at, want)
		}
		if steps == 1 {
			there, back := l.path(t, "east", "west"), l.path(t, "west", "east")
			numbered(t, a, b, 10, 100, 0)
			numbered(t, b, a, 10, 100, 0)
			// The router has them before the next step.
			l.taken(t, "east", "west", there.Sent+10)
			l.taken(t, "west", "east", back.Sent+10)
		}
	}); err != nil || steps != 2 || time.Since(began) < 200*time.Millisecond {
		t.Fatalf("%d steps: %v", steps, err)
	}
	if got := receive(a, 10); len(got) != 10 {
		t.Errorf("%d of 10 packets after it was healed", len(got))
	}
	numbered(t, a, b, 10, 100, 0)
	if got := receive(b, 10); len(got) != 10 {
		t.Errorf("%d packets arrived after all was healed, of 10 sent since", len(got))
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
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if st, err = l.Status(); err == nil && !st.Router.Running {
			break
		}
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
	for _, from := range l.SiteNames() {
		for _, to := range l.SiteNames() {
			if from != to {
				l.pathUntil(t, from, to, func(p PathStat) bool { return p.Delivered > 0 })
			}
		}
	}
}
