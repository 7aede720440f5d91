package scsi

import (
	"encoding/hex"
	"strings"
)

// Flags of an opcode.
const (
	changesMedium    = 1 << iota // refused on a read-only disk
	readsMedium                  // returns or checks what is on the disk
	needsReady                   // refused while the disk's size is not known
	ignoresAttention             // runs although a unit attention waits (SAM-5 5.14.3)
	anyLUN                       // answered also where there is no logical unit
	duringSanitize               // runs while a sanitize operation is under way
	checksStatus                 // conflicts with another's RESERVE (reserve.AccessStatus)
	checksRead                   // conflicts with exclusive access, and reads nothing of the Disk
	checksWrite                  // conflicts with every reservation, and writes nothing to the Disk
	inStandby                    // runs by a path in standby (SPC-4 5.16.2.4.4)
	inUnavailable                // and by one that is unavailable (SPC-4 5.16.2.4.5)
)

// opcode is one command that a device type supports.
type opcode struct {
	code byte
	// action is the service action in the low five bits of byte 1, or -1 for commands without.
	action int
	name   string
	// usage has a one for every bit of the CDB that is looked at or may be set (SPC-4 6.35.3, CDB usage
	// data; byte 0 and the service action are filled in there). A CDB with another bit set is refused. Its
	// length is that of the CDB.
	usage []byte
	flags uint
	// prepare parses and checks; execute does it. A command without execute only finishes.
	prepare, execute func(*Unit, *Command)
}

// op makes a row; usage is written as hexadecimal digits, blanks for the eye.
func op(code byte, action int, name, usage string, flags uint, prepare, execute func(*Unit, *Command)) opcode {
	u, err := hex.DecodeString(strings.ReplaceAll(usage, " ", ""))
	if err != nil {
		panic("scsi: usage of " + name + ": " + err.Error())
	}
	return opcode{code: code, action: action, name: name, usage: u, flags: flags, prepare: prepare, execute: execute}
}

// opcodeTable finds a command by its first byte and service action.
type opcodeTable struct {
	byCode [256][]opcode
	count  int
}

func newOpcodeTable(groups ...[]opcode) *opcodeTable {
	t := new(opcodeTable)
	for _, g := range groups {
		for _, o := range g {
			t.byCode[o.code] = append(t.byCode[o.code], o)
			t.count++
		}
	}
	return t
}

// find gives the row, or nil; known says that other service actions of this code exist.
func (t *opcodeTable) find(code, byte1 byte) (row *opcode, known bool) {
	rows := t.byCode[code]
	for i := range rows {
		if rows[i].action < 0 || rows[i].action == int(byte1&0x1f) {
			return &rows[i], true
		}
	}
	return nil, len(rows) > 0
}

// Only the NACA bit of the CONTROL byte means something: auto contingent allegiance, which the standard
// INQUIRY data say is not supported (NORMACA 0). The vendor specific bits are let pass.
const controlNACA = 0x04

// checkUsage refuses bits that the command doesn't know.
func (o *opcode) checkUsage(c *Command) bool {
	last := len(o.usage) - 1
	for i := 1; i < last; i++ {
		allowed := o.usage[i]
		if i == 1 && o.action >= 0 {
			allowed |= 0x1f
		}
		if extra := c.CDB[i] &^ allowed; extra != 0 {
			bit := uint8(7)
			for extra&(1<<bit) == 0 {
				bit--
			}
			c.badField(i, bit)
			return false
		}
	}
	if c.CDB[last]&controlNACA != 0 {
		c.badField(last, 2)
		return false
	}
	return true
}

