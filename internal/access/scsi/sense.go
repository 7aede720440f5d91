package scsi

import "encoding/binary"

// Status is a SCSI status code (SAM-5 5.3.1).
type Status uint8

// The status codes.
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

// SenseKey says what kind of condition a sense reports (SPC-4 table 28).
type SenseKey uint8

// The sense keys.
const (
	NoSense        SenseKey = 0x0
	RecoveredError SenseKey = 0x1
	NotReady       SenseKey = 0x2
	MediumErrorKey SenseKey = 0x3
	HardwareError  SenseKey = 0x4
	IllegalRequest SenseKey = 0x5
	UnitAttention  SenseKey = 0x6
	DataProtect    SenseKey = 0x7
	BlankCheck     SenseKey = 0x8
	CopyAborted    SenseKey = 0xa
	AbortedCommand SenseKey = 0xb
	Miscompare     SenseKey = 0xe
)

// Code is an additional sense code with its qualifier, ASC in the high byte.
type Code uint16

// The codes that the device server itself decides on (SPC-4 annex D.2). Those that come from errors of a
// Disk are in errors.go's table, those of unit attentions in package reserve.
const (
	codeNone                    Code = 0x0000
	codeInvalidFieldInInfoUnit  Code = 0x0e03
	codeParameterListLength     Code = 0x1a00
	codeMiscompareDuringVerify  Code = 0x1d00
	codeInvalidOpcode           Code = 0x2000
	codeLBAOutOfRange           Code = 0x2100
	codeInvalidFieldInCDB       Code = 0x2400
	codeLUNotSupported          Code = 0x2500
	codeInvalidFieldInParameter Code = 0x2600
	codeWriteProtected          Code = 0x2700
	codeSavingNotSupported      Code = 0x3900
	codeNotReadyBecomingReady   Code = 0x0401
	codeInternalTargetFailure   Code = 0x4400
	codeInvalidRelease          Code = 0x2604
	codeInsufficientRegistrants Code = 0x5504
	codeSoftwareProtected       Code = 0x2702
	codeSanitizeInProgress      Code = 0x041b
	codeSanitizeFailed          Code = 0x3103
	codeTooManyTargets          Code = 0x2606
	codeUnsupportedTarget       Code = 0x2607
	codeTooManySegments         Code = 0x2608
	codeUnsupportedSegment      Code = 0x2609
	codeTokenUnknown            Code = 0x2304
	codeTokenCorrupt            Code = 0x2305
	codeTokenExpired            Code = 0x2307
	codeTokenCancelled          Code = 0x2308
	codeTokenDeleted            Code = 0x2309
	codeTokenUnsupported        Code = 0x2301
	codeTokenLength             Code = 0x230a
	codeNoTokenResources        Code = 0x550d // INSUFFICIENT RESOURCES TO CREATE ROD TOKEN
	codeThirdPartyFailure       Code = 0x0d01
	codeCopyUnreachable         Code = 0x0804
	codeTargetUnreachable       Code = 0x0d02
	codeTargetUnderrun          Code = 0x0d04
	codeClearedByServer         Code = 0x2f02
	codeOperationInProgress     Code = 0x0016
	codeSetGroupsFailed         Code = 0x670a
)

// SenseMax bounds the length of any sense.
const SenseMax = 48

// fixedSense is the length of fixed format sense data.
const fixedSense = 18

// senseData is a sense before it has bytes.
type senseData struct {
	key  SenseKey
	code Code
	// info goes to the INFORMATION field if valid: an LBA or the offset of a miscompare.
	info      uint64
	infoValid bool
	// command goes to the COMMAND-SPECIFIC INFORMATION field if valid.
	command      uint32
	commandValid bool
	// field points at the offending byte of the CDB (inCDB) or parameter list, and with bitValid at the
	// highest bit of the offending field.
	field      uint16
	fieldValid bool
	inCDB      bool
	bit        uint8
	bitValid   bool
	// progress of what makes the unit not ready, of 65536.
	progress      uint16
	progressValid bool
}

// appendFixed encodes fixed format sense data (SPC-4 4.5.3), 18 bytes.
func (s senseData) appendFixed(b []byte) []byte {
	var d [fixedSense]byte
	d[0] = 0x70
	if s.infoValid && s.info <= 0xffffffff {
		// A longer LBA doesn't fit this format, and SPC-4 4.5.3 then wants VALID to be zero.
		d[0] |= 0x80
		binary.BigEndian.PutUint32(d[3:], uint32(s.info))
	}
	d[2] = byte(s.key)
	d[7] = fixedSense - 8
	if s.commandValid {
		binary.BigEndian.PutUint32(d[8:], s.command)
	}
	binary.BigEndian.PutUint16(d[12:], uint16(s.code))
	s.putSpecific(d[15:18])
	return append(b, d[:]...)
}

// appendDescriptor encodes descriptor format sense data (SPC-4 4.5.2) for REQUEST SENSE with DESC set.
func (s senseData) appendDescriptor(b []byte) []byte {
	start := len(b)
	b = append(b, 0x72, byte(s.key), byte(s.code>>8), byte(s.code), 0, 0, 0, 0)
	if s.infoValid {
		b = append(b, 0x00, 0x0a, 0x80, 0)
		b = binary.BigEndian.AppendUint64(b, s.info)
	}
	if s.commandValid {
		b = append(b, 0x01, 0x0a, 0, 0)
		b = binary.BigEndian.AppendUint64(b, uint64(s.command))
	}
	if s.fieldValid || s.progressValid {
		var sks [3]byte
		s.putSpecific(sks[:])
		b = append(b, 0x02, 0x06, 0, 0, sks[0], sks[1], sks[2], 0)
	}
	b[start+7] = byte(len(b) - start - 8)
	return b
}

// putSpecific writes the sense-key specific bytes, if there are any.
func (s senseData) putSpecific(d []byte) {
	switch {
	case s.fieldValid:
		s.putFieldPointer(d)
	case s.progressValid:
		d[0] = 0x80
		binary.BigEndian.PutUint16(d[1:], s.progress)
	}
}

// putFieldPointer writes the sense-key specific bytes of ILLEGAL REQUEST (SPC-4 4.5.2.4.2).
func (s senseData) putFieldPointer(d []byte) {
	d[0] = 0x80
	if s.inCDB {
		d[0] |= 0x40
	}
	if s.bitValid {
		d[0] |= 0x08 | s.bit&7
	}
	binary.BigEndian.PutUint16(d[1:], s.field)
}
