package iscsi_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
)

// unknownKeys are about 8,000 bytes of keys that nobody knows, others with each round.
func unknownKeys(round int) []byte {
	var b []byte
	for i := 0; len(b) < 8000; i++ {
		b = fmt.Appendf(b, "X-%d.%d=\x00", round, i)
	}
	return b
}

// ended waits for the end of a connection.
func (c *client) ended(what string) {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c.nc); err != nil && strings.Contains(err.Error(), "timeout") {
		c.t.Fatalf("%s: the connection is still there", what)
	}
}

// TestLoginTextIsBounded: a login that goes on and on with new keys ends, since all keys of a login are remembered.
func TestLoginTextIsBounded(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal)
	c.loginStep(1, 0, false, "InitiatorName="+hostName, "TargetName="+targetName)
	for round := range 64 {
		r, _ := c.loginStep(1, 0, false, strings.TrimRight(string(unknownKeys(round)), "\x00"))
		if status(r) == 0x0200 {
			c.ended("too much text")
			return
		}
	}
	t.Fatal("half a megabyte of keys was taken")
}

// TestTextExchangeIsBounded: so does a text exchange that never comes to its end.
func TestTextExchangeIsBounded(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) }, nil)
	c := dial(t, portal).discover()
	ttt := uint32(0xffffffff)
	for round := range 64 {
		p := &pdu{data: unknownKeys(round)}
		for answered := false; !answered; {
			p.bhs[0] = 0x44 // immediate, without the F bit
			p.put(16, 5)
			p.put(20, ttt)
			c.number(p)
			if c.send(p) != nil {
				break
			}
			r, err := c.recv()
			if err != nil {
				log.wait(t, "text longer than 65536 bytes")
				return
			}
			ttt, answered = r.u32(20), r.bhs[1]&0x40 == 0
			p = new(pdu) // for the rest of the answer
		}
	}
	t.Fatal("half a megabyte of keys was taken")
}

// discover opens a discovery session.
func (c *client) discover(keys ...string) *client {
	c.t.Helper()
	r, got := c.loginStep(1, 3, true, append([]string{"InitiatorName=" + hostName, "SessionType=Discovery"}, keys...)...)
	if status(r) != 0 {
		c.t.Fatalf("discovery: status %#04x", status(r))
	}
	c.begin(got, 0)
	return c
}

// TestDiscoverySessionsGiveWay: anybody may open a discovery session, so that those who do, and keep them open, keep nobody out.
func TestDiscoverySessionsGiveWay(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.ConnectionsMax, c.Log = 8, slog.New(slog.NewTextHandler(log, nil)) }, nil)
	good := dial(t, portal).login().ready()
	var idle []*client
	for i := range 20 {
		c := dial(t, portal)
		c.isid = byte(100 + i)
		idle = append(idle, c.discover())
	}
	late := dial(t, portal)
	late.isid = 3
	late.login().ready()
	good.good(good.do(make([]byte, 6), 0, nil))
	idle[0].ended("the oldest discovery session")
	log.wait(t, "has not logged in to a target yet")
}

// TestDiscoverySessionsOfOneAddress: they are bounded for each address like logins.
func TestDiscoverySessionsOfOneAddress(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.LoginsPerSource, c.Log = 4, slog.New(slog.NewTextHandler(log, nil)) }, nil)
	for range 4 {
		dial(t, portal).discover()
	}
	dial(t, portal).ended("a fifth")
	log.wait(t, "too many logins")
	dialFrom(t, portal, "127.0.0.2").discover()
}

// dialFrom is dial from an address of our own.
func dialFrom(t *testing.T, portal *iscsitest.Portal, from string) *client {
	t.Helper()
	c := dial(t, portal)
	_ = c.nc.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.Dial("tcp", portal.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	c.nc = nc
	return c
}

// TestOneAddressLeavesRoom: a host that opens sessions without end leaves a quarter of the connections to others.
func TestOneAddressLeavesRoom(t *testing.T) {
	const all = 8
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.ConnectionsMax, c.Log = all, slog.New(slog.NewTextHandler(log, nil)) }, nil)
	var own []*client
	for i := range iscsi.PerSource(all) {
		c := dial(t, portal)
		c.isid = byte(1 + i)
		own = append(own, c.login().ready())
	}
	dial(t, portal).ended("one more")
	log.wait(t, "too many from its address")
	other := dialFrom(t, portal, "127.0.0.2")
	other.isid = 99
	other.login().ready()
	own[0].nc.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c := dial(t, portal)
		c.isid = 98
		p := &pdu{data: []byte("InitiatorName=" + hostName + "\x00TargetName=" + targetName + "\x00")}
		p.bhs[0], p.bhs[1], p.bhs[8], p.bhs[13] = 0x43, 0x87, 0x80, c.isid
		c.number(p)
		if c.send(p) == nil {
			if r, err := c.recv(); err == nil && status(r) == 0 {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("a place that was given back is not free")
		}
	}
}

