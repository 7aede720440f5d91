package access

import (
	"fmt"

	"golang.org/x/sync/errgroup"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// requests remembers the request IDs of a range's records (R9). The index says which records have one; their
// headers are read, those that lie close together at once, and many reads at a time.
func (rd *rebuilder) requests(r *journal.Range, entries []journal.IndexEntry) error {
	o := rd.o
	var list []*requested
	for i := range entries {
		e := &entries[i]
		seq := r.Before.Seq + 1 + ident.Seq(i)
		if e.Requested && seq >= r.From && seq > o.m.Applied() {
			list = append(list, &requested{seq: seq, from: e.Offset, to: e.Offset + uint32(journal.BodyOffset(e.StoredLen))})
		}
	}
	stores := rd.stores(r)
	var g errgroup.Group
	g.SetLimit(headersAtOnce)
	for from := 0; from < len(list); {
		n := 1
		for from+n < len(list) && list[from+n].from-list[from+n-1].to <= headersApart && list[from+n].to-list[from].from <= copyFrame {
			n++
		}
		part := list[from : from+n]
		from += n
		g.Go(func() error {
			err := rd.headersFrom(stores, r.Segment, part)
			if err != nil && len(part) > 1 {
				// Each replica may have rotted at another place.
				for i := range part {
					if err = rd.headersFrom(stores, r.Segment, part[i:i+1]); err != nil {
						break
					}
				}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	for _, f := range list {
		o.noteRequest(f.rec.Request, f.rec.Part, f.seq)
	}
	return nil
}

// requested is a record that has a request ID: where its header lies, and what it says.
type requested struct {
	seq      ident.Seq
	from, to uint32
	rec      journal.Record
}

// headersFrom reads headers from the first of the stores that has them all.
func (rd *rebuilder) headersFrom(stores []journal.Store, id ident.SegmentID, list []*requested) error {
	last := error(wire.Errorf(wire.CodeAbsent, "no replica of segment %s", id))
	for _, st := range stores {
		if last = rd.readHeaders(st, id, list); last == nil {
			return nil
		}
	}
	return last
}

// readHeaders reads from the first of the headers to the last and decodes them.
func (rd *rebuilder) readHeaders(st journal.Store, id ident.SegmentID, list []*requested) error {
	from, to := list[0].from, list[len(list)-1].to
	var raw []byte
	for at := from; at < to; at = from + uint32(len(raw)) {
		reply, err := st.ReadRaw(rd.ctx, &wire.ReadRaw{Segment: id, Offset: at, Len: to - at})
		if err != nil {
			return fmt.Errorf("headers from seq %d at %s: %w", list[0].seq, st.ID(), err)
		}
		raw = append(raw, reply.Data...)
		n := len(reply.Data)
		release(reply)
		if n == 0 {
			return wire.Errorf(wire.CodeAbsent, "segment %s at %s ends before offset %d", id, st.ID(), to)
		}
	}
	for _, f := range list {
		if err := f.rec.Decode(raw[f.from-from : f.to-from]); err != nil {
			return fmt.Errorf("header of seq %d at %s: %w", f.seq, st.ID(), err)
		}
		if f.rec.Seq != f.seq {
			return wire.Errorf(wire.CodeCorrupt, "header of seq %d at %s where that of %d should be", f.rec.Seq, st.ID(), f.seq)
		}
	}
	return nil
}

const (
	headersAtOnce = 32       // hides the round trips to a store
	headersApart  = 64 << 10 // what lies between two headers is read rather than asked around
)
