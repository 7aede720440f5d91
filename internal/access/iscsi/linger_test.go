package iscsi_test

import (
	"encoding/binary"
	"testing"

	"dozo/internal/access/iscsi/iscsitest"
)

// copyInForeground starts an EXTENDED COPY of a block of the unit to another place there.
func (c *client) copyInForeground() (itt uint32) {
	c.t.Helper()
	list := make([]byte, 16)
	list[11] = 28
	list = append(list, copySegment()...)
	cdb := make([]byte, 16)
	cdb[0], cdb[13] = 0x83, byte(len(list))
	itt, _ = c.start(cdb, 0, list)
	return itt
}

// copyInBackground does the same with IMMED, and gives the list identifier.
func (c *client) copyInBackground() uint32 {
	c.t.Helper()
	list := make([]byte, 48)
	list[0], list[3], list[15], list[16], list[23], list[45] = 1, 0x20, 1, 0xff, 77, 28
	list = append(list, copySegment()...)
	cdb := make([]byte, 16)
	cdb[0], cdb[1], cdb[13] = 0x83, 1, byte(len(list))
	c.good(c.do(cdb, 0, list))
	return 77
}

func copySegment() []byte {
	segment := make([]byte, 28)
	segment[0], segment[3] = 2, 24
	binary.BigEndian.PutUint32(segment[4:], 0xffffffff) // from the unit itself to itself
	segment[11], segment[27] = 8, 64
	return segment
}

// TestAnAbortWaitsForACopy: rule R9. The calls of a third-party copy have IDs of their own, which nobody refuses at the owner of the
// volume, so whoever is told that it is aborted must not find it at work.
func TestAnAbortWaitsForACopy(t *testing.T) {
	foreground := func(c *client) uint32 { return c.copyInForeground() }
	background := func(c *client) uint32 { return c.copyInBackground() }
	function := func(n byte) func(c *client, _ uint32) {
		return func(c *client, _ uint32) { c.tmf(n, 0xffffffff) }
	}
	for _, x := range []struct {
		what   string
		begin  func(c *client) uint32
		end    func(c *client, itt uint32)
		opcode byte // of the answer
		keys   []string
	}{
		{"ABORT TASK", foreground, func(c *client, itt uint32) { c.tmf(1, itt) }, 0x22, nil},
		{"ABORT TASK SET", foreground, function(2), 0x22, nil},
		{"CLEAR TASK SET", foreground, function(4), 0x22, nil},
		{"LOGICAL UNIT RESET", foreground, function(5), 0x22, nil},
		{"TARGET WARM RESET", foreground, function(6), 0x22, nil},
		{"I_T NEXUS RESET", foreground, function(11), 0x22, []string{"iSCSIProtocolLevel=2"}},
		{"CLEAR TASK SET, background", background, function(4), 0x22, nil},
		{"LOGICAL UNIT RESET, background", background, function(5), 0x22, nil},
		{"TARGET WARM RESET, background", background, function(6), 0x22, nil},
		{"I_T NEXUS RESET, background", background, function(11), 0x22, []string{"iSCSIProtocolLevel=2"}},
		{"COPY OPERATION ABORT, background", background, func(c *client, list uint32) {
			cdb := make([]byte, 16)
			cdb[0], cdb[1] = 0x83, 0x1c
			binary.BigEndian.PutUint32(cdb[2:], list)
			c.start(cdb, 0, nil)
		}, 0x21, nil},
	} {
		t.Run(x.what, func(t *testing.T) {
			portal, d := serve(t, nil, nil)
			c := dial(t, portal).login(x.keys...).ready()
			release := d.Hold()
			x.end(c, x.begin(c))
			c.nop(5, 0xffffffff, nil)
			if p := c.must(c.recv()); p.op() != 0x20 {
				t.Errorf("opcode %#x while the copy has something under way", p.op())
			}
			if d.Pending() == 0 {
				t.Fatal("the copy has not begun")
			}
			release()
			if p := c.must(c.recv()); p.op() != x.opcode || p.bhs[2] != 0 || p.bhs[3] != 0 {
				t.Errorf("opcode %#x, response %d, status %d", p.op(), p.bhs[2], p.bhs[3])
			}
		})
	}
}

