package wire

import (
	"time"

	"dozo/internal/ident"
)

// The messages of a store: what an owner asks of a core server. Each request names the epoch of its sender;
// a store whose fence is higher answers CodeFenced with that fence, a lower one is raised first and made
// durable (protocol.md R1, R6). Which store of the node is meant stands in the frame's header.

// OpenSegment makes an empty replica: file, room for Capacity bytes, and the durable note that it is open are
// there when the answer comes (R4), so it is asked ahead of need. Asked again it succeeds again.
//
// The segment's header is not part of it, because what precedes the first record is not known that early: the
// first append, at offset 0, starts with the 4,096 bytes of the header (journal.SegmentHeader), and whole
// records may follow in the same append. A replica whose header was never written is open, empty, with End 0
// and zero positions.
type OpenSegment struct {
	Epoch    ident.Epoch
	Segment  ident.SegmentID
	Capacity uint32 // bytes of the whole file, header and index included
	Copy     bool   // the store isn't of the segment's pair: what comes is a part of what the pair has
}

// OpenReply answers OpenSegment.
type OpenReply struct {
	Boot ident.BootID
}

// Append adds whole records at Offset of an open replica; at offset 0 the segment's header stands before them. The store checks every header, the chain from the
// record before, and (for what came over a network) every body checksum; it answers when the kernel has the
// bytes. Appends of one segment are applied in the order in which they were sent. An append that lies wholly
// within what is there and equals it succeeds again; CodeGap if Offset is behind the end, CodeMismatch if
// bytes differ.
type Append struct {
	Epoch   ident.Epoch
	Segment ident.SegmentID
	Offset  uint32
	Commit  ident.Position // the sender's commit point
	Stable  ident.Position // the sender's stable point
	Data    [][]byte       // records, in one or several pieces, in order; not changed until answered
	Trusted bool           // not sent: the caller made the checksums itself, in this process, a moment ago
}

// AppendReply says what the replica holds now.
type AppendReply struct {
	Boot ident.BootID
	End  uint32         // the offset behind the last record
	Held ident.Position // after the last record
}

// Notice carries the commit and stable points when no append follows within 50 ms. It has no answer.
type Notice struct {
	Epoch   ident.Epoch
	Journal ident.JournalID
	Commit  ident.Position
	Stable  ident.Position
	Told    Told `since:"2"` // to stores of other sites
}

// Told is what an owner says now and then to the other sites, so that they know what they lack should its own be lost. A
// store keeps the last word in memory.
type Told struct {
	Commit ident.Position // the commit point
	Mark   ident.Seq      // what the site had confirmed
	Behind uint64         // bytes of records between the two
	Time   uint64         // when that was, nanoseconds since 1970 by the owner's clock; 0: nothing was said
}

// Sync asks for fdatasync of the named replicas; those that the store doesn't have are left out of the
// answer.
type Sync struct {
	Epoch    ident.Epoch
	Journal  ident.JournalID
	Segments []ident.SegmentID
}

// SyncReply says how far each replica is stable.
type SyncReply struct {
	Boot   ident.BootID
	Synced []SegmentSynced
}

// SegmentSynced is one replica of a SyncReply.
type SegmentSynced struct {
	Segment   ident.SegmentID
	StableEnd uint32
	Stable    ident.Position
}

// Seal ends a replica at End, whose last record is Last: what lies behind is cut off (only if R14 allows it,
// else CodeFork), the index is written behind the records, all is made stable, and the note "sealed" too.
// A replica that is shorter answers CodeGap and stays as it is.
type Seal struct {
	Epoch   ident.Epoch
	Segment ident.SegmentID
	End     uint32
	Last    ident.Position
	Start   EpochStart // the sender's epoch-start, committed
	// Proven says that every epoch-start of the sender's history that is later than the segment's epoch is proven, also those that
	// this store has never heard of; or that the sender has found what lies behind End in other segments of its history. False says
	// nothing. Since version 2.
	Proven bool `since:"2"`
}

// SealReply answers Seal.
type SealReply struct {
	Boot   ident.BootID
	Length uint32 // bytes of the whole file
	Made   uint64 // Replica.Made
}

// EpochStart describes an epoch-start record (R1).
type EpochStart struct {
	At     ident.Position // after the epoch-start record itself
	Before ident.Position // after the record before it
	Proven bool
}

// Fence raises the store's fence of a journal to Epoch, durably; from then on nothing of a lower epoch is
// taken, and no lease renewed. The answer waits until every grant that the store has given for the journal
// has run out or was given back (R6).
type Fence struct {
	Journal ident.JournalID
	Epoch   ident.Epoch
	Taker   ident.NodeName
	// Taking is set while the epoch is being taken, however often the taker, or a former owner in its name, asks: a replica that was
	// let go to be made again does not count as damaged then, and is named in FenceReply.Again. A taker of an older version hears nothing of
	// it the first time that the store hears of the epoch.
	Taking bool `since:"5"`
}

// FenceReply is what a taker learns from one store: all it needs for R1, R2 and R4.
type FenceReply struct {
	Boot     ident.BootID
	Was      ident.Epoch // the fence before
	Commit   ident.Position
	Stable   ident.Position // the highest points that the store has been told of
	Replicas []Replica      // of the history and of checkpoints, ordered by ident.SegmentID.Compare
	Told     Told           `since:"2"`
	// Again names, to whoever is taking, segments of which the store's replica was let go to be made again and is not whole yet.
	Again []ident.SegmentID `since:"5"`
}

// ReplicaState says how much a store knows of its replica.
type ReplicaState uint8

