package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// A site is lost: its nodes die, or lose their power, or are cut off from everything but their own clients. After a while
// it is given up: by the nodes of another site if the volume's policy is stop and there are sites enough, else by an operator,
// who decides as `dozo site failover` does. Then it comes back, with what it had acknowledged beyond, and its volume goes home.

// force is that the control store has given up an owner.
type force struct {
	epoch  uint64
	at     int64         // on the history's clock
	when   time.Duration // it was seen
	silent bool          // its owner can have answered nothing any more
}

// forces is what is known of takeovers by force, and what owners have said of theirs.
type forces struct {
	mu     sync.Mutex
	list   []force
	insist map[uint64]bool  // epochs that the operator began without asking for the owner's lease
	claims map[uint64]claim // by epoch
	letOn  map[uint64]bool  // epochs whose owner has let the ports go on
}

// claim is what an owner whose epoch is not proven says of it.
type claim struct {
	kept bool // nothing that was acknowledged is missing
	lost uint64
}

// loseSite is the fault.
func (w *World) loseSite(n *Node, f *Fault, undo func(func())) {
	var here, others []*Node
	for _, x := range w.nodes {
		if x.site == n.site {
			here = append(here, x)
		} else {
			others = append(others, x)
		}
	}
	for _, x := range here {
		w.stays.keep(f, x)
		switch f.Kind {
		case FaultSiteDies:
			x.kill()
			undo(x.restart)
		case FaultSiteLosesPower:
			x.powerCut(percentOf(f))
			undo(x.restart)
		}
	}
	if f.Kind == FaultSiteCutOff {
		var cut [][2]*Node
		for _, x := range here {
			x.cutOff.Add(1)
			for _, y := range others {
				cut = append(cut, [2]*Node{x, y}, [2]*Node{y, x})
			}
		}
		w.cut(cut, undo)
		w.cutSiteClients(n.site, 1)
		undo(func() {
			for _, x := range here {
				x.cutOff.Add(-1)
			}
			w.cutSiteClients(n.site, -1)
		})
	}
	v, _ := w.admin.Volume(w.vol.ID)
	byItself := v.Partition == control.PartitionStop && len(w.plan.Sites) > 2 && f.Size>>14%4 > 0
	insist := f.Size>>4%8 == 0 && !byItself
	patience := time.Duration(2+f.Size>>8%7) * time.Second
	back := w.now() + f.For
	w.after(patience, func() {
		w.wg.Go(func() {
			for !byItself && !w.isOver() && w.now() < back {
				if w.giveUp(n.site, insist) {
					return
				}
				if f.Size>>10%4 == 0 && w.now() > back-5*time.Second {
					insist = true // enough of waiting
				}
				time.Sleep(time.Second)
			}
		})
	})
	if f.Stays {
		return
	}
	w.at(back+time.Duration(1+f.Size>>16%4)*time.Second, func() { w.wg.Go(w.goHome) })
}

// cutSiteClients cuts the clients of a site off from all nodes of others, and the other way round.
func (w *World) cutSiteClients(site ident.SiteID, by int) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for _, c := range w.clients {
		for _, n := range w.nodes {
			if (c.site == site) != (n.site == site) {
				w.clientCuts[[2]int{c.id, n.index}] += by
			}
		}
	}
}

