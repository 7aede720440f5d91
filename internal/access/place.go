package access

import (
	"cmp"
	"math"
	"slices"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Where replicas go: what is known of stores beyond how they are reached, and the order in which they are chosen.
// All of it is about where things should be, never about what is committed.

// StoreInfo is what a node knows of a store, from the control store (an operator's words) and from the store itself,
// some seconds old.
type StoreInfo struct {
	Leaving bool // it is being emptied: nothing new goes there, and what it has goes elsewhere
	Lost    bool // an operator has declared it lost: it counts for nothing any more (R3, R13)

	Failed   bool   // it takes no appends any more
	Known    bool   // the store has been heard of: the fields below mean something
	Free     uint64 // bytes
	Capacity uint64
	Replicas uint64                // of all journals
	Damaged  []wire.DamagedReplica // those with a bad place
}

// about is what is known of a store; nothing, where the node has no way to tell.
func (e *Env) about(id ident.StoreID) StoreInfo {
	if e.About == nil {
		return StoreInfo{}
	}
	return e.About(id)
}

// freePercent is the part of a store that is free, and 100 where nothing is known: then all are alike.
func (i *StoreInfo) freePercent() int {
	if !i.Known || i.Capacity == 0 {
		return 100
	}
	return int(float64(i.Free) / float64(i.Capacity) * 100)
}

// roomTolerance is by how many percent of its capacity a store may be emptier than another before that decides which of
// them is used: reads are local, and data that move for a little more evenness cost more than they bring.
const roomTolerance = 10

// crowding says how much less room each store has than the emptiest of them, in steps of roomTolerance: 0 where the
// difference is tolerable.
func (e *Env) crowding(list []ident.StoreID) map[ident.StoreID]int {
	out := make(map[ident.StoreID]int, len(list))
	best := 0
	for _, id := range list {
		i := e.about(id)
		out[id] = i.freePercent()
		best = max(best, out[id])
	}
	for id, free := range out {
		out[id] = max(0, best-free-1) / roomTolerance
	}
	return out
}

// placeable reports that new replicas may go to a store.
func (e *Env) placeable(id ident.StoreID) bool {
	i := e.about(id)
	return !i.Leaving && !i.Lost
}

// places lists the stores of a site to which new replicas may go, and on how many hosts they are.
func (e *Env) places(site ident.SiteID) (list []ident.StoreID, hosts int) {
	var names []string
	for _, id := range e.Stores.Core(site) {
		if !e.placeable(id) {
			continue
		}
		list = append(list, id)
		if h := e.Stores.Host(id); !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	return list, len(names)
}

// roomyFirst puts stores in the order in which they should take something: those with room first, each of them in its
// turn, then the crowded ones, and last those that are being emptied.
func (e *Env) roomyFirst(stores []journal.Store, turn int) []journal.Store {
	ids := make([]ident.StoreID, len(stores))
	for i, st := range stores {
		ids[i] = st.ID()
	}
	crowding := e.crowding(ids)
	rank := func(st journal.Store) int {
		if !e.placeable(st.ID()) {
			return math.MaxInt
		}
		return crowding[st.ID()]
	}
	out := slices.Clone(stores)
	slices.SortStableFunc(out, func(a, b journal.Store) int { return cmp.Compare(rank(a), rank(b)) })
	n := 0
	for n < len(out) && rank(out[n]) == rank(out[0]) {
		n++
	}
	if n > 0 {
		turn %= n
		rotated := slices.Concat(out[turn:n], out[:turn])
		copy(out, rotated)
	}
	return out
}

// enlisted counts in how many newest ensembles each store is.
func enlisted(ctl control.Store) map[ident.StoreID]int {
	count := map[ident.StoreID]int{}
	for _, id := range ctl.Journals() {
		state, _, _ := ctl.Journal(id)
		if e, ok := state.Newest(); ok {
			for _, s := range e.Stores {
				count[s]++
			}
		}
	}
	return count
}

// chooseEnsemble picks the stores for a journal whose owner is at this node's site: up to four of different hosts at home,
// with two of them a third at another site, which is used only while fewer than two at home
// answer (R3). A site without core servers takes those of the first of the copy sites that has some.
// Stores that are down are taken only if there are no others; those that are being emptied or are lost, never.
// home is how many of them are of the site and up.
//
// This node's own store comes first, since its owner writes there without a network; then those with room, then
// those that are in the fewest ensembles: load and capacity spread over all core servers.
func (e *Env) chooseEnsemble(journal ident.JournalID, sites []ident.SiteID) (stores []ident.StoreID, home int) {
	dir := e.Stores
	var busy map[ident.StoreID]int
	var hosts []string
	take := func(from ident.SiteID, most int, up bool) {
		list, _ := e.places(from)
		if len(list) > most && busy == nil {
			busy = enlisted(e.Control)
		}
		crowding := e.crowding(list)
		slices.SortFunc(list, func(a, b ident.StoreID) int {
			if c := cmp.Compare(crowding[a], crowding[b]); c != 0 {
				return c
			}
			if dir.Local(a) != dir.Local(b) {
				if dir.Local(a) {
					return -1
				}
				return 1
			}
			return cmp.Or(cmp.Compare(busy[a], busy[b]), rendezvous(journal, a, b))
		})
		for _, s := range list {
			if len(stores) < most && dir.Up(s) == up && !slices.Contains(hosts, dir.Host(s)) {
				stores = append(stores, s)
				hosts = append(hosts, dir.Host(s))
			}
		}
	}
	take(e.Site, ensembleHome, true)
	home = len(stores)
	if home < 2 {
		take(e.Site, 2, false)
	}
	for _, other := range sites {
		if other != e.Site {
			take(other, 3, true)
		}
	}
	return stores, home
}

// ensembleHome is how many stores of its site an ensemble has where there are so many: one volume is read and written at the
// speed of so many disks. A takeover needs all but one of them, however many they are (R2), so there are not more.
const ensembleHome = control.EnsembleMax

// homeWanted is how many stores of different hosts an ensemble should have at home, those that are down included; homeUp,
// how many it can have now.
func (e *Env) homeWanted() int {
	_, hosts := e.places(e.Site)
	return min(hosts, ensembleHome)
}

func (e *Env) homeUp() int {
	list, _ := e.places(e.Site)
	var hosts []string
	for _, id := range list {
		if h := e.Stores.Host(id); e.Stores.Up(id) && e.Health.Usable(id) && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return min(len(hosts), ensembleHome)
}
