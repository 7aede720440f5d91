package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// handing is the old owner's side of one hand-over.
type handing struct {
	s      *Server
	v      *Volume
	o      *Owner
	to     control.Node
	copies bool // to another site, which must have everything first
	mv     *move
	log    interface {
		Info(string, ...any)
		Warn(string, ...any)
	}

	stores []ident.StoreID
	prior  uint64
	epoch  ident.Epoch
	pause  time.Duration
	parts  handParts
}

// handParts is what a pause was made of.
type handParts struct {
	drained time.Duration // what was let in is committed
	named   time.Duration // before the pause: the control store names the taker, and the owner goes on
	copied  time.Duration // and stable where the volume goes to; after named: on its way there
	written time.Duration // the control store names the taker
	fenced  time.Duration // the stores of this site obey it
	taken   time.Duration // it has said that it serves
}

// attrs are the parts for the log, each without the ones before it.
func (p *handParts) attrs() []any {
	const to = 100 * time.Microsecond
	list := []any{"drained", p.drained.Round(to), "copied", p.copied.Round(to), "written", p.written.Round(to), "fenced", p.fenced.Round(to), "taken", p.taken.Round(to)}
	if p.named > 0 {
		list = append(list, "named_before", p.named.Round(to))
	}
	return list
}

func (h *handing) ask(ctx context.Context, patience time.Duration, m *wire.HandOver) (wire.HandOverReply, error) {
	p, ok := h.s.peers(h.to.Name)
	if !ok {
		return wire.HandOverReply{}, wire.Errorf(wire.CodeUnreached, "node %s is not known", h.to.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m.Journal, m.Node, m.Epoch = h.v.id, h.s.env.Node, h.o.epoch
	return p.HandOver(ctx, m)
}

func (h *handing) run(ctx context.Context) error {
	o := h.o
	if err := h.prepare(ctx); err != nil {
		return err
	}
	// Until the leave is sent the owner goes on if anything fails: as it was, or, once the key names the taker, at an epoch
	// after that one's.
	left := false
	var named control.Rev
	defer func() {
		switch {
		case left:
		case named != 0:
			h.takeBack(h.s.env.Control.TakeBackJournal, named)
		default:
			o.resume()
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, _ = h.ask(cctx, time.Second, &wire.HandOver{Step: wire.HandCancel}) // it forgets by itself in time
		}
	}()
	if h.copies {
		if err := h.catchUp(ctx); err != nil {
			return err
		}
	}
	r, err := h.ask(ctx, drainPatience, &wire.HandOver{Step: wire.HandReady})
	if err != nil {
		return fmt.Errorf("node %s is not ready: %w", h.to.Name, err)
	}
	h.prior = r.Tick
	state, rev, err := h.key(ctx)
	if err != nil {
		return err
	}
	early := h.early(state)
	if early {
		asked := time.Now()
		if state, rev, err = h.write(ctx, rev, early); err != nil {
			return err
		}
		h.parts.named = time.Since(asked)
		named = rev
	}

	begun := time.Now()
	lap := func(at *time.Duration) {
		*at = time.Since(begun) - h.parts.drained - h.parts.copied - h.parts.written - h.parts.fenced
	}
	h.mv.phase("draining")
	dctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	at, err := o.freeze(dctx)
	if err != nil {
		return err
	}
	lap(&h.parts.drained)
	tail, err := h.copied(dctx, at, early)
	if err != nil {
		return err
	}
	lap(&h.parts.copied)
	if early && !h.s.reachable(h.to.Name) { // there is a way back for as long as the leave is not sent
		return wire.Errorf(wire.CodeUnreached, "node %s can not be reached any more", h.to.Name)
	}
	if !early {
		if state, rev, err = h.write(ctx, rev, early); err != nil {
			return err
		}
		lap(&h.parts.written)
	}
	left = true
	h.epoch = state.Epoch
	h.mv.phase("taking over")
	m := &wire.HandOver{Step: wire.HandTake, Next: state.Epoch, Rev: uint64(rev), Sites: state.Sites, Prior: h.prior,
		Ack: uint16(state.Ack), AckSince: state.AckSince, Tail: tail}
	for _, e := range state.Ensembles {
		m.Ensembles = append(m.Ensembles, wire.HandEnsemble{Epoch: e.Epoch, Number: e.Number, Stores: e.Stores})
	}
	o.handAway(m, h.to.Name)
	h.v.note(o.epoch, m.Stopped) // what this node's sessions know of the owner's clock from now on
	h.v.owner.CompareAndSwap(o, nil)
	h.fence(ctx, m)
	lap(&h.parts.fenced)
	r, err = h.ask(context.WithoutCancel(ctx), takePatience, m)
	lap(&h.parts.taken)
	h.pause = time.Since(begun)
	switch {
	case err != nil:
		err = fmt.Errorf("node %s owns it now, but has not said that it serves: %w", h.to.Name, err)
	case r.Failed != 0:
		err = &wire.Error{Code: r.Failed, Detail: fmt.Sprintf("node %s has not begun: %s", h.to.Name, r.Detail)}
		h.epoch = ident.Epoch{}
		h.takeBack(h.s.env.Control.TakeJournal, rev)
	default:
		h.v.note(r.Epoch, r.Tick)
	}
	h.v.wake()
	return err
}

// early reports that the key can be changed while the owner goes on (R10). What the taker waits for itself it has to know of,
// and so has whoever takes over after it. Where the key says more than whom to ask, what it says is true of the owner
// that it names, so it names the one that serves (R11).
func (h *handing) early(state control.JournalState) bool {
	spec := h.v.Spec()
	return h.copies && h.s.env.Control.Level() >= control.LevelHandEarly && state.Forced == nil && !state.Stops && state.Ack == 0 &&
		spec.Ack == 0 && spec.Partition != control.PartitionStop && !h.o.ack.on.Load()
}

// copied waits until everything up to the end of the history is stable at the taker's site, or, where the taker sees to that
// itself, on its way there: tail is what it has to wait for.
func (h *handing) copied(ctx context.Context, at ident.Position, early bool) (tail []wire.HandTail, err error) {
	if !h.copies || mutant.On(mutant.R10Stable) {
		return nil, h.failed(ctx)
	}
	ship, begun := h.o.ship(h.to.Site), time.Now()
	for {
		if err := h.failed(ctx); err != nil {
			return nil, err
		}
		if h.o.stableAt(h.to.Site, at.Seq) {
			return nil, nil
		}
		// A third site's copy is enough for R10, but the taker would read the rest from there, which takes longer than a
		// little patience.
		if time.Since(begun) >= thirdPatience && h.o.stableAt(0, at.Seq) {
			return nil, nil
		}
		if early && ship != nil {
			if tail, yes := h.o.tailAt(ship, at); yes {
				return tail, nil
			}
		}
		select {
		case <-ctx.Done():
		case <-h.o.stopped:
		case <-time.After(time.Millisecond):
		}
	}
}

// failed says why the hand-over can't go on.
func (h *handing) failed(ctx context.Context) error {
	if err := h.o.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return wire.Errorf(wire.CodeBusy, "site %d did not have everything in %v: %v", h.to.Site, drainPatience, err)
	}
	return nil
}

// takeBack makes this node the owner again, by a transaction like anybody's, once the key names a taker that has not begun:
// it was not sent the leave, or has said that it won't begin by it. Until that has succeeded an owner that has not left goes
// on, but not for good: whoever reads the key takes it for deposed. Whoever else has changed the key since has a right to.
func (h *handing) takeBack(how func(context.Context, ident.JournalID, control.Rev, ident.NodeName) (control.JournalState, control.Rev, error), rev control.Rev) {
	s, v, o := h.s, h.v, h.o
	o.resume()
	state, rev, err := how(s.ctx, v.id, rev, s.env.Node)
	var uncertain *control.UncertainError
	for errors.As(err, &uncertain) && s.ctx.Err() == nil {
		h.log.Warn("whether the control store names this node again is not known", "err", err)
		state, rev, err = s.env.Control.Settle(s.ctx, uncertain)
	}
	if err != nil {
		h.log.Warn("the volume is the taker's, or another one's, since the control store names that one", "err", err)
		return
	}
	s.mu.Lock()
	if s.mu.closed || v.taking {
		s.mu.Unlock()
		return
	}
	v.taking = true
	if v.since.IsZero() {
		v.since = time.Now()
	}
	v.owner.CompareAndSwap(o, nil)
	s.mu.Unlock()
	o.ask(func() {
		o.stop(&wire.Error{Code: wire.CodeFenced, Epoch: state.Epoch, Detail: "taken back from a taker that has not begun"})
	})
	h.log.Info("the volume is taken back from a taker that has not begun", "next", state.Epoch.String())
	s.takeOver(v, &handed{state: state, rev: rev}, nil)
}

// fence asks the stores of this site in the taker's name, where that one would have to ask over a distance. What they
// answer is what they would have answered it: from then on they obey its epoch. Who does not answer soon is asked by it.
func (h *handing) fence(ctx context.Context, m *wire.HandOver) {
	if h.to.Site == h.s.env.Site {
		return
	}
	type answer struct {
		store ident.StoreID
		reply wire.FenceReply
		err   error
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fenceForTaker)
	defer cancel()
	asked := map[ident.StoreID]bool{}
	got := make(chan answer, len(m.Ensembles)*control.EnsembleMax)
	for _, e := range m.Ensembles {
		for _, id := range e.Stores {
			st, ok := h.s.env.Stores.Store(id)
			if asked[id] || !ok || h.s.env.Stores.Site(id) != h.s.env.Site || !h.s.env.Stores.Up(id) {
				continue
			}
			asked[id] = true
			h.s.wg.Add(1)
			go func() {
				defer h.s.wg.Done()
				r, err := st.Fence(ctx, &wire.Fence{Journal: h.v.id, Epoch: m.Next, Taker: h.to.Name, Taking: true})
				got <- answer{id, r, err}
			}()
		}
	}
	replicas := 0
	for range asked {
		a := <-got
		if a.err != nil {
			h.log.Info("a store near the old owner is left to the taker's fence", "store", a.store, "err", a.err)
			continue
		}
		if replicas += len(a.reply.Replicas); replicas > fenceForTakerMax {
			continue // too much for the message
		}
		m.Fences = append(m.Fences, wire.HandFence{Store: a.store, Reply: a.reply})
	}
}

// key reads the journal's key while it is this owner's.
func (h *handing) key(ctx context.Context) (control.JournalState, control.Rev, error) {
	state, rev, err := h.s.env.Control.JournalNow(ctx, h.v.id)
	if err == nil && (state.Epoch != h.o.epoch || state.Owner != h.s.env.Node) {
		err = wire.Errorf(wire.CodeNotOwner, "node %s owns it at epoch %s", state.Owner, state.Epoch)
	}
	return state, rev, err
}

// write has the control store name the taker. As long as it is not known whether it does, the owner neither goes on
// nor gives up: everything waits.
func (h *handing) write(ctx context.Context, rev control.Rev, early bool) (control.JournalState, control.Rev, error) {
	ctl := h.s.env.Control
	for try := 0; ; try++ {
		state, now, err := ctl.HandJournal(ctx, h.v.id, rev, h.to.Name, h.stores, early)
		var uncertain *control.UncertainError
		for errors.As(err, &uncertain) && h.s.ctx.Err() == nil {
			h.log.Warn("whether the control store has the change is not known: commands wait", "err", err)
			state, now, err = ctl.Settle(h.s.ctx, uncertain)
		}
		if err == nil {
			return state, now, nil
		}
		// The owner itself may have changed the list meanwhile.
		if !errors.Is(err, control.ErrConflict) || try > 2 {
			return state, now, fmt.Errorf("hand over to %s: %w", h.to.Name, err)
		}
		if _, rev, err = h.key(ctx); err != nil {
			return state, now, err
		}
	}
}

// prepare makes a checkpoint, so that little is left to replay, and has the taker load it.
func (h *handing) prepare(ctx context.Context) error {
	o := h.o
	for range checkpointsMost {
		begun := time.Now()
		if err := o.Checkpoint(); err != nil {
			if o.Err() != nil {
				return o.Err()
			}
			h.log.Warn("checkpoint before a hand-over", "err", err) // it is only slower without
			break
		}
		if time.Since(begun) < 200*time.Millisecond {
			break
		}
	}
	for until := time.Now().Add(settlePatience); h.copies && !o.checkpointAt(h.to.Site) && time.Now().Before(until); {
		h.mv.phase("copying the map")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lagLook):
		}
	}
	h.mv.phase("the new owner prepares")
	m := &wire.HandOver{Step: wire.HandPrepare}
	o.ask(func() {
		if p := o.w.Point(); o.stopErr == nil && p.At.Seq != 0 {
			m.Point = journal.AppendCheckpoint(nil, p)
		}
	})
	r, err := h.ask(ctx, settlePatience+2*warmPatience, m)
	if err != nil {
		return fmt.Errorf("node %s can not prepare: %w", h.to.Name, err)
	}
	h.stores = r.Stores
	return nil
}

