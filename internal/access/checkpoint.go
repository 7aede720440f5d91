package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// checkpointState is what the owner's loop keeps about checkpoints.
type checkpointState struct {
	running   bool
	last      time.Duration // when the last one ended
	took      time.Duration // by the last one
	lastBytes uint64        // written then, and copied
	copied    uint64        // bytes copied by reference: a replay has to look up each of their leaves
	lastSeq   ident.Seq     // that it covers
	appliedAt ident.Position
	number    uint32
	idleSeq   ident.Seq
	lastingAt time.Duration // when something was committed that is more than housekeeping
	retired   []retiredAt   // retirements whose replicas are still to go
}

type retiredAt struct {
	segments []ident.SegmentID
	seq      ident.Seq
	begun    bool // stores have been told
}

// Checkpoints for the sake of dead segments come no sooner than deadPause after the last one, and take at most one
// part of deadShare of the time. A fast writer fills new files until he gets those that he filled before, and each moment
// that these are late is memory, or disk, that was not touched lately.
const (
	deadPause = 400 * time.Millisecond
	deadShare = 8

	emptyingPause = 2 * time.Second // likewise while a store is emptied, which takes long anyhow
)

// checkpointDue says whether enough has been written, enough time has passed, or enough could be let go: a volume that
// is overwritten needs as little space as there is between two checkpoints, and core servers write new
// segments over the files of old ones, while those are still in memory. Where it is only the time, clock is true: such
// checkpoints are due for thousands of volumes at once (Chores).
func (o *Owner) checkpointDue(now time.Duration) (due, clock bool) {
	c := &o.cp
	since := now - c.last
	switch {
	case o.written+c.copied-c.lastBytes >= o.env.Limits.CheckpointBytes:
		return true, false
	// What a store that is being emptied has may go only once a checkpoint covers it.
	case o.repair.Emptying > 0 && since >= max(emptyingPause, deadShare*c.took) || o.muchIsDead(now):
		return true, false
	}
	return since >= o.env.Limits.CheckpointInterval && o.worthCheckpoint(), true
}

// muchIsDead says whether it is time for a checkpoint for the sake of dead segments.
func (o *Owner) muchIsDead(now time.Duration) bool {
	return now-o.cp.last >= max(deadPause, deadShare*o.cp.took) && o.m.DyingBytes() >= o.env.Limits.CheckpointDead
}

// reclaim is what a fast writer's files wait for, several times a second: the checkpoint that lets dead segments go, and after it
// their replicas, as soon as their retirement is stable.
func (o *Owner) reclaim(now time.Duration) {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	if n := len(o.cp.retired); n > 0 && !o.cp.retired[n-1].begun && o.cp.retired[n-1].seq <= o.w.Stable().Seq {
		o.dropRetired()
	}
	if !o.cp.running && o.muchIsDead(now) {
		o.maybeCheckpoint(now)
	}
}

// housekeeping says which records bring no other checkpoint about: a checkpoint is announced by one and has segments
// retired and let go by others, so that a volume to which nothing else happens would have one each minute for ever.
func housekeeping(k journal.Kind) bool {
	return k == journal.KindCheckpoint || k == journal.KindRetire || k == journal.KindPermit
}

// housekeepingMost is how many of them a takeover may have to replay.
const housekeepingMost = 64

// worthCheckpoint reports that there is a segment that no checkpoint covers and that has more than housekeeping.
func (o *Owner) worthCheckpoint() bool {
	if o.m.Applied() > o.cp.lastSeq+housekeepingMost {
		return true
	}
	for _, s := range slices.Backward(o.order) {
		if s.last.Seq <= o.cp.lastSeq {
			return false
		}
		if s.lasting || s.id.Epoch != o.epoch {
			return true
		}
	}
	return false
}

