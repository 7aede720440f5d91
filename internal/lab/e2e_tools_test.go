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
	_ = c.SetReadBuffer(8 << 20)
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

// collect reads until nothing has come for idle.
func collect(c *net.UDPConn, idle time.Duration) []received {
	var out []received
	buf := make([]byte, 2000)
	for {
		_ = c.SetReadDeadline(time.Now().Add(idle))
		n, _, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || n < 12 {
			return out
		}
		out = append(out, received{int(binary.BigEndian.Uint32(buf)), time.Duration(time.Now().UnixNano() - int64(binary.BigEndian.Uint64(buf[4:])))})
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
	for range 200 {
		table, err := os.ReadFile("/proc/" + strconv.Itoa(server.Process.Pid) + "/net/tcp")
		if err == nil && bytes.Contains(table, listening) {
			break
		}
		time.Sleep(10 * time.Millisecond)
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
	list = list[len(list)/5:]
	bytes := 0
	for _, p := range list[1:] {
		bytes += p.bytes
	}
	return float64(bytes) * 8 / (list[len(list)-1].at - list[0].at).Seconds()
}
