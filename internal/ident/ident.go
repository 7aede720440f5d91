// Package ident has the identifiers and positions that every other package speaks of: which journal,
// which segment, which store, and how far a history reaches. It is a leaf: it imports nothing of dozo.
//
// Start at Position. The types are distinct so that two plain integers never stand side by side; all are
// comparable values without pointers, fit to be map keys and to be copied. Text forms are canonical: what
// String gives, Parse takes.
//
// Invariants: a Seq starts at 1 and has no gaps within a journal; 0 means "nothing yet". IDs are random and
// never derived from a clock. How they look in bytes: docs/format.md and docs/wire.md.
package ident

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// JournalID names the history of one volume or share for ever. A volume's ID is its journal's ID and is
// independent of its name.
type JournalID [16]byte

// StoreID names one data directory on one disk; it is made at random with the directory.
type StoreID [16]byte

// BootID is the kernel's boot ID of the host (/proc/sys/kernel/random/boot_id): a new one means that page
// cache was lost.
type BootID [16]byte

// SiteID numbers a site; the control store gives it out once and never again. 0 is no site.
type SiteID uint16

// NodeName is a node's name in the cluster, unique, chosen by the operator.
type NodeName string

// Seq numbers the records of a journal from 1, without gaps.
type Seq uint64

// Hash is the journal's hash chain after some record: SHA-256 truncated to 128 bits.
type Hash [16]byte

// Epoch is a generation of ownership. The number grows by one at each change of owner; the lineage is the
// random number of the control store that gave it out (protocol.md R11).
type Epoch struct {
	Number  uint64
	Lineage uint32
}

// Compare orders epochs by number. Two epochs of one number and different lineages compare equal but are
// not the same: see Conflicts.
func (e Epoch) Compare(o Epoch) int { return cmp.Compare(e.Number, o.Number) }

// Less reports whether e is an older generation than o.
func (e Epoch) Less(o Epoch) bool { return e.Number < o.Number }

// Conflicts reports that e and o are one generation given out by two control stores: neither may be obeyed
// as the other.
func (e Epoch) Conflicts(o Epoch) bool { return e.Number == o.Number && e.Lineage != o.Lineage }

func (e Epoch) String() string {
	if e.Lineage == 0 {
		return strconv.FormatUint(e.Number, 10)
	}
	return fmt.Sprintf("%d.%08x", e.Number, e.Lineage)
}

// Position is a point of a journal's history: the record Seq, made in Epoch, with the chain's Hash after
// it. The zero Position is before the first record.
type Position struct {
	Epoch Epoch
	Seq   Seq
	Hash  Hash
}

func (p Position) String() string { return fmt.Sprintf("%s/%d/%x", p.Epoch, p.Seq, p.Hash[:4]) }

// SegmentID names a segment: the owner's site, the journal, the epoch in which it was opened, and a number
// that the owner counts up within the epoch. Checkpoint segments have CheckpointBit set in their number.
type SegmentID struct {
	Journal JournalID
	Epoch   Epoch
	Number  uint32
	Site    SiteID
}

// CheckpointBit marks the number of a segment that holds parts of checkpoints rather than records of the
// history.
const CheckpointBit = 1 << 31

// ForkBit marks the number under which a store keeps a replica that it has set aside as a fork (R14), so that the
// segment itself may be had there again.
const ForkBit = 1 << 30

// IsFork reports whether the ID is that of a replica which was set aside.
func (s SegmentID) IsFork() bool { return s.Number&ForkBit != 0 }

// Fork is the ID under which a replica of the segment is set aside.
func (s SegmentID) Fork() SegmentID { s.Number |= ForkBit; return s }

// Original is the segment that a replica was of before it was set aside.
func (s SegmentID) Original() SegmentID { s.Number &^= ForkBit; return s }

// IsCheckpoint reports whether the segment holds checkpoint parts.
func (s SegmentID) IsCheckpoint() bool { return s.Number&CheckpointBit != 0 }

