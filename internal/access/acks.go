package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/wire"
)

// A volume with the policy --ack=site:K (R11). What its owner answers depends on records that K other sites hold too: the
// answer to a write waits for its own record, that to a flush until they have it on stable storage, that to a read for the
// newest record that it saw. journal.SiteAcks is the rule; here is what it is told, and what waits for it.
//
//	write: two stores at home ──commit──> map; shipped at once ──K sites hold it──> answered
//	read:  looked up, read ──────────────the newest record it saw is held───────> answered
//
// A read does not wait before it looks: a block that is overwritten all the time would never be read.
//
// An owner does not know what of the history before it K sites hold: what a former one had committed, and not yet answered,
// looks like all the rest. So until they hold all that was there when it began, it answers nothing that depends on it. After a
// site takeover the site that was given up counts with what it had: two of its servers held all that it had shipped.
//
// Other sites count on the policy when they take over, so what is in effect is not what the specification says but the owner's
// own word in the journal's key, as with the partition policy:
//
//	raised:  K sites have nearly caught up ──> answers wait for K from record P on ──> K hold all up to P ──> K in the key
//	lowered: the lower K in the key ──> answers wait for that many only
//
// A volume that was made with the policy has it in its key before it has an owner.

const (
	ackSyncs     = 4 // syncs under way at a site while flushes wait for it
	ackRetryMost = 400 * time.Millisecond
	ackRetry     = 50 * time.Millisecond
	ackLag       = 1 << 20         // bytes that a site may lack for the policy to be raised: what a link carries in a moment
	ackArming    = 2 * time.Second // in which it has to have them then
	ackKeyRetry  = time.Second     // after the key could not be changed
	ackSlow      = 3 * time.Second // from here on it is said that commands wait
)

// ackState is what the owner's loop keeps of it.
type ackState struct {
	on      atomic.Bool   // some site is waited for: shipping does not gather, and tells how far it is at once
	want    atomic.Uint64 // a flush waits until the sites have this record on stable storage
	counted atomic.Bool   // a count is to come

	rule   *journal.SiteAcks
	sites  []ident.SiteID // that count
	base   ident.Seq      // what was there when the epoch began
	unit   ident.Seq      // of the last change of the unit
	wait   []*Op          // done, and not yet to be told
	recent []ackRange     // written, and not held by enough sites

	word   int // in the journal's key
	since  ident.Seq
	hold   int       // the most that may be in the key
	arming int       // answers wait for so many already,
	armed  ident.Seq // since this record
	until  uint64    // Owner.tick
	saying bool
	retry  uint64
	waits  uint64 // Owner.tick, since when something waits without a break
	told   bool   // that it does
	kept   bool   // this epoch's takeover was not proven, and yet nothing that was acknowledged is missing
	silent bool   // and its former owner could answer nothing any more
}

// ackRange is blocks that a record has changed.
type ackRange struct {
	first, count uint64
	seq          ident.Seq
}

// loadAcks takes what the journal's key says. rec and answers are what the takeover has found.
func (o *Owner) loadAcks(answers fenceAnswers, rec *journal.Recovery) {
	a := &o.ack
	a.word, a.since, a.hold = o.state.Ack, o.state.AckSince, o.state.Ack
	a.sites = o.ackSites()
	a.rule = journal.NewSiteAcks(a.sites)
	a.rule.SetNeed(a.word)
	a.on.Store(a.word > 0)
	f := o.state.Forced
	if f != nil && o.forced && !f.Loss && f.From != 0 && rec.Start.At.Epoch.Number+1 == f.Epoch.Number {
		a.rule.Credit(f.From, rec.Last.Seq)
	}
	if a.word > 0 && (!rec.Proven() || o.uncertain) && !o.holed && (f == nil || !f.Loss) {
		a.kept = len(o.wholeSites(answers)) >= journal.HeardSites(len(o.state.Sites), a.word)
		a.silent = rec.Enough || f != nil && f.Silent
	}
}

