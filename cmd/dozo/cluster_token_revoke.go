package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type clusterTokenRevoke struct{ req dozov1.RevokeTokenRequest }

func newClusterTokenRevoke(a *app) *cobra.Command {
	var o clusterTokenRevoke
	return &cobra.Command{
		Use: "revoke NAME", Short: "Make a token for the API count no more", Args: names("NAME"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.complete(cmd, args, tokenNames)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Name = args[0]
			return o.run(cmd.Context(), a)
		},
	}
}

func (o *clusterTokenRevoke) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		_, err := c.Cluster.RevokeToken(ctx, &o.req)
		return a.done(err, "revoked "+o.req.GetName())
	})
}
