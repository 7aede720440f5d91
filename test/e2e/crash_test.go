//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// crashWriter is `dozo bench crash-writer`: numbered, checksummed blocks at queue depth 32 with flushes.
type crashWriter struct {
	*background
	url, log string
	from     int64 // where in the log its own records begin
}

func (s *system) crashWriter(url, log string, flags ...string) *crashWriter {
	s.t.Helper()
	args := append([]string{"bench", "crash-writer", url, "--log", log, "--depth", "32", "--size", "128M", "--reconnect", "600s", "-o", "json"}, flags...)
	from := int64(logHeader)
	if fi, err := os.Stat(log); err == nil {
		from = fi.Size()
	}
	return &crashWriter{s.background(exec.Command(dozoBin, args...)), url, log, from}
}

// The writer's log (internal/initiator/history): a header, and records with their kind at a place.
const (
	logHeader, logRecord, logKind = 64, 32, 4
	kindAck                       = 2
)

// acked is how many writes the log has as acknowledged since the writer was started.
func (w *crashWriter) acked() (n int) {
	text, _ := os.ReadFile(w.log)
	for at := w.from; at+logRecord <= int64(len(text)); at += logRecord {
		if text[at+logKind] == kindAck {
			n++
		}
	}
	return n
}

// writes waits until so many more writes are acknowledged.
func (w *crashWriter) writes(t *testing.T, more int) {
	t.Helper()
	was := w.acked()
	until(t, fmt.Sprintf("%d writes are acknowledged", more), 30*time.Second, func() (bool, string) {
		if !w.running() {
			t.Fatalf("the writer gave up: %v\n%s", w.err, w.out.String())
		}
		now := w.acked()
		return now >= was+more, fmt.Sprintf("%d, and %d before", now, was)
	})
}

type writerReport struct {
	Issued, Acked, Failed uint64
	Flushes               uint64
	LongestNS             int64 `json:"longest_gap_ns"`
	Reconnects            int
}

// finish tells the writer to end and gives its report; it may have lost its server, which is no failure of it.
func (w *crashWriter) finish(t *testing.T) writerReport {
	t.Helper()
	w.stop(os.Interrupt)
	var r writerReport
	if err := json.Unmarshal(w.out.Bytes(), &r); err != nil {
		t.Fatalf("crash-writer: %v\n%s", w.err, w.out.String())
	}
	return r
}

// check reads everything back through a URL: no acknowledged block may be lost or torn.
func (s *system) check(log, url string) {
	s.t.Helper()
	s.t.Log(s.must(exec.Command(dozoBin, "bench", "crash-check", url, "--log", log)))
}

// TestCrash kills random nodes, and everything, under writers, again and again; after each round every block that
// was ever acknowledged must be there, whole, through the access servers of all sites.
func TestCrash(t *testing.T) {
	rounds := 4
	if v := os.Getenv("E2E_ROUNDS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("E2E_ROUNDS=%q: want a number of rounds", v)
		}
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("E2E_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("E2E_SEED=%q: %v", v, err)
		}
		seed = n
	}
	t.Logf("kills and times are drawn from E2E_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))

	s := start(t, 3, 2)
	// Two volumes: one written at its own site, one from another site through whoever owns it.
	type unit struct{ iqn, log, url string }
	units := []unit{{iqn: s.create("a", "256M")}, {iqn: s.create("b", "256M")}}
	for i := range units {
		units[i].log = filepath.Join(s.dir, "writer"+itoa(i)+".log")
	}
	units[0].url, units[1].url = s.url(1, 1, units[0].iqn), s.url(2, 1, units[1].iqn)

	for round := range rounds {
		var writers []*crashWriter
		for i, u := range units {
			writers = append(writers, s.crashWriter(u.url, u.log, "--seed", itoa(1+round*len(units)+i)))
		}
		for _, w := range writers {
			w.writes(t, 1) // it is logged in
		}
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		var victims []string
		if what := rnd.IntN(4); what == 0 {
			victims = s.names()
		} else {
			names := s.names()
			rnd.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			victims = names[:1+rnd.IntN(2)]
		}
		t.Logf("round %d of %d: kill -9 %v", round+1, rounds, victims)
		s.kill(victims...)
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		s.up()
		// They go on by themselves, and are killed or told to end later.
		time.Sleep(time.Duration(1000+rnd.IntN(1500)) * time.Millisecond)
		if rnd.IntN(3) == 0 {
			victims = s.names()
			t.Logf("round %d of %d: kill -9 everything", round+1, rounds)
			s.kill(victims...)
			s.up()
		}
		for i, w := range writers {
			if !w.running() {
				t.Fatalf("writer %d gave up: %v\n%s", i, w.err, w.out.String())
			}
			w.writes(t, 1)
			r := w.finish(t)
			t.Logf("round %d, writer %d: %d acknowledged, %d flushes, %d reconnects, longest gap %v", round+1, i, r.Acked, r.Flushes, r.Reconnects,
				time.Duration(r.LongestNS).Round(time.Millisecond))
		}
		for _, u := range units {
			s.check(u.log, s.url(1+rnd.IntN(3), 1+rnd.IntN(2), u.iqn))
		}
	}
	for _, v := range []string{"a", "b"} {
		s.dozo("volume", "wait", v, "--replicated", "--timeout", "600s")
		everythingThere(t, s, v, false)
	}
}

