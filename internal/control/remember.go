package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// While a control store that was made anew is not settled, what was known before and is not in it stays in the cache,
// at revision 0: running nodes go on finding each other and serving volumes that the backup did not know. Once it is
// settled, what nobody has written back is forgotten.

// keepOld takes over from old what t does not have.
func (t *content) keepOld(old content) {
	if t.restored == nil || !t.restored.v.Pending() {
		return
	}
	for id, e := range old.sites {
		if _, ok := t.sites[id]; !ok {
			t.sites[id] = entry[Site]{v: e.v}
		}
	}
	for name, e := range old.nodes {
		if _, ok := t.nodes[name]; ok {
			continue
		}
		t.nodes[name] = entry[Node]{v: e.v}
		for _, s := range e.v.Stores {
			if _, taken := t.nodeByStore[s.ID]; !taken {
				t.nodeByStore[s.ID] = name
			}
		}
	}
	for key, e := range old.hosts {
		if _, ok := t.hosts[key]; ok {
			continue
		}
		t.hosts[key] = entry[Host]{v: e.v}
		for _, n := range e.v.InitiatorNames {
			if _, taken := t.hostByIQN[n]; !taken {
				t.hostByIQN[n] = key
			}
		}
	}
	if t.discovery == nil && old.discovery != nil {
		t.discovery = &entry[CHAP]{v: old.discovery.v}
	}
	for serial, r := range old.revoked { // it does not count again because the control store has forgotten that
		if _, ok := t.revoked[serial]; !ok {
			t.revoked[serial] = r
		}
	}
	for id, e := range old.volumes {
		if _, ok := t.volumes[id]; ok || e.v.Deleted != nil {
			continue
		}
		t.volumes[id] = entry[VolumeSpec]{v: e.v}
		if name := keyVolumeName(e.v.Tenant, e.v.Name); t.volumeByName[name].IsZero() {
			t.volumeByName[name] = id
		}
		if j, ok := old.journals[id]; ok {
			if _, there := t.journals[id]; !there {
				state := j.v.Clone()
				state.Unheard = true
				t.journals[id] = entry[JournalState]{v: state}
			}
		}
	}
}

// remembered is what of t is of a former control store. Of what is revoked that can not be told, and need not: nobody takes it back.
func (t *content) remembered() content {
	old := newContent()
	old.revoked = t.revoked
	remember(old.sites, t.sites)
	remember(old.nodes, t.nodes)
	remember(old.hosts, t.hosts)
	remember(old.volumes, t.volumes)
	remember(old.journals, t.journals)
	if t.discovery != nil && t.discovery.rev == 0 {
		old.discovery = t.discovery
	}
	return old
}

func remember[K comparable, V any](to, from map[K]entry[V]) {
	for k, e := range from {
		if e.rev == 0 {
			to[k] = e
		}
	}
}

// forgetOld drops what keepOld kept and nobody has written since.
func (t *content) forgetOld() {
	var keys []string
	for id, e := range t.sites {
		if e.rev == 0 {
			keys = append(keys, keySite(id))
		}
	}
	for name, e := range t.nodes {
		if e.rev == 0 {
			keys = append(keys, keyNode(name))
		}
	}
	for key, e := range t.hosts {
		if e.rev == 0 {
			keys = append(keys, key)
		}
	}
	for id, e := range t.volumes {
		if e.rev == 0 {
			keys = append(keys, keyVolume(id))
		}
	}
	for id, e := range t.journals {
		if e.rev == 0 {
			keys = append(keys, keyJournal(id))
		}
	}
	if t.discovery != nil && t.discovery.rev == 0 {
		keys = append(keys, keyDiscover)
	}
	for _, k := range keys {
		t.drop(k)
	}
}

// Remember gives the cache what a node has noted of a former control store (Copy), while this one is not settled.
func (c *Client) Remember(s *Snapshot) error {
	old, err := s.content()
	if err != nil {
		return err
	}
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if cl := c.cache.mu.cluster; cl == nil || cl.v.ID != s.Cluster.ID {
		return fmt.Errorf("what was noted is of cluster %s: %w", s.Cluster.ID, ErrInvalid)
	}
	c.cache.mu.keepOld(old)
	c.cache.pokeLocked()
	return nil
}

