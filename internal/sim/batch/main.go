package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// options are the command's.
type options struct {
	first, seeds uint64
	procs        int
	trace        string
	keep         int
	mutants      string
	most         uint64
	replay       uint64
	limit        time.Duration
	patience     time.Duration
	pgo          string
	spread       bool
}

func main() {
	var o options
	flag.Uint64Var(&o.first, "first", 1, "the first seed")
	flag.Uint64Var(&o.seeds, "seeds", 100, "how many seeds")
	flag.IntVar(&o.procs, "procs", runtime.NumCPU(), "processes at a time")
	flag.StringVar(&o.trace, "trace", "", "write the trace of the first seed, the only one that is run, to this `file`")
	flag.IntVar(&o.keep, "failures", 10, "stop after that many seeds that fail")
	flag.StringVar(&o.mutants, "mutants", "", "run with mutants of the product, which must be found: all, or `names` with commas between them")
	flag.Uint64Var(&o.most, "most", 500, "seeds within which a mutant must be found")
	flag.Uint64Var(&o.replay, "replay", 0, "run that many of the seeds a second time, in other processes, and compare")
	flag.DurationVar(&o.limit, "limit", 0, "begin no seed after that time")
	flag.DurationVar(&o.patience, "patience", 2*time.Minute, "a seed that takes longer hangs")
	flag.BoolVar(&o.spread, "spread", false, "take seeds of every focus in turn: -first and -seeds count in the sequence of those")
	flag.StringVar(&o.pgo, "pgo", "off", "a profile of such runs for the compiler, for long batches: the `file` that go tool pprof -proto makes of several -test.cpuprofile")
	flag.Parse()
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

// outcome is what the test process says of a seed, a JSON object on a line of its own.
type outcome struct {
	Seed     uint64
	Broken   []string
	Hash     string
	Count    map[string]int
	Messages uint64
	Seconds  float64 // simulated
	Plan     string
	Killed   string // not from the process: why it ended within the seed
}

func run(o *options) error {
	bin, clean, err := build(o)
	if err != nil {
		return err
	}
	defer clean()
	switch {
	case o.mutants != "":
		return runMutants(o, bin)
	case o.trace != "":
		r, err := runSeed(bin, o.first, os.Getenv("DOZO_MUTANT"), o.trace, o.patience)
		if err == nil {
			fmt.Println(r.Plan)
			show(os.Stdout, r)
		}
		return err
	}
	return runSeeds(o, bin)
}

// build makes the test binary of package sim with the patched runtime.
func build(o *options) (bin string, clean func(), err error) {
	dir, err := os.MkdirTemp("", "dozo-sim-")
	if err != nil {
		return "", nil, err
	}
	clean = func() { _ = os.RemoveAll(dir) }
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = dir
	}
	// At one place always: the go command's cache knows files by their names.
	patched := filepath.Join(cache, "dozo-sim-overlay")
	if err := os.MkdirAll(patched, 0o700); err != nil {
		clean()
		return "", nil, err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		clean()
		return "", nil, fmt.Errorf("go env: %w", err)
	}
	overlay, err := writeOverlay(strings.TrimSpace(string(root)), patched)
	if err != nil {
		clean()
		return "", nil, err
	}
	bin = filepath.Join(dir, "sim.test")
	tags := "exact"
	if o.mutants != "" {
		tags += ",mutants"
	}
	cmd := exec.Command("go", "test", "-c", "-overlay", overlay, "-pgo", o.pgo, "-tags", tags, "-o", bin, "dozo/internal/sim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=norandomizedheapbase64")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		clean()
		return "", nil, fmt.Errorf("build: %w", err)
	}
	fmt.Printf("built in %v\n", time.Since(began).Round(time.Second))
	return bin, clean, nil
}

// runSeed runs a seed in a process of its own: what a process did before has its traces, the addresses of memory among
// them. A seed that ends the process, or hangs, is an outcome too.
func runSeed(bin string, seed uint64, mutant, trace string, patience time.Duration) (*outcome, error) {
	cmd := exec.Command(bin, "-test.run", "^TestBatch$", "-test.timeout", "0")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", fmt.Sprint("SIM_FIRST=", seed), "SIM_COUNT=1", "DOZO_MUTANT="+mutant,
		"SIM_TRACE="+trace, "GOTRACEBACK=all")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for the batch: a seed that has begun ends
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	hangs := time.AfterFunc(patience, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	err := cmd.Wait()
	hangs.Stop()
	for line := range strings.Lines(out.String()) {
		var x outcome
		if strings.HasPrefix(line, `{"Seed"`) && json.Unmarshal([]byte(line), &x) == nil {
			return &x, nil
		}
	}
	text := out.String()
	if len(text) > 64<<10 {
		text = text[:64<<10]
	}
	return &outcome{Seed: seed, Killed: text, Broken: []string{fmt.Sprintf("the process ended: %s (%v)", firstLine(text), err)}}, nil
}

