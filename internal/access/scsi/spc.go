package scsi

import (
	"encoding/binary"

	"dozo/internal/access/reserve"
)

// requestSense reports a waiting unit attention, how far a sanitize operation is (SBC-3 4.11.2), or no sense (SPC-4 6.39).
func (u *Unit) requestSense(c *Command) {
	var s senseData
	if u.disk == nil {
		s = senseData{key: IllegalRequest, code: codeLUNotSupported}
	} else if a, ok := u.takeAttention(); ok {
		s = u.attentionSense(a)
	} else if unit := u.disk.Unit(); unit.State.Sanitize.Kind == reserve.SanitizeFailed {
		s = senseData{key: MediumErrorKey, code: codeSanitizeFailed}
	} else if unit.State.Sanitize.Kind != reserve.SanitizeNone {
		s = senseData{key: NotReady, code: codeSanitizeInProgress, progress: unit.Progress, progressValid: true}
	}
	b := c.inBuf[:0]
	if c.CDB[1]&1 != 0 {
		b = s.appendDescriptor(b)
	} else {
		b = s.appendFixed(b)
	}
	c.answer(b, uint64(c.CDB[4]))
}

// reportLUNs lists the logical units of the nexus (SPC-4 6.33).
func (u *Unit) reportLUNs(c *Command) {
	b := append(c.inBuf[:0], make([]byte, 8)...)
	switch c.CDB[2] {
	case 0x00, 0x02:
		for _, unit := range u.nexus.list() {
			b = binary.BigEndian.AppendUint64(b, LUNField(unit.lun))
		}
		if len(b) == 8 && c.CDB[2] == 0x02 { // a list of all is not empty: LUN 0 answers, whatever it says
			b = binary.BigEndian.AppendUint64(b, 0)
		}
	case 0x01: // well known logical units: there are none
	default:
		c.badField(2, 7)
		return
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	u.nexus.listKnown()
	c.answer(b, uint64(c.u32(6)))
}

// appendTimeouts adds a command timeouts descriptor without timeouts (SPC-4 6.35.4).
func appendTimeouts(b []byte) []byte {
	return append(b, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// reportOpcodes answers from the table that commands are dispatched by (SPC-4 6.35).
func (u *Unit) reportOpcodes(c *Command) {
	timeouts := c.CDB[2]&0x80 != 0
	code, action := c.CDB[3], c.u16(4)
	b := c.inBuf[:0]
	switch c.CDB[2] & 7 {
	case 0:
		b = u.table.appendAll(b, timeouts)
	case 1, 2, 3:
		row, known := u.table.find(code, byte(action))
		hasActions := known && (row == nil || row.action >= 0)
		if row != nil && row.action >= 0 && action > 0x1f {
			row = nil
		}
		switch c.CDB[2] & 7 {
		case 1:
			if hasActions {
				c.badField(2, 2)
				return
			}
		case 2:
			if known && !hasActions {
				c.badField(2, 2)
				return
			}
		case 3:
			if !hasActions && action != 0 {
				row = nil
			}
		}
		b = row.appendOne(b, timeouts)
	default:
		c.badField(2, 2)
		return
	}
	c.answer(b, uint64(c.u32(6)))
}

// appendAll encodes the all_commands parameter data.
func (t *opcodeTable) appendAll(b []byte, timeouts bool) []byte {
	b = append(b, 0, 0, 0, 0)
	for code := range t.byCode {
		for i := range t.byCode[code] {
			o := &t.byCode[code][i]
			var action uint16
			var flags byte
			if o.action >= 0 {
				action, flags = uint16(o.action), 0x01
			}
			if timeouts {
				flags |= 0x02
			}
			b = append(b, o.code, 0)
			b = binary.BigEndian.AppendUint16(b, action)
			b = append(b, 0, flags)
			b = binary.BigEndian.AppendUint16(b, uint16(len(o.usage)))
			if timeouts {
				b = appendTimeouts(b)
			}
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// appendOne encodes the one_command parameter data; a nil row is a command that is not supported.
func (o *opcode) appendOne(b []byte, timeouts bool) []byte {
	if o == nil {
		return append(b, 0, 0x01, 0, 0)
	}
	flags := byte(0x03)
	if timeouts {
		flags |= 0x80
	}
	b = append(b, 0, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(o.usage)))
	usage := len(b)
	b = append(b, o.usage...)
	b[usage] = o.code
	if o.action >= 0 {
		b[usage+1] |= byte(o.action)
	}
	if timeouts {
		b = appendTimeouts(b)
	}
	return b
}

// reportTaskManagement says which task management functions the transports offer (SPC-4 6.36).
func (u *Unit) reportTaskManagement(c *Command) {
	const (
		abortTask, abortTaskSet, clearTaskSet, logicalUnitReset = 0x80, 0x40, 0x10, 0x08
		targetReset, queryTask                                  = 0x02, 0x04
		queryEvent, queryTaskSet, nexusReset                    = 0x04, 0x02, 0x01 // of the second byte
	)
	b := append(c.inBuf[:0], abortTask|abortTaskSet|clearTaskSet|logicalUnitReset|targetReset, 0, 0, 0)
	if u.nexus.queries {
		b[0] |= queryTask
		b[1] |= queryEvent | queryTaskSet | nexusReset
	}
	if c.CDB[2]&0x80 != 0 {
		b = append(b, make([]byte, 12)...)
		b[3] = 12
	}
	c.answer(b, uint64(c.u32(6)))
}
