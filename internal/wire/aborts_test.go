package wire

import (
	"slices"
	"testing"
)

// A node that knows no ranges is told each request, or, of too many, of a reset.
func TestAbortsForAnOlderNode(t *testing.T) {
	m := &HandOver{Step: HandTake, Stopped: 77, Reset: 5, Aborted: []HandAbort{{RequestID{3, 8}, 40, 2}, {RequestID{4, 1}, 41, 0}}}
	read := func(version uint16) *HandOver {
		t.Helper()
		var out HandOver
		if err := DecodeAt(&out, AppendFieldsAt(nil, m, version), version); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	if got := read(version3); !slices.Equal(got.Aborted, m.Aborted) || got.Reset != 5 {
		t.Errorf("version 3: %v, reset %d", got.Aborted, got.Reset)
	}
	each := []HandAbort{{RequestID{3, 8}, 40, 0}, {RequestID{3, 9}, 40, 0}, {RequestID{3, 10}, 40, 0}, {RequestID{4, 1}, 41, 0}}
	if got := read(version2); !slices.Equal(got.Aborted, each) || got.Reset != 5 {
		t.Errorf("version 2: %v, reset %d", got.Aborted, got.Reset)
	}
	m.Aborted = append(m.Aborted, HandAbort{RequestID{5, 0}, 42, ^uint64(0)})
	if got := read(version2); len(got.Aborted) != 0 || got.Reset != 77 {
		t.Errorf("too many: %d, reset %d", len(got.Aborted), got.Reset)
	}
	if m.Reset != 5 {
		t.Error("the message was changed")
	}
}
