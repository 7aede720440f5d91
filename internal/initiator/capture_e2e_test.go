//go:build e2e

package initiator

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dozo/internal/initiator/tgttest"
)

// Capture is what tshark captures of what passes over lo at some portals, and how it reads that: a third reading of the
// standard. It needs root and tshark, and belongs to one test.
type Capture struct {
	file    string
	portals []string
	tshark  *exec.Cmd
	said    *bufio.Scanner
}

// captureWait bounds every wait for a process that may get little of the machine.
const captureWait = 3 * time.Minute

// StartCapture begins, and returns when packets come to the file.
func StartCapture(ctx context.Context, t *testing.T, portals ...string) *Capture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("capturing on lo needs root")
	}
	c := &Capture{file: filepath.Join(t.TempDir(), "cap.pcapng"), portals: portals}
	var filter []string
	for _, p := range portals {
		filter = append(filter, "tcp port "+portOf(p))
	}
	c.tshark = exec.Command("tshark", "-q", "-i", "lo", "-f", strings.Join(filter, " or "), "-w", c.file, "-B", "64")
	stderr, err := c.tshark.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.tshark.Start(); err != nil {
		t.Fatalf("tshark is needed: %v", err)
	}
	t.Cleanup(func() { _ = c.tshark.Process.Kill() }) // after Stop it is gone, and this says so to nobody
	c.said = bufio.NewScanner(stderr)
	for c.said.Scan() && !strings.Contains(c.said.Text(), "Capturing on") {
	}
	// The line comes some time before the first packet is seen.
	c.seen(ctx, t, "begin")
	return c
}

func portOf(portal string) string {
	_, port, _ := net.SplitHostPort(portal)
	return port
}

// seen discovers at the first portal, under a name that says what, until it is in the file: so is all that went before.
func (c *Capture) seen(ctx context.Context, t *testing.T, what string) {
	t.Helper()
	name := "iqn.2026-11.test.capture:" + what
	for deadline := time.Now().Add(captureWait); ; time.Sleep(50 * time.Millisecond) {
		if _, err := Discover(ctx, Config{Portal: c.portals[0], Initiator: name}); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(c.file); err == nil && bytes.Contains(text, []byte(name)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing is captured in %v", captureWait)
		}
	}
}

// Stop ends the capture: all that passed before is in it.
func (c *Capture) Stop(ctx context.Context, t *testing.T) {
	t.Helper()
	c.seen(ctx, t, "end")
	_ = c.tshark.Process.Signal(os.Interrupt)
	for c.said.Scan() {
	}
	_ = c.tshark.Wait()
}

// Read gives what tshark prints of the packets that a filter picks.
func (c *Capture) Read(t *testing.T, filter string, more ...string) string {
	t.Helper()
	args := []string{"-r", c.file, "-o", "iscsi.demand_good_f_bit:TRUE", "-Y", filter}
	for _, p := range c.portals {
		args = append(args, "-d", "tcp.port=="+portOf(p)+",iscsi")
	}
	out, err := exec.Command("tshark", append(args, more...)...).Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, out)
	}
	return string(bytes.Trim(out, "\n"))
}

// Opcodes gives every opcode that was captured, as "0x25".
func (c *Capture) Opcodes(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, op := range strings.FieldsFunc(c.Read(t, "iscsi", "-T", "fields", "-e", "iscsi.opcode"), func(r rune) bool { return r == ',' || r == '\n' }) {
		if !slices.Contains(out, op) {
			out = append(out, op)
		}
	}
	return out
}

