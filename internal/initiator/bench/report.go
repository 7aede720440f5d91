package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// selfCPU is the processor time of this process, all threads, user and system.
func selfCPU() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// watch ends the ramp and the run, and prints progress; it returns when the run is halted. That the slots look at
// the clock is not enough for the end: they do so only when an I/O is answered.
func (r *run) watch() {
	var over <-chan time.Time
	begins := func() {
		if r.cfg.Runtime > 0 {
			over = time.After(r.cfg.Runtime)
		}
	}
	if r.measure.Load() {
		begins()
	}
	var ramp <-chan time.Time
	if r.cfg.Ramp > 0 {
		t := time.NewTimer(r.cfg.Ramp)
		defer t.Stop()
		ramp = t.C
	}
	var tick <-chan time.Time
	if r.cfg.Progress != nil {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		tick = t.C
	}
	begun := time.Now()
	last, lastAt := uint64(0), begun
	for {
		select {
		case <-r.stopped:
			return
		case <-ramp:
			r.begin()
			begins()
		case <-over:
			r.halt()
			return
		case now := <-tick:
			n := r.ios.Load()
			rate := float64(n-last) / now.Sub(lastAt).Seconds()
			fmt.Fprintf(r.cfg.Progress, "%4.0fs  %9.0f IOPS  %8.1f MB/s  longest stall %s  errors %d  reconnects %d\n",
				now.Sub(begun).Seconds(), rate, rate*float64(r.cfg.BlockSize)/1e6,
				time.Duration(r.gap.Load()).Round(10*time.Microsecond), r.errs.Load(), r.reconnects())
			last, lastAt = n, now
		}
	}
}

func (r *run) reconnects() int {
	n := 0
	for _, j := range r.jobs {
		n += j.d.S.Stats().Reconnects
	}
	return n
}

func (r *run) result(took, cpu time.Duration) *Result {
	c := &r.cfg
	res := &Result{
		Workload: c.Workload.String(), Sessions: len(r.jobs),
		Duration: took.Seconds(), IOs: r.ios.Load(),
		Read: r.read.Summary(), Write: r.write.Summary(), Flush: r.flush.Summary(),
		Errors: r.errs.Load(), Unanswered: r.lost.Load(), Reconnects: r.reconnects(), CPU: cpu.Seconds(),
	}
	// A stall that lasts until the end has no I/O after it.
	res.LongestGap = us(time.Duration(max(r.gap.Load(), int64(took)-r.last.Load())))
	for _, j := range r.jobs {
		res.Retries += j.d.S.Stats().BusyRetries
	}
	for _, u := range c.URLs {
		res.URLs = append(res.URLs, withoutSecret(u))
	}
	if r.firstErr != nil {
		res.FirstError = r.firstErr.Error()
	}
	if took > 0 {
		res.IOPS = float64(res.IOs) / took.Seconds()
		res.MBps = res.IOPS * float64(c.BlockSize) / 1e6
	}
	if res.IOs > 0 {
		res.CPUper100k = res.CPU / float64(res.IOs) * 1e5
	}
	return res
}

// Print writes the result for people.
func (r *Result) Print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d session(s), %.1f s: %d I/Os, %.0f IOPS, %.1f MB/s\n", r.Workload, r.Sessions, r.Duration, r.IOs, r.IOPS, r.MBps)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "us\tn\tmean\tp50\tp90\tp99\tp99.9\tp99.99\tmax\t\n")
	for _, x := range []struct {
		name string
		l    *Latency
	}{{"read", r.Read}, {"write", r.Write}, {"flush", r.Flush}} {
		if l := x.l; l != nil {
			fmt.Fprintf(tw, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", x.name, l.N, l.Mean, l.P50, l.P90, l.P99, l.P999, l.P9999, l.Max)
		}
	}
	tw.Flush()
	fmt.Fprintf(w, "longest stall %.1f ms; errors %d; reconnects %d; retries %d; client CPU %.2f s (%.2f s per 100,000)\n",
		r.LongestGap/1e3, r.Errors, r.Reconnects, r.Retries, r.CPU, r.CPUper100k)
	if r.Unanswered > 0 {
		fmt.Fprintf(w, "unanswered at the end: %d I/Os\n", r.Unanswered)
	}
	if r.FirstError != "" {
		fmt.Fprintf(w, "first error: %s\n", r.FirstError)
	}
	if r.Verified > 0 {
		fmt.Fprintf(w, "verified %d blocks, %d wrong\n", r.Verified, r.Violated)
	}
	if r.Violation != nil {
		fmt.Fprintf(w, "first wrong block: %v\n", r.Violation)
	}
}
