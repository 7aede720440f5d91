package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// Further states of a store in the API.
const (
	storeEmptying = "emptying"
	storeEmpty    = "empty"
	storeLost     = "lost"
)

// heardBlocks asks all nodes for their parts of the block manager, and gives what is known of stores by ID.
func (b *backend) heardBlocks(ctx context.Context, journals bool) ([]wire.BlocksReply, map[ident.StoreID]storeFacts) {
	var replies []wire.BlocksReply
	for _, a := range b.n.askBlocks(ctx, &wire.Blocks{Stores: true, Journals: journals}) {
		if a.err == nil {
			b.n.known.put(&a.value)
			replies = append(replies, a.value)
		}
	}
	return replies, b.n.known.all()
}

// all is what each store said last, however long ago.
func (k *knownStores) all() map[ident.StoreID]storeFacts {
	k.mu.RLock()
	defer k.mu.RUnlock()
	out := make(map[ident.StoreID]storeFacts, len(k.facts))
	for id, f := range k.facts {
		out[id] = f
	}
	return out
}

// spaces adds up what stores have: those that share a file system have its space only once.
type spaces struct {
	facts  map[ident.StoreID]storeFacts
	shared map[fileSystem]space
}

type fileSystem struct {
	boot ident.BootID
	id   uint64
}

type space struct{ stores, total uint64 }

func newSpaces(facts map[ident.StoreID]storeFacts) *spaces {
	return &spaces{facts, map[fileSystem]space{}}
}

// add gives by how much another store makes the capacity grow.
func (s *spaces) add(id string, capacity uint64) uint64 {
	sid, err := ident.ParseStoreID(id)
	f, ok := s.facts[sid]
	if err != nil || !ok || f.FileSystem == 0 || f.FileSystemBytes == 0 {
		return capacity
	}
	k := fileSystem{f.boot, f.FileSystem}
	x := s.shared[k]
	before := min(x.stores, max(x.total, f.FileSystemBytes))
	x.stores, x.total = x.stores+capacity, max(x.total, f.FileSystemBytes)
	s.shared[k] = x
	return min(x.stores, x.total) - min(before, min(x.stores, x.total))
}

func stamp(nanos uint64) *timestamppb.Timestamp {
	if nanos == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, int64(nanos)))
}

// eta is how long bytes take at a rate; nil if that is not known.
func eta(left, rateBps uint64) *durationpb.Duration {
	if left == 0 || rateBps == 0 {
		return nil
	}
	return durationpb.New(time.Duration(float64(left) / float64(rateBps) * float64(time.Second)).Round(time.Second))
}

// ListStores implements api.Stores.
func (b *backend) ListStores(ctx context.Context, req *dozov1.ListStoresRequest) ([]*dozov1.Store, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	if _, ok := c.Node(ident.NodeName(req.Node)); req.Node != "" && !ok {
		return nil, fmt.Errorf("node %s: %w", req.Node, control.ErrNotFound)
	}
	nodes, err := b.ListNodes(ctx, &dozov1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	_, facts := b.heardBlocks(ctx, false)
	var out []*dozov1.Store
	for _, x := range nodes {
		reg, _ := c.Node(ident.NodeName(x.Name))
		for _, st := range x.Stores {
			if req.Node != "" && req.Node != x.Name {
				continue
			}
			id, err := ident.ParseStoreID(st.Id)
			if err != nil {
				continue
			}
			out = append(out, b.storeMessage(c, x, reg, st, id, facts))
		}
	}
	for _, l := range c.LostStores() {
		if _, registered := c.NodeOfStore(l.ID); registered || req.Node != "" && req.Node != string(l.Node) {
			continue
		}
		out = append(out, &dozov1.Store{Id: l.ID.String(), Node: string(l.Node), Site: b.siteName(l.Site), State: storeLost, Lost: timestamppb.New(l.Time)})
	}
	slices.SortStableFunc(out, func(a, b *dozov1.Store) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Label, b.Label))
	})
	return out, nil
}

