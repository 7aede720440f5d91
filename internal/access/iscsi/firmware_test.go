package iscsi_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
)

// TestFirmwareAnswersNoPing: the initiators of iPXE and of UEFI answer no NOP-In at all, against RFC 7143 11.19. One that is
// being used keeps its session, and so does one whose machine waits in a boot menu: it gets no more pings than a window holds.
func TestFirmwareAnswersNoPing(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.PingEvery, c.PingTimeout, c.Log = time.Millisecond, 500*time.Millisecond, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	c := dial(t, portal)
	c.answerPings = false
	c.login().ready()
	// Three times as long as pings may stay unanswered by an initiator that says nothing else.
	pings := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	}
	idle := time.Now().Add(1500 * time.Millisecond)
	_ = c.nc.SetReadDeadline(idle)
	for {
		p := new(pdu)
		if _, err := readFull(c, p); err != nil {
			break
		}
		if p.op() != 0x20 {
			t.Fatalf("opcode %#x", p.op())
		}
		if p.u32(24) != c.expStatSN { // UEFI takes another one for a protocol error
			t.Fatalf("the ping's StatSN is %d, the next one is %d", p.u32(24), c.expStatSN)
		}
		pings++
	}
	if pings > 64 {
		t.Errorf("%d pings to an initiator that answers none", pings)
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(time.Minute))
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	if log.has("answers no ping") {
		t.Error("it was given up")
	}
}

// TestFirmwareLogin is the login of the UEFI initiator, which refuses an answer with a key too many or too few (RFC 7143 6.2:
// what is offered is answered; of ourselves we tell what RFC 7143 13 lets a target declare).
func TestFirmwareLogin(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal)
	security, _ := c.loginStep(0, 1, true, "InitiatorName="+hostName, "SessionType=Normal", "TargetName="+targetName, "AuthMethod=None")
	if status(security) != 0 || security.bhs[1] != 0x81 {
		t.Fatalf("security: status %#04x, flags %#02x", status(security), security.bhs[1])
	}
	if !strings.Contains(string(security.data), "TargetPortalGroupTag=") { // 13.9
		t.Errorf("security: %q", security.data)
	}
	offered := []string{"HeaderDigest=None,CRC32", "DataDigest=None,CRC32", "ErrorRecoveryLevel=0", "InitialR2T=No", "ImmediateData=Yes",
		"MaxRecvDataSegmentLength=65536", "MaxBurstLength=262144", "FirstBurstLength=65536", "MaxConnections=1", "DataPDUInOrder=Yes",
		"DataSequenceInOrder=Yes", "DefaultTime2Wait=2", "DefaultTime2Retain=20", "MaxOutstandingR2T=16"}
	operational, _ := c.loginStep(1, 3, true, offered...)
	if status(operational) != 0 || operational.bhs[1] != 0x87 {
		t.Fatalf("operational: status %#04x, flags %#02x", status(operational), operational.bhs[1])
	}
	answered := map[string]int{}
	for _, kv := range strings.Split(strings.TrimRight(string(operational.data), "\x00"), "\x00") {
		k, v, _ := strings.Cut(kv, "=")
		answered[k]++
		if v == "Reject" || v == "NotUnderstood" {
			t.Errorf("%s", kv)
		}
	}
	for _, kv := range offered {
		k, _, _ := strings.Cut(kv, "=")
		if answered[k] != 1 {
			t.Errorf("%s is there %d times", k, answered[k])
		}
		delete(answered, k)
	}
	delete(answered, "TargetAlias")
	if len(answered) != 0 {
		t.Errorf("keys that nobody offered: %v", answered)
	}
}

// TestTwoHostsOfOneName: copies of a machine log in by the name and the ISID of the first, and take its session from each other
// (RFC 7143 6.3.5). The log says so, and names both; nothing is said of a host that logs in anew from where it was.
func TestTwoHostsOfOneName(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) }, nil)
	const said = "two hosts have one initiator name"
	dial(t, portal).login().ready()
	dial(t, portal).login().ready()
	if log.has(said) {
		t.Error("one host is taken for two")
	}
	// Nobody here answers pings: where logging in takes too long the one before is no longer taken to be there.
	for i := 0; !log.has(said); i++ {
		if i == 30 {
			t.Fatal("nothing is said")
		}
		dial(t, portal).login().ready()
		dialFrom(t, portal, "127.0.0.2").login().ready()
	}
	log.wait(t, "before=127.0.0.")
}
