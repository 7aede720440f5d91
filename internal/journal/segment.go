package journal

import (
	"encoding/binary"
	"errors"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// What the format fixes. docs/format.md, "Segment".
const (
	SegmentVersion    = 1
	SegmentHeaderSize = 4096
	IndexEntrySize    = 24
	TrailerSize       = 64
	segmentMagic      = 0x5347_5A44 // "DZGS"
	indexMagic        = 0x5849_5A44 // "DZIX"
)

// SegmentCapacityMax bounds a segment so that an offset/8 fits the 23 bits that the map has for it.
const SegmentCapacityMax = 64 << 20

// SegmentCapacityGoal is the size at which a segment is sealed: 32 MiB, large enough for a disk to stream,
// small enough to copy in a blink.
const SegmentCapacityGoal = 32 << 20

// The first segments of an epoch are smaller: room is set aside for all of an open segment, and most of thousands of
// volumes that were just taken over, or just made, are not written to. Both have room for the largest record.
const (
	capacityFirst  = 4 << 20
	capacitySecond = 16 << 20
)

// CapacityOf is how large a segment of the history becomes where most are as large as goal.
func CapacityOf(id ident.SegmentID, goal uint32) uint32 {
	switch {
	case id.IsCheckpoint():
		return goal
	case id.Number == 0:
		return min(goal, capacityFirst)
	case id.Number == 1:
		return min(goal, capacitySecond)
	}
	return goal
}

// CapacityOfCopy is how large a copy may become of a segment that has so many records, which end at end, where most segments
// are as large as goal: with room for the index, which is three sixteenths of the records of a segment of trims, and never more than a store opens.
func CapacityOfCopy(end uint32, records uint64, goal uint32) uint32 {
	const most = SegmentCapacityMax / RecordHeaderSize
	return min(max(goal, end+uint32(IndexSize(int(min(records, most))))), SegmentCapacityMax)
}

// JournalKind says which state machine a journal drives.
type JournalKind uint8

// Kinds of journals.
const (
	JournalVolume JournalKind = 1
	JournalShare  JournalKind = 2
	JournalTape   JournalKind = 3
)

// SegmentHeader is the first 4,096 bytes of a segment: made by the owner, the same in every replica.
type SegmentHeader struct {
	Segment  ident.SegmentID
	Kind     JournalKind
	Before   ident.Position  // before the first record
	Start    wire.EpochStart // of the segment's epoch; zero while it isn't committed yet
	Point    CheckpointPoint // the newest announced checkpoint; zero if there is none (R12)
	Boundary ident.Position  // first segment of an epoch: where the history of older epochs was cut (recovered end)
}

// CheckpointPoint names a checkpoint: what it covers and where its root lies.
type CheckpointPoint struct {
	At      ident.Position  // the last record that it covers
	Segment ident.SegmentID // of the root record
	Offset  uint32          // of the root record
	Digest  uint64          // Record.BodyDigest of the root record
}

const (
	positionSize        = 36
	segmentIDSize       = 34
	checkpointPointSize = positionSize + segmentIDSize + 4 + 8
	epochStartSize      = 2*positionSize + 1
)

func appendPosition(b []byte, p ident.Position) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, p.Epoch.Number)
	b = le.AppendUint32(b, p.Epoch.Lineage)
	b = le.AppendUint64(b, uint64(p.Seq))
	return append(b, p.Hash[:]...)
}

