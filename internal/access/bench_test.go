package access

import (
	"fmt"
	"sync"
	"testing"

	"dozo/internal/control"
	"dozo/internal/wire"
)

// BenchmarkOwnerWrite is a 4 KiB write from Submit to its answer: one store of this process, one whose appends are
// asynchronous, both on a real file system.
func BenchmarkOwnerWrite(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth%d", depth), func(b *testing.B) {
			c := newClusterOf(b, 1, 2, func(s *seat) { s.dir = b.TempDir() })
			c.limit.SegmentBytes = 32 << 20
			c.asFar(c.seats[1])
			o := c.own(c.volume(1<<30, 1, control.Replicated))
			defer o.Close()
			slots := make(chan struct{}, depth)
			var wg sync.WaitGroup
			b.SetBytes(4096)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				slots <- struct{}{}
				wg.Add(1)
				op := NewOp()
				op.Kind, op.Offset, op.Length = wire.OpWrite, int64(i*7919%(1<<18))*4096, 4096
				op.Buf = NewWriteBuf(op.Offset, 4096)
				op.Done = func(op *Op, err error) {
					if err != nil {
						b.Error(err)
					}
					op.Release()
					<-slots
					wg.Done()
				}
				o.Submit(op)
			}
			wg.Wait()
		})
	}
}

// BenchmarkOwnerRead is a 4 KiB read of what is in memory.
func BenchmarkOwnerRead(b *testing.B) {
	c := newClusterOf(b, 1, 2, func(s *seat) { s.dir = b.TempDir() })
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	defer o.Close()
	for off := int64(0); off < 1<<20; off += 4096 {
		if err := writeAt(o, off, make([]byte, 4096), false); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan struct{}, 1)
	for i := range b.N {
		op := NewOp()
		op.Kind, op.Offset, op.Length = wire.OpRead, int64(i*7919%256)*4096, 4096
		op.Done = func(op *Op, err error) {
			if err != nil {
				b.Error(err)
			}
			op.Release()
			done <- struct{}{}
		}
		o.Submit(op)
		<-done
	}
}
