package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// Hosts implements Store.
func (c *Client) Hosts() []Host {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return sorted(c.cache.mu.hosts, func(a, b Host) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
}

// Host implements Store.
func (c *Client) Host(tenant, name string) (Host, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	e, ok := c.cache.mu.hosts[keyHost(orDefault(tenant), name)]
	return e.v, ok
}

// HostByInitiator implements Store. Initiator names are compared in lower case (RFC 3722).
func (c *Client) HostByInitiator(initiatorName string) (Host, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	key, ok := c.cache.mu.hostByIQN[strings.ToLower(initiatorName)]
	if !ok {
		return Host{}, false
	}
	return c.cache.mu.hosts[key].v, true
}

func orDefault(tenant string) string { return cmp.Or(tenant, DefaultTenant) }

func (h *Host) normalise() {
	h.Tenant = orDefault(h.Tenant)
	h.InitiatorNames = slices.Clone(h.InitiatorNames)
	for i, n := range h.InitiatorNames {
		h.InitiatorNames[i] = strings.ToLower(n)
	}
}

// CreateHost implements Store.
func (c *Client) CreateHost(ctx context.Context, h Host) (Host, error) {
	h.normalise()
	if h.Created.IsZero() {
		h.Created = c.o.Now().UTC()
	}
	if err := h.Validate(); err != nil {
		return Host{}, err
	}
	return again(ctx, c, func(ctx context.Context) (Host, error) {
		if p, err := c.pair(ctx, keyHost(h.Tenant, h.Name)); err != nil {
			return Host{}, err
		} else if p.mod != 0 {
			return Host{}, fmt.Errorf("host %s/%s: %w", h.Tenant, h.Name, ErrExists)
		}
		t := txn{conds: []cond{{key: keyHost(h.Tenant, h.Name)}}, ops: []op{{key: keyHost(h.Tenant, h.Name), value: encode(h, "")}}}
		if err := c.initiatorIndex(ctx, &t, Host{}, h); err != nil {
			return Host{}, err
		}
		_, err := c.commit(ctx, t, audit{"host.add", "host/" + h.Tenant + "/" + h.Name, nil, h})
		return h, err
	})
}

// initiatorIndex adds to t what makes the index of initiator names follow the change from old to h.
func (c *Client) initiatorIndex(ctx context.Context, t *txn, old, h Host) error {
	for _, n := range h.InitiatorNames {
		if slices.Contains(old.InitiatorNames, n) {
			continue
		}
		p, err := c.pair(ctx, keyInitiator(n))
		if err != nil {
			return err
		}
		if p.mod != 0 {
			owner, _, err := decode[string](p.key, p.value)
			if err != nil {
				return err
			}
			return fmt.Errorf("initiator name %s belongs to host %s: %w", n, owner, ErrExists)
		}
		t.conds = append(t.conds, cond{key: keyInitiator(n)})
		t.ops = append(t.ops, op{key: keyInitiator(n), value: encode(h.Tenant+"/"+h.Name, "")})
	}
	for _, n := range old.InitiatorNames {
		if !slices.Contains(h.InitiatorNames, n) {
			t.ops = append(t.ops, op{key: keyInitiator(n), delete: true})
		}
	}
	return nil
}

// readHost reads a host with its secrets.
func (c *Client) readHost(ctx context.Context, tenant, name string) (Host, Rev, error) {
	s, rev, err := read[storedHost](ctx, c, keyHost(tenant, name))
	if err != nil {
		return Host{}, 0, fmt.Errorf("host %s/%s: %w", tenant, name, err)
	}
	return s.host(), rev, nil
}

// UpdateHost implements Store. Tenant, name and time of creation stay.
func (c *Client) UpdateHost(ctx context.Context, tenant, name string, f func(*Host) error) (Host, error) {
	tenant = orDefault(tenant)
	return again(ctx, c, func(ctx context.Context) (Host, error) {
		old, rev, err := c.readHost(ctx, tenant, name)
		if err != nil {
			return Host{}, err
		}
		h := old
		h.InitiatorNames, h.CIDRs = slices.Clone(old.InitiatorNames), slices.Clone(old.CIDRs)
		if err := f(&h); err != nil {
			return old, err
		}
		h.Tenant, h.Name, h.Created = old.Tenant, old.Name, old.Created
		h.normalise()
		if err := h.Validate(); err != nil {
			return old, err
		}
		t := txn{conds: []cond{{key: keyHost(tenant, name), rev: rev}}, ops: []op{{key: keyHost(tenant, name), value: encode(h, "")}}}
		if err := c.initiatorIndex(ctx, &t, old, h); err != nil {
			return old, err
		}
		_, err = c.commit(ctx, t, audit{"host.set-chap", "host/" + tenant + "/" + name, old, h})
		return h, err
	})
}

// DeleteHost implements Store.
func (c *Client) DeleteHost(ctx context.Context, tenant, name string) error {
	tenant = orDefault(tenant)
	_, err := again(ctx, c, func(ctx context.Context) (Host, error) {
		old, rev, err := c.readHost(ctx, tenant, name)
		if err != nil {
			return old, err
		}
		volumes, volumesRev, err := c.listing(ctx, dirVolumes)
		if err != nil {
			return old, err
		}
		for _, p := range volumes {
			if v, _, err := decode[VolumeSpec](p.key, p.value); err != nil {
				return old, err
			} else if _, mapped := v.MapTo(name); v.Deleted == nil && v.Tenant == tenant && mapped {
				return old, fmt.Errorf("host %s/%s: %w: volume %s is mapped to it", tenant, name, ErrInUse, v.Name)
			} else if v.Deleted == nil && v.Tenant == tenant && slices.Contains(v.Hosts, name) {
				// Emptying the volume's list would let every host in.
				return old, fmt.Errorf("host %s/%s: %w by volume %s", tenant, name, ErrInUse, v.Name)
			}
		}
		t := txn{conds: []cond{{key: keyHost(tenant, name), rev: rev}, {dir: dirVolumes, rev: volumesRev}}, ops: []op{{key: keyHost(tenant, name), delete: true}}}
		for _, n := range old.InitiatorNames {
			t.ops = append(t.ops, op{key: keyInitiator(n), delete: true})
		}
		_, err = c.commit(ctx, t, audit{"host.delete", "host/" + tenant + "/" + name, old, nil})
		return old, err
	})
	return err
}