// TestTheEndOfASessionWaitsForItsCopies is the same where a session or a connection ends: neither a logout nor the login that replaces one
// is answered before.
func TestTheEndOfASessionWaitsForItsCopies(t *testing.T) {
	foreground := func(c *client) { c.copyInForeground() }
	background := func(c *client) { c.copyInBackground() }
	for _, x := range []struct {
		what  string
		begin func(c *client)
		lost  bool // the session's connections are lost before
		end   func(t *testing.T, portal *iscsitest.Portal, c, other *client)
	}{
		{"session logout", foreground, false, func(_ *testing.T, _ *iscsitest.Portal, c, _ *client) { c.logout(0, 0) }},
		{"session logout, background", background, false, func(_ *testing.T, _ *iscsitest.Portal, c, _ *client) { c.logout(0, 0) }},
		{"logout of a connection by itself", foreground, false, func(_ *testing.T, _ *iscsitest.Portal, c, _ *client) { c.logout(1, 0) }},
		{"logout of a connection by another", foreground, false, func(_ *testing.T, _ *iscsitest.Portal, c, other *client) {
			other.cmdSN = c.cmdSN
			other.logout(1, 0)
		}},
		{"connection reinstatement", foreground, false, func(t *testing.T, portal *iscsitest.Portal, c, _ *client) { join(t, portal, c, 0) }},
		{"session reinstatement", foreground, false, func(t *testing.T, portal *iscsitest.Portal, c, _ *client) { dial(t, portal).login() }},
		{"session reinstatement, background", background, false, func(t *testing.T, portal *iscsitest.Portal, c, _ *client) { dial(t, portal).login() }},
		{"a login after the session was lost", foreground, true, func(t *testing.T, portal *iscsitest.Portal, _, _ *client) { dial(t, portal).login() }},
		{"a login after the session was lost, background", background, true, func(t *testing.T, portal *iscsitest.Portal, _, _ *client) { dial(t, portal).login() }},
	} {
		t.Run(x.what, func(t *testing.T) {
			portal, d := serve(t, nil, nil)
			c := dial(t, portal).login("MaxConnections=2").ready()
			other := join(t, portal, c, 1)
			witness := dial(t, portal)
			witness.isid = 9
			witness.login().ready()
			release := d.Hold()
			x.begin(c)
			for d.Pending() == 0 {
				witness.quiet("until the copy has begun")
			}
			if x.lost {
				_, _ = c.nc.Close(), other.nc.Close()
				for len(portal.Server.Sessions()) > 1 { // a login does not find it any more
					witness.quiet("meanwhile")
				}
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				x.end(t, portal, c, other)
			}()
			for range 200 { // what would be answered too early has the time to be
				witness.quiet("meanwhile")
			}
			select {
			case <-ended:
				t.Error("answered while the copy has something under way")
			default:
			}
			release()
			<-ended
		})
	}
}

// TestReassignOfACopyThatWasAborted: TASK REASSIGN says that there is no such task once the copy has nothing under way any more.
func TestReassignOfACopyThatWasAborted(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a, b := pair2(t, portal)
	release := d.Hold()
	itt := a.copyInForeground()
	a.quiet("held")
	b.cmdSN = a.cmdSN
	b.tmf(1, itt)
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x42, 0x88
	p.put(16, b.itt)
	p.put(20, itt)
	b.number(p)
	if err := b.send(p); err != nil {
		t.Fatal(err)
	}
	b.quiet("while the copy has something under way")
	if d.Pending() == 0 {
		t.Fatal("the copy has not begun")
	}
	release()
	for range 2 {
		p, want := b.must(b.recv()), byte(0)
		if p.u32(16) == b.itt {
			want = 1
		}
		if p.op() != 0x22 || p.bhs[2] != want {
			t.Errorf("opcode %#x for %#x, response %d", p.op(), p.u32(16), p.bhs[2])
		}
	}
}
