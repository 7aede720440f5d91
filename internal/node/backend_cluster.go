package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/size"
	"dozo/internal/trouble"
	"dozo/internal/version"
	"dozo/internal/wire"
)

// Reasons of problems, as docs/reference/api.md lists them.
const (
	problemNodeDown       = "NODE_DOWN"
	problemVoterDown      = "VOTER_DOWN"
	problemUnknownJournal = "JOURNAL_UNKNOWN"
	problemSiteAway       = "SITE_AWAY"
	problemVolumeDegraded = "VOLUME_DEGRADED"
	problemVolumeBehind   = "VOLUME_BEHIND"
	problemVolumeStarting = "VOLUME_STARTING"
	problemVolumeWaiting  = "VOLUME_WAITING"
	problemUnproven       = "UNPROVEN"
	problemVolumeDiverged = "VOLUME_DIVERGED"
	problemVolumeFailed   = "VOLUME_FAILED"
	problemStoreFailed    = "STORE_FAILED"
	problemStoreFull      = "STORE_FULL"
	problemDataDamaged    = "DATA_DAMAGED"
	problemControlAway    = "CONTROL_AWAY"

	problemControlUnsettled = "CONTROL_UNSETTLED"
)

// Severities, and the health that they make.
const (
	severityWarning  = "warning"
	severityCritical = "critical"
	healthOK         = "ok"
	healthDegraded   = "degraded"
	healthCritical   = "critical"
)

// behindAfter is the age of a site's newest record at which the site counts as behind: well above what a burst
// takes over a slow line.
const behindAfter = 30 * time.Second

// ownerlessAfter is how long a new volume may be without an owner before that is a problem.
const ownerlessAfter = 10 * time.Second

// startingFor is how long a volume may take to be served after its owner, or another one, has begun to recover it,
// before that is more than a start: what a takeover waits for stores whose end is uncertain (rule R4).
const startingFor = 30 * time.Second

// Status implements api.Cluster. A node that can not ask owners, such as a witness, has one answer that can.
func (b *backend) Status(ctx context.Context, req *dozov1.StatusRequest) (*dozov1.StatusResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	if b.n.pool == nil && !api.CallerFrom(ctx).Role.IsNode() {
		for _, x := range c.Nodes() {
			if !x.Has(control.RoleAccess) && !x.Has(control.RoleCore) {
				continue
			}
			var out *dozov1.StatusResponse
			err := b.n.callNode(ctx, x, func(ctx context.Context, other *api.Client) (err error) {
				out, err = other.Cluster.Status(ctx, req)
				return err
			})
			if err == nil {
				return out, nil
			}
		}
	}
	cl, err := c.Cluster()
	if err != nil {
		return nil, err
	}
	// Nodes and owners are asked at once: one that is paused must not be waited for twice.
	var views map[ident.JournalID]wire.JournalStatus
	var unheard []string
	var wg sync.WaitGroup
	wg.Go(func() { views, unheard = b.ownerStatus(ctx) })
	var blocks []wire.BlocksReply
	var facts map[ident.StoreID]storeFacts
	wg.Go(func() { blocks, facts = b.heardBlocks(ctx, true) })
	if b.n.pool != nil {
		wg.Go(func() { b.n.askTroubles(ctx) })
	}
	nodes, err := b.ListNodes(ctx, &dozov1.ListNodesRequest{})
	wg.Wait()
	if err != nil {
		return nil, err
	}
	connected, since := c.Connected()
	out := &dozov1.StatusResponse{ClusterId: cl.ID, ClusterName: cl.Name, Sites: uint32(len(c.Sites())), Nodes: uint32(len(nodes)), Node: string(b.n.cfg.Node),
		Time: timestamppb.Now(), Control: &dozov1.ControlStatus{Connected: connected, Since: timestamppb.New(since), External: b.n.cfg.Control.External}}
	var found []problem
	if !connected {
		found = append(found, problem{&dozov1.Problem{Severity: severityWarning, Reason: problemControlAway, Object: "control",
			Message: "the control store does not answer: I/O goes on, changes of specifications and ownership wait"}, trouble.Key{Reason: problemControlAway, Of: string(b.n.cfg.Node)}, since})
	}
	if p := restorationProblem(c); p != nil {
		found = append(found, problem{p, trouble.Key{Reason: p.Reason}, p.Since.AsTime()})
	}
	found = append(found, addNodes(out, nodes, newSpaces(facts))...)
	out.Blocks = blocksStatus(blocks)
	for _, x := range nodes {
		out.Blocks.StrayReplicas += x.StrayReplicas
		out.Blocks.StrayBytes += x.StrayBytes
		out.Blocks.UnknownJournals += x.UnknownJournals
		if x.UnknownJournals > 0 {
			found = append(found, problem{&dozov1.Problem{Severity: severityWarning, Reason: problemUnknownJournal, Object: nodeObject(x.Name),
				Message: fmt.Sprintf("stores of node %s have replicas of %d journals that the control store does not know: they are kept, and nothing can use them", x.Name, x.UnknownJournals)},
				trouble.Key{Reason: problemUnknownJournal, Of: x.Name}, time.Time{}})
		}
	}
	if n := out.Blocks.DamagedNow; n > 0 {
		found = append(found, problem{&dozov1.Problem{Severity: severityWarning, Reason: problemDataDamaged, Object: "cluster",
			Message: fmt.Sprintf("%d replicas have a bad place: they are made again from good ones", n)}, trouble.Key{Reason: problemDataDamaged}, time.Time{}})
	}
	for _, v := range c.Volumes() {
		state, _, _ := c.Journal(v.ID)
		st, ok := views[v.ID]
		if !ok {
			out.Volumes = append(out.Volumes, b.volumeStatus(v, state, nil))
			found = append(found, b.silentOwner(v, state, nodes, unheard)...)
			continue
		}
		s := b.volumeStatus(v, state, &st)
		out.Volumes = append(out.Volumes, s)
		found = append(found, volumeProblems(s, &st)...)
	}
	out.Problems = b.n.dated(found)
	out.Health = healthOf(out.Problems)
	return out, nil
}

