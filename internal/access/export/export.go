// Package export shows volumes to initiators: it is what stands between the iSCSI server and the access server,
// and the only place that knows both.
//
// Start at Exports: it implements iscsi.Provider. A target is made at login, not kept per volume: the name
// carries the volume's ID, access lists and secrets are the control store's. disk.go turns SCSI's calls into the
// owner's commands, and the owner's errors into SCSI's.
//
// Always true: a volume has one IQN at all access servers, and a portal group of its own at each; every session
// is barred at the owner before its login is answered (rule R9). Sizes are bytes.
package export

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/access"
	"dozo/internal/access/iscsi"
	"dozo/internal/access/reserve"
	"dozo/internal/access/scsi"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// IQNPrefix stands before a volume's ID in the name of its target. The date is the one at which the name's
// authority began, as RFC 7143 4.2.7.4 wants.
const IQNPrefix = "iqn.2026-11.dev.dozo:"

// HostsIQN is the name of the hosts' target of a cluster: the one that shows each host just its LUNs.
func HostsIQN(cluster string) string { return IQNPrefix + "hosts-" + strings.ToLower(cluster) }

// IQN is the name of a volume's target: the same at every access server, for ever.
func IQN(id ident.JournalID) string { return IQNPrefix + id.String() }

// ParseIQN finds the volume's ID in a target name.
func ParseIQN(name string) (ident.JournalID, bool) {
	text, ok := strings.CutPrefix(strings.ToLower(name), IQNPrefix)
	if !ok {
		return ident.JournalID{}, false
	}
	id, err := ident.ParseJournalID(text)
	return id, err == nil
}

// Exports implements iscsi.Provider for one node.
type Exports struct {
	// Discovery is what has to be proved for discovery where no host's credentials hold, instead of the cluster's; set
	// before use.
	Discovery iscsi.Credentials
	// Loads asks access servers how many sessions they have, if it is set, which is before use; who doesn't answer in the
	// context's time is left out.
	Loads func(ctx context.Context, of []control.Node) map[ident.NodeName]int

	srv  *access.Server
	ctl  control.Store
	node ident.NodeName
	// started is when this process began to serve.
	started time.Time
	// Copies have a forwarder of their own: their calls outnumber what one command's ID can name.
	copier uint64
	copies atomic.Uint64

	mu       sync.Mutex
	sessions map[*iscsi.Session]struct{}
	paths    map[ident.JournalID]*paths
	sent     map[port]time.Time // when initiator ports were sent elsewhere

	opened  chan struct{} // a session at the hosts' target was
	leaving atomic.Bool   // the node is about to stop
	loads   loads
}

// New makes the exports of a node's access server.
func New(srv *access.Server, ctl control.Store, node ident.NodeName) *Exports {
	e := &Exports{srv: srv, ctl: ctl, node: node, started: time.Now(), sessions: map[*iscsi.Session]struct{}{}, paths: map[ident.JournalID]*paths{}, sent: map[port]time.Time{}, opened: make(chan struct{}, 1)}
	e.copier = rand.Uint64() | 1
	srv.ObserveUnits(e.unitChanged)
	return e
}

// allowed says whether an initiator may use a volume by its own target: a volume that is mapped to its host it has at the
// hosts' target; otherwise a volume that names hosts is theirs alone; one that names
// none is everybody's (but a clone that is not complete is nobody's), though an initiator that is known as a host has to come from that host's addresses.
func (e *Exports) allowed(p iscsi.Peer, v control.VolumeSpec) bool { return Allowed(e.ctl, p, v) }

// Allowed is the same for whoever knows the control store.
func Allowed(ctl control.Store, p iscsi.Peer, v control.VolumeSpec) bool {
	if v.Cloning != nil {
		return false // it has only a part of what it is to have
	}
	if _, mapped := mapOf(ctl, p, &v); mapped {
		return false // at the hosts' target
	}
	h, known := ctl.HostByInitiator(p.Initiator)
	if known && len(h.CIDRs) > 0 && !slices.ContainsFunc(h.CIDRs, func(c netip.Prefix) bool { return c.Contains(p.Remote.Addr().Unmap()) }) {
		return false
	}
	if len(v.Hosts) == 0 {
		return true
	}
	if known {
		return h.Tenant == v.Tenant && slices.Contains(v.Hosts, h.Name)
	}
	// A host may be known by its addresses alone.
	for _, name := range v.Hosts {
		if h, ok := ctl.Host(v.Tenant, name); ok && len(h.InitiatorNames) == 0 &&
			slices.ContainsFunc(h.CIDRs, func(c netip.Prefix) bool { return c.Contains(p.Remote.Addr().Unmap()) }) {
			return true
		}
	}
	return false
}

