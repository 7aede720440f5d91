package iscsi_test

import (
	"sync"
	"testing"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
)

// manage sends a task management function and gives its response.
func (c *client) manage(function byte, ref uint32) *pdu {
	c.t.Helper()
	c.tmf(function, ref)
	p := c.must(c.recv())
	if p.op() != 0x22 {
		c.t.Fatalf("opcode %#x", p.op())
	}
	return p
}

// TestQueries: QUERY TASK, QUERY TASK SET and QUERY ASYNCHRONOUS EVENT (RFC 7144, SAM-5 7).
func TestQueries(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login("iSCSIProtocolLevel=2")
	// The unit attention of a new nexus: asked about, it stays.
	for range 2 {
		if p := c.manage(12, 0xffffffff); p.bhs[2] != 7 || p.bhs[8] != 0x16 || p.bhs[9] != 0x29 || p.bhs[10] != 0 {
			t.Errorf("response %d, information % x", p.bhs[2], p.bhs[8:11])
		}
	}
	x := portal.Server.Sessions()[0]
	x.Post(0, reserve.ModeParametersChanged)
	if p := c.manage(12, 0xffffffff); p.bhs[2] != 7 || p.bhs[8] != 0x26 {
		t.Errorf("response %d, information % x", p.bhs[2], p.bhs[8:11])
	}
	c.ready()
	c.do(make([]byte, 6), 0, nil)
	if p := c.manage(12, 0xffffffff); p.bhs[2] != 0 || p.bhs[8] != 0 {
		t.Errorf("response %d, information % x", p.bhs[2], p.bhs[8:11])
	}
	// What nobody has told the nexus yet, but its next command would find.
	d.SetGeometry(func(g *scsi.Geometry) { g.Blocks *= 2 })
	if p := c.manage(12, 0xffffffff); p.bhs[2] != 7 || p.bhs[8] != 0x16 || p.bhs[9] != 0x2a || p.bhs[10] != 9 {
		t.Errorf("after a resize: response %d, information % x", p.bhs[2], p.bhs[8:11])
	}
	if _, code := c.do(make([]byte, 6), 0, nil).code(); code != 0x2a09 {
		t.Errorf("the command after it: %04x", code)
	}
	if p := c.manage(10, 0xffffffff); p.bhs[2] != 0 {
		t.Errorf("an empty task set: response %d", p.bhs[2])
	}
	release := sync.OnceFunc(d.Hold())
	defer release()
	itt, _ := c.start(rw10(0x28, 0, 1), 512, nil)
	for _, q := range []struct {
		function byte
		ref      uint32
		want     byte
	}{{10, 0xffffffff, 7}, {9, itt, 7}, {9, itt + 77, 0}} {
		if p := c.manage(q.function, q.ref); p.bhs[2] != q.want {
			t.Errorf("function %d of %#x: response %d, want %d", q.function, q.ref, p.bhs[2], q.want)
		}
	}
	release()
	c.good(c.finish(itt, nil))
	// What the session has, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS says (SPC-4 6.36).
	report := []byte{0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0}
	if r := c.good(c.do(report, 4, nil)); r.data[0] != 0xde || r.data[1] != 0x07 {
		t.Errorf("% x", r.data)
	}
	old := dial(t, portal)
	old.isid = 9
	old.login("iSCSIProtocolLevel=1").ready()
	for _, function := range []byte{9, 10, 11, 12} {
		if p := old.manage(function, 0xffffffff); p.bhs[2] != 5 {
			t.Errorf("function %d at level 1: response %d", function, p.bhs[2])
		}
	}
	if r := old.good(old.do(report, 4, nil)); r.data[0] != 0xda || r.data[1] != 0 {
		t.Errorf("% x", r.data)
	}
}

// TestNexusReset: I_T NEXUS RESET (RFC 7144) ends the nexus's commands and its RESERVE, and leaves a unit attention; the
// session stays.
func TestNexusReset(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login("iSCSIProtocolLevel=2").ready()
	other := dial(t, portal)
	other.isid = 5
	other.login().ready()
	c.good(c.do([]byte{0x16, 0, 0, 0, 0, 0}, 0, nil)) // RESERVE(6)
	if r := other.do(rw10(0x28, 0, 1), 512, nil); r.status != 0x18 {
		t.Fatalf("status %#x, not RESERVATION CONFLICT", r.status)
	}
	release := d.Hold()
	_, _ = c.start(rw10(0x28, 0, 1), 512, nil)
	c.tmf(11, 0xffffffff)
	for d.Pending() < 2 {
		continue
	}
	release()
	if p := c.must(c.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
		t.Fatalf("opcode %#x response %d", p.op(), p.bhs[2])
	}
	if key, code := c.do(make([]byte, 6), 0, nil).code(); key != 6 || code != 0x2907 {
		t.Errorf("sense %x/%04x", key, code)
	}
	other.good(other.do(rw10(0x28, 0, 1), 512, nil))
}

// TestStatusQualifier: BUSY says when to come again (RFC 7144, SAM-5 5.3.2), at level 2 only.
func TestStatusQualifier(t *testing.T) {
	portal, d := serve(t, nil, nil)
	d.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error { return scsi.ErrBusy })
	for level, want := range map[string]uint32{"1": 0, "2": 1 << 16} {
		c := dial(t, portal).login("iSCSIProtocolLevel=" + level).ready()
		itt, _ := c.start(rw10(0x28, 0, 1), 512, nil)
		if p := c.must(c.recv()); p.u32(16) != itt || p.bhs[3] != 0x08 || p.u32(8) != want {
			t.Errorf("level %s: status %#x, qualifier %08x", level, p.bhs[3], p.u32(8))
		}
	}
}

// TestPriority: of commands that wait for memory, those of higher priority are admitted first (RFC 7144, SAM-5 8.7).
func TestPriority(t *testing.T) {
	portal, d := serve(t, func(c *iscsi.Config) { c.ReadMemory = 1 }, nil)
	c := dial(t, portal).login("iSCSIProtocolLevel=2").ready()
	var mu sync.Mutex
	var order []int64
	d.SetFault(func(_ iscsitest.Op, _ scsi.Request, off int64, _ int) error {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, off/512)
		return nil
	})
	release := d.Hold()
	for lba, priority := range []byte{0, 0, 15, 3, 8, 3} {
		p := new(pdu)
		p.bhs[0], p.bhs[1], p.bhs[2] = 0x01, 0xc0, priority<<4
		p.put(16, c.itt)
		c.itt++
		p.put(20, 512)
		copy(p.bhs[32:], rw10(0x28, uint32(lba), 1))
		c.number(p)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
	}
	c.quiet("held")
	release()
	for range 6 {
		c.must(c.recv())
	}
	mu.Lock()
	defer mu.Unlock()
	for i, want := range []int64{0, 3, 5, 1, 4, 2} {
		if order[i] != want {
			t.Fatalf("order %v", order)
		}
	}
}
