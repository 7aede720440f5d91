package core

import (
	"bytes"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// Pieces of one large record in one request are read by its head once, and each is still checked.
func TestPiecesOfALargeRecord(t *testing.T) {
	mem := vfs.NewMem(1 << 30)
	s := openStore(t, testOptions(mem, boot1))
	defer s.Close()
	seg := ident.SegmentID{Journal: ident.JournalID{1}, Epoch: ident.Epoch{Number: 1}, Site: 1}
	if _, err := s.OpenSegment(t.Context(), &wire.OpenSegment{Epoch: seg.Epoch, Segment: seg, Capacity: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(i / journal.BlockSize * 7)
	}
	data := journal.AppendSegmentHeader(nil, journal.SegmentHeader{Segment: seg, Kind: journal.JournalVolume})
	r := journal.Record{Kind: journal.KindWrite, Journal: seg.Journal, Epoch: seg.Epoch, Seq: 1, Count: 256}
	data = r.AppendRecord(data, ident.Hash{}, body)
	done := make(chan error, 1)
	s.Append(&wire.Append{Epoch: seg.Epoch, Segment: seg, Data: [][]byte{data}}, func(_ wire.AppendReply, err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	read := func() ([]byte, error) {
		m := &wire.Read{Journal: seg.Journal}
		for i := range 50 {
			m.Pieces = append(m.Pieces, wire.ReadPiece{Segment: seg, Record: journal.SegmentHeaderSize, First: uint16(5*i + 3), Blocks: uint16(1 + i%3)})
		}
		var got []byte
		s.Read(m, func(reply wire.ReadReply, err error) {
			got = append(got, reply.Data...)
			if reply.Release != nil {
				reply.Release()
			}
			done <- err
		})
		err := <-done
		return got, err
	}
	var want []byte
	for i := range 50 {
		want = append(want, body[(5*i+3)*journal.BlockSize:][:(1+i%3)*journal.BlockSize]...)
	}
	if got, err := read(); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	// A bad block late in the record, long after its head was read.
	f, err := mem.OpenReadWrite(s.Path(seg))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xff}, int64(journal.SegmentHeaderSize+journal.BodyOffset(1<<20)+(5*40+3)*journal.BlockSize+9)); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); !isCode(err, wire.CodeCorrupt) {
		t.Fatalf("a bad block gave %v", err)
	}
}

func isCode(err error, c wire.Code) bool {
	e, ok := err.(*wire.Error)
	return ok && e.Code == c
}

// TestLargeReadsLeaveTheLoop: a small read is answered before Read returns; a large one never holds its caller up.
func TestLargeReadsLeaveTheLoop(t *testing.T) {
	s := openStore(t, testOptions(vfs.NewMem(0), boot1))
	o := newOwner(t, segment(jA, 1, 1))
	if _, err := s.OpenSegment(t.Context(), &wire.OpenSegment{Epoch: epoch(1), Segment: o.seg, Capacity: testCapacity}); err != nil {
		t.Fatal(err)
	}
	o.write(s, 100, 1)
	read := func(blocks uint16, done func(wire.ReadReply, error)) {
		s.Read(&wire.Read{Journal: jA, Pieces: []wire.ReadPiece{{Segment: o.seg, Record: journal.SegmentHeaderSize, Blocks: blocks}}}, done)
	}
	answered := false
	read(4, func(r wire.ReadReply, err error) {
		if answered = true; err != nil {
			t.Error(err)
			return
		}
		r.Release()
	})
	if !answered {
		t.Error("a small read from memory has left its caller's goroutine")
	}
	returned, done := make(chan struct{}), make(chan error, 1)
	read(100, func(r wire.ReadReply, err error) {
		<-returned // nobody's loop: it may wait
		if err == nil {
			r.Release()
		}
		done <- err
	})
	close(returned)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
