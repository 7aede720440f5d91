package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

func newStore(a *app) *cobra.Command {
	c := &cobra.Command{Use: "store", Short: "Show, empty, exchange and scrub the disks of core servers"}
	c.AddCommand(newStoreList(a), newStoreReplace(a), newStoreScrub(a))
	return c
}

func (a *app) completeStores(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, func(ctx context.Context, c *api.Client) (out []string) {
		resp, err := c.Stores.List(ctx, &dozov1.ListStoresRequest{})
		if err != nil {
			return nil
		}
		for _, s := range resp.GetStores() {
			out = append(out, s.GetNode()+"/"+s.GetLabel()+"\t"+s.GetState()+" "+s.GetId())
		}
		return out
	})
}

func newStoreList(a *app) *cobra.Command {
	var req dozov1.ListStoresRequest
	c := &cobra.Command{
		Use: "list", Short: "List the stores of all nodes",
		Long: `List the stores of all nodes: one is one data directory on one disk. Those that share a file system have its space
only once. SCRUBBED says when everything was last read and verified; DAMAGED how many replicas have a bad place now.`,
		Args: names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *api.Client) error {
				resp, err := c.Stores.List(cmd.Context(), &req)
				if err != nil {
					return err
				}
				if a.format != view.Table {
					return a.format.Message(a.out, resp)
				}
				g := view.NewGrid("STORE", "SITE", "STATE", "USED", "FREE", "CAPACITY", "REPLICAS", "SCRUBBED", "DAMAGED", "ID", "PATH")
				for _, s := range resp.GetStores() {
					name := s.GetNode()
					if s.GetLabel() != "" {
						name += "/" + s.GetLabel()
					}
					g.Row(name, s.GetSite(), s.GetState(), size.Format(s.GetUsedBytes()), size.Format(s.GetFreeBytes()), size.Format(s.GetCapacityBytes()), number(s.GetReplicas()),
						when(s.GetScrubPassed()), number(s.GetDamagedNow()), s.GetId(), s.GetPath())
				}
				return g.Write(a.out)
			})
		},
	}
	c.Flags().StringVar(&req.Node, "node", "", "only this node's")
	a.completeFlag(c, "node", nodeNames)
	return c
}

type storeReplace struct {
	yes, cancel bool
	timeout     time.Duration
	req         dozov1.ReplaceStoreRequest
}

func newStoreReplace(a *app) *cobra.Command {
	var o storeReplace
	c := &cobra.Command{
		Use: "replace STORE", Short: "Empty a store, so that its disk can be exchanged, or declare a dead one lost",
		Long: `Empty a store, so that its disk can be exchanged. It takes no new replicas, those that it has are made on other
stores of its site and let go, and the command ends once it is empty. Then stop the node, put an empty directory in its place,
and start the node: it makes a new store there, with another ID. STORE is an ID or NODE/LABEL, as dozo store list shows them.

--lost is for a disk that is dead: what only it held is lost, nobody waits for it any more, and its replicas are made again
from the other copies at once. That can not be taken back: the store is never used again, even if the disk comes back.

--cancel ends the emptying: the store takes replicas again.`,
		Args: names("STORE"), ValidArgsFunction: a.completeStores,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Store = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.req.Lost, "lost", false, "the disk is dead: declare the store lost, for good")
	f.BoolVar(&o.req.DryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&o.req.NoWait, "no-wait", false, "begin, and do not wait until it is empty")
	f.BoolVar(&o.cancel, "cancel", false, "end the emptying")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait, such as 30m (default for ever); it goes on all the same")
	c.MarkFlagsMutuallyExclusive("lost", "cancel")
	c.MarkFlagsMutuallyExclusive("cancel", "dry-run")
	c.MarkFlagsMutuallyExclusive("lost", "cancel", "no-wait")
	return c
}

func (o *storeReplace) run(ctx context.Context, a *app) error {
	if o.cancel {
		return a.with(func(c *api.Client) error {
			_, err := c.Stores.Keep(ctx, &dozov1.KeepStoreRequest{Store: o.req.GetStore()})
			return a.done(err, o.req.GetStore()+" takes replicas again")
		})
	}
	ctx, cancel := withTimeout(ctx, o.timeout)
	defer cancel()
	if o.req.GetLost() && o.req.GetDryRun() {
		return a.loss(ctx, o.req.GetStore())
	}
	if o.req.GetLost() {
		question := fmt.Sprintf("Store %s is declared lost: what only it holds is lost, and it is never used again.", o.req.GetStore())
		if err := a.confirmLoss(ctx, o.yes, question, o.req.GetStore()); err != nil {
			return err
		}
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Stores.Replace(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		return a.followEmptying(o.req.GetStore(), stream, o.req.GetNoWait())
	})
}

