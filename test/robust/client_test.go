//go:build e2e

package robust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dozo/internal/initiator"
	"dozo/internal/initiator/history"
)

// clientConfig is what the clients' process is told.
type clientConfig struct {
	Portals []string // paths to the volume
	Target  string
	Clients int
	Blocks  uint64
	Seed    uint64
	Run     uint64 // of the stamps
	Out     string // file for the result
}

// clientResult is what it says at the end.
type clientResult struct {
	Ops     []history.Op
	Acked   int
	Retried int // attempts that were given up for another path
	// Violation is a block that no register could have: torn, damaged, or another's.
	Violation string
	// Gap is the longest time in which no operation of any client ended, and when it began, since the start.
	Gap, GapAt time.Duration
	Error      string
}

// A path that does not answer for so long is given up for the next one: well below the 3 s after which owners refuse what
// is late, so that the same write is on two paths while both count.
const (
	attemptTimeout = 1200 * time.Millisecond
	loginTimeout   = 1500 * time.Millisecond
	// lastOp is how long operations that run may take after the clients were told to end.
	lastOp = 4 * time.Minute
)

// runClients is the clients' process. It says "ready" once the blocks are written, and ends at SIGTERM.
func runClients(text string) error {
	var cfg clientConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	c := &clients{cfg: cfg, given: map[uint64]bool{}, rec: history.NewRecorder(), began: time.Now()}
	err := c.run(stop)
	res := clientResult{Ops: c.ops(), Acked: int(c.acked.Load()), Retried: int(c.retried.Load())}
	if err != nil {
		res.Error = err.Error()
	}
	if v := c.violation.Load(); v != nil {
		res.Violation = *v
	}
	res.Gap, res.GapAt = c.gap()
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	return os.WriteFile(cfg.Out, b, 0o644)
}

type clients struct {
	cfg       clientConfig
	rec       *history.Recorder
	began     time.Time
	values    atomic.Uint64
	acked     atomic.Int64
	retried   atomic.Int64
	violation atomic.Pointer[string]

	mu    sync.Mutex
	ends  []time.Duration // of operations, from when all clients run
	given map[uint64]bool // values of attempts that were given up
}

func (c *clients) ended() {
	c.acked.Add(1)
	c.mu.Lock()
	c.ends = append(c.ends, time.Since(c.began))
	c.mu.Unlock()
}

func (c *clients) gap() (longest, at time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.ends)
	for i := 1; i < len(c.ends); i++ {
		if d := c.ends[i] - c.ends[i-1]; d > longest {
			longest, at = d, c.ends[i-1]
		}
	}
	return longest, at
}

func (c *clients) run(stop context.Context) error {
	all := make([]*client, c.cfg.Clients)
	for i := range all {
		all[i] = &client{c: c, n: i, rng: rand.New(rand.NewPCG(c.cfg.Seed, uint64(i))), paths: make([]*initiator.Disk, len(c.cfg.Portals)), buf: make([]byte, history.BlockSize)}
		defer all[i].close()
	}
	first, cancel := context.WithTimeout(stop, lastOp)
	defer cancel()
	for b := range c.cfg.Blocks {
		if err := all[0].write(first, b); err != nil {
			return fmt.Errorf("first write of block %d: %w", b, err)
		}
	}
	c.mu.Lock()
	c.ends = nil
	c.mu.Unlock()
	fmt.Println("ready")
	// An operation that runs is ended, also after the word to stop: what it does counts.
	last, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(lastOp, cancel) })()
	var wg sync.WaitGroup
	for _, cl := range all {
		wg.Go(func() { cl.loop(stop, last) })
	}
	wg.Wait()
	// Every path shows the same at the end.
	for p := range c.cfg.Portals {
		for b := range c.cfg.Blocks {
			if err := all[0].readBy(last, p, b); err != nil {
				return fmt.Errorf("last read of block %d by %s: %w", b, c.cfg.Portals[p], err)
			}
		}
	}
	return nil
}

// client is one initiator with a session by each path.
type client struct {
	c     *clients
	n     int
	rng   *rand.Rand
	at    int // the path that it uses
	paths []*initiator.Disk
	buf   []byte
}

func (cl *client) loop(stop, last context.Context) {
	cl.at = cl.n % len(cl.paths)
	for stop.Err() == nil && last.Err() == nil && cl.c.violation.Load() == nil {
		b := cl.rng.Uint64N(cl.c.cfg.Blocks)
		if cl.rng.IntN(100) < 50 {
			_ = cl.write(last, b)
		} else {
			_ = cl.read(last, b)
		}
		if cl.rng.IntN(200) == 0 {
			cl.at = cl.rng.IntN(len(cl.paths))
		}
	}
}

