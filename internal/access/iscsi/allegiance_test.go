package iscsi_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
)

// reassign sends TASK REASSIGN and gives the response.
func (c *client) reassign(itt, expDataSN uint32) byte {
	c.t.Helper()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x42, 0x88
	p.put(16, c.itt)
	c.itt++
	p.put(20, itt)
	p.put(36, expDataSN)
	c.number(p)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
	r := c.must(c.recv())
	if r.op() != 0x22 {
		c.t.Fatalf("opcode %#x instead of the answer to TASK REASSIGN", r.op())
	}
	return r.bhs[2]
}

func (c *client) wantReassign(itt, expDataSN uint32, want byte) {
	c.t.Helper()
	if got := c.reassign(itt, expDataSN); got != want {
		c.t.Fatalf("TASK REASSIGN: response %d, want %d", got, want)
	}
}

// pair gives two connections of a session at recovery level 2.
func pair2(t *testing.T, portal *iscsitest.Portal, keys ...string) (a, b *client) {
	t.Helper()
	a = dial(t, portal).login(append([]string{"MaxConnections=2", "ErrorRecoveryLevel=2", "DefaultTime2Wait=0", "DefaultTime2Retain=20"}, keys...)...)
	if a.keys["ErrorRecoveryLevel"] != "2" || a.keys["DefaultTime2Retain"] != "20" {
		t.Fatalf("answers %v", a.keys)
	}
	a.ready()
	b = join(t, portal, a, 1)
	b.cmdSN = a.cmdSN
	return a, b
}

// TestFunctionsAreNoTasks: RFC 7143 11.5.1: a task management function is neither to be aborted nor reassigned.
func TestFunctionsAreNoTasks(t *testing.T) {
	held := make(chan func(error), 1)
	portal, _ := serve(t, nil, func(p *iscsitest.Provider) {
		p.AbortHook = func(_ string, done func(error)) { held <- done }
	})
	c := dial(t, portal).login("MaxConnections=1", "ErrorRecoveryLevel=2", "DefaultTime2Retain=20").ready()
	reset := c.tmf(5, 0xffffffff)
	done := <-held
	c.tmf(1, reset)
	if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != 255 {
		t.Errorf("ABORT TASK: opcode %#x response %d", p.op(), p.bhs[2])
	}
	c.wantReassign(reset, 0, 255)
	done(nil)
	if p := c.must(c.recv()); p.op() != 0x22 || p.u32(16) != reset || p.bhs[2] != 0 {
		t.Errorf("opcode %#x for %#x response %d", p.op(), p.u32(16), p.bhs[2])
	}
	c.wantReassign(reset, 0, 1) // it is no more
}

// TestReassignRunning: RFC 7143 7.2.2. A task is allegiant to its connection until that is logged out for recovery; then
// it goes on by another one.
func TestReassignRunning(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a, b := pair2(t, portal)
	want := pattern(1024, 3)
	a.good(a.do(rw10(0x2a, 0, 2), 0, want))
	b.cmdSN = a.cmdSN
	release := sync.OnceFunc(d.Hold())
	defer release()
	itt, _ := a.start(rw10(0x28, 0, 2), 1024, nil)
	a.quiet("held")
	b.cmdSN++
	b.wantReassign(itt, 0, 3)
	_ = a.nc.Close()
	b.wantReassign(itt, 0, 3) // lost, but not logged out
	if r := b.logout(2, 7); r.bhs[2] != 1 {
		t.Errorf("logout of an unknown CID: response %d", r.bhs[2])
	}
	if r := b.logout(2, 0); r.op() != 0x26 || r.bhs[2] != 0 || r.u32(40) != 20 { // Time2Wait, Time2Retain
		t.Fatalf("opcode %#x response %d, %08x", r.op(), r.bhs[2], r.u32(40))
	}
	b.wantReassign(itt+1000, 0, 1)
	b.wantReassign(itt, 0, 0)
	b.wantReassign(itt, 0, 3) // it is this connection's now
	release()
	if r := b.good(b.finish(itt, nil)); !bytes.Equal(r.data, want) {
		t.Errorf("%d bytes", len(r.data))
	}
	// One that finishes while nobody has it answers when it is reassigned.
	c := join(t, portal, b, 0)
	c.cmdSN = b.cmdSN
	release = sync.OnceFunc(d.Hold())
	defer release()
	itt, _ = c.start(rw10(0x28, 0, 2), 1024, nil)
	c.quiet("held")
	b.cmdSN++
	_ = c.nc.Close()
	if r := b.logout(2, 0); r.bhs[2] != 0 {
		t.Fatalf("response %d", r.bhs[2])
	}
	release()
	for d.Pending() > 0 {
		time.Sleep(time.Millisecond)
	}
	b.wantReassign(itt, 0, 0)
	if r := b.good(b.finish(itt, nil)); !bytes.Equal(r.data, want) {
		t.Errorf("%d bytes", len(r.data))
	}
}