// TestDiscoveryTakesLittle: what a discovery session may send in one PDU is little.
func TestDiscoveryTakesLittle(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).discover()
	if c.maxSend != 8192 {
		t.Errorf("MaxRecvDataSegmentLength is %d", c.maxSend)
	}
	c.nop(7, 0xffffffff, make([]byte, 8192))
	if r := c.must(c.recv()); r.op() != 0x20 || len(r.data) != 8192 {
		t.Errorf("opcode %#x with %d bytes", r.op(), len(r.data))
	}
	c.nop(8, 0xffffffff, make([]byte, 8196))
	c.ended("more than that")
}

// TestUnsolicitedDataOfAll: what sessions send unasked while their commands wait for memory takes a quarter of the bound, and a share of
// each; commands beyond that end with TASK SET FULL, and nothing of them is written.
func TestUnsolicitedDataOfAll(t *testing.T) {
	for _, level := range []string{"0", "1"} {
		t.Run("ErrorRecoveryLevel="+level, func(t *testing.T) { unsolicitedDataOfAll(t, level) })
	}
}

func unsolicitedDataOfAll(t *testing.T, level string) {
	const bound, sessions, writes, size = 8 << 20, 4, 90, 64 << 10
	const most = bound/4 + sessions*(256<<10)
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.MemoryMax, c.WriteMemory, c.ConnectionsMax, c.Log = bound, 1<<20, 16, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	type session struct {
		*client
		first *pdu              // R2T of a large write, which has the session's memory until its data come
		lba   map[uint32]uint32 // of the others
		ended map[uint32]byte
	}
	var all []*session
	take := func(s *session, p *pdu) {
		if p.op() != 0x21 {
			t.Fatalf("opcode %#x", p.op())
		}
		s.ended[p.u32(16)] = p.bhs[3]
	}
	data := bytes.Repeat([]byte{0x5a}, size)
	for i := range sessions {
		c := dial(t, portal)
		c.isid = byte(1 + i)
		c.login("ErrorRecoveryLevel="+level, "InitialR2T=Yes", "ImmediateData=Yes", "FirstBurstLength=65536", "MaxBurstLength=1048576").ready()
		s := &session{c, nil, map[uint32]uint32{}, map[uint32]byte{}}
		all = append(all, s)
		_, _ = c.start(rw10(0x2a, uint32(16384*i), 2048), 0, make([]byte, 1<<20))
		if s.first = c.must(c.recv()); s.first.op() != 0x31 {
			t.Fatalf("opcode %#x, want an R2T", s.first.op())
		}
		for w := range writes {
			lba := uint32(16384*i + 4096 + w*(size/512))
			itt, _ := c.start(rw10(0x2a, lba, size/512), 0, data)
			s.lba[itt] = lba
		}
		c.nop(0x7777, 0xffffffff, nil)
		for p := c.must(c.recv()); p.op() != 0x20; p = c.must(c.recv()) {
			take(s, p)
		}
		if n := portal.Server.Stashed(); n == 0 || n > most {
			t.Fatalf("%d bytes are held, at most %d may be", n, most)
		}
	}
	log.wait(t, "buffers for data that come unasked are used up")
	for _, s := range all {
		s.dataOut(s.first.u32(16), s.first.u32(20), make([]byte, 1<<20), int(s.first.u32(40)))
		for len(s.ended) < 1+writes {
			take(s, s.must(s.recv()))
		}
		count := map[byte]int{}
		for itt, lba := range s.lba {
			st := s.ended[itt]
			count[st]++
			want := data
			if st != 0 {
				want = make([]byte, size)
			}
			if r := s.good(s.do(rw10(0x28, lba, size/512), size, nil)); !bytes.Equal(r.data, want) {
				t.Errorf("what was answered with status %#x was written, or not", st)
			}
		}
		if count[0]+count[0x28] != writes || count[0] == 0 {
			t.Errorf("statuses %v", count)
		}
	}
	if n := portal.Server.Stashed(); n != 0 {
		t.Errorf("%d bytes are still held", n)
	}
}

