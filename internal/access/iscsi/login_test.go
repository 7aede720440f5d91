package iscsi_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
)

func TestNegotiation(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	for _, x := range []struct{ send, want string }{
		{"HeaderDigest=CRC32C,None", "CRC32C"},
		{"HeaderDigest=None,CRC32C", "None"},
		{"DataDigest=X-weird", "Reject"},
		{"MaxConnections=9", "8"},
		{"InitialR2T=No", "No"},
		{"InitialR2T=Yes", "Yes"},
		{"ImmediateData=Yes", "Yes"},
		{"ImmediateData=maybe", "Reject"},
		{"MaxBurstLength=0x10000", "65536"},
		{"MaxBurstLength=100", "Reject"},
		{"FirstBurstLength=16777215", "262144"},
		{"FirstBurstLength=4096\x00MaxBurstLength=2048", "2048"},
		{"DefaultTime2Wait=5", "5"},
		{"DefaultTime2Retain=60", "0"},
		{"MaxOutstandingR2T=3", "3"},
		{"DataPDUInOrder=No", "Yes"},
		{"DataSequenceInOrder=No", "Yes"},
		{"ErrorRecoveryLevel=2", "2"},
		{"TaskReporting=FastAbort,RFC3720", "FastAbort"},
		{"TaskReporting=X-unknown,ResponseFence", "ResponseFence"},
		{"iSCSIProtocolLevel=2", "2"},
		{"IFMarker=Yes", "No"},
		{"OFMarkInt=2048~8192", "Reject"},
		{"X-com.example.key=1", "NotUnderstood"},
		{"SendTargets=All", "Reject"},
		{"InitiatorAlias=me", ""},
		{"MaxRecvDataSegmentLength=65536", "1048576"}, // ours, declared
	} {
		key, _, _ := strings.Cut(x.send, "=")
		c := dial(t, portal).login(x.send)
		if got := c.keys[key]; got != x.want {
			t.Errorf("%s: answered %q, want %q", x.send, got, x.want)
		}
		if c.keys["TargetPortalGroupTag"] != "1" {
			t.Error("no portal group tag in the first response")
		}
	}
}

func TestLoginRefusals(t *testing.T) {
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) {
		p.LoginHook = func(_ iscsi.Peer, target string) error {
			switch {
			case strings.HasSuffix(target, "denied"):
				return iscsi.ErrNotAuthorized
			case strings.HasSuffix(target, "busy"):
				return iscsi.ErrServiceUnavailable
			case strings.HasSuffix(target, "full"):
				return fmt.Errorf("opening: %w", iscsi.ErrOutOfResources)
			case strings.HasSuffix(target, "moved"):
				return &iscsi.RedirectError{Address: "127.0.0.1:99"}
			case strings.HasSuffix(target, "away"):
				return &iscsi.RedirectError{Address: "127.0.0.1:99", Permanent: true}
			case strings.HasSuffix(target, "broken"):
				return errors.New("whatever")
			}
			return nil
		}
	})
	name, target := "InitiatorName="+hostName, "TargetName="+targetName
	for _, x := range []struct {
		what   string
		keys   []string
		status int
	}{
		{"no name", []string{target}, 0x0207},
		{"no target", []string{name}, 0x0207},
		{"unknown target", []string{name, "TargetName=iqn.2026-01.example.dozo:none"}, 0x0203},
		{"bad initiator name", []string{"InitiatorName=host", target}, 0x0200},
		{"session type", []string{name, target, "SessionType=Odd"}, 0x0209},
		{"key twice", []string{name, target, "MaxBurstLength=512", "MaxBurstLength=512"}, 0x0200},
		{"no key=value", []string{name, target, "nonsense"}, 0x0200},
		{"target's key", []string{name, target, "TargetAddress=x"}, 0x0200},
		{"denied", []string{name, "TargetName=iqn.2026-01.example.dozo:denied"}, 0x0202},
		{"busy", []string{name, "TargetName=iqn.2026-01.example.dozo:busy"}, 0x0301},
		{"full", []string{name, "TargetName=iqn.2026-01.example.dozo:full"}, 0x0302},
		{"moved", []string{name, "TargetName=iqn.2026-01.example.dozo:moved"}, 0x0101},
		{"away", []string{name, "TargetName=iqn.2026-01.example.dozo:away"}, 0x0102},
		{"broken", []string{name, "TargetName=iqn.2026-01.example.dozo:broken"}, 0x0300},
	} {
		r, got := dial(t, portal).loginStep(1, 3, true, x.keys...)
		if status(r) != x.status {
			t.Errorf("%s: status %#04x, want %#04x", x.what, status(r), x.status)
		}
		if x.status>>8 == 1 && got["TargetAddress"] != "127.0.0.1:99" {
			t.Errorf("%s: TargetAddress %q", x.what, got["TargetAddress"])
		}
	}
	c := dial(t, portal)
	c.tsih = 77
	if r, _ := c.loginStep(1, 3, true, name, target); status(r) != 0x020a {
		t.Errorf("unknown TSIH: status %#04x", status(r))
	}
	for _, stages := range [][2]int{{3, 3}, {2, 3}, {1, 0}, {1, 2}} {
		if r, _ := dial(t, portal).loginStep(stages[0], stages[1], true, name, target); status(r) != 0x0200 {
			t.Errorf("stages %v: status %#04x", stages, status(r))
		}
	}
	c = dial(t, portal)
	p := new(pdu)
	p.bhs[0], p.bhs[1], p.bhs[2], p.bhs[3] = 0x43, 0x87, 9, 9
	if err := c.send(p); err != nil {
		t.Fatal(err)
	}
	if r := c.must(c.recv()); status(r) != 0x0205 {
		t.Errorf("version 9: status %#04x", status(r))
	}
}

