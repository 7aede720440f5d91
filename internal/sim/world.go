package sim

import (
	"container/heap"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/ident"
)

// World is one simulated cluster with its clients, for the length of one seed.
type World struct {
	t     *testing.T
	plan  Plan
	start time.Time
	rng   *rand.Rand // the driver's and the set-up's own
	log   *slog.Logger
	trace *trace
	stats *Stats

	ctl   *control.Mem
	nodes []*Node
	net   network
	vol   control.VolumeSpec

	clients []*client
	hist    history
	chain   chain
	wg      sync.WaitGroup // of everything that the world has started
	over    chan struct{}  // closed when everything is to end
	quiet   chan struct{}  // closed when clients are to begin nothing more
	draws   atomic.Uint64

	clientCuts map[[2]int]int // client and node between which nothing passes; guarded by network.mu
	ended      bool           // no process may begin any more; guarded by network.mu
	ctlDown    int            // the driver's

	mu struct {
		sync.Mutex
		events eventHeap
		next   uint64
		target time.Duration // what the driver sleeps for
		broken []string      // what was found wrong
	}
	poke chan struct{}
}

// event is something that the driver makes happen. f must not wait.
type event struct {
	at  time.Duration
	key uint64 // orders what happens at one moment
	f   func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].key < h[j].key
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return e
}

// now is how long the world has been there.
func (w *World) now() time.Duration { return time.Since(w.start) }

// at has the driver call f at a moment, never before what is asked for from within f.
func (w *World) at(when time.Duration, f func()) {
	w.mu.Lock()
	w.mu.next++
	heap.Push(&w.mu.events, event{when, w.mu.next, f})
	early := when < w.mu.target
	w.mu.Unlock()
	if early {
		select {
		case w.poke <- struct{}{}:
		default:
		}
	}
}

// after is at, from now.
func (w *World) after(d time.Duration, f func()) { w.at(w.now()+d, f) }

// idle is how long the driver sleeps if nothing is to happen.
const idle = time.Hour

// drive makes events happen until the world is over.
func (w *World) drive() {
	t := time.NewTimer(idle)
	defer t.Stop()
	for {
		now := w.now()
		w.mu.Lock()
		var e event
		due := len(w.mu.events) > 0 && w.mu.events[0].at <= now
		wait := idle
		if due {
			e = heap.Pop(&w.mu.events).(event)
		} else if len(w.mu.events) > 0 {
			wait = w.mu.events[0].at - now
		}
		w.mu.target = now + wait
		w.mu.Unlock()
		if due {
			e.f()
			continue
		}
		t.Reset(wait)
		select {
		case <-t.C:
		case <-w.poke:
		case <-w.over:
			return
		}
	}
}

// fail notes that something is wrong; the run goes on to its end.
func (w *World) fail(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	w.tracef("FAIL %s", s)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mu.broken) < brokenMax {
		w.mu.broken = append(w.mu.broken, s)
	}
}

// brokenMax is how many findings of one seed are kept: the first says most.
const brokenMax = 8

func (w *World) failed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.mu.broken...)
}

// trace is what happened, as a running hash and, where wanted, as text.
type trace struct {
	mu  sync.Mutex
	sum uint64
	n   uint64
	out io.Writer
}

// add takes what happened: a few numbers, so that runs which nobody reads cost little.
func (t *trace) add(now time.Duration, kind string, a, b, c uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.sum ^ 14695981039346656037
	for _, x := range [...]uint64{uint64(now), uint64(len(kind)), a, b, c} {
		h = (h ^ x) * 1099511628211
		h ^= h >> 29
	}
	for i := range len(kind) {
		h = (h ^ uint64(kind[i])) * 1099511628211
	}
	t.sum = h
	t.n++
}

// tracef writes a line of the trace. It costs nothing where nobody reads.
func (w *World) tracef(format string, args ...any) {
	if w.trace.out == nil {
		return
	}
	w.trace.mu.Lock()
	defer w.trace.mu.Unlock()
	fmt.Fprintf(w.trace.out, "%12.6f %s\n", w.now().Seconds(), fmt.Sprintf(format, args...))
}

// logWriter is where the product's log goes if there is a trace.
type logWriter struct{ w *World }

func (l logWriter) Write(p []byte) (int, error) {
	l.w.trace.mu.Lock()
	defer l.w.trace.mu.Unlock()
	fmt.Fprintf(l.w.trace.out, "%12.6f log %s", l.w.now().Seconds(), p)
	return len(p), nil
}

// mix is a number from 0 to 1<<64-1 that depends on all of its arguments.
func mix(seed uint64, xs ...uint64) uint64 {
	h := seed + 0x9e3779b97f4a7c15
	for _, x := range xs {
		h ^= x + 0x9e3779b97f4a7c15 + h<<6 + h>>2
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// fraction is mix as a number in [0, 1).
func fraction(seed uint64, xs ...uint64) float64 {
	return float64(mix(seed, xs...)>>11) / (1 << 53)
}

func (w *World) nodeOf(name ident.NodeName) *Node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (w *World) nodeOfStore(id ident.StoreID) *Node {
	for _, n := range w.nodes {
		if n.store == id {
			return n
		}
	}
	return nil
}
