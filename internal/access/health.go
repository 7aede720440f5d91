package access

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Health remembers which stores have let this node's owners down, however they did it: an answer that did not
// come in time, an error of the disk, no room. Such a store is tried again after a pause that doubles with every
// failure, with jitter, so that a hundred owners don't come back at once; while a call to a store of this process
// hangs, nothing else is asked of it. Reads prefer other copies meanwhile.
//
//	good ──failure──> avoided ──pause over and no call hangs──> tried ──failure──> avoided, for longer
//	                                                             └──quiet for avoidMax──> good
//
// It decides about speed only, never about what is committed. A nil *Health avoids nothing.
type Health struct {
	clock func() int64
	tell  func(StoreHealth)

	avoided atomic.Int32 // how many are: none in the common case, and then no lock is taken

	mu struct {
		sync.Mutex
		stores map[ident.StoreID]*ailing
	}

	reads sync.Map // by ident.StoreID, *readLoad
}

// readLoad is what this node's owners know of the large reads of a store.
type readLoad struct {
	bytes atomic.Int64 // asked for and not answered
	pace  atomic.Int64 // ns that the store takes for 1 MiB, averaged; of stores in this process only, 0: not known
}

// reading gives the large reads of a store.
func (h *Health) reading(id ident.StoreID) *readLoad {
	if n, ok := h.reads.Load(id); ok {
		return n.(*readLoad)
	}
	n, _ := h.reads.LoadOrStore(id, new(readLoad))
	return n.(*readLoad)
}

// note takes in that a read of n bytes took so long. The average rises more slowly than it falls: that a busy machine
// let one read wait for a processor says nothing about the disk, all reads of a busy disk are slow. Of two notes at
// the same time one may be lost.
func (l *readLoad) note(n int64, took time.Duration) {
	if n <= 0 || took <= 0 {
		return
	}
	now, was := int64(took)*(1<<20)/n, l.pace.Load()
	switch {
	case was == 0:
	case now > was:
		now = was + (now-was)/8
	default:
		now = was - (was-now)/4
	}
	l.pace.Store(now)
}

// ailing is what is known of a store that has failed. Guarded by Health.mu.
type ailing struct {
	strikes int
	since   int64 // of the first strike
	last    int64
	until   int64
	hanging int // calls that outlasted their deadline and have not returned
	avoided bool
	told    bool // that it is avoided
	gone    bool // away for so long that others took its place in ensembles
	why     string
}

// StoreHealth is a store that is avoided, or, with an empty Why, one that is used again.
type StoreHealth struct {
	Store    ident.StoreID
	Why      string
	Failures int
	Hanging  int           // calls that have not returned
	Left     time.Duration // until it is tried again
}

// Pauses between attempts to use a store; both are guesses: short enough for a disk that was busy, long enough
// that one which is broken costs nothing.
const (
	avoidMin     = time.Second
	avoidMax     = time.Minute
	avoidFullMax = 5 * time.Second // for want of space: somebody may be making some
)

// NewHealth makes one for all owners of a node. tell, which may be nil, hears of every store when it begins to be
// avoided and when it is used again; it must not block.
func NewHealth(clock func() int64, tell func(StoreHealth)) *Health {
	h := &Health{clock: clock, tell: tell}
	h.mu.stores = map[ident.StoreID]*ailing{}
	return h
}

// Failed notes a failure of a store.
func (h *Health) Failed(id ident.StoreID, why string) { h.failed(id, why, avoidMax) }

// Full notes that a store had no room.
func (h *Health) Full(id ident.StoreID, why string) { h.failed(id, why, avoidFullMax) }

func (h *Health) failed(id ident.StoreID, why string, most time.Duration) {
	if h == nil {
		return
	}
	now := h.clock()
	h.mu.Lock()
	a := h.ailingLocked(id)
	if a.strikes > 0 && now < a.until { // what else was under way when it failed is the same failure
		h.mu.Unlock()
		return
	}
	if now-a.last > 2*int64(avoidMax) {
		a.strikes, a.since = 0, now
	}
	a.strikes++
	a.last, a.why = now, why
	pause := min(most, avoidMin<<min(a.strikes-1, 16))
	a.until = now + int64(pause)*3/4 + rand.Int64N(int64(pause)/2)
	h.avoidLocked(a)
	first := !a.told
	a.told = true
	v := a.view(id, now)
	h.mu.Unlock()
	if first && h.tell != nil {
		h.tell(v)
	}
}

