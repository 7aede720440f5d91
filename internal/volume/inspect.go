package volume

import (
	"fmt"
	"io"

	"dozo/internal/ident"
	"dozo/internal/journal"
)

// InspectPart prints the part of a checkpoint that a record holds, as text. The record's own checksums are
// the caller's to verify; what is printed has been decoded by the same code that loads it.
func InspectPart(w io.Writer, rec *journal.Record, body []byte) error {
	if rec.Kind != journal.KindPart {
		return corrupt("%s record where a checkpoint part should be", rec.Kind)
	}
	t, id := PartType(rec.Block>>partIDBits), rec.Block&(1<<partIDBits-1)
	p := printer{w: w}
	p.line("%s %d, %d bytes, digest %016x", t, id, len(body), rec.BodyDigest)
	switch t {
	case PartLeaf:
		l, err := decodeLeaf(LeafID(id), body)
		if err != nil {
			return err
		}
		l.each(func(x extent) {
			e := x.entry()
			p.line("  blocks %d+%d: slot %d, record at %d, block %d", LeafID(id).First()+uint64(x.first), x.count, e.slot(), e.record(), e.first())
		})
	case PartPage, PartDirectory:
		list, err := decodeIndex(t, id, body)
		if err != nil {
			return err
		}
		what, shift := PartLeaf, pageShift
		if t == PartDirectory {
			what, shift = PartPage, dirShift
		}
		for i := range list {
			list[i].index += id << shift
		}
		p.list(what, list)
	case PartTable:
		list, err := decodeTable(id, body)
		if err != nil {
			return err
		}
		p.segments(list)
	case PartRequests:
		var r Requests
		if err := decodeRequests(id, body, &r); err != nil {
			return err
		}
		for _, f := range r.by {
			p.line("  forwarder %016x: confirmed up to %d, %d open", f.id, f.upTo, len(f.open))
			for _, q := range f.open {
				p.line("    request %d part %d: record %d", q.number, q.part, q.seq)
			}
		}
	case PartState:
		state, err := decodeState(id, body)
		if err != nil {
			return err
		}
		p.line("  %d bytes: %x", len(state), state)
	case PartRoot:
		r, err := decodeRoot(body)
		if err != nil {
			return err
		}
		p.line("  journal %s", r.journal)
		p.line("  covers %s", r.at)
		p.line("  size %d blocks, %d mapped", r.size, r.mapped)
		p.list(PartDirectory, r.dirs)
		p.list(PartTable, r.chunks)
		p.list(PartRequests, r.requests)
		p.list(PartState, r.states)
		p.segments(r.segments)
	default:
		return &journal.VersionError{What: "checkpoint part type", Got: uint32(t), Want: uint32(PartRoot)}
	}
	return p.err
}

// printer writes lines until the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) list(t PartType, list []indexed) {
	for _, x := range list {
		p.line("  %s %d: slot %d, offset %d, %d bytes, digest %016x", t, x.index, x.loc.slot, x.loc.offset, x.loc.size, x.loc.digest)
	}
}

func (p *printer) segments(list []slotted) {
	for _, x := range list {
		state := "open"
		switch {
		case x.seg.Retired:
			state = "retired"
		case x.seg.Sealed:
			state = "sealed"
		}
		if x.seg.ID.IsCheckpoint() {
			p.line("  slot %d: %s %s, end %d, %d bytes of parts", x.slot, x.seg.ID, state, x.seg.End, x.seg.PartBytes)
		} else {
			p.line("  slot %d: %s %s, after %s to %s, end %d, %d live blocks", x.slot, x.seg.ID, state, x.seg.Before, x.seg.Last, x.seg.End, x.seg.Live)
		}
	}
}

// IsRoot reports that a record of a checkpoint segment, as its index has it, is the root of a checkpoint.
func IsRoot(e *journal.IndexEntry) bool {
	return e.Kind == journal.KindPart && PartType(e.Block>>partIDBits) == PartRoot
}

// RootSize reads the size of the volume, in blocks, and the seq that is covered from the body of a root.
func RootSize(body []byte) (blocks uint64, covers ident.Seq, err error) {
	r, err := decodeRoot(body)
	if err != nil {
		return 0, 0, err
	}
	return r.size, r.at.Seq, nil
}
