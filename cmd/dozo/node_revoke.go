package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type nodeRevoke struct {
	req dozov1.RevokeRequest
}

func newNodeRevoke(a *app) *cobra.Command {
	var o nodeRevoke
	c := &cobra.Command{
		Use: "revoke NAME | --serial N", Short: "Make a node's certificates count no more",
		Long: `Make all certificates of a node count no more, or one by its serial number: for a host that was stolen, or a key that
leaked. Connections made with them end.`,
		Args: someNames(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.req.Node = args[0]
			}
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Serial, "serial", "", "serial `number` in hexadecimal, in place of a name")
	c.Flags().StringVar(&o.req.Reason, "reason", "", "`text` for the audit log")
	return c
}

func (o *nodeRevoke) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Nodes.Revoke(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, resp)
		}
		return a.done(nil, "revoked "+strings.Join(resp.GetSerials(), ", "))
	})
}
