package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/control"
	"dozo/internal/node"
	"dozo/internal/pki"
	"dozo/internal/up"
)

func newControlBackup(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "backup FILE", Short: "Write the whole control store to a file",
		Long: `Write the whole control store, at one revision, to FILE: sites, nodes, hosts with their CHAP secrets, volumes, owners and
ensembles, tokens as hashes, the audit log. Only the file's owner may read it. What was written is read again and verified
before the file gets its name. A backup is as new as it is: make one after every change of specifications that you would not
like to repeat. Data of volumes are not in it.`,
		Args: names("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return controlBackup(cmd.Context(), a, args[0], force) },
	}
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

func controlBackup(ctx context.Context, a *app, file string, force bool) error {
	if _, err := os.Lstat(file); err == nil && !force {
		return fmt.Errorf("%s is there already; --force replaces it: %w", file, control.ErrExists)
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Control.Backup(ctx, &dozov1.ControlBackupRequest{})
		if err != nil {
			return err
		}
		defer stream.Close()
		var b bytes.Buffer
		for stream.Receive() {
			b.Write(stream.Msg().GetData())
		}
		if err := stream.Err(); err != nil {
			return err
		}
		s, err := control.ReadSnapshot(bytes.NewReader(b.Bytes()))
		if err != nil {
			return fmt.Errorf("what the node has sent: %w", err)
		}
		sum, err := s.Summary()
		if err != nil {
			return err
		}
		if err := pki.WriteFileAtomic(file, b.Bytes()); err != nil {
			return err
		}
		if a.format != view.Table {
			return a.print(struct {
				File     string          `json:"file"`
				Bytes    int             `json:"bytes"`
				Cluster  string          `json:"cluster"`
				Revision int64           `json:"revision"`
				Time     time.Time       `json:"time"`
				Content  control.Summary `json:"content"`
			}{file, b.Len(), s.Cluster.ID, int64(s.Rev), s.Time, sum})
		}
		_, err = fmt.Fprintf(a.out, "%s: control store of cluster %s at revision %d, %d bytes: %s\n", file, s.Cluster.Name, s.Rev, b.Len(), content(&sum))
		return err
	})
}

func content(s *control.Summary) string {
	return fmt.Sprintf("%d sites, %d nodes with %d stores, %d hosts, %d volumes, %d tombstones, %d API tokens, %d events", s.Sites, s.Nodes, s.Stores, s.Hosts, s.Volumes, s.Tombstones, s.Tokens, s.Events)
}

// print writes a value of our own as JSON or YAML.
func (a *app) print(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if a.format == view.YAML {
		var any any
		if err := json.Unmarshal(text, &any); err != nil {
			return err
		}
		if text, err = yaml.Marshal(any); err != nil {
			return err
		}
		_, err = a.out.Write(text)
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", text)
	return err
}

type controlRestore struct {
	config                string
	yes, dryRun, noTokens bool
}

func (o *controlRestore) flags(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&o.config, "config", "", "configuration `file` of the voter on this host")
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return c
}

const restoreHelp = `
It is done on the host of one voter, whose node must not run: --config names its configuration. All other voters are
stopped too, and join it when they start (dozo control rejoin on each of their hosts). Nodes without a voter go on running,
and so does the I/O of volumes that they own. With --dir, it is done for all voters of a dozo up.

The new control store has another lineage. It knows less than the stores do, so it takes no volume over before every store of
the cluster has said what it holds, or was declared lost (dozo control lost); an owner that runs writes its volume's key back at
once. dozo control status shows how far that is. The former data are set aside in the state directory: nothing is deleted, and
moving them back before any node has started undoes all of it.`

func newControlRestore(a *app) *cobra.Command {
	var o controlRestore
	c := &cobra.Command{
		Use: "restore FILE (--config FILE | --dir DIR)", Short: "Make the control store anew from a backup",
		Long: `Make the control store anew from a backup, after a majority of its voters was lost for good.

Tokens with which nodes may join do not count any more: make new ones. API tokens of the backup count, also those that were revoked since: it
names them before it asks. With --revoke-api-tokens none of them does. Revoked certificates stay revoked.
` + restoreHelp,
		Example: "  dozo control restore control.backup --config /etc/dozo/dozo.yaml --dry-run",
		Args:    names("FILE"),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "only verify the backup and say what would be restored")
	c.Flags().BoolVar(&o.noTokens, "revoke-api-tokens", false, "no API token of the backup counts any more (clients need new ones; the socket of a node needs none)")
	return o.flags(c)
}

