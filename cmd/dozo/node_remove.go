package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type nodeRemove struct {
	yes, force, cancel bool
	timeout            time.Duration
	req                dozov1.DecommissionNodeRequest
}

func newNodeRemove(a *app) *cobra.Command {
	var o nodeRemove
	c := &cobra.Command{
		Use: "remove NAME", Short: "Empty a node and take it out of the cluster",
		Long: `Empty a node and take it out of the cluster. The node hands over the volumes that it owns, takes no new replicas, and
those that it has are made on other core servers of its site and let go; I/O goes on meanwhile. Then it leaves: its entry and its
certificates are gone, and its process ends by itself. If it had a voter of the control store, another node gets one first, one of
its site where there is one. The command shows how far it is. Where it is interrupted the emptying goes on; the same command
again waits for it and finishes it.

--cancel ends the emptying, as dozo node undrain does: the node owns volumes and takes replicas again.

--force is for a node that is lost for good, and must not run: its stores are declared lost, what only they held is lost, and
nobody waits for them any more. That can not be taken back: a disk of it that comes back is not used again. With --dry-run it says
which volumes would have too few copies then, and what is known to be lost; on a terminal it says so before it asks.`,
		Args: names("NAME"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Node = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.force, "force", false, "the node is lost for good: declare its stores lost")
	f.BoolVar(&o.cancel, "cancel", false, "end the emptying")
	f.BoolVar(&o.req.DryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&o.req.NoWait, "no-wait", false, "begin to empty it, and do not wait")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait, such as 30m (default for ever); it goes on all the same")
	c.MarkFlagsMutuallyExclusive("force", "cancel")
	c.MarkFlagsMutuallyExclusive("cancel", "dry-run")
	c.MarkFlagsMutuallyExclusive("force", "cancel", "no-wait")
	return c
}

func (o *nodeRemove) run(ctx context.Context, a *app) error {
	name := o.req.GetNode()
	if o.cancel {
		return a.with(func(c *api.Client) error {
			_, err := c.Nodes.Undrain(ctx, &dozov1.UndrainNodeRequest{Node: name})
			return a.done(err, name+" stays")
		})
	}
	ctx, cancel := withTimeout(ctx, o.timeout)
	defer cancel()
	var err error
	switch {
	case o.force && o.req.GetDryRun():
		return a.loss(ctx, name)
	case o.force:
		err = a.confirmLoss(ctx, o.yes, fmt.Sprintf("Node %s will be out of the cluster, what only its stores hold is lost, and they are never used again.", name), name)
	case !o.req.GetDryRun():
		err = a.confirm(o.yes, fmt.Sprintf("Node %s will be emptied and taken out of the cluster.", name))
	}
	if err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		if o.force {
			_, err := c.Nodes.Remove(ctx, &dozov1.RemoveNodeRequest{Node: name, Force: true})
			return a.done(err, "removed "+name)
		}
		stream, err := c.Nodes.Decommission(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		return a.followEmptying(name, stream, o.req.GetNoWait())
	})
}
