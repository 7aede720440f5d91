package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
	"dozo/internal/api/view"
	"dozo/internal/size"
)

func newFork(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "fork", Short: "Show, compare, export, clone and delete forks of volumes",
		Long: `A fork is what a takeover has left behind that could not know all of a volume's history: acknowledged writes which a store or a
site had that was lost then and has returned. It is kept, with all of the history that it goes on from, until it is deleted. It
is named by its volume and the epoch that left it behind; where a volume has only one, the name may be left out.`,
	}
	c.AddCommand(newForkList(a), newForkShow(a), newForkDiff(a), newForkExport(a), newForkClone(a), newForkDelete(a))
	return c
}

func second(args []string) string {
	if len(args) > 1 {
		return args[1]
	}
	return ""
}

func newForkList(a *app) *cobra.Command {
	var req dozov1.ListForksRequest
	c := &cobra.Command{
		Use: "list [VOLUME]", Aliases: []string{"ls"}, Short: "List forks", ValidArgsFunction: a.completeVolumes,
		Args: someNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Volume = args[0]
			}
			return a.with(func(c *api.Client) error { return forkList(cmd.Context(), a, c, &req) })
		},
	}
	tenantFlag(c, &req.Tenant)
	return c
}

func forkList(ctx context.Context, a *app, c *api.Client, req *dozov1.ListForksRequest) error {
	resp, err := c.Forks.List(ctx, req)
	if err != nil {
		return err
	}
	if u := resp.GetUnheard(); len(u) > 0 {
		fmt.Fprintf(a.err, "dozo: not served now, so nobody can tell whether they have forks: %s\n", strings.Join(u, ", "))
	}
	if a.format != view.Table {
		return view.List(a.format, a.out, resp.GetForks())
	}
	g := view.NewGrid("VOLUME", "FORK", "WRITES", "SIZE", "FROM", "TO", "SITES")
	for _, f := range resp.GetForks() {
		g.Row(f.GetVolume(), f.GetId(), number(f.GetWrites()), size.Format(f.GetSizeBytes()), ago(f.GetFirstTime()), ago(f.GetLastTime()), forkSites(f))
	}
	return g.Write(a.out)
}

func forkSites(f *dozov1.Fork) string {
	text := ""
	seen := map[string]bool{}
	for _, r := range f.GetReplicas() {
		if !seen[r.GetSite()] {
			seen[r.GetSite()] = true
			if text != "" {
				text += ", "
			}
			text += r.GetSite()
		}
	}
	return text
}

func newForkShow(a *app) *cobra.Command {
	var req dozov1.GetForkRequest
	c := &cobra.Command{
		Use: "show VOLUME [FORK]", Short: "Show a fork: how much is in it, from when, and where it is", Args: someNames(2, "VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Volume, req.Fork = args[0], second(args)
			return a.with(func(c *api.Client) error {
				resp, err := c.Forks.Get(cmd.Context(), &req)
				if err != nil {
					return err
				}
				return a.printFork(resp.GetFork(), "")
			})
		},
	}
	tenantFlag(c, &req.Tenant)
	return c
}

// printFork prints a fork; done, if not empty, says what became of it.
func (a *app) printFork(f *dozov1.Fork, done string) error {
	if a.format != view.Table {
		return a.format.Message(a.out, f)
	}
	if done != "" {
		_, err := fmt.Fprintf(a.out, "%s fork %s of volume %s: %d writes, %s\n", done, f.GetId(), f.GetVolume(), f.GetWrites(), size.Format(f.GetSizeBytes()))
		return err
	}
	fmt.Fprintf(a.out, "volume        %s\nfork          %s, left behind by that epoch\n", f.GetVolume(), f.GetId())
	fmt.Fprintf(a.out, "in common     up to record %d\nbeyond        %d writes in records %d to %d, last epoch %s, %s\n", f.GetBaseSeq(), f.GetWrites(), f.GetBaseSeq()+1, f.GetLastSeq(), f.GetEpoch(), size.Format(f.GetSizeBytes()))
	if f.GetFirstTime() != nil {
		fmt.Fprintf(a.out, "made          %s to %s, %.1f s\n", ago(f.GetFirstTime()), ago(f.GetLastTime()), f.GetLastTime().AsTime().Sub(f.GetFirstTime().AsTime()).Seconds())
	}
	g := view.NewGrid("SITE", "NODE", "SEGMENT", "UP TO", "SIZE")
	for _, r := range f.GetReplicas() {
		g.Row(r.GetSite(), r.GetNode(), r.GetSegment(), number(r.GetLastSeq()), size.Format(r.GetSizeBytes()))
	}
	if err := g.Write(a.out); err != nil {
		return err
	}
	for _, u := range f.GetUnheard() {
		fmt.Fprintf(a.out, "%s does not answer: there may be more\n", u)
	}
	return nil
}

