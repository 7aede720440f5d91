package iscsi

import (
	"net/netip"
	"slices"
	"sync"
)

// untold has what is left of answers to text requests that are longer than a PDU: with thousands of volumes one is a megabyte, anybody may
// ask for it, and nobody has to fetch the rest. So they are bounded for all connections together, and of that one address leaves a
// quarter to others. Where there is no room the oldest go of the address that has most: who means it fetches the rest at once. Whoever asks for the
// rest of one that went is told to begin anew.
type untold struct {
	max int

	mu    sync.Mutex
	bytes int
	list  []*answer // the oldest first
	from  map[netip.Addr]int
}

// answer is what is left of one.
type answer struct {
	from netip.Addr
	rest []byte // under untold.mu
	size int    // of all of it: what was told is not given back piece by piece
}

// keep remembers an answer. Its own room is what it needs, if nothing else is kept.
func (u *untold) keep(from netip.Addr, rest []byte) *answer {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.from == nil {
		u.from = map[netip.Addr]int{}
	}
	a := &answer{from: from, rest: rest, size: cap(rest)}
	for u.from[from] > 0 && u.from[from]+a.size > u.max-u.max/4 {
		u.dropLocked(u.list[slices.IndexFunc(u.list, func(x *answer) bool { return x.from == from })])
	}
	for u.bytes > 0 && u.bytes+a.size > u.max {
		most := u.mostLocked()
		u.dropLocked(u.list[slices.IndexFunc(u.list, func(x *answer) bool { return x.from == most })])
	}
	u.list = append(u.list, a)
	u.bytes += a.size
	u.from[from] += a.size
	return a
}

// mostLocked is the address that has most.
func (u *untold) mostLocked() (from netip.Addr) {
	most := 0
	for _, x := range u.list { // the order of a map is none
		if n := u.from[x.from]; n > most {
			most, from = n, x.from
		}
	}
	return from
}

// part takes the next n bytes, and says whether more are left. It gives nothing if the answer went.
func (u *untold) part(a *answer, n int) (b []byte, more bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n = min(n, len(a.rest))
	b, a.rest = a.rest[:n], a.rest[n:]
	return b, len(a.rest) > 0
}

// drop forgets an answer, if there is one.
func (u *untold) drop(a *answer) {
	if a == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dropLocked(a)
}

func (u *untold) dropLocked(a *answer) {
	i := slices.Index(u.list, a)
	if i < 0 {
		return
	}
	u.list = slices.Delete(u.list, i, i+1)
	a.rest = nil
	u.bytes -= a.size
	if u.from[a.from] -= a.size; u.from[a.from] == 0 {
		delete(u.from, a.from)
	}
}
