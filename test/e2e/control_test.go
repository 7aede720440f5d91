//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// controlStatus is what `dozo control status -o json` prints, as far as the tests look.
type controlStatus struct {
	Quorum      bool
	Lineage     string
	Restoration *struct {
		Kind, State, Report string
		Stores              []struct{ ID, Node, State string }
	}
	Voters []struct {
		Node   string
		Up     bool
		Leader bool
	}
}

// quickWriter writes for a while and ends.
func (s *system) quickWriter(url, log string) {
	s.t.Helper()
	w := s.crashWriter(url, log)
	w.writes(s.t, 100)
	time.Sleep(time.Second)
	if r := w.finish(s.t); r.Acked == 0 || r.Failed > 0 {
		s.t.Fatalf("writer to %s: %+v", url, r)
	}
}

// TestControlRestored loses all voters of the control store, twice. First it comes back from a backup that does not know
// the last volume, while nodes without a voter go on running; then from nothing but what the nodes hold, with every
// process killed. All that was acknowledged is there each time, and volumes can be made again.
func TestControlRestored(t *testing.T) {
	s := start(t, 3, 2)
	log := func(v string) string { return filepath.Join(s.dir, v+".log") }
	iqn := map[string]string{"a": s.create("a", "256M"), "b": s.create("b", "256M")}
	s.dozo("volume", "move", "a", "--to", "s1n2")
	s.quickWriter(s.url(1, 2, iqn["b"]), log("b"))
	file := filepath.Join(s.dir, "control.backup")
	s.dozo("control", "backup", file)
	iqn["late"] = s.create("late", "256M")
	s.quickWriter(s.url(1, 2, iqn["late"]), log("late"))
	w := s.crashWriter(s.url(1, 2, iqn["a"]), log("a"))
	w.writes(t, 100)

	var before controlStatus
	s.ask("", &before, "control", "status")
	if !before.Quorum || len(before.Voters) != 3 {
		t.Fatalf("%+v", before)
	}
	if _, err := run(exec.Command(dozoBin, "control", "restore", file, "--dir", s.dir, "--yes")); err == nil {
		t.Error("restored under voters that run")
	}
	voters := []string{"s1n1", "s2n1", "s3n1"}
	s.kill(voters...)
	for _, v := range voters[1:] {
		if err := os.RemoveAll(filepath.Join(s.dir, "nodes", v, "control")); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(s.must(exec.Command(dozoBin, "control", "restore", file, "--dir", s.dir, "--dry-run")))
	t.Log(s.must(exec.Command(dozoBin, "control", "restore", file, "--dir", s.dir, "--yes")))
	s.up()
	settled := func(what string) controlStatus {
		t.Helper()
		var st controlStatus
		until(t, what+" is settled", time.Minute, func() (bool, string) {
			st = controlStatus{}
			err := s.tryAsk("", &st, "control", "status")
			up := 0
			for _, v := range st.Voters {
				if v.Up {
					up++
				}
			}
			return err == nil && st.Restoration != nil && st.Restoration.State == "settled" && up == 3, fmt.Sprintf("%+v %+v, %v", st, st.Restoration, err)
		})
		t.Logf("%s: %s", what, st.Restoration.Report)
		return st
	}
	st := settled("restore")
	w.writes(t, 100)
	if st.Lineage == before.Lineage {
		t.Error("the lineage is the same")
	}
	r := w.finish(t)
	t.Logf("writer through the loss of the control store: %d acknowledged, longest gap %v, %d reconnects", r.Acked, time.Duration(r.LongestNS).Round(time.Millisecond), r.Reconnects)
	if r.Failed > 0 {
		t.Errorf("%d writes failed", r.Failed)
	}
	checkAll := func() {
		t.Helper()
		for v, q := range iqn {
			s.check(log(v), s.url(2, 2, q))
		}
	}
	checkAll()
	if got := s.show("late"); got.Volume.IQN != iqn["late"] {
		t.Errorf("the volume that the backup did not know: %+v", got.Volume)
	}

	// Everything dies, and nothing of the control store is left.
	s.kill(s.names()...)
	t.Log(s.must(exec.Command(dozoBin, "control", "rebuild", "--dir", s.dir, "--yes")))
	s.up()
	until(t, "the rebuilt control store lists every store", time.Minute, func() (bool, string) {
		var st controlStatus
		err := s.tryAsk("", &st, "control", "status")
		n := 0
		if st.Restoration != nil {
			for _, x := range st.Restoration.Stores {
				if x.State == "answered" {
					n++
				}
			}
		}
		return err == nil && n == 6, fmt.Sprintf("%d stores have answered, %v", n, err)
	})
	until(t, "status says that it waits", 10*time.Second, func() (bool, string) {
		var problems struct{ Problems []struct{ Reason string } }
		err := s.tryAsk("", &problems, "status")
		return strings.Contains(fmt.Sprint(problems), "CONTROL_UNSETTLED"), fmt.Sprint(problems, err)
	})
	s.dozo("control", "complete", "--yes")
	settled("rebuild")
	checkAll()
	if v := s.show("a"); v.Volume.SizeBytes != 256<<20 {
		t.Errorf("volume a has %d bytes", v.Volume.SizeBytes)
	}
	s.dozo("volume", "create", "new", "1G")
}
