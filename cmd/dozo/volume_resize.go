package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeResize struct {
	size string
	yes  bool
	req  dozov1.ResizeVolumeRequest
}

func newVolumeResize(a *app) *cobra.Command {
	var o volumeResize
	c := &cobra.Command{
		Use: "resize NAME SIZE", Short: "Change the size of a volume",
		Long: `Change the size of a volume, while it is in use. What is beyond the new end of one that becomes smaller is gone for
ever: that needs --shrink, and a confirmation.`,
		Args: names("NAME", "SIZE"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.size = args[0], args[1]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.req.AllowShrink, "shrink", false, "it may become smaller")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeResize) run(ctx context.Context, a *app) error {
	n, err := parseSize(o.size)
	if err != nil {
		return err
	}
	o.req.SizeBytes = n
	if o.req.GetAllowShrink() {
		if err := a.confirm(o.yes, fmt.Sprintf("What volume %s has beyond %s will be gone.", o.req.GetVolume(), o.size)); err != nil {
			return err
		}
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Resize(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "resized")
	})
}