// TestReassignWrite: a write whose data are half here asks for the rest (RFC 7143 7.2.2), on a connection that was
// reinstated (6.3.4), from the first R2TSN that the initiator has not seen.
func TestReassignWrite(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	a := dial(t, portal).login("ErrorRecoveryLevel=2", "ImmediateData=No", "MaxBurstLength=4096", "MaxOutstandingR2T=2", "DefaultTime2Wait=0").ready()
	a.maxSend = 1024
	want := pattern(12<<10, 9)
	itt, _ := a.start(rw10(0x2a, 0, 24), 0, want)
	for sn := range uint32(2) {
		p := a.must(a.recv())
		if p.op() != 0x31 || p.u32(36) != sn {
			t.Fatalf("opcode %#x R2TSN %d", p.op(), p.u32(36))
		}
		if sn == 0 {
			a.dataOut(itt, p.u32(20), want[:4096], 0)
		}
	}
	if p := a.must(a.recv()); p.op() != 0x31 || p.u32(36) != 2 {
		t.Fatalf("opcode %#x R2TSN %d", p.op(), p.u32(36))
	}
	_ = a.nc.Close()
	b := join(t, portal, a, 0)
	b.immediate, b.maxSend, b.cmdSN = false, 1024, a.cmdSN
	if n := portal.Server.Sessions(); len(n) != 1 || n[0].Info().Connections != 1 {
		t.Fatalf("%d sessions", len(n))
	}
	b.wantReassign(itt, 3, 0)
	for sn := uint32(3); sn < 5; sn++ {
		p := b.must(b.recv())
		if p.op() != 0x31 || p.u32(36) != sn || p.u32(40) != (sn-2)*4096 {
			t.Fatalf("opcode %#x R2TSN %d for %d", p.op(), p.u32(36), p.u32(40))
		}
		at := int(p.u32(40))
		b.dataOut(itt, p.u32(20), want[:at+4096], at)
	}
	b.good(b.finish(itt, want))
	if r := b.good(b.do(rw10(0x28, 0, 24), len(want), nil)); !bytes.Equal(r.data, want) {
		t.Error("what was written is not what was meant")
	}
}

// TestReassignAnswered: of a task that had been answered the answer is sent again, and of its data what ExpDataSN asks
// for (RFC 7143 11.5.6), in segments of the new connection.
func TestReassignAnswered(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	for _, tc := range []struct {
		exp   uint32
		from  int
		first uint32
	}{{0, 0, 0}, {2, 4096, 2}, {8, 16384, 8}, {77, 0, 0}} {
		a, b := pair2(t, portal, "MaxRecvDataSegmentLength=2048", "MaxBurstLength=8192")
		b2 := join(t, portal, b, 1, "MaxRecvDataSegmentLength=4096")
		b2.cmdSN = b.cmdSN
		b = b2
		want := pattern(16<<10, 5)
		a.firstBurst = 8192
		a.good(a.do(rw10(0x2a, 0, 32), 0, want))
		itt, _ := a.start(rw10(0x28, 0, 32), 16<<10, nil)
		if data, r := a.collect(itt); !bytes.Equal(data, want) || r.u32(36) != 8 {
			t.Fatalf("%d bytes, ExpDataSN %d", len(data), r.u32(36))
		}
		_ = a.nc.Close()
		b.cmdSN = a.cmdSN
		if r := b.logout(2, 0); r.bhs[2] != 0 {
			t.Fatalf("response %d", r.bhs[2])
		}
		b.wantReassign(itt, tc.exp, 0)
		for at, sn := tc.from, tc.first; at < len(want); sn++ {
			p := b.must(b.recv())
			if p.op() != 0x25 || p.u32(36) != sn || int(p.u32(40)) != at || !bytes.Equal(p.data, want[at:min(at+4096, len(want))]) {
				t.Fatalf("ExpDataSN %d: opcode %#x DataSN %d at %d", tc.exp, p.op(), p.u32(36), p.u32(40))
			}
			at += len(p.data)
		}
		p := b.must(b.recv())
		if p.op() != 0x21 || p.u32(16) != itt || p.u32(36) != tc.first+uint32(len(want)-tc.from)/4096 {
			t.Fatalf("opcode %#x ExpDataSN %d", p.op(), p.u32(36))
		}
		b.wantReassign(itt, 0, 1) // nothing is left of it on the lost connection
		if r := b.logout(0, 0); r.bhs[2] != 0 {
			t.Fatalf("response %d", r.bhs[2])
		}
	}
}

