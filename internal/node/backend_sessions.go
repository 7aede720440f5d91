package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access/export"
	"dozo/internal/access/iscsi"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/wire"
)

// sessionID names a session in the cluster while it lasts: its node, its TSIH there, and when it began, since
// TSIHs are used again.
func sessionID(node ident.NodeName, i iscsi.SessionInfo) string {
	return fmt.Sprintf("%s-%d-%s", node, i.TSIH, strconv.FormatInt(i.Opened.UnixNano(), 36))
}

// sessionNode is the node in a session's ID.
func sessionNode(id string) (ident.NodeName, bool) {
	for range 2 {
		i := strings.LastIndexByte(id, '-')
		if i <= 0 {
			return "", false
		}
		id = id[:i]
	}
	return ident.NodeName(id), true
}

func digestName(on bool) string {
	if on {
		return "CRC32C"
	}
	return "None"
}

// sessionMessage describes a session of this node.
func (b *backend) sessionMessage(c *control.Client, i iscsi.SessionInfo) *dozov1.Session {
	out := &dozov1.Session{Id: sessionID(b.n.cfg.Node, i), Node: string(b.n.cfg.Node), Site: b.siteName(b.n.self.Load().Site), InitiatorName: i.Initiator,
		Isid: hex.EncodeToString(i.ISID[:]), Tsih: uint32(i.TSIH), Type: "normal", Peers: i.Remotes, Portal: i.Local, Auth: i.Auth.Method, AuthDigest: i.Auth.Digest,
		HeaderDigest: digestName(i.Params.HeaderDigest), DataDigest: digestName(i.Params.DataDigest), Established: timestamppb.New(i.Opened),
		Commands: i.ReadCommands + i.WriteCommands + i.OtherCommands, ReadBytes: i.ReadBytes, WrittenBytes: i.WrittenBytes}
	if i.Discovery {
		out.Type = "discovery"
	}
	if h, ok := c.HostByInitiator(i.Initiator); ok {
		out.Host, out.Tenant = h.Name, h.Tenant
	}
	if id, ok := export.ParseIQN(i.Target); ok {
		out.VolumeId = id.String()
		if v, ok := c.Volume(id); ok {
			out.Volume, out.Tenant = v.Name, v.Tenant
		}
	}
	return out
}

// ownSessions lists the sessions of this node's access server.
func (b *backend) ownSessions(c *control.Client) (out []*dozov1.Session) {
	if b.n.export == nil {
		return nil
	}
	for _, s := range b.n.export.Sessions() {
		out = append(out, b.sessionMessage(c, s.Info()))
	}
	return out
}

// ListSessions implements api.Sessions. Where the request names this node, only its own sessions are wanted:
// that is how nodes ask each other.
func (b *backend) ListSessions(ctx context.Context, req *dozov1.ListSessionsRequest) (out []*dozov1.Session, unheard []string, err error) {
	c, err := b.ctl()
	if err != nil {
		return nil, nil, err
	}
	volume := ""
	if req.Volume != "" {
		v, err := b.volume(req.Volume, req.Tenant)
		if err != nil {
			return nil, nil, err
		}
		volume = v.ID.String()
	}
	if req.Node != "" {
		if _, ok := c.Node(ident.NodeName(req.Node)); !ok {
			return nil, nil, fmt.Errorf("node %s: %w", req.Node, control.ErrNotFound)
		}
	}
	if req.Host != "" {
		tenant := req.Tenant
		if tenant == "" {
			tenant = control.DefaultTenant
		}
		if _, ok := c.Host(tenant, req.Host); !ok {
			return nil, nil, fmt.Errorf("host %s/%s: %w", tenant, req.Host, control.ErrNotFound)
		}
	}
	if req.Node == "" || req.Node == string(b.n.cfg.Node) {
		out = b.ownSessions(c)
	}
	others := slices.DeleteFunc(c.Nodes(), func(x control.Node) bool {
		return !x.Has(control.RoleAccess) || x.Name == b.n.cfg.Node || req.Node != "" && req.Node != string(x.Name)
	})
	for _, a := range askNodes(ctx, others, func(ctx context.Context, x control.Node) (list []*dozov1.Session, err error) {
		err = b.n.callNode(ctx, x, func(ctx context.Context, api *api.Client) error {
			r, err := api.Sessions.List(ctx, &dozov1.ListSessionsRequest{Node: string(x.Name)})
			list = r.GetSessions()
			return err
		})
		return list, err
	}) {
		if a.err != nil {
			b.n.log.Debug("sessions of another node", "peer", a.node.Name, "err", a.err)
			unheard = append(unheard, string(a.node.Name))
		}
		out = append(out, a.value...)
	}
	out = slices.DeleteFunc(out, func(s *dozov1.Session) bool {
		return volume != "" && s.VolumeId != volume || req.Host != "" && s.Host != req.Host
	})
	slices.SortFunc(out, func(a, b *dozov1.Session) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.Established.AsTime().Compare(b.Established.AsTime()), cmp.Compare(a.Id, b.Id))
	})
	return out, unheard, nil
}

