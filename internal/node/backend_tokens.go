package node

import (
	"context"

	"dozo/internal/pki"
)

// APIToken implements api.Tokens. Before the control store was reached no token is known, and none is refused; the unix
// socket and client certificates work all the same.
func (b *backend) APIToken(hash string) (rec pki.APITokenRecord, found bool, err error) {
	c := b.n.control()
	if c == nil {
		return rec, false, b.notReached()
	}
	rec, found = c.APIToken(hash)
	return rec, found, nil
}

// ListAPITokens implements api.Tokens.
func (b *backend) ListAPITokens(context.Context) ([]pki.APITokenRecord, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	return c.APITokens(), nil
}

// CreateAPIToken implements api.Tokens.
func (b *backend) CreateAPIToken(ctx context.Context, rec pki.APITokenRecord) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	return c.CreateAPIToken(ctx, rec)
}

// DeleteAPIToken implements api.Tokens.
func (b *backend) DeleteAPIToken(ctx context.Context, name string) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	return c.DeleteAPIToken(ctx, name)
}
