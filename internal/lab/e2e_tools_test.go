//go:build e2e

package lab

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dozo/internal/lab/router"
)

// long leaves a test out of the short form, in which the machine may have a lot of other work.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("not in the short form")
	}
}

func newTestLab(t *testing.T, name string, sites int, commands ...string) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	names, err := ParseSites(strconv.Itoa(sites))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := NewSpec(name, names, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(name, 0, io.Discard); err != nil && !errors.Is(err, ErrNoLab) {
		t.Fatal(err)
	}
	o := Options{Spec: spec, Seed: 1}
	for _, c := range commands {
		o.Commands = append(o.Commands, strings.Fields(c))
	}
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			st, _ := l.Stat()
			text, _ := json.Marshal(st)
			t.Logf("%s", text)
		}
		if err := Down(name, time.Second, io.Discard); err != nil {
			t.Error(err)
		}
		if left, err := find(name); err != nil || left.any() {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	return l
}

func (l *Lab) do(t *testing.T, line string) {
	t.Helper()
	if err := l.Do(strings.Fields(line)...); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

// command runs a command at a site and gives its output.
func (l *Lab) command(t *testing.T, site string, args ...string) []byte {
	t.Helper()
	var out, problems bytes.Buffer
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Stdout, c.Stderr = &out, &problems
	if err := l.Start(site, c); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, problems.Bytes(), out.Bytes())
	}
	return out.Bytes()
}

// at calls f in a site's namespace.
func (l *Lab) at(t *testing.T, site string, f func() error) {
	t.Helper()
	s, err := l.Site(site)
	if err != nil {
		t.Fatal(err)
	}
	if err := router.InNetNS(netnsPath(s.NetNS), f); err != nil {
		t.Fatal(err)
	}
}

// udp opens a socket at a site, on its n-th address.
func (l *Lab) udp(t *testing.T, site string, n int) *net.UDPConn {
	t.Helper()
	s, err := l.Site(site)
	if err != nil {
		t.Fatal(err)
	}
	var c *net.UDPConn
	l.at(t, site, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.Addresses[n], 0)))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// All of a test's packets fit in, however long nobody reads them.
	var forced error
	if err := raw.Control(func(fd uintptr) {
		forced = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	}); err != nil || forced != nil {
		t.Fatal(err, forced)
	}
	return c
}

func addrOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// numbered sends n packets of a size, numbered, from a to b.
func numbered(t *testing.T, a, b *net.UDPConn, n, size int, pause time.Duration) {
	t.Helper()
	head := 28
	if addrOf(b).Addr().Is6() {
		head = 48
	}
	buf := make([]byte, size-head)
	for i := range n {
		binary.BigEndian.PutUint32(buf, uint32(i))
		binary.BigEndian.PutUint64(buf[4:], uint64(time.Now().UnixNano()))
		if _, err := a.WriteToUDPAddrPort(buf, addrOf(b)); err != nil {
			t.Fatal(err)
		}
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}

type received struct {
	n    int
	took time.Duration
}

// receive reads n packets, for which it waits, and any more that are there. When they came is the kernel's account.
func receive(c *net.UDPConn, n int) []received {
	var out []received
	buf, oob := make([]byte, 2000), make([]byte, 256)
	for {
		wait := 50 * time.Millisecond
		if len(out) < n {
			wait = time.Minute
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		k, m, _, _, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil || k < 12 {
			return out
		}
		r := received{n: int(binary.BigEndian.Uint32(buf))}
		list, _ := unix.ParseSocketControlMessage(oob[:m])
		for _, c := range list {
			if c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_TIMESTAMPNS && len(c.Data) >= 16 {
				came := int64(binary.NativeEndian.Uint64(c.Data))*1e9 + int64(binary.NativeEndian.Uint64(c.Data[8:]))
				r.took = time.Duration(came - int64(binary.BigEndian.Uint64(buf[4:])))
			}
		}
		out = append(out, r)
	}
}

// path gives what the router says of a direction.
func (l *Lab) path(t *testing.T, from, to string) PathStat {
	t.Helper()
	st, err := l.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Paths {
		if p.From == from && p.To == to {
			return p
		}
	}
	t.Fatalf("no path from %s to %s", from, to)
	return PathStat{}
}

// pathUntil waits until what the router says of a direction is so.
func (l *Lab) pathUntil(t *testing.T, from, to string, so func(PathStat) bool) PathStat {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		p := l.path(t, from, to)
		if so(p) {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s to %s, after a minute: %+v", from, to, p)
		}
	}
}

// taken waits until the router has got that many packets of a direction since the lab was made.
func (l *Lab) taken(t *testing.T, from, to string, sent uint64) {
	t.Helper()
	l.pathUntil(t, from, to, func(p PathStat) bool { return p.Sent >= sent })
}

// settled waits until the router has got that many packets of a direction, and none is under way.
func (l *Lab) settled(t *testing.T, from, to string, sent uint64) PathStat {
	t.Helper()
	return l.pathUntil(t, from, to, func(p PathStat) bool {
		return p.Sent >= sent && p.Sent == p.Delivered+p.DroppedQueue+p.Lost+p.DroppedCut
	})
}

// errUnfit: what was measured says nothing.
var errUnfit = errors.New("no measurement")

// measured runs a measurement of time until it finds what is wanted. It may fail ten times in which by the router's account
// packets left late or were not looked for, or in which this process, too, was kept from running: that is the machine's
// doing, and where it never is quiet the short form leaves the test out, and the long one fails. Three failures of which neither saw a cause fail the test.
func (l *Lab) measured(t *testing.T, f func() error) {
	t.Helper()
	l.measuredBut(t, func(late, stalls uint64, waits int) bool { return late == 0 && stalls == 0 && waits == 0 }, f)
}

// measuredBut says itself what is no excuse.
func (l *Lab) measuredBut(t *testing.T, quiet func(late, stalls uint64, waits int) bool, f func() error) {
	t.Helper()
	for noisy, failed := 0, 0; ; {
		before, errBefore := l.Stat()
		slow := overslept()
		err := f()
		waits := slow()
		after, errAfter := l.Stat()
		if errBefore != nil || errAfter != nil {
			t.Fatal(errBefore, errAfter)
		}
		if err == nil {
			return
		}
		late, stalls := after.Router.Late-before.Router.Late, after.Router.Stalls-before.Router.Stalls
		t.Logf("%v; meanwhile the router was late with %d runs of packets and stalled %d times, and this process %d times", err, late, stalls, waits)
		if !quiet(late, stalls, waits) || errors.Is(err, errUnfit) {
			noisy++
		} else {
			failed++
		}
		if failed == 3 {
			t.Fatal(err)
		}
		if noisy == 10 {
			if !testing.Short() { // lab-test is there to measure
				t.Fatalf("this machine is not quiet enough to measure: %v", err)
			}
			t.Skipf("this machine is not quiet enough to measure: %v", err)
		}
	}
}

// overslept counts, until the function that it returns is called, how often this process got to run 3 ms late or more.
func overslept() func() int {
	stop, counted := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			began := time.Now()
			select {
			case <-stop:
				counted <- n
				return
			case <-time.After(time.Millisecond):
			}
			if time.Since(began) > 4*time.Millisecond {
				n++
			}
		}
	}()
	return func() int {
		close(stop)
		return <-counted
	}
}