// commonOpcodes are the SPC commands that every device type answers.
func commonOpcodes() []opcode {
	return []opcode{
		op(0x00, -1, "TEST UNIT READY", "00 00 00 00 00 00", needsReady|checksStatus, nothing, nil),
		op(0x03, -1, "REQUEST SENSE", "00 01 00 00 ff 00", ignoresAttention|anyLUN|duringSanitize|inUnavailable, (*Unit).requestSense, nil),
		op(0x12, -1, "INQUIRY", "00 01 ff ff ff 00", ignoresAttention|anyLUN|duringSanitize|inUnavailable, (*Unit).inquiry, nil),
		op(0xa0, -1, "REPORT LUNS", "00 00 ff 00 00 00 ff ff ff ff 00 00", ignoresAttention|anyLUN|duringSanitize|inUnavailable, (*Unit).reportLUNs, nil),
		op(0xa3, 0x0a, "REPORT TARGET PORT GROUPS", "00 e0 00 00 00 00 ff ff ff ff 00 00", checksStatus|duringSanitize|inUnavailable, (*Unit).reportTargetPortGroups, nil),
		op(0xa4, 0x0a, "SET TARGET PORT GROUPS", "00 00 00 00 00 00 ff ff ff ff 00 00", checksWrite|inUnavailable, (*Unit).prepareSetGroups, (*Unit).setGroups),
		op(0xa3, 0x0c, "REPORT SUPPORTED OPERATION CODES", "00 00 87 ff ff ff ff ff ff ff 00 00", checksRead|duringSanitize|inUnavailable, (*Unit).reportOpcodes, nil),
		op(0xa3, 0x0d, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "00 00 80 00 00 00 ff ff ff ff 00 00", checksRead|duringSanitize, (*Unit).reportTaskManagement, nil),
	}
}

