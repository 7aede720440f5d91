package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
)

type nodeRevoke struct {
	req dozov1.RevokeRequest
	yes bool
}

func newNodeRevoke(a *app) *cobra.Command {
	var o nodeRevoke
	c := &cobra.Command{
		Use: "revoke NAME | --serial N", Short: "Make a node's certificates count no more",
		Long: `Make all certificates of a node count no more, or one by its serial number: for a host that was stolen, or a key that
leaked. Connections made with them end. It can not be taken back: a node that is to go on needs new ones, by
dozo node join.`,
		Args: someNames(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.req.Node = args[0]
			}
			if (o.req.Node == "") == (o.req.Serial == "") {
				return usageError{errors.New("give the name of a node, or --serial")}
			}
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Serial, "serial", "", "serial `number` in hexadecimal, in place of a name")
	c.Flags().StringVar(&o.req.Reason, "reason", "", "`text` for the audit log")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return c
}

func (o *nodeRevoke) run(ctx context.Context, a *app) error {
	what, end := "The certificates of node "+o.req.GetNode(), "what it owns is taken over"
	if o.req.GetNode() == "" {
		what, end = "The certificate "+o.req.GetSerial(), "a node that has no other is cut off"
	}
	if err := a.confirm(o.yes, fmt.Sprintf("%s will never count again: connections made with it end, and %s.", what, end)); err != nil {
		return err
	}
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
