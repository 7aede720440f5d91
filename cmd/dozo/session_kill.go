package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

type sessionKill struct{ req dozov1.KillSessionRequest }

func newSessionKill(a *app) *cobra.Command {
	var o sessionKill
	return &cobra.Command{
		Use: "kill ID", Short: "End a session", Long: "End a session: its connections are closed. The initiator may log in again, and usually does by itself.",
		Args: names("ID"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.complete(cmd, args, sessionIDs)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Id = args[0]
			return o.run(cmd.Context(), a)
		},
	}
}

func (o *sessionKill) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		_, err := c.Sessions.Kill(ctx, &o.req)
		return a.done(err, "ended session "+o.req.GetId())
	})
}
