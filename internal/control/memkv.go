package control

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
)

// Mem is a control store in memory, shared by the clients that Open makes: for tests and simulations of whole
// clusters. It keeps what Client counts on of etcd, and its failures can be arranged.
type Mem struct {
	mu struct {
		sync.Mutex
		rev        Rev
		compacted  Rev
		pairs      map[string]pair
		log        []change      // of revisions above compacted, in order
		grew       chan struct{} // closed and replaced at each change of anything here
		down       bool
		refused    int // requests while it was down
		fault      func() Fault
		generation int             // counts Renew
		cut        map[string]bool // holds that can not be renewed
	}
}

// Fault is what shall happen to a transaction.
type Fault int

// The faults: none; the transaction is lost; it takes effect, but the answer is lost.
const (
	FaultNone Fault = iota
	FaultRequestLost
	FaultAnswerLost
)

// memLogMax is how many changes are kept for watches that are behind.
const memLogMax = 1 << 16

// errMemDown is what a Mem that is away, or an arranged fault, answers.
var errMemDown = errors.New("control store in memory: unavailable")

// NewMem makes an empty control store.
func NewMem() *Mem {
	m := new(Mem)
	m.mu.pairs = make(map[string]pair)
	m.mu.grew = make(chan struct{})
	return m
}

// Open makes a client of it. See OpenEtcd for what holds of clients.
func (m *Mem) Open(ctx context.Context, o Options) (*Client, error) {
	return open(ctx, memKV{m, new(atomic.Int64)}, o)
}

// Way is what stands between a client and a Mem: the distance, and whether there is a connection at all.
type Way interface {
	// Pass is called for each request and for each answer, and waits for as long as that takes. An error means that
	// it did not arrive.
	Pass(ctx context.Context) error
}

// OpenBy makes a client that reaches the store by a way of its own.
func (m *Mem) OpenBy(ctx context.Context, o Options, way Way) (*Client, error) {
	return open(ctx, wayKV{memKV{m, new(atomic.Int64)}, way}, o)
}

// SetDown makes the store unavailable, or available again: nothing is answered, watches hear nothing.
func (m *Mem) SetDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.down = down
	m.wakeLocked()
}

// Refused is how many requests have come in vain since the beginning, because the store was unavailable.
func (m *Mem) Refused() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.refused
}

// downLocked is asked for each request.
func (m *Mem) downLocked() bool {
	if m.mu.down {
		m.mu.refused++
	}
	return m.mu.down
}

// SetFault has f asked before every transaction; nil ends it. f runs under the store's lock.
func (m *Mem) SetFault(f func() Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.fault = f
}

// Compact forgets the history up to now, as etcd does from time to time.
func (m *Mem) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.compacted, m.mu.log = m.mu.rev, nil
	m.wakeLocked()
}

func (m *Mem) wakeLocked() {
	close(m.mu.grew)
	m.mu.grew = make(chan struct{})
}

func (m *Mem) applyLocked(ops []op) {
	m.mu.rev++
	for _, o := range ops {
		p := pair{key: o.key, value: o.value, mod: m.mu.rev}
		if o.delete {
			if _, ok := m.mu.pairs[o.key]; !ok {
				continue
			}
			p.value = nil
			delete(m.mu.pairs, o.key)
		} else {
			m.mu.pairs[o.key] = p
		}
		m.mu.log = append(m.mu.log, change{p, o.delete})
	}
	if len(m.mu.log) > memLogMax {
		// Compaction is at a revision, so that no watch sees half a transaction.
		m.mu.compacted = m.mu.log[memLogMax/2].mod
		m.mu.log = slices.DeleteFunc(m.mu.log, func(c change) bool { return c.mod <= m.mu.compacted })
	}
	m.wakeLocked()
}

// Downgrade has a node look as if an older program had registered it: nothing says what of the stored form it knows.
func (m *Mem) Downgrade(name ident.NodeName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applyLocked([]op{{key: dirLevels + string(name), delete: true}})
}

// Renew puts another control store, with the content of a snapshot, in the place of this one, as SeedVoter does.
func (m *Mem) Renew(s *Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.generation++
	m.mu.rev, m.mu.compacted, m.mu.log = 0, 0, nil
	m.mu.pairs = make(map[string]pair)
	for _, p := range s.pairs {
		m.applyLocked([]op{{key: p.key, value: p.value}})
	}
	m.wakeLocked()
}

// memKV is a client's view. Its only state is which store it speaks to.
type memKV struct {
	m    *Mem
	seen *atomic.Int64 // generation, plus one
}

func (k memKV) checkLocked() error {
	if g := int64(k.m.mu.generation) + 1; k.seen.CompareAndSwap(0, g) || k.seen.Load() == g {
		return nil
	}
	return errRenewed
}

func (k memKV) renew() { k.seen.Store(0) }

