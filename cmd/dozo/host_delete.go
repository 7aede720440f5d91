package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type hostDelete struct {
	yes bool
	req dozov1.DeleteHostRequest
}

func newHostDelete(a *app) *cobra.Command {
	var o hostDelete
	c := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a host",
		Args: names("NAME"), ValidArgsFunction: a.completeHosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Host = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *hostDelete) run(ctx context.Context, a *app) error {
	if err := a.confirm(o.yes, fmt.Sprintf("Host %s will not be able to log in as itself any more.", o.req.GetHost())); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		_, err := c.Hosts.Delete(ctx, &o.req)
		return a.done(err, "deleted "+o.req.GetHost())
	})
}
