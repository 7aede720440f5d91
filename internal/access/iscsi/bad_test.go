package iscsi_test

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
)

// logged collects what a server logs.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) has(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), what)
}

func (l *logged) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

func (l *logged) wait(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if l.has(what) {
			return
		}
		if time.Now().After(end) {
			l.mu.Lock()
			defer l.mu.Unlock()
			t.Fatalf("no %q in the log:\n%s", what, l.b.String())
		}
	}
}

// TestBadInput: what breaks the protocol ends its own connection, with a line in the log that says why, and harms nobody
// else: a session beside it goes on, and the bad one may log in again.
func TestBadInput(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) }, nil)
	good := dial(t, portal)
	good.isid = 0x77
	good.login().ready()
	raw := func(change func(*pdu)) func(*client) {
		return func(c *client) {
			p := new(pdu)
			p.bhs[0], p.bhs[1] = 0x01, 0x80
			p.put(16, 0x99)
			p.put(24, c.cmdSN)
			p.put(28, c.expStatSN)
			change(p)
			_, _ = c.nc.Write(p.bhs[:])
		}
	}
	for _, tc := range []struct {
		name string
		keys string
		do   func(*client)
		log  string
	}{
		{"a data segment beyond MaxRecvDataSegmentLength", "", raw(func(p *pdu) { p.bhs[5], p.bhs[6], p.bhs[7] = 0xff, 0xff, 0xff }), "data segment of 16777215 bytes"},
		{"additional header segments where none may be", "", raw(func(p *pdu) { p.bhs[0], p.bhs[4] = 0x40, 0xff }), "additional header segments of 1020 bytes"},
		{"an additional header segment that lies about its length", "", func(c *client) {
			raw(func(p *pdu) { p.bhs[4] = 1 })(c)
			_, _ = c.nc.Write([]byte{0xff, 0xff, 1, 0})
		}, "additional header segment of"},
		{"data with a read", "", func(c *client) {
			raw(func(p *pdu) { p.bhs[1], p.bhs[7] = 0xc0, 4 })(c)
			_, _ = c.nc.Write(make([]byte, 4))
		}, "data with a command that writes none"},
		{"more immediate data than announced", "", func(c *client) {
			raw(func(p *pdu) { p.bhs[1], p.bhs[7] = 0xa0, 8; p.put(20, 4) })(c)
			_, _ = c.nc.Write(make([]byte, 8))
		}, "8 bytes of immediate data, expected length 4"},
		{"a CmdSN that leaves a gap on one connection", "", raw(func(p *pdu) { p.put(24, p.u32(24)+3) }), "is expected"},
		{"a wrong header digest", "HeaderDigest=CRC32C", func(c *client) {
			raw(func(*pdu) {})(c)
			_, _ = c.nc.Write([]byte{1, 2, 3, 4})
		}, "header digest is wrong"},
		{"a wrong data digest", "DataDigest=CRC32C", func(c *client) {
			raw(func(p *pdu) { p.bhs[0], p.bhs[1], p.bhs[7] = 0x40, 0x80, 4; p.put(20, 0xffffffff) })(c)
			_, _ = c.nc.Write(make([]byte, 8))
		}, "data digest is wrong"},
		{"half a PDU", "", func(c *client) { _, _ = c.nc.Write(make([]byte, 20)); _ = c.nc.(*net.TCPConn).CloseWrite() }, "unexpected EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, portal).login("MaxConnections=1", tc.keys).ready()
			tc.do(c)
			if _, err := io.Copy(io.Discard, c.nc); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Fatal("the connection is still there")
			}
			log.wait(t, tc.log)
			good.good(good.do(rw10(0x28, 0, 1), 512, nil))
			dial(t, portal).login().ready()
		})
	}
}

// TestCmdSNGames: numbers outside the window, repeated, or far ahead change nothing (RFC 7143 4.2.2.1).
func TestCmdSNGames(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	c := dial(t, portal).login("MaxConnections=2").ready()
	at := c.cmdSN
	for _, sn := range []uint32{at - 1, at - 100, at + 100000, at + 1<<31, at - 1<<30} {
		c.cmdSN = sn
		_, _ = c.start(make([]byte, 6), 0, nil)
	}
	c.cmdSN = at
	c.quiet("numbers that are not in the window")
	c.good(c.do(make([]byte, 6), 0, nil))
}

// TestLoginFlood: connections that say nothing are bounded for each source, and end in time; sessions don't notice.
func TestLoginFlood(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.LoginsPerSource, c.LoginTimeout, c.Log = 8, 300*time.Millisecond, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	good := dial(t, portal).login().ready()
	var mute []*client
	for range 20 {
		mute = append(mute, dial(t, portal))
	}
	log.wait(t, "too many logins")
	good.good(good.do(make([]byte, 6), 0, nil))
	for _, c := range mute {
		if _, err := io.Copy(io.Discard, c.nc); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatal("a connection that never logged in is still there")
		}
	}
	late := dial(t, portal)
	late.isid = 3
	late.login().ready()
	good.good(good.do(make([]byte, 6), 0, nil))
}

