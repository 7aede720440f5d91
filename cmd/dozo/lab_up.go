package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/lab"
)

var errNoCommand = errors.New("missing COMMAND")

// labDir is where the data of a lab's nodes are.
const labDir = "dozo-lab-data"

type labUp struct {
	name, sites, access                      string
	rtt, jitter, rate, buffer, loss, reorder string
	nodes, addresses                         int
	memory                                   sizeFlag
	seed                                     uint64
}

func newLabUp(a *app) *cobra.Command {
	var o labUp
	o.memory = 512 << 20
	c := &cobra.Command{
		Use: "up", Short: "Make sites and the network between them", Args: names(),
		Long: `Make sites and the network between them, and leave it running. What is given here holds for all paths; dozo lab set
changes single ones. With --nodes each site gets that many dozo nodes on its own addresses; their data are in --dir
(default ./` + labDir + `) and stay when the lab ends. Where dozo up would run a witness, it gets a site of its own.`,
		Example: "  dozo lab up --sites 3 --rtt 18ms --rate 1gbit\n  dozo lab up --sites tokyo,osaka --rtt 9ms --access 500mbit --nodes 2",
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", lab.DefaultName, "of the lab; several may run at once")
	f.StringVar(&o.sites, "sites", "3", "how many sites, or their `names` separated by commas")
	f.StringVar(&o.rtt, "rtt", "0", "round-trip `time` between any two sites")
	f.StringVar(&o.jitter, "jitter", "0", "the most by which the `time` of a direction varies")
	f.StringVar(&o.rate, "rate", "unlimited", "bottleneck of each path, each way: `rate` such as 1gbit")
	f.StringVar(&o.buffer, "buffer", "auto", "`size` of the buffer before it")
	f.StringVar(&o.loss, "loss", "0", "`share` of packets lost, such as 0.1%")
	f.StringVar(&o.reorder, "reorder", "0", "`share` of packets that others overtake")
	f.StringVar(&o.access, "access", "unlimited", "`rate` of each site's access link, each way")
	f.IntVar(&o.addresses, "addresses", 4, "how many addresses each site has, of IPv4 and as many of IPv6")
	f.IntVar(&o.nodes, "nodes", 0, "how many dozo nodes to start at each site")
	f.Var(&o.memory, "memory", "the most that the router takes for packets under way")
	f.Uint64Var(&o.seed, "seed", 1, "of losses, jitter and reordering")
	return c
}

func (o *labUp) run(ctx context.Context, a *app) error {
	sites, err := lab.ParseSites(o.sites)
	if err != nil {
		return err
	}
	if o.nodes > 0 {
		sites = lab.NodeSites(sites, o.nodes)
	}
	spec, err := lab.NewSpec(o.name, sites, max(o.addresses, o.nodes))
	if err != nil {
		return err
	}
	if o.nodes > 0 {
		spec.Nodes = o.nodes
		spec.Dir = a.source.Dir
		if spec.Dir == "" {
			spec.Dir = labDir
		}
		if spec.Dir, err = filepath.Abs(spec.Dir); err != nil {
			return err
		}
	}
	opts := lab.Options{Spec: spec, MemoryBytes: int(o.memory), Seed: o.seed, Commands: [][]string{
		{"set", "all", "rtt=" + o.rtt, "jitter=" + o.jitter, "rate=" + o.rate, "buffer=" + o.buffer, "loss=" + o.loss, "reorder=" + o.reorder},
	}}
	for _, s := range sites {
		opts.Commands = append(opts.Commands, []string{"set", s, "rate=" + o.access})
	}
	l, err := lab.Up(ctx, opts)
	if err != nil {
		return err
	}
	if a.format != view.Table {
		return labPrintStatus(a, l)
	}
	if err := labPrintStatus(a, l); err != nil {
		return err
	}
	name := ""
	if o.name != lab.DefaultName {
		name = " --name " + o.name
	}
	first, last := sites[0], sites[len(sites)-1]
	var b strings.Builder
	fmt.Fprintf(&b, "\nNext, try:\n\n  dozo lab exec%s %s -- ping -c 3 %s\n", name, first, l.Sites[len(sites)-1].Addresses[0])
	if first != last {
		fmt.Fprintf(&b, "  dozo lab set%s %s %s rtt=100ms loss=0.1%%\n", name, first, last)
	}
	fmt.Fprintf(&b, "  dozo lab stat%s\n  dozo lab down%s\n", name, name)
	_, err = fmt.Fprint(a.out, b.String())
	return err
}
