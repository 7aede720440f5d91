package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"dozo/internal/initiator"
	"dozo/internal/initiator/history"
)

// A slot's circle: next chooses and sends, done measures and calls next.

// next sends the slot's next I/O, or ends the slot. now saves a look at the clock.
func (s *slot) next(now time.Time) {
	r := s.j.r
	if !s.admitted(now) {
		r.wg.Done()
		return
	}
	if r.cfg.Rate > 0 {
		n := r.sched.Add(1) - 1
		due := r.t0.Add(time.Duration(float64(n) * float64(time.Second) / float64(r.cfg.Rate)))
		if due.After(now) {
			s.await(due)
			return
		}
		// Behind the schedule: the wait for a free slot is part of what a client would have seen.
		now = due
	}
	s.send(now)
}

// awaitStep is how long a slot sleeps at most before it looks whether the run is over.
const awaitStep = 100 * time.Millisecond

// await sends the slot's next I/O when it is due, or ends the slot when the run is over before.
func (s *slot) await(due time.Time) {
	time.AfterFunc(min(time.Until(due), awaitStep), func() {
		now := time.Now()
		switch {
		case s.j.r.stop.Load():
			s.j.r.wg.Done()
		case due.After(now):
			s.await(due)
		default:
			s.send(now)
		}
	})
}

// admitted says whether the run goes on, and counts the I/O.
func (s *slot) admitted(now time.Time) bool {
	r := s.j.r
	if r.stop.Load() {
		return false
	}
	if !r.measure.Load() {
		return true
	}
	if r.cfg.Runtime > 0 && now.Sub(r.start) >= r.cfg.Runtime {
		return false
	}
	return r.issued.Add(1) <= r.cfg.Count || r.cfg.Count == 0
}

func (s *slot) send(start time.Time) {
	j, cfg := s.j, &s.j.r.cfg
	s.start = start
	s.isRead = cfg.ReadPercent == 100 || cfg.ReadPercent > 0 && s.rng.IntN(100) < cfg.ReadPercent
	s.fua = !s.isRead && cfg.FUA > 0 && s.rng.Float64() < cfg.FUA
	if cfg.Verify {
		if err := s.prepareVerified(); err != nil {
			s.c.Err = err
			s.done(&s.c)
			return
		}
	} else {
		s.block = s.choose()
		if !s.isRead {
			// Different from what any other write has left, at the price of one store.
			binary.LittleEndian.PutUint64(s.buf, s.rng.Uint64())
		}
	}
	off := int64(j.u.first) + int64(s.block)*int64(cfg.BlockSize)
	if s.isRead {
		j.d.PrepareRead(&s.c, s.buf, off)
	} else {
		j.d.PrepareWrite(&s.c, s.buf, off, s.fua)
	}
	if err := j.d.S.Submit(&s.c); err != nil {
		s.c.Err = err
		s.j.r.halt() // the session is gone
		s.done(&s.c)
	}
}

func (s *slot) choose() uint64 {
	u := s.j.u
	if s.j.r.cfg.Random {
		return s.rng.Uint64N(u.blocks)
	}
	return (u.nextSeq.Add(1) - 1) % u.blocks
}

// done is the command's callback.
func (s *slot) done(c *initiator.Command) {
	r := s.j.r
	now := time.Now()
	err := c.Error()
	if err == nil && s.isRead && c.InLen != len(s.buf) {
		err = fmt.Errorf("read of %d bytes returned %d", len(s.buf), c.InLen)
	}
	if r.cfg.Verify {
		err = s.finishVerified(err)
	}
	if err != nil {
		r.fail(err)
	} else if r.measure.Load() && !s.start.Before(r.start) {
		h := &r.write
		if s.isRead {
			h = &r.read
		}
		h.Record(now.Sub(s.start))
		r.ios.Add(1)
		r.ended(now)
	}
	if err == nil && !s.isRead {
		s.j.maybeFlush(now)
	}
	s.next(now)
}

// ended keeps the longest time without any I/O ending.
func (r *run) ended(now time.Time) {
	at := int64(now.Sub(r.start))
	gap := at - r.last.Swap(at)
	if gap > r.gap.Load() {
		r.gap.Store(gap) // two at once may lose the shorter: then the longer one is what is wanted
	}
}