// Misread says why tshark can not judge what was captured; "": it can. Packets may be missing from a capture. And tshark
// 4.0 does not remember from the login whether a connection has data digests: it guesses, from the first bytes behind a
// header with a header digest. Where those are another PDU (two pings without data that left in one segment, before
// anything with data), it settles on none, takes data digests for the beginnings of PDUs from then on, and finds "wrong"
// digests there by chance. That shows: PDUs with data have no data digest. dataDigests is a portal where they must have.
func (c *Capture) Misread(t *testing.T, dataDigests string) string {
	t.Helper()
	if lost := c.Read(t, "tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment"); lost != "" {
		return "packets are missing from the capture:\n" + lost
	}
	fields := c.Read(t, "iscsi.headerdigest32 && tcp.port == "+portOf(dataDigests),
		"-T", "fields", "-e", "frame.number", "-e", "iscsi.datasegmentlength", "-e", "iscsi.datadigest32")
	for line := range strings.Lines(fields) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		data := 0
		for _, n := range strings.Split(f[1], ",") {
			if n != "0" && n != "0x00000000" && n != "" {
				data++
			}
		}
		if digests := len(strings.FieldsFunc(f[2], func(r rune) bool { return r == ',' })); digests != data {
			return "tshark sees " + f[1] + " bytes of data in the PDUs of packet " + f[0] + ", and of data digests only: " + f[2]
		}
	}
	return ""
}

// Judge fails the test if tshark finds something malformed, or a digest wrong.
func (c *Capture) Judge(t *testing.T) {
	t.Helper()
	if bad := c.Read(t, "_ws.malformed || (iscsi && _ws.expert.severity == error) || (scsi && _ws.expert.severity == error)"); bad != "" {
		t.Fatalf("malformed:\n%s", bad)
	}
	digests := c.Read(t, "iscsi.headerdigest32 || iscsi.datadigest32", "-V")
	if good, bad := strings.Count(digests, "Good CRC"), strings.Count(digests, "Bad CRC"); good < 50 || bad > 0 {
		t.Fatalf("%d digests good, %d bad", good, bad)
	}
}

// Captures runs talk and captures it, until the capture can be judged: five times at most.
func Captures(ctx context.Context, t *testing.T, dataDigests string, portals []string, talk func()) *Capture {
	t.Helper()
	for try := 1; ; try++ {
		c := StartCapture(ctx, t, portals...)
		talk()
		c.Stop(ctx, t)
		why := c.Misread(t, dataDigests)
		if why == "" {
			return c
		}
		if try == 5 {
			t.Fatalf("no capture was fit to be judged: %s", why)
		}
		t.Logf("capture %d is of no use: %s", try, why)
	}
}

// TestDissectorAgrees captures what this initiator and tgt say to each other and lets tshark read it.
func TestDissectorAgrees(t *testing.T) {
	tgt := tgttest.Start(t, 64<<20)
	for _, kv := range []KeyValue{{"HeaderDigest", "CRC32C,None"}, {"DataDigest", "CRC32C,None"}, {"InitialR2T", "No"}} {
		tgt.Admin(t, "--op", "update", "--mode", "target", "--tid", "1", "-n", kv.Key, "-v", kv.Value)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*captureWait)
	defer cancel()
	c := Captures(ctx, t, tgt.Portal, []string{tgt.Portal}, func() {
		for _, change := range []func(*Offer){
			func(*Offer) {},
			func(o *Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C" },
			func(o *Offer) {
				o.InitialR2T, o.ImmediateData, o.MaxBurstLength, o.FirstBurstLength = true, false, 8192, 8192
			},
			func(o *Offer) { o.ImmediateData, o.FirstBurstLength = false, 16384 },
		} {
			s, err := Dial(ctx, Config{Portal: tgt.Portal, Target: tgt.Target, Offer: offer(change), LoginTimeout: captureWait, NopInterval: -1})
			if err != nil {
				t.Fatal(err)
			}
			d, err := OpenDisk(ctx, s, FlatLUN(1))
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, d)
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if err := d.Unmap(ctx, 0, 4096); err != nil {
				t.Logf("unmap: %v", err) // not every backing store does
			}
			if _, err := s.Ping(ctx, []byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.TaskManagement(ctx, TMFAbortTaskSet, d.LUN, nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n := strings.Count(c.Read(t, "iscsi"), "\n"); n < 100 {
		t.Fatalf("only %d PDUs were captured", n)
	}
	c.Judge(t)
}
