package access

import (
	"context"
	"sync/atomic"
	"time"

	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// seat is the place of a store, in which one process after another serves it.
type seat struct {
	id   ident.StoreID
	site ident.SiteID
	host string
	mem  *vfs.Mem
	boot byte
	live atomic.Pointer[core.Store]

	faults *vfs.Faults // not nil: between the store and its disk
	dir    string      // not empty: on the real file system
	far    *laneSeat   // not nil: appends are asynchronous, as by a connection

	lease  time.Duration               // not 0: it grants leases of that length (R6)
	leases atomic.Pointer[core.Leases] // of the running process
	by     func() (*core.Store, error) // not nil: how another node reaches it
}

// laneSeat makes a seat's appends in a goroutine, in order.
type laneSeat struct{ c chan func() }

func (s *seat) fs() vfs.FS {
	switch {
	case s.dir != "":
		return vfs.Default
	case s.faults != nil:
		return s.faults
	}
	return s.mem
}

func (s *seat) get() (*core.Store, error) {
	if s.by != nil {
		return s.by()
	}
	if st := s.live.Load(); st != nil {
		return st, nil
	}
	return nil, wire.Errorf(wire.CodeUnreached, "store %s is down", s.id)
}

func (s *seat) ID() ident.StoreID { return s.id }
func (s *seat) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	st, err := s.get()
	if err != nil {
		done(wire.AppendReply{}, err)
		return
	}
	c := *m
	c.Trusted = false
	heard := func(r wire.AppendReply, err error) { done(s.heard(st, r, err)) }
	if s.far != nil {
		s.far.c <- func() { st.Append(&c, heard) }
		return
	}
	st.Append(&c, heard)
}
func (s *seat) Notice(m *wire.Notice) {
	if st, err := s.get(); err == nil {
		st.Notice(m)
	}
}
func (s *seat) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	st, err := s.get()
	if err != nil {
		done(wire.ReadReply{}, err)
		return
	}
	st.Read(m, done)
}

func via[M, R any](s *seat, ctx context.Context, m M, f func(*core.Store) func(context.Context, M) (R, error)) (r R, err error) {
	st, err := s.get()
	if err != nil {
		return r, err
	}
	r, err = f(st)(ctx, m)
	if e := s.gone(st); e != nil {
		return *new(R), e
	}
	return r, err
}

// gone reports that a store is none any more: who has died says nothing, and nobody hears how its last calls ended.
func (s *seat) gone(st *core.Store) error {
	if s.by == nil && s.live.Load() != st {
		return wire.Errorf(wire.CodeUnreached, "store %s died", s.id)
	}
	return nil
}

func (s *seat) heard(st *core.Store, r wire.AppendReply, err error) (wire.AppendReply, error) {
	if e := s.gone(st); e != nil {
		return wire.AppendReply{}, e
	}
	return r, err
}

func (s *seat) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.OpenSegment) (wire.OpenReply, error) {
		return c.OpenSegment
	})
}
func (s *seat) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Sync) (wire.SyncReply, error) { return c.Sync })
}
func (s *seat) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Seal) (wire.SealReply, error) { return c.Seal })
}
func (s *seat) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Fence) (wire.FenceReply, error) { return c.Fence })
}
func (s *seat) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Inventory) (wire.InventoryReply, error) {
		return c.Inventory
	})
}
func (s *seat) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.ReadRaw) (wire.ReadReply, error) { return c.ReadRaw })
}
func (s *seat) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.ReadIndex) (wire.ReadReply, error) { return c.ReadIndex })
}
func (s *seat) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Push) (wire.AppendReply, error) { return c.Push })
}
func (s *seat) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.Drop) (wire.DropReply, error) { return c.Drop })
}
func (s *seat) Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	return via(s, ctx, m, func(c *core.Store) func(context.Context, *wire.StoreStatus) (wire.StoreStatusReply, error) {
		return c.Status
	})
}

func (c *cluster) seat(id ident.StoreID) *seat {
	for _, s := range c.seats {
		if s.id == id {
			return s
		}
	}
	return nil
}
