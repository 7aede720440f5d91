package ident

import "testing"

// FuzzParse: what is taken is what String gives, so no two texts (names of files, keys) are one ID.
func FuzzParse(f *testing.F) {
	f.Add(SegmentID{Journal: NewJournalID(), Site: 3, Epoch: Epoch{7, 1}, Number: 2}.String())
	f.Add(NewStoreID().String())
	f.Add("4f109d64-f8c7-481d-ab5c-441da47c508f\n")
	f.Add("00112233445566778899AABBCCDDEEFF")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSegmentID(text); err == nil && s.String() != text {
			t.Errorf("%q is the segment %s", text, s)
		}
		if id, err := ParseJournalID(text); err == nil {
			if again, err := ParseJournalID(id.String()); err != nil || again != id {
				t.Errorf("%q is the journal %s, which is %s, %v", text, id, again, err)
			}
		}
		if id, err := ParseStoreID(text); err == nil {
			if again, err := ParseStoreID(id.String()); err != nil || again != id {
				t.Errorf("%q is the store %s, which is %s, %v", text, id, again, err)
			}
		}
		if b, err := ParseBootID(text); err == nil {
			if again, err := ParseBootID(b.String()); err != nil || again != b {
				t.Errorf("%q is the boot %s, which is %s, %v", text, b, again, err)
			}
		}
	})
}