func newControlRebuild(a *app) *cobra.Command {
	var o controlRestore
	c := &cobra.Command{
		Use: "rebuild (--config FILE | --dir DIR)", Short: "Make the control store anew from what the core servers hold",
		Long: `Make the control store anew without a backup, from what the core servers hold. Journals, epochs and copies come from their
stores. Sites, hosts, names, sizes and policies of volumes come from what the nodes have noted of them (the file control-copy in
their state directories, a minute old at most), or from nodes that run. A volume that none has noted gets the name recovered-ID, the
size of its newest checkpoint or, without one, as much as was written, and default policies; its label dozo.recovered says so. API
tokens, tokens to join, and the audit log are lost.

Start all nodes then, and confirm by dozo control complete that every store is there.
` + restoreHelp,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a, "") },
	}
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "only say what would be made")
	return o.flags(c)
}

// voters gives the configuration files: first the one that is made anew, then those that join it.
func (o *controlRestore) voters(a *app) ([]string, error) {
	switch {
	case o.config != "" && a.source.Dir != "":
		return nil, usageError{errors.New("give --config or --dir, not both")}
	case o.config != "":
		return []string{o.config}, nil
	case a.source.Dir != "":
		return up.ControlVoters(a.source.Dir)
	}
	return nil, usageError{errors.New("give --config of the voter on this host, or --dir of a dozo up")}
}

func (o *controlRestore) run(ctx context.Context, a *app, backup string) error {
	configs, err := o.voters(a)
	if err != nil {
		return err
	}
	if backup != "" {
		if _, err := os.Stat(backup); errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	plan := node.ControlRestore{Config: configs[0], Backup: backup, DryRun: true, Now: time.Now(), NoAPITokens: o.noTokens}
	r, err := node.RestoreControl(ctx, plan)
	if err != nil {
		return err
	}
	if a.format == view.Table {
		if r.Content != nil {
			fmt.Fprintf(a.out, "backup of %s, revision %d: %s\n", r.Taken.Local().Format(time.DateTime), r.Revision, content(r.Content))
		} else {
			fmt.Fprintln(a.out, "without a backup: journals from the stores, names and sizes where nodes have noted them, else placeholders")
		}
	}
	if len(r.Tokens) > 0 {
		fmt.Fprintf(a.err, "these API tokens count then, also if they were revoked since the backup: %s (--revoke-api-tokens: none of them)\n", strings.Join(r.Tokens, ", "))
	}
	if !o.dryRun {
		if err := a.confirm(o.yes, fmt.Sprintf("Node %s gets a new control store (%s), which all other voters must join. What it had is set aside.", r.Node, r.Kind)); err != nil {
			return err
		}
		plan.DryRun = false
		plan.Others = func() error {
			for _, config := range configs[1:] {
				if err := node.RejoinControl(ctx, config, plan.Now, a.err); err != nil {
					return err
				}
			}
			return nil
		}
		if r, err = node.RestoreControl(ctx, plan); err != nil {
			return err
		}
	}
	if a.format != view.Table {
		return a.print(r)
	}
	if o.dryRun {
		_, err := fmt.Fprintf(a.out, "node %s would get it; nothing was done\n", r.Node)
		return err
	}
	fmt.Fprintf(a.out, "node %s has a new control store, lineage %s\n", r.Node, r.Lineage)
	if r.Aside != "" {
		fmt.Fprintf(a.out, "what it had is in %s\n", r.Aside)
	}
	if len(configs) == 1 {
		fmt.Fprintln(a.out, "on the hosts of all other voters, before their nodes start: dozo control rejoin --config FILE")
	}
	_, err = fmt.Fprintln(a.out, "then start the nodes, and look at dozo control status")
	return err
}

func newControlRejoin(a *app) *cobra.Command {
	var o controlRestore
	c := &cobra.Command{
		Use: "rejoin --config FILE", Short: "Have this host's voter join a control store that was made anew",
		Long: `Have the voter of this host's node, which must not run, leave what it has behind and join the control store that was restored or
rebuilt on another voter, when the node starts. Its data are set aside in the state directory, not deleted.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.config == "" {
				return usageError{errors.New("give --config of the voter on this host")}
			}
			if err := a.confirm(o.yes, "The voter of this host leaves what it has behind, and joins the one that was restored."); err != nil {
				return err
			}
			return node.RejoinControl(cmd.Context(), o.config, time.Now(), a.out)
		},
	}
	return o.flags(c)
}
