//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// storeList is what dozo store list says.
type storeList struct {
	Stores []struct {
		ID, Node, Label, Path, State string
	}
}

// TestNodeRemovedAndStoreReplaced takes a core server out and exchanges a disk of another under a writer: both are emptied
// first, no command fails, and every acknowledged block is there afterwards through what is left.
func TestNodeRemovedAndStoreReplaced(t *testing.T) {
	s := start(t, 2, 3)
	iqn := s.create("v", "128M")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 1, iqn), log, "--size", "16M", "--rate", "500")
	time.Sleep(time.Second)
	var p struct{ Phase string }
	s.ask("s1n1", &p, "node", "remove", "s1n2", "--dry-run")
	if p.Phase != "planned" {
		t.Fatalf("%+v", p)
	}
	s.ask("s1n1", &p, "node", "remove", "s1n2", "--yes", "--timeout", "60s")
	if p.Phase != "removed" {
		t.Fatalf("%+v", p)
	}
	until(t, "its process ends", 10*time.Second, func() (bool, string) { return s.pid("s1n2") == 0, "it runs" })
	if n := s.nodeList(); len(n) != 6 { // and the witness
		t.Errorf("%d nodes are left", len(n))
	}

	find := func(name string) (id, path string) {
		var list storeList
		s.ask("s1n1", &list, "store", "list", "--node", name)
		for _, x := range list.Stores {
			if x.State != "lost" {
				id, path = x.ID, x.Path
			}
		}
		return id, path
	}
	was, path := find("s2n3")
	s.ask("s1n1", &p, "store", "replace", "s2n3/disk0", "--timeout", "60s")
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
	if r := w.finish(t); r.Failed != 0 || r.Acked == 0 {
		t.Errorf("writer: %+v", r)
	} else {
		t.Logf("writer: %d acknowledged, longest gap %v", r.Acked, time.Duration(r.LongestNS))
	}
	s.check(log, s.url(1, 3, iqn))
	s.check(log, s.url(2, 3, iqn))
}
