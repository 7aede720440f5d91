//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// moved is what dozo volume move says at the end.
type moved struct {
	Done  bool
	Owner string
	Site  string `json:"owner_site"`
	Pause float64
	Epoch string
}

// siteOf is the site of a node, which is called after it; "" of nobody.
func siteOf(node string) string {
	site, _, _ := strings.Cut(strings.TrimPrefix(node, "s"), "n")
	if site == "" {
		return ""
	}
	return "site-" + site
}

// TestMove hands a volume over under a writer, within the site and between sites, drains the owner's node, and then
// loses the site that the volume was moved away from: every acknowledged block is there, and no command has failed.
func TestMove(t *testing.T) {
	s := start(t, 3, 2)
	// It stays where it is put, however long the test takes.
	iqn := s.create("v", "256M", "--ownership", "pin")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 1, iqn), log)
	w.writes(t, 100)
	var pauses [2][]float64 // within a site, between sites
	site, again := "site-1", 0
	for _, to := range []string{"s1n1", "s1n2", "s1n1", "site-2", "site-1", "site-3", "site-2"} {
		var m moved
		until(t, "a hand-over to "+to, 60*time.Second, func() (bool, string) {
			m = moved{}
			err := s.tryAsk("", &m, "volume", "move", "v", "--to", to, "--timeout", "120s")
			if err == nil && m.Done && (m.Owner == to || m.Site == to) {
				return true, ""
			}
			// One may be given up by a machine that stalls, and then the volume stays where it was.
			if again++; again > 3 {
				t.Fatalf("to %s, and it is not the first that failed: %+v, %v", to, m, err)
			}
			t.Logf("to %s: %+v, %v", to, m, err)
			return false, fmt.Sprint(m, err)
		})
		kind := 0
		if m.Site != site {
			kind = 1
		}
		site = m.Site
		pauses[kind] = append(pauses[kind], m.Pause)
		until(t, "only the new site's ensemble is listed", 30*time.Second, func() (bool, string) {
			v := s.show("v")
			return len(v.Placement.Ensembles) == 1 && siteOf(v.Volume.Owner) == m.Site, fmt.Sprintf("%d ensembles, owner %s", len(v.Placement.Ensembles), v.Volume.Owner)
		})
		w.writes(t, 1)
	}
	for i, name := range []string{"within a site", "between sites"} {
		slices.Sort(pauses[i])
		t.Logf("pauses %s: median %.0f ms of %v s", name, 1000*pauses[i][len(pauses[i])/2], pauses[i])
	}
	var d struct{ Done bool }
	owner := s.show("v").Volume.Owner
	s.ask("", &d, "node", "drain", owner, "--wait", "--timeout", "180s")
	if now := s.show("v").Volume.Owner; !d.Done || now == owner {
		t.Fatalf("%s was drained, the owner is %s", owner, now)
	}
	s.dozo("node", "undrain", owner)
	if r := w.finish(t); r.Failed != 0 || r.Acked == 0 {
		t.Errorf("writer: %+v", r)
	} else {
		t.Logf("writer: %d acknowledged, longest gap %v", r.Acked, time.Duration(r.LongestNS))
	}
	// The volume is at site 2; site 1, where it was written first, is lost.
	s.kill("s1n1", "s1n2")
	s.check(log, s.url(2, 1, iqn))
	s.check(log, s.url(3, 1, iqn))
}

// TestFollow writes by one site, then by another: the volume comes after the writer; a pinned one stays.
// Nobody's write fails, and all that was acknowledged is there in the end.
func TestFollow(t *testing.T) {
	s := start(t, 2, 2)
	iqn := s.create("v", "256M")
	s.create("pinned", "256M", "--ownership", "pin")
	pinned := s.show("pinned").Volume.Owner
	byFar := s.crashWriter(s.url(2, 1, s.show("pinned").Volume.IQN), filepath.Join(s.dir, "pinned"))
	var logs []string
	for i, site := range []int{1, 2} {
		log := filepath.Join(s.dir, fmt.Sprint("writer", i))
		logs = append(logs, log)
		w := s.crashWriter(s.url(site, 2, iqn), log)
		want := fmt.Sprintf("s%dn2", site)
		began := time.Now()
		until(t, "the volume is where it is written", 30*time.Second, func() (bool, string) {
			owner := s.show("v").Volume.Owner
			return i == 0 && siteOf(owner) == siteOf(want) || owner == want, owner
		})
		t.Logf("written by %s: owned by %s after %v", want, s.show("v").Volume.Owner, time.Since(began).Round(10*time.Millisecond))
		w.writes(t, 100)
		if r := w.finish(t); r.Failed != 0 || r.Acked == 0 {
			t.Errorf("writer %d: %+v", i, r)
		}
	}
	s.check(logs[1], s.url(1, 1, iqn))
	if r := byFar.finish(t); r.Failed != 0 || r.Acked == 0 {
		t.Errorf("writer of the pinned volume: %+v", r)
	}
	if now := s.show("pinned").Volume.Owner; siteOf(now) != siteOf(pinned) {
		t.Errorf("the pinned volume went from %s to %s", pinned, now)
	}
}
