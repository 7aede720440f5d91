//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestVotersDie is of two sites and a witness: each voter of the control store dies in turn, then two at once, so that
// the control store is away. I/O goes on; with one voter away changes do too.
func TestVotersDie(t *testing.T) {
	s := start(t, 2, 2)
	iqn := s.create("v", "256M")
	var list []struct {
		Name, Site string
		Voter      bool
	}
	s.ask("", &list, "node", "list")
	var voters []string
	at := "" // the access server of site 1 that is not a voter: clients use it throughout
	for _, x := range list {
		if x.Voter {
			voters = append(voters, x.Name)
		} else if x.Site == "site-1" {
			at = x.Name
		}
	}
	if len(voters) != 3 || !slices.Contains(voters, "witness") || at == "" {
		t.Fatalf("voters %v among %+v", voters, list)
	}
	site, n := 1, 1
	if at == "s1n2" {
		n = 2
	}
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(site, n, iqn), log)
	acked := func() uint64 {
		var v volumeShow
		if err := s.tryAsk(at, &v, "volume", "show", "v"); err != nil || v.Placement.Commit == nil {
			return 0
		}
		return v.Placement.Commit.Seq
	}
	goesOn := func(when string) {
		t.Helper()
		was := uint64(0)
		until(t, "the volume is served "+when, 30*time.Second, func() (bool, string) { was = acked(); return was > 0, "" })
		until(t, "writes go on "+when, 30*time.Second, func() (bool, string) {
			now := acked()
			return now > was+200, fmt.Sprintf("commit point %d, was %d", now, was)
		})
	}
	connected := func(want bool) {
		t.Helper()
		until(t, fmt.Sprintf("the control store is connected: %v", want), 30*time.Second, func() (bool, string) {
			var st struct {
				Control  struct{ Connected bool }
				Problems []struct{ Reason string }
			}
			err := s.tryAsk(at, &st, "status")
			away := slices.ContainsFunc(st.Problems, func(p struct{ Reason string }) bool { return p.Reason == "CONTROL_AWAY" })
			return err == nil && st.Control.Connected == want && away != want, fmt.Sprintf("%+v, %v", st, err)
		})
	}
	goesOn("at first")
	for i, victim := range voters {
		s.kill(victim)
		goesOn("without " + victim)
		until(t, "changes go on without "+victim, 30*time.Second, s.creates(fmt.Sprintf("w%d", i)))
		s.up()
		goesOn("with " + victim + " back")
		connected(true)
	}

	away := slices.DeleteFunc(slices.Clone(voters), func(x string) bool { return x == "s1n1" || x == "s1n2" })
	s.kill(away...)
	connected(false)
	goesOn("without the control store")
	_, err := run(exec.Command(dozoBin, "volume", "create", "late", "1G", "--dir", s.dir))
	if exitCode(err) != exitUnreachable {
		t.Errorf("creating a volume without a control store: %v; want exit code 5", err)
	}
	goesOn("after a change that could not be")
	s.up()
	connected(true)
	s.dozo("volume", "create", "late", "1G")
	r := w.finish(t)
	t.Logf("%d acknowledged, longest gap between two %v, reconnects %d", r.Acked, time.Duration(r.LongestNS).Round(time.Millisecond), r.Reconnects)
	if r.Failed > 0 || r.Reconnects > 0 {
		t.Errorf("%d writes failed and %d reconnects: voters are none of the client's business", r.Failed, r.Reconnects)
	}
	s.check(log, s.url(site, n, iqn))
}