func (k memKV) get(ctx context.Context, key string) (pair, Rev, error) {
	m := k.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return pair{}, 0, err
	}
	if m.downLocked() {
		return pair{}, 0, errMemDown
	}
	if err := k.checkLocked(); err != nil {
		return pair{}, 0, err
	}
	p := m.mu.pairs[key]
	p.key = key
	return p, m.mu.rev, nil
}

func (k memKV) list(ctx context.Context, dir string) ([]pair, Rev, error) {
	m := k.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	if m.downLocked() {
		return nil, 0, errMemDown
	}
	if err := k.checkLocked(); err != nil {
		return nil, 0, err
	}
	var out []pair
	for key, p := range m.mu.pairs {
		if strings.HasPrefix(key, dir) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return out, m.mu.rev, nil
}

func (k memKV) commit(ctx context.Context, t txn) (txnResult, error) {
	m := k.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return txnResult{}, err
	}
	if m.downLocked() {
		return txnResult{}, errMemDown
	}
	fault := FaultNone
	if m.mu.fault != nil {
		fault = m.mu.fault()
	}
	if fault == FaultRequestLost {
		return txnResult{}, errMemDown
	}
	for _, c := range t.conds {
		if !m.holdsLocked(c) {
			var res txnResult
			for _, key := range t.reads {
				p := m.mu.pairs[key]
				p.key = key
				res.reads = append(res.reads, p)
			}
			if fault == FaultAnswerLost {
				return txnResult{}, errMemDown
			}
			return res, nil
		}
	}
	m.applyLocked(t.ops)
	if fault == FaultAnswerLost {
		return txnResult{}, errMemDown
	}
	return txnResult{ok: true, rev: m.mu.rev}, nil
}

func (m *Mem) holdsLocked(c cond) bool {
	if c.value != nil {
		return bytes.Equal(m.mu.pairs[c.key].value, c.value)
	}
	if c.dir == "" {
		return m.mu.pairs[c.key].mod == c.rev
	}
	for key, p := range m.mu.pairs {
		if strings.HasPrefix(key, c.dir) && p.mod > c.rev {
			return false
		}
	}
	return true
}

func (k memKV) watch(ctx context.Context, dir string, after Rev, f func([]change, Rev) error) error {
	m := k.m
	for {
		m.mu.Lock()
		grew, upTo := m.mu.grew, m.mu.rev
		var batch []change
		if !m.mu.down {
			if err := k.checkLocked(); err != nil {
				m.mu.Unlock()
				return err
			}
			if after < m.mu.compacted {
				m.mu.Unlock()
				return errCompacted
			}
			from, _ := slices.BinarySearchFunc(m.mu.log, after+1, func(c change, r Rev) int { return int(c.mod - r) })
			for _, c := range m.mu.log[from:] {
				if strings.HasPrefix(c.key, dir) {
					batch = append(batch, c)
				}
			}
		}
		down := m.mu.down
		m.mu.Unlock()
		if !down && upTo > after {
			if err := f(batch, upTo); err != nil {
				return err
			}
			after = upTo
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grew:
		}
	}
}

func (k memKV) keep(ctx context.Context, key string, value []byte, _ time.Duration) {
	m := k.m
	m.mu.Lock()
	for m.mu.down {
		grew := m.mu.grew
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-grew:
		}
		m.mu.Lock()
	}
	m.applyLocked([]op{{key: key, value: value}})
	mine := m.mu.rev
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	if m.mu.pairs[key].mod == mine { // else it is another process's by now
		m.applyLocked([]op{{key: key, delete: true}})
	}
	m.mu.Unlock()
}

func (k memKV) hold(ctx context.Context, key string, value []byte, clock func() int64, renewed func(asked int64, anew bool)) error {
	m := k.m
	lost := errors.New("control store in memory: the hold is lost")
	set := func(o op) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.applyLocked([]op{o})
	}
	reached := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return !m.mu.down && !m.mu.cut[key]
	}
	if !reached() {
		return errMemDown
	}
	asked := clock()
	set(op{key: key, value: value})
	renewed(asked, true)
	t := time.NewTicker(HoldEvery)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			set(op{key: key, delete: true})
			return ctx.Err()
		case <-t.C:
		}
		asked := clock()
		switch {
		case reached():
			last = time.Now()
			renewed(asked, false)
		case time.Since(last) >= HoldTTL:
			set(op{key: key, delete: true})
			return lost
		}
	}
}

// CutOff keeps a node from renewing what it holds, and ends its announcement, as if it could not reach the control store for
// as long as that takes; or lets it again. Only what is leased is cut off.
func (m *Mem) CutOff(name ident.NodeName, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.cut == nil {
		m.mu.cut = map[string]bool{}
	}
	m.mu.cut[keyHold(name)] = cut
	m.applyLocked([]op{{key: keyAlive(name), value: encode(time.Time{}, ""), delete: cut}})
}

