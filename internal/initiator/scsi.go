package initiator

import (
	"encoding/binary"
	"fmt"
)

// LUN is a logical unit number in its eight-byte form (SAM-5 4.7).
type LUN uint64

// FlatLUN is the eight-byte form of a small number: peripheral addressing below 256, flat space above.
func FlatLUN(n int) LUN {
	if n < 256 {
		return LUN(uint64(n) << 48)
	}
	return LUN(uint64(0x4000|n&0x3fff) << 48)
}

// Status is a SCSI status code (SAM-5 5.3.1).
type Status byte

// SCSI status codes.
const (
	StatusGood                Status = 0x00
	StatusCheckCondition      Status = 0x02
	StatusConditionMet        Status = 0x04
	StatusBusy                Status = 0x08
	StatusReservationConflict Status = 0x18
	StatusTaskSetFull         Status = 0x28
	StatusACAActive           Status = 0x30
	StatusTaskAborted         Status = 0x40
)

func (s Status) String() string {
	switch s {
	case StatusGood:
		return "GOOD"
	case StatusCheckCondition:
		return "CHECK CONDITION"
	case StatusConditionMet:
		return "CONDITION MET"
	case StatusBusy:
		return "BUSY"
	case StatusReservationConflict:
		return "RESERVATION CONFLICT"
	case StatusTaskSetFull:
		return "TASK SET FULL"
	case StatusACAActive:
		return "ACA ACTIVE"
	case StatusTaskAborted:
		return "TASK ABORTED"
	}
	return fmt.Sprintf("status 0x%02x", byte(s))
}

// Sense keys (SPC-4 4.5.6).
const (
	SenseNoSense        = 0x0
	SenseRecovered      = 0x1
	SenseNotReady       = 0x2
	SenseMediumError    = 0x3
	SenseHardwareError  = 0x4
	SenseIllegalRequest = 0x5
	SenseUnitAttention  = 0x6
	SenseDataProtect    = 0x7
	SenseAborted        = 0xb
	SenseMiscompare     = 0xe
)

var senseKeyNames = [16]string{"NO SENSE", "RECOVERED ERROR", "NOT READY", "MEDIUM ERROR", "HARDWARE ERROR",
	"ILLEGAL REQUEST", "UNIT ATTENTION", "DATA PROTECT", "BLANK CHECK", "VENDOR SPECIFIC", "COPY ABORTED",
	"ABORTED COMMAND", "RESERVED", "VOLUME OVERFLOW", "MISCOMPARE", "COMPLETED"}

// Sense is decoded sense data.
type Sense struct {
	Key, ASC, ASCQ byte
	Deferred       bool
	// Info is the INFORMATION field if InfoValid: the first failing LBA, or for MISCOMPARE the offset.
	Info      uint64
	InfoValid bool
}

func (s Sense) String() string {
	d := ""
	if s.Deferred {
		d = "deferred "
	}
	return fmt.Sprintf("%s%s %02x/%02x/%02x", d, senseKeyNames[s.Key&15], s.Key, s.ASC, s.ASCQ)
}

// ParseSense decodes fixed and descriptor sense data (SPC-4 4.5); ok is false if b is neither.
func ParseSense(b []byte) (s Sense, ok bool) {
	if len(b) < 2 {
		return s, false
	}
	code := b[0] & 0x7f
	switch code {
	case 0x70, 0x71:
		if len(b) < 3 {
			return s, false
		}
		s.Key = b[2] & 0x0f
		if b[0]&0x80 != 0 && len(b) >= 7 {
			s.Info, s.InfoValid = uint64(binary.BigEndian.Uint32(b[3:7])), true
		}
		// ADDITIONAL SENSE LENGTH says how much of the rest means anything.
		if len(b) >= 14 && int(b[7]) >= 6 {
			s.ASC, s.ASCQ = b[12], b[13]
		}
	case 0x72, 0x73:
		if len(b) < 4 {
			return s, false
		}
		s.Key, s.ASC, s.ASCQ = b[1]&0x0f, b[2], b[3]
		if len(b) >= 8 {
			d := b[8:]
			d = d[:min(len(d), int(b[7]))]
			for len(d) >= 2 {
				n := 2 + int(d[1])
				if d[0] == 0 && n >= 12 && len(d) >= 12 && d[2]&0x80 != 0 {
					s.Info, s.InfoValid = binary.BigEndian.Uint64(d[4:12]), true
				}
				d = d[min(n, len(d)):]
			}
		}
	default:
		return s, false
	}
	s.Deferred = code&1 == 1
	return s, true
}

// StatusError is a command that the target finished with another status than GOOD.
type StatusError struct {
	CDB    byte // operation code
	Status Status
	Sense  Sense // zero if there was none
}

func (e *StatusError) Error() string {
	if e.Status == StatusCheckCondition {
		return fmt.Sprintf("SCSI command 0x%02x: %s: %s", e.CDB, e.Status, e.Sense)
	}
	return fmt.Sprintf("SCSI command 0x%02x: %s", e.CDB, e.Status)
}

