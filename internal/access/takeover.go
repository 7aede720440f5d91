package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/mutant"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

const (
	fencePatience   = 500 * time.Millisecond // for the last store, once enough have answered
	fenceRetry      = time.Second
	membersPatience = 3 * time.Second // for home stores to come up before an ensemble is chosen without them
)

// TakeOver makes this node the owner of a journal at a new epoch (architecture §4; R1 to R4). The steps, each
// safe to die after:
//
//	control store: owner, epoch+1 -> fence all but one of every ensemble -> what the history is (journal.Recover)
//	-> map from the newest checkpoint and the records since -> the tail and the epoch-start to two stores
//	-> stable -> serving
//
// It returns once the last step is under way; Owner.Serving tells when it is done. Errors leave nothing
// behind but the higher epoch.
func TakeOver(ctx context.Context, env Env, spec control.VolumeSpec) (*Owner, error) {
	hand, err := claimJournal(ctx, env, spec.ID, true)
	if err != nil {
		return nil, err
	}
	return takeAt(ctx, env, spec, hand)
}

// claimJournal makes this node the owner in the control store. What is known of the key is tried first: a revision that
// is old takes no effect. Where somebody has become the owner meanwhile, the one that was it before included, it is taken from
// that one only if insist.
func claimJournal(ctx context.Context, env Env, id ident.JournalID, insist bool) (*handed, error) {
	was, rev, known := env.Control.Journal(id)
	for {
		if !known {
			var err error
			if _, rev, err = env.Control.JournalNow(ctx, id); err != nil {
				return nil, fmt.Errorf("journal %s: %w", id, err)
			}
		}
		state, rev, err := env.Control.TakeJournal(ctx, id, rev, env.Node)
		if known && errors.Is(err, control.ErrConflict) && (insist || state.Epoch == was.Epoch || state.Owner == env.Node) {
			known = false
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take journal %s: %w", id, err)
		}
		return &handed{state: state, rev: rev}, nil
	}
}

