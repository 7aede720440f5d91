package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"dozo/internal/ident"
)

func byName(a, b VolumeSpec) int {
	return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:]))
}

// Volumes implements Store.
func (c *Client) Volumes() []VolumeSpec {
	live, _ := c.SharedVolumes()
	return copies(live)
}

// Tombstones implements Store.
func (c *Client) Tombstones() []VolumeSpec {
	_, dead := c.SharedVolumes()
	return copies(dead)
}

func copies(list []*VolumeSpec) []VolumeSpec {
	out := make([]VolumeSpec, len(list))
	for i, v := range list {
		out[i] = *v
	}
	return out
}

// SharedVolumes implements Store.
func (c *Client) SharedVolumes() (volumes, tombstones []*VolumeSpec) {
	l := c.cache.volumes.Load()
	if l == nil {
		c.cache.mu.RLock()
		defer c.cache.mu.RUnlock()
		l = newVolumeLists(c.cache.mu.volumes)
		c.cache.volumes.Store(l) // with mu held: no change comes between
	}
	return l.live, l.dead
}

// Volume implements Store.
func (c *Client) Volume(id ident.JournalID) (VolumeSpec, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	e, ok := c.cache.mu.volumes[id]
	return e.v, ok
}

// VolumeByName implements Store.
func (c *Client) VolumeByName(tenant, name string) (VolumeSpec, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	id, ok := c.cache.mu.volumeByName[keyVolumeName(orDefault(tenant), name)]
	return c.cache.mu.volumes[id].v, ok
}

// CreateVolume implements Store. Defaults: a random ID, the tenant "default", blocks of 512 bytes, a copy at
// each of sites, the first of sites as home, replicated, continue.
func (c *Client) CreateVolume(ctx context.Context, v VolumeSpec, sites []ident.SiteID) (VolumeSpec, error) {
	v, journal, err := c.completed(v, sites)
	if err != nil {
		return VolumeSpec{}, err
	}
	return again(ctx, c, func(ctx context.Context) (VolumeSpec, error) {
		if p, err := c.pair(ctx, keyVolumeName(v.Tenant, v.Name)); err != nil {
			return VolumeSpec{}, err
		} else if p.mod != 0 {
			return VolumeSpec{}, fmt.Errorf("volume %s/%s: %w", v.Tenant, v.Name, ErrExists)
		}
		if p, err := c.pair(ctx, keyVolume(v.ID)); err != nil {
			return VolumeSpec{}, err
		} else if p.mod != 0 {
			return VolumeSpec{}, fmt.Errorf("volume with ID %s: %w", v.ID, ErrExists)
		}
		t := txn{
			conds: []cond{{key: keyVolume(v.ID)}, {key: keyVolumeName(v.Tenant, v.Name)}, {key: keyJournal(v.ID)}},
			ops: []op{
				{key: keyVolume(v.ID), value: encode(v, "")},
				{key: keyVolumeName(v.Tenant, v.Name), value: encode(v.ID, "")},
				{key: keyJournal(v.ID), value: encode(journal, newChangeID())},
			},
		}
		for _, id := range sites {
			if err := c.mustExist(ctx, &t, fmt.Sprintf("site %d", id), keySite(id)); err != nil {
				return VolumeSpec{}, err
			}
		}
		if err := c.hostsExist(ctx, &t, v); err != nil {
			return VolumeSpec{}, err
		}
		_, err := c.commit(ctx, t, audit{"volume.create", volumeObject(v), nil, v})
		return v, err
	})
}