func (h *Health) ailingLocked(id ident.StoreID) *ailing {
	a := h.mu.stores[id]
	if a == nil {
		a = &ailing{}
		h.mu.stores[id] = a
	}
	return a
}

func (h *Health) avoidLocked(a *ailing) {
	if !a.avoided {
		a.avoided = true
		h.avoided.Add(1)
	}
}

func (a *ailing) view(id ident.StoreID, now int64) StoreHealth {
	return StoreHealth{Store: id, Why: a.why, Failures: a.strikes, Hanging: a.hanging, Left: time.Duration(max(0, a.until-now))}
}

// Usable reports whether a store may be used, or tried again.
func (h *Health) Usable(id ident.StoreID) bool {
	if h == nil || h.avoided.Load() == 0 {
		return true
	}
	now := h.clock()
	h.mu.Lock()
	a := h.mu.stores[id]
	if a == nil || !a.avoided {
		h.mu.Unlock()
		return true
	}
	if a.hanging > 0 || now < a.until {
		h.mu.Unlock()
		return false
	}
	told := a.told
	a.avoided, a.told = false, false
	h.avoided.Add(-1)
	h.mu.Unlock()
	if told && h.tell != nil {
		h.tell(StoreHealth{Store: id})
	}
	return true
}

// hang notes that a call to a store has outlasted its deadline; returned, that it has come back after all.
func (h *Health) hang(id ident.StoreID) {
	h.mu.Lock()
	a := h.ailingLocked(id)
	a.hanging++
	h.avoidLocked(a)
	h.mu.Unlock()
}

func (h *Health) returned(id ident.StoreID) {
	h.mu.Lock()
	h.mu.stores[id].hanging--
	h.mu.Unlock()
}

func (h *Health) hangs(id ident.StoreID) bool {
	if h.avoided.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.mu.stores[id]
	return a != nil && a.hanging > 0
}

// Avoided lists the stores that are not used now, ordered.
func (h *Health) Avoided() (list []StoreHealth) {
	if h == nil || h.avoided.Load() == 0 {
		return nil
	}
	now := h.clock()
	h.mu.Lock()
	for id, a := range h.mu.stores {
		if a.avoided {
			list = append(list, a.view(id, now))
		}
	}
	h.mu.Unlock()
	slices.SortFunc(list, func(a, b StoreHealth) int { return a.Store.Compare(b.Store) })
	return list
}

// localStores has the stores of this process come with a guard in front; those of others have a connection in
// between, which waits as long as it is told to.
type localStores struct {
	Stores
	h *Health

	mu    sync.Mutex
	guard map[ident.StoreID]*localStore
}

func guardLocal(s Stores, h *Health) Stores {
	if _, guarded := s.(*localStores); guarded {
		return s
	}
	return &localStores{Stores: s, h: h, guard: map[ident.StoreID]*localStore{}}
}

