package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	randv2 "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/initiator"
	"dozo/internal/initiator/history"
)

// Workload is the shape of the I/O.
type Workload struct {
	ReadPercent int
	BlockSize   int // bytes of one I/O
	Depth       int // I/Os under way in each session
	Random      bool
}

// Config is one load.
type Config struct {
	URLs []string
	// SameUnit says that all URLs lead to the same logical unit: with Verify they share what is known of it.
	SameUnit    bool
	Sessions    int // for each URL; default 1
	Connections int // for each session; default 1
	Workload
	FUA        float64 // share of writes with FUA
	FlushEvery int     // writes between two flushes in each session; 0: none
	Rate       int     // I/Os a second over all sessions; 0: as fast as it goes
	Offset     int64   // first byte of the region
	Size       int64   // of the region; 0: to the end
	Ramp       time.Duration
	Runtime    time.Duration
	Count      uint64 // I/Os; the run ends with whichever of both comes first, at least one is needed
	Prefill    bool   // write the region once before
	Verify     bool   // numbered, checksummed blocks; BlockSize is then a multiple of 4,096
	LogFile    string // history of a Verify run
	Seed       uint64

	Initiator initiator.Config // how to log in; portal, target and secrets come from the URL
	// ErrorsMax is how many I/Os may fail before the run does.
	ErrorsMax uint64
	Progress  io.Writer // a line a second; nil: none
	Log       *slog.Logger

	begun, ended func() // around the measured part
}

// Result is what a run measured. The JSON fields are documented in docs/guide/bench.md.
type Result struct {
	Workload   string   `json:"workload"`
	URLs       []string `json:"urls"`
	Sessions   int      `json:"sessions"`
	Duration   float64  `json:"duration_s"`
	IOs        uint64   `json:"ios"`
	IOPS       float64  `json:"iops"`
	MBps       float64  `json:"mb_per_s"`
	Read       *Latency `json:"read,omitempty"`
	Write      *Latency `json:"write,omitempty"`
	Flush      *Latency `json:"flush,omitempty"`
	LongestGap float64  `json:"longest_stall_us"` // time in which no I/O at all ended
	Errors     uint64   `json:"errors"`
	FirstError string   `json:"first_error,omitempty"`
	// Unanswered counts the I/Os that had no answer when the run was over, and for which it did not wait longer.
	Unanswered uint64  `json:"unanswered,omitempty"`
	Reconnects int     `json:"reconnects"`
	Retries    int     `json:"busy_retries"`
	CPU        float64 `json:"client_cpu_s"`
	CPUper100k float64 `json:"client_cpu_s_per_100k"`
	// Verified counts the blocks of 4,096 bytes that were compared, also those of the last pass.
	Verified  uint64             `json:"verified_blocks,omitempty"`
	Violation *history.Violation `json:"violation,omitempty"`
	Violated  uint64             `json:"violations,omitempty"`
}

// ErrViolation is a verified block that was not what it must be.
var ErrViolation = errors.New("verification found a wrong block")

// ErrUnanswered is an I/O without an answer when the run was over.
var ErrUnanswered = errors.New("I/Os were not answered by the end of the run")

// pollFrom is how many connections there are when one goroutine reads them all: with fewer a thread that waits for each answers
// sooner.
const pollFrom = 9

// How long the end may take: what is under way gets answerGrace to be answered before its session is dropped, and
// the logout of those that are left closeGrace. Together they are below the second within which a run ends.
const (
	answerGrace = 500 * time.Millisecond
	closeGrace  = 300 * time.Millisecond
)

// unit is one logical unit under load.
type unit struct {
	first, blocks uint64 // the region, in I/Os
	nextSeq       atomic.Uint64
	// With Verify:
	mu       sync.Mutex
	log      *history.Log
	busy     map[uint64]struct{} // I/O blocks with an I/O under way
	verified uint64
	violated uint64
	wrong    *history.Violation
}

// job is one session's load.
type job struct {
	r          *run
	u          *unit
	d          *initiator.Disk
	sinceFlush atomic.Int64
	flushing   atomic.Bool
}

// run is one Run under way.
type run struct {
	cfg  Config
	jobs []*job

	t0       time.Time    // when the first I/O was sent
	sched    atomic.Int64 // I/Os that the rate has let pass
	cpuStart atomic.Int64
	start    time.Time     // of the measured part; set before measure is
	measure  atomic.Bool   // ramp is over
	stop     atomic.Bool   // no new I/O
	issued   atomic.Uint64 // in the measured part
	ios      atomic.Uint64
	last     atomic.Int64 // ns after start at which an I/O ended last
	gap      atomic.Int64
	errs     atomic.Uint64
	cut      atomic.Bool // sessions are dropped: what ends now was not answered
	lost     atomic.Uint64

	read, write, flush Histogram

	mu       sync.Mutex
	firstErr error

	wg      sync.WaitGroup // slots and flushes
	stopped chan struct{}
	once    sync.Once
}

