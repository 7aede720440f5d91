package node

import (
	"testing"

	"dozo/internal/ident"
)

// A site that is lost takes the volumes along that it owns, those that nobody has owned yet, and those whose owner elsewhere is
// kept from beginning by what only the site has: it was lost while it handed them over (simulator, seed 129,501,019).
func TestWhatALostSiteTakesAlong(t *testing.T) {
	const lost, other = 1, 2
	for _, c := range []struct {
		what              string
		owner             ident.NodeName
		at, home          ident.SiteID
		known, recovering bool
		owned, waits      bool
	}{
		{"owned there", "s1n1", lost, other, true, false, true, false},
		{"owned there, and its owner recovers", "s1n1", lost, lost, true, true, true, false},
		{"owned and served elsewhere", "s2n1", other, lost, true, false, false, false},
		{"owned elsewhere, not served", "s2n1", other, lost, true, true, false, true},
		{"never owned, at home there", "", 0, lost, false, false, true, false},
		{"never owned, at home elsewhere", "", 0, other, false, false, false, false},
		{"its owner is no node any more", "s3n1", 0, lost, false, false, false, false},
	} {
		if owned, waits := goesWith(lost, c.owner, c.at, c.home, c.known, c.recovering); owned != c.owned || waits != c.waits {
			t.Errorf("%s: owned %v, waits %v", c.what, owned, waits)
		}
	}
}
