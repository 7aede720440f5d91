// Package iscsi is the target side of iSCSI (RFC 7143): portals, login, sessions, and the transport of SCSI
// commands to the device servers of package scsi. It doesn't know what is behind a target: a Provider says
// which targets there are and opens one at login.
//
// Start at Server. A connection has two goroutines: the reader (conn.go) takes PDUs from the socket and
// carries each as far as it gets without waiting; the writer (out.go) runs only while the socket takes no
// more. A command's completion, on whatever goroutine, appends its PDUs to the connection's out queue, and
// if nobody is writing, writes them itself, never waiting for the socket. The life of a command:
//
//	SCSI Command ─> Prepare ─┬─ no data-out ────────────────────────┬─> Execute ─> Finish ─> out queue
//	                         └─ Allocate, immediate data, Data-Out,  │
//	                            R2T for the rest, all data in ───────┘
//
// Commands beyond the memory bounds wait in a queue between Prepare and Allocate; what an initiator may send
// unasked is bounded by the command window and FirstBurstLength.
//
// A session has up to MaxConnections connections (join.go). Where its commands may arrive out of order, Session.order
// holds those that are early and delivers them by number (order.go).
//
// At recovery level 1 what was sent is kept until it is acknowledged (recovery.go).
//
// Invariants: the reader never waits for a command, so Data-Out always gets through; StatSN is given in the
// order of the stream; the socket is written by whoever holds the writer role, one at a time; every task's
// memory is given back exactly once, also when its connection dies.
//
// Rule R9: with every PDU that has a StatSN, and with every ping, goes the Stamp of that moment; a command
// carries the stamp of the newest one that its own stream proves was received before it was sent (package proof).
//
// Bytes: RFC 7143 section 11, RFC 7144.
package iscsi