// KillSession implements api.Sessions. A session of another node is that node's to end.
func (b *backend) KillSession(ctx context.Context, req *dozov1.KillSessionRequest) (out *dozov1.Session, err error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	gone := fmt.Errorf("session %s: %w", req.Id, control.ErrNotFound)
	name, ok := sessionNode(req.Id)
	if !ok {
		return nil, gone
	}
	if name == b.n.cfg.Node {
		if b.n.export != nil {
			for _, s := range b.n.export.Sessions() {
				if i := s.Info(); sessionID(name, i) == req.Id {
					s.Kill()
					return b.sessionMessage(c, i), nil
				}
			}
		}
		return nil, gone
	}
	x, ok := c.Node(name)
	if !ok || !x.Has(control.RoleAccess) {
		return nil, gone
	}
	err = b.n.callNode(ctx, x, func(ctx context.Context, api *api.Client) error {
		r, err := api.Sessions.Kill(ctx, req)
		out = r.GetSession()
		return err
	})
	return out, err
}

func portMessage(p wire.PortName) *dozov1.Port {
	return &dozov1.Port{InitiatorName: p.Initiator, Isid: hex.EncodeToString(p.ISID[:])}
}

// AcceptSessions implements api.Sessions: the owner records it.
func (b *backend) AcceptSessions(ctx context.Context, req *dozov1.AcceptSessionsRequest) (out []*dozov1.Port, err error) {
	v, err := b.volume(req.Volume, req.Tenant)
	if err != nil {
		return nil, err
	}
	m := &wire.Bar{Kind: wire.BarAccept, Journal: v.ID, Nexus: wire.Nexus{Initiator: req.InitiatorName}}
	if isid, err := hex.DecodeString(req.Isid); err == nil { // looked at before
		copy(m.Nexus.ISID[:], isid)
	}
	all, _ := b.ownerStatus(ctx, v.ID)
	st, ok := all[v.ID]
	if !ok {
		return nil, fmt.Errorf("the owner of volume %s does not answer: %w", v.Name, api.ErrUnavailable)
	}
	if e := st.Epoch.String(); req.Epoch != "" && req.Epoch != e {
		return nil, fmt.Errorf("volume %s has been taken over since epoch %s, it is %s now: look at its ports again: %w", v.Name, req.Epoch, e, control.ErrConflict)
	}
	m.First, m.Last = st.Epoch.Number, uint64(st.Epoch.Lineage)
	for _, p := range st.Ports {
		if (req.InitiatorName == "" || req.InitiatorName == p.Initiator) && (req.Isid == "" || m.Nexus.ISID == p.ISID) {
			out = append(out, portMessage(p))
		}
	}
	if st.Owner == b.n.cfg.Node {
		_, err = b.n.access.Bar(ctx, m)
	} else if p, ok := b.n.accessPeer(st.Owner); ok {
		_, err = p.Bar(ctx, m)
	} else {
		err = api.ErrUnavailable
	}
	if err != nil {
		return nil, fmt.Errorf("accept the ports of volume %s at %s: %w", v.Name, st.Owner, moveError(err))
	}
	return out, nil
}

// sessionsOf lists the sessions of one volume at all access servers, and those that could not be asked.
func (b *backend) sessionsOf(ctx context.Context, id ident.JournalID) (list []*dozov1.Session, unheard []string, err error) {
	list, unheard, err = b.ListSessions(ctx, &dozov1.ListSessionsRequest{})
	list = slices.DeleteFunc(list, func(s *dozov1.Session) bool { return s.VolumeId != id.String() })
	return list, unheard, err
}

