package scsi

import (
	"errors"
	"maps"
	"slices"
	"sync"
)

// copies are the operations of a nexus, by list identifier.
type copies struct {
	mu      sync.Mutex
	byID    map[uint32]*copyOp
	kept    []uint32             // whose results are kept, oldest first
	unnamed map[*copyOp]struct{} // those under way that have no identifier
}

// enter makes an operation known, unless one of the same identifier is under way, or too many are.
func (x *copies) enter(o *copyOp) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byID == nil {
		x.byID, x.unnamed = map[uint32]*copyOp{}, map[*copyOp]struct{}{}
	}
	if old := x.byID[o.list]; !o.unnamed && old != nil && !old.over() {
		if old.segments && o.segments && old.action != o.action {
			return errCopyOtherFormat
		}
		return errCopyUnderWay
	}
	active := len(x.unnamed)
	for _, other := range x.byID {
		if !other.over() {
			active++
		}
	}
	switch {
	case active >= copiesMax:
		return ErrBusy
	case o.unnamed:
		x.unnamed[o] = struct{}{}
		return nil
	}
	x.dropLocked(o.list)
	x.byID[o.list] = o
	x.kept = append(x.kept, o.list)
	for i := 0; len(x.kept) > copyKept && i < len(x.kept); {
		if id := x.kept[i]; x.byID[id].over() {
			x.dropLocked(id)
		} else {
			i++
		}
	}
	return nil
}

// errCopyUnderWay refuses a list identifier that is in use, errCopyOtherFormat one that is in use by the other form of EXTENDED COPY
// (SPC-4 6.4.3.2).
var (
	errCopyUnderWay    = errors.New("a copy with this list identifier is under way")
	errCopyOtherFormat = errors.New("a copy with this list identifier is under way, by the other form of the command")
)

func (x *copies) dropLocked(list uint32) {
	delete(x.byID, list)
	for i, id := range x.kept {
		if id == list {
			x.kept = append(x.kept[:i], x.kept[i+1:]...)
			return
		}
	}
}

// forget drops what is kept of operations that are over.
func (x *copies) forget(list []*copyOp) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range list {
		if x.byID[o.list] == o {
			x.dropLocked(o.list)
		}
	}
}

func (x *copies) find(list uint32) *copyOp {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.byID[list]
}

func (x *copies) drop(list uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.dropLocked(list)
}

// left forgets an operation without identifier that is over.
func (x *copies) left(o *copyOp) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.unnamed, o)
}

// cancelAll ends all operations, and forgets what came of them. over is called, possibly at once, when none of them has anything
// under way any more. The unit was reset, or the nexus is lost (SPC-4 6.24).
func (x *copies) cancelAll(over func()) {
	x.mu.Lock()
	active := slices.Collect(maps.Values(x.byID))
	active = slices.AppendSeq(active, maps.Keys(x.unnamed))
	x.mu.Unlock()
	ended := afterAll(len(active), func() {
		x.forget(active)
		over()
	})
	for _, o := range active {
		o.cancel(ended)
	}
}
