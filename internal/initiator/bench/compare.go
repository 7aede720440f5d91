package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"dozo/internal/initiator"
)

// CompareConfig is a comparison of two targets.
type CompareConfig struct {
	A, B         []string // URLs
	PidsA, PidsB []int    // processes that serve them, for their processor time
	Workloads    []Workload
	Rounds       int // of each side and load; default 5
	// Precondition writes the region in order before each run of a load that writes. What a target has to do, and the memory or flash that
	// it writes to, depend on what was written before; so every run finds the same.
	Precondition bool
	// Load is what all runs have in common; its URLs and Workload are replaced.
	Load Config
}

// StandardWorkloads are those that targets are usually compared with.
func StandardWorkloads() []Workload {
	var out []Workload
	for _, s := range []string{"randread:4k:1", "randwrite:4k:1", "randread:4k:32", "randwrite:4k:32", "read:1M:4", "write:1M:4"} {
		w, err := ParseWorkload(s)
		if err != nil {
			panic(err) // a constant of ours is wrong
		}
		out = append(out, w)
	}
	return out
}

// Spread is the middle and the ends of some measurements.
type Spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	All    []float64 `json:"all"`
}

func spreadOf(v []float64) Spread {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return Spread{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1], All: v}
}

// Side is what one target did with one load.
type Side struct {
	IOPS      Spread `json:"iops"`
	MBps      Spread `json:"mb_per_s"`
	P50       Spread `json:"p50_us"`
	P99       Spread `json:"p99_us"`
	ClientCPU Spread `json:"client_cpu_s_per_100k"`
	// ServerCPU is of the processes named by pid; null if there were none.
	ServerCPU *Spread `json:"server_cpu_s_per_100k"`
}

// Comparison is one load's outcome. Ratios are A over B; of IOPS more is better, of the others less.
type Comparison struct {
	Workload       string  `json:"workload"`
	Rounds         int     `json:"rounds"`
	A              Side    `json:"a"`
	B              Side    `json:"b"`
	RatioIOPS      float64 `json:"ratio_iops"`
	RatioP50       float64 `json:"ratio_p50"`
	RatioServerCPU float64 `json:"ratio_server_cpu,omitempty"`
}

// Compare runs every load on both sides in turn, beginning with the other side in every second round, so that a
// machine that gets slower or faster harms neither. If a run fails, what was complete before it is returned too.
func Compare(ctx context.Context, cfg CompareConfig) ([]Comparison, error) {
	if cfg.Rounds <= 0 {
		cfg.Rounds = 5
	}
	if len(cfg.Workloads) == 0 {
		cfg.Workloads = StandardWorkloads()
	}
	if cfg.Load.Prefill {
		for _, urls := range [][]string{cfg.A, cfg.B} {
			if err := prefillURLs(ctx, cfg.Load, urls); err != nil {
				return nil, fmt.Errorf("prefill: %w", err)
			}
		}
		cfg.Load.Prefill = false
	}
	var out []Comparison
	for _, w := range cfg.Workloads {
		c, err := compareOne(ctx, &cfg, w)
		if err != nil {
			return out, fmt.Errorf("%s: %w", w, err)
		}
		out = append(out, *c)
	}
	return out, nil
}

type sideRuns struct {
	name                                 string
	urls                                 []string
	pids                                 []int
	iops, mbps, p50, p99, client, server []float64
}

