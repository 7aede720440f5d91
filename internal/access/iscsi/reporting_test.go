package iscsi_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"dozo/internal/access/iscsi"
	"dozo/internal/access/iscsi/iscsitest"
)

// TestFastAbort: a session that negotiated it hears that another one has ended its tasks (RFC 7143 11.9.1, event 5),
// and the other's answer waits until it has acknowledged that (4.2.3.4).
func TestFastAbort(t *testing.T) {
	portal, d := serve(t, nil, nil)
	a := dial(t, portal).login("TaskReporting=FastAbort").ready()
	b := dial(t, portal)
	b.isid = 2
	b.login("TaskReporting=FastAbort").ready()
	plain := dial(t, portal)
	plain.isid = 3
	plain.login().ready()
	release := d.Hold()
	_, _ = b.start(rw10(0x28, 0, 1), 512, nil)
	b.quiet("held")
	_, _ = plain.start(rw10(0x28, 0, 1), 512, nil)
	plain.quiet("held")
	a.tmf(5, 0xffffffff)
	p := b.must(b.recv())
	if p.op() != 0x32 || p.bhs[36] != 5 || p.bhs[9] != 0 {
		t.Fatalf("opcode %#x event %d", p.op(), p.bhs[36])
	}
	plain.nop(1, 0xffffffff, nil)
	if p := plain.must(plain.recv()); p.op() != 0x20 {
		t.Fatalf("opcode %#x for a session that did not ask for it", p.op())
	}
	plain.nop(0xffffffff, 0xffffffff, nil)
	a.quiet("the others have not acknowledged")
	b.nop(0xffffffff, 0xffffffff, nil)
	if p := a.must(a.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
		t.Fatalf("opcode %#x response %d", p.op(), p.bhs[2])
	}
	release()
	for _, x := range []*client{a, b, plain} {
		if key, code := x.do(make([]byte, 6), 0, nil).code(); key != 6 || code != 0x2903 {
			t.Errorf("sense %x/%04x", key, code)
		}
	}
}

// TestFenceEnds: an initiator that acknowledges nothing holds up another one's reset for a while only: its connection ends, at recovery
// level 2 as well, where its tasks are kept.
func TestFenceEnds(t *testing.T) {
	for _, level := range []string{"0", "2"} {
		t.Run("ErrorRecoveryLevel="+level, func(t *testing.T) {
			log := new(logged)
			portal, d := serve(t, func(c *iscsi.Config) {
				c.FenceTimeout, c.Log = 50*time.Millisecond, slog.New(slog.NewTextHandler(log, nil))
			}, nil)
			a := dial(t, portal).login("TaskReporting=FastAbort").ready()
			b := dial(t, portal)
			b.isid, b.answerPings = 2, false
			b.login("TaskReporting=FastAbort", "ErrorRecoveryLevel="+level, "DefaultTime2Retain=3600").ready()
			release := d.Hold()
			defer release()
			_, _ = b.start(rw10(0x28, 0, 1), 512, nil)
			b.nop(1, 0xffffffff, nil)
			b.must(b.recv()) // the command has come
			began := time.Now()
			a.tmf(5, 0xffffffff)
			if p := a.must(a.recv()); p.op() != 0x22 || p.bhs[2] != 0 {
				t.Fatalf("opcode %#x response %d", p.op(), p.bhs[2])
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("answered after %v", took) // it would be 20 s, for which a lost connection's tasks are kept
			}
			b.ended("the connection that acknowledges nothing")
			log.wait(t, "task management function waits")
		})
	}
}

// TestAttentionFence: a unit attention that may report aborted tasks comes after everything that was sent on the
// session's other connections was acknowledged (RFC 7143 4.2.2.3.3).
func TestAttentionFence(t *testing.T) {
	portal, _ := serve(t, nil, nil)
	a := dial(t, portal).login("MaxConnections=2", "TaskReporting=ResponseFence").ready()
	b := join(t, portal, a, 1)
	c := dial(t, portal)
	c.isid = 2
	c.login().ready()
	b.cmdSN = a.cmdSN
	b.good(b.do(make([]byte, 6), 0, nil)) // its response is not acknowledged yet
	c.tmf(5, 0xffffffff)
	c.must(c.recv())
	a.cmdSN = b.cmdSN
	itt, _ := a.start(make([]byte, 6), 0, nil)
	a.quiet("not acknowledged")
	b.nop(0xffffffff, 0xffffffff, nil)
	if key, code := a.finish(itt, nil).code(); key != 6 || code != 0x2903 {
		t.Errorf("sense %x/%04x", key, code)
	}
}

// TestNotices: asynchronous messages 3 and 2, before what they announce (RFC 7143 11.9.1).
func TestNotices(t *testing.T) {
	portal, _ := serve(t, func(c *iscsi.Config) { c.PingEvery, c.PingTimeout = 5*time.Millisecond, 500*time.Millisecond },
		func(p *iscsitest.Provider) { p.Alias = "memory" })
	a := dial(t, portal).login("MaxConnections=2").ready()
	if a.keys["TargetAlias"] != "memory" {
		t.Errorf("alias %q", a.keys["TargetAlias"])
	}
	join(t, portal, a, 1).echo() // one ping only
	if p := a.must(a.recv()); p.op() != 0x32 || p.bhs[36] != 2 || p.bhs[39] != 1 {
		t.Fatalf("opcode %#x event %d of connection %d", p.op(), p.bhs[36], p.bhs[39])
	}
	portal.Server.Sessions()[0].Kill()
	if p := a.must(a.recv()); p.op() != 0x32 || p.bhs[36] != 3 {
		t.Fatalf("opcode %#x event %d", p.op(), p.bhs[36])
	}
}

// TestTextInPieces: a request and its answer over several PDUs (RFC 7143 11.10.2, C bit).
func TestTextInPieces(t *testing.T) {
	portal, d := serve(t, nil, func(p *iscsitest.Provider) {
		for i := range 20 {
			p.Disks[fmt.Sprintf("iqn.2026-01.example.dozo:more-%02d", i)] = p.Disks[targetName]
		}
	})
	_ = d
	c := dial(t, portal).login("MaxRecvDataSegmentLength=512").ready()
	text := "X-long=" + string(pattern(0, 0)) + "\x00SendTargets=" + targetName + "\x00InitiatorAlias=me\x00"
	ttt := uint32(0xffffffff)
	for i := 0; i < len(text); i += 10 {
		piece, flags := text[i:min(i+10, len(text))], byte(0x40)
		if i+10 >= len(text) {
			flags = 0x80
		}
		p := c.text(ttt, flags, piece)
		if flags == 0x40 {
			if len(p.data) != 0 || p.bhs[1] != 0 || p.u32(20) == 0xffffffff {
				t.Fatalf("answer %q flags %#02x to a piece", p.data, p.bhs[1])
			}
			ttt = p.u32(20)
			continue
		}
		if want := "X-long=NotUnderstood\x00TargetName=" + targetName; len(p.data) < len(want) || string(p.data[:len(want)]) != want || p.bhs[1] != 0x80 {
			t.Errorf("answer %q flags %#02x", p.data, p.bhs[1])
		}
	}
	// F and C together is a protocol error.
	if p := c.text(0xffffffff, 0xc0, "SendTargets="); p.op() != 0x3f {
		t.Errorf("opcode %#x", p.op())
	}
}
