package iscsi_test

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
)

// join adds a connection to the session of c.
func join(t *testing.T, portal *iscsitest.Portal, c *client, cid uint16, keys ...string) *client {
	t.Helper()
	x := dial(t, portal)
	x.tsih, x.cid, x.cmdSN, x.isid, x.itt = c.tsih, cid, c.cmdSN, c.isid, uint32(cid)<<16
	x.immediate, x.initialR2T, x.firstBurst = c.immediate, c.initialR2T, c.firstBurst
	before := *x
	x.login(keys...)
	x.immediate, x.initialR2T, x.firstBurst = before.immediate, before.initialR2T, before.firstBurst
	return x
}

// TestConnectionFromElsewhere: a connection that names a session, and comes from where its initiator may not use the
// target from, neither joins the session nor takes the place of one of its connections.
func TestConnectionFromElsewhere(t *testing.T) {
	var elsewhere atomic.Value // of string
	elsewhere.Store("")
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) {
		p.AdmitHook = func(peer iscsi.Peer) error {
			if peer.Remote.String() == elsewhere.Load() {
				return iscsi.ErrNotAuthorized
			}
			return nil
		}
	})
	a := dial(t, portal).login("MaxConnections=4")
	for cid := range uint16(2) { // 0 is that of a
		b := dial(t, portal)
		elsewhere.Store(b.nc.LocalAddr().String())
		b.tsih, b.isid, b.cid, b.cmdSN = a.tsih, a.isid, cid, a.cmdSN
		r, _ := b.loginStep(1, 3, true, "InitiatorName="+hostName, "TargetName="+targetName)
		if status(r) != 0x0202 {
			t.Errorf("CID %d: login status %#04x, not authorization failure", cid, status(r))
		}
	}
	a.quiet("after logins from elsewhere")
	join(t, portal, a, 2).quiet("from where it may")
	if i := portal.Server.Sessions()[0].Info(); i.Connections != 2 || len(i.Remotes) != 2 || i.Remotes[0] != a.nc.LocalAddr().String() {
		t.Errorf("%d connections, of %v", i.Connections, i.Remotes)
	}
}

// quiet checks by an echo that nothing else has come.
func (c *client) quiet(what string) {
	c.t.Helper()
	c.nop(0xabcdef, 0xffffffff, nil)
	if p := c.must(c.recv()); p.op() != 0x20 || p.u32(16) != 0xabcdef {
		c.t.Fatalf("%s: opcode %#x for %#x", what, p.op(), p.u32(16))
	}
}

// logout sends a Logout Request.
func (c *client) logout(reason byte, cid uint16) *pdu {
	c.t.Helper()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x46, 0x80|reason
	p.bhs[20], p.bhs[21] = byte(cid>>8), byte(cid)
	p.put(16, c.itt)
	c.itt++
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	return c.must(c.recv())
}

// TestConnectionOrder: commands are delivered in the order of their CmdSNs, over whichever connections they come
// (RFC 7143 4.2.2.1); immediate ones don't wait.
func TestConnectionOrder(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=4", "HeaderDigest=CRC32C")
	b := join(t, portal, a, 1, "DataDigest=CRC32C")
	if n := portal.Server.Sessions(); len(n) != 1 || n[0].Info().Connections != 2 {
		t.Fatalf("%d sessions, %+v", len(n), n[0].Info())
	}
	first := a.cmdSN
	// A write with immediate data, whose turn has not come.
	b.cmdSN = first + 1
	write, _ := b.start(rw10(0x2a, 0, 2), 0, pattern(1024, 3))
	b.quiet("before its turn")
	r := a.do(make([]byte, 6), 0, nil)
	if key, code := r.code(); key != 6 || code != 0x2900 {
		t.Errorf("the first by number got sense %x/%04x, not the unit attention", key, code)
	}
	b.good(b.finish(write, pattern(1024, 3)))
	// The same with data that are asked for, and with unsolicited ones.
	a.cmdSN = first + 3
	read, _ := a.start(rw10(0x28, 0, 2), 1024, nil)
	a.quiet("before its turn")
	b.cmdSN = first + 2
	b.immediate = false
	b.good(b.do(rw10(0x2a, 0, 2), 0, pattern(1024, 4)))
	a.good(a.finish(read, nil)) // delivered after the write; as both are SIMPLE it may be done before it
	// A number used twice is ignored.
	b.cmdSN = first + 2
	_, _ = b.start(make([]byte, 6), 0, nil)
	b.quiet("a number of the past")
	b.cmdSN = first + 5
	_, _ = b.start(make([]byte, 6), 0, nil)
	b.quiet("held")
	a.cmdSN = first + 5
	_, _ = a.start(make([]byte, 6), 0, nil)
	a.quiet("a number that another connection has used")
	a.cmdSN = first + 4
	a.good(a.do(make([]byte, 6), 0, nil))
	if p := b.must(b.recv()); p.op() != 0x21 || p.u32(28) != first+6 {
		t.Errorf("opcode %#x ExpCmdSN %d, want %d", p.op(), p.u32(28), first+6)
	}
}