func (b *backend) storeMessage(c *control.Client, x *dozov1.Node, reg control.Node, st *dozov1.NodeStore, id ident.StoreID, facts map[ident.StoreID]storeFacts) *dozov1.Store {
	s := &dozov1.Store{Id: st.Id, Node: x.Name, Site: x.Site, Label: st.Label, Path: st.Path, State: st.State, CapacityBytes: st.CapacityBytes, UsedBytes: st.UsedBytes}
	f, known := facts[id]
	if known {
		s.FreeBytes, s.UsedBytes, s.CapacityBytes, s.Replicas, s.Failed, s.SetAside = f.Free, f.Used, f.Capacity, f.Replicas, f.Failed, f.Aside
		s.FileSystem = fmt.Sprintf("%s/%x", f.boot.String()[:8], f.FileSystem)
		s.ScrubPassed, s.ScrubBegan, s.ScrubDoneBytes, s.ScrubTotalBytes, s.ScrubNow = stamp(f.ScrubPassed), stamp(f.ScrubBegan), f.ScrubDone, f.ScrubTotal, f.ScrubNow
		s.DamagedFound, s.DamagedHealed, s.DamagedNow = f.ScrubFound, f.ScrubHealed, uint64(len(f.Damaged))
	}
	switch {
	case c.StoreLost(id):
		s.State = storeLost
		for _, l := range c.LostStores() {
			if l.ID == id {
				s.Lost = timestamppb.New(l.Time)
			}
		}
	case reg.Leaves(id) && known && f.Replicas == 0 && listing(c, []ident.StoreID{id}) == 0:
		s.State = storeEmpty
	case reg.Leaves(id):
		s.State = storeEmptying
	}
	return s
}

// findStore finds a store by its ID or as NODE/LABEL.
func (b *backend) findStore(name string) (control.Node, control.StoreSpec, error) {
	c, err := b.ctl()
	if err != nil {
		return control.Node{}, control.StoreSpec{}, err
	}
	for _, x := range c.Nodes() {
		for _, s := range x.Stores {
			if s.ID.String() == name || string(x.Name)+"/"+s.Label == name {
				return x, s, nil
			}
		}
	}
	// A node with one store needs no label.
	if x, ok := c.Node(ident.NodeName(strings.TrimSuffix(name, "/"))); ok && len(x.Stores) == 1 {
		return x, x.Stores[0], nil
	}
	return control.Node{}, control.StoreSpec{}, fmt.Errorf("store %s: %w", name, control.ErrNotFound)
}

// listing counts the volumes whose ensembles list one of the stores.
func listing(c *control.Client, stores []ident.StoreID) (n uint32) {
	for _, id := range c.Journals() {
		state, _, _ := c.Journal(id)
		v, ok := c.Volume(id)
		if ok && v.Deleted == nil && lists(state, stores) {
			n++
		}
	}
	return n
}

// emptying is what a node's stores, or one of them, is emptied for.
type emptying struct {
	b      *backend
	c      *control.Client
	node   control.Node
	stores []ident.StoreID
	whole  bool // the node is to go, not only a disk
	notes  []string
}