func median[T ~int64 | ~float64](list []T) T {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}

// capture records a site's packets in a file, until the function that it returns is called, which gives them.
func (l *Lab) capture(t *testing.T, site, filter string) func() []captured {
	t.Helper()
	file := filepath.Join(t.TempDir(), site+".pcap")
	c := exec.Command("tcpdump", "-n", "-i", Device, "-U", "--immediate-mode", "-B", "32768", "-s", "96", "--time-stamp-precision=nano", "-w", file, filter)
	r, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(site, c); err != nil {
		t.Fatal(err)
	}
	// It says so when it listens, maybe after a warning.
	said := make([]byte, 0, 4096)
	for !bytes.Contains(said, []byte("listening on")) {
		n, err := r.Read(said[len(said):cap(said)])
		if err != nil {
			t.Fatalf("tcpdump: %v: %s", err, said)
		}
		said = said[:len(said)+n]
	}
	return func() []captured {
		t.Helper()
		time.Sleep(200 * time.Millisecond) // for what is under way
		_ = c.Process.Signal(unix.SIGINT)
		_, _ = io.Copy(io.Discard, r)
		_ = c.Wait()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return parsePcap(t, text)
	}
}

type captured struct {
	at    time.Duration
	bytes int
	data  []byte
}

// parsePcap reads a file of tcpdump's: 24 bytes of header, then for each packet seconds, nanoseconds, captured and real
// length, and the packet.
func parsePcap(t *testing.T, b []byte) []captured {
	t.Helper()
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b23c4d {
		t.Fatalf("no capture: %d bytes", len(b))
	}
	var out []captured
	for b = b[24:]; len(b) >= 16; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if len(b) < 16+n {
			break
		}
		at := time.Duration(binary.LittleEndian.Uint32(b))*time.Second + time.Duration(binary.LittleEndian.Uint32(b[4:]))
		out = append(out, captured{at, int(binary.LittleEndian.Uint32(b[12:])), b[16 : 16+n]})
		b = b[16+n:]
	}
	return out
}

// iperf runs iperf3 from one site to another and gives what the receiver counted, in bits a second.
func (l *Lab) iperf(t *testing.T, from, to string, args ...string) float64 {
	t.Helper()
	s, err := l.Site(to)
	if err != nil {
		t.Fatal(err)
	}
	address := s.Addresses[0].String()
	server := exec.Command("iperf3", "-s", "-1", "-B", address)
	if err := l.Start(to, server); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	// It is there when it listens.
	listening := []byte(fmt.Sprintf("%08X:1451 ", binary.NativeEndian.Uint32(s.Addresses[0].AsSlice())))
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		table, err := os.ReadFile("/proc/" + strconv.Itoa(server.Process.Pid) + "/net/tcp")
		if err == nil && bytes.Contains(table, listening) {
			break
		}
	}
	// Other work on the machine must not be what is measured.
	out := l.command(t, from, append([]string{"nice", "-n", "-20", "iperf3", "-J", "-c", address}, args...)...)
	var res struct {
		End struct {
			Sum struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum"`
			SumReceived struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return res.End.SumReceived.Bits
}

// lineRate gives the rate of captured packets between the first and the last, after a warm-up, in bits a second.
func lineRate(list []captured) float64 {
	if list = list[len(list)/5:]; len(list) < 2 {
		return 0
	}
	bytes := 0
	for _, p := range list[1:] {
		bytes += p.bytes
	}
	return float64(bytes) * 8 / (list[len(list)-1].at - list[0].at).Seconds()
}
