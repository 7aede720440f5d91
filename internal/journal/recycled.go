package journal

import (
	"encoding/binary"
	"errors"

	"dozo/internal/ident"
)

// What the format fixes. docs/format.md, "Segment".
const (
	RecycledVersion = 1
	recycledMagic   = 0x5247_5A44 // "DZGR"
	recycledUsed    = 12 + 2*segmentIDSize + positionSize
)

// RecycledHeader stands where the segment header will be, in a file that was an older segment's and got no append yet
// as this one's. It says that what lies behind it is stale, and how far that goes: the first append replaces it.
type RecycledHeader struct {
	Segment ident.SegmentID // whose file it is now
	Of      ident.SegmentID // whose it was, of the same journal
	Last    ident.Position  // after the last record of that one
}

// ErrNotRecycled says that a file doesn't start with a RecycledHeader.
var ErrNotRecycled = errors.New("no header of a recycled file")

// AppendRecycledHeader appends the SegmentHeaderSize bytes of h.
func AppendRecycledHeader(dst []byte, h RecycledHeader) []byte {
	at := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, recycledMagic)
	dst = le.AppendUint32(dst, 0) // CRC, below
	dst = le.AppendUint16(dst, RecycledVersion)
	dst = append(dst, 0, 0)
	dst = appendSegmentID(dst, h.Segment)
	dst = appendSegmentID(dst, h.Of)
	dst = appendPosition(dst, h.Last)
	dst = append(dst, make([]byte, SegmentHeaderSize-recycledUsed)...)
	le.PutUint32(dst[at+4:], CRC(dst[at+8:]))
	return dst
}

// DecodeRecycledHeader reads and verifies what AppendRecycledHeader made.
func DecodeRecycledHeader(b []byte) (h RecycledHeader, err error) {
	le := binary.LittleEndian
	if len(b) < SegmentHeaderSize || le.Uint32(b) != recycledMagic {
		return h, ErrNotRecycled
	}
	b = b[:SegmentHeaderSize]
	if v := le.Uint16(b[8:]); v != RecycledVersion {
		return h, &VersionError{"header of a recycled file", uint32(v), RecycledVersion}
	}
	if got, want := CRC(b[8:]), le.Uint32(b[4:]); got != want {
		return h, corrupt("header of a recycled file: CRC %08x, computed %08x", want, got)
	}
	h.Segment = decodeSegmentID(b[12:])
	h.Of = decodeSegmentID(b[12+segmentIDSize:])
	h.Last = decodePosition(b[12+2*segmentIDSize:])
	if b[10]|b[11] != 0 {
		return h, corrupt("reserved bytes of the header of a recycled file are not zero")
	}
	for _, c := range b[recycledUsed:] {
		if c != 0 {
			return h, corrupt("reserved bytes of the header of a recycled file are not zero")
		}
	}
	if h.Of.Journal != h.Segment.Journal {
		return h, corrupt("file of %s recycled for %s, of another journal", h.Of, h.Segment)
	}
	return h, nil
}
