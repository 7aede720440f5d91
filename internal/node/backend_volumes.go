package node

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access/export"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
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

// describe makes the API's form of a volume; st is its owner's word, if it was asked.
func (b *backend) describe(v control.VolumeSpec, st *wire.JournalStatus) *dozov1.Volume {
	c := b.n.control()
	out := &dozov1.Volume{Id: v.ID.String(), Tenant: v.Tenant, Name: v.Name, SizeBytes: uint64(v.SizeBytes), BlockSize: uint32(v.BlockSize),
		Sites: uint32(v.Sites), AtSite: b.siteName(v.AtSite), Durability: string(v.Durability), Partition: string(v.Partition), Labels: v.Labels,
		Ownership: string(cmp.Or(v.Ownership, control.OwnershipFollow)), AluaRemote: string(cmp.Or(v.ALUARemote, control.RemoteNonOptimized)),
		Redirect: string(cmp.Or(v.Redirect, control.RedirectOff)), Ack: control.AckText(v.Ack),
		Hosts: v.Hosts, Created: timestamppb.New(v.Created), Iqn: export.IQN(v.ID), State: "unknown", Protection: "unknown"}
	state, _, _ := c.Journal(v.ID)
	out.AckInEffect, out.AckSince = control.AckText(state.Ack), uint64(state.AckSince)
	if state.Owner != "" {
		out.Owner, out.Epoch = string(state.Owner), state.Epoch.String()
		if x, ok := c.Node(state.Owner); ok {
			out.OwnerSite = b.siteName(x.Site)
		}
	}
	switch {
	case v.Deleted != nil:
		out.State = "deleting"
	case state.Owner == "":
		out.State = "new"
	case st != nil:
		if out.State = stateWord(st.State); out.State == "waiting" {
			out.StateReason = st.State
		}
		if out.State == "recovering" {
			break // what it says of copies is not known yet
		}
		if out.Protection = protection(st); out.Protection == "replicated" && len(st.Sites) < len(state.Sites)-1 {
			out.Protection = "unknown" // the owner has not heard of all sites yet
		}
	}
	return out
}

// stateWord is the API's word for what an owner says of itself.
func stateWord(s string) string {
	for _, w := range []string{"recovering", "waiting", "failed"} {
		if strings.HasPrefix(s, w) {
			return w
		}
	}
	if strings.HasPrefix(s, "stopped") {
		return "recovering"
	}
	return "serving"
}

func protection(st *wire.JournalStatus) string {
	if st.Degraded > 0 || strings.HasPrefix(st.State, "degraded") || strings.HasPrefix(st.State, "waiting") {
		return "degraded"
	}
	for _, s := range st.Sites {
		if s.Watermark.Seq < st.Commit.Seq {
			return "behind"
		}
	}
	return "replicated"
}

// described asks the volume's owner too.
func (b *backend) described(ctx context.Context, v control.VolumeSpec) *dozov1.Volume {
	all, _ := b.ownerStatus(ctx, v.ID)
	if st, ok := all[v.ID]; ok {
		return b.describe(v, &st)
	}
	return b.describe(v, nil)
}

