package journal

import (
	"testing"

	"dozo/internal/ident"
)

func TestSiteAcks(t *testing.T) {
	type mark struct {
		site         ident.SiteID
		mark, stable ident.Seq
	}
	for _, x := range []struct {
		name         string
		sites        []ident.SiteID
		need         int
		marks        []mark
		held, synced ident.Seq
	}{
		{"local", []ident.SiteID{2}, 0, nil, allSeqs, allSeqs},
		{"nothing known", []ident.SiteID{2, 3}, 1, nil, 0, 0},
		{"the nearest of two", []ident.SiteID{2, 3}, 1, []mark{{2, 10, 4}, {3, 7, 7}}, 10, 7},
		{"both", []ident.SiteID{2, 3}, 2, []mark{{2, 10, 4}, {3, 7, 7}}, 7, 4},
		{"two of three", []ident.SiteID{2, 3, 4}, 2, []mark{{2, 10, 1}, {3, 7, 2}, {4, 9, 3}}, 9, 2},
		{"stable is never more than held", []ident.SiteID{2}, 1, []mark{{2, 5, 9}}, 5, 5},
		{"a site that is not one of them", []ident.SiteID{2}, 1, []mark{{3, 5, 5}}, 0, 0},
		{"more than there are", []ident.SiteID{2}, 2, []mark{{2, 5, 5}}, 0, 0},
		{"one falls back", []ident.SiteID{2, 3}, 1, []mark{{2, 10, 10}, {2, 0, 0}}, 10, 10},
		{"and what comes then waits for it", []ident.SiteID{2}, 1, []mark{{2, 10, 10}, {2, 0, 0}, {2, 6, 6}}, 10, 10},
	} {
		a := NewSiteAcks(x.sites)
		a.SetNeed(x.need)
		for _, m := range x.marks {
			a.Mark(m.site, m.mark, m.stable)
		}
		if a.Held() != x.held || a.Synced() != x.synced {
			t.Errorf("%s: held %d, synced %d, want %d and %d", x.name, a.Held(), a.Synced(), x.held, x.synced)
		}
	}
}

// With another K what was counted for a smaller one does not count.
func TestSiteAcksWithAnotherK(t *testing.T) {
	a := NewSiteAcks([]ident.SiteID{2, 3})
	a.SetNeed(1)
	a.Mark(2, 20, 20)
	a.Mark(3, 5, 5)
	if a.SetNeed(2); a.Held() != 5 || a.Synced() != 5 {
		t.Errorf("raised: held %d, synced %d", a.Held(), a.Synced())
	}
	if a.SetNeed(1); a.Held() != 20 {
		t.Errorf("lowered: held %d", a.Held())
	}
	if a.SetNeed(0); a.Held() != allSeqs || a.Need() != 0 {
		t.Errorf("local: held %d", a.Held())
	}
}

// A site whose owner was given up counts with what it had, for answers, and never for flushes.
func TestSiteAcksCreditASite(t *testing.T) {
	a := NewSiteAcks([]ident.SiteID{1, 3})
	a.SetNeed(2)
	a.Credit(1, 50)
	a.Mark(3, 40, 30)
	if a.Held() != 40 || a.Synced() != 0 {
		t.Errorf("held %d, synced %d", a.Held(), a.Synced())
	}
	a.Mark(3, 60, 60)
	if a.Held() != 50 || a.Synced() != 0 {
		t.Errorf("beyond the credit: held %d, synced %d", a.Held(), a.Synced())
	}
	a.Mark(1, 60, 60)
	if a.Held() != 60 || a.Synced() != 60 {
		t.Errorf("it is back: held %d, synced %d", a.Held(), a.Synced())
	}
}

// Any n-K sites and any K+1 have one in common, and those that are not heard are too few to acknowledge.
func TestHeardSites(t *testing.T) {
	for n := 1; n <= 6; n++ {
		for k := 0; k < n; k++ {
			heard := HeardSites(n, k)
			if heard+(k+1) <= n {
				t.Errorf("of %d sites %d are heard and %d hold a record: they need not meet", n, heard, k+1)
			}
			if n-heard >= k+1 {
				t.Errorf("of %d sites %d are not heard: enough for %d", n, n-heard, k+1)
			}
			if heard > max(1, n-1) && k > 0 {
				t.Errorf("of %d sites %d are needed: none could be lost", n, heard)
			}
		}
	}
}