// TestCrowd: half-open connections from wherever don't keep others out, though they take every place that there is; sessions
// keep theirs, and are served meanwhile.
func TestCrowd(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.ConnectionsMax, c.Log = 8, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	good := dial(t, portal).login().ready()
	var mute []*client
	for i := range 40 {
		mute = append(mute, dial(t, portal))
		if i%10 == 9 {
			good.good(good.do(rw10(0x28, 0, 8), 4096, nil))
			late := dial(t, portal)
			late.isid = byte(10 + i)
			late.login().ready()
			late.nc.Close()
		}
	}
	log.wait(t, "has not logged in to a target yet")
	for _, c := range mute[:20] {
		if _, err := io.Copy(io.Discard, c.nc); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatal("an old connection that said nothing is still there")
		}
	}
	good.good(good.do(make([]byte, 6), 0, nil))
}

// TestWithheldData: an initiator that begins a write, answers pings, and sends no data, is dropped in time.
func TestWithheldData(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.PingEvery, c.PingTimeout, c.Log = 10*time.Millisecond, 200*time.Millisecond, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	c := dial(t, portal).login("ImmediateData=No").ready()
	_, _ = c.start(rw10(0x2a, 0, 8), 0, make([]byte, 4096))
	for {
		if _, err := c.recv(); err != nil {
			break
		}
	}
	log.wait(t, "data that were asked for do not come")
}

// TestMemoryOfAll: sessions that ask for as much as they may and read nothing don't take more than twice the bound of all
// connections together; a small command of another one is served at once meanwhile, a large one when they have gone.
func TestMemoryOfAll(t *testing.T) {
	const bound = 8 << 20
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.MemoryMax, c.ConnectionsMax, c.Log = bound, 16, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	good := dial(t, portal)
	good.isid = 0x77
	good.login("MaxRecvDataSegmentLength=262144").ready()
	var greedy []*client
	for i := range 6 {
		c := dial(t, portal)
		c.isid = byte(i + 2)
		c.login().ready()
		for range 16 {
			_, _ = c.start(rw10(0x28, 0, 2048), 1<<20, nil)
		}
		greedy = append(greedy, c)
	}
	log.wait(t, "buffers for all connections are used up")
	for range 20 {
		good.good(good.do(rw10(0x28, 0, 8), 4096, nil))
		if used := portal.Server.Used(); used > 2*bound {
			t.Fatalf("%d bytes are in use", used)
		}
	}
	for _, c := range greedy {
		c.nc.Close()
	}
	good.good(good.do(rw10(0x28, 0, 4096), 2<<20, nil))
	for end := time.Now().Add(time.Minute); portal.Server.Used() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still in use", portal.Server.Used())
		}
	}
}

// TestFloodsAreNotLoggedWhole: an initiator that does what is refused again and again, and one that logs in again and again, fill no
// log.
func TestFloodsAreNotLoggedWhole(t *testing.T) {
	log := new(logged)
	began := time.Now()
	portal, _ := serve(t, func(c *iscsi.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) }, nil)
	c := dial(t, portal).login().ready()
	p := new(pdu)
	p.bhs[0], p.bhs[1] = 0x5e, 0x80 // an opcode that there isn't
	for range 500 {
		if err := c.send(p); err != nil {
			t.Fatal(err)
		}
		if r := c.must(c.recv()); r.op() != 0x3f {
			t.Fatalf("opcode %#x", r.op())
		}
	}
	// 20 of one connection and 1000 of all sessions are logged in ten seconds: how many that is depends on the machine.
	spans := func() int { return 1 + int(time.Since(began)/(10*time.Second)) }
	if n := log.count("PDU rejected"); n == 0 || n > 20*spans() {
		t.Errorf("%d lines about 500 PDUs", n)
	}
	sessions := 1
	for ; sessions <= 1000*spans()+200; sessions++ {
		d := dial(t, portal)
		d.loginStep(1, 3, true, "InitiatorName="+hostName, "SessionType=Discovery")
		d.nc.Close()
	}
	if n := log.count("session opened"); n == 0 || n > 1000*spans() {
		t.Errorf("%d lines about %d sessions", n, sessions)
	}
}

// TestDiscoveryIdle: a discovery session that asks for nothing ends.
func TestDiscoveryIdle(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.DiscoveryIdle = 100 * time.Millisecond }, nil)
	c := dial(t, portal)
	if r, _ := c.loginStep(1, 3, true, "InitiatorName="+hostName, "SessionType=Discovery"); status(r) != 0 {
		t.Fatalf("status %#04x", status(r))
	}
	if _, err := io.Copy(io.Discard, c.nc); err != nil {
		t.Fatal(err)
	}
}

// TestSlowReaderDropped: an initiator that asks for much and reads nothing holds a bounded amount, and is dropped when it answers
// no ping; others are served meanwhile.
func TestSlowReaderDropped(t *testing.T) {
	log := new(logged)
	portal, _ := serve(t, func(c *iscsi.Config) {
		c.PingEvery, c.PingTimeout, c.Log = 20*time.Millisecond, time.Second, slog.New(slog.NewTextHandler(log, nil))
	}, nil)
	good := dial(t, portal)
	good.isid = 0x77
	good.login().ready()
	c := dial(t, portal).login().ready()
	for range 64 {
		_, _ = c.start(rw10(0x28, 0, 2048), 1<<20, nil)
	}
	for end := time.Now().Add(time.Minute); !log.has("answers no ping"); {
		good.good(good.do(rw10(0x28, 0, 8), 4096, nil))
		if time.Now().After(end) {
			t.Fatal("it is still there")
		}
	}
}
