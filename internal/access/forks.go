package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What an owner that was not proven may have given up (R4, R14): records that were committed, on stores that did
// not answer then. When such a store is heard again, what it holds beyond this history is set aside as a fork:
// kept, shown, and never shipped over or dropped.

// A cut is a pin (R13): while one is open, nothing of the history before it is retired, so that what a fork goes on from
// can be read. It is closed by a record: when every store has been looked at and none has a fork, or when an operator gives
// the fork up.

// Kinds of state that owners keep in checkpoints; docs/format.md.
const (
	stateCuts uint16 = 1
	statePins uint16 = 3
)

// forks is what the owner's loop knows of them.
type forks struct {
	cuts      []wire.EpochStart // the starts of this history that were not proven, oldest first
	forgotten []ident.Epoch     // of those, the ones whose forks were given up, or that have left none
	at        map[ident.StoreID]forkAt
	looked    map[ident.StoreID]bool // stores that this owner has looked at
	closing   bool                   // a record that closes cuts is under way
	sealing   atomic.Int32           // seals under way by which stores may set something aside that is not in at yet
	compared  map[permitKey]compared // what is set aside and was left behind by no cut
}

// forkAt is what one store has set aside.
type forkAt struct {
	segments int
	bytes    uint64
	moment   uint64 // when the newest of it was set aside: what a store said before knows nothing of that
	unknown  bool   // it was to set something aside then, and did not answer
}

// beginForks gathers the cuts of the history: from the checkpoint, from what was recovered, and this epoch's own.
func (o *Owner) beginForks() {
	f := &o.forks
	f.at, f.looked = map[ident.StoreID]forkAt{}, map[ident.StoreID]bool{}
	if b := o.m.State(statePins); b != nil {
		if err := o.applyPins(b); err != nil {
			o.stop(fmt.Errorf("the checkpoint's list of pins: %w", err))
			return
		}
	}
	if b := o.m.State(stateCuts); b != nil {
		cuts, err := journal.DecodeCuts(b)
		if err != nil {
			o.stop(fmt.Errorf("the checkpoint's list of cuts: %w", err))
			return
		}
		f.cuts = cuts
	}
	add := func(s wire.EpochStart) {
		if !slices.ContainsFunc(f.cuts, func(x wire.EpochStart) bool { return x.At == s.At }) {
			f.cuts = append(f.cuts, s)
		}
	}
	for _, s := range o.recovered.Cuts {
		add(s)
	}
	if s := o.w.Start(); !s.Proven {
		add(s)
	}
	slices.SortFunc(f.cuts, func(a, b wire.EpochStart) int { return a.At.Epoch.Compare(b.At.Epoch) })
	if len(f.cuts) == 0 {
		return
	}
	if err := o.m.SetState(stateCuts, journal.AppendCuts(nil, f.cuts)); err != nil {
		o.log.Error("the list of cuts is not kept", "err", err)
	}
	o.goBackground(o.forkLoop)
}

// gaveUp reports that records up to seq, made or kept in segments of an epoch, may not be of this history.
func (o *Owner) gaveUp(epoch ident.Epoch, seq ident.Seq) bool {
	return slices.ContainsFunc(o.forks.cuts, func(c wire.EpochStart) bool { return leftBehind(c, epoch, seq) })
}

// leftBehind reports that an epoch's start leaves behind what segments of an earlier one have up to a record: what is behind the
// one that it goes on from, or all of an epoch of whose start it has not heard.
func leftBehind(c wire.EpochStart, epoch ident.Epoch, seq ident.Seq) bool {
	return epoch.Less(c.At.Epoch) && (seq > c.Before.Seq || c.Before.Epoch.Less(epoch))
}

