package iscsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
)

// stampsSeen records with which stamp commands reach the disk.
func stampsSeen(d *iscsitest.Disk) func() scsi.Request {
	var mu sync.Mutex
	var last scsi.Request
	d.SetFault(func(_ iscsitest.Op, req scsi.Request, _ int64, _ int) error {
		mu.Lock()
		defer mu.Unlock()
		last = req
		return nil
	})
	return func() scsi.Request {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

// TestStamps: a command carries the moment of the newest message that its own stream proves was received.
func TestStamps(t *testing.T) {
	portal, d := serve(t, nil, nil)
	portal.Provider.Tick() // 1
	c := dial(t, portal).login().ready()
	last := stampsSeen(d)
	check := func(what string, tick uint64) {
		t.Helper()
		c.good(c.do(rw10(0x28, 0, 1), 512, nil))
		if got := last().Stamp.Tick; got != tick {
			t.Errorf("%s: stamp %d, want %d", what, got, tick)
		}
	}
	check("after the login", 1)
	portal.Provider.Tick() // 2
	check("before anything newer was received", 1)
	check("after a response of tick 2", 2)
	portal.Provider.Tick() // 3
	old := c.expStatSN
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	c.expStatSN = old // the client claims not to have seen that response
	check("ExpStatSN stays behind", 2)
	c.expStatSN += 1000 // of what was never sent
	c.do(rw10(0x28, 0, 1), 512, nil)
	if got := last().Stamp.Tick; got != 2 {
		t.Errorf("ExpStatSN of the future: stamp %d, want 2", got)
	}
	if id := last().ID; id.Conn == 0 || id.Seq == 0 || id.Tag != c.itt-1 {
		t.Errorf("request ID %v", id)
	}
}

// TestPingRenewsStamps: the echo of a ping proves its moment for the commands that follow, without any
// StatSN used up.
func TestPingRenewsStamps(t *testing.T) {
	portal, d := serve(t, func(c *iscsi.Config) { c.PingEvery = 10 * time.Millisecond }, nil)
	c := dial(t, portal).login().ready()
	last := stampsSeen(d)
	c.answerPings = false
	portal.Provider.Tick()
	// Wait for a ping that was sent after the tick: the second one from now is.
	var ttt uint32
	for range 2 {
		p := new(pdu)
		if _, err := readFull(c, p); err != nil {
			t.Fatal(err)
		}
		if p.op() != 0x20 || p.u32(20) == 0xffffffff {
			t.Fatalf("opcode %#x", p.op())
		}
		if p.u32(24) != c.expStatSN {
			t.Fatalf("the ping's StatSN %d, next is %d", p.u32(24), c.expStatSN)
		}
		ttt = p.u32(20)
	}
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	if got := last().Stamp.Tick; got != 0 {
		t.Errorf("before the echo: stamp %d", got)
	}
	c.expStatSN-- // the response just received must not count
	c.nop(0xffffffff, ttt, nil)
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	if got := last().Stamp.Tick; got != 1 {
		t.Errorf("after the echo: stamp %d, want 1", got)
	}
}

func readFull(c *client, p *pdu) (int, error) {
	n := 0
	for n < len(p.bhs) {
		m, err := c.nc.Read(p.bhs[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

func TestPingUnanswered(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.PingEvery, c.PingTimeout = 5*time.Millisecond, 20*time.Millisecond }, nil)
	c := dial(t, portal).login()
	c.echo()
	for {
		if _, err := c.recv(); err != nil {
			return
		}
	}
}

// echo answers the next ping, and none after it.
func (c *client) echo() {
	c.t.Helper()
	c.answerPings = false
	p := new(pdu)
	if _, err := readFull(c, p); err != nil || p.op() != 0x20 || p.u32(20) == 0xffffffff {
		c.t.Fatalf("opcode %#x, %v, where a ping was to come", p.op(), err)
	}
	c.nop(0xffffffff, p.u32(20), nil)
}

func TestNopAndLogout(t *testing.T) {
	var provider *iscsitest.Provider
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) { provider = p })
	c := dial(t, portal).login().ready()
	c.nop(77, 0xffffffff, []byte("echo this"))
	if p := c.must(c.recv()); p.op() != 0x20 || p.u32(16) != 77 || string(p.data) != "echo this" {
		t.Errorf("opcode %#x data %q", p.op(), p.data)
	}
	logout := func(reason byte) *pdu {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = 0x46, 0x80|reason
		p.put(16, c.itt)
		c.itt++
		c.number(p)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
		return c.must(c.recv())
	}
	if p := logout(2); p.op() != 0x26 || p.bhs[2] != 2 {
		t.Errorf("logout for recovery: response %d", p.bhs[2])
	}
	if _, out := provider.Seen(); len(out) != 0 {
		t.Errorf("sessions %d are said to have logged out", out)
	}
	if p := logout(0); p.op() != 0x26 || p.bhs[2] != 0 {
		t.Errorf("logout: response %d", p.bhs[2])
	}
	if in, out := provider.Seen(); len(in) != 1 || !slices.Equal(in, out) {
		t.Errorf("logged in %d, logged out %d", in, out)
	}
	if _, err := c.recv(); err == nil {
		t.Error("the connection survived the logout")
	}
}

// TestCommandWindow: what is outside is ignored, what leaves a gap ends the connection.
func TestCommandWindow(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.QueueDepth = 8 }, nil)
	c := dial(t, portal).login().ready()
	at := c.cmdSN
	for _, sn := range []uint32{at - 1, at + 8, at + 1<<31} {
		c.cmdSN = sn
		_, _ = c.start(make([]byte, 6), 0, nil)
	}
	c.cmdSN = at
	c.good(c.do(make([]byte, 6), 0, nil)) // no answer came to the others
	c.cmdSN++
	_, _ = c.start(make([]byte, 6), 0, nil)
	if p, err := c.recv(); err == nil {
		t.Errorf("opcode %#x after a gap", p.op())
	}
}