type forkDelete struct {
	yes bool
	req dozov1.DeleteForkRequest
}

func newForkDelete(a *app) *cobra.Command {
	var o forkDelete
	c := &cobra.Command{
		Use: "delete VOLUME FORK", Aliases: []string{"rm"}, Short: "Delete a fork for ever",
		Long: `Delete a fork for ever: its writes can not be had again, and the volume's history before it is no longer kept for it. Stores that
can not be reached now drop theirs when they return.`,
		Args: names("VOLUME", "FORK"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Fork = args[0], args[1]
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *forkDelete) run(ctx context.Context, a *app) error {
	return a.with(func(c *api.Client) error {
		if !o.yes {
			resp, err := c.Forks.Get(ctx, &dozov1.GetForkRequest{Volume: o.req.GetVolume(), Tenant: o.req.GetTenant(), Fork: o.req.GetFork()})
			if err != nil {
				return err
			}
			f := resp.GetFork()
			question := fmt.Sprintf("Fork %s of volume %s, %d acknowledged writes until %s, will be gone for ever.", f.GetId(), f.GetVolume(), f.GetWrites(), ago(f.GetLastTime()))
			if err := a.confirm(false, question); err != nil {
				return err
			}
		}
		resp, err := c.Forks.Delete(ctx, &o.req)
		if err != nil {
			return err
		}
		return a.printFork(resp.GetFork(), "deleted")
	})
}

type forkClone struct {
	timeout time.Duration
	req     dozov1.CloneForkRequest
}

func newForkClone(a *app) *cobra.Command {
	var o forkClone
	c := &cobra.Command{
		Use: "clone VOLUME [FORK] --name NEW", Short: "Make a new volume with a fork's content",
		Long: `Make a new volume with the content of the volume as a fork has it, by copying. It has the volume's size, policies, hosts and home.
Until it is complete its state is cloning, and no initiator may use it. Interrupted, the new volume is deleted again; if the node dies
that makes it, it is left behind in that state, and the same command again makes it anew.`,
		Args: someNames(2, "VOLUME"), ValidArgsFunction: a.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.req.Volume, o.req.Fork = args[0], second(args)
			return o.run(cmd.Context(), a)
		},
	}
	c.Flags().StringVar(&o.req.Name, "name", "", "`name` of the new volume")
	_ = c.MarkFlagRequired("name")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait for the end, such as 30s (default for ever)")
	tenantFlag(c, &o.req.Tenant)
	return c
}

func (o *forkClone) run(ctx context.Context, a *app) error {
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	return a.with(func(c *api.Client) error {
		stream, err := c.Forks.Clone(ctx, &o.req)
		if err != nil {
			return err
		}
		defer stream.Close()
		p := progress{a: a, show: isTerminal(a.err)}
		var last *dozov1.CloneForkResponse
		for stream.Receive() {
			last = stream.Msg()
			p.line(fmt.Sprintf("%s of %s", size.Format(last.GetCopiedBytes()), size.Format(last.GetSizeBytes())))
		}
		p.end()
		if err := stream.Err(); err != nil {
			return err
		}
		if !last.GetDone() {
			return errEndedEarly
		}
		if a.format != view.Table {
			return a.format.Message(a.out, last)
		}
		_, err = fmt.Fprintf(a.out, "made volume %s, %s\n", last.GetName(), size.Format(last.GetSizeBytes()))
		return err
	})
}
