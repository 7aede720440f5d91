package scsi

import (
	"encoding/binary"

	"dozo/internal/access/reserve"
)

// Log pages (SPC-4 7.3, SBC-3 6.4).
const (
	logSupported    = 0x00
	logProvisioning = 0x0c
)

var logPages = []byte{logSupported, logProvisioning}

// logSense is LOG SENSE (SPC-4 6.8). The values are the threshold kind or the current ones, which are the same
// here, and can't be saved.
func (u *Unit) logSense(c *Command) {
	page, subpage := c.CDB[2]&0x3f, c.CDB[3]
	pointer := c.u16(5)
	if c.CDB[1]&0x01 != 0 { // SP
		c.badField(1, 0)
		return
	}
	b := append(c.inBuf[:0], page, subpage, 0, 0)
	if subpage != 0 {
		b[0] |= 0x40 // SPF
	}
	switch {
	case page == logSupported && subpage == 0:
		b = append(b, logPages...)
	case page == logSupported && subpage == subpageAll:
		for _, p := range logPages {
			b = append(b, p, 0)
		}
		b = append(b, logSupported, subpageAll)
	case page == logProvisioning && subpage == 0:
		s := u.disk.Unit()
		b = appendResource(b, pointer, resourceAvailable, s.AvailableBlocks)
		b = appendResource(b, pointer, resourceUsed, s.UsedBlocks)
		if len(b) == 4 {
			c.badField(5, 7)
			return
		}
	case page == logSupported || page == logProvisioning:
		c.badField(3, 7)
		return
	default:
		c.badField(2, 5)
		return
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
	c.answer(b, uint64(c.u16(7)))
}

// appendResource adds a resource count (SBC-3 6.4.4) unless the parameter pointer is behind it. Counts are in
// threshold sets; what is available is shared with other units.
func appendResource(b []byte, pointer uint16, code uint16, blocks uint64) []byte {
	const binaryList, shared, own = 0x03, 0x02, 0x01
	if code < pointer {
		return b
	}
	b = binary.BigEndian.AppendUint16(b, code)
	b = append(b, binaryList, 8)
	b = binary.BigEndian.AppendUint32(b, uint32(min(blocks>>reserve.ThresholdExponent, 0xffffffff)))
	if code == resourceAvailable {
		return append(b, shared, 0, 0, 0)
	}
	return append(b, own, 0, 0, 0)
}
