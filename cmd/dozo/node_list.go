package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

type nodeList struct{ req dozov1.ListNodesRequest }

func newNodeList(a *app) *cobra.Command {
	var o nodeList
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List nodes", Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	c.Flags().StringVar(&o.req.Site, "site", "", "only this `site`'s")
	a.completeFlag(c, "site", siteNames)
	return c
}

func (o *nodeList) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		resp, err := c.Nodes.List(ctx, &o.req)
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return view.List(a.format, a.out, resp.GetNodes())
		}
		g := view.NewGrid("NAME", "SITE", "ADDRESS", "ROLES", "STATE", "PID", "VOTER", "USED", "CAPACITY", "VERSION")
		for _, n := range resp.GetNodes() {
			used, capacity := nodeSpace(n.GetStores())
			voter, pid := "", ""
			if n.GetVoter() {
				voter = "yes"
			}
			state := n.GetState()
			if n.GetDraining() {
				state += ", draining"
			}
			if n.GetPid() != 0 {
				pid = number(n.GetPid())
			}
			g.Row(n.GetName(), n.GetSite(), n.GetAddress(), strings.Join(n.GetRoles(), ","), state, pid, voter, size.Format(used), size.Format(capacity), n.GetVersion())
		}
		return g.Write(a.out)
	})
}

// nodeSpace is what the stores of a node use and have together. Those on one file system have no more than that has.
func nodeSpace(stores []*dozov1.NodeStore) (used, capacity uint64) {
	shared := map[uint64]uint64{} // capacity on each file system
	for _, s := range stores {
		used += s.GetUsedBytes()
		fs := s.GetFileSystem()
		if fs == 0 {
			capacity += s.GetCapacityBytes() // its node does not run, or is older than this program
			continue
		}
		before := shared[fs]
		shared[fs] = min(before+s.GetCapacityBytes(), max(s.GetFileSystemBytes(), before))
		capacity += shared[fs] - before
	}
	return used, capacity
}
