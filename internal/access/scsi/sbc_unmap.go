package scsi

import "encoding/binary"

// prepareUnmap asks for UNMAP's parameter list (SBC-3 5.28).
func (u *Unit) prepareUnmap(c *Command) { c.WantOut = uint64(c.u16(7)) }

// unmap checks the whole list, then zeroes the ranges in parallel: either all are well formed or nothing
// happens.
func (u *Unit) unmap(c *Command) {
	const header, descriptor = 8, 16
	list := c.outBuf
	if len(list) == 0 {
		c.finish()
		return
	}
	if len(list) < header {
		c.illegal(codeParameterListLength)
		c.finish()
		return
	}
	// SBC-3 5.28.2: a descriptor that the list cuts off is ignored, and so is what follows the announced
	// length.
	n := min(int(binary.BigEndian.Uint16(list[2:])), len(list)-header) / descriptor
	if n > unmapDescriptorsMax {
		c.badParameter(2)
		c.finish()
		return
	}
	list = list[header : header+n*descriptor]
	for at := 0; at < len(list); at += descriptor {
		lba, blocks := binary.BigEndian.Uint64(list[at:]), uint64(binary.BigEndian.Uint32(list[at+8:]))
		if lba > c.geo.Blocks || blocks > c.geo.Blocks-lba {
			c.illegal(codeLBAOutOfRange)
			c.finish()
			return
		}
	}
	size := uint64(c.geo.BlockSize)
	c.begin((*Command).finish)
	for at := 0; at < len(list); at += descriptor {
		lba, blocks := binary.BigEndian.Uint64(list[at:]), uint64(binary.BigEndian.Uint32(list[at+8:]))
		if blocks == 0 {
			continue
		}
		c.add()
		u.disk.Zero(c.part(at/descriptor), int64(lba*size), int64(blocks*size), true, c.onStep)
	}
	c.end()
}

// getLBAStatus lists which ranges have space of their own (SBC-3 5.5).
func (u *Unit) getLBAStatus(c *Command) {
	const mapped, deallocated = 0, 1
	lba := c.u64(2)
	if lba >= c.geo.Blocks {
		c.illegal(codeLBAOutOfRange)
		return
	}
	allocation := uint64(c.u32(10))
	size := int64(c.geo.BlockSize)
	off, end := int64(lba)*size, int64(c.geo.Blocks)*size
	b := append(c.inBuf[:0], make([]byte, 8)...)
	for count, last := 0, byte(0xff); off < end && count <= statusDescriptorsMax; {
		has, n, err := u.disk.Provisioned(off)
		if err != nil {
			c.fail(err)
			return
		}
		// Whole blocks, at least one, and what one descriptor's 32 bits hold.
		blocks := min(max(n/size, 1), (end-off)/size, 1<<31)
		status := byte(deallocated)
		if has {
			status = mapped
		}
		if at := len(b) - 16; status == last && int64(binary.BigEndian.Uint32(b[at+8:]))+blocks <= 1<<31 {
			binary.BigEndian.PutUint32(b[at+8:], binary.BigEndian.Uint32(b[at+8:])+uint32(blocks))
		} else {
			if count == statusDescriptorsMax || len(b) > 8 && uint64(len(b)+16) > allocation {
				break
			}
			b = binary.BigEndian.AppendUint64(b, uint64(off/size))
			b = binary.BigEndian.AppendUint32(b, uint32(blocks))
			b = append(b, status, 0, 0, 0)
			count, last = count+1, status
		}
		off += blocks * size
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	c.answer(b, allocation)
}
