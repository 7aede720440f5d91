package access

import (
	"sync"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// FarCache keeps blocks that were read at other sites, for all owners of a node. A block is known by the place where it
// was written, which never holds anything else: segments don't change, their names are not used again, and the map says
// for every read anew where its blocks lie. So nothing here is ever out of date, however late it was put in; what no map
// points at any more is never asked for, and goes when room is wanted.
type FarCache struct {
	most int // blocks

	mu struct {
		sync.Mutex
		at     map[farKey]int32
		blocks []farBlock // made as they are needed; a ring by last use, through 0, which is no block
	}
}

// farKey is the place of a block.
type farKey struct {
	segment ident.SegmentID
	record  uint32
	block   uint16
}

type farBlock struct {
	key        farKey
	prev, next int32
	data       []byte
}

// NewFarCache makes a cache of at most so many bytes; nil, which caches nothing, if that is no block.
func NewFarCache(bytes int64) *FarCache {
	c := &FarCache{most: int(min(bytes/journal.BlockSize, 1<<30))}
	if c.most < 1 {
		return nil
	}
	c.mu.at = map[farKey]int32{}
	c.mu.blocks = make([]farBlock, 1, 64)
	return c
}

// has reports whether a block is there; it counts as no use.
func (c *FarCache) has(k farKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.mu.at[k]
	return ok
}

// read appends the blocks of a piece to dst, if all are there.
func (c *FarCache) read(dst []byte, p wire.ReadPiece) ([]byte, bool) {
	if c == nil {
		return dst, false
	}
	start := len(dst)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p.Blocks {
		n, ok := c.mu.at[farKey{p.Segment, p.Record, p.First + i}]
		if !ok {
			return dst[:start], false
		}
		c.firstLocked(n)
		dst = append(dst, c.mu.blocks[n].data...)
	}
	return dst, true
}

// put keeps the blocks of a piece.
func (c *FarCache) put(p wire.ReadPiece, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p.Blocks {
		k, d := farKey{p.Segment, p.Record, p.First + i}, data[int(i)*journal.BlockSize:][:journal.BlockSize]
		if n, ok := c.mu.at[k]; ok {
			c.firstLocked(n)
			continue
		}
		n := int32(len(c.mu.blocks))
		if int(n) > c.most {
			n = c.mu.blocks[0].prev // the one that was used longest ago
			c.unlinkLocked(n)
			delete(c.mu.at, c.mu.blocks[n].key)
		} else {
			c.mu.blocks = append(c.mu.blocks, farBlock{data: make([]byte, journal.BlockSize)})
		}
		b := &c.mu.blocks[n]
		b.key = k
		copy(b.data, d)
		c.mu.at[k] = n
		c.linkLocked(n)
	}
}

func (c *FarCache) firstLocked(n int32) {
	c.unlinkLocked(n)
	c.linkLocked(n)
}

func (c *FarCache) unlinkLocked(n int32) {
	b := c.mu.blocks
	b[b[n].prev].next, b[b[n].next].prev = b[n].next, b[n].prev
}

func (c *FarCache) linkLocked(n int32) {
	b := c.mu.blocks
	b[n].prev, b[n].next = 0, b[0].next
	b[b[0].next].prev, b[0].next = n, n
}

// Bytes is what the cache holds.
func (c *FarCache) Bytes() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(len(c.mu.at)) * journal.BlockSize
}
