// Package access is the access server: it owns journals, answers for their volumes, and passes commands on to
// whoever owns the others, so that every access server of every site can serve every volume at any time.
//
// Start at Server (server.go): Disk gives the volume behind a journal to a protocol. Owner (owner.go) drives one
// journal in one epoch; takeover.go makes one; the rules themselves are package journal's Writer and Recover, the
// map is package volume's. Stamps, bars and request IDs (rule R9) are in late.go, leases (R6) in lease.go.
//
// An Owner has one loop without a goroutine of its own: whoever posts an event to an idle owner runs it until
// its queue is empty, so a lone write goes from the client's socket to two stores and back without changing
// goroutines more often than the network makes it. All state of an owner belongs to that loop.
//
// Offsets and lengths are bytes of the volume; a block is 4,096 bytes; ticks are milliseconds of CLOCK_BOOTTIME.
package access
