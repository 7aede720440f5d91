//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dozo/internal/api"
	"dozo/internal/api/dozov1"
)

// TestVoterWithAFullDisk: the file systems on which two voters have their databases, one of a node with stores and one of a witness,
// become full, and the control store is written: etcd finds out by an error, in the midst of a transaction. There is room where
// the nodes look for it, so nobody stops the voters in time. Both vote again once there is room, without anybody's help, whatever
// etcd has left behind in the process. Meanwhile the volume is written.
func TestVoterWithAFullDisk(t *testing.T) {
	if !long() {
		t.Skip("most of a minute; E2E_LONG=1 (make crash-test) runs it")
	}
	if os.Getuid() != 0 {
		t.Skip("it mounts file systems: only root may")
	}
	s := start(t, 2, 2)
	iqn := s.create("v", "64M")
	log := filepath.Join(s.dir, "writer.log")
	w := s.crashWriter(s.url(1, 2, iqn), log, "--size", "16M", "--rate", "200")
	victims := []string{"s2n1", "witness"}
	at := func(name string) string { return filepath.Join(s.dir, "nodes", name) }
	snaps := map[string]string{}
	for _, name := range victims {
		s.kill(name)
		found, _ := filepath.Glob(filepath.Join(at(name), "*", "control", "etcd", "member", "snap"))
		more, _ := filepath.Glob(filepath.Join(at(name), "control", "etcd", "member", "snap"))
		if found = append(found, more...); len(found) != 1 {
			t.Fatalf("the databases of %s: %v", name, found)
		}
		snap, old := found[0], found[0]+".old"
		snaps[name] = snap
		if err := errors.Join(os.Rename(snap, old), os.Mkdir(snap, 0o700)); err != nil {
			t.Fatal(err)
		}
		s.must(exec.Command("mount", "-t", "tmpfs", "-o", "size=64M", "dozo-e2e", snap))
		t.Cleanup(func() { // before the system's own end removes what is there; its process holds it
			s.kill(name)
			if err := syscall.Unmount(snap, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		s.must(exec.Command("cp", "-a", "--sparse=always", old+"/.", snap))
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	s.up()
	votes := func(when string) {
		t.Helper()
		until(t, "all vote "+when, 3*time.Minute, func() (bool, string) {
			var st struct {
				Voters []struct {
					Node        string
					Up, Learner bool
				}
			}
			err := s.tryAsk("s1n1", &st, "control", "status")
			n := 0
			for _, v := range st.Voters {
				if v.Up && !v.Learner {
					n++
				}
			}
			return err == nil && n == 3, fmt.Sprintf("%+v, %v", st, err)
		})
	}
	votes("at first")
	began := map[string]string{}
	for _, name := range victims {
		began[name] = startedAt(t, s.pid(name))
	}
	client, err := api.Dial(api.ClientOptions{Endpoints: []string{"unix://" + filepath.Join(at("s1n1"), "api.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var hosts atomic.Int64
	// churn makes changes of some kilobytes, several at a time, and says how many were made.
	churn := func(n int) (made int64) {
		var ok atomic.Int64
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				i := hosts.Add(1)
				req := &dozov1.AddHostRequest{Tenant: "default", Name: fmt.Sprintf("h%05d", i)}
				for k := range 60 {
					req.InitiatorNames = append(req.InitiatorNames, fmt.Sprintf("iqn.2026-11.test:h%05d-%02d-%s", i, k, strings.Repeat("x", 180)))
				}
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				defer cancel()
				if _, err := client.Hosts.Add(ctx, req); err == nil {
					ok.Add(1)
				}
			})
		}
		wg.Wait()
		return ok.Load()
	}
	for _, name := range victims {
		fillDisk(t, filepath.Join(snaps[name], "ballast"))
	}
	logOf := func(name string) string {
		text, _ := os.ReadFile(filepath.Join(at(name), "log"))
		return string(text)
	}
	until(t, "both have died", 4*time.Minute, func() (bool, string) {
		churn(20)
		for _, name := range victims {
			if !strings.Contains(logOf(name), "the voter has died") {
				return false, fmt.Sprintf("%s has not, after %d changes", name, hosts.Load())
			}
		}
		return true, ""
	})
	for _, name := range victims {
		if s.pid(name) == 0 {
			t.Errorf("%s has ended", name)
		}
		if err := os.Remove(filepath.Join(snaps[name], "ballast")); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	votes("once there is room")
	for _, name := range victims {
		how := "in the process in which it died"
		if n := strings.Count(logOf(name), "the node starts anew"); n > 0 {
			how = fmt.Sprintf("in a new program, the %d.", n)
		}
		_, cause, _ := strings.Cut(logOf(name), "the voter has died: ")
		t.Logf("%v: %s votes again: %s; it had died of: %.200s", time.Since(begun).Round(time.Second), name, how, cause)
		if now := startedAt(t, s.pid(name)); now != began[name] {
			t.Errorf("%s is another process, begun at %s and not at %s: who restarted it?", name, now, began[name])
		}
	}
	until(t, "changes are made again", time.Minute, func() (bool, string) { return churn(1) == 1, "" })
	if r := w.finish(t); r.Acked == 0 || r.Failed > 0 {
		t.Errorf("writer: %+v", r)
	}
	s.check(log, s.url(1, 2, iqn))
}

// startedAt is when a process began; executing a program again does not change it.
func startedAt(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if err != nil || !ok || len(f) < 20 {
		t.Fatalf("process %d: %q, %v", pid, text, err)
	}
	return f[19]
}

// fillDisk writes a file until the file system is full to the last byte.
func fillDisk(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err = f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
