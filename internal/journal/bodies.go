package journal

import (
	"encoding/binary"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Bodies of the records that are not data. Each starts with a version so that it can grow; docs/format.md,
// "Bodies".

const bodyVersion = 1

// AppendEpochStart appends the body of an epoch-start record. At is not in it: the record's own position is
// what it says.
func AppendEpochStart(dst []byte, s wire.EpochStart) []byte {
	dst = append(dst, bodyVersion)
	dst = appendPosition(dst, s.Before)
	if s.Proven {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// DecodeEpochStart reads the body of the epoch-start record r.
func DecodeEpochStart(r *Record, b []byte) (s wire.EpochStart, err error) {
	if b, err = body(b, "epoch-start", positionSize+1, positionSize+1); err != nil {
		return s, err
	}
	s.At = r.Position()
	s.Before = decodePosition(b)
	if b[positionSize] > 1 {
		return s, corrupt("epoch-start: proven is %d", b[positionSize])
	}
	s.Proven = b[positionSize] == 1
	return s, nil
}

// AppendCheckpoint appends the body of a record that announces a checkpoint (R12).
func AppendCheckpoint(dst []byte, p CheckpointPoint) []byte {
	return appendCheckpointPoint(append(dst, bodyVersion), p)
}

// DecodeCheckpoint reads the body of a checkpoint record.
func DecodeCheckpoint(b []byte) (p CheckpointPoint, err error) {
	if b, err = body(b, "checkpoint", checkpointPointSize, checkpointPointSize); err != nil {
		return p, err
	}
	return decodeCheckpointPoint(b), nil
}

// Permit allows one replica of a segment to be dropped (R13).
type Permit struct {
	Segment ident.SegmentID
	Store   ident.StoreID   // whose replica may go
	Made    uint64          // which one: the store's number of it
	Replace bool            // it is to be made again there
	Remain  []ident.StoreID // that hold it stably
}

// AppendPermits appends the body of a permit record.
func AppendPermits(dst []byte, permits []Permit) []byte {
	le := binary.LittleEndian
	dst = append(dst, bodyVersion)
	dst = le.AppendUint32(dst, uint32(len(permits)))
	for _, p := range permits {
		dst = appendSegmentID(dst, p.Segment)
		dst = append(dst, p.Store[:]...)
		dst = le.AppendUint64(dst, p.Made)
		if p.Replace {
			dst = append(dst, 1)
		} else {
			dst = append(dst, 0)
		}
		dst = append(dst, byte(len(p.Remain)))
		for _, r := range p.Remain {
			dst = append(dst, r[:]...)
		}
	}
	return dst
}

// DecodePermits reads the body of a permit record.
func DecodePermits(b []byte) ([]Permit, error) {
	b, err := body(b, "permit", 4, RecordBodyMax)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(b)
	b = b[4:]
	const fixed = segmentIDSize + 16 + 8 + 1 + 1
	if uint64(n)*fixed > uint64(len(b)) {
		return nil, corrupt("permit record: %d permits in %d bytes", n, len(b))
	}
	permits := make([]Permit, n)
	for i := range permits {
		if len(b) < fixed {
			return nil, corrupt("permit record cut off at permit %d of %d", i, n)
		}
		p := &permits[i]
		p.Segment = decodeSegmentID(b)
		copy(p.Store[:], b[segmentIDSize:])
		p.Made = binary.LittleEndian.Uint64(b[segmentIDSize+16:])
		if b[segmentIDSize+24] > 1 {
			return nil, corrupt("permit record: replace is %d", b[segmentIDSize+24])
		}
		p.Replace = b[segmentIDSize+24] == 1
		remain := int(b[fixed-1])
		b = b[fixed:]
		if len(b) < 16*remain {
			return nil, corrupt("permit record cut off at permit %d of %d", i, n)
		}
		p.Remain = make([]ident.StoreID, remain)
		for j := range p.Remain {
			copy(p.Remain[j][:], b[16*j:])
		}
		b = b[16*remain:]
	}
	if len(b) != 0 {
		return nil, corrupt("permit record: %d bytes too many", len(b))
	}
	return permits, nil
}

// AppendRetired appends the body of a retire record: segments that nothing needs any more (R13).
func AppendRetired(dst []byte, segments []ident.SegmentID) []byte {
	dst = append(dst, bodyVersion)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(segments)))
	for _, s := range segments {
		dst = appendSegmentID(dst, s)
	}
	return dst
}

// DecodeRetired reads the body of a retire record.
func DecodeRetired(b []byte) ([]ident.SegmentID, error) {
	b, err := body(b, "retire", 4, RecordBodyMax)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(b)
	if b = b[4:]; uint64(n)*segmentIDSize != uint64(len(b)) {
		return nil, corrupt("retire record: %d segments in %d bytes", n, len(b))
	}
	segments := make([]ident.SegmentID, n)
	for i := range segments {
		segments[i] = decodeSegmentID(b[i*segmentIDSize:])
	}
	return segments, nil
}

// CopyBlocksMax bounds the blocks of one copy record: 64 MiB, so that whoever applies it is not held up for long.
const CopyBlocksMax = 16384

// copySize is the size of a copy record's body.
const copySize = 1 + 8

// AppendCopy appends the body of a copy record: the first block that is copied from. Count and the first block that is
// copied to are in the record's header.
func AppendCopy(dst []byte, source uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, bodyVersion), source)
}

