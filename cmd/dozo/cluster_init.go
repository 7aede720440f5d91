package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func newClusterInit(a *app) *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use: "init --config FILE", Short: "Make a cluster whose first node is this host",
		Long: `Make a new cluster whose first node is the one of the configuration FILE: its certificate authority, the node's
certificate and the first voter of the control store. Then start dozo serve with the same FILE, make tokens with dozo
cluster token create, and join the other nodes.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return clusterInit(cmd.Context(), a, o) },
	}
	c.Flags().StringVar(&o.Config, "config", "", "the node's configuration `file`")
	c.Flags().StringVar(&o.Name, "name", "", "the cluster's `name` (default that of the configuration)")
	return c
}

func clusterInit(ctx context.Context, a *app, o initOptions) error {
	if o.Config == "" {
		return usageError{errors.New("give --config of the first node")}
	}
	if a.fn.clusterInit == nil {
		return notBuilt("cluster init")
	}
	return a.fn.clusterInit(ctx, o, a.out)
}