// TestLoginContinued sends text in pieces with the C bit, over the stages 0, 1 and 3.
func TestLoginContinued(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal)
	text := "InitiatorName=" + hostName + "\x00TargetName=" + targetName + "\x00AuthMethod=CHAP,None\x00"
	for at := 0; at < len(text); at += 20 {
		p := &pdu{data: []byte(text[at:min(at+20, len(text))])}
		p.bhs[0] = 0x43
		if at+20 < len(text) {
			p.bhs[1] = 0x40
		} else {
			p.bhs[1] = 0x81
		}
		p.bhs[8], p.bhs[13] = 0x80, 1
		c.number(p)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
		r := c.must(c.recv())
		if status(r) != 0 {
			t.Fatalf("status %#04x", status(r))
		}
		if more := at+20 < len(text); more && len(r.data) > 0 || more == (r.bhs[1] == 0x81) {
			t.Fatalf("answer %q with flags %#x", r.data, r.bhs[1])
		}
	}
	r, got := c.loginStep(1, 3, true, "MaxBurstLength=65536")
	if status(r) != 0 || r.bhs[1] != 0x87 || got["MaxBurstLength"] != "65536" {
		t.Fatalf("status %#04x flags %#x keys %v", status(r), r.bhs[1], got)
	}
	c.begin(got, binary.BigEndian.Uint16(r.bhs[14:]))
	c.ready()
}

func chapAnswer(id byte, secret, challenge string) []byte {
	raw, _ := hex.DecodeString(strings.TrimPrefix(challenge, "0x"))
	sum := sha256.Sum256(append(append([]byte{id}, secret...), raw...))
	return sum[:]
}

