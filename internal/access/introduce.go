package access

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// After a restore of the control store the stores say what they have heard of, and what nobody has heard of counts as never
// written: whoever takes it next asks nobody (R3). An owner whose key was lost with the control store, and that had not spoken
// to a store by then, would begin behind that, beside the next one, on other stores.
//
// So an owner that has found no history has its members hear of its epoch first, durably, and looks at its key then. If the key
// stands, no restore from an older backup has asked those stores yet, and each one after it is told.

// introduce returns once two members know of the epoch, and the key has been seen to stand after that.
func (o *Owner) introduce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	heard := make(chan error, len(o.members))
	for _, m := range o.members {
		wg.Go(func() {
			st, ok := o.env.Stores.Store(m.Store)
			if !ok {
				heard <- wire.Errorf(wire.CodeAbsent, "store %s is not registered", m.Store)
				return
			}
			_, err := st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
			heard <- err
		})
	}
	var last error
	for n, left := 0, len(o.members); n < min(2, len(o.members)); left-- {
		if left == 0 {
			return fmt.Errorf("begin journal %s: fewer than two of its core servers answer: %w", o.journalID, last)
		}
		select {
		case err := <-heard:
			if err != nil {
				last = err
			} else {
				n++
			}
		case <-ctx.Done():
			return fmt.Errorf("begin journal %s: %w", o.journalID, ctx.Err())
		}
	}
	now, _, err := o.env.Control.JournalNow(ctx, o.journalID)
	if err != nil {
		return fmt.Errorf("begin journal %s: %w", o.journalID, err)
	}
	if now.Epoch != o.epoch || now.Owner != o.env.Node || now.Unheard || !lists(now, o.state) {
		return wire.Errorf(wire.CodeBusy, "journal %s: its key has changed since this node became its owner at epoch %s: the control store was restored, or names another one", o.journalID, o.epoch)
	}
	return nil
}

// lists reports that a key has the newest ensemble of another one.
func lists(now, was control.JournalState) bool {
	a, ok := now.Newest()
	b, too := was.Newest()
	return ok && too && a.Epoch == b.Epoch && a.Number == b.Number && slices.Equal(a.Stores, b.Stores)
}
