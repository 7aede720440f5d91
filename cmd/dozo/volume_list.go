package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type volumeList struct{ req dozov1.ListVolumesRequest }

func newVolumeList(a *app) *cobra.Command {
	var o volumeList
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List volumes", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().StringVar(&o.req.Tenant, "tenant", "", "only this tenant's (default all)")
	c.Flags().StringToStringVar(&o.req.Labels, "label", nil, "only volumes with this label, `key=value`; may be repeated")
	c.Flags().BoolVar(&o.req.Deleted, "deleted", false, "deleted ones too whose replicas are not all gone")
	return c
}

func (o *volumeList) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.List(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetVolumes())
		}
		g := view.NewGrid("NAME", "TENANT", "SIZE", "SITES", "STATE", "PROTECTION", "OWNER", "AT", "ID")
		for _, v := range resp.GetVolumes() {
			g.Row(v.GetName(), v.GetTenant(), size.Format(v.GetSizeBytes()), number(v.GetSites()), v.GetState(), v.GetProtection(), v.GetOwner(), v.GetOwnerSite(), v.GetId())
		}
		return g.Write(a.out)
	})
}
