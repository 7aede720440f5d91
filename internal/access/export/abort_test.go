package export

import (
	"testing"

	"dozo/internal/access/scsi"
)

// An ABORT TASK is about all parts of its command, and about no other command.
func TestAnAbortNamesAllPartsOfItsCommand(t *testing.T) {
	s := &session{}
	for seq := uint64(1); seq < 70; seq++ {
		m := s.abortOf(scsi.RequestID{Conn: 3, Seq: seq, Part: 5})
		barred := func(seq, part uint64) bool {
			id := requestID(scsi.RequestID{Conn: 3, Seq: seq, Part: uint32(part)})
			return id.Forwarder == m.Forwarder && m.First <= id.Number && id.Number <= m.Last
		}
		for _, part := range []uint64{0, 1, 1<<partBits - 1} {
			if !barred(seq, part) {
				t.Errorf("command %d: part %d is not barred: %x to %x", seq, part, m.First, m.Last)
			}
			if barred(seq-1, part) || barred(seq+1, part) {
				t.Errorf("command %d: another one is barred: %x to %x", seq, m.First, m.Last)
			}
		}
	}
}
