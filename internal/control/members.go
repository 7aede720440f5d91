package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"dozo/internal/ident"
)

// Admin changes the membership of the embedded control store.
type Admin struct {
	cli *clientv3.Client
	log *slog.Logger
	// patience is how long one request for a change may go without an answer.
	patience time.Duration
}

// changePatience is ample for a change of the membership, which takes a round trip and a write to the disks.
const changePatience = 10 * time.Second

// errDropped: a request for a change got no answer. Raft drops a change that comes while the one before is not applied
// yet, as when two voters join at the same moment, and the member that was asked waits for it as long as who asks
// does. The change may also have been made.
var errDropped = errors.New("no answer")

// change makes one request for a change of the membership.
func (a *Admin) change(ctx context.Context, request func(context.Context) error) error {
	one, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	err := request(one)
	if err != nil && (one.Err() != nil && ctx.Err() == nil || errors.Is(err, rpctypes.ErrTimeout)) {
		return fmt.Errorf("%w (%w)", errDropped, err)
	}
	return err
}

// Voter is a member of the embedded control store as its members know it.
type Voter struct {
	VoterAddr
	ID      uint64 // etcd's
	Learner bool   // gets everything and has no vote yet
	Started bool   // has been seen; before, Name is not known
}

// OpenAdmin connects to voters.
func OpenAdmin(e EtcdConfig, log *slog.Logger) (*Admin, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cli, err := e.dial(log)
	if err != nil {
		return nil, err
	}
	return &Admin{cli, log, changePatience}, nil
}

// Close ends the connection.
func (a *Admin) Close() error { return a.cli.Close() }

// Voters lists the members.
func (a *Admin) Voters(ctx context.Context) ([]Voter, error) {
	res, err := a.cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list voters: %w", err)
	}
	out := make([]Voter, 0, len(res.Members))
	for _, m := range res.Members {
		v := Voter{ID: m.ID, Learner: m.IsLearner, Started: m.Name != ""}
		v.Name = ident.NodeName(m.Name)
		for _, text := range m.PeerURLs {
			u, err := url.Parse(text)
			if err != nil {
				return nil, fmt.Errorf("list voters: %w", err)
			}
			if v.Peer, err = netip.ParseAddrPort(u.Host); err != nil {
				return nil, fmt.Errorf("list voters: %s: %w", m.Name, err)
			}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Voter) int { return a.Peer.Compare(b.Peer) })
	return out, nil
}

// AddVoter announces a new voter, which has no data, first without a vote, and gives what EmbeddedConfig.Initial wants for it.
// Asked again after an interruption, it gives the same. One at a time: etcd refuses a second one that has no
// vote yet. One of that name and address that has run before has forgotten what it wrote and whom it voted for: as what it was
// it could undo what was answered, and etcd would let it. So that one is taken out, and the new one is another.
func (a *Admin) AddVoter(ctx context.Context, v VoterAddr) ([]VoterAddr, error) {
	have, err := a.Voters(ctx)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(have, func(m Voter) bool { return m.Peer == v.Peer && m.Started }); i >= 0 {
		if have[i].Name != v.Name {
			return nil, fmt.Errorf("add voter %s at %s: %w there, %s; remove that one first", v.Name, v.Peer, ErrExists, have[i].Name)
		}
		a.log.Warn("voter has lost its data: it is taken out, and joins as a new one", "node", v.Name)
		if err := a.RemoveVoter(ctx, v.Name); err != nil {
			return nil, err
		}
		if have, err = a.Voters(ctx); err != nil {
			return nil, err
		}
	}
	known := slices.ContainsFunc(have, func(m Voter) bool { return m.Peer == v.Peer })
	if i := slices.IndexFunc(have, func(m Voter) bool { return m.Name == v.Name && m.Peer != v.Peer }); i >= 0 {
		return nil, fmt.Errorf("add voter %s at %s: %w at %s; remove it first", v.Name, v.Peer, ErrExists, have[i].Peer)
	}
	if !known {
		var b backoff
		dropped := false // a try before this one, which may have been made
		for {
			err := a.change(ctx, func(ctx context.Context) error {
				_, err := a.cli.MemberAddAsLearner(ctx, []string{ClientURL(v.Peer)})
				return err
			})
			if err == nil || dropped && errors.Is(err, rpctypes.ErrPeerURLExist) {
				break
			}
			dropped = dropped || errors.Is(err, errDropped)
			// etcd wants to have seen the other voters for five seconds; one of them may just have restarted.
			// Nor does it take a second one that has no vote yet.
			again := errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrTooManyLearners) || errors.Is(err, errDropped)
			if !again || !b.waitShort(ctx) {
				return nil, fmt.Errorf("add voter %s: %w", v.Name, err)
			}
		}
		if have, err = a.Voters(ctx); err != nil {
			return nil, err
		}
	}
	out := make([]VoterAddr, 0, len(have))
	for _, m := range have {
		switch {
		case m.Peer == v.Peer:
			out = append(out, v)
		case m.Started: // one that never started can't be spoken to
			out = append(out, m.VoterAddr)
		}
	}
	return out, nil
}

