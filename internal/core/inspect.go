package core

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// InspectOptions says how Inspect prints.
type InspectOptions struct {
	JSON bool // one JSON object a line instead of text
	// Part, if not nil, prints the part of a checkpoint that a record holds (volume.InspectPart).
	Part func(w io.Writer, rec *journal.Record, body []byte) error
	// Unit, if not nil, says what a reservation record holds (reserve.Describe).
	Unit func(body []byte) (string, error)
}

// ErrBad says that Inspect found something bad; the lines that it printed say what.
var ErrBad = errors.New("the file is bad")

// The lines of Inspect with JSON; "line" tells them apart. Fields are stable.
type (
	lineSegment struct {
		Line     string          `json:"line"` // "segment"
		Segment  string          `json:"segment"`
		Journal  ident.JournalID `json:"journal"`
		Kind     uint8           `json:"kind"`
		Before   string          `json:"before"`
		Start    string          `json:"start,omitempty"`
		Proven   bool            `json:"proven"`
		Boundary string          `json:"boundary,omitempty"`
		Point    string          `json:"point,omitempty"` // what the newest announced checkpoint covers; its root is at Root of Parts
		Root     uint32          `json:"root,omitempty"`
		Parts    string          `json:"parts,omitempty"`
	}
	lineRecord struct {
		Line    string `json:"line"` // "record"
		Offset  uint32 `json:"offset"`
		Seq     uint64 `json:"seq"`
		Epoch   string `json:"epoch"`
		Kind    string `json:"kind"`
		Part    uint8  `json:"part"`
		Block   uint64 `json:"block"`
		Count   uint32 `json:"count"`
		Logical uint32 `json:"logical"`
		Stored  uint32 `json:"stored"`
		Codec   uint16 `json:"codec"`
		Key     uint32 `json:"key"`
		Request string `json:"request,omitempty"`
		Hash    string `json:"hash"`
		Time    string `json:"time,omitempty"`
		Body    string `json:"body,omitempty"`
	}
	lineRecycled struct {
		Line    string `json:"line"` // "recycled", in place of "segment": nothing was written as this segment
		Segment string `json:"segment"`
		Of      string `json:"of"` // what the file held before
		Last    string `json:"last"`
	}
	lineIndex struct {
		Line    string `json:"line"` // "index"
		Offset  uint32 `json:"offset"`
		Entries int    `json:"entries"`
		Last    string `json:"last"`
	}
	lineBad struct {
		Line   string `json:"line"` // "bad", or "note" for what is no fault
		Offset uint32 `json:"offset"`
		Error  string `json:"error"`
	}
	lineEnd struct {
		Line    string `json:"line"` // "end"
		Sealed  bool   `json:"sealed"`
		Records int    `json:"records"`
		End     uint32 `json:"end"`
		Bytes   int64  `json:"bytes"`
		Last    string `json:"last"`
		Bad     int    `json:"bad"`
	}
)

// ErrNotSegment says that a file is none that Inspect reads, damaged or not.
var ErrNotSegment = errors.New("not a segment file")

// Inspect prints a segment file and verifies every checksum, the hash chain, and the index against the
// records. It reads only; a file that a store has open may be printed as well. An error is ErrBad if
// something in the file is wrong, else the file system's.
func Inspect(w io.Writer, fsys vfs.FS, name string, o InspectOptions) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(w)
	p := &inspector{w: out, o: o, f: f, name: named(name)}
	err = p.run()
	if e := out.Flush(); err == nil {
		err = e
	}
	if err == nil && p.bad > 0 {
		return fmt.Errorf("%w: %s", ErrBad, findings(p.bad))
	}
	return err
}

func findings(n int) string {
	if n == 1 {
		return "1 finding"
	}
	return fmt.Sprintf("%d findings", n)
}

type inspector struct {
	w   io.Writer
	o   InspectOptions
	f   vfs.File
	bad int
	// name is the segment whose file it is by its name, nil: of no segment.
	name *ident.SegmentID
}

