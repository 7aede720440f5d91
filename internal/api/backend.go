package api

import (
	"context"
	"time"

	"dozo/internal/api/dozov1"
	"dozo/internal/pki"
)

// Backend is what a node does for the API. Every method may be called concurrently, gets a request that was
// checked (names given, sizes in range, defaults filled in; a volume may be named by name or ID), and answers
// within the context's deadline. The caller is in the context: CallerFrom, and control.ActorFrom for the audit
// log. What is returned belongs to the caller; what is passed in is not kept. Errors carry a sentinel of
// errors.go's table, wrapped with what was tried on what; anything else is reported as INTERNAL.
type Backend interface {
	Volumes
	Hosts
	Sessions
	Reservations
	Nodes
	Stores
	Sites
	Forks
	Cluster
	Control
	Tokens

	// Audit is told of every call that would change something, after it ended, and of such calls that were
	// refused, unless nobody knows who called. What changed a specification is in the control store's events already, written in the same
	// transaction; the implementation records the others. It must not block for long and can not fail the call.
	Audit(ctx context.Context, rec AuditRecord)
	// Health says how the node is, for /healthz. It answers at once, from what is known.
	Health() Health
}

// Volumes is behind VolumeService.
type Volumes interface {
	CreateVolume(ctx context.Context, req *dozov1.CreateVolumeRequest) (*dozov1.Volume, error)
	// CreateVolumes calls progress with each few that have been made, all of which are there if it fails later. Nothing is made
	// if the tenant has one of the names when it begins. It ends early with the context, or with the error of progress.
	CreateVolumes(ctx context.Context, req *dozov1.CreateVolumesRequest, progress func(*dozov1.CreateVolumesResponse) error) error
	ListVolumes(ctx context.Context, req *dozov1.ListVolumesRequest) ([]*dozov1.Volume, error)
	GetVolume(ctx context.Context, req *dozov1.GetVolumeRequest) (*dozov1.Volume, *dozov1.Placement, error)
	// ResizeVolume is ErrRefused where the volume would become smaller and AllowShrink is not set.
	ResizeVolume(ctx context.Context, req *dozov1.ResizeVolumeRequest) (*dozov1.Volume, error)
	RenameVolume(ctx context.Context, req *dozov1.RenameVolumeRequest) (*dozov1.Volume, error)
	SetVolume(ctx context.Context, req *dozov1.SetVolumeRequest) (*dozov1.Volume, error)
	// MapVolume is control.ErrInUse while the host has sessions at the volume's own target.
	MapVolume(ctx context.Context, req *dozov1.MapVolumeRequest) (*dozov1.VolumeMap, error)
	UnmapVolume(ctx context.Context, req *dozov1.UnmapVolumeRequest) (*dozov1.VolumeMap, error)
	VolumeMaps(ctx context.Context, req *dozov1.VolumeMapsRequest) ([]*dozov1.VolumeMap, error)
	// DeleteVolume is control.ErrInUse while sessions are open and Force is not set.
	DeleteVolume(ctx context.Context, req *dozov1.DeleteVolumeRequest) (*dozov1.Volume, error)
	// DeleteVolumes is DeleteVolume of several: it looks at all of them before it deletes the first, and calls progress with
	// each few that have been deleted. It ends early with the context, or with the error of progress.
	DeleteVolumes(ctx context.Context, req *dozov1.DeleteVolumesRequest, progress func(*dozov1.DeleteVolumesResponse) error) error
	// VolumeTargets puts the targets of the site asked for first (empty: this node's), this node's before
	// others of its site.
	VolumeTargets(ctx context.Context, req *dozov1.VolumeTargetsRequest) ([]*dozov1.Target, error)
	// WaitVolume calls progress once at the start, whenever something changed but not more often than a few
	// times a second, and a last time with Done set when the condition holds. It ends early with the context, or
	// with the error of progress.
	WaitVolume(ctx context.Context, req *dozov1.WaitVolumeRequest, progress func(*dozov1.WaitVolumeResponse) error) error
	// MoveVolume calls progress when something changed, and a last time with Done set. What it began goes on when
	// the context ends. It records the event itself.
	MoveVolume(ctx context.Context, req *dozov1.MoveVolumeRequest, progress func(*dozov1.MoveVolumeResponse) error) error
	// RecoverVolume calls progress when something changed, and a last time with Done set. What it began goes on when the
	// context ends. It records the event itself.
	RecoverVolume(ctx context.Context, req *dozov1.RecoverVolumeRequest, progress func(*dozov1.RecoverVolumeResponse) error) error
}

