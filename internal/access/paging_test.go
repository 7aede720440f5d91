package access

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// sparse is a wide volume of which a client uses some regions: what each block has is its tag, 0 if nothing.
type sparse struct {
	rng   *rand.Rand
	bases []int64 // of regions of regionBlocks blocks
	tags  map[int64]uint64
	next  uint64
}

const (
	regionBlocks = 3000 // of 4 KiB: three leaves and a piece of a fourth
	pageBytes    = 2 << 30
)

func (s *sparse) pick(most int64) (block, count int64) {
	base := s.bases[s.rng.IntN(len(s.bases))]
	at := s.rng.Int64N(regionBlocks)
	return base + at, 1 + s.rng.Int64N(min(most, regionBlocks-at))
}

func (s *sparse) step(o *Owner) error {
	switch s.rng.IntN(11) {
	case 10:
		from, count := s.pick(400)
		to, most := s.pick(400)
		count = min(count, most)
		if err := copyAt(o, from*4096, to*4096, count*4096); err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		tags := make([]uint64, count)
		for i := range tags {
			tags[i] = s.tags[from+int64(i)]
		}
		for i, tag := range tags {
			if s.tags[to+int64(i)] = tag; tag == 0 {
				delete(s.tags, to+int64(i))
			}
		}
	case 0:
		block, count := s.pick(regionBlocks)
		if err := simple(o, wire.OpTrim, block*4096, count*4096); err != nil {
			return fmt.Errorf("trim: %w", err)
		}
		for b := block; b < block+count; b++ {
			delete(s.tags, b)
		}
	case 1, 2, 3, 4:
		block, count := s.pick(20)
		return s.read(o, block, count)
	case 5:
		// Part of a block: its rest has to be found first.
		block, _ := s.pick(1)
		s.next++
		d := tagged(s.next)
		if err := writeAt(o, block*4096+512, d[512:4096-512], false); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := writeAt(o, block*4096, d[:512], false); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := writeAt(o, block*4096+4096-512, d[4096-512:], false); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		s.tags[block] = s.next
	default:
		block, count := s.pick(6)
		var d []byte
		for b := block; b < block+count; b++ {
			s.next++
			d = append(d, tagged(s.next)...)
			s.tags[b] = s.next
		}
		if err := writeAt(o, block*4096, d, false); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

func tagged(tag uint64) []byte {
	d := make([]byte, 4096)
	for i := 0; i < len(d); i += 8 {
		binary.LittleEndian.PutUint64(d[i:], tag)
	}
	return d
}

func (s *sparse) read(o *Owner, block, count int64) error {
	d, err := readAt(o, block*4096, count*4096)
	if err != nil {
		return fmt.Errorf("read of block %d: %w", block, err)
	}
	if int64(len(d)) != count*4096 {
		return fmt.Errorf("%d bytes read of %d blocks", len(d), count)
	}
	for i := 0; i < len(d); i += 8 {
		b := block + int64(i/4096)
		if got := binary.LittleEndian.Uint64(d[i:]); got != s.tags[b] {
			return fmt.Errorf("block %d has %d at byte %d, want %d", b, got, i%4096, s.tags[b])
		}
	}
	return nil
}

func (s *sparse) check(o *Owner) error {
	for _, base := range s.bases {
		for at := int64(0); at < regionBlocks; at += 256 {
			if err := s.read(o, base+at, min(256, regionBlocks-at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// A volume whose map doesn't fit its budget reads what was written: leaves come and go under concurrent writers,
// checkpoints and one owner after another.
func TestAMapFarLargerThanItsBudget(t *testing.T) {
	t.Parallel()
	// With 1 byte nothing stays that may go; the other budget leaves room for some of the leaves.
	for _, budget := range []int64{1, 180 << 10} {
		t.Run(fmt.Sprint(budget), func(t *testing.T) {
			c := newCluster(t, 1, 2)
			c.limit.MapBudgetBytes = budget
			c.limit.SegmentBytes = 4 << 20
			v := c.volume(3<<40, 1, control.Replicated)
			var clients []*sparse
			const regions = 8
			for i := range 3 {
				s := &sparse{rng: rand.New(rand.NewPCG(uint64(i), 12)), tags: map[int64]uint64{}, next: uint64(i) << 40}
				for k := range int64(regions) {
					// Some regions lie across the ends of leaves, pages and directories of the map.
					page := k / 2 * 300
					at := page*pageBytes/4096 + int64(i)*20000 + k%2*100000
					if k == regions-1 {
						at = int64(i+1)*pageBytes/4096 - regionBlocks/2
					}
					s.bases = append(s.bases, at)
				}
				clients = append(clients, s)
			}
			o := c.own(v)
			all := func(what string, f func(s *sparse) error) {
				t.Helper()
				var wg sync.WaitGroup
				for i, s := range clients {
					wg.Go(func() {
						if err := f(s); err != nil {
							t.Errorf("%s, client %d: %v", what, i, err)
						}
					})
				}
				wg.Wait()
				if t.Failed() {
					t.FailNow()
				}
			}
			most, evicted := 0, 0.0
			for round := range 5 {
				stop, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					for {
						select {
						case <-stop:
							return
						case <-time.After(time.Millisecond):
							o.ask(o.everySecond)
						}
					}
				}()
				all(fmt.Sprint("round ", round), func(s *sparse) error {
					for i := range 120 {
						if err := s.step(o); err != nil {
							return err
						}
						if s == clients[0] && i%50 == 49 {
							if err := o.Checkpoint(); err != nil {
								return err
							}
						}
					}
					return nil
				})
				close(stop)
				<-done
				o.ask(func() { most = max(most, o.m.Leaves()) })
				if err := o.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				o.ask(func() { o.everySecond(); o.everySecond() })
				var left int
				o.ask(func() { left = o.m.Leaves() })
				if budget == 1 && left > 0 {
					t.Errorf("round %d: %d leaves stay in memory after a checkpoint", round, left)
				}
				if round%2 == 1 {
					old := o
					evicted += counter(o.env.Metrics.Evicted)
					if round == 1 {
						old.Close()
					}
					o = c.own(v)
					old.Close()
				}
				all(fmt.Sprint("check ", round), func(s *sparse) error { return s.check(o) })
			}
			if most < 10 || evicted == 0 {
				t.Errorf("at most %d leaves were in memory at the end of a round; %v bytes were paged out", most, evicted)
			}
			o.Close()
		})
	}
}