// plan says why the stores can not be emptied, and notes what to know before.
func (e *emptying) plan() error {
	var places, hosts, elsewhere []string
	for _, x := range e.c.Nodes() {
		for _, s := range x.Stores {
			if slices.Contains(e.stores, s.ID) || x.Leaves(s.ID) || e.c.StoreLost(s.ID) {
				continue
			}
			if x.Site == e.node.Site {
				places = append(places, s.ID.String())
				if !slices.Contains(hosts, x.HostID) {
					hosts = append(hosts, x.HostID)
				}
			} else if !slices.Contains(elsewhere, x.HostID) {
				elsewhere = append(elsewhere, x.HostID)
			}
		}
	}
	here, name := 0, ""
	for _, id := range e.c.Journals() {
		state, _, _ := e.c.Journal(id)
		if v, ok := e.c.Volume(id); ok && v.Deleted == nil && slices.Contains(state.Sites, e.node.Site) {
			here, name = here+1, v.Tenant+"/"+v.Name
		}
	}
	site := e.b.siteName(e.node.Site)
	switch {
	case len(e.stores) == 0 || here == 0:
	case len(places) == 0:
		return fmt.Errorf("site %s would have no core server left, and %d volumes, such as %s, keep copies there: %w", site, here, name, api.ErrRefused)
	case len(hosts) < 2 && len(elsewhere) == 0:
		return fmt.Errorf("fewer than two core servers would be left, and a write is acknowledged only once two hold it: %w", api.ErrTooFew)
	case len(hosts) < 2:
		e.notes = append(e.notes, fmt.Sprintf("site %s is left with one core server: the second copy of each write goes to another site, which takes a round trip", site))
	}
	if e.whole && e.node.Voter && !e.b.n.cfg.Control.External {
		e.notes = append(e.notes, e.b.voterNote(e.c, e.node))
	}
	if e.whole && owned(e.c, e.node.Name) > 0 && !slices.ContainsFunc(e.c.Nodes(), func(y control.Node) bool {
		return y.Site == e.node.Site && y.Name != e.node.Name && y.Has(control.RoleAccess) && !y.Draining && e.c.Alive(y.Name)
	}) {
		e.notes = append(e.notes, fmt.Sprintf("no other access server of site %s can take its volumes now", site))
	}
	return nil
}

// look says how far it is.
func (e *emptying) look(ctx context.Context) *dozov1.EmptyProgress {
	replies, facts := e.b.heardBlocks(ctx, true)
	p := &dozov1.EmptyProgress{Ensembles: listing(e.c, e.stores), Notes: slices.Clone(e.notes)}
	if e.whole {
		p.Volumes = owned(e.c, e.node.Name)
	}
	heard := true
	for _, id := range e.stores {
		f, ok := facts[id]
		if !ok || time.Since(f.at) > 2*blocksEvery {
			heard = false
			p.Notes = append(p.Notes, fmt.Sprintf("store %s does not answer: if it never will, declare it lost", id))
		}
		p.Replicas += f.Replicas
		p.LeftBytes += f.Used
	}
	left, stuck := uint64(0), uint32(0)
	for _, r := range replies {
		p.RateBps += r.RateBps
		for _, j := range r.Journals {
			left += j.EmptyingBytes
			stuck += j.Stuck
		}
	}
	p.Eta = eta(p.LeftBytes, p.RateBps)
	switch {
	case p.Volumes > 0:
		p.Phase = "owners"
	case left > 0 || p.Ensembles > 0:
		p.Phase = "copying"
	case p.Replicas > 0 || !heard:
		p.Phase = "permits"
	default:
		p.Phase = storeEmpty
	}
	if stuck > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%d segments can not be copied now: no copy of them can be reached, or no store has room", stuck))
	}
	return p
}

// wait reports until the stores are empty.
func (e *emptying) wait(ctx context.Context, progress func(*dozov1.EmptyProgress) error) (*dozov1.EmptyProgress, error) {
	var told time.Time
	var last string
	for {
		p := e.look(ctx)
		if p.Phase == storeEmpty {
			return p, nil
		}
		if key := fmt.Sprint(p.Phase, p.Volumes, p.Replicas, p.Ensembles); key != last || time.Since(told) > time.Second {
			last, told = key, time.Now()
			if err := progress(p); err != nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d replicas are left; it goes on: %w", p.Replicas, context.Cause(ctx))
		case <-time.After(waitEvery):
		}
		if x, ok := e.c.Node(e.node.Name); !ok || !e.asked(x) {
			return nil, fmt.Errorf("node %s: the emptying was called off: %w", e.node.Name, control.ErrConflict)
		}
	}
}

// asked reports that the stores are to be emptied still.
func (e *emptying) asked(x control.Node) bool {
	return !slices.ContainsFunc(e.stores, func(id ident.StoreID) bool {
		return slices.ContainsFunc(x.Stores, func(s control.StoreSpec) bool { return s.ID == id }) && !x.Leaves(id)
	}) && (!e.whole || x.Leaving)
}

