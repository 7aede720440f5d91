// Package wire is what nodes say to each other: frames, the messages in them, and the errors that come back.
// It encodes and decodes; it opens no sockets (package peer does) and knows no rules (journal and core do).
//
// Start at messages.go. Messages are plain structs; a local store and one behind a connection take the same
// ones. All state belongs to the callers.
//
// Offsets and lengths are bytes within a segment file. Bytes on the wire: docs/wire.md.
package wire
