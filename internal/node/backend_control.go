package node

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/control"
	"dozo/internal/ident"
)

// ControlStatus implements api.Control. Most of it is known, or asked of the voters, also while they have no majority.
func (b *backend) ControlStatus(ctx context.Context, _ *dozov1.ControlStoreStatusRequest) (*dozov1.ControlStoreStatusResponse, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	connected, since := c.Connected()
	out := &dozov1.ControlStoreStatusResponse{Connected: connected, Since: timestamppb.New(since), External: b.n.cfg.Control.External, Node: string(b.n.cfg.Node), Quorum: connected}
	if cl, err := c.Cluster(); err == nil {
		out.Lineage = fmt.Sprintf("%08x", cl.Lineage)
	}
	if r, ok := c.Restoration(); ok {
		out.Restoration = b.restoration(ctx, c, r)
	}
	if out.External {
		return out, nil
	}
	voters, err := b.askVoters(ctx)
	if err != nil {
		out.Quorum = false
		return out, nil // nobody answers, which is what there is to say
	}
	up, all, leader := 0, 0, false
	for _, v := range voters {
		x := &dozov1.ControlVoter{Node: string(v.Name), Up: v.Up, Leader: v.Leader, Learner: v.Learner, Term: v.Term, Applied: v.Applied,
			DatabaseBytes: uint64(v.DatabaseBytes), Problems: v.Problems}
		if v.Peer.IsValid() {
			x.Peer = v.Peer.String()
		}
		out.Voters = append(out.Voters, x)
		out.Revision = max(out.Revision, v.Revision)
		leader = leader || v.Leader
		if !v.Learner {
			all++
			if v.Up {
				up++
			}
		}
	}
	out.Quorum = leader && up > all/2
	return out, nil
}

func (b *backend) askVoters(ctx context.Context) ([]control.VoterStatus, error) {
	admin, err := b.n.openAdmin()
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	return admin.Status(ctx)
}

// restoration describes one; without the control store's answers where that is away.
func (b *backend) restoration(ctx context.Context, c *control.Client, r control.Restoration) *dozov1.ControlRestoration {
	out := &dozov1.ControlRestoration{Kind: string(r.Kind), State: "settling", Time: timestamppb.New(r.Time), BackupRevision: int64(r.BackupRev), Complete: r.Complete, Report: r.Report}
	if !r.BackupTime.IsZero() {
		out.BackupTime = timestamppb.New(r.BackupTime)
	}
	if !r.Pending() {
		out.State, out.Settled = "settled", timestamppb.New(*r.Done)
	}
	answers := map[ident.StoreID]control.Answer{}
	if connected, _ := c.Connected(); connected && r.Pending() {
		if a, err := c.Answers(ctx); err == nil {
			answers = a
		}
	}
	for _, id := range r.Stores {
		x := &dozov1.ControlStore{Id: id.String(), State: "waiting"}
		if n, ok := c.NodeOfStore(id); ok {
			x.Node = string(n.Name)
		}
		a, ok := answers[id]
		switch {
		case slices.Contains(r.Lost, id) || c.StoreLost(id):
			x.State = "lost"
		case !r.Pending():
			x.State = "answered"
		case ok && a.Lineage == r.Lineage:
			x.State, x.Answered, x.Journals = "answered", timestamppb.New(a.Time), uint32(a.Journals)
		}
		out.Stores = append(out.Stores, x)
	}
	return out
}

// backupPiece is how much of a backup one message has.
const backupPiece = 256 << 10

// ControlBackup implements api.Control.
func (b *backend) ControlBackup(ctx context.Context, _ *dozov1.ControlBackupRequest, send func(*dozov1.ControlBackupResponse) error) error {
	c, err := b.ctl()
	if err != nil {
		return err
	}
	s, err := c.Backup(ctx)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(pieces(func(p []byte) error { return send(&dozov1.ControlBackupResponse{Data: p}) }), backupPiece)
	if err := s.Write(w); err != nil {
		return err
	}
	return w.Flush()
}

// pieces is an io.Writer of messages.
type pieces func([]byte) error

func (f pieces) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += backupPiece {
		if err := f(p[n:min(len(p), n+backupPiece)]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// DeclareStoresLost implements api.Control.
func (b *backend) DeclareStoresLost(ctx context.Context, req *dozov1.ControlDeclareLostRequest) (*dozov1.ControlRestoration, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	var stores []ident.StoreID
	for _, text := range req.Stores {
		if n, ok := c.Node(ident.NodeName(text)); ok {
			if len(n.Stores) == 0 {
				return nil, fmt.Errorf("node %s has no store: %w", text, control.ErrInvalid)
			}
			for _, s := range n.Stores {
				stores = append(stores, s.ID)
			}
			continue
		}
		id, err := ident.ParseStoreID(strings.ToLower(text))
		if err != nil {
			return nil, fmt.Errorf("%s is neither a node nor a store: %w", text, control.ErrNotFound)
		}
		stores = append(stores, id)
	}
	r, err := c.DeclareLost(ctx, stores)
	if err != nil {
		return nil, err
	}
	return b.restoration(ctx, c, r), nil
}

// DeclareStoresComplete implements api.Control.
func (b *backend) DeclareStoresComplete(ctx context.Context, _ *dozov1.ControlDeclareCompleteRequest) (*dozov1.ControlRestoration, error) {
	c, err := b.ctl()
	if err != nil {
		return nil, err
	}
	r, err := c.DeclareComplete(ctx)
	if err != nil {
		return nil, err
	}
	return b.restoration(ctx, c, r), nil
}

// restorationProblem is what Status says while a restored control store is not settled.
func restorationProblem(c *control.Client) *dozov1.Problem {
	r, ok := c.Restoration()
	if !ok || !r.Pending() {
		return nil
	}
	why := fmt.Sprintf("the control store was made anew (%s) and waits for the stores of the cluster: volumes without an owner are not served until all have answered", r.Kind)
	if !r.Complete {
		why = "the control store was rebuilt: start all nodes, look at dozo control status, and say dozo control complete when every store is listed"
	}
	return &dozov1.Problem{Severity: severityCritical, Reason: problemControlUnsettled, Object: "control", Since: timestamppb.New(r.Time), Message: why}
}

var _ api.Control = (*backend)(nil)