// named gives the segment whose file has this name, also one that was set aside.
func named(path string) *ident.SegmentID {
	base, _, _ := strings.Cut(filepath.Base(path), asideMark)
	if id, err := ident.ParseSegmentID(base); err == nil {
		return &id
	}
	return nil
}

// foreign says what a file is that is no segment, by its name and its first bytes; nil: it is one, perhaps damaged.
func (p *inspector) foreign(head []byte) error {
	begins := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case p.name != nil:
		return nil
	case begins("DZNT"):
		return fmt.Errorf("%w: this is the notes log of a store", ErrNotSegment)
	case begins("DOZOCTLB"):
		return fmt.Errorf("%w: this is a backup of the control store, which dozo control restore --dry-run verifies", ErrNotSegment)
	case begins("DZGS"), begins("DZGR"), len(head) == journal.SegmentHeaderSize && allZero(head):
		return nil
	}
	return fmt.Errorf("%w: neither its name nor how it begins is that of one", ErrNotSegment)
}

// belongs finds a file that has the name of another segment.
func (p *inspector) belongs(id ident.SegmentID) {
	if p.name != nil && p.name.Original() != id.Original() {
		p.fault(0, fmt.Errorf("the header is that of segment %s, the name that of %s", id, *p.name))
	}
}

// print writes one line, as JSON or as text.
func (p *inspector) print(line any, format string, args ...any) {
	if !p.o.JSON {
		fmt.Fprintf(p.w, format+"\n", args...)
		return
	}
	b, err := json.Marshal(line)
	if err == nil {
		fmt.Fprintf(p.w, "%s\n", b)
	}
}

func (p *inspector) fault(offset uint32, err error) {
	p.bad++
	p.print(lineBad{"bad", offset, err.Error()}, "BAD at %d: %v", offset, err)
}

func (p *inspector) run() error {
	size, err := p.f.Size()
	if err != nil {
		return err
	}
	head := make([]byte, min(size, journal.SegmentHeaderSize))
	if _, err := p.f.ReadAt(head, 0); errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("%w: it is a directory", ErrNotSegment)
	} else if err != nil && err != io.EOF {
		return err
	}
	if err := p.foreign(head); err != nil {
		return err
	}
	if len(head) == journal.SegmentHeaderSize && allZero(head) {
		p.print(lineEnd{Line: "end", Bytes: size}, "empty: no header has been written, %d bytes allocated", size)
		return nil
	}
	if m, err := journal.DecodeRecycledHeader(head); err == nil {
		p.print(lineRecycled{"recycled", m.Segment.String(), m.Of.String(), m.Last.String()},
			"segment %s, no header has been written\n  the file was that of %s: what is behind here is stale, up to %s", m.Segment, m.Of, m.Last)
		p.belongs(m.Segment)
		p.print(lineEnd{Line: "end", Bytes: size}, "empty, %d bytes allocated", size)
		return nil
	}
	h, err := journal.DecodeSegmentHeader(head)
	if err != nil {
		p.fault(0, err)
		return nil
	}
	p.header(&h)
	p.belongs(h.Segment)

	x, err := readIndex(p.f)
	sealed := !errors.Is(err, journal.ErrNoIndex)
	limit := min(size, journal.SegmentCapacityMax)
	switch {
	case err == nil:
		limit = int64(x.End)
	case sealed:
		p.fault(uint32(max(0, size-journal.TrailerSize)), fmt.Errorf("index: %w", eofIsShort(err)))
	}
	sc, err := scan(p.f, h.Segment, limit, 0, p.record)
	if err != nil {
		return err
	}
	p.tail(h.Segment, &sc, x, sealed)
	if x != nil {
		p.print(lineIndex{"index", x.End, len(x.Entries), x.Last.String()}, "index at %d: %d entries, last %s", x.End, len(x.Entries), x.Last)
		if x.Segment != h.Segment || x.Before != sc.before || x.Last != sc.last || !slices.Equal(x.Entries, sc.index) {
			p.fault(x.End, errors.New("the index is not that of the records"))
		}
	}
	state := "not sealed"
	if sealed {
		state = "sealed"
	}
	verdict := "everything verified"
	if p.bad > 0 {
		verdict = "BAD: " + findings(p.bad)
	}
	p.print(lineEnd{"end", sealed, len(sc.index), sc.end, size, sc.last.String(), p.bad},
		"%s, %d records up to %d of %d bytes, last %s: %s", state, len(sc.index), sc.end, size, sc.last, verdict)
	return nil
}