// DecodeCopy reads the body of a copy record of count blocks.
func DecodeCopy(b []byte, count uint32) (source uint64, err error) {
	if b, err = body(b, "copy", copySize-1, copySize-1); err != nil {
		return 0, err
	}
	source = binary.LittleEndian.Uint64(b)
	if source > BlocksMax || uint64(count) > BlocksMax-source {
		return 0, corrupt("copy of blocks %d+%d, which are beyond any volume", source, count)
	}
	return source, nil
}

// body strips the version of a body and holds its length to [least, most].
func body(b []byte, what string, least, most int) ([]byte, error) {
	if len(b) == 0 {
		return nil, corrupt("%s record without a body", what)
	}
	if b[0] != bodyVersion {
		return nil, &VersionError{what + " record", uint32(b[0]), bodyVersion}
	}
	if b = b[1:]; len(b) < least || len(b) > most {
		return nil, corrupt("%s record of %d bytes", what, len(b))
	}
	return b, nil
}

// cutsMax is how many cuts are kept apart; beyond that the oldest are taken together.
const cutsMax = 4096

// AppendCuts appends the state "cuts" of a checkpoint: the epoch-starts of the history that were not proven.
// Where there are very many, the oldest two become one that says at least what both did.
func AppendCuts(dst []byte, cuts []wire.EpochStart) []byte {
	for len(cuts) > cutsMax {
		a, b := cuts[0], cuts[1]
		if a.Before.Seq < b.Before.Seq {
			b.Before = a.Before
		}
		cuts = append([]wire.EpochStart{b}, cuts[2:]...)
	}
	dst = append(dst, bodyVersion)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(cuts)))
	for _, c := range cuts {
		dst = appendPosition(appendPosition(dst, c.At), c.Before)
	}
	return dst
}

// DecodeCuts reads what AppendCuts made.
func DecodeCuts(b []byte) ([]wire.EpochStart, error) {
	b, err := body(b, "cuts", 4, 4+cutsMax*2*positionSize)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(b)
	if b = b[4:]; uint64(n)*2*positionSize != uint64(len(b)) {
		return nil, corrupt("%d cuts in %d bytes", n, len(b))
	}
	cuts := make([]wire.EpochStart, n)
	for i := range cuts {
		at := b[2*i*positionSize:]
		cuts[i] = wire.EpochStart{At: decodePosition(at), Before: decodePosition(at[positionSize:])}
	}
	return cuts, nil
}

// PinOp is what a record about pins does.
type PinOp uint8

// PinForget closes the cut that an epoch-start made: what it left behind pins nothing and may go (R13).
const PinForget PinOp = 1

// PinChange is one change of the pins.
type PinChange struct {
	Op    PinOp
	Epoch ident.Epoch // PinForget: of the epoch-start that was not proven
}

const pinChangeSize = 1 + 8 + 4

// AppendPins appends the body of a pin record.
func AppendPins(dst []byte, list []PinChange) []byte {
	le := binary.LittleEndian
	dst = append(dst, bodyVersion)
	dst = le.AppendUint32(dst, uint32(len(list)))
	for _, p := range list {
		dst = append(dst, byte(p.Op))
		dst = le.AppendUint64(dst, p.Epoch.Number)
		dst = le.AppendUint32(dst, p.Epoch.Lineage)
	}
	return dst
}

// DecodePins reads the body of a pin record.
func DecodePins(b []byte) ([]PinChange, error) {
	b, err := body(b, "pin", 4, RecordBodyMax)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	n := le.Uint32(b)
	if b = b[4:]; uint64(n)*pinChangeSize != uint64(len(b)) {
		return nil, corrupt("pin record: %d changes in %d bytes", n, len(b))
	}
	list := make([]PinChange, n)
	for i := range list {
		at := b[i*pinChangeSize:]
		list[i] = PinChange{PinOp(at[0]), ident.Epoch{Number: le.Uint64(at[1:]), Lineage: le.Uint32(at[9:])}}
		if list[i].Op != PinForget {
			return nil, &VersionError{"pin change", uint32(list[i].Op), uint32(PinForget)}
		}
	}
	return list, nil
}
