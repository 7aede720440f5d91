package access

import (
	"errors"
	"slices"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// What is shipped is read as it lies on disk, and verified where it arrives. So when another site refuses a frame as not what it
// must be, the replica that it was read from may be what is wrong: then it is given up like one that a client's read found so,
// and shipping goes on from another.

// rotten says what is wrong with a frame that was read at an offset of a segment; nil if its records are whole. The hash chain is
// not looked at.
func rotten(b []byte, offset uint32) error {
	if offset == 0 {
		if _, err := journal.DecodeSegmentHeader(b); err != nil {
			return err
		}
		b = b[journal.SegmentHeaderSize:]
	}
	var r journal.Record
	for len(b) > 0 {
		if err := r.Decode(b); err != nil {
			return err
		}
		if err := r.VerifyBody(b); err != nil {
			return err
		}
		b = b[journal.RecordSize(r.StoredLen):]
	}
	return nil
}

// sourceRotten gives up the replica that a frame was read from, if there is another one.
func (o *Owner) sourceRotten(id ident.SegmentID, source journal.Store, err error) {
	o.env.Metrics.Corrupt.Inc()
	o.log.Error("replica is corrupt, shipping from another", "segment", id, "store", source.ID(), "err", err)
	o.call(func() { o.markBad(id, source.ID(), err) })
}

// sourceAbsent is called when a store says that it has no replica of a segment. If the segment is retired the store has let it
// go, and only its word got lost: once a site's watermark has fallen it is not asked again until the site has the retirement,
// for which it would have to get over this segment.
func (o *Owner) sourceAbsent(id ident.SegmentID, source journal.Store, err error) {
	o.call(func() {
		s := o.segs[id]
		if s == nil || !o.retiring(s) {
			o.markBad(id, source.ID(), err)
			return
		}
		s.holders = slices.DeleteFunc(s.holders, func(h holder) bool {
			if h.store == source.ID() {
				o.strays.gone(permitKey{id, h.store}, h.made)
			}
			return h.store == source.ID()
		})
	})
}

// refusedFrame looks at the frame that a site has refused. What it gives is the error that counts.
func (o *Owner) refusedFrame(id ident.SegmentID, source journal.Store, frame []byte, offset uint32, err error) error {
	if !errors.Is(err, wire.ErrMismatch) {
		return err
	}
	bad := rotten(frame, offset)
	if bad == nil {
		return err
	}
	bad = wire.Errorf(wire.CodeCorrupt, "segment %s at %d as store %s has it: %v", id, offset, source.ID(), bad)
	o.sourceRotten(id, source, bad)
	return bad
}

// wholeRecords is how many of the bytes, which lie at offset in a segment, are whole records (and the header).
func wholeRecords(b []byte, offset uint32) int {
	n := 0
	if offset == 0 {
		if len(b) < journal.SegmentHeaderSize {
			return 0
		}
		n = journal.SegmentHeaderSize
	}
	for {
		size, err := journal.SizeAt(b[n:])
		if err != nil || n+size > len(b) {
			return n
		}
		n += size
	}
}
