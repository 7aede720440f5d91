package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// What the format fixes. docs/format.md, "Record".
const (
	RecordVersion    = 1
	RecordHeaderSize = 128
	BlockSize        = 4096
	Alignment        = 8           // records start at multiples of it
	RecordBodyMax    = 2 << 20     // hard limit of a body, stored or logical
	BlocksMax        = 1 << 48     // of a volume: 1 EiB
	recordMagic      = 0x435A_4F44 // "DOZC" read as little-endian
)

// RecordBodyGoal is the largest body that we make ourselves: 1 MiB keeps a record well within one frame.
const RecordBodyGoal = 1 << 20

// Kind says what a record does. Readers refuse kinds they don't know: history can't be replayed around them.
type Kind uint8

// Kinds of records. Numbers are part of the format.
const (
	KindEpochStart  Kind = 1  // body: EpochStartBody
	KindWrite       Kind = 2  // body: Count blocks from Block on
	KindTrim        Kind = 3  // no body: Count blocks from Block on read as zeroes and take no space
	KindCheckpoint  Kind = 4  // body: CheckpointBody (R12)
	KindPermit      Kind = 5  // body: replicas that may be dropped (R13)
	KindRetire      Kind = 6  // body: segments no longer needed (R13)
	KindRelocate    Kind = 7  // body: recipe (R15)
	KindPin         Kind = 8  // body: segments that a dependent needs (R13)
	KindAttach      Kind = 9  // body: an attachment of a port (R11)
	KindReservation Kind = 10 // body: a change of reservations (R7)
	KindMetadata    Kind = 11 // body: a batch of a share's namespace
	KindBarrier     Kind = 12 // body: a point that several journals share
	KindConfirm     Kind = 13 // body: request IDs whose answers the forwarder has (R9)
	KindPart        Kind = 14 // in checkpoint segments only: body is a part of a checkpoint
	KindCopy        Kind = 15 // body: from which block on. Count blocks from Block on become what those were right before
	kindMax         Kind = 15
)

