package core

import (
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// benchStore is on a real disk: what is measured is dominated by the kernel there, as in production.
func benchStore(b testing.TB) *Store {
	o := testOptions(vfs.Default, boot1)
	o.Dir, o.FailMarkDir, o.NotesSize = b.TempDir()+"/store", b.TempDir(), 0
	return openStore(b, o)
}

// recycler appends encoded records for ever: when a segment is full it goes on in the next.
type recycler struct {
	b     testing.TB
	s     *Store
	o     *owner
	rec   journal.Record
	buf   []byte
	msg   wire.Append
	done  func(wire.AppendReply, error)
	count int
}

func newRecycler(b testing.TB, s *Store, blocks int) *recycler {
	c := &recycler{b: b, s: s, buf: make([]byte, journal.RecordSize(uint32(blocks*journal.BlockSize)))}
	c.rec = journal.Record{Kind: journal.KindWrite, Journal: jA, Epoch: epoch(1), Count: uint32(blocks),
		StoredLen: uint32(blocks * journal.BlockSize), LogicalLen: uint32(blocks * journal.BlockSize)}
	journal.PutCRCs(c.buf[journal.RecordHeaderSize:], c.buf[journal.BodyOffset(c.rec.StoredLen):])
	c.rec.BodyDigest = journal.DigestCRCs(c.buf[journal.RecordHeaderSize : journal.RecordHeaderSize+4*blocks])
	c.msg = wire.Append{Epoch: epoch(1), Data: [][]byte{c.buf}, Trusted: true}
	c.done = func(r wire.AppendReply, err error) {
		if err != nil {
			c.b.Fatal(err)
		}
		c.msg.Offset = r.End
	}
	c.next()
	return c
}

func (c *recycler) next() {
	if c.o != nil {
		if _, err := c.s.Drop(c.b.Context(), &wire.Drop{Epoch: epoch(1), Segment: c.o.seg}); err != nil {
			c.b.Fatal(err)
		}
	}
	c.count++
	at := ident.Position{}
	if c.o != nil {
		at = c.o.at
	}
	c.o = newOwner(c.b, segment(jA, 1, uint32(c.count)))
	c.o.at = at
	c.msg.Segment = c.o.seg
	if _, err := c.s.OpenSegment(c.b.Context(), &wire.OpenSegment{Epoch: epoch(1), Segment: c.o.seg, Capacity: journal.SegmentCapacityMax}); err != nil {
		c.b.Fatal(err)
	}
	c.o.write(c.s, 1, 1)
	c.msg.Offset = c.o.off
}

// encode makes the next record; it is what an owner does, not the store.
func (c *recycler) encode() {
	c.rec.Seq = c.o.at.Seq + 1
	c.rec.Encode(c.buf, c.o.at.Hash)
	c.o.at = c.rec.Position()
}

func (c *recycler) append() { c.s.Append(&c.msg, c.done) }

func (c *recycler) full() bool {
	return int(c.msg.Offset)+2*len(c.buf)+journal.IndexSize(16000) > journal.SegmentCapacityMax
}

func benchAppend(b *testing.B, blocks int, trusted bool) {
	c := newRecycler(b, benchStore(b), blocks)
	c.msg.Trusted = trusted
	b.SetBytes(int64(blocks * journal.BlockSize))
	b.ReportAllocs()
	for b.Loop() {
		if c.full() {
			b.StopTimer()
			c.next()
			b.StartTimer()
		}
		c.encode()
		c.append()
	}
}

func BenchmarkAppend4K(b *testing.B)          { benchAppend(b, 1, true) }
func BenchmarkAppend4KUntrusted(b *testing.B) { benchAppend(b, 1, false) }
func BenchmarkAppend64K(b *testing.B)         { benchAppend(b, 16, true) }
func BenchmarkAppend1M(b *testing.B)          { benchAppend(b, 256, true) }
func BenchmarkAppend1MUntrusted(b *testing.B) { benchAppend(b, 256, false) }
func BenchmarkEncodeOnly4K(b *testing.B) {
	c := newRecycler(b, benchStore(b), 1)
	for b.Loop() {
		c.encode()
	}
}

// BenchmarkPwrite4K is what the kernel alone takes for the bytes of a 4 KiB record.
func BenchmarkPwrite4K(b *testing.B) {
	f, err := vfs.Default.Create(b.TempDir() + "/f")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Preallocate(0, journal.SegmentCapacityMax); err != nil {
		b.Fatal(err)
	}
	rec := make([]byte, journal.RecordSize(4096))
	at := int64(4096)
	for b.Loop() {
		if at += int64(len(rec)); at > journal.SegmentCapacityMax-8192 {
			at = 4096
		}
		if _, err := f.WriteAt(rec, at); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRead(b *testing.B, recordBlocks, first, blocks int) {
	s := benchStore(b)
	o := newOwner(b, segment(jA, 1, 1))
	if _, err := s.OpenSegment(b.Context(), &wire.OpenSegment{Epoch: epoch(1), Segment: o.seg, Capacity: journal.SegmentCapacityMax}); err != nil {
		b.Fatal(err)
	}
	for range 8 {
		o.write(s, recordBlocks, 1)
	}
	o.seal(s)
	m := &wire.Read{Journal: jA, Pieces: []wire.ReadPiece{{Segment: o.seg, Record: o.ends[2], First: uint16(first), Blocks: uint16(blocks)}}}
	ended := make(chan error, 1)
	done := func(r wire.ReadReply, err error) {
		if err == nil {
			r.Release()
		}
		ended <- err
	}
	b.SetBytes(int64(blocks * journal.BlockSize))
	b.ReportAllocs()
	for b.Loop() {
		s.Read(m, done)
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4K(b *testing.B)     { benchRead(b, 1, 0, 1) }
func BenchmarkRead4KOf1M(b *testing.B) { benchRead(b, 256, 77, 1) }
func BenchmarkRead1M(b *testing.B)     { benchRead(b, 256, 0, 256) }

// The steady state of the hot paths allocates nothing.
func TestHotPathsAllocateNothing(t *testing.T) {
	m := vfs.NewMem(0)
	o := testOptions(m, boot1)
	s := openStore(t, o)
	c := newRecycler(t, s, 1)
	s.replica(c.o.seg).mu.index = make([]journal.IndexEntry, 0, 10000) // its growth is not per append
	if n := testing.AllocsPerRun(200, func() { c.encode(); c.append() }); n > 1 {
		t.Errorf("append: %v allocations", n) // one is the memory file's own page
	}
	piece := wire.ReadPiece{Segment: c.o.seg, Record: c.o.ends[0], Blocks: 1}
	one := &wire.Read{Journal: jA, Pieces: []wire.ReadPiece{piece}}
	three := &wire.Read{Journal: jA, Pieces: []wire.ReadPiece{piece, piece, piece}}
	large := &wire.Read{Journal: jA}
	for range inlineMax / journal.BlockSize {
		large.Pieces = append(large.Pieces, piece)
	}
	ended := make(chan struct{}, 1)
	done := func(r wire.ReadReply, err error) {
		if err != nil {
			t.Error(err)
		} else {
			r.Release()
		}
		ended <- struct{}{}
	}
	for name, m := range map[string]*wire.Read{"one piece": one, "three pieces": three, "many pieces": large} {
		if n := testing.AllocsPerRun(200, func() { s.Read(m, done); <-ended }); n > 0 && !raceEnabled { // with it pools lose things
			t.Errorf("read of %s: %v allocations", name, n)
		}
	}
}
