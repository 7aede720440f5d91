package access

import (
	"context"
	"testing"

	"dozo/internal/control"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/wire"
)

// lostWrite is a store whose disk has lost a write: at its place stands an older record, whole.
type lostWrite struct {
	journal.Store
	at, has uint32
}

func (s lostWrite) ReadRaw(ctx context.Context, m *wire.ReadRaw) (wire.ReadReply, error) {
	if m.Offset == s.at {
		x := *m
		x.Offset = s.has
		return s.Store.ReadRaw(ctx, &x)
	}
	return s.Store.ReadRaw(ctx, m)
}

// A takeover that finds an older record where a store has lost one takes the record from another store.
func TestTheReplayFindsALostWrite(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 2)
	o := c.own(c.volume(1<<20, 1, control.Replicated))
	for i := range int64(4) {
		if err := writeAt(o, i<<12, make([]byte, 4096), false); err != nil {
			t.Fatal(err)
		}
	}
	id := o.Segments()[0].ID
	x, err := readIndex(t.Context(), c.seats[0], id)
	if err != nil {
		t.Fatal(err)
	}
	n := len(x.Entries) - 1
	seq := x.Before.Seq + 1 + ident.Seq(n)
	bad := lostWrite{c.seats[0], x.Entries[n].Offset, x.Entries[n-1].Offset}
	rec, _, err := o.readRecordFrom([]journal.Store{bad, c.seats[1]}, id, x.Entries[n].Offset, seq)
	if err != nil || rec.Seq != seq {
		t.Errorf("record %+v, %v; want that of seq %d", rec, err, seq)
	}
	if _, _, err := o.readRecordFrom([]journal.Store{bad}, id, x.Entries[n].Offset, seq); err == nil {
		t.Error("an older record is taken where nobody has the right one")
	}
	rd := &rebuilder{o: o, ctx: t.Context()}
	at := &requested{seq: seq, from: x.Entries[n].Offset, to: x.Entries[n].Offset + uint32(journal.BodyOffset(4096))}
	if err := rd.headersFrom([]journal.Store{bad, c.seats[1]}, id, []*requested{at}); err != nil || at.rec.Seq != seq {
		t.Errorf("header of seq %d, %v; want that of %d", at.rec.Seq, err, seq)
	}
	o.Close()
}
