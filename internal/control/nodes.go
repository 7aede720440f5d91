package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"dozo/internal/ident"
)

// Nodes implements Store.
func (c *Client) Nodes() []Node { return slices.Clone(c.SharedNodes()) }

// SharedNodes implements Store.
func (c *Client) SharedNodes() []Node {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	if list := c.cache.byName.Load(); list != nil {
		return *list
	}
	list := sorted(c.cache.mu.nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	c.cache.byName.Store(&list)
	return list
}

// Node implements Store.
func (c *Client) Node(name ident.NodeName) (Node, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	e, ok := c.cache.mu.nodes[name]
	return e.v, ok
}

// NodeOfStore implements Store.
func (c *Client) NodeOfStore(id ident.StoreID) (Node, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	name, ok := c.cache.mu.nodeByStore[id]
	if !ok {
		return Node{}, false
	}
	return c.cache.mu.nodes[name].v, true
}

// RegisterNode implements Store. A node that comes back unchanged writes nothing.
func (c *Client) RegisterNode(ctx context.Context, n Node) (Node, error) {
	if err := n.Validate(); err != nil {
		return Node{}, err
	}
	return again(ctx, c, func(ctx context.Context) (Node, error) {
		old, rev, err := read[Node](ctx, c, keyNode(n.Name))
		isNew := errors.Is(err, ErrNotFound)
		if err != nil && !isNew {
			return Node{}, fmt.Errorf("node %s: %w", n.Name, err)
		}
		t := txn{conds: []cond{{key: keyNode(n.Name), rev: rev}}}
		next := n
		next.TPGT, next.Draining, next.Leaving, next.Voting = old.TPGT, old.Draining, old.Leaving, old.Voting
		next.Stores = slices.Clone(n.Stores)
		for i := range next.Stores {
			if j := slices.IndexFunc(old.Stores, func(s StoreSpec) bool { return s.ID == next.Stores[i].ID }); j >= 0 {
				next.Stores[i].Leaving = old.Stores[j].Leaving
			}
		}
		if isNew {
			last, seqRev, err := c.counter(ctx, keySeqTPGT)
			if err != nil {
				return Node{}, err
			}
			next.TPGT = last + 1
			if n.TPGT != 0 && !slices.ContainsFunc(c.Nodes(), func(x Node) bool { return x.TPGT == n.TPGT }) {
				next.TPGT = n.TPGT // it runs with it, and a control store that was restored has forgotten it
			}
			last = max(last, next.TPGT)
			t.conds = append(t.conds, cond{key: keySeqTPGT, rev: seqRev})
			t.ops = append(t.ops, op{key: keySeqTPGT, value: encode(last, "")})
		} else if len(old.Stores) > 0 && (old.Site != n.Site || old.HostID != n.HostID) {
			return old, fmt.Errorf("node %s is registered at site %d on host %s, with stores: %w; remove the node first, or give the new one another name", n.Name, old.Site, old.HostID, ErrInUse)
		}
		next.Addrs.Portals = slices.Clone(n.Addrs.Portals)
		for i := range next.Addrs.Portals {
			next.Addrs.Portals[i].TPGT = next.TPGT
		}
		if n.Site != 0 {
			site, err := c.pair(ctx, keySite(n.Site))
			if err != nil {
				return old, err
			}
			if site.mod == 0 {
				return old, fmt.Errorf("node %s: site %d: %w", n.Name, n.Site, ErrNotFound)
			}
			t.conds = append(t.conds, cond{key: keySite(n.Site), rev: site.mod})
		}
		if err := c.storeIndex(ctx, &t, old, next); err != nil {
			return old, err
		}
		mine := nodeLevel{Level, next.Version}
		said, saidRev, err := read[nodeLevel](ctx, c, dirLevels+string(n.Name))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return old, err
		}
		if !isNew && summary(old) == summary(next) && said == mine {
			return old, nil
		}
		t.conds = append(t.conds, cond{key: dirLevels + string(n.Name), rev: saidRev})
		t.ops = append(t.ops, op{key: keyNode(n.Name), value: encode(next, "")}, op{key: dirLevels + string(n.Name), value: encode(mine, "")})
		a := audit{"node.register", "node/" + string(n.Name), old, next}
		if isNew {
			a.before = nil
		}
		_, err = c.commit(ctx, t, a)
		return next, err
	})
}

