package peer

import (
	"math/bits"
	"sync"
)

// Buffers come in powers of two from 1 KiB to 8 MiB, which holds the largest frame.
const (
	bufferShiftMin = 10
	bufferShiftMax = 23
)

var bufferPools [bufferShiftMax - bufferShiftMin + 1]sync.Pool

// buffer is a piece of pooled memory with one owner at a time.
type buffer struct {
	b       []byte
	pool    int
	release func() // put, bound once so that handing it out allocates nothing
}

func getBuffer(n int) *buffer {
	i := max(bits.Len(uint(max(n, 1)-1))-bufferShiftMin, 0)
	buf, _ := bufferPools[i].Get().(*buffer)
	if buf == nil {
		buf = &buffer{b: make([]byte, 1<<(i+bufferShiftMin)), pool: i}
		buf.release = buf.put
	}
	buf.b = buf.b[:n]
	return buf
}

func (b *buffer) put() {
	b.b = b.b[:cap(b.b)]
	bufferPools[b.pool].Put(b)
}