// ListVolumes implements api.Volumes.
func (b *backend) ListVolumes(ctx context.Context, req *dozov1.ListVolumesRequest) ([]*dozov1.Volume, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	specs := c.Volumes()
	if req.Deleted {
		specs = append(specs, c.Tombstones()...)
	}
	all, _ := b.ownerStatus(ctx)
	var out []*dozov1.Volume
	for _, v := range specs {
		if req.Tenant != "" && v.Tenant != req.Tenant || !hasLabels(v.Labels, req.Labels) {
			continue
		}
		if st, ok := all[v.ID]; ok {
			out = append(out, b.describe(v, &st))
		} else {
			out = append(out, b.describe(v, nil))
		}
	}
	return out, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// GetVolume implements api.Volumes. Where the segments are is not the owner's word: the stores are asked.
func (b *backend) GetVolume(ctx context.Context, req *dozov1.GetVolumeRequest) (*dozov1.Volume, *dozov1.Placement, error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, nil, err
	}
	c := b.n.control()
	all, unheard := b.ownerStatus(ctx, v.ID)
	p := &dozov1.Placement{Unheard: unheard}
	state, _, _ := c.Journal(v.ID)
	var out *dozov1.Volume
	var st *wire.JournalStatus
	if s, ok := all[v.ID]; ok && s.Recovering > 0 {
		st = &s
	} else if ok {
		st = &s
		p.Commit, p.Stable = position(s.Commit), position(s.Stable)
		if s.Checkpoint.Seq != 0 {
			p.Checkpoint = position(s.Checkpoint)
		}
		p.SegmentsDegraded, p.DegradedBytes = uint64(s.Degraded), s.DegradedBytes
		p.MappedBytes = s.Mapped * journal.BlockSize
		p.Copies = b.copies(state, st)
	}
	out = b.describe(v, st)
	p.Owner, p.OwnerSite, p.Epoch = out.Owner, out.OwnerSite, out.Epoch
	for i, e := range state.Ensembles {
		x := &dozov1.Ensemble{Number: e.Number, Epoch: e.Epoch.String(), Newest: i == len(state.Ensembles)-1}
		for _, s := range e.Stores {
			x.Stores = append(x.Stores, b.storeRef(s))
		}
		p.Ensembles = append(p.Ensembles, x)
	}
	b.replicas(ctx, v.ID, state, p, req.Segments)
	return out, p, nil
}

func position(p ident.Position) *dozov1.Position {
	return &dozov1.Position{Epoch: p.Epoch.String(), Seq: uint64(p.Seq), Hash: p.Hash.String()}
}

func (b *backend) storeRef(id ident.StoreID) *dozov1.StoreRef {
	x, _ := b.n.control().NodeOfStore(id)
	return &dozov1.StoreRef{Id: id.String(), Node: string(x.Name), Site: b.siteName(x.Site)}
}

// copies says how far each site is, the owner's first.
func (b *backend) copies(state control.JournalState, st *wire.JournalStatus) []*dozov1.SiteCopy {
	owner, _ := b.n.control().Node(st.Owner)
	list := []*dozov1.SiteCopy{{Site: b.siteName(owner.Site), State: "home", WatermarkSeq: uint64(st.Commit.Seq)}}
	for _, s := range st.Sites {
		x := &dozov1.SiteCopy{Site: b.siteName(s.Site), State: "current", WatermarkSeq: uint64(s.Watermark.Seq), LagBytes: s.LagBytes,
			LagSeconds: time.Duration(s.LagNanos).Seconds()}
		if s.Confirmed != 0 {
			x.Confirmed = timestamppb.New(time.Unix(0, int64(s.Confirmed)))
		}
		if s.Watermark.Seq < st.Commit.Seq {
			x.State = "behind"
			x.LagRecords = uint64(st.Commit.Seq - s.Watermark.Seq)
			up := false
			for _, id := range b.n.Core(s.Site) {
				up = up || b.n.pool != nil && b.n.Up(id)
			}
			if !up {
				x.State = "away"
			}
		}
		list = append(list, x)
	}
	return list
}

