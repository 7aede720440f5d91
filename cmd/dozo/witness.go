package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func newWitness(a *app) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "witness --config FILE", Short: "Run a witness",
		Long: `Run a witness: a voter of the control store and nothing else, for clusters of two sites or of two servers. It keeps no data
of volumes, and may be anywhere.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return witness(cmd.Context(), a, config) },
	}
	c.Flags().StringVar(&config, "config", "", "the node's configuration `file`")
	return c
}

func witness(ctx context.Context, a *app, config string) error {
	if config == "" {
		return usageError{errors.New("give --config")}
	}
	if a.fn.witness == nil {
		return notBuilt("witness")
	}
	return a.fn.witness(ctx, config, a.err)
}
