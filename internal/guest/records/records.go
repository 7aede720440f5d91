package records

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// BlockBytes is the size of a record: what every disk takes as one block.
const BlockBytes = 4096

// magic begins a block.
const magic = "DOZOREC1"

// crcOffset is where the checksum lies, behind all that it covers.
const crcOffset = BlockBytes - 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged: a block begins as a record does, but its checksum is wrong or it lies in another's slot.
var ErrDamaged = errors.New("damaged record")

// Append appends the block of a record of a run:
//
//	off  size  field
//	  0     8  "DOZOREC1"
//	  8     8  run, little-endian: tells one run's records from those of an earlier one
//	 16     8  number, little-endian
//	 24  4068  the number again and again, so that every sector of 512 bytes tells whose it is
//	4092     4  CRC-32C of all before it
func Append(b []byte, run, number uint64) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, run)
	b = binary.LittleEndian.AppendUint64(b, number)
	for len(b)-start < crcOffset-4 {
		b = binary.LittleEndian.AppendUint64(b, number)
	}
	b = append(b, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// Parse gives the number of the record in a block: 0 if there is none of this run.
func Parse(b []byte, run uint64) (uint64, error) {
	if len(b) != BlockBytes {
		return 0, fmt.Errorf("block of %d bytes", len(b))
	}
	if string(b[:8]) != magic {
		return 0, nil
	}
	if crc32.Checksum(b[:crcOffset], castagnoli) != binary.LittleEndian.Uint32(b[crcOffset:]) {
		return 0, ErrDamaged
	}
	if binary.LittleEndian.Uint64(b[8:]) != run {
		return 0, nil
	}
	n := binary.LittleEndian.Uint64(b[16:])
	if n == 0 {
		return 0, ErrDamaged
	}
	return n, nil
}

// Findings say what became of the records.
type Findings struct {
	// Checked is how many acknowledged records should still lie on the disk: later ones take the slots of earlier ones.
	Checked int `json:"checked"`
	// Lost are acknowledged records that are not there. Reordered are those of them of which a later one is there:
	// the others are a tail that is missing, as if the disk had gone back in time.
	Lost      int `json:"lost"`
	Reordered int `json:"reordered"`
	// Damaged are slots that hold no whole record, or one that was never written there.
	Damaged int    `json:"damaged"`
	First   string `json:"first,omitempty"` // the first thing wrong, in words
}

// OK says that nothing is wrong.
func (f Findings) OK() bool { return f.Lost == 0 && f.Damaged == 0 }

// Check reads a ring whose records up to acked were acknowledged; the next may have been under way.
func Check(r io.ReaderAt, slots int, run, acked uint64) (Findings, error) {
	var f Findings
	wrong := func(format string, args ...any) {
		if f.First == "" {
			f.First = fmt.Sprintf(format, args...)
		}
	}
	found := make([]uint64, slots)
	const batch = 256
	buf := make([]byte, batch*BlockBytes)
	var newest uint64
	for first := 0; first < slots; first += batch {
		n := min(batch, slots-first)
		if _, err := r.ReadAt(buf[:n*BlockBytes], int64(first)*BlockBytes); err != nil && !errors.Is(err, io.EOF) {
			return f, fmt.Errorf("read records: %w", err)
		}
		for i := range n {
			slot := first + i
			number, err := Parse(buf[i*BlockBytes:(i+1)*BlockBytes], run)
			if err != nil || number > acked+1 || number != 0 && number%uint64(slots) != uint64(slot) {
				f.Damaged++
				wrong("slot %d: %v, number %d", slot, err, number)
				continue
			}
			found[slot] = number
			newest = max(newest, number)
		}
	}
	oldest := uint64(1)
	if acked >= uint64(slots) {
		oldest = acked - uint64(slots) + 1
	}
	for n := oldest; n <= acked; n++ {
		got := found[n%uint64(slots)]
		f.Checked++
		// The one that was under way may lie where the oldest lay.
		if got == n || got == acked+1 {
			continue
		}
		f.Lost++
		if newest > n {
			f.Reordered++
		}
		wrong("record %d was acknowledged; its slot has %d, and the newest on the disk is %d", n, got, newest)
	}
	return f, nil
}
