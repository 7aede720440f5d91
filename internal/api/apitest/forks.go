package apitest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
)

// AddFork gives a volume a fork: its ID is 5.c0ffee00.
func (b *Backend) AddFork(volume string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forks = append(b.forks, &dozov1.Fork{Tenant: "default", Volume: volume, Id: "5.c0ffee00", Epoch: "4.c0ffee00", BaseSeq: 1200, LastSeq: 1242, Writes: 40, SizeBytes: 42 * 4264,
		FirstTime: timestamppb.New(Epoch), LastTime: timestamppb.New(Epoch.Add(1500 * time.Millisecond)),
		Replicas: []*dozov1.ForkReplica{{Segment: "0123", Store: fmt.Sprintf("%032x", 17), Node: "s1n1", Site: "site-1", LastSeq: 1242, SizeBytes: 300000}}})
}

// SetSiteDown says that no node of a site answers.
func (b *Backend) SetSiteDown(site string, down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if n.Site == site {
			n.State = "up"
			if down {
				n.State = "down"
			}
		}
	}
}

func (b *Backend) siteLocked(name string) error {
	if !slices.ContainsFunc(b.sites, func(s *dozov1.Site) bool { return s.GetName() == name }) {
		return fmt.Errorf("site %s: %w", name, control.ErrNotFound)
	}
	return nil
}

