package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/initiator"
	"dozo/internal/initiator/bench"
)

// readSecretFile reads a secret from a file, so that it is not in the list of processes.
func readSecretFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("secret: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

type benchISCSI struct {
	load       loadFlags
	workload   string
	read       int
	block      sizeFlag
	depth      int
	sequential bool
	fua        int
	flushEvery int
	rate       int
	count      uint64
	verify     bool
	log        string
	sameUnit   bool
}

func newBenchISCSI(a *app) *cobra.Command {
	o := benchISCSI{block: 4096}
	c := &cobra.Command{
		Use: "iscsi URL...", Short: "Put load on logical units and measure", Args: someNames(0, "URL"),
		Long: `Put load on logical units and measure. Every session keeps --depth I/Os under way. A load that writes destroys what is on
the unit.

With --verify, writes are numbered, checksummed blocks of 4 KiB; every read, and at the end every block written, is
compared with what was acknowledged. With --log FILE the history is kept, so that dozo bench crash-check can read the
blocks back after a crash.`,
		Example: `  dozo bench iscsi --workload randwrite:4k:32 --runtime 30s iscsi://127.0.1.1/iqn.2026-01.example:vol1/0
  dozo bench iscsi --read 70 --block-size 8k --depth 16 --sessions 4 --rate 20000 --verify URL`,
		RunE: func(cmd *cobra.Command, urls []string) error { return o.run(cmd.Context(), a, urls) },
	}
	f := c.Flags()
	o.load.add(f, 10*time.Second)
	f.StringVar(&o.workload, "workload", "", "KIND:SIZE:DEPTH in one, such as randread:4k:1, write:1M:4 or randrw70:8k:16")
	f.IntVar(&o.read, "read", 100, "`percent` of reads")
	f.Var(&o.block, "block-size", "size of one I/O")
	f.IntVar(&o.depth, "depth", 32, "I/Os under way in each session")
	f.BoolVar(&o.sequential, "sequential", false, "in order instead of at random")
	f.IntVar(&o.fua, "fua", 0, "`percent` of writes with FUA")
	f.IntVar(&o.flushEvery, "flush-every", 0, "`writes` between two flushes in each session (default none)")
	f.IntVar(&o.rate, "rate", 0, "I/Os a second over all sessions (default as fast as it goes)")
	f.Uint64Var(&o.count, "count", 0, "end after that many I/Os, if --runtime does not come first")
	f.BoolVar(&o.verify, "verify", false, "write numbered blocks and compare what is read")
	f.StringVar(&o.log, "log", "", "`file` for the history of a verified run; it must not exist")
	f.BoolVar(&o.sameUnit, "same-unit", false, "all URLs lead to the same logical unit")
	return c
}

func (o *benchISCSI) run(ctx context.Context, a *app, urls []string) error {
	cfg, err := o.load.config(a.err)
	if err != nil {
		return err
	}
	if err := checkURLs(urls); err != nil {
		return err
	}
	o.load.steady(len(urls))
	cfg.URLs, cfg.SameUnit = urls, o.sameUnit
	cfg.Workload = bench.Workload{ReadPercent: o.read, BlockSize: int(o.block), Depth: o.depth, Random: !o.sequential}
	if o.workload != "" {
		if cfg.Workload, err = bench.ParseWorkload(o.workload); err != nil {
			return usageError{err}
		}
	}
	cfg.FUA, cfg.FlushEvery, cfg.Rate, cfg.Count = float64(o.fua)/100, o.flushEvery, o.rate, o.count
	cfg.Verify, cfg.LogFile = o.verify || o.log != "", o.log
	res, runErr := bench.Run(ctx, cfg)
	if res != nil {
		if a.format == view.Table {
			res.Print(a.out)
		} else if err := a.format.Value(a.out, res); err != nil {
			return err
		}
	}
	if ctx.Err() != nil && (runErr == nil || errors.Is(runErr, bench.ErrUnanswered)) {
		return exitError{exitInterrupted} // what was measured until then has been said
	}
	return runErr
}

func newBenchDiscover(a *app) *cobra.Command {
	var login loginFlags
	c := &cobra.Command{
		Use: "discover iscsi://HOST[:PORT]", Short: "List the targets of a portal (SendTargets)", Args: names("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := initiator.ParseURL(args[0])
			if err != nil {
				return usageError{err}
			}
			cfg, err := login.config()
			if err != nil {
				return err
			}
			cfg.Portal, cfg.CHAP.User, cfg.CHAP.Secret = u.Portal, u.User, u.Secret
			found, err := initiator.Discover(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.format != view.Table {
				return a.format.Value(a.out, found)
			}
			g := view.NewGrid("TARGET", "ADDRESS", "GROUP")
			for _, t := range found {
				for _, p := range t.Addresses {
					g.Row(t.Name, p.Addr, p.GroupTag)
				}
				if len(t.Addresses) == 0 {
					g.Row(t.Name, u.Portal, "")
				}
			}
			return g.Write(a.out)
		},
	}
	login.add(c.Flags())
	return c
}
