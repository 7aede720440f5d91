package bench_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dozo/internal/access/iscsi/iscsitest"
	"dozo/internal/access/scsi"
	"dozo/internal/initiator"
	"dozo/internal/initiator/bench"
	"dozo/internal/initiator/history"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const target = "iqn.2026-01.example.dozo:mem"

// serve runs a target on a disk in memory; the second result is its URL.
func serve(t *testing.T) (*iscsitest.Disk, string) {
	t.Helper()
	d := iscsitest.NewDisk("mem", 16<<20, 512)
	p, err := iscsitest.Start(&iscsitest.Provider{Disks: map[string][]*iscsitest.Disk{target: {d}}}, "127.0.0.1:0", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return d, "iscsi://" + p.Address + "/" + target + "/0"
}

func workload(t *testing.T, s string) bench.Workload {
	w, err := bench.ParseWorkload(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestRunCountsEveryIO(t *testing.T) {
	_, url := serve(t)
	var progress bytes.Buffer
	r, err := bench.Run(t.Context(), bench.Config{URLs: []string{url}, Sessions: 2, Workload: workload(t, "randrw50:4k:8"),
		Count: 2000, FlushEvery: 100, FUA: 0.1, Prefill: true, Progress: &progress})
	if err != nil {
		t.Fatal(err)
	}
	if r.IOs != 2000 || r.Read.N+r.Write.N != 2000 || r.Errors != 0 || r.Sessions != 2 || r.Read.N < 800 || r.Flush.N == 0 {
		t.Fatalf("%+v", r)
	}
	if r.Read.P50 <= 0 || r.Read.P50 > r.Read.P99 || r.Read.P9999 > r.Read.Max || r.LongestGap < r.Read.Max/100 {
		t.Fatalf("%+v", r.Read)
	}
	var out bytes.Buffer
	r.Print(&out)
	if !strings.Contains(out.String(), "randrw50:4K:8") {
		t.Fatal(out.String())
	}
}

func TestVerifyFindsAWrongBlock(t *testing.T) {
	_, url := serve(t)
	log := filepath.Join(t.TempDir(), "log")
	cfg := bench.Config{URLs: []string{url, url}, SameUnit: true, Workload: workload(t, "randrw30:8k:8"), Count: 3000, FlushEvery: 50, Verify: true, LogFile: log,
		Size: 1 << 20} // small, so that every block of it is written for certain
	r, err := bench.Run(t.Context(), cfg)
	if err != nil || r.Verified == 0 || r.Violated != 0 {
		t.Fatalf("%v %+v", err, r)
	}
	l, err := history.OpenLog(log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx := t.Context()
	s, err := initiator.Dial(ctx, urlConfig(t, url))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(ctx)
	disk, err := initiator.OpenDisk(ctx, s, 0)
	if err != nil {
		t.Fatal(err)
	}
	res, err := l.Check(ctx, disk, history.Acked)
	if err != nil || res.Violations != 0 || res.Checked == 0 {
		t.Fatalf("%v %+v", err, res)
	}
	if err := disk.WriteAt(ctx, make([]byte, 512), 5*4096+1024, false); err != nil {
		t.Fatal(err)
	}
	res, err = l.Check(ctx, disk, history.Acked)
	if err != nil || res.Violations != 1 || res.First.Block != 5 || res.First.Kind != "torn" {
		t.Fatalf("%v %+v %+v", err, res, res.First)
	}
}

func urlConfig(t *testing.T, url string) initiator.Config {
	u, err := initiator.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return u.Config()
}

// TestLyingTarget: a target that acknowledges writes and drops some is found out.
func TestLyingTarget(t *testing.T) {
	_, url := serve(t)
	lie := 0
	hooks := initiator.Hooks{Out: func(_ uint16, p *initiator.PDU) initiator.Action {
		if p.BHS.Op() == initiator.OpSCSICommand && p.BHS[32] == 0x8a {
			if lie++; lie%10 == 0 {
				p.BHS[41] ^= 8 // the low byte of the LBA: the block lands beside its place
			}
		}
		return initiator.Action{}
	}}
	r, err := bench.Run(t.Context(), bench.Config{URLs: []string{url}, Workload: workload(t, "randwrite:4k:4"), Count: 500, Verify: true,
		Initiator: initiator.Config{Hooks: hooks}})
	if !errors.Is(err, bench.ErrViolation) || r.Violation == nil {
		t.Fatalf("%v %+v", err, r)
	}
}

func TestErrorsEndTheRun(t *testing.T) {
	d, url := serve(t)
	d.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error { return errors.New("broken") })
	r, err := bench.Run(t.Context(), bench.Config{URLs: []string{url}, Workload: workload(t, "read:4k:1"), Count: 100})
	if err == nil || r.Errors == 0 || r.IOs != 0 || r.FirstError == "" {
		t.Fatalf("broken disk: %v %+v", err, r)
	}
	d.SetFault(nil)
	if _, err := bench.Run(t.Context(), bench.Config{URLs: []string{url}, Workload: workload(t, "read:4k:1")}); err == nil {
		t.Fatal("neither a run time nor a count, and no error")
	}
	if _, err := bench.Run(t.Context(), bench.Config{URLs: []string{"iscsi://u%geheim@127.0.0.1:1/x"}, Workload: workload(t, "read:4k:1"), Count: 1}); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Fatalf("refused connection: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n atomic.Int64
	d.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error {
		if n.Add(1) == 20 {
			cancel()
		}
		return nil
	})
	began := time.Now()
	r, err = bench.Run(ctx, bench.Config{URLs: []string{url}, Workload: workload(t, "read:4k:1"), Runtime: time.Hour, Rate: 1000})
	if most := 150 + 1000*time.Since(began).Seconds(); err != nil || float64(r.IOs) > most {
		t.Fatalf("interrupted run: %v %+v", err, r)
	}
}

func TestCompare(t *testing.T) {
	_, a := serve(t)
	_, b := serve(t)
	var progress bytes.Buffer
	cs, err := bench.Compare(t.Context(), bench.CompareConfig{A: []string{a}, B: []string{b}, PidsA: []int{os.Getpid()}, PidsB: []int{os.Getpid()},
		Workloads: []bench.Workload{workload(t, "randread:4k:4"), workload(t, "write:64k:2")}, Rounds: 3,
		Load: bench.Config{Count: 200, Prefill: true, Progress: &progress}})
	if err != nil {
		t.Fatal(err)
	}
	if len(cs) != 2 || len(cs[0].A.IOPS.All) != 3 || cs[1].B.ServerCPU == nil || cs[0].RatioIOPS <= 0 {
		t.Fatalf("%+v", cs)
	}
	order := ""
	for line := range strings.Lines(progress.String()) {
		if f := strings.Fields(line); f[0] == "randread:4K:4" {
			order += f[3]
		}
	}
	if order != "ABBAAB" {
		t.Fatalf("rounds went %s", order)
	}
	bench.PrintComparisons(&progress, cs)
}

// The region is written before each run that writes, and not before others.
func TestComparePreconditions(t *testing.T) {
	var urls []string
	var written [2]atomic.Int64
	for i := range written {
		d, url := serve(t)
		d.SetFault(func(op iscsitest.Op, _ scsi.Request, _ int64, n int) error {
			if op == iscsitest.OpWrite {
				written[i].Add(int64(n))
			}
			return nil
		})
		urls = append(urls, url)
	}
	const region, count, size, rounds = 1 << 20, 3, 4 << 10, 2
	_, err := bench.Compare(t.Context(), bench.CompareConfig{A: urls[:1], B: urls[1:], Workloads: []bench.Workload{workload(t, "randread:4k:1"), workload(t, "write:4k:1")},
		Rounds: rounds, Precondition: true, Load: bench.Config{Count: count, Size: region}})
	for i := range written {
		if n := written[i].Load(); err != nil || n != rounds*(region+count*size) {
			t.Errorf("%d bytes were written to %d, want %d; %v", n, i, rounds*(region+count*size), err)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h bench.Histogram
	var all []time.Duration
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		d := time.Duration(rng.ExpFloat64() * 1e6)
		all = append(all, d)
		h.Record(d)
	}
	slices.Sort(all)
	for _, q := range []float64{.5, .9, .99, .999, .9999, 1} {
		want, got := all[int(math.Ceil(q*float64(len(all))))-1], h.Quantile(q)
		if d := float64(got)/float64(want) - 1; d < -0.02 || d > 0.02 {
			t.Errorf("quantile %v is %v, exactly %v", q, got, want)
		}
	}
	h.Record(1 << 50)
	if h.Max() != 1<<50 || h.Quantile(1) != h.Max() && h.Quantile(1) < 1<<39 {
		t.Fatalf("max %v, quantile 1 %v", h.Max(), h.Quantile(1))
	}
	if n := testing.AllocsPerRun(100, func() { h.Record(12345) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestParseWorkload(t *testing.T) {
	for _, s := range []string{"randread:4K:32", "write:1M:4", "randrw70:8K:16", "read:512:1"} {
		if w, err := bench.ParseWorkload(s); err != nil || w.String() != s {
			t.Errorf("%s is %s, %v", s, w, err)
		}
	}
	for _, s := range []string{"", "read", "read:4k", "read:4k:0", "scan:4k:1", "rw101:4k:1", "read:x:1", "read:1G:1"} {
		if w, err := bench.ParseWorkload(s); err == nil {
			t.Errorf("%q is %s", s, w)
		}
	}
}

// TestEndsThoughTheTargetWithholdsAnswers: neither the end of the run time nor an interruption waits for a target that
// does not answer, also not one that does not even answer a logout; what was measured until then is said.
func TestEndsThoughTheTargetWithholdsAnswers(t *testing.T) {
	const enough = time.Minute // an end that waits for the target never comes: it is for a loaded machine
	for _, x := range []struct {
		name    string
		config  bench.Config
		stopped bool
	}{
		{"run time", bench.Config{Workload: workload(t, "randrw50:4k:8"), Runtime: 50 * time.Millisecond, FlushEvery: 4}, false},
		{"ramp and run time", bench.Config{Workload: workload(t, "randwrite:4k:8"), Ramp: 20 * time.Millisecond, Runtime: 50 * time.Millisecond}, false},
		{"interruption", bench.Config{Workload: workload(t, "randread:4k:8"), Runtime: time.Hour}, true},
		{"interruption while verifying", bench.Config{Workload: workload(t, "randrw50:4k:8"), Count: 1 << 40, Verify: true}, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			d, url := serve(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cfg := x.config
			cfg.URLs = []string{url, url}
			cfg.SameUnit = true
			// The first hundred I/Os are answered, then none.
			var n atomic.Int64
			held := make(chan struct{})
			defer close(held)
			d.SetFault(func(iscsitest.Op, scsi.Request, int64, int) error {
				if i := n.Add(1); i >= 100 {
					if i == 100 && x.stopped {
						cancel()
					}
					<-held
				}
				return nil
			})
			began := time.Now()
			r, err := bench.Run(ctx, cfg)
			for !x.stopped && n.Load() < 100 && cfg.Runtime < enough/2 { // a machine that stalls was not done with what is answered
				cfg.Runtime *= 4
				n.Store(0)
				began = time.Now()
				r, err = bench.Run(ctx, cfg)
			}
			if took := time.Since(began); took > enough {
				t.Errorf("it took %s", took)
			}
			if !errors.Is(err, bench.ErrUnanswered) || r == nil || r.Unanswered == 0 || r.Errors != 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			if x.config.Ramp == 0 && r.IOs == 0 {
				t.Errorf("nothing was measured: %+v", r)
			}
			var out bytes.Buffer
			r.Print(&out)
			if !strings.Contains(out.String(), "unanswered at the end") {
				t.Error(out.String())
			}
		})
	}
}

// TestRateDoesNotHoldUpTheEnd: slots that wait for their turn end with the run.
func TestRateDoesNotHoldUpTheEnd(t *testing.T) {
	_, url := serve(t)
	// The first I/O is at once, unless the machine stalls; at this rate 32 take half a minute.
	for runtime := 50 * time.Millisecond; ; runtime *= 4 {
		r, err := bench.Run(t.Context(), bench.Config{URLs: []string{url}, Workload: workload(t, "randread:4k:32"), Rate: 1, Runtime: runtime})
		if err == nil && r.IOs == 0 && runtime < 10*time.Second {
			continue
		}
		if err != nil || r.IOs == 0 || r.Duration > runtime.Seconds()+20 {
			t.Fatalf("%v, %+v", err, r)
		}
		return
	}
}