// Copy gives what the cache has of specifications, for a node to note on its disk: should the control store be lost
// without a backup, names and sizes are still known. Events, tokens to join and what is leased are left out; journals
// are in it, though what is noted of them is never believed.
func (c *Client) Copy() (*Snapshot, error) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	t := &c.cache.mu.content
	if t.cluster == nil {
		return nil, ErrNoCluster
	}
	s := &Snapshot{Rev: c.cache.mu.rev, Time: c.o.Now().UTC(), Cluster: t.cluster.v}
	add := func(key string, spec any, rev Rev) {
		s.pairs = append(s.pairs, pair{key: key, value: encode(spec, ""), mod: rev})
	}
	add(keyCluster, t.cluster.v, t.cluster.rev)
	for id, e := range t.sites {
		add(keySite(id), e.v, e.rev)
	}
	for name, e := range t.nodes {
		add(keyNode(name), e.v, e.rev)
	}
	for key, e := range t.hosts {
		add(key, e.v, e.rev)
	}
	if t.discovery != nil {
		add(keyDiscover, t.discovery.v, t.discovery.rev)
	}
	for id, e := range t.volumes {
		add(keyVolume(id), e.v, e.rev)
	}
	for id, e := range t.journals {
		add(keyJournal(id), e.v, e.rev)
	}
	for serial, r := range t.revoked {
		add(keyRevoked(serial), r, 0)
	}
	slices.SortFunc(s.pairs, func(a, b pair) int { return cmp.Compare(a.key, b.key) })
	return s, nil
}

// Same reports that two snapshots hold the same, whenever they were taken.
func (s *Snapshot) Same(o *Snapshot) bool {
	return o != nil && slices.EqualFunc(s.pairs, o.pairs, func(a, b pair) bool { return a.key == b.key && bytes.Equal(a.value, b.value) })
}

// OfferRemembered implements Store.
func (c *Client) OfferRemembered(ctx context.Context) error {
	c.cache.mu.RLock()
	sites, hosts, volumes := maps.Clone(c.cache.mu.sites), maps.Clone(c.cache.mu.hosts), maps.Clone(c.cache.mu.volumes)
	discovery := c.cache.mu.discovery
	c.cache.mu.RUnlock()
	for _, id := range slices.Sorted(maps.Keys(sites)) {
		if sites[id].rev == 0 {
			if err := c.KeepSite(ctx, sites[id].v); err != nil && !errors.Is(err, ErrExists) {
				return err
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(hosts)) {
		if hosts[key].rev == 0 {
			if _, err := c.CreateHost(ctx, hosts[key].v); err != nil && !errors.Is(err, ErrExists) {
				return err
			}
		}
	}
	if err := c.offerRevoked(ctx); err != nil {
		return err
	}
	if discovery != nil && discovery.rev == 0 {
		if err := c.setDiscovery(ctx, discovery.v, true); err != nil {
			return err
		}
	}
	var ops []op
	for id, e := range volumes {
		if e.rev == 0 && e.v.Deleted == nil {
			ops = append(ops, op{key: dirOffers + id.String(), value: encode(e.v, "")})
		}
	}
	slices.SortFunc(ops, func(a, b op) int { return cmp.Compare(a.key, b.key) })
	for chunk := range slices.Chunk(ops, changesPerTxn) {
		_, err := retry(ctx, c, "offer volumes", func(ctx context.Context) (txnResult, error) { return c.kv.commit(ctx, txn{ops: chunk}) })
		if err != nil {
			return err
		}
	}
	return nil
}

// offerRevoked writes which certificates are revoked, where the control store does not have it.
func (c *Client) offerRevoked(ctx context.Context) error {
	there, _, err := c.listing(ctx, dirRevoked)
	if err != nil {
		return err
	}
	for _, r := range c.Revocations() {
		if slices.ContainsFunc(there, func(p pair) bool { return p.key == keyRevoked(r.Serial) }) || !r.Expires.IsZero() && r.Expires.Before(c.o.Now()) {
			continue
		}
		if err := c.Revoke(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// KeepSite implements Store.
func (c *Client) KeepSite(ctx context.Context, s Site) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.ID == 0 {
		return invalidf("site %s: no ID to keep", s.Name)
	}
	_, err := again(ctx, c, func(ctx context.Context) (struct{}, error) {
		var none struct{}
		for _, key := range []string{keySite(s.ID), keySiteName(s.Name)} {
			if p, err := c.pair(ctx, key); err != nil {
				return none, err
			} else if p.mod != 0 {
				return none, fmt.Errorf("site %s, number %d: %w", s.Name, s.ID, ErrExists)
			}
		}
		last, rev, err := c.counter(ctx, keySeqSite)
		if err != nil {
			return none, err
		}
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keySeqSite, rev: rev}, {key: keySiteName(s.Name)}, {key: keySite(s.ID)}},
			ops: []op{
				{key: keySeqSite, value: encode(max(last, uint16(s.ID)), "")},
				{key: keySiteName(s.Name), value: encode(s.ID, "")},
				{key: keySite(s.ID), value: encode(s, "")},
			},
		}, audit{"site.keep", "site/" + s.Name, nil, s})
		return none, err
	})
	return err
}

// offered makes of what a node remembers of a volume, and what stores say of it, its specification.
func offered(found, noted VolumeSpec) VolumeSpec {
	v := noted
	v.Hosts = slices.Clone(v.Hosts)
	if v.SizeBytes < found.SizeBytes && found.Labels[RecoveredLabel] == recoveredSize {
		v.SizeBytes = found.SizeBytes // it was made larger since
	}
	v.Labels = maps.Clone(v.Labels)
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	v.Labels[RecoveredLabel] = "specification as a node remembered it"
	return v
}
