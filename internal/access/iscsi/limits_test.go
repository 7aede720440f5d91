package iscsi

import (
	"net/netip"
	"testing"
	"time"
)

func TestSources(t *testing.T) {
	var s sources
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range 3 {
		if ok := s.enter(a, 2); ok != (i < 2) {
			t.Errorf("%d: %v", i, ok)
		}
	}
	if !s.enter(b, 2) {
		t.Error("one source keeps another out")
	}
	s.leave(a)
	if !s.enter(a, 2) {
		t.Error("a place that was given back is not free")
	}
	s.leave(a)
	s.leave(a)
	s.leave(b)
	if len(s.count) != 0 {
		t.Errorf("%d sources are remembered", len(s.count))
	}
}

func TestNotices(t *testing.T) {
	var n notices
	now := time.Unix(1000, 0)
	said := 0
	for range 3 * noticesMax {
		if ok, _ := n.allow(now, noticesMax); ok {
			said++
		}
	}
	if said != noticesMax {
		t.Errorf("%d notices", said)
	}
	if ok, omitted := n.allow(now.Add(2*noticesEvery), noticesMax); !ok || omitted != 2*noticesMax {
		t.Errorf("%v, %d omitted", ok, omitted)
	}
}

// TestKeptIsBounded: DefaultTime2Wait is the larger of both sides' wishes (RFC 7143 13.15), and is not how long memory is kept.
func TestKeptIsBounded(t *testing.T) {
	for wait, want := range map[uint32]time.Duration{0: 20 * time.Second, 3600: keptMax} {
		x := &Session{params: Params{DefaultTime2Wait: wait, DefaultTime2Retain: 20}}
		if got := x.kept(); got != want {
			t.Errorf("DefaultTime2Wait %d: %v, want %v", wait, got, want)
		}
	}
}