// giveUp is `dozo site failover`, by a node of another site (node.FailoverSite); true once there is nothing more to do.
func (w *World) giveUp(site ident.SiteID, insist bool) bool {
	var p *Proc
	for _, n := range w.nodes {
		if x := n.running(); n.site != site && x != nil && x.srv != nil && n.cutOff.Load() == 0 {
			p = x
			break
		}
	}
	if p == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := p.ctl
	state, _, ok := c.Journal(w.vol.ID)
	owner, known := c.Node(state.Owner)
	if !ok || !known {
		return false
	}
	waits := owner.Site != site // elsewhere, as far as the control store knows: its takeover may wait for the site all the same
	if waits && w.serves(state.Epoch) {
		return true
	}
	for _, n := range w.nodes {
		if x := (path{p, n}); n.site == site && (x.Up() || c.Alive(n.name) && !x.Gone()) && !insist {
			return false // it is alive, or was seconds ago
		}
	}
	s, err := p.srv.Survey(ctx, w.vol.ID)
	if err != nil {
		w.tracef("operator: survey: %v", err)
		return false
	}
	if waits && !p.srv.WaitsFor(s, site) {
		return false
	}
	var sites []ident.SiteID
	for _, r := range s.Reach {
		sites = append(sites, r.Site)
	}
	var taker ident.NodeName
	for _, x := range append(sites, s.State.Sites...) {
		if name, ok := p.srv.Taker(w.vol.ID, x); ok && x != site {
			taker = name
			break
		}
	}
	whole := len(slices.DeleteFunc(slices.Clone(s.Whole), func(x ident.SiteID) bool { return x == site }))
	elsewhere := slices.ContainsFunc(s.Missing, func(id ident.StoreID) bool { return w.nodeOfStore(id).site != site })
	refused := ""
	switch {
	case taker == "":
		w.tracef("operator: nobody can take the volume over")
		return false
	case insist:
	case s.Last == 0:
		refused = "no store has anything"
	case s.Need > 0 && whole < s.Need && !s.Enough:
		refused = "too few sites are heard whole"
	case elsewhere && !s.Enough:
		refused = "stores of other sites are missing"
	}
	if refused != "" {
		w.stats.add("site failovers refused", 1)
		w.tracef("operator: refused: %s", refused)
		return false
	}
	var lost []ident.StoreID
	for _, e := range s.State.Ensembles {
		for _, id := range e.Stores {
			if !slices.Contains(lost, id) && (w.nodeOfStore(id).site == site || insist && slices.Contains(s.Missing, id)) {
				lost = append(lost, id)
			}
		}
	}
	var unheld ident.NodeName
	hear := 0
	if v, ok := c.Volume(w.vol.ID); ok && v.Partition == control.PartitionStop && !insist && !waits {
		unheld = s.State.Owner
	}
	if !insist {
		hear = s.Need
	}
	if unheld == "" {
		w.forces.mu.Lock()
		w.forces.insist[s.State.Epoch.Number+1] = true
		w.forces.mu.Unlock()
	}
	state, _, err = c.ForceJournal(ctx, w.vol.ID, s.Rev, taker, lost, unheld, hear, false)
	if u, ok := errors.AsType[*control.UncertainError](err); ok {
		state, _, err = c.Settle(ctx, u)
	}
	if err != nil {
		w.tracef("operator: %v", err)
		return false
	}
	w.stats.add("site failovers by the operator", 1)
	w.tracef("operator: site %d is given up: %s takes over at %s, insist=%v hear=%d", site, taker, state.Epoch, insist, hear)
	return true
}

// serves reports that the owner of an epoch answers commands.
func (w *World) serves(epoch ident.Epoch) bool {
	for _, n := range w.nodes {
		if p := n.running(); p != nil && p.srv != nil {
			for _, o := range p.srv.Owners() {
				if v := o.View(); o.Epoch() == epoch && v != nil {
					return true
				}
			}
		}
	}
	return false
}

// goHome is `dozo site failback`: it tries for a while.
func (w *World) goHome() {
	for range 6 {
		if w.isOver() {
			return
		}
		n := w.owner()
		if n != nil && n.site == w.vol.AtSite {
			w.stats.add("volume home again", 1)
			return
		}
		if n != nil {
			w.move(n, "", w.vol.AtSite)
		}
		time.Sleep(3 * time.Second)
	}
}

// changePolicy changes the volume's policies, by an operator whom nothing keeps from the control store.
func (w *World) changePolicy(f *Fault) {
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		v, err := w.admin.UpdateVolume(ctx, w.vol.ID, func(v *control.VolumeSpec) error {
			switch {
			case f.Size%3 > 0 && v.Sites > 1:
				v.Ack = f.Size >> 2 % v.Sites
			case v.Partition == control.PartitionStop:
				v.Partition = control.PartitionContinue
			default:
				v.Partition = control.PartitionStop
			}
			return nil
		})
		w.tracef("policy: ack %s, partition %s: %v", control.AckText(v.Ack), v.Partition, err)
	})
}

// watchForces notes takeovers by force as the control store has them.
func (w *World) watchForces() {
	changed, cancel := w.admin.Subscribe()
	defer cancel()
	var was control.JournalState
	for {
		state, _, ok := w.admin.Journal(w.vol.ID)
		if f := state.Forced; ok && f != nil && (was.Forced == nil || was.Forced.Epoch != f.Epoch) {
			w.forces.mu.Lock()
			x := force{epoch: f.Epoch.Number, at: w.hist.tick(), when: w.now(), silent: was.Stops && !w.forces.insist[f.Epoch.Number]}
			w.forces.list = append(w.forces.list, x)
			w.forces.mu.Unlock()
			w.tracef("force: epoch %s at %s, stops=%v silent=%v ack=%d hear=%d", f.Epoch, state.Owner, was.Stops, x.silent, state.Ack, f.Hear)
			what := "takeovers by force"
			if x.silent {
				what += ", of a silent owner (R11)"
			}
			w.stats.add(what, 1)
		}
		if ok && state.Handed && !was.Handed {
			w.cue(cueHanded, w.nodeOf(was.Owner), state.Epoch.Number)
		}
		if ok && len(was.Ensembles) > 1 && len(state.Ensembles) == 1 {
			w.cue(cueListed, w.nodeOf(state.Owner), state.Epoch.Number)
		}
		was = state
		select {
		case <-changed:
		case <-w.over:
			return
		}
	}
}

