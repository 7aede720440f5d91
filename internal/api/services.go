package api

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api/dozov1"
	"dozo/internal/pki"
)

// The services only turn messages into calls of the Backend and answers into messages.

type volumeService struct{ b Backend }

func (s volumeService) Create(ctx context.Context, req *dozov1.CreateVolumeRequest) (*dozov1.CreateVolumeResponse, error) {
	v, err := s.b.CreateVolume(ctx, req)
	return &dozov1.CreateVolumeResponse{Volume: v}, err
}

func (s volumeService) List(ctx context.Context, req *dozov1.ListVolumesRequest) (*dozov1.ListVolumesResponse, error) {
	v, err := s.b.ListVolumes(ctx, req)
	return &dozov1.ListVolumesResponse{Volumes: v}, err
}

func (s volumeService) Get(ctx context.Context, req *dozov1.GetVolumeRequest) (*dozov1.GetVolumeResponse, error) {
	v, p, err := s.b.GetVolume(ctx, req)
	return &dozov1.GetVolumeResponse{Volume: v, Placement: p}, err
}

func (s volumeService) Resize(ctx context.Context, req *dozov1.ResizeVolumeRequest) (*dozov1.ResizeVolumeResponse, error) {
	v, err := s.b.ResizeVolume(ctx, req)
	return &dozov1.ResizeVolumeResponse{Volume: v}, err
}

func (s volumeService) Rename(ctx context.Context, req *dozov1.RenameVolumeRequest) (*dozov1.RenameVolumeResponse, error) {
	v, err := s.b.RenameVolume(ctx, req)
	return &dozov1.RenameVolumeResponse{Volume: v}, err
}

func (s volumeService) Set(ctx context.Context, req *dozov1.SetVolumeRequest) (*dozov1.SetVolumeResponse, error) {
	v, err := s.b.SetVolume(ctx, req)
	return &dozov1.SetVolumeResponse{Volume: v}, err
}

func (s volumeService) Map(ctx context.Context, req *dozov1.MapVolumeRequest) (*dozov1.MapVolumeResponse, error) {
	m, err := s.b.MapVolume(ctx, req)
	return &dozov1.MapVolumeResponse{Map: m}, err
}

func (s volumeService) Unmap(ctx context.Context, req *dozov1.UnmapVolumeRequest) (*dozov1.UnmapVolumeResponse, error) {
	m, err := s.b.UnmapVolume(ctx, req)
	return &dozov1.UnmapVolumeResponse{Map: m}, err
}

func (s volumeService) Maps(ctx context.Context, req *dozov1.VolumeMapsRequest) (*dozov1.VolumeMapsResponse, error) {
	m, err := s.b.VolumeMaps(ctx, req)
	return &dozov1.VolumeMapsResponse{Maps: m}, err
}

func (s volumeService) Delete(ctx context.Context, req *dozov1.DeleteVolumeRequest) (*dozov1.DeleteVolumeResponse, error) {
	v, err := s.b.DeleteVolume(ctx, req)
	return &dozov1.DeleteVolumeResponse{Volume: v}, err
}

func (s volumeService) Targets(ctx context.Context, req *dozov1.VolumeTargetsRequest) (*dozov1.VolumeTargetsResponse, error) {
	t, err := s.b.VolumeTargets(ctx, req)
	return &dozov1.VolumeTargetsResponse{Targets: t}, err
}

type hostService struct{ b Backend }

func (s hostService) Add(ctx context.Context, req *dozov1.AddHostRequest) (*dozov1.AddHostResponse, error) {
	h, err := s.b.AddHost(ctx, req)
	return &dozov1.AddHostResponse{Host: h}, err
}

func (s hostService) List(ctx context.Context, req *dozov1.ListHostsRequest) (*dozov1.ListHostsResponse, error) {
	h, err := s.b.ListHosts(ctx, req)
	return &dozov1.ListHostsResponse{Hosts: h}, err
}

func (s hostService) SetChap(ctx context.Context, req *dozov1.SetChapRequest) (*dozov1.SetChapResponse, error) {
	h, err := s.b.SetHostChap(ctx, req)
	return &dozov1.SetChapResponse{Host: h}, err
}

func (s hostService) GetDiscovery(ctx context.Context, _ *dozov1.GetDiscoveryRequest) (*dozov1.GetDiscoveryResponse, error) {
	d, err := s.b.Discovery(ctx)
	return &dozov1.GetDiscoveryResponse{Discovery: d}, err
}