// TaskAttr is the task attribute of a command (RFC 7143 11.3.1).
type TaskAttr byte

// Task attributes.
const (
	AttrSimple TaskAttr = iota + 1
	AttrOrdered
	AttrHeadOfQueue
	AttrACA
	AttrUntagged TaskAttr = 0x80 // 0 on the wire; the zero TaskAttr means SIMPLE
)

func (a TaskAttr) wire() byte {
	if a == 0 {
		return byte(AttrSimple)
	}
	return byte(a) & 7
}

// CDB builders fill a command's CDB; the caller sets In, Out and the rest.

func (c *Command) setCDB16(op, flags byte, lba uint64, n uint32) {
	c.CDB = [16]byte{0: op, 1: flags}
	binary.BigEndian.PutUint64(c.CDB[2:10], lba)
	binary.BigEndian.PutUint32(c.CDB[10:14], n)
	c.CDBTail = nil
}

const cdbFUA = 0x08

// Read16 makes c a READ(16) of n blocks.
func (c *Command) Read16(lba uint64, n uint32, fua bool) { c.setCDB16(0x88, fuaBit(fua), lba, n) }

// Write16 makes c a WRITE(16) of n blocks.
func (c *Command) Write16(lba uint64, n uint32, fua bool) { c.setCDB16(0x8a, fuaBit(fua), lba, n) }

func fuaBit(fua bool) byte {
	if fua {
		return cdbFUA
	}
	return 0
}

// SyncCache16 makes c a SYNCHRONIZE CACHE(16); n of 0 means to the end.
func (c *Command) SyncCache16(lba uint64, n uint32) { c.setCDB16(0x91, 0, lba, n) }

// CompareAndWrite makes c a COMPARE AND WRITE; Out is n blocks to compare with, then n blocks to write.
func (c *Command) CompareAndWrite(lba uint64, n byte, fua bool) {
	c.CDB = [16]byte{0: 0x89, 1: fuaBit(fua), 13: n}
	binary.BigEndian.PutUint64(c.CDB[2:10], lba)
	c.CDBTail = nil
}

// WriteSame16 makes c a WRITE SAME(16); Out is one block.
func (c *Command) WriteSame16(lba uint64, n uint32, unmap bool) {
	var f byte
	if unmap {
		f = 0x08
	}
	c.setCDB16(0x93, f, lba, n)
}

// Extent is a run of logical blocks.
type Extent struct {
	LBA uint64
	N   uint32
}

// AppendUnmapList encodes the parameter list of an UNMAP command.
func AppendUnmapList(dst []byte, extents ...Extent) []byte {
	n := len(extents) * 16
	dst = binary.BigEndian.AppendUint16(dst, uint16(n+6))
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = append(dst, 0, 0, 0, 0)
	for _, e := range extents {
		dst = binary.BigEndian.AppendUint64(dst, e.LBA)
		dst = binary.BigEndian.AppendUint32(dst, e.N)
		dst = append(dst, 0, 0, 0, 0)
	}
	return dst
}

// Unmap makes c an UNMAP whose Out is an AppendUnmapList of listLen bytes.
func (c *Command) Unmap(listLen int) {
	c.CDB = [16]byte{0: 0x42}
	binary.BigEndian.PutUint16(c.CDB[7:9], uint16(listLen))
	c.CDBTail = nil
}

// TestUnitReady makes c a TEST UNIT READY.
func (c *Command) TestUnitReady() { c.CDB, c.CDBTail = [16]byte{}, nil }

// Inquiry makes c an INQUIRY; page below 0 asks for the standard data. len(c.In) is the allocation length.
func (c *Command) Inquiry(page int) {
	c.CDB, c.CDBTail = [16]byte{0: 0x12}, nil
	if page >= 0 {
		c.CDB[1], c.CDB[2] = 1, byte(page)
	}
	binary.BigEndian.PutUint16(c.CDB[3:5], uint16(len(c.In)))
}

// ReadCapacity16 makes c a READ CAPACITY(16) into c.In.
func (c *Command) ReadCapacity16() {
	c.CDB, c.CDBTail = [16]byte{0: 0x9e, 1: 0x10}, nil
	binary.BigEndian.PutUint32(c.CDB[10:14], uint32(len(c.In)))
}

// ReadCapacity10 makes c a READ CAPACITY(10) into c.In.
func (c *Command) ReadCapacity10() { c.CDB, c.CDBTail = [16]byte{0: 0x25}, nil }

// ReportLUNs makes c a REPORT LUNS into c.In.
func (c *Command) ReportLUNs() {
	c.CDB, c.CDBTail = [16]byte{0: 0xa0}, nil
	binary.BigEndian.PutUint32(c.CDB[6:10], uint32(len(c.In)))
}

// RequestSense makes c a REQUEST SENSE into c.In.
func (c *Command) RequestSense() {
	c.CDB, c.CDBTail = [16]byte{0: 0x03, 4: byte(min(len(c.In), 255))}, nil
}
