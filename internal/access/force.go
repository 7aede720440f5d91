package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A forced takeover goes without stores that R2 asks for: an operator, or R11's site takeover, has given them up. The
// decision is one transaction of the control store (ForceJournal), which names the new owner and the stores. The node
// that it names then takes over as after a restart of its own, and so does whoever comes after it:
//
//	key: owner, epoch, lost stores ──> every store of every site that can be reached is fenced and asked
//	──> the longest history among them, not proven ──> a new ensemble ──> checkpoint, two copies of everything there
//	──> the ensembles with lost stores leave the list, and with them the note
//
// Until that last step a takeover asks all sites again, since parts of the history may be at one store of one site. Once
// an epoch-start of the forced epoch or a later one is seen, what the lost stores may have beyond is given up for good,
// and R2 and R4 are held to the other ensembles alone.

// asked lists the stores of all sites that a takeover asks without those that R2 wants: what a lost one may say counts for nothing.
func (o *Owner) asked(not []ident.StoreID) []ident.StoreID {
	return slices.DeleteFunc(o.everywhere(not), func(id ident.StoreID) bool { return o.env.about(id).Lost })
}

// everywhere lists the stores of all sites that have copies, and of this one, but for those in not.
func (o *Owner) everywhere(not []ident.StoreID) (list []ident.StoreID) {
	for _, site := range append(o.remoteSites(), o.env.Site) {
		for _, id := range o.env.Stores.Core(site) {
			if !slices.Contains(not, id) && !slices.Contains(list, id) {
				list = append(list, id)
			}
		}
	}
	return list
}

// more reports that another store may answer soon: its node can be reached from here, or the control store hears of it, so
// that it may be only from here that it can't. What it has may be all that is left of the end of the history (R4). At a
// site that has lost stores nobody is waited for who can't be reached.
func (o *Owner) more(f *control.Forced, stores []ident.StoreID, heard fenceAnswers) bool {
	lost := func(site ident.SiteID) bool {
		return site == f.From || slices.ContainsFunc(f.Lost, func(id ident.StoreID) bool { return o.env.Stores.Site(id) == site })
	}
	return slices.ContainsFunc(stores, func(id ident.StoreID) bool {
		return heard[id] == nil && (o.env.Stores.Up(id) || !lost(o.env.Stores.Site(id)) && o.announced(id))
	})
}

// announced reports that the control store hears of a store's node.
func (o *Owner) announced(id ident.StoreID) bool {
	return slices.ContainsFunc(o.env.Control.SharedNodes(), func(n control.Node) bool {
		return slices.ContainsFunc(n.Stores, func(s control.StoreSpec) bool { return s.ID == id }) && o.env.Control.Alive(n.Name)
	})
}

// forcedEnough says what the history is by the answers, nil if too few have answered. It notes which ensembles count.
func (o *Owner) forcedEnough(state control.JournalState, members, far fenceAnswers) (fenceAnswers, *journal.Recovery) {
	heard := maps.Clone(members)
	maps.Copy(heard, far)
	settled := false // an owner that went without the lost stores has begun
	for _, a := range heard {
		settled = settled || slices.ContainsFunc(a.Replicas, func(r wire.Replica) bool {
			return r.State != wire.ReplicaFork && r.Start.At.Seq != 0 && !r.Start.At.Epoch.Less(state.Forced.Epoch)
		})
	}
	o.fenced = state.Ensembles
	if settled {
		o.fenced = slices.DeleteFunc(state.Clone().Ensembles, state.GivenUp)
	}
	rec := journal.Recover(o.ensembles(), heard)
	o.forced = !settled && (!rec.Enough || state.Forced.Loss || slices.ContainsFunc(state.Ensembles, func(e control.Ensemble) bool {
		// Given up for what it is making again, it counts as one that answers: what is agreed to is to go on without that.
		return slices.ContainsFunc(e.Stores, func(s ident.StoreID) bool { return state.Lost(e, s) && heard[s] != nil && len(heard[s].Again) > 0 })
	}))
	if o.forced && state.Forced.Hear > 0 && len(o.wholeSites(heard)) < min(state.Forced.Hear, journal.HeardSites(len(state.Sites), state.Ack)) {
		return nil, nil // R11: what was acknowledged might be left behind
	}
	if !settled && !rec.Proven() && o.lessThanBegun(state, ident.Position{Epoch: rec.Start.At.Epoch, Seq: rec.Last.Seq}) {
		return nil, nil // another one may come, or another takeover by force
	}
	if o.forced && slices.ContainsFunc(rec.Missing, func(id ident.StoreID) bool { return o.missed(state, heard, id) }) {
		return nil, nil
	}
	if !o.forced && !rec.Enough || rec.Start.At.Seq == 0 && len(heard) == 0 {
		return nil, nil
	}
	return heard, rec
}