func (s hostService) SetDiscovery(ctx context.Context, req *dozov1.SetDiscoveryRequest) (*dozov1.SetDiscoveryResponse, error) {
	d, err := s.b.SetDiscovery(ctx, req)
	return &dozov1.SetDiscoveryResponse{Discovery: d}, err
}

func (s hostService) Delete(ctx context.Context, req *dozov1.DeleteHostRequest) (*dozov1.DeleteHostResponse, error) {
	return &dozov1.DeleteHostResponse{}, s.b.DeleteHost(ctx, req)
}

type sessionService struct{ b Backend }

func (s sessionService) List(ctx context.Context, req *dozov1.ListSessionsRequest) (*dozov1.ListSessionsResponse, error) {
	l, unheard, err := s.b.ListSessions(ctx, req)
	return &dozov1.ListSessionsResponse{Sessions: l, Unheard: unheard}, err
}

func (s sessionService) Kill(ctx context.Context, req *dozov1.KillSessionRequest) (*dozov1.KillSessionResponse, error) {
	k, err := s.b.KillSession(ctx, req)
	return &dozov1.KillSessionResponse{Session: k}, err
}

func (s sessionService) Accept(ctx context.Context, req *dozov1.AcceptSessionsRequest) (*dozov1.AcceptSessionsResponse, error) {
	p, err := s.b.AcceptSessions(ctx, req)
	return &dozov1.AcceptSessionsResponse{Ports: p}, err
}

type reservationService struct{ b Backend }

func (s reservationService) Get(ctx context.Context, req *dozov1.GetReservationsRequest) (*dozov1.GetReservationsResponse, error) {
	r, err := s.b.Reservations(ctx, req)
	return &dozov1.GetReservationsResponse{Reservations: r}, err
}

func (s reservationService) Clear(ctx context.Context, req *dozov1.ClearReservationsRequest) (*dozov1.ClearReservationsResponse, error) {
	gone, left, err := s.b.ClearReservations(ctx, req)
	return &dozov1.ClearReservationsResponse{Cleared: gone, Reservations: left}, err
}

type nodeService struct{ b Backend }

func (s nodeService) List(ctx context.Context, req *dozov1.ListNodesRequest) (*dozov1.ListNodesResponse, error) {
	n, err := s.b.ListNodes(ctx, req)
	return &dozov1.ListNodesResponse{Nodes: n}, err
}

func (s nodeService) CreateToken(ctx context.Context, req *dozov1.CreateJoinTokenRequest) (*dozov1.CreateJoinTokenResponse, error) {
	return s.b.CreateJoinToken(ctx, req)
}

func (s nodeService) Join(ctx context.Context, req *dozov1.JoinRequest) (*dozov1.JoinResponse, error) {
	return s.b.Join(ctx, req)
}

func (s nodeService) Renew(ctx context.Context, req *dozov1.RenewRequest) (*dozov1.RenewResponse, error) {
	return s.b.Renew(ctx, req)
}

func (s nodeService) Revoke(ctx context.Context, req *dozov1.RevokeRequest) (*dozov1.RevokeResponse, error) {
	return s.b.Revoke(ctx, req)
}

func (s nodeService) Remove(ctx context.Context, req *dozov1.RemoveNodeRequest) (*dozov1.RemoveNodeResponse, error) {
	return &dozov1.RemoveNodeResponse{}, s.b.RemoveNode(ctx, req)
}

func (s nodeService) Undrain(ctx context.Context, req *dozov1.UndrainNodeRequest) (*dozov1.UndrainNodeResponse, error) {
	return &dozov1.UndrainNodeResponse{}, s.b.UndrainNode(ctx, req)
}

type storeService struct{ b Backend }

func (s storeService) List(ctx context.Context, req *dozov1.ListStoresRequest) (*dozov1.ListStoresResponse, error) {
	l, err := s.b.ListStores(ctx, req)
	return &dozov1.ListStoresResponse{Stores: l}, err
}

func (s storeService) Keep(ctx context.Context, req *dozov1.KeepStoreRequest) (*dozov1.KeepStoreResponse, error) {
	return &dozov1.KeepStoreResponse{}, s.b.KeepStore(ctx, req)
}

func (s storeService) Loss(ctx context.Context, req *dozov1.StoreLossRequest) (*dozov1.StoreLossResponse, error) {
	return s.b.StoreLoss(ctx, req)
}

type siteService struct{ b Backend }

