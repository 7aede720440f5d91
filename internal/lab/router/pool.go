package router

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// BlockSize is the unit of memory for packets.
	BlockSize = 4 << 10
	// packetBlocks is what the largest packet and its virtio header need.
	packetBlocks = (virtioLen+65535)/BlockSize + 1
	// memoryDefault holds 100 ms at 10 Gbit/s several times over, or 100,000 packets that fill no block.
	memoryDefault = 512 << 20
)

// packet is one packet under way. It has no pointers: the garbage collector has nothing to follow.
type packet struct {
	block [packetBlocks]uint32
	bytes uint32 // with the virtio header
	refs  uint32 // segments that are under way
	head  uint16 // length of IP and TCP header, of a super-packet
	l4    uint16 // where the TCP header begins in the IP packet
}

// pool is the memory for packets, taken from the kernel once and touched only as it is needed: free blocks and
// packets are given out last in, first out.
type pool struct {
	mem     []byte
	free    []uint32
	packets []packet
	idle    []uint32
}

func newPool(bytes int) (*pool, error) {
	if bytes == 0 {
		bytes = memoryDefault
	}
	n := bytes / BlockSize
	if n < 2*packetBlocks {
		return nil, fmt.Errorf("%d bytes of memory for packets: too little", bytes)
	}
	mem, err := unix.Mmap(-1, 0, n*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for packets: %w", err)
	}
	// A packet has a block at least, so there are never more packets than blocks.
	p := &pool{mem: mem, free: make([]uint32, n), packets: make([]packet, n), idle: make([]uint32, n)}
	for i := range n {
		p.free[i], p.idle[i] = uint32(n-1-i), uint32(n-1-i)
	}
	return p, nil
}

func (p *pool) close() error { return unix.Munmap(p.mem) }

func (p *pool) data(block uint32) []byte {
	at := int(block) * BlockSize
	return p.mem[at : at+BlockSize : at+BlockSize]
}

// take gives a block; the caller has looked that there is one.
func (p *pool) take() uint32 {
	b := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return b
}

func (p *pool) newPacket() uint32 {
	i := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return i
}

// release gives segments of a packet back, and its blocks with the last.
func (p *pool) release(id uint32, segments uint16) {
	k := &p.packets[id]
	k.refs -= uint32(segments)
	if k.refs > 0 {
		return
	}
	for i := range blocksOf(int(k.bytes)) {
		p.free = append(p.free, k.block[i])
	}
	p.idle = append(p.idle, id)
}

func blocksOf(bytes int) int { return (bytes + BlockSize - 1) / BlockSize }