// diskOpcodes are the SBC commands, and the SPC ones whose contents depend on the disk.
//
// By a path in standby, or one that is unavailable, SPC-4 5.16.2.4.4 and 5.16.2.4.5 name what has to work and leave the rest to the
// target. What a host asks when it finds a disk works, too: one that finds the path while it is in such a state keeps what it has heard.
// Linux would have a path without a size, which multipathing refuses when the volume has come there, or one without a write cache,
// by which it then sends no flush.
func diskOpcodes() []opcode {
	const (
		reads  = readsMedium | needsReady
		writes = changesMedium | needsReady
		checks = readsMedium | needsReady
		copies = needsReady | checksWrite
	)
	return []opcode{
		op(0x08, -1, "READ (6)", "00 1f ff ff ff 00", reads, (*Unit).prepareRead, (*Unit).read),
		op(0x0a, -1, "WRITE (6)", "00 1f ff ff ff 00", writes, (*Unit).prepareWrite, (*Unit).write),
		op(0x15, -1, "MODE SELECT (6)", "00 11 00 00 ff 00", inStandby, (*Unit).prepareModeSelect, (*Unit).modeSelect),
		op(0x16, -1, "RESERVE (6)", "00 00 00 00 00 00", 0, nothing, (*Unit).reserveUnit),
		op(0x17, -1, "RELEASE (6)", "00 00 00 00 00 00", 0, nothing, (*Unit).releaseUnit),
		op(0x1a, -1, "MODE SENSE (6)", "00 08 ff ff ff 00", checksRead|inUnavailable, (*Unit).modeSense, nil),
		op(0x1b, -1, "START STOP UNIT", "00 01 00 0f f7 00", checksWrite, (*Unit).startStop, nil),
		op(0x1d, -1, "SEND DIAGNOSTIC", "00 04 00 00 00 00", checksWrite|inStandby, nothing, nil),
		op(0x1e, -1, "PREVENT ALLOW MEDIUM REMOVAL", "00 00 00 00 03 00", checksWrite, nothing, nil),
		op(0x25, -1, "READ CAPACITY (10)", "00 00 ff ff ff ff 00 00 01 00", needsReady|duringSanitize|inUnavailable, (*Unit).readCapacity10, nil),
		op(0x28, -1, "READ (10)", "00 18 ff ff ff ff 1f ff ff 00", reads, (*Unit).prepareRead, (*Unit).read),
		op(0x2a, -1, "WRITE (10)", "00 18 ff ff ff ff 1f ff ff 00", writes, (*Unit).prepareWrite, (*Unit).write),
		op(0x2e, -1, "WRITE AND VERIFY (10)", "00 16 ff ff ff ff 1f ff ff 00", writes, (*Unit).prepareWrite, (*Unit).writeVerify),
		op(0x2f, -1, "VERIFY (10)", "00 16 ff ff ff ff 1f ff ff 00", checks, (*Unit).prepareVerify, (*Unit).verify),
		op(0x34, -1, "PRE-FETCH (10)", "00 02 ff ff ff ff 1f ff ff 00", needsReady|checksRead, (*Unit).preFetch, nil),
		op(0x35, -1, "SYNCHRONIZE CACHE (10)", "00 02 ff ff ff ff 1f ff ff 00", needsReady, (*Unit).prepareSynchronize, (*Unit).synchronize),
		op(0x37, -1, "READ DEFECT DATA (10)", "00 00 1f 00 00 00 00 ff ff 00", checksRead|needsReady, (*Unit).readDefectData, nil),
		op(0x41, -1, "WRITE SAME (10)", "00 08 ff ff ff ff 1f ff ff 00", writes, (*Unit).prepareWriteSame, (*Unit).writeSame),
		op(0x42, -1, "UNMAP", "00 00 00 00 00 00 1f ff ff 00", writes, (*Unit).prepareUnmap, (*Unit).unmap),
		op(0x48, 0x01, "SANITIZE, OVERWRITE", "00 a0 00 00 00 00 00 ff ff 00", writes, (*Unit).prepareSanitize, (*Unit).sanitize),
		op(0x48, 0x02, "SANITIZE, BLOCK ERASE", "00 a0 00 00 00 00 00 ff ff 00", writes, (*Unit).prepareSanitize, (*Unit).sanitize),
		op(0x48, 0x1f, "SANITIZE, EXIT FAILURE MODE", "00 a0 00 00 00 00 00 ff ff 00", writes, (*Unit).prepareSanitize, (*Unit).sanitize),
		op(0x4d, -1, "LOG SENSE", "00 01 ff ff 00 ff ff ff ff 00", duringSanitize|inStandby, (*Unit).logSense, (*Unit).logResources),
		op(0x55, -1, "MODE SELECT (10)", "00 11 00 00 00 00 00 ff ff 00", inStandby, (*Unit).prepareModeSelect, (*Unit).modeSelect),
		op(0x56, -1, "RESERVE (10)", "00 00 00 00 00 00 00 00 00 00", 0, nothing, (*Unit).reserveUnit),
		op(0x57, -1, "RELEASE (10)", "00 00 00 00 00 00 00 00 00 00", 0, nothing, (*Unit).releaseUnit),
		op(0x5a, -1, "MODE SENSE (10)", "00 18 ff ff 00 00 00 ff ff 00", checksRead|inUnavailable, (*Unit).modeSense, nil),
		op(0x5e, 0x00, "PERSISTENT RESERVE IN, READ KEYS", "00 00 00 00 00 00 00 ff ff 00", inStandby, nothing, (*Unit).reserveIn),
		op(0x5e, 0x01, "PERSISTENT RESERVE IN, READ RESERVATION", "00 00 00 00 00 00 00 ff ff 00", inStandby, nothing, (*Unit).reserveIn),
		op(0x5e, 0x02, "PERSISTENT RESERVE IN, REPORT CAPABILITIES", "00 00 00 00 00 00 00 ff ff 00", inStandby, nothing, (*Unit).reserveIn),
		op(0x5e, 0x03, "PERSISTENT RESERVE IN, READ FULL STATUS", "00 00 00 00 00 00 00 ff ff 00", inStandby, nothing, (*Unit).reserveIn),
		op(0x5f, 0x00, "PERSISTENT RESERVE OUT, REGISTER", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x01, "PERSISTENT RESERVE OUT, RESERVE", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x02, "PERSISTENT RESERVE OUT, RELEASE", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x03, "PERSISTENT RESERVE OUT, CLEAR", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x04, "PERSISTENT RESERVE OUT, PREEMPT", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x05, "PERSISTENT RESERVE OUT, PREEMPT AND ABORT", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x06, "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x07, "PERSISTENT RESERVE OUT, REGISTER AND MOVE", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).reserveOut),
		op(0x5f, 0x08, "PERSISTENT RESERVE OUT, REPLACE LOST RESERVATION", "00 00 ff 00 00 ff ff ff ff 00", inStandby, (*Unit).prepareReserveOut, (*Unit).replaceLost),
		op(0x83, 0x00, "EXTENDED COPY (LID1)", "00 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", copies, (*Unit).prepareCopyList, (*Unit).extendedCopy),
		op(0x83, 0x01, "EXTENDED COPY (LID4)", "00 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", copies, (*Unit).prepareCopyList, (*Unit).extendedCopy),
		op(0x83, 0x10, "POPULATE TOKEN", "00 00 00 00 00 00 ff ff ff ff ff ff ff ff 1f 00", needsReady|checksRead, (*Unit).prepareCopyList, (*Unit).populateToken),
		op(0x83, 0x11, "WRITE USING TOKEN", "00 00 00 00 00 00 ff ff ff ff ff ff ff ff 1f 00", copies|changesMedium, (*Unit).prepareCopyList, (*Unit).writeUsingToken),
		op(0x83, 0x1c, "COPY OPERATION ABORT", "00 00 ff ff ff ff 00 00 00 00 00 00 00 00 00 00", checksWrite, nothing, (*Unit).copyAbort),
		op(0x84, receiveStatusLID1, "RECEIVE COPY STATUS (LID1)", "00 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 00", checksStatus, (*Unit).receiveCopy, nil),
		op(0x84, receiveParameters, "RECEIVE COPY OPERATING PARAMETERS", "00 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 00", checksStatus, (*Unit).receiveCopy, nil),
		op(0x84, receiveFailure, "RECEIVE COPY FAILURE DETAILS (LID1)", "00 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 00", checksStatus, (*Unit).receiveCopy, nil),
		op(0x84, receiveStatusLID4, "RECEIVE COPY STATUS (LID4)", "00 00 ff ff ff ff 00 00 00 00 ff ff ff ff 00 00", checksStatus, (*Unit).receiveCopy, nil),
		op(0x84, receiveToken, "RECEIVE ROD TOKEN INFORMATION", "00 00 ff ff ff ff 00 00 00 00 ff ff ff ff 00 00", checksStatus, (*Unit).receiveCopy, nil),
		op(0x88, -1, "READ (16)", "00 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", reads, (*Unit).prepareRead, (*Unit).read),
		op(0x89, -1, "COMPARE AND WRITE", "00 18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00", writes|readsMedium, (*Unit).prepareCompareAndWrite, (*Unit).compareAndWrite),
		op(0x8a, -1, "WRITE (16)", "00 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWrite, (*Unit).write),
		op(0x8b, -1, "ORWRITE (16)", "00 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareOrWrite, (*Unit).orWrite),
		op(0x8e, -1, "WRITE AND VERIFY (16)", "00 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWrite, (*Unit).writeVerify),
		op(0x8f, -1, "VERIFY (16)", "00 16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", checks, (*Unit).prepareVerify, (*Unit).verify),
		op(0x90, -1, "PRE-FETCH (16)", "00 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", needsReady|checksRead, (*Unit).preFetch, nil),
		op(0x91, -1, "SYNCHRONIZE CACHE (16)", "00 02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", needsReady, (*Unit).prepareSynchronize, (*Unit).synchronize),
		op(0x93, -1, "WRITE SAME (16)", "00 09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWriteSame, (*Unit).writeSame),
		op(0x9c, -1, "WRITE ATOMIC (16)", "00 18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWriteAtomic, (*Unit).write),
		op(0x9e, 0x10, "READ CAPACITY (16)", "00 00 ff ff ff ff ff ff ff ff ff ff ff ff 01 00", needsReady|duringSanitize|inUnavailable, (*Unit).readCapacity16, nil),
		op(0x9e, 0x12, "GET LBA STATUS", "00 00 ff ff ff ff ff ff ff ff ff ff ff ff 00 00", needsReady|checksRead, (*Unit).prepareLBAStatus, (*Unit).lbaStatus),
		op(0xa8, -1, "READ (12)", "00 18 ff ff ff ff ff ff ff ff 1f 00", reads, (*Unit).prepareRead, (*Unit).read),
		op(0xaa, -1, "WRITE (12)", "00 18 ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWrite, (*Unit).write),
		op(0xae, -1, "WRITE AND VERIFY (12)", "00 16 ff ff ff ff ff ff ff ff 1f 00", writes, (*Unit).prepareWrite, (*Unit).writeVerify),
		op(0xb7, -1, "READ DEFECT DATA (12)", "00 1f ff ff ff ff ff ff ff ff 00 00", checksRead|needsReady, (*Unit).readDefectData, nil),
		op(0xaf, -1, "VERIFY (12)", "00 16 ff ff ff ff ff ff ff ff 1f 00", checks, (*Unit).prepareVerify, (*Unit).verify),
	}
}

// nothing is the preparation of commands that succeed by having passed the checks.
func nothing(*Unit, *Command) {}

// The tables are fixed by this file and only read.
var (
	diskTable = newOpcodeTable(commonOpcodes(), diskOpcodes())
	// absentTable is what answers at a LUN without a logical unit.
	absentTable = newOpcodeTable(commonOpcodes())
)
