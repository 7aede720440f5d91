package access

import (
	"fmt"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// ending finds where the history ends by its own word, and the checkpoint that the map is made from. It reads the tail.
func (rd *rebuilder) ending(rec *journal.Recovery, answers fenceAnswers) (tail []*journal.Entry, point journal.CheckpointPoint, err error) {
	o := rd.o
	if tail, err = rd.tail(rec); err != nil {
		return nil, point, err
	}
	at, err := announced(tail)
	if err != nil {
		return nil, point, err
	}
	if behind := rd.announcedBehind(rec); behind.Seq > at.Seq {
		at = behind
	}
	if at.Seq > rec.Commit.Seq {
		// What a checkpoint covers was stable when it was announced. Stores that have started since may not know,
		// but the checkpoint before that one may be gone.
		*rec = *journal.Recover(o.ensembles(), answers, at)
		if tail, err = rd.tail(rec); err != nil {
			return nil, point, err
		}
	}
	// A hole behind the checkpoint is where power failed on both holders while something newer was stable already. What
	// the checkpoint covers need not be there: R5.
	for {
		if point, err = rd.newestCheckpoint(rec); err != nil {
			return nil, point, err
		}
		if o.fallsBack() {
			for store, a := range answers {
				o.checkpointHolders(store, a.Replicas)
			}
			if point, err = rd.newestComplete(rec, point); err != nil {
				return nil, point, err
			}
		}
		// The newest one may be announced in the tail only, and what it covers have gone since.
		if point, err = rd.tailPoint(tail, point, rec.Commit.Seq); err != nil {
			return nil, point, err
		}
		end, hole := rec.Hole(point.At.Seq)
		if !hole {
			return tail, point, nil
		}
		if id, store, found := madeAgain(rec, answers, point.At); found && !o.forced {
			return nil, point, wire.Errorf(wire.CodeBusy, "journal %s: what follows seq %d is not there, and store %s was making a replica of segment %s again: the store that has another one is waited for; dozo volume recover goes on without", o.journalID, end, store, id)
		}
		if o.viewing && !o.forced || o.state.Forced != nil && !o.forced {
			return nil, point, wire.Errorf(wire.CodeBusy, "journal %s: no store that can be reached has what follows seq %d: dozo volume recover --force goes on without", o.journalID, end)
		}
		if !o.viewing {
			o.log.Error("a hole in the history: it ends there", "seq", end, "commit", rec.Commit.Seq)
		}
		rec.CutAt(end)
		o.holed = true
		if rec.LostStable && !o.agreed() && !mutant.On(mutant.R4LostStable) {
			return nil, point, errLostStable(o, rec)
		}
		if tail, err = rd.tail(rec); err != nil {
			return nil, point, err
		}
		if end == point.At.Seq {
			rd.at = point.At
		}
	}
}

// madeAgain finds a segment that a store is making again and that the checkpoint at covered need not have. Its store counted as one that answered,
// and the only other replica may be at a store that did not (R4): a hole in the history may be that segment.
func madeAgain(rec *journal.Recovery, answers fenceAnswers, covered ident.Position) (id ident.SegmentID, store ident.StoreID, found bool) {
	for store, a := range answers {
		for _, id := range a.Again {
			// Of the checkpoint's own epoch is what was written to in front of a segment that the checkpoint has reached.
			before := func(r journal.Range) bool {
				return r.Segment.Epoch == id.Epoch && id.Number < r.Segment.Number && r.From <= covered.Seq+1
			}
			if !id.IsCheckpoint() && !id.Epoch.Less(covered.Epoch) && !slices.ContainsFunc(rec.Past, before) {
				return id, store, true
			}
		}
	}
	return id, store, false
}

// announced is what the newest checkpoint covers that the records announce.
func announced(records []*journal.Entry) (at ident.Position, err error) {
	for _, e := range records {
		if e.Kind == journal.KindCheckpoint {
			p, err := journal.DecodeCheckpoint(e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen])
			if err != nil {
				return at, fmt.Errorf("checkpoint announcement at seq %d: %w", e.Seq, err)
			}
			at = p.At
		}
	}
	return at, nil
}

// announcedBehind is what the newest checkpoint covers that is announced behind a hole: what it covers may have been retired and be gone since,
// and no store that has lost its power knows how far it was committed.
func (rd *rebuilder) announcedBehind(rec *journal.Recovery) (at ident.Position) {
	for i := range rec.Behind {
		got, err := rd.readRange(&rec.Behind[i])
		if err == nil {
			var p ident.Position
			if p, err = announced(got); p.Seq > at.Seq {
				at = p
			}
		}
		if err != nil {
			rd.o.log.Warn("a segment behind a hole can not be read", "segment", rec.Behind[i].Segment, "err", err)
		}
	}
	return at
}

// tailPoint is the newest checkpoint at or below seq that the tail announces, p if there is none newer.
func (rd *rebuilder) tailPoint(tail []*journal.Entry, p journal.CheckpointPoint, seq ident.Seq) (journal.CheckpointPoint, error) {
	for _, e := range tail {
		if e.Kind != journal.KindCheckpoint {
			continue
		}
		found, err := journal.DecodeCheckpoint(e.Bytes[journal.BodyOffset(e.StoredLen):][:e.StoredLen])
		if err != nil {
			return p, fmt.Errorf("checkpoint announcement at seq %d: %w", e.Seq, err)
		}
		if found.At.Seq > p.At.Seq && found.At.Seq <= seq && (!rd.o.fallsBack() || rd.complete(found)) {
			p = found
		}
	}
	return p, nil
}
