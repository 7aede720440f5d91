package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

func newClusterTokenList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the tokens for the API, without their secrets", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return clusterTokenList(cmd.Context(), a) },
	}
}

func clusterTokenList(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Cluster.ListTokens(ctx, &dozov1.ListTokensRequest{})
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetTokens())
		}
		g := view.NewGrid("NAME", "ROLE", "CREATED", "EXPIRES", "BY")
		for _, t := range resp.GetTokens() {
			g.Row(t.GetName(), t.GetRole(), when(t.GetCreated()), when(t.GetExpires()), t.GetCreatedBy())
		}
		return g.Write(a.out)
	})
}