// lessThanBegun reports that a history which ends at end lacks something of the one that an owner has begun after since the
// lost stores were given up. That owner may have served nothing, so no acknowledged record depends on its start; but what it
// found is what the operator was told of, and nobody has agreed to go on with less. Where enough sites are heard whole
// nothing that was acknowledged is missing, and nobody is waited for (R11).
func (o *Owner) lessThanBegun(state control.JournalState, end ident.Position) bool {
	return state.Forced.Hear == 0 && state.Forced.Begun.Beyond(end)
}

// noteBegun says in the key after which record this owner is about to begin, without stores that R2 asks for. It comes before
// the first append: from then on a store may have the start, and that store be gone.
func (o *Owner) noteBegun(ctx context.Context, end ident.Position) error {
	if o.lessThanBegun(o.state, end) {
		b := o.state.Forced.Begun
		return wire.Errorf(wire.CodeBusy, "journal %s: an owner has begun after seq %d of epoch %s, and the stores that can be reached have seq %d of epoch %s: dozo volume recover goes on with less",
			o.journalID, b.Seq, b.Epoch, end.Seq, end.Epoch)
	}
	if o.state.Forced.Hear > 0 || !o.forced {
		return nil
	}
	var lost []ident.StoreID
	if o.declared {
		lost = o.state.Forced.Lost
	}
	err := o.env.Control.SetBegun(ctx, o.journalID, o.epoch, lost, control.HistoryEnd{Epoch: end.Epoch, Seq: end.Seq})
	if errors.Is(err, control.ErrOlderNodes) {
		o.log.Warn("where this takeover begins without stores is not noted", "seq", end.Seq, "err", err)
		return nil
	}
	return err
}

// declaredLost is a takeover by force where the operator's word is that stores are lost (R2): of an ensemble there are too few left to
// answer. nil where enough are left, which are waited for. Stores that the key gives up already may be among them.
func (o *Owner) declaredLost(state control.JournalState, heard fenceAnswers) *control.Forced {
	f := control.Forced{Epoch: o.epoch}
	if state.Forced != nil {
		f.Lost, f.Hear, f.From, f.Silent = slices.Clone(state.Forced.Lost), state.Forced.Hear, state.Forced.From, state.Forced.Silent
	}
	too := false
	for _, e := range state.Ensembles {
		left, more := 0, false
		for _, s := range e.Stores {
			switch lost := o.env.about(s).Lost && heard[s] == nil; {
			case lost:
				more = more || !state.Lost(e, s) && e.Epoch.Less(o.epoch)
				if !slices.Contains(f.Lost, s) {
					f.Lost = append(f.Lost, s)
				}
			case !state.Lost(e, s):
				left++
			}
		}
		too = too || more && left < max(1, len(e.Stores)-1)
	}
	if !too {
		return nil
	}
	return &f
}

// missed reports that a store which has not answered is waited for: by an ensemble that has not given it up, and that lacks another
// one too.
func (o *Owner) missed(state control.JournalState, heard fenceAnswers, id ident.StoreID) bool {
	return slices.ContainsFunc(state.Ensembles, func(e control.Ensemble) bool {
		return slices.Contains(e.Stores, id) && !state.Lost(e, id) &&
			slices.ContainsFunc(e.Stores, func(s ident.StoreID) bool { return s != id && heard[s] == nil })
	})
}

// loss is what a takeover that is not proven knows to be gone, from what survivors were told.
type loss struct {
	records uint64
	bytes   uint64
	span    time.Duration // from the last record that is there to the owner's last word
	at      time.Time     // the last record that is there
}

