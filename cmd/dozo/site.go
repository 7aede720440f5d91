package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

func newSite(a *app) *cobra.Command {
	c := &cobra.Command{Use: "site", Short: "Show and make sites, fail over and back"}
	c.AddCommand(newSiteList(a), newSiteCreate(a), newSiteFailover(a), newSiteFailback(a))
	return c
}

func siteNames(ctx context.Context, c *api.Client) []string {
	resp, err := c.Sites.List(ctx, &dozov1.ListSitesRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range resp.GetSites() {
		out = append(out, s.GetName())
	}
	return out
}
