package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"dozo/internal/ident"
)

// Settling a control store that was made anew. Each store says what it holds and what it was told; once all have, the
// journals' keys are made to fit:
//
//   - the epoch becomes the highest that any store has seen, so that the next one is above;
//   - the list becomes one wide ensemble of all stores that know the journal or were listed in the backup, and of all others
//     at the journal's sites: they may have been recorded as members and not have heard of that when they answered. Whatever the
//     true ensembles were, they are within it, so "all but one" of it is all but one of each of them (R2);
//   - a journal that the store does not know gets a volume with what the stores can say of it;
//   - one that was deleted since the backup becomes a tombstone again.
//
// An owner that runs and holds its leases knows better, and writes its key back itself.

// HeldJournal is what one store says of one journal.
type HeldJournal struct {
	ID      ident.JournalID `json:"id"`
	Fence   ident.Epoch     `json:"fence"`             // the highest epoch that it was told
	Highest ident.Epoch     `json:"highest"`           // the highest epoch of a segment that it has
	Records bool            `json:"records,omitempty"` // it has a segment of the history or of a checkpoint
	Site    ident.SiteID    `json:"site,omitempty"`    // where the segment of the highest epoch was opened
	// SizeBytes is the volume's as its newest checkpoint here says, 0 if none does; WrittenBytes is where the last block
	// ends that a segment here has.
	SizeBytes    int64 `json:"size_bytes,omitempty"`
	WrittenBytes int64 `json:"written_bytes,omitempty"`
}

// deletedFence is the epoch by which stores fence a journal whose volume was deleted: nothing can be above it.
const deletedFence = math.MaxUint64

// Answer says that a store has answered.
type Answer struct {
	Time     time.Time `json:"time"`
	Lineage  uint32    `json:"lineage"` // of the control store that was answered
	Parts    int       `json:"parts"`
	Journals int       `json:"journals"`
}

// answerPart is how many journals are in one key of an answer: some 200 bytes each, below etcd's bound on a value.
const answerPart = 2000

// PutAnswer implements Store.
func (c *Client) PutAnswer(ctx context.Context, store ident.StoreID, held []HeldJournal) error {
	r, ok := c.Restoration()
	if !ok || !r.Pending() {
		return nil
	}
	n := 0
	for part := range slices.Chunk(held, answerPart) {
		key := fmt.Sprintf("%s%s/%06d", dirAnswers, store, n)
		if err := c.put(ctx, key, encode(part, "")); err != nil {
			return err
		}
		n++
	}
	// The parts are there before it is said that they are.
	return c.put(ctx, dirAnswered+store.String(), encode(Answer{c.o.Now().UTC(), r.Lineage, n, len(held)}, ""))
}

// put writes a key that only its writer writes.
func (c *Client) put(ctx context.Context, key string, value []byte) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	_, err := retry(ctx, c, "write "+key, func(ctx context.Context) (txnResult, error) {
		return c.kv.commit(ctx, txn{ops: []op{{key: key, value: value}}})
	})
	return err
}

// Answers implements Store.
func (c *Client) Answers(ctx context.Context) (map[ident.StoreID]Answer, error) {
	pairs, _, err := c.listing(ctx, dirAnswered)
	if err != nil {
		return nil, err
	}
	out := map[ident.StoreID]Answer{}
	for _, p := range pairs {
		id, err := ident.ParseStoreID(strings.TrimPrefix(p.key, dirAnswered))
		if err != nil {
			return nil, err
		}
		a, _, err := decode[Answer](p.key, p.value)
		if err != nil {
			return nil, err
		}
		out[id] = a
	}
	return out, nil
}

// Settled is what Reconcile has done.
type Settled struct {
	Journals   int // whose list is the wide one now
	Owned      int // whose owner had written its key back
	Untouched  int // that nobody had written to
	Found      int // that the control store did not know
	Deleted    int // that were deleted since the backup
	Unproven   int // of Journals: with more than one store lost
	WithoutAny int // of which no store is left
}