func (p *inspector) header(h *journal.SegmentHeader) {
	line := lineSegment{Line: "segment", Segment: h.Segment.String(), Journal: h.Segment.Journal, Kind: uint8(h.Kind), Before: h.Before.String()}
	start, point, boundary := "", "", ""
	if h.Start.At.Seq != 0 {
		line.Start, line.Proven = h.Start.At.String(), h.Start.Proven
		start = fmt.Sprintf("\n  start of the epoch %s after %s, proven %v", h.Start.At, h.Start.Before, h.Start.Proven)
	}
	if h.Point.At.Seq != 0 {
		line.Point, line.Root, line.Parts = h.Point.At.String(), h.Point.Offset, h.Point.Segment.String()
		point = fmt.Sprintf("\n  checkpoint covers %s, root at %d of %s", h.Point.At, h.Point.Offset, h.Point.Segment)
	}
	if h.Boundary != (ident.Position{}) {
		line.Boundary = h.Boundary.String()
		boundary = fmt.Sprintf("\n  older epochs end at %s", h.Boundary)
	}
	p.print(line, "segment %s, kind %d, before %s%s%s%s", h.Segment, h.Kind, h.Before, start, point, boundary)
	if !p.o.JSON {
		fmt.Fprintf(p.w, "%10s %12s %10s %-11s %14s %8s %8s %8s %s\n", "offset", "seq", "epoch", "kind", "block", "count", "logical", "stored", "hash")
	}
}

func (p *inspector) record(offset uint32, rec *journal.Record, whole []byte) {
	line := lineRecord{"record", offset, uint64(rec.Seq), rec.Epoch.String(), rec.Kind.String(), rec.Part, rec.Block, rec.Count,
		rec.LogicalLen, rec.StoredLen, uint16(rec.Codec), rec.KeyID, "", rec.Hash.String(), "", ""}
	extra := ""
	if rec.Time != 0 {
		line.Time = time.Unix(0, rec.Time).UTC().Format(time.RFC3339Nano)
		extra += " at " + line.Time
	}
	if rec.Request != (journal.RequestID{}) {
		line.Request = fmt.Sprintf("%x-%x", rec.Request.Forwarder, rec.Request.Number)
		extra += " request " + line.Request
	}
	if rec.Part != 0 {
		extra += fmt.Sprintf(" part %d", rec.Part)
	}
	if rec.Codec != journal.CodecNone || rec.KeyID != 0 {
		extra += fmt.Sprintf(" codec %d key %d", rec.Codec, rec.KeyID)
	}
	text, err := p.body(rec, body(rec, whole))
	if text != "" {
		line.Body = text
		extra += " " + strings.ReplaceAll(text, "\n", "\n    ")
	}
	p.print(line, "%10d %12d %10s %-11s %14d %8d %8d %8d %s%s", offset, rec.Seq, rec.Epoch, rec.Kind, rec.Block, rec.Count, rec.LogicalLen, rec.StoredLen, rec.Hash, extra)
	if err != nil {
		p.fault(offset, fmt.Errorf("body: %w", err))
	}
}

