package node

import (
	"context"
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
	return atOnce(slices.Collect(slices.Chunk(req.Names, atATime(like.Hosts))), func(names []string) ([]control.VolumeSpec, error) {
		list := make([]control.VolumeSpec, len(names))
		for i, name := range names {
			list[i] = like
			list[i].ID, list[i].Name = ident.NewJournalID(), name // an ID of ours: it is known whose the volume is
		}
		return b.patiently(ctx, func() ([]control.VolumeSpec, error) { return c.CreateVolumes(ctx, list, sites) })
	}, func(list []control.VolumeSpec) error {
		r.Made += uint32(len(list))
		r.Volumes = b.describeAll(list)
		return progress(r)
	})
}

// manyAtOnce is how many transactions of a call are under way: most of the time of one is waiting.
const manyAtOnce = 4

// atOnce does the parts, several at a time, and reports each that is done, also those that are under way when another fails. It
// begins none after the first error, which it gives.
func atOnce[P any](parts []P, do func(P) ([]control.VolumeSpec, error), done func([]control.VolumeSpec) error) error {
	type result struct {
		list []control.VolumeSpec
		err  error
	}
	results := make(chan result)
	var first error
	running := 0
	for len(parts) > 0 && first == nil || running > 0 {
		for len(parts) > 0 && first == nil && running < manyAtOnce {
			part := parts[0]
			parts = parts[1:]
			running++
			go func() {
				list, err := do(part)
				results <- result{list, err}
			}()
		}
		r := <-results
		running--
		if r.err == nil {
			r.err = done(r.list)
		}
		if first == nil {
			first = r.err
		}
	}
	return first
}

// manyPatience is how long a call for many volumes waits for a control store that does not answer: thousands are not left half
// done for a change of its leader.
const manyPatience = time.Minute

// patiently tries again while the control store does not answer; f has to be such that doing it twice is doing it once.
func (b *backend) patiently(ctx context.Context, f func() ([]control.VolumeSpec, error)) (list []control.VolumeSpec, err error) {
	ctx, cancel := context.WithTimeout(ctx, manyPatience)
	defer cancel()
	err = insist(ctx, b.n.log, "many volumes", func() (err error) {
		list, err = f()
		return err
	})
	return list, err
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
	err = atOnce(slices.Collect(slices.Chunk(ids, control.VolumesPerTxn)), func(some []ident.JournalID) ([]control.VolumeSpec, error) {
		if !req.Force && len(ids) > len(some) { // since all were looked at somebody may have logged in to these
			if err := b.allDeletable(ctx, some); err != nil {
				return nil, err
			}
		}
		return b.patiently(ctx, func() ([]control.VolumeSpec, error) { return c.DeleteVolumes(ctx, some) })
	}, func(list []control.VolumeSpec) error {
		r.Deleted += uint32(len(list))
		r.Volumes = b.describeAll(list)
		return progress(r)
	})
	if err != nil {
		return err
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
