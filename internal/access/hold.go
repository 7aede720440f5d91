package access

import (
	"context"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// The owner's part of handing its journal over (R10): it slows writers, holds commands back, drains, and gives back
// what it held.
//
//	serving ──freeze──> draining ──all committed──> drained ──control store──> stopped
//	   ^                   │                           │
//	   └──────resume───────┴───────────────────────────┘

// moveState is what the owner's loop keeps of it.
type moveState struct {
	hurry   atomic.Bool // ships wait for nothing more
	drained atomic.Bool // and nothing more comes
	frozen  bool
	held    []*Op // arrived since; nothing has been done about them
	slowed  []*Op // writes that wait for their turn
	rate    int64 // bytes of writes a second; 0: as fast as they come
	budget  int64 // what may be let in now; below zero: what was let in too much
	filled  uint64
	still   time.Duration // by the owner's clock: no checkpoint begins by itself until then
}

// holdBack keeps a command that has just arrived, if it is to wait. Reads go on until the owner stops: it has its
// leases.
func (o *Owner) holdBack(op *Op) bool {
	m := &o.move
	if !m.frozen && m.rate == 0 || o.stopErr != nil {
		return false
	}
	switch {
	case op.Kind == wire.OpRead || op.Kind == wire.OpProvisioned || op.Kind == wire.OpUnitState:
		return false
	case m.frozen:
		m.held = append(m.held, op)
		return true
	case !writes(op.Kind) || op.Buf == nil:
		return false
	case len(m.slowed) > 0 || m.budget <= 0:
		m.slowed = append(m.slowed, op)
		return true
	}
	m.budget -= op.Length
	return false
}

// setRate slows writers down, or with 0 lets them go.
func (o *Owner) setRate(bytesPerSecond int64) {
	m := &o.move
	m.rate, m.filled = bytesPerSecond, o.tick()
	if bytesPerSecond == 0 {
		o.admitAll(&m.slowed)
	}
}

// letSlowedIn is called by the timers.
func (o *Owner) letSlowedIn() {
	m := &o.move
	if m.rate == 0 || m.frozen {
		return
	}
	now := o.tick()
	// No more is saved up than a tenth of a second's.
	m.budget = min(m.budget+m.rate*int64(now-m.filled)/1000, m.rate/10)
	m.filled = now
	for len(m.slowed) > 0 && m.budget > 0 {
		op := m.slowed[0]
		m.slowed = m.slowed[1:]
		m.budget -= op.Length
		o.admit(op)
	}
}

func (o *Owner) admitAll(list *[]*Op) {
	l := *list
	*list = nil
	for _, op := range l {
		o.admit(op)
	}
}

// giveBackHeld answers what was held when the owner stops, so that it can be taken to the next one.
func (o *Owner) giveBackHeld(gone error) {
	m := &o.move
	for _, list := range [][]*Op{m.slowed, m.held} {
		for _, op := range list {
			op.fresh = true
			o.finish(op, gone)
		}
	}
	m.slowed, m.held = nil, nil
}

// freeze stops admitting and waits until everything that has been let in is committed. Nothing gets a place in the
// history from then on; at is where it ends.
func (o *Owner) freeze(ctx context.Context) (at ident.Position, err error) {
	o.ask(func() {
		m := &o.move
		m.held, m.slowed = append(m.held, m.slowed...), nil
		m.frozen = true
	})
	o.move.hurry.Store(true)
	for {
		done := false
		o.ask(func() {
			if err = o.stopErr; err != nil {
				return
			}
			if len(o.uncommitted)+len(o.waiting)+len(o.split)+len(o.stableWait)+len(o.ack.wait)+o.merging > 0 || !o.w.AllCommitted() {
				return
			}
			done, at = true, o.w.At()
			o.w.Pause(true)
			for i := range o.members {
				o.stores[i].Notice(&wire.Notice{Epoch: o.epoch, Journal: o.journalID, Commit: o.w.Commit(), Stable: o.w.Stable()})
			}
		})
		if err != nil {
			return at, err
		}
		if done {
			o.move.drained.Store(true)
			o.wakeShips()
			return at, nil
		}
		select {
		case <-ctx.Done():
			return at, wire.Errorf(wire.CodeBusy, "commands that were let in are not done: %v", ctx.Err())
		case <-o.stopped:
		case <-time.After(time.Millisecond):
		}
	}
}

// resume goes on as if nothing had been.
func (o *Owner) resume() {
	o.move.hurry.Store(false)
	o.move.drained.Store(false)
	o.ask(func() {
		m := &o.move
		m.frozen = false
		if o.stopErr != nil {
			return
		}
		o.w.Pause(false)
		o.setRate(0)
		o.admitAll(&m.held)
	})
}

// ship finds the shipping to a site.
func (o *Owner) ship(site ident.SiteID) (found *siteShip) {
	o.ask(func() {
		for _, s := range o.ships {
			if s.site == site {
				found = s
			}
		}
	})
	return found
}

// lagOf is how many bytes a site has not confirmed. It runs in the loop.
func (o *Owner) lagOf(s *siteShip) (n uint64) {
	s.mu.Lock()
	mark, id, shipped := s.mu.mark, s.mu.segment, s.mu.shipped
	s.mu.Unlock()
	commit := o.w.Commit().Seq
	for i := len(o.order) - 1; i >= 0 && mark.Seq < commit; i-- {
		seg := o.order[i]
		if seg.last.Seq <= mark.Seq {
			break
		}
		if seg.id == id {
			n += uint64(seg.end - min(shipped, seg.end))
		} else {
			n += uint64(seg.end)
		}
	}
	return n
}

// counted is how many bytes the site has taken.
func (s *siteShip) counted() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.bytes
}