// catchUp waits until what the taker's site lacks fits into the pause; R10 says what is done if it does not.
func (h *handing) catchUp(ctx context.Context) error {
	o := h.o
	ship := o.ship(h.to.Site)
	if ship == nil {
		return wire.Errorf(wire.CodeBadRequest, "nothing is shipped to site %d", h.to.Site)
	}
	asked := time.Now()
	if _, err := h.ask(ctx, drainPatience, &wire.HandOver{Step: wire.HandReady}); err != nil {
		return fmt.Errorf("node %s is not ready: %w", h.to.Name, err)
	}
	trip := time.Since(asked)
	var link linkRate
	begun := time.Now()
	var slowed, near time.Time
	for {
		var lag uint64
		o.ask(func() { lag = o.lagOf(ship) })
		if err := o.Err(); err != nil {
			return err
		}
		ship.mu.Lock()
		bytes := ship.mu.bytes
		state := ship.mu.state
		ship.mu.Unlock()
		rate := link.add(time.Now(), bytes, lag > handLagSmall)
		h.mv.lag(lag)
		if lag <= handLagSmall || float64(lag) <= rate*(trip+handPause).Seconds() {
			if near.IsZero() {
				near = time.Now()
				// The new owner takes the newest checkpoint. One that its site does not have yet would be read over the distance, and
				// where the old site is lost right behind the hand-over by nobody.
				o.noCheckpoints(settlePatience + 2*drainPatience)
			}
			if o.settledAt(ship) && o.checkpointAt(h.to.Site) || time.Since(near) > settlePatience {
				return nil
			}
			h.mv.phase("copying: the last segments become stable")
			lag = 0
		}
		switch now := time.Now(); {
		case lag == 0:
		case slowed.IsZero() && now.Sub(begun) > lagPatience && state == "shipping":
			slowed = now
			limit := int64(max(rate/2, 1<<20))
			h.mv.phase("copying: writers are slowed to %d bytes/s", limit)
			h.log.Info("writers are slowed for a hand-over", "rate", limit, "lag", lag)
			o.ask(func() { o.setRate(limit) })
		case slowed.IsZero() && now.Sub(begun) > slowMost, !slowed.IsZero() && now.Sub(slowed) > slowMost:
			return wire.Errorf(wire.CodeBusy, "site %d lacks %d bytes (%s): it does not catch up", h.to.Site, lag, state)
		case slowed.IsZero():
			h.mv.phase("copying")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.stopped:
			return o.stopErr
		case <-time.After(lagLook):
		}
	}
}