// ackSites lists the sites that count: those with copies, but for the one where the two copies are that every record has
// from the start. Where the owner's site has no core servers that is another one.
func (o *Owner) ackSites() []ident.SiteID {
	home := o.env.Site
	if !slices.Contains(o.state.Sites, home) {
		most := 0
		for _, site := range o.state.Sites {
			n := 0
			for _, m := range o.members {
				if o.env.Stores.Site(m.Store) == site {
					n++
				}
			}
			if n > most {
				home, most = site, n
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(o.state.Sites), func(s ident.SiteID) bool { return s == home })
}

// wholeSites lists the journal's sites that have been heard whole: each of their stores has answered, and none has lost
// anything that it may have been counted with.
func (o *Owner) wholeSites(answers fenceAnswers) (list []ident.SiteID) {
	for _, site := range o.state.Sites {
		stores := o.env.Stores.Core(site)
		if len(stores) > 0 && !o.env.lostLately(site) && !slices.ContainsFunc(stores, func(id ident.StoreID) bool { return !wholeAnswer(answers[id]) }) {
			list = append(list, site)
		}
	}
	return list
}

func wholeAnswer(a *wire.FenceReply) bool {
	return a != nil && !slices.ContainsFunc(a.Again, func(id ident.SegmentID) bool { return !id.IsCheckpoint() }) && !slices.ContainsFunc(a.Replicas, func(r wire.Replica) bool {
		return r.State == wire.ReplicaDamaged || !r.Segment.IsCheckpoint() && (r.Unsure || r.State == wire.ReplicaShort)
	})
}

// lostPatience is for how long a site with a store that was declared lost does not count as heard: what that store had is made
// again meanwhile, and nobody but the owner knows when that is done. A guess, on the long side.
const lostPatience = 24 * time.Hour

// lostLately reports that a store of a site was declared lost not long ago.
func (e *Env) lostLately(site ident.SiteID) bool {
	return slices.ContainsFunc(e.Control.LostStores(), func(l control.LostStore) bool {
		return l.Site == site && time.Since(l.Time) < lostPatience
	})
}

// beginAcks is what an owner that serves begins with.
func (o *Owner) beginAcks() {
	a := &o.ack
	a.base = o.w.Start().Before.Seq
	a.unit = a.base
	if mutant.On(mutant.R11Reads) {
		a.base, a.unit = 0, 0
	}
	o.keepAcks()
	o.countSites()
}

// siteMoved is called when a site may hold more than it did; from any goroutine.
func (o *Owner) siteMoved() {
	if (o.ack.on.Load() || o.showing.Load()) && !o.ack.counted.Swap(true) {
		o.call(o.countSites)
	}
}

// countSites looks how far the sites are, and answers what has waited for that.
func (o *Owner) countSites() {
	a := &o.ack
	a.counted.Store(false)
	o.countShown()
	if a.rule == nil || o.stopErr != nil {
		return
	}
	for _, s := range o.ships {
		s.mu.Lock()
		mark, stable := s.mu.reach.mark, s.mu.reach.stable
		s.mu.Unlock()
		a.rule.Mark(s.site, mark, stable)
	}
	o.releaseAcks()
}

// releaseAcks answers what other sites hold by now. Flushes are looked at in every turn of the loop.
func (o *Owner) releaseAcks() {
	a := &o.ack
	held := a.rule.Held()
	kept := a.wait[:0]
	for _, op := range a.wait {
		if op.seq <= held {
			o.finish(op, nil)
		} else {
			kept = append(kept, op)
		}
	}
	clear(a.wait[len(kept):])
	a.wait = kept
	n := 0
	for n < len(a.recent) && a.recent[n].seq <= held {
		n++
	}
	a.recent = append(a.recent[:0], a.recent[n:]...)
	if len(o.waiting) > o.merging && o.w.Serving() && a.unit <= held {
		o.retryWaiting()
	}
}

// written notes a committed record that other sites may not hold yet.
func (a *ackState) written(e *journal.Entry) {
	if a.rule == nil || a.rule.Need() == 0 && a.arming == 0 {
		return
	}
	switch e.Kind {
	case journal.KindWrite, journal.KindTrim, journal.KindCopy:
		a.recent = append(a.recent, ackRange{e.Block, uint64(e.Count), e.Seq})
	case journal.KindReservation:
		a.unit = e.Seq
	}
}

// answer ends a command whose record, or what it has read, is committed: now, or once enough other sites hold it.
func (o *Owner) answer(op *Op) {
	if o.stopErr != nil {
		o.finish(op, wire.Errorf(wire.CodeNotOwner, "%v", o.stopErr))
		return
	}
	if a := &o.ack; a.rule != nil && op.seq > a.rule.Held() {
		if op.waits == 0 {
			op.waits = o.tick()
		}
		a.wait = append(a.wait, op)
		return
	}
	o.finish(op, nil)
}

// sees notes the newest record that a read sees of those that other sites may not hold yet.
func (o *Owner) sees(op *Op) {
	op.seq = 0
	a := &o.ack
	if a.rule == nil || op.early || mutant.On(mutant.R11Reads) {
		return
	}
	held := a.rule.Held()
	if held < a.base {
		op.seq = a.base
	}
	for i := len(a.recent) - 1; i >= 0; i-- {
		if r := &a.recent[i]; r.seq > held && r.seq > op.seq && op.first < r.first+r.count && r.first < op.first+op.count {
			op.seq = r.seq
			break // those before it are older
		}
	}
}

// lastShown is the newest record that an answer may show which depends on any.
func (o *Owner) lastShown() ident.Seq {
	a := &o.ack
	if n := len(a.recent); n > 0 {
		return max(a.base, a.recent[n-1].seq)
	}
	return a.base
}

// stableFor is how far what a flush may be answered with is stable: at home, and, unless the owner waits for itself, at other
// sites.
func (o *Owner) stableFor(op *Op) ident.Seq {
	s := o.w.Stable().Seq
	if o.ack.rule != nil && !op.home {
		s = min(s, o.ack.rule.Synced())
	}
	return s
}

// wantSynced has other sites make a record stable soon.
func (o *Owner) wantSynced(op *Op) {
	if a := &o.ack; !op.home && uint64(op.seq) > a.want.Load() {
		a.want.Store(uint64(op.seq))
		if a.on.Load() {
			o.wakeShips()
		}
	}
}

// shipRetry is how long shipping rests after it was interrupted, so many times in a row.
func (o *Owner) shipRetry(failed int) time.Duration {
	if o.ack.on.Load() {
		return min(ackRetry<<min(failed, 8), ackRetryMost)
	}
	return shipRetry
}

// keepAcks brings the policy into effect that the specification asks for. It runs in the loop, at every tick.
func (o *Owner) keepAcks() {
	a := &o.ack
	if o.stopErr != nil || a.rule == nil || !o.w.Serving() {
		return
	}
	spec, now := min(o.spec.Load().Ack, len(a.sites)), o.tick()
	switch {
	case a.saying || now < a.retry:
	case spec < a.hold || spec == a.hold && a.word != a.hold:
		o.sayAck(spec, a.since)
	case spec == a.hold || spec < a.arming || a.arming != 0 && now > a.until:
		o.arm(0)
	case a.arming == spec:
		if a.rule.Held() >= a.armed {
			a.hold = spec
			o.sayAck(spec, a.armed)
		}
	case o.nearlyThere(spec):
		o.arm(spec)
	}
	o.sayWhatWaits(now)
}

// arm has answers wait for so many sites, though nobody counts on it yet; 0: no more than is in the key.
func (o *Owner) arm(k int) {
	a := &o.ack
	if a.arming == k {
		return
	}
	a.arming, a.armed = k, o.w.At().Seq
	a.until = o.tick() + uint64(ackArming/time.Millisecond)
	if k == 0 {
		a.retry = o.tick() + uint64(ackKeyRetry/time.Millisecond)
	}
	o.setNeed(max(a.hold, k))
}

func (o *Owner) setNeed(k int) {
	a := &o.ack
	if a.rule.Need() == k {
		return
	}
	a.rule.SetNeed(k)
	a.on.Store(k > 0)
	if k > 0 {
		o.wakeShips()
	}
	o.countSites()
}

// sayAck has the journal's key say how many sites hold what is acknowledged. Until that is known to be there, answers wait for
// the most that it may say.
func (o *Owner) sayAck(k int, since ident.Seq) {
	a := &o.ack
	if k == 0 {
		since = 0
	}
	a.saying = true
	o.goBackground(func() {
		ctx, cancel := context.WithTimeout(o.ctx, control.HoldEvery)
		defer cancel()
		err := o.env.Control.SetAck(ctx, o.journalID, o.epoch, k, since)
		o.call(func() {
			a.saying = false
			if err != nil {
				a.retry = o.tick() + uint64(ackKeyRetry/time.Millisecond)
				o.log.Debug("how many sites hold what is acknowledged is not in the key", "ack", control.AckText(k), "err", err)
				return
			}
			was := a.word
			a.word, a.since, a.hold, a.arming = k, since, k, 0
			o.state.Ack, o.state.AckSince = k, since
			o.setNeed(k)
			o.log.Info("acknowledgement policy in effect", "ack", control.AckText(k), "seq", since)
			o.report("volume.ack", fmt.Sprintf("%s is in effect from record %d on; it was %s", control.AckText(k), max(since, o.w.Commit().Seq), control.AckText(was)))
		})
	})
}

// nearlyThere reports that so many sites lack so little that nobody would have to wait long for them.
func (o *Owner) nearlyThere(k int) bool {
	n := 0
	for _, s := range o.ships {
		s.mu.Lock()
		begun := s.mu.reach.mark > 0
		s.mu.Unlock()
		if begun && slices.Contains(o.ack.sites, s.site) && o.lagOf(s) <= ackLag {
			n++
		}
	}
	return n >= k
}

// acksWait says since when commands have waited for other sites, and for which; "" where they do not wait for long.
func (o *Owner) acksWait(now uint64) (text string, since uint64) {
	a := &o.ack
	if a.rule == nil || a.rule.Need() == 0 || !o.w.Serving() {
		return "", 0
	}
	since = now
	for _, op := range a.wait {
		since = min(since, op.waits)
	}
	for _, op := range o.stableWait {
		if !op.home && op.seq <= o.w.Stable().Seq {
			since = min(since, op.waits)
		}
	}
	if a.rule.Held() < a.base {
		since = min(since, uint64(o.servedAt/time.Millisecond))
	}
	up := 0
	for _, site := range a.sites {
		if slices.ContainsFunc(o.env.Stores.Core(site), o.env.Stores.Up) {
			up++
		}
	}
	if up >= a.rule.Need() && now-since < uint64(ackSlow/time.Millisecond) {
		return "", 0
	}
	what := "a write is answered"
	if a.rule.Held() < a.base {
		what = "reads and writes are answered"
	}
	list := o.sitesBehind()
	return fmt.Sprintf("waiting for other sites: %s once %s (--ack %s); %s", what, sitesHold(a.rule.Need()), control.AckText(a.rule.Need()), strings.Join(list, "; ")), since
}

func sitesHold(k int) string {
	if k == 1 {
		return "another site holds it"
	}
	return fmt.Sprintf("%d other sites hold it", k)
}

// sitesBehind says of each site that lacks something what keeps it.
func (o *Owner) sitesBehind() (list []string) {
	commit := o.w.Commit().Seq
	for _, s := range o.ships {
		if !slices.Contains(o.ack.sites, s.site) {
			continue
		}
		s.mu.Lock()
		mark, state := s.mu.reach.mark, s.mu.state
		s.mu.Unlock()
		name := fmt.Sprintf("site %d", s.site)
		if x, ok := o.env.Control.Site(s.site); ok {
			name = x.Name
		}
		switch {
		case !slices.ContainsFunc(o.env.Stores.Core(s.site), o.env.Stores.Up):
			list = append(list, name+" can not be reached")
		case mark < commit:
			list = append(list, fmt.Sprintf("%s is at record %d of %d (%s)", name, mark, commit, state))
		}
	}
	if len(list) == 0 {
		return []string{"they are being synced"}
	}
	return list
}

// sayWhatWaits writes into the log and the events that commands wait, and that they go on.
func (o *Owner) sayWhatWaits(now uint64) {
	a := &o.ack
	if len(a.wait) == 0 && len(o.stableWait) == 0 && !a.told && a.rule.Held() >= a.base {
		return
	}
	text, since := o.acksWait(now)
	waits := text != "" && now-since >= uint64(ackSlow/time.Millisecond)
	switch {
	case waits && !a.told:
		a.told, a.waits = true, since
		o.log.Warn("commands wait for other sites", "commands", len(a.wait)+len(o.stableWait), "what", text)
		o.report("volume.ack-waits", text)
	case !waits && a.told && len(a.wait) == 0:
		a.told = false
		took := time.Duration(now-a.waits) * time.Millisecond
		o.log.Info("commands do not wait for other sites any more", "after", took.Round(time.Second))
		o.report("volume.ack-goes-on", fmt.Sprintf("commands waited for other sites for %v", took.Round(time.Second)))
	}
}

// endUnsure has the segment that a site is unsure of ended soon: once it is sealed there, nobody has to wonder any more what
// the site lost with its power.
func (o *Owner) endUnsure(there map[ident.SegmentID][]have) {
	if !o.ack.on.Load() {
		return
	}
	for id, list := range there {
		if id.Epoch == o.epoch && slices.ContainsFunc(list, func(h have) bool { return h.unsure }) {
			o.call(func() {
				if o.stopErr == nil && o.w.Serving() {
					o.w.CloseIdle()
				}
			})
			return
		}
	}
}

// keptAll is what a takeover that is not proven does where the policy says that nothing which was acknowledged is missing.
// Ports that are barred by the epoch's start go on if nobody can have been told anything by the former owner since.
func (o *Owner) keptAll() {
	p := &o.ports
	if !o.ack.kept || !o.ack.silent {
		p.started(o.w.Start()) // before anything that waits is let in
		return
	}
	// Those that were barred before stay so. The next owner finds the start, which is not proven, and then this.
	var changes []journal.PortChange
	for _, x := range p.order {
		if !x.Barred {
			changes = append(changes, journal.PortChange{Op: journal.PortAccept, Port: x.Port})
		}
	}
	if len(changes) > 0 {
		o.queueOwn(journal.KindAttach, journal.AppendPortChanges(nil, changes), func(ident.Seq) {})
	}
}

// forgotPorts reports that ports which were attached may be missing in the history: with what a takeover that was not proven left
// behind, this one or one before it, its attachments are gone. Whoever sends commands without a login in this history was one of
// them. That does not end with the search for what was left behind: it may be at stores that were given up, where nobody finds it,
// and a session lives for as long as its host. Where sites acknowledge, attachments are waited for there with a bound only, and nothing
// that a port was told is missing.
func (o *Owner) forgotPorts() bool {
	if !o.proven {
		return !o.ack.kept || !o.ack.silent
	}
	return len(o.forks.cuts) > 0 && o.state.Ack == 0
}

func sitesWhole(k int) string {
	return fmt.Sprintf("it was held by %d other sites, and so by one at least of those that were heard whole", k)
}