// takeAt is TakeOver behind the control store: state names this node the owner. What a former owner that handed the
// journal over has said makes it faster and lets commands of its epoch in; it decides nothing else (R10).
func takeAt(ctx context.Context, env Env, spec control.VolumeSpec, hand *handed) (*Owner, error) {
	started, state, rev := time.Now(), hand.state, hand.rev
	env.Limits = env.Limits.withDefaults()
	if env.Health == nil {
		env.Health = NewHealth(env.Clock, nil)
	}
	env.Stores = guardLocal(env.Stores, env.Health)
	log := env.Log.With("journal", spec.ID.String(), "volume", spec.Name, "epoch", state.Epoch.String())
	o := &Owner{env: env, log: log, journalID: spec.ID, epoch: state.Epoch, state: state, started: started,
		hand: hand, segs: map[ident.SegmentID]*segment{}, late: newLate(), leafWait: map[volume.LeafID][]*Op{},
		permits: map[permitKey]pendingPermit{},
		serving: make(chan struct{}), stopped: make(chan struct{})}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.doze.wake = make(chan struct{}, 1)
	o.spec.Store(&spec)
	o.late.before = hand.late
	o.partition.heeds, o.partition.stops = state.Stops, state.Stops
	var err error
	fail := func(err error) (*Owner, error) {
		o.cancel()
		o.wg.Wait()
		return nil, err
	}

	o.fenced = state.Ensembles
	answers, rec, err := o.fence(ctx)
	if slices.ContainsFunc(state.Ensembles, func(e control.Ensemble) bool { return e.Unproven }) {
		o.uncertain = true
	}
	switch {
	case err != nil:
	case o.state.Forced != nil:
		o.uncertain = o.uncertain || !rec.Proven()
	case !rec.EndKnown:
		o.uncertain = true
		answers, rec, err = o.fetchFromSites(ctx, answers, o.farAnswers)
	}
	if err != nil {
		return fail(err)
	}
	o.recovered = rec
	if len(state.Ensembles) > 0 {
		log.Info("history found", "what", rec.Describe())
	}
	if o.declared && rec.Start.At.Seq == 0 {
		return fail(wire.Errorf(wire.CodeBusy, "journal %s: all stores that had it are lost or can not be reached: dozo volume recover --force goes on with nothing", spec.ID))
	}
	if rec.LostStable && !o.agreed() && !mutant.On(mutant.R4LostStable) {
		return fail(errLostStable(o, rec))
	}
	if err := o.endsElsewhere(rec); err != nil {
		return fail(err)
	}
	if err := o.chooseMembers(ctx, rev); err != nil {
		return fail(err)
	}
	if rec.Start.At.Seq == 0 {
		if err := o.introduce(ctx); err != nil {
			return fail(err)
		}
	}
	cfg := journal.WriterConfig{Journal: spec.ID, Kind: journal.JournalVolume, Site: env.Site, Epoch: state.Epoch, Members: o.members,
		Capacity: env.Limits.SegmentBytes, Heard: rec.Commit, HeardStable: rec.Stable, Proven: rec.Proven(),
		Wall: o.wall()}
	if err := o.rebuild(ctx, answers, rec, &cfg); err != nil {
		return fail(err)
	}
	if o.uncertain {
		cfg.Proven = false // whatever was found since: R4 did not know the end
	}
	o.proven = cfg.Proven
	o.cp.lastSeq = cfg.Point.At.Seq
	o.strays.answers, o.strays.tookOver = answers, o.strays.moment
	for _, a := range answers {
		o.strays.learnStarts(a.Replicas)
	}
	o.loadAcks(answers, rec)
	if o.state.Forced != nil && !cfg.Proven {
		end := cfg.Heard
		if n := len(cfg.Tail); n > 0 {
			end = cfg.Tail[n-1].Position()
		}
		if err := o.noteBegun(ctx, end); err != nil {
			return fail(err)
		}
	}
	if !o.proven {
		o.loss = o.measureLoss(ctx, answers, rec)
		o.reportUnproven(rec)
	}
	// Checkpoints are announced once what they cover is stable; the rest has to be made so before a flush may
	// rely on it.
	o.unsettled = map[ident.SegmentID]*segment{}
	o.regathers = o.withoutSome()
	for _, s := range o.order {
		if s.last.Seq > cfg.Point.At.Seq && (s.last.Seq > cfg.HeardStable.Seq || o.regathers) {
			o.unsettled[s.id] = s
		}
	}
	cfg.PastUnstable = !o.pastStable()
	if s := o.firstUnsettled(); s != nil && o.regathers && s.before.Seq < cfg.HeardStable.Seq {
		cfg.HeardStable = s.before
	}
	stores := make([]ident.StoreID, len(o.members))
	for i, m := range o.members {
		stores[i] = m.Store
	}
	o.grants = env.Leases.Enroll(spec.ID, state.Epoch, stores, func(e ident.Epoch) {
		o.call(func() { o.stop(&wire.Error{Code: wire.CodeFenced, Epoch: e, Detail: "seen by the lease keeper"}) })
	})
	o.call(func() {
		if o.stopErr != nil { // deposed already
			return
		}
		o.w = journal.NewWriter(cfg, time.Duration(env.Clock()))
		for i, m := range o.members {
			if !env.Stores.Up(m.Store) {
				o.w.Down(i)
			}
		}
	})
	o.wg.Add(1)
	go o.timers()
	return o, nil
}

