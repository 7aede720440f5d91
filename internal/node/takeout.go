package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"dozo/internal/api"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// A node is taken out in steps: its vote, its entry, its certificates. In that order, since a running node ends by itself when it sees that
// its entry is gone, and sees nothing any more without certificates. Whoever asked and gives up waiting interrupts nothing; the
// node that does it may die, and then the same command goes on, also when there is no entry any more.

// takeOutPatience bounds all of it. The members of the control store want to have seen each other for some seconds.
const takeOutPatience = time.Minute

// leaving says that a node which was to be emptied and taken out is not to go any more.
func leaving(x control.Node) error {
	if !x.Leaving {
		return fmt.Errorf("node %s: its removal was called off: %w", x.Name, api.ErrRefused)
	}
	return nil
}

// takeOut takes a node out of the cluster: its vote, its entry, its certificates. may, unless it is nil, looks at the entry as it goes, and
// refuses with an error.
func (b *backend) takeOut(ctx context.Context, c *control.Client, x control.Node, may func(control.Node) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeOutPatience)
	defer cancel()
	if now, ok := c.Node(x.Name); ok && may != nil { // before the vote goes
		if err := may(now); err != nil {
			return err
		}
	}
	serials, err := b.serialsOf(ctx, c, x.Name)
	if err != nil {
		return err
	}
	if x.Voter && !b.n.cfg.Control.External {
		if err := b.removeVoter(ctx, x.Name); err != nil {
			return err
		}
	}
	if err := c.RemoveNodeIf(ctx, x.Name, may); err != nil && !errors.Is(err, control.ErrNotFound) {
		return err
	}
	// Whoever has the host of a removed node must not come back as it.
	return b.revoke(ctx, c, serials, removedReason)
}

const removedReason = "node was removed"

// finishTakeOut does what is left of a removal that ended behind the node's entry: certificates that the node got before it was
// removed count no more. ErrNotFound if nothing is left, or there never was such a node.
func (b *backend) finishTakeOut(ctx context.Context, c *control.Client, name ident.NodeName, dryRun bool) error {
	gone := fmt.Errorf("node %s: %w", name, control.ErrNotFound)
	events, err := c.Events(ctx, 0)
	if err != nil {
		return err
	}
	var got, left []revocable
	for _, e := range events {
		var cert issuedCert
		switch {
		case e.Object != nodeObject(string(name)):
		case e.Action == "node.remove" && e.Note == "": // it was done: a refusal says why
			left = append(left, got...)
			got = nil
		case e.Action == actionIssue && json.Unmarshal([]byte(e.After), &cert) == nil && cert.Serial != "" && cert.Expires.After(time.Now()) && !c.Revoked(cert.Serial):
			got = append(got, revocable{cert, string(name)})
		}
	}
	switch {
	case len(left) == 0:
		return gone
	case dryRun:
		return fmt.Errorf("%w: it was removed, and %d of its certificates count still; the same command without a dry run revokes them", gone, len(left))
	}
	return b.revoke(ctx, c, left, removedReason)
}
