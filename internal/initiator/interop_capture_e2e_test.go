//go:build e2e

package initiator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/initiator"
)

// everyCommand is one of each command that the target has beyond READ and WRITE, as hexadecimal CDB, with the data that it
// sends and room for what it gets. LOG SENSE of page 00h is left out: tshark 4.0 takes the list of page codes (SPC-4 7.3) for
// log parameters, and calls it malformed where their bytes run out.
var everyCommand = []struct {
	cdb string
	out []byte
	in  int
}{
	{"000000000000", nil, 0}, {"03000000fc00", nil, 252}, {"1200000060", nil, 96}, {"a00000000000000010000000", nil, 4096},
	{"120100ff00", nil, 255}, {"128300", nil, 0},
	{"1201000fff00", nil, 4095}, {"12018000ff00", nil, 255}, {"12018300ff00", nil, 255}, {"12018600ff00", nil, 255}, {"12018700ff00", nil, 255},
	{"12018800ff00", nil, 255}, {"12018f00ff00", nil, 255}, {"1201b000ff00", nil, 255}, {"1201b100ff00", nil, 255}, {"1201b200ff00", nil, 255}, {"1201b700ff00", nil, 255},
	{"a30a00000000000010000000", nil, 4096}, {"a32a00000000000010000000", nil, 4096}, {"a30c8000000000010000", nil, 0},
	{"a30c00000000000040000000", nil, 16384}, {"a30c8183000000001000", nil, 0}, {"a30c82835f0008000010000000", nil, 0}, {"a30d80000000000000100000", nil, 16},
	{"1a003fff00ff", nil, 255}, {"5a083fff00000000ff00", nil, 255}, {"1a000a01ff00", nil, 255}, {"5a100a00000000 00ff00", nil, 255},
	{"4d004c0000000000ff00", nil, 255}, {"2500000000000000 0000", nil, 8}, {"9e10000000000000000000000020 0000", nil, 32},
	{"9e120000000000000000000001000000", nil, 256}, {"37000000000000ff00 00", nil, 255}, {"b70d0000000000000100 0000", nil, 256},
	{"1e0000000000", nil, 0}, {"1b0000000100", nil, 0}, {"1d0400000000", nil, 0}, {"34000000000000000800", nil, 0}, {"90000000000000000000000000080000", nil, 0},
	{"35000000000000000000", nil, 0}, {"91000000000000000000000000000000", nil, 0}, {"2f000000000000000800", nil, 0}, {"8f000000000000000000000000080000", nil, 0},
	{"2e000000000000000100", make([]byte, 512), 0}, {"41000000000000000800", make([]byte, 512), 0}, {"93080000000000000000000000080000", make([]byte, 512), 0},
	{"89000000000000000000000000010000", make([]byte, 1024), 0}, {"8b000000000000000000000000010000", make([]byte, 512), 0}, {"9c000000000000000000000000080000", make([]byte, 4096), 0},
	{"42000000000000001800", []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 8, 0, 0, 0, 0}, 0},
	{"5e00000000000000ff00", nil, 255}, {"5e01000000000000ff00", nil, 255}, {"5e02000000000000ff00", nil, 255},
	{"5f000000000000001800", append(make([]byte, 15), 7, 0, 0, 0, 0, 0, 0, 0, 0), 0}, {"5f010100000000001800", append([]byte{0, 0, 0, 0, 0, 0, 0, 7}, make([]byte, 16)...), 0},
	{"5e03000000000000ff00", nil, 255}, {"5f080100000000001800", append(make([]byte, 15), 7, 0, 0, 0, 0, 0, 0, 0, 0), 0}, {"5f030000000000001800", append([]byte{0, 0, 0, 0, 0, 0, 0, 7}, make([]byte, 16)...), 0},
	{"560000000000000000 00", nil, 0}, {"57000000000000000000", nil, 0}, {"160000000000", nil, 0}, {"170000000000", nil, 0},
	{"8303000000000000000000000000 0000", nil, 0}, {"84030000000000000000000001000000", nil, 256}, {"84000100000000000000000001000000", nil, 256},
	{"83000000000000000000000000000000", nil, 0}, {"83010000000000000000000000000000", nil, 0},
	{"8310000000000000000100000020 0000", []byte{0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0}, 0},
	{"84070000000100000000000004000000", nil, 1024}, {"84050000000100000000000001000000", nil, 256}, {"831c0000000100000000000000000000", nil, 0},
	{"4802000000000000 0000", nil, 0}, {"a40a00000000000000080000", []byte{0, 0, 0, 0, 0, 0, 0, 1}, 0}, {"48030000000000000000", nil, 0}, {"7f000000000000000000", nil, 0},
}

