package proof

import (
	"testing"

	"dozo/internal/access/scsi"
)

func TestTheRingForgets(t *testing.T) {
	var s Stream
	s.Start(0xfffffff0) // the numbers wrap
	for i := range uint64(RingLen + 50) {
		s.Told(scsi.Stamp{Tick: i + 1})
	}
	if got := s.Expects(4); got.Tick != 0 {
		t.Errorf("a StatSN older than the ring proved %d", got.Tick)
	}
	var last uint32 = 0xfffffff0
	last += RingLen + 50
	if got := s.Expects(last); got.Tick != RingLen+50 {
		t.Errorf("the newest StatSN proved %d", got.Tick)
	}
	if got := s.Expects(last - 5); got.Tick != RingLen+50 {
		t.Errorf("an older ExpStatSN took the proof back: %d", got.Tick)
	}
}

// A ping is proved by its echo, once, and by no StatSN.
func TestAnEchoProvesItsPing(t *testing.T) {
	var s Stream
	s.Start(7)
	s.Told(scsi.Stamp{Tick: 1})
	s.Pinged(41, scsi.Stamp{Tick: 2})
	s.Pinged(42, scsi.Stamp{Tick: 3})
	if got := s.Expects(8); got.Tick != 1 {
		t.Errorf("without an echo: %d", got.Tick)
	}
	if s.Echoed(40) || s.Echoed(0) {
		t.Error("an echo of no ping")
	}
	if !s.Echoed(41) || s.Expects(8).Tick != 2 {
		t.Errorf("the first ping's echo proves %d", s.Expects(8).Tick)
	}
	if s.Echoed(41) {
		t.Error("a ping is echoed twice")
	}
}
