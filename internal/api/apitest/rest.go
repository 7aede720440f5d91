package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/pki"
)

func clones[M proto.Message](in []M, keep func(M) bool) []M {
	var out []M
	for _, m := range in {
		if keep(m) {
			out = append(out, proto.CloneOf(m))
		}
	}
	return out
}

// AddHost implements api.Hosts.
func (b *Backend) AddHost(ctx context.Context, req *dozov1.AddHostRequest) (*dozov1.Host, error) {
	if err := b.enter("AddHost"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hosts {
		if h.GetTenant() == req.GetTenant() && h.GetName() == req.GetName() {
			return nil, fmt.Errorf("host %s/%s: %w", h.GetTenant(), h.GetName(), control.ErrExists)
		}
	}
	h := &dozov1.Host{Tenant: req.GetTenant(), Name: req.GetName(), InitiatorNames: req.GetInitiatorNames(), Cidrs: req.GetCidrs(), Created: timestamppb.New(Epoch)}
	b.setChapLocked(h, req.GetChap())
	b.hosts = append(b.hosts, h)
	b.eventLocked(ctx, "host.add", "host/"+h.GetTenant()+"/"+h.GetName())
	return proto.CloneOf(h), nil
}

func (b *Backend) setChapLocked(h *dozov1.Host, c *dozov1.ChapCredentials) {
	h.ChapInUser, h.ChapOutUser, h.Auth = c.GetInUser(), c.GetOutUser(), "none"
	if h.GetChapInUser() != "" {
		h.Auth = "chap"
	}
	if h.GetChapOutUser() != "" {
		h.Auth = "mutual"
	}
	b.secrets[h.GetTenant()+"/"+h.GetName()] = c.GetInSecret()
}

// ListHosts implements api.Hosts.
func (b *Backend) ListHosts(_ context.Context, req *dozov1.ListHostsRequest) ([]*dozov1.Host, error) {
	if err := b.enter("ListHosts"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return clones(b.hosts, func(h *dozov1.Host) bool { return req.GetTenant() == "" || h.GetTenant() == req.GetTenant() }), nil
}

// SetHostChap implements api.Hosts.
func (b *Backend) SetHostChap(ctx context.Context, req *dozov1.SetChapRequest) (*dozov1.Host, error) {
	if err := b.enter("SetHostChap"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hosts {
		if h.GetTenant() == req.GetTenant() && h.GetName() == req.GetHost() {
			b.setChapLocked(h, req.GetChap())
			b.eventLocked(ctx, "host.update", "host/"+h.GetTenant()+"/"+h.GetName())
			return proto.CloneOf(h), nil
		}
	}
	return nil, fmt.Errorf("host %s/%s: %w", req.GetTenant(), req.GetHost(), control.ErrNotFound)
}

// Discovery implements api.Hosts.
func (b *Backend) Discovery(context.Context) (*dozov1.Discovery, error) {
	if err := b.enter("Discovery"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.discover == nil {
		return &dozov1.Discovery{Auth: "none"}, nil
	}
	return proto.CloneOf(b.discover), nil
}

// SetDiscovery implements api.Hosts.
func (b *Backend) SetDiscovery(ctx context.Context, req *dozov1.SetDiscoveryRequest) (*dozov1.Discovery, error) {
	if err := b.enter("SetDiscovery"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Kept as a host's are.
	h := &dozov1.Host{Auth: "none", Name: "discovery"}
	b.setChapLocked(h, req.GetChap())
	b.discover = &dozov1.Discovery{Auth: h.GetAuth(), ChapInUser: h.GetChapInUser(), ChapOutUser: h.GetChapOutUser()}
	b.eventLocked(ctx, "discovery.set", "cluster")
	return proto.CloneOf(b.discover), nil
}

// DeleteHost implements api.Hosts.
func (b *Backend) DeleteHost(ctx context.Context, req *dozov1.DeleteHostRequest) error {
	if err := b.enter("DeleteHost"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.hosts)
	b.hosts = slices.DeleteFunc(b.hosts, func(h *dozov1.Host) bool {
		return h.GetTenant() == req.GetTenant() && h.GetName() == req.GetHost()
	})
	if len(b.hosts) == before {
		return fmt.Errorf("host %s/%s: %w", req.GetTenant(), req.GetHost(), control.ErrNotFound)
	}
	b.eventLocked(ctx, "host.delete", "host/"+req.GetTenant()+"/"+req.GetHost())
	return nil
}

// ListSessions implements api.Sessions.
func (b *Backend) ListSessions(_ context.Context, req *dozov1.ListSessionsRequest) ([]*dozov1.Session, []string, error) {
	if err := b.enter("ListSessions"); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return clones(b.sessions, func(s *dozov1.Session) bool {
		return (req.GetVolume() == "" || s.GetVolume() == req.GetVolume()) && (req.GetHost() == "" || s.GetHost() == req.GetHost()) && (req.GetNode() == "" || s.GetNode() == req.GetNode())
	}), nil, nil
}

// KillSession implements api.Sessions.
func (b *Backend) KillSession(_ context.Context, req *dozov1.KillSessionRequest) (*dozov1.Session, error) {
	if err := b.enter("KillSession"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, s := range b.sessions {
		if s.GetId() == req.GetId() {
			b.sessions = slices.Delete(b.sessions, i, i+1)
			return s, nil
		}
	}
	return nil, fmt.Errorf("session %s: %w", req.GetId(), control.ErrNotFound)
}

// AcceptSessions implements api.Sessions.
func (b *Backend) AcceptSessions(ctx context.Context, req *dozov1.AcceptSessionsRequest) ([]*dozov1.Port, error) {
	if err := b.enter("AcceptSessions"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.eventLocked(ctx, "session.accept", "volume/"+req.GetTenant()+"/"+req.GetVolume())
	return []*dozov1.Port{{InitiatorName: req.GetInitiatorName(), Isid: req.GetIsid()}}, nil
}

// ListNodes implements api.Nodes.
func (b *Backend) ListNodes(_ context.Context, req *dozov1.ListNodesRequest) ([]*dozov1.Node, error) {
	if err := b.enter("ListNodes"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return clones(b.nodes, func(n *dozov1.Node) bool { return req.GetSite() == "" || n.GetSite() == req.GetSite() }), nil
}

// CreateJoinToken implements api.Nodes.
func (b *Backend) CreateJoinToken(_ context.Context, req *dozov1.CreateJoinTokenRequest) (*dozov1.CreateJoinTokenResponse, error) {
	if err := b.enter("CreateJoinToken"); err != nil {
		return nil, err
	}
	t, rec, err := pki.NewJoinToken(pki.Fingerprint{}, pki.Role(req.GetRole()), req.GetNode(), Epoch, req.GetTtl().AsDuration())
	if err != nil {
		return nil, err
	}
	return &dozov1.CreateJoinTokenResponse{Token: t.String(), Expires: timestamppb.New(rec.Expires)}, nil
}

// Join implements api.Nodes: it knows no token.
func (b *Backend) Join(context.Context, *dozov1.JoinRequest) (*dozov1.JoinResponse, error) {
	return nil, fmt.Errorf("join token: %w: unknown, used or expired", pki.ErrBadToken)
}

// Renew implements api.Nodes.
func (b *Backend) Renew(ctx context.Context, _ *dozov1.RenewRequest) (*dozov1.RenewResponse, error) {
	return &dozov1.RenewResponse{Certificate: []byte(api.CallerFrom(ctx).Name)}, b.enter("Renew")
}

// Revoke implements api.Nodes.
func (b *Backend) Revoke(_ context.Context, req *dozov1.RevokeRequest) (*dozov1.RevokeResponse, error) {
	return &dozov1.RevokeResponse{Serials: []string{"01"}}, b.enter("Revoke")
}

// RemoveNode implements api.Nodes.
func (b *Backend) RemoveNode(ctx context.Context, req *dozov1.RemoveNodeRequest) error {
	if err := b.enter("RemoveNode"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.nodes, func(n *dozov1.Node) bool { return n.GetName() == req.GetNode() })
	if i < 0 {
		return fmt.Errorf("node %s: %w", req.GetNode(), control.ErrNotFound)
	}
	if !req.GetForce() {
		return fmt.Errorf("node %s: its stores hold replicas: %w", req.GetNode(), control.ErrInUse)
	}
	b.nodes = slices.Delete(b.nodes, i, i+1)
	b.eventLocked(ctx, "node.remove", "node/"+req.GetNode())
	return nil
}

// DecommissionNode implements api.Nodes.
func (b *Backend) DecommissionNode(ctx context.Context, req *dozov1.DecommissionNodeRequest, progress func(*dozov1.EmptyProgress) error) error {
	if err := b.enter("DecommissionNode"); err != nil {
		return err
	}
	b.mu.Lock()
	i := slices.IndexFunc(b.nodes, func(n *dozov1.Node) bool { return n.GetName() == req.GetNode() })
	b.mu.Unlock()
	if i < 0 {
		return fmt.Errorf("node %s: %w", req.GetNode(), control.ErrNotFound)
	}
	p := &dozov1.EmptyProgress{Phase: "planned", Volumes: 1, Replicas: 12, LeftBytes: 384 << 20, Ensembles: 1, Done: true}
	if req.GetDryRun() {
		return progress(p)
	}
	p.Phase, p.Done, p.RateBps, p.Eta = "copying", false, 128<<20, durationpb.New(3*time.Second)
	if err := progress(p); err != nil || req.GetNoWait() {
		return err
	}
	b.mu.Lock()
	b.nodes = slices.Delete(b.nodes, i, i+1)
	b.eventLocked(ctx, "node.remove", "node/"+req.GetNode())
	b.mu.Unlock()
	return progress(&dozov1.EmptyProgress{Phase: "removed", Done: true})
}

// stores lists the stores of all nodes.
func (b *Backend) stores() (out []*dozov1.Store) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		for _, s := range n.GetStores() {
			out = append(out, &dozov1.Store{Id: s.GetId(), Node: n.GetName(), Site: n.GetSite(), Label: "disk0", Path: s.GetPath(), State: s.GetState(), CapacityBytes: s.GetCapacityBytes(),
				UsedBytes: s.GetUsedBytes(), FreeBytes: s.GetCapacityBytes() - s.GetUsedBytes(), Replicas: 16, ScrubPassed: timestamppb.New(Epoch)})
		}
	}
	return out
}

func (b *Backend) store(method, name string) (*dozov1.Store, error) {
	if err := b.enter(method); err != nil {
		return nil, err
	}
	for _, s := range b.stores() {
		if s.GetId() == name || s.GetNode()+"/"+s.GetLabel() == name || s.GetNode() == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("store %s: %w", name, control.ErrNotFound)
}

// ListStores implements api.Stores.
func (b *Backend) ListStores(_ context.Context, req *dozov1.ListStoresRequest) ([]*dozov1.Store, error) {
	if err := b.enter("ListStores"); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(b.stores(), func(s *dozov1.Store) bool { return req.GetNode() != "" && s.GetNode() != req.GetNode() }), nil
}

// StoreLoss implements api.Stores: there is a volume web1 of which one segment has one copy elsewhere.
func (b *Backend) StoreLoss(_ context.Context, req *dozov1.StoreLossRequest) (*dozov1.StoreLossResponse, error) {
	r := &dozov1.StoreLossResponse{Volumes: 2}
	for _, name := range req.GetStores() {
		s, err := b.store("StoreLoss", name)
		if err != nil {
			return nil, err
		}
		r.Stores = append(r.Stores, s)
	}
	r.Hit = []*dozov1.VolumeLoss{{Id: strings.Repeat("1", 32), Tenant: "default", Volume: "web1", SingleSegments: 1, SingleBytes: 32 << 20, LastSeq: 7}}
	return r, nil
}

// ReplaceStore implements api.Stores.
func (b *Backend) ReplaceStore(ctx context.Context, req *dozov1.ReplaceStoreRequest, progress func(*dozov1.EmptyProgress) error) error {
	s, err := b.store("ReplaceStore", req.GetStore())
	if err != nil {
		return err
	}
	phase, action := "empty", "store.leave"
	switch {
	case req.GetDryRun():
		return progress(&dozov1.EmptyProgress{Phase: "planned", Replicas: 16, LeftBytes: 1 << 29, Done: true})
	case req.GetLost():
		phase, action = "lost", "store.lost"
	}
	b.mu.Lock()
	b.eventLocked(ctx, action, "store/"+s.GetId())
	b.mu.Unlock()
	return progress(&dozov1.EmptyProgress{Phase: phase, Done: true})
}

// KeepStore implements api.Stores.
func (b *Backend) KeepStore(ctx context.Context, req *dozov1.KeepStoreRequest) error {
	s, err := b.store("KeepStore", req.GetStore())
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.eventLocked(ctx, "store.stay", "store/"+s.GetId())
	return nil
}

// ScrubStore implements api.Stores.
func (b *Backend) ScrubStore(_ context.Context, req *dozov1.ScrubStoreRequest, progress func(*dozov1.ScrubProgress) error) error {
	s, err := b.store("ScrubStore", req.GetStore())
	if err != nil {
		return err
	}
	s.ScrubTotalBytes, s.ScrubDoneBytes = s.GetUsedBytes(), s.GetUsedBytes()
	return progress(&dozov1.ScrubProgress{Store: s, Done: !req.GetNoWait()})
}

// DrainNode implements api.Nodes.
func (b *Backend) DrainNode(ctx context.Context, req *dozov1.DrainNodeRequest, progress func(*dozov1.DrainNodeResponse) error) error {
	if err := b.enter("DrainNode"); err != nil {
		return err
	}
	if err := b.setDraining(ctx, req.GetNode(), true); err != nil {
		return err
	}
	if err := progress(&dozov1.DrainNodeResponse{Volumes: 2}); err != nil || !req.GetWait() {
		return err
	}
	return progress(&dozov1.DrainNodeResponse{Done: true})
}

// UndrainNode implements api.Nodes.
func (b *Backend) UndrainNode(ctx context.Context, req *dozov1.UndrainNodeRequest) error {
	if err := b.enter("UndrainNode"); err != nil {
		return err
	}
	return b.setDraining(ctx, req.GetNode(), false)
}

func (b *Backend) setDraining(ctx context.Context, node string, yes bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.nodes, func(n *dozov1.Node) bool { return n.GetName() == node })
	if i < 0 {
		return fmt.Errorf("node %s: %w", node, control.ErrNotFound)
	}
	action := "node.undrain"
	if b.nodes[i].Draining = yes; yes {
		action = "node.drain"
	}
	b.eventLocked(ctx, action, "node/"+node)
	return nil
}

// ListSites implements api.Sites.
func (b *Backend) ListSites(context.Context, *dozov1.ListSitesRequest) ([]*dozov1.Site, error) {
	if err := b.enter("ListSites"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return clones(b.sites, func(*dozov1.Site) bool { return true }), nil
}

// CreateSite implements api.Sites.
func (b *Backend) CreateSite(ctx context.Context, req *dozov1.CreateSiteRequest) (*dozov1.Site, error) {
	if err := b.enter("CreateSite"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sites {
		if s.GetName() == req.GetName() {
			return nil, fmt.Errorf("site %s: %w", req.GetName(), control.ErrExists)
		}
	}
	s := &dozov1.Site{Id: uint32(len(b.sites) + 1), Name: req.GetName(), Cidrs: req.GetCidrs()}
	b.sites = append(b.sites, s)
	b.eventLocked(ctx, "site.create", "site/"+req.GetName())
	return proto.CloneOf(s), nil
}

// Status implements api.Cluster.
func (b *Backend) Status(context.Context, *dozov1.StatusRequest) (*dozov1.StatusResponse, error) {
	if err := b.enter("Status"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &dozov1.StatusResponse{ClusterId: "0123456789abcdef0123456789abcdef", ClusterName: "test", Health: "ok", Sites: uint32(len(b.sites)),
		Nodes: uint32(len(b.nodes)), Control: &dozov1.ControlStatus{Connected: true, Since: timestamppb.New(Epoch), Voters: []string{"s1n1", "s2n1", "s3n1"}},
		CapacityBytes: 3 << 40, UsedBytes: 3 << 30, Node: "s1n1", Time: timestamppb.New(Epoch)}
	for _, n := range b.nodes {
		if n.GetState() == "up" {
			r.NodesUp++
			continue
		}
		r.Health = "degraded"
		r.Problems = append(r.Problems, &dozov1.Problem{Severity: "warning", Reason: "NODE_DOWN", Object: "node/" + n.GetName(), Message: "the node does not answer", Since: timestamppb.New(Epoch)})
	}
	for _, v := range b.volumes {
		r.Volumes = append(r.Volumes, &dozov1.VolumeStatus{Id: v.GetId(), Tenant: v.GetTenant(), Name: v.GetName(), State: v.GetState(), Owner: v.GetOwner(), OwnerSite: v.GetOwnerSite(),
			Epoch: v.GetEpoch(), CommitSeq: 120, StableSeq: 120, Protection: v.GetProtection(), Copies: copies(false)})
	}
	return r, nil
}

// SetLag sets how many progress reports Wait gives before it is done; with a negative number it waits for ever.
func (b *Backend) SetLag(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lag = n
}

// SetNodeState sets a node's state.
func (b *Backend) SetNodeState(name, state string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if n.GetName() == name {
			n.State = state
		}
	}
}

// Events implements api.Cluster.
func (b *Backend) Events(ctx context.Context, req *dozov1.EventsRequest, send func(*dozov1.Event) error) error {
	if err := b.enter("Events"); err != nil {
		return err
	}
	after := req.GetAfterRevision()
	limit := int(req.GetLimit())
	for {
		b.mu.Lock()
		changed := b.changed
		events := clones(b.events, func(e *dozov1.Event) bool { return e.GetRevision() > after })
		b.mu.Unlock()
		if limit > 0 && len(events) > limit {
			events = events[len(events)-limit:]
		}
		for _, e := range events {
			if err := send(e); err != nil {
				return err
			}
			after = e.GetRevision()
		}
		if !req.GetFollow() {
			return nil
		}
		limit = 0
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Version implements api.Cluster.
func (b *Backend) Version(context.Context, *dozov1.VersionRequest) (*dozov1.VersionResponse, error) {
	return &dozov1.VersionResponse{Version: "1.0", Revision: "abc", GoVersion: "go1.26", Platform: "linux/amd64", Node: "s1n1"}, b.enter("Version")
}

// APIToken implements api.Tokens.
func (b *Backend) APIToken(hash string) (rec pki.APITokenRecord, found bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.noTokens != nil {
		return rec, false, b.noTokens
	}
	for _, t := range b.tokens {
		if t.Hash == hash {
			return t, true, nil
		}
	}
	return rec, false, nil
}

// SetNoTokens has APIToken fail, as on a node that does not know tokens yet.
func (b *Backend) SetNoTokens(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noTokens = err
}

// ListAPITokens implements api.Tokens.
func (b *Backend) ListAPITokens(context.Context) ([]pki.APITokenRecord, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tokens), nil
}

// CreateAPIToken implements api.Tokens.
func (b *Backend) CreateAPIToken(ctx context.Context, rec pki.APITokenRecord) error {
	if err := b.enter("CreateAPIToken"); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.tokens {
		if t.Name == rec.Name {
			return control.ErrExists
		}
	}
	b.tokens = append(b.tokens, rec)
	b.eventLocked(ctx, "token.create", "token/"+rec.Name)
	return nil
}

// DeleteAPIToken implements api.Tokens.
func (b *Backend) DeleteAPIToken(ctx context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.tokens)
	b.tokens = slices.DeleteFunc(b.tokens, func(t pki.APITokenRecord) bool { return t.Name == name })
	if len(b.tokens) == before {
		return fmt.Errorf("token %s: %w", name, control.ErrNotFound)
	}
	b.eventLocked(ctx, "token.revoke", "token/"+name)
	return nil
}

// Audit implements api.Backend.
func (b *Backend) Audit(_ context.Context, rec api.AuditRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.audit = append(b.audit, rec)
}

// Health implements api.Backend.
func (b *Backend) Health() api.Health {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.health
}

// ControlStatus implements api.Control.
func (b *Backend) ControlStatus(context.Context, *dozov1.ControlStoreStatusRequest) (*dozov1.ControlStoreStatusResponse, error) {
	if err := b.enter("ControlStatus"); err != nil {
		return nil, err
	}
	return &dozov1.ControlStoreStatusResponse{Connected: true, Quorum: true, Lineage: "0badcafe", Revision: 42, Node: "s1n1", Voters: []*dozov1.ControlVoter{
		{Node: "s1n1", Peer: "127.0.1.1:7073", Up: true, Leader: true, Term: 2, Applied: 99, DatabaseBytes: 1 << 20},
		{Node: "s2n1", Peer: "127.0.2.1:7073", Problems: []string{"does not answer"}},
	}}, nil
}

// ControlBackup implements api.Control: the content of Backup, in two pieces.
func (b *Backend) ControlBackup(_ context.Context, _ *dozov1.ControlBackupRequest, send func(*dozov1.ControlBackupResponse) error) error {
	if err := b.enter("ControlBackup"); err != nil {
		return err
	}
	data := b.Backup
	for len(data) > 0 {
		n := max(1, len(data)/2)
		if err := send(&dozov1.ControlBackupResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// DeclareStoresLost implements api.Control.
func (b *Backend) DeclareStoresLost(_ context.Context, req *dozov1.ControlDeclareLostRequest) (*dozov1.ControlRestoration, error) {
	if err := b.enter("DeclareStoresLost"); err != nil {
		return nil, err
	}
	r := &dozov1.ControlRestoration{Kind: "restore", State: "settling", Complete: true}
	for _, s := range req.GetStores() {
		r.Stores = append(r.Stores, &dozov1.ControlStore{Id: s, State: "lost"})
	}
	return r, nil
}

// DeclareStoresComplete implements api.Control.
func (b *Backend) DeclareStoresComplete(context.Context, *dozov1.ControlDeclareCompleteRequest) (*dozov1.ControlRestoration, error) {
	if err := b.enter("DeclareStoresComplete"); err != nil {
		return nil, err
	}
	return &dozov1.ControlRestoration{Kind: "rebuild", State: "settling", Complete: true}, nil
}
