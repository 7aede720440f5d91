package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type nodeRemove struct {
	yes bool
	req dozov1.RemoveNodeRequest
}

func newNodeRemove(a *app) *cobra.Command {
	var o nodeRemove
	c := &cobra.Command{
		Use: "remove NAME", Short: "Take a node out of the cluster",
		Long: `Take a node out of the cluster. It is refused while its stores hold replicas that are needed; --force declares those
lost: what only they held is gone.`,
		Args: names("NAME"), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Node = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&o.req.Force, "force", false, "declare its replicas lost")
	return c
}

func (o *nodeRemove) run(ctx context.Context, a *app) error {
	question := fmt.Sprintf("Node %s will be out of the cluster.", o.req.GetNode())
	if o.req.GetForce() {
		question = fmt.Sprintf("Node %s will be out of the cluster, and what only its stores hold is lost.", o.req.GetNode())
	}
	if err := a.confirm(o.yes, question); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		_, err := c.Nodes.Remove(ctx, &o.req)
		return a.done(err, "removed "+o.req.GetNode())
	})
}
