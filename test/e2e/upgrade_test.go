//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestUpgrade upgrades a cluster of the previous version node by node, each drained before, under writers at two sites; while
// it is mixed, volumes are made, handed over in both directions and taken over after kill -9. Half way a node goes back to the
// previous version. Without DOZO_OLD, the previous program, there is nothing to upgrade from: test/upgrade.sh builds it.
func TestUpgrade(t *testing.T) {
	old := os.Getenv("DOZO_OLD")
	if old == "" {
		t.Skip("DOZO_OLD is not set: run make upgrade-test")
	}
	current := dozoBin
	dozoBin = old
	s := func() *system { defer func() { dozoBin = current }(); return start(t, 3, 2) }()
	// start starts a node by one version of the program; what runs stays.
	with := func(program string, f func()) {
		t.Helper()
		dozoBin = program
		defer func() { dozoBin = current }()
		f()
	}
	log := func(v string) string { return filepath.Join(s.dir, v+".log") }
	iqn := map[string]string{}
	with(old, func() { iqn["a"], iqn["b"] = s.create("a", "256M"), s.create("b", "256M") })
	writers := map[string]*crashWriter{"a": s.crashWriter(s.url(1, 1, iqn["a"]), log("a")), "b": s.crashWriter(s.url(2, 1, iqn["b"]), log("b"))}
	versions := func() map[string]string {
		var list []struct{ Name, Version string }
		s.ask("", &list, "node", "list")
		out := map[string]string{}
		for _, x := range list {
			out[x.Name] = x.Version
		}
		return out
	}
	// replace has a node leave in order and come back by another program.
	replace := func(name, program string) {
		t.Helper()
		_, _ = run(exec.Command(dozoBin, "node", "drain", name, "--wait", "--timeout", "20s", "--dir", s.dir)) // a witness owns nothing
		pid := s.pid(name)
		if err := exec.Command("kill", "-TERM", itoa(pid)).Run(); err != nil {
			t.Fatal(err)
		}
		until(t, name+" has ended", 40*time.Second, func() (bool, string) { return s.pid(name) == 0, "" })
		with(program, s.up)
		if _, err := run(exec.Command(dozoBin, "node", "undrain", name, "--dir", s.dir)); err != nil && name != "witness" {
			t.Error(err)
		}
	}
	served := func(when string) {
		t.Helper()
		for v := range iqn {
			was := uint64(0)
			until(t, v+" is served "+when, 40*time.Second, func() (bool, string) {
				x := s.show(v)
				if x.Placement.Commit != nil {
					was = x.Placement.Commit.Seq
				}
				return was > 0, fmt.Sprintf("%+v", x.Volume)
			})
			if writers[v] == nil {
				continue
			}
			until(t, v+" is written "+when, 40*time.Second, func() (bool, string) {
				x := s.show(v)
				return x.Placement.Commit != nil && x.Placement.Commit.Seq > was+50, fmt.Sprintf("%+v", x.Volume)
			})
		}
	}
	// The first half: a voter and another node of two sites.
	half := []string{"s1n1", "s2n2", "s3n1"}
	for _, name := range half {
		replace(name, current)
		served("with " + name + " upgraded")
	}
	t.Logf("mixed: %v", versions())
	// Volumes by new nodes and by old ones, known to all.
	s.dozo("volume", "create", "made-new", "256M", "--endpoint", "unix://"+filepath.Join(s.dir, "nodes", "s1n1", "api.sock"))
	with(old, func() {
		s.must(exec.Command(old, "volume", "create", "made-old", "256M", "--endpoint", "unix://"+filepath.Join(s.dir, "nodes", "s1n2", "api.sock")))
	})
	for _, v := range []string{"made-new", "made-old"} {
		iqn[v] = s.show(v).Volume.IQN
		s.quickWriter(s.url(3, 1, iqn[v]), log(v))
		s.quickWriter(s.url(3, 2, iqn[v]), log(v))
	}
	// Hand-overs in both directions, within a site and between sites.
	for _, to := range []string{"s1n2", "s1n1", "s2n1", "s2n2", "s1n2"} {
		s.dozo("volume", "move", "a", "--to", to)
		if x := s.show("a"); x.Volume.Owner != to {
			t.Errorf("a is at %s, not at %s", x.Volume.Owner, to)
		}
	}
	served("after hand-overs between versions")
	// Takeovers from one version by the other.
	for _, name := range []string{"s1n2", "s1n1"} {
		s.kill(name)
		until(t, "a is taken over from "+name, 40*time.Second, func() (bool, string) {
			x := s.show("a")
			return x.Volume.Owner != name && x.Volume.State == "serving", fmt.Sprintf("%+v", x.Volume)
		})
		program := old
		if slices.Contains(half, name) {
			program = current
		}
		with(program, s.up) // the writer's portal may be the one that was killed
		served("after " + name + " was killed")
	}
	// Back, before what only the new version has is used.
	replace("s1n1", old)
	served("with s1n1 downgraded")
	for _, name := range []string{"s1n1", "s1n2", "s2n1", "s3n2"} {
		replace(name, current)
		served("with " + name + " upgraded")
	}
	for name, v := range versions() {
		if v == versions()["s1n1"] {
			continue
		}
		t.Errorf("%s still runs %s", name, v)
	}
	for v, w := range writers {
		r := w.finish(t)
		t.Logf("%s: %d acknowledged, longest gap %v, %d reconnects", v, r.Acked, time.Duration(r.LongestNS).Round(time.Millisecond), r.Reconnects)
		if r.Failed > 0 {
			t.Errorf("%s: %d writes failed", v, r.Failed)
		}
	}
	for v := range iqn {
		s.check(log(v), s.url(1, 1, iqn[v]))
		s.check(log(v), s.url(3, 2, iqn[v]))
	}
	// What the version before knows nothing of.
	s.dozo("volume", "create", "after", "1G", "--ownership", "pin")
	s.dozo("volume", "set", "a", "--partition", "stop")
}