// storeIndex adds to t what makes the index of stores follow the change of a node from old to next.
func (c *Client) storeIndex(ctx context.Context, t *txn, old, next Node) error {
	has := func(n Node, id ident.StoreID) bool {
		return slices.ContainsFunc(n.Stores, func(s StoreSpec) bool { return s.ID == id })
	}
	for _, s := range next.Stores {
		lost, err := c.pair(ctx, keyLost(s.ID))
		if err != nil {
			return err
		}
		if lost.mod != 0 {
			return fmt.Errorf("store %s: %w; it stays out: move its directory away, and the node makes a new store there", s.ID, ErrLost)
		}
		t.conds = append(t.conds, cond{key: keyLost(s.ID), rev: lost.mod})
		owner, rev, err := read[ident.NodeName](ctx, c, keyStore(s.ID))
		switch {
		case errors.Is(err, ErrNotFound):
			t.conds = append(t.conds, cond{key: keyStore(s.ID)})
			t.ops = append(t.ops, op{key: keyStore(s.ID), value: encode(next.Name, "")})
		case err != nil:
			return err
		case owner != next.Name:
			return fmt.Errorf("store %s is registered by node %s: %w; a copied disk is not a second store, and a disk that moved needs node %s removed or restarted without it first", s.ID, owner, ErrInUse, owner)
		default:
			t.conds = append(t.conds, cond{key: keyStore(s.ID), rev: rev})
		}
	}
	for _, s := range old.Stores {
		if !has(next, s.ID) {
			t.ops = append(t.ops, op{key: keyStore(s.ID), delete: true})
		}
	}
	return nil
}

// SetDraining implements Store.
func (c *Client) SetDraining(ctx context.Context, name ident.NodeName, yes bool) (Node, error) {
	return again(ctx, c, func(ctx context.Context) (Node, error) {
		old, rev, err := read[Node](ctx, c, keyNode(name))
		if err != nil {
			return old, fmt.Errorf("node %s: %w", name, err)
		}
		if old.Draining == yes {
			return old, nil
		}
		next, action := old, "node.undrain"
		if next.Draining = yes; yes {
			action = "node.drain"
		} else {
			next.Leaving = false
		}
		t := txn{conds: []cond{{key: keyNode(name), rev: rev}}, ops: []op{{key: keyNode(name), value: encode(next, "")}}}
		_, err = c.commit(ctx, t, audit{action, "node/" + string(name), old, next})
		return next, err
	})
}

// RemoveNode implements Store.
func (c *Client) RemoveNode(ctx context.Context, name ident.NodeName) error {
	return c.RemoveNodeIf(ctx, name, nil)
}

// RemoveNodeIf implements Store.
func (c *Client) RemoveNodeIf(ctx context.Context, name ident.NodeName, may func(Node) error) error {
	_, err := again(ctx, c, func(ctx context.Context) (Node, error) {
		old, rev, err := read[Node](ctx, c, keyNode(name))
		if err != nil {
			return old, fmt.Errorf("node %s: %w", name, err)
		}
		if may != nil {
			if err := may(old); err != nil {
				return old, err
			}
		}
		t := txn{conds: []cond{{key: keyNode(name), rev: rev}}, ops: []op{{key: keyNode(name), delete: true}}}
		for _, s := range old.Stores {
			t.ops = append(t.ops, op{key: keyStore(s.ID), delete: true})
		}
		_, err = c.commit(ctx, t, audit{"node.remove", "node/" + string(name), old, nil})
		return old, err
	})
	return err
}

// Announce implements Store. Announcing a name twice changes nothing.
func (c *Client) Announce(name ident.NodeName) error {
	if err := checkName("node", string(name)); err != nil {
		return err
	}
	c.mu.Lock()
	if c.mu.announced[name] {
		c.mu.Unlock()
		return nil
	}
	c.mu.announced[name] = true
	c.mu.Unlock()
	return c.goOwned(func() {
		c.kv.keep(c.life, keyAlive(name), encode(c.o.Now().UTC(), ""), c.o.AliveTTL)
	})
}

// HoldTTL is R11's lease of the control store; HoldEvery how often it is renewed.
const (
	HoldTTL   = 10 * time.Second
	HoldEvery = 2 * time.Second
)

// Hold implements Store.
func (c *Client) Hold(name ident.NodeName, clock func() int64, renewed func(asked int64, anew bool)) error {
	if err := checkName("node", string(name)); err != nil {
		return err
	}
	c.mu.Lock()
	if c.mu.holding[name] {
		c.mu.Unlock()
		return nil
	}
	c.mu.holding[name] = true
	c.mu.Unlock()
	return c.goOwned(func() {
		var b backoff
		for c.life.Err() == nil {
			err := c.kv.hold(c.life, keyHold(name), encode(c.o.Now().UTC(), ""), clock, func(asked int64, anew bool) {
				b.reset()
				renewed(asked, anew)
			})
			if c.life.Err() != nil || !b.waitShort(c.life) {
				return
			}
			c.o.Log.Warn("the lease of the control store was lost", "err", err)
		}
	})
}

// Held implements Store.
func (c *Client) Held(name ident.NodeName) bool {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return c.cache.mu.held[name]
}

// Alive implements Store.
func (c *Client) Alive(name ident.NodeName) bool {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return c.cache.mu.alive[name]
}

// AliveNodes lists the nodes whose announcements stand, by name.
func (c *Client) AliveNodes() []ident.NodeName {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.cache.mu.alive))
}
