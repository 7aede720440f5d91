package access

import (
	"context"
	"errors"
	"time"

	"dozo/internal/control"
)

// After the control store was restored from a backup, or rebuilt, what it has of a journal that is owned here is old.
// The owner knows better, as long as it holds its leases: no other owner can have come after it then (R6).

const writeBackTimeout = 10 * time.Second

// writeBack has the owner's key written where the control store has an older one. Server.mu is held.
func (s *Server) writeBack(v *Volume, o *Owner, state control.JournalState) {
	r, restored := s.env.Control.Restoration()
	if o == nil || !restored || v.backing {
		return
	}
	newest, some := state.Newest()
	if _, rev, known := s.env.Control.Journal(v.id); known && rev != 0 && !state.Unheard && !(some && newest.Wide && !o.epoch.Less(state.Epoch)) || !r.Pending() && rev == 0 {
		return
	}
	v.backing = true
	s.wg.Go(func() {
		defer func() {
			s.mu.Lock()
			v.backing = false
			s.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(s.ctx, writeBackTimeout)
		defer cancel()
		if err := o.writeBack(ctx); err != nil && ctx.Err() == nil {
			s.env.Log.Warn("the owner's key is not written back", "volume", v.spec.Load().Name, "journal", v.id.String(), "err", err)
			select {
			case <-time.After(time.Second):
			case <-s.ctx.Done():
			}
		}
	})
}

var errNotStanding = errors.New("the owner does not hold its leases now")

// writeBack writes the owner's key into a restored control store, if the owner holds its leases.
func (o *Owner) writeBack(ctx context.Context) error {
	var state control.JournalState
	standing := false
	done := make(chan struct{})
	o.call(func() {
		defer close(done)
		state = o.state.Clone()
		standing = o.stopErr == nil && o.w != nil && o.w.Serving() && o.mayRead()
	})
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !standing {
		return errNotStanding
	}
	state, _, err := o.env.Control.WriteBack(ctx, *o.spec.Load(), state)
	if errors.Is(err, control.ErrConflict) && o.epoch.Less(state.Epoch) {
		o.log.Warn("deposed while the control store was away", "by", state.Epoch.String())
	}
	if err == nil {
		o.log.Warn("key written back to the restored control store")
	}
	return err
}