// TestCoreServerDies kills the core server that holds the second copy: writes go on, on another pair, within
// seconds; the volume is shown as degraded while it is away, and no more once it is back.
func TestCoreServerDies(t *testing.T) {
	s := start(t, 3, 2)
	iqn := s.create("v", "256M")
	owner := s.show("v").Volume.Owner
	victim, at := "s1n2", 1
	if owner == "s1n2" {
		victim, at = "s1n1", 2
	}
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, at, iqn), log)
	acked := func() uint64 {
		var v volumeShow
		if err := s.tryAsk(owner, &v, "volume", "show", "v"); err != nil || v.Placement.Commit == nil {
			return 0
		}
		return v.Placement.Commit.Seq
	}
	until(t, "writes begin", 20*time.Second, func() (bool, string) { return acked() > 500, "" })

	s.kill(victim)
	killed, was := time.Now(), acked()
	until(t, "writes go on without "+victim, 15*time.Second, func() (bool, string) {
		now := acked()
		return now > was+200, fmt.Sprintf("commit point %d, was %d", now, was)
	})
	t.Logf("200 more records were committed %v after the kill", time.Since(killed).Round(10*time.Millisecond))

	s.up()
	was = acked()
	until(t, "writes go on after "+victim+" is back", 15*time.Second, func() (bool, string) {
		now := acked()
		return now > was+200, fmt.Sprintf("commit point %d, was %d", now, was)
	})
	r := w.finish(t)
	t.Logf("%d acknowledged, longest gap between two %v, reconnects %d", r.Acked, time.Duration(r.LongestNS).Round(time.Millisecond), r.Reconnects)
	if r.Failed > 0 || r.Reconnects > 0 {
		t.Errorf("%d writes failed and %d reconnects: the death of a core server is none of the client's business", r.Failed, r.Reconnects)
	}
	s.check(log, s.url(1, at, iqn))
	until(t, "all sites hold everything and nothing is degraded", time.Minute, func() (bool, string) {
		p := s.show("v").Placement
		ok := p.Degraded == 0 && p.Commit != nil && len(p.Copies) == 3
		for _, c := range p.Copies {
			ok = ok && p.Commit != nil && c.Watermark >= p.Commit.Seq
		}
		return ok, fmt.Sprintf("%+v", p)
	})
	everythingThere(t, s, "v", false)
}

// TestSiteAway kills a whole remote site under a writer and brings it back: it catches up.
func TestSiteAway(t *testing.T) {
	s := start(t, 3, 2)
	iqn := s.create("v", "256M")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 1, iqn), log)
	w.writes(t, 100)
	s.kill("s3n1", "s3n2")
	time.Sleep(3 * time.Second)
	w.writes(t, 100)
	r := w.finish(t)
	if r.Failed > 0 || r.Reconnects > 0 {
		t.Errorf("%d writes failed and %d reconnects while another site was away", r.Failed, r.Reconnects)
	}
	before := s.show("v")
	for _, c := range before.Placement.Copies {
		t.Logf("while it is away: %s is %s, at %d of %d", c.Site, c.State, c.Watermark, before.Placement.Commit.Seq)
	}
	s.up()
	s.dozo("volume", "wait", "v", "--replicated", "--timeout", "600s")
	s.check(log, s.url(3, 1, iqn))
	everythingThere(t, s, "v", false)
}
