package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"dozo/internal/initiator"
)

// WriterConfig says how a Writer writes.
type WriterConfig struct {
	Depth      int     // writes under way; default 32
	FlushEvery int     // writes between flushes; default 256, negative: never
	FUA        float64 // share of writes with FUA
	BlocksMax  int     // a write covers 1 to that many blocks; default 1
	Seed       uint64
	Writes     uint64 // stop after that many; 0: until the context ends
	Rate       int    // writes a second; 0: as fast as it goes
	// ErrorsMax is how many commands may end with an error (their outcome is then unknown, and the run goes on)
	// before the run does. What the session retries by itself does not count.
	ErrorsMax int
}

// Writer writes stamped blocks in random order and keeps the log. Survival of server deaths is the session's part:
// its ReconnectTimeout and RetryLimit say for how long commands are sent again.
type Writer struct {
	d   *initiator.Disk
	log *Log
	cfg WriterConfig

	mu      sync.Mutex
	rng     *rand.Rand
	busy    map[uint64]struct{} // blocks with a write under way
	since   int                 // writes since the last flush
	active  int
	idle    *sync.Cond
	stop    bool
	err     error
	errs    int
	lastAck time.Time
	start   time.Time

	flushing atomic.Bool
	stats    WriterStats
}

// WriterStats counts.
type WriterStats struct {
	Issued   uint64        `json:"issued"`
	Acked    uint64        `json:"acked"`
	Failed   uint64        `json:"failed"`
	Flushes  uint64        `json:"flushes"`
	Longest  time.Duration `json:"longest_gap_ns"` // between two acknowledgements
	Duration time.Duration `json:"duration_ns"`
}

// NewWriter prepares a run on d; l's region must be inside of it.
func NewWriter(d *initiator.Disk, l *Log, cfg WriterConfig) (*Writer, error) {
	if cfg.Depth <= 0 {
		cfg.Depth = 32
	}
	if cfg.FlushEvery == 0 {
		cfg.FlushEvery = 256
	}
	cfg.BlocksMax = max(cfg.BlocksMax, 1)
	if BlockSize%d.BlockSize != 0 {
		return nil, fmt.Errorf("writer: the disk's blocks of %d bytes do not divide %d", d.BlockSize, BlockSize)
	}
	if (l.First+l.Blocks)*BlockSize > uint64(d.Size()) {
		return nil, fmt.Errorf("writer: the log's region ends at block %d, the disk has %d", l.First+l.Blocks, d.Size()/BlockSize)
	}
	if l.Blocks < uint64(2*cfg.Depth*cfg.BlocksMax) {
		return nil, fmt.Errorf("writer: a region of %d blocks is too small for depth %d", l.Blocks, cfg.Depth)
	}
	w := &Writer{d: d, log: l, cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, l.Run)), busy: map[uint64]struct{}{}}
	w.idle = sync.NewCond(&w.mu)
	return w, nil
}

// op is one write under way, used again and again.
type op struct {
	c      initiator.Command
	buf    []byte
	block  uint64
	count  uint32
	fua    bool
	number uint64
}

// Run writes until ctx ends, cfg.Writes are done, or something fails; it returns when nothing is under way. Ending by
// ctx or by number is no error.
func (w *Writer) Run(ctx context.Context) (WriterStats, error) {
	w.start = time.Now()
	w.lastAck = w.start
	stopped := context.AfterFunc(ctx, w.Stop)
	defer stopped()
	w.mu.Lock()
	w.active = w.cfg.Depth
	w.mu.Unlock()
	for range w.cfg.Depth {
		o := &op{buf: make([]byte, w.cfg.BlocksMax*BlockSize)}
		o.c.Done = func(*initiator.Command) { w.finished(o) }
		w.next(o)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.active > 0 {
		w.idle.Wait()
	}
	w.gapLocked()
	w.stats.Duration = time.Since(w.start)
	return w.stats, w.err
}

// Stop lets the run end once what is under way is finished.
func (w *Writer) Stop() {
	w.mu.Lock()
	w.stop = true
	w.mu.Unlock()
}

// Stats returns the counts so far.
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Duration = time.Since(w.start)
	return s
}

