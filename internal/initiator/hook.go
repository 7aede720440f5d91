package initiator

import "time"

// Hooks see every PDU of a session, also during login, and can break it: for protocol tests. With a hook set the
// connection builds and sends PDU by PDU, so it is slower. A hook is called without locks, one call at a time for
// each connection and direction.
type Hooks struct {
	// Out is called before the digests are computed; it may change p in place, also replace AHS and Data (Data
	// points into the command's buffer: copy before writing to it).
	Out func(cid uint16, p *PDU) Action
	// In is called after the digests were checked, before anything else looks at p.
	In func(cid uint16, p *PDU) Action
}

// Action is what a hook wants done with the PDU. The zero Action lets it pass.
type Action struct {
	Drop  bool          // as if the network had lost it
	Delay time.Duration // stalls this direction of the connection first
	// Truncate, if not 0, sends only that many bytes of the PDU (Out only; -1: none).
	Truncate int
	// BreakHeaderDigest and BreakDataDigest flip bits of a digest (Out), or pretend that it was wrong (In:
	// BreakDataDigest only).
	BreakHeaderDigest, BreakDataDigest bool
	// Raw, if not nil, is sent instead of the PDU.
	Raw []byte
	// CloseWrite shuts down our direction of the connection after this PDU, Reset drops the connection.
	CloseWrite, Reset bool
}
