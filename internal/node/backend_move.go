package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// moveEvery is how often a hand-over is looked at; moveUnheard how long the node that hands over may be silent.
const (
	moveEvery   = 50 * time.Millisecond
	moveUnheard = 15 * time.Second
	// ownerPatience is how long a hand-over waits for the first owner of a volume.
	ownerPatience = 10 * time.Second
)

// handStep asks a node's access server for a step of a hand-over.
func (b *backend) handStep(ctx context.Context, node ident.NodeName, m *wire.HandOver) (wire.HandOverReply, error) {
	if node == b.n.cfg.Node && b.n.access != nil {
		return b.n.access.HandOver(ctx, node, m)
	}
	p, ok := b.n.accessPeer(node)
	if !ok {
		return wire.HandOverReply{}, wire.Errorf(wire.CodeUnreached, "node %s is not known", node)
	}
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	return p.HandOver(ctx, m)
}

// moveError says what an access server's refusal is to the API's callers.
func moveError(err error) error {
	var e *wire.Error
	if !errors.As(err, &e) {
		return err
	}
	is := api.ErrUnavailable
	switch e.Code {
	case wire.CodeAbsent:
		is = control.ErrNotFound
	case wire.CodeBadRequest:
		is = api.ErrRefused
	case wire.CodeConflict:
		is = control.ErrConflict
	}
	return fmt.Errorf("%s: %w", e.Detail, is)
}

// moveTarget finds what a volume is to be moved to: a node or a site.
func (b *backend) moveTarget(v control.VolumeSpec, to string) (m *wire.HandOver, site ident.SiteID, err error) {
	c := b.n.control()
	m = &wire.HandOver{Journal: v.ID, Step: wire.HandBegin}
	if x, ok := c.Node(ident.NodeName(to)); ok {
		switch {
		case !x.Has(control.RoleAccess):
			return nil, 0, fmt.Errorf("node %s is no access server: it can not own volumes: %w", to, api.ErrRefused)
		case x.Draining:
			return nil, 0, fmt.Errorf("node %s is draining; dozo node undrain ends that: %w", to, api.ErrRefused)
		}
		m.Node, site = x.Name, x.Site
	} else if s, ok := c.SiteByName(to); ok {
		if !slices.ContainsFunc(c.Nodes(), func(x control.Node) bool { return x.Site == s.ID && x.Has(control.RoleAccess) && !x.Draining }) {
			return nil, 0, fmt.Errorf("site %s has no access server that may own volumes: %w", to, api.ErrRefused)
		}
		m.Site, site = s.ID, s.ID
	} else {
		return nil, 0, fmt.Errorf("no node and no site is named %s: %w", to, control.ErrNotFound)
	}
	state, _, ok := c.Journal(v.ID)
	if !ok || state.Owner == "" {
		return nil, 0, fmt.Errorf("volume %s has no owner yet: %w", v.Name, api.ErrUnavailable)
	}
	owner, _ := c.Node(state.Owner)
	if site != owner.Site && len(b.n.Core(site)) > 0 && !slices.Contains(state.Sites, site) {
		return nil, 0, fmt.Errorf("site %s has no copy of volume %s: %w", b.siteName(site), v.Name, api.ErrRefused)
	}
	return m, site, nil
}

// MoveVolume implements api.Volumes.
func (b *backend) MoveVolume(ctx context.Context, req *dozov1.MoveVolumeRequest, progress func(*dozov1.MoveVolumeResponse) error) error {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return err
	}
	note := ""
	err = b.moveVolume(ctx, v, req, func(r *dozov1.MoveVolumeResponse) error {
		if r.Done {
			note = fmt.Sprintf("to %s at %s, epoch %s, pause %v", r.Owner, r.OwnerSite, r.Epoch, r.Pause.AsDuration().Round(time.Millisecond))
		}
		return progress(r)
	})
	e := control.Event{Time: time.Now(), Actor: control.ActorFrom(ctx), Action: "volume.move", Object: "volume/" + v.Tenant + "/" + v.Name, Note: note}
	if err != nil {
		e.Note = fmt.Sprintf("to %s: %v", req.To, err)
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if aerr := b.n.control().AppendEvent(actx, e); aerr != nil {
		b.n.log.Warn("event not recorded", "action", e.Action, "object", e.Object, "err", aerr)
	} else if err != nil {
		err = recordedError{err}
	}
	return err
}