// TestMemoryOfOneAddress: a host that withholds the data of its writes, for which it has memory, leaves some to others.
func TestMemoryOfOneAddress(t *testing.T) {
	const bound = 8 << 20
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.MemoryMax, c.ConnectionsMax, c.Log = bound, 64, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	var own []*client
	var asked []*pdu
	for i := range 20 {
		c := dial(t, portal)
		c.isid = byte(1 + i)
		own = append(own, c.login("ImmediateData=No", "MaxBurstLength=1048576").ready())
		_, _ = c.start(rw10(0x2a, 0, 2048), 0, make([]byte, 1<<20))
		c.nop(0x7777, 0xffffffff, nil)
		var r2t *pdu
		p := c.must(c.recv())
		for ; p.op() == 0x31; p = c.must(c.recv()) {
			r2t = p
		}
		asked = append(asked, r2t) // nil for who is in line, in the order of the connections
	}
	log.wait(t, "buffers for all connections are used up")
	other := dialFrom(t, portal, "127.0.0.2")
	other.isid = 99
	other.login().ready()
	for range 20 {
		other.good(other.do(rw10(0x28, 0, 4096), 2<<20, nil))
	}
	// What one of them gives back goes to the next, whichever that is.
	ended := make(chan error, len(own))
	for i, c := range own {
		go func() { ended <- c.deliver(asked[i]) }()
	}
	for range own {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// deliver sends 1 MiB in one burst, for an R2T that has come, or for one that comes, and waits for the status.
func (c *client) deliver(p *pdu) (err error) {
	for ; p == nil || p.op() == 0x31; p, err = c.recv() {
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		out := &pdu{data: make([]byte, p.u32(44))}
		out.bhs[0], out.bhs[1] = 0x05, 0x80
		out.put(16, p.u32(16))
		out.put(20, p.u32(20))
		out.put(28, c.expStatSN)
		out.put(40, p.u32(40))
		if err := c.send(out); err != nil {
			return err
		}
	}
	if p.op() != 0x21 || p.bhs[3] != 0 {
		return fmt.Errorf("opcode %#x, status %#x", p.op(), p.bhs[3])
	}
	return nil
}

// TestAnswersNobodyReads: initiators that ping with much data and read nothing are not read from any more once their answers have a
// quarter of the bound; one beside them is served.
func TestAnswersNobodyReads(t *testing.T) {
	const bound, sessions, size = 4 << 20, 6, 256 << 10
	portal, _ := serve(t, func(c *iscsi.Config) { c.MemoryMax, c.ConnectionsMax = bound, 16 }, nil)
	good := dial(t, portal)
	good.isid = 99
	good.login().ready()
	for i := range sessions {
		c := dial(t, portal)
		c.isid = byte(1 + i)
		c.login("MaxRecvDataSegmentLength=1048576").ready()
		done := make(chan struct{})
		go func() {
			defer close(done)
			p := &pdu{data: make([]byte, size)}
			p.bhs[0], p.bhs[1] = 0x40, 0x80
			p.put(16, 7)
			p.put(20, 0xffffffff)
			for c.send(p) == nil {
			}
		}()
		t.Cleanup(func() { _ = c.nc.Close(); <-done })
	}
	var last int64
	for same, end := 0, time.Now().Add(time.Minute); same < 50; time.Sleep(10 * time.Millisecond) {
		good.good(good.do(rw10(0x28, 0, 8), 4096, nil))
		n := portal.Server.Outs()
		// One answer more than there is room for is what each connection may come to have.
		if n > bound/4+sessions*(size+(64<<10)) {
			t.Fatalf("%d bytes of answers wait", n)
		}
		if same++; n != last {
			same, last = 0, n
		}
		if time.Now().After(end) {
			t.Fatal("it does not come to rest")
		}
	}
	if last < bound/4 {
		t.Fatalf("%d bytes of answers wait: the test asks for too little", last)
	}
}

// TestNothingIsRetainedBelowLevel2: a target that keeps nothing of a session says so, though DefaultTime2Retain was not negotiated and
// counts as 20 (RFC 7143 11.9.1, 11.15.4, 13.16).
func TestNothingIsRetainedBelowLevel2(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login().ready()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x46, 0x81
	c.number(p)
	if err := c.send(p); err != nil {
		t.Fatal(err)
	}
	if r := c.must(c.recv()); r.op() != 0x26 || r.bhs[2] != 0 || r.bhs[41] != 2 || r.bhs[42] != 0 || r.bhs[43] != 0 {
		t.Errorf("opcode %#x, response %d, Time2Wait %d, Time2Retain %d", r.op(), r.bhs[2], r.bhs[41], r.bhs[43])
	}
	c = dial(t, portal).login().ready()
	portal.Server.Sessions()[0].Kill()
	if r := c.must(c.recv()); r.op() != 0x32 || r.bhs[36] != 3 || r.bhs[41] != 2 || r.bhs[42] != 0 || r.bhs[43] != 0 {
		t.Errorf("opcode %#x, event %d, Time2Wait %d, Time2Retain %d", r.op(), r.bhs[36], r.bhs[41], r.bhs[43])
	}
}

// TestLostConnectionsGiveWay: an initiator at recovery level 2 whose sessions are lost again and again doesn't keep others out, nor itself,
// for the time in which their tasks could be reassigned.
func TestLostConnectionsGiveWay(t *testing.T) {
	const all = 8
	portal, d := serve(t, func(c *iscsi.Config) { c.ConnectionsMax = all }, nil)
	good := dial(t, portal).login().ready()
	release := d.Hold()
	defer release()
	for i := range 3 * all {
		c := dial(t, portal)
		c.isid = byte(10 + i)
		c.login("ErrorRecoveryLevel=2", "DefaultTime2Retain=3600", "DefaultTime2Wait=3600").ready()
		_, _ = c.start(rw10(0x28, 0, 1), 512, nil)
		c.nop(1, 0xffffffff, nil)
		if p := c.must(c.recv()); p.op() != 0x20 { // the command has come
			t.Fatalf("opcode %#x", p.op())
		}
		_ = c.nc.Close()
		// A connection that is not found to be lost yet is nobody's to take the place of.
		for end := time.Now().Add(time.Minute); !portal.Server.Lost(c.tsih); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the connection is not lost")
			}
		}
	}
	for end := time.Now().Add(10 * time.Second); len(portal.Server.Sessions()) > all; time.Sleep(time.Millisecond) {
		if time.Now().After(end) { // or in two minutes
			t.Fatalf("%d sessions are kept", len(portal.Server.Sessions()))
		}
	}
	good.nop(2, 0xffffffff, nil)
	if p := good.must(good.recv()); p.op() != 0x20 {
		t.Errorf("opcode %#x", p.op())
	}
}

