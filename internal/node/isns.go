package node

import (
	"context"

	"dozo/internal/access/export"
	"dozo/internal/access/isns"
)

// registerISNS keeps the configured iSNS servers informed of this node's portals and of all targets, until the context
// ends; then it takes the portals out.
func (n *Node) registerISNS(ctx context.Context) error {
	if len(n.cfg.ISNS.Servers) == 0 {
		return nil
	}
	cluster, err := n.control().Cluster()
	if err != nil {
		return err
	}
	var portals []isns.Portal
	for _, p := range n.cfg.Portals {
		portals = append(portals, isns.Portal{Addr: p.AddrPort(), Group: n.self.Load().TPGT})
	}
	for _, server := range n.cfg.ISNS.Servers {
		c := isns.New(isns.Config{
			Server: server.String(), Entity: "dozo-" + cluster.ID, Portals: portals, Log: n.log,
			Targets: n.isnsTargets, Changed: n.control().Subscribe,
		})
		n.wg.Go(func() { c.Run(ctx) })
	}
	return nil
}

// isnsTargets lists the targets of all volumes.
func (n *Node) isnsTargets() (list []isns.Target) {
	for _, v := range n.control().Volumes() {
		if v.Deleted == nil && v.Cloning == nil {
			list = append(list, isns.Target{Name: export.IQN(v.ID), Alias: v.Name})
		}
	}
	return list
}
