package iscsi

import (
	"dozo/internal/access/scsi"
	"dozo/internal/mutant"
)

// stampRing remembers with which stamp each of the latest PDUs with a StatSN was made. It holds more than a
// window of commands: an initiator whose ExpStatSN lags further behind has proved nothing lately.
const stampRingLen = 1024

// stamps is rule R9's bookkeeping of one connection: what the initiator has been told, and what its stream
// has proved that it received. Proof comes from ExpStatSN and from echoes of pings, both in the order of the
// stream.
//
// A ping's NOP-In has a StatSN but doesn't use it up (RFC 7143 11.19.2), so pings are remembered by their
// target transfer tag.
type stamps struct {
	sent   [stampRingLen]scsi.Stamp
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

// start begins at the first StatSN that will be told.
func (s *stamps) start(statSN uint32) { s.oldest, s.next, s.acked = statSN, statSN, statSN }

// told notes that the PDU with StatSN next was made at a moment.
func (s *stamps) told(at scsi.Stamp) {
	s.sent[s.next%stampRingLen] = at
	s.next++
	if s.next-s.oldest > stampRingLen {
		s.oldest++
	}
}

// pinged notes a ping.
func (s *stamps) pinged(ttt uint32, at scsi.Stamp) {
	s.pings[s.pingAt].ttt, s.pings[s.pingAt].stamp = ttt, at
	s.pingAt = (s.pingAt + 1) % len(s.pings)
}

// echoed takes the answer to a ping: whatever follows in the stream was sent after the ping was received.
func (s *stamps) echoed(ttt uint32) bool {
	for i := range s.pings {
		if s.pings[i].ttt == ttt && s.pings[i].ttt != 0 {
			s.prove(s.pings[i].stamp)
			s.pings[i].ttt = 0
			return true
		}
	}
	return false
}

// expects takes a PDU's ExpStatSN: everything before it was received. One outside what was told proves
// nothing.
func (s *stamps) expects(expStatSN uint32) scsi.Stamp {
	if mutant.On(mutant.R9Proof) && s.next != s.oldest {
		return s.sent[(s.next-1)%stampRingLen]
	}
	if before(s.acked, expStatSN) && !before(s.next, expStatSN) {
		s.acked = expStatSN
		if last := expStatSN - 1; !before(last, s.oldest) {
			s.prove(s.sent[last%stampRingLen])
		}
	}
	return s.proved
}

func (s *stamps) prove(at scsi.Stamp) {
	if at.Newer(s.proved) {
		s.proved = at
	}
}
