package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"dozo/internal/access/export"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
)

func (b *backend) mapMessage(v control.VolumeSpec, m control.Map) *dozov1.VolumeMap {
	cl, _ := b.n.control().Cluster()
	return &dozov1.VolumeMap{Tenant: v.Tenant, Host: m.Host, Lun: uint32(m.LUN), Volume: v.Name, VolumeId: v.ID.String(), ReadOnly: m.ReadOnly,
		Iqn: export.HostsIQN(cl.ID)}
}

// MapVolume implements api.Volumes. A host has a volume by one target: the same initiator port may not be at one logical
// unit twice.
func (b *backend) MapVolume(ctx context.Context, req *dozov1.MapVolumeRequest) (*dozov1.VolumeMap, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	sessions, unheard, err := b.sessionsOf(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	sessions = slices.DeleteFunc(sessions, func(s *dozov1.Session) bool { return s.Host != req.Host || s.Tenant != v.Tenant })
	switch {
	case len(sessions) > 0:
		return nil, fmt.Errorf("host %s has open sessions (%d) at the own target of volume %s: %s; log out there first: %w", req.Host, len(sessions), v.Name, describeSessions(sessions), control.ErrInUse)
	case len(unheard) > 0:
		b.n.log.Warn("mapped without a word from access servers that may have sessions of the host", "volume", v.Name, "host", req.Host, "peers", unheard)
	}
	lun := -1
	if req.Lun != nil {
		lun = int(req.GetLun())
	}
	m, err := b.n.control().MapVolume(ctx, v.ID, req.Host, lun, req.ReadOnly)
	if err != nil {
		return nil, err
	}
	return b.mapMessage(v, m), nil
}

// UnmapVolume implements api.Volumes.
func (b *backend) UnmapVolume(ctx context.Context, req *dozov1.UnmapVolumeRequest) (*dozov1.VolumeMap, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	m, err := b.n.control().UnmapVolume(ctx, v.ID, req.Host)
	if err != nil {
		return nil, err
	}
	return b.mapMessage(v, m), nil
}

// VolumeMaps implements api.Volumes.
func (b *backend) VolumeMaps(_ context.Context, req *dozov1.VolumeMapsRequest) (out []*dozov1.VolumeMap, err error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	list := c.Volumes()
	if req.Volume != "" {
		v, err := b.volume(req.Volume, req.Tenant)
		if err != nil {
			return nil, err
		}
		list = []control.VolumeSpec{v}
	}
	for _, v := range list {
		for _, m := range v.Maps {
			if (req.Host == "" || m.Host == req.Host) && (req.Tenant == "" || v.Tenant == req.Tenant) {
				out = append(out, b.mapMessage(v, m))
			}
		}
	}
	slices.SortFunc(out, func(a, b *dozov1.VolumeMap) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Lun, b.Lun))
	})
	return out, nil
}
