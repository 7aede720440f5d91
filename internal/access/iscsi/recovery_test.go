package iscsi_test

import (
	"bytes"
	"testing"

	"dozo/internal/access/iscsi"
)

// snack sends a SNACK Request.
func (c *client) snack(kind byte, itt, from, run uint32) {
	c.t.Helper()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x10, 0x80|kind
	p.put(16, itt)
	p.put(20, 0xffffffff)
	p.put(28, c.expStatSN)
	p.put(40, from)
	p.put(44, run)
	if err := c.send(p); err != nil {
		c.t.Fatal(err)
	}
}

// collect takes Data-Ins of a task until its response.
func (c *client) collect(itt uint32) (data []byte, response *pdu) {
	c.t.Helper()
	for {
		p := c.must(c.recv())
		switch {
		case p.op() == 0x25 && p.u32(16) == itt && p.bhs[1]&1 == 0:
			data = append(data, p.data...)
		case p.op() == 0x21 && p.u32(16) == itt:
			return data, p
		default:
			c.t.Fatalf("opcode %#x flags %#02x for %#x", p.op(), p.bhs[1], p.u32(16))
		}
	}
}

// TestSNACK: RFC 7143 11.16. What is not acknowledged is sent again, as it was; what is acknowledged is not.
func TestSNACK(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("ErrorRecoveryLevel=1", "MaxRecvDataSegmentLength=4096", "MaxBurstLength=8192").ready()
	if c.keys["ErrorRecoveryLevel"] != "1" {
		t.Fatalf("level %s", c.keys["ErrorRecoveryLevel"])
	}
	c.firstBurst = 8192
	want := pattern(16<<10, 5)
	c.good(c.do(rw10(0x2a, 0, 32), 0, want))
	old := c.expStatSN
	itt, _ := c.start(rw10(0x28, 0, 32), 16<<10, nil)
	data, response := c.collect(itt)
	if !bytes.Equal(data, want) || response.u32(36) != 4 {
		t.Fatalf("%d bytes, ExpDataSN %d", len(data), response.u32(36))
	}
	// Data: two of the four, then all from the third on.
	c.expStatSN = old
	for _, x := range []struct{ from, run, n uint32 }{{1, 2, 2}, {2, 0, 2}} {
		c.snack(0, itt, x.from, x.run)
		for i := range x.n {
			p := c.must(c.recv())
			sn := p.u32(36)
			if p.op() != 0x25 || sn != x.from+i || p.u32(40) != sn*4096 || !bytes.Equal(p.data, want[sn*4096:(sn+1)*4096]) {
				t.Fatalf("opcode %#x DataSN %d", p.op(), sn)
			}
			if last := sn%2 == 1; last != (p.bhs[1]&0x80 != 0) {
				t.Errorf("DataSN %d: flags %#02x", sn, p.bhs[1])
			}
		}
	}
	// Status.
	c.snack(1, 0xffffffff, response.u32(24), 1)
	if p := c.must(c.recv()); p.op() != 0x21 || p.u32(16) != itt || p.u32(24) != response.u32(24) {
		t.Errorf("opcode %#x StatSN %d, want %d", p.op(), p.u32(24), response.u32(24))
	}
	// All that is not acknowledged.
	c.expStatSN = old
	c.snack(1, 0xffffffff, 0, 0)
	if p := c.must(c.recv()); p.op() != 0x21 || p.u32(24) != response.u32(24) {
		t.Errorf("opcode %#x StatSN %d, want %d", p.op(), p.u32(24), response.u32(24))
	}
	refused := func(what string, kind byte, itt, from, run uint32, reason byte, next uint32) {
		t.Helper()
		c.snack(kind, itt, from, run)
		if p := c.must(c.recv()); p.op() != 0x3f || p.bhs[2] != reason || p.u32(36) != next {
			t.Errorf("%s: opcode %#x reason %d next %d, want reason %d next %d", what, p.op(), p.bhs[2], p.u32(36), reason, next)
		}
	}
	// What was never sent breaks the protocol; a Reject says what the next number would be (11.17.1).
	c.expStatSN = old
	refused("data beyond the last", 0, itt, 3, 2, 4, 4)
	c.expStatSN = old
	refused("an acknowledgement that nobody asked for", 2, 0xffffffff, 4, 0, 8, 0)
	refused("a type that there is not", 5, itt, 0, 0, 9, 0)
	// Once acknowledged it is forgotten.
	c.nop(0xffffffff, 0xffffffff, nil)
	refused("data that were acknowledged", 0, itt, 0, 1, 4, 0)
	refused("a status that was acknowledged", 1, 0xffffffff, response.u32(24), 1, 4, 0)
	refused("a status that was not sent", 1, 0xffffffff, c.expStatSN+5, 1, 4, 0)
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
}

