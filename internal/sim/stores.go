package sim

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// ownLeases asks the process's own store.
type ownLeases struct{ p *Proc }

// local is the process's own store: as it is, but for a disk that is slow.
type local struct {
	p  *Proc
	st *core.Store

	mu      sync.Mutex
	lane    []func()
	running bool
}

// later runs what a slow disk holds up, in order; at once if the disk is not slow.
func (s *local) later(f func()) {
	d := time.Duration(s.p.node.slowDisk.Load())
	s.mu.Lock()
	if d == 0 && !s.running && !s.p.node.hangs() {
		s.mu.Unlock()
		f()
		return
	}
	s.lane = append(s.lane, f)
	if !s.running {
		s.running = true
		s.p.w.wg.Go(s.runLane)
	}
	s.mu.Unlock()
}

func (s *local) runLane() {
	for {
		s.mu.Lock()
		if len(s.lane) == 0 {
			s.running = false
			s.mu.Unlock()
			return
		}
		f := s.lane[0]
		s.lane = s.lane[1:]
		s.mu.Unlock()
		s.wait()
		f()
	}
}

func (s *local) wait() {
	s.p.node.waitForDisk(s.p)
	s.pause(&s.p.node.slowDisk)
}

// pause waits as long as one kind of slowness says.
func (s *local) pause(slow *atomic.Int64) {
	if d := time.Duration(slow.Load()); d > 0 && !s.p.node.isDead(s.p) {
		time.Sleep(d)
	}
}

func (s *local) gone() error {
	if s.p.node.isDead(s.p) {
		return wire.Errorf(wire.CodeIO, "%v", syscall.EIO)
	}
	return nil
}

func (s *local) ID() ident.StoreID { return s.st.ID() }
func (s *local) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	s.p.w.chain.saw(m.Segment.Journal, m.Commit, "append by "+string(s.p.node.name))
	s.p.w.chain.began(s.p.node, m)
	s.p.w.permitted(s.p.node, m)
	s.later(func() { s.st.Append(m, done) })
}
func (s *local) Notice(m *wire.Notice) {
	s.p.w.chain.saw(m.Journal, m.Commit, "notice by "+string(s.p.node.name))
	s.st.Notice(m)
}
func (s *local) Read(m *wire.Read, done func(wire.ReadReply, error)) {
	s.later(func() { s.st.Read(m, done) })
}

// slowly calls f once the disk is ready for it.
func slowly[M, R any](s *local, ctx context.Context, m M, f func(context.Context, M) (R, error)) (R, error) {
	s.wait()
	if err := s.gone(); err != nil {
		var none R
		return none, err
	}
	return f(ctx, m)
}

func (s *local) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return slowly(s, ctx, m, s.st.OpenSegment)
}
func (s *local) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	s.pause(&s.p.node.slowSync)
	s.p.node.syncs.Add(1)
	return slowly(s, ctx, m, s.st.Sync)
}
func (s *local) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	s.pause(&s.p.node.slowCopies)
	s.p.node.syncs.Add(1)
	return slowly(s, ctx, m, s.st.Seal)
}
func (s *local) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	return slowly(s, ctx, m, s.st.Fence)
}
func (s *local) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	return slowly(s, ctx, m, s.st.Inventory)
}
func (s *local) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	return slowly(s, ctx, m, s.st.ReadRaw)
}
func (s *local) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return slowly(s, ctx, m, s.st.ReadIndex)
}
func (s *local) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	s.pause(&s.p.node.slowCopies)
	return slowly(s, ctx, m, s.st.Push)
}
func (s *local) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	return slowly(s, ctx, m, s.st.Drop)
}
func (s *local) Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	return slowly(s, ctx, m, s.st.Status)
}

// stores is access.Stores as a process sees them.
type stores struct{ p *Proc }

func (s stores) Store(id ident.StoreID) (journal.Store, bool) {
	to := s.p.w.nodeOfStore(id)
	if to == nil {
		return nil, false
	}
	if to == s.p.node {
		return s.p.own, true
	}
	return &far{s.p, to, to.site != s.p.node.site}, true
}
func (s stores) Local(id ident.StoreID) bool { return id == s.p.node.store }
func (s stores) Up(id ident.StoreID) bool {
	to := s.p.w.nodeOfStore(id)
	if to == s.p.node {
		return s.p.store.Failed() == ""
	}
	if to == nil {
		return false
	}
	up, _ := s.p.w.net.isUp(s.p, to)
	return up
}
func (s stores) Site(id ident.StoreID) ident.SiteID {
	if to := s.p.w.nodeOfStore(id); to != nil {
		return to.site
	}
	return 0
}
func (s stores) Host(id ident.StoreID) string {
	if to := s.p.w.nodeOfStore(id); to != nil {
		return string(to.name)
	}
	return ""
}
func (s stores) Core(site ident.SiteID) (ids []ident.StoreID) {
	for _, n := range s.p.w.nodes {
		if n.site == site {
			ids = append(ids, n.store)
		}
	}
	slices.SortFunc(ids, ident.StoreID.Compare)
	return ids
}
