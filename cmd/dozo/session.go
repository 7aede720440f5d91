package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

func newSession(a *app) *cobra.Command {
	c := &cobra.Command{Use: "session", Short: "Show and end the sessions of initiators"}
	c.AddCommand(newSessionList(a), newSessionKill(a), newSessionAccept(a))
	return c
}

func sessionIDs(ctx context.Context, c *api.Client) []string {
	resp, err := c.Sessions.List(ctx, &dozov1.ListSessionsRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range resp.GetSessions() {
		out = append(out, s.GetId()+"\t"+s.GetInitiatorName()+" "+s.GetVolume())
	}
	return out
}
