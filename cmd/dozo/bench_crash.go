package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/initiator"
	"dozo/internal/initiator/bench"
	"dozo/internal/initiator/history"
)

// openUnit logs in to a URL and opens its logical unit; the caller closes the session.
func openUnit(ctx context.Context, login *loginFlags, raw string) (*initiator.Disk, error) {
	u, err := initiator.ParseURL(raw)
	if err != nil {
		return nil, usageError{err}
	}
	cfg, err := login.config()
	if err != nil {
		return nil, err
	}
	cfg.Portal, cfg.Target, cfg.CHAP.User, cfg.CHAP.Secret = u.Portal, u.Target, u.User, u.Secret
	s, err := initiator.Dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	d, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(u.LUN))
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	return d, nil
}

// logoutTimeout bounds how long a target may take to say goodbye.
const logoutTimeout = 5 * time.Second

func closeUnit(d *initiator.Disk) {
	ctx, cancel := context.WithTimeout(context.Background(), logoutTimeout)
	defer cancel()
	_ = d.S.Close(ctx) // the work is done; a target that does not answer a logout changes nothing
}

type benchCrashWriter struct {
	login        loginFlags
	log          string
	offset, size sizeFlag
	runtime      time.Duration
	fua          int
	cfg          history.WriterConfig
}

func newBenchCrashWriter(a *app) *cobra.Command {
	o := benchCrashWriter{size: 256 << 20}
	c := &cobra.Command{
		Use: "crash-writer URL --log FILE", Short: "Write numbered blocks and log what was acknowledged, across crashes", Args: names("URL"),
		Long: `Write numbered, checksummed blocks of 4 KiB at random places, with flushes, and log to a file what was issued,
acknowledged and flushed. When the server dies, log in again for up to --reconnect and send again what was not answered.
An existing log is continued. dozo bench crash-check reads the blocks back. It ends after --runtime, --writes, or at a
signal, with a report.`,
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	f := c.Flags()
	o.login.add(f)
	f.StringVar(&o.log, "log", "", "`file` of the history (required)")
	f.Var(&o.offset, "offset", "first byte of the region, for a new log")
	f.Var(&o.size, "size", "size of the region, for a new log")
	f.DurationVar(&o.runtime, "runtime", 0, "how long to write (default until a signal)")
	f.Uint64Var(&o.cfg.Writes, "writes", 0, "end after that many writes")
	f.IntVar(&o.cfg.Depth, "depth", 32, "writes under way")
	f.IntVar(&o.cfg.FlushEvery, "flush-every", 256, "writes between flushes; -1: never")
	f.IntVar(&o.cfg.BlocksMax, "blocks-max", 1, "a write covers one to that many blocks")
	f.IntVar(&o.cfg.Rate, "rate", 0, "writes a second (default as fast as it goes)")
	f.IntVar(&o.fua, "fua", 0, "`percent` of writes with FUA")
	f.Uint64Var(&o.cfg.Seed, "seed", 0, "of the random places")
	f.IntVar(&o.cfg.ErrorsMax, "max-errors", 0, "commands that may fail before the run does")
	_ = c.MarkFlagRequired("log")
	return c
}

// writerReport is what crash-writer prints.
type writerReport struct {
	history.WriterStats
	Reconnects int     `json:"reconnects"`
	IOPS       float64 `json:"iops"`
}

// open logs in. A target that takes the connection and then is gone has died meanwhile: it is waited for as after any other loss. One that
// is not there at all is an error at once.
func (o *benchCrashWriter) open(ctx context.Context, a *app, url string) (*initiator.Disk, error) {
	d, err := openUnit(ctx, &o.login, url)
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return d, err
	}
	fmt.Fprintf(a.err, "dozo: %v; trying again for up to %v\n", err, o.login.reconnect)
	for until := time.Now().Add(o.login.reconnect); err != nil && time.Now().Before(until); {
		var refused *initiator.LoginError
		if ctx.Err() != nil || errors.As(err, &refused) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
		d, err = openUnit(ctx, &o.login, url)
	}
	return d, err
}

