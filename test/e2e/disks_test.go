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

// storeList is what dozo store list says.
type storeList struct {
	Stores []struct {
		ID, Node, Label, Path, State string
	}
}

// TestNodeRemovedAndStoreReplaced takes a core server with a voter of the control store out and exchanges a disk of another under a writer: both are emptied
// first, no command fails, and every acknowledged block is there afterwards through what is left.
func TestNodeRemovedAndStoreReplaced(t *testing.T) {
	s := start(t, 2, 3)
	iqn := s.create("v", "128M")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 2, iqn), log, "--size", "16M", "--rate", "500")
	w.writes(t, 100)
	var p struct{ Phase string }
	s.ask("s1n2", &p, "node", "remove", "s1n1", "--dry-run")
	if p.Phase != "planned" {
		t.Fatalf("%+v", p)
	}
	s.ask("s1n2", &p, "node", "remove", "s1n1", "--yes", "--timeout", "600s")
	if p.Phase != "removed" {
		t.Fatalf("%+v", p)
	}
	until(t, "its process ends", 10*time.Second, func() (bool, string) { return s.pid("s1n1") == 0, "it runs" })
	until(t, "five nodes and the witness are left", 10*time.Second, func() (bool, string) { n := s.nodeList(); return len(n) == 6, fmt.Sprint(n) })
	type voter struct {
		Node        string
		Up, Learner bool
	}
	var ctl struct {
		Quorum bool
		Voters []voter
	}
	until(t, "another node of the site has got the vote", 10*time.Second, func() (bool, string) {
		ctl.Voters = nil
		err := s.tryAsk("s1n2", &ctl, "control", "status")
		has := slices.ContainsFunc(ctl.Voters, func(v voter) bool { return strings.HasPrefix(v.Node, "s1") && v.Up && !v.Learner })
		return err == nil && ctl.Quorum && len(ctl.Voters) == 3 && has, fmt.Sprintf("%+v, %v", ctl, err)
	})

	find := func(name string) (id, path string) {
		var list storeList
		s.ask("s1n2", &list, "store", "list", "--node", name)
		for _, x := range list.Stores {
			if x.State != "lost" {
				id, path = x.ID, x.Path
			}
		}
		return id, path
	}
	was, path := find("s2n3")
	s.ask("s1n2", &p, "store", "replace", "s2n3/disk0", "--timeout", "600s")
	if p.Phase != "empty" {
		t.Fatalf("%+v", p)
	}
	s.kill("s2n3")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	again := s.background(exec.Command(dozoBin, "serve", "--config", filepath.Join(s.dir, "nodes", "s2n3", "dozo.yaml")))
	t.Cleanup(func() { again.stop(os.Interrupt) })
	until(t, "there is a new store", 20*time.Second, func() (bool, string) {
		id, now := find("s2n3")
		return id != "" && id != was && now == path, id
	})
	w.writes(t, 100)
	if r := w.finish(t); r.Failed != 0 || r.Acked == 0 {
		t.Errorf("writer: %+v", r)
	} else {
		t.Logf("writer: %d acknowledged, longest gap %v", r.Acked, time.Duration(r.LongestNS))
	}
	s.check(log, s.url(1, 3, iqn))
	s.check(log, s.url(2, 3, iqn))
}
