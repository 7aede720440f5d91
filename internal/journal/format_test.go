package journal

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

var testSegment = ident.SegmentID{Journal: ident.JournalID{1, 2, 3}, Epoch: ident.Epoch{Number: 7, Lineage: 9}, Number: 4, Site: 2}

// testRun encodes records of the given body sizes (in blocks) and returns them with their positions.
func testRun(seg ident.SegmentID, before ident.Position, blocks ...int) (data []byte, after []ident.Position) {
	at := before
	for i, n := range blocks {
		r := Record{Kind: KindWrite, Journal: seg.Journal, Epoch: seg.Epoch, Seq: at.Seq + 1, Block: uint64(100 * i), Count: uint32(n), Request: RequestID{3, uint64(i)}}
		if n == 0 {
			r.Kind, r.Count = KindTrim, 5
		}
		data = r.AppendRecord(data, at.Hash, bytes.Repeat([]byte{byte(i + 1)}, n*BlockSize))
		at = r.Position()
		after = append(after, at)
	}
	return data, after
}

func TestRunTakesWhatWasEncoded(t *testing.T) {
	before := ident.Position{Epoch: ident.Epoch{Number: 6}, Seq: 41, Hash: ident.Hash{5}}
	data, after := testRun(testSegment, before, 1, 0, 256, 3)
	run := Run{Segment: testSegment, At: before, Offset: SegmentHeaderSize, Bodies: true}
	for i := range after {
		n, err := run.Next(data)
		if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		if run.At != after[i] {
			t.Errorf("record %d ends at %v, want %v", i, run.At, after[i])
		}
		if n%Alignment != 0 {
			t.Errorf("record %d takes %d bytes, not a multiple of %d", i, n, Alignment)
		}
		data = data[n:]
	}
	if len(data) != 0 {
		t.Errorf("%d bytes left", len(data))
	}
}

// Every single-bit error anywhere in a record is found.
func TestEveryFlippedBitIsFound(t *testing.T) {
	before := ident.Position{Seq: 1, Hash: ident.Hash{5}}
	data, _ := testRun(testSegment, before, 1)
	for bit := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		run := Run{Segment: testSegment, At: before, Bodies: true}
		if _, err := run.Next(bad); err == nil {
			// The padding between the CRC array and the body carries no meaning.
			if at := bit / 8; at < RecordHeaderSize+4 || at >= BodyOffset(BlockSize) {
				t.Fatalf("bit %d of byte %d flipped and not noticed", bit%8, at)
			}
		}
	}
}

func TestRunRefusesWhatDoesNotFollow(t *testing.T) {
	before := ident.Position{Epoch: ident.Epoch{Number: 6}, Seq: 41, Hash: ident.Hash{5}}
	data, _ := testRun(testSegment, before, 1)
	other := testSegment
	other.Journal = ident.JournalID{9}
	older := testSegment
	older.Epoch.Number = 5
	for name, run := range map[string]Run{
		"gap":             {Segment: testSegment, At: ident.Position{Seq: 40, Hash: before.Hash}},
		"other hash":      {Segment: testSegment, At: ident.Position{Seq: 41}},
		"newer before":    {Segment: testSegment, At: ident.Position{Epoch: ident.Epoch{Number: 8}, Seq: 41, Hash: before.Hash}},
		"other journal":   {Segment: other, At: before},
		"newer than file": {Segment: older, At: before},
	} {
		_, err := run.Next(data)
		var c *CorruptionError
		if !errors.As(err, &c) {
			t.Errorf("%s: %v, want a CorruptionError", name, err)
		}
	}
	run := Run{Segment: testSegment, At: before}
	for n := range data {
		if _, err := run.Next(data[:n]); err != ErrCutOff {
			t.Fatalf("%d of %d bytes: %v, want ErrCutOff", n, len(data), err)
		}
	}
}

func drawPosition(t *rapid.T, name string) (p ident.Position) {
	p.Epoch = ident.Epoch{Number: rapid.Uint64().Draw(t, name), Lineage: rapid.Uint32().Draw(t, name)}
	p.Seq = ident.Seq(rapid.Uint64().Draw(t, name))
	copy(p.Hash[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
	return p
}

func TestSegmentHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := SegmentHeader{Segment: testSegment, Kind: JournalShare, Before: drawPosition(t, "before"),
			Start:    wire.EpochStart{At: drawPosition(t, "at"), Before: drawPosition(t, "startBefore"), Proven: rapid.Bool().Draw(t, "proven")},
			Point:    CheckpointPoint{At: drawPosition(t, "covers"), Segment: testSegment, Offset: rapid.Uint32().Draw(t, "off"), Digest: rapid.Uint64().Draw(t, "digest")},
			Boundary: drawPosition(t, "boundary")}
		b := AppendSegmentHeader(nil, h)
		if len(b) != SegmentHeaderSize {
			t.Fatalf("%d bytes", len(b))
		}
		got, err := DecodeSegmentHeader(b)
		if err != nil || got != h {
			t.Fatalf("got %+v, %v; want %+v", got, err, h)
		}
		b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= 0x10
		if _, err := DecodeSegmentHeader(b); err == nil {
			t.Fatal("a flipped bit was not noticed")
		}
	})
}