func (s Settled) String() string {
	return fmt.Sprintf("%d journals: %d written back by their owners, %d from what stores hold (%d of them without a proof, as more than one store is lost), %d never written, "+
		"%d found that were not known, %d deleted since, %d of which no store is left",
		s.Journals+s.Owned+s.Untouched+s.Found+s.Deleted+s.WithoutAny, s.Owned, s.Journals, s.Unproven, s.Untouched, s.Found, s.Deleted, s.WithoutAny)
}

// Reconcile implements Store.
func (c *Client) Reconcile(ctx context.Context) (waiting []ident.StoreID, err error) {
	r, ok := c.Restoration()
	if !ok || !r.Pending() {
		return nil, nil
	}
	answered, err := c.Answers(ctx)
	if err != nil {
		return nil, err
	}
	need := slices.Clone(r.Stores)
	for _, n := range c.Nodes() {
		for _, s := range n.Stores {
			if !slices.Contains(need, s.ID) {
				need = append(need, s.ID)
			}
		}
	}
	for _, s := range need {
		if a, ok := answered[s]; (!ok || a.Lineage != r.Lineage) && !slices.Contains(r.Lost, s) && !c.StoreLost(s) {
			waiting = append(waiting, s)
		}
	}
	if len(waiting) > 0 || !r.Complete {
		return waiting, nil
	}
	s := settling{c: c, r: r, holders: map[ident.JournalID]map[ident.StoreID]HeldJournal{}}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	_, err = c.changeRestoration(ctx, "control.settled", func(r *Restoration, t *txn) (bool, error) {
		now := c.o.Now().UTC()
		done := r.Pending()
		r.Done, r.Report = &now, s.out.String()
		return done, nil
	})
	if err != nil {
		return nil, err
	}
	c.o.Log.Warn("the restored control store is settled", "what", s.out.String())
	return nil, c.forgetAnswers(ctx)
}