// TestWindowFull: with the whole window outstanding MaxCmdSN is ExpCmdSN-1, and each end opens it by one.
func TestWindowFull(t *testing.T) {
	portal, d := serve(t, func(c *iscsi.Config) { c.QueueDepth = 4 }, nil)
	c := dial(t, portal).login().ready()
	release := d.Hold()
	for range 4 {
		_, _ = c.start(rw10(0x28, 0, 1), 512, nil)
	}
	c.nop(99, 0xffffffff, nil)
	if p := c.must(c.recv()); p.u32(32)+1 != p.u32(28) {
		t.Errorf("ExpCmdSN %d MaxCmdSN %d with a full window", p.u32(28), p.u32(32))
	}
	release()
	var limit uint32
	for range 4 {
		limit = c.must(c.recv()).u32(32)
	}
	if limit != c.cmdSN+3 {
		t.Errorf("MaxCmdSN %d after all ended, want %d", limit, c.cmdSN+3)
	}
}

func TestTaskManagement(t *testing.T) {
	var mu sync.Mutex
	var hooks []string
	wait := make(chan func(error), 1)
	portal, d := serve(t, nil, func(p *iscsitest.Provider) {
		p.AbortHook = func(what string, done func(error)) {
			mu.Lock()
			hooks = append(hooks, what)
			mu.Unlock()
			wait <- done
		}
	})
	c := dial(t, portal).login("ImmediateData=No").ready()
	other := dial(t, portal)
	other.isid = 2
	other.login().ready()

	// A running read is aborted: no response, and the answer waits for the owner.
	release := d.Hold()
	itt, _ := c.start(rw10(0x28, 0, 1), 512, nil)
	tag := c.tmf(1, itt)
	done := <-wait
	c.nop(5, 0xffffffff, nil)
	if p := c.must(c.recv()); p.op() != 0x20 {
		t.Fatalf("opcode %#x before the owner's word", p.op())
	}
	done(nil)
	if p := c.must(c.recv()); p.op() != 0x22 || p.u32(16) != tag || p.bhs[2] != 0 {
		t.Fatalf("opcode %#x response %d", p.op(), p.bhs[2])
	}
	release()
	// A write that waits for data is aborted; its data find nothing.
	itt, _ = c.start(rw10(0x2a, 0, 2), 0, pattern(1024, 1))
	r2t := c.must(c.recv())
	c.tmf(1, itt)
	(<-wait)(nil)
	if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
		t.Fatalf("opcode %#x response %d", p.op(), p.bhs[2])
	}
	c.dataOut(itt, r2t.u32(20), pattern(1024, 1), 0)
	if r := c.good(c.do(rw10(0x28, 0, 2), 1024, nil)); !bytes.Equal(r.data, make([]byte, 1024)) {
		t.Error("an aborted write was done")
	}
	for _, x := range []struct {
		function, response byte
	}{{1, 1}, {3, 5}, {8, 4}, {14, 5}} {
		c.tmf(x.function, 0xdead)
		if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != x.response {
			t.Errorf("function %d: opcode %#x response %d, want %d", x.function, p.op(), p.bhs[2], x.response)
		}
	}
	// LUN RESET reaches the other session: its command ends without a response, and both hear of it.
	release = d.Hold()
	_, _ = other.start(rw10(0x28, 0, 1), 512, nil)
	other.nop(6, 0xffffffff, nil)
	if p := other.must(other.recv()); p.op() != 0x20 {
		t.Fatalf("opcode %#x", p.op())
	}
	c.tmf(5, 0xffffffff)
	(<-wait)(nil)
	if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
		t.Fatalf("LUN RESET: opcode %#x response %d", p.op(), p.bhs[2])
	}
	release()
	for _, x := range []*client{c, other} {
		r := x.do(make([]byte, 6), 0, nil)
		if key, code := r.code(); key != 6 || code != 0x2903 {
			t.Errorf("after LUN RESET: sense %x/%04x", key, code)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(hooks) != 3 || hooks[0] != "abort task" || hooks[2] != "reset lun" {
		t.Errorf("hooks %v", hooks)
	}
}

// TestColdReset ends all sessions of the target.
func TestColdReset(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	other := dial(t, portal)
	other.isid = 2
	other.login().ready()
	c.tmf(7, 0xffffffff)
	for _, x := range []*client{c, other} {
		for {
			if _, err := x.recv(); err != nil {
				break
			}
		}
	}
}

// TestReinstatement: a login of the same initiator port replaces the session, also one with commands that
// hang.
func TestReinstatement(t *testing.T) {
	portal, d := serve(t, nil, nil)
	old := dial(t, portal).login().ready()
	release := d.Hold()
	_, _ = old.start(rw10(0x2a, 0, 1), 0, make([]byte, 512))
	old.nop(6, 0xffffffff, nil)
	if p := old.must(old.recv()); p.op() != 0x20 {
		t.Fatalf("opcode %#x", p.op())
	}
	c := dial(t, portal).login().ready()
	if _, err := old.recv(); err == nil {
		t.Error("the old session survived")
	}
	release()
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	if n := len(portal.Server.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	info := portal.Server.Sessions()[0].Info()
	if info.Initiator != hostName || info.Target != targetName || info.ReadCommands != 1 || info.ReadBytes != 512 {
		t.Errorf("info %+v", info)
	}
	// The same connection of the same session again: the numbering goes on.
	again := dial(t, portal)
	again.tsih, again.cmdSN = c.tsih, c.cmdSN
	again.login()
	if _, err := c.recv(); err == nil {
		t.Error("the old connection survived")
	}
	if again.tsih != c.tsih {
		t.Errorf("TSIH %d became %d", c.tsih, again.tsih)
	}
	again.good(again.do(rw10(0x28, 0, 1), 512, nil)) // the nexus has lost nothing
	portal.Server.Sessions()[0].Kill()
	for {
		if _, err := again.recv(); err != nil {
			break
		}
	}
}

func TestLogoutRequest(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	portal.Server.Logout(targetName, 10*time.Millisecond)
	if p := c.must(c.recv()); p.op() != 0x32 || p.bhs[36] != 1 {
		t.Errorf("opcode %#x event %d", p.op(), p.bhs[36])
	}
	// 11.9.1: who does not is told, if that is possible, that it is dropped: when it may come back, and that nothing is kept.
	if p := c.must(c.recv()); p.op() != 0x32 || !bytes.Equal(p.bhs[36:44], []byte{3, 0, 0, 0, 0, 2, 0, 0}) {
		t.Errorf("opcode %#x event and parameters % x", p.op(), p.bhs[36:44])
	}
	if _, err := c.recv(); err == nil {
		t.Error("the connection survived")
	}
}

// TestLogoutIgnored: RFC 7143 11.9.1: who was asked to log out and does not is dropped. The session ends with that, also at recovery
// level 2, where it would outlive its connections; and the shortest time counts.
func TestLogoutIgnored(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	lost, c := pair2(t, portal)
	_ = lost.nc.Close()
	portal.Server.Logout(targetName, time.Hour)
	for { // a ping may come before, and the word that the other connection was dropped
		if p := c.must(c.recv()); p.op() == 0x32 && p.bhs[36] == 1 {
			break
		}
	}
	portal.Server.Logout(targetName, 10*time.Millisecond)
	for {
		if _, err := c.recv(); err != nil {
			break
		}
	}
	again := dial(t, portal)
	again.tsih, again.cid, again.isid, again.cmdSN = c.tsih, c.cid, c.isid, c.cmdSN
	if p, _ := again.loginStep(1, 3, true, "InitiatorName="+hostName, "TargetName="+targetName); status(p) != 0x020a {
		t.Errorf("login with the TSIH of the session: status %#04x", status(p))
	}
}

// TestMalformed: what breaks the protocol ends its own connection and nobody else's.
func TestMalformed(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	good := dial(t, portal)
	good.isid = 9
	good.login().ready()
	for what, make := range map[string]func(c *client) *pdu{
		"data segment too long":      func(*client) *pdu { p := new(pdu); p.bhs[0] = 0x01; p.bhs[1] = 0x80; p.bhs[5] = 0xff; return p },
		"additional header of a NOP": func(*client) *pdu { p := new(pdu); p.bhs[0] = 0x40; p.bhs[4] = 5; return p },
		"immediate data beyond the expected length": func(c *client) *pdu {
			p := &pdu{data: make([]byte, 1024)}
			p.bhs[0], p.bhs[1] = 0x01, 0xa0
			p.put(20, 512)
			c.number(p)
			return p
		},
		"data with a read": func(c *client) *pdu {
			p := &pdu{data: make([]byte, 512)}
			p.bhs[0], p.bhs[1] = 0x01, 0xc0
			p.put(20, 512)
			c.number(p)
			return p
		},
		"unsolicited data not agreed upon": func(c *client) *pdu {
			p := new(pdu)
			p.bhs[0], p.bhs[1] = 0x01, 0x20
			p.put(20, 512)
			c.number(p)
			return p
		},
	} {
		c := dial(t, portal).login()
		p := make(c)
		b := p.bhs
		if len(p.data) > 0 {
			b[5], b[6], b[7] = byte(len(p.data)>>16), byte(len(p.data)>>8), byte(len(p.data))
		}
		_, _ = c.nc.Write(append(b[:], p.data...))
		for {
			if _, err := c.recv(); err != nil {
				break
			}
		}
		good.good(good.do(rw10(0x28, 0, 1), 512, nil))
		_ = what
	}
	// Opcodes that don't exist are rejected, and the connection goes on.
	for _, op := range []byte{0x10, 0x1c, 0x3f, 0x43} {
		p := new(pdu)
		p.bhs[0] = op
		if err := good.send(p); err != nil {
			t.Fatal(err)
		}
		if r := good.must(good.recv()); r.op() != 0x3f {
			t.Errorf("opcode %#x answered with %#x", op, r.op())
		}
	}
	good.good(good.do(rw10(0x28, 0, 1), 512, nil))
}

func TestDigestErrors(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	for _, which := range []string{"header", "data"} {
		c := dial(t, portal).login("HeaderDigest=CRC32C", "DataDigest=CRC32C").ready()
		p := &pdu{data: make([]byte, 512)}
		p.bhs[0], p.bhs[1], p.bhs[6] = 0x01, 0xa0, 2
		p.put(16, 3)
		p.put(20, 512)
		copy(p.bhs[32:], rw10(0x2a, 0, 1))
		c.number(p)
		b := append([]byte(nil), p.bhs[:]...)
		sum := crcOf(b)
		if which == "header" {
			sum++
		}
		b = binary.LittleEndian.AppendUint32(b, sum)
		b = append(b, p.data...)
		b = binary.LittleEndian.AppendUint32(b, crcOf(p.data)+1)
		_, _ = c.nc.Write(b)
		for {
			if _, err := c.recv(); err != nil {
				break
			}
		}
	}
}

// TestLoginTimeout: a connection that never logs in goes away.
func TestLoginTimeout(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.LoginTimeout = 10 * time.Millisecond }, nil)
	c := dial(t, portal)
	if _, err := c.recv(); err == nil {
		t.Error("an answer to nothing")
	}
}

// TestSlowReader: a client that asks for much and reads nothing holds bounded memory and blocks nobody.
func TestSlowReader(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.ReadMemory = 1 << 20 }, nil)
	slow := dial(t, portal)
	slow.login().ready()
	for range 100 {
		_, _ = slow.start(rw10(0x28, 0, 2048), 1<<20, nil)
	}
	c := dial(t, portal)
	c.isid = 2
	c.login().ready()
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
	for range 100 {
		got := 0
		for got < 1<<20 {
			p := slow.must(slow.recv())
			got += len(p.data)
		}
	}
}