// withTimeout bounds a command's wait; 0: not.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d > 0 {
		return context.WithTimeout(ctx, d)
	}
	return context.WithCancel(ctx)
}

// emptyStream is what followEmptying reads.
type emptyStream interface {
	Receive() bool
	Msg() *dozov1.EmptyProgress
	Err() error
}

// followEmptying shows progress until its last message, and prints that.
func (a *app) followEmptying(what string, stream emptyStream, early bool) error {
	p := progress{a: a, show: isTerminal(a.err)}
	var last *dozov1.EmptyProgress
	for stream.Receive() {
		last = stream.Msg()
		p.line(emptyLine(last))
	}
	p.end()
	if err := stream.Err(); err != nil {
		return err
	}
	if last == nil || !early && !last.GetDone() {
		return errors.New("the node that was asked ended the wait early; it goes on: try again")
	}
	if a.format != view.Table {
		return a.format.Message(a.out, last)
	}
	for _, n := range last.GetNotes() {
		fmt.Fprintf(a.out, "note: %s\n", n)
	}
	_, err := fmt.Fprintf(a.out, "%s: %s\n", what, emptyLine(last))
	return err
}

func emptyLine(p *dozov1.EmptyProgress) string {
	var b strings.Builder
	switch p.GetPhase() {
	case "empty":
		return "empty: stop its node, put an empty directory in its place, start the node"
	case "removed":
		return "out of the cluster"
	case "lost":
		return "declared lost"
	case "voter":
		return "empty; another node gets its vote in the control store"
	case "planned":
		fmt.Fprintf(&b, "would hand over %d volumes, change the ensembles of %d, and copy", p.GetVolumes(), p.GetEnsembles())
	default:
		fmt.Fprintf(&b, "%s: %d volumes to hand over, %d ensembles to change,", p.GetPhase(), p.GetVolumes(), p.GetEnsembles())
	}
	fmt.Fprintf(&b, " %d replicas, %s", p.GetReplicas(), size.Format(p.GetLeftBytes()))
	if p.GetRateBps() > 0 {
		fmt.Fprintf(&b, ", %s/s", size.Format(p.GetRateBps()))
	}
	if p.GetEta() != nil {
		fmt.Fprintf(&b, ", about %s", p.GetEta().AsDuration())
	}
	return b.String()
}

type storeScrub struct {
	timeout time.Duration
	req     dozov1.ScrubStoreRequest
}

func newStoreScrub(a *app) *cobra.Command {
	var o storeScrub
	c := &cobra.Command{
		Use: "scrub STORE", Short: "Read and verify everything that a store has, now",
		Long: `Read and verify everything that a store has, now and as fast as its disk lets it, instead of spread over
timeouts.scrub_period. What is found bad is made again from another copy by itself. STORE is an ID or NODE/LABEL. With exit
code 8 bad places were found that are not healed yet.`,
		Args: names("STORE"), ValidArgsFunction: a.completeStores,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Store = args[0]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVar(&o.req.NoWait, "no-wait", false, "begin, and do not wait for the end")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait, such as 30m (default for ever); it goes on all the same")
	return c
}

func (o *storeScrub) run(ctx context.Context, a *app) error {
	ctx, cancel := withTimeout(ctx, o.timeout)
	defer cancel()
	return a.with(func(c *api.Client) error {
		stream, err := c.Stores.Scrub(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.ScrubProgress
		for stream.Receive() {
			last = stream.Msg()
			p.line(scrubLine(last))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if last == nil || !o.req.GetNoWait() && !last.GetDone() {
			return errors.New("the node that was asked ended the wait early; it goes on: try again")
		}
		if a.format != view.Table {
			err = a.format.Message(a.out, last)
		} else {
			_, err = fmt.Fprintf(a.out, "%s: %s\n", o.req.GetStore(), scrubLine(last))
		}
		if err == nil && last.GetStore().GetDamagedNow() > 0 {
			return exitError{exitUnhealthy}
		}
		return err
	})
}

func scrubLine(p *dozov1.ScrubProgress) string {
	s := p.GetStore()
	text := fmt.Sprintf("%s of %s read", size.Format(s.GetScrubDoneBytes()), size.Format(s.GetScrubTotalBytes()))
	if p.GetEta() != nil {
		text += fmt.Sprintf(", about %s", p.GetEta().AsDuration())
	}
	return text + fmt.Sprintf(", %d replicas with a bad place now, %d of %d found are healed", s.GetDamagedNow(), s.GetDamagedHealed(), s.GetDamagedFound())
}