// States of a replica.
const (
	ReplicaOpen    ReplicaState = 1 // may be appended to; the end is known
	ReplicaSealed  ReplicaState = 2 // complete and stable
	ReplicaShort   ReplicaState = 3 // was open when the host lost its page cache: the true end is not known (R4)
	ReplicaDamaged ReplicaState = 4 // a bad record before valid ones, or an unreadable file: counts for nothing
	ReplicaFork    ReplicaState = 5 // set aside: a tail that may not be discarded (R14)
	ReplicaCopy    ReplicaState = 6 // opened to be copied or shipped to: may be appended to; its end says nothing (R4)
)

// Replica is one replica of a segment as its store sees it.
type Replica struct {
	Segment   ident.SegmentID
	State     ReplicaState
	Before    ident.Position // before the first record
	Last      ident.Position // after the last valid record; equal to Before when there is none
	End       uint32         // offset behind the last valid record
	StableEnd uint32
	Start     EpochStart // of the segment's epoch, from its header or from the record within; zero if neither
	Made      uint64     // tells this replica from every other that its store ever had of the segment

	// Unsure: a copy that was open when its host lost its page cache, or whose disk has failed: it may have had more.
	Unsure bool `since:"2"`
}

// Inventory lists replicas in ident.SegmentID.Compare order, those after After, at most Limit (0: 4,096). A
// zero Journal means all.
type Inventory struct {
	Journal ident.JournalID
	After   ident.SegmentID
	Limit   uint32
}

// InventoryReply answers Inventory.
type InventoryReply struct {
	Boot     ident.BootID
	Replicas []Replica
	More     bool

	// Of the journal that was asked for: the highest points that the store has been told of.
	Commit ident.Position `since:"2"`
	Stable ident.Position `since:"2"`
	Told   Told           `since:"2"`
}

// Read asks for blocks of records. Every block is checked against its CRC32C, every record header against
// its own, and against the journal and segment asked for.
type Read struct {
	Journal ident.JournalID
	Pieces  []ReadPiece
}

// ReadPiece is a run of blocks within one record.
type ReadPiece struct {
	Segment ident.SegmentID
	Record  uint32 // offset of the record's header in the segment
	First   uint16 // first block of the record's body, in blocks of 4,096 bytes
	Blocks  uint16
}

// ReadReply has the pieces' bytes one behind the other. Release gives the buffer back and may be nil.
type ReadReply struct {
	Data    []byte
	Release func()

	// Took is how long the store's disk and the checks took. It is known within a process only, and not sent.
	Took time.Duration
}

// ReadRaw asks for bytes of a replica as they are on disk, for replay and copying. The reply is shorter
// where the replica ends.
type ReadRaw struct {
	Segment ident.SegmentID
	Offset  uint32
	Len     uint32
}

// ReadIndex asks for the index of a replica (journal.AppendIndex), which a store makes on the spot for one
// that isn't sealed. It answers with a ReadReply.
type ReadIndex struct {
	Segment ident.SegmentID
}

// Push tells a store to append [From, To) of its replica to the store Dest, which another node may have, and
// to answer with what Dest answered. Shipping and repair are pushes.
type Push struct {
	Epoch   ident.Epoch
	Segment ident.SegmentID
	From    uint32
	To      uint32
	Commit  ident.Position
	Stable  ident.Position
	Dest    ident.StoreID
}

// Drop deletes a replica: Permit is the seq of the committed record that permits it (R13). Dropping what is
// not there succeeds, and so does dropping one that was made before the one that is there: a permit that is read
// again must not take what a repair has made since. The file of a damaged replica is set aside.
//
// With Replace the replica is to be made again at once: its file is set aside, and until the new one is sealed the
// store says that it is damaged, so that nobody counts on a store that lacks it.
type Drop struct {
	Epoch   ident.Epoch
	Segment ident.SegmentID
	Permit  ident.Seq
	Made    uint64 // Replica.Made; 0: whichever is there
	Replace bool
}

// DropReply answers Drop and other requests that have nothing to say but success.
type DropReply struct{}

// Lease asks a node's stores for the right to answer reads (R6), batched per pair of nodes: Enroll adds
// journals to the pair's lease, Leave takes some out. A fence removes a journal; every later reply says so.
type Lease struct {
	Owner    ident.NodeName
	Instance uint64        // random per start of the owner's process: a new one forgets what the old had enrolled
	Sent     uint64        // the owner's CLOCK_BOOTTIME at sending, nanoseconds, returned as it is
	Duration time.Duration // asked for
	Enroll   []JournalEpoch
	Leave    []JournalEpoch
}

// JournalEpoch is a journal at an epoch.
type JournalEpoch struct {
	Store   ident.StoreID
	Journal ident.JournalID
	Epoch   ident.Epoch
}

// LeaseReply grants Duration from Lease.Sent for all enrolled journals but those in Removed, whose Epoch is
// the fence.
//
// Instance is random per start of the granting process: a new one has forgotten all that was enrolled, so a
// grant from it counts for what this very request has enrolled and nothing else.
type LeaseReply struct {
	Sent     uint64
	Duration time.Duration
	Boot     ident.BootID
	Instance uint64
	Removed  []JournalEpoch
}

// StoreStatus asks how a store is.
type StoreStatus struct{}

// StoreStatusReply answers StoreStatus.
type StoreStatusReply struct {
	Boot     ident.BootID
	Failed   string // not empty: the store takes no appends any more, and why (R8)
	Capacity uint64 // bytes of the file system
	Free     uint64
	Used     uint64 // bytes in replicas
	Replicas uint64
	Corrupt  uint64 // checksum mismatches found since the start
	Aside    uint64 // files of damaged replicas that were set aside and are still there
}
