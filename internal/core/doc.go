// Package core is the core server: it keeps replicas of segments on local disks, takes appends, serves reads,
// fences old owners and grants leases.
//
// Start at Store (store.go), one for each data directory on one disk; it implements journal.Store. A write
// goes through append.go, becomes stable in sync.go and immutable in seal.go; fence.go and lease.go hold R6;
// restart.go says what is believed of a disk after a crash. What must survive a power cut apart from the
// records (fences, which replicas are open or sealed) is in the notes log: notes.go for its bytes,
// noteslog.go for the writer. drop.go lets replicas go, and spares.go writes new ones over their files.
//
// The Store owns all state. Locks are taken in the order Leases.mu, replica.mu, journal.mu, notesLog.mu;
// Store.mu, handles.mu and spares.mu are leaves: nothing else is locked while they are held. None is held across
// I/O but replica.mu, while the kernel takes the bytes of an append: that keeps the appends of a segment in order.
// replica.sealing serialises whole operations (seal, drop) of one replica and is taken before all of them.
//
// Always true: a fence is durable before anything of its epoch is taken; a replica's durable note exists
// before its first record; bytes in front of a replica's end never change; a sealed replica never changes; a
// file whose fdatasync failed is never believed again; what a file held as an older segment's is never taken for
// the new one's, nor read by who still asks for the old one. Offsets and lengths are bytes within a segment file.
// Bytes on disk: docs/format.md.
package core
