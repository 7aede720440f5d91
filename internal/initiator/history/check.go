package history

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"dozo/internal/initiator"
)

// CheckResult is what a check found.
type CheckResult struct {
	Level   Level  `json:"level"`
	Checked uint64 `json:"checked_blocks"` // blocks that were written at least once
	Pending uint64 `json:"unacked_survivors"`
	Lost    uint64 `json:"unflushed_lost"` // blocks that lost acknowledged writes that no flush covered (level flushed)
	// Violations counts the blocks that are wrong, First is the one with the lowest number.
	Violations uint64     `json:"violations"`
	First      *Violation `json:"first,omitempty"`
}

// readBlocks is how many blocks one read of a check covers, checkDepth how many reads are under way.
const (
	readBlocks = 64
	checkDepth = 8
)

// Check reads all blocks that l says were written and compares. The error is about reading; what the blocks contain is
// in the result.
func (l *Log) Check(ctx context.Context, d *initiator.Disk, level Level) (*CheckResult, error) {
	if BlockSize%d.BlockSize != 0 {
		return nil, fmt.Errorf("check: the disk's blocks of %d bytes do not divide %d", d.BlockSize, BlockSize)
	}
	type chunk struct {
		blocks []uint64 // written ones within readBlocks of the first
		buf    []byte
		err    error
		ok     chan struct{}
	}
	res := &CheckResult{Level: level}
	var sv survivors
	free := make(chan []byte, checkDepth)
	for range checkDepth {
		free <- make([]byte, readBlocks*BlockSize)
	}
	chunks := make(chan *chunk, checkDepth)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(chunks)
		for rest := l.written(); len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n]-rest[0] < readBlocks {
				n++
			}
			c := &chunk{blocks: rest[:n], ok: make(chan struct{})}
			rest = rest[n:]
			select {
			case c.buf = <-free:
			case <-ctx.Done():
				return
			}
			chunks <- c
			wg.Go(func() {
				span := c.blocks[n-1] - c.blocks[0] + 1
				c.err = d.ReadAt(ctx, c.buf[:span*BlockSize], int64(c.blocks[0])*BlockSize)
				close(c.ok)
			})
		}
	})
	var first error
	for c := range chunks {
		<-c.ok
		if c.err != nil && first == nil {
			first = fmt.Errorf("check: read of block %d: %w", c.blocks[0], c.err)
			cancel()
		}
		for _, b := range c.blocks {
			if first != nil {
				break
			}
			at := (b - c.blocks[0]) * BlockSize
			l.checkBlock(b, c.buf[at:at+BlockSize], level, &sv, res)
		}
		free <- c.buf
	}
	if first != nil {
		return nil, first
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res.finish(&sv)
	return res, nil
}

// CheckBlocks is Check on blocks that the caller read: get returns the content of a block.
func (l *Log) CheckBlocks(level Level, get func(block uint64, p []byte) error) (*CheckResult, error) {
	res := &CheckResult{Level: level}
	var sv survivors
	p := make([]byte, BlockSize)
	for _, b := range l.written() {
		if err := get(b, p); err != nil {
			return nil, err
		}
		l.checkBlock(b, p, level, &sv, res)
	}
	res.finish(&sv)
	return res, nil
}

// written lists the blocks that were written at least once, in order.
func (l *Log) written() []uint64 { return slices.Sorted(maps.Keys(l.model.blocks)) }

// finish applies what can only be said once all blocks were seen.
func (r *CheckResult) finish(sv *survivors) {
	if r.Level != Flushed {
		return
	}
	if v := sv.order(); v != nil {
		r.Violations++
		if r.First == nil {
			r.First = v
		}
	}
}

func (l *Log) checkBlock(b uint64, p []byte, level Level, sv *survivors, res *CheckResult) {
	ws := l.model.blocks[b]
	res.Checked++
	c := Read(p, l.Run, b)
	if v := l.model.judge(b, c, level, sv); v != nil {
		res.Violations++
		if res.First == nil {
			res.First = v
		}
		return
	}
	acked := uint64(0)
	for _, w := range ws {
		if w.acked != 0 {
			acked = w.number
		}
	}
	switch {
	case c.Write > acked:
		res.Pending++
	case c.Write < acked:
		res.Lost++
	}
}
