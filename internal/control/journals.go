package control

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/mutant"
)

// changesPerTxn is R3's bound on keys per transaction. etcd takes 128 operations by default, and each change
// is one operation, one condition, and one read where the conditions fail; one more is the cluster's key.
const changesPerTxn = 100

// journalChange is a change of one journal's key with the change ID under which it can be proved.
type journalChange struct {
	journal  ident.JournalID
	expect   Rev
	changeID string
	state    JournalState
	cluster  []byte // value of the cluster's key: a control store that was started anew has another
	absent   string // a key that must not be there; empty: none
}

// Journal implements Store.
func (c *Client) Journal(id ident.JournalID) (JournalState, Rev, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	e, ok := c.cache.mu.journals[id]
	return e.v, e.rev, ok
}

// Journals implements Store.
func (c *Client) Journals() []ident.JournalID {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(c.cache.mu.journals), func(a, b ident.JournalID) int {
		return slices.Compare(a[:], b[:])
	})
}

// JournalNow implements Store.
func (c *Client) JournalNow(ctx context.Context, id ident.JournalID) (JournalState, Rev, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, rev, err := read[JournalState](ctx, c, keyJournal(id))
	if err != nil {
		return s, rev, fmt.Errorf("journal %s: %w", id, err)
	}
	c.cache.putJournal(id, s, rev)
	return s, rev, nil
}

// baseFor gives the state that a change at revision expect starts from, without a round trip where the cache
// has just that. The error is ErrConflict, with what is there now, if the key has moved on.
func (c *Client) baseFor(ctx context.Context, id ident.JournalID, expect Rev) (JournalState, Rev, error) {
	if s, rev, ok := c.Journal(id); ok && rev == expect {
		return s, rev, nil
	}
	s, rev, err := c.JournalNow(ctx, id)
	if err == nil && rev != expect {
		err = fmt.Errorf("journal %s is at revision %d, not %d: %w", id, rev, expect, ErrConflict)
	}
	return s, rev, err
}

func (c *Client) clusterEntry() (entry[Cluster], error) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	if c.cache.mu.cluster == nil {
		return entry[Cluster]{}, ErrNoCluster
	}
	return *c.cache.mu.cluster, nil
}

// clusterFor gives the cluster for a change, asking the control store where the cache has not seen it yet.
func (c *Client) clusterFor(ctx context.Context) (Cluster, []byte, error) {
	c.cache.mu.RLock()
	e, raw := c.cache.mu.cluster, c.cache.mu.raw
	c.cache.mu.RUnlock()
	if e != nil {
		return e.v, raw, nil
	}
	p, err := c.pair(ctx, keyCluster)
	if err != nil {
		return Cluster{}, nil, err
	}
	if p.mod == 0 {
		return Cluster{}, nil, ErrNoCluster
	}
	v, _, err := decode[Cluster](p.key, p.value)
	return v, p.value, err
}

// TakeJournal implements Store.
func (c *Client) TakeJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName) (JournalState, Rev, error) {
	v, ok := c.Volume(id)
	return c.handJournal(ctx, id, expect, newOwner, nil, func(_ JournalState, next *JournalState) {
		next.Stops = ok && v.Partition == PartitionStop && c.level() >= LevelStops
		next.Handed = next.Handed && c.level() >= LevelHandEarly
	})
}

// TakeBackJournal implements Store.
func (c *Client) TakeBackJournal(ctx context.Context, id ident.JournalID, expect Rev, owner ident.NodeName) (JournalState, Rev, error) {
	return c.handJournal(ctx, id, expect, owner, nil, func(base JournalState, next *JournalState) {
		next.Stops, next.Handed = false, false
		next.Ensembles = slices.DeleteFunc(next.Ensembles, func(e Ensemble) bool { return e.Epoch == base.Epoch })
	})
}

// HandJournal implements Store. What the new owner knows of the specification is for itself to say.
func (c *Client) HandJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName, stores []ident.StoreID, early bool) (JournalState, Rev, error) {
	if early && c.level() < LevelHandEarly {
		return JournalState{}, 0, fmt.Errorf("journal %s: %w", id, ErrOlderNodes)
	}
	return c.handJournal(ctx, id, expect, newOwner, stores, func(_ JournalState, next *JournalState) { next.Stops, next.Handed = false, early })
}

