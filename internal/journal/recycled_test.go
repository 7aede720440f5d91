package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"dozo/internal/ident"
)

func testRecycled() RecycledHeader {
	of := testSegment
	of.Number--
	return RecycledHeader{Segment: testSegment, Of: of, Last: ident.Position{Epoch: ident.Epoch{Number: 6, Lineage: 9}, Seq: 41, Hash: ident.Hash{5}}}
}

func TestRecycledHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := testRecycled()
		h.Last = drawPosition(t, "last")
		b := AppendRecycledHeader([]byte{1, 2, 3}, h)[3:]
		if len(b) != SegmentHeaderSize {
			t.Fatalf("%d bytes", len(b))
		}
		if got, err := DecodeRecycledHeader(b); err != nil || got != h {
			t.Fatalf("got %+v, %v; want %+v", got, err, h)
		}
		if _, err := DecodeSegmentHeader(b); err == nil {
			t.Fatal("taken for a segment header")
		}
		b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= 0x10
		if _, err := DecodeRecycledHeader(b); err == nil {
			t.Fatal("a flipped bit was not noticed")
		}
	})
}

// The bytes are those of the table in docs/format.md.
func TestRecycledHeaderBytes(t *testing.T) {
	b := AppendRecycledHeader(nil, testRecycled())
	const want = "445a4752" + "........" + "0100" + "0000" +
		"01020300000000000000000000000000" + "0700000000000000" + "09000000" + "04000000" + "0200" +
		"01020300000000000000000000000000" + "0700000000000000" + "09000000" + "03000000" + "0200" +
		"0600000000000000" + "09000000" + "2900000000000000" + "05000000000000000000000000000000"
	got := hex.EncodeToString(b[:recycledUsed])
	if got[:8]+"........"+got[16:] != want {
		t.Fatalf("bytes %s,\nwant  %s", got, want)
	}
}

func TestRecycledHeaderRefuses(t *testing.T) {
	if _, err := DecodeRecycledHeader(make([]byte, SegmentHeaderSize)); err != ErrNotRecycled {
		t.Errorf("zeroes: %v", err)
	}
	b := AppendRecycledHeader(nil, testRecycled())
	if _, err := DecodeRecycledHeader(b[:100]); err != ErrNotRecycled {
		t.Errorf("cut off: %v", err)
	}
	change := func(at int, c byte) []byte {
		bad := bytes.Clone(b)
		bad[at] = c
		binary.LittleEndian.PutUint32(bad[4:], CRC(bad[8:]))
		return bad
	}
	var v *VersionError
	if _, err := DecodeRecycledHeader(change(8, 2)); !errors.As(err, &v) {
		t.Errorf("version 2: %v", err)
	}
	for _, at := range []int{10, recycledUsed, SegmentHeaderSize - 1, 12 + segmentIDSize} {
		var c *CorruptionError
		if _, err := DecodeRecycledHeader(change(at, 0x77)); !errors.As(err, &c) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func FuzzRecycledHeader(f *testing.F) {
	f.Add(AppendRecycledHeader(nil, testRecycled()))
	f.Add(AppendRecycledHeader(nil, RecycledHeader{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeRecycledHeader(b)
		if err == nil && !bytes.Equal(AppendRecycledHeader(nil, h), b[:SegmentHeaderSize]) {
			t.Fatal("decoded and encoded again it is something else")
		}
	})
}
