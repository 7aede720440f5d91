package router

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// superPacket makes a TCP super-packet as a device gives it, with every byte of payload its own.
func superPacket(v6 bool, seg, payload int) []byte {
	head := 40
	if v6 {
		head = 60
	}
	head += 12 // TCP options
	b := make([]byte, virtioLen+head+payload)
	l4 := head - 32
	b[0], b[1] = virtioNeedsCsum, gsoTCP4
	binary.NativeEndian.PutUint16(b[2:], uint16(head))
	binary.NativeEndian.PutUint16(b[4:], uint16(seg))
	binary.NativeEndian.PutUint16(b[6:], uint16(l4))
	binary.NativeEndian.PutUint16(b[8:], 16)
	ip := b[virtioLen:]
	if v6 {
		b[1] = gsoTCP6
		ip[0], ip[6] = 0x60, protoTCP
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ip6Head))
		copy(ip[8:], netip.MustParseAddr("fd77:0:0:1::1").AsSlice())
		copy(ip[24:], netip.MustParseAddr("fd77:0:0:2::3").AsSlice())
	} else {
		ip[0], ip[9] = 0x45, protoTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], 1000)
		copy(ip[12:], []byte{10, 77, 1, 1, 10, 77, 2, 3})
	}
	tcp := ip[l4:]
	binary.BigEndian.PutUint32(tcp[4:], 0xfffffff0)
	tcp[12], tcp[13] = 8<<4, tcpFIN|tcpPSH|tcpCWR|0x10
	for i := range payload {
		ip[head+i] = byte(i * 7)
	}
	return b
}

func TestSegmentsAreWhatTheKernelWouldMake(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		const seg, payload = 100, 250
		b := superPacket(v6, seg, payload)
		s, err := inspect(b, len(b))
		if err != nil || !s.super || s.seg != seg || s.payload != payload || s.v6 != v6 {
			t.Fatalf("%+v %v", s, err)
		}
		var got []byte
		for _, part := range []struct{ index, offset, n int }{{0, 0, 200}, {2, 200, 50}} {
			var out [512]byte
			h := segmentHeader(out[:], b, s, part.index, part.offset, part.n, part.index == 0, part.offset+part.n == payload)
			if h != virtioLen+s.head {
				t.Fatalf("header of %d bytes", h)
			}
			p := append(out[:h:h], b[h+part.offset:h+part.offset+part.n]...)
			ip := p[virtioLen:]
			tcp := ip[s.l4:]
			first, last := part.index == 0, part.index == 2
			if seq := binary.BigEndian.Uint32(tcp[4:]); seq != 0xfffffff0+uint32(part.offset) {
				t.Errorf("sequence number %x", seq)
			}
			if flags := tcp[13]; (flags&(tcpFIN|tcpPSH) != 0) != last || (flags&tcpCWR != 0) != first || flags&0x10 == 0 {
				t.Errorf("flags %x of part %d", flags, part.index)
			}
			if gso := p[1] != gsoNone; gso != first {
				t.Errorf("gso_type %d of part %d", p[1], part.index)
			}
			length := len(ip)
			pseudo := uint32(protoTCP + len(tcp))
			if v6 {
				length -= ip6Head
				if n := binary.BigEndian.Uint16(ip[4:]); int(n) != length {
					t.Errorf("length %d, want %d", n, length)
				}
				pseudo = add16(pseudo, ip[8:40])
			} else {
				if n := binary.BigEndian.Uint16(ip[2:]); int(n) != length {
					t.Errorf("length %d, want %d", n, length)
				}
				if fold(add16(0, ip[:20])) != 0xffff {
					t.Error("checksum of the IP header")
				}
				if id := binary.BigEndian.Uint16(ip[4:]); int(id) != 1000+part.index {
					t.Errorf("identification %d", id)
				}
				pseudo = add16(pseudo, ip[12:20])
			}
			if binary.BigEndian.Uint16(tcp[16:]) != fold(pseudo) {
				t.Error("sum of the pseudo-header")
			}
			if again, err := inspect(p, len(p)); err != nil || again.super != first {
				t.Errorf("%+v %v", again, err)
			}
			got = append(got, p[h:]...)
		}
		if !bytes.Equal(got, b[virtioLen+s.head:]) {
			t.Error("another payload")
		}
	}
}

func TestRoutes(t *testing.T) {
	r, err := newRoutes([]SiteConfig{
		{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd77:0:0:1::/64")}},
		{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.77.2.0/24"), netip.MustParsePrefix("fd77:0:0:2::/64")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		b := superPacket(v6, 100, 250)
		if got := r.find(b[virtioLen:], v6); got != 1 {
			t.Errorf("site %d", got)
		}
		b[virtioLen+16], b[virtioLen+24] = 99, 99
		if got := r.find(b[virtioLen:], v6); got != -1 {
			t.Errorf("site %d", got)
		}
	}
	if _, err := newRoutes([]SiteConfig{{Prefixes: []netip.Prefix{netip.MustParsePrefix("fd77::/80")}}}); err == nil {
		t.Error("a long prefix")
	}
}

// FuzzInspect: whatever comes out of a device, what is said of it fits into its bytes.
func FuzzInspect(f *testing.F) {
	f.Add(superPacket(false, 100, 250), uint16(0))
	f.Add(superPacket(true, 1448, 3000), uint16(0))
	f.Add(superPacket(false, 100, 80), uint16(9000))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, more uint16) {
		b = b[:min(len(b), BlockSize)]
		total := len(b)
		if len(b) == BlockSize {
			total += int(more)
		}
		s, err := inspect(b, total)
		if err != nil {
			return
		}
		var r routes
		r.v4, r.v6 = []route4{{}}, []route6{{}}
		r.find(b[virtioLen:], s.v6)
		if !s.super {
			return
		}
		if virtioLen+s.head > len(b) || s.head+s.payload+virtioLen != total || s.seg <= 0 || s.payload <= s.seg {
			t.Fatalf("%+v of %d bytes", s, total)
		}
		var out [virtioLen + headMax]byte
		segmentHeader(out[:], b, s, 1, s.seg, min(s.seg, s.payload-s.seg), false, false)
	})
}

func TestPoolGivesBackWhatItGave(t *testing.T) {
	p, err := newPool(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	free := len(p.free)
	id := p.newPacket()
	k := &p.packets[id]
	k.bytes, k.refs = 3*BlockSize+1, 5
	for i := range 4 {
		k.block[i] = p.take()
	}
	p.release(id, 2)
	if len(p.free) != free-4 {
		t.Fatal("freed too early")
	}
	p.release(id, 3)
	if len(p.free) != free || len(p.idle) != free {
		t.Fatalf("%d blocks and %d packets of %d", len(p.free), len(p.idle), free)
	}
	if _, err := newPool(BlockSize); err == nil {
		t.Error("too little memory")
	}
}
