package access

import (
	"context"
	"errors"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Ownership says who owns the journal and at which epoch, as far as is known here. serves is false while the volume
// changes hands: the control store names an owner that has not been heard of at that epoch.
func (v *Volume) Ownership() (owner ident.NodeName, epoch ident.Epoch, serves bool) {
	if o := v.owner.Load(); o != nil {
		return v.srv.env.Node, o.epoch, isClosed(o.Serving()) && !isClosed(o.Stopped())
	}
	state, _, _ := v.srv.env.Control.Journal(v.id)
	if state.Owner == "" {
		return "", state.Epoch, true
	}
	s := v.stamp.Load()
	return state.Owner, state.Epoch, s != nil && s.Epoch == state.Epoch
}

// Reaches reports whether a node is this one, or can be reached from here.
func (s *Server) Reaches(node ident.NodeName) bool { return node == s.env.Node || s.reachable(node) }

// Epoch is the newest generation of ownership that was heard of here. It is cheap.
func (v *Volume) Epoch() ident.Epoch {
	if o := v.owner.Load(); o != nil {
		return o.epoch
	}
	if s := v.stamp.Load(); s != nil {
		return s.Epoch
	}
	return ident.Epoch{}
}

// moveToLook is how often the owner is asked how a hand-over goes that an initiator waits for: the pause of one is tens
// of milliseconds.
const moveToLook = 20 * time.Millisecond

// MoveTo has the owner, wherever it is, hand the volume over to a node, and returns once that one serves. What it has
// begun is called off when ctx ends, as far as it can be. A volume that is pinned stays where it is.
func (s *Server) MoveTo(ctx context.Context, v *Volume, to ident.NodeName) error {
	return s.MoveToIf(ctx, v, to, func() error { return nil })
}

// MoveToIf is MoveTo that asks, each time that an owner is to be asked to hand over, whether that is still wanted: it may have
// waited for a takeover meanwhile. An error of may is returned.
func (s *Server) MoveToIf(ctx context.Context, v *Volume, to ident.NodeName, may func() error) error {
	begun := ident.NodeName("") // who was asked to hand over, and has agreed
	defer func() {
		if begun != "" {
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, _ = s.handStep(cctx, begun, &wire.HandOver{Journal: v.id, Step: wire.HandCancel})
		}
	}()
	last := error(nil)
	for ; ctx.Err() == nil; pauseFor(ctx, moveToLook) {
		owner, _, serves := v.Ownership()
		switch {
		case owner == to && serves:
			begun = ""
			return nil
		case owner == to || !serves:
			continue // it has been named; it has to be heard of
		case v.Spec().Ownership == control.OwnershipPin:
			return wire.Errorf(wire.CodeBadRequest, "volume %s is pinned to where it is", v.Spec().Name)
		case owner == "":
			return wire.Errorf(wire.CodeBusy, "volume %s has no owner yet", v.Spec().Name)
		}
		step := wire.HandBegin
		if begun == owner {
			step = wire.HandStatus
		} else if err := may(); err != nil {
			return err
		}
		r, err := s.handStep(ctx, owner, &wire.HandOver{Journal: v.id, Step: step, Node: to})
		var refused *wire.Error
		switch {
		case err == nil && r.Done && r.Failed != 0 && begun == owner:
			begun = ""
			return &wire.Error{Code: r.Failed, Detail: r.Detail}
		case err == nil:
			begun = owner
		case errors.As(err, &refused) && (refused.Code == wire.CodeBadRequest || refused.Code == wire.CodeAbsent && step == wire.HandBegin):
			return err // it will not be otherwise soon
		default:
			last = err // the owner is changing, or another hand-over is under way
		}
	}
	return errors.Join(context.Cause(ctx), last)
}

// handStep asks a node's access server, or this one, for a step of a hand-over.
func (s *Server) handStep(ctx context.Context, node ident.NodeName, m *wire.HandOver) (wire.HandOverReply, error) {
	if node == s.env.Node {
		return s.HandOver(ctx, node, m)
	}
	p, ok := s.peers(node)
	if !ok {
		return wire.HandOverReply{}, wire.Errorf(wire.CodeUnreached, "node %s is not known", node)
	}
	return p.HandOver(ctx, m)
}

func pauseFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
