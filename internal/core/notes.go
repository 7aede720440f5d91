package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The bytes of the notes log; docs/format.md, "Notes log". A file is a header page and batches; a batch is a
// frame around entries; an entry replaces whatever was noted of its subject before.
const (
	notesVersion    = 2           // 2: replicas have numbers
	notesMagic      = 0x544E_5A44 // "DZNT"
	batchMagic      = 0x424E_5A44 // "DZNB"
	notesHeaderSize = 4096
	batchHeadSize   = 32
	batchPayloadMax = 256 << 10 // of a snapshot's batch; a limit of ours that readers hold to
)

type noteKind uint8

const (
	noteStore      noteKind = 1
	noteJournal    noteKind = 2
	noteReplica    noteKind = 3
	noteGone       noteKind = 4 // the file of a dropped replica is gone
	noteSuperseded noteKind = 5 // last entry of a file: the next generation is valid
)

// States that only the notes know: stateDropped is a replica that a committed record lets go (R13), stateAside one
// of which nothing is believed and whose file is kept for people; the file may still be there under its name.
// stateLost is likewise, but the replica is to be made again: until it is, owners are told that it is damaged, and takers nothing.
const (
	stateDropped wire.ReplicaState = 100
	stateAside   wire.ReplicaState = 101
	stateLost    wire.ReplicaState = 102
)

// storeNote is what the store remembers of itself.
type storeNote struct {
	Boot     ident.BootID // at the last start
	Starts   uint64
	LeaseMax time.Duration // the longest ever configured (R6)
}

// journalNote is what the store remembers of a journal. Commit and Stable lag behind what it was told.
type journalNote struct {
	Journal ident.JournalID
	Fence   ident.Epoch
	Commit  ident.Position
	Stable  ident.Position
}

// replicaNote is what the store remembers of a replica. It is not changed once made: a change is another one.
// Before, Last, End and Start are exact for a sealed replica; for an open one the file says more.
type replicaNote struct {
	Segment   ident.SegmentID
	State     wire.ReplicaState
	Boot      ident.BootID // when it was opened
	Capacity  uint32
	Length    uint32 // of the file once sealed
	End       uint32
	StableEnd uint32 // a lower bound
	Before    ident.Position
	Last      ident.Position
	Start     wire.EpochStart
	Made      uint64 // no other replica of this store has it or had it
	Again     bool   // it is made again in place of one that was lost, and not sealed yet
}

// Sizes of entries, kind and length included.
const (
	entryHead       = 4
	positionSize    = 36
	segmentIDSize   = 34
	epochStartSize  = 2*positionSize + 1
	storeNoteSize   = entryHead + 16 + 8 + 8
	journalNoteSize = entryHead + 16 + 12 + 2*positionSize
	replicaNoteSize = entryHead + segmentIDSize + 1 + 16 + 4*4 + 2*positionSize + epochStartSize + 8 + 1
	goneNoteSize    = entryHead + segmentIDSize
	supersededSize  = entryHead + 8
	batchesReserve  = 4 * (batchHeadSize + replicaNoteSize) // for the last batch of a file
)

var noteSizes = [...]int{noteStore: storeNoteSize, noteJournal: journalNoteSize, noteReplica: replicaNoteSize,
	noteGone: goneNoteSize, noteSuperseded: supersededSize}

func putEntryHead(b []byte, k noteKind, size int) []byte {
	return binary.LittleEndian.AppendUint16(append(b, byte(k), 0), uint16(size-entryHead))
}

func putPosition(b []byte, p ident.Position) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, p.Epoch.Number)
	b = le.AppendUint32(b, p.Epoch.Lineage)
	b = le.AppendUint64(b, uint64(p.Seq))
	return append(b, p.Hash[:]...)
}

func putSegmentID(b []byte, s ident.SegmentID) []byte {
	le := binary.LittleEndian
	b = append(b, s.Journal[:]...)
	b = le.AppendUint64(b, s.Epoch.Number)
	b = le.AppendUint32(b, s.Epoch.Lineage)
	b = le.AppendUint32(b, s.Number)
	return le.AppendUint16(b, uint16(s.Site))
}

func (n *storeNote) append(b []byte) []byte {
	le := binary.LittleEndian
	b = putEntryHead(b, noteStore, storeNoteSize)
	b = append(b, n.Boot[:]...)
	b = le.AppendUint64(b, n.Starts)
	return le.AppendUint64(b, uint64(n.LeaseMax))
}

func (n *journalNote) append(b []byte) []byte {
	le := binary.LittleEndian
	b = putEntryHead(b, noteJournal, journalNoteSize)
	b = append(b, n.Journal[:]...)
	b = le.AppendUint64(b, n.Fence.Number)
	b = le.AppendUint32(b, n.Fence.Lineage)
	b = putPosition(b, n.Commit)
	return putPosition(b, n.Stable)
}

