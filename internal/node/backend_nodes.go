package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/pki"
	"dozo/internal/wire"
)

// States of a node in the API.
const (
	nodeUp       = "up"
	nodeStarting = "starting"
	nodeDown     = "down"
	nodeUnknown  = "unknown"
)

// States of a store in the API.
const (
	storeOK      = "ok"
	storeFull    = "full"
	storeFailed  = "failed"
	storeUnknown = "unknown"
)

// nodeMessage is what the control store knows of a node.
func (b *backend) nodeMessage(x control.Node) *dozov1.Node {
	out := &dozov1.Node{Name: string(x.Name), Site: b.siteName(x.Site), State: nodeUnknown, Version: x.Version, HostId: x.HostID,
		ClusterAddress: addrText(x.Addrs.Cluster), WanAddress: addrText(x.Addrs.Wan), ManagementAddress: addrText(x.Addrs.Management),
		Voter: x.Voter, Tpgt: uint32(x.TPGT), Draining: x.Draining, Leaving: x.Leaving}
	if c := b.n.control(); c != nil {
		out.Volumes = owned(c, x.Name)
	}
	for _, r := range x.Roles {
		out.Roles = append(out.Roles, string(r))
	}
	for _, p := range x.Addrs.Portals {
		out.Portals = append(out.Portals, p.Addr.String())
	}
	// The main address is the one that clients use, where there is one.
	switch {
	case len(x.Addrs.Portals) > 0:
		out.Address = x.Addrs.Portals[0].Addr.Addr().String()
	case x.Addrs.Cluster.IsValid():
		out.Address = x.Addrs.Cluster.Addr().String()
	case x.Addrs.Management.IsValid():
		out.Address = x.Addrs.Management.Addr().String()
	}
	for _, s := range x.Stores {
		out.Stores = append(out.Stores, &dozov1.NodeStore{Id: s.ID.String(), Label: s.Label, CapacityBytes: uint64(s.CapacityBytes), State: storeUnknown})
	}
	return out
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// ownNode is this node with what only it knows.
func (b *backend) ownNode(ctx context.Context, c *control.Client) (*dozov1.Node, error) {
	x, ok := c.Node(b.n.cfg.Node)
	if !ok {
		if x = *b.n.self.Load(); x.Name == "" {
			return nil, fmt.Errorf("node %s: %w", b.n.cfg.Node, control.ErrNotFound)
		}
	}
	out := b.nodeMessage(x)
	out.Pid, out.Started, out.State = int64(os.Getpid()), timestamppb.New(b.n.started), nodeStarting
	if h := b.Health(); h.Ready {
		out.State = nodeUp
	}
	if b.n.access != nil {
		strays, bytes := b.n.access.Strays()
		out.StrayReplicas, out.StrayBytes = uint64(strays), bytes
	}
	out.UnknownJournals = b.n.strangers.Load()
	out.VoterProblem = b.n.voterTrouble()
	for _, s := range out.Stores {
		id, err := ident.ParseStoreID(s.Id)
		if err != nil {
			continue
		}
		st, here := b.n.stores[id]
		if !here {
			continue
		}
		s.Path = st.Dir()
		status, err := st.Status(ctx, &wire.StoreStatus{})
		if err != nil {
			continue
		}
		s.CapacityBytes, s.UsedBytes = status.Capacity, status.Used
		if x, err := st.Blocks(ctx); err == nil {
			s.FileSystem, s.FileSystemBytes = x.FileSystem, x.FileSystemBytes
		}
		s.State = b.storeState(st, &status)
	}
	return out, nil
}

// storeState judges a store of this node by what it says.
func (b *backend) storeState(st *core.Store, status *wire.StoreStatusReply) string {
	switch {
	case status.Failed != "":
		return storeFailed
	case status.Free <= b.reserve(st.Dir()):
		return storeFull
	}
	return storeOK
}

// reserve is what must stay free where a store is.
func (b *backend) reserve(dir string) uint64 {
	for _, s := range b.n.cfg.Stores {
		if s.Path == dir {
			return uint64(max(0, s.Reserve))
		}
	}
	return 0
}

// ListNodes implements api.Nodes. Every node is asked for what only it knows; of one that does not answer there
// is what it registered.
func (b *backend) ListNodes(ctx context.Context, req *dozov1.ListNodesRequest) ([]*dozov1.Node, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	if req.Local {
		x, err := b.ownNode(ctx, c)
		if err != nil {
			return nil, err
		}
		return []*dozov1.Node{x}, nil
	}
	var site ident.SiteID
	if req.Site != "" {
		s, ok := c.SiteByName(req.Site)
		if !ok {
			return nil, fmt.Errorf("site %s: %w", req.Site, control.ErrNotFound)
		}
		site = s.ID
	}
	var out []*dozov1.Node
	for _, a := range askNodes(ctx, siteNodes(c, site), func(ctx context.Context, x control.Node) (found *dozov1.Node, _ error) {
		if x.Name == b.n.cfg.Node {
			return b.ownNode(ctx, c)
		}
		err := b.n.callNode(ctx, x, func(ctx context.Context, api *api.Client) error {
			r, err := api.Nodes.List(ctx, &dozov1.ListNodesRequest{Local: true})
			if err == nil && len(r.GetNodes()) == 1 {
				found = r.Nodes[0]
			}
			return err
		})
		if err == nil && found == nil {
			err = fmt.Errorf("node %s says nothing of itself: %w", x.Name, api.ErrUnavailable)
		}
		if err != nil {
			found = b.nodeMessage(x)
			found.State = b.stateOfSilent(ctx, c, x, err)
		}
		return found, nil
	}) {
		if a.err != nil {
			return nil, a.err
		}
		out = append(out, a.value)
	}
	slices.SortFunc(out, func(a, b *dozov1.Node) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// stateOfSilent judges a node whose API does not answer as it should.
func (b *backend) stateOfSilent(ctx context.Context, c *control.Client, x control.Node, err error) string {
	b.n.log.Debug("node does not answer", "peer", x.Name, "err", err)
	connected, _ := c.Connected()
	switch {
	case api.Reason(err) == "UNAVAILABLE":
		return nodeStarting // it answers, and has not reached the control store
	case b.framesAnswered(ctx, x):
		return nodeUp // only its API is away
	case connected:
		return nodeDown
	}
	return nodeUnknown
}

// framesTimeout bounds the question whether a node answers frames: within a site it takes well below a
// millisecond, to the far side of the earth 200.
const framesTimeout = time.Second

// framesAnswered asks a node by another way than its API. That a connection stands proves little: a paused node's
// does for a while.
func (b *backend) framesAnswered(ctx context.Context, x control.Node) bool {
	if b.n.pool == nil || !x.Addrs.Cluster.IsValid() || x.Has(control.RoleWitness) {
		return false
	}
	p := b.n.peerOf(x)
	if !p.Up() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, framesTimeout)
	defer cancel()
	_, err := p.Tick(ctx, &wire.Tick{})
	return err == nil || ctx.Err() == nil && !errors.Is(err, wire.ErrUnreached)
}

// CreateJoinToken implements api.Nodes.
func (b *backend) CreateJoinToken(ctx context.Context, req *dozov1.CreateJoinTokenRequest) (*dozov1.CreateJoinTokenResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	t, rec, err := pki.NewJoinToken(b.n.id.Fingerprint(), pki.Role(req.Role), req.Node, time.Now(), req.Ttl.AsDuration())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	rec.By = control.ActorFrom(ctx)
	if err := c.PutJoinToken(ctx, rec); err != nil {
		return nil, err
	}
	return &dozov1.CreateJoinTokenResponse{Token: t.String(), Expires: timestamppb.New(rec.Expires)}, nil
}

// RemoveNode implements api.Nodes.
func (b *backend) RemoveNode(ctx context.Context, req *dozov1.RemoveNodeRequest) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	x, ok := c.Node(ident.NodeName(req.Node))
	if !ok {
		return b.finishTakeOut(ctx, c, ident.NodeName(req.Node), false)
	}
	if x.Name == b.n.cfg.Node {
		return fmt.Errorf("node %s can not remove itself: stop it and ask another node: %w", x.Name, api.ErrRefused)
	}
	if err := b.n.callNode(ctx, x, func(ctx context.Context, api *api.Client) error {
		r, err := api.Health(ctx)
		if err != nil {
			return err
		}
		return r.Body.Close()
	}); err == nil {
		return fmt.Errorf("node %s runs: stop it first, or it would register again: %w", x.Name, api.ErrRefused)
	}
	if n, name := neededOf(c, x); n > 0 && !req.Force {
		return fmt.Errorf("stores of node %s may hold replicas of %d volumes, such as %s; with force they are declared lost, and made anew from the other copies: %w",
			x.Name, n, name, control.ErrInUse)
	}
	// An operator's word: from now on nobody waits for them, and they are never taken back (R3, R13).
	for _, s := range x.Stores {
		if !req.Force {
			break
		}
		if _, err := c.LoseStore(ctx, s.ID); err != nil {
			return err
		}
	}
	b.replaceVoter(ctx, c, x) // it joins once the one that is gone is out
	return b.takeOut(ctx, c, x, nil)
}

// neededOf counts the journals of which a node's stores may hold replicas: those that list one of its stores,
// and those that have a copy at its site. It names one of them.
func neededOf(c *control.Client, x control.Node) (n int, name string) {
	if len(x.Stores) == 0 {
		return 0, ""
	}
	for _, id := range c.Journals() {
		state, _, _ := c.Journal(id)
		listed := slices.Contains(state.Sites, x.Site) || slices.ContainsFunc(state.Ensembles, func(e control.Ensemble) bool {
			return slices.ContainsFunc(e.Stores, func(s ident.StoreID) bool {
				return slices.ContainsFunc(x.Stores, func(own control.StoreSpec) bool { return own.ID == s })
			})
		})
		if v, ok := c.Volume(id); listed && ok && v.Deleted == nil {
			n, name = n+1, v.Tenant+"/"+v.Name
		}
	}
	return n, name
}

// voterNote says what becomes of the vote of a node that goes.
func (b *backend) voterNote(c *control.Client, x control.Node) string {
	if next, ok := control.ReplaceVoter(c.Sites(), c.Nodes(), x.Name); ok && c.Level() >= control.LevelVoting {
		return fmt.Sprintf("node %s gets a voter of the control store in the place of the one at %s", next.Name, x.Name)
	}
	voters := 0
	for _, y := range c.Nodes() {
		if y.Voter && y.Name != x.Name {
			voters++
		}
	}
	return fmt.Sprintf("the control store is left with %d voters: no other node can have one in the place of %s", voters, x.Name)
}

// replaceVoter has another node become a voter because a node goes, and names it; false if there is none to be had.
func (b *backend) replaceVoter(ctx context.Context, c *control.Client, x control.Node) (control.Node, bool) {
	if b.n.cfg.Control.External {
		return control.Node{}, false
	}
	next, ok := control.ReplaceVoter(c.Sites(), c.Nodes(), x.Name)
	if !ok {
		return next, false
	}
	if _, err := c.SetVoting(ctx, next.Name); err != nil {
		b.n.log.Warn("no voter in the place of one that goes", "goes", x.Name, "next", next.Name, "err", err)
		return next, false
	}
	return next, true
}

// Patience with a voter that joins: etcd wants to have seen the others for five seconds before it takes one more.
const (
	voterPatience = 30 * time.Second
	voterLook     = 200 * time.Millisecond
)

// awaitVoter waits until a node's voter has its vote, and the node says that it has one.
func (b *backend) awaitVoter(ctx context.Context, x control.Node) error {
	ctx, cancel := context.WithTimeout(ctx, voterPatience)
	defer cancel()
	admin, err := b.n.openAdmin()
	if err != nil {
		return err
	}
	defer admin.Close()
	for {
		list, err := admin.Voters(ctx)
		i := slices.IndexFunc(list, func(v control.Voter) bool { return v.Name == x.Name && !v.Learner })
		if self, ok := b.n.control().Node(x.Name); err == nil && i >= 0 && ok && self.Voter {
			return nil
		}
		select {
		case <-time.After(voterLook):
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("node %s has no vote of the control store after %v; it goes on trying", x.Name, voterPatience)
			}
			return err
		}
	}
}

// removeVoter takes a node's voter out of the embedded control store.
func (b *backend) removeVoter(ctx context.Context, name ident.NodeName) error {
	admin, err := b.n.openAdmin()
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := admin.RemoveVoter(ctx, name); err != nil && !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}