// body says what a record's body holds, where that is not blocks of a volume.
func (p *inspector) body(rec *journal.Record, b []byte) (text string, err error) {
	if rec.Codec != journal.CodecNone || rec.KeyID != 0 {
		return "", nil
	}
	switch rec.Kind {
	case journal.KindEpochStart:
		var s wire.EpochStart
		if s, err = journal.DecodeEpochStart(rec, b); err == nil {
			text = fmt.Sprintf("after %s, proven %v", s.Before, s.Proven)
		}
	case journal.KindCheckpoint:
		var c journal.CheckpointPoint
		if c, err = journal.DecodeCheckpoint(b); err == nil {
			text = fmt.Sprintf("covers %s, root at %d of %s", c.At, c.Offset, c.Segment)
		}
	case journal.KindPermit:
		var permits []journal.Permit
		if permits, err = journal.DecodePermits(b); err == nil {
			for _, q := range permits {
				text += fmt.Sprintf("[%s may go from %s] ", q.Segment, q.Store)
			}
		}
	case journal.KindRetire:
		var retired []ident.SegmentID
		if retired, err = journal.DecodeRetired(b); err == nil {
			text = fmt.Sprintf("%d segments: %v", len(retired), retired)
		}
	case journal.KindCopy:
		var source uint64
		if source, err = journal.DecodeCopy(b, rec.Count); err == nil {
			text = fmt.Sprintf("as blocks %d to %d", source, source+uint64(rec.Count)-1)
		}
	case journal.KindPin:
		var changes []journal.PinChange
		if changes, err = journal.DecodePins(b); err == nil {
			for _, c := range changes {
				text += fmt.Sprintf("[op %d: forget what the start of epoch %s left behind] ", c.Op, c.Epoch)
			}
		}
	case journal.KindAttach:
		var changes []journal.PortChange
		if changes, err = journal.DecodePortChanges(b); err == nil {
			for i := range changes {
				c := &changes[i]
				text += fmt.Sprintf("[%s %s %x by portal group %d] ", c.Op, c.Port.Name, c.Port.ISID, c.Group)
			}
		}
	case journal.KindReservation:
		if p.o.Unit != nil {
			text, err = p.o.Unit(b)
		}
	case journal.KindPart:
		if p.o.Part != nil {
			var part strings.Builder
			err = p.o.Part(&part, rec, b)
			text = strings.TrimRight(part.String(), "\n")
		}
	}
	return text, err
}

// tail judges what stands behind the last valid record.
func (p *inspector) tail(id ident.SegmentID, sc *scanned, x *journal.Index, sealed bool) {
	switch {
	case x != nil && sc.bad == nil && sc.end == x.End:
	case x != nil:
		p.fault(sc.end, cmpErr(sc.bad, "the records end before the index"))
	case sealed || sc.bad == nil: // a bad index was reported already
	default:
		// In a file that is open, zeroes follow, or what a torn append has left, or what the file held before.
		var next [8]byte
		if _, err := p.f.ReadAt(next[:], int64(sc.end)); err == nil && !allZero(next[:]) {
			p.print(lineBad{"note", sc.end, sc.bad.Error()}, "note at %d: not a record, as an append or a seal leaves it that was cut off: %v", sc.end, sc.bad)
		}
		if at, rec := p.stale(id, sc); at != 0 {
			note := fmt.Sprintf("stale: a record of seq %d, epoch %s, of an older segment whose file this was", rec.Seq, rec.Epoch)
			p.print(lineBad{"note", at, note}, "note at %d: %s", at, note)
		}
	}
	if sc.follows != 0 {
		p.fault(sc.follows, errors.New("a valid record header behind the bad place"))
	}
}

// stale gives the first record behind the end of an open segment that is older than all of it: the file was recycled.
func (p *inspector) stale(id ident.SegmentID, sc *scanned) (at uint32, rec journal.Record) {
	size, err := p.f.Size()
	if err != nil {
		return 0, rec
	}
	w := window{f: p.f, size: min(size, journal.SegmentCapacityMax)}
	at, err = w.search(int64(sc.end), id, 0, sc.before.Seq)
	if err != nil || at == 0 {
		return 0, rec
	}
	head, err := w.at(int64(at), headMax)
	if err != nil || rec.Decode(head) != nil {
		return 0, rec
	}
	return at, rec
}