// seen waits until the cache has what was just written.
func (e *emptying) seen(ctx context.Context) {
	for range 50 {
		if x, ok := e.c.Node(e.node.Name); ok && e.asked(x) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DecommissionNode implements api.Nodes. Each step may be the last one of this call: asked again, it goes on.
func (b *backend) DecommissionNode(ctx context.Context, req *dozov1.DecommissionNodeRequest, progress func(*dozov1.EmptyProgress) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	x, ok := c.Node(ident.NodeName(req.Node))
	if !ok {
		if err := b.finishTakeOut(ctx, c, ident.NodeName(req.Node), req.DryRun); err != nil {
			return err
		}
		return progress(&dozov1.EmptyProgress{Phase: "removed", Done: true})
	}
	if x.Name == b.n.cfg.Node {
		return fmt.Errorf("node %s can not take itself out of the cluster: ask another node: %w", x.Name, api.ErrRefused)
	}
	e := &emptying{b: b, c: c, node: x, whole: true}
	for _, s := range x.Stores {
		if !c.StoreLost(s.ID) {
			e.stores = append(e.stores, s.ID)
		}
	}
	if err := e.plan(); err != nil {
		return fmt.Errorf("node %s: %w", x.Name, err)
	}
	if req.DryRun {
		p := e.look(ctx)
		p.Phase, p.Done = "planned", true
		return progress(p)
	}
	if _, err := c.SetLeaving(ctx, x.Name, true); err != nil {
		return err
	}
	e.seen(ctx)
	if req.NoWait {
		return progress(e.look(ctx))
	}
	p, err := e.wait(ctx, progress)
	if err != nil {
		return err
	}
	if err := progress(p); err != nil {
		return err
	}
	if next, ok := b.replaceVoter(ctx, c, x); ok {
		p.Phase = "voter"
		if err := progress(p); err != nil {
			return err
		}
		if err := b.awaitVoter(ctx, next); err != nil {
			p.Notes = append(p.Notes, fmt.Sprintf("the vote of %s goes to nobody yet: %v", x.Name, err))
		}
	}
	if err := b.takeOut(ctx, c, x, leaving); err != nil {
		return err
	}
	p.Phase, p.Done = "removed", true
	return progress(p)
}

// ReplaceStore implements api.Stores.
func (b *backend) ReplaceStore(ctx context.Context, req *dozov1.ReplaceStoreRequest, progress func(*dozov1.EmptyProgress) error) error {
	x, s, err := b.findStore(req.Store)
	if err != nil {
		return err
	}
	c, err := b.ctl()
	if err != nil {
		return err
	}
	if err := storeNotLost(c, x, s); err != nil && !req.Lost {
		return err
	}
	e := &emptying{b: b, c: c, node: x, stores: []ident.StoreID{s.ID}}
	if err := e.plan(); err != nil && !req.Lost {
		return fmt.Errorf("store %s of node %s: %w", s.Label, x.Name, err)
	}
	switch {
	case req.DryRun:
		p := e.look(ctx)
		p.Phase, p.Done = "planned", true
		return progress(p)
	case req.Lost:
		if _, err := c.LoseStore(ctx, s.ID); err != nil {
			return err
		}
		return progress(&dozov1.EmptyProgress{Phase: storeLost, Done: true, Ensembles: listing(c, e.stores), Notes: e.notes})
	}
	if _, err := c.SetStoreLeaving(ctx, s.ID, true); err != nil {
		return err
	}
	e.seen(ctx)
	if req.NoWait {
		return progress(e.look(ctx))
	}
	p, err := e.wait(ctx, progress)
	if err != nil {
		return err
	}
	p.Done = true
	return progress(p)
}

// KeepStore implements api.Stores.
func (b *backend) KeepStore(ctx context.Context, req *dozov1.KeepStoreRequest) error {
	x, s, err := b.findStore(req.Store)
	if err != nil {
		return err
	}
	c, err := b.ctl()
	if err != nil {
		return err
	}
	if x.Leaving {
		return fmt.Errorf("node %s as a whole is being emptied; dozo node undrain ends that: %w", x.Name, api.ErrRefused)
	}
	if err := storeNotLost(c, x, s); err != nil {
		return err
	}
	_, err = c.SetStoreLeaving(ctx, s.ID, false)
	return err
}

// storeNotLost refuses what would have a store that was declared lost used again, or waited for.
func storeNotLost(c *control.Client, x control.Node, s control.StoreSpec) error {
	if !c.StoreLost(s.ID) {
		return nil
	}
	return fmt.Errorf("store %s of node %s was %w, for good: stop the node, put an empty directory in its place, and start the node: it makes a new store there", s.Label, x.Name, control.ErrLost)
}

// ScrubStore implements api.Stores.
func (b *backend) ScrubStore(ctx context.Context, req *dozov1.ScrubStoreRequest, progress func(*dozov1.ScrubProgress) error) error {
	x, s, err := b.findStore(req.Store)
	if err != nil {
		return err
	}
	if st, here := b.n.stores[s.ID]; here {
		if why := st.Failed(); why != "" {
			return fmt.Errorf("store %s of node %s has failed: %s: %w", s.Label, x.Name, why, api.ErrRefused)
		}
		st.ScrubNow()
	} else if err := b.n.callNode(ctx, x, func(ctx context.Context, other *api.Client) error {
		stream, err := other.Stores.Scrub(ctx, &dozov1.ScrubStoreRequest{Store: s.ID.String(), NoWait: true})
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
		}
		return stream.Err()
	}); err != nil {
		return err
	}
	begun := time.Now()
	for {
		list, err := b.ListStores(ctx, &dozov1.ListStoresRequest{Node: string(x.Name)})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(y *dozov1.Store) bool { return y.Id == s.ID.String() })
		if i < 0 {
			return fmt.Errorf("store %s: %w", s.ID, control.ErrNotFound)
		}
		p := &dozov1.ScrubProgress{Store: list[i], Done: !list[i].ScrubNow}
		if took := time.Since(begun); list[i].ScrubDoneBytes > 0 && !p.Done {
			p.Eta = eta(list[i].ScrubTotalBytes-min(list[i].ScrubTotalBytes, list[i].ScrubDoneBytes), uint64(float64(list[i].ScrubDoneBytes)/took.Seconds()))
		}
		if err := progress(p); err != nil || p.Done || req.NoWait {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("scrub of %s; it goes on: %w", s.ID, context.Cause(ctx))
		case <-time.After(waitEvery):
		}
	}
}