// forced reports that the control store has given up stores that are not replaced yet.
func (w *World) forced() bool {
	state, _, ok := w.admin.Journal(w.vol.ID)
	return ok && state.Forced != nil
}

// lookAtClaim notes what the owner of an epoch says of its takeover.
func (w *World) lookAtClaim(epoch uint64) {
	w.forces.mu.Lock()
	_, known := w.forces.claims[epoch]
	w.forces.mu.Unlock()
	if known {
		return
	}
	for _, n := range w.nodes {
		p := n.running()
		if p == nil || p.srv == nil {
			continue
		}
		for _, o := range p.srv.Owners() {
			v := o.View()
			if o.Epoch().Number != epoch || v == nil {
				continue
			}
			w.claimed(epoch, o, v)
			return
		}
	}
}

func (w *World) claimed(epoch uint64, o *access.Owner, v *access.View) {
	w.forces.mu.Lock()
	_, known := w.forces.claims[epoch]
	w.forces.claims[epoch] = claim{v.Kept, v.Lost}
	w.forces.mu.Unlock()
	if known {
		return
	}
	w.tracef("epoch %s says: kept=%v lost=%d", o.Epoch(), v.Kept, v.Lost)
	if v.Kept {
		w.stats.add("epochs begun, not proven, nothing acknowledged left behind (R11)", 1)
	}
	if left := w.chain.leftBehind(epoch); v.Lost > uint64(left) {
		w.fail("the owner of epoch %d says that %d records are lost, and %d had been committed beyond its beginning", epoch, v.Lost, left)
	}
}

// isKept reports that the owner of an epoch has said that nothing is missing which was acknowledged.
func (w *World) isKept(epoch uint64) bool {
	w.lookAtClaim(epoch)
	w.forces.mu.Lock()
	defer w.forces.mu.Unlock()
	return w.forces.claims[epoch].kept || w.forces.letOn[epoch]
}

func (w *World) claimKnown(epoch uint64) bool {
	w.forces.mu.Lock()
	defer w.forces.mu.Unlock()
	_, known := w.forces.claims[epoch]
	return known
}

// letOn notes that the owner of an epoch has let ports go on that were barred by its start.
func (w *World) letOn(epoch uint64) {
	w.forces.mu.Lock()
	defer w.forces.mu.Unlock()
	if !w.forces.letOn[epoch] {
		w.forces.letOn[epoch] = true
		w.tracef("epoch %d lets ports go on", epoch)
	}
}

// settleRollbacks tells the history what is known in the end: where nothing acknowledged is missing it may not have gone back.
func (w *World) settleRollbacks() {
	for i := range w.hist.rollbacks {
		r := &w.hist.rollbacks[i]
		r.kept = w.forces.claims[r.epoch].kept || w.forces.letOn[r.epoch]
		for _, f := range w.forces.list {
			if f.epoch <= r.epoch {
				r.silent = f.silent
			}
		}
	}
}

// checkSilent is R11's stop: nothing is acknowledged by an owner after another site has taken its place.
func (w *World) checkSilent() {
	for _, f := range w.forces.list {
		if !f.silent {
			continue
		}
		for i := range w.hist.list {
			e := &w.hist.list[i]
			if e.maybe || e.out.epoch >= f.epoch || e.out.decided <= f.when {
				continue
			}
			w.fail("%s was answered in epoch %d at %v, and another site had begun epoch %d at %v (R11, stop)", e.in.String(), e.out.epoch, e.out.decided, f.epoch, f.when)
			return
		}
	}
}

// decidedAt is when an owner has answered a command: what it says was its clock then, where the answer came by another node.
func (w *World) decidedAt(op *access.Op) time.Duration {
	if op.Tick == 0 {
		return w.now()
	}
	if n := w.nodeOf(w.chain.owner(op.Epoch.Number)); n != nil {
		return n.since(time.Duration(op.Tick) * time.Millisecond)
	}
	return w.now()
}