func (b *backend) moveVolume(ctx context.Context, v control.VolumeSpec, req *dozov1.MoveVolumeRequest, progress func(*dozov1.MoveVolumeResponse) error) error {
	c := b.n.control()
	if state, _, ok := c.Journal(v.ID); ok && state.Owner == "" && b.n.access != nil { // nobody has used it yet
		wctx, cancel := context.WithTimeout(ctx, ownerPatience)
		err := b.n.access.Want(wctx, v.ID)
		cancel()
		if err != nil {
			return err
		}
	}
	m, _, err := b.moveTarget(v, req.To)
	if err != nil {
		return err
	}
	state, _, _ := c.Journal(v.ID)
	owner := state.Owner
	r, err := b.handStep(ctx, owner, m)
	if err != nil {
		return fmt.Errorf("move volume %s: %w", v.Name, moveError(err))
	}
	var last *dozov1.MoveVolumeResponse
	for heard := time.Now(); ; {
		if err == nil {
			heard = time.Now()
			if r.Done && r.Failed != 0 {
				return fmt.Errorf("move volume %s: %w", v.Name, moveError(&wire.Error{Code: r.Failed, Detail: r.Detail}))
			}
			x, _ := c.Node(r.Taker)
			msg := &dozov1.MoveVolumeResponse{Done: r.Done, Owner: string(r.Taker), OwnerSite: b.siteName(x.Site), Phase: r.Phase, LagBytes: r.LagBytes}
			if r.Done {
				msg.Pause, msg.Epoch = durationpb.New(r.Pause), r.Epoch.String()
			}
			if last == nil || !proto.Equal(last, msg) {
				last = msg
				if err := progress(msg); err != nil || r.Done {
					return err
				}
			}
		} else if time.Since(heard) > moveUnheard {
			now, _, _ := c.Journal(v.ID)
			return fmt.Errorf("node %s, which hands volume %s over, does not answer; the owner is %s: %w", owner, v.Name, now.Owner, api.ErrUnavailable)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("volume %s: the hand-over goes on: %w", v.Name, context.Cause(ctx))
		case <-time.After(moveEvery):
		}
		r, err = b.handStep(ctx, owner, &wire.HandOver{Journal: v.ID, Step: wire.HandStatus})
	}
}

// owned counts the volumes that a node owns.
func owned(c *control.Client, name ident.NodeName) uint32 {
	n, _ := ownedSome(c, name)
	return n
}

// ownedSome names the first three of them, too.
func ownedSome(c *control.Client, name ident.NodeName) (n uint32, some []string) {
	for _, id := range c.Journals() {
		state, _, _ := c.Journal(id)
		if v, ok := c.Volume(id); ok && v.Deleted == nil && state.Owner == name {
			if n++; n <= 3 {
				some = append(some, v.Name)
			}
		}
	}
	return n, some
}

// DrainNode implements api.Nodes: the node sees that it is to drain, and does.
func (b *backend) DrainNode(ctx context.Context, req *dozov1.DrainNodeRequest, progress func(*dozov1.DrainNodeResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	x, err := c.SetDraining(ctx, ident.NodeName(req.Node), true)
	if err != nil {
		return err
	}
	var last *dozov1.DrainNodeResponse
	var watch drainWatch
	seen := false // the cache has the change
	for {
		n, some := ownedSome(c, x.Name)
		r := &dozov1.DrainNodeResponse{Volumes: n}
		r.Done = r.Volumes == 0
		r.Stuck = !r.Done && !slices.ContainsFunc(c.Nodes(), func(y control.Node) bool {
			return y.Site == x.Site && y.Name != x.Name && y.Has(control.RoleAccess) && !y.Draining && c.Alive(y.Name)
		})
		if last == nil || !proto.Equal(last, r) {
			last = r
			if err := progress(r); err != nil {
				return err
			}
		}
		if r.Done || !req.Wait {
			return nil
		}
		if err := watch.see(time.Now(), req.Node, r, func() []string { return some }); err != nil {
			return err
		}
		y, ok := c.Node(x.Name)
		if seen = seen || y.Draining; !ok || seen && !y.Draining {
			return fmt.Errorf("node %s is not to drain any more: %w", x.Name, control.ErrConflict)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %s owns %d volumes: %w", x.Name, r.Volumes, context.Cause(ctx))
		case <-time.After(waitEvery):
		}
	}
}

// UndrainNode implements api.Nodes.
func (b *backend) UndrainNode(ctx context.Context, req *dozov1.UndrainNodeRequest) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	_, err = c.SetDraining(ctx, ident.NodeName(req.Node), false)
	return err
}