// Store implements Stores.
func (s *localStores) Store(id ident.StoreID) (journal.Store, bool) {
	if !s.Stores.Local(id) {
		return s.Stores.Store(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.guard[id]; g != nil {
		return g, true
	}
	st, ok := s.Stores.Store(id)
	if !ok {
		return nil, false
	}
	g := &localStore{Store: st, h: s.h}
	s.guard[id] = g
	return g, true
}

// localStore is a store of this process whose disk may hang without anybody hanging with it: no call outlasts
// its context, and appends are made by a goroutine of their own, in order, so that neither the owner's loop nor
// the connection whose reader happens to run it waits for the disk. A call that is given up goes on by itself; it
// touches nothing but the store and its own message.
type localStore struct {
	journal.Store
	h *Health

	lane struct {
		sync.Mutex
		queue, spare []laneAppend
		running      bool
		hangs        bool // what is being appended has been given up
	}
}

type laneAppend struct {
	m    *wire.Append
	done func(wire.AppendReply, error)
}

// Append implements journal.Store. The goroutine ends when there is nothing left: one that is begun anew costs
// less than one that is woken.
func (s *localStore) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	s.lane.Lock()
	s.lane.queue = append(s.lane.queue, laneAppend{m, done})
	start := !s.lane.running
	s.lane.running = true
	s.lane.Unlock()
	if start {
		go s.appends()
	}
}

func (s *localStore) appends() {
	for {
		s.lane.Lock()
		if s.lane.hangs {
			s.lane.hangs = false
			s.h.returned(s.ID())
		}
		list := s.lane.queue
		if len(list) == 0 {
			s.lane.running = false
			s.lane.Unlock()
			return
		}
		s.lane.queue, s.lane.spare = s.lane.spare[:0], nil
		s.lane.Unlock()
		for i := range list {
			s.Store.Append(list[i].m, list[i].done)
		}
		clear(list)
		s.lane.Lock()
		if s.lane.spare == nil {
			s.lane.spare = list[:0]
		}
		s.lane.Unlock()
	}
}

// gaveUp says that an append was not answered in time: until it is, the store gets no other.
func (s *localStore) gaveUp() {
	s.lane.Lock()
	if s.lane.running && !s.lane.hangs {
		s.lane.hangs = true
		s.h.hang(s.ID())
	}
	s.lane.Unlock()
}

// outlasting runs f on a goroutine of its own and waits no longer than ctx.
func outlasting[M, R any](s *localStore, ctx context.Context, m M, f func(context.Context, M) (R, error)) (R, error) {
	type result struct {
		r   R
		err error
	}
	var none R
	if s.h.hangs(s.ID()) {
		return none, wire.Errorf(wire.CodeUnreached, "store %s hangs", s.ID())
	}
	const (
		waiting int32 = iota
		ended
		left
	)
	var state atomic.Int32
	c := make(chan result, 1)
	go func() {
		r, err := f(ctx, m)
		c <- result{r, err}
		if !state.CompareAndSwap(waiting, ended) {
			s.h.returned(s.ID())
			if x, ok := any(r).(wire.ReadReply); ok {
				release(x)
			}
		}
	}()
	select {
	case x := <-c:
		return x.r, x.err
	case <-ctx.Done():
		// Those that obey the context end now; the others hang.
		grace := time.NewTimer(hangGrace)
		defer grace.Stop()
		select {
		case x := <-c:
			return x.r, x.err
		case <-grace.C:
		}
		s.h.hang(s.ID())
		if !state.CompareAndSwap(waiting, left) {
			s.h.returned(s.ID())
			x := <-c
			return x.r, x.err
		}
		return none, wire.Errorf(wire.CodeUnreached, "store %s: %v", s.ID(), ctx.Err())
	}
}

// hangGrace is for calls that end with their context to say so.
const hangGrace = 20 * time.Millisecond

// OpenSegment implements journal.Store.
func (s *localStore) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return outlasting(s, ctx, m, s.Store.OpenSegment)
}

// Sync implements journal.Store.
func (s *localStore) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	return outlasting(s, ctx, m, s.Store.Sync)
}

// Seal implements journal.Store.
func (s *localStore) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return outlasting(s, ctx, m, s.Store.Seal)
}

// Fence implements journal.Store.
func (s *localStore) Fence(ctx context.Context, m *wire.Fence) (wire.FenceReply, error) {
	return outlasting(s, ctx, m, s.Store.Fence)
}

// Inventory implements journal.Store.
func (s *localStore) Inventory(ctx context.Context, m *wire.Inventory) (wire.InventoryReply, error) {
	return outlasting(s, ctx, m, s.Store.Inventory)
}

// ReadRaw implements journal.Store.
func (s *localStore) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	return outlasting(s, ctx, m, s.Store.ReadRaw)
}

// ReadIndex implements journal.Store.
func (s *localStore) ReadIndex(ctx context.Context, m *wire.ReadIndex) (wire.ReadReply, error) {
	return outlasting(s, ctx, m, s.Store.ReadIndex)
}

// Push implements journal.Store.
func (s *localStore) Push(ctx context.Context, m *wire.Push) (wire.AppendReply, error) {
	return outlasting(s, ctx, m, s.Store.Push)
}

// Drop implements journal.Store.
func (s *localStore) Drop(ctx context.Context, m *wire.Drop) (wire.DropReply, error) {
	return outlasting(s, ctx, m, s.Store.Drop)
}

// Status implements journal.Store.
func (s *localStore) Status(ctx context.Context, m *wire.StoreStatus) (wire.StoreStatusReply, error) {
	return outlasting(s, ctx, m, s.Store.Status)
}