// learnCuts adds the starts of epochs that are not of this history and have left something behind themselves: a site that was given
// up has a fork, and so may one that was given the volume by force after it. Each fork has a name of its own that way. It runs in the loop.
func (o *Owner) learnCuts(list []wire.Replica) {
	f := &o.forks
	if len(f.cuts) == 0 {
		return
	}
	was := len(f.cuts)
	for i := range list {
		s, id := list[i].Start, list[i].Segment
		if list[i].State != wire.ReplicaFork || s.At.Seq == 0 || s.Proven || s.At.Epoch != id.Epoch || slices.ContainsFunc(f.cuts, func(c wire.EpochStart) bool { return c.At.Epoch == s.At.Epoch }) {
			continue
		}
		if slices.ContainsFunc(f.cuts, func(c wire.EpochStart) bool { return c.Before.Epoch.Less(id.Epoch) && id.Epoch.Less(c.At.Epoch) }) {
			f.cuts = append(f.cuts, s)
		}
	}
	if len(f.cuts) == was {
		return
	}
	slices.SortFunc(f.cuts, func(a, b wire.EpochStart) int { return a.At.Epoch.Compare(b.At.Epoch) })
	if err := o.m.SetState(stateCuts, journal.AppendCuts(nil, f.cuts)); err != nil {
		o.log.Error("the list of cuts is not kept", "err", err)
	}
}

// forkEvery is how often the stores of the own site are looked at: one that was away may come back.
const forkEvery = 10 * time.Second

// forkLoop looks for forks in the stores of the own site and of the ensembles, once each time that one has come
// back. Ships look at the other sites when a session begins; a store that comes back later is looked at here.
func (o *Owner) forkLoop() {
	looked := map[ident.StoreID]bool{}
	for wait := time.Duration(0); ; wait = forkEvery {
		select {
		case <-time.After(wait):
		case <-o.ctx.Done():
			return
		}
		ids := o.env.Stores.Core(o.env.Site)
		for _, e := range o.fenced {
			for _, id := range e.Stores {
				if !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
		if wait > 0 {
			o.ask(func() {
				for _, id := range o.everywhere(ids) {
					if (!o.forks.looked[id] || o.forks.at[id].unknown) && !o.env.about(id).Lost {
						ids = append(ids, id)
						delete(looked, id)
					}
				}
				for _, id := range ids {
					if o.forks.at[id].unknown {
						delete(looked, id)
					}
				}
			})
		}
		there := map[ident.SiteID]map[ident.SegmentID][]have{}
		var stores []journal.Store
		for _, id := range ids {
			st, ok := o.env.Stores.Store(id)
			if !ok || !o.env.Stores.Up(id) {
				delete(looked, id)
				continue
			}
			if looked[id] {
				continue
			}
			list, err := o.allOf(st)
			if err != nil {
				o.log.Debug("store not looked at for forks", "store", id, "err", err)
				continue
			}
			site := o.env.Stores.Site(id)
			if there[site] == nil {
				there[site] = map[ident.SegmentID][]have{}
			}
			for _, x := range list {
				there[site][x.Segment] = append(there[site][x.Segment], have{st, x.State, x.End, x.Last, x.Made, x.Unsure})
			}
			looked[id] = true
			stores = append(stores, st)
		}
		var err error
		for _, site := range slices.Sorted(maps.Keys(there)) {
			err = errors.Join(err, o.findForks(o.ctx, site, there[site]))
		}
		if err != nil {
			clear(looked)
			o.log.Debug("forks", "err", err)
		} else {
			o.lookedAt(stores)
		}
	}
}

// allOf asks a store what it has, by a fence at the owner's epoch: once it has been looked at, no former owner adds anything
// that nobody would look at again.
func (o *Owner) allOf(st journal.Store) ([]wire.Replica, error) {
	ctx, cancel := context.WithTimeout(o.ctx, 2*o.env.Limits.SyncTimeout)
	defer cancel()
	var asked uint64
	o.ask(func() { asked = o.strays.asks() })
	r, err := st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node})
	o.call(func() {
		if err == nil {
			o.reported(st.ID(), r.Replicas, asked)
		}
		o.strays.asked()
	})
	return r.Replicas, err
}

// forksSaid remembers what a store has set aside by what it said; asked is when it was asked. It runs in the loop.
func (o *Owner) forksSaid(store ident.StoreID, list []wire.Replica, asked uint64) {
	if o.forks.at == nil {
		return
	}
	o.learnCuts(list)
	if was := o.forks.at[store]; was.moment <= asked {
		f := forksIn(list)
		f.moment = was.moment
		o.forks.at[store] = f
	}
}

