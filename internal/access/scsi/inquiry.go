package scsi

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// The version descriptors of the standard INQUIRY data: SAM-5, iSCSI, SPC-4 and SBC-3, no version claimed.
var versionDescriptors = []uint16{0x00a0, 0x0960, 0x0460, 0x04c0}

// inquiry answers who is there (SPC-4 6.6).
func (u *Unit) inquiry(c *Command) {
	allocation := uint64(c.u16(3))
	if c.CDB[1]&1 == 0 {
		if c.CDB[2] != 0 {
			c.badField(2, 7)
			return
		}
		c.answer(u.appendStandardInquiry(c.inBuf[:0]), allocation)
		return
	}
	if u.disk == nil {
		c.badField(1, 0)
		return
	}
	for _, p := range vpdPages {
		if p.code == c.CDB[2] {
			b := append(c.inBuf[:0], 0, p.code, 0, 0)
			b = p.append(u, c, b)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
			c.answer(b, allocation)
			return
		}
	}
	c.badField(2, 7)
}

// appendText adds s in a field of n bytes, filled with blanks; what isn't printable ASCII becomes a dot.
func appendText(b []byte, s string, n int) []byte {
	for i := range n {
		ch := byte(' ')
		if i < len(s) {
			if ch = s[i]; ch < 0x20 || ch > 0x7e {
				ch = '.'
			}
		}
		b = append(b, ch)
	}
	return b
}

