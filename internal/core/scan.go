package core

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// scanned is what a walk along the records of a file found.
type scanned struct {
	header  bool // the segment header is there and good
	before  ident.Position
	last    ident.Position
	end     uint32
	start   wire.EpochStart
	index   []journal.IndexEntry
	stable  ident.Position // at the offset asked for, if a record ends there
	bad     error          // why the walk ended at end; nil at the end of the file
	follows uint32         // offset of a good record behind the bad place; 0: none

	recycled *journal.RecycledHeader // in place of the segment header: the file holds none of this segment
}

// What is read at once: little at first, since most files that a start looks at hold little, then more and more, up to
// several whole records.
const (
	scanFirst  = 64 << 10
	scanWindow = 4 << 20
)

// scan walks along the records in the first limit bytes of a file, bodies included, to the first that isn't
// valid; then it looks for good ones behind it. An error is the file's, not the bytes'. visit, if not nil, is
// called with each record.
func scan(f vfs.File, id ident.SegmentID, limit int64, stableEnd uint32, visit func(offset uint32, rec *journal.Record, whole []byte)) (sc scanned, err error) {
	size, err := f.Size()
	if err != nil {
		return sc, err
	}
	w := window{f: f, size: min(size, limit)}
	head, err := w.at(0, journal.SegmentHeaderSize)
	if err != nil {
		return sc, err
	}
	h, err := journal.DecodeSegmentHeader(head)
	switch {
	case err != nil:
		var after ident.Seq
		switch m, e := journal.DecodeRecycledHeader(head); {
		case e == nil && m.Segment == id:
			sc.recycled, after = &m, m.Last.Seq
		case e == nil:
			sc.bad = wire.Errorf(wire.CodeCorrupt, "file recycled for segment %s", m.Segment)
		case e != journal.ErrNotRecycled:
			sc.bad = e
		case !allZero(head):
			sc.bad = err
		}
		sc.follows, err = w.search(0, id, after, ident.Seq(math.MaxUint64))
		return sc, err
	case h.Segment != id:
		sc.bad = wire.Errorf(wire.CodeCorrupt, "header of segment %s", h.Segment)
		return sc, nil
	}
	sc.header = true
	sc.before, sc.start = h.Before, ownStart(id, h.Start)
	run := journal.Run{Segment: id, At: h.Before, Offset: journal.SegmentHeaderSize, Bodies: true}
	if stableEnd == run.Offset {
		sc.stable = run.At
	}
	for {
		at := run.Offset
		b, err := w.rest(int64(at), journal.RecordHeaderSize)
		if err != nil {
			return sc, err
		}
		if len(b) == 0 {
			break
		}
		n, err := run.Next(b)
		if err == journal.ErrCutOff {
			if b, err = w.at(int64(at), journal.RecordSize(journal.RecordBodyMax)); err != nil {
				return sc, err
			}
			n, err = run.Next(b)
		}
		if err != nil {
			sc.bad = err
			break
		}
		sc.index = append(sc.index, run.Record.Entry(at))
		if run.Record.Kind == journal.KindEpochStart && run.Record.Epoch == id.Epoch {
			start, err := journal.DecodeEpochStart(&run.Record, body(&run.Record, b[:n]))
			if err != nil {
				sc.bad = err
				break
			}
			sc.start = start
		}
		if visit != nil {
			visit(at, &run.Record, b[:n])
		}
		if run.Offset == stableEnd {
			sc.stable = run.At
		}
	}
	sc.last, sc.end = run.At, run.Offset
	if sc.bad != nil {
		// As many records as fit between here and the end.
		most := run.At.Seq + ident.Seq(w.size-int64(run.Offset))/journal.RecordHeaderSize
		sc.follows, err = w.search(int64(run.Offset), id, run.At.Seq, most)
	}
	return sc, err
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// window reads a file through one buffer.
type window struct {
	f    vfs.File
	size int64
	next int // what to read the next time
	buf  []byte
	from int64
	data []byte // at from
}

// at gives n bytes at off, fewer at the end of the file.
func (w *window) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if n <= 0 {
		return nil, nil
	}
	if off < w.from || off+int64(n) > w.from+int64(len(w.data)) {
		k := max(n, scanFirst, w.next)
		w.next = min(4*k, scanWindow)
		k = int(min(int64(k), w.size-off))
		if len(w.buf) < k {
			w.buf = make([]byte, k)
		}
		m, err := w.f.ReadAt(w.buf[:k], off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		w.from, w.data = off, w.buf[:m]
	}
	b := w.data[off-w.from:]
	return b[:min(n, len(b))], nil
}

// rest gives what the window has from off on, which is n bytes at least unless the file ends before.
func (w *window) rest(off int64, n int) ([]byte, error) {
	b, err := w.at(off, n)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return w.data[off-w.from:], nil
}

var magicBytes = []byte("DOZC")

// search looks behind off for the header of a valid record of the journal with a seq above after and up to most. What a
// recycled file holds of its time as an older segment has lower ones; blocks of clients may look like anything. Nothing is
// in a hole: a segment of which little is written is mostly that.
func (w *window) search(off int64, id ident.SegmentID, after, most ident.Seq) (uint32, error) {
	for off += journal.Alignment; off < w.size; {
		if end := w.from + int64(len(w.data)); off+int64(len(magicBytes)) > end {
			data, err := w.f.NextData(max(off, end))
			switch {
			case err != nil:
				return 0, err
			case data >= w.size:
				return 0, nil
			case data > max(off, end):
				off = data
			}
		}
		b, err := w.rest(off, len(magicBytes))
		if err != nil || len(b) == 0 {
			return 0, err
		}
		i := bytes.Index(b, magicBytes)
		if i < 0 {
			off += int64(max(1, len(b)-len(magicBytes)+1))
			continue
		}
		at := off + int64(i)
		if at%journal.Alignment == 0 {
			head, err := w.at(at, headMax)
			if err != nil {
				return 0, err
			}
			var rec journal.Record
			if rec.Decode(head) == nil && rec.Journal == id.Journal && rec.Seq > after && rec.Seq <= most {
				return uint32(at), nil
			}
		}
		off = at + 1
	}
	return 0, nil
}