func (o *benchCrashWriter) run(ctx context.Context, a *app, url string) error {
	d, err := o.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer closeUnit(d)
	l, err := history.OpenLog(o.log)
	if errors.Is(err, fs.ErrNotExist) {
		size := min(int64(o.size), d.Size()-int64(o.offset))
		if size < history.BlockSize || o.offset%history.BlockSize != 0 {
			return usageError{fmt.Errorf("the region must begin at a multiple of %d, within the unit", history.BlockSize)}
		}
		l, err = history.NewLog(o.log, uint64(o.offset)/history.BlockSize, uint64(size)/history.BlockSize)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	o.cfg.FUA = float64(o.fua) / 100
	w, err := history.NewWriter(d, l, o.cfg)
	if err != nil {
		return err
	}
	if o.runtime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.runtime)
		defer cancel()
	}
	st, runErr := w.Run(ctx)
	if err := l.Close(); err != nil {
		return err
	}
	rep := writerReport{st, d.S.Stats().Reconnects, float64(st.Acked) / st.Duration.Seconds()}
	if a.format != view.Table {
		if err := a.format.Value(a.out, rep); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "issued %d, acknowledged %d, failed %d, flushes %d, reconnects %d, longest gap %s, %.0f IOPS\n",
			rep.Issued, rep.Acked, rep.Failed, rep.Flushes, rep.Reconnects, rep.Longest.Round(time.Millisecond), rep.IOPS)
	}
	return runErr
}

func newBenchCrashCheck(a *app) *cobra.Command {
	var login loginFlags
	var log string
	var flushed bool
	c := &cobra.Command{
		Use: "crash-check URL --log FILE", Short: "Read the blocks of a crash-writer back and compare", Args: names("URL"),
		Long: `Read every block that the log speaks of and compare: it must contain the last acknowledged write or a later one
that was issued, whole. With --flushed, for power cuts: the last flushed write or a later one, and no write may be there
without those that were acknowledged before it was issued. Ends with code 1 and the first wrong block if not so.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			d, err := openUnit(ctx, &login, args[0])
			if err != nil {
				return err
			}
			defer closeUnit(d)
			l, err := history.OpenLog(log)
			if err != nil {
				return err
			}
			defer l.Close()
			level := history.Acked
			if flushed {
				level = history.Flushed
			}
			res, err := l.Check(ctx, d, level)
			if err != nil {
				return err
			}
			if a.format != view.Table {
				if err := a.format.Value(a.out, res); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(a.out, "checked %d blocks: %d wrong; %d have a write that was never acknowledged", res.Checked, res.Violations, res.Pending)
				if flushed {
					fmt.Fprintf(a.out, "; %d lost writes that were acknowledged but not flushed", res.Lost)
				}
				fmt.Fprintln(a.out)
			}
			if res.First != nil {
				return fmt.Errorf("%w: %w", bench.ErrViolation, res.First)
			}
			return nil
		},
	}
	login.add(c.Flags())
	c.Flags().StringVar(&log, "log", "", "`file` of the history (required)")
	c.Flags().BoolVar(&flushed, "flushed", false, "only flushed writes must be there, the rest is a prefix")
	_ = c.MarkFlagRequired("log")
	return c
}

func newBenchLinearize(a *app) *cobra.Command {
	var login loginFlags
	var cfg history.ClientsConfig
	var runtime time.Duration
	var out string
	c := &cobra.Command{
		Use: "linearize URL...", Short: "Let several clients share blocks and check that one order explains what they saw", Args: someNames(0, "URL"),
		Long: `Let several clients read and write a few blocks of one logical unit, by all the URLs, which must lead to it, and check
that what each saw is explained by one order of all operations (linearizability). Ends with code 1 if not.`,
		RunE: func(cmd *cobra.Command, urls []string) error {
			ctx := cmd.Context()
			for _, u := range urls {
				d, err := openUnit(ctx, &login, u)
				if err != nil {
					return err
				}
				defer closeUnit(d)
				cfg.Disks = append(cfg.Disks, d)
			}
			run, cancel := context.WithTimeout(ctx, runtime)
			defer cancel()
			rec, err := history.RunClients(run, cfg)
			if rec != nil && out != "" {
				f, ferr := os.Create(out)
				if ferr != nil {
					return ferr
				}
				if err := errors.Join(rec.WriteJSON(f), f.Close()); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
			if err := history.CheckRegisters(rec.Ops()); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%d operations, linearizable\n", len(rec.Ops()))
			return nil
		},
	}
	f := c.Flags()
	login.add(f)
	f.IntVar(&cfg.Clients, "clients", 8, "clients at the same time")
	f.Uint64Var(&cfg.Blocks, "blocks", 4, "blocks that they share")
	f.IntVar(&cfg.Reads, "read", 50, "`percent` of reads")
	f.IntVar(&cfg.Ops, "ops", 0, "end after that many operations")
	f.IntVar(&cfg.ErrorsMax, "max-errors", 0, "operations that may fail before the run does")
	f.DurationVar(&runtime, "runtime", 10*time.Second, "how long")
	f.StringVar(&out, "history", "", "`file` for the history, an operation a line in JSON")
	return c
}