// maybeCheckpoint starts one when it is due (architecture §5).
func (o *Owner) maybeCheckpoint(now time.Duration) {
	c := &o.cp
	if c.running || now < o.move.still || o.stopErr != nil || !o.w.Serving() || o.m.Applied() == c.lastSeq {
		return
	}
	due, clock := o.checkpointDue(now)
	// What a hand-over or a takeover by force needs comes first: until then the former ensemble is asked too.
	if !due || clock && !o.beginChore(len(o.state.Ensembles) > 1) {
		return
	}
	if clock && now-c.lastingAt > idleSealAfter {
		// The announcement goes to a segment of its own: this one is covered as a whole, and its second copy may go.
		o.w.CloseIdle()
	}
	c.running = true
	o.goBackground(func() {
		start := time.Now()
		point, err := o.checkpoint()
		o.call(func() {
			c.running = false
			c.last, c.lastBytes, c.took = time.Duration(o.env.Clock()), o.written+c.copied, time.Since(start)
			if err != nil {
				if o.stopErr == nil {
					o.log.Warn("checkpoint", "err", err)
				}
				return
			}
			o.env.Metrics.Checkpoints.Inc()
			if o.stopErr == nil && o.w.Serving() {
				o.retireSome() // not a second later: core servers wait for files to write over
			}
			o.log.Info("checkpoint", "seq", point.At.Seq, "took", time.Since(start).Round(time.Millisecond))
		})
	})
}

// Checkpoint writes one now and waits until its announcement is committed.
func (o *Owner) Checkpoint() error {
	for {
		busy := false
		o.ask(func() {
			if busy = o.cp.running; !busy {
				o.cp.running = true
			}
		})
		if !busy {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-o.stopped:
			return o.stopErr
		}
	}
	_, err := o.checkpoint()
	o.ask(func() { o.cp.running, o.cp.last = false, time.Duration(o.env.Clock()) })
	return err
}

// checkpoint writes the map as it is now, waits until all is stable, and announces it (R12). Dying at any
// line leaves segments that nothing announces; the next owner drops them.
func (o *Owner) checkpoint() (point journal.CheckpointPoint, err error) {
	var cp *volume.Checkpoint
	var at ident.Position
	o.ask(func() {
		if o.stopErr != nil {
			err = o.stopErr
			return
		}
		at = o.cp.appliedAt
		if err = o.portsState(); err != nil {
			return
		}
		cp, err = o.m.BeginCheckpoint(at)
	})
	if err != nil {
		return point, err
	}
	w := &partWriter{o: o}
	defer func() {
		if err != nil {
			o.ask(func() { o.m.AbandonCheckpoint(cp) })
			w.abandon()
		}
	}()
	reader := o.partReader()
	for {
		var step volume.Step
		if o.ask(func() { step, err = cp.Next(1 << 20) }); err != nil {
			return point, err
		}
		// A step that needs a leaf may have parts too: those that came before it.
		if err = w.add(cp, step.Parts); err != nil {
			return point, err
		}
		if step.Need != volume.NoLeaf {
			if err = o.loadLeafNow(step.Need, reader); err != nil {
				return point, err
			}
			continue
		}
		if step.Done {
			break
		}
	}
	if err = w.finish(); err != nil {
		return point, err
	}
	// A checkpoint waits until all that it covers is stable (R8).
	if !mutant.On(mutant.R8Checkpoint) {
		if err = o.waitStable(at.Seq); err != nil {
			return point, err
		}
	}
	committed := make(chan struct{})
	o.ask(func() {
		if o.stopErr != nil {
			err = o.stopErr
			return
		}
		if point, err = o.m.FinishCheckpoint(cp); err != nil {
			return
		}
		body := journal.AppendCheckpoint(nil, point)
		o.queueOwn(journal.KindCheckpoint, body, func(ident.Seq) {
			o.cp.lastSeq = point.At.Seq
			o.w.SetPoint(point)
			close(committed)
		})
	})
	if err != nil {
		return point, err
	}
	select {
	case <-committed:
		return point, nil
	case <-o.stopped:
		return point, o.stopErr
	}
}

// queueOwn gives a record of the owner's own its place; then is called in the loop, with that place, once it is
// committed.
func (o *Owner) queueOwn(kind journal.Kind, body []byte, then func(ident.Seq)) {
	e := ownEntry(kind, body)
	e.Context = then
	o.w.Queue(e)
}

// ownEntry makes a record that is not a client's data.
func ownEntry(kind journal.Kind, body []byte) *journal.Entry {
	e := &journal.Entry{Record: journal.Record{Kind: kind, StoredLen: uint32(len(body)), LogicalLen: uint32(len(body))}}
	e.Bytes = make([]byte, journal.RecordSize(e.StoredLen))
	crcs := e.Bytes[journal.RecordHeaderSize : journal.RecordHeaderSize+4*journal.CRCCount(e.StoredLen)]
	journal.PutCRCs(crcs, body)
	e.BodyDigest = journal.DigestCRCs(crcs)
	copy(e.Bytes[journal.BodyOffset(e.StoredLen):], body)
	return e
}

