package access

import (
	"sync"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Op is one command to a volume, from a client of this node or forwarded by another. The owner works on it
// until it calls Done, once, from any goroutine.
type Op struct {
	Kind    wire.ForwardOp
	FUA     bool
	Offset  int64
	Length  int64
	Nexus   *wire.Nexus
	Session uint64
	Request wire.RequestID // zero for a command of this node's own client
	Stamp   wire.Stamp
	Forward bool // came from another node: its request ID is kept (R9)
	Copier  bool // see wire.Forward

	Buf     *WriteBuf // OpWrite, OpCompareAndWrite: the payload; the owner's from Submit on
	Compare []byte    // OpCompareAndWrite
	Unit    []byte    // OpUnit: a reserve.Command; OpToken: a TokenCall; OpCopy: a CopyCall
	Since   uint64    // see wire.Forward
	Done    func(*Op, error)
	Caller  any // for Done: whatever who submits it keeps with it

	// Results.
	Data       [][]byte // OpRead, OpUnit, OpUnitState: valid until Release
	Miscompare int64    // OpCompareAndWrite with wire.ErrMiscompare
	Mapped     bool     // OpProvisioned
	Extent     int64    // OpProvisioned
	Epoch      ident.Epoch
	Tick       uint64 // the owner's when it answered

	via   *Volume // what ownerDone needs
	until time.Time
	then  func(*Op, error)

	seq      ident.Seq
	waits    uint64 // Owner.tick, since when it waits for seq to be stable
	first    uint64 // blocks that the command touches
	count    uint64
	merging  bool // its blocks are being read: overlapping writes wait
	barred   bool // passed the checks of R9 once; they are not repeated while it waits
	zeroHead *WriteBuf
	parts    int       // records still to be committed
	part     uint8     // of its request: of the first of its records
	over     bool      // its answer is decided
	fresh    bool      // with ErrNotOwner: nothing has been done about it, and its buffer is whole
	child    bool      // made by the owner for a part of another
	behind   ident.Seq // OpToken: it is answered once what overlaps it up to here is committed
	home     bool      // it waits for the owner's site alone (R11)
	early    bool      // a read that shows nobody what other sites may not hold yet
	pieces   []volume.Piece
	read     wire.Read
	replies  []wire.ReadReply
	lent     bool       // a store that no longer answers may still read it: don't use it again
	decided  unitResult // OpUnit

	far       []byte // blocks of other sites, out of the cache
	farWaits  int    // flights that it waits for
	farTries  int
	slowTries int // see readMoved
	farErr    error
}

var opPool = sync.Pool{New: func() any { return new(Op) }}

// NewOp gives a cleared Op.
func NewOp() *Op { return opPool.Get().(*Op) }

// Release gives the read data's buffers and the Op itself back.
func (op *Op) Release() {
	for i := range op.replies {
		if r := op.replies[i].Release; r != nil {
			r()
		}
	}
	if op.lent {
		return
	}
	clear(op.replies)
	clear(op.Data)
	*op = Op{far: op.far[:0], Data: op.Data[:0], pieces: op.pieces[:0], replies: op.replies[:0],
		read: wire.Read{Pieces: op.read.Pieces[:0]}}
	opPool.Put(op)
}

// overlaps reports whether two commands touch a common block.
func (op *Op) overlaps(o *Op) bool {
	return op.first < o.first+o.count && o.first < op.first+op.count
}

// WriteBuf is the payload of a write with the room of a record around it, so that it goes to disk and network
// from where it was received.
type WriteBuf struct {
	entry journal.Entry
	whole []byte // pooled memory
	body  []byte // whole blocks
	data  []byte // what the client writes: part of body
	first uint64 // block
	off   int64
	class int
}

// bufClasses are the body sizes that have pools of their own; others are made when needed.
var bufClasses = [...]int{1, 2, 4, 8, 16, 32, 64, 128, 256, 257}

var bufPools [len(bufClasses)]sync.Pool

// NewWriteBuf makes a buffer for n bytes at off, n at most journal.RecordBodyGoal.
func NewWriteBuf(off int64, n int) *WriteBuf {
	first := off / journal.BlockSize
	blocks := int((off+int64(n)+journal.BlockSize-1)/journal.BlockSize - first)
	class := len(bufClasses)
	for i, c := range bufClasses {
		if blocks <= c {
			class = i
			break
		}
	}
	var b *WriteBuf
	if class < len(bufClasses) {
		if x := bufPools[class].Get(); x != nil {
			b = x.(*WriteBuf)
		} else {
			b = &WriteBuf{whole: make([]byte, journal.RecordSize(uint32(bufClasses[class]*journal.BlockSize)))}
		}
	} else {
		b = &WriteBuf{whole: make([]byte, journal.RecordSize(uint32(blocks*journal.BlockSize)))}
	}
	stored := uint32(blocks * journal.BlockSize)
	rec := b.whole[:journal.RecordSize(stored)]
	b.class = class
	b.body = rec[journal.BodyOffset(stored):][:stored]
	b.first, b.off = uint64(first), off
	b.data = b.body[off-first*journal.BlockSize:][:n]
	b.entry = journal.Entry{Record: journal.Record{Kind: journal.KindWrite, StoredLen: stored, LogicalLen: stored,
		Block: uint64(first), Count: uint32(blocks)}, Bytes: rec}
	return b
}

// Bytes is where the client's payload goes.
func (b *WriteBuf) Bytes() []byte { return b.data }

// whole blocks need no merge.
func (b *WriteBuf) aligned() bool { return len(b.data) == len(b.body) }

// sum makes the checksums where the data enter (architecture §5).
func (b *WriteBuf) sum() {
	n := journal.CRCCount(b.entry.StoredLen)
	crcs := b.entry.Bytes[journal.RecordHeaderSize : journal.RecordHeaderSize+4*n]
	journal.PutCRCs(crcs, b.body)
	clear(b.entry.Bytes[journal.RecordHeaderSize+4*n : journal.BodyOffset(b.entry.StoredLen)])
	b.entry.BodyDigest = journal.DigestCRCs(crcs)
}

// Release gives the memory back. A buffer that a store may still read is left to the garbage collector.
func (b *WriteBuf) Release() {
	if b.class < len(bufClasses) && !b.entry.Shared {
		b.entry = journal.Entry{}
		b.body, b.data = nil, nil
		bufPools[b.class].Put(b)
	}
}

// zeroes is what holes read as.
var zeroes [journal.RecordBodyGoal]byte

// Offset is the byte of the volume at which the payload goes.
func (b *WriteBuf) Offset() int64 { return b.off }
