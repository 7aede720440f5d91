package iscsi_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
)

func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestTransferCombinations writes and reads sizes around every limit under all combinations of the keys that
// shape a transfer.
func TestTransferCombinations(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	isid := byte(0)
	for _, initialR2T := range []string{"Yes", "No"} {
		for _, immediate := range []string{"Yes", "No"} {
			for _, digest := range []string{"None", "CRC32C"} {
				for _, r2ts := range []int{1, 4} {
					isid++
					t.Run(fmt.Sprintf("InitialR2T=%s/ImmediateData=%s/%s/R2T=%d", initialR2T, immediate, digest, r2ts), func(t *testing.T) {
						c := dial(t, portal)
						c.isid = isid
						c.login("InitialR2T="+initialR2T, "ImmediateData="+immediate, "HeaderDigest="+digest, "DataDigest="+digest,
							"MaxBurstLength=16384", "FirstBurstLength=8192", "MaxRecvDataSegmentLength=4096", fmt.Sprintf("MaxOutstandingR2T=%d", r2ts)).ready()
						c.maxSend = min(c.maxSend, 2560) // several segments a burst
						for i, n := range []int{512, 4096, 8192, 8704, 24576, 66048, 1 << 20, 1<<20 + 512} {
							out := pattern(n, uint64(i)+uint64(isid)<<8)
							lba := uint32(isid) * 4096
							c.good(c.do(rw10(0x2a, lba, uint16(n/512)), 0, out))
							r := c.good(c.do(rw10(0x28, lba, uint16(n/512)), n, nil))
							if !bytes.Equal(r.data, out) {
								t.Fatalf("%d bytes came back different", n)
							}
							if r.flags != 0 || r.residual != 0 {
								t.Errorf("%d bytes: residual %#x %d", n, r.flags, r.residual)
							}
						}
					})
				}
			}
		}
	}
}

// TestMemoryBounds sends more writes and reads than the bounds admit, with data unasked and without: all end,
// and all data are right.
func TestMemoryBounds(t *testing.T) {
	portal, d := serve(t, func(c *iscsi.Config) { c.WriteMemory, c.ReadMemory = 64<<10, 64<<10 }, nil)
	c := dial(t, portal).login("InitialR2T=No", "ImmediateData=Yes", "FirstBurstLength=16384").ready()
	const n, each = 40, 48 << 10
	release := d.Hold()
	outs := map[uint32][]byte{}
	for i := range n {
		out := pattern(each, uint64(i))
		itt, _ := c.start(rw10(0x2a, uint32(i*each/512), each/512), 0, out)
		outs[itt] = out
	}
	release()
	for left := n; left > 0; {
		p := c.must(c.recv())
		switch p.op() {
		case 0x31:
			at, m := int(p.u32(40)), int(p.u32(44))
			c.dataOut(p.u32(16), p.u32(20), outs[p.u32(16)][:at+m], at)
		case 0x21:
			if p.bhs[3] != 0 {
				t.Fatalf("status %#x", p.bhs[3])
			}
			left--
		}
	}
	got := map[uint32][]byte{}
	for i := range n {
		itt, _ := c.start(rw10(0x28, uint32(i*each/512), each/512), each, nil)
		outs[itt] = pattern(each, uint64(i))
	}
	for left := n; left > 0; {
		p := c.must(c.recv())
		got[p.u32(16)] = append(got[p.u32(16)], p.data...)
		if p.bhs[1]&1 != 0 {
			if !bytes.Equal(got[p.u32(16)], outs[p.u32(16)]) {
				t.Fatal("data came back different")
			}
			left--
		}
	}
}

func TestResiduals(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	c.good(c.do(rw10(0x2a, 0, 2), 0, bytes.Repeat([]byte{'a'}, 1024)))
	const over, under = 0x04, 0x02
	for _, x := range []struct {
		name     string
		cdb      []byte
		read     int
		out      []byte
		flags    byte
		residual uint32
		data     int
	}{
		{"read more expected", rw10(0x28, 0, 1), 10000, nil, under, 9488, 512},
		{"read less expected", rw10(0x28, 0, 1), 200, nil, over, 312, 200},
		{"write more announced", rw10(0x2a, 0, 1), 0, bytes.Repeat([]byte{'b'}, 1024), under, 512, 0},
		{"write less announced", rw10(0x2a, 0, 2), 0, bytes.Repeat([]byte{'b'}, 512), over, 512, 0},
		{"write part of a block", rw10(0x2a, 1, 1), 0, bytes.Repeat([]byte{'c'}, 200), over, 312, 0},
	} {
		r := c.good(c.do(x.cdb, x.read, x.out))
		if r.flags != x.flags || r.residual != x.residual || len(r.data) != x.data {
			t.Errorf("%s: flags %#x residual %d data %d", x.name, r.flags, r.residual, len(r.data))
		}
	}
	r := c.good(c.do(rw10(0x28, 0, 2), 1024, nil))
	want := append(bytes.Repeat([]byte{'b'}, 512), bytes.Repeat([]byte{'c'}, 200)...)
	want = append(want, bytes.Repeat([]byte{'a'}, 312)...)
	if !bytes.Equal(r.data, want) {
		t.Error("bytes beyond what was announced were touched, or others not written")
	}
}

