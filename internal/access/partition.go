package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// A volume with the partition policy stop (R11). Its owner needs, beside the leases of core servers, one of the control
// store: a key of its node there for 10 s (control.Hold). 7 s after it was last asked for with success the owner is silent: it
// answers nothing with success. Once the key is gone, a site that has the control store takes the volume over by itself, and
// the transaction that says so has the key's absence among its conditions. So what was acknowledged at the old site was
// acknowledged before the new one began:
//
//	asked for ├────────── 7 s, on the owner's clock ──────────┤ silent
//	          ├───────────────── 10 s or more, on the control store's ─────────────────┤ key gone: may be taken over
//
// The policy may be changed while the volume is served, and the owner may hear of that late, or be cut off before it does. So
// what counts for other sites is not the specification but the owner's own word in the journal's key (JournalState.Stops):
// it gives its word once it has its lease, and takes it back before it stops heeding the lease. A takeover by the
// specification's stop gives the word with the same transaction; a new owner that was handed the journal gives it after.
//
//	spec: stop ──> lease ──> the journal is still this owner's ──> heeds the lease ──> Stops in the key: others may take over
//	spec: continue ──> Stops out of the key ──> heeds it no more
//
// A node whose key was gone puts it back when it can, and that alone gives nothing back to its owners: each first asks the
// control store whether its journal is still its own. Whoever took it over did so before the key was there again.
//
// With continue, the default, the owner goes on, and only an operator has another site take over.

const (
	silentAfter = 7 * time.Second
	// lostAfter is how long a site must seem lost before it is given up: announcements and keys end at different times.
	lostAfter = 2 * time.Second
	lostRetry = 2 * time.Second
)

// controlHold is the node's lease of the control store as its owners see it.
type controlHold struct {
	until atomic.Int64  // of Env.Clock: silent from then on
	lives atomic.Uint64 // counts how often the key was put; owners ask for their journals after each
}

func (h *controlHold) renewed(asked int64, anew bool) {
	if anew {
		h.lives.Add(1)
	}
	h.until.Store(asked + int64(silentAfter))
}

// keepHold begins to ask for the lease when there is a volume that needs one.
func (s *Server) keepHold(spec *control.VolumeSpec) {
	state, _, _ := s.env.Control.Journal(spec.ID)
	if spec.Partition != control.PartitionStop && !state.Stops || s.holding {
		return
	}
	if err := s.env.Control.Hold(s.env.Node, s.env.Clock, s.env.Hold.renewed); err != nil {
		s.env.Log.Error("no lease of the control store is asked for", "err", err)
		return
	}
	s.holding = true
}

// silent reports that the owner may not answer with success now.
func (o *Owner) silent() bool {
	if !o.partition.heeds || o.env.Hold == nil {
		return false
	}
	if mutant.On(mutant.R11Silent) {
		return false
	}
	return o.partition.life != o.env.Hold.lives.Load() && !mutant.On(mutant.R11Anew) || int64(o.tick())*int64(time.Millisecond) >= o.env.Hold.until.Load()
}

// stopState is what the owner's loop keeps of it.
type stopState struct {
	life   uint64 // of the key in which the journal was seen to be this owner's; 0: not yet
	asking bool
	told   bool // that it is silent
	heeds  bool // the lease
	stops  bool // the journal's key says so
	saying bool // the key is being changed
	retry  time.Duration
}

func errSilent(o *Owner) error {
	return wire.Errorf(wire.CodeBusy, "epoch %s: no lease of the control store for %v (partition policy stop)", o.epoch, silentAfter)
}

// keepJournal asks whether the journal is this owner's still, each time that the key was put anew. It runs in the loop.
func (o *Owner) keepJournal() {
	x := &o.partition
	stop := o.spec.Load().Partition == control.PartitionStop
	if o.stopErr != nil || o.env.Hold == nil || !stop && !x.heeds && !x.stops {
		return
	}
	if x.heeds || x.stops { // else it is to heed the lease once it is there, and nobody counts on it before
		o.giveWord(stop)
	}
	if silent := o.silent(); silent != x.told && o.w.Serving() {
		x.told = silent
		if silent {
			o.log.Warn("silent: no lease of the control store", "epoch", o.epoch)
		} else {
			o.log.Info("the lease of the control store is there: commands are answered", "epoch", o.epoch)
		}
	}
	life := o.env.Hold.lives.Load()
	if x.asking || life == 0 || life == x.life && (x.heeds || !stop) {
		return
	}
	x.asking = true
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, control.HoldEvery)
		defer cancel()
		state, _, err := o.env.Control.JournalNow(ctx, o.journalID)
		o.call(func() {
			x.asking = false
			switch {
			case err != nil:
			case state.Epoch == o.epoch && state.Owner == o.env.Node:
				x.life = life
				x.heeds = x.heeds || o.spec.Load().Partition == control.PartitionStop
			case o.epoch.Less(state.Epoch):
				o.stop(&wire.Error{Code: wire.CodeFenced, Epoch: state.Epoch, Detail: "the control store names another owner"})
			}
		})
	})
}

