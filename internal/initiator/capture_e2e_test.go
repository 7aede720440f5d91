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
	"strings"
	"testing"
	"time"

	"dozo/internal/initiator/tgttest"
)

// TestDissectorAgrees captures what this initiator and tgt say to each other and lets tshark read it: a third reading
// of the standard. Capturing needs root and tshark.
func TestDissectorAgrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("capturing on lo needs root")
	}
	tgt := tgttest.Start(t, 64<<20)
	for _, kv := range []KeyValue{{"HeaderDigest", "CRC32C,None"}, {"DataDigest", "CRC32C,None"}, {"InitialR2T", "No"}} {
		tgt.Admin(t, "--op", "update", "--mode", "target", "--tid", "1", "-n", kv.Key, "-v", kv.Value)
	}
	_, port, _ := net.SplitHostPort(tgt.Portal)
	file := filepath.Join(t.TempDir(), "cap.pcapng")
	capture := exec.Command("tshark", "-q", "-i", "lo", "-f", "tcp port "+port, "-w", file, "-B", "64")
	stderr, err := capture.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := capture.Start(); err != nil {
		t.Fatalf("tshark is needed: %v", err)
	}
	sc := bufio.NewScanner(stderr)
	for sc.Scan() && !strings.Contains(sc.Text(), "Capturing on") {
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	// The line comes some time before the first packet is seen: talk until something is in the file.
	for {
		if _, err := Discover(ctx, Config{Portal: tgt.Portal}); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(file); err == nil && fi.Size() > 2000 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, change := range []func(*Offer){
		func(*Offer) {},
		func(o *Offer) { o.HeaderDigest, o.DataDigest = "CRC32C", "CRC32C" },
		func(o *Offer) {
			o.InitialR2T, o.ImmediateData, o.MaxBurstLength, o.FirstBurstLength = true, false, 8192, 8192
		},
		func(o *Offer) { o.ImmediateData, o.FirstBurstLength = false, 16384 },
	} {
		s, err := Dial(ctx, Config{Portal: tgt.Portal, Target: tgt.Target, Offer: offer(change)})
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
	time.Sleep(500 * time.Millisecond) // dumpcap hands over in intervals
	capture.Process.Signal(os.Interrupt)
	for sc.Scan() {
	}
	capture.Wait()

	read := func(filter string, more ...string) string {
		out, err := exec.Command("tshark", append([]string{"-r", file, "-d", "tcp.port==" + port + ",iscsi",
			"-o", "iscsi.demand_good_f_bit:TRUE", "-Y", filter}, more...)...).Output()
		if err != nil {
			t.Fatalf("tshark: %v: %s", err, out)
		}
		return string(bytes.TrimSpace(out))
	}
	if n := strings.Count(read("iscsi"), "\n"); n < 100 {
		t.Fatalf("only %d PDUs were captured", n)
	}
	if bad := read("_ws.malformed || (iscsi && _ws.expert.severity == error)"); bad != "" {
		t.Fatalf("malformed:\n%s", bad)
	}
	digests := read("iscsi.headerdigest32 || iscsi.datadigest32", "-V")
	if good, bad := strings.Count(digests, "Good CRC"), strings.Count(digests, "Bad CRC"); good < 50 || bad > 0 {
		t.Fatalf("%d digests good, %d bad", good, bad)
	}
}
