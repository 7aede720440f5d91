package scsi

import (
	"encoding/binary"

	"dozo/internal/access/reserve"
)

// Limits that we chose, in bytes; page B0h tells them in blocks.
const (
	// transferMax bounds one READ, WRITE or VERIFY: far more than initiators use, little enough that a
	// connection's memory bound admits several.
	transferMax = 32 << 20
	// transferOptimal is the record: longer transfers are split there.
	transferOptimal = RecordMax
	// atomicMax bounds WRITE ATOMIC: one record.
	atomicMax = RecordMax
	// compareMax bounds COMPARE AND WRITE in blocks: what its one-byte length can say, and one record with
	// blocks of 4096 bytes.
	compareMax = 255
	// sameMax bounds WRITE SAME: a pattern has to be written out, so no more than what fits in an
	// initiator's timeout.
	sameMax = 1 << 30
	// unmapDescriptorsMax bounds UNMAP's list.
	unmapDescriptorsMax = 256
	// statusDescriptorsMax and statusLookupsMax bound what GET LBA STATUS tells and looks up for one command: each look-up can
	// be a round trip to the owner and the loading of a part of its map. What lies behind is left to the next command.
	statusDescriptorsMax = 64
	statusLookupsMax     = 256
)

// extent reads the LBA and length fields of a CDB.
func (c *Command) extent() (lba, blocks uint64) {
	switch c.CDB[0] >> 5 {
	case 0: // 6 bytes: 21 bits of LBA, and 0 means 256 blocks
		lba = uint64(c.CDB[1]&0x1f)<<16 | uint64(c.u16(2))
		if blocks = uint64(c.CDB[4]); blocks == 0 {
			blocks = 256
		}
	case 1, 2:
		lba, blocks = uint64(c.u32(2)), uint64(c.u16(7))
	case 5:
		lba, blocks = uint64(c.u32(2)), uint64(c.u32(6))
	case 4:
		lba, blocks = c.u64(2), uint64(c.u32(10))
		switch c.CDB[0] {
		case 0x89:
			blocks = uint64(c.CDB[13])
		case 0x9c:
			blocks = uint64(c.u16(12))
		}
	}
	return lba, blocks
}

// lengthAt is where the length field of the CDB begins, for the field pointer.
func (c *Command) lengthAt() int {
	switch c.CDB[0] >> 5 {
	case 0:
		return 4
	case 1, 2:
		return 7
	case 5:
		return 6
	}
	switch c.CDB[0] {
	case 0x89:
		return 13
	case 0x9c:
		return 12
	}
	return 10
}

// setRange checks an extent against the capacity and a limit in bytes, and makes it the command's range.
func (u *Unit) setRange(c *Command, lba, blocks uint64, limitBytes uint64) bool {
	size := uint64(c.geo.BlockSize)
	switch {
	case lba > c.geo.Blocks || blocks > c.geo.Blocks-lba:
		c.outOfRange(lba)
		return false
	case blocks > limitBytes/size:
		c.badField(c.lengthAt(), 7)
		return false
	}
	c.off, c.n = int64(lba*size), int64(blocks*size)
	return true
}

// readCapacity10 (SBC-3 5.15).
func (u *Unit) readCapacity10(c *Command) {
	b := binary.BigEndian.AppendUint32(c.inBuf[:0], uint32(min(c.geo.Blocks-1, 0xffffffff)))
	b = binary.BigEndian.AppendUint32(b, c.geo.BlockSize)
	c.answer(b, 8)
}

// readCapacity16 (SBC-3 5.16).
func (u *Unit) readCapacity16(c *Command) {
	c.answer(u.appendCapacity(c.inBuf[:0], c.geo), uint64(c.u32(10)))
}

// appendCapacity encodes the parameter data of READ CAPACITY (16).
func (u *Unit) appendCapacity(b []byte, g Geometry) []byte {
	b = binary.BigEndian.AppendUint64(b, g.Blocks-1)
	b = binary.BigEndian.AppendUint32(b, g.BlockSize)
	b = append(b, make([]byte, 20)...)
	exponent := byte(0)
	for g.BlockSize<<exponent < g.PhysicalBlockSize && exponent < 15 {
		exponent++
	}
	b[13] = exponent
	b[14] = 0xc0 // LBPME, LBPRZ: thin, and unmapped blocks read as zeros; lowest aligned LBA 0
	return b
}

// blocks turns a limit in bytes into blocks.
func (g Geometry) blocks(bytes uint64) uint64 { return bytes / uint64(max(g.BlockSize, 1)) }

// granularity is the logical blocks of a physical block.
func (g Geometry) granularity() uint32 { return max(1, g.PhysicalBlockSize/max(1, g.BlockSize)) }

// vpdBlockLimits is page B0h (SBC-3 6.6.4).
func (u *Unit) vpdBlockLimits(c *Command, b []byte) []byte {
	page := make([]byte, 64)
	g := c.geo
	granularity := g.granularity()
	page[4] = 0x01 // WSNZ: WRITE SAME of 0 blocks is refused rather than meaning the whole disk
	page[5] = compareMax
	binary.BigEndian.PutUint16(page[6:], uint16(granularity))
	binary.BigEndian.PutUint32(page[8:], uint32(g.blocks(transferMax)))
	binary.BigEndian.PutUint32(page[12:], uint32(g.blocks(transferOptimal)))
	binary.BigEndian.PutUint32(page[16:], uint32(g.blocks(transferMax)))
	binary.BigEndian.PutUint32(page[20:], 0xffffffff) // UNMAP is a range, of whatever length
	binary.BigEndian.PutUint32(page[24:], unmapDescriptorsMax)
	binary.BigEndian.PutUint32(page[28:], granularity)
	binary.BigEndian.PutUint32(page[32:], 0x80000000) // UGAVALID, alignment 0
	binary.BigEndian.PutUint64(page[36:], g.blocks(sameMax))
	binary.BigEndian.PutUint32(page[44:], uint32(g.blocks(atomicMax)))
	// A record consists of physical blocks, so atomic writes do too. There are no boundaries to set.
	binary.BigEndian.PutUint32(page[48:], granularity)
	binary.BigEndian.PutUint32(page[52:], granularity)
	return append(b, page[4:]...)
}

// vpdCharacteristics is page B1h (SBC-3 6.6.2).
func (u *Unit) vpdCharacteristics(_ *Command, b []byte) []byte {
	page := make([]byte, 60)
	binary.BigEndian.PutUint16(page, 1) // non-rotating medium
	page[3] = 0x40                      // WABEREQ 01b: blocks that were erased can be read, as zeros
	page[4] = 0x01                      // VBULS: VERIFY compares unmapped blocks as zeros, too
	return append(b, page...)
}

// vpdProvisioning is page B2h (SBC-3 6.6.5).
func (u *Unit) vpdProvisioning(_ *Command, b []byte) []byte {
	const (
		unmap, same16, same10 = 0x80, 0x40, 0x20 // LBPU, LBPWS, LBPWS10
		readsZeros            = 0x04             // LBPRZ 001b
		thin                  = 0x02
	)
	return append(b, reserve.ThresholdExponent, unmap|same16|same10|readsZeros, thin, 0)
}

// vpdBlockLimitsExtension is page B7h (SBC-4 6.6.6): no streams, no atomic alignment beyond page B0h.
func (u *Unit) vpdBlockLimitsExtension(_ *Command, b []byte) []byte {
	return append(b, make([]byte, 60)...)
}
