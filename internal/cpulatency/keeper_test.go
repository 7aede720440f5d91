package cpulatency

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var p pace
	for i, c := range []struct {
		n          int
		hold, rest bool
	}{
		{1, false, true},
		{enough, true, false},
		{0, true, false}, {0, true, false}, {enough, true, false}, // a gap is no end
		{0, true, false}, {1, true, false}, {0, true, false}, {0, false, true},
		{enough - 1, false, true},
	} {
		p.rest = false
		if p.step(c.n); p.hold != c.hold || p.rest != c.rest {
			t.Fatalf("step %d, %d requests: %+v", i, c.n, p)
		}
	}
}

func TestBoundFor(t *testing.T) {
	for _, c := range []struct {
		text string
		want int32
	}{
		{"processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n", 0},
		{"flags\t\t: fpu hypervisor\n", 0},
		{"flags\t\t: fpu vme nohypervisor lahf_lm\n", 2},
		{"processor\t: 0\nFeatures\t: fp asimd\n", 2},
	} {
		if got := boundFor([]byte(c.text), nil); got != c.want {
			t.Errorf("%q: %d", c.text, got)
		}
	}
	if boundFor(nil, errors.New("none")) != 2 {
		t.Error("without cpuinfo")
	}
}

// TestRun: requests that follow closely hold the device, and it is given back after them, again and again.
func TestRun(t *testing.T) {
	device := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := New(slog.New(slog.DiscardHandler), device)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for range 3 {
		for end := time.Now().Add(time.Minute); !k.Held(); time.Sleep(100 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatal("not held")
			}
			k.Busy()
		}
		for end := time.Now().Add(time.Minute); k.Held(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("held without requests")
			}
		}
	}
	if b, err := os.ReadFile(device); err != nil || len(b) != 4 {
		t.Fatalf("the device was told %x, %v", b, err)
	}
	k.Busy()
	cancel()
	wg.Wait()
	if k.Held() {
		t.Fatal("held after the end")
	}
}

// TestRefused: without the device the keeper ends, and nothing waits for it.
func TestRefused(t *testing.T) {
	k := New(slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "none"))
	done := make(chan struct{})
	go func() { defer close(done); k.Run(t.Context()) }()
	for {
		select {
		case <-done:
			for range 100 {
				k.Busy()
			}
			var none *Keeper
			none.Busy()
			return
		default:
			k.Busy()
			time.Sleep(10 * time.Microsecond)
		}
	}
}

func BenchmarkBusy(b *testing.B) {
	k := New(slog.New(slog.DiscardHandler), "")
	for b.Loop() {
		k.Busy()
	}
}
