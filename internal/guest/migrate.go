package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

const (
	// migratePoll is how often QEMU is asked how far it is; its events say when the guest stopped and went on.
	migratePoll = 20 * time.Millisecond
	// cancelWait is how long QEMU may take to give a migration up, or the destination to go on after its end.
	cancelWait = 20 * time.Second
	// DefaultDowntime is what QEMU may estimate the stop to take before it makes it: its own default.
	DefaultDowntime = 300 * time.Millisecond
)

// ErrMigration: a migration failed; the guest goes on where it was.
var ErrMigration = errors.New("migration failed")

// Destination says where a guest goes.
type Destination struct {
	// Site at which the other QEMU runs, if there is a lab.
	Site string
	// Disks are those of the guest, as the other QEMU reaches them.
	Disks []Disk
	// Downtime is the most that the stop may take by QEMU's estimate; 0: DefaultDowntime. BandwidthBytes, a second, limits
	// the stream; 0: no limit.
	Downtime       time.Duration
	BandwidthBytes int64
}

// Migration is what QEMU says of one, and when it happened by the host's clock.
type Migration struct {
	Downtime, Total, Setup time.Duration
	TransferredBytes       int64
	Began, Ended           time.Time
	// Stopped is when the source stopped the guest, Resumed when the destination let it go on.
	Stopped, Resumed time.Time
}

// migrateInfo is the answer to query-migrate, as far as it is of interest.
type migrateInfo struct {
	Status     string `json:"status"`
	Error      string `json:"error-desc"`
	DowntimeMs int64  `json:"downtime"`
	TotalMs    int64  `json:"total-time"`
	SetupMs    int64  `json:"setup-time"`
	RAM        struct {
		Transferred int64 `json:"transferred"`
	} `json:"ram"`
	Sockets []struct {
		Type string `json:"type"`
		Host string `json:"host"`
		Port string `json:"port"`
	} `json:"socket-address"`
}

// Migrate moves the running guest to another QEMU. Commands in the guest go on, and what they print is not lost; one
// should not be begun or killed meanwhile. After an error the guest runs where it was.
func (g *Guest) Migrate(ctx context.Context, to Destination) (*Migration, error) {
	o := g.opts
	if len(o.NICs) > 0 {
		return nil, fmt.Errorf("%w: a guest with interfaces of a site can not be migrated", ErrUsage)
	}
	if len(to.Disks) != len(o.Disks) {
		return nil, fmt.Errorf("%w: %d disks at the destination: the guest has %d", ErrUsage, len(to.Disks), len(o.Disks))
	}
	o.Site, o.Disks, o.incoming = to.Site, to.Disks, g
	address := net.IPv4(127, 0, 0, 1).String()
	if o.Lab != nil && o.Site != "" {
		s, err := o.Lab.Site(o.Site)
		if err != nil {
			return nil, err
		}
		address = s.Addresses[0].String()
	}
	dst, err := launch(ctx, o, nil)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	g.ch.follow(dst.vm.agent)
	m, err := g.stream(ctx, dst, address, to)
	if err != nil {
		err = errors.Join(fmt.Errorf("%w%s", err, dst.vm.problems()), dst.Close())
		g.ch.unfollow()
		return nil, err
	}
	g.ch.switchOver()
	old := g.vm
	g.vm.kill()
	g.mon.close()
	g.vm, g.mon, g.opts = dst.vm, dst.mon, o
	g.opts.incoming = nil
	return m, old.close()
}

// stream has the two QEMUs do it, and waits until the destination runs.
func (g *Guest) stream(ctx context.Context, dst *Guest, address string, to Destination) (*Migration, error) {
	capabilities := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	downtime := to.Downtime
	if downtime == 0 {
		downtime = DefaultDowntime
	}
	for _, c := range []struct {
		at      *qmp
		command string
		args    any
	}{
		{dst.mon, "migrate-set-capabilities", capabilities},
		{g.mon, "migrate-set-capabilities", capabilities},
		{g.mon, "migrate-set-parameters", map[string]any{"downtime-limit": downtime.Milliseconds(), "max-bandwidth": to.BandwidthBytes}},
		{dst.mon, "migrate-incoming", map[string]any{"uri": "tcp:" + net.JoinHostPort(address, "0")}},
	} {
		if err := c.at.do(ctx, c.command, c.args, nil); err != nil {
			return nil, err
		}
	}
	var info migrateInfo
	if err := dst.mon.do(ctx, "query-migrate", nil, &info); err != nil {
		return nil, err
	}
	if len(info.Sockets) != 1 {
		return nil, fmt.Errorf("%w: the destination listens at %d addresses", ErrMigration, len(info.Sockets))
	}
	port, err := strconv.ParseUint(info.Sockets[0].Port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w: the destination's port: %w", ErrMigration, err)
	}
	m := &Migration{Began: time.Now()}
	if err := g.mon.do(ctx, "migrate", map[string]any{"uri": fmt.Sprintf("tcp:%s:%d", address, port)}, nil); err != nil {
		return nil, err
	}
	if info, err = g.untilDone(ctx, dst); err != nil {
		return nil, err
	}
	// From here on the guest is at the destination, and nowhere else.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer cancel()
	// QEMU's times have whole microseconds; one that failed may have stopped the guest before.
	since := m.Began.Truncate(time.Microsecond)
	stop, err := g.mon.waitEvent(ctx, "STOP", since)
	if err != nil {
		return nil, err
	}
	resume, err := dst.mon.waitEvent(ctx, "RESUME", since)
	if err != nil {
		return nil, err
	}
	m.Stopped, m.Resumed, m.Ended = stop.At, resume.At, resume.At
	m.Downtime, m.Total, m.Setup = millis(info.DowntimeMs), millis(info.TotalMs), millis(info.SetupMs)
	m.TransferredBytes = info.RAM.Transferred
	return m, nil
}

// untilDone asks the source until it is done, one way or the other: what has begun is not left, or the guest might be at both
// places or at none.
func (g *Guest) untilDone(ctx context.Context, dst *Guest) (migrateInfo, error) {
	tick := time.NewTicker(migratePoll)
	defer tick.Stop()
	ended, exited := ctx.Done(), dst.vm.exited
	var why error
	asking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for {
		select {
		case <-tick.C:
		case <-exited:
			// The source sees it by itself. It is also what follows when it gives up.
			if exited = nil; why == nil {
				why = errors.New("the destination's qemu has ended")
			}
			continue
		case <-ended:
			why, ended = ctx.Err(), nil
			defer time.AfterFunc(cancelWait, cancel).Stop()
			if err := g.mon.do(asking, "migrate_cancel", nil, nil); err != nil {
				return migrateInfo{}, errors.Join(ErrMigration, why, err)
			}
			continue
		}
		var info migrateInfo
		if err := g.mon.do(asking, "query-migrate", nil, &info); err != nil {
			return info, errors.Join(ErrMigration, why, err)
		}
		switch {
		case info.Status == "completed" && info.TotalMs > 0: // QEMU tells the state before the times
			return info, nil
		case info.Status == "failed" || info.Status == "cancelled":
			if why == nil {
				why = errors.New(info.Status + " " + info.Error)
			}
			return info, fmt.Errorf("%w: %w", ErrMigration, why)
		}
	}
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