// TestResegmentation: RFC 7143 11.16.3. After MaxRecvDataSegmentLength has changed an R-Data SNACK has the data sent again in
// segments of the new length, numbered from 0, and the response with its tag under the StatSN that it had.
func TestResegmentation(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login("ErrorRecoveryLevel=1", "MaxRecvDataSegmentLength=4096", "MaxBurstLength=8192").ready()
	c.firstBurst = 8192
	want := pattern(16<<10, 5)
	c.good(c.do(rw10(0x2a, 0, 32), 0, want))
	old := c.expStatSN
	itt, _ := c.start(rw10(0x28, 0, 32), 16<<10, nil)
	_, first := c.collect(itt)
	// The read's status stays unacknowledged.
	c.expStatSN = old
	text := new(pdu)
	text.bhs[0], text.bhs[1] = 0x44, 0x80
	text.data = []byte("MaxRecvDataSegmentLength=2048\x00")
	text.put(16, 0x7777)
	text.put(20, 0xffffffff)
	c.number(text)
	if err := c.send(text); err != nil {
		t.Fatal(err)
	}
	if p := c.must(c.recv()); p.op() != 0x24 {
		t.Fatalf("opcode %#x", p.op())
	}
	resegment := func(itt, tag, from uint32) {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = 0x10, 0x83
		p.put(16, itt)
		p.put(20, tag)
		p.put(28, old)
		p.put(40, from)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, tag := range []uint32{0x1234, 0x1235} {
		resegment(itt, tag, 0)
		for sn := range uint32(8) {
			p := c.must(c.recv())
			if p.op() != 0x25 || p.u32(36) != sn || p.u32(40) != sn*2048 || !bytes.Equal(p.data, want[sn*2048:(sn+1)*2048]) {
				t.Fatalf("opcode %#x DataSN %d of %d bytes at %d", p.op(), p.u32(36), len(p.data), p.u32(40))
			}
		}
		if p := c.must(c.recv()); p.op() != 0x21 || p.u32(20) != tag || p.u32(24) != first.u32(24) || p.u32(36) != 8 {
			t.Errorf("opcode %#x tag %#x StatSN %d ExpDataSN %d, want StatSN %d", p.op(), p.u32(20), p.u32(24), p.u32(36), first.u32(24))
		}
	}
	// A lost one of them comes with the tag, too (11.4.4).
	c.expStatSN = old
	c.snack(1, 0xffffffff, first.u32(24), 1)
	if p := c.must(c.recv()); p.op() != 0x21 || p.u32(20) != 0x1235 {
		t.Errorf("opcode %#x tag %#x", p.op(), p.u32(20))
	}
	for _, x := range []struct{ tag, from uint32 }{{0, 0}, {0xffffffff, 0}, {7, 1}} {
		resegment(itt, x.tag, x.from)
		if p := c.must(c.recv()); p.op() != 0x3f || p.bhs[2] != 9 {
			t.Errorf("tag %#x from %d: opcode %#x reason %d", x.tag, x.from, p.op(), p.bhs[2])
		}
	}
	// Before anything was sent there is nothing to send again; the one response has the tag.
	release := d.Hold()
	itt, _ = c.start(rw10(0x28, 0, 4), 2048, nil)
	c.quiet("held")
	resegment(itt, 0x99, 0)
	c.quiet("nothing was sent")
	release()
	if data, p := c.collect(itt); !bytes.Equal(data, want[:2048]) || p.u32(20) != 0x99 {
		t.Errorf("%d bytes, tag %#x", len(data), p.u32(20))
	}
}

// TestKeptDataBounded: an initiator that acknowledges nothing gets its data, and doesn't hold more than a bounded
// amount; what was given up is refused.
func TestKeptDataBounded(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("ErrorRecoveryLevel=1", "MaxRecvDataSegmentLength=262144").ready()
	at := c.expStatSN
	var first uint32
	for i := range 20 {
		itt, _ := c.start(rw10(0x28, 0, 2048), 1<<20, nil)
		if data, _ := c.collect(itt); len(data) != 1<<20 {
			t.Fatalf("%d bytes", len(data))
		}
		if i == 0 {
			first = itt
		}
		c.expStatSN = at
	}
	c.snack(0, first, 0, 0)
	if p := c.must(c.recv()); p.op() != 0x3f || p.bhs[2] != 3 {
		t.Errorf("opcode %#x reason %d", p.op(), p.bhs[2])
	}
	c.expStatSN = at
	c.snack(0, c.itt-1, 3, 1)
	if p := c.must(c.recv()); p.op() != 0x25 || p.u32(36) != 3 {
		t.Errorf("opcode %#x DataSN %d", p.op(), p.u32(36))
	}
}

// TestKeptOfAll: what connections keep for initiators that acknowledge nothing is bounded for all together. Whoever comes late has a share,
// and room again when the others acknowledge or go.
func TestKeptOfAll(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.MemoryMax = 16 << 20 }, nil) // 4 MiB are kept
	open := func(isid byte) *client {
		c := dial(t, portal)
		c.isid = isid
		return c.login("ErrorRecoveryLevel=1", "MaxRecvDataSegmentLength=1048576", "MaxBurstLength=1048576").ready()
	}
	// again reads n MiB without acknowledging it, and says whether the data are sent again.
	again := func(c *client, blocks uint16) bool {
		t.Helper()
		old := c.expStatSN
		itt, _ := c.start(rw10(0x28, 0, blocks), int(blocks)*512, nil)
		c.collect(itt)
		acked := c.expStatSN
		c.expStatSN = old
		defer func() { c.expStatSN = acked }()
		c.snack(0, itt, 0, 1)
		p := c.must(c.recv())
		c.expStatSN = old
		if p.op() == 0x3f {
			if p.bhs[2] != 3 {
				t.Errorf("reason %d, want SNACK Reject", p.bhs[2])
			}
			acked = p.u32(24) + 1
			return false
		}
		return p.op() == 0x25
	}
	a, b := open(1), open(2)
	if !again(a, 3<<11) {
		t.Fatal("the first 3 MiB are not kept")
	}
	if again(b, 3<<11) {
		t.Error("another connection's 3 MiB are kept too: 6 of 4")
	}
	if !again(b, 256) {
		t.Error("128 KiB are not kept: a share")
	}
	a.nop(7, 0xffffffff, nil) // acknowledges
	a.must(a.recv())
	if !again(b, 3<<11) {
		t.Error("3 MiB are not kept although those of the other connection are acknowledged")
	}
}
