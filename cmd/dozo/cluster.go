package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

func newCluster(a *app) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Make a cluster; tokens to join it and to call its API"}
	token := &cobra.Command{Use: "token", Short: "Tokens to join the cluster and to call its API"}
	token.AddCommand(newClusterTokenCreate(a), newClusterTokenList(a), newClusterTokenRevoke(a))
	c.AddCommand(newClusterInit(a), token)
	return c
}

func tokenNames(ctx context.Context, c *api.Client) []string {
	resp, err := c.Cluster.ListTokens(ctx, &dozov1.ListTokensRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, t := range resp.GetTokens() {
		out = append(out, t.GetName()+"\t"+t.GetRole())
	}
	return out
}
