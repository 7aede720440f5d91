package control

import (
	"context"
	"errors"
	"fmt"
)

// levelDiscovery is the level from which on every access server asks for the credentials of discovery. Nodes that know
// less would tell anybody of targets.
const levelDiscovery = 4

// Discovery implements Store.
func (c *Client) Discovery() CHAP {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	if c.cache.mu.discovery == nil {
		return CHAP{}
	}
	return c.cache.mu.discovery.v
}

// SetDiscovery implements Store.
func (c *Client) SetDiscovery(ctx context.Context, chap CHAP) error {
	return c.setDiscovery(ctx, chap, false)
}

// setDiscovery changes the credentials, or keeps those that are there.
func (c *Client) setDiscovery(ctx context.Context, chap CHAP, keep bool) error {
	if err := chap.validate("discovery"); err != nil {
		return err
	}
	_, err := again(ctx, c, func(ctx context.Context) (CHAP, error) {
		old, rev, err := read[storedCHAP](ctx, c, keyDiscover)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return CHAP{}, err
		case keep:
			return old.chap(), nil
		}
		change := op{key: keyDiscover, delete: true}
		if chap != (CHAP{}) {
			if c.level() < levelDiscovery {
				return CHAP{}, fmt.Errorf("credentials for discovery: %w", ErrOlderNodes)
			}
			change = op{key: keyDiscover, value: encode(chap, "")}
		}
		_, err = c.commit(ctx, txn{conds: []cond{{key: keyDiscover, rev: rev}}, ops: []op{change}},
			audit{"discovery.set", "cluster", old.chap(), chap})
		return chap, err
	})
	return err
}