// completed fills in what a new volume's specification leaves out, and makes its journal's state.
func (c *Client) completed(v VolumeSpec, sites []ident.SiteID) (VolumeSpec, JournalState, error) {
	if len(sites) == 0 {
		return VolumeSpec{}, JournalState{}, invalidf("volume %s: no sites for its copies", v.Name)
	}
	if v.ID.IsZero() {
		v.ID = ident.NewJournalID()
	}
	v.Tenant = orDefault(v.Tenant)
	v.BlockSize = cmp.Or(v.BlockSize, 512)
	v.Sites = cmp.Or(v.Sites, len(sites))
	v.AtSite = cmp.Or(v.AtSite, sites[0])
	v.Durability = cmp.Or(v.Durability, Replicated)
	v.Partition = cmp.Or(v.Partition, PartitionContinue)
	v.Ownership = cmp.Or(v.Ownership, OwnershipFollow)
	v.ALUARemote = cmp.Or(v.ALUARemote, RemoteNonOptimized)
	v.Redirect = cmp.Or(v.Redirect, RedirectOff)
	if v.Created.IsZero() {
		v.Created = c.o.Now().UTC()
	}
	v.Deleted, v.Confirmed = nil, nil
	journal := JournalState{Sites: slices.Clone(sites), Ack: v.Ack} // of nothing, all sites hold all
	for _, err := range []error{v.Validate(), journal.Validate()} {
		if err != nil {
			return VolumeSpec{}, JournalState{}, err
		}
	}
	// A home without core servers holds no copy; a home that does comes first.
	if v.Sites != len(sites) || v.AtSite != sites[0] && slices.Contains(sites, v.AtSite) {
		return VolumeSpec{}, JournalState{}, invalidf("volume %s: %d copies with home %d, but the chosen sites are %v: want as many, home first", v.Name, v.Sites, v.AtSite, sites)
	}
	return v, journal, nil
}

func volumeObject(v VolumeSpec) string { return "volume/" + v.Tenant + "/" + v.Name }

