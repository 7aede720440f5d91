// Package wan is the network between the sites of a lab, as a state machine on virtual time: what happens to a
// packet that enters it now, and when. It does no I/O and reads no clock.
//
// Start at Network. A packet passes three queues, each with a rate and a drop-tail buffer, and one distance:
//
//	site A ─ up ─┐                                   ┌─ down ─ site B
//	 access link └─ queue of A→B ─ loss, delay, cut ─┘ access link
//
// The caller owns the Network and calls it from one goroutine: Advance(now), then Send(now, ...) for what
// has come; Next says when Advance is due again. Every event is carried out at the time at which it was due, however
// late Advance is called, so that a caller's lateness delays single packets and changes neither rates nor queues.
//
// A packet may be a super-packet of TCP segments (segmentation offload). It travels as Runs, which are
// consecutive segments of one packet: queues count, drop and time each segment by itself, and a Run leaves a
// queue at once when it stands for at most runTime of the line, otherwise cut into several.
//
// Always true: the same calls with the same seed give the same results; every segment that was sent is handed
// to Sink.Deliver or Sink.Drop exactly once, or is still under way; between two sites segments stay in
// order, but for those that Path.Reorder picks. Sizes are bytes of IP packets, headers included; rates are
// bits a second of the same.
package wan
