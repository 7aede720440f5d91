package apitest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/pki"
)

// Epoch is the time at which everything in the backend happens.
var Epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Backend is an api.Backend in memory: three sites of two nodes, and what is made by calls.
type Backend struct {
	mu       sync.Mutex
	volumes  []*dozov1.Volume
	hosts    []*dozov1.Host
	discover *dozov1.Discovery
	maps     []*dozov1.VolumeMap
	secrets  map[string]string // of hosts, to see that they arrive
	sessions []*dozov1.Session
	evicted  map[string]bool // initiators whose reservations were cleared
	nodes    []*dozov1.Node
	sites    []*dozov1.Site
	tokens   []pki.APITokenRecord
	events   []*dozov1.Event
	forks    []*dozov1.Fork
	changed  chan struct{} // closed and replaced when an event is added
	audit    []api.AuditRecord
	health   api.Health
	lag      int   // see SetLag
	noTokens error // see SetNoTokens

	// Hook, where set, is asked before every call, by the name of the method; its error is the call's.
	Hook func(method string) error
	// Backup is what ControlBackup gives; New makes one of an empty cluster.
	Backup []byte
}

var _ api.Backend = (*Backend)(nil)

// New makes a backend with sites site-1 to site-3 of nodes s1n1 to s3n2, and nothing else.
func New() *Backend {
	b := &Backend{changed: make(chan struct{}), secrets: map[string]string{}, evicted: map[string]bool{}, lag: 2}
	for i := 1; i <= 3; i++ {
		b.sites = append(b.sites, &dozov1.Site{Id: uint32(i), Name: fmt.Sprintf("site-%d", i), Cidrs: []string{fmt.Sprintf("127.0.%d.0/24", i)}, Nodes: 2, NodesUp: 2, CapacityBytes: 1 << 40, UsedBytes: 1 << 30})
		for j := 1; j <= 2; j++ {
			addr := fmt.Sprintf("127.0.%d.%d", i, j)
			b.nodes = append(b.nodes, &dozov1.Node{
				Name: fmt.Sprintf("s%dn%d", i, j), Site: fmt.Sprintf("site-%d", i), Address: addr, Pid: int64(1000*i + j),
				Roles: []string{"core", "access"}, State: "up", Version: "1.0", Portals: []string{addr + ":3260"},
				ManagementAddress: addr + ":7070", Voter: j == 1, Tpgt: uint32(2*i + j - 2), Started: timestamppb.New(Epoch),
				Stores: []*dozov1.NodeStore{{Id: fmt.Sprintf("%032x", 16*i+j), Path: "/data", CapacityBytes: 1 << 39, UsedBytes: 1 << 29, State: "ok"}},
			})
		}
	}
	b.Backup = emptyBackup()
	b.health = api.Health{Ready: true, State: "ready", Node: "s1n1", Site: "site-1", Pid: 1001}
	return b
}

// SetHealth sets what Health answers.
func (b *Backend) SetHealth(h api.Health) { b.mu.Lock(); b.health = h; b.mu.Unlock() }

// AddToken makes an API token and gives its secret.
func (b *Backend) AddToken(name string, role pki.Role, ttl time.Duration, now time.Time) string {
	secret, rec, err := pki.NewAPIToken(name, role, now, ttl)
	if err != nil {
		panic(err) // a test's arguments are constants
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = append(b.tokens, rec)
	return secret
}

// AddSession puts a session there.
func (b *Backend) AddSession(s *dozov1.Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions = append(b.sessions, s)
}

// AuditLog gives what Audit was told.
func (b *Backend) AuditLog() []api.AuditRecord {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.audit)
}

// ChapSecret gives the initiator's secret of a host as it arrived.
func (b *Backend) ChapSecret(tenant, host string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.secrets[tenant+"/"+host]
}

func (b *Backend) enter(method string) error {
	if b.Hook != nil {
		return b.Hook(method)
	}
	return nil
}

func (b *Backend) eventLocked(ctx context.Context, action, object string) {
	b.events = append(b.events, &dozov1.Event{Revision: int64(len(b.events) + 1), Time: timestamppb.New(Epoch), Actor: control.ActorFrom(ctx), Action: action, Object: object})
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *Backend) volumeLocked(tenant, ref string) (*dozov1.Volume, error) {
	for _, v := range b.volumes {
		if v.GetId() == ref || v.GetTenant() == tenant && v.GetName() == ref {
			return v, nil
		}
	}
	return nil, fmt.Errorf("volume %s/%s: %w", tenant, ref, control.ErrNotFound)
}

