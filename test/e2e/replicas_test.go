//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// segmentsOf lists the segments of a volume with the files of all replicas. Each node knows only its own files'
// names, so all that run are asked.
func segmentsOf(t *testing.T, s *system, volume string) map[string]segment {
	t.Helper()
	all := map[string]segment{}
	for _, name := range s.names() {
		if name == "witness" || s.pid(name) == 0 {
			continue
		}
		var v volumeShow
		s.ask(name, &v, "volume", "show", volume, "--segments")
		for _, x := range v.Placement.Segments {
			if x.Kind != "history" {
				continue
			}
			have, ok := all[x.ID]
			if !ok {
				have = x
				have.Replicas = nil
			}
			for _, r := range x.Replicas {
				if r.Store.Node == name {
					if r.Path == "" {
						t.Errorf("%s does not say where its replica of %s is", name, x.ID)
					}
					have.Replicas = append(have.Replicas, r)
				}
			}
			have.LastSeq = max(have.LastSeq, x.LastSeq)
			all[x.ID] = have
		}
	}
	return all
}

// inspected is what `dozo inspect` says of a file: the records it found, in order, after verifying every checksum.
type inspected struct {
	first, last uint64
	sealed      bool
	hash        [sha256.Size]byte
}

// inspectFile has dozo inspect verify a file. One that was retired or dropped since it was listed has no records. In one that
// is being written just now the last record may be half there: an error may not stay.
func inspectFile(t *testing.T, path string) (in inspected, _ error) {
	t.Helper()
	out, err := run(exec.Command(dozoBin, "inspect", "--records", "-o", "json", path))
	if _, gone := os.Stat(path); os.IsNotExist(gone) {
		return in, nil
	}
	if err != nil {
		return in, err
	}
	ended := false
	sc := bufio.NewScanner(bytes.NewReader([]byte(out)))
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		var line struct {
			Line   string `json:"line"`
			Seq    uint64 `json:"seq"`
			Error  string `json:"error"`
			Sealed bool   `json:"sealed"`
			Bad    int    `json:"bad"`
		}
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return in, fmt.Errorf("dozo inspect %s: %w in %.300s", path, err, sc.Text())
		}
		switch line.Line {
		case "record":
			if in.first == 0 {
				in.first = line.Seq
			} else if line.Seq != in.last+1 {
				return in, fmt.Errorf("%s: record %d follows %d", path, line.Seq, in.last)
			}
			in.last = line.Seq
		case "bad":
			return in, fmt.Errorf("%s: %s", path, line.Error)
		case "end":
			ended, in.sealed = true, line.Sealed
			if line.Bad > 0 {
				return in, fmt.Errorf("%s: %d findings", path, line.Bad)
			}
		}
	}
	if sc.Err() != nil || !ended {
		return in, fmt.Errorf("dozo inspect %s: no end: %w", path, sc.Err())
	}
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return inspected{}, nil
	} else if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	copy(in.hash[:], h.Sum(nil))
	return in, nil
}

// retiredWithin is how long a site may keep what the others have retired: its stores were away, and are asked what is left over when shipping
// to them begins anew, and once a checkpoint that covers it is there.
const retiredWithin = slow * 90 * time.Second

// everythingThere looks at the files themselves: sites 2 and 3 must hold the records that site 1 holds up to the
// commit point, without a gap, and sealed replicas of a segment must be the same bytes everywhere. With fromStart
// nothing can have been retired yet, so the records must begin with the first.
func everythingThere(t *testing.T, s *system, volume string, fromStart bool) {
	t.Helper()
	for until := time.Now().Add(retiredWithin); ; time.Sleep(2 * time.Second) {
		problems, summary := compareSites(t, s, volume, fromStart)
		if len(problems) == 0 {
			t.Log(summary)
			return
		}
		if time.Now().After(until) {
			t.Errorf("%s\n%s", strings.Join(problems, "\n"), summary)
			return
		}
	}
}

func compareSites(t *testing.T, s *system, volume string, fromStart bool) (problems []string, summary string) {
	t.Helper()
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	commit := s.show(volume).Placement.Commit
	if commit == nil {
		t.Fatalf("volume %s has no commit point", volume)
	}
	type run struct{ first, last uint64 }
	sites := map[string][]run{}
	files, sealed := 0, 0
	for id, x := range segmentsOf(t, s, volume) {
		var hash *[sha256.Size]byte
		var from string
		for _, r := range x.Replicas {
			in, err := inspectFile(t, r.Path)
			if err != nil {
				wrong("%v", err)
			}
			if in.first == 0 {
				continue
			}
			files++
			sites[r.Store.Site] = append(sites[r.Store.Site], run{in.first, in.last})
			if !in.sealed {
				continue
			}
			sealed++
			if hash == nil {
				hash, from = &in.hash, r.Path
			} else if *hash != in.hash {
				wrong("sealed replicas of %s differ: %s and %s", id, from, r.Path)
			}
		}
	}
	// covered merges the runs that a site holds.
	covered := func(site string) (out []run) {
		all := sites[site]
		sort.Slice(all, func(i, j int) bool { return all[i].first < all[j].first })
		for _, r := range all {
			if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
				out[n-1].last = max(out[n-1].last, r.last)
			} else {
				out = append(out, r)
			}
		}
		return out
	}
	home := covered("site-1")
	for _, site := range []string{"site-2", "site-3"} {
		got := covered(site)
		switch {
		case len(got) == 0:
			wrong("%s holds nothing", site)
			continue
		case got[len(got)-1].last < commit.Seq:
			wrong("%s holds records up to %d, committed are %d", site, got[len(got)-1].last, commit.Seq)
		case fromStart && (len(got) != 1 || got[0].first != 1):
			wrong("%s holds records %v: want 1 to %d without a gap", site, got, commit.Seq)
		}
		for _, h := range home {
			in := false
			for _, g := range got {
				in = in || g.first <= h.first && g.last >= min(h.last, commit.Seq)
			}
			if !in {
				wrong("%s holds records %v: not all of %v that site-1 holds", site, got, h)
			}
		}
	}
	return problems, fmt.Sprintf("%d files inspected, %d of them sealed; committed are 1 to %d, site-2 holds %v, site-3 %v", files, sealed, commit.Seq, covered("site-2"), covered("site-3"))
}

