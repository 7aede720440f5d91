package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type sessionAccept struct {
	yes, dryRun bool
	req         dozov1.AcceptSessionsRequest
}

func newSessionAccept(a *app) *cobra.Command {
	var o sessionAccept
	c := &cobra.Command{
		Use: "accept VOLUME", Short: "Let initiators go on after a takeover that was not proven",
		Long: `Let initiators go on after a takeover that could not prove that nothing is missing. Ports that were attached then get errors
until they have logged out: what the volume holds may be older than what their hosts believe, and going on upon it ruins
file systems. Accept them only where the host has been restarted, or has nothing of the volume in memory. It can not be taken
back. --dry-run shows which ports get errors.`,
		Args: names("VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.InitiatorName, "initiator", "", "only ports of this `initiator`")
	c.Flags().StringVar(&o.req.Isid, "isid", "", "only the port with this `ISID`, 12 hexadecimal digits")
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "only show the ports")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *sessionAccept) run(ctx context.Context, a *app) error {
	if o.dryRun {
		return a.with(func(c *api.Client) error { return o.show(ctx, a, c) })
	}
	question := fmt.Sprintf("Hosts that go on with volume %s as if nothing was missing may ruin what is on it.", o.req.GetVolume())
	if !o.yes && isTerminal(a.in) {
		// Who is asked decides upon what is now: if there is another takeover before the answer, it does not count.
		err := a.with(func(c *api.Client) error {
			list, epoch, err := o.refused(ctx, c)
			if err == nil {
				o.req.Epoch = epoch
				err = portTable(a.err, list) // what is printed as a result is what was done
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := a.confirm(o.yes, question); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Sessions.Accept(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.ports(resp.GetPorts())
	})
}

// show lists the ports that would be accepted.
func (o *sessionAccept) show(ctx context.Context, a *app, c *api.Client) error {
	list, _, err := o.refused(ctx, c)
	if err != nil {
		return err
	}
	return a.ports(list)
}

// refused gives the ports that would be accepted, and the epoch of their owner, from the status.
func (o *sessionAccept) refused(ctx context.Context, c *api.Client) (list []*dozov1.Port, epoch string, err error) {
	v, err := c.Volumes.Get(ctx, &dozov1.GetVolumeRequest{Volume: o.req.GetVolume(), Tenant: o.req.GetTenant()})
	if err != nil {
		return nil, "", err
	}
	resp, err := c.Cluster.Status(ctx, &dozov1.StatusRequest{})
	if err != nil {
		return nil, "", err
	}
	for _, s := range resp.GetVolumes() {
		if s.GetId() != v.GetVolume().GetId() {
			continue
		}
		epoch = s.GetEpoch()
		for _, p := range s.GetRefused() {
			if (o.req.GetInitiatorName() == "" || p.GetInitiatorName() == o.req.GetInitiatorName()) && (o.req.GetIsid() == "" || strings.EqualFold(p.GetIsid(), o.req.GetIsid())) {
				list = append(list, p)
			}
		}
	}
	return list, epoch, nil
}

func (a *app) ports(list []*dozov1.Port) error {
	if a.format != view.Table {
		return view.List(a.format, a.out, list)
	}
	return portTable(a.out, list)
}

func portTable(w io.Writer, list []*dozov1.Port) error {
	g := view.NewGrid("INITIATOR", "ISID")
	for _, p := range list {
		g.Row(p.GetInitiatorName(), p.GetIsid())
	}
	return g.Write(w)
}
