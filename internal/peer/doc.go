// Package peer carries the frames of package wire between nodes: it dials, accepts, authenticates, keeps
// alive, and turns a store behind a connection into a journal.Store and back.
//
// Start at Pool.Store for the asking side and at Server for the answering one. A link is one connection of
// either side; its stages, in the order in which a request passes them: batch.add (encode), link.flush (the
// combining writer), socket.write; then socket.read, link.readLoop, and the side's handle.
//
// Who owns what: a link's reader goroutine owns its read buffer and runs every callback of what it reads; its
// flusher goroutine writes when the socket is full or the link is paced. Everybody else who has something to
// send writes it himself if nobody is writing, together with what others add meanwhile. Pool.Close and
// Server.Close return when all goroutines are gone.
//
// Always true: frames of one link arrive in the order in which they were queued. A request gets exactly one
// answer: the peer's, or wire.ErrUnreached when its connection ends. Data handed in is not touched after the
// answer. A malformed frame ends its own connection and nothing else. Memory per connection is bounded by
// Options.QueueMax for what is to be sent and Options.InflightMax for requests that are being worked on.
//
// Sizes are bytes. Bytes on the wire: docs/wire.md.
package peer