// Ends says why a session at a volume's own target could not be opened now; empty if it could.
func (e *Exports) Ends(x *iscsi.Session) string {
	t, ok := x.Target().(*targetOf)
	if !ok {
		return "" // for discovery; and at the hosts' target LUNs go, not sessions
	}
	switch v, ok := e.ctl.Volume(t.v.ID()); {
	case !ok || v.Deleted != nil:
		return "its volume is deleted"
	case slices.ContainsFunc(x.Peers(), func(p iscsi.Peer) bool { return !e.allowed(p, v) }):
		return "its initiator may not use the volume any more"
	}
	return ""
}

// siteOf says which site a client is at: that whose subnet it is in, else that of the portal it came by.
func (e *Exports) siteOf(p iscsi.Peer) ident.SiteID {
	for _, s := range e.ctl.Sites() {
		if slices.ContainsFunc(s.CIDRs, func(c netip.Prefix) bool { return c.Contains(p.Remote.Addr().Unmap()) }) {
			return s.ID
		}
	}
	n, _ := e.ctl.Node(e.node)
	return n.Site
}

// Portals lists the portals of all access servers for a client at a site: those of this node, of the site, of
// the others.
func (e *Exports) Portals(site ident.SiteID) []iscsi.Portal {
	nodes := slices.DeleteFunc(e.ctl.Nodes(), func(n control.Node) bool { return !n.Has(control.RoleAccess) })
	rank := func(n control.Node) int {
		switch {
		case n.Name == e.node && n.Site == site:
			return 0
		case n.Site == site:
			return 1
		case n.Name == e.node:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(nodes, func(a, b control.Node) int { return rank(a) - rank(b) })
	var list []iscsi.Portal
	for _, n := range nodes {
		for _, p := range n.Addrs.Portals {
			list = append(list, iscsi.Portal{Address: p.Addr.String(), Group: n.TPGT})
		}
	}
	return list
}

// Targets implements iscsi.Provider.
func (e *Exports) Targets(_ context.Context, p iscsi.Peer) (list []iscsi.TargetInfo, err error) {
	portals := e.Portals(e.siteOf(p))
	if h, ok := hostOf(e.ctl, p); ok && len(mapsOf(e.ctl.Volumes(), h)) > 0 {
		if c, err := e.ctl.Cluster(); err == nil {
			list = append(list, iscsi.TargetInfo{Name: HostsIQN(c.ID), Portals: portals})
		}
	}
	for _, v := range e.ctl.Volumes() {
		if e.allowed(p, v) {
			list = append(list, iscsi.TargetInfo{Name: IQN(v.ID), Portals: portals})
		}
	}
	return list, nil
}

// Credentials implements iscsi.Provider: an initiator that belongs to a host with a secret has to prove it.
func (e *Exports) Credentials(_ context.Context, p iscsi.Peer, target string) (c iscsi.Credentials, err error) {
	h, known := e.ctl.HostByInitiator(p.Initiator)
	if target == "" && h.CHAP.InSecret.IsZero() && h.CHAP.InUser == "" {
		if d := e.discovery(); d.Required {
			return d, nil // the same for initiators that are known and those that are not
		}
	}
	if !known {
		if id, ok := ParseIQN(target); ok {
			if v, ok := e.ctl.Volume(id); ok && len(v.Hosts) > 0 && e.anySecret(v) && !e.allowed(p, v) {
				return iscsi.Credentials{Required: true}, nil // nobody we know: no answer is right
			}
		}
		return c, nil
	}
	if h.CHAP.InUser != "" || !h.CHAP.InSecret.IsZero() {
		c = credentials(h.CHAP)
	}
	return c, nil
}

// discovery is what has to be proved before targets are told: by this node's configuration, or else by the cluster's
// setting.
func (e *Exports) discovery() iscsi.Credentials {
	if e.Discovery.Required {
		return e.Discovery
	}
	if d := e.ctl.Discovery(); !d.InSecret.IsZero() {
		return credentials(d)
	}
	return iscsi.Credentials{}
}

func credentials(c control.CHAP) iscsi.Credentials {
	return iscsi.Credentials{Required: true, In: iscsi.Secret{Name: c.InUser, Secret: c.InSecret.Reveal()},
		Out: iscsi.Secret{Name: c.OutUser, Secret: c.OutSecret.Reveal()}}
}

func (e *Exports) anySecret(v control.VolumeSpec) bool {
	return slices.ContainsFunc(v.Hosts, func(name string) bool {
		h, ok := e.ctl.Host(v.Tenant, name)
		return ok && !h.CHAP.InSecret.IsZero()
	})
}

// Login implements iscsi.Provider.
func (e *Exports) Login(ctx context.Context, p iscsi.Peer, target string, isid [6]byte) (iscsi.Target, error) {
	if c, err := e.ctl.Cluster(); err == nil && strings.EqualFold(target, HostsIQN(c.ID)) {
		return e.loginHosts(ctx, p, target, isid, c)
	}
	id, ok := ParseIQN(target)
	if !ok {
		return nil, iscsi.ErrTargetNotFound
	}
	spec, ok := e.ctl.Volume(id)
	if !ok {
		return nil, iscsi.ErrTargetNotFound
	}
	if spec.Deleted != nil {
		return nil, iscsi.ErrTargetRemoved
	}
	if !e.allowed(p, spec) {
		return nil, iscsi.ErrNotAuthorized
	}
	v, ok := e.srv.Volume(id)
	if !ok {
		return nil, iscsi.ErrTargetNotFound
	}
	if r := e.redirect(ctx, p, target, isid, &spec, v.OwnerNode()); r != nil {
		return nil, r
	}
	v.Open()
	s := &session{nexus: newNexus(reserve.NexusID{Initiator: p.Initiator, ISID: isid, Port: p.Group}), exp: e, peer: p}
	return &targetOf{v: v, session: s}, nil
}

// Opened implements iscsi.Provider.
func (e *Exports) Opened(s *iscsi.Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sessions[s] = struct{}{}
	if _, ok := s.Target().(*hostsTarget); ok {
		select {
		case e.opened <- struct{}{}: // maps may have changed since the login
		default:
		}
	}
}

// Closed implements iscsi.Provider.
func (e *Exports) Closed(s *iscsi.Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.sessions, s)
}

// Sessions lists the sessions of this node.
func (e *Exports) Sessions() []*iscsi.Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*iscsi.Session, 0, len(e.sessions))
	for s := range e.sessions {
		list = append(list, s)
	}
	return list
}