// forkMade notes that a store has just set something aside. It runs in the loop.
func (o *Owner) forkMade(store ident.StoreID, bytes uint64) {
	o.strays.moment++
	f := o.forks.at[store]
	o.forks.at[store] = forkAt{f.segments + 1, f.bytes + bytes, o.strays.moment, f.unknown}
}

// forkUnknown notes that a store was to seal a replica, by which it may set something aside, and has not said what came of that. No cut
// is closed until it has said what it has. It runs in the loop.
func (o *Owner) forkUnknown(store ident.StoreID) {
	if o.forks.at == nil || o.stopErr != nil {
		return
	}
	o.strays.moment++
	f := o.forks.at[store]
	f.moment, f.unknown = o.strays.moment, true
	o.forks.at[store] = f // forkLoop asks it: there may be thousands of such seals at once
}

func forksIn(list []wire.Replica) (f forkAt) {
	for i := range list {
		if list[i].State == wire.ReplicaFork {
			f.segments++
			f.bytes += uint64(list[i].End)
		}
	}
	return f
}

// lookedAt notes that whatever forks the stores have are known.
func (o *Owner) lookedAt(stores []journal.Store) {
	o.call(func() {
		for _, st := range stores {
			if o.forks.looked != nil {
				o.forks.looked[st.ID()] = true
			}
		}
	})
}

// beyond is a replica that goes on behind the end of its segment in this history, or whose segment is not in it.
type beyond struct {
	id   ident.SegmentID
	h    *have
	end  uint32 // where it should end, 0: it should not be there
	last ident.Position
}

// findForks has what is not of this history set aside, and marks it so in there.
func (o *Owner) findForks(ctx context.Context, site ident.SiteID, there map[ident.SegmentID][]have) error {
	var list []beyond
	var start wire.EpochStart
	o.ask(func() {
		if o.stopErr != nil || len(o.forks.cuts) == 0 {
			return
		}
		start = o.w.Start()
		for id, replicas := range there {
			if id.IsCheckpoint() || id.IsFork() || !id.Epoch.Less(o.epoch) {
				continue
			}
			s := o.segs[id]
			for i := range replicas {
				h := &replicas[i]
				switch {
				case h.state == wire.ReplicaFork || h.state == wire.ReplicaDamaged || !o.gaveUp(id.Epoch, h.last.Seq):
				case s == nil:
					list = append(list, beyond{id: id, h: h})
				case s.sealed && h.last.Seq > s.last.Seq:
					list = append(list, beyond{id, h, s.end, s.last})
				}
			}
		}
	})
	slices.SortFunc(list, func(a, b beyond) int { return a.id.Compare(b.id) })
	seen := map[ident.SegmentID]bool{}
	var sum forkSum
	for _, b := range list {
		sctx, cancel := context.WithTimeout(ctx, 4*o.env.Limits.SyncTimeout)
		o.forks.sealing.Add(1)
		r, forked, err := sealOrSetAside(sctx, b.h.store, &wire.Seal{Epoch: o.epoch, Segment: b.id, End: b.end, Last: b.last, Start: start})
		cancel()
		if forked {
			end := b.h.end
			o.call(func() { o.forkMade(b.h.store.ID(), uint64(end)) })
		} else if err != nil {
			o.call(func() { o.forkUnknown(b.h.store.ID()) })
		}
		o.doneSealing()
		if forked {
			from := b.h.last.Seq
			if !seen[b.id] {
				seen[b.id] = true
				sum.segments++
				o.measureFork(ctx, b.h.store, b.id, max(b.last.Seq, o.cutBefore(b.id.Epoch, from)), &sum)
			}
			o.goBackground(func() { o.askWhatIsThere(b.h.store.ID()) })
			o.log.Error("records that are not of this history are kept as a fork", "segment", b.id, "store", b.h.store.ID(), "site", site, "to", from)
		}
		switch {
		case err == nil: // it held nothing that this history does not have, and ends where it should now
			b.h.state, b.h.end, b.h.last, b.h.made = wire.ReplicaSealed, b.end, b.last, r.Made
			if b.end == 0 {
				b.h.state = 0 // gone
			}
		case errors.Is(err, wire.ErrFork): // all of it: the store could not tell the two apart
			b.h.state = wire.ReplicaFork
		default:
			return fmt.Errorf("set %s aside at %s: %w", b.id, b.h.store.ID(), err)
		}
	}
	if sum.segments > 0 {
		o.env.Metrics.Forks.Inc()
		o.report("volume.fork", reportOfFork(site, sum))
		o.call(func() { o.wentOn(site, sum.ports) })
	}
	return nil
}