func (n *replicaNote) append(b []byte) []byte {
	le := binary.LittleEndian
	b = putEntryHead(b, noteReplica, replicaNoteSize)
	b = putSegmentID(b, n.Segment)
	b = append(b, byte(n.State))
	b = append(b, n.Boot[:]...)
	b = le.AppendUint32(b, n.Capacity)
	b = le.AppendUint32(b, n.Length)
	b = le.AppendUint32(b, n.End)
	b = le.AppendUint32(b, n.StableEnd)
	b = putPosition(b, n.Before)
	b = putPosition(b, n.Last)
	b = putPosition(b, n.Start.At)
	b = putPosition(b, n.Start.Before)
	b = putBool(b, n.Start.Proven)
	b = le.AppendUint64(b, n.Made)
	return putBool(b, n.Again)
}

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendGone(b []byte, s ident.SegmentID) []byte {
	return putSegmentID(putEntryHead(b, noteGone, goneNoteSize), s)
}

func appendSuperseded(b []byte, next uint64) []byte {
	return binary.LittleEndian.AppendUint64(putEntryHead(b, noteSuperseded, supersededSize), next)
}

// cursor reads fields; a short buffer was excluded by the entry's length.
type cursor struct{ b []byte }

func (c *cursor) take(n int) []byte { b := c.b[:n]; c.b = c.b[n:]; return b }
func (c *cursor) u8() uint8         { return c.take(1)[0] }
func (c *cursor) u16() uint16       { return binary.LittleEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32       { return binary.LittleEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64       { return binary.LittleEndian.Uint64(c.take(8)) }

func (c *cursor) epoch() ident.Epoch { return ident.Epoch{Number: c.u64(), Lineage: c.u32()} }

func (c *cursor) position() (p ident.Position) {
	p.Epoch = c.epoch()
	p.Seq = ident.Seq(c.u64())
	copy(p.Hash[:], c.take(16))
	return p
}

func (c *cursor) segment() (s ident.SegmentID) {
	copy(s.Journal[:], c.take(16))
	s.Epoch = c.epoch()
	s.Number = c.u32()
	s.Site = ident.SiteID(c.u16())
	return s
}

// noteImage is what all notes together say.
type noteImage struct {
	store      storeNote
	journals   map[ident.JournalID]*journalNote
	replicas   map[ident.SegmentID]*replicaNote
	superseded uint64 // the generation that follows, 0: none
}

func newNoteImage() *noteImage {
	return &noteImage{journals: map[ident.JournalID]*journalNote{}, replicas: map[ident.SegmentID]*replicaNote{}}
}

// size is what a snapshot takes, frames included.
func (m *noteImage) size() int64 {
	entries := int64(storeNoteSize + len(m.journals)*journalNoteSize + len(m.replicas)*replicaNoteSize)
	return notesHeaderSize + entries + (entries/(batchPayloadMax-replicaNoteSize)+1)*(batchHeadSize+8)
}

var errNotes = errors.New("notes log is damaged")

// apply takes the entries of one batch's payload.
func (m *noteImage) apply(payload []byte) error {
	for len(payload) > 0 {
		if len(payload) < entryHead {
			return fmt.Errorf("%w: entry cut off", errNotes)
		}
		kind, zero, size := noteKind(payload[0]), payload[1], int(binary.LittleEndian.Uint16(payload[2:]))+entryHead
		if zero != 0 || size > len(payload) {
			return fmt.Errorf("%w: entry of kind %d with %d bytes of %d", errNotes, kind, size, len(payload))
		}
		if kind == 0 || kind > noteSuperseded {
			return &journal.VersionError{What: "note", Got: uint32(kind), Want: uint32(noteSuperseded)}
		}
		if size != noteSizes[kind] {
			return fmt.Errorf("%w: entry of kind %d has %d bytes", errNotes, kind, size)
		}
		c := cursor{payload[entryHead:size]}
		payload = payload[size:]
		switch kind {
		case noteStore:
			copy(m.store.Boot[:], c.take(16))
			m.store.Starts, m.store.LeaseMax = c.u64(), time.Duration(c.u64())
		case noteJournal:
			n := &journalNote{}
			copy(n.Journal[:], c.take(16))
			n.Fence, n.Commit, n.Stable = c.epoch(), c.position(), c.position()
			m.journals[n.Journal] = n
		case noteReplica:
			n := &replicaNote{Segment: c.segment(), State: wire.ReplicaState(c.u8())}
			copy(n.Boot[:], c.take(16))
			n.Capacity, n.Length, n.End, n.StableEnd = c.u32(), c.u32(), c.u32(), c.u32()
			n.Before, n.Last = c.position(), c.position()
			n.Start.At, n.Start.Before = c.position(), c.position()
			proven := c.u8()
			n.Made = c.u64()
			again := c.u8()
			if (n.State < wire.ReplicaOpen || n.State > wire.ReplicaCopy) && (n.State < stateDropped || n.State > stateLost) || proven > 1 || again > 1 {
				return fmt.Errorf("%w: replica %s in state %d", errNotes, n.Segment, n.State)
			}
			n.Start.Proven, n.Again = proven == 1, again == 1
			m.replicas[n.Segment] = n
		case noteGone:
			delete(m.replicas, c.segment())
		case noteSuperseded:
			m.superseded = c.u64()
		}
	}
	return nil
}

// appendBatch frames payload as batch number of a generation. The checksum covers the store's ID, so that
// another store's notes are never taken for ours.
func appendBatch(b []byte, store ident.StoreID, generation, number uint64, payload []byte) []byte {
	le := binary.LittleEndian
	at := len(b)
	b = le.AppendUint32(b, batchMagic)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, generation)
	b = le.AppendUint64(b, number)
	b = le.AppendUint32(b, uint32(len(payload)))
	b = le.AppendUint32(b, 0)
	b = append(b, payload...)
	for len(b)%8 != at%8 {
		b = append(b, 0)
	}
	le.PutUint32(b[at+4:], batchCRC(store, b[at+8:]))
	return b
}

func batchCRC(store ident.StoreID, b []byte) uint32 {
	return journal.CRC(store[:]) ^ journal.CRC(b)
}

// decodeBatch reads the batch at the start of b; ok is false when there is none that is valid.
func decodeBatch(b []byte, store ident.StoreID, generation uint64) (number uint64, payload []byte, size int, ok bool) {
	le := binary.LittleEndian
	if len(b) < batchHeadSize || le.Uint32(b) != batchMagic || le.Uint64(b[8:]) != generation || le.Uint32(b[28:]) != 0 {
		return 0, nil, 0, false
	}
	length := uint64(le.Uint32(b[24:]))
	padded := batchHeadSize + (length+7)&^7
	if padded > uint64(len(b)) || le.Uint32(b[4:]) != batchCRC(store, b[8:padded]) {
		return 0, nil, 0, false
	}
	return le.Uint64(b[16:]), b[batchHeadSize : batchHeadSize+length], int(padded), true
}

// lastGeneration is the highest of which there is a valid batch in a notes file, 0 if there is none.
func lastGeneration(b []byte, store ident.StoreID) (last uint64) {
	for p := notesHeaderSize; p+batchHeadSize <= len(b); p += 8 {
		if g := binary.LittleEndian.Uint64(b[p+8:]); g > last {
			if _, _, _, ok := decodeBatch(b[p:], store, g); ok {
				last = g
			}
		}
	}
	return last
}

// notesHeader is the first page of a notes file.
type notesHeader struct {
	Store      ident.StoreID
	Generation uint64
	Snapshot   uint64 // the snapshot that starts the file ends here: up to it every batch must be valid
}

func (h *notesHeader) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, notesHeaderSize)
	le.PutUint32(b, notesMagic)
	le.PutUint32(b[8:], notesVersion)
	copy(b[16:], h.Store[:])
	le.PutUint64(b[32:], h.Generation)
	le.PutUint64(b[40:], h.Snapshot)
	le.PutUint32(b[4:], journal.CRC(b[8:]))
	return b
}