// Compare orders segments by journal, epoch, site and number: an order for listings, never the order of
// history (protocol.md, "Simple on purpose").
func (s SegmentID) Compare(o SegmentID) int {
	return cmp.Or(cmp.Compare(string(s.Journal[:]), string(o.Journal[:])), s.Epoch.Compare(o.Epoch),
		cmp.Compare(s.Epoch.Lineage, o.Epoch.Lineage), cmp.Compare(s.Site, o.Site), cmp.Compare(s.Number, o.Number))
}

// String is journal-site-epoch-lineage-number in hexadecimal of fixed width: it is also the file name of
// the segment's replicas.
func (s SegmentID) String() string {
	return fmt.Sprintf("%s-%04x-%016x-%08x-%08x", s.Journal, uint16(s.Site), s.Epoch.Number, s.Epoch.Lineage, s.Number)
}

// ParseSegmentID takes what SegmentID.String gives.
func ParseSegmentID(text string) (SegmentID, error) {
	var s SegmentID
	parts := strings.Split(text, "-")
	if len(parts) != 5 || len(parts[1]) != 4 || len(parts[2]) != 16 || len(parts[3]) != 8 || len(parts[4]) != 8 {
		return s, fmt.Errorf("segment ID %q: want journal-site-epoch-lineage-number in hexadecimal", text)
	}
	journal, err := ParseJournalID(parts[0])
	if err != nil {
		return s, fmt.Errorf("segment ID %q: %w", text, err)
	}
	var nums [4]uint64
	for i, p := range parts[1:] {
		if nums[i], err = strconv.ParseUint(p, 16, 64); err != nil {
			return s, fmt.Errorf("segment ID %q: %w", text, err)
		}
	}
	s = SegmentID{Journal: journal, Site: SiteID(nums[0]), Epoch: Epoch{Number: nums[1], Lineage: uint32(nums[2])}, Number: uint32(nums[3])}
	if s.String() != text {
		return SegmentID{}, fmt.Errorf("segment ID %q: not in canonical form", text)
	}
	return s, nil
}

// NewJournalID makes a random ID.
func NewJournalID() (id JournalID) { _, _ = rand.Read(id[:]); return id }

// NewStoreID makes a random ID.
func NewStoreID() (id StoreID) { _, _ = rand.Read(id[:]); return id }

func (id JournalID) String() string { return hex.EncodeToString(id[:]) }
func (id StoreID) String() string   { return hex.EncodeToString(id[:]) }
func (id BootID) String() string    { return hex.EncodeToString(id[:]) }
func (h Hash) String() string       { return hex.EncodeToString(h[:]) }

// IsZero reports that no journal is named.
func (id JournalID) IsZero() bool { return id == JournalID{} }

// IsZero reports that no store is named.
func (id StoreID) IsZero() bool { return id == StoreID{} }

// Compare orders stores bytewise, for listings and for choices that must come out the same everywhere.
func (id StoreID) Compare(o StoreID) int { return cmp.Compare(string(id[:]), string(o[:])) }

// ParseJournalID takes 32 hexadecimal digits.
func ParseJournalID(text string) (id JournalID, err error) {
	return id, parseHex(id[:], text, "journal ID")
}

// ParseStoreID takes 32 hexadecimal digits.
func ParseStoreID(text string) (id StoreID, err error) { return id, parseHex(id[:], text, "store ID") }

// ParseBootID takes 32 hexadecimal digits, with or without the dashes that the kernel prints.
func ParseBootID(text string) (id BootID, err error) {
	return id, parseHex(id[:], strings.ReplaceAll(strings.TrimSpace(text), "-", ""), "boot ID")
}

func parseHex(dst []byte, text, what string) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%s %q: want %d hexadecimal digits", what, text, 2*len(dst))
	}
	if _, err := hex.Decode(dst, []byte(text)); err != nil {
		return fmt.Errorf("%s %q: %w", what, text, err)
	}
	return nil
}

// MarshalText and UnmarshalText make the IDs plain strings in JSON and YAML.
func (id JournalID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText takes what MarshalText gives.
func (id *JournalID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseJournalID(string(b))
	return
}

// MarshalText gives 32 hexadecimal digits.
func (id StoreID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText takes what MarshalText gives.
func (id *StoreID) UnmarshalText(b []byte) (err error) { *id, err = ParseStoreID(string(b)); return }