// measureLoss compares where the history ends with what was last said of it.
func (o *Owner) measureLoss(ctx context.Context, answers fenceAnswers, rec *journal.Recovery) (l loss) {
	rd := &rebuilder{o: o, ctx: ctx, indexes: map[ident.SegmentID]*journal.Index{}, answers: answers}
	var last ident.Seq
	for _, r := range slices.Concat(rec.Past, rec.Tail) {
		last = max(last, r.To)
	}
	seen := rec.Seen.Seq
	var told wire.Told
	for _, a := range answers {
		if t := a.Told; t.Time != 0 && (told.Time == 0 || t.Commit.Seq > told.Commit.Seq || t.Commit.Seq == told.Commit.Seq && t.Mark > told.Mark) {
			told = t
		}
	}
	if told.Time != 0 && !rec.Start.At.Epoch.Less(told.Commit.Epoch) {
		seen = max(seen, told.Commit.Seq)
	} else if rec.Start.At.Epoch.Less(told.Commit.Epoch) {
		seen = max(seen, told.Commit.Seq) // an epoch of which nothing is left
	}
	for i, r := range slices.Concat(rec.Past, rec.Tail) {
		if r.To != last || i < 0 {
			continue
		}
		if at, err := rd.timeOf(&r, last); err == nil && at != 0 {
			l.at = time.Unix(0, at)
		}
	}
	if seen <= last {
		return l
	}
	l.records = uint64(seen - last)
	if told.Commit.Seq >= seen && told.Mark <= last {
		l.bytes = told.Behind - min(told.Behind, rd.between(rec, told.Mark, last))
	}
	if told.Time != 0 && !l.at.IsZero() {
		l.span = max(0, time.Unix(0, int64(told.Time)).Sub(l.at))
	}
	return l
}

// timeOf reads when a record of a range got its place.
func (rd *rebuilder) timeOf(r *journal.Range, seq ident.Seq) (int64, error) {
	x, err := rd.index(r)
	if err != nil {
		return 0, err
	}
	i := int(seq - r.Before.Seq - 1)
	if i < 0 || i >= len(x.Entries) {
		return 0, wire.Errorf(wire.CodeAbsent, "segment %s has no record %d", r.Segment, seq)
	}
	rec, _, err := rd.o.readRecordFrom(rd.stores(r), r.Segment, x.Entries[i].Offset, seq)
	if err != nil {
		return 0, err
	}
	return rec.Time, nil
}

// between is how many bytes the records after one and up to another take, as far as they are there.
func (rd *rebuilder) between(rec *journal.Recovery, after, to ident.Seq) (n uint64) {
	for _, r := range slices.Concat(rec.Past, rec.Tail) {
		if r.To <= after || r.From > to {
			continue
		}
		x, err := rd.index(&r)
		if err != nil {
			continue
		}
		for i := range x.Entries {
			if seq := r.Before.Seq + 1 + ident.Seq(i); seq > after && seq >= r.From && seq <= min(to, r.To) {
				n += uint64(journal.RecordSize(x.Entries[i].StoredLen))
			}
		}
	}
	return n
}

// tellSites tells each of the other sites how far the history is and what it lacks, if that has changed; once a second.
// A frame a store and second is what a volume that is written costs.
func (o *Owner) tellSites() {
	if o.stopErr != nil || !o.w.Serving() {
		return
	}
	commit := o.w.Commit()
	for _, s := range o.ships {
		lag := o.lagOf(s)
		s.mu.Lock()
		t := wire.Told{Commit: commit, Mark: s.mu.mark.Seq, Behind: lag, Time: uint64(time.Now().UnixNano())}
		same := s.mu.told.Commit == t.Commit && s.mu.told.Mark == t.Mark
		if !same && t.Mark > 0 {
			s.mu.told = t
		}
		s.mu.Unlock()
		if same || t.Mark == 0 {
			continue
		}
		for _, id := range o.env.Stores.Core(s.site) {
			if st, ok := o.env.Stores.Store(id); ok && o.env.Stores.Up(id) {
				st.Notice(&wire.Notice{Epoch: o.epoch, Journal: o.journalID, Commit: commit, Stable: o.w.Stable(), Told: t})
			}
		}
	}
}

// depose ends an owner because the control store has a higher epoch.
func (o *Owner) depose(e ident.Epoch) error {
	o.ask(func() {
		o.stop(&wire.Error{Code: wire.CodeFenced, Epoch: e, Detail: "the control store names another owner"})
	})
	return o.Close()
}

// String says what was lost, for people.
func (l loss) String() string {
	if l.records == 0 {
		return "nothing is known to be lost"
	}
	text := fmt.Sprintf("%d acknowledged records", l.records)
	if l.bytes > 0 {
		text += fmt.Sprintf(", %d bytes", l.bytes)
	}
	if l.span > 0 {
		text += fmt.Sprintf(", %.1f s", l.span.Seconds())
	}
	return text
}