// sealOrSetAside has a replica end where this history says. What the store has to set aside for that is a fork: it says
// so once, and then the replica ends there.
func sealOrSetAside(ctx context.Context, st journal.Store, m *wire.Seal) (r wire.SealReply, forked bool, err error) {
	if r, err = st.Seal(ctx, m); errors.Is(err, wire.ErrFork) {
		forked = true
		r, err = st.Seal(ctx, m)
	}
	return r, forked, err
}

// doneSealing ends what began with sealing.Add, behind what has been told to the loop of it.
func (o *Owner) doneSealing() {
	o.call(func() { o.forks.sealing.Add(-1) })
}

// setAside tells of a fork that a store has made of what its replica had behind the end of a segment. It runs in the loop.
func (o *Owner) setAside(st journal.Store, id ident.SegmentID, last ident.Seq) {
	site := o.env.Stores.Site(st.ID())
	if o.forks.at != nil {
		o.forkMade(st.ID(), 0) // until it says how much
	}
	o.log.Error("records that are not of this history are kept as a fork", "segment", id, "store", st.ID(), "site", site, "behind", last)
	o.goBackground(func() {
		sum := forkSum{segments: 1}
		o.measureFork(o.ctx, st, id, last, &sum)
		o.env.Metrics.Forks.Inc()
		o.report("volume.fork", reportOfFork(site, sum))
		o.call(func() { o.wentOn(site, sum.ports) })
		o.askWhatIsThere(st.ID()) // what the status shows
	})
}

func reportOfFork(site ident.SiteID, sum forkSum) string {
	return fmt.Sprintf("site %d keeps %s in %d segments that are not of the history which is served: a fork; nothing of it is overwritten or deleted; dozo fork list shows it",
		site, sum, sum.segments)
}

// forkSum is how much is in a fork.
type forkSum struct {
	segments        int
	writes, records uint64
	bytes           uint64         // of records
	first, last     int64          // when the records got their places
	ports           []journal.Port // that were attached
}

func (f forkSum) String() string {
	text := fmt.Sprintf("%d writes, %d bytes", f.writes, f.bytes)
	if f.first != 0 && f.last != 0 {
		text += fmt.Sprintf(", of %.1f s until %s,", time.Duration(f.last-f.first).Seconds(), time.Unix(0, f.last).UTC().Format(time.RFC3339))
	}
	return text
}

// measureFork adds what a replica that was set aside has behind a record.
func (o *Owner) measureFork(ctx context.Context, st journal.Store, id ident.SegmentID, after ident.Seq, sum *forkSum) {
	at := id.Fork()
	x, err := readIndex(ctx, st, at)
	if err != nil {
		at = id
		x, err = readIndex(ctx, st, at)
	}
	if err != nil {
		o.log.Warn("what a fork has can not be counted", "segment", id, "store", st.ID(), "err", err)
		return
	}
	sum.add(x, after, func(offset uint32) int64 {
		rec, _, err := o.readOne(st, at, offset)
		if err != nil {
			return 0
		}
		return rec.Time
	})
	for i := range x.Entries {
		if e := &x.Entries[i]; e.Kind == journal.KindAttach && x.Before.Seq+ident.Seq(i) >= after {
			if _, b, err := o.readOne(st, at, e.Offset); err == nil {
				changes, _ := journal.DecodePortChanges(b)
				sum.attached(changes)
			}
		}
	}
}

// attached notes the ports that attach.
func (f *forkSum) attached(changes []journal.PortChange) {
	for i := range changes {
		if c := &changes[i]; c.Op == journal.PortAttach && !slices.Contains(f.ports, c.Port) {
			f.ports = append(f.ports, c.Port)
		}
	}
}

