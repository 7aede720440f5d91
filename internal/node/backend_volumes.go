package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dozo/internal/access/export"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// copiesDefault is how many sites hold a copy where the operator doesn't say: all, up to three.
const copiesDefault = 3

// CreateVolume implements api.Volumes.
func (b *backend) CreateVolume(ctx context.Context, req *dozov1.CreateVolumeRequest) (*dozov1.Volume, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	v, sites, err := b.newVolume(c, req)
	if err != nil {
		return nil, err
	}
	if v, err = c.CreateVolume(ctx, v, sites); err != nil {
		return nil, err
	}
	return b.describe(v, nil), nil
}

// newVolume is what a request for a volume asks for, and the sites of its copies.
func (b *backend) newVolume(c *control.Client, req *dozov1.CreateVolumeRequest) (v control.VolumeSpec, sites []ident.SiteID, err error) {
	home, ok := c.Site(b.n.self.Load().Site)
	if req.AtSite != "" {
		if home, ok = c.SiteByName(req.AtSite); !ok {
			return v, nil, fmt.Errorf("site %s: %w", req.AtSite, control.ErrNotFound)
		}
	} else if !ok {
		return v, nil, fmt.Errorf("node %s is at no site; say --at SITE: %w", b.n.cfg.Node, control.ErrInvalid)
	}
	if sites, err = b.copySites(c, home.ID, int(req.Sites)); err != nil {
		return v, nil, err
	}
	ack := 0
	if req.Ack != "" {
		if ack, err = control.ParseAck(req.Ack); err != nil {
			return v, nil, err
		}
	}
	return control.VolumeSpec{Name: req.Name, Ack: ack, Tenant: req.Tenant, SizeBytes: int64(req.SizeBytes), BlockSize: int(req.BlockSize),
		Sites: len(sites), AtSite: home.ID, Durability: control.Durability(req.Durability), Partition: control.Partition(req.Partition),
		Ownership: control.Ownership(req.Ownership), ALUARemote: control.RemoteAccess(req.AluaRemote), Redirect: control.Redirect(req.Redirect),
		Labels: req.Labels, Hosts: req.Hosts}, sites, nil
}

// copySites chooses the sites of a new volume's copies, home first: those with core servers, in the order of
// their numbers.
func (b *backend) copySites(c *control.Client, home ident.SiteID, n int) ([]ident.SiteID, error) {
	stores := func(s ident.SiteID) int { return len(b.n.Core(s)) }
	var all []ident.SiteID
	if stores(home) > 0 {
		all = append(all, home)
	}
	for _, s := range c.Sites() {
		if s.ID != home && stores(s.ID) > 0 {
			all = append(all, s.ID)
		}
	}
	hosts := map[string]bool{}
	for _, s := range all {
		for _, id := range b.n.Core(s) {
			hosts[b.n.Host(id)] = true
		}
	}
	switch {
	case len(hosts) < 2:
		return nil, fmt.Errorf("%d core servers on different hosts: a write is acknowledged only once two hold it: %w", len(hosts), api.ErrTooFew)
	case n == 0:
		n = min(copiesDefault, len(all))
	case n > len(all):
		return nil, fmt.Errorf("%d sites have core servers, %d copies were asked for: %w", len(all), n, api.ErrTooFew)
	}
	return all[:n], nil
}

