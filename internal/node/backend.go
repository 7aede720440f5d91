package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"dozo/internal/api"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/version"
	"dozo/internal/wire"
)

// backend is what the node does for the API. It keeps no state: it asks the parts.
type backend struct{ n *Node }

var _ api.Backend = (*backend)(nil)

// ctl is the control store, or why there is none yet. Whoever has got it may use the node's other parts too: they
// were all made before the state became ready, and the state's mutex orders that.
func (b *backend) ctl() (*control.Client, error) {
	if c := b.n.control(); c != nil && b.n.made() {
		return c, nil
	}
	return nil, b.notReached()
}

func (b *backend) notReached() error {
	return fmt.Errorf("node %s has not reached the control store yet: %w", b.n.cfg.Node, api.ErrNotReady)
}

// made reports that all parts of the node are there.
func (n *Node) made() bool {
	n.state.Lock()
	defer n.state.Unlock()
	return n.state.name != "starting"
}

// volume finds a volume by name or ID.
func (b *backend) volume(nameOrID, tenant string) (control.VolumeSpec, error) {
	c, err := b.ctl()
	if err != nil {
		return control.VolumeSpec{}, err
	}
	if tenant == "" {
		tenant = control.DefaultTenant
	}
	if v, ok := c.VolumeByName(tenant, nameOrID); ok {
		return v, nil
	}
	if id, err := ident.ParseJournalID(nameOrID); err == nil {
		if v, ok := c.Volume(id); ok {
			return v, nil
		}
	}
	return control.VolumeSpec{}, fmt.Errorf("volume %s/%s: %w", tenant, nameOrID, control.ErrNotFound)
}

// siteName names a site for people.
func (b *backend) siteName(id ident.SiteID) string {
	if c := b.n.control(); c != nil && id != 0 {
		if s, ok := c.Site(id); ok {
			return s.Name
		}
		return fmt.Sprint(id)
	}
	return ""
}

// Audit implements api.Backend. Changes of specifications are in the control store's log already; what is
// recorded here is what was refused or failed, and what changes no specification.
func (b *backend) Audit(ctx context.Context, rec api.AuditRecord) {
	log := b.n.log.With("actor", rec.Caller.Actor(), "action", rec.Action, "object", rec.Object)
	if rec.Err != nil {
		log.Warn("audit: refused or failed", "err", rec.Err)
	} else {
		log.Info("audit")
	}
	c := b.n.control()
	if rec.Caller.For != "" {
		return // the node that passed the call on records it
	}
	if _, recorded := errors.AsType[recordedError](rec.Err); c == nil || recorded || rec.Err == nil && specAction(rec.Action) {
		return
	}
	e := control.Event{Time: rec.Time, Actor: rec.Caller.Actor(), Action: rec.Action, Object: rec.Object}
	if rec.Err != nil {
		e.Note = "refused or failed: " + rec.Err.Error()
	}
	b.n.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := c.AppendEvent(ctx, e); err != nil {
			log.Warn("audit log", "err", err)
		}
	})
}

// recordedError is of a call that has put its failure among the events itself.
type recordedError struct{ error }

func (e recordedError) Unwrap() error { return e.error }

// specAction says that the control store records the action itself, in the transaction that does it.
func specAction(action string) bool {
	switch action {
	case "session.kill", "session.accept", "reservation.clear", "store.scrub", "fork.export", "fork.clone", "fork.delete", "node.token", "node.join", "node.renew", "control.backup":
		return false
	}
	return true
}

// Health implements api.Backend.
func (b *backend) Health() api.Health {
	n := b.n
	n.state.Lock()
	h := api.Health{State: n.state.name, Problems: append([]string(nil), n.state.problems...)}
	n.state.Unlock()
	h.Node, h.Site, h.Cluster, h.Version, h.Pid = string(n.cfg.Node), n.cfg.Site.Name, n.id.ClusterID(), version.Get().Version, os.Getpid()
	h.Ready = h.State == "ready"
	if h.State == "starting" {
		return h // the parts are being made
	}
	for _, st := range n.stores {
		if why := st.Failed(); why != "" {
			h.Problems = append(h.Problems, fmt.Sprintf("store %s: %s", st.Dir(), why))
		}
		if n := st.Aside(); n > 0 {
			h.Problems = append(h.Problems, fmt.Sprintf("store %s: %d files of damaged replicas were set aside", st.Dir(), n))
		}
	}
	if c := n.control(); c != nil {
		if ok, since := c.Connected(); !ok {
			h.Problems = append(h.Problems, fmt.Sprintf("control store away since %s", since.Format(time.RFC3339)))
		}
	}
	if h.Ready && len(h.Problems) > 0 {
		h.State = "degraded"
	}
	return h
}

// ownerStatus asks the owners' nodes how journals are; none named means all. Nodes that don't answer are named.
func (b *backend) ownerStatus(ctx context.Context, journals ...ident.JournalID) (map[ident.JournalID]wire.JournalStatus, []string) {
	c := b.n.control()
	out := map[ident.JournalID]wire.JournalStatus{}
	var unheard []string
	m := &wire.OwnerStatus{Journals: journals}
	want := map[ident.NodeName]bool{}
	for _, id := range journals {
		state, _, _ := c.Journal(id)
		want[state.Owner] = true
	}
	type answer struct {
		node  ident.NodeName
		reply wire.OwnerStatusReply
		err   error
	}
	got := make(chan answer)
	asked := 0
	for _, x := range c.Nodes() {
		if !x.Has(control.RoleAccess) || len(journals) > 0 && !want[x.Name] {
			continue
		}
		asked++
		go func() {
			actx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			if x.Name == b.n.cfg.Node && b.n.access != nil {
				r, err := b.n.access.OwnerStatus(actx, m)
				got <- answer{x.Name, r, err}
				return
			}
			if b.n.pool == nil {
				got <- answer{x.Name, wire.OwnerStatusReply{}, api.ErrUnavailable}
				return
			}
			r, err := b.n.peerOf(x).OwnerStatus(actx, m)
			got <- answer{x.Name, r, err}
		}()
	}
	for range asked {
		a := <-got
		if a.err != nil {
			unheard = append(unheard, string(a.node))
			continue
		}
		for _, j := range a.reply.Journals {
			if old, ok := out[j.Journal]; !ok || old.Epoch.Less(j.Epoch) {
				out[j.Journal] = j
			}
		}
	}
	return out, unheard
}
