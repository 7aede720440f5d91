package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type volumeRecover struct {
	yes bool
	req dozov1.RecoverVolumeRequest
}

func newVolumeRecover(a *app) *cobra.Command {
	var o volumeRecover
	c := &cobra.Command{
		Use: "recover NAME [--to SITE] [--dry-run]", Short: "Serve a volume without stores that are lost",
		Long: `Serve a volume whose takeover waits for core servers that are lost, without them: from what the others have. dozo status names
such volumes, and --dry-run says what would be lost. What the lost stores have beyond becomes a fork if they ever return, and
initiators that had the volume get errors, as after dozo site failover, which does the same for all volumes of a site.

It is refused if the volume is served, or if its takeover waits for nothing; and, unless --force is given, if nodes of the stores
that are missed can be reached, or if records would be lost that were on stable storage. It can not be undone.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.To, "to", "", "the `site` that is to serve it (default its owner's, if that has an access server, else the one that has most)")
	c.Flags().BoolVar(&o.req.DryRun, "dry-run", false, "only say what would be lost")
	c.Flags().BoolVar(&o.req.Force, "force", false, "insist")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	a.completeFlag(c, "to", siteNames)
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeRecover) run(ctx context.Context, a *app) error {
	if !o.req.DryRun {
		question := fmt.Sprintf("Volume %s will be served without what only the lost stores have. It can not be undone.", o.req.GetVolume())
		if err := a.confirm(o.yes, question); err != nil {
			return err
		}
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Volumes.Recover(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.RecoverVolumeResponse
		for stream.Receive() {
			last = stream.Msg()
			v := last.GetVolume()
			p.line(fmt.Sprintf("%s by %s at %s %s", v.GetState(), v.GetOwner(), v.GetOwnerSite(), v.GetMessage()))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if !last.GetDone() {
			return errors.New("the node ended the answer early; dozo volume show tells who owns the volume")
		}
		if a.format != view.Table {
			err = a.format.Message(a.out, last)
		} else {
			err = a.failovers(a.out, []*dozov1.VolumeFailover{last.GetVolume()})
		}
		if err != nil {
			return err
		}
		return failoverOutcome(o.req.DryRun, last.GetVolume())
	})
}
