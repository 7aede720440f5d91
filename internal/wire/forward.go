package wire

import "dozo/internal/ident"

// The messages between access servers: one that has a client's connection (the forwarder) asks the journal's
// owner. Protocol.md R7 and R9 are their rules.

// RequestID names a client's request: which access server forwarded it and which one it was there. The owner
// puts it in the records, so that a new owner answers a request sent again instead of applying it twice.
type RequestID struct {
	Forwarder uint64 // random per start of an access server
	Number    uint64 // counted up by it
}

// Nexus says which initiator, by which session's port and to which target port, a command came from.
type Nexus struct {
	Digest    [16]byte // of the other fields; what owners keep
	Initiator string   // name, at most 223 bytes (RFC 7143)
	ISID      [6]byte
	TPGT      uint16 // target portal group tag
}

// Stamp is the proof of age of a command (R9): the owner's tick in the last message which the client had
// received before it sent the command.
type Stamp struct {
	Epoch ident.Epoch
	Tick  uint64
}

// ForwardOp is what a forwarded command does.
type ForwardOp uint8

// Operations. Numbers are part of the format.
const (
	OpRead            ForwardOp = 1  // Length bytes at Offset
	OpWrite           ForwardOp = 2  // Data at Offset
	OpTrim            ForwardOp = 3  // may read as anything afterwards: zeroes here
	OpZero            ForwardOp = 4  // must read as zeroes afterwards
	OpFlush           ForwardOp = 5  // all that was acknowledged is stable (R8)
	OpCompareAndWrite ForwardOp = 6  // the first half of Data is compared, the second written
	OpProvisioned     ForwardOp = 7  // is Offset mapped, and how far is it the same
	OpUnit            ForwardOp = 8  // Data is a reserve.Command; the answer's data are its outcome, one byte
	OpUnitState       ForwardOp = 9  // the answer's data are a reserve.Snapshot
	OpOrWrite         ForwardOp = 10 // Data are combined with what is at Offset by a bitwise or
	OpToken           ForwardOp = 11 // makes, uses or drops a token for ranges; Data and the answer's are an access.TokenCall
	OpCopy            ForwardOp = 12 // whole blocks become what others of the volume are, by reference; Data are an access.CopyCall
	opMax             ForwardOp = 12
)

var opNames = [...]string{"?", "read", "write", "trim", "zero", "flush", "compare and write", "provisioned",
	"unit", "unit state", "or write", "token", "copy"}

func (o ForwardOp) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "?"
}

// Forward is one command of a client.
type Forward struct {
	Journal ident.JournalID
	Request RequestID
	Nexus   Nexus
	Session uint64 // the forwarder's number of the client's session
	Stamp   Stamp
	// Since is the tick, in the stamp's epoch, of the client's command that a long operation is part of (copies,
	// WRITE SAME): refusals are compared with it, age with the stamp. 0: the stamp's own.
	Since  uint64
	Op     ForwardOp
	FUA    bool // with writes: answer only once stable
	Copier bool `since:"4"` // of a third-party copy: the initiator need not have logged in to the volume (R11)
	Offset uint64
	Length uint64
	Data   [][]byte // not changed until answered
}

// ForwardReply answers a Forward. Status is 0 or an outcome that the owner decided and that carries a tick
// like any other answer (CodeMiscompare, CodeDenied, CodeUnproven); what kept the owner from deciding comes
// as an Error instead.
type ForwardReply struct {
	Epoch      ident.Epoch
	Tick       uint64 // the owner's tick when it answered: future stamps
	Status     Code
	Mapped     bool   // OpProvisioned
	Miscompare uint64 // with CodeMiscompare: offset of the first byte that differed
	Extent     uint64 // OpProvisioned: bytes from Offset on of which Mapped is true
	Data       []byte // OpRead
	Release    func() // gives Data's buffer back; may be nil. Not sent.
}

// BarKind says whose older commands are refused from now on.
type BarKind uint8

// Kinds of Bar. Numbers are part of the format.
const (
	BarLogin        BarKind = 1 // all older sessions of the nexus: login and session reinstatement
	BarAbortTask    BarKind = 2 // requests First to Last of Forwarder
	BarLUNReset     BarKind = 3 // every command of everybody stamped before
	BarPreemptAbort BarKind = 4 // every command of the nexus stamped before
	BarClearTaskSet BarKind = 5 // as a reset, but nothing else of the unit is reset
	BarLogout       BarKind = 6 // Session of the nexus has logged out: every command of it stamped before, and its attachment ends (R11)
	BarAccept       BarKind = 7 // an operator lets ports go on (R11): of Nexus the initiator and the ISID count, empty means any; First and Last as for BarForget: the epoch whose owner named them
	BarForget       BarKind = 8 // an operator gives up the fork that the epoch-start of epoch First, lineage Last, left behind (R13)
	barMax          BarKind = 8
)

