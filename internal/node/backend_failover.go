package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// A failover is decided by one change of the control store a volume; what follows is done by the nodes that it names, whether
// or not this one lives. So a command that is run again finds only what has not been done.

// Times and numbers of a failover.
const (
	surveysAtOnce    = 8
	failoverEvery    = 100 * time.Millisecond // between two looks at how it goes
	failoverPatience = 2 * time.Minute        // for the new owners to serve; they go on trying
	failbackEvery    = 500 * time.Millisecond
	failbackLagSmall = 8 << 20 // bytes: what a hand-over may well begin with
)

// askInstead names an access server, one that answers if there is one.
func (b *backend) askInstead() string {
	c := b.n.control()
	if c == nil {
		return "ask one"
	}
	var found control.Node
	for _, x := range c.Nodes() {
		up := b.n.pool != nil && b.n.peerOf(x).Up()
		if x.Has(control.RoleAccess) && (up || found.Name == "") {
			if found = x; up {
				break
			}
		}
	}
	if found.Name == "" {
		return "the cluster has none"
	}
	return fmt.Sprintf("ask one, such as %s (--endpoint https://%s)", found.Name, found.Addrs.Management)
}

// accessServer is this node's, which all of this needs.
func (b *backend) accessServer() (*access.Server, error) {
	if b.n.access == nil {
		return nil, fmt.Errorf("node %s is no access server: %s: %w", b.n.cfg.Node, b.askInstead(), api.ErrUnavailable)
	}
	return b.n.access, nil
}

// alive lists the nodes at a site that may be alive: those that can be reached, and those that have announced themselves lately
// unless their host says that nothing listens there.
func (b *backend) alive(c *control.Client, site ident.SiteID) (list []string) {
	for _, x := range siteNodes(c, site) {
		switch {
		case x.Name == b.n.cfg.Node:
			list = append(list, string(x.Name))
		case b.n.pool == nil:
		default:
			if p := b.n.peerOf(x); p.Up() || c.Alive(x.Name) && !p.Gone() {
				list = append(list, string(x.Name))
			}
		}
	}
	return list
}

// failing is one volume's part of a failover.
type failing struct {
	v      control.VolumeSpec
	s      *access.Survey
	taker  ident.NodeName
	forced ident.Epoch
	waits  bool // its owner is elsewhere, and can not begin without what the lost site has
	msg    *dozov1.VolumeFailover
}

func (f *failing) refuse(state, format string, args ...any) {
	f.msg.State, f.msg.Message = state, fmt.Sprintf(format, args...)
}

