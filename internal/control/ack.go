package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"dozo/internal/ident"
)

// A volume's acknowledgement policy in words: "local", or "site:K" for K other sites that hold a write before it is
// acknowledged (R11).
const (
	ackLocal = "local"
	ackSite  = "site:"
)

// AckText is the policy in words.
func AckText(sites int) string {
	if sites == 0 {
		return ackLocal
	}
	return ackSite + strconv.Itoa(sites)
}

// ParseAck reads it.
func ParseAck(text string) (sites int, err error) {
	if text == ackLocal {
		return 0, nil
	}
	if k, ok := strings.CutPrefix(text, ackSite); ok {
		if n, err := strconv.ParseUint(k, 10, 16); err == nil && n > 0 {
			return int(n), nil
		}
	}
	return 0, invalidf("ack %q: want local, or site:K for K other sites that hold a write before it is acknowledged", text)
}

// otherCopies says what policies copies at so many sites allow.
func otherCopies(sites int) string {
	switch sites {
	case 0, 1:
		return "no other site has a copy: only local is possible, or copies at more sites (--sites)"
	case 2:
		return "one other site has a copy: want local or site:1, or copies at more sites (--sites)"
	}
	return fmt.Sprintf("%d other sites have copies: want local or site:1 to site:%d, or copies at more sites (--sites)", sites-1, sites-1)
}

// SetAck implements Store. Like SetStops it writes even if the key has these values.
func (c *Client) SetAck(ctx context.Context, id ident.JournalID, epoch ident.Epoch, sites int, since ident.Seq) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	if sites > 0 && c.level() < LevelAck {
		return fmt.Errorf("journal %s: %w", id, ErrOlderNodes)
	}
	return c.giveWord(ctx, id, epoch, func(s *JournalState) { s.Ack, s.AckSince = sites, since })
}

// giveWord changes what an epoch's owner says in its key. An earlier attempt, whose outcome was not learnt, may be under way
// still; it depends on the revision that this one changes.
func (c *Client) giveWord(ctx context.Context, id ident.JournalID, epoch ident.Epoch, change func(*JournalState)) error {
	_, raw, err := c.clusterFor(ctx)
	if err != nil {
		return err
	}
	for {
		base, rev, err := c.JournalNow(ctx, id)
		switch {
		case err != nil:
			return err
		case base.Epoch != epoch:
			return fmt.Errorf("journal %s is at epoch %s: %w", id, base.Epoch, ErrConflict)
		}
		next := base.Clone()
		change(&next)
		if err := next.Validate(); err != nil {
			return fmt.Errorf("journal %s: %w", id, err)
		}
		res := c.commitOne(ctx, journalChange{journal: id, expect: rev, changeID: newChangeID(), state: next, cluster: raw})
		if !errors.Is(res.Err, ErrConflict) || res.State.Epoch != epoch {
			return res.Err
		}
	}
}