// linkRate is what a link carries, as far as is seen: the most in any linkWindow while there was more to send than fits
// into a moment, else what it carried lately. Shorter times say nothing: buffers take what the link does not.
type linkRate struct {
	seen []linkSeen
	rate float64
}

type linkSeen struct {
	at    time.Time
	bytes uint64
	busy  bool
}

const linkWindow = time.Second

// add takes the bytes that had arrived at a moment and gives the rate, in bytes a second.
func (l *linkRate) add(at time.Time, bytes uint64, busy bool) float64 {
	l.seen = append(l.seen, linkSeen{at, bytes, busy})
	for len(l.seen) > 2 && at.Sub(l.seen[1].at) >= linkWindow {
		l.seen = l.seen[1:]
	}
	first := l.seen[0]
	took := at.Sub(first.at)
	if took <= 0 || bytes < first.bytes {
		return l.rate
	}
	now := float64(bytes-first.bytes) / took.Seconds()
	full := took >= linkWindow/2 && !slices.ContainsFunc(l.seen, func(s linkSeen) bool { return !s.busy })
	switch {
	case took < linkWindow/2:
		l.rate = max(l.rate, now/2) // little is known yet
	case full:
		l.rate = max(l.rate, now)
	default:
		l.rate = now
	}
	return l.rate
}
