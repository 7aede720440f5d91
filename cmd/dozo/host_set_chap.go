package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type hostSetChap struct {
	chap chapFlags
	off  bool
	req  dozov1.SetChapRequest
}

func newHostSetChap(a *app) *cobra.Command {
	var o hostSetChap
	c := &cobra.Command{
		Use: "set-chap NAME", Short: "Replace the CHAP credentials of a host",
		Long: "Replace the CHAP credentials of a host. They hold for new logins; running sessions stay.",
		Args: names("NAME"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Host = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.off, "off", false, "no authentication any more")
	o.chap.register(c)
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *hostSetChap) run(ctx context.Context, a *app) (err error) {
	if o.req.Chap, err = o.chap.read(a.in); err != nil {
		return err
	}
	if o.off == (o.req.GetChap() != nil) {
		return usageError{errors.New("give either --chap-user and --chap-secret-file, or --off")}
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Hosts.SetChap(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printHost(resp.GetHost(), "changed")
	})
}
