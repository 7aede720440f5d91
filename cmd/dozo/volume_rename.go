package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeRename struct{ req dozov1.RenameVolumeRequest }

func newVolumeRename(a *app) *cobra.Command {
	var o volumeRename
	c := &cobra.Command{
		Use: "rename NAME NEW-NAME", Short: "Give a volume another name",
		Args: names("NAME", "NEW-NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.NewName = args[0], args[1]
			return o.run(cmd.Context(), a)
		},
	}
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeRename) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Rename(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "renamed to")
	})
}
