// Package journal is the ordered history of one volume or share: its records and segments as bytes, and the
// rules by which a record becomes part of the history. A record whose seq is at or below the commit point is
// on two core servers; callers may count on nothing else.
//
// Start at Record (record.go) and SegmentHeader (segment.go) for the bytes; Writer (writer.go) decides what
// an owner sends to whom and when it may answer; Recovery (recovery.go) decides what the history is after an
// owner died. Both are state machines: an event goes in, actions come out; they hold no goroutine, clock,
// socket or disk. Drivers in package access do what the actions say.
//
// Invariants: seq has no gaps; a record never spans two segments; one segment is one contiguous run of seq;
// a sealed segment never changes; replicas of a segment are the same bytes everywhere; acknowledgements are
// in seq order. Offsets and lengths are bytes, a block is 4,096 bytes of the volume.
// Bytes on disk: docs/format.md. Rules R1 to R16: docs/internals/rules.md.
package journal
