package wire

import (
	"dozo/internal/ident"
)

// Blocks asks a node for its part of the block manager: how its stores are, and what its owners have to copy.
type Blocks struct {
	Stores   bool // tell of stores
	Journals bool // tell of journals
}

// BlocksReply answers Blocks.
type BlocksReply struct {
	Boot     ident.BootID // tells file systems of one host from those of another
	RateBps  uint64       // bytes a second that the node's owners copied lately
	LimitBps uint64       // that they may copy; 0: no limit
	Copied   uint64       // bytes copied since the node's process began
	Stores   []StoreBlocks
	Journals []JournalBlocks
}

// StoreBlocks is how a store is.
type StoreBlocks struct {
	Store      ident.StoreID
	FileSystem uint64 // tells the file systems of a host apart: stores that share one have its space only once
	// Bytes of the file system; Capacity may be less.
	FileSystemBytes uint64
	Capacity        uint64 // bytes that the store may have
	Free            uint64 // bytes of them
	Used            uint64 // bytes in replicas
	Replicas        uint64
	Corrupt         uint64 // replicas found damaged since the process began
	Aside           uint64
	Failed          string // not empty: it takes no appends any more, and why

	// The scrubber.
	ScrubPassed uint64 // when the last full pass ended, nanoseconds since 1970; 0: none has
	ScrubBegan  uint64 // when the present one began
	ScrubDone   uint64 // bytes that it has read
	ScrubTotal  uint64 // bytes that it will have read
	ScrubFound  uint64 // damaged replicas found since the store was made
	ScrubHealed uint64 // of them, those that were made again or are good elsewhere
	ScrubNow    bool   // it runs as fast as it can because somebody asked for it
	Damaged     []DamagedReplica
}

// DamagedReplica is a sealed replica in which a bad place was found.
type DamagedReplica struct {
	Segment ident.SegmentID
	Made    uint64 // Replica.Made
}

// JournalBlocks is what an owner has to copy, as it last saw it.
type JournalBlocks struct {
	Journal       ident.JournalID
	Degraded      uint32 // segments with fewer copies that can be reached than they should have
	DegradedBytes uint64
	Single        uint32 // of them, those with one copy left, or none
	Missing       uint64 // bytes that have to be copied for them now; less than DegradedBytes while a store is waited for
	Emptying      uint32 // segments at stores that are being emptied
	EmptyingBytes uint64
	Moving        uint32 // segments that would even the use of stores out
	MovingBytes   uint64
	Stuck         uint32 // segments that can not be copied now: no source, or no store to take them
	Running       uint32 // segments being copied
	Copied        uint64 // bytes copied since the owner began
}

// Type implements Message.
func (*Blocks) Type() Type { return TypeBlocks }

// Type implements Message.
func (*BlocksReply) Type() Type { return TypeBlocks }

func (m *Blocks) walk(c *coder) {
	c.boolean(&m.Stores)
	c.boolean(&m.Journals)
}

func (m *BlocksReply) walk(c *coder) {
	c.boot(&m.Boot)
	c.u64(&m.RateBps)
	c.u64(&m.LimitBps)
	c.u64(&m.Copied)
	list(c, &m.Stores, 16+14*8+2+1+4, func(c *coder, s *StoreBlocks) {
		c.store(&s.Store)
		for _, n := range []*uint64{&s.FileSystem, &s.FileSystemBytes, &s.Capacity, &s.Free, &s.Used, &s.Replicas, &s.Corrupt, &s.Aside} {
			c.u64(n)
		}
		c.text(&s.Failed, detailMax)
		for _, n := range []*uint64{&s.ScrubPassed, &s.ScrubBegan, &s.ScrubDone, &s.ScrubTotal, &s.ScrubFound, &s.ScrubHealed} {
			c.u64(n)
		}
		c.boolean(&s.ScrubNow)
		list(c, &s.Damaged, segmentSize+8, func(c *coder, d *DamagedReplica) {
			c.segment(&d.Segment)
			c.u64(&d.Made)
		})
	})
	list(c, &m.Journals, 16+6*4+5*8, func(c *coder, j *JournalBlocks) {
		c.journal(&j.Journal)
		c.u32(&j.Degraded)
		c.u64(&j.DegradedBytes)
		c.u32(&j.Single)
		c.u64(&j.Missing)
		c.u32(&j.Emptying)
		c.u64(&j.EmptyingBytes)
		c.u32(&j.Moving)
		c.u64(&j.MovingBytes)
		c.u32(&j.Stuck)
		c.u32(&j.Running)
		c.u64(&j.Copied)
	})
}