func compareOne(ctx context.Context, cfg *CompareConfig, w Workload) (*Comparison, error) {
	a := &sideRuns{name: "A", urls: cfg.A, pids: cfg.PidsA}
	b := &sideRuns{name: "B", urls: cfg.B, pids: cfg.PidsB}
	for round := range cfg.Rounds {
		order := []*sideRuns{a, b}
		if round%2 == 1 {
			order = []*sideRuns{b, a}
		}
		for _, s := range order {
			if err := s.run(ctx, cfg, w, round); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	c := &Comparison{Workload: w.String(), Rounds: cfg.Rounds, A: a.side(), B: b.side()}
	ratio := func(x, y float64) float64 {
		if y == 0 {
			return 0
		}
		return x / y
	}
	c.RatioIOPS = ratio(c.A.IOPS.Median, c.B.IOPS.Median)
	c.RatioP50 = ratio(c.A.P50.Median, c.B.P50.Median)
	if c.A.ServerCPU != nil && c.B.ServerCPU != nil {
		c.RatioServerCPU = ratio(c.A.ServerCPU.Median, c.B.ServerCPU.Median)
	}
	return c, nil
}

func (s *sideRuns) run(ctx context.Context, cfg *CompareConfig, w Workload, round int) error {
	load := cfg.Load
	load.URLs, load.Workload = s.urls, w
	load.Seed += uint64(round)
	load.Prefill = cfg.Precondition && w.ReadPercent < 100
	progress := load.Progress
	load.Progress = nil
	var before, after time.Duration
	var errBefore, errAfter error
	load.begun = func() { before, errBefore = processCPU(s.pids) }
	load.ended = func() { after, errAfter = processCPU(s.pids) }
	res, err := Run(ctx, load)
	if err := errors.Join(err, errBefore, errAfter); err != nil {
		return err
	}
	if res.IOs == 0 {
		return errors.New("no I/O ended")
	}
	lat := res.Read
	if lat == nil || res.Write != nil && res.Write.N > lat.N {
		lat = res.Write
	}
	s.iops = append(s.iops, res.IOPS)
	s.mbps = append(s.mbps, res.MBps)
	s.p50 = append(s.p50, lat.P50)
	s.p99 = append(s.p99, lat.P99)
	s.client = append(s.client, res.CPUper100k)
	server := ""
	if len(s.pids) > 0 {
		per := (after - before).Seconds() / float64(res.IOs) * 1e5
		s.server = append(s.server, per)
		server = fmt.Sprintf("  server CPU %.2f s per 100,000", per)
	}
	if progress != nil {
		fmt.Fprintf(progress, "%-16s round %d %s  %9.0f IOPS  %8.1f MB/s  p50 %.1f us%s\n", w, round+1, s.name, res.IOPS, res.MBps, lat.P50, server)
	}
	return nil
}

func (s *sideRuns) side() Side {
	x := Side{IOPS: spreadOf(s.iops), MBps: spreadOf(s.mbps), P50: spreadOf(s.p50), P99: spreadOf(s.p99), ClientCPU: spreadOf(s.client)}
	if len(s.server) > 0 {
		v := spreadOf(s.server)
		x.ServerCPU = &v
	}
	return x
}

func prefillURLs(ctx context.Context, cfg Config, urls []string) error {
	for _, raw := range urls {
		u, err := initiator.ParseURL(raw)
		if err != nil {
			return err
		}
		ic := cfg.Initiator
		uc := u.Config()
		ic.Portal, ic.Target, ic.CHAP.User, ic.CHAP.Secret = uc.Portal, uc.Target, uc.CHAP.User, uc.CHAP.Secret
		s, err := initiator.Dial(ctx, ic)
		if err != nil {
			return fmt.Errorf("%s: %w", u, err)
		}
		d, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(u.LUN))
		if err == nil {
			end := d.Size()
			if cfg.Size > 0 {
				end = min(end, cfg.Offset+cfg.Size)
			}
			err = fill(ctx, d, cfg.Offset, end-cfg.Offset)
		}
		if cerr := s.Close(ctx); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", u, err)
		}
	}
	return nil
}

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = time.Second / 100

// processCPU is the processor time that the processes have used so far, user and system, all threads.
func processCPU(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return 0, fmt.Errorf("processor time of %d: %w", pid, err)
		}
		d, err := parseStat(string(b))
		if err != nil {
			return 0, fmt.Errorf("processor time of %d: %w", pid, err)
		}
		sum += d
	}
	return sum, nil
}

func parseStat(s string) (time.Duration, error) {
	// The name in parentheses may contain anything; fields 14 and 15 are utime and stime.
	i := strings.LastIndexByte(s, ')')
	f := strings.Fields(s[i+1:])
	if i < 0 || len(f) < 13 {
		return 0, errors.New("stat line not understood")
	}
	u, err1 := strconv.ParseUint(f[11], 10, 63)
	k, err2 := strconv.ParseUint(f[12], 10, 63)
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	return time.Duration(u+k) * clockTick, nil
}

func withoutSecret(raw string) string {
	u, err := initiator.ParseURL(raw)
	if err != nil {
		return "iscsi://"
	}
	return u.String()
}

// PrintComparisons writes a table for people.
func PrintComparisons(w io.Writer, cs []Comparison) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "load\tA IOPS\tmin..max\tB IOPS\tmin..max\tA/B\tA p50 us\tB p50 us\tA p99\tB p99\tA CPU s/100k\tB CPU s/100k\t\n")
	cpu := func(s *Spread) string {
		if s == nil {
			return "-"
		}
		return fmt.Sprintf("%.2f", s.Median)
	}
	for _, c := range cs {
		fmt.Fprintf(tw, "%s\t%.0f\t%.0f..%.0f\t%.0f\t%.0f..%.0f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%s\t%s\t\n", c.Workload,
			c.A.IOPS.Median, c.A.IOPS.Min, c.A.IOPS.Max, c.B.IOPS.Median, c.B.IOPS.Min, c.B.IOPS.Max, c.RatioIOPS,
			c.A.P50.Median, c.B.P50.Median, c.A.P99.Median, c.B.P99.Median, cpu(c.A.ServerCPU), cpu(c.B.ServerCPU))
	}
	tw.Flush()
}
