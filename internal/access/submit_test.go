package access

import (
	"testing"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// A read of a volume whose owner is here allocates nothing on its way. What else goes on in the process is less than one allocation for each.
func TestSubmitAllocatesNothing(t *testing.T) {
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	v := &Volume{id: o.journalID}
	v.owner.Store(o)
	done := make(chan error, 1)
	finished := func(op *Op, err error) {
		answer := op.Caller.(chan error)
		op.Release()
		answer <- err
	}
	var failed error
	read := func() {
		op := NewOp()
		op.Kind, op.Offset, op.Length, op.Caller, op.Done = wire.OpRead, 8192, 4096, done, finished
		v.Submit(op)
		if err := <-done; err != nil {
			failed = err // a lease that has run out on a stalling machine
		}
	}
	for range 5 { // a garbage collection in between empties the pools
		if testing.AllocsPerRun(2000, read) == 0 {
			return
		}
	}
	t.Errorf("each read allocates (last error: %v)", failed)
}