// TestUnacknowledgedCommandsOfLostConnection: what came early by a connection that is logged out for recovery is
// forgotten, and comes again by another one (RFC 7143 11.14.1).
func TestUnacknowledgedCommandsOfLostConnection(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	a, b := pair2(t, portal)
	first := a.cmdSN
	a.cmdSN = first + 1
	itt, _ := a.start(rw10(0x28, 0, 1), 512, nil)
	a.quiet("early")
	_ = a.nc.Close()
	b.cmdSN = first
	p := new(pdu) // an immediate Logout: the numbers stay
	p.bhs[0], p.bhs[1] = 0x46, 0x82
	p.put(16, 0x7777)
	b.number(p)
	if err := b.send(p); err != nil {
		t.Fatal(err)
	}
	if r := b.must(b.recv()); r.op() != 0x26 || r.bhs[2] != 0 {
		t.Fatalf("opcode %#x response %d", r.op(), r.bhs[2])
	}
	b.wantReassign(itt, 0, 1)
	b.good(b.do(make([]byte, 6), 0, nil))
	b.good(b.do(rw10(0x28, 0, 1), 512, nil))
}

// TestTasksGivenUp: nobody comes for the tasks of a lost connection within DefaultTime2Wait and DefaultTime2Retain (RFC
// 7143 7.5.1): they end, and with the last connection the session does.
func TestTasksGivenUp(t *testing.T) {
	aborted := make(chan string, 4)
	portal, d := serve(t, nil, func(p *iscsitest.Provider) {
		p.AbortHook = func(what string, done func(error)) { aborted <- what; done(nil) }
	})
	a := dial(t, portal).login("ErrorRecoveryLevel=2", "DefaultTime2Wait=0", "DefaultTime2Retain=1").ready()
	release := sync.OnceFunc(d.Hold())
	defer release()
	_, _ = a.start(rw10(0x28, 0, 1), 512, nil)
	a.quiet("held")
	_ = a.nc.Close()
	select {
	case what := <-aborted:
		if what != "abort task" {
			t.Errorf("%s", what)
		}
	case <-time.After(time.Minute):
		t.Fatal("the task is still there")
	}
	for len(portal.Server.Sessions()) > 0 {
		time.Sleep(time.Millisecond)
	}
}

// TestLostConnectionsBounded: connections that come and go don't pile up.
func TestLostConnectionsBounded(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a, b := pair2(t, portal)
	release := sync.OnceFunc(d.Hold())
	defer release()
	sn := a.cmdSN
	for range 12 {
		c := join(t, portal, a, 1)
		c.cmdSN = sn
		_, _ = c.start(rw10(0x28, 0, 1), 512, nil)
		sn++
		c.quiet("held")
		_ = c.nc.Close()
	}
	_ = b.nc.Close()
	release()
	for d.Pending() > 0 {
		time.Sleep(time.Millisecond)
	}
	x := portal.Server.Sessions()[0]
	for deadline := time.Now().Add(time.Minute); x.Info().Outstanding > 4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d tasks of lost connections are kept", x.Info().Outstanding)
		}
	}
}

// TestReassignedStamp is rule R9 of recovery level 2. A task that had not begun when it was reassigned goes by the stamp
// of the request that did, and is refused by what its own is too old for; one that had begun keeps its own.
func TestReassignedStamp(t *testing.T) {
	var tick *iscsitest.Provider
	portal, d := serve(t, func(c *iscsi.Config) { c.PingEvery = -1 }, func(p *iscsitest.Provider) { tick = p; p.Tick() })
	last := stampsSeen(d)
	a := dial(t, portal).login("ErrorRecoveryLevel=2", "ImmediateData=No", "MaxBurstLength=512", "DefaultTime2Wait=0").ready()
	want := pattern(1024, 2)
	itt, _ := a.start(rw10(0x2a, 0, 2), 0, want)
	p := a.must(a.recv())
	a.dataOut(itt, p.u32(20), want[:512], 0)
	if p = a.must(a.recv()); p.op() != 0x31 {
		t.Fatalf("opcode %#x", p.op())
	}
	own := scsi.Stamp{}
	_ = a.nc.Close()
	tick.Tick()
	tick.Tick()
	b := join(t, portal, a, 0)
	b.immediate, b.cmdSN = false, a.cmdSN
	b.wantReassign(itt, 2, 0)
	b.good(b.finish(itt, want))
	r := last()
	if r.Stamp.Tick != 3 || r.Began.Tick != 1 || r.Began == own {
		t.Errorf("stamp %+v, began %+v: want 3 and 1", r.Stamp, r.Began)
	}
	// One that has begun.
	release := sync.OnceFunc(d.Hold())
	defer release()
	itt, _ = b.start(rw10(0x28, 0, 1), 512, nil)
	b.quiet("held")
	_ = b.nc.Close()
	tick.Tick()
	c := join(t, portal, b, 0)
	c.cmdSN = b.cmdSN
	c.wantReassign(itt, 0, 0)
	release()
	c.good(c.finish(itt, nil))
	if r := last(); r.Stamp.Tick != 3 || r.Began != (scsi.Stamp{}) {
		t.Errorf("stamp %+v, began %+v: want its own", r.Stamp, r.Began)
	}
}
