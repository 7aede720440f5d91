package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type sessionList struct{ req dozov1.ListSessionsRequest }

func newSessionList(a *app) *cobra.Command {
	var o sessionList
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the sessions of all access servers", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().StringVar(&o.req.Volume, "volume", "", "only of this `volume`")
	c.Flags().StringVar(&o.req.Host, "host", "", "only of this `host`")
	c.Flags().StringVar(&o.req.Node, "node", "", "only of this access `server`")
	a.completeFlag(c, "volume", volumeNames(c))
	a.completeFlag(c, "host", hostNames(c))
	a.completeFlag(c, "node", nodeNames)
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *sessionList) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Sessions.List(ctx, &o.req)
		if err != nil {
			return err
		}
		if len(resp.GetUnheard()) > 0 {
			fmt.Fprintf(a.err, "dozo: not asked, as they can not be reached: %s\n", strings.Join(resp.GetUnheard(), ", "))
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetSessions())
		}
		g := view.NewGrid("ID", "NODE", "VOLUME", "INITIATOR", "FROM", "AUTH", "SINCE", "READ", "WRITTEN")
		for _, s := range resp.GetSessions() {
			g.Row(s.GetId(), s.GetNode(), s.GetVolume(), s.GetInitiatorName(), strings.Join(s.GetPeers(), ", "), strings.TrimSpace(s.GetAuth()+" "+s.GetAuthDigest()), when(s.GetEstablished()),
				size.Format(s.GetReadBytes()), size.Format(s.GetWrittenBytes()))
		}
		return g.Write(a.out)
	})
}
