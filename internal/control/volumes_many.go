package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"dozo/internal/ident"
)

// VolumesPerTxn is how many volumes a transaction makes at most: etcd takes 128 conditions and as many operations
// by default, a new volume has three of each, and the sites and the hosts that it names have a condition each.
const VolumesPerTxn = 32

// conditionsMost is how many conditions a transaction may have besides those of its audit event.
const conditionsMost = 120

// CreateVolumes implements Store. With IDs that the caller has chosen it may be called again after ErrUncertain, until the outcome
// is known: what is there with just these names and IDs was made by it. A volume of the list is the same as one that CreateVolume makes; all name the same tenant.
func (c *Client) CreateVolumes(ctx context.Context, list []VolumeSpec, sites []ident.SiteID) ([]VolumeSpec, error) {
	if len(list) == 0 {
		return nil, nil
	}
	list = slices.Clone(list)
	journals := make([]JournalState, len(list))
	names, ids := map[string]bool{}, map[ident.JournalID]bool{}
	var hosts []string
	for i := range list {
		var err error
		if list[i], journals[i], err = c.completed(list[i], sites); err != nil {
			return nil, err
		}
		v := &list[i]
		switch {
		case v.Tenant != list[0].Tenant:
			return nil, invalidf("volumes of the tenants %s and %s in one transaction", list[0].Tenant, v.Tenant)
		case names[v.Name] || ids[v.ID]:
			return nil, invalidf("volume %s is to be made twice", v.Name)
		}
		names[v.Name], ids[v.ID] = true, true
		for _, h := range v.Hosts {
			if !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
	}
	if n := 3*len(list) + len(sites) + len(hosts); len(list) > 1 && (len(list) > VolumesPerTxn || n > conditionsMost) {
		return nil, invalidf("%d volumes for %d hosts at %d sites are too many for one transaction", len(list), len(hosts), len(sites))
	}
	return again(ctx, c, func(ctx context.Context) ([]VolumeSpec, error) {
		var t txn
		for i, v := range list {
			t.conds = append(t.conds, cond{key: keyVolume(v.ID)}, cond{key: keyVolumeName(v.Tenant, v.Name)}, cond{key: keyJournal(v.ID)})
			t.ops = append(t.ops, op{key: keyVolume(v.ID), value: encode(v, "")}, op{key: keyVolumeName(v.Tenant, v.Name), value: encode(v.ID, "")},
				op{key: keyJournal(v.ID), value: encode(journals[i], newChangeID())})
		}
		for _, id := range sites {
			if err := c.mustExist(ctx, &t, fmt.Sprintf("site %d", id), keySite(id)); err != nil {
				return nil, err
			}
		}
		if err := c.hostsExist(ctx, &t, VolumeSpec{Tenant: list[0].Tenant, Hosts: hosts}); err != nil {
			return nil, err
		}
		_, err := c.commit(ctx, t, manyAudit("volume.create", list))
		if errors.Is(err, ErrConflict) { // only now: in one transaction in thousands something is in the way
			mine := 0
			for _, v := range list {
				is, _, rerr := read[ident.JournalID](ctx, c, keyVolumeName(v.Tenant, v.Name))
				switch {
				case rerr == nil && is == v.ID:
					mine++
				case rerr == nil:
					return nil, fmt.Errorf("volume %s/%s: %w", v.Tenant, v.Name, ErrExists)
				case !errors.Is(rerr, ErrNotFound):
					return nil, rerr
				}
				if p, rerr := c.pair(ctx, keyVolume(v.ID)); rerr != nil {
					return nil, rerr
				} else if p.mod != 0 && is != v.ID {
					return nil, fmt.Errorf("volume with ID %s: %w", v.ID, ErrExists)
				}
			}
			if mine == len(list) { // by an attempt whose outcome was not known
				return list, nil
			}
		}
		return list, err
	})
}

// DeletionsPerTxn is how many volumes a transaction deletes at most: each is two keys, of which R3 allows 100.
const DeletionsPerTxn = changesPerTxn / 2

// DeleteVolumes implements Store. What the cache has is good enough to begin with, since the transaction compares the revisions: of a
// volume that has changed since nothing is deleted, and it is read, and looked at, again.
func (c *Client) DeleteVolumes(ctx context.Context, ids []ident.JournalID, may func(VolumeSpec) error) ([]VolumeSpec, error) {
	if len(ids) > DeletionsPerTxn {
		return nil, invalidf("%d volumes are too many for one transaction", len(ids))
	}
	tries := 0
	return again(ctx, c, func(ctx context.Context) ([]VolumeSpec, error) {
		tries++
		now := c.o.Now().UTC()
		var all, gone []VolumeSpec
		var t txn
		for i, id := range ids {
			if slices.Contains(ids[:i], id) {
				continue
			}
			v, rev, err := c.volumeAt(ctx, id, tries <= cachedTries)
			if err != nil {
				return nil, err
			}
			if v.Deleted == nil {
				if may != nil {
					if err := may(v); err != nil {
						return nil, err
					}
				}
				v.Deleted = &now
				gone = append(gone, v)
				t.conds = append(t.conds, cond{key: keyVolume(id), rev: rev})
				t.ops = append(t.ops, op{key: keyVolume(id), value: encode(v, "")}, op{key: keyVolumeName(v.Tenant, v.Name), delete: true})
			}
			all = append(all, v)
		}
		if len(gone) == 0 {
			return all, nil
		}
		a := manyAudit("volume.delete", gone)
		if len(gone) == 1 {
			was := gone[0]
			was.Deleted = nil
			a.before = was
		}
		_, err := c.commit(ctx, t, a)
		return all, err
	})
}

// manyAudit is one event for the volumes of a transaction: thousands of volumes must not push everything else out of the log.
func manyAudit(action string, list []VolumeSpec) audit {
	if len(list) == 1 {
		return audit{action, volumeObject(list[0]), nil, list[0]}
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return audit{action, volumeObject(list[0]), nil, struct {
		Volumes []string   `json:"volumes"`
		First   VolumeSpec `json:"first"`
	}{names, list[0]}}
}
