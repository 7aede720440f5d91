package node

import (
	"context"
	"slices"

	"dozo/internal/access"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/peer"
	"dozo/internal/wire"
)

// This part of Node finds stores and other nodes: it is access.Stores, and peer.Handler by way of handler.

// addrOf says how to reach a node: by its cluster address within the site, else by its address for other sites.
func (n *Node) addrOf(x control.Node) peer.Addr {
	same := x.Site != 0 && x.Site == n.self.Load().Site
	at := x.Addrs.Wan
	if same || !at.IsValid() {
		at = x.Addrs.Cluster
	}
	return peer.Addr{Node: x.Name, Cluster: at.String(), Plain: same && n.cfg.PlainData, Near: same}
}

func (n *Node) peerOf(x control.Node) *peer.Peer { return n.pool.Peer(n.addrOf(x)) }

// accessPeer finds another node's access server.
func (n *Node) accessPeer(name ident.NodeName) (access.Peer, bool) {
	x, ok := n.control().Node(name)
	if !ok || name == n.cfg.Node {
		return nil, false
	}
	return n.peerOf(x), true
}

// Store implements access.Stores.
func (n *Node) Store(id ident.StoreID) (journal.Store, bool) {
	if st, here := n.stores[id]; here {
		return st, true
	}
	c := n.control()
	if c == nil || n.pool == nil {
		return nil, false
	}
	x, ok := c.NodeOfStore(id)
	if !ok {
		return nil, false
	}
	if x.Site != n.self.Load().Site {
		return n.pool.BulkStore(id, n.addrOf(x)), true
	}
	return n.pool.Store(id, n.addrOf(x)), true
}

// Local implements access.Stores.
func (n *Node) Local(id ident.StoreID) bool { _, here := n.stores[id]; return here }

// Up implements access.Stores.
func (n *Node) Up(id ident.StoreID) bool {
	if st, here := n.stores[id]; here {
		return st.Failed() == ""
	}
	x, ok := n.control().NodeOfStore(id)
	return ok && n.peerOf(x).Up()
}

// Site implements access.Stores.
func (n *Node) Site(id ident.StoreID) ident.SiteID {
	x, _ := n.control().NodeOfStore(id)
	return x.Site
}

// Host implements access.Stores.
func (n *Node) Host(id ident.StoreID) string {
	x, _ := n.control().NodeOfStore(id)
	return x.HostID
}

// Core implements access.Stores.
func (n *Node) Core(site ident.SiteID) (list []ident.StoreID) {
	for _, x := range n.control().Nodes() {
		if x.Site == site && x.Has(control.RoleCore) {
			for _, s := range x.Stores {
				list = append(list, s.ID)
			}
		}
	}
	slices.SortFunc(list, ident.StoreID.Compare)
	return list
}

// localLeases asks this process's own stores.
type localLeases struct{ *core.Leases }

func (l localLeases) Lease(ctx context.Context, m *wire.Lease) (wire.LeaseReply, error) {
	return l.Handle(ctx, m)
}

// handler is peer.Handler.
type handler struct{ n *Node }

// Store gives what other sites write to with a bound on how long they wait for its disk: how far away they are they can't leave out of it.
// Who is near has a clock of his own.
func (h handler) Store(id ident.StoreID, class wire.Class) journal.Store {
	if st, here := h.n.bounded[id]; here && class == wire.ClassBulk {
		return st
	}
	if st, here := h.n.stores[id]; here {
		return st
	}
	return nil
}

func noAccess(n *Node) error {
	return wire.Errorf(wire.CodeNotOwner, "node %s is no access server", n.cfg.Node)
}

func (h handler) Forward(from *peer.From, m *wire.Forward, done func(wire.ForwardReply, error)) {
	if h.n.access == nil {
		done(wire.ForwardReply{}, noAccess(h.n))
		return
	}
	h.n.access.Forward(from.Node, m, done)
}

func (h handler) Lease(ctx context.Context, from *peer.From, m *wire.Lease) (wire.LeaseReply, error) {
	if m.Owner != from.Node {
		return wire.LeaseReply{}, wire.Errorf(wire.CodeDenied, "node %s asks for a lease in the name of %s", from.Node, m.Owner)
	}
	if h.n.leases == nil {
		return wire.LeaseReply{}, wire.Errorf(wire.CodeAbsent, "node %s is no core server", h.n.cfg.Node)
	}
	return h.n.leases.Handle(ctx, m)
}

func (h handler) Bar(ctx context.Context, _ *peer.From, m *wire.Bar) (wire.BarReply, error) {
	if h.n.access == nil {
		return wire.BarReply{}, noAccess(h.n)
	}
	return h.n.access.Bar(ctx, m)
}

func (h handler) Tick(ctx context.Context, _ *peer.From, m *wire.Tick) (wire.TickReply, error) {
	if h.n.access == nil {
		return wire.TickReply{}, noAccess(h.n)
	}
	return h.n.access.Tick(ctx, m)
}

func (h handler) Unit(ctx context.Context, _ *peer.From, m *wire.Unit) (wire.UnitReply, error) {
	if h.n.access == nil {
		return wire.UnitReply{}, noAccess(h.n)
	}
	return h.n.access.Unit(ctx, m)
}

func (h handler) HandOver(ctx context.Context, from *peer.From, m *wire.HandOver) (wire.HandOverReply, error) {
	if h.n.access == nil {
		return wire.HandOverReply{}, noAccess(h.n)
	}
	return h.n.access.HandOver(ctx, from.Node, m)
}

func (h handler) OwnerStatus(ctx context.Context, _ *peer.From, m *wire.OwnerStatus) (wire.OwnerStatusReply, error) {
	if h.n.access == nil {
		return wire.OwnerStatusReply{}, noAccess(h.n)
	}
	return h.n.access.OwnerStatus(ctx, m)
}

func (h handler) Blocks(ctx context.Context, _ *peer.From, m *wire.Blocks) (wire.BlocksReply, error) {
	return h.n.blocks(ctx, m), nil
}

func (h handler) Troubles(_ context.Context, from *peer.From, m *wire.Troubles) (wire.TroublesReply, error) {
	return h.n.troublesFor(from.Node, m), nil
}
