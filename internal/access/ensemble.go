package access

import (
	"context"
	"errors"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/mutant"
)

// Changes of the list of ensembles (R3). A member that is gone for good is replaced at a takeover: chooseMembers
// records a new ensemble, and the owner that finds out ends itself so that its own node takes over at the next
// epoch. An ensemble leaves the list once nothing depends on it any more.

// errMemberGone ends an owner that wants another ensemble.
var errMemberGone = errors.New("a member of the ensemble is gone: another ensemble is taken at the next epoch")

// errGrown ends an owner whose site has more core servers than its ensemble has members there.
var errGrown = errors.New("there are more core servers: another ensemble is taken at the next epoch")

// settledForced is how long it serves at least where an operator has said that a store is to go.
const settledForced = 2 * time.Second

// settledAfter is how long an owner serves before it gives its epoch up for another ensemble: members that come
// and go must not make epochs follow each other.
const settledAfter = 30 * time.Second

// ensembleState is what the owner's loop keeps about its ensembles.
type ensembleState struct {
	away     map[ident.StoreID]time.Duration // since when members can't be reached
	changing bool
}

// replaceMember ends this owner if another ensemble is wanted and there is one: because a member's store is registered no
// more, is being emptied, was declared lost, or has been away for longer than what it holds is waited for; or because
// more core servers are at home now than the ensemble has.
func (o *Owner) replaceMember(now time.Duration) {
	e := &o.ensemble
	if e.away == nil {
		e.away = map[ident.StoreID]time.Duration{}
	}
	var gone, unwanted []ident.StoreID
	up, home := 0, 0
	for _, m := range o.members {
		_, registered := o.env.Stores.Store(m.Store)
		if m.Home {
			home++
		}
		if registered && !o.env.placeable(m.Store) {
			unwanted = append(unwanted, m.Store)
			continue
		}
		if registered && o.env.Stores.Up(m.Store) {
			delete(e.away, m.Store)
			if m.Home {
				up++
			}
			continue
		}
		since, away := e.away[m.Store]
		if !away {
			since = now
			e.away[m.Store] = now
		}
		if !registered || now-since > o.env.Limits.RepairGrace {
			gone = append(gone, m.Store)
		}
	}
	settled := o.env.Limits.settled()
	if len(unwanted) > 0 {
		settled = min(settled, settledForced)
	}
	grown := len(gone)+len(unwanted) == 0 && home < o.env.homeUp() && len(o.state.Ensembles) == 1
	if len(gone)+len(unwanted) == 0 && !grown || o.stopErr != nil || !o.w.Serving() || o.w.Blocked() || now-o.servedAt < settled {
		return
	}
	list, found := o.env.chooseEnsemble(o.journalID, o.state.Sites)
	if len(list) < control.EnsembleMin || len(unwanted) == 0 && found <= up || slices.ContainsFunc(list, func(s ident.StoreID) bool { return slices.Contains(gone, s) }) {
		return // nobody could take its place
	}
	if o.wouldWaitFor() != nil {
		return // this one serves; a takeover would not get as far
	}
	for _, s := range gone {
		o.env.Health.gone(s)
	}
	if grown {
		o.log.Info("there are more core servers at home than the ensemble has: another is taken", "members", home, "there", found)
		o.stop(errGrown)
		return
	}
	o.log.Warn("a member of the ensemble is gone or is to go: another is taken", "gone", gone, "leaving", unwanted)
	o.stop(errMemberGone)
}

// wouldWaitFor lists the stores that can't be reached and that a takeover would wait for now, by R2; none: it would not wait. An owner
// asks nothing of the older ensembles that are still listed, so it serves where it could not be taken over, and is not to
// end for anything that can be put off.
func (o *Owner) wouldWaitFor() []ident.StoreID {
	list := slices.DeleteFunc(slices.Clone(o.state.Ensembles), o.state.GivenUp)
	var silent []ident.StoreID
	for _, e := range list {
		for _, s := range e.Stores {
			if !o.env.Stores.Up(s) && !o.env.about(s).Lost && !slices.Contains(silent, s) {
				silent = append(silent, s)
			}
		}
	}
	if o.allButLost(list, silent) {
		return nil
	}
	return silent
}