// giveWord has the journal's key say whether this owner heeds its lease, as the specification wants it. It runs in the loop.
func (o *Owner) giveWord(stop bool) {
	x := &o.partition
	now := time.Duration(o.env.Clock())
	if x.saying || stop == x.stops && stop == x.heeds || !o.w.Serving() || now < x.retry {
		return
	}
	x.saying = true
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, control.HoldEvery)
		defer cancel()
		err := o.env.Control.SetStops(ctx, o.journalID, o.epoch, stop)
		o.call(func() {
			x.saying = false
			if err != nil {
				x.retry = time.Duration(o.env.Clock()) + lostRetry
				o.log.Debug("the owner's word on its partition policy is not in its key", "stops", stop, "err", err)
				return
			}
			x.stops, x.heeds, o.state.Stops = stop, stop, stop
			o.log.Info("partition policy in effect", "stops", stop)
		})
	})
}

// automatic reports that sites may be given up without an operator: more than half of the control store's voters are left
// when one site is lost.
func (s *Server) automatic() bool {
	sites := map[ident.SiteID]bool{}
	for _, n := range s.env.Control.SharedNodes() {
		if n.Has(control.RoleWitness) {
			return true
		}
		sites[n.Site] = true
	}
	return len(sites) >= 3
}

// siteLost says whether a volume's owner's site is lost to the control store and to this node, and it is this node's business
// to see whether its own site takes over. Server.mu is held.
func (s *Server) siteLost(v *Volume, state control.JournalState) bool {
	if !state.Stops || state.Owner == "" || v.forcing {
		return false
	}
	owner, ok := s.env.Control.Node(state.Owner)
	lost := ok && owner.Site != s.env.Site && !s.env.Control.Held(state.Owner) && s.env.Clock() < s.env.Hold.until.Load()
	if lost {
		for _, n := range s.env.Control.SharedNodes() {
			if n.Site == owner.Site && (s.env.Control.Alive(n.Name) || s.reachable(n.Name)) {
				lost = false
			}
		}
	}
	if !lost {
		v.lostSince = time.Time{}
		return false
	}
	if v.lostSince.IsZero() {
		v.lostSince = time.Now()
	}
	return time.Since(v.lostSince) > lostAfter && time.Since(v.forceTried) > lostRetry && s.chosen(v.id, "") && s.automatic()
}

// takeFromLost has the control store name this node the owner of a volume whose site is lost, if its own has most of the
// history. The takeover itself is then like any other of this node's.
func (s *Server) takeFromLost(v *Volume) {
	defer func() {
		s.mu.Lock()
		v.forcing, v.forceTried = false, time.Now()
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	if !s.slots.take(ctx, v.urgency) {
		return
	}
	defer s.slots.give()
	log := s.env.Log.With("volume", v.Spec().Name)
	x, err := s.Survey(ctx, v.id)
	if err != nil {
		log.Warn("a volume whose site is lost", "err", err)
		return
	}
	owner, ok := s.env.Control.Node(x.State.Owner)
	if !ok || owner.Site == s.env.Site || !x.State.Stops {
		return
	}
	for _, r := range x.Reach {
		if r.Site == s.env.Site {
			break
		}
		if _, can := s.Taker(v.id, r.Site); can && r.Site != owner.Site {
			return // that site has more, or comes first
		}
	}
	var lost []ident.StoreID
	var others []string
	for _, id := range x.Missing {
		if s.env.Stores.Site(id) == owner.Site {
			lost = append(lost, id)
		} else {
			others = append(others, id.String())
		}
	}
	if len(others) > 0 && !x.Enough {
		log.Warn("a volume whose site is lost waits: stores of other sites are missing too; dozo volume recover goes without them", "missing", strings.Join(others, " "))
		return
	}
	if x.Need > 0 && !x.Kept() {
		log.Warn("a volume whose site is lost waits: with too few of its sites heard whole, acknowledged writes might be left behind", "heard", len(x.Whole), "needed", x.Need)
		return
	}
	state, _, err := s.env.Control.ForceJournal(ctx, v.id, x.Rev, s.env.Node, lost, x.State.Owner, x.Need, false)
	var uncertain *control.UncertainError
	if errors.As(err, &uncertain) {
		state, _, err = s.env.Control.Settle(ctx, uncertain)
	}
	if err != nil {
		log.Warn("a volume whose site is lost is not taken over", "owner", x.State.Owner, "err", err)
		return
	}
	s.env.Metrics.SiteTakeovers.Inc()
	log.Warn("a volume is taken over from a site that is lost", "owner", x.State.Owner, "site", owner.Site, "epoch", state.Epoch.String(), "seq", x.Last)
	spec := v.Spec()
	lostText := loss{records: x.Records, bytes: x.Bytes, span: x.Span}.String()
	if x.Kept() {
		lostText = "nothing that was acknowledged: " + sitesWhole(x.State.Ack)
	}
	e := control.Event{Time: time.Now(), Actor: "node/" + string(s.env.Node), Action: "volume.failover", Object: "volume/" + spec.Tenant + "/" + spec.Name,
		Note: fmt.Sprintf("from %s, whose site is lost, by partition policy stop; lost: %s", x.State.Owner, lostText)}
	if err := s.env.Control.AppendEvent(ctx, e); err != nil {
		log.Warn("event not written", "action", e.Action, "err", err)
	}
}

// lookForLost is a part of reconcile: whether a volume of another site is to be taken over. Server.mu is held.
func (s *Server) lookForLost(v *Volume, state control.JournalState) {
	if !s.siteLost(v, state) || !slices.Contains(state.Sites, s.env.Site) {
		return
	}
	v.forcing = true
	s.wg.Go(func() { s.takeFromLost(v) })
}
