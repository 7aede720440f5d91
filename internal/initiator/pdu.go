package initiator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Opcode is the low six bits of a basic header segment's first byte (RFC 7143 11.2.1.2).
type Opcode byte

// Opcodes, fixed by RFC 7143 11.2.1.2.
const (
	OpNopOut       Opcode = 0x00
	OpSCSICommand  Opcode = 0x01
	OpTaskMgmt     Opcode = 0x02
	OpLogin        Opcode = 0x03
	OpText         Opcode = 0x04
	OpDataOut      Opcode = 0x05
	OpLogout       Opcode = 0x06
	OpSNACK        Opcode = 0x10
	OpNopIn        Opcode = 0x20
	OpSCSIResponse Opcode = 0x21
	OpTaskMgmtResp Opcode = 0x22
	OpLoginResp    Opcode = 0x23
	OpTextResp     Opcode = 0x24
	OpDataIn       Opcode = 0x25
	OpLogoutResp   Opcode = 0x26
	OpR2T          Opcode = 0x31
	OpAsync        Opcode = 0x32
	OpReject       Opcode = 0x3f
)

var opcodeNames = map[Opcode]string{
	OpNopOut: "NOP-Out", OpSCSICommand: "SCSI Command", OpTaskMgmt: "Task Management Request", OpLogin: "Login Request",
	OpText: "Text Request", OpDataOut: "Data-Out", OpLogout: "Logout Request", OpSNACK: "SNACK", OpNopIn: "NOP-In",
	OpSCSIResponse: "SCSI Response", OpTaskMgmtResp: "Task Management Response", OpLoginResp: "Login Response",
	OpTextResp: "Text Response", OpDataIn: "Data-In", OpLogoutResp: "Logout Response", OpR2T: "R2T",
	OpAsync: "Async Message", OpReject: "Reject",
}

func (o Opcode) String() string {
	if n, ok := opcodeNames[o]; ok {
		return n
	}
	return fmt.Sprintf("opcode 0x%02x", byte(o))
}

// Sizes and bits that RFC 7143 fixes.
const (
	bhsLen     = 48
	digestLen  = 4
	maxDataLen = 1<<24 - 1 // DataSegmentLength has 24 bits

	flagFinal     = 0x80 // byte 1 of most PDUs
	flagContinue  = 0x40 // text and login
	flagTransit   = 0x80 // login
	flagRead      = 0x40 // SCSI Command
	flagWrite     = 0x20 // SCSI Command
	flagAck       = 0x40 // Data-In
	flagOverflow  = 0x04 // SCSI Response, Data-In
	flagUnderflow = 0x02
	flagStatus    = 0x01 // Data-In carries the status
	flagImmediate = 0x40 // byte 0

	// tagNone is the reserved value of task tags (RFC 7143 11.2.1.8).
	tagNone = 0xffffffff

	ahsExtendedCDB = 1
	ahsBidiLength  = 2
)

// BHS is the basic header segment of a PDU as it is on the wire. Fields are read and set in place, so that a
// Hook can break any of them.
type BHS [bhsLen]byte

// Op is the opcode without the immediate bit.
func (b *BHS) Op() Opcode { return Opcode(b[0] & 0x3f) }

// DataLen is the DataSegmentLength, without padding.
func (b *BHS) DataLen() int { return int(b[5])<<16 | int(b[6])<<8 | int(b[7]) }

// SetDataLen sets the DataSegmentLength.
func (b *BHS) SetDataLen(n int) { b[5], b[6], b[7] = byte(n>>16), byte(n>>8), byte(n) }

// AHSLen is the length of all additional header segments in bytes.
func (b *BHS) AHSLen() int { return int(b[4]) * 4 }

// Uint32 reads the big-endian field at off.
func (b *BHS) Uint32(off int) uint32 { return binary.BigEndian.Uint32(b[off : off+4]) }

// SetUint32 sets the big-endian field at off.
func (b *BHS) SetUint32(off int, v uint32) { binary.BigEndian.PutUint32(b[off:off+4], v) }

// Uint16 reads the big-endian field at off.
func (b *BHS) Uint16(off int) uint16 { return binary.BigEndian.Uint16(b[off : off+2]) }

// SetUint16 sets the big-endian field at off.
func (b *BHS) SetUint16(off int, v uint16) { binary.BigEndian.PutUint16(b[off:off+2], v) }

// LUN reads bytes 8 to 15.
func (b *BHS) LUN() LUN { return LUN(binary.BigEndian.Uint64(b[8:16])) }

// SetLUN sets bytes 8 to 15.
func (b *BHS) SetLUN(l LUN) { binary.BigEndian.PutUint64(b[8:16], uint64(l)) }

