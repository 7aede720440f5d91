package sim

import (
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
	admin *control.Client // that nothing keeps from the control store
	nodes []*Node
	net   network
	vol   control.VolumeSpec

	clients []*client
	hist    history
	chain   chain
	forces  forces
	wg      crew          // everything that the world has started
	over    chan struct{} // closed when everything is to end
	quiet   chan struct{} // closed when clients are to begin nothing more
	draws   atomic.Uint64
	answers atomic.Int64 // to clients

	traps        traps
	stays        stays
	lateClients  atomic.Int64 // how many there were (late.go)
	logins       atomic.Int64 // that were answered
	flushes      atomic.Int64 // flushes, and writes with FUA, that clients have sent
	flushing     atomic.Int64 // of them, those that they wait for
	unflushed    atomic.Int64 // changes that clients were told of since the last flush
	hammering    atomic.Int64 // a time.Duration: until when clients read all they can at an owner that is alone
	forcedTakers atomic.Pointer[forcedStrikes]
	takers       atomic.Int64 // a time.Duration: until when those that take over are struck down
	troubled     atomic.Int64 // a time.Duration: until when a fault that began or ended is recent
	held         atomic.Pointer[heldDrops]

	clientCuts map[[2]int]int // client and node between which nothing passes; guarded by network.mu
	ended      bool           // no process may begin any more; guarded by network.mu
	ctlDown    int            // the driver's
	lostBytes  atomic.Bool    // some disk has lost what its process had written

	mu struct {
		sync.Mutex
		events eventHeap
		next   uint64
		target time.Duration // what the driver sleeps for
		alarm  *time.Timer   // its clock
		broken []string      // what was found wrong
	}
}

// crew is a number of goroutines that somebody waits for. A sync.WaitGroup does the same; in a bubble each use of one costs
// as much as all else that a message costs.
type crew struct{ n atomic.Int64 }

func (c *crew) Go(f func()) {
	c.n.Add(1)
	go func() {
		f()
		c.n.Add(-1)
	}()
}

// Wait looks now and then, which on virtual time costs nothing.
func (c *crew) Wait() {
	for c.n.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// event is something that the driver makes happen: a message's arrival, or f, which must not wait.
type event struct {
	at  time.Duration
	key uint64 // orders what happens at one moment
	msg *message
	f   func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.key < o.key }

// eventHeap is a heap of what is to happen, the next first.
type eventHeap []event

func (h *eventHeap) push(e event) {
	list := append(*h, e)
	*h = list
	i := len(list) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&list[up]) {
			break
		}
		list[i] = list[up]
		i = up
	}
	list[i] = e
}

func (h *eventHeap) pop() event {
	list := *h
	first, e := list[0], list[len(list)-1]
	list[len(list)-1] = event{}
	list = list[:len(list)-1]
	*h = list
	if len(list) == 0 {
		return first
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= len(list) {
			break
		}
		if down+1 < len(list) && list[down+1].before(&list[down]) {
			down++
		}
		if !list[down].before(&e) {
			break
		}
		list[i] = list[down]
		i = down
	}
	list[i] = e
	return first
}

// now is how long the world has been there.
func (w *World) now() time.Duration { return time.Since(w.start) }

// at has the driver call f at a moment, never before what is asked for from within f.
func (w *World) at(when time.Duration, f func()) { w.schedule(event{at: when, f: f}) }

func (w *World) schedule(e event) {
	w.mu.Lock()
	w.mu.next++
	e.key = w.mu.next
	w.mu.events.push(e)
	if e.at < w.mu.target {
		w.mu.target = e.at
		w.mu.alarm.Reset(e.at - w.now())
	}
	w.mu.Unlock()
}

// after is at, from now.
func (w *World) after(d time.Duration, f func()) { w.at(w.now()+d, f) }

// idle is how long the driver sleeps if nothing is to happen.
const idle = time.Hour

// drive makes events happen until the world is over.
func (w *World) drive() {
	for {
		now := w.now()
		w.mu.Lock()
		var e event
		due := len(w.mu.events) > 0 && w.mu.events[0].at <= now
		if due {
			e = w.mu.events.pop()
			w.mu.target = 0 // awake: it looks again anyway
		} else {
			wait := idle
			if len(w.mu.events) > 0 {
				wait = w.mu.events[0].at - now
			}
			w.mu.target = now + wait
			w.mu.alarm.Reset(wait)
		}
		over := !due && w.isOver()
		w.mu.Unlock()
		switch {
		case over:
			return
		case !due:
			<-w.mu.alarm.C
		case e.msg != nil:
			w.net.arrive(e.msg)
		default:
			e.f()
		}
	}
}

// wake has the driver see that the world is over.
func (w *World) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.target = 0
	w.mu.alarm.Reset(0)
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