func (k memKV) close() error { return nil }

// wayKV is a client's view over a Way.
type wayKV struct {
	memKV
	way Way
}

// over does a request and brings back its answer; an answer that is lost on the way is an error like any other.
func over[T any](ctx context.Context, w Way, f func() (T, error)) (T, error) {
	var none T
	if err := w.Pass(ctx); err != nil {
		return none, err
	}
	v, err := f()
	if lost := w.Pass(ctx); lost != nil {
		return none, lost
	}
	return v, err
}

// listed is what get and list answer.
type listed struct {
	pairs []pair
	rev   Rev
}

func (k wayKV) get(ctx context.Context, key string) (pair, Rev, error) {
	l, err := over(ctx, k.way, func() (listed, error) {
		p, rev, err := k.memKV.get(ctx, key)
		return listed{[]pair{p}, rev}, err
	})
	if err != nil {
		return pair{}, 0, err
	}
	return l.pairs[0], l.rev, nil
}

func (k wayKV) list(ctx context.Context, dir string) ([]pair, Rev, error) {
	l, err := over(ctx, k.way, func() (listed, error) {
		p, rev, err := k.memKV.list(ctx, dir)
		return listed{p, rev}, err
	})
	return l.pairs, l.rev, err
}

func (k wayKV) commit(ctx context.Context, t txn) (txnResult, error) {
	return over(ctx, k.way, func() (txnResult, error) { return k.memKV.commit(ctx, t) })
}

// watch hears of changes late, and ends when one can't be told.
func (k wayKV) watch(ctx context.Context, dir string, after Rev, f func([]change, Rev) error) error {
	return k.memKV.watch(ctx, dir, after, func(c []change, rev Rev) error {
		if err := k.way.Pass(ctx); err != nil {
			return err
		}
		return f(c, rev)
	})
}

// memLease is a key that goes when its time to live is over: for clients by a Way, of which nobody but their silence tells
// the store that they are gone.
type memLease struct {
	m     *Mem
	key   string
	rev   Rev // of the put: a key that was put since is another one's
	made  int // Mem.mu.generation: a store that was put in this one's place knows nothing of it
	ttl   time.Duration
	timer *time.Timer
	over  bool // Mem.mu
}

// grant puts a key with a lease of its own.
func (k memKV) grant(key string, value []byte, ttl time.Duration) (*memLease, error) {
	m := k.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.downLocked() {
		return nil, errMemDown
	}
	if err := k.checkLocked(); err != nil {
		return nil, err
	}
	m.applyLocked([]op{{key: key, value: value}})
	l := &memLease{m: m, key: key, rev: m.mu.rev, made: m.mu.generation, ttl: ttl}
	l.timer = time.AfterFunc(ttl, l.expire)
	return l, nil
}

// expire ends the lease. A store that is away ends none: whoever leads it next begins to count anew.
func (l *memLease) expire() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.mu.down && !l.over {
		l.timer.Reset(l.ttl)
		return
	}
	l.endLocked()
}

func (l *memLease) endLocked() {
	if !l.over && l.made == l.m.mu.generation && l.m.mu.pairs[l.key].mod == l.rev {
		l.m.applyLocked([]op{{key: l.key, delete: true}})
	}
	l.over = true
}

func (l *memLease) renew() (struct{}, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	switch {
	case l.m.mu.down:
		return struct{}{}, errMemDown
	case l.over || l.made != l.m.mu.generation:
		return struct{}{}, errLeaseOver
	}
	l.timer.Reset(l.ttl)
	return struct{}{}, nil
}

func (l *memLease) revoke() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if !l.m.mu.down {
		l.timer.Stop()
		l.endLocked()
	}
}

// leased has a key for as long as the way carries its renewals; renewed is told of each that was answered.
func (k wayKV) leased(ctx context.Context, key string, value []byte, ttl, every time.Duration, clock func() int64, renewed func(asked int64, anew bool)) error {
	asked := clock()
	l, err := over(ctx, k.way, func() (*memLease, error) { return k.memKV.grant(key, value, ttl) })
	if err != nil {
		return err
	}
	defer func() {
		if k.way.Pass(context.WithoutCancel(ctx)) == nil {
			l.revoke()
		}
	}()
	renewed(asked, true)
	return keepRenewed(ctx, ttl, every, clock, renewed, func() error {
		_, err := over(ctx, k.way, l.renew)
		return err
	})
}

func (k wayKV) hold(ctx context.Context, key string, value []byte, clock func() int64, renewed func(asked int64, anew bool)) error {
	return k.leased(ctx, key, value, HoldTTL, HoldEvery, clock, renewed)
}

func (k wayKV) keep(ctx context.Context, key string, value []byte, ttl time.Duration) {
	for ctx.Err() == nil {
		_ = k.leased(ctx, key, value, ttl, ttl/4, func() int64 { return 0 }, func(int64, bool) {})
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
