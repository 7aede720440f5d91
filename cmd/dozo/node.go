package main

import (
	"context"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

func newNode(a *app) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Show, add and remove nodes"}
	c.AddCommand(newNodeList(a), newNodeJoin(a), newNodeRevoke(a), newNodeRemove(a), newNodeDrain(a), newNodeUndrain(a))
	return c
}

func nodeNames(ctx context.Context, c *api.Client) []string {
	resp, err := c.Nodes.List(ctx, &dozov1.ListNodesRequest{})
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range resp.GetNodes() {
		out = append(out, n.GetName()+"\t"+n.GetState()+" at "+n.GetSite())
	}
	return out
}

func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, nodeNames)
}
