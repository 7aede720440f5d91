package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// A flush waits until everything before it is stable on two servers (R8), and it may have to for long: until a store is back,
// has room again, or a disk answers. Nobody should have to guess for what. These are the reasons:
//
//   - records before it are not committed: fewer than two members of the ensemble can be reached, or none has room
//   - a segment of this epoch is on one store only: the other holder failed, and there is no other member to copy to, or what
//     that one has in the replica's place keeps it from being made again
//   - fewer other sites have them than --ack=site:K asks for
//   - a segment of a former epoch is: likewise; the copy is under way, fails, or its only holder can't be reached
const (
	flushSlow  = 5 * time.Second  // from here on it is said why a flush takes so long
	flushAgain = 10 * time.Second // how often
	// After so many refusals in a row, and a flush that waits for so long, this epoch has no way to make its own segments stable on
	// two stores. The next one has: what it finds in the place of a replica that is not its own it may have made again, by
	// a permit that is stable without that segment.
	copiesRefused = 3
)

// errSpoilt ends an owner that can't get its own records onto two stores.
var errSpoilt = errors.New("a store has something else in the place of a segment that flushes wait for: it is made again at the next epoch")

// sayWhatFlushesWaitFor says now and then what the oldest flush waits for, if that is old.
func (o *Owner) sayWhatFlushesWaitFor() {
	if len(o.stableWait) == 0 || o.stopErr != nil {
		return
	}
	oldest := slices.MinFunc(o.stableWait, func(a, b *Op) int { return int(int64(a.waits) - int64(b.waits)) })
	now := o.tick()
	waited := time.Duration(now-oldest.waits) * time.Millisecond
	if waited < flushSlow {
		return
	}
	if o.refusedCopies >= copiesRefused {
		o.stop(errSpoilt)
		return
	}
	if o.stableSaid != 0 && time.Duration(now-o.stableSaid)*time.Millisecond < flushAgain {
		return
	}
	o.stableSaid = now
	o.env.Metrics.SlowFlushes.Inc()
	o.log.Warn("a flush waits", "for", waited.Round(time.Second), "flushes", len(o.stableWait), "seq", oldest.seq, "commit", o.w.Commit().Seq, "stable", o.w.Stable().Seq, "what", o.whatFlushesWaitFor(oldest.seq))
}

// whatFlushesWaitFor names what keeps a record from being stable.
func (o *Owner) whatFlushesWaitFor(seq ident.Seq) string {
	var list []string
	for i, m := range o.members {
		switch {
		case !o.env.Stores.Up(m.Store):
			list = append(list, fmt.Sprintf("store %s can't be reached", m.Store))
		case !o.env.Health.Usable(m.Store):
			list = append(list, fmt.Sprintf("store %s has failed lately", m.Store))
		case !o.w.IsUp(i):
			list = append(list, fmt.Sprintf("store %s is about to be used again", m.Store))
		}
	}
	if seq > o.w.Commit().Seq {
		list = append(list, "records before it are on fewer than two stores")
	}
	past := make([]*segment, 0, len(o.unsettled))
	for _, s := range o.unsettled {
		past = append(past, s)
	}
	slices.SortFunc(past, func(a, b *segment) int { return a.id.Compare(b.id) })
	for _, s := range past {
		list = append(list, fmt.Sprintf("segment %s of a former epoch, to %d, at %s", s.id, s.last.Seq, o.describeHolders(s)))
	}
	list = append(list, o.w.Unstable(seq)...)
	if o.ack.rule != nil && seq > o.ack.rule.Synced() {
		list = append(list, fmt.Sprintf("%s on stable storage (--ack %s): %s", sitesHold(o.ack.rule.Need()), control.AckText(o.ack.rule.Need()), strings.Join(o.sitesBehind(), ", ")))
	}
	const most = 8
	if n := len(list); n > most {
		list = append(list[:most], fmt.Sprintf("and %d more", n-most))
	}
	if len(list) == 0 {
		return "an fdatasync"
	}
	return strings.Join(list, "; ")
}

// describeHolders says who has a segment.
func (o *Owner) describeHolders(s *segment) string {
	var list []string
	for i := range s.holders {
		h := &s.holders[i]
		what := "not stable"
		switch {
		case h.going:
			what = "may go"
		case h.strange:
			what = "not ours"
		case h.fork:
			what = "a fork"
		case h.bad:
			what = "bad"
		case h.stable:
			what = "stable"
		}
		if !o.fit(h.store) {
			what += ", away"
		}
		list = append(list, fmt.Sprintf("%s (%s)", h.store, what))
	}
	if o.repair.busy[s.id] {
		list = append(list, "being copied or sealed")
	} else if p := o.repair.failed[s.id]; p.tries > 0 {
		list = append(list, fmt.Sprintf("%d copies failed", p.tries))
	}
	if len(list) == 0 {
		return "no store that is known"
	}
	return strings.Join(list, ", ")
}
