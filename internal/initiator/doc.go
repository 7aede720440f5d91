// Package initiator is an iSCSI initiator in user space (RFC 7143): what the load generator, the crash
// checks, the protocol tests and backups to foreign LUNs speak to a target with. It shares no code with
// the target in internal/access/iscsi on purpose: two readings of the standard that meet on the wire find
// the misreading that one shared codec would hide.
//
// Start at Dial, which logs a Session in, and Session.Submit, which sends one Command and calls its Done
// when the answer is there. Disk is a logical unit with block-sized calls on top. Discover lists targets.
//
// Stages of a command, in the order of the files:
//
//	Submit        session.go   caller's goroutine: CmdSN, task tag, PDUs into the connection's queue
//	flush         send.go      whoever finds the connection idle writes all that is queued with one sendmsg;
//	                           what the socket does not take is left to the connection's writer goroutine
//	readLoop      recv.go      one goroutine a connection: reads large, handles every whole PDU in the buffer,
//	                           then runs the callbacks, then flushes what these submitted, once; many connections
//	                           may share one goroutine (poller.go, Config.Poller)
//	manage        recover.go   one goroutine a session: pings, timeouts, reconnection, replay
//
// Ownership: Session.mu guards everything of a session and of its connections, except the socket itself (its
// reader and the one writer that set conn.writing) and the receive buffer (the reader). Done is called without
// the lock, from the goroutine that found the command finished; it may call Submit and must not block.
//
// Always true: a command's buffers are not touched after its Done; Done is called exactly once for every
// Submit; CmdSN grows in the order of Submit; on one connection PDUs leave in the order in which they were
// queued. Close returns when all goroutines of the session are gone.
//
// Lengths and offsets are bytes, LBAs are the unit's logical blocks. The bytes on the wire are those of
// RFC 7143 section 11; pdu.go names the offsets.
package initiator