// add counts the records of a segment behind one.
func (f *forkSum) add(x *journal.Index, after ident.Seq, when func(offset uint32) int64) {
	from := 0
	if after > x.Before.Seq {
		from = int(after - x.Before.Seq)
	}
	if from >= len(x.Entries) {
		return
	}
	for i := range x.Entries[from:] {
		e := &x.Entries[from+i]
		f.records++
		if e.Kind == journal.KindWrite || e.Kind == journal.KindTrim || e.Kind == journal.KindCopy {
			f.writes++
		}
		f.bytes += uint64(journal.RecordSize(e.StoredLen))
	}
	if t := when(x.Entries[from].Offset); t != 0 && (f.first == 0 || t < f.first) {
		f.first = t
	}
	if t := when(x.Entries[len(x.Entries)-1].Offset); t > f.last {
		f.last = t
	}
}

// cutBefore is where this history left an epoch whose records up to seq it does not have.
func (o *Owner) cutBefore(epoch ident.Epoch, seq ident.Seq) (least ident.Seq) {
	least = seq
	o.ask(func() {
		for _, c := range o.forks.cuts {
			if epoch.Less(c.At.Epoch) {
				least = min(least, c.Before.Seq)
			}
		}
	})
	return least
}

// reportUnproven says what a takeover lost, as far as that is known.
func (o *Owner) reportUnproven(rec *journal.Recovery) {
	last := rec.Last.Seq
	if lost := uint64(rec.Seen.Seq - min(rec.Seen.Seq, last)); rec.Lost && lost > o.loss.records {
		o.loss.records = lost
	}
	if o.ack.kept {
		beyond := o.loss.records
		o.loss = loss{at: o.loss.at}
		note := fmt.Sprintf("epoch %s begins after seq %d; nothing that was acknowledged is lost: %s; %d records that nobody was told of are left behind, as far as is known",
			o.epoch, last, sitesWhole(o.state.Ack), beyond)
		o.log.Warn("taken over by what other sites hold", "seq", last, "left", beyond)
		o.report("volume.kept", note)
		return
	}
	note := fmt.Sprintf("epoch %s begins after seq %d and is not proven: the end of the history was not known", o.epoch, last)
	switch {
	case o.forced && rec.Enough:
		note = fmt.Sprintf("epoch %s begins after seq %d, as an operator has agreed to", o.epoch, last)
	case o.forced:
		note = fmt.Sprintf("epoch %s begins after seq %d without stores that were given up", o.epoch, last)
	}
	if !o.loss.at.IsZero() {
		note += "; the last record that is there is of " + o.loss.at.UTC().Format(time.RFC3339Nano)
	}
	if o.loss.records > 0 {
		o.log.Error("records at or below the commit point are lost", "records", o.loss.records, "last", last, "seen", rec.Seen.Seq, "stable", rec.Stable.Seq)
		note += fmt.Sprintf("; lost at least: %s; the commit point had been %d", o.loss, uint64(last)+o.loss.records)
	}
	o.report("volume.unproven", note)
}

// open lists the cuts that pin what is before them.
func (f *forks) open() (list []wire.EpochStart) {
	for _, c := range f.cuts {
		if !slices.Contains(f.forgotten, c.At.Epoch) {
			list = append(list, c)
		}
	}
	return list
}

// pinned reports that a checkpoint's segment is of before an open cut.
func (o *Owner) pinned(id ident.SegmentID) bool {
	return id.IsCheckpoint() && slices.ContainsFunc(o.forks.open(), func(c wire.EpochStart) bool { return id.Epoch.Less(c.At.Epoch) })
}

// pinnedSegment reports that a fork may need a segment.
func (o *Owner) pinnedSegment(s *segment) bool {
	if s.id.IsCheckpoint() {
		return o.pinned(s.id)
	}
	return slices.ContainsFunc(o.forks.open(), func(c wire.EpochStart) bool { return s.before.Seq < c.Before.Seq })
}