// targetOf is one session's target: the volume as LUN 0.
type targetOf struct {
	v       *access.Volume
	session *session
}

// Admits implements iscsi.Target: who may use the volume may do so from some addresses only.
func (t *targetOf) Admits(p iscsi.Peer) error {
	switch v, ok := t.session.exp.ctl.Volume(t.v.ID()); {
	case !ok || v.Deleted != nil:
		return iscsi.ErrTargetRemoved
	case !t.session.exp.allowed(p, v):
		return iscsi.ErrNotAuthorized
	}
	return nil
}

func (t *targetOf) Units() []scsi.UnitConfig {
	return []scsi.UnitConfig{{LUN: 0, Disk: t.session.disk(t.v)}}
}

// Alias implements iscsi.Alias: the volume's name.
func (t *targetOf) Alias() string { return t.v.Spec().Name }

func (t *targetOf) Stamp() scsi.Stamp {
	s := t.v.Stamp()
	return scsi.Stamp{Epoch: s.Epoch, Tick: s.Tick}
}

// Bar implements iscsi.Target: the owner has barred the nexus's older connections when it returns.
func (t *targetOf) Bar(ctx context.Context, nexus reserve.NexusID, conn uint64) error {
	t.session.nexus = newNexus(nexus)
	t.session.id = conn
	if err := t.v.Bar(ctx, &wire.Bar{Kind: wire.BarLogin, Nexus: t.session.nexus, Session: conn}); err != nil {
		return err
	}
	// While nobody was logged in here, a change may have gone unheard.
	if _, err := t.v.AskUnit(ctx); err != nil && !t.v.HasUnit() {
		return err
	}
	return nil
}

// Logout implements iscsi.Target: the owner forgets that the port is attached (rule R11). Where it can't be told in
// time the port stays attached, which after a takeover that is not proven means one error too many.
func (t *targetOf) Logout(ctx context.Context, nexus reserve.NexusID, conn uint64) {
	if spec, ok := t.session.exp.ctl.Volume(t.v.ID()); !ok || spec.Deleted != nil {
		return // nobody will ever ask
	}
	_ = t.v.Bar(ctx, &wire.Bar{Kind: wire.BarLogout, Nexus: newNexus(nexus), Session: conn})
}

