package history

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// The log file is a header and records, little-endian:
//
//	header, 64 bytes                              record, 32 bytes
//	off  size  field                              off  size  field
//	  0     8  magic   "DOZHIST1"                   0     4  crc    CRC-32C of bytes 4 to 31
//	  8     8  run     random                       4     1  kind   1 issue, 2 ack, 3 fail, 4 flush issue, 5 flush ack
//	 16     8  first   block of the region          5     1  flags  1 = FUA
//	 24     8  blocks  in the region                6     2  zero
//	 32    28  zero                                 8     4  count  blocks
//	 60     4  crc     CRC-32C of bytes 0 to 59    12     4  zero
//	                                               16     8  block  first
//	                                               24     8  number of the write or flush
//
// A torn record at the end is what a killed writer leaves; it and what follows are cut off. Any other bad record is
// an error.
const (
	logMagic     = "DOZHIST1"
	logHeaderLen = 64
	logRecordLen = 32
	logFlagFUA   = 1
)

// EventKind is what a log record reports.
type EventKind byte

// Kinds of events.
const (
	EventIssue EventKind = iota + 1
	EventAck
	EventFail // no answer, or an error: the write may or may not have happened
	EventFlushIssue
	EventFlushAck
)

// Event is one log record.
type Event struct {
	Kind   EventKind
	FUA    bool
	Block  uint64
	Count  uint32
	Number uint64
}

func (e Event) encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:logRecordLen])
	b[4] = byte(e.Kind)
	if e.FUA {
		b[5] = logFlagFUA
	}
	le.PutUint32(b[8:], e.Count)
	le.PutUint64(b[16:], e.Block)
	le.PutUint64(b[24:], e.Number)
	le.PutUint32(b, crc32.Checksum(b[4:logRecordLen], castagnoli))
}

var errBadRecord = errors.New("history log: bad record")

func decodeEvent(b []byte) (Event, error) {
	le := binary.LittleEndian
	if le.Uint32(b) != crc32.Checksum(b[4:logRecordLen], castagnoli) {
		return Event{}, errBadRecord
	}
	e := Event{EventKind(b[4]), b[5]&logFlagFUA != 0, le.Uint64(b[16:]), le.Uint32(b[8:]), le.Uint64(b[24:])}
	if e.Kind < EventIssue || e.Kind > EventFlushAck || b[5]&^logFlagFUA != 0 || b[6]|b[7]|b[12]|b[13]|b[14]|b[15] != 0 {
		return Event{}, errBadRecord
	}
	return e, nil
}

// Log is the history of one run: in memory, and in a file if it has one.
type Log struct {
	Run           uint64
	First, Blocks uint64 // the region

	model model
	next  uint64 // number of the next write or flush
	f     *os.File
	w     *bufio.Writer
	rec   [logRecordLen]byte
}

// regionMax keeps block numbers in bytes far from overflow: 4 PiB.
const regionMax = 1 << 40

// NewLog begins a history of the blocks first to first+blocks-1; path may be "" for none but in memory.
func NewLog(path string, first, blocks uint64) (*Log, error) {
	if blocks == 0 || blocks > regionMax || first > regionMax {
		return nil, fmt.Errorf("history log: a region of %d blocks", blocks)
	}
	var r [8]byte
	rand.Read(r[:])
	l := &Log{Run: binary.LittleEndian.Uint64(r[:]), First: first, Blocks: blocks, next: 1}
	l.model.init(first, blocks)
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("history log: %w", err)
	}
	h := make([]byte, logHeaderLen)
	le := binary.LittleEndian
	copy(h, logMagic)
	le.PutUint64(h[8:], l.Run)
	le.PutUint64(h[16:], first)
	le.PutUint64(h[24:], blocks)
	le.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	if _, err := f.Write(h); err != nil {
		f.Close()
		return nil, fmt.Errorf("history log: %w", err)
	}
	l.f, l.w = f, bufio.NewWriter(f)
	return l, nil
}

