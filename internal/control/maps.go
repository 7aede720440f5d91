package control

import (
	"context"
	"fmt"
	"slices"

	"dozo/internal/ident"
)

// LUNMax is the highest LUN: that of flat space addressing (SAM-5 4.7.6.4).
const LUNMax = 1<<14 - 1

// mapsMax bounds how many hosts a volume is mapped to.
const mapsMax = 1024

// Map shows a volume to one of its tenant's hosts as a LUN of the hosts' target.
type Map struct {
	Host     string `json:"host"`
	LUN      uint16 `json:"lun"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// MapTo finds the map to a host.
func (v *VolumeSpec) MapTo(host string) (Map, bool) {
	for _, m := range v.Maps {
		if m.Host == host {
			return m, true
		}
	}
	return Map{}, false
}

// MapVolume implements Store. That no LUN of a host is given twice is seen to by a condition on all volumes: maps are
// changed by people, seldom.
func (c *Client) MapVolume(ctx context.Context, id ident.JournalID, host string, lun int, readOnly bool) (m Map, err error) {
	_, err = c.changeVolume(ctx, id, "volume.map", func(ctx context.Context, v *VolumeSpec, t *txn) (bool, error) {
		if err := notDeleted(v); err != nil {
			return false, err
		}
		if v.Cloning != nil {
			return false, unfinished(v)
		}
		if old, ok := v.MapTo(host); ok {
			return false, fmt.Errorf("volume %s is mapped to host %s at LUN %d: %w", v.Name, host, old.LUN, ErrExists)
		}
		if err := c.mustExist(ctx, t, fmt.Sprintf("host %s/%s", v.Tenant, host), keyHost(v.Tenant, host)); err != nil {
			return false, err
		}
		all, rev, err := c.listing(ctx, dirVolumes)
		if err != nil {
			return false, err
		}
		taken := map[int]string{}
		for _, p := range all {
			o, _, err := decode[VolumeSpec](p.key, p.value)
			if err != nil {
				return false, err
			}
			if x, ok := o.MapTo(host); ok && o.Deleted == nil && o.Tenant == v.Tenant {
				taken[int(x.LUN)] = o.Name
			}
		}
		t.conds = append(t.conds, cond{dir: dirVolumes, rev: rev})
		at := lun
		if lun < 0 {
			for at = 0; taken[at] != ""; {
				at++
			}
		}
		if at > LUNMax {
			return false, invalidf("LUN %d: want 0 to %d", at, LUNMax)
		}
		if other := taken[at]; other != "" {
			return false, fmt.Errorf("LUN %d of host %s is volume %s: %w", at, host, other, ErrExists)
		}
		m = Map{Host: host, LUN: uint16(at), ReadOnly: readOnly}
		v.Maps = append(slices.Clone(v.Maps), m)
		return true, nil
	})
	return m, err
}

// UnmapVolume implements Store.
func (c *Client) UnmapVolume(ctx context.Context, id ident.JournalID, host string) (m Map, err error) {
	_, err = c.changeVolume(ctx, id, "volume.unmap", func(_ context.Context, v *VolumeSpec, _ *txn) (bool, error) {
		if err := notDeleted(v); err != nil {
			return false, err
		}
		var ok bool
		if m, ok = v.MapTo(host); !ok {
			return false, fmt.Errorf("volume %s is not mapped to host %s: %w", v.Name, host, ErrNotFound)
		}
		v.Maps = slices.DeleteFunc(slices.Clone(v.Maps), func(x Map) bool { return x.Host == host })
		return true, nil
	})
	return m, err
}

// validateMaps checks what a volume's maps say by themselves.
func (v *VolumeSpec) validateMaps() error {
	if len(v.Maps) > mapsMax {
		return invalidf("volume %s: mapped to %d hosts: want at most %d", v.Name, len(v.Maps), mapsMax)
	}
	for i, m := range v.Maps {
		if m.Host == "" || m.LUN > LUNMax || slices.ContainsFunc(v.Maps[:i], func(o Map) bool { return o.Host == m.Host }) {
			return invalidf("volume %s: map to host %q at LUN %d: want each host once, and a LUN up to %d", v.Name, m.Host, m.LUN, LUNMax)
		}
	}
	return nil
}