func TestCHAP(t *testing.T) {
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) {
		p.Auth = func(iscsi.Peer, string) iscsi.Credentials {
			return iscsi.Credentials{Required: true, In: iscsi.Secret{Name: "host", Secret: "host secret 123"}, Out: iscsi.Secret{Name: "dozo", Secret: "dozo secret 456"}}
		}
	})
	attempt := func(name, secret string, more func(challenge string) []string) (*client, *pdu, map[string]string) {
		c := dial(t, portal)
		r, got := c.loginStep(0, 1, false, "InitiatorName="+hostName, "TargetName="+targetName, "AuthMethod=None,CHAP")
		if status(r) != 0 || got["AuthMethod"] != "CHAP" {
			t.Fatalf("status %#04x, %v", status(r), got)
		}
		r, got = c.loginStep(0, 1, false, "CHAP_A=9,7,5")
		if status(r) != 0 || got["CHAP_A"] != "7" {
			t.Fatalf("status %#04x, %v", status(r), got)
		}
		var id byte
		_, _ = fmt.Sscan(got["CHAP_I"], &id)
		keys := []string{"CHAP_N=" + name, "CHAP_R=0x" + hex.EncodeToString(chapAnswer(id, secret, got["CHAP_C"]))}
		if more != nil {
			keys = append(keys, more(got["CHAP_C"])...)
		}
		r, got = c.loginStep(0, 1, true, keys...)
		return c, r, got
	}
	c, r, _ := attempt("host", "host secret 123", nil)
	if status(r) != 0 || r.bhs[1] != 0x81 {
		t.Fatalf("right secret: status %#04x flags %#x", status(r), r.bhs[1])
	}
	r, got := c.loginStep(1, 3, true)
	if status(r) != 0 || r.bhs[1] != 0x87 {
		t.Fatalf("after CHAP: status %#04x flags %#x", status(r), r.bhs[1])
	}
	c.begin(got, 0)
	c.ready()
	if _, r, _ := attempt("host", "wrong secret 123", nil); status(r) != 0x0201 {
		t.Errorf("wrong secret: status %#04x", status(r))
	}
	if _, r, _ := attempt("other", "host secret 123", nil); status(r) != 0x0201 {
		t.Errorf("wrong name: status %#04x", status(r))
	}
	mine := "0x" + strings.Repeat("5a", 20)
	_, r, got = attempt("host", "host secret 123", func(string) []string { return []string{"CHAP_I=33", "CHAP_C=" + mine} })
	if want := "0x" + hex.EncodeToString(chapAnswer(33, "dozo secret 456", mine)); status(r) != 0 || got["CHAP_R"] != want || got["CHAP_N"] != "dozo" {
		t.Errorf("mutual: status %#04x, %v", status(r), got)
	}
	// RFC 7143 12.1.3: a challenge of up to 1024 bytes, however it is encoded.
	for size, want := range map[int]int{1024: 0, 1025: 0x0200} {
		long := strings.Repeat("5a", size)
		_, r, got = attempt("host", "host secret 123", func(string) []string { return []string{"CHAP_I=33", "CHAP_C=0x" + long} })
		if status(r) != want || want == 0 && got["CHAP_R"] != "0x"+hex.EncodeToString(chapAnswer(33, "dozo secret 456", long)) {
			t.Errorf("a challenge of %d bytes: status %#04x, %v", size, status(r), got)
		}
	}
	if _, r, _ := attempt("host", "host secret 123", func(theirs string) []string { return []string{"CHAP_I=33", "CHAP_C=" + theirs} }); status(r) != 0x0201 {
		t.Errorf("reflected challenge: status %#04x", status(r))
	}
	for _, x := range []struct {
		what     string
		csg, nsg int
		keys     []string
	}{
		{"no security stage", 1, 3, nil},
		{"only None", 0, 1, []string{"AuthMethod=None"}},
	} {
		r, _ := dial(t, portal).loginStep(x.csg, x.nsg, true, append([]string{"InitiatorName=" + hostName, "TargetName=" + targetName}, x.keys...)...)
		if status(r) != 0x0201 {
			t.Errorf("%s: status %#04x", x.what, status(r))
		}
	}
}

func (c *client) text(ttt uint32, flags byte, keys string) *pdu {
	c.t.Helper()
	p := &pdu{data: []byte(keys)}
	p.bhs[0], p.bhs[1] = 0x04, flags
	p.put(16, c.itt)
	c.itt++
	p.put(20, ttt)
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	return c.must(c.recv())
}

