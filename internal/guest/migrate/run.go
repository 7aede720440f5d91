package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dozo/internal/guest"
	"dozo/internal/guest/records"
	"dozo/internal/initiator"
)

// Config says what to run.
type Config struct {
	// Guest is what to boot: image, lab, accelerator, memory. Its disks and its site are set by Run.
	Guest guest.Options
	// From and To are the sites of the two QEMUs; empty without a lab.
	From, To string
	// URLs of the disk as the source and the destination reach it. Without them only the local file is measured.
	URLFrom, URLTo string
	// Dir is where the local file is for the time of its run; empty: TMPDIR.
	Dir string
	// Slots of records, Interval between them.
	Slots    int
	Interval time.Duration
	// Before and After are how long records are written around the migration. Settle is how long after it begins what
	// counts as after it: a disk may be moved only once its user has.
	Before, Settle, After time.Duration
	// DirtyBytes is how much of its memory the guest writes anew, a second; 0: only what writing records takes.
	DirtyBytes int64
	// Timeout of the migration itself.
	Timeout time.Duration
	// Downtime and BandwidthBytes are QEMU's: see guest.Destination.
	Downtime       time.Duration
	BandwidthBytes int64
	// Bucket is the resolution of the series.
	Bucket time.Duration
	// Progress, if set, is told what begins.
	Progress func(text string)
}

// Defaults of a Config.
const (
	DefaultSlots    = 4096 // 16 MiB
	DefaultInterval = 5 * time.Millisecond
	DefaultAround   = 3 * time.Second
	DefaultTimeout  = 2 * time.Minute
	DefaultBucket   = 100 * time.Millisecond
)

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.Before, DefaultAround)
	set(&c.After, DefaultAround)
	set(&c.Timeout, DefaultTimeout)
	set(&c.Bucket, DefaultBucket)
	if c.Slots == 0 {
		c.Slots = DefaultSlots
	}
	if c.URLTo == "" {
		c.URLTo = c.URLFrom
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return c
}

// place is a way to the disk.
type place struct{ name, from, to string }

// Run measures a migration with a local file, and with the disk if there is one. A report with records lost is no error.
func Run(ctx context.Context, cfg Config) (_ *Report, err error) {
	cfg = cfg.withDefaults()
	if cfg.Bucket < time.Millisecond || cfg.Before < 0 || cfg.After < 0 || cfg.Settle < 0 || cfg.DirtyBytes < 0 {
		return nil, fmt.Errorf("%w: times before and after, and what is dirtied, may not be negative, and buckets not shorter than 1 ms", guest.ErrUsage)
	}
	if err := (records.Job{Run: 1, Slots: cfg.Slots, Interval: cfg.Interval}).Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", guest.ErrUsage, err)
	}
	if cfg.URLFrom != "" {
		for _, u := range []string{cfg.URLFrom, cfg.URLTo} {
			if _, err := initiator.ParseURL(u); err != nil {
				return nil, fmt.Errorf("%w: %w", guest.ErrUsage, err)
			}
		}
	}
	dir, err := os.MkdirTemp(cfg.Dir, "dozo-migrate-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "disk")
	if err := allocate(file, int64(cfg.Slots)*records.BlockBytes); err != nil {
		return nil, fmt.Errorf("local file: %w", err)
	}
	places := []place{{LocalDisk, file, file}}
	if cfg.URLFrom != "" {
		places = append(places, place{TargetDisk, cfg.URLFrom, cfg.URLTo})
	}
	rep := newReport(cfg)
	for _, p := range places {
		r, err := cfg.one(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		rep.Runs = append(rep.Runs, *r)
	}
	return rep, nil
}

// allocate makes a file of which every block has been written: making room would be measured otherwise.
func allocate(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, zeros{}, size)
	return errors.Join(err, f.Sync(), f.Close())
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// heard is an acknowledgement and when it was heard of.
type heard struct {
	records.Ack
	at time.Time
}

// one measures one migration.
func (cfg Config) one(ctx context.Context, p place) (_ *Measured, err error) {
	o := cfg.Guest
	o.Site, o.Disks, o.Name = cfg.From, []guest.Disk{{Source: p.from}}, "migrating"
	cfg.Progress(p.name + ": booting the guest")
	g, err := guest.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()

	if cfg.DirtyBytes > 0 {
		stopDirt := dirty(ctx, g, cfg.DirtyBytes)
		defer stopDirt()
	}
	job := records.Job{Device: "/dev/vdb", Run: rand.Uint64() | 1, Slots: cfg.Slots, Interval: cfg.Interval}
	var mu sync.Mutex
	var acks []heard
	first := make(chan struct{})
	// A migration may not be in the way of the records' end, which is asked for by their own context.
	writing, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- g.WriteRecords(writing, job, func(a records.Ack, at time.Time) {
			mu.Lock()
			defer mu.Unlock()
			if acks = append(acks, heard{a, at}); len(acks) == 1 {
				close(first)
			}
		})
	}()
	wait := func(d time.Duration) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case err := <-done:
			return fmt.Errorf("records ended early: %w", errors.Join(err, errEarly))
		}
	}
	select {
	case <-first:
	case err := <-done:
		return nil, fmt.Errorf("no record was written: %w", errors.Join(err, errEarly))
	}
	cfg.Progress(fmt.Sprintf("%s: writing records for %v, then migrating", p.name, cfg.Before))
	if err := wait(cfg.Before); err != nil {
		return nil, err
	}
	moving, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	m, err := g.Migrate(moving, guest.Destination{Site: cfg.To, Disks: []guest.Disk{{Source: p.to}}, Downtime: cfg.Downtime, BandwidthBytes: cfg.BandwidthBytes})
	if err != nil {
		return nil, err
	}
	cfg.Progress(fmt.Sprintf("%s: migrated; writing records for %v more", p.name, cfg.Settle+cfg.After))
	if err := wait(cfg.Settle + cfg.After); err != nil {
		return nil, err
	}
	stop()
	if err := <-done; err != nil {
		return nil, err
	}
	// As a power cut: what was flushed needs nothing more to be there.
	if err := g.Close(); err != nil {
		return nil, err
	}
	out := measure(p.name, cfg, acks, m)
	cfg.Progress(p.name + ": reading the records back")
	for _, way := range unique(p.from, p.to) {
		site := cfg.From
		if way != p.from {
			site = cfg.To
		}
		f, err := cfg.check(ctx, way, site, job, out.Records)
		if err != nil {
			return nil, err
		}
		out.Found = append(out.Found, Found{Way: redact(way), Findings: f})
	}
	return out, nil
}

