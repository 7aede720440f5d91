package journal

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/wire"
)

var (
	testPort    = Port{Protocol: PortISCSI, ISID: [6]byte{0, 2, 0x3d, 1, 2, 3}, Name: "iqn.2026-01.a:b"}
	testChanges = []PortChange{{PortAttach, testPort, 2, 0x1122334455667788}, {PortDetach, Port{Protocol: PortISCSI}, 1, 3}, {Op: PortAccept, Port: testPort},
		{PortBar, testPort, 2, 9}}
	testList = []Attachment{{Port: testPort, Barred: true, Paths: []PortPath{{2, 0x1122334455667788}, {1, 9}}}, {Port: Port{Protocol: PortISCSI, Name: "x"}},
		{Port: Port{Protocol: PortISCSI, Name: "y"}, Accepted: true}}
)

// The bytes of docs/format.md: what stands on disks must be read for ever.
func TestBytesOfAttachmentsAndCuts(t *testing.T) {
	cuts := []wire.EpochStart{{At: ident.Position{Epoch: ident.Epoch{Number: 2, Lineage: 5}, Seq: 91, Hash: ident.Hash{0xaa}},
		Before: ident.Position{Epoch: ident.Epoch{Number: 1, Lineage: 5}, Seq: 90, Hash: ident.Hash{0xbb}}}}
	for _, x := range []struct {
		name string
		got  []byte
		want string
	}{
		{"changes", AppendPortChanges(nil, testChanges), "01 04000000 01 01 0200 8877665544332211 00023d010203 0f 69716e2e323032362d30312e613a62" +
			"02 01 0100 0300000000000000 000000000000 00 03 01 0000 0000000000000000 00023d010203 0f 69716e2e323032362d30312e613a62" +
			"04 01 0200 0900000000000000 00023d010203 0f 69716e2e323032362d30312e613a62"},
		{"attachments", AppendAttachments(nil, testList), "01 03000000 01 01 00023d010203 0f 02 69716e2e323032362d30312e613a62 0200 8877665544332211 0100 0900000000000000" +
			"00 01 000000000000 01 00 78 02 01 000000000000 01 00 79"},
		{"cuts", AppendCuts(nil, cuts), "01 01000000 0200000000000000 05000000 5b00000000000000 aa000000000000000000000000000000" +
			"0100000000000000 05000000 5a00000000000000 bb000000000000000000000000000000"},
	} {
		if want := strings.ReplaceAll(x.want, " ", ""); hex.EncodeToString(x.got) != want {
			t.Errorf("%s:\n%x\nwant\n%s", x.name, x.got, want)
		}
	}
	if c, err := DecodePortChanges(AppendPortChanges(nil, testChanges)); err != nil || !reflect.DeepEqual(c, testChanges) {
		t.Errorf("%v, %v", c, err)
	}
	if l, err := DecodeAttachments(AppendAttachments(nil, testList)); err != nil || !reflect.DeepEqual(l, testList) {
		t.Errorf("%v, %v", l, err)
	}
	if c, err := DecodeCuts(AppendCuts(nil, cuts)); err != nil || !reflect.DeepEqual(c, cuts) {
		t.Errorf("%v, %v", c, err)
	}
	size := 5
	for i := range testList {
		size += testList[i].Size()
	}
	if n := len(AppendAttachments(nil, testList)); n != size {
		t.Errorf("attachments take %d bytes, counted %d", n, size)
	}
}

// Beyond the bound the oldest cuts become one that says at least what they did.
func TestCutsAreBounded(t *testing.T) {
	var cuts []wire.EpochStart
	for i := range uint64(cutsMax + 10) {
		cuts = append(cuts, wire.EpochStart{At: pos(i+2, 10*i+11), Before: pos(i+1, 10*i+10)})
	}
	got, err := DecodeCuts(AppendCuts(nil, cuts))
	if err != nil || len(got) != cutsMax || got[0].Before != cuts[0].Before || got[0].At != cuts[10].At {
		t.Errorf("%d cuts, %v", len(got), err)
	}
}

func FuzzAttach(f *testing.F) {
	f.Add(AppendPortChanges(nil, testChanges))
	f.Add(AppendAttachments(nil, testList))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodePortChanges(b); err == nil && !bytes.Equal(AppendPortChanges(nil, c), b) {
			t.Error("changes decoded and encoded again differ")
		}
		if l, err := DecodeAttachments(b); err == nil && !bytes.Equal(AppendAttachments(nil, l), b) {
			t.Error("attachments decoded and encoded again differ")
		}
	})
}
