package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"dozo/internal/ident"
)

// What the format fixes. docs/wire.md, "Frame".
const (
	HeaderSize = 48
	frameMagic = 0x465A_4F44 // "DOZF" read as little-endian
	version1   = 1
	version2   = 2
	version3   = 3
	version4   = 4
	version5   = 5
)

// Versions of the protocol that this build speaks. Each has a line of history in docs/wire.md.
const (
	VersionMin = version1
	VersionMax = version5
)

// Limits that we chose. A receiver refuses what exceeds them before it allocates anything.
const (
	// DataMax is the most bytes of records, blocks or raw segment in one frame. Records are at most 2 MiB, so
	// an append always has room for one.
	DataMax = 4 << 20
	// PayloadMax leaves room for the fields in front of DataMax bytes.
	PayloadMax = DataMax + 4096
	// MessageMax bounds a message that is continued over several frames: lists of replicas, leases and
	// states, never data.
	MessageMax = 64 << 20
)

// Flags of a frame.
type Flags uint8

// Flags. A receiver takes a frame with any other flag as malformed.
const (
	FlagReply   Flags = 1 << 0 // answers the request of the same number
	FlagChecked Flags = 1 << 1 // PayloadCRC counts
	FlagMore    Flags = 1 << 2 // the next frame continues this message
	flagsKnown        = FlagReply | FlagChecked | FlagMore
)

// Header is what stands before every payload.
type Header struct {
	Type       Type
	Flags      Flags
	Code       Code   // of a reply: 0, or the payload is an Error
	Request    uint64 // chosen by the asking side, unique among what it has outstanding; 0 where no answer is wanted
	Store      ident.StoreID
	Length     uint32 // bytes of the payload
	PayloadCRC uint32 // CRC-32C, see Checked; 0 without FlagChecked
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// PutHeader writes h to the first HeaderSize bytes of b.
func PutHeader(b []byte, h *Header) {
	_ = b[HeaderSize-1]
	binary.LittleEndian.PutUint32(b[0:], frameMagic)
	b[8] = version1
	b[9] = byte(h.Flags)
	binary.LittleEndian.PutUint16(b[10:], uint16(h.Type))
	binary.LittleEndian.PutUint16(b[12:], uint16(h.Code))
	binary.LittleEndian.PutUint16(b[14:], 0)
	binary.LittleEndian.PutUint64(b[16:], h.Request)
	copy(b[24:40], h.Store[:])
	binary.LittleEndian.PutUint32(b[40:], h.Length)
	binary.LittleEndian.PutUint32(b[44:], h.PayloadCRC)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:HeaderSize], castagnoli))
}

// ParseHeader reads the header at the start of b, which has at least HeaderSize bytes, and checks all that can
// be checked without the payload.
func ParseHeader(b []byte) (h Header, err error) {
	if len(b) < HeaderSize {
		return h, malformed("frame header of %d bytes", len(b))
	}
	if got := binary.LittleEndian.Uint32(b); got != frameMagic {
		return h, malformed("frame starts with %08x", got)
	}
	if want, got := binary.LittleEndian.Uint32(b[4:]), crc32.Checksum(b[8:HeaderSize], castagnoli); want != got {
		return h, malformed("frame header checksum %08x, computed %08x", want, got)
	}
	if b[8] != version1 {
		return h, &Error{Code: CodeVersion, Detail: fmt.Sprintf("frame of version %d", b[8])}
	}
	h = Header{
		Flags:      Flags(b[9]),
		Type:       Type(binary.LittleEndian.Uint16(b[10:])),
		Code:       Code(binary.LittleEndian.Uint16(b[12:])),
		Request:    binary.LittleEndian.Uint64(b[16:]),
		Store:      ident.StoreID(b[24:40]),
		Length:     binary.LittleEndian.Uint32(b[40:]),
		PayloadCRC: binary.LittleEndian.Uint32(b[44:]),
	}
	switch {
	case h.Flags&^flagsKnown != 0:
		return h, malformed("frame flags %#x", uint8(h.Flags))
	case binary.LittleEndian.Uint16(b[14:]) != 0:
		return h, malformed("reserved bytes of the frame header are not zero")
	case h.Length > PayloadMax:
		return h, malformed("payload of %d bytes, at most %d", h.Length, PayloadMax)
	case h.Flags&FlagChecked == 0 && h.PayloadCRC != 0:
		return h, malformed("payload checksum without its flag")
	case h.Flags&FlagReply == 0 && h.Code != 0:
		return h, malformed("request with code %d", h.Code)
	case h.Flags&FlagMore != 0 && h.Length == 0:
		return h, malformed("continued frame without payload")
	}
	return h, nil
}

// Extend continues the CRC-32C crc over b; the first call takes 0.
func Extend(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// Verify checks a payload against its header. What the payload CRC covers depends on the type: all, or for
// data that carry checksums of their own (SelfChecking) the fields in front of them.
func Verify(h *Header, payload []byte) error {
	if h.Flags&FlagChecked == 0 {
		return nil
	}
	if n, ok := SelfChecking(h.Type); ok && h.Flags&FlagReply == 0 {
		payload = payload[:min(n, len(payload))]
	}
	if got := crc32.Checksum(payload, castagnoli); got != h.PayloadCRC {
		return malformed("payload checksum %08x, computed %08x", h.PayloadCRC, got)
	}
	return nil
}

// AppendFrame appends one whole frame with m, checked or not. It sets Length, PayloadCRC and, where it is
// zero, Type of h. Messages that need more than one frame and data that must not be copied are the business of package
// peer.
func AppendFrame(b []byte, h Header, m Message, checked bool) []byte {
	return appendFrameAt(b, h, m, checked, VersionMax)
}

func appendFrameAt(b []byte, h Header, m Message, checked bool, version uint16) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = AppendFieldsAt(b, m, version)
	fields := b[start+HeaderSize:]
	for _, p := range DataOf(nil, m) {
		b = append(b, p...)
	}
	if h.Type == 0 {
		h.Type = m.Type() // a reply may be shared by several types: then h says which
	}
	if checked {
		covered := b[start+HeaderSize:]
		if _, ok := SelfChecking(h.Type); ok && h.Flags&FlagReply == 0 {
			covered = fields
		}
		h.Flags |= FlagChecked
		h.PayloadCRC = crc32.Checksum(covered, castagnoli)
	}
	h.Length = uint32(len(b) - start - HeaderSize)
	PutHeader(b[start:], &h)
	return b
}

func malformed(format string, args ...any) error {
	return &Error{Code: CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
}