func firstLine(s string) string {
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "SIGQUIT") {
			return line
		}
	}
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

func show(w io.Writer, r *outcome) {
	for _, b := range r.Broken {
		fmt.Fprintf(w, "seed %d: %s\n", r.Seed, b)
	}
	if len(r.Broken) > 0 && r.Plan != "" {
		fmt.Fprintf(w, "  %s\n", r.Plan)
	}
	if r.Killed != "" {
		fmt.Fprintf(w, "%s\n", r.Killed)
	}
}

// list gives the seeds of a batch.
func (o *options) list(bin string) ([]uint64, error) {
	list := make([]uint64, 0, o.seeds)
	if !o.spread {
		for i := range o.seeds {
			list = append(list, o.first+i)
		}
		return list, nil
	}
	cmd := exec.Command(bin, "-test.run", "^TestListSeeds$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprint("SIM_FIRST=", o.first), fmt.Sprint("SIM_COUNT=", o.seeds))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("list of seeds: %w\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		var seed uint64
		if _, err := fmt.Sscanf(line, "seed %d", &seed); err == nil {
			list = append(list, seed)
		}
	}
	if uint64(len(list)) != o.seeds {
		return nil, fmt.Errorf("list of seeds: %d of %d", len(list), o.seeds)
	}
	return list, nil
}

// progressEvery is how often a long batch says how far it is.
const progressEvery = time.Minute

// runSeeds runs a batch and sums it up: what was run so far, if it is interrupted.
func runSeeds(o *options, bin string) error {
	began := time.Now()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var mu sync.Mutex
	count := map[string]int{}
	hashes := map[uint64]string{}
	var done, failed int
	var messages uint64
	var simulated float64
	list, err := o.list(bin)
	if err != nil {
		return err
	}
	next := 0
	said := began
	var wg sync.WaitGroup
	var trouble error
	for range o.procs {
		wg.Go(func() {
			for {
				mu.Lock()
				stop := next >= len(list) || failed >= o.keep || trouble != nil || ctx.Err() != nil || o.limit > 0 && time.Since(began) > o.limit
				if stop {
					mu.Unlock()
					return
				}
				seed := list[next]
				next++
				mu.Unlock()
				r, err := runSeed(bin, seed, "", "", o.patience)
				mu.Lock()
				if err != nil {
					trouble = err
					mu.Unlock()
					return
				}
				done++
				hashes[r.Seed] = r.Hash
				messages += r.Messages
				simulated += r.Seconds
				for k, n := range r.Count {
					count[k] += n
				}
				if len(r.Broken) > 0 {
					failed++
					show(os.Stdout, r)
				}
				if now := time.Now(); now.Sub(said) > progressEvery {
					said = now
					fmt.Fprintf(os.Stderr, "%d of %d seeds, %d failed, %v\n", done, o.seeds, failed, now.Sub(began).Round(time.Second))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if trouble != nil {
		return trouble
	}
	var keys []string
	for k := range count {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Printf("%10d  %s\n", count[k], k)
	}
	fmt.Printf("%d seeds from %d in %v with %d processes: %.2f seeds a second, %.1f simulated hours, %d messages\n", done, o.first, took.Round(time.Second), o.procs,
		float64(done)/took.Seconds(), simulated/3600, messages)
	differ := 0
	if o.replay > 0 && done > 0 {
		again := 0
		for _, seed := range list[:min(o.replay, o.seeds)] {
			was, ok := hashes[seed]
			if !ok {
				continue
			}
			r, err := runSeed(bin, seed, "", "", o.patience)
			if err != nil {
				return err
			}
			if again++; r.Hash != was {
				differ++
				fmt.Printf("seed %d: the second run differs: %s, was %s\n", seed, r.Hash, was)
			}
		}
		fmt.Printf("%d seeds run again in another process: %d differ\n", again, differ)
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d seeds failed; one again: make sim SEED=n SEEDS=1, with TRACE=file for what happened", failed)
	case differ > 0:
		return errors.New("seeds do not replay")
	}
	return nil
}