var errNoNotes = errors.New("no notes here")

func decodeNotesHeader(b []byte) (h notesHeader, err error) {
	le := binary.LittleEndian
	if len(b) < notesHeaderSize || le.Uint32(b) != notesMagic {
		return h, errNoNotes
	}
	b = b[:notesHeaderSize]
	if journal.CRC(b[8:]) != le.Uint32(b[4:]) {
		return h, errNoNotes
	}
	h.Generation = le.Uint64(b[32:])
	if v := le.Uint32(b[8:]); v != notesVersion {
		return h, &journal.VersionError{What: "notes log", Got: v, Want: notesVersion}
	}
	if le.Uint32(b[12:]) != 0 || !allZero(b[48:]) {
		return h, fmt.Errorf("%w: reserved bytes of the header are not zero", errNotes)
	}
	copy(h.Store[:], b[16:])
	h.Snapshot = le.Uint64(b[40:])
	return h, nil
}

// decodeNotes reads a whole notes file. The last batch may be torn: it was never answered. A valid batch
// behind a bad one is damage: fences may be missing, so nothing of the file is believed.
func decodeNotes(b []byte) (h notesHeader, m *noteImage, err error) {
	if h, err = decodeNotesHeader(b); err != nil {
		return h, nil, err
	}
	m = newNoteImage()
	at, next := notesHeaderSize, uint64(1)
	for {
		number, payload, size, ok := decodeBatch(b[at:], h.Store, h.Generation)
		if !ok || number != next {
			break
		}
		if err := m.apply(payload); err != nil {
			return h, nil, err
		}
		at += size
		next++
	}
	if uint64(at) < h.Snapshot {
		return h, nil, fmt.Errorf("%w: generation %d is bad at offset %d, before the end of its snapshot at %d", errNotes, h.Generation, at, h.Snapshot)
	}
	for p := at; p+batchHeadSize <= len(b); p += 8 {
		if number, _, _, ok := decodeBatch(b[p:], h.Store, h.Generation); ok && number > next {
			return h, nil, fmt.Errorf("%w: generation %d is bad at offset %d, before a good batch at %d", errNotes, h.Generation, at, p)
		}
	}
	return h, m, nil
}
