package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dozo/internal/access"
	"dozo/internal/access/reserve"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/wire"
)

// reservationTypes are the names of SPC-4 table 143, as they are typed.
var reservationTypes = map[reserve.Type]string{
	reserve.WriteExclusive: "write-exclusive", reserve.ExclusiveAccess: "exclusive-access",
	reserve.WriteExclusiveRegistrants: "write-exclusive-registrants-only", reserve.ExclusiveAccessRegistrants: "exclusive-access-registrants-only",
	reserve.WriteExclusiveAll: "write-exclusive-all-registrants", reserve.ExclusiveAccessAll: "exclusive-access-all-registrants",
}

// initiatorPort names an initiator port.
type initiatorPort struct{ initiator, isid string }

// portsLoggedIn lists the initiator ports that have a session, and the access servers that could not be asked.
func (b *backend) portsLoggedIn(ctx context.Context) (map[initiatorPort]bool, []string, error) {
	list, unheard, err := b.ListSessions(ctx, &dozov1.ListSessionsRequest{})
	in := map[initiatorPort]bool{}
	for _, s := range list {
		if s.Type != "discovery" {
			in[initiatorPort{s.InitiatorName, s.Isid}] = true
		}
	}
	return in, unheard, err
}

// registration describes a nexus.
func (b *backend) registration(c *control.Client, n reserve.NexusID, in map[initiatorPort]bool) *dozov1.Registration {
	r := &dozov1.Registration{InitiatorName: n.Initiator, Isid: hex.EncodeToString(n.ISID[:]), TargetPort: uint32(n.Port)}
	r.LoggedIn = in[initiatorPort{r.InitiatorName, r.Isid}]
	if h, ok := c.HostByInitiator(n.Initiator); ok {
		r.Host = h.Name
	}
	nodes := c.Nodes()
	if i := slices.IndexFunc(nodes, func(x control.Node) bool { return x.TPGT == n.Port && n.Port != 0 }); i >= 0 {
		r.Node = string(nodes[i].Name)
	}
	return r
}

// servedVolume is a volume as this node's access server has it.
func (b *backend) servedVolume(v control.VolumeSpec) (*access.Volume, error) {
	srv, err := b.accessServer()
	if err != nil {
		return nil, err
	}
	vol, ok := srv.Volume(v.ID)
	if !ok {
		return nil, fmt.Errorf("volume %s is not known here yet: %w", v.Name, api.ErrUnavailable)
	}
	return vol, nil
}

// Reservations implements api.Reservations: the owner is asked, so that nothing that is committed is missing.
func (b *backend) Reservations(ctx context.Context, req *dozov1.GetReservationsRequest) (*dozov1.Reservations, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	return b.reservationsOf(ctx, v)
}

func (b *backend) reservationsOf(ctx context.Context, v control.VolumeSpec) (*dozov1.Reservations, error) {
	vol, err := b.servedVolume(v)
	if err != nil {
		return nil, err
	}
	actx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	snap, err := vol.AskUnit(actx)
	if err != nil {
		return nil, fmt.Errorf("the owner of volume %s does not answer: %w (%w)", v.Name, api.ErrUnavailable, err)
	}
	in, unheard, err := b.portsLoggedIn(ctx)
	if err != nil {
		return nil, err
	}
	c, s := b.n.control(), snap.State
	out := &dozov1.Reservations{VolumeId: v.ID.String(), Volume: v.Name, Tenant: v.Tenant, Generation: s.Generation, Type: reservationTypes[s.Type], Unheard: unheard}
	for _, r := range s.Registrations {
		m := b.registration(c, r.Nexus, in)
		m.Key, m.Holder = fmt.Sprintf("%016x", r.Key), s.Holds(r.Nexus)
		out.Registrations = append(out.Registrations, m)
	}
	if s.Legacy != nil {
		out.Reserved = b.registration(c, s.Legacy.Nexus, in)
	}
	slices.SortStableFunc(out.Registrations, func(x, y *dozov1.Registration) int {
		return cmp.Or(cmp.Compare(x.InitiatorName, y.InitiatorName), cmp.Compare(x.Isid, y.Isid), cmp.Compare(x.TargetPort, y.TargetPort))
	})
	return out, nil
}

// ClearReservations implements api.Reservations: the owner records it.
func (b *backend) ClearReservations(ctx context.Context, req *dozov1.ClearReservationsRequest) (gone []*dozov1.Registration, left *dozov1.Reservations, err error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, nil, err
	}
	if req.Node != "" {
		if req.Node != string(b.n.cfg.Node) {
			return nil, nil, fmt.Errorf("node %s was asked for %s: %w", b.n.cfg.Node, req.Node, control.ErrInvalid)
		}
		return nil, nil, b.evict(ctx, v, req.InitiatorName)
	}
	is, err := b.reservationsOf(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range append(slices.Clone(is.Registrations), is.Reserved) {
		if r != nil && (req.InitiatorName == "" || r.InitiatorName == req.InitiatorName) {
			gone = append(gone, r)
		}
	}
	switch i := slices.IndexFunc(gone, func(r *dozov1.Registration) bool { return r.LoggedIn }); {
	case len(gone) == 0 && req.InitiatorName != "":
		return nil, nil, fmt.Errorf("initiator %s has neither registered nor reserved at volume %s: %w", req.InitiatorName, v.Name, control.ErrNotFound)
	case len(gone) == 0:
		return nil, is, nil
	case req.Force:
	case i >= 0:
		return nil, nil, fmt.Errorf("initiator %s (ISID %s) is logged in, and may count on what it has reserved at volume %s; have it release that, or clear with force: %w",
			gone[i].InitiatorName, gone[i].Isid, v.Name, control.ErrInUse)
	case len(is.Unheard) > 0:
		return nil, nil, fmt.Errorf("whether who has reserved at volume %s is logged in can not be found out, as %s can not be asked; clear with force if it is not: %w",
			v.Name, strings.Join(is.Unheard, ", "), control.ErrInUse)
	}
	vol, err := b.servedVolume(v)
	if err != nil {
		return nil, nil, err
	}
	owner := vol.OwnerNode()
	if owner == b.n.cfg.Node {
		err = b.evict(ctx, v, req.InitiatorName)
	} else if x, ok := b.n.control().Node(owner); ok {
		err = b.n.callNode(ctx, x, func(ctx context.Context, api *api.Client) error {
			_, err := api.Reservations.Clear(ctx, &dozov1.ClearReservationsRequest{Volume: v.ID.String(), Tenant: v.Tenant, InitiatorName: req.InitiatorName, Force: true, Node: string(x.Name)})
			return err
		})
	} else {
		err = fmt.Errorf("volume %s has no owner: %w", v.Name, api.ErrUnavailable)
	}
	if err != nil {
		return nil, nil, err
	}
	left, err = b.reservationsOf(ctx, v)
	return gone, left, err
}

// evict has the owner, which is here, remove reservations.
func (b *backend) evict(ctx context.Context, v control.VolumeSpec, initiator string) error {
	vol, err := b.servedVolume(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	if err := vol.Evict(ctx, initiator); err != nil {
		if errors.Is(err, wire.ErrNotOwner) {
			err = errors.Join(err, api.ErrUnavailable)
		}
		return fmt.Errorf("clear the reservations of volume %s: %w", v.Name, err)
	}
	b.n.log.Info("reservations cleared", "volume", v.Name, "initiator", initiator)
	return nil
}