// plan looks at one volume: what its stores have, and who would take it over. site is the one that is lost, 0 for none in
// particular; to the one asked for.
func (b *backend) plan(ctx context.Context, v control.VolumeSpec, site, to ident.SiteID, force bool) *failing {
	c := b.n.control()
	f := &failing{v: v, msg: &dozov1.VolumeFailover{Id: v.ID.String(), Tenant: v.Tenant, Volume: v.Name, State: "planned"}}
	state, _, _ := c.Journal(v.ID)
	f.msg.From = string(state.Owner)
	owner, known := c.Node(state.Owner)
	if known {
		f.msg.FromSite = b.siteName(owner.Site)
	}
	var err error
	if f.s, err = b.n.access.Survey(ctx, v.ID); err != nil {
		f.refuse("failed", "%v", err)
		return f
	}
	s := f.s
	f.msg.LastSeq, f.msg.LostRecords, f.msg.LostBytes, f.msg.LostSeconds, f.msg.Proven = uint64(s.Last), s.Records, s.Bytes, s.Span.Seconds(), s.Enough
	f.msg.SitesNeeded, f.msg.Kept = uint32(s.Need), s.Kept()
	var whole []string
	for _, id := range s.Whole {
		if id != site { // what it has counts once it is back
			whole = append(whole, b.siteName(id))
		}
	}
	if f.msg.SitesWhole = whole; s.Need > 0 && len(whole) < s.Need {
		f.msg.Kept = false
	}
	if f.msg.Kept && !s.Enough { // what survivors know of beyond, nobody was told of
		f.msg.LostRecords, f.msg.LostBytes, f.msg.LostSeconds = 0, 0, 0
	}
	if !s.LastAt.IsZero() {
		f.msg.LastTime = timestamppb.New(s.LastAt)
	}
	for _, r := range s.Reach {
		f.msg.Reach = append(f.msg.Reach, &dozov1.SiteReach{Site: b.siteName(r.Site), Seq: uint64(r.Last)})
	}
	var elsewhere []string
	for _, id := range s.Missing {
		x, _ := c.NodeOfStore(id)
		f.msg.Missing = append(f.msg.Missing, id.String())
		if site != 0 && x.Site != site && !s.Enough {
			elsewhere = append(elsewhere, cmp.Or(string(x.Name), id.String()))
		}
	}
	// The site that has most, of those that can own it; those that have less would have to fetch it.
	sites := []ident.SiteID{to}
	if to == 0 {
		sites = nil
		if site == 0 && known {
			sites = append(sites, owner.Site) // a volume that is recovered stays at home
		}
		for _, r := range s.Reach {
			sites = append(sites, r.Site)
		}
		sites = append(sites, s.State.Sites...)
		for _, x := range c.Sites() {
			sites = append(sites, x.ID)
		}
	}
	for _, x := range sites {
		if x == site {
			continue
		}
		if name, ok := b.n.access.Taker(v.ID, x); ok {
			f.taker = name
			f.msg.Owner, f.msg.OwnerSite = string(name), b.siteName(x)
			break
		}
	}
	switch {
	case f.taker == "":
		f.refuse("refused", "no access server that can be reached may take it over")
	case s.Last == 0 && len(s.State.Ensembles) > 0 && !force:
		f.refuse("refused", "no store that can be reached has anything of it")
	case s.Need > 0 && !f.msg.Kept && !s.Enough && !force:
		f.refuse("refused", "with the policy %s nothing that was acknowledged is left behind if %d of its sites are heard with all of their core servers, and %s; --force goes without, and acknowledged writes may be lost",
			control.AckText(s.State.Ack), s.Need, heardWhole(whole))
	case len(elsewhere) > 0 && !force:
		f.refuse("refused", "its takeover needs %s, which do not answer either; --force goes without them", strings.Join(elsewhere, ", "))
	case s.Stable && !force && site == 0:
		f.refuse("refused", "records would be lost that were on stable storage when they were last heard of; --force accepts that")
	case s.Holed && s.Enough && site != 0:
		f.msg.Message = fmt.Sprintf("enough stores answer, and its takeover waits for one that has what follows seq %d; dozo volume recover --force goes on without", s.Last)
	}
	return f
}

func heardWhole(sites []string) string {
	switch len(sites) {
	case 0:
		return "none is"
	case 1:
		return "only " + sites[0] + " is"
	}
	return "only " + strings.Join(sites, " and ") + " are"
}

// force writes the decision.
func (b *backend) force(ctx context.Context, f *failing, site ident.SiteID, force bool) {
	c := b.n.control()
	var lost []ident.StoreID
	for _, e := range f.s.State.Ensembles {
		for _, id := range e.Stores {
			if slices.Contains(lost, id) {
				continue
			}
			if b.n.Site(id) == site && site != 0 || slices.Contains(f.s.Missing, id) && (force || site == 0) {
				lost = append(lost, id)
			}
		}
	}
	var unheld ident.NodeName
	if f.v.Partition == control.PartitionStop && !force && !f.waits { // who was the owner before has given it away
		unheld = f.s.State.Owner
	}
	hear := 0
	if !force {
		hear = f.s.Need
	}
	loss := force && site == 0 && f.s.ShortOfRecords()
	state, _, err := c.ForceJournal(ctx, f.v.ID, f.s.Rev, f.taker, lost, unheld, hear, loss)
	var uncertain *control.UncertainError
	if errors.As(err, &uncertain) {
		state, _, err = c.Settle(ctx, uncertain)
	}
	switch {
	case errors.Is(err, control.ErrInUse):
		f.refuse("refused", "its owner %s still has its lease of the control store: it is alive, or was seconds ago; --force goes on all the same", f.s.State.Owner)
	case errors.Is(err, control.ErrConflict):
		f.refuse("failed", "somebody else has changed it meanwhile: run it again")
	case err != nil:
		f.refuse("failed", "%v", err)
	default:
		f.forced = state.Epoch
		f.msg.State = "taking over"
	}
}

