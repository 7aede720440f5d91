package node

import (
	"context"
	"path/filepath"
	"time"

	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/pki"
)

// When a node with a voter of the control store is taken out, another one becomes a voter (control.ReplaceVoter). It sees
// in its own entry that it is to, notes that in its state directory, and joins as a voter does whose configuration says so;
// from then on it is one, also after a restart.

// appointAgain is the pause after a failure to become a voter.
const appointAgain = 5 * time.Second

// keepAppointed makes this node a voter once its entry says that it is to be one.
func (n *Node) keepAppointed(ctx context.Context, ctl *control.Client, fatal chan<- error) {
	changed, cancel := ctl.Subscribe()
	defer cancel()
	for {
		self, ok := ctl.Node(n.cfg.Node)
		if ok && self.Voting && !self.Voter {
			err := n.becomeVoter(ctx, ctl, fatal)
			if err == nil || ctx.Err() != nil {
				return
			}
			n.log.Error("no voter of the control store, though the node is to have one", "err", err)
			select {
			case <-time.After(appointAgain):
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) becomeVoter(ctx context.Context, ctl *control.Client, fatal chan<- error) error {
	cfg := *n.cfg
	if err := cfg.BecomeVoter(); err != nil {
		return err
	}
	// The note first: a voter that others count on must be there again after a restart.
	if err := pki.WriteFileAtomic(filepath.Join(cfg.StateDir, config.VoterFile), []byte("it took the place of a voter that was removed\n")); err != nil {
		return err
	}
	if n.voter.Load() == nil {
		if err := n.startVoter(ctx, cfg.Control, fatal); err != nil {
			return err
		}
	}
	if ctx.Err() != nil { // nobody else ends it any more
		return n.voter.Load().Close()
	}
	if err := pki.WriteCRL(filepath.Join(cfg.StateDir, pki.CRLFile), ctl.Revocations(), time.Now()); err != nil {
		n.log.Error("revocation list", "err", err)
	}
	return n.register(control.WithActor(ctx, "node/"+string(n.cfg.Node)), ctl)
}