// slot is one I/O under way.
type slot struct {
	j      *job
	c      initiator.Command
	buf    []byte
	rng    *randv2.Rand
	block  uint64
	number uint64
	start  time.Time
	isRead bool
	fua    bool
}

// UsageError is a load that makes no sense.
type UsageError struct{ error }

func (e UsageError) Unwrap() error { return e.error }

func (c *Config) validate() error {
	if err := c.senseless(); err != nil {
		return UsageError{err}
	}
	return nil
}

func (c *Config) senseless() error {
	switch {
	case len(c.URLs) == 0:
		return errors.New("no URL")
	case c.Runtime <= 0 && c.Count == 0:
		return errors.New("neither a run time nor a count")
	case c.BlockSize < 512 || c.BlockSize%512 != 0 || c.BlockSize > blockSizeMax:
		return fmt.Errorf("block size %d: want a multiple of 512, up to 16M", c.BlockSize)
	case c.Depth < 1 || c.Depth > 32768:
		return fmt.Errorf("depth %d: want 1 to 32768", c.Depth)
	case c.Sessions < 1:
		return fmt.Errorf("%d sessions: want 1 at least", c.Sessions)
	case c.Connections < 0 || c.Rate < 0 || c.FlushEvery < 0 || c.Ramp < 0 || c.Runtime < 0:
		return errors.New("connections, rate, writes between flushes, ramp and run time are never negative")
	case c.Verify && c.BlockSize%history.BlockSize != 0:
		return fmt.Errorf("verified blocks need a block size that is a multiple of %d", history.BlockSize)
	case c.Verify && c.Offset%history.BlockSize != 0:
		return fmt.Errorf("verified blocks need an offset that is a multiple of %d", history.BlockSize)
	case c.LogFile != "" && !c.Verify:
		return errors.New("a log needs verified blocks")
	case c.LogFile != "" && len(c.URLs) > 1 && !c.SameUnit:
		return errors.New("a log is of one logical unit")
	case c.ReadPercent < 0 || c.ReadPercent > 100 || c.FUA < 0 || c.FUA > 1:
		return errors.New("shares are from 0 to 100 %")
	}
	return nil
}

// Run puts the load on and returns what was measured, as far as it came if ctx ends first.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	cfg.Sessions = cmp.Or(cfg.Sessions, 1)
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Initiator.Poller == nil && len(cfg.URLs)*cfg.Sessions*max(cfg.Connections, 1) >= pollFrom {
		p, err := initiator.NewPoller()
		if err != nil {
			return nil, err
		}
		defer p.Close()
		cfg.Initiator.Poller = p
	}
	r := &run{cfg: cfg, stopped: make(chan struct{})}
	defer r.close()
	if err := r.connect(ctx); err != nil {
		return nil, err
	}
	// Whoever interrupts the run does not wait for a target that withholds its answers, whatever is under way.
	ended := make(chan struct{})
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer close(ended)
	watcher.Go(func() {
		select {
		case <-ctx.Done():
			r.halt()
			r.drop(ended)
		case <-ended:
		}
	})
	if cfg.Prefill {
		if err := r.prefill(ctx); err != nil {
			return nil, fmt.Errorf("prefill: %w", err)
		}
	}
	if cfg.Ramp <= 0 {
		r.begin()
	}
	r.startSlots()
	var bg sync.WaitGroup
	bg.Go(r.watch)
	answered := make(chan struct{})
	bg.Go(func() { r.cutOff(answered) })
	r.wg.Wait()
	close(answered)
	r.halt()
	bg.Wait()
	if !r.measure.Load() {
		r.begin() // the ramp was not over: nothing was measured
	}
	took := time.Since(r.start)
	cpu := selfCPU() - time.Duration(r.cpuStart.Load())
	if cfg.ended != nil {
		cfg.ended()
	}
	res := r.result(took, cpu)
	if cfg.Verify {
		if err := r.lastPass(ctx, res); err != nil {
			return res, err
		}
		if res.Violated > 0 {
			return res, fmt.Errorf("%w: %w", ErrViolation, res.Violation)
		}
	}
	if n := r.lost.Load(); n > 0 {
		return res, fmt.Errorf("%d %w", n, ErrUnanswered)
	}
	if r.errs.Load() > cfg.ErrorsMax {
		return res, fmt.Errorf("%d I/Os failed, the first: %w", r.errs.Load(), r.firstErr)
	}
	return res, nil
}

