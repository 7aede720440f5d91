package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"dozo/internal/config"
	"dozo/internal/control"
	"dozo/internal/pki"
)

// This part makes a control store anew on the host of a voter that does not run: from a backup, or empty, to be filled
// from what the stores hold. It is done on one voter; the others join that one.

// Names in the state directory.
const (
	newControlDir   = "control.new"      // while it is filled
	readyControlDir = "control.restored" // complete; it takes the place of controlDir
	joinFile        = "control-join"     // the voter joins whatever the configuration says
)

// ControlRestore says what RestoreControl makes.
type ControlRestore struct {
	Config string // path of the voter's configuration file
	Backup string // path of the backup; empty: a rebuild
	DryRun bool
	Now    time.Time
	// NoAPITokens leaves out the backup's tokens for the API, of which some may have been revoked since.
	NoAPITokens bool
	// Others has the other voters leave what they have (RejoinControl), where that is done at once. It is called when the new control
	// store is made and not in its place yet: if it fails, nothing has changed here, and the former one does not come up beside the new one.
	Others func() error
}

// ControlRestored says what was made, or would be.
type ControlRestored struct {
	Node     string           `json:"node"`
	Kind     string           `json:"kind"`
	Cluster  string           `json:"cluster"`
	Lineage  string           `json:"lineage,omitempty"` // empty with a dry run
	Taken    time.Time        `json:"backup_time,omitzero"`
	Revision int64            `json:"backup_revision,omitempty"`
	Content  *control.Summary `json:"content,omitempty"`
	Tokens   []string         `json:"api_tokens,omitempty"` // that count (again)
	Aside    string           `json:"aside,omitempty"`      // where the former data are
	DryRun   bool             `json:"dry_run"`
}

// RestoreControl makes the voter's data anew; what it had is set aside, not deleted. The node must not run.
func RestoreControl(ctx context.Context, o ControlRestore) (*ControlRestored, error) {
	cfg, id, err := voterOf(o.Config)
	if err != nil {
		return nil, err
	}
	out := &ControlRestored{Node: string(cfg.Node), Kind: string(control.FromNothing), Cluster: id.ClusterID(), DryRun: o.DryRun}
	lineage := control.NewLineage()
	snap := control.EmptyAnew(control.Cluster{ID: id.ClusterID(), Name: cfg.Cluster.Name, Lineage: lineage}, o.Now)
	if o.Backup != "" {
		backup, err := readSnapshot(o.Backup)
		if err != nil {
			return nil, err
		}
		if backup.Cluster.ID != id.ClusterID() {
			return nil, fmt.Errorf("%s is of cluster %s (%s), this node of %s: %w", o.Backup, backup.Cluster.Name, backup.Cluster.ID, id.ClusterID(), control.ErrInvalid)
		}
		if o.NoAPITokens {
			backup = backup.WithoutAPITokens()
		}
		if out.Tokens, err = backup.APITokens(o.Now); err != nil {
			return nil, err
		}
		sum, err := backup.Summary()
		if err != nil {
			return nil, err
		}
		out.Kind, out.Taken, out.Revision, out.Content = string(control.FromBackup), backup.Time, int64(backup.Rev), &sum
		if snap, err = backup.Anew(lineage, o.Now); err != nil {
			return nil, err
		}
	}
	if o.DryRun {
		return out, nil
	}
	out.Lineage = fmt.Sprintf("%08x", lineage)
	if out.Aside, err = replaceControl(ctx, cfg, id, snap, o); err != nil {
		return nil, err
	}
	return out, nil
}

