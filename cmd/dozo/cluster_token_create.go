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
)

type clusterTokenCreate struct {
	api, role, node string
	witness         bool
	ttl             time.Duration
}

func newClusterTokenCreate(a *app) *cobra.Command {
	var o clusterTokenCreate
	c := &cobra.Command{
		Use: "create [--node NAME | --api NAME --role ROLE]", Short: "Make a token",
		Long: `Make a token with which one node may join the cluster, once, within an hour or --ttl: give it to dozo node join.
With --api, a token for the API instead: NAME is who the audit log says it was, and the token holds until --ttl or until
it is revoked. The token is a secret and is shown only now.`,
		Example: "  dozo cluster token create --node s2n1\n  dozo cluster token create --api backup --role viewer --ttl 720h",
		Args:    names(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	f := c.Flags()
	f.StringVar(&o.node, "node", "", "the only `name` that may join with it (default any new one)")
	f.BoolVar(&o.witness, "witness", false, "for a witness: a voter of the control store and nothing else")
	f.StringVar(&o.api, "api", "", "`name` of a user of the API")
	f.StringVar(&o.role, "role", "", "with --api: admin, operator or viewer (default viewer)")
	f.DurationVar(&o.ttl, "ttl", 0, "how long it may be used (default 1h to join, for ever with --api)")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"admin", "operator", "viewer"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (o *clusterTokenCreate) run(ctx context.Context, a *app) error {
	if o.api != "" && (o.node != "" || o.witness) {
		return usageError{errors.New("--api is for users, --node and --witness are for nodes: give one kind")}
	}
	if o.api == "" && o.role != "" {
		return usageError{errors.New("--role is for a user of the API: give --api NAME too")}
	}
	if o.ttl < 0 {
		return usageError{fmt.Errorf("--ttl %v: want more than 0", o.ttl)}
	}
	return a.with(func(c *api.Client) error {
		if o.api == "" {
			return o.join(ctx, a, c)
		}
		req := &dozov1.CreateTokenRequest{Name: o.api, Role: o.role, Ttl: ttl(o.ttl)}
		if req.Role == "" {
			req.Role = "viewer"
		}
		resp, err := c.Cluster.CreateToken(ctx, req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, resp)
		}
		_, err = fmt.Fprintln(a.out, resp.GetSecret())
		return err
	})
}

func (o *clusterTokenCreate) join(ctx context.Context, a *app, c *api.Client) error {
	req := &dozov1.CreateJoinTokenRequest{Node: o.node, Ttl: ttl(o.ttl)}
	if o.witness {
		req.Role = "witness"
	}
	resp, err := c.Nodes.CreateToken(ctx, req)
	if err != nil {
		return err
	}
	if a.format != view.Table {
		return a.format.Message(a.out, resp)
	}
	_, err = fmt.Fprintln(a.out, resp.GetToken())
	return err
}