// healthOf is the health that problems make.
func healthOf(list []*dozov1.Problem) string {
	health := healthOK
	for _, p := range list {
		if p.Severity == severityCritical {
			return healthCritical
		}
		health = healthDegraded
	}
	return health
}

// addNodes fills in what the nodes say, and gives what is wrong with them.
func addNodes(out *dozov1.StatusResponse, nodes []*dozov1.Node, room *spaces) (found []problem) {
	add := func(severity, reason, object, format string, args ...any) {
		_, of, _ := strings.Cut(object, "/")
		found = append(found, problem{&dozov1.Problem{Severity: severity, Reason: reason, Object: object, Message: fmt.Sprintf(format, args...)},
			trouble.Key{Reason: reason, Of: of}, time.Time{}})
	}
	atSite, upAtSite := map[string]int{}, map[string]int{}
	var sites []string
	for _, x := range nodes {
		if x.Voter {
			out.Control.Voters = append(out.Control.Voters, x.Name)
		}
		if x.Site != "" {
			if atSite[x.Site]++; atSite[x.Site] == 1 {
				sites = append(sites, x.Site)
			}
		}
		switch x.State {
		case nodeUp:
			out.NodesUp++
			upAtSite[x.Site]++
		case nodeStarting:
			upAtSite[x.Site]++
			add(severityWarning, problemNodeDown, nodeObject(x.Name), "the node is starting")
			if x.Started != nil {
				found[len(found)-1].since = x.Started.AsTime()
			}
		case nodeUnknown:
			add(severityWarning, problemNodeDown, nodeObject(x.Name), "the node does not answer, and the control store can not be asked")
		default:
			add(severityWarning, problemNodeDown, nodeObject(x.Name), "the node does not answer")
		}
		if x.VoterProblem != "" {
			add(severityWarning, problemVoterDown, nodeObject(x.Name), "the voter of the control store on node %s: %s", x.Name, x.VoterProblem)
		}
		for _, s := range x.Stores {
			out.CapacityBytes += room.add(s.Id, s.CapacityBytes)
			out.UsedBytes += s.UsedBytes
			switch s.State {
			case storeFailed:
				add(severityWarning, problemStoreFailed, "store/"+s.Id, "store %s of node %s has failed and is not used until its host has rebooted", s.Label, x.Name)
			case storeFull:
				add(severityWarning, problemStoreFull, "store/"+s.Id, "store %s of node %s has no space left", s.Label, x.Name)
			}
		}
	}
	for _, s := range sites {
		if upAtSite[s] == 0 {
			add(severityWarning, problemSiteAway, "site/"+s, "none of the %d nodes of the site answers", atSite[s])
		}
	}
	return found
}

