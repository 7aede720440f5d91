package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// CreateVolumes implements api.Volumes.
func (b *backend) CreateVolumes(ctx context.Context, req *dozov1.CreateVolumesRequest, progress func(*dozov1.CreateVolumesResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	like, sites, err := b.newVolume(c, req.Like)
	if err != nil {
		return err
	}
	for _, name := range req.Names {
		if _, taken := c.VolumeByName(like.Tenant, name); taken {
			return fmt.Errorf("volume %s/%s: %w", like.Tenant, name, control.ErrExists)
		}
	}
	r := &dozov1.CreateVolumesResponse{Total: uint32(len(req.Names))}
	for names := range slices.Chunk(req.Names, atATime(like.Hosts)) {
		list := make([]control.VolumeSpec, len(names))
		for i, name := range names {
			list[i] = like
			list[i].Name = name
		}
		list, err := patiently(ctx, func() ([]control.VolumeSpec, error) { return c.CreateVolumes(ctx, list, sites) })
		if err != nil {
			return err
		}
		r.Made += uint32(len(list))
		r.Volumes = b.describeAll(list)
		if err := progress(r); err != nil {
			return err
		}
	}
	return nil
}

// manyPatience is how long a call for many volumes waits for a control store that does not answer: thousands are not left half
// done for a change of its leader.
const manyPatience = time.Minute

// patiently tries again what surely had no effect.
func patiently(ctx context.Context, f func() ([]control.VolumeSpec, error)) ([]control.VolumeSpec, error) {
	for begun := time.Now(); ; {
		list, err := f()
		if err == nil || errors.Is(err, control.ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || time.Since(begun) > manyPatience {
			return list, err
		}
	}
}

// hostsFew is up to how many hosts volumes may name to be made several in a transaction: each host is one of its conditions.
const hostsFew = 16

func atATime(hosts []string) int {
	if len(hosts) > hostsFew {
		return 1
	}
	return control.VolumesPerTxn
}

func (b *backend) describeAll(list []control.VolumeSpec) []*dozov1.Volume {
	out := make([]*dozov1.Volume, len(list))
	for i, v := range list {
		out[i] = b.describe(v, nil)
	}
	return out
}

// DeleteVolumes implements api.Volumes. With force they are deleted first, as DeleteVolume does with one.
func (b *backend) DeleteVolumes(ctx context.Context, req *dozov1.DeleteVolumesRequest, progress func(*dozov1.DeleteVolumesResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	var ids []ident.JournalID
	named := map[ident.JournalID]bool{}
	for _, name := range req.Volumes {
		v, err := b.volume(name, req.Tenant)
		if err != nil {
			return err
		}
		if named[v.ID] {
			return fmt.Errorf("volume %s is named twice, by its name and by its ID: %w", v.Name, control.ErrInvalid)
		}
		named[v.ID] = true
		ids = append(ids, v.ID)
	}
	if !req.Force {
		if err := b.allDeletable(ctx, ids); err != nil {
			return err
		}
	}
	r := &dozov1.DeleteVolumesResponse{Total: uint32(len(ids))}
	for some := range slices.Chunk(ids, control.VolumesPerTxn) {
		if !req.Force && r.Deleted > 0 { // the first were looked at just now; since then somebody may have logged in to others
			if err := b.allDeletable(ctx, some); err != nil {
				return err
			}
		}
		list, err := patiently(ctx, func() ([]control.VolumeSpec, error) { return c.DeleteVolumes(ctx, some) })
		if err != nil {
			return err
		}
		r.Deleted += uint32(len(list))
		r.Volumes = b.describeAll(list)
		if err := progress(r); err != nil {
			return err
		}
	}
	if req.Force {
		b.awaitSessionsEnded(ctx, ids...)
	}
	return nil
}

// allDeletable asks for all sessions once, and says of the first volume that has some, or is mapped, that it is in use.
func (b *backend) allDeletable(ctx context.Context, ids []ident.JournalID) error {
	sessions, unheard, err := b.ListSessions(ctx, &dozov1.ListSessionsRequest{})
	if err != nil {
		return err
	}
	open := map[string][]*dozov1.Session{}
	for _, s := range sessions {
		open[s.VolumeId] = append(open[s.VolumeId], s)
	}
	for _, id := range ids {
		v, ok := b.n.control().Volume(id)
		if !ok {
			return fmt.Errorf("volume %s: %w", id, control.ErrNotFound)
		}
		if err := deletable(v, open[id.String()], unheard); err != nil {
			return err
		}
	}
	return nil
}
