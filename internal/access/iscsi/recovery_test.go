package iscsi_test

import (
	"bytes"
	"testing"
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
	after := c.expStatSN
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
	// Once acknowledged it is forgotten.
	c.expStatSN = after
	c.nop(0xffffffff, 0xffffffff, nil)
	for _, kind := range []byte{0, 1} {
		c.snack(kind, itt, response.u32(24)*uint32(kind), 1)
		if p := c.must(c.recv()); p.op() != 0x3f || p.bhs[2] != 3 {
			t.Errorf("SNACK of type %d: opcode %#x reason %d", kind, p.op(), p.bhs[2])
		}
	}
	c.good(c.do(rw10(0x28, 0, 1), 512, nil))
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
