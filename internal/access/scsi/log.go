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
// here, and can't be saved. Those of the provisioning page are logResources'.
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
			if p == logSupported { // ascending by subpage, too
				b = append(b, p, subpageAll)
			}
		}
	case page == logProvisioning && subpage == 0:
		if pointer > resourceUsed {
			c.badField(5, 7)
		}
		return
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

// logResources answers with how much room there is now. What was last heard of the unit is as old as its last change, so the
// owner is asked.
func (u *Unit) logResources(c *Command) {
	if c.CDB[2]&0x3f != logProvisioning {
		c.finish()
		return
	}
	u.disk.ShowUnit(c.Request, func(s *reserve.Snapshot, err error) {
		if err != nil {
			c.fail(err)
			c.finish()
			return
		}
		const disableSave = 0x80 // DS
		b := append(c.inBuf[:0], disableSave|logProvisioning, 0, 0, 0)
		b = appendResource(b, c.u16(5), resourceAvailable, s.AvailableBlocks)
		b = appendResource(b, c.u16(5), resourceUsed, s.UsedBlocks)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
		c.answer(b, uint64(c.u16(7)))
		c.finish()
	})
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
