package settle

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"dozo/internal/control"
	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/volume"
	"dozo/internal/wire"
)

// Helper is one node's part of settling.
type Helper struct {
	Control *control.Client
	Node    ident.NodeName
	Stores  map[ident.StoreID]*core.Store
	Log     *slog.Logger

	told     uint32                   // the lineage of the control store that was told what is remembered here
	answered map[ident.StoreID]uint32 // and that was told what a store holds
}

// Settle does the node's part of what is left to do for a restoration that is pending. It is called again and again, by one
// goroutine, until nothing is pending any more.
func (h *Helper) Settle(ctx context.Context, r control.Restoration) error {
	ctl := h.Control
	var known []ident.StoreID
	for _, x := range ctl.Nodes() {
		for _, s := range x.Stores {
			known = append(known, s.ID)
		}
	}
	if err := ctl.ExpectStores(ctx, known); err != nil {
		return err
	}
	if h.told != r.Lineage { // before any answer that could complete the picture
		if err := ctl.OfferRemembered(ctx); err != nil {
			return err
		}
		h.told = r.Lineage
	}
	if h.answered == nil {
		h.answered = map[ident.StoreID]uint32{}
	}
	for id, st := range h.Stores {
		if h.answered[id] == r.Lineage {
			continue
		}
		list, err := held(ctx, ctl, st)
		if err != nil {
			return fmt.Errorf("store %s: %w", st.Dir(), err)
		}
		if err := ctl.PutAnswer(ctx, id, list); err != nil {
			return fmt.Errorf("store %s: %w", st.Dir(), err)
		}
		h.answered[id] = r.Lineage
		h.Log.Info("store has told the restored control store what it holds", "store", st.Dir(), "journals", len(list))
	}
	if len(h.Stores) == 0 || !First(ctl, h.Node) {
		return nil
	}
	if _, err := ctl.Reconcile(ctx); err != nil && !errors.Is(err, control.ErrConflict) {
		return err
	}
	return nil
}

// First reports whether a node is the first, by name, of those that are alive and have stores: what one node is enough for is
// that one's business.
func First(ctl *control.Client, node ident.NodeName) bool {
	for _, x := range ctl.Nodes() {
		if len(x.Stores) > 0 && (x.Name == node || ctl.Alive(x.Name)) {
			return x.Name == node
		}
	}
	return false
}

// held lists what a store knows of journals.
func held(ctx context.Context, ctl *control.Client, st *core.Store) ([]control.HeldJournal, error) {
	var out []control.HeldJournal
	at := map[ident.JournalID]int{}
	for _, j := range st.Journals() {
		at[j.Journal] = len(out)
		out = append(out, control.HeldJournal{ID: j.Journal, Fence: j.Fence})
	}
	roots := map[ident.JournalID][]ident.SegmentID{}
	history := map[ident.JournalID][]ident.SegmentID{}
	for m := (&wire.Inventory{}); ; {
		r, err := st.Inventory(ctx, m)
		if err != nil {
			return nil, err
		}
		for _, x := range r.Replicas {
			id := x.Segment.Journal
			i, ok := at[id]
			if !ok {
				i = len(out)
				at[id], out = i, append(out, control.HeldJournal{ID: id})
			}
			h := &out[i]
			h.Records = true
			if h.Highest.Less(x.Segment.Epoch) || h.Site == 0 {
				h.Highest, h.Site = x.Segment.Epoch, x.Segment.Site
			}
			if _, known := ctl.Volume(id); !known {
				if x.Segment.IsCheckpoint() {
					roots[id] = append(roots[id], x.Segment)
				} else {
					history[id] = append(history[id], x.Segment)
				}
			}
		}
		if !r.More || len(r.Replicas) == 0 {
			break
		}
		m.After = r.Replicas[len(r.Replicas)-1].Segment
	}
	// Only of volumes that nobody specifies any more is it worth the reading how large they are.
	for id, list := range roots {
		out[at[id]].SizeBytes = sizeOf(ctx, st, list)
	}
	for id, list := range history {
		if h := &out[at[id]]; h.SizeBytes == 0 {
			h.WrittenBytes = writtenOf(ctx, st, list)
		}
	}
	return out, nil
}

// sizeOf is the size of a volume by the newest checkpoint root in some segments of a store, 0 if there is none. What
// can not be read is passed over: another store may have it.
func sizeOf(ctx context.Context, st journal.Store, list []ident.SegmentID) (size int64) {
	var newest ident.Seq
	for _, id := range list {
		x, err := indexOf(ctx, st, id)
		if err != nil {
			continue
		}
		for i := range x.Entries {
			e := &x.Entries[i]
			if !volume.IsRoot(e) {
				continue
			}
			body, err := bodyOf(ctx, st, id, e)
			if err != nil {
				continue
			}
			if blocks, covers, err := volume.RootSize(body); err == nil && covers >= newest {
				size, newest = int64(blocks)*journal.BlockSize, covers
			}
		}
	}
	return size
}

// writtenOf is where the last block ends that segments of the history write or trim.
func writtenOf(ctx context.Context, st journal.Store, list []ident.SegmentID) (end int64) {
	for _, id := range list {
		x, err := indexOf(ctx, st, id)
		if err != nil {
			continue
		}
		for i := range x.Entries {
			if e := &x.Entries[i]; e.Kind == journal.KindWrite {
				end = max(end, int64(e.Block+uint64(e.Count))*journal.BlockSize)
			}
		}
	}
	return end
}

func indexOf(ctx context.Context, st journal.Store, id ident.SegmentID) (*journal.Index, error) {
	r, err := st.ReadIndex(ctx, &wire.ReadIndex{Segment: id})
	if err != nil {
		return nil, err
	}
	x, err := journal.DecodeIndex(bytes.Clone(r.Data))
	if r.Release != nil {
		r.Release()
	}
	return x, err
}

func bodyOf(ctx context.Context, st journal.Store, id ident.SegmentID, e *journal.IndexEntry) ([]byte, error) {
	r, err := st.ReadRaw(ctx, &wire.ReadRaw{Segment: id, Offset: e.Offset, Len: uint32(journal.RecordSize(e.StoredLen))})
	if err != nil {
		return nil, err
	}
	raw := bytes.Clone(r.Data)
	if r.Release != nil {
		r.Release()
	}
	var rec journal.Record
	if len(raw) < journal.RecordHeaderSize || binary.LittleEndian.Uint32(raw[16:]) != e.StoredLen {
		return nil, fmt.Errorf("segment %s: no record at %d", id, e.Offset)
	}
	if err := rec.Decode(raw); err != nil {
		return nil, err
	}
	if err := rec.VerifyBody(raw); err != nil {
		return nil, err
	}
	return raw[journal.BodyOffset(rec.StoredLen):][:rec.StoredLen], nil
}
