package sim

import (
	"os"
	"strconv"
	"testing"
	"time"
)

func TestSeeds(t *testing.T) {
	first, n := uint64(1), uint64(3)
	if s := os.Getenv("SIM_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		n = 1
	}
	if s := os.Getenv("SIM_SEEDS"); s != "" {
		n, _ = strconv.ParseUint(s, 10, 64)
	}
	var all Stats
	began := time.Now()
	for seed := first; seed < first+n; seed++ {
		plan := NewPlan(seed)
		t.Log(plan.String())
		var r Result
		if os.Getenv("SIM_TRACE") != "" {
			f, err := os.Create(os.Getenv("SIM_TRACE"))
			if err != nil {
				t.Fatal(err)
			}
			r = Run(t, plan, f)
			f.Close()
		} else {
			r = Run(t, plan, nil)
		}
		for _, b := range r.Broken {
			t.Errorf("seed %d: %s", seed, b)
		}
		t.Logf("seed %d: %x %v simulated, %d messages", seed, r.Hash, r.Time, r.Stats.Messages)
		all.Add(&r.Stats)
	}
	t.Logf("%d seeds in %v\n%s", n, time.Since(began), all.String())
}