// forgetAnswers takes away what is needed no more.
func (c *Client) forgetAnswers(ctx context.Context) error {
	for _, dir := range []string{dirAnswered, dirAnswers, dirOffers} {
		pairs, _, err := c.listing(ctx, dir)
		if err != nil {
			return err
		}
		for chunk := range slices.Chunk(pairs, changesPerTxn) {
			var t txn
			for _, p := range chunk {
				t.ops = append(t.ops, op{key: p.key, delete: true})
			}
			if _, err := c.kv.commit(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// settling is one run of Reconcile. It can be repeated at any time: a journal that was settled is passed over.
type settling struct {
	c       *Client
	r       Restoration
	holders map[ident.JournalID]map[ident.StoreID]HeldJournal
	offers  map[ident.JournalID]VolumeSpec
	// lostBefore are the stores that the backup says were declared lost.
	lostBefore map[ident.StoreID]bool
	out        Settled
}

func (s *settling) load(ctx context.Context) error {
	pairs, _, err := s.c.listing(ctx, dirOffers)
	if err != nil {
		return err
	}
	s.offers = map[ident.JournalID]VolumeSpec{}
	for _, p := range pairs {
		v, _, err := decode[VolumeSpec](p.key, p.value)
		if err != nil {
			return err
		}
		s.offers[v.ID] = v
	}
	if pairs, _, err = s.c.listing(ctx, dirLost); err != nil {
		return err
	}
	s.lostBefore = map[ident.StoreID]bool{}
	for _, p := range pairs {
		l, _, err := decode[LostStore](p.key, p.value)
		if err != nil {
			return err
		}
		s.lostBefore[l.ID] = true // LoseStore adds none while this is not settled
	}
	if pairs, _, err = s.c.listing(ctx, dirAnswers); err != nil {
		return err
	}
	for _, p := range pairs {
		name, _, _ := strings.Cut(strings.TrimPrefix(p.key, dirAnswers), "/")
		store, err := ident.ParseStoreID(name)
		if err != nil {
			return err
		}
		list, _, err := decode[[]HeldJournal](p.key, p.value)
		if err != nil {
			return err
		}
		for _, h := range list {
			if s.holders[h.ID] == nil {
				s.holders[h.ID] = map[ident.StoreID]HeldJournal{}
			}
			s.holders[h.ID][store] = h
		}
	}
	return nil
}

// run settles the journals that the store has, then those that it has not.
func (s *settling) run(ctx context.Context) error {
	pairs, _, err := s.c.listing(ctx, dirJournals)
	if err != nil {
		return err
	}
	known := map[ident.JournalID]bool{}
	for chunk := range slices.Chunk(pairs, changesPerTxn/2) {
		var t txn
		for _, p := range chunk {
			id, err := journalOfKey(dirJournals, p.key)
			if err != nil {
				return err
			}
			known[id] = true
			state, _, err := decode[JournalState](p.key, p.value)
			if err != nil {
				return err
			}
			if !state.Unheard {
				s.out.Owned++
				continue
			}
			next := s.settled(id, state)
			if err := next.Validate(); err != nil {
				return fmt.Errorf("journal %s: %w", id, err)
			}
			t.conds = append(t.conds, cond{key: p.key, rev: p.mod})
			t.ops = append(t.ops, op{key: p.key, value: encode(next, newChangeID())})
		}
		if len(t.ops) == 0 {
			continue
		}
		res, err := s.c.kv.commit(ctx, t)
		if err == nil && !res.ok {
			err = ErrConflict // an owner was quicker: the next round sees it
		}
		if err != nil {
			return err
		}
	}
	// Names first: what was made since the backup may have the name of what was deleted since.
	if err := s.bury(ctx); err != nil {
		return err
	}
	var found []ident.JournalID
	for id := range s.holders {
		if !known[id] {
			found = append(found, id)
		}
	}
	slices.SortFunc(found, func(a, b ident.JournalID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range found {
		if err := s.adopt(ctx, id); err != nil {
			return fmt.Errorf("journal %s: %w", id, err)
		}
	}
	return nil
}

// highest is what all stores together say of a journal.
func (s *settling) highest(id ident.JournalID) (epoch ident.Epoch, stores []ident.StoreID, records, deleted bool) {
	for store, h := range s.holders[id] {
		stores = append(stores, store)
		records = records || h.Records
		if h.Fence.Number == deletedFence {
			deleted = true
			h.Fence = ident.Epoch{}
		}
		for _, e := range []ident.Epoch{h.Fence, h.Highest} {
			// Of two lineages at one number either will do: the next epoch is above both.
			if epoch.Less(e) || epoch == (ident.Epoch{}) {
				epoch = e
			}
		}
	}
	slices.SortFunc(stores, ident.StoreID.Compare)
	return epoch, stores, records, deleted
}

// settled makes a journal's key from the one in the backup and what the stores have said.
func (s *settling) settled(id ident.JournalID, state JournalState) JournalState {
	next := state.Clone()
	next.Unheard, next.Stops, next.Ack, next.AckSince = false, false, 0, 0 // its owner may have taken its word back since
	epoch, stores, _, deleted := s.highest(id)
	if state.Epoch.Less(epoch) {
		next.Epoch = epoch
	}
	for _, e := range state.Ensembles {
		for _, x := range e.Stores {
			if !slices.Contains(stores, x) {
				stores = append(stores, x)
			}
		}
	}
	if len(stores) == 0 && len(s.holders[id]) == 0 && !deleted {
		s.out.Untouched++
		return next // nobody has heard of it: a volume that was never written
	}
	wide, unproven := s.wide(s.withOthers(id, state, stores))
	if len(wide) == 0 {
		s.out.WithoutAny++
		return next // all of it is lost: the list stays, and a takeover waits for what may turn up after all
	}
	number := uint32(0)
	if e, ok := state.Newest(); ok {
		number = e.Number + 1
	}
	if next.Owner == "" {
		next.Owner = s.ownerFor(id)
	}
	next.Ensembles = []Ensemble{{Epoch: next.Epoch, Number: number, Stores: wide, Wide: true, Unproven: unproven}}
	s.out.Journals++
	if unproven {
		s.out.Unproven++
	}
	return next
}

// withOthers adds the stores of the journal's sites that have not heard of it. One that an owner has recorded as a member just before
// the control store was lost answers so, and the owner, which may be unable to write its key back, goes on with it then.
func (s *settling) withOthers(id ident.JournalID, state JournalState, stores []ident.StoreID) []ident.StoreID {
	_, sites := s.home(id)
	for _, n := range s.c.Nodes() {
		if !slices.Contains(sites, n.Site) && !slices.Contains(state.Sites, n.Site) {
			continue
		}
		for _, x := range n.Stores {
			if !slices.Contains(stores, x.ID) && !s.lostBefore[x.ID] {
				stores = append(stores, x.ID)
			}
		}
	}
	slices.SortFunc(stores, ident.StoreID.Compare)
	return stores
}

// wide is who must be asked, all but one. One store that is lost is asked in vain, so that all the others must answer:
// it may have been a member. Where more are lost it can not be known any more what they had. A store that was declared lost
// before the backup was made has been in no list since, so it matters to those journals only that listed it then.
func (s *settling) wide(stores []ident.StoreID) (wide []ident.StoreID, unproven bool) {
	lost := slices.Clone(s.r.Lost)
	for _, x := range stores {
		if s.lostBefore[x] && !slices.Contains(lost, x) {
			lost = append(lost, x)
		}
	}
	left := slices.DeleteFunc(slices.Clone(stores), func(x ident.StoreID) bool { return slices.Contains(lost, x) })
	switch len(lost) {
	case 0:
		return stores, false
	case 1:
		if len(left) == 0 {
			return nil, true
		}
		wide = append(left, lost[0])
		slices.SortFunc(wide, ident.StoreID.Compare)
		return wide, false
	}
	return left, true
}

// ownerFor names a node that has the journal next: one of where it was owned last, for a start.
func (s *settling) ownerFor(id ident.JournalID) ident.NodeName {
	site, _ := s.home(id)
	var any ident.NodeName
	for _, n := range s.c.Nodes() {
		if n.Has(RoleAccess) {
			if n.Site == site {
				return n.Name
			}
			any = cmp.Or(any, n.Name)
		}
	}
	return cmp.Or(any, "unknown")
}

// home is the site at which the newest segment was opened, and the sites of all stores that have something.
func (s *settling) home(id ident.JournalID) (home ident.SiteID, sites []ident.SiteID) {
	var top ident.Epoch
	for store, h := range s.holders[id] {
		if h.Site != 0 && (home == 0 || top.Less(h.Highest) || top == h.Highest && h.Site < home) {
			home, top = h.Site, h.Highest
		}
		if n, ok := s.c.NodeOfStore(store); ok && h.Records && n.Site != 0 && !slices.Contains(sites, n.Site) {
			sites = append(sites, n.Site)
		}
	}
	slices.Sort(sites)
	if i := slices.Index(sites, home); i > 0 {
		sites = slices.Insert(slices.Delete(sites, i, i+1), 0, home)
	}
	return home, sites
}

// RecoveredLabel marks volumes that were found on core servers without a specification; its value says what of it is
// certain.
const RecoveredLabel = "dozo.recovered"

const recoveredSize = "size from its newest checkpoint; name, block size and policies are placeholders"

// adopt makes a volume for a journal that only the stores know.
func (s *settling) adopt(ctx context.Context, id ident.JournalID) error {
	_, _, records, deleted := s.highest(id)
	if deleted || !records {
		return nil // what is left of a deleted volume, or nothing but a fence
	}
	home, sites := s.home(id)
	if len(sites) == 0 {
		return nil
	}
	if _, ok := s.c.Site(home); !ok {
		home = sites[0]
	}
	state := s.settled(id, JournalState{Sites: sites})
	s.out.Journals--
	s.out.Found++
	var size, written int64
	for _, h := range s.holders[id] {
		size, written = max(size, h.SizeBytes), max(written, h.WrittenBytes)
	}
	certain := recoveredSize
	if size < written || size == 0 {
		size, certain = max(written, 1<<20), "size at least what was written; name, block size and policies are placeholders"
	}
	const unit = 1 << 20 // a size that every initiator likes
	size = (size + unit - 1) / unit * unit
	v := VolumeSpec{ID: id, Tenant: DefaultTenant, Name: "recovered-" + id.String()[:12], SizeBytes: size, BlockSize: 512, Sites: len(sites), AtSite: home,
		Durability: Replicated, Partition: PartitionContinue, Labels: map[string]string{RecoveredLabel: certain}, Created: s.c.o.Now().UTC()}
	if noted, ok := s.offers[id]; ok {
		v = offered(v, noted)
	}
	if err := cmp.Or(v.Validate(), state.Validate()); err != nil {
		return err
	}
	return s.c.putVolume(ctx, v, state, "volume.recover")
}

// putVolume writes a volume that there is already: its specification and its journal's key, under its name or, if
// that is taken, another.
func (c *Client) putVolume(ctx context.Context, v VolumeSpec, state JournalState, action string) error {
	_, err := again(ctx, c, func(ctx context.Context) (struct{}, error) {
		var none struct{}
		p, err := c.pair(ctx, keyVolumeName(v.Tenant, v.Name))
		if err != nil {
			return none, err
		}
		if p.mod != 0 {
			v.Name = "recovered-" + v.ID.String()
		}
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keyVolume(v.ID)}, {key: keyJournal(v.ID)}, {key: keyVolumeName(v.Tenant, v.Name)}},
			ops: []op{
				{key: keyVolume(v.ID), value: encode(v, "")},
				{key: keyVolumeName(v.Tenant, v.Name), value: encode(v.ID, "")},
				{key: keyJournal(v.ID), value: encode(state, newChangeID())},
			},
		}, audit{action, volumeObject(v), nil, v})
		return none, err
	})
	return err
}

// bury makes tombstones again of volumes that were deleted since the backup: a store that has fenced their journals for
// ever has removed what it had of them.
func (s *settling) bury(ctx context.Context) error {
	for _, v := range s.c.Volumes() {
		if _, _, _, deleted := s.highest(v.ID); !deleted {
			continue
		}
		switch _, err := s.c.DeleteVolume(ctx, v.ID); {
		case errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnheard): // only a node remembers it
			continue
		case err != nil:
			return err
		}
		s.out.Deleted++
	}
	return nil
}

// WriteBack implements Store.
func (c *Client) WriteBack(ctx context.Context, spec VolumeSpec, state JournalState) (JournalState, Rev, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	state = state.Clone()
	state.Unheard = false
	if err := state.Validate(); err != nil {
		return state, 0, err
	}
	if r, ok := c.Restoration(); !ok {
		return state, 0, invalidf("journal %s: the control store was not restored", spec.ID)
	} else if _, _, known := c.Journal(spec.ID); !known && !r.Pending() {
		return state, 0, fmt.Errorf("journal %s: %w", spec.ID, ErrNotFound) // forgotten on purpose since
	}
	now, rev, err := c.JournalNow(ctx, spec.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		if err := c.putVolume(ctx, spec, state, "volume.write-back"); err != nil {
			return state, 0, err
		}
		return c.JournalNow(ctx, spec.ID)
	case err != nil:
		return state, 0, err
	}
	e, some := now.Newest()
	stale := now.Unheard || some && e.Wide && !state.Epoch.Less(now.Epoch)
	switch {
	case !stale && now.Epoch == state.Epoch && now.Owner == state.Owner:
		return now, rev, nil // it was written back before
	case !stale || state.Epoch.Less(now.Epoch):
		return now, rev, fmt.Errorf("journal %s is at epoch %s, the owner's is %s: %w", spec.ID, now.Epoch, state.Epoch, ErrConflict)
	}
	_, raw, err := c.clusterFor(ctx)
	if err != nil {
		return now, rev, err
	}
	res := c.commitJournals(ctx, []journalChange{{journal: spec.ID, expect: rev, changeID: newChangeID(), state: state, cluster: raw}})[0]
	return res.State, res.Rev, res.Err
}
