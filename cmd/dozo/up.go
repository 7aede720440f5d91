package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"dozo/internal/api"
	"dozo/internal/up"
)

type upOptions struct {
	sites, nodes, net int
	plainData, detach bool
	o                 up.Options
}

func newUp(a *app) *cobra.Command {
	var o upOptions
	c := &cobra.Command{
		Use: "up", Short: "Run a whole system on this machine: several sites of several nodes",
		Long: `Run a whole system on this machine: --sites sites of --nodes nodes, each node a process of its own, and a witness
where there are two sites, or two nodes in all. Node 2 of site 1 is s1n2 at 127.0.1.2: iSCSI at port 3260, API at 7070.

Everything is in --dir. It survives dozo down, ctrl-C and kill -9 of any process; dozo up on the same directory starts
what does not run, and leaves alone what does. Without --detach the command stays, says when a node ends, and stops all
at ctrl-C; a node that ended stays so, until SIGHUP tells the command to start it again. With --detach it ends when all
are ready and the volumes that are there are served, or says which are not within a while; dozo up --detach starts dead nodes again. Other commands in this directory find the system by themselves.`,
		Example: "  dozo up --detach\n  dozo up --sites 2 --nodes 3 --dir /var/tmp/two --net 7",
		Args:    names(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What was not given takes the shape of the system that is there.
			f := cmd.Flags()
			if f.Changed("sites") {
				o.o.Wish.Sites = &o.sites
			}
			if f.Changed("nodes") {
				o.o.Wish.Nodes = &o.nodes
			}
			if f.Changed("net") {
				o.o.Wish.Net = &o.net
			}
			if f.Changed("plain-data") {
				o.o.Wish.PlainData = &o.plainData
			}
			return o.run(cmd.Context(), a)
		},
	}
	f := c.Flags()
	f.IntVar(&o.sites, "sites", 3, "how many sites")
	f.IntVar(&o.nodes, "nodes", 2, "how many nodes each site has")
	f.IntVar(&o.net, "net", 0, "N in the addresses 127.N.i.j, so that several systems fit on a machine")
	f.BoolVar(&o.plainData, "plain-data", false, "do not encrypt the data frames within a site")
	f.BoolVar(&o.detach, "detach", false, "end once all nodes are ready, and leave them running")
	return c
}

func (o *upOptions) run(ctx context.Context, a *app) error {
	o.o.Dir, o.o.Out, o.o.Command = a.upDir(), a.out, os.Args[0]
	s, err := up.Start(ctx, o.o)
	if err != nil {
		return err
	}
	if o.detach {
		defer s.Release()
		return s.Print()
	}
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGHUP)
	defer signal.Stop(restart)
	if err := s.Print(); err != nil {
		return err
	}
	return s.Follow(ctx, restart)
}

// upDir is the directory of dozo up and dozo down.
func (a *app) upDir() string {
	if a.source.Dir != "" {
		return a.source.Dir
	}
	return api.DefaultDir
}