// follow waits until those that were forced are served, and fills in what their owners say.
func (b *backend) follow(ctx context.Context, list []*failing, progress func() error) error {
	for deadline := time.Now().Add(failoverPatience); ; {
		var ids []ident.JournalID
		for _, f := range list {
			if f.msg.State == "taking over" {
				ids = append(ids, f.v.ID)
			}
		}
		if len(ids) == 0 {
			return nil
		}
		all, _ := b.ownerStatus(ctx, ids...)
		changed := false
		for _, f := range list {
			st, ok := all[f.v.ID]
			if !ok || f.msg.State != "taking over" {
				continue
			}
			if st.Recovering > 0 || st.Epoch.Less(f.forced) {
				changed = changed || f.msg.Message != st.State
				f.msg.Message = st.State
				continue
			}
			m := f.msg
			changed = true
			x, _ := b.n.control().Node(st.Owner)
			m.State, m.Message, m.Owner, m.OwnerSite, m.Epoch, m.Proven = "serving", "", string(st.Owner), b.siteName(x.Site), st.Epoch.String(), !st.Unproven
			m.Kept = st.Kept
			m.LostRecords, m.LostBytes, m.LostSeconds = st.Lost, st.LostBytes, time.Duration(st.LostNanos).Seconds()
		}
		if changed {
			if err := progress(); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			for _, f := range list {
				if f.msg.State == "taking over" {
					f.refuse("failed", "%s does not serve it yet, and goes on trying: %s", f.taker, f.msg.Message)
				}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the takeovers that were begun go on: %w", context.Cause(ctx))
		case <-time.After(failoverEvery):
		}
	}
}

// goesWith says whether the loss of a site may be the loss of a volume: it is owned there, or, never owned, at home there; or
// its owner elsewhere has not begun, since a site can be lost right after it has handed a volume over, and what it was
// written to last is there.
func goesWith(site ident.SiteID, owner ident.NodeName, at, home ident.SiteID, known, recovering bool) (owned, waits bool) {
	if !known {
		return owner == "" && home == site, false
	}
	return at == site, at != site && recovering
}

// FailoverSite implements api.Sites.
func (b *backend) FailoverSite(ctx context.Context, req *dozov1.FailoverSiteRequest, progress func(*dozov1.FailoverSiteResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	if _, err := b.accessServer(); err != nil {
		return err
	}
	site, ok := c.SiteByName(req.Site)
	if !ok {
		return fmt.Errorf("site %s: %w", req.Site, control.ErrNotFound)
	}
	var to control.Site
	if req.To != "" {
		if to, ok = c.SiteByName(req.To); !ok {
			return fmt.Errorf("site %s: %w", req.To, control.ErrNotFound)
		}
		if to.ID == site.ID {
			return fmt.Errorf("site %s can not take over from itself: %w", req.To, control.ErrInvalid)
		}
	}
	alive := b.alive(c, site.ID)
	if len(alive) > 0 && !req.Force && !req.DryRun {
		return fmt.Errorf("site %s is alive, or was seconds ago: %s; move its volumes (dozo volume move, dozo node drain), which loses nothing, or insist with --force: %w",
			site.Name, strings.Join(alive, ", "), api.ErrRefused)
	}
	var list []*failing
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, surveysAtOnce)
	all, _ := b.ownerStatus(ctx)
	for _, v := range c.Volumes() {
		state, _, ok := c.Journal(v.ID)
		if !ok {
			continue
		}
		owner, known := c.Node(state.Owner)
		st, heard := all[v.ID]
		owned, waits := goesWith(site.ID, state.Owner, owner.Site, v.AtSite, known, heard && st.Recovering > 0)
		if !owned && !waits {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f := b.plan(ctx, v, site.ID, to.ID, req.Force)
			if f.waits = waits; waits && f.s != nil && !b.n.access.WaitsFor(f.s, site.ID) {
				return
			}
			mu.Lock()
			list = append(list, f)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.SortFunc(list, func(a, b *failing) int {
		return cmp.Or(cmp.Compare(a.v.Tenant, b.v.Tenant), cmp.Compare(a.v.Name, b.v.Name))
	})
	say := func(done bool) error {
		r := &dozov1.FailoverSiteResponse{Done: done, Alive: alive}
		for _, f := range list {
			r.Volumes = append(r.Volumes, proto.CloneOf(f.msg))
		}
		return progress(r)
	}
	if req.DryRun {
		return say(true)
	}
	for _, f := range list {
		if f.msg.State == "planned" {
			b.force(context.WithoutCancel(ctx), f, site.ID, req.Force)
		}
	}
	if err := say(false); err != nil {
		return err
	}
	ferr := b.follow(ctx, list, func() error { return say(false) })
	sum := &dozov1.VolumeFailover{}
	states := map[string]int{}
	for _, f := range list {
		states[f.msg.State]++
		sum.LostRecords += f.msg.LostRecords
		sum.LostBytes += f.msg.LostBytes
		sum.LostSeconds = max(sum.LostSeconds, f.msg.LostSeconds)
	}
	note := fmt.Sprintf("%d volumes are served elsewhere, %d refused, %d failed or not yet; lost at least %d records, %d bytes, %.1f s",
		states["serving"], states["refused"], states["failed"]+states["taking over"], sum.LostRecords, sum.LostBytes, sum.LostSeconds)
	b.event(ctx, "site.failover", "site/"+site.Name, note)
	if ferr != nil {
		return ferr
	}
	return say(true)
}

// event puts an event of a caller's into the log; it does not fail the call.
func (b *backend) event(ctx context.Context, action, object, note string) {
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	e := control.Event{Time: time.Now(), Actor: control.ActorFrom(ctx), Action: action, Object: object, Note: note}
	if err := b.n.control().AppendEvent(actx, e); err != nil {
		b.n.log.Warn("event not recorded", "action", action, "object", object, "err", err)
	}
}

// RecoverVolume implements api.Volumes.
func (b *backend) RecoverVolume(ctx context.Context, req *dozov1.RecoverVolumeRequest, progress func(*dozov1.RecoverVolumeResponse) error) error {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return err
	}
	if _, err := b.accessServer(); err != nil {
		return err
	}
	c := b.n.control()
	var to control.Site
	if req.To != "" {
		var ok bool
		if to, ok = c.SiteByName(req.To); !ok {
			return fmt.Errorf("site %s: %w", req.To, control.ErrNotFound)
		}
	}
	f := b.plan(ctx, v, 0, to.ID, req.Force)
	all, _ := b.ownerStatus(ctx, v.ID)
	st, heard := all[v.ID]
	served := heard && st.Recovering == 0 && stateWord(st.State) != "recovering"
	var up []string
	if f.s != nil {
		for _, id := range f.s.Missing {
			if x, ok := c.NodeOfStore(id); ok && b.n.Up(id) {
				up = append(up, string(x.Name))
			}
		}
	}
	switch {
	case f.msg.State != "planned":
	case served && !req.Force:
		f.refuse("refused", "it is served by %s: there is nothing to recover", st.Owner)
	case f.s.Enough && f.s.Holed && f.s.State.Forced != nil && !req.Force:
		f.refuse("refused", "enough stores answer, and none of them has what follows seq %d: its takeover waits for one that has; --force goes on without", f.s.Last)
	case f.s.Enough && !req.Force:
		f.refuse("refused", "enough stores answer: its takeover waits for none that is lost")
	case len(up) > 0 && !req.Force:
		f.refuse("refused", "%s can be reached, though not its store: it may answer yet; --force goes without", strings.Join(up, ", "))
	}
	say := func(done bool) error {
		return progress(&dozov1.RecoverVolumeResponse{Done: done, Volume: proto.CloneOf(f.msg)})
	}
	if req.DryRun {
		return say(true)
	}
	if f.msg.State == "planned" {
		b.force(context.WithoutCancel(ctx), f, 0, req.Force)
	}
	if f.msg.State != "taking over" {
		is := api.ErrRefused
		if f.msg.State == "failed" {
			is = api.ErrUnavailable
		}
		return fmt.Errorf("volume %s: %s: %w", v.Name, f.msg.Message, is)
	}
	if err := say(false); err != nil {
		return err
	}
	if err := b.follow(ctx, []*failing{f}, func() error { return say(false) }); err != nil {
		return err
	}
	b.event(ctx, "volume.recover", volumeObject(v.Tenant, v.Name), fmt.Sprintf("%s by %s at %s; lost at least %d records, %d bytes, %.1f s", f.msg.State, f.msg.Owner, f.msg.OwnerSite,
		f.msg.LostRecords, f.msg.LostBytes, f.msg.LostSeconds))
	return say(true)
}

// FailbackSite implements api.Sites.
func (b *backend) FailbackSite(ctx context.Context, req *dozov1.FailbackSiteRequest, progress func(*dozov1.FailbackSiteResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	site, ok := c.SiteByName(req.Site)
	if !ok {
		return fmt.Errorf("site %s: %w", req.Site, control.ErrNotFound)
	}
	if !slices.ContainsFunc(siteNodes(c, site.ID), func(x control.Node) bool { return x.Has(control.RoleAccess) && !x.Draining && c.Alive(x.Name) }) {
		return fmt.Errorf("no access server of site %s is up that may own volumes: %w", site.Name, api.ErrUnavailable)
	}
	var list []*dozov1.VolumeFailback
	var specs []control.VolumeSpec
	all, _ := b.ownerStatus(ctx)
	for _, v := range c.Volumes() {
		state, _, _ := c.Journal(v.ID)
		owner, ok := c.Node(state.Owner)
		if v.AtSite != site.ID || !ok || owner.Site == site.ID {
			continue
		}
		m := &dozov1.VolumeFailback{Id: v.ID.String(), Tenant: v.Tenant, Volume: v.Name, State: "planned", Owner: string(owner.Name), OwnerSite: b.siteName(owner.Site)}
		if st, ok := all[v.ID]; ok {
			m.LagBytes = lagAt(st, site.ID)
		}
		list, specs = append(list, m), append(specs, v)
	}
	say := func(done bool) error {
		r := &dozov1.FailbackSiteResponse{Done: done}
		for _, m := range list {
			r.Volumes = append(r.Volumes, proto.CloneOf(m))
		}
		return progress(r)
	}
	if err := say(req.DryRun); err != nil || req.DryRun {
		return err
	}
	for i, m := range list {
		if err := b.goHome(ctx, specs[i], site, m, func() error { return say(false) }); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("volume %s was on its way, those behind it have not been touched: %w", m.Volume, context.Cause(ctx))
			}
			m.State, m.Message = "failed", err.Error()
		}
	}
	return say(true)
}

// stillThere says that a volume which is waited for was deleted meanwhile.
func (b *backend) stillThere(v control.VolumeSpec) error {
	if now, ok := b.n.control().Volume(v.ID); !ok || now.Deleted != nil {
		return fmt.Errorf("volume %s was deleted meanwhile: %w", v.Name, control.ErrNotFound)
	}
	return nil
}

func lagAt(st wire.JournalStatus, site ident.SiteID) uint64 {
	for _, s := range st.Sites {
		if s.Site == site {
			return s.LagBytes
		}
	}
	return 0
}

// goHome hands one volume over once its home has what it needs, unless it has gone there meanwhile: somebody else has moved it, or it has
// followed its writes.
func (b *backend) goHome(ctx context.Context, v control.VolumeSpec, site control.Site, m *dozov1.VolumeFailback, progress func() error) error {
	c := b.n.control()
	for last := uint64(1 << 63); ; {
		if err := b.stillThere(v); err != nil {
			return err
		}
		state, _, _ := c.Journal(v.ID)
		if owner, ok := c.Node(state.Owner); ok && owner.Site == site.ID {
			m.State, m.Message, m.LagBytes, m.Owner, m.OwnerSite = "home", "", 0, string(owner.Name), site.Name
			return progress()
		}
		if len(b.n.Core(site.ID)) > 0 && !slices.Contains(state.Sites, site.ID) {
			break // it has no copy and will get none: the move says so
		}
		all, _ := b.ownerStatus(ctx, v.ID)
		st, ok := all[v.ID]
		current := false
		for _, s := range st.Sites {
			if s.Site == site.ID {
				m.LagBytes = s.LagBytes
				current = s.Watermark.Seq > 0 && s.LagBytes < failbackLagSmall
			}
		}
		if ok && st.Recovering == 0 && (current || len(b.n.Core(site.ID)) == 0) {
			break
		}
		if m.State, m.Message = "waiting", "the site lacks records"; !ok || st.Recovering > 0 {
			m.Message = "its owner does not serve it yet"
		}
		if m.LagBytes != last {
			last = m.LagBytes
			if err := progress(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(failbackEvery):
		}
	}
	m.State, m.Message = "moving", ""
	req := &dozov1.MoveVolumeRequest{Volume: v.ID.String(), Tenant: v.Tenant, To: site.Name}
	return b.MoveVolume(ctx, req, func(r *dozov1.MoveVolumeResponse) error {
		m.Message, m.LagBytes = r.Phase, r.LagBytes
		if r.Done {
			m.State, m.Message, m.LagBytes, m.Owner, m.OwnerSite, m.Pause = "home", "", 0, r.Owner, r.OwnerSite, durationpb.New(r.Pause.AsDuration())
		}
		return progress()
	})
}
