package core

import (
	"errors"
	"syscall"
	"testing"

	"dozo/internal/ident"
	"dozo/internal/vfs"
	"dozo/internal/wire"
)

// A process that may open no more files, since it has many clients, say, can't do what needs another one just then. That says nothing of the
// disk: nothing is taken for failed, rotten or damaged.
func TestNoDescriptorsLeft(t *testing.T) {
	m := vfs.NewMem(0)
	faults := vfs.NewFaults(m)
	opts := testOptions(faults, boot1)
	opts.OpenFiles = 1
	opts.OnCorrupt = func(s ident.SegmentID, _ uint32, err error) { t.Errorf("%s is said to be corrupt: %v", s, err) }
	s := openStore(t, opts)
	a, b, c := newOwner(t, segment(jA, 1, 1)), newOwner(t, segment(jA, 1, 2)), newOwner(t, segment(jA, 1, 3))
	a.open(s)
	a.write(s, 1, 1)
	a.seal(s)
	b.at = a.at
	b.open(s)
	b.write(s, 1, 2)
	b.sync(s)
	c.open(s) // the one file that stays open

	none := faults.Add(vfs.FailOn(vfs.OpOpen, "*", syscall.EMFILE))
	at := b.off
	data := b.make(1, 3)
	_, err := appendAt(s, &wire.Append{Epoch: b.epoch, Segment: b.seg, Offset: at, Data: [][]byte{data}})
	wantCode(t, err, wire.CodeBusy)
	_, err = read(s, jA, wire.ReadPiece{Segment: a.seg, Record: 4096, Blocks: 1})
	wantCode(t, err, wire.CodeBusy)
	_, err = s.ReadIndex(bg, &wire.ReadIndex{Segment: a.seg})
	wantCode(t, err, wire.CodeBusy)
	_, err = s.Seal(bg, b.sealMessage(1))
	wantCode(t, err, wire.CodeBusy)
	if rep, err := s.Scrub(bg, 0); !errors.Is(err, syscall.EMFILE) || len(rep.Bad) != 0 {
		t.Errorf("scrub: %+v, %v", rep, err)
	}
	if s.Failed() != "" || len(s.Damaged()) != 0 {
		t.Fatalf("failed %q, damaged %v", s.Failed(), s.Damaged())
	}
	if s, err := Open(testOptions(faultsOf(killed(m, s), "*-00000002"), boot1)); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("started with what could not be opened: %v", err)
		s.Close()
	}
	none()
	if reply, err := appendAt(s, &wire.Append{Epoch: b.epoch, Segment: b.seg, Offset: at, Data: [][]byte{data}}); err != nil || reply.End != b.off {
		t.Fatalf("%+v, %v", reply, err)
	}
	b.sync(s)
	b.seal(s)
	a.wantRecords(s, 1)
	b.wantRecords(s, 2)
}

// faultsOf fails to open what matches.
func faultsOf(m *vfs.Mem, pattern string) vfs.FS {
	f := vfs.NewFaults(m)
	f.Add(vfs.FailOn(vfs.OpOpen, pattern, syscall.EMFILE))
	return f
}
