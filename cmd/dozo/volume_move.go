package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type volumeMove struct {
	timeout time.Duration
	req     dozov1.MoveVolumeRequest
}

func newVolumeMove(a *app) *cobra.Command {
	var o volumeMove
	c := &cobra.Command{
		Use: "move NAME --to NODE|SITE", Short: "Hand a volume over to another access server or site",
		Long: `Hand a volume over to another access server of its site, or to another site. Clients stay connected where they are, and
see a pause, no error. Before a volume goes to another site, everything that was written to it is made stable there; if
that site can't keep up, writers are slowed for a minute at most, and then it is called off: everything is as before.
Progress is shown on standard error where that is a terminal. The move goes on if this command is interrupted.`,
		Args: names("NAME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.To, "to", "", "the `node` that is to own it, or a site")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait for the end, such as 30s (default for ever)")
	_ = c.MarkFlagRequired("to")
	a.completeFlag(c, "to", func(ctx context.Context, c *api.Client) []string {
		return append(nodeNames(ctx, c), siteNames(ctx, c)...)
	})
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *volumeMove) run(ctx context.Context, a *app) error {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Volumes.Move(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.MoveVolumeResponse
		for stream.Receive() {
			last = stream.Msg()
			text := fmt.Sprintf("to %s at %s: %s", last.GetOwner(), last.GetOwnerSite(), last.GetPhase())
			if last.GetLagBytes() > 0 {
				text += ", " + size.Format(last.GetLagBytes()) + " left"
			}
			p.line(text)
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if !last.GetDone() {
			return errors.New("the node ended the answer early; dozo volume show tells who owns the volume")
		}
		if a.format != view.Table {
			return a.format.Message(a.out, last)
		}
		_, err = fmt.Fprintf(a.out, "moved %s to %s at %s: commands waited %v\n", o.req.GetVolume(), last.GetOwner(), last.GetOwnerSite(),
			last.GetPause().AsDuration().Round(time.Millisecond))
		return err
	})
}