// TestJoinRefused: RFC 7143 11.13.5.
func TestJoinRefused(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=2")
	join(t, portal, a, 1)
	for _, x := range []struct {
		cid, tsih uint16
		isid      byte
		want      int
	}{{2, a.tsih, 1, 0x0206}, {2, a.tsih + 1, 1, 0x020a}, {2, a.tsih, 7, 0x020a}} {
		c := dial(t, portal)
		c.tsih, c.cid, c.isid = x.tsih, x.cid, x.isid
		r, _ := c.loginStep(1, 3, true, "InitiatorName="+hostName, "TargetName="+targetName)
		if status(r) != x.want {
			t.Errorf("CID %d TSIH %d: status %#04x, want %#04x", x.cid, x.tsih, status(r), x.want)
		}
	}
	// Keys of the session are the leading connection's (RFC 7143 13).
	c := dial(t, portal)
	c.tsih, c.cid, c.cmdSN = a.tsih, 1, a.cmdSN
	_, got := c.loginStep(1, 3, true, "InitiatorName="+hostName, "TargetName="+targetName, "MaxBurstLength=512", "DataDigest=CRC32C")
	if got["MaxBurstLength"] != "Reject" || got["DataDigest"] != "CRC32C" {
		t.Errorf("answers %v", got)
	}
}

// TestOrderedAcross: an ORDERED task runs alone, whichever connections the others are on (SAM-5 8.8.3).
func TestOrderedAcross(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=2").ready()
	b := join(t, portal, a, 1)
	release := d.Hold()
	sn := a.cmdSN
	one, _ := a.start(rw10(0x28, 0, 1), 512, nil)
	b.cmdSN = sn + 1
	two, _ := b.start(make([]byte, 6), 0, nil, 2)
	b.quiet("ORDERED behind a running task")
	a.cmdSN = sn + 2
	three, _ := a.start(make([]byte, 6), 0, nil)
	a.quiet("behind an ORDERED task that waits")
	release()
	a.good(a.finish(one, nil))
	b.good(b.finish(two, nil))
	a.good(a.finish(three, nil))
}

// TestHeadOfQueueAcross: SAM-5 8.6.2. A HEAD OF QUEUE task passes what waits for an ORDERED one, and that itself if it has not begun.
func TestHeadOfQueueAcross(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=2").ready()
	release := d.Hold()
	ordered, _ := a.start(rw10(0x28, 0, 1), 512, nil, 2)
	simple, _ := a.start(make([]byte, 6), 0, nil)
	head, _ := a.start(make([]byte, 6), 0, nil, 3)
	a.good(a.finish(head, nil)) // while the ORDERED one runs
	a.quiet("SIMPLE behind an ORDERED task")
	release()
	a.good(a.finish(ordered, nil))
	a.good(a.finish(simple, nil))

	release = d.Hold()
	first, _ := a.start(rw10(0x28, 0, 1), 512, nil)
	ordered, _ = a.start(make([]byte, 6), 0, nil, 2)
	head, _ = a.start(make([]byte, 6), 0, nil, 3)
	a.good(a.finish(head, nil)) // before the ORDERED one
	a.quiet("ORDERED behind a running task")
	release()
	a.good(a.finish(first, nil))
	a.good(a.finish(ordered, nil))

	// An ORDERED one that has ended is not in the way while a HEAD OF QUEUE task runs that has passed it.
	release = d.Hold()
	ordered, _ = a.start(rw10(0x28, 0, 1), 512, nil, 2)
	for d.Pending() < 1 {
		runtime.Gosched()
	}
	releaseHead := d.Hold()
	head, _ = a.start(rw10(0x28, 0, 1), 512, nil, 3)
	simple, _ = a.start(make([]byte, 6), 0, nil)
	for d.Pending() < 2 {
		runtime.Gosched()
	}
	release()
	a.good(a.finish(ordered, nil))
	a.good(a.finish(simple, nil))
	releaseHead()
	a.good(a.finish(head, nil))
}