func volumeObject(tenant, name string) string { return "volume/" + tenant + "/" + name }

// volumeStatus is a volume's part of the status; st is its owner's word, nil if that was not heard.
func (b *backend) volumeStatus(v control.VolumeSpec, state control.JournalState, st *wire.JournalStatus) *dozov1.VolumeStatus {
	d := b.describe(v, st)
	out := &dozov1.VolumeStatus{Id: d.Id, Tenant: d.Tenant, Name: d.Name, State: d.State, Owner: d.Owner, OwnerSite: d.OwnerSite, Epoch: d.Epoch, Protection: d.Protection}
	if st != nil && st.Recovering == 0 {
		out.CommitSeq, out.StableSeq = uint64(st.Commit.Seq), uint64(st.Stable.Seq)
		out.PortsAttached, out.PortsRefused = st.Attached, st.Barred
		for _, p := range st.Ports {
			out.Refused = append(out.Refused, portMessage(p))
		}
		out.LostBytes, out.LostSeconds = st.LostBytes, time.Duration(st.LostNanos).Seconds()
		out.Unproven, out.LostRecords, out.ForkSegments, out.ForkBytes = st.Unproven, st.Lost, uint64(st.Forks), st.ForkBytes
		out.SegmentsDegraded, out.DegradedBytes = uint64(st.Degraded), st.DegradedBytes
		out.Copies = b.copies(state, st)
	}
	return out
}

// silentOwner judges a volume of which no owner has spoken.
func (b *backend) silentOwner(v control.VolumeSpec, state control.JournalState, nodes []*dozov1.Node, unheard []string) []problem {
	p := problem{Problem: &dozov1.Problem{Severity: severityCritical, Object: volumeObject(v.Tenant, v.Name)}}
	fresh := time.Since(b.n.started) < startingFor // this node may not have reached the owner yet
	if i := slices.IndexFunc(nodes, func(x *dozov1.Node) bool { return x.Name == string(state.Owner) }); i >= 0 {
		x := nodes[i]
		begins := x.State == nodeStarting || x.State == nodeUp && x.Started != nil && time.Since(x.Started.AsTime()) < startingFor
		if fresh = fresh || begins; begins && x.Started != nil {
			p.since = x.Started.AsTime()
		}
	}
	switch {
	case state.Owner == "" && (state.Epoch.Number == 0 || time.Since(v.Created) < ownerlessAfter):
		return nil // nobody has used it, or it was made just now
	case state.Owner == "":
		p.Reason, p.Message, p.since = problemVolumeWaiting, "no access server owns the volume yet", v.Created
		if c := b.n.control(); c != nil {
			if r, ok := c.Restoration(); ok && r.Time.After(p.since) { // it had an owner before
				p.since = r.Time
			}
		}
	case fresh:
		p.Severity, p.Reason, p.Message = severityWarning, problemVolumeStarting, fmt.Sprintf("starting: %s, its owner, does not serve it yet", state.Owner)
	case slices.Contains(unheard, string(state.Owner)):
		p.Reason, p.Message = problemVolumeFailed, fmt.Sprintf("its owner %s does not answer, and no other has taken over yet", state.Owner)
	default:
		p.Reason, p.Message = problemVolumeWaiting, fmt.Sprintf("%s is its owner and does not serve it yet", state.Owner)
	}
	p.key = trouble.Key{Reason: p.Reason, Journal: v.ID}
	if p.Reason == problemVolumeFailed { // since its owner's node does not answer
		p.key = trouble.Key{Reason: problemNodeDown, Of: string(state.Owner)}
	}
	return []problem{p}
}