func (r *run) fail(err error) {
	if r.cut.Load() && errors.Is(err, initiator.ErrClosed) {
		r.lost.Add(1)
		return
	}
	n := r.errs.Add(1)
	r.mu.Lock()
	if r.firstErr == nil {
		r.firstErr = err
	}
	r.mu.Unlock()
	if n > r.cfg.ErrorsMax {
		r.halt()
	}
}

// maybeFlush sends a flush beside the slots after every FlushEvery writes.
func (j *job) maybeFlush(now time.Time) {
	every := int64(j.r.cfg.FlushEvery)
	if every == 0 || j.sinceFlush.Add(1) < every || j.r.stop.Load() || !j.flushing.CompareAndSwap(false, true) {
		return
	}
	j.sinceFlush.Store(0)
	j.r.wg.Add(1) // under a slot that is not done yet, so the counter is above zero
	var number uint64
	if l := j.u.log; l != nil {
		j.u.mu.Lock()
		n, err := l.FlushIssue()
		j.u.mu.Unlock()
		if err != nil {
			j.r.fail(err)
		}
		number = n
	}
	c := &initiator.Command{}
	j.d.PrepareFlush(c)
	c.Done = func(c *initiator.Command) {
		err := c.Error()
		if l := j.u.log; err == nil && l != nil {
			j.u.mu.Lock()
			err = l.FlushAck(number)
			j.u.mu.Unlock()
		}
		if err != nil {
			j.r.fail(fmt.Errorf("flush: %w", err))
		} else if j.r.measure.Load() {
			j.r.flush.Record(time.Since(now))
		}
		j.flushing.Store(false)
		j.r.wg.Done()
	}
	if err := j.d.S.Submit(c); err != nil {
		c.Err = err
		c.Done(c)
	}
}

// perIO is how many stamped blocks one I/O covers.
func (r *run) perIO() int { return r.cfg.BlockSize / history.BlockSize }

func (u *unit) blockOf(s *slot) uint64 { return u.log.First + s.block*uint64(s.j.r.perIO()) }

// prepareVerified chooses blocks that nobody uses now, and fills a write's buffer.
func (s *slot) prepareVerified() error {
	u := s.j.u
	u.mu.Lock()
	for {
		s.block = s.choose()
		if _, hit := u.busy[s.block]; !hit {
			break
		}
	}
	u.busy[s.block] = struct{}{}
	if s.isRead {
		u.mu.Unlock()
		return nil
	}
	n, err := u.log.Issue(u.blockOf(s), uint32(s.j.r.perIO()), s.fua)
	u.mu.Unlock()
	s.number = n
	for i := range s.j.r.perIO() {
		history.Fill(s.buf[i*history.BlockSize:], history.Stamp{Run: u.log.Run, Block: u.blockOf(s) + uint64(i), Write: n})
	}
	return err
}

// finishVerified tells the log how a write ended, or compares what a read brought.
func (s *slot) finishVerified(err error) error {
	u := s.j.u
	n := uint32(s.j.r.perIO())
	b := u.blockOf(s)
	var found []history.Content
	if s.isRead && err == nil {
		for i := range int(n) {
			found = append(found, history.Read(s.buf[i*history.BlockSize:(i+1)*history.BlockSize], u.log.Run, b+uint64(i)))
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.busy, s.block)
	switch {
	case s.isRead:
		for i, c := range found {
			u.verified++
			if v := u.log.Judge(b+uint64(i), c); v != nil {
				u.violated++
				if u.wrong == nil {
					u.wrong = v
				}
				s.j.r.halt()
			}
		}
		return err
	case err != nil:
		if lerr := u.log.Fail(b, n, s.number); lerr != nil {
			return fmt.Errorf("%w; %w", err, lerr)
		}
		return err
	}
	return u.log.Ack(b, n, s.fua, s.number)
}

// lastPass reads everything written back.
func (r *run) lastPass(ctx context.Context, res *Result) error {
	seen := map[*unit]bool{}
	for _, j := range r.jobs {
		u := j.u
		if seen[u] {
			continue
		}
		seen[u] = true
		if u.violated == 0 && ctx.Err() == nil && j.d.S.Err() == nil {
			c, err := u.log.Check(ctx, j.d, history.Acked)
			if err != nil {
				return err
			}
			u.verified += c.Checked
			u.violated += c.Violations
			u.wrong = c.First
		}
		res.Verified += u.verified
		res.Violated += u.violated
		if res.Violation == nil {
			res.Violation = u.wrong
		}
	}
	return nil
}