// TestDirection: R and W of a command and its CDB have to agree where data are expected (RFC 7143 11.3.1). What they say about
// nothing doesn't matter.
func TestDirection(t *testing.T) {
	const r, w, good, refused = 0x40, 0x20, 0, 0x0e03
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("InitialR2T=Yes", "ImmediateData=No").ready()
	for _, x := range []struct {
		what     string
		cdb      []byte
		bits     byte
		expected uint32
		want     uint16
		flags    byte
		residual uint32
	}{
		{"a write that is to be received", rw10(0x2a, 0, 1), r, 512, refused, 2, 512},
		{"a parameter list that is to be received", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, r, 24, refused, 2, 24},
		{"a read that is to be sent", rw10(0x28, 0, 1), w, 512, good, 2, 512},
		{"a read whose data go nowhere", rw10(0x28, 0, 1), 0, 512, refused, 2, 512},
		{"both at once", rw10(0x28, 0, 1), r | w, 512, refused, 2, 512},
		{"both of nothing", make([]byte, 6), r | w, 0, good, 0, 0},
		{"a read of which nothing is expected", rw10(0x28, 0, 1), 0, 0, good, 4, 512},
		{"a write of which nothing is sent", rw10(0x2a, 0, 1), w, 0, good, 4, 512},
		{"a command without data of which some are expected", make([]byte, 6), r, 512, good, 2, 512},
	} {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = 0x01, 0x80|x.bits
		copy(p.bhs[32:], x.cdb)
		p.put(16, c.itt)
		p.put(20, x.expected)
		c.number(p)
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
		c.itt++
		got := c.finish(c.itt-1, nil)
		if _, code := got.code(); code != x.want || (got.status != 0) != (x.want != good) || got.flags != x.flags || got.residual != x.residual || len(got.data) > 0 {
			t.Errorf("%s: status %#x, code %04x, flags %#x, residual %d, %d bytes", x.what, got.status, code, got.flags, got.residual, len(got.data))
		}
	}
	// What a command that is refused so would have reported is not lost.
	fresh := dial(t, portal)
	fresh.isid = 7
	fresh.login()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x01, 0x80|r
	copy(p.bhs[32:], rw10(0x2a, 0, 1))
	p.put(16, fresh.itt)
	p.put(20, 512)
	fresh.number(p)
	if err := fresh.send(p); err != nil {
		t.Fatal(err)
	}
	fresh.itt++
	if _, code := fresh.finish(fresh.itt-1, nil).code(); code != 0x2900 {
		t.Errorf("the first command of a session: %04x", code)
	}
}

// TestDiskErrors sends the disk's errors through the whole path.
func TestDiskErrors(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	for _, x := range []struct {
		err    error
		status byte
		key    byte
		code   uint16
	}{
		{scsi.ErrStale, 0x08, 0, 0},
		{scsi.ErrReservationConflict, 0x18, 0, 0},
		{scsi.ErrNoSpace, 0x02, 7, 0x2707},
		{&scsi.MediumError{Offset: 7 * 512, Err: errors.New("checksum")}, 0x02, 3, 0x1100},
		{errors.New("whatever"), 0x02, 4, 0x4400},
	} {
		d.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error { return x.err })
		for _, cdb := range [][]byte{rw10(0x28, 7, 1), rw10(0x2a, 7, 1)} {
			read, out := 512, []byte(nil)
			if cdb[0] == 0x2a {
				read, out = 0, make([]byte, 512)
			}
			r := c.do(cdb, read, out)
			if key, code := r.code(); r.status != x.status || key != x.key || code != x.code {
				t.Errorf("%v at %#x: status %#x sense %x/%04x", x.err, cdb[0], r.status, key, code)
			}
		}
	}
	d.SetFault(nil)
	c.good(c.do(rw10(0x28, 7, 1), 512, nil))
}

// TestDataOutOfSequence: the task ends with an error, nothing is written, the session goes on.
func TestDataOutOfSequence(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("ImmediateData=No").ready()
	itt, _ := c.start(rw10(0x2a, 0, 4), 0, pattern(2048, 1))
	r2t := c.must(c.recv())
	p := &pdu{data: make([]byte, 512)}
	p.bhs[0] = 0x05
	p.put(16, itt)
	p.put(20, r2t.u32(20))
	p.put(36, 1) // should be 0
	if err := c.send(p); err != nil {
		t.Fatal(err)
	}
	// RFC 7143 11.4.2: the response waits for the end of the burst that was asked for.
	c.quiet("the burst is not over")
	p.bhs[1] = 0x80
	p.put(36, 2)
	if err := c.send(p); err != nil {
		t.Fatal(err)
	}
	r := c.finish(itt, nil)
	if key, code := r.code(); r.status != 2 || key != 0xb || code != 0x4705 {
		t.Fatalf("status %#x sense %x/%04x", r.status, key, code)
	}
	// What still comes finds no task any more.
	p.put(36, 3)
	if err := c.send(p); err != nil {
		t.Fatal(err)
	}
	if r := c.good(c.do(rw10(0x28, 0, 4), 2048, nil)); !bytes.Equal(r.data, make([]byte, 2048)) {
		t.Error("something was written")
	}
}

