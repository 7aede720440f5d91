package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"dozo/internal/api/view"
	"dozo/internal/guest/migrate"
)

type labGuestMigrate struct {
	guestFlags
	cfg       migrate.Config
	bandwidth sizeFlag
	dirty     sizeFlag
}

func newLabGuestMigrate(a *app) *cobra.Command {
	var o labGuestMigrate
	c := &cobra.Command{
		Use: "migrate [URL [URL]]", Short: "Migrate a guest that writes to its disk, and measure what its disk saw", Args: someNames(2),
		Long: `Boot a guest that writes numbered, checksummed records to its disk and flushes each, migrate it to a second QEMU while it
does, and report the downtime, the longest gap between two records, and how many acknowledged records were lost or came
out of order. It is done twice: with a local file as the disk, and with the logical unit that the URLs name: the first
as the source reaches it, the second as the destination does (default: the first). What the local file shows is
QEMU's own doing. Without a URL only the local file is measured.

With --from and --to the two QEMUs, and their iSCSI initiators, run at two sites of a lab, and the migration's stream goes
through its router; without them no lab and no root is needed. The beginning of the unit is OVERWRITTEN. The exit code
is 1 if a record was lost, reordered or damaged.`,
		Example: `  dozo lab guest migrate --from east --to west iscsi://10.77.1.1/TARGET/0 iscsi://10.77.2.1/TARGET/0
  dozo lab guest migrate -o json iscsi://127.0.1.1/TARGET/0 iscsi://127.0.2.1/TARGET/0`,
	}
	o.add(c)
	f := c.Flags()
	f.StringVar(&o.cfg.From, "from", "", "`site` of the source")
	f.StringVar(&o.cfg.To, "to", "", "`site` of the destination")
	f.DurationVar(&o.cfg.Interval, "interval", migrate.DefaultInterval, "between two records; 0: none")
	f.IntVar(&o.cfg.Slots, "slots", migrate.DefaultSlots, "how many records of 4 KiB the disk keeps before they are overwritten")
	f.DurationVar(&o.cfg.Before, "before", migrate.DefaultAround, "how long to write before the migration")
	f.DurationVar(&o.cfg.After, "after", migrate.DefaultAround, "how long to write after it")
	f.DurationVar(&o.cfg.Settle, "settle", 0, "how long after the migration to begin to measure what is after it")
	f.Var(&o.dirty, "dirty", "memory that the guest writes anew, bytes a second (default none)")
	f.DurationVar(&o.cfg.Timeout, "timeout", migrate.DefaultTimeout, "of the migration")
	f.DurationVar(&o.cfg.Downtime, "downtime", 300*time.Millisecond, "the stop that QEMU may plan for")
	f.Var(&o.bandwidth, "bandwidth", "of the migration's stream, bytes a second (default: what the network takes)")
	f.DurationVar(&o.cfg.Bucket, "bucket", migrate.DefaultBucket, "resolution of the series of records in JSON")
	f.StringVar(&o.cfg.Dir, "file-dir", "", "`directory` for the local file (default $TMPDIR)")
	c.RunE = func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) }
	return c
}

func (o *labGuestMigrate) run(ctx context.Context, a *app, urls []string) error {
	if (o.cfg.From == "") != (o.cfg.To == "") {
		return usageError{fmt.Errorf("--from and --to go together")}
	}
	var err error
	if o.cfg.Guest, err = o.options(ctx, a, o.cfg.From != ""); err != nil {
		return err
	}
	if len(urls) > 0 {
		o.cfg.URLFrom, o.cfg.URLTo = urls[0], urls[len(urls)-1]
	}
	o.cfg.BandwidthBytes, o.cfg.DirtyBytes = int64(o.bandwidth), int64(o.dirty)
	p := progress{a: a, show: isTerminal(a.err)}
	o.cfg.Progress = p.line
	rep, err := migrate.Run(ctx, o.cfg)
	p.end()
	if err != nil {
		return err
	}
	if a.format != view.Table {
		err = a.format.Value(a.out, rep)
	} else {
		err = rep.Print(a.out)
	}
	if err == nil && !rep.OK() {
		err = exitError{exitFailed}
	}
	return err
}
