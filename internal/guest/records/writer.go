package records

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Job says what to write, and where.
type Job struct {
	Device string `json:"device"`
	Run    uint64 `json:"run"`
	Slots  int    `json:"slots"`
	// Interval is the time from the beginning of a record to that of the next; one that took longer is followed at once.
	Interval time.Duration `json:"interval_ns"`
}

// Validate says what is wrong with a job.
func (j Job) Validate() error {
	if j.Slots < 2 || j.Slots > 1<<20 || j.Run == 0 || j.Interval < 0 {
		return fmt.Errorf("records: job %+v: want 2 to 1048576 slots, a run and an interval that is not negative", j)
	}
	return nil
}

// Disk is what Writer writes to. WriteAt may keep data in a cache, Sync makes it stable.
type Disk interface {
	io.WriterAt
	Sync() error
}

// AckBytes is the length of an acknowledgement as Writer prints it.
const AckBytes = 16

// Ack is one acknowledgement: a record's number, and how long it took by the guest's clock, which stands still while
// the guest does.
type Ack struct {
	Number uint64
	Took   time.Duration
}

// AppendAck appends 16 bytes: the number and nanoseconds, little-endian.
func AppendAck(b []byte, a Ack) []byte {
	b = binary.LittleEndian.AppendUint64(b, a.Number)
	return binary.LittleEndian.AppendUint64(b, uint64(a.Took))
}

// ParseAck reads what AppendAck wrote.
func ParseAck(b []byte) (Ack, error) {
	if len(b) < AckBytes {
		return Ack{}, errors.New("records: short acknowledgement")
	}
	return Ack{binary.LittleEndian.Uint64(b), time.Duration(binary.LittleEndian.Uint64(b[8:]))}, nil
}

// Write writes records into block, BlockBytes of memory that the disk can take, and prints each once it is stable,
// until the context ends, which is no error.
func Write(ctx context.Context, d Disk, block []byte, j Job, out io.Writer) error {
	if err := j.Validate(); err != nil {
		return err
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	var ack [AckBytes]byte
	for n := uint64(1); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		began := time.Now()
		Append(block[:0], j.Run, n)
		if _, err := d.WriteAt(block[:BlockBytes], int64(n%uint64(j.Slots))*BlockBytes); err != nil {
			return fmt.Errorf("record %d: %w", n, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("record %d: flush: %w", n, err)
		}
		if _, err := out.Write(AppendAck(ack[:0], Ack{n, time.Since(began)})); err != nil {
			return err
		}
		pause.Reset(time.Until(began.Add(j.Interval)))
	}
}
