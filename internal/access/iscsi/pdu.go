package iscsi

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// What RFC 7143 fixes.
const (
	bhsLen = 48 // basic header segment

	opNopOut    = 0x00
	opCommand   = 0x01
	opTaskMgmt  = 0x02
	opLogin     = 0x03
	opText      = 0x04
	opDataOut   = 0x05
	opLogout    = 0x06
	opSNACK     = 0x10
	opNopIn     = 0x20
	opResponse  = 0x21
	opTaskMgmtR = 0x22
	opLoginR    = 0x23
	opTextR     = 0x24
	opDataIn    = 0x25
	opLogoutR   = 0x26
	opR2T       = 0x31
	opAsync     = 0x32
	opReject    = 0x3f

	immediateBit = 0x40
	finalBit     = 0x80

	noTag = 0xffffffff // the reserved initiator or target task tag
)

// Reasons of a Reject (RFC 7143 11.17.1).
const (
	rejectDataDigest       = 0x02
	rejectSNACK            = 0x03
	rejectProtocolError    = 0x04
	rejectNotSupported     = 0x05
	rejectTooManyImmediate = 0x06
	rejectDataACK          = 0x08
	rejectInvalidField     = 0x09
	rejectNoResources      = 0x0a
)

// header is a basic header segment, with accessors for what is at the same place in all PDUs.
type header [bhsLen]byte

func (h *header) opcode() byte    { return h[0] & 0x3f }
func (h *header) immediate() bool { return h[0]&immediateBit != 0 }
func (h *header) final() bool     { return h[1]&finalBit != 0 }
func (h *header) ahsLen() int     { return int(h[4]) * 4 }
func (h *header) dataLen() int    { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }
func (h *header) lun() uint64     { return binary.BigEndian.Uint64(h[8:]) }
func (h *header) itt() uint32     { return binary.BigEndian.Uint32(h[16:]) }
func (h *header) ttt() uint32     { return binary.BigEndian.Uint32(h[20:]) }
func (h *header) cmdSN() uint32   { return binary.BigEndian.Uint32(h[24:]) }
func (h *header) expStatSN() uint32 {
	return binary.BigEndian.Uint32(h[28:])
}
func (h *header) u32(at int) uint32      { return binary.BigEndian.Uint32(h[at:]) }
func (h *header) put32(at int, v uint32) { binary.BigEndian.PutUint32(h[at:], v) }
func (h *header) setDataLen(n int)       { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }
func (h *header) setLUN(field uint64)    { binary.BigEndian.PutUint64(h[8:], field) }

// pad is how many bytes fill a segment up to four.
func pad(n int) int { return -n & 3 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// zeroPad is what padding is made of.
var zeroPad [4]byte

// digest is the CRC32C of a segment in the byte order of the wire (RFC 7143 13.1: the CRC is sent with its
// lowest byte first).
func digest(crc uint32, b ...[]byte) uint32 {
	for _, p := range b {
		crc = crc32.Update(crc, castagnoli, p)
	}
	return crc
}

// ProtocolError is a PDU that breaks the protocol so that the connection has to end.
type ProtocolError struct {
	Opcode byte
	What   string
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("opcode %#02x: %s", e.Opcode, e.What)
}

func badPDU(h *header, format string, args ...any) error {
	return &ProtocolError{Opcode: h.opcode(), What: fmt.Sprintf(format, args...)}
}

// checkHeader refuses what no PDU of an initiator may look like, before anything is allocated for it. dataMax
// is the MaxRecvDataSegmentLength that we declared.
func checkHeader(h *header, dataMax int) error {
	if n := h.dataLen(); n > dataMax {
		return badPDU(h, "data segment of %d bytes, MaxRecvDataSegmentLength is %d", n, dataMax)
	}
	if h.ahsLen() > 0 && h.opcode() != opCommand {
		return badPDU(h, "additional header segments of %d bytes", h.ahsLen())
	}
	return nil
}

// Types of additional header segments (RFC 7143 11.2.2.1).
const (
	ahsExtendedCDB   = 1
	ahsBidirectional = 2
)

// parseAHS walks the additional header segments of a SCSI Command.
func parseAHS(b []byte) (bidirectional bool, err error) {
	for len(b) > 0 {
		if len(b) < 4 {
			return false, fmt.Errorf("additional header segment of %d bytes", len(b))
		}
		// AHSLength counts what follows the type byte, without padding.
		n := 3 + int(binary.BigEndian.Uint16(b))
		n += pad(n)
		if n > len(b) {
			return false, fmt.Errorf("additional header segment of %d bytes in %d", n, len(b))
		}
		switch b[2] & 0x3f {
		case ahsBidirectional:
			bidirectional = true
		case ahsExtendedCDB:
		default:
			return false, fmt.Errorf("additional header segment of type %d", b[2]&0x3f)
		}
		b = b[n:]
	}
	return bidirectional, nil
}

// before reports a < b in serial number arithmetic (RFC 1982, RFC 7143 4.2.2.1).
func before(a, b uint32) bool { return int32(a-b) < 0 }
