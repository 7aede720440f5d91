package router

import (
	"encoding/binary"
	"errors"
)

// Of linux/virtio_net.h: the header before each packet of a device with IFF_VNET_HDR, in the machine's byte order.
//
//	off  size  field        meaning
//	  0     1  flags        1 = a checksum is to be filled in
//	  1     1  gso_type     0 none, 1 TCP over IPv4, 4 TCP over IPv6; 0x80 is added where CWR is set
//	  2     2  hdr_len      of all headers; a hint
//	  4     2  gso_size     payload of each segment but the last
//	  6     2  csum_start   where the checksummed part begins
//	  8     2  csum_offset  where in it the checksum is
const (
	virtioLen       = 10
	virtioNeedsCsum = 1
	gsoNone         = 0
	gsoTCP4         = 1
	gsoTCP6         = 4
	gsoECN          = 0x80
)

// mtu of the devices.
const mtu = 1500

// headMax bounds the headers of a super-packet: IP with options or extension headers, and TCP with options.
const headMax = 246

// Header lengths and offsets: RFC 791 3.1, RFC 8200 3, RFC 9293 3.1.
const (
	ip4HeadMin, ip6Head, tcpHeadMin = 20, 40, 20
	tcpFIN, tcpPSH, tcpCWR          = 0x01, 0x08, 0x80
	protoTCP                        = 6
)

var errMalformed = errors.New("malformed packet")

// shape is what the router must know of a packet.
type shape struct {
	v6      bool
	super   bool
	head    int // IP and TCP header of a super-packet
	l4      int // where its TCP header begins
	seg     int // payload of its segments
	payload int
}

// inspect reads a packet as the device gave it: b begins with the virtio header and has all headers; total is the length
// of the whole with it.
func inspect(b []byte, total int) (shape, error) {
	var s shape
	// 65,535 bytes are the most that IPv4 can say, and that a run can count.
	if len(b) < virtioLen+ip4HeadMin || total < len(b) || total > virtioLen+0xffff {
		return s, errMalformed
	}
	ip := b[virtioLen:]
	switch ip[0] >> 4 {
	case 4:
	case 6:
		s.v6 = true
		if len(ip) < ip6Head {
			return s, errMalformed
		}
	default:
		return s, errMalformed
	}
	gso := b[1] &^ gsoECN
	if gso == gsoNone {
		return s, nil
	}
	if gso == gsoTCP4 && s.v6 || gso == gsoTCP6 && !s.v6 || gso != gsoTCP4 && gso != gsoTCP6 || b[0]&virtioNeedsCsum == 0 {
		return s, errMalformed
	}
	// Where TCP begins is where its checksum does; between it and an IPv6 header may be others.
	s.l4 = int(binary.NativeEndian.Uint16(b[6:]))
	s.seg = int(binary.NativeEndian.Uint16(b[4:]))
	ipHead := ip6Head
	if !s.v6 {
		ipHead = int(ip[0]&15) * 4
	}
	if s.seg == 0 || ipHead < ip4HeadMin || s.l4 < ipHead || s.l4+tcpHeadMin > len(ip) || !s.v6 && s.l4 != ipHead {
		return s, errMalformed
	}
	s.head = s.l4 + int(ip[s.l4+12]>>4)*4
	s.payload = total - virtioLen - s.head
	if s.head < s.l4+tcpHeadMin || s.head > len(ip) || s.head > headMax || s.payload <= 0 || s.payload > 0xffff || s.head+s.seg > 0xffff {
		return s, errMalformed
	}
	s.super = s.payload > s.seg
	return s, nil
}

// segmentHeader makes, in out, the headers of some of a super-packet's segments: virtio, IP and TCP, as the kernel
// would have made them. b has the packet's own. The segments begin at payload byte offset, are n bytes
// long, and first and last say whether they are the packet's ends. It returns the length of what it made.
func segmentHeader(out, b []byte, s shape, index, offset, n int, first, last bool) int {
	end := virtioLen + s.head
	copy(out[:end], b[:end])
	ip := out[virtioLen:end]
	if n <= s.seg {
		out[1] = gsoNone
		binary.NativeEndian.PutUint16(out[4:], 0)
	} else if !first {
		out[1] &^= gsoECN
	}
	tcp := ip[s.l4:]
	var sum uint32
	if s.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(s.head-ip6Head+n))
		sum = add16(0, ip[8:40])
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(s.head+n))
		binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(index))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(add16(0, ip[:s.l4])))
		sum = add16(0, ip[12:20])
	}
	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(offset))
	if !last {
		tcp[13] &^= tcpFIN | tcpPSH
	}
	if !first {
		tcp[13] &^= tcpCWR
	}
	// With NEEDS_CSUM the field has the sum of the pseudo-header, not complemented.
	sum += protoTCP + uint32(s.head-s.l4+n)
	binary.BigEndian.PutUint16(tcp[16:], fold(sum))
	return end
}

// add16 adds the 16-bit words of b, whose length is even.
func add16(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// routes says whose an address is.
type routes struct {
	v4 []route4
	v6 []route6
}

type route4 struct {
	net, mask uint32
	site      int
}

type route6 struct {
	net, mask uint64
	site      int
}

func newRoutes(sites []SiteConfig) (routes, error) {
	var r routes
	for i, s := range sites {
		for _, p := range s.Prefixes {
			switch {
			case p.Addr().Is4():
				a := p.Addr().As4()
				mask := uint32(0xffffffff) << (32 - p.Bits())
				r.v4 = append(r.v4, route4{binary.BigEndian.Uint32(a[:]) & mask, mask, i})
			case p.Bits() <= 64 && !p.Addr().Is4In6() && p.IsValid():
				a := p.Addr().As16()
				mask := ^uint64(0) << (64 - p.Bits())
				r.v6 = append(r.v6, route6{binary.BigEndian.Uint64(a[:]) & mask, mask, i})
			default:
				return r, errors.New(p.String() + ": not a prefix that can be routed")
			}
		}
	}
	return r, nil
}

// find gives the site of a packet's destination; -1: nobody's. ip has passed inspect.
func (r *routes) find(ip []byte, v6 bool) int {
	if v6 {
		d := binary.BigEndian.Uint64(ip[24:])
		for i := range r.v6 {
			if d&r.v6[i].mask == r.v6[i].net {
				return r.v6[i].site
			}
		}
		return -1
	}
	d := binary.BigEndian.Uint32(ip[16:])
	for i := range r.v4 {
		if d&r.v4[i].mask == r.v4[i].net {
			return r.v4[i].site
		}
	}
	return -1
}
