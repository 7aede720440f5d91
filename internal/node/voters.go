package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dozo/internal/control"
	"dozo/internal/pki"
)

// The configuration says where the voters of the embedded control store were when it was written. Voters join and
// leave later; the node asks the control store who they are and remembers it, so that it finds them after a
// restart though all that its configuration names are gone.

// votersFile, in the state directory, has the URLs of the voters that were last known, one a line.
const votersFile = "control-voters"

// How often the voters are asked for: in peace only to be sure, since the directory of nodes says when one has come
// or gone, and soon where the directory and the voters do not agree, as while a new one has no vote yet.
const (
	votersEvery = 5 * time.Minute
	votersSoon  = 2 * time.Second
)

// voterURLs are the places at which to look for the control store: those of the configuration, then those that were
// last known.
func (n *Node) voterURLs() (urls []string) {
	for _, e := range n.cfg.Control.Endpoints {
		urls = append(urls, control.ClientURL(addrPort(e)))
	}
	if n.cfg.Control.External {
		return urls
	}
	text, err := os.ReadFile(filepath.Join(n.cfg.StateDir, votersFile))
	if err != nil {
		return urls // not known yet, or not readable: the configuration's must do
	}
	for u := range strings.FieldsSeq(string(text)) {
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	return urls
}

// keepVoters has the client of the control store, and the file, follow the voters.
func (n *Node) keepVoters(ctx context.Context, ctl *control.Client) {
	changed, cancel := ctl.Subscribe()
	defer cancel()
	var known []string
	for {
		listed := listedVoters(ctl)
		wait := votersEvery
		urls, err := ctl.SyncVoters(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.log.Debug("voters of the control store", "err", err)
			wait = votersSoon
		case !slices.Equal(urls, known):
			n.log.Info("voters of the control store", "endpoints", urls)
			if err := pki.WriteFileAtomic(filepath.Join(n.cfg.StateDir, votersFile), []byte(strings.Join(urls, "\n")+"\n")); err != nil {
				n.log.Warn("voters of the control store are not remembered", "err", err)
			}
			known = urls
		}
		if err == nil && !slices.Equal(urls, listed) {
			wait = votersSoon
		}
		timer := time.NewTimer(wait)
		for same := true; same; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				same = false
			case <-changed:
				same = slices.Equal(listedVoters(ctl), listed)
			}
		}
		timer.Stop()
	}
}

// listedVoters are the URLs of the nodes that say they have a voter, sorted.
func listedVoters(ctl *control.Client) (urls []string) {
	for _, x := range ctl.Nodes() {
		if x.Voter && x.Addrs.ControlURL != "" {
			urls = append(urls, x.Addrs.ControlURL)
		}
	}
	slices.Sort(urls)
	return urls
}
