package scsi

import (
	"dozo/internal/access/reserve"
)

// RecordMax is the most bytes that one WriteBuffer holds and one Read asks for. Longer transfers become
// several calls; each is atomic for itself.
const RecordMax = 1 << 20

// Geometry is a disk's shape and manner. It may change while sessions are open; the device server asks for
// it with every command and tells the initiators.
type Geometry struct {
	Blocks            uint64 // logical blocks; 0 means the size is not known and the disk not ready
	BlockSize         uint32 // bytes per logical block: 512 or 4096
	PhysicalBlockSize uint32 // bytes that a write replaces without a merge; a multiple of BlockSize
	VolatileCache     bool   // acknowledged writes may need a flush to survive a power cut
	AlwaysDurable     bool   // there is no such cache, whatever the mode parameters say
	ReadOnly          bool
}

// Identity is what names a disk for its initiators; it is the same through every path for ever.
type Identity struct {
	ID       [16]byte // NAA identifier and serial number are derived from it
	Vendor   string   // at most 8 printable ASCII characters
	Product  string   // at most 16
	Revision string   // at most 4
}

// WriteBuffer is memory for the payload of one Write, with whatever room the layers below want around it.
type WriteBuffer interface {
	// Bytes is where the payload goes, exactly as long as was asked for. Its contents are undefined at first.
	Bytes() []byte
	// Release gives back a buffer that was never passed to Write or CompareAndWrite.
	Release()
}

// ReadResult is what a Read found.
type ReadResult interface {
	// Buffers has the data in order; together they are exactly as long as was asked for. They are valid and
	// unchanged until Release.
	Buffers() [][]byte
	// Release gives the memory back; it is called once.
	Release()
}

// Disk is what a direct access device server serves. All methods may be called concurrently. A done function
// is called exactly once, from any goroutine, also before the call that it belongs to has returned; it does
// not block. Offsets and lengths are bytes, multiples of BlockSize, within the Geometry that held when the
// command arrived (a disk that shrank since answers ErrOutOfRange). Completions may come in any order; calls
// in flight at the same time have no order among each other.
type Disk interface {
	// Geometry must be cheap: it is called for every command.
	Geometry() Geometry
	Identity() Identity
	// Paths says how this disk's paths are; it must be cheap as well.
	Paths() reserve.PathInfo

	// SetOptimized has the disk served by way of a target port group: it is active/optimized when done comes without an
	// error. It takes no longer than initiators wait.
	SetOptimized(req Request, group uint16, done func(error))

	// NewWrite gives a buffer for a Write of n bytes at off, n at most RecordMax. It doesn't wait for other I/O.
	NewWrite(off int64, n int) (WriteBuffer, error)
	// Write makes b the contents at the offset it was made for and owns b from now on, also when it fails.
	// With fua it is done only once the data are on stable storage.
	Write(req Request, b WriteBuffer, fua bool, done func(error))
	// Read fetches n bytes at off, n at most RecordMax.
	Read(req Request, off int64, n int, done func(ReadResult, error))
	// Zero makes a range of any length read as zeros. With unmap the disk may give its space back, otherwise
	// space that was provisioned stays so as far as the disk knows that notion.
	Zero(req Request, off, n int64, unmap bool, done func(error))
	// Copy makes n bytes at to what those at from are, overlapping or not, at one moment and without moving data: both
	// share their space from then on. With a token it is done only while that is good for what is copied. Offsets and n
	// are multiples of the physical block, n is at most CopyMax. ErrNotSupported: the disk can't do this one so; nothing
	// has happened, and reading and writing will do.
	Copy(req Request, from, to, n int64, token *Token, done func(error))
	// CompareAndWrite writes b if what is there equals compare, atomically with respect to every other command
	// from everywhere. It owns b. mismatch is the offset of the first differing byte, -1 if the write was done.
	CompareAndWrite(req Request, compare []byte, b WriteBuffer, fua bool, done func(mismatch int, err error))
	// Flush is done once everything acknowledged before the call is on stable storage.
	Flush(req Request, done func(error))
	// OrWrite combines what is there with b by a bitwise or, atomically like CompareAndWrite. It owns b.
	OrWrite(req Request, b WriteBuffer, fua bool, done func(error))

	// Unit is the state that all initiators of the unit share, as last heard of; it must be cheap, is never nil
	// and never modified. It is good for what an initiator is told; decisions are made below.
	Unit() *reserve.Snapshot
	// ShowUnit fetches that state as it is now, with every change that was answered.
	ShowUnit(req Request, done func(*reserve.Snapshot, error))
	// ChangeUnit has a change of it decided. done comes once the change survives everything and the unit
	// attentions that it causes wait at their nexuses, wherever these are.
	ChangeUnit(req Request, cmd *reserve.Command, done func(reserve.Outcome, error))

	// Stamp is the newest moment of the disk's owner that is known here, and NewID names a call that no command of
	// a client stands for directly: a part of a copy.
	Stamp() Stamp
	NewID() RequestID
	// Other finds another disk that this one's initiator may use. done gets nil if there is none; otherwise
	// release is called once the disk is no longer needed.
	Other(meant func(Identity) bool, done func(d Disk, release func()))
	// CreateToken makes a token for what the ranges hold now. It is good as long as nobody writes there, and as times say. seal is
	// called at most once, before done: it gives the digest of the bytes that the token with this ID will have.
	CreateToken(req Request, ranges []Range, times TokenTimes, seal func(TokenID) [32]byte, done func(error))
	// UseToken gives the ranges of a valid token; of others the error says why they are not. What was read of the ranges before the
	// call is what they held when the token was made.
	UseToken(req Request, t Token, done func([]Range, error))
	// DropToken ends one; done comes once it has.
	DropToken(req Request, t Token, done func())

	// Provisioned says whether the block at off has space of its own, and for how many bytes from off on at
	// least the same is so (never past the end, more than 0).
	Provisioned(off int64, done func(mapped bool, n int64, err error))
}
