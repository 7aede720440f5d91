package scsi

import "encoding/binary"

// readDefectData is READ DEFECT DATA (10) and (12) (SBC-3 5.17, 5.18): there is no medium here whose defects
// anybody could see, so both lists are valid and empty.
func (u *Unit) readDefectData(c *Command) {
	if c.CDB[0] == 0x37 {
		b := append(c.inBuf[:0], 0, c.CDB[2]&0x1f, 0, 0)
		c.answer(b, uint64(c.u16(7)))
		return
	}
	b := append(c.inBuf[:0], make([]byte, 8)...)
	b[1] = c.CDB[1] & 0x1f
	binary.BigEndian.PutUint32(b[4:], 0)
	c.answer(b, uint64(c.u32(6)))
}
