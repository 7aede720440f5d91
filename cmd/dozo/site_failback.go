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

type siteFailback struct {
	yes     bool
	timeout time.Duration
	req     dozov1.FailbackSiteRequest
}

func newSiteFailback(a *app) *cobra.Command {
	var o siteFailback
	c := &cobra.Command{
		Use: "failback SITE [--dry-run]", Short: "Move the volumes whose home a site is back to it",
		Long: `Move the volumes whose home a site is, and that are served elsewhere, back to it: one after the other, each once the site has
what it needs. Clients see a pause, no error; nothing is lost. Progress is shown on standard error where that is a terminal.
Interrupted, it ends after the volume that is under way; dozo volume move undoes it for a volume.`,
		Args: names("SITE"), ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.complete(cmd, args, siteNames)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Site = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.req.DryRun, "dry-run", false, "only say which volumes, and what the site lacks of them")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait for the end, such as 30s (default for ever)")
	return c
}

func (o *siteFailback) run(ctx context.Context, a *app) error {
	if !o.req.DryRun {
		if err := a.confirm(o.yes, fmt.Sprintf("The volumes whose home is site %s will be moved there, each with a pause.", o.req.GetSite())); err != nil {
			return err
		}
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Sites.Failback(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.FailbackSiteResponse
		for stream.Receive() {
			last = stream.Msg()
			home, text := 0, ""
			for _, v := range last.GetVolumes() {
				switch v.GetState() {
				case "home", "failed":
					home++
				case "waiting", "moving":
					text = fmt.Sprintf(": %s %s %s", v.GetVolume(), v.GetState(), v.GetMessage())
					if v.GetLagBytes() > 0 {
						text += ", " + size.Format(v.GetLagBytes()) + " left"
					}
				}
			}
			p.line(fmt.Sprintf("%d of %d volumes%s", home, len(last.GetVolumes()), text))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if !last.GetDone() {
			return errors.New("the node ended the answer early; --dry-run tells what is left")
		}
		if a.format != view.Table {
			if err := a.format.Message(a.out, last); err != nil {
				return err
			}
		} else {
			g := view.NewGrid("VOLUME", "STATE", "OWNER", "SITE", "LAG", "PAUSE", "MESSAGE")
			for _, v := range last.GetVolumes() {
				pause := ""
				if v.GetPause() != nil {
					pause = v.GetPause().AsDuration().Round(time.Millisecond).String()
				}
				g.Row(v.GetVolume(), v.GetState(), v.GetOwner(), v.GetOwnerSite(), size.Format(v.GetLagBytes()), pause, v.GetMessage())
			}
			if err := g.Write(a.out); err != nil {
				return err
			}
		}
		for _, v := range last.GetVolumes() {
			if v.GetState() == "failed" {
				return exitError{exitFailed}
			}
		}
		return nil
	})
}