// volumeProblems judges a volume by its owner's word, what hinders its writes first. What it finds, volumeTroubles finds.
func volumeProblems(s *dozov1.VolumeStatus, st *wire.JournalStatus) (out []problem) {
	add := func(severity, reason, of, format string, args ...any) {
		out = append(out, problem{&dozov1.Problem{Severity: severity, Reason: reason, Object: volumeObject(s.Tenant, s.Name), Message: fmt.Sprintf(format, args...)},
			trouble.Key{Reason: reason, Journal: st.Journal, Of: of}, time.Time{}})
	}
	switch s.State {
	case "waiting":
		add(severityCritical, problemVolumeWaiting, "", "%s", st.State)
		if s.SegmentsDegraded > 0 {
			add(severityWarning, problemVolumeDegraded, "", "%d segments, %s, have fewer copies than asked for", s.SegmentsDegraded, size.Format(s.DegradedBytes))
		}
	case "failed":
		add(severityCritical, problemVolumeFailed, "", "%s", st.State)
	case "recovering":
		if took := time.Duration(st.Recovering); took < startingFor {
			add(severityWarning, problemVolumeStarting, "", "starting: %s reads its history", s.Owner)
		} else {
			add(severityCritical, problemVolumeWaiting, "", "%s has not been able to serve it for %s: %s", s.Owner, took.Round(time.Second), st.State)
		}
		if st.Recovering > 0 {
			out[0].since = time.Now().Add(-time.Duration(st.Recovering))
		}
	default:
		if s.Protection == "degraded" {
			add(severityWarning, problemVolumeDegraded, "", "%s: %d segments, %s, have fewer copies than asked for", st.State, s.SegmentsDegraded, size.Format(s.DegradedBytes))
		}
	}
	if s.PortsRefused > 0 {
		add(severityCritical, problemUnproven, ofPorts, "%d initiator ports get errors since a takeover that could not prove that nothing is missing: until they log out, or `dozo session accept`", s.PortsRefused)
	}
	if s.LostRecords > 0 {
		add(severityWarning, problemUnproven, ofLost, "at least %d acknowledged records, %s, %.1f s, are lost since the takeover at epoch %s", s.LostRecords, size.Format(s.LostBytes), s.LostSeconds, s.Epoch)
	}
	if s.ForkSegments > 0 {
		add(severityWarning, problemVolumeDiverged, "", "%d segments, %s, have records that are not of the history which is served: they are kept", s.ForkSegments, size.Format(s.ForkBytes))
	}
	for _, x := range s.Copies {
		if x.State == "away" || x.LagSeconds > behindAfter.Seconds() {
			add(severityWarning, problemVolumeBehind, x.Site, "site %s lacks %d records, %d bytes, %.0f s", x.Site, x.LagRecords, x.LagBytes, x.LagSeconds)
		}
	}
	return out
}

func eventMessage(e control.Event) *dozov1.Event {
	return &dozov1.Event{Revision: int64(e.Rev), Time: timestamppb.New(e.Time), Actor: e.Actor, Action: e.Action, Object: e.Object, Before: e.Before,
		After: e.After, Note: e.Note}
}

// Events implements api.Cluster.
func (b *backend) Events(ctx context.Context, req *dozov1.EventsRequest, send func(*dozov1.Event) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	list, err := c.Events(ctx, 0)
	if err != nil {
		return err
	}
	var since time.Time
	if req.Since != nil {
		since = req.Since.AsTime()
	}
	wanted := func(e control.Event) bool { return !e.Time.Before(since) }
	after, last := control.Rev(req.AfterRevision), control.Rev(0)
	if n := len(list); n > 0 {
		last = list[n-1].Rev
	}
	if after > last {
		// It is of a former control store: what has come since it was restored was not seen. Else it is yet to come.
		at, err := c.RestoredAt(ctx)
		if err != nil {
			return err
		}
		if after = last; !at.IsZero() {
			after = 0
			if at.After(since) {
				since = at
			}
		}
	}
	list = slices.DeleteFunc(list, func(e control.Event) bool { return e.Rev <= after || !wanted(e) })
	if n := int(req.Limit); n > 0 && len(list) > n {
		list = list[len(list)-n:]
	}
	for _, e := range list {
		if err := send(eventMessage(e)); err != nil {
			return err
		}
	}
	if !req.Follow {
		return nil
	}
	return c.WatchEvents(ctx, last, func(e control.Event) error {
		if !wanted(e) {
			return nil
		}
		return send(eventMessage(e))
	})
}

// Version implements api.Cluster.
func (b *backend) Version(context.Context, *dozov1.VersionRequest) (*dozov1.VersionResponse, error) {
	v := version.Get()
	return &dozov1.VersionResponse{Version: v.Version, Revision: v.Revision, GoVersion: v.GoVersion, Platform: v.Platform, Node: string(b.n.cfg.Node)}, nil
}

// storesOf lists the stores of all registered nodes.
func storesOf(c *control.Client) (out []ident.StoreID) {
	for _, x := range c.Nodes() {
		for _, s := range x.Stores {
			out = append(out, s.ID)
		}
	}
	return out
}
