package core

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path"
	"strings"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

func TestInspectAndScrub(t *testing.T) {
	m := vfs.NewMem(0)
	opts := testOptions(m, boot1)
	var reported []ident.SegmentID
	opts.OnCorrupt = func(id ident.SegmentID, _ uint32, _ error) { reported = append(reported, id) }
	s := openStore(t, opts)
	a := newOwner(t, segment(jA, 1, 1))
	a.open(s)
	inspect := func(o InspectOptions) (string, error) {
		t.Helper()
		var b bytes.Buffer
		err := Inspect(&b, m, s.replicaPath(a.seg), o)
		return b.String(), err
	}
	if out, err := inspect(InspectOptions{}); err != nil || !strings.Contains(out, "empty") {
		t.Fatalf("%s%v", out, err)
	}
	data := a.makeStart(wire.EpochStart{Proven: true})
	if _, err := appendAt(s, &wire.Append{Epoch: a.epoch, Segment: a.seg, Data: [][]byte{data}}); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		a.write(s, i+1, byte(i))
	}
	out, err := inspect(InspectOptions{})
	if err != nil || !strings.Contains(out, "not sealed, 5 records") || !strings.Contains(out, "proven true") || !strings.Contains(out, "everything verified") {
		t.Fatalf("%s%v", out, err)
	}
	// A torn append is no fault.
	overwrite(t, m, s, a.seg, int64(a.off), []byte("DOZC torn"))
	if out, err = inspect(InspectOptions{}); err != nil || !strings.Contains(out, "note at") {
		t.Fatalf("%s%v", out, err)
	}
	a.seal(s)
	out, err = inspect(InspectOptions{JSON: true})
	if err != nil {
		t.Fatalf("%s%v", out, err)
	}
	var kinds []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var l struct {
			Line string
			Seq  uint64
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		kinds = append(kinds, l.Line)
	}
	if got := strings.Join(kinds, " "); got != "segment record record record record record index end" {
		t.Fatalf("lines %s", got)
	}
	// A file with the name of another segment, as after a mishap with a backup.
	other := segment(jA, 1, 2)
	if err := m.Rename(s.replicaPath(a.seg), s.replicaPath(other)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Inspect(&b, m, s.replicaPath(other), InspectOptions{}); !errors.Is(err, ErrBad) || !strings.Contains(b.String(), "the name that of "+other.String()) {
		t.Fatalf("%s%v", &b, err)
	}
	if err := m.Rename(s.replicaPath(other), s.replicaPath(a.seg)); err != nil {
		t.Fatal(err)
	}
	// What is no segment is not called a bad one.
	b.Reset()
	if err := Inspect(&b, m, path.Join(opts.Dir, "notes.0"), InspectOptions{}); !errors.Is(err, ErrNotSegment) || errors.Is(err, ErrBad) || !strings.Contains(err.Error(), "notes log") || b.Len() != 0 {
		t.Fatalf("%s%v", &b, err)
	}
	if err := Inspect(&b, m, path.Join(opts.Dir, "dozo-store.json"), InspectOptions{}); !errors.Is(err, ErrNotSegment) {
		t.Fatalf("%s%v", &b, err)
	}
	if rep, err := s.Scrub(context.Background(), 0); err != nil || rep.Replicas != 1 || len(rep.Bad) != 0 {
		t.Fatalf("scrub %+v, %v", rep, err)
	}
	// Any byte that carries meaning, changed, is found by both.
	size, _ := m.Size(s.replicaPath(a.seg))
	places := []int64{10, 4096 + 5, 4096 + 60, int64(a.ends[1]) + 500, int64(a.off) - 1, int64(a.off) + 30, size - 70, size - 40, size - 1}
	for _, at := range places {
		var old [1]byte
		f, _ := m.OpenReadWrite(s.replicaPath(a.seg))
		f.ReadAt(old[:], at)
		f.WriteAt([]byte{old[0] ^ 0x21}, at)
		out, err := inspect(InspectOptions{})
		if !errors.Is(err, ErrBad) || !strings.Contains(out, "BAD") {
			t.Errorf("byte %d: %s%v", at, out, err)
		}
		reported = nil
		if rep, err := s.Scrub(context.Background(), 0); err != nil || len(rep.Bad) != 1 || len(reported) != 1 {
			t.Errorf("byte %d: scrub %+v, %v", at, rep, err)
		}
		f.WriteAt(old[:], at)
		f.Close()
	}
	if out, err := inspect(InspectOptions{}); err != nil {
		t.Fatalf("%s%v", out, err)
	}
}
