package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type volumeSet struct{ req dozov1.SetVolumeRequest }

func newVolumeSet(a *app) *cobra.Command {
	var o volumeSet
	c := &cobra.Command{
		Use:   "set NAME --ownership follow|pin",
		Short: "Change policies of a volume",
		Long: `Change policies of a volume, at once and without a pause.

With --ownership follow the owner moves by itself to where all writes come from; with pin it stays where dozo volume move
puts it, unless it dies.`,
		Example: "  dozo volume set web1 --ownership pin",
		Args:    names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Ownership, "ownership", "", "follow or pin")
	_ = c.MarkFlagRequired("ownership")
	_ = c.RegisterFlagCompletionFunc("ownership", cobra.FixedCompletions([]string{"follow", "pin"}, cobra.ShellCompDirectiveNoFileComp))
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeSet) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Volumes.Set(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printVolume(resp.GetVolume(), "changed")
	})
}