func (s siteService) List(ctx context.Context, req *dozov1.ListSitesRequest) (*dozov1.ListSitesResponse, error) {
	l, err := s.b.ListSites(ctx, req)
	return &dozov1.ListSitesResponse{Sites: l}, err
}

func (s siteService) Create(ctx context.Context, req *dozov1.CreateSiteRequest) (*dozov1.CreateSiteResponse, error) {
	c, err := s.b.CreateSite(ctx, req)
	return &dozov1.CreateSiteResponse{Site: c}, err
}

type forkService struct{ b Backend }

func (s forkService) List(ctx context.Context, req *dozov1.ListForksRequest) (*dozov1.ListForksResponse, error) {
	l, unheard, err := s.b.ListForks(ctx, req)
	return &dozov1.ListForksResponse{Forks: l, Unheard: unheard}, err
}

func (s forkService) Get(ctx context.Context, req *dozov1.GetForkRequest) (*dozov1.GetForkResponse, error) {
	f, err := s.b.GetFork(ctx, req)
	return &dozov1.GetForkResponse{Fork: f}, err
}

func (s forkService) Delete(ctx context.Context, req *dozov1.DeleteForkRequest) (*dozov1.DeleteForkResponse, error) {
	f, err := s.b.DeleteFork(ctx, req)
	return &dozov1.DeleteForkResponse{Fork: f}, err
}

type clusterService struct{ s *Server }

func (c clusterService) Status(ctx context.Context, req *dozov1.StatusRequest) (*dozov1.StatusResponse, error) {
	return c.s.backend.Status(ctx, req)
}

func (c clusterService) Version(ctx context.Context, req *dozov1.VersionRequest) (*dozov1.VersionResponse, error) {
	return c.s.backend.Version(ctx, req)
}

// CreateToken makes the token here, so that a Backend never sees the secret.
func (c clusterService) CreateToken(ctx context.Context, req *dozov1.CreateTokenRequest) (*dozov1.CreateTokenResponse, error) {
	secret, rec, err := pki.NewAPIToken(req.GetName(), pki.Role(req.GetRole()), c.s.now(), req.GetTtl().AsDuration())
	if err != nil {
		return nil, err
	}
	rec.By = CallerFrom(ctx).Actor()
	if err := c.s.backend.CreateAPIToken(ctx, rec); err != nil {
		return nil, fmt.Errorf("create API token %s: %w", rec.Name, err)
	}
	return &dozov1.CreateTokenResponse{Token: tokenMessage(rec), Secret: secret}, nil
}

func (c clusterService) ListTokens(ctx context.Context, _ *dozov1.ListTokensRequest) (*dozov1.ListTokensResponse, error) {
	recs, err := c.s.backend.ListAPITokens(ctx)
	resp := &dozov1.ListTokensResponse{}
	for _, r := range recs {
		resp.Tokens = append(resp.Tokens, tokenMessage(r))
	}
	return resp, err
}

func (c clusterService) RevokeToken(ctx context.Context, req *dozov1.RevokeTokenRequest) (*dozov1.RevokeTokenResponse, error) {
	return &dozov1.RevokeTokenResponse{}, c.s.backend.DeleteAPIToken(ctx, req.GetName())
}

func tokenMessage(r pki.APITokenRecord) *dozov1.Token {
	t := &dozov1.Token{Name: r.Name, Role: string(r.Role), Created: timestamppb.New(r.Created), CreatedBy: r.By}
	if !r.Expires.IsZero() {
		t.Expires = timestamppb.New(r.Expires)
	}
	return t
}

type controlService struct{ b Backend }

func (s controlService) Status(ctx context.Context, req *dozov1.ControlStoreStatusRequest) (*dozov1.ControlStoreStatusResponse, error) {
	return s.b.ControlStatus(ctx, req)
}

func (s controlService) DeclareLost(ctx context.Context, req *dozov1.ControlDeclareLostRequest) (*dozov1.ControlDeclareLostResponse, error) {
	r, err := s.b.DeclareStoresLost(ctx, req)
	return &dozov1.ControlDeclareLostResponse{Restoration: r}, err
}

func (s controlService) DeclareComplete(ctx context.Context, req *dozov1.ControlDeclareCompleteRequest) (*dozov1.ControlDeclareCompleteResponse, error) {
	r, err := s.b.DeclareStoresComplete(ctx, req)
	return &dozov1.ControlDeclareCompleteResponse{Restoration: r}, err
}