// PromoteVoter gives a started voter its vote, once it has everything; until then it waits, as long as ctx
// allows.
func (a *Admin) PromoteVoter(ctx context.Context, name ident.NodeName) error {
	var b backoff
	for {
		have, err := a.Voters(ctx)
		if err == nil {
			i := slices.IndexFunc(have, func(m Voter) bool { return m.Name == name })
			switch {
			case i < 0:
				err = fmt.Errorf("voter %s: %w among the members that have started", name, ErrNotFound)
			case !have[i].Learner:
				return nil
			default:
				err = a.change(ctx, func(ctx context.Context) error {
					_, err := a.cli.MemberPromote(ctx, have[i].ID)
					return err
				})
				if err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner) {
					return nil
				}
			}
		}
		if !b.wait(ctx) {
			return fmt.Errorf("promote voter %s: %w", name, err)
		}
	}
}

// RemoveVoter takes a member out, started or not. It is refused while the others would have no majority.
func (a *Admin) RemoveVoter(ctx context.Context, name ident.NodeName) error {
	have, err := a.Voters(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(have, func(m Voter) bool { return m.Name == name })
	if i < 0 {
		return fmt.Errorf("remove voter %s: %w", name, ErrNotFound)
	}
	var b backoff
	for {
		err := a.change(ctx, func(ctx context.Context) error {
			_, err := a.cli.MemberRemove(ctx, have[i].ID)
			return err
		})
		if err == nil || errors.Is(err, rpctypes.ErrMemberNotFound) { // gone, at this try or at one before
			break
		}
		if errors.Is(err, rpctypes.ErrStopped) {
			// The one that was asked may be the one that went: the others know.
			if left, lerr := a.Voters(ctx); lerr == nil && !slices.ContainsFunc(left, func(m Voter) bool { return m.ID == have[i].ID }) {
				break
			}
		}
		again := errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrStopped) || errors.Is(err, errDropped) // as in AddVoter
		if !again || !b.waitShort(ctx) {
			return fmt.Errorf("remove voter %s: %w", name, err)
		}
	}
	a.log.Info("voter of the control store was removed", "node", name)
	return nil
}

// VoterStatus is what a voter says of itself.
type VoterStatus struct {
	Voter
	Up            bool
	Leader        bool
	Term          uint64
	Applied       uint64 // the last entry that it has applied
	Revision      int64
	DatabaseBytes int64
	Problems      []string
}

// statusTimeout bounds the question to each voter; all are asked at once.
const statusTimeout = 2 * time.Second

// Status asks every voter how it is. It needs no majority: who the voters are comes from whichever answers.
func (a *Admin) Status(ctx context.Context) ([]VoterStatus, error) {
	mctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	res, err := a.cli.MemberList(mctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("%w (list voters: %v)", ErrAway, err)
	}
	out := make([]VoterStatus, len(res.Members))
	var wg sync.WaitGroup
	for i, m := range res.Members {
		v := &out[i]
		v.Voter = Voter{ID: m.ID, Learner: m.IsLearner, Started: m.Name != ""}
		v.Name = ident.NodeName(m.Name)
		for _, text := range m.PeerURLs {
			if u, err := url.Parse(text); err == nil {
				v.Peer, _ = netip.ParseAddrPort(u.Host)
			}
		}
		if len(m.ClientURLs) == 0 {
			v.Problems = append(v.Problems, "has not started yet")
			continue
		}
		wg.Go(func() { a.askVoter(ctx, v, m.ClientURLs[0]) })
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b VoterStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (a *Admin) askVoter(ctx context.Context, v *VoterStatus, at string) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s, err := a.cli.Status(ctx, at)
	if err != nil {
		v.Problems = append(v.Problems, "does not answer: "+status.Convert(err).Message())
		return
	}
	v.Up, v.Leader, v.Learner = true, s.Leader == v.ID, s.IsLearner
	v.Term, v.Applied, v.DatabaseBytes, v.Revision = s.RaftTerm, s.RaftAppliedIndex, s.DbSize, s.Header.GetRevision()
	v.Problems = append(v.Problems, voterErrors(v.ID, s)...)
	if s.Leader == 0 {
		v.Problems = append(v.Problems, "sees no leader: fewer than half of the voters are in its reach")
	}
}

// spaceAlarm is how a voter names the alarm of a full database, and whose it is.
var spaceAlarm = regexp.MustCompile(`memberID:(\d+)\s+alarm:NOSPACE`)

// voterErrors is what a voter complains of. Each voter names the alarms of all of them.
func voterErrors(id uint64, s *clientv3.StatusResponse) (list []string) {
	for _, text := range s.Errors {
		if m := spaceAlarm.FindStringSubmatch(text); m != nil {
			if m[1] != strconv.FormatUint(id, 10) {
				continue
			}
			text = fullText(s.DbSize, s.DbSizeInUse, cmp.Or(s.DbSizeQuota, embeddedQuota))
		}
		list = append(list, text)
	}
	return list
}