// replicas asks every store that may hold something of the journal.
func (b *backend) replicas(ctx context.Context, id ident.JournalID, state control.JournalState, p *dozov1.Placement, list bool) {
	c := b.n.control()
	type answer struct {
		store    ident.StoreID
		replicas []wire.Replica
		err      error
	}
	got := make(chan answer)
	asked := 0
	for _, x := range c.Nodes() {
		for _, s := range x.Stores {
			asked++
			go func() {
				actx, cancel := context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
				st, ok := b.n.Store(s.ID)
				if !ok {
					got <- answer{store: s.ID, err: api.ErrUnavailable}
					return
				}
				a := answer{store: s.ID}
				for m := (&wire.Inventory{Journal: id}); ; {
					r, err := st.Inventory(actx, m)
					if err != nil {
						a.err = err
						break
					}
					a.replicas = append(a.replicas, r.Replicas...)
					if !r.More || len(r.Replicas) == 0 {
						break
					}
					m.After = r.Replicas[len(r.Replicas)-1].Segment
				}
				got <- a
			}()
		}
	}
	var dirs map[string]string
	if list {
		dirs = b.storeDirs(ctx)
	}
	segments := map[ident.SegmentID]*dozov1.Segment{}
	sites := map[string]*dozov1.SiteReplicas{}
	seen := map[string]map[ident.SegmentID]bool{}
	var order []ident.SegmentID
	answers := make([]answer, 0, asked)
	for range asked {
		answers = append(answers, <-got)
	}
	slices.SortFunc(answers, func(a, b answer) int { return a.store.Compare(b.store) })
	for _, a := range answers {
		ref := b.storeRef(a.store)
		if a.err != nil {
			p.Unheard = append(p.Unheard, ref.Node)
			continue
		}
		for _, r := range a.replicas {
			if r.End <= journal.SegmentHeaderSize {
				continue // opened ahead of need, still empty
			}
			sr := sites[ref.Site]
			if sr == nil {
				sr = &dozov1.SiteReplicas{Site: ref.Site}
				sites[ref.Site], seen[ref.Site] = sr, map[ident.SegmentID]bool{}
			}
			sr.Replicas++
			sr.SizeBytes += uint64(r.End)
			if !seen[ref.Site][r.Segment] {
				seen[ref.Site][r.Segment] = true
				sr.Segments++
			}
			s := segments[r.Segment]
			if s == nil {
				s = &dozov1.Segment{Id: r.Segment.String(), Kind: "history", State: "open", FirstSeq: uint64(r.Before.Seq) + 1}
				if r.Segment.IsCheckpoint() {
					s.Kind = "checkpoint"
				}
				segments[r.Segment] = s
				order = append(order, r.Segment)
			}
			if r.State == wire.ReplicaSealed {
				s.State = "sealed"
			}
			s.LastSeq, s.SizeBytes = max(s.LastSeq, uint64(r.Last.Seq)), max(s.SizeBytes, uint64(r.End))
			path := ""
			if dir := dirs[ref.Id]; dir != "" {
				path = core.SegmentPath(dir, r.Segment)
			}
			s.Replicas = append(s.Replicas, &dozov1.Replica{Store: ref, State: replicaState(r.State), LastSeq: uint64(r.Last.Seq), SizeBytes: uint64(r.End), Path: path})
		}
	}
	slices.SortFunc(order, func(x, y ident.SegmentID) int {
		a, b := segments[x], segments[y]
		if a.Kind != b.Kind {
			return -strings.Compare(a.Kind, b.Kind)
		}
		if a.FirstSeq != b.FirstSeq {
			if a.FirstSeq < b.FirstSeq {
				return -1
			}
			return 1
		}
		return x.Compare(y)
	})
	for _, id := range order {
		if s := segments[id]; s.State == "sealed" {
			p.SegmentsSealed++
		} else {
			p.SegmentsOpen++
		}
		if list {
			p.Segments = append(p.Segments, segments[id])
		}
	}
	for _, s := range state.Sites {
		if sr := sites[b.siteName(s)]; sr != nil {
			p.SiteReplicas = append(p.SiteReplicas, sr)
			delete(sites, sr.Site)
		}
	}
	rest := make([]string, 0, len(sites))
	for name := range sites {
		rest = append(rest, name)
	}
	slices.Sort(rest)
	for _, name := range rest {
		p.SiteReplicas = append(p.SiteReplicas, sites[name])
	}
	slices.Sort(p.Unheard)
	p.Unheard = slices.Compact(p.Unheard)
}

// storeDirs says where stores lie on their nodes, of all nodes that answer: `dozo inspect` takes the files.
func (b *backend) storeDirs(ctx context.Context) map[string]string {
	dirs := map[string]string{}
	nodes, err := b.ListNodes(ctx, &dozov1.ListNodesRequest{})
	if err != nil {
		b.n.log.Debug("where stores lie", "err", err)
	}
	for _, x := range nodes {
		for _, s := range x.Stores {
			if s.Path == "" {
				continue // the node does not answer
			}
			if abs, err := filepath.Abs(s.Path); err == nil && x.Name == string(b.n.cfg.Node) {
				s.Path = abs
			}
			dirs[s.Id] = s.Path
		}
	}
	return dirs
}

func replicaState(s wire.ReplicaState) string {
	switch s {
	case wire.ReplicaCopy:
		return "copy"
	case wire.ReplicaOpen:
		return "open"
	case wire.ReplicaSealed:
		return "sealed"
	case wire.ReplicaShort:
		return "short"
	case wire.ReplicaDamaged:
		return "damaged"
	case wire.ReplicaFork:
		return "fork"
	}
	return "unknown"
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
