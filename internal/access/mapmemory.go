package access

import "sync"

// MapMemory is what the maps of all volumes that a node owns may take in memory together. While they take more, each owner pages
// its own out in proportion, once a second. What is used comes back, so it is the maps of volumes with little to do that shrink.
// The first bytes of each, mapFree, count for nothing: thousands of small volumes take no room from large ones, and keep their few leaves.
type MapMemory struct {
	budget int64
	free   int64 // of each owner's, beside the budget

	mu struct {
		sync.Mutex
		of    map[*Owner]mapShare
		total int64   // the sum
		round uint64  // begins when an owner asks for the second time since the last one began
		part  float64 // of what it takes each may keep in this round: the same for all, whoever asks first
	}
}

// mapFree is a guess: what a volume of some GiB needs, whatever is written to it.
const mapFree = 1 << 20

// mapShare is an owner's.
type mapShare struct {
	bytes int64  // as it has told, without what is free
	round uint64 // in which it asked last
}

// NewMapMemory makes the budget of a node.
func NewMapMemory(bytes int64) *MapMemory {
	x := &MapMemory{budget: bytes, free: mapFree}
	x.mu.of = map[*Owner]mapShare{}
	return x
}

// tell says what an owner's map takes.
func (x *MapMemory) tell(o *Owner, bytes int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.mu.of[o]
	bytes = max(0, bytes-x.free)
	x.mu.total += bytes - m.bytes
	m.bytes = bytes
	x.mu.of[o] = m
}

// share gives what it may take; asked once a second.
func (x *MapMemory) share(o *Owner) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.mu.of[o]
	if m.round == x.mu.round {
		x.mu.round++
		x.mu.part = min(1, float64(x.budget)/float64(max(1, x.mu.total)))
	}
	m.round = x.mu.round
	x.mu.of[o] = m
	if x.mu.part == 1 {
		return x.free + m.bytes
	}
	return x.free + int64(x.mu.part*float64(m.bytes))
}

// leave forgets an owner that has ended.
func (x *MapMemory) leave(o *Owner) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.total -= x.mu.of[o].bytes
	delete(x.mu.of, o)
}

// mapRoom is how much a map that is loaded ahead of a takeover may take: half of what is left.
func (e *Env) mapRoom() int64 {
	x := e.Maps
	if x == nil {
		return e.Limits.MapBudgetBytes / 2
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return (x.budget - x.mu.total) / 2
}

// pageOut takes leaves of the map out of memory that it has no room for.
func (o *Owner) pageOut() {
	budget, all := o.env.Limits.MapBudgetBytes, o.env.Maps
	if all != nil {
		all.tell(o, o.m.Memory())
		budget = all.share(o)
	}
	if !o.mayEvict() {
		return
	}
	if freed := o.m.Evict(budget); freed > 0 {
		o.env.Metrics.Evicted.Add(float64(freed))
		if all != nil {
			all.tell(o, o.m.Memory())
		}
	}
}
