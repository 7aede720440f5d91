//go:build e2e

package initiator_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

// TestDissectorReadsOwnTarget captures what our target says on several connections at recovery level 1, with SNACKs,
// R2Ts and task management, and lets tshark read it.
func TestDissectorReadsOwnTarget(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("capturing on lo needs root")
	}
	portal := serveMemory(t, func(p *iscsitest.Provider, c *iscsi.Config) { p.Alias, c.PingEvery = "memory", 50*time.Millisecond })
	_, port, _ := net.SplitHostPort(portal.Address)
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
	for {
		if _, err := initiator.Discover(ctx, initiator.Config{Portal: portal.Address}); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(file); err == nil && fi.Size() > 2000 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	o := initiator.DefaultOffer()
	o.HeaderDigest, o.DataDigest, o.ErrorRecoveryLevel = "CRC32C", "CRC32C", 1
	o.InitialR2T, o.ImmediateData, o.MaxBurstLength, o.FirstBurstLength, o.MaxRecvDataSegmentLength = true, false, 64<<10, 64<<10, 16<<10
	var lost atomic.Bool // hooks of several connections run at once
	s, err := initiator.Dial(ctx, initiator.Config{Portal: portal.Address, Target: memName, Offer: &o, Connections: 3, RetransmitAfter: 100 * time.Millisecond,
		Override: []initiator.KeyValue{{Key: "TaskReporting", Value: "FastAbort"}},
		Hooks: initiator.Hooks{In: func(_ uint16, p *initiator.PDU) initiator.Action {
			if p.BHS.Op() == initiator.OpDataIn && len(p.Data) == 16<<10 && lost.CompareAndSwap(false, true) {
				return initiator.Action{Drop: true}
			}
			return initiator.Action{}
		}}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := initiator.OpenDisk(ctx, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		want, got := make([]byte, 200<<10), make([]byte, 200<<10)
		rand.Read(want)
		if err := d.WriteAt(ctx, want, int64(i)<<20, false); err != nil {
			t.Fatal(err)
		}
		if err := d.ReadAt(ctx, got, int64(i)<<20); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("equal %v, %v", bytes.Equal(got, want), err)
		}
	}
	if _, err := s.TaskManagement(ctx, initiator.TMFLogicalUnitRst, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Text(ctx, []initiator.KeyValue{{Key: "SendTargets", Value: ""}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // dumpcap hands over in intervals
	capture.Process.Signal(os.Interrupt)
	for sc.Scan() {
	}
	capture.Wait()
	read := func(filter string, more ...string) string {
		out, err := exec.Command("tshark", append([]string{"-r", file, "-d", "tcp.port==" + port + ",iscsi", "-Y", filter}, more...)...).Output()
		if err != nil {
			t.Fatalf("tshark: %v: %s", err, out)
		}
		return string(bytes.TrimSpace(out))
	}
	for _, op := range []string{"0x10", "0x21", "0x22", "0x24", "0x25", "0x26", "0x31"} {
		if read("iscsi.opcode == "+op) == "" {
			t.Errorf("no PDU of opcode %s was captured", op)
		}
	}
	if bad := read("_ws.malformed || (iscsi && _ws.expert.severity == error)"); bad != "" {
		t.Fatalf("malformed:\n%s", bad)
	}
	digests := read("iscsi.headerdigest32 || iscsi.datadigest32", "-V")
	if good, bad := strings.Count(digests, "Good CRC"), strings.Count(digests, "Bad CRC"); good < 50 || bad > 0 {
		t.Fatalf("%d digests good, %d bad", good, bad)
	}
}