// connect logs all sessions in and lays out the units.
func (r *run) connect(ctx context.Context) error {
	var shared *unit
	for _, s := range r.cfg.URLs {
		u, err := initiator.ParseURL(s)
		if err != nil {
			return err
		}
		var un *unit
		if r.cfg.SameUnit {
			un = shared
		}
		for range r.cfg.Sessions {
			ic := u.Config()
			base := r.cfg.Initiator
			base.Portal, base.Target, base.CHAP.User, base.CHAP.Secret = ic.Portal, ic.Target, ic.CHAP.User, ic.CHAP.Secret
			base.Connections = r.cfg.Connections
			base.Log = r.cfg.Log
			sess, err := initiator.Dial(ctx, base)
			if err != nil {
				return fmt.Errorf("%s: %w", u, err)
			}
			j := &job{r: r}
			r.jobs = append(r.jobs, j)
			j.d = &initiator.Disk{S: sess} // for close, should the next step fail
			d, err := initiator.OpenDisk(ctx, sess, initiator.FlatLUN(u.LUN))
			if err != nil {
				return fmt.Errorf("%s: %w", u, err)
			}
			j.d = d
			if un == nil {
				if un, err = r.newUnit(d); err != nil {
					return fmt.Errorf("%s: %w", u, err)
				}
				shared = un
			}
			j.u = un
		}
	}
	return nil
}

func (r *run) newUnit(d *initiator.Disk) (*unit, error) {
	c := &r.cfg
	bs := int64(c.BlockSize)
	end := d.Size()
	if c.Size > 0 {
		end = min(end, c.Offset+c.Size)
	}
	if c.BlockSize%d.BlockSize != 0 || c.Offset%int64(d.BlockSize) != 0 {
		return nil, fmt.Errorf("block size %d or offset %d does not fit the unit's blocks of %d", c.BlockSize, c.Offset, d.BlockSize)
	}
	if end-c.Offset < bs {
		return nil, fmt.Errorf("no room for a block of %d in the region", bs)
	}
	u := &unit{first: uint64(c.Offset), blocks: uint64((end - c.Offset) / bs)}
	if !c.Verify {
		return u, nil
	}
	sessions := c.Sessions
	if c.SameUnit {
		sessions *= len(c.URLs)
	}
	if u.blocks < uint64(2*c.Depth*sessions) {
		return nil, fmt.Errorf("a verified region of %d I/Os is too small for depth %d in %d sessions", u.blocks, c.Depth, sessions)
	}
	u.busy = map[uint64]struct{}{}
	l, err := history.NewLog(c.LogFile, uint64(c.Offset)/history.BlockSize, u.blocks*uint64(bs)/history.BlockSize)
	if err != nil {
		return nil, err
	}
	if c.LogFile == "" {
		l.AckedOnly()
	}
	u.log = l
	return u, nil
}

func (r *run) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	var wg sync.WaitGroup
	for _, j := range r.jobs {
		wg.Go(func() { j.d.S.Close(ctx) })
	}
	wg.Wait()
	for _, j := range r.jobs {
		if j.u != nil && j.u.log != nil {
			j.u.log.Close()
		}
	}
}

// cutOff ends what has no answer a while after the run is over.
func (r *run) cutOff(answered <-chan struct{}) {
	select {
	case <-r.stopped:
		r.drop(answered)
	case <-answered:
	}
}

// drop waits a little and then drops all sessions, unless they are done with before.
func (r *run) drop(done <-chan struct{}) {
	t := time.NewTimer(answerGrace)
	defer t.Stop()
	select {
	case <-done:
		return
	case <-t.C:
	}
	r.cut.Store(true)
	var wg sync.WaitGroup
	for _, j := range r.jobs {
		wg.Go(j.d.S.Kill)
	}
	wg.Wait()
}

// prefill writes the region of every unit in order.
func (r *run) prefill(ctx context.Context) error {
	seen := map[*unit]bool{}
	for _, j := range r.jobs {
		if seen[j.u] {
			continue
		}
		seen[j.u] = true
		if err := fill(ctx, j.d, int64(j.u.first), int64(j.u.blocks)*int64(r.cfg.BlockSize)); err != nil {
			return err
		}
	}
	return nil
}

// fill writes n random bytes at off, some writes at a time, and flushes.
func fill(ctx context.Context, d *initiator.Disk, off, n int64) error {
	const chunk, depth = 1 << 20, 8
	p := make([]byte, chunk)
	rand.Read(p)
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, depth)
	for i := range depth {
		wg.Go(func() {
			for {
				at := next.Add(chunk) - chunk
				if at >= n {
					return
				}
				if errs[i] = d.WriteAt(ctx, p[:min(chunk, n-at)], off+at, false); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.Flush(ctx)
}

func (r *run) begin() {
	r.start = time.Now()
	r.cpuStart.Store(int64(selfCPU()))
	if f := r.cfg.begun; f != nil {
		f()
	}
	r.measure.Store(true)
}

// halt ends the run: slots stop when their I/O has ended.
func (r *run) halt() {
	r.stop.Store(true)
	r.once.Do(func() { close(r.stopped) })
}

func (r *run) startSlots() {
	seed := r.cfg.Seed
	r.t0 = time.Now()
	for _, j := range r.jobs {
		for range r.cfg.Depth {
			seed++
			s := &slot{j: j, buf: make([]byte, r.cfg.BlockSize), rng: randv2.New(randv2.NewPCG(r.cfg.Seed, seed))}
			rand.Read(s.buf)
			s.c.Done = s.done
			r.wg.Add(1)
			s.next(time.Now())
		}
	}
}
