package history

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// disk is blocks in memory, for the checker.
type disk map[uint64][]byte

func (d disk) get(b uint64, p []byte) error {
	clear(p)
	copy(p, d[b])
	return nil
}

func (d disk) put(run, block, write uint64) {
	p := make([]byte, BlockSize)
	Fill(p, Stamp{run, block, write})
	d[block] = p
}

func TestReadSeesWhatABlockIs(t *testing.T) {
	p := make([]byte, BlockSize)
	if c := Read(p, 7, 3); c.Kind != "foreign" {
		t.Fatalf("zeros are %+v", c)
	}
	Fill(p, Stamp{7, 3, 9})
	if c := Read(p, 7, 3); c.Kind != "stamped" || c.Write != 9 {
		t.Fatalf("own block is %+v", c)
	}
	if c := Read(p, 7, 4); c.Kind != "misplaced" {
		t.Fatalf("block of another place is %+v", c)
	}
	if c := Read(p, 8, 3); c.Kind != "foreign" {
		t.Fatalf("block of another run is %+v", c)
	}
	q := bytes.Clone(p)
	q[700] ^= 1
	if c := Read(q, 7, 3); c.Kind != "corrupt" || !strings.Contains(c.Detail, "sector 1") {
		t.Fatalf("flipped bit is %+v", c)
	}
	other := make([]byte, BlockSize)
	Fill(other, Stamp{7, 3, 10})
	for i := 1; i < sectorsPerBlock; i++ {
		q = bytes.Clone(p)
		copy(q[i*sectorSize:], other[i*sectorSize:])
		if c := Read(q, 7, 3); c.Kind != "torn" {
			t.Fatalf("torn at sector %d is %+v", i, c)
		}
	}
	clear(p[5*sectorSize:])
	if c := Read(p, 7, 3); c.Kind != "torn" {
		t.Fatalf("half-written block is %+v", c)
	}
}

// script drives a log and a disk: each step is a line of what happened.
type script struct {
	t *testing.T
	l *Log
	d disk
	n map[string]uint64
}

func newScript(t *testing.T, path string) *script {
	l, err := NewLog(path, 10, 100)
	if err != nil {
		t.Fatal(err)
	}
	return &script{t, l, disk{}, map[string]uint64{}}
}

func (s *script) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) issue(name string, block uint64) {
	n, err := s.l.Issue(block, 1, false)
	s.must(err)
	s.n[name] = n
}
func (s *script) ack(name string, block uint64) { s.must(s.l.Ack(block, 1, false, s.n[name])) }
func (s *script) has(name string, block uint64) { s.d.put(s.l.Run, block, s.n[name]) }
func (s *script) flush() {
	n, err := s.l.FlushIssue()
	s.must(err)
	s.must(s.l.FlushAck(n))
}

func (s *script) check(level Level, want string) {
	s.t.Helper()
	r, err := s.l.CheckBlocks(level, s.d.get)
	s.must(err)
	got := ""
	if r.First != nil {
		got = r.First.Kind
	}
	if got != want || (r.Violations > 0) != (want != "") {
		s.t.Fatalf("%s: %q, want %q: %+v", level, got, want, r.First)
	}
}

func TestAckedWritesMustSurvive(t *testing.T) {
	s := newScript(t, "")
	s.issue("a", 10)
	s.check(Acked, "") // never acknowledged: may be missing
	s.has("a", 10)
	s.check(Acked, "") // or there
	s.ack("a", 10)
	s.check(Acked, "")
	s.issue("b", 10)
	s.check(Acked, "")
	s.has("b", 10)
	s.check(Acked, "")
	s.ack("b", 10)
	s.has("a", 10)
	s.check(Acked, "lost")
	s.check(Flushed, "") // without a power cut no server may do that, with one it may
	delete(s.d, 10)
	s.check(Acked, "lost")
	s.check(Flushed, "")
	s.n["x"] = 99
	s.has("x", 10)
	s.check(Acked, "unknown")
}

func TestFlushedWritesAndPrefix(t *testing.T) {
	s := newScript(t, "")
	s.issue("a", 10)
	s.ack("a", 10)
	s.flush()
	s.check(Flushed, "lost")
	s.has("a", 10)
	s.issue("b", 11)
	s.ack("b", 11)
	s.issue("c", 12)
	s.ack("c", 12)
	s.check(Flushed, "")
	s.has("c", 12)
	s.check(Flushed, "order") // c was issued after b was acknowledged
	s.has("b", 11)
	s.check(Flushed, "")
	delete(s.d, 12)
	s.check(Flushed, "") // b without c is a prefix
	// Concurrent writes may survive in any combination.
	s.issue("d", 13)
	s.issue("e", 14)
	s.ack("d", 13)
	s.ack("e", 14)
	s.has("c", 12)
	s.has("e", 14)
	s.check(Flushed, "")
}

func TestFlushCoversOnlyWhatWasAcknowledgedBefore(t *testing.T) {
	s := newScript(t, "")
	s.issue("a", 10)
	n, err := s.l.FlushIssue()
	s.must(err)
	s.ack("a", 10)
	s.must(s.l.FlushAck(n))
	s.check(Flushed, "")
	s.flush()
	s.check(Flushed, "lost")
}

func TestLogFileIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	s := newScript(t, path)
	s.issue("a", 10)
	s.ack("a", 10)
	s.flush()
	s.issue("b", 10)
	s.has("a", 10)
	s.must(s.l.Close())
	b, err := os.ReadFile(path)
	s.must(err)
	s.must(os.WriteFile(path, append(b, b[len(b)-logRecordLen:len(b)-3]...), 0o600)) // a torn record
	run := s.l.Run
	s.l, err = OpenLog(path)
	s.must(err)
	if s.l.Run != run || s.l.next != 4 {
		t.Fatalf("run %x next %d", s.l.Run, s.l.next)
	}
	s.check(Acked, "")
	s.has("b", 10)
	s.check(Acked, "")
	s.issue("c", 10)
	s.ack("c", 10)
	s.check(Acked, "lost")
	s.must(s.l.Close())

	b, err = os.ReadFile(path)
	s.must(err)
	b[logHeaderLen+9] ^= 1
	s.must(os.WriteFile(path, b, 0o600))
	if _, err := OpenLog(path); err == nil || !strings.Contains(err.Error(), "at byte 64") {
		t.Fatalf("damaged record: %v", err)
	}
	if _, err := NewLog(path, 0, 1); err == nil {
		t.Fatal("a new log over an old one")
	}
}

func FuzzReadLog(f *testing.F) {
	path := filepath.Join(f.TempDir(), "log")
	l, err := NewLog(path, 0, 1000)
	if err != nil {
		f.Fatal(err)
	}
	n, _ := l.Issue(5, 2, true)
	l.Ack(5, 2, true, n)
	n, _ = l.FlushIssue()
	l.FlushAck(n)
	l.Close()
	b, _ := os.ReadFile(path)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		l, size, err := readLog(bytes.NewReader(b))
		if err == nil && (size > int64(len(b)) || l.Blocks == 0) {
			t.Fatalf("read %d of %d bytes", size, len(b))
		}
	})
}
