package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Cluster implements Store.
func (c *Client) Cluster() (Cluster, error) {
	e, err := c.clusterEntry()
	return e.v, err
}

// InitCluster implements Store. ID, lineage, format and time of creation are filled in where they are zero.
func (c *Client) InitCluster(ctx context.Context, want Cluster) (Cluster, error) {
	if err := checkName("cluster", want.Name); err != nil {
		return Cluster{}, err
	}
	return again(ctx, c, func(ctx context.Context) (Cluster, error) {
		have, rev, err := read[Cluster](ctx, c, keyCluster)
		switch {
		case err == nil && (have.Name != want.Name || want.ID != "" && have.ID != want.ID):
			return have, fmt.Errorf("cluster %s (%s): %w: the control store is of cluster %s (%s)", want.Name, want.ID, ErrExists, have.Name, have.ID)
		case err == nil:
			c.cache.waitFor(ctx, rev)
			return have, nil
		case !errors.Is(err, ErrNotFound):
			return Cluster{}, err
		}
		made := want
		if made.ID == "" {
			made.ID = pki.NewClusterID()
		}
		if made.Lineage == 0 {
			made.Lineage = rand.N[uint32](math.MaxUint32) + 1
		}
		if made.Created.IsZero() {
			made.Created = c.o.Now().UTC()
		}
		made.Format = FormatVersion
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keyCluster}},
			ops:   []op{{key: keyCluster, value: encode(made, "")}},
		}, audit{action: "cluster.init", object: "cluster/" + made.Name, after: made})
		return made, err
	})
}

// Sites implements Store.
func (c *Client) Sites() []Site {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return sorted(c.cache.mu.sites, func(a, b Site) int { return cmp.Compare(a.ID, b.ID) })
}

// sorted lists a map of entries.
func sorted[K comparable, V any](m map[K]entry[V], order func(a, b V) int) []V {
	out := make([]V, 0, len(m))
	for _, e := range m {
		out = append(out, e.v)
	}
	slices.SortFunc(out, order)
	return out
}

// Site implements Store.
func (c *Client) Site(id ident.SiteID) (Site, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	e, ok := c.cache.mu.sites[id]
	return e.v, ok
}

// SiteByName implements Store.
func (c *Client) SiteByName(name string) (Site, bool) {
	for _, s := range c.Sites() {
		if s.Name == name {
			return s, true
		}
	}
	return Site{}, false
}

// counter reads a counter of numbers that are given out once.
func (c *Client) counter(ctx context.Context, key string) (last uint16, rev Rev, err error) {
	last, rev, err = read[uint16](ctx, c, key)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	if err == nil && last == math.MaxUint16 {
		err = invalidf("all numbers of %s are used up", key)
	}
	return last, rev, err
}

// CreateSite implements Store.
func (c *Client) CreateSite(ctx context.Context, s Site) (Site, error) {
	if err := s.Validate(); err != nil {
		return Site{}, err
	}
	return again(ctx, c, func(ctx context.Context) (Site, error) {
		if p, err := c.pair(ctx, keySiteName(s.Name)); err != nil {
			return Site{}, err
		} else if p.mod != 0 {
			return Site{}, fmt.Errorf("site %s: %w", s.Name, ErrExists)
		}
		last, rev, err := c.counter(ctx, keySeqSite)
		if err != nil {
			return Site{}, err
		}
		s.ID = ident.SiteID(last + 1)
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keySeqSite, rev: rev}, {key: keySiteName(s.Name)}, {key: keySite(s.ID)}},
			ops: []op{
				{key: keySeqSite, value: encode(last+1, "")},
				{key: keySiteName(s.Name), value: encode(s.ID, "")},
				{key: keySite(s.ID), value: encode(s, "")},
			},
		}, audit{"site.create", "site/" + s.Name, nil, s})
		return s, err
	})
}

// UpdateSite implements Store.
func (c *Client) UpdateSite(ctx context.Context, id ident.SiteID, f func(*Site) error) (Site, error) {
	return again(ctx, c, func(ctx context.Context) (Site, error) {
		old, rev, err := read[Site](ctx, c, keySite(id))
		if err != nil {
			return Site{}, fmt.Errorf("site %d: %w", id, err)
		}
		s := old
		s.CIDRs = slices.Clone(old.CIDRs)
		if err := f(&s); err != nil {
			return old, err
		}
		s.ID = id
		if err := s.Validate(); err != nil {
			return old, err
		}
		t := txn{conds: []cond{{key: keySite(id), rev: rev}}, ops: []op{{key: keySite(id), value: encode(s, "")}}}
		if s.Name != old.Name {
			if p, err := c.pair(ctx, keySiteName(s.Name)); err != nil {
				return old, err
			} else if p.mod != 0 {
				return old, fmt.Errorf("site %s: %w", s.Name, ErrExists)
			}
			t.conds = append(t.conds, cond{key: keySiteName(s.Name)})
			t.ops = append(t.ops, op{key: keySiteName(s.Name), value: encode(id, "")}, op{key: keySiteName(old.Name), delete: true})
		}
		_, err = c.commit(ctx, t, audit{"site.update", "site/" + s.Name, old, s})
		return s, err
	})
}

// RemoveSite implements Store.
func (c *Client) RemoveSite(ctx context.Context, id ident.SiteID) error {
	_, err := again(ctx, c, func(ctx context.Context) (Site, error) {
		old, rev, err := read[Site](ctx, c, keySite(id))
		if err != nil {
			return old, fmt.Errorf("site %d: %w", id, err)
		}
		// The listings' revisions are conditions, so that nothing can move in meanwhile.
		nodes, nodesRev, err := c.listing(ctx, dirNodes)
		if err != nil {
			return old, err
		}
		for _, p := range nodes {
			if n, _, err := decode[Node](p.key, p.value); err != nil {
				return old, err
			} else if n.Site == id {
				return old, fmt.Errorf("site %s: %w by node %s", old.Name, ErrInUse, n.Name)
			}
		}
		journals, journalsRev, err := c.listing(ctx, dirJournals)
		if err != nil {
			return old, err
		}
		for _, p := range journals {
			if j, _, err := decode[JournalState](p.key, p.value); err != nil {
				return old, err
			} else if slices.Contains(j.Sites, id) {
				return old, fmt.Errorf("site %s: %w by a copy of journal %s", old.Name, ErrInUse, strings.TrimPrefix(p.key, dirJournals))
			}
		}
		volumes, volumesRev, err := c.listing(ctx, dirVolumes)
		if err != nil {
			return old, err
		}
		for _, p := range volumes {
			if v, _, err := decode[VolumeSpec](p.key, p.value); err != nil {
				return old, err
			} else if v.AtSite == id && v.Deleted == nil {
				return old, fmt.Errorf("site %s: %w as the home of volume %s/%s", old.Name, ErrInUse, v.Tenant, v.Name)
			}
		}
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keySite(id), rev: rev}, {dir: dirNodes, rev: nodesRev}, {dir: dirJournals, rev: journalsRev}, {dir: dirVolumes, rev: volumesRev}},
			ops:   []op{{key: keySite(id), delete: true}, {key: keySiteName(old.Name), delete: true}},
		}, audit{"site.remove", "site/" + old.Name, old, nil})
		return old, err
	})
	return err
}