// write writes, by one path after the other until one has answered. Each attempt writes a value of its own, since each is a
// command of its own: one that was given up may have run. But once the retry by another path is acknowledged, it must not run
// any more (rule R9), so its time ends there.
func (cl *client) write(ctx context.Context, b uint64) error {
	var given []attempt
	for {
		a := attempt{value: cl.c.values.Add(1)}
		p := make([]byte, history.BlockSize) // an attempt that was given up may still be sending it
		history.Fill(p, history.Stamp{Run: cl.c.cfg.Run, Block: b, Write: a.value})
		a.op = cl.c.rec.Begin(cl.n, true, b, a.value)
		err := cl.try(ctx, func(ctx context.Context, d *initiator.Disk) error {
			return d.WriteAt(ctx, p, int64(b)*history.BlockSize, false)
		})
		if err == nil {
			cl.c.rec.End(a.op, a.value)
			for _, g := range given {
				cl.c.rec.End(g.op, g.value)
			}
			cl.c.givenUp(given)
			cl.c.ended()
			return nil
		}
		given = append(given, a)
		if ctx.Err() != nil {
			return err
		}
	}
}

// attempt is one command of a write.
type attempt struct {
	op    int
	value uint64
}

// givenUp notes attempts that may or may not have run before they were overtaken.
func (c *clients) givenUp(list []attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range list {
		c.given[a.value] = true
	}
}

// ops is the history without the attempts that were given up and that nobody has seen: those need not have run.
func (c *clients) ops() []history.Op {
	ops := c.rec.Ops()
	seen := map[uint64]bool{}
	for _, o := range ops {
		if !o.Write {
			seen[o.Value] = true
		}
	}
	return slices.DeleteFunc(ops, func(o history.Op) bool { return o.Write && c.given[o.Value] && !seen[o.Value] })
}

func (cl *client) read(ctx context.Context, b uint64) error {
	for {
		op := cl.c.rec.Begin(cl.n, false, b, 0)
		p := make([]byte, history.BlockSize)
		err := cl.try(ctx, func(ctx context.Context, d *initiator.Disk) error {
			return d.ReadAt(ctx, p, int64(b)*history.BlockSize)
		})
		if err == nil {
			cl.c.ended()
			return cl.see(op, b, p)
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// readBy reads by one path only.
func (cl *client) readBy(ctx context.Context, path int, b uint64) error {
	for {
		cl.at = path
		op := cl.c.rec.Begin(cl.n, false, b, 0)
		p := make([]byte, history.BlockSize)
		if cl.try(ctx, func(ctx context.Context, d *initiator.Disk) error {
			return d.ReadAt(ctx, p, int64(b)*history.BlockSize)
		}) == nil {
			return cl.see(op, b, p)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (cl *client) see(op int, b uint64, p []byte) error {
	switch got := history.Read(p, cl.c.cfg.Run, b); got.Kind {
	case "stamped", "foreign": // foreign is value 0, which the check finds to be too old
		cl.c.rec.End(op, got.Write)
		return nil
	default:
		v := fmt.Sprintf("block %d is %s: %s", b, got.Kind, got.Detail)
		cl.c.violation.Store(&v)
		return errors.New(v)
	}
}

// try makes one attempt by the path in use; if that fails, the next path is used next. The session of the path that was given up
// lives on, with the command in it, as a multipath driver's would.
func (cl *client) try(ctx context.Context, f func(context.Context, *initiator.Disk) error) error {
	actx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	d, err := cl.path(ctx)
	if err == nil {
		done := make(chan error, 1)
		go func() { done <- f(ctx, d) }()
		select {
		case err = <-done:
			if err != nil && ctx.Err() == nil {
				var se *initiator.StatusError
				if !errors.As(err, &se) {
					cl.drop(d)
				}
			}
		case <-actx.Done():
			err = actx.Err()
		}
	}
	if err != nil {
		cl.c.retried.Add(1)
		cl.at = (cl.at + 1) % len(cl.paths)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return err
}

func (cl *client) path(ctx context.Context) (*initiator.Disk, error) {
	if d := cl.paths[cl.at]; d != nil {
		return d, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	s, err := initiator.Dial(ctx, initiator.Config{Portal: cl.c.cfg.Portals[cl.at], Target: cl.c.cfg.Target, Initiator: fmt.Sprintf("iqn.2026-01.dozo:robust-%d", cl.n),
		NopInterval: 2 * time.Second, NopTimeout: 2 * time.Second,
		// No retries of the session's own: after BUSY it would send a command again that was given up for another path.
		RetryLimit: 0, LoginTimeout: loginTimeout})
	if err != nil {
		return nil, err
	}
	d, err := initiator.OpenDisk(ctx, s, initiator.FlatLUN(0))
	if err != nil {
		s.Kill()
		return nil, err
	}
	cl.paths[cl.at] = d
	return d, nil
}

func (cl *client) drop(d *initiator.Disk) {
	for i, x := range cl.paths {
		if x == d {
			cl.paths[i] = nil
			d.S.Kill()
		}
	}
}

func (cl *client) close() {
	for _, d := range cl.paths {
		if d != nil {
			d.S.Kill()
		}
	}
}