// blocksStatus adds up what the block manager has to do.
func blocksStatus(replies []wire.BlocksReply) *dozov1.BlocksStatus {
	s := &dozov1.BlocksStatus{}
	never := false
	var oldest uint64
	for _, r := range replies {
		s.RateBps += r.RateBps
		s.LimitBps += r.LimitBps
		for _, j := range r.Journals {
			s.SegmentsDegraded += uint64(j.Degraded)
			s.DegradedBytes += j.DegradedBytes
			s.SegmentsSingle += uint64(j.Single)
			s.MissingBytes += j.Missing
			s.SegmentsEmptying += uint64(j.Emptying)
			s.EmptyingBytes += j.EmptyingBytes
			s.SegmentsMoving += uint64(j.Moving)
			s.MovingBytes += j.MovingBytes
			s.SegmentsRunning += uint64(j.Running)
			s.SegmentsStuck += uint64(j.Stuck)
		}
		for _, st := range r.Stores {
			s.DamagedFound += st.ScrubFound
			s.DamagedHealed += st.ScrubHealed
			s.DamagedNow += uint64(len(st.Damaged))
			never = never || st.ScrubPassed == 0
			if oldest == 0 || st.ScrubPassed < oldest {
				oldest = st.ScrubPassed
			}
		}
	}
	if !never {
		s.ScrubPassed = stamp(oldest)
	}
	s.Eta = eta(s.MissingBytes+s.EmptyingBytes, s.RateBps)
	return s
}
