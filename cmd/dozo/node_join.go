package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"dozo/internal/pki"
)

type nodeJoin struct {
	tokenFile string
	joinOptions
}

func newNodeJoin(a *app) *cobra.Command {
	var o nodeJoin
	c := &cobra.Command{
		Use: "join --token TOKEN --endpoint https://HOST:7070 --config FILE", Short: "Make this host a node of a cluster",
		Long: `Make this host a node of a cluster: fetch the certificate and what else the node of the configuration FILE needs, from
any node of the cluster. The token comes from dozo cluster token create; it also names the cluster's CA, so that nobody
else is trusted with it. Then start dozo serve (or dozo witness) with the same FILE.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Endpoints = a.source.Flags.Endpoints
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.Token, "token", "", "the `token`; other users of this host may see it: prefer --join-token-file")
	c.Flags().StringVar(&o.tokenFile, "join-token-file", "", "`file` with the token; - is standard input")
	c.Flags().StringVar(&o.Config, "config", "", "the node's configuration `file`")
	return c
}

func (o *nodeJoin) run(ctx context.Context, a *app) error {
	if (o.Token == "") == (o.tokenFile == "") {
		return usageError{errors.New("give either --token or --join-token-file")}
	}
	if len(o.Endpoints) == 0 || o.Config == "" {
		return usageError{errors.New("give --endpoint of a node of the cluster and --config of this one")}
	}
	if o.tokenFile != "" {
		text, err := readSecret(o.tokenFile, a.in)
		if err != nil {
			return err
		}
		o.Token = text
	}
	if _, err := pki.ParseJoinToken(o.Token); err != nil {
		return usageError{err}
	}
	if a.fn.nodeJoin == nil {
		return notBuilt("node join")
	}
	return a.fn.nodeJoin(ctx, o.joinOptions, a.out)
}
