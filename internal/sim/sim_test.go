package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"testing/cryptotest"

	"dozo/internal/mutant"
)

// runSeed runs a seed with all that can be random drawn from it.
func runSeed(t *testing.T, seed uint64, out *bytes.Buffer) Result {
	cryptotest.SetGlobalRandom(t, seed)
	plan := NewPlan(seed)
	seedRuntime(seed)
	if out == nil {
		return Run(t, plan, nil)
	}
	return Run(t, plan, out)
}

// A few seeds, for the desk. Many are run by `make sim`.
func TestSeeds(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			plan := NewPlan(seed)
			t.Logf("again with make sim SEED=%d SEEDS=1: %s", seed, plan.String())
			r := runSeed(t, seed, nil)
			for _, b := range r.Broken {
				t.Error(b)
			}
			if n := r.Stats.Count["client: commands answered"]; n < 1000 {
				t.Errorf("only %d commands were answered", n)
			}
		})
	}
}

// TestBatch is what package batch runs: SIM_COUNT seeds from SIM_FIRST, each with a line of JSON.
func TestBatch(t *testing.T) {
	count, err := strconv.ParseUint(os.Getenv("SIM_COUNT"), 10, 64)
	if err != nil {
		t.Skip("run by make sim")
	}
	first, err := strconv.ParseUint(os.Getenv("SIM_FIRST"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	// No collection within a seed: it would come at another moment each time.
	debug.SetGCPercent(-1)
	trace := os.Getenv("SIM_TRACE")
	for seed := first; seed < first+count; seed++ {
		runtime.GC()
		var out *bytes.Buffer
		if trace != "" {
			out = new(bytes.Buffer)
		}
		r := runSeed(t, seed, out)
		if out != nil {
			if err := os.WriteFile(trace, out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		plan := NewPlan(seed)
		line, err := json.Marshal(struct {
			Seed     uint64
			Broken   []string
			Hash     string
			Count    map[string]int
			Messages uint64
			Seconds  float64
			Plan     string
		}{seed, r.Broken, fmt.Sprintf("%016x", r.Hash), r.Stats.Count, r.Stats.Messages, r.Time.Seconds(), plan.String()})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\n%s\n", line)
	}
}

// TestListSeeds prints for package batch which seeds a spread batch has: SIM_COUNT from the number SIM_FIRST on.
func TestListSeeds(t *testing.T) {
	count, err := strconv.ParseUint(os.Getenv("SIM_COUNT"), 10, 64)
	if err != nil {
		count = 1
	}
	first, _ := strconv.ParseUint(os.Getenv("SIM_FIRST"), 10, 64)
	for n := first; n < first+count; n++ {
		fmt.Printf("seed %d\n", Spread(n))
	}
}

// Every focus has its share of a spread batch, and no seed comes twice.
func TestSpread(t *testing.T) {
	seen, foci := map[uint64]bool{}, map[uint64]int{}
	for n := range uint64(2000) {
		seed := Spread(n)
		if seen[seed] {
			t.Fatalf("seed %d comes twice", seed)
		}
		seen[seed] = true
		foci[seed/FocusStep]++
	}
	for f := range siteFocuses {
		if x := &siteFocuses[f]; (x.kinds != nil || x.recipe != nil) != (foci[uint64(FocusSites+f)] > 0) {
			t.Errorf("%d of the seeds from %d on", foci[uint64(FocusSites+f)], (FocusSites+f)*FocusStep)
		}
	}
	if foci[0] < 300 || foci[1] == 0 || foci[6] == 0 {
		t.Errorf("%d that draw from all faults, %d and %d of a focus", foci[0], foci[1], foci[6])
	}
}

// TestListMutants prints what package batch wants to know.
func TestListMutants(t *testing.T) {
	for _, m := range mutant.All() {
		fmt.Printf("mutant %s\t%d\t%s\n", m.Name, m.Focus*FocusStep, m.Clause)
	}
}