// Bar makes the owner record a refusal; only after the answer may the client be told (R9).
type Bar struct {
	Journal   ident.JournalID
	Kind      BarKind
	Nexus     Nexus
	Forwarder uint64
	Session   uint64
	First     uint64 // BarAbortTask: RequestID.Number, inclusive; BarLogin, BarAccept, BarForget: an epoch, and in Last its lineage
	Last      uint64
}

// BarReply says from which tick on commands run again.
type BarReply struct {
	Epoch ident.Epoch
	Tick  uint64
}

// Tick asks a node for the ticks of journals that it owns; forwarders ask periodically, once a pair of nodes.
type Tick struct {
	Journals []ident.JournalID
}

// TickReply has an entry for each journal that was asked for, in that order.
type TickReply struct {
	Ticks []JournalTick
}

// JournalTick is the state of one journal: Tick is 0 where the node doesn't own it, and Owner then says who
// does as far as the node knows.
type JournalTick struct {
	Journal ident.JournalID
	Epoch   ident.Epoch
	Tick    uint64
	Unit    uint64 // version of the unit's state
	Owner   ident.NodeName
}

// Unit tells an access server how a unit is now (a reserve.Snapshot): what is attached there learns of the
// events that it has not seen before the answer comes.
type Unit struct {
	Journal ident.JournalID
	Epoch   ident.Epoch
	Tick    uint64 // of the owner: what a client is sent from now on is stamped with it, so no refusal concerns it
	Data    []byte
}

// UnitReply answers Unit.
type UnitReply struct{}

// OwnerStatus asks how the journals are that a node owns; none named means all.
type OwnerStatus struct {
	Journals []ident.JournalID
}

// OwnerStatusReply answers OwnerStatus; journals that the node doesn't own are left out.
type OwnerStatusReply struct {
	Journals []JournalStatus
}

// JournalStatus is how one journal is, as its owner sees it.
type JournalStatus struct {
	Journal  ident.JournalID
	Owner    ident.NodeName
	Epoch    ident.Epoch
	Commit   ident.Position
	Stable   ident.Position
	Written  uint64 // bytes of records since the owner started
	Mapped   uint64 // blocks of the volume that hold data
	Sites    []SiteStatus
	Segments uint32
	Degraded uint32 // segments with fewer copies than they should have
	State    string // for people: serving, recovering, waiting for ...

	DegradedBytes uint64 // bytes of those segments, headers included
	// How long the node has been trying to serve the journal, in nanoseconds; 0 where it serves. While it tries, the
	// positions and the sites are not known.
	Recovering uint64
	// What the newest committed checkpoint covers; zero where there is none.
	Checkpoint ident.Position

	Unproven  bool       // the epoch's takeover could not prove that it knew the end of the history (R4)
	Lost      uint64     // acknowledged records that it knows to be lost
	LostBytes uint64     `since:"2"` // of those, as far as it was told
	LostNanos uint64     `since:"2"` // from the last record that is there to the last word of the owner before
	Attached  uint32     // ports
	Barred    uint32     // of them, those that get R11's error
	Ports     []PortName // the first of those
	Forks     uint32     // segments whose replica is set aside: records that are not of this history (R14)
	ForkBytes uint64
	Cuts      []Cut `since:"2"` // of this history, oldest first
	Kept      bool  `since:"2"` // with Unproven: nothing that was acknowledged is missing all the same (R11, --ack=site:K)
}

// Cut is an epoch-start that was not proven: what went on behind Before otherwise is a fork.
type Cut struct {
	At, Before ident.Position
	Forgotten  bool // nothing of it is kept any more
}

// PortName names an initiator port.
type PortName struct {
	Initiator string
	ISID      [6]byte
}

// SiteStatus is how far a site is.
type SiteStatus struct {
	Site            ident.SiteID
	Watermark       ident.Position
	StableWatermark ident.Seq
	LagBytes        uint64
	LagNanos        uint64 // age of the oldest record that the site lacks
	// When the site last confirmed a watermark, by the owner's clock: nanoseconds since 1970, 0 if it has not since
	// this owner began.
	Confirmed uint64
}
