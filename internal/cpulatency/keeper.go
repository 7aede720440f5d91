package cpulatency

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Device is where the kernel takes the request.
const Device = "/dev/cpu_dma_latency"

// When the processors are kept awake: from 600 requests a second on. With fewer, idle processors would poll for more than a millisecond to
// spare each request some tens of microseconds.
const (
	window  = 5 * time.Millisecond
	enough  = 3 // requests in a window
	patient = 4 // windows with fewer, until the processors may sleep again
)

// Keeper makes the request while it is worth it. Nil is one that never does.
type Keeper struct {
	log    *slog.Logger
	device string
	bound  int32 // microseconds

	requests atomic.Uint64
	resting  atomic.Bool // Run waits for wake
	wake     chan struct{}
	held     atomic.Bool
}

// New makes a keeper of a device that takes requests as Device does.
func New(log *slog.Logger, device string) *Keeper {
	return &Keeper{log: log, device: device, bound: boundFor(os.ReadFile("/proc/cpuinfo")), wake: make(chan struct{}, 1)}
}

// boundFor chooses the latency in µs that is asked for: on a virtual machine none at all, as any sleep goes to the host;
// elsewhere the lightest sleep is allowed, which takes about 1 µs to leave and spares most of the power.
func boundFor(cpuinfo []byte, err error) int32 {
	if err != nil {
		return 2
	}
	for line := range strings.Lines(string(cpuinfo)) {
		if key, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			if strings.Contains(flags+" ", " hypervisor ") || strings.HasSuffix(strings.TrimSpace(flags), " hypervisor") {
				return 0
			}
			return 2
		}
	}
	return 2
}

// Busy notes a request.
func (k *Keeper) Busy() {
	if k == nil {
		return
	}
	k.requests.Add(1)
	if k.resting.Load() && k.resting.CompareAndSwap(true, false) {
		k.wake <- struct{}{}
	}
}

// Held reports whether the processors are kept awake now.
func (k *Keeper) Held() bool { return k != nil && k.held.Load() }

// Run keeps the processors awake when it is time to, until ctx ends or the kernel does not take the request.
func (k *Keeper) Run(ctx context.Context) {
	var device *os.File
	release := func() {
		if device != nil {
			_ = device.Close()
			device = nil
			k.held.Store(false)
		}
	}
	defer release()
	var p pace
	timer := time.NewTimer(window)
	timer.Stop()
	seen := k.requests.Load()
	for {
		// One that comes in between is counted and does not wake: it is seen here.
		k.resting.Store(true)
		if n := k.requests.Load(); n == seen || !k.resting.CompareAndSwap(true, false) {
			select {
			case <-ctx.Done():
				return
			case <-k.wake:
			}
		}
		for p.rest = false; !p.rest; {
			seen = k.requests.Load()
			timer.Reset(window)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			p.step(int(k.requests.Load() - seen))
			switch {
			case p.hold && device == nil:
				var err error
				if device, err = request(k.device, k.bound); err != nil {
					k.log.Info("processors are not kept awake: answers at low depth take longer", "err", err)
					return
				}
				k.held.Store(true)
			case !p.hold:
				release()
			}
		}
		seen = k.requests.Load()
	}
}

// request asks the kernel for a latency of at most so many µs, for as long as the file is open: four bytes, in the machine's order.
func request(device string, bound int32) (*os.File, error) {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(binary.NativeEndian.AppendUint32(nil, uint32(bound))); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// pace decides, window after window.
type pace struct {
	hold, rest bool
	few        int // windows in a row
}

// step takes the number of requests of a window.
func (p *pace) step(n int) {
	switch {
	case n >= enough:
		p.hold, p.few = true, 0
	case p.hold && p.few+1 < patient:
		p.few++
	default:
		p.hold, p.rest, p.few = false, true, 0
	}
}