// TestManagementAcross: RFC 7143 11.5.1, 11.6.1 and 4.2.3.3.
func TestManagementAcross(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=2").ready()
	b := join(t, portal, a, 1)
	b.cmdSN = a.cmdSN
	manage := func(c *client, function byte, itt, ref uint32) {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = 0x42, 0x80|function
		p.put(16, c.itt)
		c.itt++
		p.put(20, itt)
		p.put(32, ref)
		c.number(p)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(c *client, want byte) {
		t.Helper()
		if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != want {
			t.Fatalf("opcode %#x response %d, want %d", p.op(), p.bhs[2], want)
		}
	}
	// A task of the other connection.
	release := d.Hold()
	itt, _ := a.start(rw10(0x28, 0, 1), 512, nil)
	a.quiet("held")
	b.cmdSN++
	manage(b, 1, itt, b.cmdSN-1)
	answer(b, 0)
	release()
	// One that has not come: its number counts as received, and the command is ignored when it comes.
	missing := b.cmdSN
	b.cmdSN++
	manage(b, 1, 0x5555, missing)
	answer(b, 0)
	a.cmdSN = missing
	_, _ = a.start(make([]byte, 6), 0, nil)
	a.quiet("aborted before it came")
	a.cmdSN = missing + 1
	a.good(a.do(make([]byte, 6), 0, nil))
	// A number of the past names no task.
	b.cmdSN = a.cmdSN
	manage(b, 1, 0x5555, missing)
	answer(b, 1)
	// LUN RESET waits for the commands before it, and its answer for the acknowledgement of what was sent
	// elsewhere.
	at := a.cmdSN
	b.cmdSN = at + 1
	manage(b, 5, 0xffffffff, 0)
	b.quiet("LUN RESET while a command is missing")
	a.expStatSN-- // not acknowledged
	read, _ := a.start(rw10(0x28, 0, 1), 512, nil)
	a.answerPings = false
	p := a.must(a.recv())
	for p.op() == 0x20 {
		p = a.must(a.recv())
	}
	if p.u32(16) != read {
		t.Fatalf("opcode %#x", p.op())
	}
	b.quiet("not acknowledged yet")
	a.nop(1, 0xffffffff, nil) // acknowledges
	answer(b, 0)
}

// TestManagementBounded: functions that wait for commands that never come are so many at most (RFC 7143 11.17.1, reason
// "too many immediate commands").
func TestManagementBounded(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("MaxConnections=2").ready()
	c.cmdSN += 5
	for range 40 {
		c.tmf(5, 0xffffffff)
	}
	for range 8 {
		if p := c.must(c.recv()); p.op() != 0x3f || p.bhs[2] != 6 {
			t.Fatalf("opcode %#x reason %d", p.op(), p.bhs[2])
		}
	}
	c.quiet("the others wait")
	c.cmdSN -= 5
	for range 5 {
		_, _ = c.start(make([]byte, 6), 0, nil)
	}
	responses := 0
	for responses < 32 {
		if p := c.must(c.recv()); p.op() == 0x22 {
			responses++
		}
	}
}

// cleared reads the unit attention for tasks that were terminated with their connection (RFC 7143 7.5) away.
func (c *client) cleared() {
	c.t.Helper()
	if key, code := c.do(make([]byte, 6), 0, nil).code(); key != 6 || code != 0x477f {
		c.t.Fatalf("sense %x/%04x, want 6/477f", key, code)
	}
}

// TestConnectionLogout: RFC 7143 11.14. The session ends with its last connection.
func TestConnectionLogout(t *testing.T) {
	var mu sync.Mutex
	aborts := 0
	portal, d := serve(t, nil, func(p *iscsitest.Provider) {
		p.AbortHook = func(_ string, done func(error)) {
			mu.Lock()
			aborts++
			mu.Unlock()
			done(nil)
		}
	})
	a := dial(t, portal).login("MaxConnections=3").ready()
	b := join(t, portal, a, 1)
	c := join(t, portal, a, 2)
	b.cmdSN = a.cmdSN
	release := d.Hold()
	_, _ = b.start(rw10(0x28, 0, 1), 512, nil)
	b.quiet("held")
	if p := a.logout(1, 9); p.bhs[2] != 1 {
		t.Errorf("logout of no connection: response %d", p.bhs[2])
	}
	if p := a.logout(1, 1); p.op() != 0x26 || p.bhs[2] != 0 {
		t.Errorf("logout of another connection: response %d", p.bhs[2])
	}
	if _, err := b.recv(); err == nil {
		t.Error("the connection survived")
	}
	mu.Lock()
	if aborts != 1 {
		t.Errorf("%d aborts", aborts)
	}
	mu.Unlock()
	release()
	// 7.5: the read was terminated, and the nexus is told, by whichever connection.
	c.cmdSN = b.cmdSN
	c.cleared()
	held := d.Hold()
	a.cmdSN = c.cmdSN
	_, _ = a.start(rw10(0x28, 0, 1), 512, nil)
	a.quiet("held")
	_, _ = a.start(make([]byte, 6), 0, nil, 2) // ORDERED: not begun
	if p := a.logout(1, 0); p.bhs[2] != 0 {
		t.Errorf("logout of its own: response %d", p.bhs[2])
	}
	held()
	if _, out := portal.Provider.Seen(); len(out) != 0 {
		t.Error("the session is said to have logged out")
	}
	c.cmdSN = a.cmdSN
	c.cleared()
	c.good(c.do(make([]byte, 6), 0, nil))
	if p := c.logout(1, 2); p.bhs[2] != 0 {
		t.Errorf("logout of the last: response %d", p.bhs[2])
	}
	if in, out := portal.Provider.Seen(); len(out) != 1 || in[0] != out[0] {
		t.Errorf("logged in %d, out %d", in, out)
	}
	// And all at once.
	a = dial(t, portal).login("MaxConnections=3").ready()
	b = join(t, portal, a, 1)
	if p := b.logout(0, 0); p.bhs[2] != 0 {
		t.Errorf("logout of the session: response %d", p.bhs[2])
	}
	for _, x := range []*client{a, b} {
		if _, err := x.recv(); err == nil {
			t.Error("a connection survived")
		}
	}
}

// TestConnectionLost: what a lost connection had under way ends, the others go on; a command that was lost with it
// ends the session after a time, so that nothing waits for ever.
func TestConnectionLost(t *testing.T) {
	log := new(logged)
	portal, d := serve(t, func(c *iscsi.Config) {
		c.GapTimeout, c.PingEvery = 30*time.Millisecond, 5*time.Millisecond
		c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}, nil)
	a := dial(t, portal).login("MaxConnections=2").ready()
	b := join(t, portal, a, 1)
	b.cmdSN = a.cmdSN
	release := d.Hold()
	_, _ = b.start(rw10(0x2a, 0, 1), 0, make([]byte, 512))
	b.quiet("held")
	b.nc.Close()
	a.cmdSN++
	a.good(a.do(make([]byte, 6), 0, nil))
	log.wait(t, "connection closed")
	release()
	// Reinstated under its CID while the target still believes in it, or not any more. What it had begun was terminated (7.5).
	b = join(t, portal, a, 1)
	b.cleared()
	b.good(b.do(rw10(0x28, 0, 1), 512, nil))
	a.cmdSN = b.cmdSN
	b.cmdSN++
	_, _ = b.start(make([]byte, 6), 0, nil) // the number before it never comes
	for _, x := range []*client{b, a} {
		for {
			if _, err := x.recv(); err != nil {
				break
			}
		}
	}
}