// TestAnswersNobodyFetches: what is left of long answers is bounded. Who asks for the rest of one that went is told so, and may ask again.
func TestAnswersNobodyFetches(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.MemoryMax, c.Log = 1<<20, slog.New(slog.NewTextHandler(log, nil)) // 48 KiB for those of one address
	}, func(p *iscsitest.Provider) {
		for i := range 400 {
			p.Disks[fmt.Sprintf("%s.another-one-with-a-long-name.%04d", targetName, i)] = nil
		}
	})
	all := func(c *client, p *pdu) (told int) {
		for {
			if p.op() != 0x24 {
				t.Fatalf("answered with opcode %#x", p.op())
			}
			told += strings.Count(string(p.data), "TargetName=")
			if p.bhs[1]&0x40 == 0 {
				return told
			}
			p = c.text(p.u32(20), 0x80, "")
		}
	}
	forgetful, other := dial(t, portal).discover(), dial(t, portal)
	other.isid = 9
	other.discover()
	begun := forgetful.text(0xffffffff, 0x80, "SendTargets=All\x00")
	if begun.bhs[1]&0x40 == 0 || len(begun.data) > 8192 {
		t.Fatalf("%d bytes in one PDU", len(begun.data))
	}
	if n := all(other, other.text(0xffffffff, 0x80, "SendTargets=All\x00")); n != 401 {
		t.Errorf("%d targets told, want 401", n)
	}
	if p := forgetful.text(begun.u32(20), 0x80, ""); p.op() != 0x3f || p.bhs[2] != 0x0a {
		t.Errorf("the rest of an answer that went: opcode %#x, reason %#x", p.op(), p.bhs[2])
	}
	log.wait(t, "nobody fetches")
	if n := all(forgetful, forgetful.text(0xffffffff, 0x80, "SendTargets=All\x00")); n != 401 {
		t.Errorf("%d targets told, want 401", n)
	}
}