func TestIndexRoundTrip(t *testing.T) {
	x := &Index{Segment: testSegment, Before: ident.Position{Seq: 41}, Last: ident.Position{Seq: 44, Hash: ident.Hash{1}}, End: 1 << 20,
		Entries: []IndexEntry{{Offset: 4096, Kind: KindWrite, Block: 1<<47 + 3, Count: 256, LogicalLen: 1 << 20, StoredLen: 17, Part: 3},
			{Offset: 8192, Kind: KindTrim, Block: 9, Count: 1 << 31}, {Offset: 8192 + 128, Kind: KindConfirm, Codec: CodecZstd}}}
	b := AppendIndex(nil, x)
	if len(b) != IndexSize(3) {
		t.Errorf("%d bytes, IndexSize says %d", len(b), IndexSize(3))
	}
	got, err := DecodeIndex(b)
	if err != nil || !reflect.DeepEqual(got, x) {
		t.Fatalf("got %+v, %v; want %+v", got, err, x)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, err := DecodeIndex(bad); err == nil {
			t.Fatalf("byte %d changed and not noticed", i)
		}
	}
}

func TestBodiesRoundTrip(t *testing.T) {
	r := Record{Epoch: ident.Epoch{Number: 3}, Seq: 9, Hash: ident.Hash{7}}
	start := wire.EpochStart{At: r.Position(), Before: ident.Position{Seq: 8}, Proven: true}
	if got, err := DecodeEpochStart(&r, AppendEpochStart(nil, start)); err != nil || got != start {
		t.Errorf("epoch start: %+v, %v", got, err)
	}
	point := CheckpointPoint{At: r.Position(), Segment: testSegment, Offset: 5, Digest: 6}
	if got, err := DecodeCheckpoint(AppendCheckpoint(nil, point)); err != nil || got != point {
		t.Errorf("checkpoint: %+v, %v", got, err)
	}
	permits := []Permit{{testSegment, ident.StoreID{1}, 7, false, []ident.StoreID{{2}, {3}}}, {testSegment, ident.StoreID{4}, 1 << 40, true, []ident.StoreID{}}}
	if got, err := DecodePermits(AppendPermits(nil, permits)); err != nil || !reflect.DeepEqual(got, permits) {
		t.Errorf("permits: %+v, %v", got, err)
	}
	retired := []ident.SegmentID{testSegment, {}}
	if got, err := DecodeRetired(AppendRetired(nil, retired)); err != nil || !reflect.DeepEqual(got, retired) {
		t.Errorf("retired: %+v, %v", got, err)
	}
}

func FuzzRecord(f *testing.F) {
	data, _ := testRun(testSegment, ident.Position{}, 1, 0, 2)
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		run := Run{Segment: testSegment, Bodies: true}
		for len(b) > 0 {
			n, err := run.Next(b)
			if err != nil {
				return
			}
			b = b[n:]
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	f.Add(AppendSegmentHeader(nil, SegmentHeader{Segment: testSegment, Kind: JournalVolume}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeSegmentHeader(b); err == nil && !bytes.Equal(AppendSegmentHeader(nil, h), b[:SegmentHeaderSize]) {
			t.Error("decoded and encoded again, the bytes differ")
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(AppendIndex(nil, &Index{Segment: testSegment, End: 4096}))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = DecodeIndex(b) })
}

func FuzzBodies(f *testing.F) {
	f.Add(AppendPermits(nil, []Permit{{testSegment, ident.StoreID{1}, 7, true, []ident.StoreID{{2}}}}))
	f.Add(AppendRetired(nil, []ident.SegmentID{testSegment}))
	f.Add(AppendCopy(nil, 1<<40))
	f.Add(AppendCuts(nil, []wire.EpochStart{{At: ident.Position{Seq: 9}, Before: ident.Position{Seq: 8}}}))
	f.Add(AppendPins(nil, []PinChange{{PinForget, ident.Epoch{Number: 3, Lineage: 4}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pins, err := DecodePins(b); err == nil && !bytes.Equal(AppendPins(nil, pins), b) {
			t.Error("decoded and encoded again, the bytes of a pin record differ")
		}
		if cuts, err := DecodeCuts(b); err == nil && !bytes.Equal(AppendCuts(nil, cuts), b) {
			t.Error("decoded and encoded again, the bytes differ")
		}
		if source, err := DecodeCopy(b, 16); err == nil && !bytes.Equal(AppendCopy(nil, source), b) {
			t.Error("decoded and encoded again, the bytes of a copy record differ")
		}
		_, _ = DecodePermits(b)
		_, _ = DecodeRetired(b)
		_, _ = DecodeCheckpoint(b)
		_, _ = DecodeEpochStart(&Record{}, b)
	})
}

func BenchmarkEncode4K(b *testing.B) {
	rec := make([]byte, RecordSize(BlockSize))
	r := Record{Kind: KindWrite, Count: 1, StoredLen: BlockSize, LogicalLen: BlockSize, Seq: 1}
	b.SetBytes(BlockSize)
	for b.Loop() {
		PutCRCs(rec[RecordHeaderSize:], rec[BodyOffset(BlockSize):])
		r.BodyDigest = DigestCRCs(rec[RecordHeaderSize : RecordHeaderSize+4])
		r.Encode(rec, r.Hash)
	}
}
