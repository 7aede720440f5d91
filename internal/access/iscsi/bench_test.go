package iscsi_test

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// benchmarkQueue keeps depth commands of n bytes outstanding over loopback. The client reads and writes
// whole batches and makes no PDUs while it runs, so most of the time is the target's.
func benchmarkQueue(b *testing.B, op byte, n, depth int) {
	portal, _ := serve(b, nil, nil)
	c := dial(b, portal).login("InitialR2T=No", "ImmediateData=Yes", "MaxRecvDataSegmentLength=1048576", "FirstBurstLength=262144").ready()
	_ = c.nc.SetDeadline(noDeadline)
	const places = 32 << 20 / 512
	request := func(lba uint32) []byte {
		p := new(pdu)
		p.bhs[0], p.bhs[1] = 0x01, 0x80
		copy(p.bhs[32:], rw10(op, lba, uint16(n/512)))
		p.put(16, c.itt)
		c.itt++
		p.put(20, uint32(n))
		if op == 0x28 {
			p.bhs[1] |= 0x40
		} else {
			p.bhs[1] |= 0x20
			p.data = make([]byte, min(n, c.firstBurst, c.maxSend))
			p.bhs[5], p.bhs[6], p.bhs[7] = byte(len(p.data)>>16), byte(len(p.data)>>8), byte(len(p.data))
		}
		c.number(p)
		return append(p.bhs[:], p.data...)
	}
	out := make([]byte, n)
	buf := make([]byte, 2<<20)
	var h pdu
	lba := uint32(0)
	next := func() {
		lba = (lba*1103515245 + 12345) % places / uint32(n/512) * uint32(n/512)
		if _, err := c.nc.Write(request(lba)); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	started := min(depth, b.N)
	for range started {
		next()
	}
	for done := 0; done < b.N; {
		if _, err := io.ReadFull(c.nc, h.bhs[:]); err != nil {
			b.Fatal(err)
		}
		if m := int(h.bhs[5])<<16 | int(h.bhs[6])<<8 | int(h.bhs[7]); m > 0 {
			if _, err := io.ReadFull(c.nc, buf[:m]); err != nil {
				b.Fatal(err)
			}
		}
		switch h.op() {
		case 0x31:
			at, m := int(h.u32(40)), int(h.u32(44))
			c.dataOut(h.u32(16), h.u32(20), out[:at+m], at)
			continue
		case 0x25:
			if h.bhs[1]&1 == 0 {
				continue
			}
			c.expStatSN = h.u32(24) + 1
		case 0x21:
			if h.bhs[3] != 0 {
				b.Fatalf("status %#x", h.bhs[3])
			}
			c.expStatSN = h.u32(24) + 1
		}
		if done++; started < b.N {
			started++
			next()
		}
	}
}

func BenchmarkTarget(b *testing.B) {
	for _, x := range []struct {
		name string
		op   byte
		n    int
	}{{"read4k", 0x28, 4096}, {"write4k", 0x2a, 4096}, {"read1M", 0x28, 1 << 20}, {"write1M", 0x2a, 1 << 20}} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/depth%d", x.name, depth), func(b *testing.B) { benchmarkQueue(b, x.op, x.n, depth) })
		}
	}
}

// noDeadline takes the tests' deadline away.
var noDeadline time.Time