// fence asks every store of every ensemble until enough have answered (R2) and the end is known or R4's
// patience is over.
func (o *Owner) fence(ctx context.Context) (map[ident.StoreID]*wire.FenceReply, *journal.Recovery, error) {
	state := o.state
	var ensembles [][]ident.StoreID
	var ids []ident.StoreID
	for _, e := range state.Ensembles {
		ensembles = append(ensembles, e.Stores)
		for _, s := range e.Stores {
			if !slices.Contains(ids, s) && !o.env.about(s).Lost { // what a lost one may say counts for nothing
				ids = append(ids, s)
			}
		}
	}
	answers, far := fenceAnswers{}, fenceAnswers{}
	if len(ensembles) == 0 {
		return answers, journal.Recover(ensembles, answers), nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		store ident.StoreID
		reply wire.FenceReply
		err   error
	}
	got := make(chan answer)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ask := func(id ident.StoreID) {
		wg.Go(func() {
			for {
				err := error(wire.Errorf(wire.CodeAbsent, "store %s is not registered", id))
				var r wire.FenceReply
				if st, ok := o.env.Stores.Store(id); ok {
					r, err = st.Fence(ctx, &wire.Fence{Journal: o.journalID, Epoch: o.epoch, Taker: o.env.Node, Taking: true})
				}
				select {
				case got <- answer{id, r, err}:
				case <-ctx.Done():
					return
				}
				if err == nil || errors.Is(err, wire.ErrFenced) {
					return
				}
				select {
				case <-time.After(fenceRetry):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	told := make(chan struct{}, 1)
	for i := range o.hand.fences {
		if f := &o.hand.fences[i]; slices.Contains(ids, f.Store) {
			answers[f.Store] = &f.Reply
		}
	}
	if len(answers) > 0 {
		told <- struct{}{}
	}
	for _, id := range ids {
		if answers[id] == nil {
			ask(id)
		}
	}
	var sites map[ident.SiteID][]ident.StoreID // asked as well, without force only once the end turns out not to be known
	askAll := func() {
		if sites == nil {
			sites = o.otherSites(ids)
			for _, id := range o.asked(ids) {
				ask(id)
			}
		}
	}
	if state.Forced != nil {
		askAll()
	}
	var enoughSince, complained time.Time
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	patient, unsure := false, false
	resume := func() {}
	defer func() { resume() }()
	bePatient := func() { // what others wait for is not held up any more
		if !patient && o.env.Patience != nil {
			resume = o.env.Patience()
		}
		patient = true
	}
	for {
		select {
		case a := <-got:
			if a.err == nil && slices.Contains(ids, a.store) {
				answers[a.store] = &a.reply
			} else if a.err == nil {
				far[a.store] = &a.reply
			} else if errors.Is(a.err, wire.ErrFenced) || errors.Is(a.err, wire.ErrConflict) {
				return nil, nil, fmt.Errorf("fence %s: %w", o.journalID, a.err)
			} else {
				o.log.Debug("store does not answer the fence", "store", a.store, "err", a.err)
			}
		case <-tick.C:
		case <-told:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("fence %s: %w", o.journalID, ctx.Err())
		}
		if now, _, ok := o.env.Control.Journal(o.journalID); ok && o.epoch.Less(now.Epoch) {
			// Somebody has decided otherwise meanwhile, this node's being named again included: an operator has given up the stores
			// that are waited for, say.
			return nil, nil, fmt.Errorf("fence %s: %w", o.journalID, &wire.Error{Code: wire.CodeFenced, Epoch: now.Epoch, Detail: "the control store has a later epoch"})
		}
		if state.Forced != nil {
			if heard, rec := o.forcedEnough(state, answers, far); rec != nil {
				if enoughSince.IsZero() {
					enoughSince = time.Now()
				}
				more := false
				if o.declared { // nobody has looked at what there is: each site is waited for
					more = !o.sitesHeard(sites, answers, far)
				} else {
					more = o.more(state.Forced, o.asked(nil), heard)
				}
				if waited := time.Since(enoughSince); waited > fencePatience && (waited > o.env.Limits.UncertainWait || !more) {
					return heard, rec, nil
				}
			} else if f := o.declaredLost(state, answers); f != nil {
				o.goWithout(f)
				state = o.state
			}
			if enoughSince.IsZero() && time.Since(begun) > storesPatience {
				bePatient()
				if time.Since(complained) > 10*time.Second {
					complained = time.Now()
					o.sayMissing(o.notHeard(answers))
				}
			}
			continue
		}
		rec := journal.Recover(ensembles, answers)
		if !rec.Enough {
			if f := o.declaredLost(state, answers); f != nil {
				bePatient()
				o.goWithout(f)
				state = o.state
				askAll()
				continue
			}
			if o.hand.told && time.Since(begun) > handPatience {
				return nil, nil, wire.Errorf(wire.CodeBusy, "fence %s: stores that the former owner did not need do not answer: %v", o.journalID, rec.Missing)
			}
			if time.Since(begun) > storesPatience {
				bePatient()
				if time.Since(complained) > 10*time.Second {
					complained = time.Now()
					o.sayMissing(rec.Missing)
				}
			}
			continue
		}
		if enoughSince.IsZero() {
			enoughSince = time.Now()
		}
		all, waited := len(answers) == len(ids), time.Since(enoughSince)
		// The last one is waited for only where it may answer: one whose node died with the owner won't.
		// After a hand-over everything is committed and at this site: nobody waits for those of other sites, whose
		// replicas are asked for when shipping begins.
		coming := slices.ContainsFunc(ids, func(id ident.StoreID) bool {
			return answers[id] == nil && o.env.Stores.Up(id) && (!o.hand.told || o.env.Stores.Site(id) == o.env.Site)
		})
		if !all && waited <= fencePatience && (coming || !rec.EndKnown) {
			continue
		}
		if rec.EndKnown {
			return answers, rec, nil
		}
		if !unsure {
			unsure = true
			o.log.Warn("the end of the history is not known: other stores and sites are waited for", "missing", fmt.Sprint(rec.Missing))
			bePatient()
			askAll()
		}
		if all && o.sitesHeard(sites, answers, far) || waited > o.env.Limits.UncertainWait {
			o.farAnswers = far
			return answers, rec, nil
		}
	}
}

// goWithout makes this a takeover by force: an operator has declared the stores lost that R2 asks for. That is noted in the key before
// anything is appended; until then whoever comes next decides the same by itself.
func (o *Owner) goWithout(f *control.Forced) {
	o.log.Warn("takeover goes without stores that were declared lost", "lost", fmt.Sprint(f.Lost))
	o.state.Forced, o.declared = f, true
}

// agreed reports that an operator has agreed to go on with what is there, though it may be less than what was stable.
func (o *Owner) agreed() bool { return o.forced && !o.declared }

// sayMissing says in the status what a takeover waits for, and what an operator can do about it.
func (o *Owner) sayMissing(stores []ident.StoreID) {
	o.log.Warn("takeover waits for stores", "missing", fmt.Sprint(stores))
	if o.env.Waits == nil {
		return
	}
	var at []string
	for _, id := range stores {
		name := id.String()
		if n, ok := o.env.Control.NodeOfStore(id); ok {
			name = string(n.Name)
		}
		if !slices.Contains(at, name) {
			at = append(at, name)
		}
	}
	o.env.Waits(wire.Errorf(wire.CodeBusy, "it needs a store that does not answer: start the nodes; dozo volume recover %s --dry-run says what would be lost without: %s", o.spec.Load().Name, strings.Join(at, ", ")))
}

// notHeard lists the stores of ensembles that have not answered and that a takeover by force has not given up.
func (o *Owner) notHeard(answers fenceAnswers) (list []ident.StoreID) {
	for _, e := range o.state.Ensembles {
		for _, s := range e.Stores {
			if answers[s] == nil && !o.state.Lost(e, s) && !slices.Contains(list, s) {
				list = append(list, s)
			}
		}
	}
	return list
}

// storesPatience is how long stores are waited for before that is said, and others have their turn.
const storesPatience = 2 * time.Second

// handPatience is how long a taker waits for the stores that a hand-over names. The former owner did without those that do not answer
// then, so the journal's key may say more than it has: it is read anew for a takeover like any other.
const handPatience = 2 * time.Second

// allButLost reports that an operator's word takes the place of answers: of each ensemble of which too few have answered, all
// have that were not declared lost (R2).
func (o *Owner) allButLost(ensembles []control.Ensemble, missing []ident.StoreID) bool {
	for _, e := range ensembles {
		lost, silent := 0, 0
		for _, s := range e.Stores {
			switch {
			case o.env.about(s).Lost:
				lost++
			case slices.Contains(missing, s):
				silent++
			}
		}
		if len(e.Stores)-lost-silent < max(1, len(e.Stores)-1) && (lost == 0 || silent > 0) {
			return false
		}
	}
	return true
}

// chooseMembers takes the newest ensemble, or records a new one where there is none at this site. It is in
// the control store before anything is appended (R3).
func (o *Owner) chooseMembers(ctx context.Context, rev control.Rev) error {
	if e, ok := o.state.Newest(); ok && !e.Wide && !o.state.GivenUp(e) && o.usable(e.Stores) {
		o.setMembers(e.Stores)
		return nil
	}
	deadline := time.Now().Add(membersPatience)
	var stores []ident.StoreID
	want := o.env.homeWanted() // more can not be waited for
	for {
		var home int
		stores, home = o.env.chooseEnsemble(o.journalID, o.state.Sites)
		if home >= min(2, want) && len(stores) >= 2 || len(stores) >= 2 && time.Now().After(deadline) {
			break
		}
		if time.Now().After(deadline.Add(30 * time.Second)) {
			return wire.Errorf(wire.CodeBusy, "journal %s: fewer than two core servers can be reached", o.journalID)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	number := uint32(0)
	if e, ok := o.state.Newest(); ok {
		number = e.Number + 1
	}
	list := append(o.state.Clone().Ensembles, control.Ensemble{Epoch: o.epoch, Number: number, Stores: stores})
	change := control.EnsembleChange{Journal: o.journalID, Rev: rev, Ensembles: list}
	r := o.env.Control.ChangeEnsembles(ctx, []control.EnsembleChange{change})[0]
	var uncertain *control.UncertainError
	if errors.As(r.Err, &uncertain) {
		r.State, r.Rev, r.Err = o.env.Control.Settle(ctx, uncertain)
	}
	if r.Err != nil {
		return fmt.Errorf("record the ensemble of %s: %w", o.journalID, r.Err)
	}
	if o.declared {
		r.State.Forced = o.state.Forced // not noted yet
	}
	o.state = r.State
	o.setMembers(stores)
	return nil
}

// usable reports that an ensemble will do for an owner here: its stores are there, and two of them are of this site,
// if the site has so many. The ensemble of another site may list one of this (R3); over that one and another of that
// site every write would cross the distance.
func (o *Owner) usable(stores []ident.StoreID) bool {
	home, leaving := 0, false
	for _, s := range stores {
		if _, ok := o.env.Stores.Store(s); !ok || o.env.Health.isGone(s, o.env.Stores.Up(s)) {
			return false
		}
		leaving = leaving || !o.env.placeable(s)
		if o.env.Stores.Site(s) == o.env.Site {
			home++
		}
	}
	if leaving || home < o.env.homeUp() {
		if list, _ := o.env.chooseEnsemble(o.journalID, o.state.Sites); len(list) >= control.EnsembleMin {
			return false // there is a better one: without a store that is to go, or with one more at home
		}
	}
	return home >= min(2, o.env.homeWanted())
}

func (o *Owner) setMembers(stores []ident.StoreID) {
	for _, s := range stores {
		st, _ := o.env.Stores.Store(s)
		o.members = append(o.members, journal.Member{Store: s, Home: o.env.Stores.Site(s) == o.env.Site})
		o.stores = append(o.stores, st)
	}
}

// rendezvous orders stores for a journal: everybody comes to the same order, and different journals to
// different ones.
func rendezvous(j ident.JournalID, a, b ident.StoreID) int {
	weigh := func(s ident.StoreID) uint64 {
		h := uint64(14695981039346656037)
		for _, c := range j {
			h = (h ^ uint64(c)) * 1099511628211
		}
		for _, c := range s {
			h = (h ^ uint64(c)) * 1099511628211
		}
		return h
	}
	if x, y := weigh(a), weigh(b); x != y {
		if x > y {
			return -1
		}
		return 1
	}
	return a.Compare(b)
}
