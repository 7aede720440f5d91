package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dozo/internal/control"
	"dozo/internal/pki"
	"dozo/internal/settle"
)

// This part of Node helps to settle a control store that was restored or rebuilt (rules R3, R11): it registers again,
// says what its stores hold, and, on one node, makes the keys fit once all have answered. In peace it notes on disk
// what the specifications are.

// copyFile, in the state directory, has the specifications as last known, in the format of a backup. It has the hosts'
// secrets, so it is as secret as a voter's directory.
const copyFile = "control-copy"

const (
	copyEvery   = time.Minute // at most so often, and only after a change
	settleEvery = time.Second
)

// settleControl helps whenever the control store was made anew, until ctx ends.
func (n *Node) settleControl(ctx context.Context) {
	ctl := n.control()
	changed, cancel := ctl.Subscribe()
	defer cancel()
	ctx = control.WithActor(ctx, nodeObject(string(n.cfg.Node)))
	cl, _ := ctl.Cluster()
	lineage := cl.Lineage
	n.rememberCopy(ctl)
	helper := settle.Helper{Control: ctl, Node: n.cfg.Node, Stores: n.stores, Log: n.log}
	var noted *control.Snapshot
	var notedAt time.Time
	for ctx.Err() == nil {
		wait := copyEvery
		if cl, err := ctl.Cluster(); err == nil && cl.Lineage != lineage {
			if err := n.registerAnew(ctx, ctl); err != nil {
				n.log.Warn("the control store was started anew, and this node is not registered in it yet", "err", err)
				wait = settleEvery
			} else {
				lineage = cl.Lineage
			}
		}
		r, ok := ctl.Restoration()
		switch {
		case ok && r.Pending():
			wait = settleEvery
			if err := helper.Settle(ctx, r); err != nil && ctx.Err() == nil {
				n.log.Warn("the restored control store is not settled yet", "err", err)
			}
		case time.Since(notedAt) >= copyEvery:
			notedAt = time.Now()
			noted = n.noteCopy(ctl, noted)
		}
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
			// Many changes come together, and none of this is urgent.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		timer.Stop()
	}
}

// registerAnew writes what a running node knows of itself.
func (n *Node) registerAnew(ctx context.Context, ctl *control.Client) error {
	self := *n.self.Load()
	if s, ok := ctl.Site(self.Site); ok {
		if err := ctl.KeepSite(ctx, s); err != nil && !errors.Is(err, control.ErrExists) {
			return err
		}
	}
	made, err := ctl.RegisterNode(ctx, self)
	if err != nil {
		return err
	}
	n.self.Store(&made)
	n.log.Warn("the control store was started anew: this node is registered again")
	return nil
}

// noteCopy notes the specifications, if they have changed.
func (n *Node) noteCopy(ctl *control.Client, was *control.Snapshot) *control.Snapshot {
	if len(n.stores) == 0 {
		return was // it is for those who have something that would be lost without a name
	}
	s, err := ctl.Copy()
	if err != nil || s.Same(was) {
		return was
	}
	var b bytes.Buffer
	if err = s.Write(&b); err == nil {
		err = pki.WriteFileAtomic(filepath.Join(n.cfg.StateDir, copyFile), b.Bytes())
	}
	if err != nil {
		n.log.Warn("the specifications are not noted", "err", err)
		return was
	}
	return s
}

// rememberCopy gives a control store that is not settled what this node has noted of the former one.
func (n *Node) rememberCopy(ctl *control.Client) {
	if r, ok := ctl.Restoration(); !ok || !r.Pending() {
		return
	}
	s, err := readSnapshot(filepath.Join(n.cfg.StateDir, copyFile))
	if err == nil {
		err = ctl.Remember(s)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("what was noted of the former control store is not used", "err", err)
	}
}

// ownSite finds the number that the node's site had, if it has noted it: names of segments have it.
func (n *Node) ownSite(name string) (control.Site, bool) {
	s, err := readSnapshot(filepath.Join(n.cfg.StateDir, copyFile))
	if err != nil {
		return control.Site{}, false
	}
	sites, err := s.Sites()
	if err != nil {
		return control.Site{}, false
	}
	i := slices.IndexFunc(sites, func(x control.Site) bool { return x.Name == name })
	if i < 0 {
		return control.Site{}, false
	}
	return sites[i], true
}

func readSnapshot(path string) (*control.Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := control.ReadSnapshot(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
