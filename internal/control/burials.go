package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"dozo/internal/ident"
)

// BurialsPerTxn is how many tombstones a transaction confirms at most, half as many it forgets: a confirmation is one condition and
// one operation, what is forgotten has two of each, and R3's bound on keys leaves room for the audit event.
const BurialsPerTxn = changesPerTxn

// Burial is what stores confirm of one tombstone.
type Burial struct {
	Volume ident.JournalID
	Stores []ident.StoreID
}

// cachedTries is how often a change is tried from what the cache has. A transaction depends on the revisions that it was made from,
// so one made from an old state changes nothing.
const cachedTries = 3

// volumeAt gives a volume and its revision: from the cache, or, where that has been found to be old, from the store.
func (c *Client) volumeAt(ctx context.Context, id ident.JournalID, cached bool) (v VolumeSpec, rev Rev, err error) {
	if cached {
		c.cache.mu.RLock()
		e, ok := c.cache.mu.volumes[id]
		c.cache.mu.RUnlock()
		if ok && e.rev != 0 { // what is only remembered of a former control store is not there to be changed
			return e.v, e.rev, nil
		}
	}
	if v, rev, err = read[VolumeSpec](ctx, c, keyVolume(id)); err != nil {
		err = c.volumeError(id, err)
	}
	return v, rev, err
}

// volumeError is err of reading a volume's key. One that is only remembered is told from one that was never there: people see it, and its
// owner may serve it, and it is not there to be changed before the control store is settled.
func (c *Client) volumeError(id ident.JournalID, err error) error {
	if v, known := c.Volume(id); known && errors.Is(err, ErrNotFound) {
		if r, ok := c.Restoration(); ok && r.Pending() {
			return fmt.Errorf("volume %s/%s is only remembered, and can be changed once what the stores hold is known (dozo control status): %w", v.Tenant, v.Name, ErrUnheard)
		}
	}
	return fmt.Errorf("volume %s: %w", id, err)
}

// tombstone is volumeAt of a volume that should be deleted: if the cache says that it is not, the cache is old.
func (c *Client) tombstone(ctx context.Context, id ident.JournalID, cached bool) (v VolumeSpec, rev Rev, err error) {
	v, rev, err = c.volumeAt(ctx, id, cached)
	if err == nil && cached && v.Deleted == nil {
		v, rev, err = c.volumeAt(ctx, id, false)
	}
	return v, rev, err
}

// ConfirmBurials implements Store. All of the list or nothing takes effect; what somebody has forgotten meanwhile is left out,
// since that was done with all confirmations.
func (c *Client) ConfirmBurials(ctx context.Context, list []Burial) ([]VolumeSpec, error) {
	if len(list) > BurialsPerTxn {
		return nil, invalidf("%d tombstones are too many for one transaction", len(list))
	}
	tries := 0
	return again(ctx, c, func(ctx context.Context) ([]VolumeSpec, error) {
		tries++
		var all, changed []VolumeSpec
		var t txn
		seen := map[ident.JournalID]bool{}
		for _, b := range list {
			if seen[b.Volume] {
				return nil, invalidf("volume %s is confirmed twice in one transaction", b.Volume)
			}
			seen[b.Volume] = true
			v, rev, err := c.tombstone(ctx, b.Volume, tries <= cachedTries)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if v.Deleted == nil {
				return nil, invalidf("volume %s/%s is not deleted", v.Tenant, v.Name)
			}
			was := len(v.Confirmed)
			v.Confirmed = append(slices.Clone(v.Confirmed), b.Stores...)
			slices.SortFunc(v.Confirmed, ident.StoreID.Compare)
			v.Confirmed = slices.Compact(v.Confirmed)
			all = append(all, v)
			if len(v.Confirmed) > was {
				changed = append(changed, v)
				t.conds = append(t.conds, cond{key: keyVolume(v.ID), rev: rev})
				t.ops = append(t.ops, op{key: keyVolume(v.ID), value: encode(v, "")})
			}
		}
		if len(changed) == 0 {
			return all, nil
		}
		_, err := c.commit(ctx, t, manyAudit("volume.confirm-deleted", changed))
		return all, err
	})
}

// ForgetVolumes implements Store.
func (c *Client) ForgetVolumes(ctx context.Context, ids []ident.JournalID) error {
	if len(ids) > BurialsPerTxn/2 {
		return invalidf("%d tombstones are too many for one transaction", len(ids))
	}
	tries := 0
	_, err := again(ctx, c, func(ctx context.Context) (none struct{}, _ error) {
		tries++
		var gone []VolumeSpec
		var t txn
		for _, id := range ids {
			if slices.ContainsFunc(gone, func(v VolumeSpec) bool { return v.ID == id }) {
				continue
			}
			v, rev, err := c.tombstone(ctx, id, tries <= cachedTries)
			if errors.Is(err, ErrNotFound) {
				continue // another node was quicker
			}
			if err != nil {
				return none, err
			}
			journal, journalRev, ok := c.Journal(id)
			if !ok || tries > cachedTries {
				if journal, journalRev, err = read[JournalState](ctx, c, keyJournal(id)); err != nil {
					return none, fmt.Errorf("journal %s: %w", id, err)
				}
			}
			if err := c.forgettable(ctx, &v, &journal); err != nil {
				return none, err
			}
			gone = append(gone, v)
			t.conds = append(t.conds, cond{key: keyVolume(id), rev: rev}, cond{key: keyJournal(id), rev: journalRev})
			t.ops = append(t.ops, op{key: keyVolume(id), delete: true}, op{key: keyJournal(id), delete: true})
		}
		if len(gone) == 0 {
			return none, nil
		}
		a := manyAudit("volume.forget", gone)
		a.before, a.after = a.after, nil
		_, err := c.commit(ctx, t, a)
		return none, err
	})
	return err
}

// forgettable says why a volume's keys may not go yet (R13).
func (c *Client) forgettable(ctx context.Context, v *VolumeSpec, journal *JournalState) error {
	if v.Deleted == nil {
		return fmt.Errorf("volume %s/%s is not deleted: %w", v.Tenant, v.Name, ErrInUse)
	}
	for _, e := range journal.Ensembles {
		for _, s := range e.Stores {
			if slices.Contains(v.Confirmed, s) {
				continue
			}
			// A store that no node has any more was declared lost with its node.
			if p, err := c.pair(ctx, keyStore(s)); err != nil {
				return err
			} else if p.mod != 0 {
				return fmt.Errorf("volume %s/%s: store %s has not confirmed: %w", v.Tenant, v.Name, s, ErrInUse)
			}
		}
	}
	return nil
}