// Offsets of the 32-bit fields, RFC 7143 section 11. Not every PDU has every one.
const (
	offITT       = 16
	offTTT       = 20 // also: expected data transfer length, referenced task tag, SNACK tag
	offCmdSN     = 24 // from initiators
	offStatSN    = 24 // from targets
	offExpStatSN = 28 // from initiators
	offExpCmdSN  = 28 // from targets
	offMaxCmdSN  = 32
	offDataSN    = 36 // also: R2TSN, ExpDataSN
	offBufOffset = 40 // also: BegRun, residual of the read half
	offResidual  = 44 // also: desired data transfer length, RunLength
)

// ITT is the initiator task tag.
func (b *BHS) ITT() uint32 { return b.Uint32(offITT) }

// TTT is the target transfer tag.
func (b *BHS) TTT() uint32 { return b.Uint32(offTTT) }

// PDU is one decoded protocol data unit. Data and AHS are without padding and digests.
type PDU struct {
	BHS  BHS
	AHS  []byte
	Data []byte
}

// Errors of the decoder.
var (
	// ErrHeaderDigest: nothing in the header can be trusted, not even its length.
	ErrHeaderDigest = errors.New("header digest mismatch")
	// ErrDataDigest: the header is good, the data segment is not.
	ErrDataDigest = errors.New("data digest mismatch")
	// ErrTooLong: a data segment above the MaxRecvDataSegmentLength that we declared.
	ErrTooLong = errors.New("data segment longer than MaxRecvDataSegmentLength")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func pad4(n int) int { return (n + 3) &^ 3 }

// framing says how PDUs are laid out on one connection.
type framing struct {
	headerDigest, dataDigest bool
	maxData                  int // longest data segment accepted
}

// headerLen is the length of b's headers with their digest.
func (f framing) headerLen(b *BHS) int {
	n := bhsLen + b.AHSLen()
	if f.headerDigest {
		n += digestLen
	}
	return n
}

// dataWireLen is the length of n data bytes with padding and digest.
func (f framing) dataWireLen(n int) int {
	if n == 0 {
		return 0
	}
	n = pad4(n)
	if f.dataDigest {
		n += digestLen
	}
	return n
}

// checkHeader verifies the header digest and the length; buf holds at least headerLen bytes.
func (f framing) checkHeader(buf []byte) error {
	h := (*BHS)(buf)
	n := bhsLen + h.AHSLen()
	if f.headerDigest && crc32.Checksum(buf[:n], castagnoli) != binary.LittleEndian.Uint32(buf[n:]) {
		return ErrHeaderDigest
	}
	if h.DataLen() > f.maxData {
		return fmt.Errorf("%s with %d bytes: %w", h.Op(), h.DataLen(), ErrTooLong)
	}
	return nil
}

// decode reads the PDU at the start of buf. n is its length on the wire, 0 if buf does not hold all of it. AHS
// and Data point into buf. With ErrDataDigest p and n are valid, with other errors they are not.
func (f framing) decode(buf []byte, p *PDU) (n int, err error) {
	if len(buf) < bhsLen {
		return 0, nil
	}
	h := (*BHS)(buf)
	hl := f.headerLen(h)
	if len(buf) < hl {
		return 0, nil
	}
	if err := f.checkHeader(buf); err != nil {
		return 0, err
	}
	dl := h.DataLen()
	n = hl + f.dataWireLen(dl)
	if len(buf) < n {
		return 0, nil
	}
	p.BHS = *h
	p.AHS = buf[bhsLen : bhsLen+h.AHSLen()]
	p.Data = buf[hl : hl+dl : hl+dl]
	if f.dataDigest && dl > 0 {
		// The digest covers the padding (RFC 7143 11.2.2).
		end := hl + pad4(dl)
		if crc32.Checksum(buf[hl:end], castagnoli) != binary.LittleEndian.Uint32(buf[end:]) {
			return n, ErrDataDigest
		}
	}
	return n, nil
}

// append adds p in wire form to dst; it sets neither lengths nor anything else of the header.
func (f framing) append(dst []byte, p *PDU) []byte {
	start := len(dst)
	dst = append(dst, p.BHS[:]...)
	dst = append(dst, p.AHS...)
	if f.headerDigest {
		dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	}
	if len(p.Data) == 0 {
		return dst
	}
	start = len(dst)
	dst = append(dst, p.Data...)
	for (len(dst)-start)%4 != 0 {
		dst = append(dst, 0)
	}
	if f.dataDigest {
		dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	}
	return dst
}

// snLess compares serial numbers as RFC 1982 does with 32 bits.
func snLess(a, b uint32) bool { return int32(a-b) < 0 }
