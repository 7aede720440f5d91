package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

func newSiteList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List sites", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return siteList(cmd.Context(), a) },
	}
}

func siteList(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Sites.List(ctx, &dozov1.ListSitesRequest{})
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetSites())
		}
		g := view.NewGrid("NAME", "ID", "SUBNETS", "NODES UP", "VOLUMES", "USED", "CAPACITY")
		for _, s := range resp.GetSites() {
			g.Row(s.GetName(), number(s.GetId()), strings.Join(s.GetCidrs(), ", "), fmt.Sprintf("%d/%d", s.GetNodesUp(), s.GetNodes()),
				number(s.GetVolumesOwned()), size.Format(s.GetUsedBytes()), size.Format(s.GetCapacityBytes()))
		}
		return g.Write(a.out)
	})
}