var kindNames = [...]string{"?", "epoch-start", "write", "trim", "checkpoint", "permit", "retire", "relocate", "pin",
	"attach", "reservation", "metadata", "barrier", "confirm", "part", "copy"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Codec says how a body is stored. Only CodecNone is written today; the others have their number so that
// older readers can name what they refuse.
type Codec uint16

// Codecs of a body.
const (
	CodecNone Codec = 0
	CodecZstd Codec = 1
)

// RequestID names a client's request for R9: who forwarded it and which it was. Zero where there is none.
type RequestID struct {
	Forwarder uint64 // random per start of an access server
	Number    uint64
}

// Record is the header of one entry of a journal. The body's CRCs and the body follow it (see Layout).
//
// The fields from Journal to BodyDigest are the chained part: Hash covers them and the hash before. How the
// body is stored (Codec, KeyID, StoredLen, the CRC array) is outside of it, so a body may be compressed,
// encrypted or rebuilt without breaking the chain (R1).
type Record struct {
	Codec     Codec
	KeyID     uint32 // 0: not encrypted
	StoredLen uint32 // bytes of the body as stored

	Kind       Kind
	Part       uint8 // which part of a request that became several records
	Journal    ident.JournalID
	Epoch      ident.Epoch // in which the record was made
	Seq        ident.Seq
	Block      uint64 // first block of the volume; 0 where it has no meaning
	Count      uint32 // blocks; for a write LogicalLen/4096
	LogicalLen uint32 // bytes of the body before Codec
	Request    RequestID
	BodyDigest uint64 // DigestCRCs of the logical body; 0 for no body
	Time       int64  // when the record got its place, nanoseconds since 1970 by its owner's clock; 0: not known. For people

	Hash ident.Hash // the chain after this record
}

// Position is the point of history right after the record.
func (r *Record) Position() ident.Position {
	return ident.Position{Epoch: r.Epoch, Seq: r.Seq, Hash: r.Hash}
}

// CRCCount is the number of CRC-32C words between header and body: one for every 4,096 stored bytes or part
// of them.
func CRCCount(storedLen uint32) int { return int((storedLen + BlockSize - 1) / BlockSize) }

// BodyOffset is where the body starts, counted from the record's header.
func BodyOffset(storedLen uint32) int {
	return RecordHeaderSize + (4*CRCCount(storedLen)+Alignment-1)&^(Alignment-1)
}

// RecordSize is what the record takes in a segment: header, CRC array, body, each padded with zeroes to 8.
func RecordSize(storedLen uint32) int {
	return BodyOffset(storedLen) + (int(storedLen)+Alignment-1)&^(Alignment-1)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC is CRC-32C (Castagnoli), the checksum of everything on disk.
func CRC(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// PutCRCs writes the CRC array of body to dst, which has 4*CRCCount(len(body)) bytes or more.
func PutCRCs(dst, body []byte) {
	for i := 0; len(body) > 0; i++ {
		n := min(BlockSize, len(body))
		binary.LittleEndian.PutUint32(dst[4*i:], CRC(body[:n]))
		body = body[n:]
	}
}

// DigestCRCs is the digest of a body whose CRC array (of its logical bytes) is given: the first 8 bytes of
// SHA-256 over the array. No array, no body: 0.
func DigestCRCs(crcs []byte) uint64 {
	if len(crcs) == 0 {
		return 0
	}
	sum := sha256.Sum256(crcs)
	return binary.LittleEndian.Uint64(sum[:])
}

// chainedFrom is where the chained part starts in the header, chainedTo where it ends: the hash itself
// follows.
const (
	chainedFrom = 24
	chainedTo   = 112
)

// ChainHash gives the chain after a record: SHA-256, truncated to 128 bits, over the hash before and the
// chained part of the encoded header.
func ChainHash(before ident.Hash, header []byte) (h ident.Hash) {
	var in [16 + chainedTo - chainedFrom]byte
	copy(in[:], before[:])
	copy(in[16:], header[chainedFrom:chainedTo])
	sum := sha256.Sum256(in[:])
	copy(h[:], sum[:])
	return h
}

// Encode writes the header into dst[:RecordHeaderSize] and sets r.Hash to the chain after before. The CRC
// array has to stand behind the header already: the header's own CRC covers it.
func (r *Record) Encode(dst []byte, before ident.Hash) {
	le := binary.LittleEndian
	le.PutUint32(dst[0:], recordMagic)
	le.PutUint16(dst[8:], RecordVersion)
	le.PutUint16(dst[10:], uint16(r.Codec))
	le.PutUint32(dst[12:], r.KeyID)
	le.PutUint32(dst[16:], r.StoredLen)
	le.PutUint32(dst[20:], 0)
	dst[24] = byte(r.Kind)
	dst[25] = r.Part
	le.PutUint16(dst[26:], 0)
	le.PutUint32(dst[28:], r.Epoch.Lineage)
	copy(dst[32:48], r.Journal[:])
	le.PutUint64(dst[48:], uint64(r.Seq))
	le.PutUint64(dst[56:], r.Epoch.Number)
	le.PutUint64(dst[64:], r.Block)
	le.PutUint32(dst[72:], r.Count)
	le.PutUint32(dst[76:], r.LogicalLen)
	le.PutUint64(dst[80:], r.Request.Forwarder)
	le.PutUint64(dst[88:], r.Request.Number)
	le.PutUint64(dst[96:], r.BodyDigest)
	le.PutUint64(dst[104:], uint64(r.Time))
	r.Hash = ChainHash(before, dst)
	copy(dst[112:128], r.Hash[:])
	le.PutUint32(dst[4:], CRC(dst[8:RecordHeaderSize+4*CRCCount(r.StoredLen)]))
}

// AppendRecord appends the whole record with its stored body to dst. It sets StoredLen, LogicalLen (unless a
// codec is named) and BodyDigest. Paths that carry I/O build the record in place instead.
func (r *Record) AppendRecord(dst []byte, before ident.Hash, body []byte) []byte {
	r.StoredLen = uint32(len(body))
	at := len(dst)
	dst = append(dst, make([]byte, RecordSize(r.StoredLen))...)
	rec := dst[at:]
	crcs := rec[RecordHeaderSize : RecordHeaderSize+4*CRCCount(r.StoredLen)]
	PutCRCs(crcs, body)
	if r.Codec == CodecNone {
		r.LogicalLen = r.StoredLen
		r.BodyDigest = DigestCRCs(crcs)
	}
	copy(rec[BodyOffset(r.StoredLen):], body)
	r.Encode(rec, before)
	return dst
}

// A CorruptionError says which bytes are not what they must be.
type CorruptionError struct {
	Offset int64 // within the segment or file, -1 where not known
	Detail string
}

func (e *CorruptionError) Error() string {
	if e.Offset < 0 {
		return "corrupt: " + e.Detail
	}
	return fmt.Sprintf("corrupt at offset %d: %s", e.Offset, e.Detail)
}

// Is has errors.Is say wire.ErrCorrupt of it: where bytes were looked at, by their store or by who read them, makes no
// difference to what is done about it.
func (e *CorruptionError) Is(target error) bool { return target == wire.ErrCorrupt }

func corrupt(format string, args ...any) error {
	return &CorruptionError{Offset: -1, Detail: fmt.Sprintf(format, args...)}
}

// A VersionError says that bytes are of a version which this program doesn't read.
type VersionError struct {
	What string
	Got  uint32
	Want uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s of format version %d; this dozo reads up to %d: use a newer one", e.What, e.Got, e.Want)
}

// HeadLen gives the bytes of header plus CRC array when the first RecordHeaderSize bytes are known, or an
// error if they can't be a record's. Nothing is verified but the limits.
func HeadLen(b []byte) (head int, err error) {
	le := binary.LittleEndian
	if len(b) < RecordHeaderSize {
		return 0, corrupt("%d bytes where a record header of %d should be", len(b), RecordHeaderSize)
	}
	if m := le.Uint32(b); m != recordMagic {
		return 0, corrupt("record magic %08x", m)
	}
	if v := le.Uint16(b[8:]); v != RecordVersion {
		return 0, &VersionError{"record", uint32(v), RecordVersion}
	}
	stored := le.Uint32(b[16:])
	if stored > RecordBodyMax {
		return 0, corrupt("stored length %d above the limit of %d", stored, RecordBodyMax)
	}
	return RecordHeaderSize + 4*CRCCount(stored), nil
}

// Decode reads a header and verifies it together with the CRC array behind it; b has both (HeadLen bytes) or
// more. The body is not looked at (VerifyBody does that), nor the chain (VerifyChain).
func (r *Record) Decode(b []byte) error {
	head, err := HeadLen(b)
	if err != nil {
		return err
	}
	if len(b) < head {
		return corrupt("%d bytes where a header with its CRC array takes %d", len(b), head)
	}
	le := binary.LittleEndian
	if got, want := CRC(b[8:head]), le.Uint32(b[4:]); got != want {
		return corrupt("record header CRC %08x, computed %08x", want, got)
	}
	*r = Record{
		Codec: Codec(le.Uint16(b[10:])), KeyID: le.Uint32(b[12:]), StoredLen: le.Uint32(b[16:]),
		Kind: Kind(b[24]), Part: b[25],
		Epoch: ident.Epoch{Number: le.Uint64(b[56:]), Lineage: le.Uint32(b[28:])},
		Seq:   ident.Seq(le.Uint64(b[48:])),
		Block: le.Uint64(b[64:]), Count: le.Uint32(b[72:]), LogicalLen: le.Uint32(b[76:]),
		Request:    RequestID{le.Uint64(b[80:]), le.Uint64(b[88:])},
		BodyDigest: le.Uint64(b[96:]), Time: int64(le.Uint64(b[104:])),
	}
	copy(r.Journal[:], b[32:48])
	copy(r.Hash[:], b[112:128])
	return r.check(le.Uint32(b[20:]) | uint32(le.Uint16(b[26:])))
}

// check holds what must be true of any valid header, whoever wrote it.
func (r *Record) check(reserved uint32) error {
	switch {
	case reserved != 0:
		return corrupt("reserved bytes of a record header are not zero")
	case r.Kind == 0 || r.Kind > kindMax:
		return &VersionError{"record kind", uint32(r.Kind), uint32(kindMax)}
	case r.Codec > CodecZstd:
		return &VersionError{"record codec", uint32(r.Codec), uint32(CodecZstd)}
	case r.LogicalLen > RecordBodyMax:
		return corrupt("logical length %d above the limit of %d", r.LogicalLen, RecordBodyMax)
	case r.Codec == CodecNone && r.KeyID == 0 && r.StoredLen != r.LogicalLen:
		return corrupt("stored length %d and logical length %d without a codec", r.StoredLen, r.LogicalLen)
	case r.Seq == 0:
		return corrupt("seq 0")
	case r.Kind == KindWrite && (r.LogicalLen == 0 || r.LogicalLen != r.Count*BlockSize || r.Count > RecordBodyMax/BlockSize):
		return corrupt("write of %d blocks with %d bytes", r.Count, r.LogicalLen)
	case r.Kind == KindTrim && (r.LogicalLen != 0 || r.Count == 0):
		return corrupt("trim of %d blocks with %d bytes", r.Count, r.LogicalLen)
	case r.Kind == KindCopy && (r.LogicalLen != copySize || r.Count == 0 || r.Count > CopyBlocksMax):
		return corrupt("copy of %d blocks with %d bytes", r.Count, r.LogicalLen)
	case r.Block+uint64(r.Count) < r.Block || r.Block+uint64(r.Count) > BlocksMax:
		return corrupt("blocks %d+%d are beyond any volume", r.Block, r.Count)
	}
	return nil
}

// VerifyChain checks that the record follows before.
func (r *Record) VerifyChain(before ident.Position, header []byte) error {
	if r.Seq != before.Seq+1 {
		return corrupt("seq %d after %d", r.Seq, before.Seq)
	}
	if r.Epoch.Less(before.Epoch) {
		return corrupt("epoch %s after %s at seq %d", r.Epoch, before.Epoch, r.Seq)
	}
	if h := ChainHash(before.Hash, header); h != r.Hash {
		return corrupt("hash chain broken at seq %d: %s, computed %s", r.Seq, r.Hash, h)
	}
	return nil
}

// VerifyBody checks the stored body against the CRC array; rec is the whole record. It returns the index of
// the first bad block in the error.
func (r *Record) VerifyBody(rec []byte) error {
	if len(rec) < RecordSize(r.StoredLen) {
		return corrupt("record of seq %d cut off: %d of %d bytes", r.Seq, len(rec), RecordSize(r.StoredLen))
	}
	body := rec[BodyOffset(r.StoredLen):][:r.StoredLen]
	if i := VerifyBlocks(rec[RecordHeaderSize:], body); i >= 0 {
		return corrupt("CRC of body block %d of seq %d", i, r.Seq)
	}
	if r.Codec == CodecNone && r.KeyID == 0 {
		if d := DigestCRCs(rec[RecordHeaderSize : RecordHeaderSize+4*CRCCount(r.StoredLen)]); d != r.BodyDigest {
			return corrupt("body digest of seq %d: %016x, computed %016x", r.Seq, r.BodyDigest, d)
		}
	}
	return nil
}

// VerifyBlocks compares stored blocks with their part of a CRC array and returns the index of the first that
// doesn't match, or -1.
func VerifyBlocks(crcs, stored []byte) int {
	for i := 0; len(stored) > 0; i++ {
		n := min(BlockSize, len(stored))
		if CRC(stored[:n]) != binary.LittleEndian.Uint32(crcs[4*i:]) {
			return i
		}
		stored = stored[n:]
	}
	return -1
}