// CreateVolume implements api.Volumes.
func (b *Backend) CreateVolume(ctx context.Context, req *dozov1.CreateVolumeRequest) (*dozov1.Volume, error) {
	if err := b.enter("CreateVolume"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.volumeLocked(req.GetTenant(), req.GetName()); err == nil {
		return nil, fmt.Errorf("volume %s/%s: %w", req.GetTenant(), req.GetName(), control.ErrExists)
	}
	id := ident.NewJournalID().String()
	v := &dozov1.Volume{
		Id: id, Tenant: req.GetTenant(), Name: req.GetName(), SizeBytes: req.GetSizeBytes(), BlockSize: req.GetBlockSize(),
		Sites: cmp.Or(req.GetSites(), 3), AtSite: cmp.Or(req.GetAtSite(), "site-1"), Durability: req.GetDurability(), Partition: req.GetPartition(), Ownership: req.GetOwnership(),
		AluaRemote: req.GetAluaRemote(), Redirect: req.GetRedirect(), Ack: req.GetAck(), AckInEffect: req.GetAck(),
		Labels: req.GetLabels(), Hosts: req.GetHosts(), Created: timestamppb.New(Epoch), Iqn: "iqn.2026-01.dozo:" + id,
		State: "serving", Owner: "s1n1", OwnerSite: "site-1", Epoch: "1", Protection: "replicated",
	}
	if int(v.GetSites()) > len(b.sites) {
		return nil, fmt.Errorf("%d sites asked for, and there are %d: %w", v.GetSites(), len(b.sites), api.ErrTooFew)
	}
	b.volumes = append(b.volumes, v)
	b.eventLocked(ctx, "volume.create", "volume/"+v.GetTenant()+"/"+v.GetName())
	return proto.CloneOf(v), nil
}

// manyAtATime is how many volumes a message reports.
const manyAtATime = 2

// CreateVolumes implements api.Volumes.
func (b *Backend) CreateVolumes(ctx context.Context, req *dozov1.CreateVolumesRequest, progress func(*dozov1.CreateVolumesResponse) error) error {
	if err := b.enter("CreateVolumes"); err != nil {
		return err
	}
	b.mu.Lock()
	for _, n := range req.GetNames() {
		if _, err := b.volumeLocked(req.GetLike().GetTenant(), n); err == nil {
			b.mu.Unlock()
			return fmt.Errorf("volume %s/%s: %w", req.GetLike().GetTenant(), n, control.ErrExists)
		}
	}
	b.mu.Unlock()
	r := &dozov1.CreateVolumesResponse{Total: uint32(len(req.GetNames()))}
	for some := range slices.Chunk(req.GetNames(), manyAtATime) {
		r.Volumes = nil
		for _, n := range some {
			one := proto.CloneOf(req.GetLike())
			one.Name = n
			v, err := b.CreateVolume(ctx, one)
			if err != nil {
				return err
			}
			r.Volumes = append(r.Volumes, v)
		}
		r.Made += uint32(len(some))
		if err := progress(r); err != nil {
			return err
		}
	}
	return nil
}

// ListVolumes implements api.Volumes.
func (b *Backend) ListVolumes(_ context.Context, req *dozov1.ListVolumesRequest) ([]*dozov1.Volume, error) {
	if err := b.enter("ListVolumes"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*dozov1.Volume
	for _, v := range b.volumes {
		match := req.GetTenant() == "" || req.GetTenant() == v.GetTenant()
		for k, want := range req.GetLabels() {
			match = match && v.GetLabels()[k] == want
		}
		if match {
			out = append(out, proto.CloneOf(v))
		}
	}
	slices.SortFunc(out, func(a, b *dozov1.Volume) int {
		return cmp.Or(cmp.Compare(a.GetTenant(), b.GetTenant()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out, nil
}

func copies(behind bool) []*dozov1.SiteCopy {
	out := []*dozov1.SiteCopy{{Site: "site-1", State: "home", WatermarkSeq: 120}}
	for _, s := range []string{"site-2", "site-3"} {
		c := &dozov1.SiteCopy{Site: s, State: "current", WatermarkSeq: 120, Confirmed: timestamppb.New(Epoch)}
		if behind {
			c.State, c.WatermarkSeq, c.LagRecords, c.LagBytes, c.LagSeconds = "behind", 100, 20, 20<<20, 1.5
		}
		out = append(out, c)
	}
	return out
}

// GetVolume implements api.Volumes.
func (b *Backend) GetVolume(_ context.Context, req *dozov1.GetVolumeRequest) (*dozov1.Volume, *dozov1.Placement, error) {
	if err := b.enter("GetVolume"); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	if err != nil {
		return nil, nil, err
	}
	refs := []*dozov1.StoreRef{{Id: fmt.Sprintf("%032x", 17), Node: "s1n1", Site: "site-1"}, {Id: fmt.Sprintf("%032x", 18), Node: "s1n2", Site: "site-1"}}
	pos := &dozov1.Position{Epoch: "1", Seq: 120, Hash: "00112233445566778899aabbccddeeff"}
	p := &dozov1.Placement{Owner: v.GetOwner(), OwnerSite: v.GetOwnerSite(), Epoch: v.GetEpoch(), Commit: pos, Stable: pos,
		Ensembles: []*dozov1.Ensemble{{Number: 1, Epoch: "1", Newest: true, Stores: refs}}, Copies: copies(false), SegmentsOpen: 1, MappedBytes: 1 << 20,
		SiteReplicas: []*dozov1.SiteReplicas{{Site: "site-1", Segments: 1, Replicas: 2, SizeBytes: 2 << 20}}}
	if req.GetSegments() {
		seg := ident.SegmentID{Site: 1, Epoch: ident.Epoch{Number: 1}, Number: 1}
		p.Segments = []*dozov1.Segment{{Id: seg.String(), Kind: "journal", State: "open", FirstSeq: 1, LastSeq: 120, SizeBytes: 1 << 20, Replicas: []*dozov1.Replica{
			{Store: refs[0], State: "open", LastSeq: 120, SizeBytes: 1 << 20, Path: "/data/a"}, {Store: refs[1], State: "open", LastSeq: 120, SizeBytes: 1 << 20, Path: "/data/b"}}}}
	}
	return proto.CloneOf(v), p, nil
}

func (b *Backend) changeVolume(ctx context.Context, method, action, tenant, ref string, change func(*dozov1.Volume) error) (*dozov1.Volume, error) {
	if err := b.enter(method); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, err := b.volumeLocked(tenant, ref)
	if err != nil {
		return nil, err
	}
	if err := change(v); err != nil {
		return nil, fmt.Errorf("volume %s/%s: %w", v.GetTenant(), v.GetName(), err)
	}
	b.eventLocked(ctx, action, "volume/"+v.GetTenant()+"/"+v.GetName())
	return proto.CloneOf(v), nil
}

// ResizeVolume implements api.Volumes.
func (b *Backend) ResizeVolume(ctx context.Context, req *dozov1.ResizeVolumeRequest) (*dozov1.Volume, error) {
	return b.changeVolume(ctx, "ResizeVolume", "volume.resize", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		if req.GetSizeBytes() < v.GetSizeBytes() && !req.GetAllowShrink() {
			return fmt.Errorf("would become smaller: %w", api.ErrRefused)
		}
		v.SizeBytes = req.GetSizeBytes()
		return nil
	})
}

// RenameVolume implements api.Volumes.
func (b *Backend) RenameVolume(ctx context.Context, req *dozov1.RenameVolumeRequest) (*dozov1.Volume, error) {
	return b.changeVolume(ctx, "RenameVolume", "volume.rename", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		if _, err := b.volumeLocked(v.GetTenant(), req.GetNewName()); err == nil {
			return fmt.Errorf("rename to %s: %w", req.GetNewName(), control.ErrExists)
		}
		v.Name = req.GetNewName()
		return nil
	})
}

// SetVolume implements api.Volumes.
func (b *Backend) SetVolume(ctx context.Context, req *dozov1.SetVolumeRequest) (*dozov1.Volume, error) {
	return b.changeVolume(ctx, "SetVolume", "volume.set", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		v.Ownership = cmp.Or(req.GetOwnership(), v.GetOwnership())
		v.Partition = cmp.Or(req.GetPartition(), v.GetPartition())
		v.Ack, v.AckInEffect = cmp.Or(req.GetAck(), v.GetAck()), cmp.Or(req.GetAck(), v.GetAckInEffect())
		for _, name := range req.GetHosts() {
			if !slices.ContainsFunc(b.hosts, func(h *dozov1.Host) bool { return h.GetTenant() == v.GetTenant() && h.GetName() == name }) {
				return fmt.Errorf("host %s/%s: %w", v.GetTenant(), name, control.ErrNotFound)
			}
		}
		if req.GetAllHosts() || len(req.GetHosts()) > 0 {
			v.Hosts = req.GetHosts()
		}
		v.AluaRemote, v.Redirect = cmp.Or(req.GetAluaRemote(), v.GetAluaRemote()), cmp.Or(req.GetRedirect(), v.GetRedirect())
		return nil
	})
}

// MapVolume implements api.Volumes.
func (b *Backend) MapVolume(ctx context.Context, req *dozov1.MapVolumeRequest) (m *dozov1.VolumeMap, err error) {
	_, err = b.changeVolume(ctx, "MapVolume", "volume.map", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		if !slices.ContainsFunc(b.hosts, func(h *dozov1.Host) bool { return h.GetTenant() == v.GetTenant() && h.GetName() == req.GetHost() }) {
			return fmt.Errorf("host %s: %w", req.GetHost(), control.ErrNotFound)
		}
		of := func(lun uint32) bool {
			return slices.ContainsFunc(b.maps, func(x *dozov1.VolumeMap) bool { return x.GetHost() == req.GetHost() && x.GetLun() == lun })
		}
		lun := req.GetLun()
		for req.Lun == nil && of(lun) {
			lun++
		}
		if of(lun) || slices.ContainsFunc(b.maps, func(x *dozov1.VolumeMap) bool { return x.GetHost() == req.GetHost() && x.GetVolumeId() == v.GetId() }) {
			return fmt.Errorf("mapped to host %s: %w", req.GetHost(), control.ErrExists)
		}
		m = &dozov1.VolumeMap{Tenant: v.GetTenant(), Host: req.GetHost(), Lun: lun, Volume: v.GetName(), VolumeId: v.GetId(), ReadOnly: req.GetReadOnly(),
			Iqn: "iqn.2026-01.dozo:hosts"}
		b.maps = append(b.maps, m)
		return nil
	})
	return m, err
}

// UnmapVolume implements api.Volumes.
func (b *Backend) UnmapVolume(ctx context.Context, req *dozov1.UnmapVolumeRequest) (m *dozov1.VolumeMap, err error) {
	_, err = b.changeVolume(ctx, "UnmapVolume", "volume.unmap", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		i := slices.IndexFunc(b.maps, func(x *dozov1.VolumeMap) bool { return x.GetHost() == req.GetHost() && x.GetVolumeId() == v.GetId() })
		if i < 0 {
			return fmt.Errorf("not mapped to host %s: %w", req.GetHost(), control.ErrNotFound)
		}
		m = b.maps[i]
		b.maps = slices.Delete(b.maps, i, i+1)
		return nil
	})
	return m, err
}

// VolumeMaps implements api.Volumes.
func (b *Backend) VolumeMaps(_ context.Context, req *dozov1.VolumeMapsRequest) ([]*dozov1.VolumeMap, error) {
	if err := b.enter("VolumeMaps"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := ""
	if req.GetVolume() != "" {
		v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
		if err != nil {
			return nil, err
		}
		id = v.GetId()
	}
	return clones(b.maps, func(m *dozov1.VolumeMap) bool {
		return (id == "" || m.GetVolumeId() == id) && (req.GetHost() == "" || m.GetHost() == req.GetHost())
	}), nil
}

// DeleteVolume implements api.Volumes.
func (b *Backend) DeleteVolume(ctx context.Context, req *dozov1.DeleteVolumeRequest) (*dozov1.Volume, error) {
	return b.changeVolume(ctx, "DeleteVolume", "volume.delete", req.GetTenant(), req.GetVolume(), func(v *dozov1.Volume) error {
		open := slices.ContainsFunc(b.sessions, func(s *dozov1.Session) bool { return s.GetVolume() == v.GetName() })
		if open && !req.GetForce() {
			return fmt.Errorf("sessions are open: %w", control.ErrInUse)
		}
		v.State = "deleting"
		b.volumes = slices.DeleteFunc(b.volumes, func(x *dozov1.Volume) bool { return x == v })
		return nil
	})
}

// DeleteVolumes implements api.Volumes.
func (b *Backend) DeleteVolumes(ctx context.Context, req *dozov1.DeleteVolumesRequest, progress func(*dozov1.DeleteVolumesResponse) error) error {
	if err := b.enter("DeleteVolumes"); err != nil {
		return err
	}
	var names []string
	b.mu.Lock()
	for _, n := range req.GetVolumes() {
		if _, err := b.volumeLocked(req.GetTenant(), n); err == nil {
			names = append(names, n)
		} else if !req.GetIfExists() {
			b.mu.Unlock()
			return err
		}
	}
	b.mu.Unlock()
	r := &dozov1.DeleteVolumesResponse{Total: uint32(len(names))}
	if err := progress(r); err != nil {
		return err
	}
	for some := range slices.Chunk(names, manyAtATime) {
		r.Volumes = nil
		for _, n := range some {
			v, err := b.DeleteVolume(ctx, &dozov1.DeleteVolumeRequest{Tenant: req.GetTenant(), Volume: n, Force: req.GetForce()})
			if err != nil {
				return err
			}
			r.Volumes = append(r.Volumes, v)
		}
		r.Deleted += uint32(len(some))
		if err := progress(r); err != nil {
			return err
		}
	}
	return nil
}

// VolumeTargets implements api.Volumes.
func (b *Backend) VolumeTargets(_ context.Context, req *dozov1.VolumeTargetsRequest) ([]*dozov1.Target, error) {
	if err := b.enter("VolumeTargets"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	if err != nil {
		return nil, err
	}
	own := cmp.Or(req.GetSite(), "site-1")
	var out []*dozov1.Target
	for _, n := range b.nodes {
		for _, p := range n.GetPortals() {
			out = append(out, &dozov1.Target{Url: "iscsi://" + p + "/iqn.2026-01.dozo:" + v.GetName() + "/0", Node: n.GetName(), Site: n.GetSite(), Portal: p, Iqn: v.GetIqn(), Tpgt: n.GetTpgt(), Up: n.GetState() == "up"})
		}
	}
	slices.SortStableFunc(out, func(a, b *dozov1.Target) int {
		rank := func(t *dozov1.Target) int {
			if t.GetSite() == own {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	return out, nil
}

// MoveVolume implements api.Volumes.
func (b *Backend) MoveVolume(ctx context.Context, req *dozov1.MoveVolumeRequest, progress func(*dozov1.MoveVolumeResponse) error) error {
	if err := b.enter("MoveVolume"); err != nil {
		return err
	}
	b.mu.Lock()
	_, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	i := slices.IndexFunc(b.nodes, func(n *dozov1.Node) bool { return n.GetName() == req.GetTo() || n.GetSite() == req.GetTo() })
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if i < 0 {
		return fmt.Errorf("no node and no site is named %s: %w", req.GetTo(), control.ErrNotFound)
	}
	r := &dozov1.MoveVolumeResponse{Owner: b.nodes[i].GetName(), OwnerSite: b.nodes[i].GetSite(), Phase: "copying", LagBytes: 3 << 20}
	if err := progress(r); err != nil {
		return err
	}
	return progress(&dozov1.MoveVolumeResponse{Done: true, Owner: r.Owner, OwnerSite: r.OwnerSite, Phase: "done", Epoch: "7.1", Pause: durationpb.New(42 * time.Millisecond)})
}

// WaitVolume implements api.Volumes. With a negative lag it waits for ever.
func (b *Backend) WaitVolume(ctx context.Context, req *dozov1.WaitVolumeRequest, progress func(*dozov1.WaitVolumeResponse) error) error {
	if err := b.enter("WaitVolume"); err != nil {
		return err
	}
	b.mu.Lock()
	_, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	lag := b.lag
	b.mu.Unlock()
	if err != nil {
		return err
	}
	for i := range max(lag, 1) {
		if err := progress(&dozov1.WaitVolumeResponse{TargetSeq: 120, RemainingBytes: uint64(lag-i) * 20 << 20, Copies: copies(true)}); err != nil {
			return err
		}
	}
	if lag < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return progress(&dozov1.WaitVolumeResponse{Done: true, TargetSeq: 120, Copies: copies(false)})
}

// emptyBackup is a backup of a control store that has a cluster and a site.
func emptyBackup() []byte {
	ctx := context.Background()
	c, err := control.NewMem().Open(ctx, control.Options{Now: func() time.Time { return Epoch }})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	var buf bytes.Buffer
	if _, err = c.InitCluster(ctx, control.Cluster{Name: "test", ID: strings.Repeat("0123456789abcdef", 2), Lineage: 7}); err == nil {
		if _, err = c.CreateSite(ctx, control.Site{Name: "site-1"}); err == nil {
			var s *control.Snapshot
			if s, err = c.Backup(ctx); err == nil {
				err = s.Write(&buf)
			}
		}
	}
	if err != nil {
		panic(err) // nothing here depends on anything outside
	}
	return buf.Bytes()
}
