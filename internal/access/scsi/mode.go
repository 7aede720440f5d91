package scsi

import (
	"bytes"
	"encoding/binary"
)

// Mode pages (SPC-4 7.5, SBC-3 6.5). None can be changed: what they say follows from the disk.
const (
	pageErrorRecovery = 0x01
	pageCaching       = 0x08
	pageControl       = 0x0a
	pageExceptions    = 0x1c
	pageAll           = 0x3f
	subpageAll        = 0xff
)

var modePages = []byte{pageErrorRecovery, pageCaching, pageControl, pageExceptions}

// appendModePage encodes one page; with changeable set it encodes the mask of what MODE SELECT may change.
func appendModePage(b []byte, page byte, g Geometry, changeable bool) []byte {
	length := byte(0x0a)
	if page == pageCaching {
		length = 0x12
	}
	b = append(b, page, length)
	body := len(b)
	b = append(b, make([]byte, length)...)
	if changeable {
		return b
	}
	p := b[body-2:]
	switch page {
	case pageCaching:
		if g.VolatileCache {
			p[2] = 0x04 // WCE
		}
	case pageControl:
		p[2] = 0x02 // GLTSD: no log parameters are saved; D_SENSE 0: fixed format sense
		p[3] = 0x10 // unrestricted reordering: calls of a Disk have no order among each other
		if g.ReadOnly {
			p[4] = 0x08 // SWP
		}
		p[8], p[9] = 0xff, 0xff // BUSY TIMEOUT PERIOD: unlimited
	case pageExceptions:
		p[2] = 0x08 // DEXCPT: failures are reported where they happen
	}
	return b
}

// appendBlockDescriptor encodes the short or (LLBAA) the long block descriptor.
func appendBlockDescriptor(b []byte, g Geometry, long bool) []byte {
	if long {
		b = binary.BigEndian.AppendUint64(b, g.Blocks)
		b = append(b, 0, 0, 0, 0)
		return binary.BigEndian.AppendUint32(b, g.BlockSize)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(min(g.Blocks, 0xffffffff)))
	return binary.BigEndian.AppendUint32(b, g.BlockSize) // DENSITY CODE or reserved byte 0, then 24 bits
}

// modeSense is MODE SENSE (6) and (10) (SPC-4 6.13, 6.14).
func (u *Unit) modeSense(c *Command) {
	ten := c.CDB[0] == 0x5a
	const (
		current, changeable, defaults, saved = 0, 1, 2, 3
	)
	control, page, subpage := c.CDB[2]>>6, c.CDB[2]&0x3f, c.CDB[3]
	if control == saved {
		c.illegal(codeSavingNotSupported)
		return
	}
	if subpage != 0 && subpage != subpageAll {
		c.badField(3, 7)
		return
	}
	allocation := uint64(c.CDB[4])
	header := 4
	if ten {
		allocation, header = uint64(c.u16(7)), 8
	}
	b := append(c.inBuf[:0], make([]byte, header)...)
	descriptor := 0
	if c.CDB[1]&0x08 == 0 { // DBD
		b = appendBlockDescriptor(b, c.geo, ten && c.CDB[1]&0x10 != 0)
		descriptor = len(b) - header
	}
	found := false
	for _, p := range modePages {
		if page == p || page == pageAll {
			b = appendModePage(b, p, c.geo, control == changeable)
			found = true
		}
	}
	if !found {
		c.badField(2, 5)
		return
	}
	parameter := byte(0x10) // DPOFUA
	if c.geo.ReadOnly {
		parameter |= 0x80 // WP
	}
	if ten {
		binary.BigEndian.PutUint16(b, uint16(len(b)-2))
		b[3] = parameter
		if descriptor == 16 {
			b[4] = 0x01 // LONGLBA
		}
		binary.BigEndian.PutUint16(b[6:], uint16(descriptor))
	} else {
		b[0] = byte(len(b) - 1)
		b[2] = parameter
		b[3] = byte(descriptor)
	}
	c.answer(b, allocation)
}

// prepareModeSelect asks for the parameter list.
func (u *Unit) prepareModeSelect(c *Command) {
	if c.CDB[1]&0x01 != 0 { // SP: nothing can be saved
		c.badField(1, 0)
		return
	}
	c.WantOut = uint64(c.CDB[4])
	if c.CDB[0] == 0x55 {
		c.WantOut = uint64(c.u16(7))
	}
}

// modeSelect accepts a parameter list that changes nothing and refuses every other.
func (u *Unit) modeSelect(c *Command) {
	u.checkModeList(c, c.outBuf)
	c.finish()
}

func (u *Unit) checkModeList(c *Command, list []byte) {
	header := 4
	if c.CDB[0] == 0x55 {
		header = 8
	}
	if len(list) == 0 {
		return
	}
	if len(list) < header {
		c.illegal(codeParameterListLength)
		return
	}
	descriptor, long := int(list[3]), false
	if header == 8 {
		descriptor, long = int(binary.BigEndian.Uint16(list[6:])), list[4]&1 != 0
	}
	at := header
	if descriptor != 0 {
		want := appendBlockDescriptor(nil, c.geo, long)
		switch {
		case descriptor != len(want):
			c.badParameter(3)
			return
		case len(list) < at+descriptor:
			c.illegal(codeParameterListLength)
			return
		}
		// A number of blocks of 0 or all ones means "as it is".
		got, size := list[at:at+descriptor], 4
		if long {
			size = 8
		}
		zero, ones := make([]byte, size), bytes.Repeat([]byte{0xff}, size)
		if !bytes.Equal(got[size:], want[size:]) ||
			!bytes.Equal(got[:size], want[:size]) && !bytes.Equal(got[:size], zero) && !bytes.Equal(got[:size], ones) {
			c.badParameter(at)
			return
		}
		at += descriptor
	}
	for at < len(list) {
		page := list[at] & 0x3f
		if bytes.IndexByte(modePages, page) < 0 || list[at]&0x40 != 0 {
			c.badParameter(at)
			return
		}
		want := appendModePage(nil, page, c.geo, false)
		if len(list)-at < len(want) {
			c.illegal(codeParameterListLength)
			return
		}
		for i := 1; i < len(want); i++ {
			if list[at+i] != want[i] {
				c.badParameter(at + i)
				return
			}
		}
		at += len(want)
	}
}

// startStop accepts what changes nothing (SBC-3 5.25): the medium is always there and the unit always
// active; stopping a disk that others use as well has no meaning.
func (u *Unit) startStop(c *Command) {
	const loadEject, start = 0x02, 0x01
	switch condition := c.CDB[4] >> 4; condition {
	case 0x0:
		if c.CDB[4]&loadEject != 0 && c.CDB[4]&start == 0 {
			c.badField(4, 1)
		}
	case 0x1, 0x7: // ACTIVE, LU_CONTROL
	default:
		c.badField(4, 7)
	}
}
