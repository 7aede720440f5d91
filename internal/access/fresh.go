package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// A volume that never had an owner has nothing that could be lost, copied or answered for: no store holds anything of it (R3:
// epoch 0, nobody to ask). While a node owns few volumes it takes new ones of its site by itself, so that the first command
// finds an owner; with many it waits until somebody uses them, and ten thousand that were made at once cost three keys each.
//
//	a session, a command ──> at the volume's site: this node takes it
//	                   └──> elsewhere, or draining or stopping: a node there is asked (a Tick for a volume without an owner), and takes it;
//	                        if none has after a while, this node does: nobody's data can be left behind by that
const (
	askedFor      = 5 * time.Second // how long another node's question counts
	freshPatience = 5 * time.Second // for a node of the volume's own site
)

// neverOwned: the volume is as it was made.
func neverOwned(state *control.JournalState) bool {
	return state.Owner == "" && state.Epoch.Number == 0 && len(state.Ensembles) == 0
}

// leavesNew is the short way for thousands of volumes that nobody uses, at each look. What was left once is left until somebody uses
// it: while thousands are deleted, those that are next in turn would otherwise be taken one after the other, only to be deleted.
func (s *Server) leavesNew(v *Volume) bool {
	v.left = v.left || s.mu.owned >= s.env.Limits.Warm && !v.taking
	return v.left && v.asked.IsZero() && v.unmet.IsZero() && !v.taking && v.urgency() == 0
}

// shouldTakeNew says whether this node takes a volume that never had an owner, whose place is at site. Server.mu is held.
func (s *Server) shouldTakeNew(v *Volume, site ident.SiteID) bool {
	if v.urgency() == 0 {
		v.unmet = time.Time{}
	} else if v.unmet.IsZero() {
		v.unmet = time.Now()
	}
	switch {
	case s.refusal() != nil:
		return site == s.env.Site && s.chosen(v.id, "")
	case time.Since(v.asked) < askedFor:
		return true
	case !v.unmet.IsZero() && (site == s.env.Site || time.Since(v.unmet) > freshPatience):
		return true
	}
	return site == s.env.Site && (v.taking || !v.left && s.mu.owned < s.env.Limits.Warm) && s.chosen(v.id, "")
}

// placeOf is the node that is asked for an owner of a new volume: the first of its site's access servers in the volume's order that can be
// reached. It is this one, without asking anybody, where that will do.
func (s *Server) placeOf(v *Volume) (ident.NodeName, bool) {
	state, _, _ := s.env.Control.Journal(v.id)
	site := s.firstSite(v.spec.Load().AtSite, state.Sites)
	if site == s.env.Site && s.refusal() == nil {
		return s.env.Node, true
	}
	var names []ident.NodeName
	for _, n := range s.env.Control.SharedNodes() {
		if n.Site == site && n.Has(control.RoleAccess) && !n.Draining && n.Name != s.env.Node && s.reachable(n.Name) {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return names[spread(v.id)%uint64(len(names))], true
}

// LookSoon has Run look at the volumes: one may need an owner, as a node has come, gone or asked. It does not wait.
func (s *Server) LookSoon() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// askedForNew notes that another node wants an owner of a volume; one that has had an owner gets the next by other rules.
func (s *Server) askedForNew(v *Volume) {
	if state, _, ok := s.env.Control.Journal(v.id); !ok || !neverOwned(&state) {
		return
	}
	s.mu.Lock()
	v.asked = time.Now()
	s.mu.Unlock()
	s.LookSoon()
}

// Want waits until a volume has an owner, wherever that is to be.
func (s *Server) Want(ctx context.Context, id ident.JournalID) error {
	v, ok := s.Volume(id)
	if !ok {
		return fmt.Errorf("volume %s: %w", id, control.ErrNotFound)
	}
	changed, stop := s.env.Control.Subscribe()
	defer stop()
	v.Open()
	defer v.Close()
	for {
		if state, _, _ := s.env.Control.Journal(id); state.Owner != "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("volume %s has no owner yet: %w", v.spec.Load().Name, ctx.Err())
		}
	}
}
