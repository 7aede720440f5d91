package control

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// membersServer is etcd's service for the membership, of which the first request for each change is lost: nobody ever
// answers it, as it is where raft drops a change because the one before is not applied yet. lostMade says whether it was made
// all the same.
type membersServer struct {
	pb.UnimplementedClusterServer
	lostMade bool

	mu      sync.Mutex
	members []*pb.Member
	asked   map[string]int
}

// change is one request: the first of its kind is not answered.
func (s *membersServer) change(ctx context.Context, what string, do func() error) error {
	s.mu.Lock()
	s.asked[what]++
	first := s.asked[what] == 1
	var err error
	if !first || s.lostMade {
		err = do()
	}
	s.mu.Unlock()
	if first {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (s *membersServer) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &pb.MemberListResponse{Header: &pb.ResponseHeader{}}
	for _, m := range s.members {
		r.Members = append(r.Members, &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, IsLearner: m.IsLearner})
	}
	return r, nil
}

func (s *membersServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	err := s.change(ctx, "add", func() error {
		for _, m := range s.members {
			if m.PeerURLs[0] == r.PeerURLs[0] {
				return rpctypes.ErrGRPCPeerURLExist
			}
		}
		s.members = append(s.members, &pb.Member{ID: 2, Name: "b", PeerURLs: r.PeerURLs, IsLearner: true})
		return nil
	})
	return &pb.MemberAddResponse{Header: &pb.ResponseHeader{}}, err
}

func (s *membersServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	err := s.change(ctx, "promote", func() error {
		for _, m := range s.members {
			if m.ID == r.ID && m.IsLearner {
				m.IsLearner = false
				return nil
			}
		}
		return rpctypes.ErrGRPCMemberNotLearner
	})
	return &pb.MemberPromoteResponse{Header: &pb.ResponseHeader{}}, err
}

func (s *membersServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	err := s.change(ctx, "remove", func() error {
		for i, m := range s.members {
			if m.ID == r.ID {
				s.members = append(s.members[:i], s.members[i+1:]...)
				return nil
			}
		}
		return rpctypes.ErrGRPCMemberNotFound
	})
	return &pb.MemberRemoveResponse{Header: &pb.ResponseHeader{}}, err
}

// TestMembershipChangeThatIsDropped: a request for a change of the voters that is never answered is made again, whether the
// change was made or not.
func TestMembershipChangeThatIsDropped(t *testing.T) {
	for name, made := range map[string]bool{"not made": false, "made": true} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &membersServer{lostMade: made, asked: map[string]int{}, members: []*pb.Member{{ID: 1, Name: "a", PeerURLs: []string{"https://127.0.0.1:1"}}}}
			g := grpc.NewServer()
			pb.RegisterClusterServer(g, s)
			var wg sync.WaitGroup
			wg.Go(func() { _ = g.Serve(l) })
			defer wg.Wait()
			defer g.Stop()
			a, err := OpenAdmin(EtcdConfig{Endpoints: []string{"http://" + l.Addr().String()}}, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			a.patience = 100 * time.Millisecond
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b := VoterAddr{Name: "b", Peer: netip.MustParseAddrPort("127.0.0.1:2")}
			initial, err := a.AddVoter(ctx, b)
			if err != nil || len(initial) != 2 || initial[1] != b {
				t.Fatalf("%+v, %v", initial, err)
			}
			if err := a.PromoteVoter(ctx, "b"); err != nil {
				t.Fatal(err)
			}
			have, err := a.Voters(ctx)
			if err != nil || len(have) != 2 || have[1].Learner {
				t.Fatalf("%+v, %v", have, err)
			}
			if err := a.RemoveVoter(ctx, "b"); err != nil {
				t.Fatal(err)
			}
			if have, err = a.Voters(ctx); err != nil || len(have) != 1 {
				t.Fatalf("%+v, %v", have, err)
			}
		})
	}
}
