package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/access/export"
	"dozo/internal/access/iscsi"
	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
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
		Isid: hex.EncodeToString(i.ISID[:]), Tsih: uint32(i.TSIH), Type: "normal", Peers: []string{i.Remote}, Portal: i.Local, Auth: i.Auth.Method, AuthDigest: i.Auth.Digest,
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