// dirty has the guest write into its memory, over and over, as a download would. What it writes is not zeroes, of which
// QEMU sends nothing. It ends with what it returns, or with the guest.
func dirty(ctx context.Context, g *guest.Guest, bytesPerSecond int64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		kib := max(bytesPerSecond/10>>10, 1)
		// Over as much memory as is written in eight seconds, a tenth of a second's worth at a time.
		script := fmt.Sprintf("d=/run/dirty; mkdir -p $d; head -c %dk /dev/urandom >$d/from; i=0; while :; do dd if=$d/from of=$d/$((i %% 80)) bs=64k 2>/dev/null; i=$((i+1)); sleep 0.1; done", kib)
		_, _ = g.Run(ctx, guest.Command{Args: []string{"sh", "-c", script}})
	}()
	return func() {
		cancel()
		<-done
	}
}

var errEarly = errors.New("the writer has ended")

func unique(a, b string) []string {
	if a == b {
		return []string{a}
	}
	return []string{a, b}
}

// redact leaves out what may be a secret.
func redact(way string) string {
	u, err := initiator.ParseURL(way)
	if err != nil {
		return way
	}
	return fmt.Sprintf("iscsi://%s/%s/%d", u.Portal, u.Target, u.LUN)
}

// check reads the records from the host, by the initiator of our own and not by QEMU's.
func (cfg Config) check(ctx context.Context, way, site string, job records.Job, acked uint64) (records.Findings, error) {
	u, err := initiator.ParseURL(way)
	if err != nil {
		f, err := os.Open(way)
		if err != nil {
			return records.Findings{}, err
		}
		defer f.Close()
		return records.Check(f, job.Slots, job.Run, acked)
	}
	c := initiator.Config{Portal: u.Portal, Target: u.Target, ReconnectTimeout: 10 * time.Second, RetryLimit: 100}
	c.CHAP.User, c.CHAP.Secret = u.User, u.Secret
	if l := cfg.Guest.Lab; l != nil && site != "" {
		c.Dial = func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = l.In(site, func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		}
	}
	s, err := initiator.Dial(ctx, c)
	if err != nil {
		return records.Findings{}, err
	}
	defer func() { _ = s.Close(ctx) }()
	d, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(u.LUN))
	if err != nil {
		return records.Findings{}, err
	}
	return records.Check(diskReader{ctx, d}, job.Slots, job.Run, acked)
}

type diskReader struct {
	ctx context.Context
	d   *initiator.Disk
}

func (r diskReader) ReadAt(b []byte, off int64) (int, error) {
	if err := r.d.ReadAt(r.ctx, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}