func decodePosition(b []byte) (p ident.Position) {
	le := binary.LittleEndian
	p.Epoch = ident.Epoch{Number: le.Uint64(b), Lineage: le.Uint32(b[8:])}
	p.Seq = ident.Seq(le.Uint64(b[12:]))
	copy(p.Hash[:], b[20:36])
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

func decodeSegmentID(b []byte) (s ident.SegmentID) {
	le := binary.LittleEndian
	copy(s.Journal[:], b)
	s.Epoch = ident.Epoch{Number: le.Uint64(b[16:]), Lineage: le.Uint32(b[24:])}
	s.Number = le.Uint32(b[28:])
	s.Site = ident.SiteID(le.Uint16(b[32:]))
	return s
}

func appendEpochStart(b []byte, s wire.EpochStart) []byte {
	b = appendPosition(b, s.At)
	b = appendPosition(b, s.Before)
	if s.Proven {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeEpochStart(b []byte) (s wire.EpochStart, err error) {
	s.At, s.Before = decodePosition(b), decodePosition(b[positionSize:])
	switch b[2*positionSize] {
	case 0, 1:
		s.Proven = b[2*positionSize] == 1
		return s, nil
	}
	return s, corrupt("epoch start: proven is %d", b[2*positionSize])
}

func appendCheckpointPoint(b []byte, p CheckpointPoint) []byte {
	b = appendPosition(b, p.At)
	b = appendSegmentID(b, p.Segment)
	b = binary.LittleEndian.AppendUint32(b, p.Offset)
	return binary.LittleEndian.AppendUint64(b, p.Digest)
}

func decodeCheckpointPoint(b []byte) (p CheckpointPoint) {
	p.At = decodePosition(b)
	b = b[positionSize:]
	p.Segment = decodeSegmentID(b)
	b = b[segmentIDSize:]
	p.Offset = binary.LittleEndian.Uint32(b)
	p.Digest = binary.LittleEndian.Uint64(b[4:])
	return p
}

// AppendSegmentHeader appends the 4,096 bytes of h.
func AppendSegmentHeader(dst []byte, h SegmentHeader) []byte {
	at := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, segmentMagic)
	dst = le.AppendUint32(dst, 0) // CRC, below
	dst = le.AppendUint16(dst, SegmentVersion)
	dst = append(dst, byte(h.Kind), 0)
	dst = appendSegmentID(dst, h.Segment)
	dst = appendPosition(dst, h.Before)
	dst = appendEpochStart(dst, h.Start)
	dst = appendCheckpointPoint(dst, h.Point)
	dst = appendPosition(dst, h.Boundary)
	dst = append(dst, make([]byte, SegmentHeaderSize-(len(dst)-at))...)
	le.PutUint32(dst[at+4:], CRC(dst[at+8:]))
	return dst
}

// segmentHeaderUsed is where the fields end; zeroes follow to SegmentHeaderSize.
const segmentHeaderUsed = 12 + segmentIDSize + 2*positionSize + epochStartSize + checkpointPointSize

// DecodeSegmentHeader reads and verifies a segment header.
func DecodeSegmentHeader(b []byte) (h SegmentHeader, err error) {
	if len(b) < SegmentHeaderSize {
		return h, corrupt("%d bytes where a segment header of %d should be", len(b), SegmentHeaderSize)
	}
	b = b[:SegmentHeaderSize]
	le := binary.LittleEndian
	if m := le.Uint32(b); m != segmentMagic {
		return h, corrupt("segment magic %08x", m)
	}
	if v := le.Uint16(b[8:]); v != SegmentVersion {
		return h, &VersionError{"segment", uint32(v), SegmentVersion}
	}
	if got, want := CRC(b[8:]), le.Uint32(b[4:]); got != want {
		return h, corrupt("segment header CRC %08x, computed %08x", want, got)
	}
	h.Kind = JournalKind(b[10])
	if h.Kind < JournalVolume || h.Kind > JournalTape {
		return h, &VersionError{"journal kind", uint32(h.Kind), uint32(JournalTape)}
	}
	if b[11] != 0 {
		return h, corrupt("reserved byte of a segment header is not zero")
	}
	p := b[12:]
	h.Segment = decodeSegmentID(p)
	p = p[segmentIDSize:]
	h.Before = decodePosition(p)
	p = p[positionSize:]
	if h.Start, err = decodeEpochStart(p); err != nil {
		return h, err
	}
	p = p[epochStartSize:]
	h.Point = decodeCheckpointPoint(p)
	p = p[checkpointPointSize:]
	h.Boundary = decodePosition(p)
	for _, c := range b[segmentHeaderUsed:] {
		if c != 0 {
			return h, corrupt("reserved bytes of a segment header are not zero")
		}
	}
	return h, nil
}

// IndexEntry is what a replay needs of one record without reading its data.
type IndexEntry struct {
	Offset     uint32 // of the record's header in the segment
	Kind       Kind
	Part       uint8
	Codec      Codec
	Block      uint64
	Count      uint32
	LogicalLen uint32
	StoredLen  uint32
	Requested  bool // the record has a request ID, which a replay has to know (R9)
}

// requestedBit says Requested beside the codec.
const requestedBit = 0x80

// Entry makes the record's index entry; offset is where its header lies.
func (r *Record) Entry(offset uint32) IndexEntry {
	return IndexEntry{Offset: offset, Kind: r.Kind, Part: r.Part, Codec: r.Codec, Block: r.Block, Count: r.Count, LogicalLen: r.LogicalLen, StoredLen: r.StoredLen,
		Requested: r.Request != RequestID{}}
}

// Index is the index of a whole segment. Entry i is the record of seq Before.Seq+1+i.
type Index struct {
	Segment ident.SegmentID
	Before  ident.Position
	Last    ident.Position
	End     uint32 // offset behind the last record: the index itself starts here in a sealed file
	Entries []IndexEntry
}

// indexHeadSize is the fixed part before the entries.
const indexHeadSize = 16 + segmentIDSize + 2*positionSize + 2 + 4

// IndexSize is the encoded size for n records, trailer included.
func IndexSize(n int) int { return indexHeadSize + n*IndexEntrySize + TrailerSize }

// AppendIndex appends the index and the trailer that ends a sealed segment file. It is a pure function of the
// records, so that it is the same in every replica.
func AppendIndex(dst []byte, x *Index) []byte {
	at := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, indexMagic)
	dst = le.AppendUint32(dst, SegmentVersion)
	dst = le.AppendUint64(dst, uint64(len(x.Entries)))
	dst = appendSegmentID(dst, x.Segment)
	dst = append(dst, 0, 0)
	dst = appendPosition(dst, x.Before)
	dst = appendPosition(dst, x.Last)
	dst = le.AppendUint32(dst, x.End)
	for i := range x.Entries {
		e := &x.Entries[i]
		dst = le.AppendUint32(dst, e.Offset/Alignment|uint32(e.Part)<<24)
		codec := byte(e.Codec)
		if e.Requested {
			codec |= requestedBit
		}
		dst = append(dst, byte(e.Kind), codec)
		dst = le.AppendUint16(dst, uint16(e.Block>>32))
		dst = le.AppendUint32(dst, uint32(e.Block))
		dst = le.AppendUint32(dst, e.Count)
		dst = le.AppendUint32(dst, e.LogicalLen)
		dst = le.AppendUint32(dst, e.StoredLen)
	}
	// The trailer: found from the end of the file, it says where the index starts and covers it.
	body := len(dst) - at
	crc := CRC(dst[at:])
	t := len(dst)
	dst = le.AppendUint32(dst, indexMagic)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint32(dst, SegmentVersion)
	dst = le.AppendUint32(dst, x.End)
	dst = le.AppendUint32(dst, uint32(body))
	dst = le.AppendUint32(dst, crc)
	dst = append(dst, make([]byte, TrailerSize-(len(dst)-t))...)
	le.PutUint32(dst[t+4:], CRC(dst[t+8:]))
	return dst
}

// ErrNoIndex says that a file doesn't end in a trailer: it isn't sealed.
var ErrNoIndex = errors.New("no index: the segment is not sealed")

// DecodeTrailer reads the last TrailerSize bytes of a segment file and says where the index lies.
func DecodeTrailer(b []byte) (end, size uint32, err error) {
	le := binary.LittleEndian
	if len(b) != TrailerSize || le.Uint32(b) != indexMagic {
		return 0, 0, ErrNoIndex
	}
	if got, want := CRC(b[8:]), le.Uint32(b[4:]); got != want {
		return 0, 0, corrupt("segment trailer CRC %08x, computed %08x", want, got)
	}
	if v := le.Uint32(b[8:]); v != SegmentVersion {
		return 0, 0, &VersionError{"segment index", v, SegmentVersion}
	}
	return le.Uint32(b[12:]), le.Uint32(b[16:]), nil
}

// DecodeIndex reads what AppendIndex made, trailer included.
func DecodeIndex(b []byte) (*Index, error) {
	if len(b) < IndexSize(0) {
		return nil, corrupt("%d bytes of index", len(b))
	}
	body := b[:len(b)-TrailerSize]
	le := binary.LittleEndian
	end, size, err := DecodeTrailer(b[len(b)-TrailerSize:])
	if err != nil {
		return nil, err
	}
	if int(size) != len(body) {
		return nil, corrupt("index of %d bytes, the trailer says %d", len(body), size)
	}
	if got, want := CRC(body), le.Uint32(b[len(body)+20:]); got != want {
		return nil, corrupt("segment index CRC %08x, computed %08x", want, got)
	}
	if v := le.Uint32(body[4:]); le.Uint32(body) != indexMagic || v != SegmentVersion {
		return nil, &VersionError{"segment index", v, SegmentVersion}
	}
	n := le.Uint64(body[8:])
	if n != uint64(len(body)-indexHeadSize)/IndexEntrySize || int(n)*IndexEntrySize+indexHeadSize != len(body) {
		return nil, corrupt("index of %d entries in %d bytes", n, len(body))
	}
	x := &Index{Segment: decodeSegmentID(body[16:])}
	p := body[16+segmentIDSize+2:]
	x.Before, x.Last = decodePosition(p), decodePosition(p[positionSize:])
	x.End = le.Uint32(p[2*positionSize:])
	if x.End != end || uint64(x.Last.Seq) != uint64(x.Before.Seq)+n {
		return nil, corrupt("index of %d entries from seq %d to %d ending at %d (%d)", n, x.Before.Seq, x.Last.Seq, x.End, end)
	}
	x.Entries = make([]IndexEntry, n)
	for i := range x.Entries {
		q := body[indexHeadSize+i*IndexEntrySize:]
		w := le.Uint32(q)
		e := IndexEntry{Offset: w & 0xffffff * Alignment, Part: uint8(w >> 24), Kind: Kind(q[4]), Codec: Codec(q[5] &^ requestedBit), Requested: q[5]&requestedBit != 0,
			Block: uint64(le.Uint16(q[6:]))<<32 | uint64(le.Uint32(q[8:])),
			Count: le.Uint32(q[12:]), LogicalLen: le.Uint32(q[16:]), StoredLen: le.Uint32(q[20:])}
		if e.Kind == 0 || e.Kind > kindMax {
			return nil, &VersionError{"record kind", uint32(e.Kind), uint32(kindMax)}
		}
		if e.Offset >= x.End || i > 0 && e.Offset <= x.Entries[i-1].Offset {
			return nil, corrupt("index entry %d at offset %d", i, e.Offset)
		}
		x.Entries[i] = e
	}
	return x, nil
}
