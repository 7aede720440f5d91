package core

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

var (
	boot1 = ident.BootID{1}
	boot2 = ident.BootID{2}
	jA    = ident.JournalID{0xa}
	jB    = ident.JournalID{0xb}
)

const testCapacity = 1 << 20

func epoch(n uint64) ident.Epoch { return ident.Epoch{Number: n, Lineage: 7} }

func segment(j ident.JournalID, e uint64, number uint32) ident.SegmentID {
	return ident.SegmentID{Journal: j, Epoch: epoch(e), Number: number, Site: 1}
}

func testOptions(fsys vfs.FS, boot ident.BootID) Options {
	return Options{FS: fsys, Dir: "/store", Create: true, Boot: boot, Cluster: "c", LeaseMax: 1, NotesSize: 64 << 10}
}

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// owner makes records of a segment as an owner does.
type owner struct {
	t     testing.TB
	seg   ident.SegmentID
	epoch ident.Epoch
	at    ident.Position
	off   uint32
	ends  []uint32 // after each record
	pos   []ident.Position
	bytes []byte // of the file so far
}

func newOwner(t testing.TB, seg ident.SegmentID) *owner {
	return &owner{t: t, seg: seg, epoch: seg.Epoch}
}

func (o *owner) open(s journal.Store) {
	o.t.Helper()
	if _, err := s.OpenSegment(context.Background(), &wire.OpenSegment{Epoch: o.epoch, Segment: o.seg, Capacity: testCapacity}); err != nil {
		o.t.Fatalf("open segment: %v", err)
	}
}

// make encodes a write of blocks, with the segment header in front of the first.
func (o *owner) make(blocks int, fill byte) []byte {
	var data []byte
	if o.off == 0 {
		data = journal.AppendSegmentHeader(nil, journal.SegmentHeader{Segment: o.seg, Kind: journal.JournalVolume, Before: o.at})
	}
	r := journal.Record{Kind: journal.KindWrite, Journal: o.seg.Journal, Epoch: o.seg.Epoch, Seq: o.at.Seq + 1, Block: uint64(o.at.Seq), Count: uint32(blocks)}
	data = r.AppendRecord(data, o.at.Hash, bytes.Repeat([]byte{fill}, blocks*journal.BlockSize))
	return o.took(data, r.Position())
}

// makeStart encodes the epoch-start record of the owner's epoch.
func (o *owner) makeStart(start wire.EpochStart) []byte {
	var data []byte
	if o.off == 0 {
		data = journal.AppendSegmentHeader(nil, journal.SegmentHeader{Segment: o.seg, Kind: journal.JournalVolume, Before: o.at})
	}
	r := journal.Record{Kind: journal.KindEpochStart, Journal: o.seg.Journal, Epoch: o.seg.Epoch, Seq: o.at.Seq + 1}
	data = r.AppendRecord(data, o.at.Hash, journal.AppendEpochStart(nil, start))
	return o.took(data, r.Position())
}

func (o *owner) took(data []byte, at ident.Position) []byte {
	o.at = at
	o.off += uint32(len(data))
	o.ends, o.pos = append(o.ends, o.off), append(o.pos, o.at)
	o.bytes = append(o.bytes, data...)
	return data
}

func appendAt(s journal.Store, m *wire.Append) (reply wire.AppendReply, err error) {
	c := make(chan struct{})
	s.Append(m, func(r wire.AppendReply, e error) { reply, err = r, e; close(c) })
	<-c
	return reply, err
}

// write appends one record and checks the answer.
func (o *owner) write(s journal.Store, blocks int, fill byte) {
	o.t.Helper()
	at := o.off
	data := o.make(blocks, fill)
	reply, err := appendAt(s, &wire.Append{Epoch: o.epoch, Segment: o.seg, Offset: at, Data: [][]byte{data}})
	if err != nil {
		o.t.Fatalf("append at %d: %v", at, err)
	}
	if reply.End != o.off || reply.Held != o.at {
		o.t.Fatalf("append: %+v, want end %d, held %v", reply, o.off, o.at)
	}
}

func (o *owner) sync(s journal.Store) {
	o.t.Helper()
	reply, err := s.Sync(context.Background(), &wire.Sync{Epoch: o.epoch, Journal: o.seg.Journal, Segments: []ident.SegmentID{o.seg}})
	if err != nil || len(reply.Synced) != 1 || reply.Synced[0].StableEnd < o.off {
		o.t.Fatalf("sync: %+v, %v; want %d", reply, err, o.off)
	}
}

func (o *owner) sealMessage(records int) *wire.Seal {
	m := &wire.Seal{Epoch: o.epoch, Segment: o.seg}
	if records > 0 {
		m.End, m.Last = o.ends[records-1], o.pos[records-1]
	}
	return m
}

func (o *owner) seal(s journal.Store) {
	o.t.Helper()
	if _, err := s.Seal(context.Background(), o.sealMessage(len(o.ends))); err != nil {
		o.t.Fatalf("seal: %v", err)
	}
}

func inventory(t testing.TB, s journal.Store, j ident.JournalID) map[ident.SegmentID]wire.Replica {
	t.Helper()
	all := map[ident.SegmentID]wire.Replica{}
	var after ident.SegmentID
	for {
		reply, err := s.Inventory(context.Background(), &wire.Inventory{Journal: j, After: after, Limit: 3})
		if err != nil {
			t.Fatalf("inventory: %v", err)
		}
		for _, r := range reply.Replicas {
			all[r.Segment] = r
			after = r.Segment
		}
		if !reply.More {
			return all
		}
	}
}

func fence(t testing.TB, s journal.Store, j ident.JournalID, e uint64) wire.FenceReply {
	t.Helper()
	reply, err := s.Fence(context.Background(), &wire.Fence{Journal: j, Epoch: epoch(e), Taker: "taker"})
	if err != nil {
		t.Fatalf("fence: %v", err)
	}
	return reply
}

func read(s journal.Store, j ident.JournalID, pieces ...wire.ReadPiece) (data []byte, err error) {
	c := make(chan struct{})
	s.Read(&wire.Read{Journal: j, Pieces: pieces}, func(r wire.ReadReply, e error) {
		data, err = bytes.Clone(r.Data), e
		if r.Release != nil {
			r.Release()
		}
		close(c)
	})
	<-c
	return data, err
}

// wantRecords checks that all of the owner's first n records can be read.
func (o *owner) wantRecords(s journal.Store, n int) {
	o.t.Helper()
	reply, err := s.ReadRaw(context.Background(), &wire.ReadRaw{Segment: o.seg, Len: o.ends[n-1]})
	if err != nil || !bytes.Equal(reply.Data, o.bytes[:o.ends[n-1]]) {
		o.t.Fatalf("raw read of %d records: %d bytes, %v; want %d", n, len(reply.Data), err, o.ends[n-1])
	}
	if reply.Release != nil {
		reply.Release()
	}
}

func wantCode(t testing.TB, err error, code wire.Code) {
	t.Helper()
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("error %v, want code %q", err, code)
	}
}

// killed gives the file system as a process finds it that starts after a kill -9: nothing is lost, the locks
// are free. The store that was killed must not be used again.
func killed(m *vfs.Mem, s *Store) *vfs.Mem {
	m.DropLocks()
	return m
}

func powerCut(m *vfs.Mem, percent int, seed uint64) *vfs.Mem {
	return m.CrashClone(vfs.Crash{Percent: percent, Rand: rand.New(rand.NewPCG(seed, binary.MaxVarintLen64))})
}
