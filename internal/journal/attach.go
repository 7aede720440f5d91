package journal

import "encoding/binary"

// Attachments of ports (R11): who has been given the volume and may believe to know what is on it. Changes are
// records of kind KindAttach, the attachments as of a checkpoint a state of it. docs/format.md.

// PortProtocol says what an initiator port's name means.
type PortProtocol uint8

// PortISCSI is an iSCSI initiator port: name and ISID.
const PortISCSI PortProtocol = 1

// Port is an initiator port. It is comparable.
type Port struct {
	Protocol PortProtocol
	ISID     [6]byte
	Name     string // at most PortNameMax bytes
}

// PortNameMax is the longest name of an initiator (RFC 7143 4.2.7.1).
const PortNameMax = 223

// PortOp is what a change does.
type PortOp uint8

// Changes of attachments. Numbers are part of the format.
const (
	PortAttach PortOp = 1 // the port has a session by Group
	PortDetach PortOp = 2 // its session by Group has logged out
	PortAccept PortOp = 3 // an operator says that it may go on
	PortBar    PortOp = 4 // it has sent a command by Group and has not logged in by it in this history: it is attached, and gets an error
)

var portOpNames = [...]string{"?", "attach", "detach", "accept", "bar"}

func (o PortOp) String() string {
	if int(o) < len(portOpNames) {
		return portOpNames[o]
	}
	return "?"
}

// PortChange is one change of the attachments.
type PortChange struct {
	Op      PortOp
	Port    Port
	Group   uint16 // target portal group, of attach, detach and bar
	Session uint64 // random per session
}

const portChangeSize = 1 + 1 + 2 + 8 + 6 + 1

// AppendPortChanges appends the body of an attach record.
func AppendPortChanges(dst []byte, changes []PortChange) []byte {
	le := binary.LittleEndian
	dst = append(dst, bodyVersion)
	dst = le.AppendUint32(dst, uint32(len(changes)))
	for i := range changes {
		c := &changes[i]
		dst = append(dst, byte(c.Op), byte(c.Port.Protocol))
		dst = le.AppendUint16(dst, c.Group)
		dst = le.AppendUint64(dst, c.Session)
		dst = append(dst, c.Port.ISID[:]...)
		dst = append(dst, byte(len(c.Port.Name)))
		dst = append(dst, c.Port.Name...)
	}
	return dst
}

// DecodePortChanges reads the body of an attach record.
func DecodePortChanges(b []byte) ([]PortChange, error) {
	b, err := body(b, "attach", 4, RecordBodyMax)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := le.Uint32(b)
	if b = b[4:]; uint64(n)*portChangeSize > uint64(len(b)) {
		return nil, corrupt("attach record: %d changes in %d bytes", n, len(b))
	}
	changes := make([]PortChange, n)
	for i := range changes {
		if len(b) < portChangeSize {
			return nil, corrupt("attach record cut off at change %d of %d", i, n)
		}
		c := &changes[i]
		c.Op, c.Port.Protocol = PortOp(b[0]), PortProtocol(b[1])
		c.Group, c.Session = le.Uint16(b[2:]), le.Uint64(b[4:])
		copy(c.Port.ISID[:], b[12:])
		name := int(b[18])
		b = b[portChangeSize:]
		switch {
		case c.Op == 0 || c.Op > PortBar:
			return nil, &VersionError{"change of an attachment", uint32(c.Op), uint32(PortBar)}
		case c.Port.Protocol != PortISCSI:
			return nil, &VersionError{"protocol of an attachment", uint32(c.Port.Protocol), uint32(PortISCSI)}
		case name > PortNameMax || name > len(b):
			return nil, corrupt("attach record: a name of %d bytes", name)
		}
		c.Port.Name, b = string(b[:name]), b[name:]
	}
	if len(b) != 0 {
		return nil, corrupt("attach record: %d bytes too many", len(b))
	}
	return changes, nil
}

// PortPath is one target portal group by which a port has a session.
type PortPath struct {
	Group   uint16
	Session uint64
}

// PortPathsMax is how many paths of one port are remembered.
const PortPathsMax = 64

// Attachment is a port that was given the volume and has not logged out everywhere.
type Attachment struct {
	Port     Port
	Barred   bool // attached before a takeover that was not proven: it gets an error
	Accepted bool // it was, and an operator has let it go on: by whatever paths it has
	Paths    []PortPath
}

const attachmentSize = 1 + 1 + 6 + 1 + 1

// Size is how many bytes the attachment takes in a checkpoint.
func (a *Attachment) Size() int { return attachmentSize + len(a.Port.Name) + 10*len(a.Paths) }

// AppendAttachments appends the state "attachments" of a checkpoint, in the order of attaching.
func AppendAttachments(dst []byte, list []Attachment) []byte {
	le := binary.LittleEndian
	dst = append(dst, bodyVersion)
	dst = le.AppendUint32(dst, uint32(len(list)))
	for i := range list {
		a := &list[i]
		flags := byte(0)
		if a.Barred {
			flags |= 1
		}
		if a.Accepted {
			flags |= 2
		}
		dst = append(dst, flags, byte(a.Port.Protocol))
		dst = append(dst, a.Port.ISID[:]...)
		dst = append(dst, byte(len(a.Port.Name)), byte(len(a.Paths)))
		dst = append(dst, a.Port.Name...)
		for _, p := range a.Paths {
			dst = le.AppendUint16(dst, p.Group)
			dst = le.AppendUint64(dst, p.Session)
		}
	}
	return dst
}

// DecodeAttachments reads what AppendAttachments made.
func DecodeAttachments(b []byte) ([]Attachment, error) {
	b, err := body(b, "attachments", 4, RecordBodyMax)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := le.Uint32(b)
	if b = b[4:]; uint64(n)*attachmentSize > uint64(len(b)) {
		return nil, corrupt("%d attachments in %d bytes", n, len(b))
	}
	list := make([]Attachment, n)
	seen := make(map[Port]bool, n)
	for i := range list {
		if len(b) < attachmentSize {
			return nil, corrupt("attachments cut off at %d of %d", i, n)
		}
		a := &list[i]
		flags, name, paths := b[0], int(b[8]), int(b[9])
		a.Port.Protocol = PortProtocol(b[1])
		copy(a.Port.ISID[:], b[2:])
		b = b[attachmentSize:]
		switch {
		case flags > 2:
			return nil, corrupt("attachment with flags %02x", flags)
		case a.Port.Protocol != PortISCSI:
			return nil, &VersionError{"protocol of an attachment", uint32(a.Port.Protocol), uint32(PortISCSI)}
		case name > PortNameMax || paths > PortPathsMax || name+10*paths > len(b):
			return nil, corrupt("attachment with a name of %d bytes and %d paths", name, paths)
		}
		a.Barred, a.Accepted = flags == 1, flags == 2
		a.Port.Name, b = string(b[:name]), b[name:]
		for range paths {
			a.Paths = append(a.Paths, PortPath{le.Uint16(b), le.Uint64(b[2:])})
			b = b[10:]
		}
		if seen[a.Port] {
			return nil, corrupt("port %q is attached twice", a.Port.Name)
		}
		seen[a.Port] = true
	}
	if len(b) != 0 {
		return nil, corrupt("attachments: %d bytes too many", len(b))
	}
	return list, nil
}