// TestHeadOfQueue: SAM-5 8.6.2: it begins before what waits for memory, and while an ORDERED command runs.
func TestHeadOfQueue(t *testing.T) {
	portal, d := serve(t, func(c *iscsi.Config) { c.ReadMemory = 4096 }, nil)
	c := dial(t, portal).login("MaxConnections=1").ready()
	release := d.Hold()
	first, _ := c.start(rw10(0x28, 0, 8), 4096, nil)
	second, _ := c.start(rw10(0x28, 0, 8), 4096, nil)
	third, _ := c.start(rw10(0x28, 0, 8), 4096, nil, 3)
	c.quiet("held")
	release()
	for _, itt := range []uint32{first, third, second} {
		c.good(c.finish(itt, nil))
	}
	release = d.Hold()
	ordered, _ := c.start(rw10(0x28, 0, 1), 512, nil, 2)
	head, _ := c.start(make([]byte, 6), 0, nil, 3)
	c.good(c.finish(head, nil))
	release()
	c.good(c.finish(ordered, nil))
}

// TestOrdered: nothing passes an ORDERED command, in either direction.
func TestOrdered(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	c.good(c.do(rw10(0x2a, 0, 1), 0, bytes.Repeat([]byte{1}, 512)))
	release := d.Hold()
	first, _ := c.start(rw10(0x2a, 0, 1), 0, bytes.Repeat([]byte{2}, 512))
	second, _ := c.start(rw10(0x28, 0, 1), 512, nil, 2)
	third, _ := c.start(rw10(0x2a, 0, 1), 0, bytes.Repeat([]byte{3}, 512))
	release()
	c.good(c.finish(first, nil))
	if r := c.good(c.finish(second, nil)); r.data[0] != 2 {
		t.Errorf("the ordered read saw %d", r.data[0])
	}
	c.good(c.finish(third, nil))
}

// TestResponsesDoNotWait: responses that go in one write wait for no command that is still under way.
func TestResponsesDoNotWait(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login("InitialR2T=No", "ImmediateData=Yes").ready()
	release := d.Hold()
	left := map[uint32]bool{}
	for i := range 8 {
		itt, _ := c.start(rw10(0x2a, uint32(i*8), 8), 0, pattern(4096, uint64(i)))
		left[itt] = true
	}
	held := func(n int) {
		for d.Pending() < n {
			time.Sleep(time.Millisecond)
		}
	}
	held(8)
	releaseLast := d.Hold()
	last, _ := c.start(rw10(0x2a, 800, 8), 0, pattern(4096, 9))
	held(9)
	release()
	for len(left) > 0 {
		p := c.must(c.recv())
		if p.op() != 0x21 || p.bhs[3] != 0 || !left[p.u32(16)] {
			t.Fatalf("opcode %#x, status %#x, task %#x", p.op(), p.bhs[3], p.u32(16))
		}
		c.expStatSN = p.u32(24) + 1
		delete(left, p.u32(16))
	}
	releaseLast()
	c.good(c.finish(last, nil))
}

// TestStatusOfFarBlocks: a GET LBA STATUS whose answer is late holds up neither what comes behind it on the connection nor the
// answers of others.
func TestStatusOfFarBlocks(t *testing.T) {
	portal, d := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	release := d.Hold()
	cdb := make([]byte, 16)
	cdb[0], cdb[1], cdb[13] = 0x9e, 0x12, 24
	late, _ := c.start(cdb, 24, nil)
	for d.Pending() < 1 {
		time.Sleep(time.Millisecond)
	}
	itt, _ := c.start([]byte{0x12, 0, 0, 0, 96, 0}, 96, nil)
	c.good(c.finish(itt, nil))
	release()
	r := c.finish(late, nil)
	c.good(r)
	if len(r.data) != 24 {
		t.Errorf("%x", r.data)
	}
}

// TestEndWithResponsesToWrite: a connection that ends when its commands do leaves nobody behind that would write their responses.
func TestEndWithResponsesToWrite(t *testing.T) {
	portal, d := serve(t, nil, nil)
	for range 20 {
		c := dial(t, portal).login("InitialR2T=No", "ImmediateData=Yes").ready()
		release := d.Hold()
		for i := range 8 {
			c.start(rw10(0x2a, uint32(i*8), 8), 0, pattern(4096, uint64(i)))
		}
		for d.Pending() < 8 {
			time.Sleep(time.Millisecond)
		}
		var wg sync.WaitGroup
		wg.Go(release)
		c.nc.Close()
		wg.Wait()
		for d.Pending() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
