package history

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"sync"
	"sync/atomic"

	"dozo/internal/initiator"
)

// ClientsConfig is a run of several clients on the same blocks of one unit.
type ClientsConfig struct {
	Disks   []*initiator.Disk // of the same unit, by any paths; clients are spread over them
	Clients int               // default: one for each disk
	First   uint64            // first block, of 4,096 bytes
	Blocks  uint64            // few, so that clients meet; default 4
	Ops     int               // of all clients together; 0: until the context ends
	Reads   int               // percent; default 50
	Seed    uint64
	// ErrorsMax is how many operations may end with an error; a write that does stays pending.
	ErrorsMax int
}

// RunClients records what the clients see. It writes every block once before, so that the start is known. A block that
// a read found torn or damaged is an error at once: no register has such a value.
func RunClients(ctx context.Context, cfg ClientsConfig) (*Recorder, error) {
	if len(cfg.Disks) == 0 {
		return nil, errors.New("clients: no disk")
	}
	if cfg.Clients <= 0 {
		cfg.Clients = len(cfg.Disks)
	}
	if cfg.Blocks == 0 {
		cfg.Blocks = 4
	}
	if cfg.Reads == 0 {
		cfg.Reads = 50
	}
	var id [8]byte
	rand.Read(id[:])
	run := binary.LittleEndian.Uint64(id[:])
	rec := NewRecorder()
	var next atomic.Uint64 // values: no two writes have the same
	p := make([]byte, BlockSize)
	for b := cfg.First; b < cfg.First+cfg.Blocks; b++ {
		v := next.Add(1)
		Fill(p, Stamp{run, b, v})
		op := rec.Begin(-1, true, b, v)
		if err := cfg.Disks[0].WriteAt(ctx, p, int64(b)*BlockSize, false); err != nil {
			return rec, err
		}
		rec.End(op, v)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left, errs atomic.Int64
	left.Store(int64(cfg.Ops))
	var wg sync.WaitGroup
	for i := range cfg.Clients {
		d := cfg.Disks[i%len(cfg.Disks)]
		rng := randv2.New(randv2.NewPCG(cfg.Seed, uint64(i)))
		wg.Go(func() {
			p := make([]byte, BlockSize)
			for ctx.Err() == nil && (cfg.Ops == 0 || left.Add(-1) >= 0) {
				b := cfg.First + rng.Uint64N(cfg.Blocks)
				var err error
				if rng.IntN(100) < cfg.Reads {
					err = clientRead(ctx, rec, d, run, i, b, p)
				} else {
					v := next.Add(1)
					Fill(p, Stamp{run, b, v})
					op := rec.Begin(i, true, b, v)
					if err = d.WriteAt(ctx, p, int64(b)*BlockSize, false); err == nil {
						rec.End(op, v)
					}
				}
				var v *Violation
				if err != nil && ctx.Err() == nil && (errors.As(err, &v) || errs.Add(1) > int64(cfg.ErrorsMax)) {
					cancel(fmt.Errorf("client %d: %w", i, err))
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return rec, err
	}
	return rec, nil
}

func clientRead(ctx context.Context, rec *Recorder, d *initiator.Disk, run uint64, client int, b uint64, p []byte) error {
	op := rec.Begin(client, false, b, 0)
	if err := d.ReadAt(ctx, p, int64(b)*BlockSize); err != nil {
		return err
	}
	c := Read(p, run, b)
	switch c.Kind {
	case "stamped", "foreign": // foreign is value 0, which the check finds to be too old
		rec.End(op, c.Write)
		return nil
	}
	return &Violation{Kind: c.Kind, Block: b, Got: c.Write, Detail: c.Detail}
}
