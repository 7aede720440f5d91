package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

func newControl(a *app) *cobra.Command {
	c := &cobra.Command{Use: "control", Short: "The control store: how it is, its backup, making it anew"}
	c.AddCommand(newControlStatus(a), newControlBackup(a), newControlRestore(a), newControlRebuild(a), newControlRejoin(a), newControlLost(a), newControlComplete(a))
	return c
}

func newControlStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the voters, whether they have a majority, and how far a restore is settled",
		Long: `Show the control store as the node that is asked sees it: its voters, which of them leads, whether more than half of
them answer, and, after it was restored or rebuilt, which stores of the cluster have said what they hold.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error { return controlStatus(cmd.Context(), a) },
	}
}

func controlStatus(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		r, err := c.Control.Status(ctx, &dozov1.ControlStoreStatusRequest{})
		if err != nil {
			return err
		}
		if a.format != view.Table {
			return a.format.Message(a.out, r)
		}
		how := "a majority of its voters answers"
		switch {
		case r.GetExternal():
			how = "external; it is connected"
			if !r.GetConnected() {
				how = "external; it does not answer"
			}
		case !r.GetQuorum():
			how = "no majority of its voters answers: I/O goes on, changes wait"
		}
		fmt.Fprintf(a.out, "control store: %s (lineage %s, revision %d, seen by %s)\n", how, r.GetLineage(), r.GetRevision(), r.GetNode())
		g := view.NewGrid("VOTER", "PEER", "STATE", "TERM", "APPLIED", "DATABASE", "PROBLEMS")
		for _, v := range r.GetVoters() {
			state := "follows"
			switch {
			case !v.GetUp():
				state = "away"
			case v.GetLeader():
				state = "leads"
			case v.GetLearner():
				state = "has no vote yet"
			}
			g.Row(v.GetNode(), v.GetPeer(), state, fmt.Sprint(v.GetTerm()), fmt.Sprint(v.GetApplied()), size.Format(v.GetDatabaseBytes()), strings.Join(v.GetProblems(), "; "))
		}
		if len(r.GetVoters()) > 0 {
			if err := g.Write(a.out); err != nil {
				return err
			}
		}
		return a.printRestoration(r.GetRestoration())
	})
}

func (a *app) printRestoration(r *dozov1.ControlRestoration) error {
	if r == nil {
		return nil
	}
	from := ""
	if r.GetBackupTime() != nil {
		from = fmt.Sprintf(" from a backup of %s, revision %d", when(r.GetBackupTime()), r.GetBackupRevision())
	}
	fmt.Fprintf(a.out, "\n%s at %s%s: %s\n", r.GetKind(), when(r.GetTime()), from, r.GetState())
	if r.GetReport() != "" {
		fmt.Fprintln(a.out, r.GetReport())
	}
	if r.GetState() == "settled" {
		return nil
	}
	if !r.GetComplete() {
		fmt.Fprintln(a.out, "when every store of the cluster is listed here: dozo control complete")
	}
	g := view.NewGrid("STORE", "NODE", "STATE", "JOURNALS")
	for _, s := range r.GetStores() {
		g.Row(s.GetId(), s.GetNode(), s.GetState(), fmt.Sprint(s.GetJournals()))
	}
	return g.Write(a.out)
}

func newControlLost(a *app) *cobra.Command {
	var yes, dry bool
	c := &cobra.Command{
		Use: "lost STORE|NODE...", Short: "Have a restored control store wait for stores no longer",
		Long: `Declare that stores, or all stores of nodes, will not come back, so that a control store that was restored or rebuilt
is settled without them. What only they held is lost. With one store lost, a volume is served again once all other stores that
may have something of it answer; with more, what is found proves nothing, and initiators get errors until they have been
accepted (dozo session accept). It can not be taken back. With --dry-run it says which volumes would have too few copies then, and what
is known to be lost; on a terminal it says so before it asks.`,
		Example: "  dozo control lost s2n1 --yes",
		Args:    someNames(0, "STORE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dry {
				return a.loss(cmd.Context(), args...)
			}
			if err := a.confirmLoss(cmd.Context(), yes, fmt.Sprintf("What only %s held is lost, which can not be taken back.", strings.Join(args, ", ")), args...); err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				r, err := c.Control.DeclareLost(cmd.Context(), &dozov1.ControlDeclareLostRequest{Stores: args})
				if err != nil {
					return err
				}
				if a.format != view.Table {
					return a.format.Message(a.out, r.GetRestoration())
				}
				return a.printRestoration(r.GetRestoration())
			})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what that would mean")
	return c
}

func newControlComplete(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "complete", Short: "Say that a rebuilt control store knows every store of the cluster",
		Long: `After dozo control rebuild nobody but the operator knows how many stores the cluster has. Start all nodes, see by dozo
control status that every store is listed, and confirm it: once all have answered, volumes are served. A store that is
missing then is not asked, and what only it holds is not found.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.confirm(yes, "Stores that are not listed by dozo control status will not be asked."); err != nil {
				return err
			}
			return a.with(func(c *api.Client) error {
				r, err := c.Control.DeclareComplete(cmd.Context(), &dozov1.ControlDeclareCompleteRequest{})
				if err != nil {
					return err
				}
				if a.format != view.Table {
					return a.format.Message(a.out, r.GetRestoration())
				}
				return a.printRestoration(r.GetRestoration())
			})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}
