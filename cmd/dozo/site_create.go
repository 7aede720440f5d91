package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type siteCreate struct{ req dozov1.CreateSiteRequest }

func newSiteCreate(a *app) *cobra.Command {
	var o siteCreate
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a site", Args: names("NAME"),
		Long: "Make a site. Nodes make the site of their configuration by themselves; this is for one that has subnets before it has nodes.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Name = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringSliceVar(&o.req.Cidrs, "cidr", nil, "`subnet` of the site; may be repeated")
	return c
}

func (o *siteCreate) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Sites.Create(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, resp.GetSite())
		}
		return a.done(nil, "created "+resp.GetSite().GetName())
	})
}
