package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

// A wait for a node that drains goes on as long as volumes leave it, and ends with a reason when nobody can take them, or none leaves.
func TestDrainWatch(t *testing.T) {
	left := func() []string { return []string{"web1", "web2"} }
	type look struct {
		after time.Duration
		r     *dozov1.DrainNodeResponse
	}
	some := func(n uint32) *dozov1.DrainNodeResponse { return &dozov1.DrainNodeResponse{Volumes: n} }
	stuck := &dozov1.DrainNodeResponse{Volumes: 5, Stuck: true}
	for _, x := range []struct {
		name  string
		looks []look
		want  error
		says  string
	}{
		{"volumes leave, slowly", []look{{0, some(5)}, {drainStill - 1, some(4)}, {drainStill - 1, some(3)}, {drainStill - 1, &dozov1.DrainNodeResponse{Done: true}}}, nil, ""},
		{"none leaves", []look{{0, some(5)}, {drainStill / 2, some(4)}, {drainStill, some(4)}}, api.ErrTimedOut, "4 volumes (web1, web2, ...)"},
		{"one comes and goes", []look{{0, some(2)}, {drainStill / 2, some(3)}, {drainStill / 2, some(2)}}, api.ErrTimedOut, "2 volumes (web1, web2)"},
		{"another server comes in time", []look{{0, stuck}, {drainStuck - 1, some(5)}, {1, stuck}, {drainStuck - 1, stuck}}, nil, ""},
		{"nobody can take them", []look{{0, some(5)}, {time.Second, stuck}, {drainStuck, stuck}}, api.ErrTooFew, "dozo volume move"},
	} {
		t.Run(x.name, func(t *testing.T) {
			var w drainWatch
			now, err := time.Unix(1000, 0), error(nil)
			for i, l := range x.looks {
				now = now.Add(l.after)
				if err = w.see(now, "n1", l.r, left); err != nil && i < len(x.looks)-1 {
					t.Fatalf("look %d: %v", i, err)
				}
			}
			if !errors.Is(err, x.want) || err != nil && !strings.Contains(err.Error(), x.says) {
				t.Errorf("%v, want %v that says %q", err, x.want, x.says)
			}
		})
	}
}