// forgotten reports that every cut which left a fork's records behind has been closed.
func (o *Owner) forgotten(epoch ident.Epoch, last ident.Seq) bool {
	some := false
	for _, c := range o.forks.cuts {
		if leftBehind(c, epoch, last) {
			if some = true; !slices.Contains(o.forks.forgotten, c.At.Epoch) {
				return false
			}
		}
	}
	return some
}

// applyPins takes a committed record about pins, or the checkpoint's list of them.
func (o *Owner) applyPins(body []byte) error {
	list, err := journal.DecodePins(body)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.Op == journal.PinForget && !slices.Contains(o.forks.forgotten, p.Epoch) {
			o.forks.forgotten = append(o.forks.forgotten, p.Epoch)
		}
	}
	list = list[:0]
	for _, e := range o.forks.forgotten {
		list = append(list, journal.PinChange{Op: journal.PinForget, Epoch: e})
	}
	return o.m.SetState(statePins, journal.AppendPins(nil, list))
}

// releaseCuts closes the cuts once every store has been looked at and there is no fork.
func (o *Owner) releaseCuts() {
	f := &o.forks
	open := f.open()
	if len(open) == 0 || f.closing || f.sealing.Load() > 0 || o.stopErr != nil || !o.w.Serving() || o.older {
		return
	}
	for id, at := range f.at {
		if at.segments > 0 || at.unknown && !o.env.about(id).Lost {
			return
		}
	}
	for _, id := range o.everywhere(nil) {
		if !f.looked[id] && !o.env.about(id).Lost {
			return
		}
	}
	var list []ident.Epoch
	for _, c := range open {
		list = append(list, c.At.Epoch)
	}
	o.closeCuts(list, func(error) {})
}

// closeCuts records that cuts pin nothing any more and that what they left behind may go; then is called, in the loop, once
// that is stable.
func (o *Owner) closeCuts(list []ident.Epoch, then func(error)) {
	var changes []journal.PinChange
	for _, e := range list {
		changes = append(changes, journal.PinChange{Op: journal.PinForget, Epoch: e})
	}
	o.forks.closing = true
	op := NewOp()
	op.Kind = wire.OpFlush
	op.Done = func(op *Op, err error) {
		op.Release()
		o.call(func() {
			o.forks.closing = false
			then(err)
		})
	}
	o.queueOwn(journal.KindPin, journal.AppendPins(nil, changes), func(seq ident.Seq) {
		op.seq = seq
		o.awaitStable(op)
	})
}

// forget gives up what a cut left behind; then is called in the loop.
func (o *Owner) forget(epoch ident.Epoch, then func(error)) {
	if !slices.ContainsFunc(o.forks.cuts, func(c wire.EpochStart) bool { return c.At.Epoch == epoch }) {
		then(wire.Errorf(wire.CodeAbsent, "no fork was left by epoch %s", epoch))
		return
	}
	if o.older {
		then(wire.Errorf(wire.CodeVersion, "there are nodes of an older version, which know nothing of forks that were given up: upgrade them first"))
		return
	}
	o.log.Warn("a fork is given up", "left by", epoch.String())
	o.closeCuts([]ident.Epoch{epoch}, func(err error) {
		if err == nil && o.stopErr == nil {
			o.publish()
			for _, id := range o.everywhere(nil) { // what they report is permitted to go
				o.goBackground(func() { o.askWhatIsThere(id) })
			}
		}
		then(err)
	})
}

// reportGrace is for how long the end of an owner waits for the events that it was writing.
const reportGrace = time.Second

// report puts an event into the log of the cluster, which the operator reads. It holds nothing up but the end of the owner.
func (o *Owner) report(action, note string) {
	s := o.spec.Load()
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), time.Minute)
		defer cancel()
		// An owner that ends right after its takeover still says what it has found; its end waits a moment for that.
		defer context.AfterFunc(o.ctx, func() { time.AfterFunc(reportGrace, cancel) })()
		err := o.env.Control.AppendEvent(ctx, control.Event{Actor: "node/" + string(o.env.Node), Action: action, Object: "volume/" + s.Tenant + "/" + s.Name, Note: note})
		if err != nil && o.ctx.Err() == nil {
			o.log.Error("event not written", "action", action, "note", note, "err", err)
		}
	})
}
