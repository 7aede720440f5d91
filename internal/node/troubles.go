package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/trouble"
	"dozo/internal/wire"
)

// This part of Node watches what is wrong, so that the status can say since when: what this node sees by itself (its owners'
// volumes, its stores, which nodes it reaches), and what the others say that they see.

const (
	troublesEvery = 2 * time.Second
	troublesAsked = time.Second // for how long an answer is waited for
	// inheritFor is for how long after its start, or after it took a volume over, a node takes it that what it sees may have
	// been so before.
	inheritFor = trouble.Kept
)

// watchTroubles keeps the node's book until ctx ends.
func (n *Node) watchTroubles(ctx context.Context) {
	t := time.NewTicker(troublesEvery)
	defer t.Stop()
	for {
		n.askTroubles(ctx)
		n.seeTroubles(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// troublesFor answers for what this node sees.
func (n *Node) troublesFor(from ident.NodeName, m *wire.Troubles) (r wire.TroublesReply) {
	now, after := Clock(), m.After
	r.Instance = n.instance
	if m.Instance != n.instance || after == 0 {
		after, r.Whole = 0, true
		r.Remembered = troubleWire(n.book.Remembered(now, string(from), m.Self))
	}
	changes, version := n.book.Changes(now, after)
	r.Changes, r.Version = troubleWire(changes), version
	return r
}

func troubleWire(list []trouble.Change) []wire.Trouble {
	out := make([]wire.Trouble, len(list))
	for i, c := range list {
		out[i] = wire.Trouble{Reason: c.Key.Reason, Journal: c.Key.Journal, Of: c.Key.Of, Over: c.Over, Age: c.Age}
	}
	return out
}

func troubleBook(list []wire.Trouble) []trouble.Change {
	out := make([]trouble.Change, len(list))
	for i, t := range list {
		out[i] = trouble.Change{Key: trouble.Key{Reason: t.Reason, Journal: t.Journal, Of: t.Of}, Over: t.Over, Age: t.Age}
	}
	return out
}

// askTroubles asks all nodes that can be reached what has become of what they see.
func (n *Node) askTroubles(ctx context.Context) {
	var ask []control.Node
	for _, x := range n.control().Nodes() {
		if x.Name != n.cfg.Node && x.Addrs.Cluster.IsValid() && !x.Has(control.RoleWitness) && n.peerOf(x).Up() {
			ask = append(ask, x)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, troublesAsked)
	defer cancel()
	for _, a := range askNodes(ctx, ask, func(ctx context.Context, x control.Node) (r wire.TroublesReply, err error) {
		m := &wire.Troubles{Self: n.instance}
		m.Instance, m.After = n.book.Told(string(x.Name))
		r, err = n.peerOf(x).Troubles(ctx, m)
		if err != nil {
			return r, err
		}
		n.learn(string(x.Name), m, &r)
		return r, nil
	}) {
		if a.err != nil && ctx.Err() == nil && !errors.Is(a.err, wire.ErrVersion) {
			n.log.Debug("node does not say what is wrong", "peer", a.node.Name, "err", a.err)
		}
	}
}

// learn takes in what a node has answered.
func (n *Node) learn(name string, m *wire.Troubles, r *wire.TroublesReply) {
	after := m.After
	if r.Whole {
		after = 0
		n.book.Recall(Clock(), troubleBook(r.Remembered))
	}
	n.book.Learn(Clock(), name, r.Instance, after, r.Version, troubleBook(r.Changes))
}

// seeTroubles looks at what this node can see by itself.
func (n *Node) seeTroubles(ctx context.Context) {
	ctl := n.control()
	young := time.Since(n.started) < inheritFor
	type seen struct {
		k       trouble.Key
		inherit bool
	}
	var list []seen
	see := func(reason, of string) { list = append(list, seen{trouble.Key{Reason: reason, Of: of}, young}) }
	if connected, _ := ctl.Connected(); !connected {
		see(problemControlAway, string(n.cfg.Node))
	}
	if n.strangers.Load() > 0 {
		see(problemUnknownJournal, string(n.cfg.Node))
	}
	if n.voterTrouble() != "" {
		see(problemVoterDown, string(n.cfg.Node))
	}
	damaged := false
	b := &backend{n}
	for id, st := range n.stores {
		if status, err := st.Status(ctx, &wire.StoreStatus{}); err == nil {
			switch b.storeState(st, &status) {
			case storeFailed:
				see(problemStoreFailed, id.String())
			case storeFull:
				see(problemStoreFull, id.String())
			}
		}
		if x, err := st.Blocks(ctx); err == nil && len(x.Damaged) > 0 {
			damaged = true
		}
	}
	if damaged {
		list = append(list, seen{trouble.Key{Reason: problemDataDamaged}, true}) // of the whole cluster: it may be the next of several
	}
	if h := b.Health(); !h.Ready {
		see(problemNodeDown, string(n.cfg.Node))
	}
	atSite, upAtSite := map[ident.SiteID]int{}, map[ident.SiteID]int{}
	for _, x := range ctl.SharedNodes() {
		up := x.Name == n.cfg.Node
		switch {
		case up:
		case x.Has(control.RoleWitness) || !x.Addrs.Cluster.IsValid():
			up = ctl.Alive(x.Name)
		default:
			up = n.peerOf(x).Up()
		}
		if !up {
			see(problemNodeDown, string(x.Name))
		}
		if x.Site != 0 {
			atSite[x.Site]++
			if up {
				upAtSite[x.Site]++
			}
		}
	}
	for id := range atSite {
		if upAtSite[id] == 0 {
			see(problemSiteAway, b.siteName(id))
		}
	}
	if n.access != nil {
		away := n.sitesAway(ctl)
		site := func(id ident.SiteID) (string, bool) {
			_, gone := away[id]
			return b.siteName(id), gone
		}
		n.access.EachStatus(func(st *wire.JournalStatus, began time.Time) {
			inherit := young || time.Since(began) < inheritFor
			volumeTroubles(st, site, func(reason, of string) {
				list = append(list, seen{trouble.Key{Reason: reason, Journal: st.Journal, Of: of}, inherit})
			})
		})
	}
	n.book.Observe(Clock(), func(saw func(trouble.Key, bool)) {
		for _, s := range list {
			saw(s.k, s.inherit)
		}
	})
}

// sitesAway are the sites of which no core server can be reached.
func (n *Node) sitesAway(ctl *control.Client) map[ident.SiteID]struct{} {
	out := map[ident.SiteID]struct{}{}
	for _, s := range ctl.Sites() {
		if !slices.ContainsFunc(n.Core(s.ID), n.Up) {
			out[s.ID] = struct{}{}
		}
	}
	return out
}

// volumeTroubles calls f for what volumeProblems would say of a volume, without saying it: for thousands of volumes every
// other second. site gives a site's name, and whether it is out of reach.
func volumeTroubles(st *wire.JournalStatus, site func(ident.SiteID) (string, bool), f func(reason, of string)) {
	switch stateWord(st.State) {
	case "waiting":
		f(problemVolumeWaiting, "")
		if st.Degraded > 0 {
			f(problemVolumeDegraded, "")
		}
	case "failed":
		f(problemVolumeFailed, "")
	case "recovering":
		if time.Duration(st.Recovering) < startingFor {
			f(problemVolumeStarting, "")
		} else {
			f(problemVolumeWaiting, "")
		}
	default:
		if protection(st) == "degraded" {
			f(problemVolumeDegraded, "")
		}
	}
	if st.Recovering > 0 {
		return // nothing else is known yet
	}
	if st.Lost > 0 {
		f(problemUnproven, ofLost)
	}
	if st.Barred > 0 {
		f(problemUnproven, ofPorts)
	}
	if st.Forks > 0 {
		f(problemVolumeDiverged, "")
	}
	for i := range st.Sites {
		s := &st.Sites[i]
		if s.Watermark.Seq >= st.Commit.Seq {
			continue
		}
		if name, away := site(s.Site); away || time.Duration(s.LagNanos) > behindAfter {
			f(problemVolumeBehind, name)
		}
	}
}

// What UNPROVEN speaks of.
const (
	ofLost  = "lost"
	ofPorts = "ports"
)

// problem is one of the status, with what the nodes remember it by.
type problem struct {
	*dozov1.Problem
	key trouble.Key
	// since when it holds at the latest, as far as that is seen from the thing itself; zero: only the book knows
	since time.Time
}

// sortProblems puts what hinders I/O first.
func sortProblems(list []*dozov1.Problem) {
	slices.SortStableFunc(list, func(a, b *dozov1.Problem) int { return cmp.Compare(rankOf(a), rankOf(b)) })
}

func rankOf(p *dozov1.Problem) int {
	if p.Severity == severityCritical {
		return 0
	}
	return 1
}

// dated fills in since when problems hold: by the thing itself, or by what any node remembers, whichever is longer ago.
func (n *Node) dated(list []problem) []*dozov1.Problem {
	out := make([]*dozov1.Problem, len(list))
	now, wall := Clock(), time.Now()
	for i, p := range list {
		first, ok := n.book.Since(now, p.key)
		since := wall.Add(time.Duration(first - now))
		if !ok || !p.since.IsZero() && p.since.Before(since) {
			since = p.since
		}
		if !since.IsZero() {
			p.Since = timestamppb.New(since.Truncate(time.Millisecond))
		}
		out[i] = p.Problem
	}
	sortProblems(out)
	return out
}