// next sends the next write with o, or retires o.
func (w *Writer) next(o *op) {
	w.mu.Lock()
	if w.stop || w.err != nil || w.cfg.Writes > 0 && w.stats.Issued >= w.cfg.Writes {
		w.retireLocked()
		w.mu.Unlock()
		return
	}
	if w.cfg.Rate > 0 {
		due := w.start.Add(time.Duration(w.stats.Issued) * time.Second / time.Duration(w.cfg.Rate))
		if wait := time.Until(due); wait > 0 {
			w.mu.Unlock()
			time.AfterFunc(wait, func() { w.next(o) })
			return
		}
	}
	w.chooseLocked(o)
	n, err := w.log.Issue(o.block, o.count, o.fua)
	if err != nil {
		w.failLocked(err)
		w.retireLocked()
		w.mu.Unlock()
		return
	}
	o.number = n
	w.stats.Issued++
	w.mu.Unlock()

	p := o.buf[:int(o.count)*BlockSize]
	for i := range int(o.count) {
		Fill(p[i*BlockSize:], Stamp{w.log.Run, o.block + uint64(i), n})
	}
	w.d.PrepareWrite(&o.c, p, int64(o.block)*BlockSize, o.fua)
	if err := w.d.S.Submit(&o.c); err != nil {
		o.c.Err = err
		w.finished(o)
	}
}

// chooseLocked picks blocks that no write is under way for.
func (w *Writer) chooseLocked(o *op) {
	o.count = uint32(1 + w.rng.IntN(w.cfg.BlocksMax))
	o.fua = w.cfg.FUA > 0 && w.rng.Float64() < w.cfg.FUA
again:
	for {
		o.block = w.log.First + w.rng.Uint64N(w.log.Blocks-uint64(o.count)+1)
		for b := o.block; b < o.block+uint64(o.count); b++ {
			if _, hit := w.busy[b]; hit {
				continue again
			}
		}
		break
	}
	for b := o.block; b < o.block+uint64(o.count); b++ {
		w.busy[b] = struct{}{}
	}
}

func (w *Writer) finished(o *op) {
	err := o.c.Error()
	w.mu.Lock()
	for b := o.block; b < o.block+uint64(o.count); b++ {
		delete(w.busy, b)
	}
	var logErr error
	if err == nil {
		w.stats.Acked++
		w.gapLocked()
		logErr = w.log.Ack(o.block, o.count, o.fua, o.number)
		w.since++
	} else {
		w.stats.Failed++
		w.errs++
		logErr = w.log.Fail(o.block, o.count, o.number)
		if w.errs > w.cfg.ErrorsMax {
			w.failLocked(fmt.Errorf("write %d of block %d: %w", o.number, o.block, err))
		}
	}
	if logErr != nil {
		w.failLocked(logErr)
	}
	flush := w.cfg.FlushEvery > 0 && w.since >= w.cfg.FlushEvery && w.err == nil && !w.stop
	if flush {
		w.since = 0
	}
	w.mu.Unlock()
	if flush && w.flushing.CompareAndSwap(false, true) {
		w.flush()
	}
	w.next(o)
}

// flush sends one flush beside the writes; it covers what is acknowledged by now.
func (w *Writer) flush() {
	w.mu.Lock()
	n, err := w.log.FlushIssue()
	if err != nil {
		w.failLocked(err)
		w.mu.Unlock()
		w.flushing.Store(false)
		return
	}
	w.active++
	w.mu.Unlock()
	c := &initiator.Command{}
	w.d.PrepareFlush(c)
	c.Done = func(c *initiator.Command) {
		w.mu.Lock()
		err := c.Error()
		if err == nil {
			w.stats.Flushes++
			err = w.log.FlushAck(n)
		} else if w.errs++; w.errs <= w.cfg.ErrorsMax {
			err = nil
		}
		if err != nil {
			w.failLocked(fmt.Errorf("flush: %w", err))
		}
		w.flushing.Store(false)
		w.retireLocked()
		w.mu.Unlock()
	}
	if err := w.d.S.Submit(c); err != nil {
		c.Err = err
		c.Done(c)
	}
}

func (w *Writer) gapLocked() {
	now := time.Now()
	w.stats.Longest = max(w.stats.Longest, now.Sub(w.lastAck))
	w.lastAck = now
}

func (w *Writer) failLocked(err error) {
	if w.err == nil {
		w.err = err
	} else if !errors.Is(err, w.err) && len(w.err.Error()) < 500 {
		w.err = errors.Join(w.err, err)
	}
}

func (w *Writer) retireLocked() {
	w.active--
	if w.active == 0 {
		w.idle.Signal()
	}
}