// ResizeVolume implements api.Volumes.
func (b *backend) ResizeVolume(ctx context.Context, req *dozov1.ResizeVolumeRequest) (*dozov1.Volume, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	v, err = b.n.control().UpdateVolume(ctx, v.ID, func(v *control.VolumeSpec) error {
		// Asked here, of what the change replaces: somebody else may just have made it larger.
		if int64(req.SizeBytes) < v.SizeBytes && !req.AllowShrink {
			return fmt.Errorf("volume %s has %d bytes, %d were asked for: what is beyond the new end would be gone, so it must be allowed (--shrink, allow_shrink): %w", v.Name, v.SizeBytes, req.SizeBytes, api.ErrRefused)
		}
		v.SizeBytes = int64(req.SizeBytes)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.described(ctx, v), nil
}

// RenameVolume implements api.Volumes.
func (b *backend) RenameVolume(ctx context.Context, req *dozov1.RenameVolumeRequest) (*dozov1.Volume, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	if v, err = b.n.control().RenameVolume(ctx, v.ID, req.NewName); err != nil {
		return nil, err
	}
	return b.described(ctx, v), nil
}

// SetVolume implements api.Volumes.
func (b *backend) SetVolume(ctx context.Context, req *dozov1.SetVolumeRequest) (*dozov1.Volume, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	c := b.n.control()
	if _, older := c.OldestLevel(); req.Partition != "" && c.Level() < control.LevelStops {
		return nil, fmt.Errorf("the partition policy can be changed once all nodes are upgraded, and %v are not: %w", older, control.ErrOlderNodes)
	}
	ack := -1
	if req.Ack != "" {
		if ack, err = control.ParseAck(req.Ack); err != nil {
			return nil, err
		}
		if _, older := c.OldestLevel(); c.Level() < control.LevelAck {
			return nil, fmt.Errorf("when writes are acknowledged can be changed once all nodes are upgraded, and %v are not: %w", older, control.ErrOlderNodes)
		}
	}
	if req.Cloned {
		if v, err = c.FinishClone(ctx, v.ID); err != nil {
			return nil, err
		}
	}
	shut := false
	v, err = c.UpdateVolume(ctx, v.ID, func(v *control.VolumeSpec) error {
		if shut = shutsOut(v.Hosts, req); req.AllHosts || len(req.Hosts) > 0 {
			v.Hosts = slices.Compact(slices.Sorted(slices.Values(req.Hosts)))
		}
		if ack >= 0 {
			v.Ack = ack
		}
		v.Partition = cmp.Or(control.Partition(req.Partition), v.Partition)
		v.Ownership = cmp.Or(control.Ownership(req.Ownership), v.Ownership)
		v.ALUARemote = cmp.Or(control.RemoteAccess(req.AluaRemote), v.ALUARemote)
		v.Redirect = cmp.Or(control.Redirect(req.Redirect), v.Redirect)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if req.Partition != "" {
		if err := b.policyInEffect(ctx, v); err != nil {
			return nil, err
		}
	}
	if ack >= 0 {
		if err := b.ackInEffect(ctx, v); err != nil {
			return nil, err
		}
	}
	if shut {
		if err := b.hostsInEffect(ctx, v); err != nil {
			return nil, err
		}
	}
	return b.described(ctx, v), nil
}

// shutsOut reports that a request takes a volume from somebody who might use it before.
func shutsOut(before []string, req *dozov1.SetVolumeRequest) bool {
	if len(req.Hosts) == 0 {
		return false
	}
	return len(before) == 0 || slices.ContainsFunc(before, func(h string) bool { return !slices.Contains(req.Hosts, h) })
}

// policyPatience is how long a change of the partition policy waits for the owner's word.
const policyPatience = 10 * time.Second

// ackPatience is how long a policy that was raised is waited for: other sites that are in step have it in effect in moments.
const ackPatience = 5 * time.Second

// ackInEffect waits until the volume's owner goes by its acknowledgement policy. One that was raised may take for ever.
func (b *backend) ackInEffect(ctx context.Context, v control.VolumeSpec) error {
	wctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	c := b.n.control()
	changed, stop := c.Subscribe()
	defer stop()
	begun := time.Now()
	look := time.NewTicker(ackPatience / 10)
	defer look.Stop()
	for {
		state, _, _ := c.Journal(v.ID)
		if state.Ack == v.Ack || state.Owner == "" || state.Ack < v.Ack && time.Since(begun) > ackPatience {
			return nil
		}
		select {
		case <-changed:
		case <-look.C:
		case <-wctx.Done():
			return fmt.Errorf("volume %s: the policy is stored, and its owner %s has not said that it goes by it: until it does, %s is in effect: %w", v.Name, state.Owner, control.AckText(state.Ack), api.ErrUnavailable)
		}
	}
}

// policyInEffect waits until the volume's owner goes by its partition policy.
func (b *backend) policyInEffect(ctx context.Context, v control.VolumeSpec) error {
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	c := b.n.control()
	changed, stop := c.Subscribe()
	defer stop()
	for {
		state, _, _ := c.Journal(v.ID)
		if state.Owner == "" || state.Stops == (v.Partition == control.PartitionStop) {
			return nil // who takes it over from now on goes by the specification
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("volume %s: the policy is stored, and its owner %s has not said that it goes by it: until it does, the former one is in effect: %w", v.Name, state.Owner, api.ErrUnavailable)
		}
	}
}

// DeleteVolume implements api.Volumes. With force the volume is deleted first, so that nobody can log in again, and
// the access servers end its sessions as they see that.
func (b *backend) DeleteVolume(ctx context.Context, req *dozov1.DeleteVolumeRequest) (*dozov1.Volume, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	may := func(control.VolumeSpec) error { return nil }
	if !req.Force {
		sessions, unheard, err := b.sessionsOf(ctx, v.ID)
		if err != nil {
			return nil, err
		}
		may = func(v control.VolumeSpec) error { return deletable(v, sessions, unheard) }
		if err := may(v); err != nil {
			return nil, err
		}
	}
	list, err := b.n.control().DeleteVolumes(ctx, []ident.JournalID{v.ID}, may)
	if err != nil {
		return nil, err
	}
	if req.Force {
		b.awaitSessionsEnded(ctx, sessionsAtVolumes(v.ID))
	}
	return b.describe(list[0], nil), nil
}

// deletable says why a volume is not deleted without force, if there is a reason.
func deletable(v control.VolumeSpec, sessions []*dozov1.Session, unheard []string) error {
	switch {
	case len(v.Maps) > 0:
		return fmt.Errorf("volume %s is mapped to %d hosts, %s among them; unmap it, or delete with force: %w", v.Name, len(v.Maps), v.Maps[0].Host, control.ErrInUse)
	case len(sessions) > 0:
		return fmt.Errorf("volume %s has open sessions (%d): %s; end them, or delete with force, which ends them: %w", v.Name, len(sessions), describeSessions(sessions), control.ErrInUse)
	case len(unheard) > 0:
		return fmt.Errorf("volume %s may have sessions at %s, which can not be asked; with force they are ended when it can be reached: %w",
			v.Name, strings.Join(unheard, ", "), control.ErrInUse)
	}
	return nil
}

// VolumeTargets implements api.Volumes.
func (b *backend) VolumeTargets(_ context.Context, req *dozov1.VolumeTargetsRequest) ([]*dozov1.Target, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	c := b.n.control()
	first := b.n.self.Load().Site
	if req.Site != "" {
		s, ok := c.SiteByName(req.Site)
		if !ok {
			return nil, fmt.Errorf("site %s: %w", req.Site, control.ErrNotFound)
		}
		first = s.ID
	}
	nodes := slices.DeleteFunc(c.Nodes(), func(x control.Node) bool { return !x.Has(control.RoleAccess) })
	rank := func(x control.Node) int {
		switch {
		case x.Site == first && x.Name == b.n.cfg.Node:
			return 0
		case x.Site == first:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(nodes, func(a, b control.Node) int { return rank(a) - rank(b) })
	var list []*dozov1.Target
	for _, x := range nodes {
		up := x.Name == b.n.cfg.Node || b.n.pool != nil && b.n.peerOf(x).Up()
		for _, portal := range x.Addrs.Portals {
			list = append(list, &dozov1.Target{Url: fmt.Sprintf("iscsi://%s/%s/0", portal.Addr, export.IQN(v.ID)), Node: string(x.Name),
				Site: b.siteName(x.Site), Portal: portal.Addr.String(), Iqn: export.IQN(v.ID), Tpgt: uint32(x.TPGT), Up: up})
		}
	}
	return list, nil
}

// waitEvery is how often a waiting call looks.
const waitEvery = 300 * time.Millisecond

// WaitVolume implements api.Volumes.
func (b *backend) WaitVolume(ctx context.Context, req *dozov1.WaitVolumeRequest, progress func(*dozov1.WaitVolumeResponse) error) error {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return err
	}
	var target ident.Seq
	known := false
	var last time.Time
	for {
		all, _ := b.ownerStatus(ctx, v.ID)
		if err := b.stillThere(v); err != nil {
			return err
		}
		state, _, _ := b.n.control().Journal(v.ID)
		if state.Owner == "" && state.Epoch.Number == 0 { // nothing was ever written: all sites have all of it
			return progress(&dozov1.WaitVolumeResponse{Done: true})
		}
		if st, ok := all[v.ID]; ok && stateWord(st.State) != "recovering" {
			if !known {
				target, known = st.Commit.Seq, true
			}
			owner, _ := b.n.control().Node(st.Owner)
			others := len(slices.DeleteFunc(slices.Clone(state.Sites), func(s ident.SiteID) bool { return s == owner.Site }))
			r := &dozov1.WaitVolumeResponse{Done: len(st.Sites) == others, TargetSeq: uint64(target), Copies: b.copies(state, &st)}
			for _, s := range st.Sites {
				if s.StableWatermark < target {
					r.Done = false
				}
				r.RemainingBytes += s.LagBytes
			}
			if r.Done || time.Since(last) > time.Second {
				last = time.Now()
				if err := progress(r); err != nil || r.Done {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("volume %s: %w", v.Name, context.Cause(ctx))
		case <-time.After(waitEvery):
		}
	}
}
