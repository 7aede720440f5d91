package core

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// Bounded is a store as other sites write to it. Their owners can not tell a disk that hangs from a link that is slow or full: an answer
// may be minutes away for either reason. The store's own node can, so it is the node that says so: what is asked for from another site
// is answered after a while, with an error, though the disk's operation goes on.
//
//	works ──an operation outlasts its time──> hangs: everything is refused at once ──it has returned──> works
//
// So a sender gets an answer to whatever it has sent, in the time of its link and a bounded one here, and needs to give up nothing itself: when it goes
// on elsewhere nothing that it has asked for here is unanswered. What was refused in front of the disk is not done; whether the operation that hangs
// is done is not known, as with a connection that ends (wire.ErrUnreached), and all that it can do is what it was asked to. As long as
// it has not returned nothing else is begun.
//
// Reads, fences and drops are the store's own: they promise nothing by when they end.
type Bounded struct {
	journal.Store
	after   time.Duration
	log     *slog.Logger
	hanging atomic.Int32 // operations that were given up and have not returned
	wg      sync.WaitGroup

	mu struct {
		sync.Mutex
		lanes map[ident.SegmentID]*appendLane // those with something to do
	}
}

// appendLane is the appends to one segment that have come and are not done, in order. A goroutine makes them, and ends when there are none:
// the connection that they come by goes on being read while the disk hangs.
type appendLane struct{ queue []*laneAppend }

type laneAppend struct {
	m     *wire.Append
	done  func(wire.AppendReply, error)
	turn  chan struct{} // not nil: no append, but somebody who waits for those before it
	state atomic.Int32  // operation*
}

// What has become of an operation; who brings it out of operationRuns answers it.
const (
	operationRuns int32 = iota
	operationDone
	operationLeft
)

// NewBounded makes a store's operations end, for whoever waits for them, after a time.
func NewBounded(s journal.Store, after time.Duration, log *slog.Logger) *Bounded {
	b := &Bounded{Store: s, after: after, log: log}
	b.mu.lanes = map[ident.SegmentID]*appendLane{}
	return b
}

// Close waits until all that was begun has returned. Nobody asks for anything any more.
func (b *Bounded) Close() { b.wg.Wait() }

func (b *Bounded) refusal() *wire.Error {
	return wire.Errorf(wire.CodeUnreached, "the disk of store %s hangs: an operation has not ended within %v", b.ID(), b.after)
}

// leave gives an operation up; false if it has just ended. From then on the store refuses everything.
func (b *Bounded) leave(state *atomic.Int32, what string, id ident.SegmentID) bool {
	b.hanging.Add(1) // before anybody hears of it
	if !state.CompareAndSwap(operationRuns, operationLeft) {
		b.hanging.Add(-1)
		return false
	}
	b.log.Warn("disk hangs: other sites are told so", "store", b.ID(), "operation", what, "segment", id, "after", b.after)
	return true
}

// ended takes the end of an operation; false if it was given up.
func (b *Bounded) ended(state *atomic.Int32) bool {
	if state.CompareAndSwap(operationRuns, operationDone) {
		return true
	}
	if b.hanging.Add(-1) == 0 {
		b.log.Info("disk does not hang any more", "store", b.ID())
	}
	return false
}

// Append implements journal.Store. An append that is given up ends with a *journal.InUse.
func (b *Bounded) Append(m *wire.Append, done func(wire.AppendReply, error)) {
	if !b.queue(m.Segment, &laneAppend{m: m, done: done}, true) {
		done(wire.AppendReply{}, b.refusal())
	}
}

// queue puts something behind the appends to a segment. If there are none it begins a lane, or, unless begin, does nothing. It
// refuses while the disk hangs.
func (b *Bounded) queue(id ident.SegmentID, x *laneAppend, begin bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hanging.Load() > 0 {
		return false
	}
	l := b.mu.lanes[id]
	switch {
	case l == nil && !begin:
		return false
	case l == nil:
		l = &appendLane{}
		b.mu.lanes[id] = l
		b.wg.Go(func() { b.runLane(id, l) })
	}
	l.queue = append(l.queue, x)
	return true
}

func (b *Bounded) runLane(id ident.SegmentID, l *appendLane) {
	for {
		b.mu.Lock()
		if len(l.queue) == 0 {
			delete(b.mu.lanes, id)
			b.mu.Unlock()
			return
		}
		x := l.queue[0]
		l.queue = l.queue[1:]
		b.mu.Unlock()
		if x.turn != nil {
			close(x.turn)
			continue
		}
		b.append(l, x)
	}
}

// append makes one append, and returns when it has returned, whether or not it was given up before.
func (b *Bounded) append(l *appendLane, x *laneAppend) {
	timer := time.AfterFunc(b.after, func() {
		if b.leave(&x.state, "append", x.m.Segment) {
			x.done(wire.AppendReply{}, &journal.InUse{Err: b.refusal()})
			b.refuse(l)
		}
	})
	defer timer.Stop()
	over := make(chan struct{})
	b.Store.Append(x.m, func(r wire.AppendReply, err error) {
		if b.ended(&x.state) {
			x.done(r, err)
		}
		close(over)
	})
	<-over
}

// refuse answers what waits behind an append that was given up. None comes after it: queue refuses by now.
func (b *Bounded) refuse(l *appendLane) {
	b.mu.Lock()
	list := l.queue
	l.queue = nil
	b.mu.Unlock()
	for _, x := range list {
		if x.turn != nil {
			close(x.turn)
		} else {
			x.done(wire.AppendReply{}, b.refusal())
		}
	}
}

// behind waits for the appends to a segment that have come before, as it would where they are made while a connection is read.
func (b *Bounded) behind(id ident.SegmentID) {
	x := &laneAppend{turn: make(chan struct{})}
	if b.queue(id, x, false) {
		<-x.turn
	}
}

// within runs an operation behind the appends to segments, and waits no longer than the store's time.
func within[M, R any](b *Bounded, ctx context.Context, what string, m M, segments []ident.SegmentID, f func(context.Context, M) (R, error)) (R, error) {
	type result struct {
		r   R
		err error
	}
	if b.hanging.Load() > 0 {
		var none R
		return none, b.refusal()
	}
	got := make(chan result, 1)
	var state atomic.Int32
	b.wg.Go(func() {
		for _, id := range segments {
			b.behind(id)
		}
		r, err := f(ctx, m)
		if b.ended(&state) {
			got <- result{r, err}
		}
	})
	timer := time.NewTimer(b.after)
	defer timer.Stop()
	select {
	case x := <-got:
		return x.r, x.err
	case <-timer.C:
	}
	var id ident.SegmentID
	if len(segments) > 0 {
		id = segments[0]
	}
	if b.leave(&state, what, id) {
		var none R
		return none, b.refusal()
	}
	x := <-got
	return x.r, x.err
}

// OpenSegment implements journal.Store.
func (b *Bounded) OpenSegment(ctx context.Context, m *wire.OpenSegment) (wire.OpenReply, error) {
	return within(b, ctx, "open", m, []ident.SegmentID{m.Segment}, b.Store.OpenSegment)
}

// Sync implements journal.Store. With no segments it asks whether the disk hangs.
func (b *Bounded) Sync(ctx context.Context, m *wire.Sync) (wire.SyncReply, error) {
	return within(b, ctx, "fdatasync", m, m.Segments, b.Store.Sync)
}

// Seal implements journal.Store.
func (b *Bounded) Seal(ctx context.Context, m *wire.Seal) (wire.SealReply, error) {
	return within(b, ctx, "seal", m, []ident.SegmentID{m.Segment}, b.Store.Seal)
}