func (c *Client) handJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName, stores []ident.StoreID, words func(base JournalState, next *JournalState)) (JournalState, Rev, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if newOwner == "" {
		return JournalState{}, 0, invalidf("journal %s: a taker without a name", id)
	}
	cl, raw, err := c.clusterFor(ctx)
	if err != nil {
		return JournalState{}, 0, err
	}
	base, rev, err := c.baseFor(ctx, id, expect)
	if err != nil {
		return base, rev, err
	}
	if base.Unheard && !mutant.On(mutant.R3Unheard) {
		return base, rev, fmt.Errorf("journal %s: %w", id, ErrUnheard)
	}
	if base.Epoch.Number == math.MaxUint64 {
		return base, rev, invalidf("journal %s: epochs are used up", id)
	}
	next := base.Clone()
	next.Owner = newOwner
	next.Epoch = ident.Epoch{Number: base.Epoch.Number + 1, Lineage: cl.Lineage}
	words(base, &next)
	if next.Forced != nil && c.level() < LevelBegun {
		next.Forced.Begun = nil
	}
	if len(stores) > 0 {
		e := Ensemble{Epoch: next.Epoch, Stores: slices.Clone(stores)}
		if newest, ok := base.Newest(); ok {
			e.Number = newest.Number + 1
		}
		next.Ensembles = append(next.Ensembles, e)
	}
	res := c.commitOne(ctx, journalChange{journal: id, expect: expect, changeID: newChangeID(), state: next.unforced(), cluster: raw})
	return res.State, res.Rev, res.Err
}

// ForceJournal implements Store.
func (c *Client) ForceJournal(ctx context.Context, id ident.JournalID, expect Rev, newOwner ident.NodeName, lost []ident.StoreID, unheld ident.NodeName, hear int, loss bool) (JournalState, Rev, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if newOwner == "" {
		return JournalState{}, 0, invalidf("journal %s: a taker without a name", id)
	}
	cl, raw, err := c.clusterFor(ctx)
	if err != nil {
		return JournalState{}, 0, err
	}
	base, rev, err := c.baseFor(ctx, id, expect)
	if err != nil {
		return base, rev, err
	}
	if base.Unheard {
		return base, rev, fmt.Errorf("journal %s: %w", id, ErrUnheard)
	}
	if loss && c.level() < LevelLoss {
		if len(lost) == 0 {
			return base, rev, fmt.Errorf("journal %s: %w", id, ErrOlderNodes)
		}
		loss = false
	}
	next := base.Clone()
	next.Owner, next.Stops, next.Handed = newOwner, false, false
	next.Epoch = ident.Epoch{Number: base.Epoch.Number + 1, Lineage: cl.Lineage}
	next.Forced = &Forced{Epoch: next.Epoch, Lost: slices.Clone(lost), Loss: loss}
	if base.Ack > 0 {
		from, _ := c.Node(base.Owner)
		next.Forced.Hear, next.Forced.From, next.Forced.Silent = hear, from.Site, unheld != "" && unheld == base.Owner && base.Stops
	}
	if next = next.unforced(); next.Validate() != nil {
		return base, rev, next.Validate()
	}
	ch := journalChange{journal: id, expect: expect, changeID: newChangeID(), state: next, cluster: raw}
	if unheld != "" {
		ch.absent = keyHold(unheld)
	}
	res := c.commitJournals(ctx, []journalChange{ch})[0]
	return res.State, res.Rev, res.Err
}

// SetStops implements Store. It writes even if the key has that value: an earlier attempt, whose outcome was not learnt, may
// be under way still, and depends on the revision that this one changes.
func (c *Client) SetStops(ctx context.Context, id ident.JournalID, epoch ident.Epoch, yes bool) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if yes && c.level() < LevelStops {
		return fmt.Errorf("journal %s: %w", id, ErrOlderNodes)
	}
	return c.giveWord(ctx, id, epoch, func(s *JournalState) { s.Stops = yes })
}

// SetBegun implements Store.
func (c *Client) SetBegun(ctx context.Context, id ident.JournalID, epoch ident.Epoch, lost []ident.StoreID, end HistoryEnd) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if c.level() < LevelBegun {
		return fmt.Errorf("journal %s: %w", id, ErrOlderNodes)
	}
	return c.giveWord(ctx, id, epoch, func(s *JournalState) {
		if len(lost) > 0 {
			s.Forced = &Forced{Epoch: epoch, Lost: slices.Clone(lost)}
		}
		if s.Forced != nil {
			s.Forced.Begun = &end
		}
	})
}

