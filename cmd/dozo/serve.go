package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"dozo/internal/sysmon"
)

func newServe(a *app) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "serve --config FILE", Short: "Run a node",
		Long: `Run the node of the configuration FILE until it is told to end by SIGTERM or ctrl-C. It logs to standard error.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), a, config) },
	}
	c.Flags().StringVar(&config, "config", "", "the node's configuration `file`")
	return c
}

func serve(ctx context.Context, a *app, config string) error {
	if config == "" {
		return usageError{errors.New("give --config")}
	}
	if a.fn.serve == nil {
		return notBuilt("serve")
	}
	// Without it the node works as well, only slower.
	if err := sysmon.KeepAwake(); err != nil {
		fmt.Fprintln(a.err, "dozo: start anew for lower latency:", err)
	}
	return a.fn.serve(ctx, config, a.err)
}
