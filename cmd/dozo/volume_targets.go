package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type volumeTargets struct{ req dozov1.VolumeTargetsRequest }

func newVolumeTargets(a *app) *cobra.Command {
	var o volumeTargets
	c := &cobra.Command{
		Use: "targets NAME", Short: "Print the iSCSI URLs of a volume, one a line",
		Long: `Print the URLs at which a volume is served, one a line: those of the own site first, or of --site. Any of them will
do, at any time; the nearest is the fastest.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Site, "site", "", "whose access servers come first (default the site of the node that is asked)")
	a.completeFlag(c, "site", siteNames)
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeTargets) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Targets(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetTargets())
		}
		for _, t := range resp.GetTargets() {
			fmt.Fprintln(a.out, t.GetUrl())
		}
		return nil
	})
}
