package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// runMutants runs each mutant until a seed fails, and prints a table.
func runMutants(o *options, bin string) error {
	out, err := exec.Command(bin, "-test.run", "^TestListMutants$", "-test.v").CombinedOutput()
	if err != nil {
		return fmt.Errorf("list of mutants: %w\n%s", err, out)
	}
	type row struct {
		name, clause string
		first, seeds uint64
		found        *outcome
		took         time.Duration
	}
	var rows []*row
	for line := range strings.Lines(string(out)) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "mutant "), "\t")
		from, clause, ok := strings.Cut(rest, "\t")
		first, err := strconv.ParseUint(from, 10, 64)
		if ok && err == nil && strings.HasPrefix(line, "mutant ") && (o.mutants == "all" || slices.Contains(strings.Split(o.mutants, ","), name)) {
			rows = append(rows, &row{name: name, clause: clause, first: first + o.first})
		}
	}
	if len(rows) == 0 {
		return fmt.Errorf("no mutant is called %q", o.mutants)
	}
	var known sync.Map // seed -> func() bool
	sound := func(seed uint64) bool {
		f, _ := known.LoadOrStore(seed, sync.OnceValue(func() bool {
			x, err := runSeed(bin, seed, "", "", o.patience)
			return err == nil && len(x.Broken) == 0
		}))
		return f.(func() bool)()
	}
	work := make(chan *row)
	var wg sync.WaitGroup
	var trouble error
	var mu sync.Mutex
	for range o.procs {
		wg.Go(func() {
			for r := range work {
				began := time.Now()
				var err error
				for seed := r.first; seed < r.first+o.most && r.found == nil && err == nil; seed++ {
					var x *outcome
					if !sound(seed) {
						continue // it would fail without the mutant too
					}
					if x, err = runSeed(bin, seed, r.name, "", o.patience); err == nil {
						r.seeds++
						if len(x.Broken) > 0 {
							r.found = x
						}
					}
				}
				r.took = time.Since(began)
				mu.Lock()
				if err != nil {
					trouble = err
				}
				what := "NOT FOUND"
				if r.found != nil {
					what = fmt.Sprintf("seed %d: %s", r.found.Seed, r.found.Broken[0])
				}
				fmt.Printf("%-28s %4d seeds %6.0f s  %s\n", r.name, r.seeds, r.took.Seconds(), what)
				mu.Unlock()
			}
		})
	}
	for _, r := range rows {
		work <- r
	}
	close(work)
	wg.Wait()
	if trouble != nil {
		return trouble
	}
	fmt.Printf("\n| mutant | what it leaves out | found by seed | as |\n| --- | --- | --- | --- |\n")
	missed := 0
	for _, r := range rows {
		by, as := fmt.Sprint("not within ", r.seeds), ""
		if r.found != nil {
			by, as = fmt.Sprint(r.found.Seed), r.found.Broken[0]
			if len(as) > 100 {
				as = as[:100] + "..."
			}
		} else {
			missed++
		}
		fmt.Printf("| %s | %s | %s | %s |\n", r.name, r.clause, by, as)
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d mutants were not found", missed, len(rows))
	}
	return nil
}