func (u *Unit) appendStandardInquiry(b []byte) []byte {
	const length = 96
	if u.disk == nil {
		// Qualifier 011b with type 1Fh: nothing can be at this LUN.
		b = append(b, 0x7f, 0, 0x06, 0x12, length-5, 0, 0, 0)
		b = appendText(b, "", 28)
		return append(b, make([]byte, length-36)...)
	}
	id := u.disk.Identity()
	const (
		hierarchical = 0x10 // HISUP
		format       = 0x02
		bothALUA     = 0x30 // TPGS 11b: states change by themselves and by SET TARGET PORT GROUPS
		copying      = 0x08 // 3PC
		multiPort    = 0x10
		queueing     = 0x02 // CMDQUE
	)
	b = append(b, 0x00, 0, 0x06, hierarchical|format, length-5, bothALUA|copying, multiPort, queueing)
	b = appendText(b, id.Vendor, 8)
	b = appendText(b, id.Product, 16)
	b = appendText(b, id.Revision, 4)
	start := len(b) - 36
	b = append(b, make([]byte, 22)...)
	for _, v := range versionDescriptors {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return append(b, make([]byte, length-(len(b)-start))...)
}

// vpdPages are the vital product data pages, ascending. It is filled in by init because page 00h lists them.
var vpdPages []vpdPage

type vpdPage struct {
	code   byte
	append func(*Unit, *Command, []byte) []byte // after the 4-byte header
}

func init() {
	vpdPages = []vpdPage{
		{0x00, (*Unit).vpdSupported},
		{0x80, (*Unit).vpdSerial},
		{0x83, (*Unit).vpdIdentification},
		{0x86, (*Unit).vpdExtendedInquiry},
		{0x87, (*Unit).vpdModePolicy},
		{0x88, (*Unit).vpdPorts},
		{0x8f, (*Unit).vpdThirdPartyCopy},
		{0xb0, (*Unit).vpdBlockLimits},
		{0xb1, (*Unit).vpdCharacteristics},
		{0xb2, (*Unit).vpdProvisioning},
		{0xb7, (*Unit).vpdBlockLimitsExtension},
	}
}

func (u *Unit) vpdSupported(_ *Command, b []byte) []byte {
	for _, p := range vpdPages {
		b = append(b, p.code)
	}
	return b
}

func (u *Unit) vpdSerial(_ *Command, b []byte) []byte {
	id := u.disk.Identity()
	return hex.AppendEncode(b, id.ID[:])
}

// NAA is the disk's locally assigned NAA identifier (NAA 3h, 60 bits of its random ID): the name by which
// multipathing recognizes it.
func (i Identity) NAA() [8]byte {
	var naa [8]byte
	copy(naa[:], i.ID[:8])
	naa[0] = 0x30 | naa[0]&0x0f
	return naa
}

// EUI64 is the disk's EUI-64: the other half of its random ID, marked as locally administered.
func (i Identity) EUI64() [8]byte {
	var eui [8]byte
	copy(eui[:], i.ID[8:])
	eui[0] = eui[0]&^0x01 | 0x02
	return eui
}

// vpdIdentification is page 83h (SPC-4 7.8.6): the logical unit by NAA and T10 vendor ID, the target port by
// its numbers and name, the target device by name.
func (u *Unit) vpdIdentification(_ *Command, b []byte) []byte {
	const (
		binaryCode, ascii  = 0x1, 0x2
		iSCSI              = 0x50 // protocol identifier 5h in the high nibble
		piv                = 0x80
		port, device       = 0x10, 0x20
		typeT10, typeEUI64 = 0x1, 0x2
		typeNAA            = 0x3
		typeRelativePort   = 0x4
		typePortGroup      = 0x5
	)
	id := u.disk.Identity()
	naa := id.NAA()
	b = append(b, binaryCode, typeNAA, 0, byte(len(naa)))
	b = append(b, naa[:]...)
	eui := id.EUI64()
	b = append(b, binaryCode, typeEUI64, 0, byte(len(eui)))
	b = append(b, eui[:]...)
	b = append(b, ascii, typeT10, 0, 8+2*byte(len(id.ID)))
	b = appendText(b, id.Vendor, 8)
	b = hex.AppendEncode(b, id.ID[:])

	number := u.nexus.initiator.Nexus.Port
	b = append(b, iSCSI|binaryCode, piv|port|typeRelativePort, 0, 4, 0, 0)
	b = binary.BigEndian.AppendUint16(b, number)
	if g, ok := u.disk.Paths().GroupOf(number); ok {
		b = append(b, iSCSI|binaryCode, piv|port|typePortGroup, 0, 4, 0, 0)
		b = binary.BigEndian.AppendUint16(b, g.ID)
	}
	b = appendName(b, port, portName(u.nexus.target, number))
	return appendName(b, device, u.nexus.target)
}

// portName is the name of a target port (RFC 7143 4.4.2).
func portName(target string, number uint16) string {
	const hexDigits = "0123456789abcdef"
	return target + ",t,0x" + string([]byte{hexDigits[number>>12], hexDigits[number>>8&15], hexDigits[number>>4&15], hexDigits[number&15]})
}

// appendName adds a designator of the SCSI name string type; it ends in a null and is padded to a multiple of
// four (SPC-4 7.8.6.11).
func appendName(b []byte, association byte, s string) []byte {
	const iSCSI, utf8, piv, typeName = 0x50, 0x3, 0x80, 0x8
	if len(s) > 247 {
		s = s[:247]
	}
	s += strings.Repeat("\x00", 4-len(s)%4)
	b = append(b, iSCSI|utf8, piv|association|typeName, 0, byte(len(s)))
	return append(b, s...)
}

// vpdPorts is page 88h (SPC-4 7.8.14): the target ports of all access servers.
func (u *Unit) vpdPorts(_ *Command, b []byte) []byte {
	const port = 0x10
	for _, g := range u.disk.Paths().Groups {
		for _, p := range g.Ports {
			b = append(b, 0, 0)
			b = binary.BigEndian.AppendUint16(b, p)
			b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // no initiator port's TransportID
			at := len(b)
			b = appendName(b, port, portName(u.nexus.target, p))
			binary.BigEndian.PutUint16(b[at-2:], uint16(len(b)-at))
		}
	}
	return b
}

// vpdExtendedInquiry is page 86h (SPC-4 7.8.7).
func (u *Unit) vpdExtendedInquiry(c *Command, b []byte) []byte {
	page := make([]byte, 60)
	const (
		simple, ordered, headOfQueue = 0x01, 0x02, 0x04 // SIMPSUP, ORDSUP, HEADSUP
		volatileCache                = 0x01             // V_SUP
		luIClear                     = 0x01             // LUICLR: unit attentions are cleared per nexus
	)
	page[1] = simple | ordered | headOfQueue
	if c.geo.VolatileCache {
		page[2] = volatileCache
	}
	page[3] = luIClear
	return append(b, page...)
}

// vpdModePolicy is page 87h (SPC-4 7.8.9): all mode pages are shared by all nexuses.
func (u *Unit) vpdModePolicy(_ *Command, b []byte) []byte {
	return append(b, 0x3f, 0xff, 0x00, 0x00)
}
