package wire

import (
	"encoding/binary"
	"hash/crc32"

	"dozo/internal/ident"
)

// HelloKind says which part of the handshake a Hello is.
type HelloKind uint8

// Kinds of a Hello.
const (
	HelloClient HelloKind = 1 // the first bytes of whoever dialled
	HelloServer HelloKind = 2 // the answer: frames may follow
	HelloRefuse HelloKind = 3 // the answer: Code and Detail say why not; the connection ends
	HelloProof  HelloKind = 4 // on connections without TLS only: Auth proves the ticket
)

// Class says what a connection is for. Each has connections of its own so that short messages never wait
// behind long ones.
type Class uint8

// Classes of connections.
const (
	ClassControl Class = 1 // leases, fences, ticks, states
	ClassAppend  Class = 2 // appends, syncs, seals
	ClassRead    Class = 3 // reads of blocks
	ClassForward Class = 4 // clients' commands between access servers
	ClassBulk    Class = 5 // pushes, raw reads, copies: anything long
	ClassMax     Class = 5
)

var classNames = [...]string{"?", "control", "append", "read", "forward", "bulk"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "?"
}

// Capabilities are bits that both sides must have for something optional to be used. Unknown ones are
// ignored.
type Capabilities uint64

// CapPlainData: connections of data classes without encryption are taken.
const CapPlainData Capabilities = 1 << 0

// Hello opens a connection in both directions. Its encoding is the same in every version of the protocol,
// past and future: that is how two versions find out that they have none in common. Later versions may only
// append to it.
type Hello struct {
	Kind         HelloKind
	Class        Class
	VersionMin   uint16
	VersionMax   uint16
	Code         Code // with HelloRefuse
	Instance     uint64
	Capabilities Capabilities
	Cluster      string
	Node         ident.NodeName
	Detail       string // with HelloRefuse, for people
	Auth         []byte // with connections without TLS: package peer
}

// What the handshake's format fixes, for ever.
const (
	HelloPrefix  = 16 // bytes after which the length is known
	HelloMax     = 2048
	helloFixed   = 40
	helloMagic   = "dozohelo"
	clusterMax   = 64
	nodeMax      = 255
	detailMax    = 1024
	helloAuthMax = 256
)

// AppendHello appends h; strings that are too long are cut.
func AppendHello(b []byte, h *Hello) []byte {
	start := len(b)
	b = append(b, helloMagic...)
	b = append(b, 0, 0, 0, 0, 0, 0, byte(h.Kind), byte(h.Class))
	b = binary.LittleEndian.AppendUint16(b, h.VersionMin)
	b = binary.LittleEndian.AppendUint16(b, h.VersionMax)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.Code))
	b = append(b, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, h.Instance)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Capabilities))
	b = appendShort(b, h.Cluster, clusterMax)
	b = appendShort(b, string(h.Node), nodeMax)
	b = appendShort(b, h.Detail, detailMax)
	b = appendShort(b, string(h.Auth), helloAuthMax)
	binary.LittleEndian.PutUint16(b[start+12:], uint16(len(b)-start))
	binary.LittleEndian.PutUint32(b[start+8:], crc32.Checksum(b[start+12:], castagnoli))
	return b
}

// HelloLength reads how long the Hello is whose first HelloPrefix bytes are b.
func HelloLength(b []byte) (int, error) {
	if len(b) < HelloPrefix || string(b[:8]) != helloMagic {
		return 0, malformed("handshake starts with %q", b[:min(len(b), 8)])
	}
	n := int(binary.LittleEndian.Uint16(b[12:]))
	if n < helloFixed || n > HelloMax {
		return 0, malformed("handshake of %d bytes", n)
	}
	return n, nil
}

// ParseHello reads a whole Hello. Kinds, classes and capabilities are for the caller to judge.
func ParseHello(b []byte) (h Hello, err error) {
	n, err := HelloLength(b)
	if err != nil {
		return h, err
	}
	if n != len(b) {
		return h, malformed("handshake of %d bytes says %d", len(b), n)
	}
	if want, got := binary.LittleEndian.Uint32(b[8:]), crc32.Checksum(b[12:], castagnoli); want != got {
		return h, malformed("handshake checksum %08x, computed %08x", want, got)
	}
	h = Hello{
		Kind:         HelloKind(b[14]),
		Class:        Class(b[15]),
		VersionMin:   binary.LittleEndian.Uint16(b[16:]),
		VersionMax:   binary.LittleEndian.Uint16(b[18:]),
		Code:         Code(binary.LittleEndian.Uint16(b[20:])),
		Instance:     binary.LittleEndian.Uint64(b[24:]),
		Capabilities: Capabilities(binary.LittleEndian.Uint64(b[32:])),
	}
	c := decoder(b[helloFixed:])
	var node, auth string
	c.text(&h.Cluster, clusterMax)
	c.text(&node, nodeMax)
	c.text(&h.Detail, detailMax)
	c.text(&auth, helloAuthMax)
	h.Node = ident.NodeName(node)
	if auth != "" {
		h.Auth = []byte(auth)
	}
	return h, c.err // what is left comes from a later version
}

// Agree picks the newest version that both speak.
func Agree(a, b *Hello) (uint16, error) {
	v := min(a.VersionMax, b.VersionMax)
	if v < max(a.VersionMin, b.VersionMin) {
		return 0, &Error{Code: CodeVersion, Detail: "no protocol version in common: " +
			versionRange(a) + " and " + versionRange(b)}
	}
	return v, nil
}

func appendShort(b []byte, s string, most int) []byte {
	s = s[:min(len(s), most)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
