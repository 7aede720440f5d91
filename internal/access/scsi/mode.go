package scsi

import (
	"bytes"
	"encoding/binary"

	"dozo/internal/access/reserve"
)

// Mode pages (SPC-4 7.5, SBC-3 6.5). What can be changed is reserve.Modes: it is shared by all nexuses and part
// of the volume's history. Everything else follows from the disk.
const (
	pageErrorRecovery = 0x01
	pageCaching       = 0x08
	pageControl       = 0x0a
	pageExceptions    = 0x1c
	pageAll           = 0x3f
	subpageExtension  = 0x01 // of pageControl
	subpageThresholds = 0x02 // of pageExceptions: logical block provisioning
	subpageAll        = 0xff
)

// modePage is a page or subpage: its bytes for given parameters, and how to take parameters from bytes.
type modePage struct {
	page, subpage byte
	length        int // of the whole page, header included
	put           func(p []byte, g Geometry, m reserve.Modes)
	get           func(p []byte, m *reserve.Modes)
	changeable    func(p []byte, g Geometry) // the mask of what get looks at
	names         reserve.ModeSet            // what get takes
	unsupported   func(p []byte) int         // nil, or where a value stands that can be changed but not to this; 0: nowhere
}

// Bits of the pages.
const (
	modeLBPERE = 0x80 // error recovery, byte 7
	modeWCE    = 0x04 // caching, byte 2
	modeDSense = 0x04 // control, byte 2
	modeGLTSD  = 0x02
	modeSWP    = 0x08 // control, byte 4
	thresholds = 16   // where the threshold descriptors begin

	// initialPriority is the priority of commands that state none: the middle one (SAM-5 8.7).
	initialPriority = 8
)

var modePages = []modePage{
	{pageErrorRecovery, 0, 12,
		func(p []byte, _ Geometry, m reserve.Modes) { p[7] = flag(m.ReportThresholds, modeLBPERE) },
		func(p []byte, m *reserve.Modes) { m.ReportThresholds = p[7]&modeLBPERE != 0 },
		func(p []byte, _ Geometry) { p[7] = modeLBPERE }, reserve.ModeReportThresholds, nil},
	{pageCaching, 0, 20,
		func(p []byte, g Geometry, m reserve.Modes) { p[2] = flag(!m.CacheOff && !g.AlwaysDurable, modeWCE) },
		func(p []byte, m *reserve.Modes) { m.CacheOff = p[2]&modeWCE == 0 },
		func(p []byte, g Geometry) { p[2] = flag(!g.AlwaysDurable, modeWCE) }, reserve.ModeCacheOff, nil},
	{pageControl, 0, 12,
		func(p []byte, g Geometry, m reserve.Modes) {
			p[2] = modeGLTSD | flag(m.DescriptorSense, modeDSense) // no log parameters are saved
			p[3] = 0x10                                            // unrestricted reordering: calls of a Disk have no order among each other
			p[4] = flag(m.WriteProtect || g.ReadOnly, modeSWP)
			p[8], p[9] = 0xff, 0xff // BUSY TIMEOUT PERIOD: unlimited
		},
		func(p []byte, m *reserve.Modes) {
			m.DescriptorSense, m.WriteProtect = p[2]&modeDSense != 0, p[4]&modeSWP != 0
		},
		func(p []byte, g Geometry) { p[2], p[4] = modeDSense, flag(!g.ReadOnly, modeSWP) },
		reserve.ModeDescriptorSense | reserve.ModeWriteProtect, nil},
	{pageControl, subpageExtension, 32,
		func(p []byte, _ Geometry, _ reserve.Modes) {
			p[4] = 0x01            // IALUAE: states follow the owner by themselves. There is no timestamp (TCMOS, SCSIP)
			p[5] = initialPriority // MAXIMUM SENSE DATA LENGTH 0: as long as it is
		},
		nil, nil, 0, nil},
	{pageExceptions, 0, 12,
		func(p []byte, _ Geometry, _ reserve.Modes) { p[2] = 0x08 }, // DEXCPT: failures are reported where they happen
		nil, nil, 0, nil},
	{pageExceptions, subpageThresholds, thresholds + 16,
		func(p []byte, _ Geometry, m reserve.Modes) {
			const enabled, decreasing, increasing = 0x80, 0x00, 0x01 // THRESHOLD ARMING (SBC-3 table 7)
			p[thresholds] = flag(m.ThresholdAvailable != 0, enabled) | decreasing
			p[thresholds+1] = resourceAvailable
			binary.BigEndian.PutUint32(p[thresholds+4:], m.ThresholdAvailable)
			p[thresholds+8] = flag(m.ThresholdUsed != 0, enabled) | increasing
			p[thresholds+9] = resourceUsed
			binary.BigEndian.PutUint32(p[thresholds+12:], m.ThresholdUsed)
		},
		func(p []byte, m *reserve.Modes) {
			m.ThresholdAvailable, m.ThresholdUsed = 0, 0
			if p[thresholds]&0x80 != 0 {
				m.ThresholdAvailable = binary.BigEndian.Uint32(p[thresholds+4:])
			}
			if p[thresholds+8]&0x80 != 0 {
				m.ThresholdUsed = binary.BigEndian.Uint32(p[thresholds+12:])
			}
		},
		func(p []byte, _ Geometry) {
			for _, at := range []int{thresholds, thresholds + 8} {
				p[at] = 0x80
				copy(p[at+4:], []byte{0xff, 0xff, 0xff, 0xff})
			}
		}, reserve.ModeThresholds,
		func(p []byte) int { // a threshold of nothing is none
			for _, at := range []int{thresholds, thresholds + 8} {
				if p[at]&0x80 != 0 && binary.BigEndian.Uint32(p[at+4:]) == 0 {
					return at + 4
				}
			}
			return 0
		}},
}

