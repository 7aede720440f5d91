package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type hostList struct{ req dozov1.ListHostsRequest }

func newHostList(a *app) *cobra.Command {
	var o hostList
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List hosts, without secrets", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().StringVar(&o.req.Tenant, "tenant", "", "only this tenant's (default all)")
	return c
}

func (o *hostList) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Hosts.List(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetHosts())
		}
		g := view.NewGrid("NAME", "TENANT", "INITIATORS", "FROM", "AUTH")
		for _, h := range resp.GetHosts() {
			g.Row(h.GetName(), h.GetTenant(), strings.Join(h.GetInitiatorNames(), ", "), strings.Join(h.GetCidrs(), ", "), h.GetAuth())
		}
		return g.Write(a.out)
	})
}
