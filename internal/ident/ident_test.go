package ident

import (
	"testing"

	"pgregory.net/rapid"
)

func TestSegmentIDTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s SegmentID
		copy(s.Journal[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "journal"))
		s.Site = SiteID(rapid.Uint16().Draw(t, "site"))
		s.Epoch = Epoch{rapid.Uint64().Draw(t, "epoch"), rapid.Uint32().Draw(t, "lineage")}
		s.Number = rapid.Uint32().Draw(t, "number")
		got, err := ParseSegmentID(s.String())
		if err != nil || got != s {
			t.Fatalf("ParseSegmentID(%q) = %v, %v; want %v", s.String(), got, err, s)
		}
	})
}

func TestParseRefusesWhatStringNeverGives(t *testing.T) {
	good := SegmentID{Journal: NewJournalID(), Number: 7}.String()
	for _, bad := range []string{"", "x", good + "0", good[1:], "+" + good[1:], good[:len(good)-1] + "g", good[:33] + "00+1" + good[37:]} {
		if s, err := ParseSegmentID(bad); err == nil {
			t.Errorf("ParseSegmentID(%q) = %v, want an error", bad, s)
		}
	}
	if b, err := ParseBootID("4f109d64-f8c7-481d-ab5c-441da47c508f\n"); err != nil || b.String() != "4f109d64f8c7481dab5c441da47c508f" {
		t.Errorf("boot ID as the kernel prints it: %v, %v", b, err)
	}
}
