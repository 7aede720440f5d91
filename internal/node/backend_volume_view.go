package node

import (
	"cmp"
	"context"
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

// What is told of volumes: their states, copies and replicas.

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
	case v.Cloning != nil:
		out.State = "cloning"
		out.StateReason = b.cloneReason(v)
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

// volumeName is a volume's name, or its ID if nobody knows it any more.
func (b *backend) volumeName(id ident.JournalID) string {
	if v, ok := b.n.control().Volume(id); ok {
		return v.Name
	}
	return id.String()
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
