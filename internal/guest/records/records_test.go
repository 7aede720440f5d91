package records

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a disk in memory; sync may fail.
type memory struct {
	b       []byte
	syncs   int
	syncErr error
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) { return copy(m.b[off:], b), nil }
func (m *memory) Sync() error                              { m.syncs++; return m.syncErr }

const slots, run = 8, 77

// ring gives a disk with records 1 to n.
func ring(n uint64) []byte {
	disk := make([]byte, slots*BlockBytes)
	for i := uint64(1); i <= n; i++ {
		copy(disk[i%slots*BlockBytes:], Append(nil, run, i))
	}
	return disk
}

func TestCheck(t *testing.T) {
	put := func(disk []byte, slot int, block []byte) []byte {
		copy(disk[slot*BlockBytes:], block)
		return disk
	}
	for _, c := range []struct {
		name  string
		disk  []byte
		acked uint64
		want  Findings
	}{
		{"empty", ring(0), 0, Findings{}},
		{"first lap", ring(5), 5, Findings{Checked: 5}},
		{"later laps", ring(29), 29, Findings{Checked: slots}},
		{"one under way", ring(30), 29, Findings{Checked: slots}},
		{"the last is missing", ring(28), 29, Findings{Checked: slots, Lost: 1}},
		{"a tail is missing", ring(20), 29, Findings{Checked: slots, Lost: slots}},
		{"one in the middle is missing", put(ring(29), 27%slots, Append(nil, run, 19)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1}},
		{"one in the middle is zeros", put(ring(29), 27%slots, make([]byte, BlockBytes)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1}},
		{"another run's", put(ring(29), 27%slots, Append(nil, run+1, 27)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1}},
		{"torn", put(ring(29), 27%slots, append(Append(nil, run, 27)[:2048], Append(nil, run, 19)[2048:]...)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1, Damaged: 1}},
		{"in another's slot", put(ring(29), 27%slots, Append(nil, run, 26)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1, Damaged: 1}},
		{"from the future", put(ring(29), 35%slots, Append(nil, run, 35)), 29, Findings{Checked: slots, Lost: 1, Reordered: 1, Damaged: 1}},
	} {
		got, err := Check(bytes.NewReader(c.disk), slots, run, c.acked)
		if first := got.First; err != nil || got.OK() != (first == "") {
			t.Errorf("%s: %+v %v", c.name, got, err)
		}
		got.First = ""
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &memory{b: make([]byte, slots*BlockBytes)}
		ctx, cancel := context.WithTimeout(t.Context(), 99*time.Millisecond)
		defer cancel()
		var out bytes.Buffer
		if err := Write(ctx, disk, make([]byte, BlockBytes), Job{"disk", run, slots, 5 * time.Millisecond}, &out); err != nil {
			t.Fatal(err)
		}
		n := out.Len() / AckBytes
		if n != 20 || disk.syncs != n {
			t.Errorf("%d records, %d flushes in 99 ms at 5 ms", n, disk.syncs)
		}
		for i := range n {
			if a, err := ParseAck(out.Bytes()[i*AckBytes:]); err != nil || a.Number != uint64(i+1) {
				t.Errorf("%+v %v", a, err)
			}
		}
		if f, err := Check(bytes.NewReader(disk.b), slots, run, uint64(n)); err != nil || !f.OK() || f.Checked != slots {
			t.Errorf("%+v %v", f, err)
		}
	})
}

func TestWriteErrors(t *testing.T) {
	disk := &memory{b: make([]byte, slots*BlockBytes), syncErr: errors.New("no flush")}
	var out bytes.Buffer
	err := Write(t.Context(), disk, make([]byte, BlockBytes), Job{"disk", run, slots, 0}, &out)
	if !errors.Is(err, disk.syncErr) || out.Len() > 0 {
		t.Errorf("a record that was not flushed is acknowledged: %v", err)
	}
	for _, j := range []Job{{}, {"d", 1, 1, 0}, {"d", 0, 8, 0}, {"d", 1, 8, -1}, {"d", 1, 1 << 30, 0}} {
		if j.Validate() == nil {
			t.Errorf("%+v is fine", j)
		}
	}
	if _, err := ParseAck(make([]byte, AckBytes-1)); err == nil {
		t.Error("a short acknowledgement is fine")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Append(nil, run, 5), uint64(run))
	f.Add(make([]byte, BlockBytes), uint64(run))
	f.Add([]byte(magic), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, run uint64) {
		n, err := Parse(b, run)
		if err != nil || n == 0 {
			return
		}
		if len(b) != BlockBytes {
			t.Fatalf("a record of %d bytes", len(b))
		}
		// Its body is covered by the checksum, not by a rule: only head and checksum are compared.
		if again := Append(nil, run, n); !bytes.Equal(again[:24], b[:24]) {
			t.Fatalf("record %d does not begin as it is written", n)
		}
	})
}
