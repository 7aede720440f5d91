// Package proof is rule R9's bookkeeping of one connection: what the initiator has been told, and what its stream has proved
// that it received. A command is no newer than that, however late it is read.
//
// Proof comes from ExpStatSN (RFC 7143 11.4.8) and from echoes of pings, both in the order of the stream. A Stream has no lock:
// its connection's guards it. Ticks are those of the owner's clock, in the units of scsi.Stamp.
package proof

import (
	"dozo/internal/access/scsi"
	"dozo/internal/mutant"
)

// RingLen is how many PDUs with a StatSN are remembered. It is more than a window of commands: an initiator whose
// ExpStatSN lags further behind has proved nothing lately.
const RingLen = 1024

// Stream is what is known of one connection. The zero value has told and proved nothing.
//
// A ping's NOP-In has a StatSN but doesn't use it up (RFC 7143 11.19.2), so pings are remembered by their
// target transfer tag.
type Stream struct {
	sent   [RingLen]scsi.Stamp
	oldest uint32 // StatSNs from oldest to next-1 are remembered
	next   uint32
	pings  [8]struct {
		ttt   uint32
		stamp scsi.Stamp
	}
	pingAt int
	proved scsi.Stamp
	acked  uint32 // the ExpStatSN that proved comes from
}

// Start begins at the first StatSN that will be told.
func (s *Stream) Start(statSN uint32) { s.oldest, s.next, s.acked = statSN, statSN, statSN }

// Told notes that the PDU with the next StatSN, which it gives, was made at a moment.
func (s *Stream) Told(at scsi.Stamp) (statSN uint32) {
	s.sent[s.next%RingLen] = at
	s.next++
	if s.next-s.oldest > RingLen {
		s.oldest++
	}
	if mutant.On(mutant.R9Proof) {
		s.prove(at)
	}
	return s.next - 1
}

// Pinged notes a ping; ttt is not 0.
func (s *Stream) Pinged(ttt uint32, at scsi.Stamp) {
	s.pings[s.pingAt].ttt, s.pings[s.pingAt].stamp = ttt, at
	s.pingAt = (s.pingAt + 1) % len(s.pings)
	if mutant.On(mutant.R9Proof) {
		s.prove(at)
	}
}

// Echoed takes the answer to a ping: whatever follows in the stream was sent after the ping was received. It reports
// whether there was such a ping.
func (s *Stream) Echoed(ttt uint32) bool {
	for i := range s.pings {
		if s.pings[i].ttt == ttt && s.pings[i].ttt != 0 {
			s.prove(s.pings[i].stamp)
			s.pings[i].ttt = 0
			return true
		}
	}
	return false
}

// Expects takes a PDU's ExpStatSN: everything before it was received. One outside what was told proves nothing. It gives the
// stamp of what the PDU asks for.
func (s *Stream) Expects(expStatSN uint32) scsi.Stamp {
	if before(s.acked, expStatSN) && !before(s.next, expStatSN) {
		s.acked = expStatSN
		if last := expStatSN - 1; !before(last, s.oldest) {
			s.prove(s.sent[last%RingLen])
		}
	}
	return s.proved
}

// Acked is the highest ExpStatSN that was inside what was told.
func (s *Stream) Acked() uint32 { return s.acked }

// Proved is the newest moment that was proved so far.
func (s *Stream) Proved() scsi.Stamp { return s.proved }

func (s *Stream) prove(at scsi.Stamp) {
	if at.Newer(s.proved) {
		s.proved = at
	}
}

// before compares serial numbers (RFC 1982).
func before(a, b uint32) bool { return int32(a-b) < 0 }