// dropEnsembles takes the older ensembles off the list once all that was written under them is on two members of
// the newest, or covered by a checkpoint that is. This epoch's start is committed, since the owner serves.
func (o *Owner) dropEnsembles() {
	e := &o.ensemble
	if e.changing || o.stopErr != nil || len(o.state.Ensembles) < 2 || !o.w.Serving() || !o.proven && o.state.Forced == nil && !o.allHeard() && !mutant.On(mutant.R3Proven) ||
		(len(o.unsettled) > 0 || !o.onNewest()) && !mutant.On(mutant.R3Newest) {
		return
	}
	e.changing = true
	epoch := o.epoch
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, 10*time.Second)
		defer cancel()
		state, rev, err := o.env.Control.JournalNow(ctx, o.journalID)
		var r control.EnsembleResult
		if err == nil && state.Epoch == epoch && len(state.Ensembles) > 1 {
			newest := state.Ensembles[len(state.Ensembles)-1:]
			r = o.env.Control.ChangeEnsembles(ctx, []control.EnsembleChange{{Journal: o.journalID, Rev: rev, Ensembles: newest}})[0]
			err = r.Err
		}
		o.call(func() {
			e.changing = false
			if err != nil {
				// Done or not, the next look at the key tells. Nothing depends on it: what is listed is asked.
				o.log.Info("older ensembles stay listed", "err", err)
			} else if len(r.State.Ensembles) > 0 {
				o.state.Ensembles, o.state.Forced = r.State.Ensembles, r.State.Forced
				o.log.Info("older ensembles are off the list", "left", len(r.State.Ensembles))
			} else if state.Epoch == epoch {
				o.state.Ensembles = state.Ensembles // an earlier attempt had succeeded
			}
		})
	})
}

// allHeard reports that every store of the listed ensembles has said what it has since this owner began, or was declared
// lost: then nobody else can hold what a takeover that was not proven may have missed (R13).
func (o *Owner) allHeard() bool {
	for _, e := range o.state.Ensembles {
		for _, s := range e.Stores {
			if !o.strays.heard[s] && !o.env.about(s).Lost {
				return false
			}
		}
	}
	return true
}

// onNewest reports that a takeover which asks the members of the newest ensemble only finds everything: each segment
// stable on two of them; one that a checkpoint covers on two servers wherever they are, since the table in the checkpoint
// names it.
func (o *Owner) onNewest() bool {
	for _, s := range o.segs {
		if s.slot == 0 || o.retiring(s) || o.needless(s) {
			continue
		}
		if !s.sealed {
			if s.id.Epoch != o.epoch {
				return false
			}
			continue // this epoch's writer has it on two members
		}
		n := 0
		for i := range s.holders {
			h := &s.holders[i]
			if !h.stable || h.bad || h.going {
				continue
			}
			for _, m := range o.members {
				if m.Store == h.store {
					n++
				}
			}
		}
		switch {
		case n >= 2:
		case n == 1 && o.covered(s) && o.atAllSites(s):
		case o.covered(s) && !s.id.IsCheckpoint() && len(s.good()) >= 2: // R3: the checkpoint is on two of them; who has the segment is asked for
		default:
			return false
		}
	}
	return true
}

// atAllSites reports that there are other sites and that each holds the segment.
func (o *Owner) atAllSites(s *segment) bool {
	remote := o.remoteSites()
	for _, site := range remote {
		if o.goodAt(s, site) == 0 {
			return false
		}
	}
	return len(remote) > 0
}

func (l *Limits) settled() time.Duration { return min(settledAfter, l.RepairGrace) }

// gone notes that a store is not to be a member again until it has been seen.
func (h *Health) gone(id ident.StoreID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ailingLocked(id).gone = true
}

// isGone reports that a store was found to be gone; up says that it can be reached, which takes it back.
func (h *Health) isGone(id ident.StoreID, up bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.mu.stores[id]
	if a != nil && up {
		a.gone = false
	}
	return a != nil && a.gone
}
