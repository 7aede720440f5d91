package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"dozo/internal/core"
	"dozo/internal/ident"
	"dozo/internal/journal"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// segmentFile makes a store with one segment of two writes and gives the name of its file.
func segmentFile(t *testing.T) (fsys *vfs.Mem, name string) {
	t.Helper()
	fsys = vfs.NewMem(1 << 30)
	st, err := core.Open(core.Options{FS: fsys, Dir: "store", Create: true, Boot: ident.BootID{1}, FailMarkDir: "marks"})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ctx := context.Background()
	epoch := ident.Epoch{Number: 1, Lineage: 7}
	id := ident.SegmentID{Journal: ident.JournalID{1, 2}, Epoch: epoch, Site: 1}
	if _, err := st.OpenSegment(ctx, &wire.OpenSegment{Epoch: epoch, Segment: id, Capacity: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	data := journal.AppendSegmentHeader(nil, journal.SegmentHeader{Segment: id, Kind: journal.JournalVolume})
	var before ident.Hash
	for seq := range ident.Seq(2) {
		body := bytes.Repeat([]byte{byte(0xa0 + seq)}, journal.BlockSize)
		rec := make([]byte, journal.BodyOffset(uint32(len(body))), int(journal.BodyOffset(uint32(len(body))))+len(body))
		rec = append(rec, body...)
		journal.PutCRCs(rec[journal.RecordHeaderSize:], body)
		r := journal.Record{Kind: journal.KindWrite, Epoch: epoch, Seq: seq + 1, Journal: id.Journal, Block: uint64(seq) * 16, Count: 1,
			LogicalLen: journal.BlockSize, StoredLen: journal.BlockSize,
			BodyDigest: journal.DigestCRCs(rec[journal.RecordHeaderSize : journal.RecordHeaderSize+4*journal.CRCCount(journal.BlockSize)])}
		r.Encode(rec, before)
		before = r.Hash
		data = append(data, rec...)
	}
	done := make(chan error, 1)
	st.Append(&wire.Append{Epoch: epoch, Segment: id, Data: [][]byte{data}}, func(_ wire.AppendReply, err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return fsys, st.Path(id)
}

func TestFile(t *testing.T) {
	fsys, name := segmentFile(t)
	show := func(o Options) string {
		t.Helper()
		var out bytes.Buffer
		if err := File(&out, fsys, name, o); err != nil {
			t.Fatalf("%+v: %v\n%s", o, err, &out)
		}
		return out.String()
	}
	if got := show(Options{}); !strings.HasPrefix(got, "segment 0102") || !strings.Contains(got, "2 records") || !strings.Contains(got, "everything verified") || strings.Contains(got, "write") {
		t.Errorf("summary:\n%s", got)
	}
	if got := show(Options{Records: true}); strings.Count(got, " write ") != 2 || strings.Contains(got, "a0 a0") {
		t.Errorf("records:\n%s", got)
	}
	got := show(Options{Data: true})
	if strings.Count(got, " write ") != 2 || strings.Count(got, "a0 a0 a0 a0 a0 a0 a0 a0  a0") != 256 || strings.Count(got, "a1 a1 a1 a1 a1 a1 a1 a1  a1") != 256 {
		t.Errorf("data:\n%.3000s", got)
	}
	if first, second := strings.Index(got, "a0 a0"), strings.LastIndex(got, " write "); first > second {
		t.Error("the first record's bytes stand behind the second record")
	}
	var kinds []string
	for line := range strings.Lines(show(Options{Style: JSON, Data: true})) {
		var x struct{ Line, Data string }
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatalf("%v: %.200s", err, line)
		}
		if kinds = append(kinds, x.Line); x.Line == "record" && len(x.Data) != 2*journal.BlockSize {
			t.Errorf("%d digits of data", len(x.Data))
		}
	}
	if strings.Join(kinds, " ") != "segment record record end" {
		t.Errorf("lines %v", kinds)
	}
	if got := show(Options{Style: YAML}); strings.Count(got, "\n- {")+1 != 2 || !strings.HasPrefix(got, "- {") {
		t.Errorf("YAML:\n%s", got)
	}
}

// TestSeveralFiles: the lines of each stand behind its name.
func TestSeveralFiles(t *testing.T) {
	fsys, name := segmentFile(t)
	for style, want := range map[Style]string{Text: name + ":\nsegment ", JSON: `{"line":"file","path":"` + name + `"}` + "\n{", YAML: `- {"line":"file","path":"` + name + `"}` + "\n- {"} {
		var out bytes.Buffer
		if err := File(&out, fsys, name, Options{Style: style, Name: true}); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%v\n%.300s", err, &out)
		}
	}
}

func TestBadFile(t *testing.T) {
	fsys, name := segmentFile(t)
	f, err := fsys.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, journal.SegmentHeaderSize+int64(journal.BodyOffset(journal.BlockSize))+100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {Style: JSON}, {Data: true}} {
		var out bytes.Buffer
		if err := File(&out, fsys, name, o); !errors.Is(err, core.ErrBad) {
			t.Errorf("%+v: %v\n%.2000s", o, err, &out)
		}
	}
	if err := File(&bytes.Buffer{}, fsys, "nothing", Options{}); err == nil {
		t.Error("a file that is not there was printed")
	}
}
