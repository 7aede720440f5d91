package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeDelete struct {
	yes bool
	req dozov1.DeleteVolumeRequest
}

func newVolumeDelete(a *app) *cobra.Command {
	var o volumeDelete
	c := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a volume and its data at all sites",
		Long: `Delete a volume and its data at all sites. Its name is free at once; the data go in the background. A volume with open
sessions is not deleted unless --force is given, nor one that may have some at an access server that can not be asked.
With --force nobody can log in to it any more, and its sessions are ended at every access server, at one that is away when
it is back.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&o.req.Force, "force", false, "though sessions are open; they are ended")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeDelete) run(ctx context.Context, a *app) error {
	if err := a.confirm(o.yes, fmt.Sprintf("Volume %s and its data at all sites will be gone.", o.req.GetVolume())); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Delete(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "deleted")
	})
}