// took counts what a site has taken; urgent has the ship look at once whether that was all.
func (s *siteShip) took(n int, urgent bool) {
	s.mu.Lock()
	s.mu.bytes += uint64(n)
	s.mu.Unlock()
	if urgent {
		s.wakeUp()
	}
}

// stableAt reports that a site, or with 0 any but the owner's, has everything up to seq, stably (R10).
func (o *Owner) stableAt(site ident.SiteID, seq ident.Seq) (yes bool) {
	o.ask(func() {
		for _, s := range o.ships {
			if site != 0 && s.site != site {
				continue
			}
			s.mu.Lock()
			yes = yes || s.mu.stable >= seq && s.mu.mark.Seq >= seq
			s.mu.Unlock()
		}
	})
	return yes
}

// tailAt says what of the history up to its end, which nothing is added to any more, is on its way to a site and not known to be
// stable there: the end of one segment at most. yes is false while there is more, or something has not been sent.
func (o *Owner) tailAt(s *siteShip, end ident.Position) (tail []wire.HandTail, yes bool) {
	o.ask(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.mu.stable >= end.Seq && s.mu.mark.Seq >= end.Seq:
			yes = true
			return
		case s.mu.sent < end.Seq || s.mu.gap != nil || len(o.order) == 0:
			return
		}
		last := o.order[len(o.order)-1]
		for i := len(o.order) - 2; i >= 0 && last.before.Seq >= end.Seq; i-- {
			last = o.order[i] // the newest is empty
		}
		if last.id == s.mu.open && last.last == end && s.mu.stable >= last.before.Seq {
			tail, yes = []wire.HandTail{{Segment: last.id, Store: s.mu.dest, Last: end}}, true
		}
	})
	return tail, yes
}

// settledAt reports that what a site has is stable there but for the segment that is being shipped: nothing older has to be
// waited for in the pause.
func (o *Owner) settledAt(s *siteShip) (yes bool) {
	o.ask(func() {
		s.mu.Lock()
		mark, stable := s.mu.mark.Seq, s.mu.stable
		s.mu.Unlock()
		for i := len(o.order) - 1; i >= 0; i-- {
			if before := o.order[i].before.Seq; before <= mark {
				yes = stable >= before
				return
			}
		}
		yes = true
	})
	return yes
}

// noCheckpoints has none begin by itself for a while.
func (o *Owner) noCheckpoints(d time.Duration) {
	o.ask(func() { o.move.still = time.Duration(o.env.Clock()) + d })
}

// checkpointAt reports that a site has every checkpoint segment that the newest checkpoint needs, and that no newer one is being made.
func (o *Owner) checkpointAt(site ident.SiteID) (yes bool) {
	o.ask(func() {
		yes = !o.cp.running
		for id, s := range o.segs {
			if id.IsCheckpoint() && s.sealed && s.slot != 0 && o.goodAt(s, site) == 0 {
				yes = false
			}
		}
	})
	return yes
}

// handAway ends the owner in favour of the one that the control store names now, and fills in what that one gets.
func (o *Owner) handAway(m *wire.HandOver, to ident.NodeName) {
	o.ask(func() {
		m.Stopped = o.tick()
		o.late.give(m)
		m.Hot = o.far.hottest()
		if p := o.w.Point(); p.At.Seq != 0 {
			m.Point = journal.AppendCheckpoint(nil, p)
		}
		o.m.Requests().Since(o.w.Point().At.Seq, func(id journal.RequestID, part uint8, seq ident.Seq) {
			m.Requests = append(m.Requests, wire.HandRequest{Request: wire.RequestID{Forwarder: id.Forwarder, Number: id.Number}, Part: part, Seq: seq})
		})
		o.stop(&handedOver{to})
	})
}

// handedOver ends an owner that has given its journal away.
type handedOver struct{ to ident.NodeName }

func (h *handedOver) Error() string { return "handed over to " + string(h.to) }