// OpenLog reads the history in path, to check it or to go on with it.
func OpenLog(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("history log: %w", err)
	}
	l, size, err := readLog(bufio.NewReaderSize(f, 1<<20))
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l.f, l.w = f, bufio.NewWriter(f)
	return l, nil
}

// AckedOnly makes the history forget what only a check at level Flushed needs: else a run without flushes remembers
// every write. It must be called before the first write.
func (l *Log) AckedOnly() { l.model.ackedOnly = true }

// Judge compares what block was found to contain with its history, at level Acked; nil means that it is right.
func (l *Log) Judge(block uint64, c Content) *Violation {
	var sv survivors
	return l.model.judge(block, c, Acked, &sv)
}

// readLog decodes a log; size is how much of it is whole.
func readLog(r io.Reader) (l *Log, size int64, err error) {
	h := make([]byte, logHeaderLen)
	if _, err := io.ReadFull(r, h); err != nil {
		return nil, 0, fmt.Errorf("history log: header: %w", err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != logMagic || le.Uint32(h[60:]) != crc32.Checksum(h[:60], castagnoli) {
		return nil, 0, errors.New("history log: not one, or its header is damaged")
	}
	l = &Log{Run: le.Uint64(h[8:]), First: le.Uint64(h[16:]), Blocks: le.Uint64(h[24:]), next: 1}
	if l.Blocks == 0 || l.Blocks > regionMax || l.First > regionMax {
		return nil, 0, fmt.Errorf("history log: a region of %d blocks", l.Blocks)
	}
	l.model.init(l.First, l.Blocks)
	size = logHeaderLen
	b := make([]byte, logRecordLen)
	for {
		n, err := io.ReadFull(r, b)
		if err == io.EOF || err == io.ErrUnexpectedEOF && n < logRecordLen {
			return l, size, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("history log: %w", err)
		}
		e, err := decodeEvent(b)
		if err != nil {
			return nil, 0, fmt.Errorf("%w at byte %d", err, size)
		}
		if err := l.model.apply(e); err != nil {
			return nil, 0, fmt.Errorf("%w at byte %d", err, size)
		}
		l.next = max(l.next, e.Number+1)
		size += logRecordLen
	}
}

// add applies e and puts it into the file; issues are with the kernel when add returns.
func (l *Log) add(e Event) error {
	if err := l.model.apply(e); err != nil {
		return err
	}
	if l.w == nil {
		return nil
	}
	e.encode(l.rec[:])
	if _, err := l.w.Write(l.rec[:]); err != nil {
		return fmt.Errorf("history log: %w", err)
	}
	if e.Kind == EventIssue {
		if err := l.w.Flush(); err != nil {
			return fmt.Errorf("history log: %w", err)
		}
	}
	return nil
}

// Issue gives a write of count blocks its number; it must be called before the write is sent.
func (l *Log) Issue(block uint64, count uint32, fua bool) (uint64, error) {
	n := l.next
	l.next++
	return n, l.add(Event{EventIssue, fua, block, count, n})
}

// Ack notes that the target answered write number n with GOOD; Fail, that it did not and that nobody will ask again.
func (l *Log) Ack(block uint64, count uint32, fua bool, n uint64) error {
	return l.add(Event{EventAck, fua, block, count, n})
}

// Fail notes a write whose outcome nobody knows.
func (l *Log) Fail(block uint64, count uint32, n uint64) error {
	return l.add(Event{EventFail, false, block, count, n})
}

// FlushIssue begins a flush: it covers what was acknowledged before.
func (l *Log) FlushIssue() (uint64, error) {
	n := l.next
	l.next++
	return n, l.add(Event{Kind: EventFlushIssue, Number: n})
}

// FlushAck notes that flush n was answered with GOOD. Flushes that are not are just never noted.
func (l *Log) FlushAck(n uint64) error { return l.add(Event{Kind: EventFlushAck, Number: n}) }

// Close writes the rest of the file.
func (l *Log) Close() error {
	if l.f == nil {
		return nil
	}
	err := l.w.Flush()
	if cerr := l.f.Close(); err == nil {
		err = cerr
	}
	l.f, l.w = nil, nil
	return err
}