// barTimeout bounds a task management function; after it the initiator is told that it failed and goes on to
// the next larger one.
const barTimeout = 8 * time.Second

func bar(v *access.Volume, m *wire.Bar, done func(error)) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), barTimeout)
		defer cancel()
		done(v.Bar(ctx, m))
	}()
}

func (t *targetOf) bar(m *wire.Bar, done func(error)) { bar(t.v, m, done) }

func (t *targetOf) AbortTask(id scsi.RequestID, done func(error)) { t.session.abortTask(t.v, id, done) }

// abortTask has a volume's owner refuse a command of the session.
func (s *session) abortTask(v *access.Volume, id scsi.RequestID, done func(error)) {
	bar(v, s.abortOf(id), done)
}

// abortOf names a command with all its parts.
func (s *session) abortOf(id scsi.RequestID) *wire.Bar {
	first := requestID(scsi.RequestID{Conn: id.Conn, Seq: id.Seq})
	return &wire.Bar{Kind: wire.BarAbortTask, Nexus: s.nexus, Forwarder: first.Forwarder, Session: s.id, First: first.Number, Last: first.Number + (1<<partBits - 1)}
}

func (t *targetOf) ResetLUN(nexus reserve.NexusID, _ uint16, done func(error)) {
	t.bar(&wire.Bar{Kind: wire.BarLUNReset, Nexus: newNexus(nexus)}, done)
}

// ClearTaskSet aborts everybody's commands.
func (t *targetOf) ClearTaskSet(nexus reserve.NexusID, _ uint16, done func(error)) {
	t.bar(&wire.Bar{Kind: wire.BarClearTaskSet, Nexus: newNexus(nexus)}, done)
}

func (t *targetOf) AbortTaskSet(nexus reserve.NexusID, _ uint16, done func(error)) {
	t.bar(&wire.Bar{Kind: wire.BarPreemptAbort, Nexus: newNexus(nexus)}, done)
}

// Close ends the session at the unit: what it had reserved by RESERVE is free (SPC-2 5.5.1: loss of the nexus).
func (t *targetOf) Close() { t.session.end(t.v) }

func (s *session) end(v *access.Volume) {
	l := v.Unit().State.Legacy
	if l == nil || newNexus(l.Nexus).Digest != s.nexus.Digest || l.Session != s.id {
		v.Close()
		return
	}
	d := s.disk(v)
	d.ChangeUnit(s.last(d.Stamp()), &reserve.Command{Action: reserve.NexusLost, Nexus: l.Nexus}, func(_ reserve.Outcome, err error) {
		if err != nil {
			s.exp.srv.Log().Warn("RESERVE of a session that ended is still there", "volume", v.Spec().Name, "err", err)
		}
		v.Close()
	})
}

// last is the request that ends a session at a unit. Its ID was never used before: a unit of the hosts' target may come back to the
// session and go again, and an owner does nothing by an ID that it has seen.
func (s *session) last(at scsi.Stamp) scsi.Request {
	return scsi.Request{ID: s.exp.newID(), Session: s.id, Stamp: at}
}

// unitChanged tells the sessions of this node what happened to their unit, and aborts what is to be aborted.
func (e *Exports) unitChanged(v *access.Volume, _ *reserve.Snapshot, events []reserve.Event, all bool) {
	for _, x := range e.Sessions() {
		if x.Nexus() == nil {
			continue // a discovery session
		}
		for _, lun := range x.Nexus().Find(func(d scsi.Disk) bool { own, ok := d.(*disk); return ok && own.v == v }) {
			if !all {
				// Nobody knows any more what was missed: the most general condition makes the initiator look at
				// everything again.
				x.Clear(lun, reserve.PowerOn, false)
			}
			for i := range events {
				ev := &events[i]
				switch {
				case !ev.Concerns(x.Nexus().Initiator().Nexus):
				case ev.Scope == reserve.ToAll && ev.Nexus == x.Nexus().Initiator().Nexus:
					x.Post(lun, ev.What) // its commands of before were aborted when it asked for the reset
				case ev.Abort:
					x.Clear(lun, ev.What, ev.IfAborted)
				default:
					x.Post(lun, ev.What)
				}
			}
		}
	}
}