// describedMax is how many sessions an error names.
const describedMax = 5

// describeSessions names sessions for an error.
func describeSessions(list []*dozov1.Session) string {
	var names []string
	for _, s := range list[:min(len(list), describedMax)] {
		names = append(names, fmt.Sprintf("%s of %s from %s at %s", s.Id, s.InitiatorName, strings.Join(s.Peers, ", "), s.Node))
	}
	if n := len(list) - describedMax; n > 0 {
		names = append(names, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(names, "; ")
}

const (
	// logoutGrace is what an initiator gets to log out by itself from a volume that is deleted.
	logoutGrace = time.Second
	// endedWithin bounds the wait for sessions to end: access servers that are away end them when they are back.
	endedWithin = 3 * time.Second
	endedPoll   = 100 * time.Millisecond
)

// awaitSessionsEnded waits a while until no access server that answers has one of these sessions. It gives those that are left,
// and the access servers that could not be asked.
func (b *backend) awaitSessionsEnded(ctx context.Context, of func(*dozov1.Session) bool) (left []*dozov1.Session, unheard []string) {
	wctx, cancel := context.WithTimeout(ctx, endedWithin)
	defer cancel()
	for {
		all, out, err := b.ListSessions(ctx, &dozov1.ListSessionsRequest{})
		if err == nil {
			if left, unheard = slices.DeleteFunc(all, func(s *dozov1.Session) bool { return !of(s) }), out; len(left) == 0 {
				return nil, unheard
			}
		}
		select {
		case <-wctx.Done():
			return left, unheard
		case <-time.After(endedPoll):
		}
	}
}

// sessionsAtVolumes tells the sessions at the own targets of volumes.
func sessionsAtVolumes(ids ...ident.JournalID) func(*dozov1.Session) bool {
	of := make(map[string]bool, len(ids))
	for _, id := range ids {
		of[id.String()] = true
	}
	return func(s *dozov1.Session) bool { return of[s.VolumeId] }
}

// hostsInEffect waits until nobody is at a volume's own target who may not use it.
func (b *backend) hostsInEffect(ctx context.Context, v control.VolumeSpec) error {
	c := b.n.control()
	left, unheard := b.awaitSessionsEnded(ctx, func(s *dozov1.Session) bool {
		return s.VolumeId == v.ID.String() && slices.ContainsFunc(s.Peers, func(p string) bool {
			from, err := netip.ParseAddrPort(p)
			return err == nil && !export.Allowed(c, iscsi.Peer{Initiator: s.InitiatorName, Remote: from}, v)
		})
	})
	switch {
	case len(left) > 0:
		return fmt.Errorf("volume %s: who may use it is stored, and sessions of others have not ended yet: %s: %w", v.Name, describeSessions(left), api.ErrUnavailable)
	case len(unheard) > 0:
		return fmt.Errorf("volume %s: who may use it is stored, and %s, which can not be asked, may have sessions of others until it hears of that: %w", v.Name, strings.Join(unheard, ", "), api.ErrUnavailable)
	}
	return nil
}

// orphansEvery is how often sessions are looked through: a login that was let in just before the change was seen is
// found so.
const orphansEvery = 2 * time.Second

// endOrphans ends this node's sessions that nobody could open any more, since their volume is deleted or their initiator may not
// use it: initiators are asked to log out, and dropped if they do not.
func (n *Node) endOrphans(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	tick := time.NewTicker(orphansEvery)
	defer tick.Stop()
	asked := map[*iscsi.Session]bool{}
	for {
		open := n.iscsi.Sessions()
		maps.DeleteFunc(asked, func(s *iscsi.Session, _ bool) bool { return !slices.Contains(open, s) })
		for _, s := range open {
			if asked[s] {
				continue // it is ending
			}
			if why := n.export.Ends(s); why != "" {
				asked[s] = true
				i := s.Info()
				n.log.Info("session ends: "+why, "target", i.Target, "initiator", i.Initiator, "peer", strings.Join(i.Remotes, ", "))
				s.Logout(logoutGrace)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}