func replaceControl(ctx context.Context, cfg *config.Config, id *pki.Identity, snap *control.Snapshot, o ControlRestore) (aside string, err error) {
	dir := filepath.Join(cfg.StateDir, newControlDir)
	if err := os.RemoveAll(dir); err != nil { // of one that was interrupted
		return "", err
	}
	files, err := id.Etcd(cfg.TLS.CAFile, filepath.Join(cfg.StateDir, pki.CRLFile))
	if err != nil {
		return "", err
	}
	c := control.EmbeddedConfig{Name: cfg.Node, Dir: dir, ListenPeer: addrPort(cfg.Control.PeerAddress), ClusterID: id.ClusterID(), TLS: files}
	if err := control.SeedVoter(ctx, c, id.NodeClient("", nil), snap); err != nil {
		return "", fmt.Errorf("make the control store anew (the node must not run): %w", err)
	}
	if o.Others != nil {
		if err := o.Others(); err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := os.Rename(dir, filepath.Join(cfg.StateDir, readyControlDir)); err != nil {
		return "", err
	}
	// From here on it is restored: a node that starts does the rest, should this process die.
	return finishRestore(cfg.StateDir, o.Now)
}

// finishRestore puts a restored control store in its place, if there is one.
func finishRestore(state string, now time.Time) (aside string, err error) {
	ready := filepath.Join(state, readyControlDir)
	if _, err := os.Stat(ready); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	if aside, err = setAside(state, now); err != nil {
		return "", err
	}
	if err := os.Rename(ready, filepath.Join(state, controlDir)); err != nil {
		return aside, err
	}
	// Last: without data and without the mark the voter would start a control store of its own. With data it means nothing.
	if err := os.Remove(filepath.Join(state, joinFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return aside, err
	}
	return aside, syncDir(state)
}

// setAside moves a voter's data out of the way; empty if there are none.
func setAside(state string, now time.Time) (aside string, err error) {
	dir := filepath.Join(state, controlDir)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	aside = fmt.Sprintf("%s.old-%s", dir, now.UTC().Format("20060102-150405.000"))
	if err := os.Rename(dir, aside); err != nil {
		return "", err
	}
	return aside, syncDir(state)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RejoinControl has a voter that does not run leave its data behind and join the control store that was restored on
// another one, when its node starts.
func RejoinControl(_ context.Context, configFile string, now time.Time, out io.Writer) error {
	cfg, _, err := voterOf(configFile)
	if err != nil {
		return err
	}
	// The mark first: without data and without it the voter would start a control store of its own.
	if err := pki.WriteFileAtomic(filepath.Join(cfg.StateDir, joinFile), []byte("the control store was restored elsewhere: this voter joins it\n")); err != nil {
		return err
	}
	aside, err := setAside(cfg.StateDir, now)
	if err != nil {
		return err
	}
	if aside != "" {
		aside = "; what it had is in " + aside
	}
	_, err = fmt.Fprintf(out, "%s joins the control store when it starts%s\n", cfg.Node, aside)
	return err
}

// voterOf loads the configuration of a node that has a voter, and its certificate.
func voterOf(configFile string) (*config.Config, *pki.Identity, error) {
	cfg, err := config.Load(configFile)
	if err != nil {
		return nil, nil, err
	}
	if err := cfg.Appointed(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", configFile, err)
	}
	if !cfg.Control.Embedded {
		return nil, nil, fmt.Errorf("%s: node %s has no voter of the control store: %w", configFile, cfg.Node, control.ErrInvalid)
	}
	if h, err := os.Stat(cfg.StateDir); err != nil || !h.IsDir() {
		return nil, nil, fmt.Errorf("state directory %s: %w", cfg.StateDir, fs.ErrNotExist)
	}
	id, err := pki.Load(cfg.TLS.CAFile, cfg.TLS.NodeFile)
	if err != nil {
		return nil, nil, err
	}
	if busy := voterRuns(addrPort(cfg.Control.PeerAddress)); busy != nil {
		return nil, nil, fmt.Errorf("node %s runs, or something else does at %s: stop it first: %w", cfg.Node, cfg.Control.PeerAddress, control.ErrInUse)
	}
	return cfg, id, nil
}

// voterRuns says whether somebody listens where the voter would.
func voterRuns(at netip.AddrPort) error {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	return l.Close()
}
