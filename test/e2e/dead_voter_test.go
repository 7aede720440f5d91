//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDeadVoterIsRemoved takes a node that is dead and has a voter out by force, under a writer: its vote goes to the other node
// of the site, which keeps it, and what was removed stays out. The long form then has every voter die, and restores the control
// store on who has the votes now.
func TestDeadVoterIsRemoved(t *testing.T) {
	s := start(t, 2, 2)
	iqn := s.create("v", "128M")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 2, iqn), log, "--size", "16M", "--rate", "500")
	until(t, "it writes", 20*time.Second, func() (bool, string) {
		var v volumeShow
		err := s.tryAsk("s1n2", &v, "volume", "show", "v")
		return err == nil && v.Placement.Commit != nil && v.Placement.Commit.Seq > 100, fmt.Sprint(err)
	})
	refused := func(what string, args ...string) {
		t.Helper()
		if out, err := run(exec.Command(dozoBin, append(args, "--dir", s.dir)...)); err == nil {
			t.Errorf("%s was not refused: %s", what, out)
		}
	}
	refused("the removal of a node that runs", "node", "remove", "s1n1", "--force", "--yes")
	s.kill("s1n1")
	// Without force it is emptied first, and nothing can be read from it.
	refused("the removal of a dead node's store without force", "node", "remove", "s1n1", "--yes", "--timeout", "2s")
	until(t, "it is removed by force", 20*time.Second, func() (bool, string) { // not before it is known to be dead
		_, err := run(exec.Command(dozoBin, "node", "remove", "s1n1", "--force", "--yes", "--dir", s.dir))
		return err == nil, fmt.Sprint(err)
	})
	votes := func(when string, want ...string) {
		t.Helper()
		until(t, fmt.Sprintf("%v have the votes %s", want, when), time.Minute, func() (bool, string) {
			var st struct {
				Quorum bool
				Voters []struct {
					Node        string
					Up, Learner bool
				}
			}
			err := s.tryAsk("s2n2", &st, "control", "status")
			var got []string
			for _, v := range st.Voters {
				if v.Up && !v.Learner {
					got = append(got, v.Node)
				}
			}
			slices.Sort(got)
			return err == nil && st.Quorum && len(st.Voters) == len(want) && slices.Equal(got, want), fmt.Sprintf("%+v, %v", st, err)
		})
	}
	votes("after the removal", "s1n2", "s2n1", "witness")
	until(t, "four nodes are left", 10*time.Second, func() (bool, string) { n := s.nodeList(); return len(n) == 4, fmt.Sprint(n) })
	// The vote counts: with another voter away, changes go on.
	s.kill("s2n1")
	until(t, "changes go on with the appointed voter and the witness", 30*time.Second, s.creates("w"))
	s.up()
	votes("with the other one back", "s1n2", "s2n1", "witness")
	if pid := s.pid("s1n1"); pid != 0 {
		t.Errorf("dozo up has started what was taken out, as %d", pid)
	}
	if r := w.finish(t); r.Acked == 0 || r.Failed > 0 {
		t.Errorf("writer: %+v", r)
	} else {
		t.Logf("writer: %d acknowledged, longest gap %v", r.Acked, time.Duration(r.LongestNS).Round(time.Millisecond))
	}
	s.check(log, s.url(1, 2, iqn))
	if !long() {
		return
	}

	file := filepath.Join(s.dir, "control.backup")
	s.dozo("control", "backup", file)
	refused("a restore while the appointed voter runs", "control", "restore", file, "--yes")
	s.kill("s1n2", "s2n1", "witness")
	for _, v := range []string{"s1n2", "s2n1", "witness"} {
		if err := os.RemoveAll(filepath.Join(s.dir, "nodes", v, "control")); err != nil {
			t.Fatal(err)
		}
	}
	if out := s.must(exec.Command(dozoBin, "control", "restore", file, "--dir", s.dir, "--yes")); !strings.Contains(out, "node s1n2 has a new control store") {
		t.Errorf("restored: %s", out)
	}
	s.up()
	votes("after the restore", "s1n2", "s2n1", "witness")
	until(t, "it is settled", time.Minute, func() (bool, string) {
		var st controlStatus
		err := s.tryAsk("", &st, "control", "status")
		return err == nil && st.Restoration != nil && st.Restoration.State == "settled", fmt.Sprintf("%+v %+v, %v", st, st.Restoration, err)
	})
	if pid := s.pid("s1n1"); pid != 0 {
		t.Errorf("what was taken out runs, as %d", pid)
	}
	s.check(log, s.url(1, 2, iqn))
	s.check(log, s.url(2, 2, iqn))
}
