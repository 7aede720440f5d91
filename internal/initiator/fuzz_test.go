package initiator

import (
	"bytes"
	"sync"
	"testing"
)

// FuzzDecode gives the decoder what a target might send.
func FuzzDecode(f *testing.F) {
	for _, fr := range []framing{{maxData: 8192}, {headerDigest: true, dataDigest: true, maxData: 8192}} {
		p := PDU{Data: []byte("some data")}
		p.BHS[0] = byte(OpDataIn)
		p.BHS.SetDataLen(len(p.Data))
		f.Add(fr.append(nil, &p), fr.headerDigest, fr.dataDigest)
		p = PDU{AHS: []byte{0, 5, 2, 0, 0, 0, 2, 0}}
		p.BHS[0], p.BHS[4] = byte(OpSCSICommand), 2
		f.Add(fr.append(nil, &p), fr.headerDigest, fr.dataDigest)
	}
	f.Fuzz(func(t *testing.T, b []byte, hd, dd bool) {
		fr := framing{hd, dd, 8192}
		var p PDU
		n, err := fr.decode(b, &p)
		if n > len(b) || err == nil && n == 0 && len(b) >= bhsLen+255*4+2*digestLen+8192+3 {
			t.Fatalf("n = %d of %d", n, len(b))
		}
		if n == 0 || err != nil {
			return
		}
		if again := fr.append(nil, &p); len(again) != n || !bytes.Equal(again[:bhsLen], b[:bhsLen]) {
			t.Fatalf("%d bytes become %d", n, len(again))
		}
	})
}

// chunks is a transport that reads given bytes and swallows what is written.
type chunks struct {
	data []byte
	size int
}

func (c *chunks) read(a, b []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, errEOF
	}
	n := copy(a, c.data[:min(len(c.data), c.size)])
	if n == 0 {
		n = copy(b, c.data[:min(len(c.data), c.size)])
	}
	c.data = c.data[n:]
	return n, nil
}
func (c *chunks) write(v *iovecs, _ bool) (int, error) {
	n := 0
	for i := range v.vec[:v.n] {
		n += int(v.vec[i].Len)
	}
	return n, nil
}
func (*chunks) closeWrite() {}
func (*chunks) shutdown()   {}
func (*chunks) close()      {}

// FuzzReader lets a session with commands under way read anything: commands end once each, and nothing else breaks.
func FuzzReader(f *testing.F) {
	fr := framing{maxData: 8192}
	var seed []byte
	// The first tags are 0x00010000 and up.
	for _, p := range []PDU{
		{BHS: BHS{0: byte(OpDataIn), 1: flagFinal | flagStatus, 17: 1}, Data: make([]byte, 4096)},
		{BHS: BHS{0: byte(OpR2T), 1: flagFinal, 17: 1, 19: 1, 23: 1, 40: 0, 42: 32, 46: 16}},
		{BHS: BHS{0: byte(OpSCSIResponse), 1: flagFinal, 17: 1, 19: 2}},
		{BHS: BHS{0: byte(OpNopIn), 1: flagFinal, 16: 255, 17: 255, 18: 255, 19: 255}},
		{BHS: BHS{0: byte(OpAsync), 1: flagFinal, 36: AsyncDropSession}},
		{BHS: BHS{0: byte(OpReject), 1: flagFinal}, Data: make([]byte, 48)},
	} {
		p.BHS.SetDataLen(len(p.Data))
		f.Add(fr.append(nil, &p), uint8(0), 4096)
		f.Add(fr.append(nil, &p), uint8(1), 7)
		seed = fr.append(seed, &p)
	}
	f.Add(seed, uint8(2), 100)
	f.Fuzz(func(t *testing.T, b []byte, level uint8, size int) {
		s := &Session{cfg: Config{}.withDefaults(), kick: make(chan struct{}, 1), params: defaultParams()}
		s.params.ErrorRecoveryLevel = int(level % 3)
		s.cmdSN, s.expCmdSN, s.maxCmdSN = 1, 1, 64
		cn := &conn{s: s, frame: framing{maxData: 8192}, sendMax: 8192, t: &chunks{b, max(size, 1)},
			dead: make(chan struct{}), wake: make(chan struct{}, 1), idle: sync.NewCond(&s.mu)}
		cn.in.buf = make([]byte, 4096)
		s.conns = []*conn{cn}
		finished := 0
		for i := range 4 {
			c := &Command{Done: func(*Command) { finished++ }}
			if i%2 == 0 {
				c.In = make([]byte, 16<<10)
			} else {
				c.Out = make([]byte, 16<<10)
			}
			if err := s.Submit(c); err != nil {
				t.Fatal(err)
			}
		}
		cn.readLoop()
		s.mu.Lock()
		left := 0
		for i := range s.tags.slots {
			if c := s.tags.slots[i].cmd; c != nil {
				left++
				if c.task.refs != 0 {
					t.Error("a buffer is still held")
				}
			}
		}
		s.mu.Unlock()
		// Renegotiation adds commands of its own, whose callbacks count nothing.
		if finished > 4 || finished+left < 4 {
			t.Fatalf("%d finished, %d left", finished, left)
		}
	})
}

func FuzzKeysAndSense(f *testing.F) {
	f.Add([]byte("TargetName=iqn.x\x00TargetAddress=1.2.3.4:3260,1\x00"))
	f.Add([]byte{0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0})
	f.Add([]byte{0x72, 5, 0x24, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if kvs, err := parseKeys(b); err == nil {
			again, err := parseKeys(appendKeys(nil, kvs))
			if err != nil || len(again) != len(kvs) {
				t.Fatalf("%v %v", again, err)
			}
		}
		ParseSense(b)
		if v, err := parseBinary(string(b)); err == nil && len(v) == 0 {
			t.Fatal("empty value")
		}
		if u, err := ParseURL(string(b)); err == nil && u.Portal == "" {
			t.Fatal("a URL without portal")
		}
	})
}