// TestTextNegotiation: RFC 7143 6.4: no key comes twice in one sequence of text requests, and what a sequence negotiates holds once
// it is complete; 7.12: nothing of one that failed does, and the connection goes on.
func TestTextNegotiation(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("MaxRecvDataSegmentLength=4096").ready()
	// parts is how many Data-In PDUs a read of 2 KiB takes.
	parts := func() (n int) {
		itt, _ := c.start(rw10(0x28, 0, 4), 2048, nil)
		for {
			p := c.must(c.recv())
			if p.op() == 0x25 && p.u32(16) == itt {
				n++
			}
			if p.op() == 0x21 || p.bhs[1]&0x01 != 0 { // SCSI Response, or the status with the last data
				return n
			}
		}
	}
	refused := func(what string, p *pdu) {
		t.Helper()
		if p.op() != 0x3f || p.bhs[2] != 0x04 {
			t.Errorf("%s: opcode %#x reason %#x, want Reject and protocol error", what, p.op(), p.bhs[2])
		}
		if got := parts(); got != 1 {
			t.Errorf("%s: %d parts of a read, want 1", what, got)
		}
	}
	const none = 0xffffffff
	refused("twice in one request", c.text(none, 0x80, "X-a.b=1\x00MaxRecvDataSegmentLength=512\x00X-a.b=2\x00"))
	p := c.text(none, 0, "MaxRecvDataSegmentLength=512\x00")
	if p.op() != 0x24 || p.bhs[1]&0x80 != 0 {
		t.Fatalf("opcode %#x flags %#x", p.op(), p.bhs[1])
	}
	if got := parts(); got != 1 {
		t.Errorf("%d parts of a read before the negotiation is complete, want 1", got)
	}
	refused("twice in one sequence", c.text(p.u32(20), 0x80, "MaxRecvDataSegmentLength=1024\x00"))
	for _, v := range []string{"511", "16777216", "x", "", "-1"} {
		refused(v, c.text(none, 0x80, "MaxRecvDataSegmentLength="+v+"\x00"))
	}
	// A sequence of its own may have the key again; a tag of the one that failed is worth nothing any more.
	if q := c.text(p.u32(20), 0x80, ""); q.op() != 0x3f || q.bhs[2] != 0x09 {
		t.Errorf("opcode %#x reason %#x for the tag of a negotiation that failed", q.op(), q.bhs[2])
	}
	for _, x := range []struct {
		length string
		want   int
	}{{"512", 4}, {"1024", 2}} {
		p := c.text(none, 0, "MaxRecvDataSegmentLength="+x.length+"\x00")
		if p = c.text(p.u32(20), 0x80, "X-a.b=1\x00"); p.op() != 0x24 || p.bhs[1]&0x80 == 0 {
			t.Fatalf("opcode %#x flags %#x", p.op(), p.bhs[1])
		}
		if got := parts(); got != x.want {
			t.Errorf("MaxRecvDataSegmentLength=%s: %d parts of a read, want %d", x.length, got, x.want)
		}
	}
}

// TestDiscovery lists more targets than one response holds.
func TestDiscovery(t *testing.T) {
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) {
		for i := range 50 {
			p.Disks[fmt.Sprintf("iqn.2026-01.example.dozo:more-%02d", i)] = nil
		}
	})
	c := dial(t, portal)
	r, got := c.loginStep(1, 3, true, "InitiatorName="+hostName, "SessionType=Discovery", "MaxRecvDataSegmentLength=512", "MaxBurstLength=512")
	if status(r) != 0 || got["MaxBurstLength"] != "Irrelevant" || got["TargetPortalGroupTag"] != "" {
		t.Fatalf("status %#04x, %v", status(r), got)
	}
	p := c.text(0xffffffff, 0x80, "SendTargets=All\x00")
	all := string(p.data)
	for p.bhs[1]&0x80 == 0 {
		if len(p.data) > 512 {
			t.Fatalf("%d bytes of text", len(p.data))
		}
		p = c.text(p.u32(20), 0x80, "")
		all += string(p.data)
	}
	if n := strings.Count(all, "TargetName="); n != 51 {
		t.Errorf("%d targets", n)
	}
	if !strings.Contains(all, "TargetAddress="+portal.Address+",1\x00") {
		t.Errorf("no address in %.200q", all)
	}
	if p := c.text(0xffffffff, 0x80, "SendTargets="+targetName+"\x00"); strings.Count(string(p.data), "TargetName=") != 1 {
		t.Errorf("one target by name: %q", p.data)
	}
	if p := c.text(0xffffffff, 0x80, "Odd=1\x00"); string(p.data) != "Odd=NotUnderstood\x00" {
		t.Errorf("odd key: %q", p.data)
	}
	// SCSI has no place here.
	_, _ = c.start(make([]byte, 6), 0, nil)
	if p := c.must(c.recv()); p.op() != 0x3f {
		t.Errorf("opcode %#x for a SCSI Command in a discovery session", p.op())
	}
	if _, err := c.recv(); err == nil {
		t.Error("the connection survived")
	}
}
