package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type hostAdd struct {
	chap chapFlags
	req  dozov1.AddHostRequest
}

func newHostAdd(a *app) *cobra.Command {
	var o hostAdd
	c := &cobra.Command{
		Use: "add NAME --initiator IQN", Short: "Add a host",
		Example: "  dozo host add hv1 --initiator iqn.1993-08.org.debian:01:abc --cidr 10.1.0.0/24 \\\n    --chap-user hv1 --chap-secret-file hv1.secret",
		Args:    names("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Name = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringSliceVar(&o.req.InitiatorNames, "initiator", nil, "`name` of its initiator (iqn., eui. or naa.); may be repeated")
	c.Flags().StringSliceVar(&o.req.Cidrs, "cidr", nil, "`subnet` from which it may log in; may be repeated (default anywhere)")
	o.chap.register(c)
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *hostAdd) run(ctx context.Context, a *app) (err error) {
	if o.req.Chap, err = o.chap.read(a.in); err != nil {
		return err
	}
	return a.with(func(c *api.Client) error {
		resp, err := c.Hosts.Add(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printHost(resp.GetHost(), "added")
	})
}
