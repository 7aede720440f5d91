package control

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"dozo/internal/ident"
)

// A voter that leads and whose process ends is missed only after Election, by chance up to twice as long, and until then, and
// for as long as the votes take, nothing of the control store changes. Where it ended with a volume's owner, the takeover waits for all
// of that. But the hosts of dead processes say so at once, to whoever had a connection: they refuse the next one. That is no
// proof, and none is needed: a leader that lives after all is deposed by an election that it would have won, which costs some
// round trips; that at most one leads is raft's business as ever.
//
//	the leader's host refuses ──> the first of the other voters stands for election, as if the leader had asked it to
//	                              the next one does so after succeedAfter, if there is no leader then: the first may be behind
//
// It has to be quick: what a voter is asked to change while it still believes in the dead leader is passed on to that one, and
// lost; whoever asked tries again after a second.

// succeedAfter is what each further voter waits for those before it: an election with round trips of 200 ms takes two
// of them.
const succeedAfter = 600 * time.Millisecond

// succeedTimeout bounds how long the request may take: it is a message to this voter itself.
const succeedTimeout = time.Second

// goneNode is what NodeGone was told.
type goneNode struct {
	name ident.NodeName
	deaf []ident.NodeName
}

// NodeGone says that a node's process has ended, as far as its host says. Voters that do not hear of such things themselves,
// witnesses, are deaf: no other one waits for them. It does not wait.
func (e *Embedded) NodeGone(name ident.NodeName, deaf []ident.NodeName) {
	select {
	case e.gone <- goneNode{name, deaf}:
	default: // many at once: elections come by themselves
	}
}

// succeed is the goroutine that has this voter stand for election.
func (e *Embedded) succeed(log *slog.Logger) {
	for {
		select {
		case <-e.done:
			return
		case x := <-e.gone:
			e.succeedTo(x, log)
		}
	}
}

func (e *Embedded) succeedTo(gone goneNode, log *slog.Logger) {
	srv := e.etcd.Server
	self := uint64(srv.MemberID())
	var leader uint64
	var others []uint64
	for _, m := range srv.Cluster().Members() {
		switch {
		case m.Name == string(gone.name):
			leader = uint64(m.ID)
		case !m.IsLearner && !slices.Contains(gone.deaf, ident.NodeName(m.Name)):
			others = append(others, uint64(m.ID))
		}
	}
	slices.Sort(others)
	rank := slices.Index(others, self)
	if leader == 0 || rank < 0 || srv.Lead() != leader {
		return
	}
	if rank > 0 {
		t := time.NewTimer(time.Duration(rank) * succeedAfter)
		defer t.Stop()
		select {
		case <-t.C:
		case <-e.done:
			return
		}
		if lead := srv.Lead(); lead != leader && lead != 0 {
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), succeedTimeout)
	defer cancel()
	// What a leader sends to whom it gives its place to.
	m := &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &leader, To: &self, Term: new(srv.Term())}
	if err := srv.Process(ctx, m); err != nil {
		log.Warn("the control store's leader is gone, and this voter could not stand for election", "leader", gone.name, "err", err)
		return
	}
	e.stood.Add(1)
	log.Info("the control store's leader is gone: this voter stands for election", "leader", gone.name)
}