// FailoverSite implements api.Sites.
func (b *Backend) FailoverSite(_ context.Context, req *dozov1.FailoverSiteRequest, progress func(*dozov1.FailoverSiteResponse) error) error {
	if err := b.enter("FailoverSite"); err != nil {
		return err
	}
	b.mu.Lock()
	err := b.siteLocked(req.GetSite())
	r := &dozov1.FailoverSiteResponse{}
	for _, n := range b.nodes {
		if n.GetSite() == req.GetSite() && n.GetState() == "up" {
			r.Alive = append(r.Alive, n.GetName())
		}
	}
	for _, v := range b.volumes {
		if v.GetOwnerSite() == req.GetSite() {
			r.Volumes = append(r.Volumes, &dozov1.VolumeFailover{Id: v.GetId(), Tenant: v.GetTenant(), Volume: v.GetName(), State: "planned", From: v.GetOwner(), FromSite: v.GetOwnerSite(),
				Owner: "s2n1", OwnerSite: "site-2", LastSeq: 1200, LastTime: timestamppb.New(Epoch), LostRecords: 42, LostBytes: 42 * 4264, LostSeconds: 1.5,
				Reach: []*dozov1.SiteReach{{Site: "site-2", Seq: 1200}, {Site: "site-3", Seq: 1190}}})
		}
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if req.GetDryRun() {
		r.Done = true
		return progress(r)
	}
	if len(r.Alive) > 0 && !req.GetForce() {
		return fmt.Errorf("site %s is alive, or was seconds ago: %w", req.GetSite(), api.ErrRefused)
	}
	if err := progress(proto.CloneOf(r)); err != nil {
		return err
	}
	b.mu.Lock()
	for _, f := range r.Volumes {
		f.State, f.Epoch = "serving", "5.c0ffee00"
		for _, v := range b.volumes {
			if v.GetId() == f.GetId() {
				v.Owner, v.OwnerSite, v.Epoch = "s2n1", "site-2", f.Epoch
			}
		}
	}
	b.mu.Unlock()
	r.Done = true
	return progress(r)
}

// FailbackSite implements api.Sites.
func (b *Backend) FailbackSite(_ context.Context, req *dozov1.FailbackSiteRequest, progress func(*dozov1.FailbackSiteResponse) error) error {
	if err := b.enter("FailbackSite"); err != nil {
		return err
	}
	b.mu.Lock()
	err := b.siteLocked(req.GetSite())
	r := &dozov1.FailbackSiteResponse{Done: req.GetDryRun()}
	for _, v := range b.volumes {
		if v.GetAtSite() == req.GetSite() && v.GetOwnerSite() != req.GetSite() {
			r.Volumes = append(r.Volumes, &dozov1.VolumeFailback{Id: v.GetId(), Tenant: v.GetTenant(), Volume: v.GetName(), State: "planned", Owner: v.GetOwner(), OwnerSite: v.GetOwnerSite(), LagBytes: 3 << 20})
		}
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if err := progress(proto.CloneOf(r)); err != nil || req.GetDryRun() {
		return err
	}
	for _, m := range r.Volumes {
		m.State, m.Owner, m.OwnerSite, m.LagBytes, m.Pause = "home", "s1n1", req.GetSite(), 0, durationpb.New(42*time.Millisecond)
	}
	r.Done = true
	return progress(r)
}

// RecoverVolume implements api.Volumes.
func (b *Backend) RecoverVolume(_ context.Context, req *dozov1.RecoverVolumeRequest, progress func(*dozov1.RecoverVolumeResponse) error) error {
	if err := b.enter("RecoverVolume"); err != nil {
		return err
	}
	b.mu.Lock()
	v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	b.mu.Unlock()
	if err != nil {
		return err
	}
	m := &dozov1.VolumeFailover{Id: v.GetId(), Tenant: v.GetTenant(), Volume: v.GetName(), State: "planned", From: v.GetOwner(), FromSite: v.GetOwnerSite(), Owner: "s1n2", OwnerSite: "site-1", LastSeq: 1200}
	if req.GetDryRun() {
		return progress(&dozov1.RecoverVolumeResponse{Done: true, Volume: m})
	}
	if !req.GetForce() {
		return fmt.Errorf("volume %s: it is served by %s: there is nothing to recover: %w", v.GetName(), v.GetOwner(), api.ErrRefused)
	}
	m.State, m.Epoch = "serving", "5.c0ffee00"
	return progress(&dozov1.RecoverVolumeResponse{Done: true, Volume: m})
}

func (b *Backend) forkLocked(volume, fork string) (*dozov1.Fork, error) {
	for _, f := range b.forks {
		if f.GetVolume() == volume && (fork == "" || fork == f.GetId()) {
			return proto.CloneOf(f), nil
		}
	}
	return nil, fmt.Errorf("volume %s has no fork %s: %w", volume, fork, control.ErrNotFound)
}

func (b *Backend) fork(method, volume, fork string) (*dozov1.Fork, error) {
	if err := b.enter(method); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.forkLocked(volume, fork)
}

// ListForks implements api.Forks.
func (b *Backend) ListForks(_ context.Context, req *dozov1.ListForksRequest) (out []*dozov1.Fork, unheard []string, err error) {
	if err := b.enter("ListForks"); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.forks {
		if req.GetVolume() == "" || req.GetVolume() == f.GetVolume() {
			out = append(out, proto.CloneOf(f))
		}
	}
	return out, nil, nil
}

// GetFork implements api.Forks.
func (b *Backend) GetFork(_ context.Context, req *dozov1.GetForkRequest) (*dozov1.Fork, error) {
	return b.fork("GetFork", req.GetVolume(), req.GetFork())
}

// DiffFork implements api.Forks.
func (b *Backend) DiffFork(_ context.Context, req *dozov1.DiffForkRequest, send func(*dozov1.DiffForkResponse) error) error {
	if _, err := b.fork("DiffFork", req.GetVolume(), req.GetFork()); err != nil {
		return err
	}
	if err := send(&dozov1.DiffForkResponse{Ranges: []*dozov1.ByteRange{{Offset: 0, Length: 8192}}, DifferingBytes: 8192, ComparedBytes: 1 << 20, SizeBytes: 4 << 20}); err != nil {
		return err
	}
	return send(&dozov1.DiffForkResponse{Done: true, Ranges: []*dozov1.ByteRange{{Offset: 2 << 20, Length: 4096}}, DifferingBytes: 12288, ComparedBytes: 4 << 20, SizeBytes: 4 << 20})
}

// ExportFork implements api.Forks: 64 KiB of which 4 KiB at 8,192 are not zero.
func (b *Backend) ExportFork(_ context.Context, req *dozov1.ExportForkRequest, send func(*dozov1.ExportForkResponse) error) error {
	if _, err := b.fork("ExportFork", req.GetVolume(), req.GetFork()); err != nil {
		return err
	}
	data := make([]byte, 4096)
	for i := range data {
		data[i] = 'f'
	}
	if err := send(&dozov1.ExportForkResponse{SizeBytes: 64 << 10, Offset: 8192, Data: data}); err != nil {
		return err
	}
	return send(&dozov1.ExportForkResponse{Done: true, SizeBytes: 64 << 10, Offset: 64 << 10})
}

// CloneFork implements api.Forks.
func (b *Backend) CloneFork(ctx context.Context, req *dozov1.CloneForkRequest, send func(*dozov1.CloneForkResponse) error) error {
	if _, err := b.fork("CloneFork", req.GetVolume(), req.GetFork()); err != nil {
		return err
	}
	v, err := b.CreateVolume(ctx, &dozov1.CreateVolumeRequest{Tenant: req.GetTenant(), Name: req.GetName(), SizeBytes: 4 << 20, BlockSize: 512})
	if err != nil {
		return err
	}
	return send(&dozov1.CloneForkResponse{Done: true, CopiedBytes: 4 << 20, SizeBytes: 4 << 20, Id: v.GetId(), Name: v.GetName()})
}

// DeleteFork implements api.Forks.
func (b *Backend) DeleteFork(ctx context.Context, req *dozov1.DeleteForkRequest) (*dozov1.Fork, error) {
	f, err := b.fork("DeleteFork", req.GetVolume(), req.GetFork())
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forks = slices.DeleteFunc(b.forks, func(x *dozov1.Fork) bool { return x.GetVolume() == f.GetVolume() && x.GetId() == f.GetId() })
	return f, nil
}