// ChangeEnsembles implements Store.
func (c *Client) ChangeEnsembles(ctx context.Context, changes []EnsembleChange) []EnsembleResult {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	results := make([]EnsembleResult, len(changes))
	_, raw, err := c.clusterFor(ctx)
	seen := make(map[ident.JournalID]bool)
	var todo []journalChange
	var at []int // todo[i] is changes[at[i]]
	for i, ch := range changes {
		r := &results[i]
		if r.Err = err; err != nil {
			continue
		}
		if seen[ch.Journal] {
			r.Err = invalidf("journal %s is changed twice in one call", ch.Journal)
			continue
		}
		seen[ch.Journal] = true
		var base JournalState
		if base, r.Rev, r.Err = c.baseFor(ctx, ch.Journal, ch.Rev); r.Err != nil {
			r.State = base
			continue
		}
		next := base.Clone()
		next.Ensembles, next.Handed = ch.Ensembles, false
		if ch.Sites != nil {
			next.Sites = ch.Sites
		}
		next = next.unforced()
		if err := base.checkSuccessor(next); err != nil {
			r.State, r.Err = base, fmt.Errorf("journal %s: %w", ch.Journal, err)
			continue
		}
		todo = append(todo, journalChange{journal: ch.Journal, expect: ch.Rev, changeID: newChangeID(), state: next.Clone(), cluster: raw})
		at = append(at, i)
	}
	if len(todo) == 1 {
		results[at[0]] = c.commitOne(ctx, todo[0])
		return results
	}
	for from := 0; from < len(todo); from += changesPerTxn {
		to := min(from+changesPerTxn, len(todo))
		for i, r := range c.commitJournals(ctx, todo[from:to]) {
			results[at[from+i]] = r
		}
	}
	return results
}

// Settle implements Store.
func (c *Client) Settle(ctx context.Context, u *UncertainError) (JournalState, Rev, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	res := c.commitJournals(ctx, []journalChange{u.pending})[0]
	return res.State, res.Rev, res.Err
}

// commitJournals runs changes as one transaction until each one's outcome is known or ctx ends.
//
// The same transaction, with the same change IDs, is sent again after an unknown outcome. That is safe
// because it depends on revisions that its own success changes, and it is a proof: if it succeeds now, no
// earlier attempt had; if a key holds the change's ID, an earlier attempt had; and if a key is at another
// revision with another ID, then no attempt can take effect any more, or one did and was overwritten by a
// change that deposes it, which for the caller is the same.
func (c *Client) commitJournals(ctx context.Context, changes []journalChange) []EnsembleResult {
	results := make([]EnsembleResult, len(changes))
	left := make([]int, len(changes))
	for i := range left {
		left[i] = i
	}
	var b backoff
	for len(left) > 0 {
		t := txn{conds: []cond{{key: keyCluster, value: changes[left[0]].cluster}}, reads: []string{keyCluster}}
		for _, i := range left {
			ch := changes[i]
			key := keyJournal(ch.journal)
			t.conds = append(t.conds, cond{key: key, rev: ch.expect})
			t.ops = append(t.ops, op{key: key, value: encode(ch.state, ch.changeID)})
			t.reads = append(t.reads, key)
			if ch.absent != "" {
				t.conds = append(t.conds, cond{key: ch.absent})
				t.reads = append(t.reads, ch.absent)
			}
		}
		res, err := c.kv.commit(ctx, t)
		switch {
		case err == nil && res.ok:
			for _, i := range left {
				results[i] = EnsembleResult{State: changes[i].state, Rev: res.rev}
				c.cache.putJournal(changes[i].journal, changes[i].state, res.rev)
			}
			return results
		case err == nil:
			left = c.sortOut(changes, left, res, results)
			continue
		case isPermanent(err):
			for _, i := range left {
				results[i].Err = fmt.Errorf("change journal %s: %w", changes[i].journal, err)
			}
			return results
		}
		if ctx.Err() != nil || !b.wait(ctx) {
			for _, i := range left {
				results[i].Err = &UncertainError{Journal: changes[i].journal, ChangeID: changes[i].changeID, Cause: err, pending: changes[i]}
			}
			return results
		}
	}
	return results
}

// sortOut reads from a transaction whose conditions did not hold which changes are decided, and returns those
// that are still to be made.
func (c *Client) sortOut(changes []journalChange, left []int, res txnResult, results []EnsembleResult) (still []int) {
	anew := !bytes.Equal(res.read(keyCluster).value, changes[left[0]].cluster)
	for _, i := range left {
		ch := changes[i]
		p := res.read(keyJournal(ch.journal))
		r := &results[i]
		if p.mod == 0 {
			r.Err = fmt.Errorf("journal %s: %w", ch.journal, ErrNotFound)
			continue
		}
		var changeID string
		r.Rev = p.mod
		if r.State, changeID, r.Err = decode[JournalState](p.key, p.value); r.Err != nil {
			continue
		}
		c.cache.putJournal(ch.journal, r.State, p.mod)
		switch {
		case changeID == ch.changeID: // an earlier attempt took effect
		case p.mod != ch.expect:
			r.Err = fmt.Errorf("journal %s is at revision %d, epoch %s: %w", ch.journal, p.mod, r.State.Epoch, ErrConflict)
		case ch.absent != "" && res.read(ch.absent).mod != 0:
			r.Err = fmt.Errorf("journal %s: %w: %s is there", ch.journal, ErrInUse, ch.absent)
		case anew:
			r.Err = fmt.Errorf("journal %s: the control store was started anew: %w", ch.journal, ErrConflict)
		default:
			still = append(still, i)
		}
	}
	return still
}
