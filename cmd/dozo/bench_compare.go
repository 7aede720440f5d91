package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/initiator/bench"
)

type benchCompare struct {
	load         loadFlags
	workloads    []string
	rounds       int
	precondition bool
	pidsA, pidsB []int
	fua          int
	flushEvery   int
}

func newBenchCompare(a *app) *cobra.Command {
	var o benchCompare
	c := &cobra.Command{
		Use: "compare A B", Short: "Compare two targets in alternating rounds", Args: names("A", "B"),
		Long: `Compare two targets in alternating rounds. A and B are URLs, or several separated by commas. Each load runs
--rounds times on each side, in turn, the other side first in every second round; medians, minima and maxima are
printed, and the processor time of the processes that serve, for 100,000 I/Os, where --pids-a and --pids-b name them.`,
		Example: `  dozo bench compare --prefill --size 1G --pids-a 4711,4712 --pids-b 815 URL-A URL-B`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, strings.Split(args[0], ","), strings.Split(args[1], ","))
		},
	}
	f := c.Flags()
	o.load.add(f, 5*time.Second)
	var std []string
	for _, w := range bench.StandardWorkloads() {
		std = append(std, w.String())
	}
	f.StringSliceVar(&o.workloads, "workload", std, "loads, as KIND:SIZE:DEPTH")
	f.IntVar(&o.rounds, "rounds", 5, "runs of each load on each side")
	f.BoolVar(&o.precondition, "precondition", false, "write the region in order before each run of a load that writes, so that all find the same")
	f.IntSliceVar(&o.pidsA, "pids-a", nil, "processes that serve A")
	f.IntSliceVar(&o.pidsB, "pids-b", nil, "processes that serve B")
	f.IntVar(&o.fua, "fua", 0, "`percent` of writes with FUA")
	f.IntVar(&o.flushEvery, "flush-every", 0, "`writes` between two flushes in each session (default none)")
	return c
}

func (o *benchCompare) run(ctx context.Context, a *app, urlsA, urlsB []string) error {
	if err := errors.Join(checkURLs(urlsA), checkURLs(urlsB)); err != nil {
		return err
	}
	if o.rounds < 1 {
		return usageError{fmt.Errorf("%d rounds: want 1 at least", o.rounds)}
	}
	o.load.steady(max(len(urlsA), len(urlsB)))
	load, err := o.load.config(a.err)
	if err != nil {
		return err
	}
	load.FUA, load.FlushEvery = float64(o.fua)/100, o.flushEvery
	cfg := bench.CompareConfig{A: urlsA, B: urlsB, PidsA: o.pidsA, PidsB: o.pidsB, Rounds: o.rounds, Precondition: o.precondition, Load: load}
	for _, s := range o.workloads {
		w, err := bench.ParseWorkload(s)
		if err != nil {
			return usageError{err}
		}
		cfg.Workloads = append(cfg.Workloads, w)
	}
	out, runErr := bench.Compare(ctx, cfg)
	if a.format == view.Table {
		bench.PrintComparisons(a.out, out)
	} else if err := a.format.Value(a.out, out); err != nil {
		return err
	}
	return runErr
}