// TestLocalReplicaDropped shows that site 1 keeps one replica of a segment once the other sites hold it and a
// checkpoint covers it. Checkpoints come every minute, so this is one of the long forms.
func TestLocalReplicaDropped(t *testing.T) {
	if !long() {
		t.Skip("waits for a checkpoint; E2E_LONG=1 (make crash-test) runs it")
	}
	s := start(t, 3, 2)
	iqn := s.create("v", "1G")
	s.must(exec.Command(dozoBin, "bench", "iscsi", "--workload", "write:1m:4", "--size", "512M", "--runtime", "5s", s.url(1, 1, iqn)))
	s.dozo("volume", "wait", "v", "--replicated", "--timeout", "600s")
	dropped(t, s, "v", 2)
	for _, r := range s.show("v").Placement.SiteReplicas {
		t.Logf("%s: %d segments, %d replicas", r.Site, r.Segments, r.Replicas)
	}
	everythingThere(t, s, "v", false)
}

// dropped waits until there are more than so many sealed segments, and one local replica of each.
func dropped(t *testing.T, s *system, volume string, more int) {
	t.Helper()
	until(t, "one local replica of every sealed segment", 3*time.Minute, func() (bool, string) {
		sealed, twice := 0, 0
		for _, x := range segmentsOf(t, s, volume) {
			if x.State != "sealed" {
				continue
			}
			at := map[string]int{}
			for _, r := range x.Replicas {
				at[r.Store.Site]++
			}
			if at["site-1"] == 0 || at["site-2"] == 0 || at["site-3"] == 0 {
				return false, fmt.Sprintf("segment %s has replicas %v", x.ID, at)
			}
			sealed++
			if at["site-1"] > 1 {
				twice++
			}
		}
		return sealed > more && twice == 0, fmt.Sprintf("%d of %d sealed segments have two local replicas", twice, sealed)
	})
}

// TestOwnersNodeDiesAfterDrops kills the node that has the only local replica of most of a volume: the volume goes on
// at the other node of the site, with everything that was written, from what the other sites hold.
func TestOwnersNodeDiesAfterDrops(t *testing.T) {
	if !long() {
		t.Skip("waits for a checkpoint; E2E_LONG=1 (make crash-test) runs it")
	}
	s := start(t, 3, 2)
	iqn := s.create("v", "256M")
	log := filepath.Join(s.dir, "writer.log")
	owner := s.show("v").Volume.Owner
	other := 1
	if owner == "s1n1" {
		other = 2
	}
	w := s.crashWriter(s.url(1, other, iqn), log, "--blocks-max", "64")
	time.Sleep(5 * time.Second)
	if r := w.finish(t); r.Acked == 0 {
		t.Fatal("nothing was acknowledged")
	}
	s.dozo("volume", "wait", "v", "--replicated", "--timeout", "600s")
	dropped(t, s, "v", 0)
	if now := s.show("v").Volume.Owner; now != owner {
		t.Fatalf("the owner is %s, it was %s", now, owner)
	}
	alone := 0
	for _, x := range segmentsOf(t, s, "v") {
		at := map[string]bool{}
		for _, r := range x.Replicas {
			at[r.Store.Node] = true
		}
		if at[owner] && !at[fmt.Sprintf("s1n%d", other)] {
			alone++
		}
	}
	if alone == 0 {
		t.Fatalf("%s has the only local replica of no segment", owner)
	}
	t.Logf("%s has the only local replica of %d segments: kill -9", owner, alone)
	s.kill(owner)
	s.check(log, s.url(1, other, iqn))
	w = s.crashWriter(s.url(1, other, iqn), log, "--seed", "2")
	time.Sleep(2 * time.Second)
	if r := w.finish(t); r.Acked == 0 {
		t.Fatal("nothing was acknowledged after the takeover")
	}
	s.check(log, s.url(1, other, iqn))
	s.up()
	for site := 1; site <= 3; site++ {
		s.check(log, s.url(site, 1, iqn))
	}
}
