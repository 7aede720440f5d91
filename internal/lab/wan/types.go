package wan

import (
	"math"
	"time"
)

// Time is a moment on the caller's monotonic clock, in nanoseconds. It never goes back.
type Time int64

// Add gives the moment d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub gives the time from u to t.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Never is later than everything.
const Never Time = math.MaxInt64

// Rate is bits a second; 0: no limit.
type Rate int64

// duration is how long that many bytes occupy the line.
func (r Rate) duration(bytes int) time.Duration {
	// 2^20 bytes * 8 * 10^9 fit in 63 bits; a run is at most 64 KiB and its headers.
	return time.Duration(int64(bytes) * 8 * int64(time.Second) / int64(r))
}

// bytesIn is what passes in that time.
func (r Rate) bytesIn(d time.Duration) int {
	return int(float64(r) / 8 * d.Seconds())
}

// Run is consecutive segments of one packet. A packet that is no super-packet is one segment.
type Run struct {
	// Packet is the caller's name for the packet.
	Packet uint32
	// First and Count are the segments: 0 <= First, 1 <= Count, First+Count <= Total.
	First, Count uint16
	// Total is the number of segments of the packet, and Tail the payload bytes of the last.
	Total, Tail uint16
	// Head is what every segment carries besides payload, Seg the payload of every segment but the last.
	// A packet that is no super-packet has all its bytes in Head.
	Head, Seg uint16
	// From and To are sites.
	From, To uint8
}

// Single is the run of a packet of one segment.
func Single(packet uint32, bytes int) Run {
	return Run{Packet: packet, Count: 1, Total: 1, Head: uint16(bytes)}
}

// Super is the run of a super-packet: head bytes of headers, payload bytes cut every seg bytes.
func Super(packet uint32, head, seg, payload int) Run {
	if payload <= seg {
		return Run{Packet: packet, Count: 1, Total: 1, Head: uint16(head), Tail: uint16(payload)}
	}
	n := (payload + seg - 1) / seg
	return Run{Packet: packet, Count: uint16(n), Total: uint16(n), Tail: uint16(payload - (n-1)*seg), Head: uint16(head), Seg: uint16(seg)}
}

// segment gives the bytes of segment i of the packet.
func (r *Run) segment(i uint16) int {
	if i == r.Total-1 {
		return int(r.Head) + int(r.Tail)
	}
	return int(r.Head) + int(r.Seg)
}

// Bytes is what the run's segments have on the line, headers included.
func (r *Run) Bytes() int {
	n := int(r.Count) * (int(r.Head) + int(r.Seg))
	if r.First+r.Count == r.Total {
		n += int(r.Tail) - int(r.Seg)
	}
	return n
}

// Whole reports that the run is the whole packet.
func (r *Run) Whole() bool { return r.Count == r.Total }

// cut splits the run after n segments, 0 < n < Count.
func (r Run) cut(n uint16) (head, rest Run) {
	head, rest = r, r
	head.Count = n
	rest.First, rest.Count = r.First+n, r.Count-n
	return head, rest
}

// Line is a rate and the drop-tail buffer before it.
type Line struct {
	Rate Rate
	// Buffer is what may wait, in bytes, with what is being sent; 0: AutoBuffer.
	Buffer int
}

// Path is the way from one site to another.
type Path struct {
	Line
	// Delay is the time that every packet takes besides its time in queues; Jitter is the most by which it
	// differs, evenly spread to both sides. A packet does not overtake another by jitter.
	Delay, Jitter time.Duration
	// Loss and Reorder are probabilities for each segment, 0 to 1. One that is picked for reordering takes
	// ReorderBy longer, and those behind it do not wait.
	Loss, Reorder float64
	ReorderBy     time.Duration
	// Cut: nothing arrives any more, not even what was under way.
	Cut bool
}

// Bounds of an automatic buffer: what a router of that rate has, at least one super-packet.
const (
	autoBufferTime = 20 * time.Millisecond
	autoBufferMin  = 64 << 10
)

// AutoBuffer is the buffer of a line that was given none: a round trip's worth, and 20 ms at least.
func AutoBuffer(r Rate, delay time.Duration) int {
	return max(autoBufferMin, r.bytesIn(max(2*delay, autoBufferTime)))
}

// Cause says why a segment was dropped.
type Cause uint8

// Causes.
const (
	DropQueue Cause = iota // a buffer was full
	DropLoss               // picked by Path.Loss
	DropCut                // the path is cut
)

// Sink gets what leaves the network. Its methods must not call the Network.
type Sink interface {
	// Deliver: the run arrives at site r.To; it was due at that moment.
	Deliver(r Run, due Time)
	// Drop: the run is lost.
	Drop(r Run, why Cause)
}

// PathStats count what came of the segments of one direction between two sites. Queues of access links count to
// the direction of the packet.
type PathStats struct {
	Sent, Delivered, DeliveredBytes           uint64
	DroppedQueue, Lost, DroppedCut, Reordered uint64
}

// QueueStats say what waits on a line.
type QueueStats struct {
	Bytes, BytesMax int // now, and the most there ever was
	Passed, Dropped uint64
	PassedBytes     uint64
}