// The resources of logical block provisioning (SBC-3 table 106).
const (
	resourceAvailable = 0x01
	resourceUsed      = 0x02
)

func flag(on bool, bits byte) byte {
	if on {
		return bits
	}
	return 0
}

// appendHeader appends an empty page with its header.
func (m *modePage) appendHeader(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, m.length)...)
	if m.subpage != 0 {
		b[at], b[at+1] = m.page|0x40, m.subpage // SPF
		binary.BigEndian.PutUint16(b[at+2:], uint16(m.length-4))
	} else {
		b[at], b[at+1] = m.page, byte(m.length-2)
	}
	return b
}

// append encodes the page as it is with these parameters.
func (m *modePage) append(b []byte, g Geometry, modes reserve.Modes) []byte {
	at := len(b)
	b = m.appendHeader(b)
	m.put(b[at:], g, modes)
	return b
}

// appendMask encodes what can be changed.
func (m *modePage) appendMask(b []byte, g Geometry) []byte {
	at := len(b)
	b = m.appendHeader(b)
	if m.changeable != nil {
		m.changeable(b[at:], g)
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
		savable                              = 0x80 // PS
	)
	control, page, subpage := c.CDB[2]>>6, c.CDB[2]&0x3f, c.CDB[3]
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
	if page == pageAll && subpage != 0 && subpage != subpageAll {
		c.badField(3, 7) // reserved: there are all pages, and all pages with their subpages (SPC-4 table 165)
		return
	}
	state := u.disk.Unit().State
	found := page == 0 && subpage == 0 && control == current // SPC-4 6.13.1: the header and the block descriptor alone
	foundPage := false
	for i := range modePages {
		p := &modePages[i]
		if page != p.page && page != pageAll {
			continue
		}
		foundPage = true
		if subpage != p.subpage && subpage != subpageAll {
			continue
		}
		found = true
		at := len(b)
		switch control {
		case changeable:
			b = p.appendMask(b, c.geo)
		case defaults:
			b = p.append(b, c.geo, reserve.Modes{})
		case saved:
			b = p.append(b, c.geo, state.Saved)
		default:
			b = p.append(b, c.geo, state.Current)
		}
		b[at] |= savable
	}
	switch {
	case found:
	case foundPage:
		c.badField(3, 7)
		return
	default:
		c.badField(2, 5)
		return
	}
	parameter := byte(0x10) // DPOFUA
	if c.geo.ReadOnly || state.Current.WriteProtect {
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
	c.WantOut = uint64(c.CDB[4])
	if c.CDB[0] == 0x55 {
		c.WantOut = uint64(c.u16(7))
	}
}

// modeSelect is MODE SELECT (6) and (10) (SPC-4 6.11, 6.12): all of the list is checked, then all of it takes
// effect, or nothing does. What the list has no pages for is as the owner has it: others may be changing that.
func (u *Unit) modeSelect(c *Command) {
	modes, set, ok := u.checkModeList(c, c.outBuf)
	if !ok {
		c.finish()
		return
	}
	u.change(c, &reserve.Command{Action: reserve.SetModes, Modes: modes, Key: uint64(set), Save: c.CDB[1]&0x01 != 0})
}

// checkModeList says which parameters a list asks for.
func (u *Unit) checkModeList(c *Command, list []byte) (modes reserve.Modes, set reserve.ModeSet, ok bool) {
	modes, set = u.disk.Unit().State.Current, reserve.ModesNamed
	header := 4
	if c.CDB[0] == 0x55 {
		header = 8
	}
	if len(list) == 0 {
		return modes, set, true
	}
	if len(list) < header {
		c.illegal(codeParameterListLength)
		return modes, set, false
	}
	descriptor, long, medium := int(list[3]), false, 1
	if header == 8 {
		descriptor, long, medium = int(binary.BigEndian.Uint16(list[6:])), list[4]&1 != 0, 2
	}
	if list[medium] != 0 { // MEDIUM TYPE: disks have one
		c.badParameter(medium)
		return modes, set, false
	}
	at := header
	if descriptor != 0 {
		want := appendBlockDescriptor(nil, c.geo, long)
		switch {
		case descriptor != len(want):
			c.badParameter(3)
			return modes, set, false
		case len(list) < at+descriptor:
			c.illegal(codeParameterListLength)
			return modes, set, false
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
			return modes, set, false
		}
		at += descriptor
	}
	for at < len(list) {
		page, subpage := list[at]&0x3f, byte(0)
		if list[at]&0x40 != 0 {
			if len(list)-at < 4 {
				c.illegal(codeParameterListLength)
				return modes, set, false
			}
			subpage = list[at+1]
		}
		var p *modePage
		for i := range modePages {
			if modePages[i].page == page && modePages[i].subpage == subpage {
				p = &modePages[i]
			}
		}
		if p == nil {
			c.badParameter(at)
			return modes, set, false
		}
		want, mask := p.append(nil, c.geo, modes), p.appendMask(nil, c.geo)
		if len(list)-at < len(want) {
			c.illegal(codeParameterListLength)
			return modes, set, false
		}
		head := 2
		if subpage != 0 {
			head = 4
		}
		got := list[at : at+len(want)]
		for i := 1; i < len(want); i++ {
			changed := got[i] ^ want[i]
			if i < head && changed != 0 || i >= head && changed&^mask[i] != 0 {
				c.badParameter(at + i)
				return modes, set, false
			}
		}
		if p.unsupported != nil {
			if i := p.unsupported(got); i != 0 {
				c.badParameter(at + i)
				return modes, set, false
			}
		}
		if p.get != nil {
			before, names := modes, p.names
			p.get(got, &modes)
			if c.geo.AlwaysDurable {
				modes.CacheOff, names = before.CacheOff, names&^reserve.ModeCacheOff
			}
			if c.geo.ReadOnly {
				modes.WriteProtect, names = before.WriteProtect, names&^reserve.ModeWriteProtect
			}
			set |= names
		}
		at += len(want)
	}
	return modes, set, true
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
