package journal

import (
	"encoding/binary"

	"dozo/internal/ident"
)

// A Run is a cursor over encoded records that lie one behind the other: what an append carries, what a
// replica's file holds. It verifies as it goes and allocates nothing.
//
//	run := Run{Segment: id, At: before, Offset: off, Bodies: true}
//	for len(data) > 0 {
//		n, err := run.Next(data)
//		...               // run.Record is the record in data[:n]
//		data = data[n:]
//	}
type Run struct {
	Segment ident.SegmentID
	At      ident.Position // after the last record taken; set it to what precedes the first
	Offset  uint32         // of the next record in the segment
	Bodies  bool           // verify bodies too
	Record  Record         // the last record taken
}

// Next takes the record at the start of data and returns its size. On an error nothing has been taken; the
// error is a *CorruptionError (its Offset set), a *VersionError, or ErrCutOff when data ends within the
// record.
func (c *Run) Next(data []byte) (int, error) {
	if len(data) < RecordHeaderSize {
		return 0, ErrCutOff
	}
	head, err := HeadLen(data)
	if err != nil {
		return 0, c.at(err)
	}
	if len(data) < head {
		return 0, ErrCutOff
	}
	var r Record
	if err := r.Decode(data); err != nil {
		return 0, c.at(err)
	}
	size := RecordSize(r.StoredLen)
	if len(data) < size {
		return 0, ErrCutOff
	}
	if r.Journal != c.Segment.Journal {
		return 0, c.at(corrupt("record of journal %s in a segment of %s", r.Journal, c.Segment.Journal))
	}
	if c.Segment.Epoch.Less(r.Epoch) {
		return 0, c.at(corrupt("record of epoch %s in a segment of epoch %s", r.Epoch, c.Segment.Epoch))
	}
	if err := r.VerifyChain(c.At, data); err != nil {
		return 0, c.at(err)
	}
	if c.Bodies {
		if err := r.VerifyBody(data[:size]); err != nil {
			return 0, c.at(err)
		}
	}
	c.Record = r
	c.At = r.Position()
	c.Offset += uint32(size)
	return size, nil
}

func (c *Run) at(err error) error {
	if e, ok := err.(*CorruptionError); ok && e.Offset < 0 {
		e.Offset = int64(c.Offset)
	}
	return err
}

// ErrCutOff says that bytes end within a record.
var ErrCutOff = errCutOff{}

type errCutOff struct{}

func (errCutOff) Error() string { return "record cut off" }

// SizeAt is the size of the record that starts at b, from its header alone; ErrCutOff if b is too short for a
// header. Nothing is verified but the limits.
func SizeAt(b []byte) (int, error) {
	if len(b) < RecordHeaderSize {
		return 0, ErrCutOff
	}
	if _, err := HeadLen(b); err != nil {
		return 0, err
	}
	return RecordSize(binary.LittleEndian.Uint32(b[16:])), nil
}
