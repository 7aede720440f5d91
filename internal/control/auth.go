package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"dozo/internal/pki"
)

// Revoked implements Store.
func (c *Client) Revoked(serial string) bool {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	_, ok := c.cache.mu.revoked[serial]
	return ok
}

// Revocations implements Store.
func (c *Client) Revocations() []pki.Revocation {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.SortedFunc(maps.Values(c.cache.mu.revoked), func(a, b pki.Revocation) int { return cmp.Compare(a.Serial, b.Serial) })
}

// Revoke implements Store. Entries of certificates that have expired meanwhile are taken away on the way.
func (c *Client) Revoke(ctx context.Context, r pki.Revocation) error {
	if r.Serial == "" {
		return invalidf("revocation without a serial number")
	}
	if r.At.IsZero() {
		r.At = c.o.Now().UTC()
	}
	_, err := again(ctx, c, func(ctx context.Context) (struct{}, error) {
		p, err := c.pair(ctx, keyRevoked(r.Serial))
		if err != nil || p.mod != 0 {
			return struct{}{}, err
		}
		t := txn{conds: []cond{{key: keyRevoked(r.Serial)}}, ops: []op{{key: keyRevoked(r.Serial), value: encode(r, "")}}}
		for _, old := range c.Revocations() {
			if !old.Expires.IsZero() && old.Expires.Before(c.o.Now()) && len(t.ops) < changesPerTxn && old.Serial != r.Serial {
				t.ops = append(t.ops, op{key: keyRevoked(old.Serial), delete: true})
			}
		}
		_, err = c.commit(ctx, t, audit{"node.revoke", "certificate/" + r.Serial, nil, r})
		return struct{}{}, err
	})
	return err
}

// JoinTokens implements Store.
func (c *Client) JoinTokens() []pki.JoinTokenRecord {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.SortedFunc(maps.Values(c.cache.mu.joins), func(a, b pki.JoinTokenRecord) int { return cmp.Compare(a.Hash, b.Hash) })
}

// auditJoin leaves the hash out: whoever reads the log needs only to know that there was a token.
func auditJoin(t pki.JoinTokenRecord) pki.JoinTokenRecord { t.Hash = ""; return t }

// PutJoinToken implements Store.
func (c *Client) PutJoinToken(ctx context.Context, rec pki.JoinTokenRecord) error {
	if rec.Hash == "" || rec.Expires.IsZero() || !rec.Role.IsNode() {
		return invalidf("join token: want a hash, an expiry, and the role node or witness")
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	_, err := c.commit(ctx, txn{
		conds: []cond{{key: keyJoin(rec.Hash)}},
		ops:   []op{{key: keyJoin(rec.Hash), value: encode(rec, "")}},
	}, audit{"node.create-token", "node/" + cmp.Or(rec.Node, "any"), nil, auditJoin(rec)})
	return err
}

// UseJoinToken implements Store. An expired token is taken away too, and is ErrNotFound like one that never
// was.
func (c *Client) UseJoinToken(ctx context.Context, hash string, now time.Time) (pki.JoinTokenRecord, error) {
	var none pki.JoinTokenRecord
	rec, err := again(ctx, c, func(ctx context.Context) (pki.JoinTokenRecord, error) {
		rec, rev, err := read[pki.JoinTokenRecord](ctx, c, keyJoin(hash))
		if err != nil {
			return none, fmt.Errorf("join token: %w: it was used already, or never made", err)
		}
		action := "node.use-token"
		if !now.Before(rec.Expires) {
			action = "node.expire-token"
		}
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keyJoin(hash), rev: rev}},
			ops:   []op{{key: keyJoin(hash), delete: true}},
		}, audit{action, "node/" + cmp.Or(rec.Node, "any"), auditJoin(rec), nil})
		return rec, err
	})
	if err == nil && !now.Before(rec.Expires) {
		return none, fmt.Errorf("join token expired at %s: %w", rec.Expires.Format(time.RFC3339), ErrNotFound)
	}
	return rec, err
}

// APITokens implements Store.
func (c *Client) APITokens() []pki.APITokenRecord {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	return slices.SortedFunc(maps.Values(c.cache.mu.tokens), func(a, b pki.APITokenRecord) int { return cmp.Compare(a.Name, b.Name) })
}

// APIToken implements Store.
func (c *Client) APIToken(hash string) (pki.APITokenRecord, bool) {
	c.cache.mu.RLock()
	defer c.cache.mu.RUnlock()
	name, ok := c.cache.mu.tokenByHash[hash]
	return c.cache.mu.tokens[name], ok
}

func auditAPI(t pki.APITokenRecord) pki.APITokenRecord { t.Hash = ""; return t }

// CreateAPIToken implements Store.
func (c *Client) CreateAPIToken(ctx context.Context, rec pki.APITokenRecord) error {
	if err := checkName("API token", rec.Name); err != nil {
		return err
	}
	if rec.Hash == "" || !rec.Role.IsUser() {
		return invalidf("API token %s: want a hash, and the role admin, operator or viewer", rec.Name)
	}
	_, err := again(ctx, c, func(ctx context.Context) (struct{}, error) {
		if p, err := c.pair(ctx, keyAPI(rec.Name)); err != nil {
			return struct{}{}, err
		} else if p.mod != 0 {
			return struct{}{}, fmt.Errorf("API token %s: %w", rec.Name, ErrExists)
		}
		_, err := c.commit(ctx, txn{
			conds: []cond{{key: keyAPI(rec.Name)}},
			ops:   []op{{key: keyAPI(rec.Name), value: encode(rec, "")}},
		}, audit{"token.create", "token/" + rec.Name, nil, auditAPI(rec)})
		return struct{}{}, err
	})
	return err
}

// DeleteAPIToken implements Store.
func (c *Client) DeleteAPIToken(ctx context.Context, name string) error {
	_, err := again(ctx, c, func(ctx context.Context) (struct{}, error) {
		old, rev, err := read[pki.APITokenRecord](ctx, c, keyAPI(name))
		if err != nil {
			return struct{}{}, fmt.Errorf("API token %s: %w", name, err)
		}
		_, err = c.commit(ctx, txn{
			conds: []cond{{key: keyAPI(name), rev: rev}},
			ops:   []op{{key: keyAPI(name), delete: true}},
		}, audit{"token.revoke", "token/" + name, auditAPI(old), nil})
		return struct{}{}, err
	})
	return err
}