// waitStable waits until everything up to seq is stable.
func (o *Owner) waitStable(seq ident.Seq) error {
	op := NewOp()
	done := make(chan error, 1)
	op.Kind, op.seq, op.home = wire.OpFlush, seq, true
	op.Done = func(op *Op, err error) { done <- err; op.Release() }
	o.call(func() {
		if o.stopErr != nil {
			o.finish(op, o.stopErr)
			return
		}
		o.awaitStable(op)
	})
	return <-done
}

// loadLeafNow loads a leaf that a checkpoint needs.
func (o *Owner) loadLeafNow(id volume.LeafID, reader volume.PartReader) error {
	for {
		var at volume.PartPlace
		var ok, moved bool
		o.ask(func() { at, ok = o.m.Locate(id) })
		if !ok {
			return nil
		}
		rec, body, err := reader.ReadPart(at.Segment, at.Offset, at.Digest)
		o.ask(func() { moved, err = o.takeLeaf(id, at, rec, body, err) })
		if !moved {
			return err
		}
	}
}

// takeLeaf gives the map a leaf's part, as it was read from at. moved says that a checkpoint has put the leaf elsewhere
// meanwhile, so that it has to be read there: only then, since what is wrong with a part stays wrong when it is read again.
func (o *Owner) takeLeaf(id volume.LeafID, at volume.PartPlace, rec *journal.Record, body []byte, err error) (moved bool, _ error) {
	if err == nil {
		err = o.m.Loaded(id, rec, body)
	}
	if err == nil || o.stopErr != nil {
		return false, err
	}
	if now, ok := o.m.Locate(id); !ok || now != at {
		return true, nil
	}
	return false, fmt.Errorf("map leaf %d: %w", id, err)
}

// partWriter appends checkpoint parts to segments of their own on two stores.
type partWriter struct {
	o      *Owner
	stores []journal.Store
	seg    *segment
	done   []*segment
	at     ident.Position
	end    uint32
	count  int
}