// Hosts is behind HostService.
type Hosts interface {
	AddHost(ctx context.Context, req *dozov1.AddHostRequest) (*dozov1.Host, error)
	ListHosts(ctx context.Context, req *dozov1.ListHostsRequest) ([]*dozov1.Host, error)
	SetHostChap(ctx context.Context, req *dozov1.SetChapRequest) (*dozov1.Host, error)
	// Discovery is what initiators have to prove before they are told of targets.
	Discovery(ctx context.Context) (*dozov1.Discovery, error)
	SetDiscovery(ctx context.Context, req *dozov1.SetDiscoveryRequest) (*dozov1.Discovery, error)
	DeleteHost(ctx context.Context, req *dozov1.DeleteHostRequest) error
}

// Sessions is behind SessionService.
type Sessions interface {
	// ListSessions also names the access servers that could not be asked.
	ListSessions(ctx context.Context, req *dozov1.ListSessionsRequest) (sessions []*dozov1.Session, unheard []string, err error)
	KillSession(ctx context.Context, req *dozov1.KillSessionRequest) (*dozov1.Session, error)
	// AcceptSessions gives the ports that may go on, or the first of them.
	AcceptSessions(ctx context.Context, req *dozov1.AcceptSessionsRequest) ([]*dozov1.Port, error)
}

// Reservations is behind ReservationService.
type Reservations interface {
	Reservations(ctx context.Context, req *dozov1.GetReservationsRequest) (*dozov1.Reservations, error)
	// ClearReservations is control.ErrInUse while one that would go is of a port that is logged in, or may be, and Force is
	// not set. It also gives what is left.
	ClearReservations(ctx context.Context, req *dozov1.ClearReservationsRequest) (gone []*dozov1.Registration, left *dozov1.Reservations, err error)
}

// Nodes is behind NodeService.
type Nodes interface {
	ListNodes(ctx context.Context, req *dozov1.ListNodesRequest) ([]*dozov1.Node, error)
	CreateJoinToken(ctx context.Context, req *dozov1.CreateJoinTokenRequest) (*dozov1.CreateJoinTokenResponse, error)
	// Join is called without authentication: the token in the request is it, and the implementation uses it up
	// before anything else. A token that is unknown, used or expired is pki.ErrBadToken.
	Join(ctx context.Context, req *dozov1.JoinRequest) (*dozov1.JoinResponse, error)
	// Renew is called by the node that CallerFrom names.
	Renew(ctx context.Context, req *dozov1.RenewRequest) (*dozov1.RenewResponse, error)
	Revoke(ctx context.Context, req *dozov1.RevokeRequest) (*dozov1.RevokeResponse, error)
	RemoveNode(ctx context.Context, req *dozov1.RemoveNodeRequest) error
	// DrainNode calls progress once and, with Wait, whenever something changed until Done.
	DrainNode(ctx context.Context, req *dozov1.DrainNodeRequest, progress func(*dozov1.DrainNodeResponse) error) error
	// DecommissionNode calls progress when something changed, and a last time with Done set.
	DecommissionNode(ctx context.Context, req *dozov1.DecommissionNodeRequest, progress func(*dozov1.EmptyProgress) error) error
	UndrainNode(ctx context.Context, req *dozov1.UndrainNodeRequest) error
}

// Stores is behind StoreService.
type Stores interface {
	ListStores(ctx context.Context, req *dozov1.ListStoresRequest) ([]*dozov1.Store, error)
	// ReplaceStore and ScrubStore call progress when something changed, and a last time with Done set unless NoWait is.
	ReplaceStore(ctx context.Context, req *dozov1.ReplaceStoreRequest, progress func(*dozov1.EmptyProgress) error) error
	KeepStore(ctx context.Context, req *dozov1.KeepStoreRequest) error
	// StoreLoss says what it would mean to declare stores lost, and changes nothing.
	StoreLoss(ctx context.Context, req *dozov1.StoreLossRequest) (*dozov1.StoreLossResponse, error)
	ScrubStore(ctx context.Context, req *dozov1.ScrubStoreRequest, progress func(*dozov1.ScrubProgress) error) error
}

