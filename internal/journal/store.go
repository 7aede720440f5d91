package journal

import (
	"context"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Store is one store of a core server, in this process or behind a connection: all that the journal knows of
// package core. Errors are *wire.Error; wire.ErrUnreached means that whether the request ran is not known.
// All methods may be called concurrently. A context that ends stops the waiting, not the work.
type Store interface {
	// ID names the store for ever.
	ID() ident.StoreID

	OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error)

	// Append is asynchronous: done is called once, from any goroutine, possibly before Append returns. m and
	// its Data belong to the store until then, with an error that is an *InUse for ever. Appends to one segment are
	// applied in the order of the calls.
	Append(m *wire.Append, done func(wire.AppendReply, error))

	// Notice is sent and forgotten.
	Notice(m *wire.Notice)

	Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error)
	Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error)
	Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error)
	Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error)

	// Read is asynchronous like Append. The reply's Data is valid until its Release is called.
	Read(m *wire.Read, done func(wire.ReadReply, error))

	ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error)
	ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error)
	Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error)
	Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error)
	Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error)
}

// InUse is the error of an append that is answered and not over: the store may read m and its Data for longer, so nobody may use them for
// anything else.
type InUse struct{ Err error }

func (e *InUse) Error() string { return e.Err.Error() }

// Unwrap gives what is wrong.
func (e *InUse) Unwrap() error { return e.Err }