// sayEverything sends each command and each task management function; what they come to is not looked at.
func sayEverything(ctx context.Context, t *testing.T, s *initiator.Session) {
	t.Helper()
	for _, x := range everyCommand {
		cdb, err := hex.DecodeString(strings.ReplaceAll(x.cdb, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", x.cdb, err)
		}
		c := &initiator.Command{Out: x.out}
		copy(c.CDB[:], cdb)
		if x.in > 0 {
			c.In = make([]byte, x.in)
		}
		if err := s.Do(ctx, c); c.Err != nil {
			t.Fatalf("%s: %v, %v", x.cdb, err, c.Err)
		}
	}
	for _, fn := range []initiator.TMF{1, 2, 3, 4, 6, 9, 10, 12} { // 9 and on: RFC 7144
		if _, err := s.TaskManagement(ctx, fn, 0, nil); err != nil && fn != 1 {
			t.Fatalf("task management function %d: %v", fn, err)
		}
	}
}

// TestDissectorReadsOwnTarget captures what our target says on several connections at recovery level 1, with SNACKs,
// R2Ts, task management, and each command that it has, and lets tshark read it. The target's pings are at a portal without
// data digests, on which tshark's guess (Misread) can not go wrong.
func TestDissectorReadsOwnTarget(t *testing.T) {
	portal := serveMemory(t, func(p *iscsitest.Provider, c *iscsi.Config) { p.Alias, c.PingEvery = "memory", -1 })
	pinging := serveMemory(t, func(_ *iscsitest.Provider, c *iscsi.Config) {
		c.PingEvery, c.PingTimeout = 50*time.Millisecond, time.Hour
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c := initiator.Captures(ctx, t, portal.Address, []string{portal.Address, pinging.Address}, func() {
		talkOfEverything(ctx, t, portal.Address)
		answerPings(ctx, t, pinging.Address)
	})
	seen := c.Opcodes(t)
	for _, op := range []string{"0x00", "0x10", "0x20", "0x21", "0x22", "0x24", "0x25", "0x26", "0x31"} {
		if !slices.Contains(seen, op) {
			t.Errorf("no PDU of opcode %s was captured", op)
		}
	}
	c.Judge(t)
}

func talkOfEverything(ctx context.Context, t *testing.T, portal string) {
	t.Helper()
	o := initiator.DefaultOffer()
	o.HeaderDigest, o.DataDigest, o.ErrorRecoveryLevel = "CRC32C", "CRC32C", 1
	o.InitialR2T, o.ImmediateData, o.MaxBurstLength, o.FirstBurstLength, o.MaxRecvDataSegmentLength = true, false, 64<<10, 64<<10, 16<<10
	var lost atomic.Bool // hooks of several connections run at once
	// Nothing is sent again because the machine is slow: the one SNACK is for the PDU that is dropped here.
	s, err := initiator.Dial(ctx, initiator.Config{Portal: portal, Target: memName, Offer: &o, Connections: 3,
		LoginTimeout: time.Hour, NopInterval: -1, RetransmitAfter: time.Hour,
		Override: []initiator.KeyValue{{Key: "TaskReporting", Value: "FastAbort"}, {Key: "iSCSIProtocolLevel", Value: "2"}},
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
	sayEverything(ctx, t, s)
	if _, err := s.TaskManagement(ctx, initiator.TMFLogicalUnitRst, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Text(ctx, []initiator.KeyValue{{Key: "SendTargets", Value: ""}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// answerPings keeps a session until the target has pinged it three times.
func answerPings(ctx context.Context, t *testing.T, portal string) {
	t.Helper()
	o := initiator.DefaultOffer()
	o.HeaderDigest = "CRC32C"
	pinged := make(chan struct{}, 3)
	s, err := initiator.Dial(ctx, initiator.Config{Portal: portal, Target: memName, Offer: &o, LoginTimeout: time.Hour, NopInterval: -1,
		Hooks: initiator.Hooks{In: func(_ uint16, p *initiator.PDU) initiator.Action {
			if p.BHS.Op() == initiator.OpNopIn {
				select {
				case pinged <- struct{}{}:
				default:
				}
			}
			return initiator.Action{}
		}}})
	if err != nil {
		t.Fatal(err)
	}
	for range cap(pinged) {
		select {
		case <-pinged:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