// Sites is behind SiteService.
type Sites interface {
	ListSites(ctx context.Context, req *dozov1.ListSitesRequest) ([]*dozov1.Site, error)
	CreateSite(ctx context.Context, req *dozov1.CreateSiteRequest) (*dozov1.Site, error)
	// FailoverSite and FailbackSite call progress when something changed, and a last time with Done set. They record their
	// events themselves.
	FailoverSite(ctx context.Context, req *dozov1.FailoverSiteRequest, progress func(*dozov1.FailoverSiteResponse) error) error
	FailbackSite(ctx context.Context, req *dozov1.FailbackSiteRequest, progress func(*dozov1.FailbackSiteResponse) error) error
}

// Forks is behind ForkService. Fork in a request is the ID of one of the volume's, or its number alone, or empty where there
// is only one.
type Forks interface {
	// ListForks names the volumes, too, of which it can not be told now.
	ListForks(ctx context.Context, req *dozov1.ListForksRequest) (forks []*dozov1.Fork, unheard []string, err error)
	GetFork(ctx context.Context, req *dozov1.GetForkRequest) (*dozov1.Fork, error)
	// The streams end with a message that has Done set, or with the error of send.
	DiffFork(ctx context.Context, req *dozov1.DiffForkRequest, send func(*dozov1.DiffForkResponse) error) error
	ExportFork(ctx context.Context, req *dozov1.ExportForkRequest, send func(*dozov1.ExportForkResponse) error) error
	CloneFork(ctx context.Context, req *dozov1.CloneForkRequest, send func(*dozov1.CloneForkResponse) error) error
	DeleteFork(ctx context.Context, req *dozov1.DeleteForkRequest) (*dozov1.Fork, error)
}

// Cluster is behind ClusterService, but for tokens.
type Cluster interface {
	Status(ctx context.Context, req *dozov1.StatusRequest) (*dozov1.StatusResponse, error)
	// Events calls send for each event in order, and returns nil after the last one there was, unless Follow is
	// set. It ends with the context, or with the error of send.
	Events(ctx context.Context, req *dozov1.EventsRequest, send func(*dozov1.Event) error) error
	Version(ctx context.Context, req *dozov1.VersionRequest) (*dozov1.VersionResponse, error)
}

// Control is behind ControlService.
type Control interface {
	ControlStatus(ctx context.Context, req *dozov1.ControlStoreStatusRequest) (*dozov1.ControlStoreStatusResponse, error)
	// ControlBackup calls send with pieces of the backup, in order.
	ControlBackup(ctx context.Context, req *dozov1.ControlBackupRequest, send func(*dozov1.ControlBackupResponse) error) error
	DeclareStoresLost(ctx context.Context, req *dozov1.ControlDeclareLostRequest) (*dozov1.ControlRestoration, error)
	DeclareStoresComplete(ctx context.Context, req *dozov1.ControlDeclareCompleteRequest) (*dozov1.ControlRestoration, error)
}

// Tokens keeps the tokens for the API. The server makes them and checks them; the backend stores records, in
// which a token is only a hash.
type Tokens interface {
	// APIToken finds a record by its hash, from memory: it is asked at every call. An error says that it is not known
	// yet whether there is one: a caller must not be told that its token does not count.
	APIToken(hash string) (rec pki.APITokenRecord, found bool, err error)
	ListAPITokens(ctx context.Context) ([]pki.APITokenRecord, error)
	// CreateAPIToken is control.ErrExists if the name is taken.
	CreateAPIToken(ctx context.Context, rec pki.APITokenRecord) error
	DeleteAPIToken(ctx context.Context, name string) error
}

// AuditRecord says who tried to change what.
type AuditRecord struct {
	Time   time.Time
	Caller Caller
	Action string // such as volume.create, as in the control store's events
	Object string // such as volume/default/web1
	Err    error  // nil: it was done
}

// Health is what /healthz answers.
type Health struct {
	// Ready: the node does everything that its roles ask of it.
	Ready bool `json:"ready"`
	// State is starting, ready, degraded or stopping.
	State string `json:"state"`
	Node  string `json:"node"`
	Site  string `json:"site,omitempty"`
	// Cluster is the cluster's ID.
	Cluster string `json:"cluster,omitempty"`
	Version string `json:"version,omitempty"`
	Pid     int    `json:"pid"`
	// Problems says what is missing for Ready, or degraded.
	Problems []string `json:"problems,omitempty"`
}
