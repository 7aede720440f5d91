package apitest

import (
	"context"
	"fmt"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
)

// reservationsLocked are those of a volume: what its sessions' ports have registered with key 1, the first of which holds a reservation.
func (b *Backend) reservationsLocked(v *dozov1.Volume) *dozov1.Reservations {
	r := &dozov1.Reservations{VolumeId: v.GetId(), Volume: v.GetName(), Tenant: v.GetTenant(), Generation: 1}
	for _, s := range b.sessions {
		if s.GetVolume() == v.GetName() && !b.evicted[s.GetInitiatorName()] {
			r.Registrations = append(r.Registrations, &dozov1.Registration{InitiatorName: s.GetInitiatorName(), Isid: s.GetIsid(), Host: s.GetHost(), Node: s.GetNode(),
				TargetPort: 1, Key: "0000000000000001", Holder: r.Type == "", LoggedIn: true})
			r.Type = "write-exclusive"
		}
	}
	return r
}

// Reservations implements api.Reservations.
func (b *Backend) Reservations(_ context.Context, req *dozov1.GetReservationsRequest) (*dozov1.Reservations, error) {
	if err := b.enter("Reservations"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	if err != nil {
		return nil, err
	}
	return b.reservationsLocked(v), nil
}

// ClearReservations implements api.Reservations.
func (b *Backend) ClearReservations(ctx context.Context, req *dozov1.ClearReservationsRequest) (gone []*dozov1.Registration, left *dozov1.Reservations, err error) {
	if err := b.enter("ClearReservations"); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, err := b.volumeLocked(req.GetTenant(), req.GetVolume())
	if err != nil {
		return nil, nil, err
	}
	for _, r := range b.reservationsLocked(v).GetRegistrations() {
		if req.GetInitiatorName() == "" || req.GetInitiatorName() == r.GetInitiatorName() {
			gone = append(gone, r)
		}
	}
	if len(gone) > 0 && !req.GetForce() {
		return nil, nil, fmt.Errorf("volume %s: %s is logged in: %w", v.GetName(), gone[0].GetInitiatorName(), control.ErrInUse)
	}
	for _, r := range gone {
		b.evicted[r.GetInitiatorName()] = true
	}
	b.eventLocked(ctx, "reservation.clear", "volume/"+req.GetTenant()+"/"+req.GetVolume())
	return gone, b.reservationsLocked(v), nil
}
