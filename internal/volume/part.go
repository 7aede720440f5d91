package volume

import (
	"encoding/binary"
	"fmt"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// PartType says what a part of a checkpoint holds. Numbers are part of the format.
type PartType uint8

// Types of parts, from the leaves of the tree to its root.
const (
	PartLeaf      PartType = 1 // ID: leaf; the mapping of 1,024 blocks
	PartPage      PartType = 2 // ID: page; where its 512 leaves lie
	PartDirectory PartType = 3 // ID: directory; where its 512 pages lie
	PartTable     PartType = 4 // ID: slot/256; segments of the segment table
	PartRequests  PartType = 5 // ID: counted from 0; requests without a confirmed answer
	PartState     PartType = 6 // ID: kind of state; bytes that belong to another package
	PartRoot      PartType = 7 // ID: 0
)

var partNames = [...]string{"?", "leaf", "page", "directory", "table", "requests", "state", "root"}

func (t PartType) String() string {
	if int(t) < len(partNames) {
		return partNames[t]
	}
	return fmt.Sprintf("part type %d", uint8(t))
}

// partVersion is the version of all parts' bodies.
const partVersion = 1

// partIDBits is what a part's ID has in the record's Block field, the type stands above.
const partIDBits = 40

// Part is one part of a checkpoint: it becomes the body of a record of kind journal.KindPart.
type Part struct {
	Number int // of the part in its checkpoint; Placed takes it
	Type   PartType
	ID     uint64
	Body   []byte
}

// Block is what the record's Block field holds.
func (p *Part) Block() uint64 { return uint64(p.Type)<<partIDBits | p.ID }

// Append appends the part's record to dst. The records of a checkpoint segment are a chain of their own from
// the zero position on; before is where it stands, the record's Position where it stands then.
func (p *Part) Append(dst []byte, id ident.JournalID, epoch ident.Epoch, before ident.Position) ([]byte, journal.Record) {
	r := journal.Record{Kind: journal.KindPart, Journal: id, Epoch: epoch, Seq: before.Seq + 1, Block: p.Block()}
	dst = r.AppendRecord(dst, before.Hash, p.Body)
	return dst, r
}

// partSize is what a part takes in its segment.
func partSize(body uint32) int { return journal.RecordSize(body) }

func corrupt(format string, args ...any) error {
	return &journal.CorruptionError{Offset: -1, Detail: fmt.Sprintf(format, args...)}
}

// checkPart holds that a record is the part that was asked for.
func checkPart(id ident.JournalID, r *journal.Record, t PartType, partID, digest uint64) error {
	p := Part{Type: t, ID: partID}
	switch {
	case r.Kind != journal.KindPart:
		return corrupt("%s record where a checkpoint part should be", r.Kind)
	case r.Journal != id:
		return corrupt("checkpoint part of journal %s, not %s", r.Journal, id)
	case r.Block != p.Block():
		return corrupt("checkpoint part %s %d where %s %d should be", PartType(r.Block>>partIDBits), r.Block&(1<<partIDBits-1), t, partID)
	case r.BodyDigest != digest:
		return corrupt("checkpoint part %s %d has digest %016x, its parent says %016x", t, partID, r.BodyDigest, digest)
	}
	return nil
}

// appendHead starts a part's body: type, version and ID again, since the digest covers only the body.
func appendHead(dst []byte, t PartType, id uint64) []byte {
	return binary.AppendUvarint(append(dst, byte(t), partVersion), id)
}

// decoder takes a body apart. After the first error everything it gives is zero.
type decoder struct {
	what PartType
	b    []byte
	err  error
}

// decode opens a part's body.
func decode(t PartType, id uint64, body []byte) *decoder {
	d := &decoder{what: t, b: body}
	if got := PartType(d.u8()); d.err == nil && got != t {
		d.fail("part type is %d", got)
	}
	if v := d.u8(); d.err == nil && v != partVersion {
		d.err = &journal.VersionError{What: "checkpoint part", Got: uint32(v), Want: partVersion}
	}
	if got := d.uvarint(1<<partIDBits - 1); d.err == nil && got != id {
		d.fail("part ID is %d, not %d", got, id)
	}
	return d
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = corrupt("checkpoint %s: %s", d.what, fmt.Sprintf(format, args...))
		d.b = nil
	}
}

func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if len(d.b) < n {
		d.fail("cut off")
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// uvarint takes a number of at most most.
func (d *decoder) uvarint(most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	if v > most {
		d.fail("%d where at most %d can be", v, most)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count takes a number of things of which each takes at least least bytes.
func (d *decoder) count(least int) int {
	return int(d.uvarint(uint64(len(d.b) / least)))
}

// end closes the body.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}

func appendPosition(b []byte, p ident.Position) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, p.Epoch.Number)
	b = le.AppendUint32(b, p.Epoch.Lineage)
	b = le.AppendUint64(b, uint64(p.Seq))
	return append(b, p.Hash[:]...)
}

func (d *decoder) position() (p ident.Position) {
	p.Epoch = ident.Epoch{Number: d.u64(), Lineage: d.u32()}
	p.Seq = ident.Seq(d.u64())
	copy(p.Hash[:], d.take(len(p.Hash)))
	return p
}

func appendSegmentID(b []byte, s ident.SegmentID) []byte {
	le := binary.LittleEndian
	b = append(b, s.Journal[:]...)
	b = le.AppendUint64(b, s.Epoch.Number)
	b = le.AppendUint32(b, s.Epoch.Lineage)
	b = le.AppendUint32(b, s.Number)
	return le.AppendUint16(b, uint16(s.Site))
}

func (d *decoder) segmentID() (s ident.SegmentID) {
	copy(s.Journal[:], d.take(len(s.Journal)))
	s.Epoch = ident.Epoch{Number: d.u64(), Lineage: d.u32()}
	s.Number = d.u32()
	if b := d.take(2); b != nil {
		s.Site = ident.SiteID(binary.LittleEndian.Uint16(b))
	}
	return s
}

const locationLeast = 1 + 1 + 1 + 8

func appendLocation(b []byte, l location) []byte {
	b = binary.AppendUvarint(b, uint64(l.slot))
	b = binary.AppendUvarint(b, uint64(l.offset/journal.Alignment))
	b = binary.AppendUvarint(b, uint64(l.size))
	return binary.LittleEndian.AppendUint64(b, l.digest)
}

func (d *decoder) location() (l location) {
	l.slot = Slot(d.uvarint(slotMax - 1))
	l.offset = uint32(d.uvarint(journal.SegmentCapacityMax/journal.Alignment-1)) * journal.Alignment
	l.size = uint32(d.uvarint(journal.RecordBodyMax))
	l.digest = d.u64()
	if l.slot == 0 {
		d.fail("a part in slot 0")
	}
	return l
}