// checkForks compares what takeovers have left behind with what is kept aside. A site that came back has all of it, as long as
// nobody has lost power or a bit.
func (w *World) checkForks(o *access.Owner) (wrong []string) {
	v := o.View()
	if v == nil || w.lostBytes.Load() {
		return nil
	}
	kept := aside{records: map[ident.Hash]bool{}}
	for _, n := range w.nodes {
		p := n.running()
		if p == nil {
			continue
		}
		r, err := p.store.Inventory(context.Background(), &wire.Inventory{Journal: w.vol.ID})
		if err != nil {
			continue
		}
		for _, x := range r.Replicas {
			if x.State != wire.ReplicaFork || x.Segment.IsCheckpoint() {
				continue
			}
			raw, err := readAll(context.Background(), p, x)
			if err != nil {
				wrong = append(wrong, "fork "+x.Segment.String()+" at "+string(n.name)+": "+err.Error())
				continue
			}
			kept.add(x.Segment.Original(), raw)
		}
	}
	for i, c := range v.Cuts {
		// What an earlier takeover has left behind already is not this one's.
		left := slices.DeleteFunc(w.chain.beyond(c), func(at ident.Position) bool {
			return slices.ContainsFunc(v.Cuts[:i], func(x wire.Cut) bool { return at.Epoch.Less(x.At.Epoch) && at.Seq > x.Before.Seq })
		})
		if len(left) == 0 {
			continue
		}
		for _, at := range left {
			w.stats.add("commit points found in forks", 1)
			if !kept.has(at) {
				wrong = append(wrong, fmt.Sprintf("record %s, which had been committed, was left behind by epoch %s and is in no fork", at, c.At.Epoch))
				break
			}
		}
		wrong = append(wrong, w.checkFork(v.Cuts, c, left[len(left)-1])...)
	}
	return wrong
}

// aside is what forks have.
type aside struct {
	records map[ident.Hash]bool
	spans   []span
	retired []ident.SegmentID // by records in them
}

// span is the records of one segment.
type span struct {
	id          ident.SegmentID
	first, last ident.Seq
}

func (a *aside) add(id ident.SegmentID, raw []byte) {
	x := span{id: id}
	eachRecord(id, raw, func(at ident.Position, r *journal.Record, body []byte) {
		a.records[at.Hash] = true
		if x.first == 0 {
			x.first = at.Seq
		}
		x.last = at.Seq
		if r.Kind == journal.KindRetire {
			if list, err := journal.DecodeRetired(body); err == nil {
				a.retired = append(a.retired, list...)
			}
		}
	})
	if x.first != 0 {
		a.spans = append(a.spans, x)
	}
}

// has says whether a record is in a fork, or was in a segment that the history which was left behind had retired itself: one
// between the segments that lie around the record.
func (a *aside) has(at ident.Position) bool {
	if a.records[at.Hash] {
		return true
	}
	after, before := -1, math.MaxInt
	for _, x := range a.spans {
		switch {
		case x.id.Epoch != at.Epoch:
		case x.last < at.Seq:
			after = max(after, int(x.id.Number))
		case x.first > at.Seq:
			before = min(before, int(x.id.Number))
		}
	}
	return slices.ContainsFunc(a.retired, func(id ident.SegmentID) bool {
		return id.Epoch == at.Epoch && !id.IsCheckpoint() && int(id.Number) > after && int(id.Number) < before
	})
}

// checkFork reads a fork as `dozo fork` does: it begins where the histories part, and has all that had been committed; and the volume
// as it was there can be read, which `dozo fork diff` compares with.
func (w *World) checkFork(cuts []wire.Cut, c wire.Cut, last ident.Position) (wrong []string) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	p := w.owner().running()
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	past, err := p.srv.Past(ctx, w.vol.ID, cuts, c, access.PastFork)
	if err != nil {
		bad("the fork that epoch %s has left: %v", c.At.Epoch, err)
		return wrong
	}
	defer past.Close()
	w.stats.add("forks read (R14)", 1)
	if past.Base != c.Before || past.Last.Seq < last.Seq {
		bad("the fork that epoch %s has left goes from %s to %s, and was committed from %s to %s", c.At.Epoch, past.Base, past.Last, c.Before, last)
	}
	if writes, bytes, _, _, err := past.Sum(); err != nil || writes > uint64(past.Last.Seq-past.Base.Seq) || writes > 0 && bytes == 0 {
		bad("the fork that epoch %s has left, from %s to %s, has %d writes, %d bytes: %v", c.At.Epoch, past.Base, past.Last, writes, bytes, err)
	}
	base, err := p.srv.Past(ctx, w.vol.ID, cuts, c, access.PastBase)
	if err != nil {
		bad("what the fork that epoch %s has left goes on from: %v", c.At.Epoch, err)
		return wrong
	}
	defer base.Close()
	if base.Last != c.Before {
		bad("what the fork that epoch %s has left goes on from ends at %s, and is %s", c.At.Epoch, base.Last, c.Before)
	}
	return wrong
}
