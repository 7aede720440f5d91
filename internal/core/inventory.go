package core

import (
	"context"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

// inventoryGoal is how many replicas one reply of Inventory has unless the request says otherwise; also the
// most that it may say.
const inventoryGoal = 4096

// Inventory implements journal.Store.
func (s *Store) Inventory(ctx context.Context, m *wire.Inventory) (reply wire.InventoryReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	limit := int(m.Limit)
	if limit == 0 || limit > inventoryGoal {
		limit = inventoryGoal
	}
	reply.Boot = s.opts.Boot
	list := s.ids(m.Journal)
	at, there := slices.BinarySearchFunc(list, m.After, ident.SegmentID.Compare)
	if there {
		at++
	}
	for _, id := range list[at:] {
		if len(reply.Replicas) == limit {
			reply.More = true
			break
		}
		if r := s.replica(id); r != nil {
			if d := s.describe(r); d.State != stateDropped {
				reply.Replicas = append(reply.Replicas, d)
			}
		}
	}
	if !m.Journal.IsZero() {
		s.mu.RLock()
		j := s.mu.journals[m.Journal]
		s.mu.RUnlock()
		if j != nil {
			j.mu.Lock()
			reply.Commit, reply.Stable, reply.Told = j.mu.commit, j.mu.stable, j.mu.told
			j.mu.Unlock()
		}
	}
	return reply, nil
}

// Status implements journal.Store.
func (s *Store) Status(ctx context.Context, m *wire.StoreStatus) (reply wire.StoreStatusReply, err error) {
	if err := s.begin(); err != nil {
		return reply, err
	}
	defer s.end()
	u, err := s.usage()
	if err != nil {
		return reply, ioError("free space", err)
	}
	s.mu.RLock()
	n := len(s.mu.replicas)
	s.mu.RUnlock()
	return wire.StoreStatusReply{Boot: s.opts.Boot, Failed: s.Failed(), Capacity: u.Total, Free: min(u.Total, u.Free+uint64(s.spares.bytes())), // spares go as soon as their space is wanted
		Used: uint64(max(0, s.used.Load())), Replicas: uint64(n), Corrupt: s.corrupt.Load(), Aside: s.aside.Load()}, nil
}

// Journals lists what the store knows journals of: those that it has segments of or was told an epoch of, with the
// fence of each, in their order. It does not look at segments.
func (s *Store) Journals() []JournalFence {
	s.mu.RLock()
	list := make([]*journalState, 0, len(s.mu.journals))
	for _, j := range s.mu.journals {
		list = append(list, j)
	}
	s.mu.RUnlock()
	out := make([]JournalFence, len(list))
	for i, j := range list {
		j.mu.Lock()
		out[i] = JournalFence{j.id, j.mu.fence}
		j.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b JournalFence) int { return slices.Compare(a.Journal[:], b.Journal[:]) })
	return out
}

// JournalFence is a journal with the highest epoch that a store was told.
type JournalFence struct {
	Journal ident.JournalID
	Fence   ident.Epoch
}