func (w *partWriter) add(cp *volume.Checkpoint, parts []volume.Part) error {
	o := w.o
	for len(parts) > 0 {
		if w.seg == nil {
			if err := w.open(); err != nil {
				return err
			}
		}
		var data []byte
		type place struct {
			part   int
			offset uint32
			digest uint64
		}
		var places []place
		if w.end == 0 {
			data = journal.AppendSegmentHeader(data, journal.SegmentHeader{Segment: w.seg.id, Kind: journal.JournalVolume})
		}
		start := w.end
		full := false
		for len(parts) > 0 && len(data) < copyFrame {
			p := parts[0]
			size := journal.RecordSize(uint32(len(p.Body)))
			if int(start)+len(data)+size+journal.IndexSize(w.count+1) > int(o.env.Limits.SegmentBytes) && w.count > 0 {
				full = true
				break
			}
			offset := start + uint32(len(data))
			var r journal.Record
			data, r = p.Append(data, o.journalID, o.epoch, w.at)
			w.at = r.Position()
			w.count++
			places = append(places, place{p.Number, offset, r.BodyDigest})
			parts = parts[1:]
		}
		if len(data) > 0 {
			if err := w.append(start, data); err != nil {
				return err
			}
			w.end = start + uint32(len(data))
			var err error
			o.ask(func() {
				for _, p := range places {
					if err = cp.Placed(p.part, w.seg.slot, p.offset, p.digest); err != nil {
						return
					}
				}
			})
			if err != nil {
				return err
			}
		}
		if full {
			if err := w.seal(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *partWriter) open() error {
	o := w.o
	w.stores = w.stores[:0]
	var list []journal.Store // those that have failed lately come last: one whose disk takes nothing any more answers all the same
	o.ask(func() {
		var fit []bool
		for _, m := range o.members {
			fit = append(fit, o.fit(m.Store))
		}
		for _, wanted := range []bool{true, false} {
			for _, home := range []bool{true, false} {
				for i, m := range o.members {
					if fit[i] == wanted && m.Home == home && o.env.Stores.Up(m.Store) {
						list = append(list, o.stores[i])
					}
				}
			}
		}
		o.cp.number++
		w.seg = &segment{id: ident.SegmentID{Site: o.env.Site, Journal: o.journalID, Epoch: o.epoch, Number: ident.CheckpointBit | o.cp.number}}
	})
	w.at, w.end, w.count = ident.Position{}, 0, 0
	if len(list) < 2 {
		w.seg = nil
		return wire.Errorf(wire.CodeBusy, "fewer than two stores are up")
	}
	var first error
	for _, st := range list {
		if len(w.stores) == 2 {
			break
		}
		asked := o.env.Clock()
		ctx, cancel := context.WithTimeout(o.ctx, o.env.Limits.SyncTimeout)
		_, err := st.OpenSegment(ctx, &wire.OpenSegment{Epoch: o.epoch, Segment: w.seg.id, Capacity: o.env.Limits.SegmentBytes})
		o.heard(st.ID(), ctx.Err(), err)
		cancel()
		o.env.Chores.felt(time.Duration(o.env.Clock() - asked))
		if err == nil {
			w.stores = append(w.stores, st)
		} else if first == nil {
			first = fmt.Errorf("open checkpoint segment at %s: %w", st.ID(), err)
		}
	}
	if len(w.stores) < 2 {
		return first
	}
	o.ask(func() {
		if o.stopErr == nil {
			o.enter(w.seg)
		}
	})
	return o.Err()
}

func (w *partWriter) append(offset uint32, data []byte) error {
	errs := make(chan error, 2)
	for _, st := range w.stores {
		st.Append(&wire.Append{Epoch: w.o.epoch, Segment: w.seg.id, Offset: offset, Data: [][]byte{data}}, func(_ wire.AppendReply, err error) {
			w.o.heard(st.ID(), nil, err)
			errs <- err
		})
	}
	for range w.stores {
		select {
		case err := <-errs:
			if err != nil {
				return fmt.Errorf("append to checkpoint segment: %w", err)
			}
		case <-time.After(10 * w.o.env.Limits.AppendTimeout):
			return wire.Errorf(wire.CodeUnreached, "no answer to an append to a checkpoint segment")
		case <-w.o.stopped:
			return w.o.stopErr
		}
	}
	return nil
}

// seal makes the segment complete and stable on both stores.
func (w *partWriter) seal() error {
	o := w.o
	if w.seg == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(o.ctx, 4*o.env.Limits.SyncTimeout)
	defer cancel()
	type result struct {
		store ident.StoreID
		made  uint64
		err   error
	}
	results := make(chan result, len(w.stores))
	id, end, at := w.seg.id, w.end, w.at
	for _, st := range w.stores {
		go func() {
			r, err := st.Seal(ctx, &wire.Seal{Epoch: o.epoch, Segment: id, End: end, Last: at})
			o.heard(st.ID(), ctx.Err(), err)
			results <- result{st.ID(), r.Made, err}
		}()
	}
	var first error
	var sealed []result
	for range w.stores {
		x := <-results
		if sealed = append(sealed, x); x.err != nil && first == nil {
			first = fmt.Errorf("seal checkpoint segment: %w", x.err)
		}
	}
	if first != nil {
		return first
	}
	o.ask(func() {
		if o.stopErr != nil {
			return
		}
		o.endSegment(w.seg, w.at, w.end)
		for _, x := range sealed {
			o.confirm(w.seg, x.store, x.made)
		}
	})
	w.done = append(w.done, w.seg)
	w.seg = nil
	return nil
}

// finish seals what is left, and has it all shipped.
func (w *partWriter) finish() error {
	if w.seg != nil {
		if err := w.seal(); err != nil {
			return err
		}
	}
	w.o.ask(func() {
		for _, s := range w.o.ships {
			select {
			case s.points <- struct{}{}:
			default:
			}
		}
	})
	return nil
}

// abandon takes back what a failed checkpoint has written.
func (w *partWriter) abandon() {
	o := w.o
	if w.seg != nil {
		w.done = append(w.done, w.seg)
	}
	o.ask(func() {
		for _, s := range w.done {
			if s.slot != 0 {
				_ = o.m.Remove(s.slot)
			}
			o.leaveOut(s.id)
		}
		o.strays.due = 0 // its replicas are asked for, wherever they are, and permitted to go
	})
}
