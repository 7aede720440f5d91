package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"dozo/internal/ident"
)

// An operator's words about disks: stores that are to be emptied, and stores that are lost.

// Leaves reports that a store of the node is to be emptied.
func (n Node) Leaves(id ident.StoreID) bool {
	i := slices.IndexFunc(n.Stores, func(s StoreSpec) bool { return s.ID == id })
	return i >= 0 && (n.Leaving || n.Stores[i].Leaving)
}

// changeNode changes a node's entry by an operator's word; change reports whether there is anything to change.
func (c *Client) changeNode(ctx context.Context, name ident.NodeName, action, object string, change func(*Node) (bool, error)) (Node, error) {
	return again(ctx, c, func(ctx context.Context) (Node, error) {
		old, rev, err := read[Node](ctx, c, keyNode(name))
		if err != nil {
			return old, fmt.Errorf("node %s: %w", name, err)
		}
		next := old
		next.Stores = slices.Clone(old.Stores)
		if changes, err := change(&next); err != nil || !changes {
			return old, err
		}
		t := txn{conds: []cond{{key: keyNode(name), rev: rev}}, ops: []op{{key: keyNode(name), value: encode(next, "")}}}
		_, err = c.commit(ctx, t, audit{action, object, old, next})
		return next, err
	})
}

// SetLeaving implements Store.
func (c *Client) SetLeaving(ctx context.Context, name ident.NodeName, yes bool) (Node, error) {
	action := "node.stay"
	if yes {
		action = "node.leave"
	}
	return c.changeNode(ctx, name, action, "node/"+string(name), func(n *Node) (bool, error) {
		if n.Leaving == yes && n.Draining == yes {
			return false, nil
		}
		n.Leaving, n.Draining = yes, yes
		return true, nil
	})
}

// SetVoting implements Store.
func (c *Client) SetVoting(ctx context.Context, name ident.NodeName) (Node, error) {
	return c.changeNode(ctx, name, "node.voter", "node/"+string(name), func(n *Node) (bool, error) {
		was := n.Voting
		n.Voting = true
		return !was, nil
	})
}

// SetStoreLeaving implements Store.
func (c *Client) SetStoreLeaving(ctx context.Context, id ident.StoreID, yes bool) (Node, error) {
	action := "store.stay"
	if yes {
		action = "store.leave"
	}
	name, _, err := read[ident.NodeName](ctx, c, keyStore(id))
	if err != nil {
		return Node{}, fmt.Errorf("store %s: %w", id, err)
	}
	return c.changeNode(ctx, name, action, "store/"+id.String(), func(n *Node) (bool, error) {
		i := slices.IndexFunc(n.Stores, func(s StoreSpec) bool { return s.ID == id })
		if i < 0 {
			return false, fmt.Errorf("store %s at node %s: %w", id, name, ErrNotFound)
		}
		if n.Stores[i].Leaving == yes {
			return false, nil
		}
		n.Stores[i].Leaving = yes
		return true, nil
	})
}

// StoreLost implements Store.
func (c *Client) StoreLost(id ident.StoreID) bool {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	_, lost := c.cache.mu.lost[id]
	return lost
}

// LostStores implements Store.
func (c *Client) LostStores() []LostStore {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.SortedFunc(maps.Values(c.cache.mu.lost), func(a, b LostStore) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
}

// LoseStore implements Store. Declaring a store lost twice changes nothing. While a restored control store is not settled
// DeclareLost is the word for it, since lists are made by it then.
func (c *Client) LoseStore(ctx context.Context, id ident.StoreID) (LostStore, error) {
	return again(ctx, c, func(ctx context.Context) (LostStore, error) {
		was, _, err := read[LostStore](ctx, c, keyLost(id))
		if err == nil || !errors.Is(err, ErrNotFound) {
			return was, err
		}
		if c.level() < levelLost {
			return was, fmt.Errorf("store %s is declared lost: %w", id, ErrOlderNodes)
		}
		l := LostStore{ID: id, Time: c.o.Now().UTC(), By: ActorFrom(ctx)}
		r, restored, err := read[Restoration](ctx, c, keyRestored)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return was, err
		}
		if err == nil && r.Pending() {
			return was, fmt.Errorf("the restored control store is not settled: dozo control lost declares store %s lost until it is: %w", id, ErrInUse)
		}
		t := txn{conds: []cond{{key: keyLost(id)}, {key: keyRestored, rev: restored}}}
		name, rev, err := read[ident.NodeName](ctx, c, keyStore(id))
		switch {
		case err == nil:
			n, _, err := read[Node](ctx, c, keyNode(name))
			if err != nil {
				return l, fmt.Errorf("node %s: %w", name, err)
			}
			l.Node, l.Site = name, n.Site
			t.conds = append(t.conds, cond{key: keyStore(id), rev: rev})
		case !errors.Is(err, ErrNotFound):
			return l, err
		}
		t.ops = append(t.ops, op{key: keyLost(id), value: encode(l, "")})
		_, err = c.commit(ctx, t, audit{"store.lost", "store/" + id.String(), nil, l})
		return l, err
	})
}