// mustExist adds to t the condition that a key is there and stays as it is.
func (c *Client) mustExist(ctx context.Context, t *txn, what, key string) error {
	p, err := c.pair(ctx, key)
	if err != nil {
		return err
	}
	if p.mod == 0 {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	t.conds = append(t.conds, cond{key: key, rev: p.mod})
	return nil
}

func (c *Client) hostsExist(ctx context.Context, t *txn, v VolumeSpec) error {
	for _, h := range v.Hosts {
		if err := c.mustExist(ctx, t, fmt.Sprintf("host %s/%s", v.Tenant, h), keyHost(v.Tenant, h)); err != nil {
			return err
		}
	}
	return nil
}

// changeVolume is the common course of changes to one volume. f may also add to the transaction. Without an action what
// has changed gives the change its name in the audit log.
func (c *Client) changeVolume(ctx context.Context, id ident.JournalID, action string, f func(context.Context, *VolumeSpec, *txn) (changed bool, err error)) (VolumeSpec, error) {
	return again(ctx, c, func(ctx context.Context) (VolumeSpec, error) {
		old, rev, err := read[VolumeSpec](ctx, c, keyVolume(id))
		if err != nil {
			return VolumeSpec{}, c.volumeError(id, err)
		}
		v := old
		v.Labels, v.Hosts, v.Confirmed = maps.Clone(old.Labels), slices.Clone(old.Hosts), slices.Clone(old.Confirmed)
		t := txn{conds: []cond{{key: keyVolume(id), rev: rev}}}
		changed, err := f(ctx, &v, &t)
		if err != nil || !changed {
			return old, err
		}
		if err := v.Validate(); err != nil {
			return old, err
		}
		t.ops = append(t.ops, op{key: keyVolume(id), value: encode(v, "")})
		_, err = c.commit(ctx, t, audit{cmp.Or(action, updated(&old, &v)), volumeObject(old), old, v})
		return v, err
	})
}

func notDeleted(v *VolumeSpec) error {
	if v.Deleted != nil {
		return fmt.Errorf("volume %s/%s was deleted: %w", v.Tenant, v.Name, ErrNotFound)
	}
	return nil
}

// unfinished says why something is not done with a clone yet.
func unfinished(v *VolumeSpec) error {
	return fmt.Errorf("volume %s is a clone that is not complete; if nobody makes it any more, repeat dozo fork clone, or delete it: %w", v.Name, ErrInUse)
}

// updated names a change of policies, or of the size, as the API does in the audit log when it refuses one.
func updated(old, v *VolumeSpec) string {
	if old.SizeBytes != v.SizeBytes {
		return "volume.resize"
	}
	return "volume.set"
}

// UpdateVolume implements Store.
func (c *Client) UpdateVolume(ctx context.Context, id ident.JournalID, f func(*VolumeSpec) error) (VolumeSpec, error) {
	return c.changeVolume(ctx, id, "", func(ctx context.Context, v *VolumeSpec, t *txn) (bool, error) {
		if err := notDeleted(v); err != nil {
			return false, err
		}
		was := *v
		was.Labels, was.Hosts = maps.Clone(v.Labels), slices.Clone(v.Hosts)
		if err := f(v); err != nil || reflect.DeepEqual(*v, was) {
			return false, err // nothing is written, and nothing said in the audit log, where nothing changes
		}
		if v.ID != was.ID || v.Tenant != was.Tenant || v.Name != was.Name || v.BlockSize != was.BlockSize ||
			!v.Created.Equal(was.Created) || v.Deleted != nil || len(v.Confirmed) != 0 || v.Cloning != was.Cloning {
			return false, invalidf("volume %s: ID, tenant, name, block size, creation, cloning and deletion are not changed by an update", was.Name)
		}
		if v.Cloning != nil && v.SizeBytes != was.SizeBytes {
			return false, unfinished(v)
		}
		if v.AtSite != was.AtSite {
			if err := c.mustExist(ctx, t, fmt.Sprintf("site %d", v.AtSite), keySite(v.AtSite)); err != nil {
				return false, err
			}
		}
		return true, c.hostsExist(ctx, t, *v)
	})
}

// RenameVolume implements Store.
func (c *Client) RenameVolume(ctx context.Context, id ident.JournalID, name string) (VolumeSpec, error) {
	if err := checkVolumeName("volume", name); err != nil {
		return VolumeSpec{}, err
	}
	return c.changeVolume(ctx, id, "volume.rename", func(ctx context.Context, v *VolumeSpec, t *txn) (bool, error) {
		if err := notDeleted(v); err != nil {
			return false, err
		}
		if v.Name == name {
			return false, nil
		}
		free := keyVolumeName(v.Tenant, name)
		if p, err := c.pair(ctx, free); err != nil {
			return false, err
		} else if p.mod != 0 {
			return false, fmt.Errorf("volume %s/%s: %w", v.Tenant, name, ErrExists)
		}
		t.conds = append(t.conds, cond{key: free})
		t.ops = append(t.ops, op{key: free, value: encode(id, "")}, op{key: keyVolumeName(v.Tenant, v.Name), delete: true})
		v.Name = name
		return true, nil
	})
}

// DeleteVolume implements Store.
func (c *Client) DeleteVolume(ctx context.Context, id ident.JournalID) (VolumeSpec, error) {
	return c.changeVolume(ctx, id, "volume.delete", func(_ context.Context, v *VolumeSpec, t *txn) (bool, error) {
		if v.Deleted != nil {
			return false, nil
		}
		now := c.o.Now().UTC()
		v.Deleted = &now
		t.ops = append(t.ops, op{key: keyVolumeName(v.Tenant, v.Name), delete: true})
		return true, nil
	})
}

// FinishClone implements Store.
func (c *Client) FinishClone(ctx context.Context, id ident.JournalID) (VolumeSpec, error) {
	return c.changeVolume(ctx, id, "volume.cloned", func(_ context.Context, v *VolumeSpec, _ *txn) (bool, error) {
		if err := notDeleted(v); err != nil {
			return false, err
		}
		was := v.Cloning != nil
		v.Cloning = nil
		return was, nil
	})
}

// ConfirmDeleted implements Store.
func (c *Client) ConfirmDeleted(ctx context.Context, id ident.JournalID, stores ...ident.StoreID) (VolumeSpec, error) {
	list, err := c.ConfirmBurials(ctx, []Burial{{Volume: id, Stores: stores}})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return VolumeSpec{}, err
	}
	return list[0], nil
}

// ForgetVolume implements Store.
func (c *Client) ForgetVolume(ctx context.Context, id ident.JournalID) error {
	if _, _, err := read[VolumeSpec](ctx, c, keyVolume(id)); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return c.ForgetVolumes(ctx, []ident.JournalID{id})
}
