package sim

import (
	"io"
	"os"
	"testing"
	"testing/cryptotest"
	"time"
)

// scenario is a plan with the given faults and nothing else, of sites with the given numbers of nodes.
func scenario(t *testing.T, copies int, sites []int, faults ...Fault) Result {
	t.Helper()
	cryptotest.SetGlobalRandom(t, 7)
	p := NewPlan(7)
	p.Sites, p.Copies, p.Faults, p.Length, p.Heal = sites, copies, faults, 40*time.Second, 32*time.Second
	var out io.Writer
	if name := os.Getenv("SIM_TRACE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out = f
	}
	r := Run(t, p, out)
	for _, b := range r.Broken {
		t.Error(b)
	}
	return r
}

// A power cut of a whole site makes the takeover after it uncertain (R4). It is not to make those after that so: what it
// left of segments that were opened ahead says nothing any more once an owner has said where the history ends.
func TestOneBlackoutMakesOneTakeoverUncertain(t *testing.T) {
	r := scenario(t, 1, []int{2, 2}, Fault{Kind: FaultBlackout, At: 8 * time.Second, For: 2 * time.Second, Owner: true},
		Fault{Kind: FaultKill, At: 22 * time.Second, For: 4 * time.Second, Owner: true})
	if n := len(r.Epochs); n < 3 || r.Epochs[1].Proven {
		t.Fatalf("not what the test is about: %+v", r.Epochs)
	}
	if last := r.Epochs[len(r.Epochs)-1]; last.At < 22*time.Second || !last.Proven {
		t.Errorf("%+v", r.Epochs)
	}
}
