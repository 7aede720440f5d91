package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type siteFailover struct {
	yes bool
	req dozov1.FailoverSiteRequest
}

func newSiteFailover(a *app) *cobra.Command {
	var o siteFailover
	c := &cobra.Command{
		Use: "failover SITE [--to SITE] [--dry-run]", Short: "Have the volumes of a site that is lost served elsewhere",
		Long: `Have the volumes of a site that is lost served elsewhere: each by the site that has most of its history, with what the
others have beyond. Writes that no survivor has are lost to the volume: at least so many are reported, in writes, bytes and
seconds, as survivors were told of. When the site returns, they are kept there as a fork (dozo fork), and the rest of what it
holds is used again. --dry-run says what would be lost and changes nothing.

Initiators that had a volume get errors until they have logged out, come with a new ISID, or dozo session accept says that
they may go on: what the volume holds may be older than what their hosts believe.

It is refused while nodes of the site can be reached or have announced themselves in the last seconds: then dozo volume move
and dozo node drain lose nothing. --force insists, also where a volume's takeover needs stores of other sites that do not
answer. It can not be undone; dozo site failback moves the volumes home later. Interrupted, what has begun goes on; run again,
it does what is left.`,
		Args: names("SITE"), ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.complete(cmd, args, siteNames)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Site = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.To, "to", "", "the `site` that is to serve them (default for each the one that has most)")
	c.Flags().BoolVar(&o.req.DryRun, "dry-run", false, "only say what would be lost")
	c.Flags().BoolVar(&o.req.Force, "force", false, "though the site may be alive, or stores of other sites do not answer")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	a.completeFlag(c, "to", siteNames)
	return c
}

func (o *siteFailover) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		if !o.req.DryRun && !o.yes {
			plan := dozov1.FailoverSiteRequest{Site: o.req.Site, To: o.req.To, Force: o.req.Force, DryRun: true}
			r, err := o.call(ctx, a, c, &plan)
			if err != nil {
				return err
			}
			if len(r.GetVolumes()) > 0 && isTerminal(a.in) {
				if err := a.failovers(a.err, r.GetVolumes()); err != nil {
					return err
				}
			}
			question := fmt.Sprintf("%d volumes of site %s will be served elsewhere, without what is lost. It can not be undone.", len(r.GetVolumes()), o.req.GetSite())
			if err := a.confirm(false, question); err != nil {
				return err
			}
		}
		r, err := o.call(ctx, a, c, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			if err := a.format.Message(a.out, r); err != nil {
				return err
			}
		} else {
			if o.req.DryRun && len(r.GetAlive()) > 0 {
				fmt.Fprintf(a.err, "site %s is alive, or was seconds ago: %s\n", o.req.GetSite(), strings.Join(r.GetAlive(), ", "))
			}
			if err := a.failovers(a.out, r.GetVolumes()); err != nil {
				return err
			}
		}
		return failoverOutcome(o.req.DryRun, r.GetVolumes()...)
	})
}

// call follows a failover to its end.
func (o *siteFailover) call(ctx context.Context, a *app, c *api.Client, req *dozov1.FailoverSiteRequest) (*dozov1.FailoverSiteResponse, error) {
	stream, err := c.Sites.Failover(ctx, req)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	p := progress{a: a, show: isTerminal(a.err)}
	defer p.end()
	var last *dozov1.FailoverSiteResponse
	for stream.Receive() {
		last = stream.Msg()
		serving := 0
		for _, v := range last.GetVolumes() {
			if v.GetState() == "serving" {
				serving++
			}
		}
		p.line(fmt.Sprintf("%d of %d volumes are served", serving, len(last.GetVolumes())))
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if !last.GetDone() {
		return nil, errors.New("the node ended the answer early; run it again with --dry-run to see what is left")
	}
	return last, nil
}

// failovers prints what becomes, or would become, of volumes.
func (a *app) failovers(w interface{ Write([]byte) (int, error) }, list []*dozov1.VolumeFailover) error {
	g := view.NewGrid("VOLUME", "STATE", "FROM", "TO", "LAST WRITE THERE", "LOST WRITES", "BYTES", "SECONDS")
	for _, v := range list {
		lost, bytes, seconds := "none known", "", ""
		if v.GetProven() {
			lost = "none"
		} else if v.GetKept() {
			lost = "none acknowledged"
		}
		if v.GetLostRecords() > 0 {
			lost, bytes, seconds = fmt.Sprintf("at least %d", v.GetLostRecords()), size.Format(v.GetLostBytes()), fmt.Sprintf("%.1f", v.GetLostSeconds())
		}
		to := v.GetOwner()
		if v.GetOwnerSite() != "" {
			to += " at " + v.GetOwnerSite()
		}
		g.Row(v.GetVolume(), v.GetState(), strings.TrimSpace(v.GetFrom()+" at "+v.GetFromSite()), to, ago(v.GetLastTime()), lost, bytes, seconds)
	}
	if err := g.Write(w); err != nil {
		return err
	}
	for _, v := range list {
		if v.GetMessage() != "" {
			fmt.Fprintf(w, "%s: %s\n", v.GetVolume(), v.GetMessage())
		}
	}
	return nil
}

// ago prints a time with its fraction of a second: losses are measured from it.
func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime + ".000")
}

// failoverOutcome makes the exit code: everything that was to be done has been.
func failoverOutcome(dry bool, list ...*dozov1.VolumeFailover) error {
	if dry {
		return nil
	}
	for _, v := range list {
		switch v.GetState() {
		case "refused":
			return exitError{exitConflict}
		case "failed", "taking over":
			return exitError{exitFailed}
		}
	}
	return nil
}
